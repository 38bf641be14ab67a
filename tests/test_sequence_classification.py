"""Labels from image, text or both: losses by hand, every kind of label, loading, pipelines, and fusion that is
needed."""

from pathlib import Path

import pytest
import torch
from hub_form_push import captioner
from PIL import Image
from tiny_models import VOCAB_SIZE, audio_config, log_mel, pixels, sounds, tiny_config, tiny_head, tiny_model, tokens
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, pipeline
from transformers.utils import logging

from fusion_captioner import FusionCaptionerForConditionalGeneration, FusionCaptionerForSequenceClassification

ROWS = {"input_ids": tokens(3), "pixel_values": pixels(3)}
CLASSES, SEVERAL = torch.tensor([2, 0, 1]), torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])
NUMBERS = torch.tensor([0.5, -1.0, 2.0])


def classifier(num_labels: int = 3, **fields) -> FusionCaptionerForSequenceClassification:
    return tiny_head(FusionCaptionerForSequenceClassification, num_labels=num_labels, **fields)


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem_type"),
    [
        (3, CLASSES, "single_label_classification"),
        (3, SEVERAL, "multi_label_classification"),
        (1, NUMBERS, "regression"),
        (1, NUMBERS[:, None], "regression"),
        (3, SEVERAL, "regression"),
    ],
)
def test_the_loss_is_that_of_the_problem_type(num_labels: int, labels: torch.Tensor, problem_type: str) -> None:
    is_inferred = not (problem_type == "regression" and num_labels > 1)
    model = classifier(num_labels, problem_type=None if is_inferred else problem_type)
    output = model(**ROWS, labels=labels)
    assert model.config.problem_type == problem_type
    if problem_type == "single_label_classification":
        expected = -output.logits.log_softmax(dim=1)[torch.arange(3), labels].mean()
    elif problem_type == "multi_label_classification":
        probabilities = output.logits.sigmoid()
        expected = -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean()
    else:
        expected = ((output.logits - labels.view(3, num_labels)) ** 2).mean()
    torch.testing.assert_close(output.loss, expected)


def test_classes_weigh_as_the_config_says() -> None:
    weights = torch.tensor([1.0, 3.0, 0.5])
    model = classifier(class_weights=weights.tolist())
    output = model(**ROWS, labels=CLASSES)
    by_row = -output.logits.log_softmax(dim=1)[torch.arange(3), CLASSES]
    torch.testing.assert_close(output.loss, (by_row * weights[CLASSES]).sum() / weights[CLASSES].sum())
    model.config.problem_type = "multi_label_classification"
    output = model(**ROWS, labels=SEVERAL)
    terms = weights * SEVERAL * F.logsigmoid(output.logits) + (1 - SEVERAL) * F.logsigmoid(-output.logits)
    torch.testing.assert_close(output.loss, -terms.mean())


def test_rows_without_a_label_are_left_out() -> None:
    model = classifier()
    output = model(**ROWS, labels=torch.tensor([2, -100, 1]))
    expected = -output.logits.log_softmax(dim=1)[[0, 2], [2, 1]].mean()
    torch.testing.assert_close(output.loss, expected)
    none = model(**ROWS, labels=torch.full((3,), -100)).loss
    assert none.item() == 0
    none.backward()


