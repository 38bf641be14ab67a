"""What every head's methods share: outputs or tuples, hidden states, and arguments that are known by name."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import pixels, tiny_head, tokens
from torch.export import Dim, export
from transformers import Trainer, TrainingArguments
from transformers.utils import ModelOutput

from fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerForImageTextRetrieval,
    FusionCaptionerForMultipleChoice,
    FusionCaptionerForSequenceClassification,
    FusionCaptionerModel,
)

# number of hidden states: text states, joint representations, decoder states
HIDDEN_STATES = {
    FusionCaptionerModel: 2,
    FusionCaptionerForConditionalGeneration: 3,
    FusionCaptionerForImageTextRetrieval: 1,
    FusionCaptionerForSequenceClassification: 2,
    FusionCaptionerForMultipleChoice: 2,
}
FIELDS: dict[str, Any] = {"contrastive_loss_weight": 1.0, "use_cache": False}


def inputs(head: type, rows: int = 2) -> dict[str, torch.Tensor]:
    ids = tokens(rows)
    if head is FusionCaptionerForMultipleChoice:
        ids = tokens(2 * rows).view(rows, 2, -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels(rows)}


@pytest.mark.parametrize("head", HIDDEN_STATES)
def test_outputs_become_tuples_where_asked_for(head: Any) -> None:
    model = tiny_head(head, **FIELDS)
    output = model(**inputs(head))
    assert isinstance(output, ModelOutput)
    as_argument = model(**inputs(head), return_dict=False)
    model.config.return_dict = False
    for found in (as_argument, model(**inputs(head)), model(**inputs(head), return_dict=None)):
        assert type(found) is tuple
        torch.testing.assert_close(found, output.to_tuple())
    torch.testing.assert_close(model(**inputs(head), return_dict=True).to_tuple(), output.to_tuple())


def test_captions_do_not_depend_on_how_outputs_are_returned() -> None:
    model = tiny_head(FusionCaptionerForConditionalGeneration)
    expected = model.generate(pixel_values=pixels(), max_new_tokens=4)
    model.config.return_dict = model.config.vision_config.return_dict = False
    assert torch.equal(model.generate(pixel_values=pixels(), max_new_tokens=4), expected)


@pytest.mark.parametrize(
    "head",
    [FusionCaptionerModel, FusionCaptionerForConditionalGeneration, FusionCaptionerForImageTextRetrieval],
)
def test_features_are_returned_as_outputs_or_tuples(head: Any) -> None:
    model = tiny_head(head, **FIELDS)
    for method, given in ((model.get_image_features, pixels()), (model.get_text_features, tokens())):
        output = method(given, return_dict=True)
        torch.testing.assert_close(method(given, return_dict=False), output.to_tuple())
        with pytest.raises(
            TypeError, match=r"`atention_mask` is no argument .* did you mean `attention_mask`\?|no arg"
        ):
            method(given, atention_mask=torch.ones(2, 6))


@pytest.mark.parametrize("head", HIDDEN_STATES)
def test_hidden_states_are_those_of_text_fusion_and_decoder(head: Any) -> None:
    model, given = tiny_head(head, **FIELDS), inputs(head)
    assert model(**given).hidden_states is None
    states = model(**given, output_hidden_states=True).hidden_states
    assert len(states) == HIDDEN_STATES[head]
    rows = given["input_ids"][..., 0].numel()
    assert {state.shape for state in states} == {(rows, 6, 16)}
    assert all((one - other).abs().max() > 1e-3 for one, other in pairwise(states))
    model.config.output_hidden_states = True
    torch.testing.assert_close(model(**given).hidden_states, states)


@pytest.mark.parametrize("asked", ["by the call", "by the config"])
@pytest.mark.parametrize("head", [head for head in HIDDEN_STATES if hasattr(head, "get_text_features")])
def test_features_return_their_hidden_states(head: Any, asked: str) -> None:
    model = tiny_head(head, **FIELDS)
    given = {"output_hidden_states": True}
    texts, images = model.get_text_features(tokens()), model.get_image_features(pixels())
    assert texts.hidden_states is None and images.hidden_states is None
    if asked == "by the config":
        given, model.config.output_hidden_states = {}, True
    words, states = model.get_text_features(tokens(), **given).hidden_states
    torch.testing.assert_close(words, model.get_input_embeddings()(tokens()))
    torch.testing.assert_close(states, texts.last_hidden_state)
    (regions,) = model.get_image_features(pixels(), **given).hidden_states
    torch.testing.assert_close(regions, images.last_hidden_state)


@pytest.mark.parametrize("head", HIDDEN_STATES)
def test_a_misspelt_argument_is_refused(head: Any) -> None:
    model = tiny_head(head, **FIELDS)
    with pytest.raises(TypeError, match=rf"`pixel_value` .* `{head.__name__}.forward`; did you mean `pixel_values`\?"):
        model(**inputs(head), pixel_value=pixels())
    with pytest.raises(TypeError, match=r"`colour` is no argument of .*; leave it out\."):
        model(**inputs(head), colour=1)
    model(**inputs(head), inputs_embeds=None, position_ids=torch.arange(6))  # what all models are given


def test_predictions_of_a_plain_trainer_are_the_logits(tmp_path) -> None:
    model = tiny_head(FusionCaptionerForConditionalGeneration, **FIELDS | {"use_cache": True})
    rows = [
        {"input_ids": ids, "labels": ids, "pixel_values": image} for ids, image in zip(tokens(4), pixels(4).unbind())
    ]
    seen: list[np.ndarray] = []

    def metrics(predictions) -> dict[str, float]:
        seen.append(predictions.predictions)
        return {"rows": len(predictions.predictions)}

    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=2, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, eval_dataset=rows, compute_metrics=metrics)
    assert trainer.evaluate()["eval_rows"] == 4
    assert seen[0].shape == (4, 6, 50)
    model.config.output_hidden_states = True
    assert trainer.predict([{k: v for k, v in row.items() if k != "labels"} for row in rows]).predictions.shape == (
        4, 6, 50,
    )  # fmt: skip


@pytest.mark.parametrize("head", HIDDEN_STATES)
@pytest.mark.slow
def test_an_exported_model_takes_any_number_of_rows(head: Any) -> None:
    model = tiny_head(head, **FIELDS | {"use_cache": True})
    given = inputs(head, rows=3)
    batch = Dim("batch")
    program = export(model, (), given, dynamic_shapes={name: {0: batch} for name in given})
    others = inputs(head, rows=5)
    first = next(name for name in ("logits", "logits_per_image", "fused_hidden_states") if name in model(**others))
    torch.testing.assert_close(program.module()(**others)[first], model(**others)[first])
