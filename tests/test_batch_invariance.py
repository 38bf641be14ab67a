"""A caption depends on its image and its prompt alone: not on its neighbours in the batch, and not on padding."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FUSION_TYPES, LAYER_TYPES, VOCAB_SIZE, pixels, tiny_model

BOS, PAD = 1, 0
IMAGES = 6
MODELS = list(itertools.product(FUSION_TYPES, LAYER_TYPES))
# Prompts of one to six tokens, and the places of other images: up to five neighbours.
PROMPT = st.lists(st.integers(3, VOCAB_SIZE - 1), max_size=5)
ROWS = st.lists(st.tuples(st.integers(0, IMAGES - 1), PROMPT), min_size=1, max_size=6)


def generate(model, rows: list[tuple[int, list[int]]], padding: int = 0, **options) -> list[tuple[Any, torch.Tensor]]:
    """What each row of (image, words of its prompt) generates: tokens, and logits or the score of its best beam."""
    prompts = [[BOS, *words] for _, words in rows]
    width = max(map(len, prompts)) + padding
    output = model.generate(
        pixel_values=pixels(IMAGES)[[image for image, _ in rows]],
        input_ids=torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **options,
    )
    tokens = output.sequences[:, width:].tolist()
    texts = [row[: row.index(2) + 1] if 2 in row else row for row in tokens]  # without padding behind EOS
    if options.get("num_beams"):
        return list(zip(texts, output.sequences_scores, strict=True))
    logits = torch.stack(output.logits, dim=1)
    return [(row, logits[index, : len(row)]) for index, row in enumerate(texts)]


def assert_same(first: tuple[Any, torch.Tensor], second: tuple[Any, torch.Tensor]) -> None:
    assert first[0] == second[0]
    torch.testing.assert_close(first[1], second[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(("fusion_type", "layer_type"), MODELS)
def test_a_caption_does_not_depend_on_its_neighbours_or_padding(
    fusion_type: str, layer_type: str, num_beams: int
) -> None:
    model = tiny_model(fusion_type=fusion_type, text_encoder_type=layer_type, decoder_type=layer_type)
    options = {"num_beams": 3} if num_beams > 1 else {}

    @settings(max_examples=4, deadline=None, derandomize=True, database=None)
    @given(rows=ROWS, padding=st.integers(0, 3))
    def hold(rows: list[tuple[int, list[int]]], padding: int) -> None:
        together = generate(model, rows, padding, **options)
        backwards = generate(model, rows[::-1], **options)[::-1]
        for row, *results in zip(rows, together, backwards, strict=True):
            (alone,) = generate(model, [row], **options)
            for result in results:
                assert_same(result, alone)

    hold()


@pytest.mark.parametrize(("fusion_type", "layer_type"), MODELS)
def test_states_of_a_text_do_not_depend_on_its_neighbours_or_padding(fusion_type: str, layer_type: str) -> None:
    """As in training: padded on the right, and with labels."""
    model = tiny_model(fusion_type=fusion_type, text_encoder_type=layer_type, decoder_type=layer_type)

    @settings(max_examples=6, deadline=None, derandomize=True, database=None)
    @given(rows=ROWS, padding=st.integers(0, 3), on_the_left=st.booleans())
    def hold(rows: list[tuple[int, list[int]]], padding: int, on_the_left: bool) -> None:
        texts = [[BOS, *words] for _, words in rows]
        width = max(map(len, texts)) + padding
        before = [width - len(text) if on_the_left else 0 for text in texts]
        ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
        for row, (text, start) in enumerate(zip(texts, before, strict=True)):
            ids[row, start : start + len(text)] = torch.tensor(text)
            mask[row, start : start + len(text)] = 1
        with torch.no_grad():
            images = pixels(IMAGES)[[image for image, _ in rows]]
            together = model(pixel_values=images, input_ids=ids, attention_mask=mask).logits
            for row, (text, start) in enumerate(zip(texts, before, strict=True)):
                alone = model(pixel_values=images[row : row + 1], input_ids=torch.tensor([text])).logits[0]
                torch.testing.assert_close(together[row, start : start + len(text)], alone, rtol=1e-4, atol=1e-4)

    hold()
