"""Exports give the tokens that torch gives, on each runtime, and need no torch."""

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tiny_exports import Export, exported_model, image_size, tiny_processor
from tiny_models import FUSION_TYPES, LAYER_TYPES, VISION_CONFIGS, pixels, tiny_model, tokens

from fusion_captioner.export.captioner import export_captioner
from fusion_captioner.inference.exported_captioner import ExportedCaptioner

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("exports")]  # also those that share no export

BOS, PAD = 1, 0
RUNTIMES = ["onnx", "openvino"]
# Every fusion on both runtimes and with two decoders, every decoder with every text encoder; and what some captioners
# have besides.
MODELS = [
    ("onnx", "sum", "lstm", "lstm"),
    ("openvino", "sum", "gru", "transformer"),
    ("onnx", "concat", "gru", "gru"),
    ("openvino", "concat", "transformer", "lstm"),
    ("onnx", "gated", "lstm", "transformer"),
    ("openvino", "gated", "transformer", "gru"),
    ("onnx", "bilinear", "gru", "lstm"),
    ("openvino", "bilinear", "lstm", "lstm"),
    ("onnx", "attention", "lstm", "gru"),
    ("openvino", "attention", "gru", "transformer"),
    ("onnx", "co_attention", "transformer", "transformer"),
    ("openvino", "co_attention", "lstm", "transformer"),
    ("openvino+onnx", "co_attention", "lstm", "gru"),
]
STACK = {"decoder_input": "joint_and_embedding", "num_hidden_layers": 2, "num_text_encoder_layers": 2}
WORDS_FOUND = {"num_concepts": 3, "concept_token_ids": [5, 7, 11, 12, 13, 14]}
WORDS_MADE_LIKELIER = {"concept_bias": 2.0, "concept_token_ids": WORDS_FOUND["concept_token_ids"]}
VIT, EFFICIENTNET = (
    {"vision_config": {"model_type": name, **VISION_CONFIGS[name]}} for name in ("vit", "efficientnet")
)
MORE_FIELDS = {
    ("onnx", "concat", "gru"): STACK,
    ("openvino", "attention", "gru"): STACK,
    ("onnx", "sum", "lstm"): WORDS_FOUND,
    ("onnx", "attention", "lstm"): WORDS_FOUND,
    ("openvino", "co_attention", "lstm"): WORDS_FOUND | WORDS_MADE_LIKELIER,
    ("onnx", "gated", "lstm"): VIT,
    ("onnx", "bilinear", "gru"): EFFICIENTNET,
    ("openvino", "bilinear", "lstm"): EFFICIENTNET,
}
SEARCHES = {
    "greedy": {},
    "greedy, not too short": {"min_new_tokens": 5},
    "beams": {"num_beams": 3},
    "beams, all of them": {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.3},
    "beams, not too short": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "min_new_tokens": 3},
    "greedy, no repetition": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "greedy, no token twice": {"no_repeat_ngram_size": 1},
    "greedy, without some tokens": {
        "bad_words_ids": [[7], [1, 9], [11, 12, 13, 8], *([4, each] for each in range(50))]
    },
    "beams, constrained": {
        "num_beams": 3,
        "num_return_sequences": 2,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[5], [6, 7], [14, 3]],
        "min_new_tokens": 3,
    },
}


