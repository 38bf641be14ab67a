"""One score a choice: choices do not see each other, missing ones are never chosen, and the image is encoded once."""

from pathlib import Path

import pytest
import torch
from tiny_models import pixels, tiny_head, tiny_model, tokens
from transformers import AutoModelForMultipleChoice

from fusion_captioner import FusionCaptionerForMultipleChoice, FusionCaptionerForSequenceClassification

CHOICES = tokens(6).view(2, 3, 6)


def chooser(**fields) -> FusionCaptionerForMultipleChoice:
    return tiny_head(FusionCaptionerForMultipleChoice, **fields)


def test_each_choice_is_scored_for_itself_and_each_image_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = chooser(), []
    encode = model.model.image_encoder.forward
    monkeypatch.setattr(
        model.model.image_encoder, "forward", lambda images: (calls.append(len(images)), encode(images))[1]
    )
    logits = model(input_ids=CHOICES, pixel_values=pixels()).logits
    assert logits.shape == (2, 3)
    assert calls == [2]
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(input_ids=CHOICES[:, order], pixel_values=pixels()).logits, logits[:, order])
    alone = model(input_ids=CHOICES[1:, 2:], pixel_values=pixels()[1:]).logits
    torch.testing.assert_close(alone, logits[1:, 2:])
    assert (model(input_ids=CHOICES, pixel_values=pixels().flip(0)).logits - logits).abs().max() > 1e-4


@pytest.mark.parametrize("text_encoder_type", ["lstm", "transformer"])
def test_missing_choices_are_masked_and_change_nothing(text_encoder_type: str) -> None:
    model = chooser(text_encoder_type=text_encoder_type)
    mask = torch.ones_like(CHOICES)
    mask[0, 2] = 0
    labels = torch.tensor([1, 2])
    output = model(input_ids=CHOICES, attention_mask=mask, pixel_values=pixels(), labels=labels)
    two = model(input_ids=CHOICES[:1, :2], pixel_values=pixels()[:1], labels=labels[:1])
    three = model(input_ids=CHOICES[1:], pixel_values=pixels()[1:], labels=labels[1:])
    torch.testing.assert_close(output.logits[0, :2], two.logits[0])
    assert output.logits[0].softmax(dim=0)[2] == 0
    torch.testing.assert_close(output.loss, (two.loss + three.loss) / 2)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_questions_without_a_known_answer_are_left_out_of_the_loss() -> None:
    model = chooser()
    output = model(input_ids=CHOICES, pixel_values=pixels(), labels=torch.tensor([-100, 1]))
    torch.testing.assert_close(output.loss, -output.logits[1].log_softmax(dim=0)[1])
    assert model(input_ids=CHOICES, pixel_values=pixels(), labels=torch.tensor([-100, -100])).loss == 0


def test_frames_or_texts_alone_are_enough() -> None:
    model = chooser(max_frames=3)
    logits = model(input_ids=CHOICES, pixel_values=pixels(2, 3)).logits
    assert (logits - model(input_ids=CHOICES, pixel_values=pixels(2, 3).flip(1)).logits).abs().max() > 1e-5
    text = model(input_ids=CHOICES).logits
    has_image = torch.tensor([True, False])
    mixed = model(input_ids=CHOICES, pixel_values=pixels(2, 3), has_image=has_image).logits
    torch.testing.assert_close(mixed, torch.stack((logits[0], text[1])))


def test_half_precision_masks_with_a_finite_value() -> None:
    model, mask = chooser().to(torch.bfloat16), torch.ones_like(CHOICES)
    mask[0, 1:] = 0
    output = model(input_ids=CHOICES, attention_mask=mask, pixel_values=pixels(), labels=torch.tensor([0, 0]))
    assert output.logits.isfinite().all()
    assert output.loss.isfinite()


def masked(*choices: tuple[int, int]) -> torch.Tensor:
    mask = torch.ones_like(CHOICES)
    for question, choice in choices:
        mask[question, choice] = 0
    return mask


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None}, r"`input_ids` is missing; it must be \(questions, choices, tokens\)"),
        ({"input_ids": tokens()}, r"`input_ids` has the shape \(2, 6\); it must be \(questions, choices, tokens\)"),
        ({"input_ids": CHOICES[:, :0]}, r"`input_ids` has the shape \(2, 0, 6\)"),
        ({"attention_mask": torch.ones(6, 6)}, r"`attention_mask` \(6, 6\) must have the shape .* \(2, 3, 6\)"),
        ({"attention_mask": masked((1, 0), (1, 1), (1, 2))}, "question 1 of the batch has no choice"),
        ({"labels": torch.tensor([0, 3])}, "label 3 of question 1 is none of its 3 choices"),
        ({"labels": torch.tensor([-1, 0])}, "label -1 of question 0 is none of its 3 choices"),
        (
            {"labels": torch.tensor([2, 0]), "attention_mask": masked((0, 2))},
            "label 2 of question 0 is none of its 2 choices",
        ),
        ({"labels": torch.tensor([[0, 1, 0]] * 2)}, r"`labels` \(2, 3\) must have the shape \(2,\)"),
        ({"pixel_values": pixels(3)}, r"different numbers of rows \(image: 3, text: 2\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        chooser()(**({"input_ids": CHOICES, "pixel_values": pixels()} | changes))
    assert "\n" not in str(caught.value)


def test_shared_parts_load_from_a_captioner_and_from_a_classifier(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "captioner")
    classifier = tiny_head(FusionCaptionerForSequenceClassification)
    classifier.save_pretrained(tmp_path / "classifier")
    for name, new in (("captioner", {"classifier", "placeholders"}), ("classifier", {"classifier"})):
        model, report = AutoModelForMultipleChoice.from_pretrained(
            tmp_path / name, output_loading_info=True, ignore_mismatched_sizes=True
        )
        assert type(model) is FusionCaptionerForMultipleChoice
        fresh = {key.split(".")[0] for key in report["missing_keys"]} | {
            key[0].split(".")[0] for key in report["mismatched_keys"]
        }
        assert fresh == new
    for key, weight in classifier.placeholders.items():
        assert torch.equal(model.placeholders[key], weight)
