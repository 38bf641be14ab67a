"""Metrics for the library `evaluate`: `evaluate.load` takes the path of any folder in here."""

import datasets
import evaluate


def caption_metric(description: str, citation: str, inputs: str) -> evaluate.MetricInfo:
    """What `evaluate` asks of a metric of captions: one prediction and a list of references per image."""
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
        ),
    )
