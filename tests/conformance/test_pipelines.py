"""transformers' pipelines on the three variants. The sources lack `PipelineTesterMixin` and the tests of each task."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_models import FIELDS, HEADS, VARIANTS
from tiny_models import tiny_head, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, pipeline

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor

WORDS = ["w5 w6", "w7", "w8 w9 w10"]


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def ending_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that places BOS and EOS by itself, as trained ones do: some pipelines call it without the
    processor."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    )
    return tokenizer


def chat(picture: Image.Image) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "w5"}]}]


@pytest.fixture(params=VARIANTS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Saves a head of this variant with its processor, and returns model, processor and folder."""

    def save(head: str) -> tuple[Any, FusionCaptionerProcessor, str]:
        variant = VARIANTS[request.param]
        side = variant.get("vision_config", {}).get("image_size", 32)
        model = tiny_head(HEADS[head], **variant, **FIELDS.get(head, {}))
        images = FusionCaptionerImageProcessor(size={"height": side, "width": side})
        processor = FusionCaptionerProcessor(images, ending_tokenizer())
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        return model, processor, str(tmp_path)

    return save


def test_image_text_to_text(saved: Any) -> None:
    model, processor, folder = saved("ConditionalGeneration")
    task = pipeline("image-text-to-text", model=folder)
    pictures = [photo(0), photo(1)]
    inputs = processor(images=pictures, text=["", "w5"], return_tensors="pt")
    expected = processor.batch_decode(model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True)
    found = [task(image, text=text, max_new_tokens=5)[0] for image, text in zip(pictures, ["", "w5"])]
    assert [result["generated_text"] for result in found] == expected
    both = task(pictures, text=["", "w5"], max_new_tokens=5, batch_size=2)
    assert [result["generated_text"] for result in both] == expected
    answer = task(text=chat(pictures[0]), max_new_tokens=5)[0]["generated_text"]
    assert [turn["role"] for turn in answer] == ["user", "assistant"]


def test_any_to_any(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # it asks for torchvision and audio decoders, whatever the model takes
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *_: None)
    _, _, folder = saved("ConditionalGeneration")
    settings = {"max_new_tokens": 5, "return_full_text": False}
    found = pipeline("any-to-any", model=folder)(chat(photo()), **settings)[0]["generated_text"]
    assert found == pipeline("image-text-to-text", model=folder)(text=chat(photo()), **settings)[0]["generated_text"]


def test_image_to_text(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers' note that the name is an old one has an argument too many, and logging reports that
    monkeypatch.setattr("transformers.pipelines.logger.warning_once", lambda *_: None)
    _, _, folder = saved("ConditionalGeneration")
    old, new = (pipeline(task, model=folder) for task in ("image-to-text", "image-text-to-text"))
    assert type(old) is type(new)
    assert old(photo(), text="", max_new_tokens=5) == new(photo(), text="", max_new_tokens=5)


def test_zero_shot_image_classification(saved: Any) -> None:
    model, processor, folder = saved("ImageTextRetrieval")
    found = pipeline("zero-shot-image-classification", model=folder)(
        photo(), candidate_labels=WORDS, hypothesis_template="w4 {}"
    )
    inputs = processor(images=photo(), text=[f"w4 {words}" for words in WORDS], add_eos=True, return_tensors="pt")
    scores = model(**inputs).logits_per_image.softmax(dim=1)[0].tolist()
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(dict(zip(WORDS, scores)), abs=1e-5)


@pytest.mark.parametrize("task", ["image-classification", "text-classification"])
def test_classification(saved: Any, task: str) -> None:
    model, processor, folder = saved("SequenceClassification")
    given: Any = photo() if task == "image-classification" else WORDS[2]
    if task == "image-classification":
        inputs = processor.image_processor(given, return_tensors="pt")
    else:
        inputs = processor.tokenizer(given, return_tensors="pt")
    found = pipeline(task, model=folder)([given, given], top_k=3)
    scores = model(**inputs).logits.softmax(dim=1)[0].tolist()
    expected = {f"LABEL_{number}": score for number, score in enumerate(scores)}
    for row in found:
        assert {entry["label"]: entry["score"] for entry in row} == pytest.approx(expected, abs=1e-5)


def test_feature_extraction(saved: Any) -> None:
    _, _, folder = saved("Model")
    task = pipeline("feature-extraction", model=folder)
    # the pipeline gives the tokenizer's text alone, and the base model fuses it with an image
    with pytest.raises(ValueError, match="`pixel_values` or `image_hidden_states`, and got neither"):
        task(WORDS[0])


def test_image_feature_extraction(saved: Any) -> None:
    _, _, folder = saved("Model")
    task = pipeline("image-feature-extraction", model=folder)
    with pytest.raises(ValueError, match="`input_ids`"):
        task(photo())


def test_pipelines_in_half_precision(saved: Any) -> None:
    _, _, folder = saved("ConditionalGeneration")
    found = pipeline("image-text-to-text", model=folder, dtype=torch.bfloat16)(photo(), text="", max_new_tokens=5)
    assert set(found[0]["generated_text"].split()) <= {f"w{number}" for number in range(50)}
