"""A modality that is missing is a learned placeholder, whatever else the batch holds; and training hides some."""

import pytest
import torch
from tiny_models import FUSION_TYPES, LAYER_TYPES, audio_config, log_mel, pixels, sounds, tiny_head, tokens

from fusion_captioner import FusionCaptionerForMultipleChoice, FusionCaptionerForSequenceClassification
from fusion_captioner.optional_modalities import drop_modalities

TEXT, IMAGE = {"input_ids": tokens(3)}, {"pixel_values": pixels(3)}
# each fusion with one kind of text encoder
MIXTURES = [(fusion, LAYER_TYPES[number % 3]) for number, fusion in enumerate(FUSION_TYPES)]


def classifier(fusion_type: str = "attention", text_encoder_type: str = "lstm", **fields):
    return tiny_head(
        FusionCaptionerForSequenceClassification,
        fusion_type=fusion_type,
        text_encoder_type=text_encoder_type,
        num_labels=3,
        **fields,
    )


@pytest.mark.parametrize("mix", MIXTURES)
def test_rows_that_lack_something_equal_batches_that_lack_it(mix: tuple[str, str]) -> None:
    model = classifier(*mix)
    with torch.no_grad():
        both, text, image = (model(**inputs).logits for inputs in (TEXT | IMAGE, TEXT, IMAGE))
        mask = torch.ones_like(TEXT["input_ids"])
        mask[2] = 0
        mixed = model(**TEXT, **IMAGE, attention_mask=mask, has_image=torch.tensor([True, False, True])).logits
    torch.testing.assert_close(mixed, torch.stack((both[0], text[1], image[2])))
    assert min((both - text).abs().max(), (both - image).abs().max(), (text - image).abs().max()) > 1e-3


def test_a_missing_sound_is_a_placeholder_beside_the_image() -> None:
    model = classifier(audio_config=audio_config(), num_audio_regions=4)
    sound = log_mel(sounds(220.0, 440.0, 1760.0))
    # as many regions as an image of another size would not have
    regions = {"image_hidden_states": model.get_image_hidden_states(torch.randn(3, 3, 224, 224))}
    with torch.no_grad():
        heard = model(**TEXT, **regions, input_features=sound).logits
        unheard = model(**TEXT, **regions).logits
        sound_alone = model(input_features=sound).logits
        flags = {"has_audio": torch.tensor([True, False, True]), "has_image": torch.tensor([True, True, False])}
        mask = torch.ones_like(TEXT["input_ids"])
        mask[2] = 0
        mixed = model(**TEXT, **regions, input_features=sound, attention_mask=mask, **flags).logits
    torch.testing.assert_close(mixed, torch.stack((heard[0], unheard[1], sound_alone[2])))


@pytest.mark.parametrize("inputs", [TEXT, IMAGE, TEXT | IMAGE], ids=["text", "image", "both"])
def test_placeholders_learn_where_they_stand_in(inputs: dict) -> None:
    model = classifier()
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    gradients = {name: placeholder.grad for name, placeholder in model.placeholders.items()}
    for name, gradient in gradients.items():
        is_given = ("pixel_values" if name == "image" else "input_ids") in inputs
        assert is_given == (gradient is None or not gradient.any()), name


def test_fresh_placeholders_are_drawn() -> None:
    torch.manual_seed(0)
    model = FusionCaptionerForSequenceClassification(classifier(initializer_range=0.3).config)
    for placeholder in model.placeholders.values():
        assert placeholder.std().item() == pytest.approx(0.3, rel=0.5)


def test_rows_lose_modalities_as_often_as_told_and_keep_one() -> None:
    torch.manual_seed(0)
    present = torch.tensor([[True, True, True], [True, True, False], [False, False, True]]).repeat(4000, 1)
    left = drop_modalities(present, 0.4)
    assert not (left & ~present).any()
    assert left.any(dim=1).all()
    three, two, one = left[0::3], left[1::3], left[2::3]
    assert torch.equal(one, present[2::3])
    for kept, patterns in (
        (two, {(1, 1, 0): 0.6, (1, 0, 0): 0.2, (0, 1, 0): 0.2}),
        (three, {(1, 1, 1): 0.6} | {p: 0.4 / 6 for p in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1))}),
    ):
        for pattern, share in patterns.items():
            found = (kept == torch.tensor(pattern).bool()).all(dim=1).float().mean().item()
            assert found == pytest.approx(share, abs=0.03), pattern
    assert torch.equal(drop_modalities(present, 0.0), present)


def test_training_hides_modalities_and_evaluation_does_not() -> None:
    model = classifier(modality_dropout=0.9)
    with torch.no_grad():
        model.model.eval()
        expected = {
            name: model(**inputs).logits for name, inputs in (("both", TEXT | IMAGE), ("t", TEXT), ("i", IMAGE))
        }
        model.training = True  # the head alone: BatchNorm stays as it is
        torch.manual_seed(0)
        seen = set()
        for _ in range(10):
            for row, logits in enumerate(model(**TEXT, **IMAGE).logits):
                (name,) = [name for name, all_rows in expected.items() if (all_rows[row] - logits).abs().max() < 1e-5]
                seen.add(name)
    assert seen == {"both", "t", "i"}


def test_choices_keep_their_text() -> None:
    model = tiny_head(FusionCaptionerForMultipleChoice, modality_dropout=0.99)
    choices = {"input_ids": tokens(6).view(3, 2, -1)}
    with torch.no_grad():
        both, text = model(**choices, **IMAGE).logits, model(**choices).logits
        model.training = True
        torch.manual_seed(0)
        for _ in range(5):
            for row, logits in enumerate(model(**choices, **IMAGE).logits):
                assert min((both[row] - logits).abs().max(), (text[row] - logits).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "neither image, text nor sound; give `pixel_values`"),
        (TEXT | IMAGE | {"attention_mask": torch.tensor([[1] * 6, [0] * 6, [1] * 6])}, None),
        (TEXT | {"attention_mask": torch.tensor([[1] * 6, [0] * 6, [1] * 6])}, "row 1 of the batch has neither"),
        (IMAGE | {"has_image": torch.tensor([True, True, False])}, "row 2 of the batch has neither"),
        (IMAGE | {"input_ids": tokens(3)[:, :0]}, "`input_ids` holds no token"),
        (TEXT | {"pixel_values": pixels(2)}, r"different numbers of rows \(image: 2, text: 3\)"),
        (IMAGE | {"has_image": torch.ones(2)}, r"`has_image` \(2,\) must have one value for each of the 3 rows"),
        (TEXT | {"input_features": torch.zeros(3, 16, 100)}, "without audio encoder"),
        (TEXT | IMAGE | {"image_hidden_states": torch.zeros(3, 16, 12)}, "and got both"),
    ],
)
def test_rows_without_any_modality_are_refused(inputs: dict, message: str | None) -> None:
    model = classifier()
    if message is None:
        assert model(**inputs).logits.isfinite().all()
        return
    with pytest.raises(ValueError, match=message) as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)