@pytest.mark.parametrize(
    ("fields", "labels", "message"),
    [
        ({}, torch.tensor([0, 3, 1]), r"label 3 in `labels` must be from 0 to 2, .* `num_labels`"),
        ({}, torch.tensor([0, -1, 1]), r"label -1 in `labels` must be from 0 to 2, or -100"),
        ({}, torch.tensor([0, 1]), r"`labels` \(2,\) must have the shape \(3,\) for .*'single_label_classification'"),
        ({}, torch.tensor([[0, 1, 0]] * 3), r"`labels` \(3, 3\) must have the shape \(3,\) for .*'single_label"),
        ({"problem_type": "single_label_classification"}, NUMBERS, "must be whole numbers .* `labels.long"),
        ({"problem_type": "multi_label_classification"}, CLASSES, r"`labels` \(3,\) must have the shape \(3, 3\)"),
        ({"problem_type": "multi_label_classification"}, SEVERAL * 2, r"label 2\.0 in `labels` must be from 0 to 1"),
        ({"problem_type": "regression"}, NUMBERS, r"`labels` \(3,\) must have the shape \(3, 3\) for .*'regression'"),
        ({"num_labels": 1}, SEVERAL, r"`labels` \(3, 3\) must have the shape \(3,\) for .*'regression'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(fields: dict, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        classifier(**fields)(**ROWS, labels=labels)
    assert "\n" not in str(caught.value)


def test_a_wrong_label_leaves_the_problem_type_open() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="label 7"):
        model(**ROWS, labels=torch.tensor([7, 0, 0]))
    assert model.config.problem_type is None


def test_padding_on_either_side_changes_no_label() -> None:
    model, ids = classifier(), ROWS["input_ids"]
    expected = model(**ROWS).logits
    pad, mask = torch.zeros(3, 2, dtype=torch.long), torch.ones_like(ids)
    for order in (lambda *pair: pair, lambda *pair: pair[::-1]):
        padded = {"input_ids": torch.cat(order(ids, pad), 1), "attention_mask": torch.cat(order(mask, pad), 1)}
        torch.testing.assert_close(model(**ROWS | padded).logits, expected)


def test_what_is_returned_is_a_choice() -> None:
    model = classifier()
    output = model(**ROWS, output_attentions=True)
    assert output.attentions[0].shape == (3, 2, 6, 16)
    assert model(**ROWS).attentions is None
    (logits,) = model(**ROWS, return_dict=False)
    torch.testing.assert_close(logits, output.logits)


def test_frames_and_sounds_are_classified() -> None:
    model = classifier(max_frames=2, audio_config=audio_config())
    inputs = {"pixel_values": pixels(3, 2), "input_features": log_mel(sounds(220.0, 440.0, 1760.0))}
    expected = model(**inputs, input_ids=tokens(3)).logits
    quiet = model(**inputs | {"input_features": inputs["input_features"].flip(0)}, input_ids=tokens(3)).logits
    assert (expected - quiet)[[0, 2]].abs().max() > 1e-4


def test_shared_parts_load_from_a_captioner_and_the_rest_is_reported(tmp_path: Path) -> None:
    source = tiny_model(contrastive_loss_weight=1.0)
    source.save_pretrained(tmp_path)
    messages: list[str] = []
    logging.set_verbosity_warning()  # commands lower it, in this process too
    logger = logging.get_logger("transformers")
    logger.addFilter(lambda record: messages.append(record.getMessage()) or True)
    handlers = [(handler, handler.filters[:]) for handler in logger.handlers]
    for handler, _ in handlers:
        handler.addFilter(lambda record: messages.append(record.getMessage()) or True)
    try:
        model, report = FusionCaptionerForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
    finally:
        for handler, filters in handlers:
            handler.filters[:] = filters
    shared = {name: weight for name, weight in source.state_dict().items() if name.startswith("model.")}
    assert len(shared) > 20
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in shared.items())
    own = {name for name in model.state_dict() if not name.startswith("model.")}
    assert {name.split(".")[0] for name in own} == {"classifier", "placeholders"}
    assert set(report["missing_keys"]) == own
    assert {name.split(".")[0] for name in report["unexpected_keys"]} == {"alignment", "decoder", "lm_head"}
    reported = " ".join(messages)
    assert all(word in reported for word in ("classifier", "placeholders", "decoder", "lm_head"))
    assert all(placeholder.isfinite().all() and placeholder.std() > 0 for placeholder in model.placeholders.values())

    model.save_pretrained(tmp_path / "classifier")
    back, report = FusionCaptionerForConditionalGeneration.from_pretrained(
        tmp_path / "classifier", output_loading_info=True
    )
    assert all(torch.equal(back.state_dict()[name], weight) for name, weight in shared.items())
    # the output layer is tied to the shared embedding
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"alignment", "decoder", "lm_head"}
    assert "lm_head.weight" not in report["missing_keys"]
    assert set(report["unexpected_keys"]) == own


