"""Checkpoints of one head given where another is wanted."""

from pathlib import Path

import pytest
import torch
from tiny_exports import tiny_processor
from tiny_models import tiny_head, tiny_model

from fusion_captioner import FusionCaptionerForMultipleChoice, FusionCaptionerForSequenceClassification
from fusion_captioner.checkpoints.loading import check_finite, load_captioner, load_head


def test_the_own_part_of_another_head_is_no_classifier_but_a_start_for_one(tmp_path: Path) -> None:
    name = str(tmp_path)
    tiny_head(FusionCaptionerForMultipleChoice).save_pretrained(name)
    tiny_processor().save_pretrained(name)
    head = FusionCaptionerForSequenceClassification
    with pytest.raises(
        ValueError, match="is a FusionCaptionerForMultipleChoice; give one that was trained to classify"
    ):
        load_head(head, name, trained_to="classify")
    start, _ = load_head(head, name, may_lack_weights=True, trained_to="go on", num_labels=3)
    assert start.classifier[-1].out_features == 3
    # of what they share, every weight must be there as it is
    with pytest.raises(ValueError, match=r"4 tensors .* another shape than config\.json says"):
        load_head(head, name, may_lack_weights=True, trained_to="go on", projection_dim=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.region_projection.weight[0, 0] = value
        model.lm_head.bias[3] = value
    model.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    message = r"2 tensors \(first: lm_head\.bias\) have weights that are not finite"
    with pytest.raises(ValueError, match=message) as caught:
        load_captioner(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        check_finite(model, "a model")
    check_finite(tiny_model(), "a model")