def prompts() -> dict[str, torch.Tensor]:
    """A prompt of three words and one of one word, behind BOS, padded on the left."""
    ids = torch.tensor([[BOS, 11, 12, 13], [PAD, PAD, BOS, 14]])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def assert_same_tokens(model, exported: ExportedCaptioner, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> None:
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    for name, settings in SEARCHES.items():
        expected = model.generate(pixel_values=pixel_values, max_new_tokens=7, **inputs, **settings)
        found = exported.generate(pixel_values.numpy(), max_new_tokens=7, **arrays, **settings)
        assert found.tolist() == expected.tolist(), name


def test_what_the_exports_cover() -> None:
    assert MORE_FIELDS.keys() <= {model[:3] for model in MODELS}
    assert {model[:2] for model in MODELS} >= set(itertools.product(RUNTIMES, FUSION_TYPES))
    assert {model[2:] for model in MODELS} == set(itertools.product(LAYER_TYPES, LAYER_TYPES))
    assert {model[:3:2] for model in MODELS} >= set(itertools.product(RUNTIMES, LAYER_TYPES))


@pytest.mark.parametrize(("runtime", "fusion_type", "decoder_type", "text_encoder_type"), MODELS)
def test_tokens_are_those_of_torch(
    export: Export, runtime: str, fusion_type: str, decoder_type: str, text_encoder_type: str
) -> None:
    fields = {"fusion_type": fusion_type, "decoder_type": decoder_type, "text_encoder_type": text_encoder_type}
    fields |= MORE_FIELDS.get((runtime, fusion_type, decoder_type), {})
    model, exported = exported_model(**fields), ExportedCaptioner(export(runtime, **fields), num_threads=1)
    images = pixels(3, size=image_size(**fields))
    for number in (1, 3):
        assert_same_tokens(model, exported, images[:number])
    assert_same_tokens(model, exported, images[:2], **prompts())
    # three texts per image
    assert_same_tokens(model, exported, images[:2], input_ids=tokens(6, 3))


@pytest.mark.parametrize(
    ("runtime", "fields"),
    [("onnx", WORDS_MADE_LIKELIER), ("openvino", {"fusion_type": "sum", "decoder_type": "transformer"})],
)
def test_words_of_some_captions_alone(tmp_path: Path, runtime: str, fields: dict) -> None:
    model, processor = exported_model(**fields), tiny_processor()
    captions = ["w5 w6 w7 w9 w11", "w13 w14 w15 w20 w21 w22 w30 w31 w40 w41"]
    export_captioner(model, processor, runtime, tmp_path / "export", captions={"": captions})
    known = sorted({0, 1, 2, *(int(word[1:]) for caption in captions for word in caption.split())})
    exported = ExportedCaptioner(tmp_path / "export", num_threads=2)
    assert exported.description["output_layers"] == {"": known}
    others = sorted(set(range(model.config.vocab_size)) - set(known))
    with torch.no_grad():
        model.lm_head.bias[others] = -1e9
    images = pixels(3)
    assert_same_tokens(model, exported, images)
    # with other words in the prompts, and among those that are forbidden
    assert_same_tokens(model, exported, images[:2], **prompts())
    assert_same_tokens(model, exported, images[:2], input_ids=tokens(6, 3))
    assert_same_tokens(model, exported, images[:2], input_ids=torch.tensor([[BOS, 12, 8, 12], [BOS, 8, 8, 5]]))
    # and none of the prompt's own words is scored
    layer, scored = exported._output_layer(""), []
    part = layer.part
    layer.part = lambda arrays: scored.append(1) or part(arrays)
    exported.generate(images[:1].numpy(), np.array([[BOS, 5, 6, 7]]), max_new_tokens=3, min_new_tokens=3)
    assert len(scored) == 3


def test_the_image_part_holds_the_words_of_concepts_alone(export: Export) -> None:
    graph, config = onnx.load(export("onnx", **WORDS_FOUND) / "image_part.onnx").graph, exported_model().config
    shapes = [tuple(each.dims) for each in graph.initializer]
    assert (len(WORDS_FOUND["concept_token_ids"]), config.hidden_size) in shapes
    assert not [shape for shape in shapes if config.vocab_size in shape]


@pytest.mark.parametrize("captions", [{}, {"en": ["w5"]}, {"": ["w5"], "de": ["w6"]}])
def test_captions_of_other_languages_than_the_captioner_has(tmp_path: Path, captions: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"`captions` are of .* give those of ''"):
        export_captioner(tiny_model(), tiny_processor(), "onnx", tmp_path / "export", captions=captions)
    assert not (tmp_path / "export").exists()


@pytest.fixture
def exported(export: Export) -> ExportedCaptioner:
    return ExportedCaptioner(export("onnx"), num_threads=1)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_tokens_do_not_depend_on_the_number_of_threads(export: Export, settings: dict) -> None:
    images, texts = pixels(5).numpy(), tokens(10, 3).numpy()  # two texts per image
    one, three = (ExportedCaptioner(export("onnx"), num_threads=number) for number in (1, 3))
    endless = one.generate(images, texts, seed=1, max_new_tokens=12, **settings)
    ends = [int(endless[0, 5]), int(endless[-1, 8])]  # what texts of two of the three searches have somewhere
    for each in (one, three):
        each.description["generation"]["eos_token_ids"] = ends
    expected, found = (
        each.generate(images, texts, seed=1, max_new_tokens=12, **settings).tolist() for each in (one, three)
    )
    assert found == expected
    # some texts end early, and are filled up
    assert len({min([row.index(end, 3) for end in ends if end in row[3:]], default=None) for row in found}) > 1


def test_searches_take_turns_also_after_one_has_failed(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    images, captioner = pixels(4).numpy(), ExportedCaptioner(export("onnx"), num_threads=2)
    settings = {"num_beams": 3, "max_new_tokens": 8}
    expected = captioner.generate(images, **settings).tolist()
    with monkeypatch.context() as broken:
        broken.setattr(captioner, "_decoder_step", lambda arrays: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            captioner.generate(images, **settings)
    with ThreadPoolExecutor(3) as callers:
        found = list(callers.map(lambda _: captioner.generate(images, **settings).tolist(), range(6), timeout=60))
    assert found == [expected] * 6


def test_samples_repeat_with_their_seed(exported: ExportedCaptioner) -> None:
    settings = {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0, "max_new_tokens": 6}
    first, again, other = (exported.generate(pixels(2).numpy(), seed=seed, **settings) for seed in (1, 1, 2))
    assert first.shape[0] == 6
    assert first.tolist() == again.tolist() != other.tolist()
    greedy = exported.generate(pixels(2).numpy(), max_new_tokens=6)
    likeliest = exported.generate(pixels(2).numpy(), do_sample=True, top_k=1, seed=3, max_new_tokens=6)
    assert likeliest.tolist() == greedy.tolist()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """A turned JPEG larger than needed, and a grey PNG with a transparent half."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    paths = [tmp_path / "turned.jpg", tmp_path / "grey.png"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(paths[0], exif=exif)
    grey = Image.fromarray(noise[..., 0]).convert("LA")
    grey.putalpha(Image.fromarray((noise[..., 1] > 127).astype(np.uint8) * 255))
    grey.save(paths[1])
    return [str(path) for path in paths]


def test_pictures_and_prompts_are_prepared_as_by_the_processor(exported: ExportedCaptioner, photos: list[str]) -> None:
    texts = ["w11 w12 w13", "w14"]
    inputs = tiny_processor()(images=photos, text=texts, return_tensors="np")
    assert np.array_equal(exported.preprocess(photos), inputs["pixel_values"])
    input_ids, attention_mask = exported.encode(texts)
    assert np.array_equal(input_ids, inputs["input_ids"])
    assert np.array_equal(attention_mask, inputs["attention_mask"])


def test_captions_are_those_of_torch(exported: ExportedCaptioner, photos: list[str]) -> None:
    model, processor, settings = tiny_model(), tiny_processor(), {"num_beams": 3, "num_return_sequences": 2}
    inputs = processor(images=photos, text=["w5"] * 2, return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=6, **settings)[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]
    assert exported.caption(photos, "w5", max_new_tokens=6, **settings) == [texts[:2], texts[2:]]


NO_TORCH_SCRIPT = """
import json, sys
from fusion_captioner.inference.exported_captioner import ExportedCaptioner
folder, photo = sys.argv[1:]
captions = ExportedCaptioner(folder, num_threads=1).caption([photo], num_beams=2)
print(json.dumps([captions, [name for name in ("torch", "transformers", "openvino_telemetry") if
sys.modules.get(name)]]))
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_torch_is_never_imported(export: Export, photos: list[str], runtime: str) -> None:
    folder = export(runtime)
    finished = subprocess.run(
        [sys.executable, "-c", NO_TORCH_SCRIPT, str(folder), photos[0]], capture_output=True, text=True, check=True
    )
    captions, heavy = json.loads(finished.stdout)
    assert heavy == []
    assert captions == ExportedCaptioner(folder, num_threads=1).caption(photos[:1], num_beams=2)


SIGNAL_SCRIPT = """
import gc, signal, sys
from threading import Thread
from fusion_captioner.inference.exported_captioner import ExportedCaptioner
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append("handled"))
captioners = [ExportedCaptioner(sys.argv[1], num_threads=1) for _ in range(2)]
captioners.pop(0)
releasing = Thread(target=lambda: (captioners.clear(), gc.collect()))
releasing.start()
releasing.join()
signal.raise_signal(signal.SIGUSR1)
print(*seen)
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_signal_is_handled_after_captioners_are_released(export: Export, runtime: str) -> None:
    command = [sys.executable, "-c", SIGNAL_SCRIPT, str(export(runtime))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "handled\n"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"input_ids": np.ones((3, 1), np.int64)}, ["3 rows", "2 images"]),
        ({"pixel_values": pixels(2)[..., 1:].numpy()}, ["`pixel_values` (2, 3, 32, 31)", "(images, 3, 32, 32)"]),
        ({"input_ids": np.full((2, 1), 50)}, ["token id 50", "vocabulary of 50"]),
        ({"num_return_sequences": 2}, ["`num_return_sequences` (2)", "`num_beams` (1)"]),
        ({"do_sample": True, "num_beams": 2}, ["`do_sample`", "`num_beams` (2)"]),
        ({"max_new_tokens": 0}, ["`max_new_tokens` (0)"]),
        ({"min_new_tokens": 30}, ["`min_new_tokens` (30)", "(20)"]),
        ({"temperature": 0.0}, ["`temperature` (0.0)"]),
        ({"top_p": 0.0}, ["`top_p` (0.0)"]),
    ],
)
def test_wrong_arguments(exported: ExportedCaptioner, inputs: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        exported.generate(**({"pixel_values": pixels(2).numpy()} | inputs))
    assert [word for word in words if word not in str(error.value)] == []


def test_a_text_that_is_not_utf_8_is_refused(exported: ExportedCaptioner) -> None:
    for texts in ({"prompt": "caf\udce9"}, {"bad_words": ["\ud83d"]}):
        with pytest.raises(ValueError, match="is not UTF-8"):
            exported.caption([Image.new("RGB", (8, 8))], **texts)


def test_one_image_in_place_of_a_list(exported: ExportedCaptioner) -> None:
    with pytest.raises(ValueError, match=r"`images` \('photo\.jpg'\) must be a list"):
        exported.caption("photo.jpg")


def test_a_text_too_long_for_transformer_layers(export: Export) -> None:
    exported = ExportedCaptioner(export("onnx", text_encoder_type="lstm", decoder_type="transformer"), num_threads=1)
    with pytest.raises(ValueError, match=r"41 tokens .* `max_position_embeddings` \(40\)"):
        exported.generate(pixels(1).numpy(), max_new_tokens=60, min_new_tokens=60)


def test_a_folder_that_is_no_export(export: Export, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"exported_captioner\.json"):
        ExportedCaptioner(tmp_path)
    for text, words in (("{", "damaged"), ('{"format": 99, "runtime": "onnx"}', "format 99")):
        (tmp_path / "exported_captioner.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            ExportedCaptioner(tmp_path)


def test_what_an_export_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tensorrt'"):
        export_captioner(tiny_model(), tiny_processor(), "tensorrt", tmp_path)
    model = tiny_model()
    model.generation_config.typical_p = 0.5
    with pytest.raises(ValueError, match=r"`typical_p` \(0.5\)"):
        export_captioner(model, tiny_processor(), "onnx", tmp_path)
    processor = tiny_processor()
    processor.image_processor.do_resize = False
    with pytest.raises(ValueError, match="`do_resize`"):
        export_captioner(tiny_model(), processor, "onnx", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_description_says(export: Export) -> None:
    description = json.loads(
        (export("onnx", text_encoder_type="lstm", decoder_type="transformer") / "exported_captioner.json").read_text()
    )
    assert description["runtime"] == "onnx"
    assert description["max_positions"] == 40
    assert len(description["checkpoint"]) == 32
    assert description["states"][-1] == {"name": "decoder_state_1", "shape": ["images", "texts", 2, "past", 8]}