def test_class_weights_of_other_labels_are_refused_when_loading(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`class_weights` \(\[1\.0, 2\.0\]\) .* 3 labels"):
        FusionCaptionerForSequenceClassification.from_pretrained(tmp_path, num_labels=3, class_weights=[1.0, 2.0])
    weights = [1.0, 2.0, 3.0]
    model = FusionCaptionerForSequenceClassification.from_pretrained(tmp_path, num_labels=3, class_weights=weights)
    assert model.config.class_weights == weights


@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForImageClassification])
def test_both_auto_classes_load_it(tmp_path: Path, auto_class: type) -> None:
    model = classifier()
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is FusionCaptionerForSequenceClassification
    assert torch.equal(loaded(**ROWS).logits, model(**ROWS).logits)


def test_pipelines_classify_an_image_or_a_text_alone(tmp_path: Path) -> None:
    source, processor = captioner()
    names = ["calm", "glad", "sad"]
    source.config.id2label, source.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    torch.manual_seed(0)
    model = FusionCaptionerForSequenceClassification(source.config).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    text = processor.tokenizer("a red square", return_tensors="pt")
    photo = Image.fromarray(pixels(1)[0].sigmoid().mul(255).byte().permute(1, 2, 0).numpy())
    image = processor.image_processor(photo, return_tensors="pt")
    for task, inputs, given in (("image-classification", image, photo), ("text-classification", text, "a red square")):
        found = pipeline(task, model=str(tmp_path))(given, top_k=3)
        scores = model(**inputs).logits.softmax(dim=1)[0]
        assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(
            {name: scores[number].item() for number, name in enumerate(names)}, abs=1e-5
        )


# Fusion that is needed: the label is whether the image is red (and not blue) or the text says so, but not both.
WORDS = torch.tensor([10, 11])


def exclusive_or(rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Pictures with noise, texts whose second word matters, and labels; every pair of cues equally often."""
    generator = torch.Generator().manual_seed(seed)
    cues = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(rows // 4, 1)
    images = 0.3 * torch.randn(rows, 3, 16, 16, generator=generator)
    images[torch.arange(rows), 2 * cues[:, 0]] += 1.0
    ids = torch.randint(20, VOCAB_SIZE, (rows, 4), generator=generator)
    ids[:, 1] = WORDS[cues[:, 1]]
    return {"pixel_values": images, "input_ids": ids, "labels": cues[:, 0] ^ cues[:, 1]}


@pytest.mark.parametrize("fusion_type", ["attention", "sum"])
@pytest.mark.slow
def test_what_neither_image_nor_text_tells_is_learned_from_both(fusion_type: str) -> None:
    accuracy = {}
    for modalities in (("pixel_values", "input_ids"), ("pixel_values",), ("input_ids",)):
        torch.manual_seed(0)
        config = tiny_config(fusion_type=fusion_type, num_labels=2, initializer_range=0.1)
        model = FusionCaptionerForSequenceClassification(config).train()
        model.freeze_image_encoder()
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
        names = (*modalities, "labels")
        for step in range(60):
            batch = exclusive_or(32, seed=step)
            loss = model(**{name: batch[name] for name in names}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        test = exclusive_or(200, seed=1000)
        with torch.no_grad():
            found = model(**{name: test[name] for name in modalities}).logits.argmax(dim=1)
        accuracy[modalities] = (found == test["labels"]).float().mean().item()
    assert accuracy[("pixel_values", "input_ids")] > 0.95
    assert max(accuracy[("pixel_values",)], accuracy[("input_ids",)]) < 0.65
