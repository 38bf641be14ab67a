"""`fusion-captioner average`: the mean of every weight, of captioners that belong together."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor
from fusion_captioner.cli import main


def save(folder: Path, seed: int, **config) -> Path:
    torch.manual_seed(seed)
    model = tiny_model(**config)
    model.generation_config = GenerationConfig.from_dict(
        model.generation_config.to_dict() | {"num_beams": 2 + seed, "length_penalty": 0.5}
    )
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(folder)
    image_processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32})
    FusionCaptionerProcessor(image_processor, tiny_tokenizer()).save_pretrained(folder)
    return folder


def test_every_weight_is_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # trained on with other settings
    folders = [
        save(tmp_path / str(seed), seed, dropout=0.1 * seed, label_smoothing=0.1 * seed, use_cache=seed != 1)
        for seed in range(3)
    ]
    out = tmp_path / "mean"
    assert main(["average", *map(str, folders), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    mean, *models = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (out, *folders))
    states = [model.state_dict() for model in models]
    for key, weight in mean.state_dict().items():
        if weight.is_floating_point():
            expected = torch.stack([state[key].double() for state in states]).mean(dim=0)
            torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-6)
    assert mean.lm_head.weight.data_ptr() == mean.get_input_embeddings().weight.data_ptr()
    assert mean.generation_config.num_beams == 2
    assert AutoProcessor.from_pretrained(out).tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_captioners_that_do_not_belong_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, wider = save(tmp_path / "first", 0), save(tmp_path / "wider", 1, hidden_size=24)
    biased, more_biased = (
        save(tmp_path / f"bias{bias}", 3, concept_token_ids=[5, 7], concept_bias=bias) for bias in (1.0, 2.0)
    )
    pooled = save(tmp_path / "pooled", 4, text_pooling="mean")
    other_words = save(tmp_path / "words", 2)
    path = other_words / "tokenizer.json"
    path.write_text(path.read_text().replace('"w49"', '"elsewhere"'))
    for given, message in [
        ([first], "has no mean; name two or more"),
        ([first, wider], f"{wider} has other weights than {first}"),
        ([biased, more_biased], f"{more_biased}: `concept_bias` is 2.0, and 1.0 in {biased}"),
        ([first, pooled], f"{pooled}: `text_pooling` is 'mean', and 'last' in {first}"),
        ([first, other_words], f"{other_words} has another vocabulary than {first}"),
        ([first, tmp_path / "none"], f"{tmp_path / 'none'}"),
    ]:
        assert main(["average", *map(str, given), "--out", str(tmp_path / "mean")]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and message in errors[0]
        assert not (tmp_path / "mean").exists()
