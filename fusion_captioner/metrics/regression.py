"""Scores of predicted numbers: how they go with the right ones, and how far they are off."""

import numpy as np
from numpy.typing import ArrayLike


def regression_scores(predictions: ArrayLike, values: ArrayLike) -> dict[str, float]:
    """
    Args:
        predictions, values: N numbers each.

    Returns:
        `"pearson"`, the correlation, 0 where either side is constant and it is not defined; `"mae"` and `"rmse"`, the
        mean absolute and the root mean square error.

    Raises:
        ValueError: numbers of rows that differ or are 0, or predictions that are not finite.
    """
    predictions, values = np.asarray(predictions, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if predictions.shape != values.shape or predictions.ndim != 1 or not len(values):
        raise ValueError(
            f"`predictions` {predictions.shape} and `values` {values.shape} must be as many numbers, at least one."
        )
    if not np.isfinite(predictions).all():
        raise ValueError("`predictions` holds values that are not finite; a model that diverged cannot be scored.")
    error = predictions - values
    varies = np.ptp(predictions) > 0 and np.ptp(values) > 0
    return {
        "pearson": float(np.corrcoef(predictions, values)[0, 1]) if varies else 0.0,
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
    }
