"""Metrics for the library `evaluate`: `evaluate.load` takes the path of any folder in here."""
