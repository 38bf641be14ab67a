"""Scores of numbers against values computed by hand."""

import math

import pytest

from fusion_captioner.metrics import regression_scores


def test_scores_of_numbers() -> None:
    scores = regression_scores([1.0, 2.0, 4.0], [2.0, 2.0, 5.0])
    # deviations from the means: -4/3, -1/3, 5/3 and -1, -1, 2
    pearson = (4 / 3 + 1 / 3 + 10 / 3) / math.sqrt((16 + 1 + 25) / 9 * 6)
    assert scores == pytest.approx({"pearson": pearson, "mae": 2 / 3, "rmse": math.sqrt(2 / 3)})
    assert regression_scores([3.0, 2.0], [0.0, 1.0])["pearson"] == pytest.approx(-1)


def test_what_does_not_vary_goes_with_nothing() -> None:
    assert regression_scores([1.0, 1.0], [0.0, 2.0]) == {"pearson": 0.0, "mae": 1.0, "rmse": 1.0}
    assert regression_scores([1.0, 2.0], [3.0, 3.0])["pearson"] == 0


@pytest.mark.parametrize(
    ("predictions", "values", "message"),
    [([1.0], [1.0, 2.0], r"\(1,\) and .* \(2,\)"), ([], [], "at least one"), ([math.nan], [1.0], "not finite")],
)
def test_numbers_that_do_not_fit_are_refused(predictions: list, values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regression_scores(predictions, values)
