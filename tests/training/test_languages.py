"""One captioner of several languages: data, tokens, both stages of training, scores, saving and generation."""

import gzip
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from tiny_captioner import noise
from tiny_recipe import write_data, write_recipe
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion_captioner.cli import main
from fusion_captioner.data.arguments import DataArguments
from fusion_captioner.data.caption_datasets import load_splits, rows_of_language
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.inference.exported_captioner import ExportedCaptioner
from fusion_captioner.training.train import train_from_yaml

NAMES = {"en": "dataset_flickr8k.json", "zh": "dataset_flickr8k_zh.json", "de": "dataset_flickr8k_de.json"}


def write_languages(root: Path) -> Path:
    """`write_data` with Chinese captions of all images, and German captions of all but the last two."""
    write_data(root)
    images = json.loads((root / NAMES["en"]).read_text())["images"]
    for name, text in {"zh": "一个{}色方块", "de": "ein {}es Quadrat"}.items():
        others = [
            # the number of an image is another one in each file, as in the published ones
            {
                **image,
                "imgid": len(images) - image["imgid"],
                "sentences": [{"raw": text.format(colour)} for colour in ("红", "蓝")],
            }
            for image in images[: None if name == "zh" else -2]
        ]
        (root / NAMES[name]).write_text(json.dumps({"images": others}, ensure_ascii=False), encoding="utf-8")
    return root


def languages_of(root: Path) -> DataArguments:
    return DataArguments(source=str(root), languages=NAMES, cache_dir=str(root / "arrow"))


def test_captions_of_all_languages_are_joined_by_image(tmp_path: Path) -> None:
    splits = load_splits(languages_of(write_languages(tmp_path)))
    train, held_out = splits["train"], splits["eval"]
    assert len(train) == 8 and len(held_out) == 3
    assert train[0]["languages"] == ["en"] * 3 + ["zh"] * 2 + ["de"] * 2
    assert train[0]["captions"][3] == "一个红色方块"
    german = rows_of_language(held_out, "de")
    assert len(german) == 1 and german[0]["captions"] == ["ein 红es Quadrat", "ein 蓝es Quadrat"]


@pytest.mark.parametrize("captions_per_image", [2, "all"])
def test_each_caption_keeps_its_language(tmp_path: Path, captions_per_image: int | str) -> None:
    rows = CaptionDataset(load_splits(languages_of(write_languages(tmp_path)))["train"], captions_per_image)
    seen = set()
    for epoch in range(4):
        rows.set_epoch(epoch)
        for row in (rows[index] for index in range(len(rows))):
            assert len(row["captions"]) == len(row["languages"])
            for caption, language in zip(row["captions"], row["languages"], strict=True):
                assert {"a ": "en", "一个": "zh", "ei": "de"}[caption[:2]] == language
                seen.add(language)
    assert seen == {"en", "zh", "de"}


def test_photos_inside_of_tables_are_told_apart_by_what_they_show(tmp_path: Path) -> None:
    for language, captions in {"en": ["red", "blue"], "zh": ["绿", "红"]}.items():
        # as `push_to_hub` writes them: the bytes, and a name that says nothing
        photos = [noise(tmp_path / f"{text}.png", {"红": 0, "red": 0, "blue": 1, "绿": 2}[text]) for text in captions]
        images = [{"bytes": photo.read_bytes(), "path": "image.png"} for photo in photos]
        (tmp_path / language).mkdir()
        table = datasets.Dataset.from_dict({"image": images, "caption": captions})
        table.cast_column("image", datasets.Image()).to_parquet(tmp_path / language / "train.parquet")
    languages = {language: str(tmp_path / language) for language in ("en", "zh")}
    data = DataArguments(source=str(tmp_path), languages=languages, eval_split=None, cache_dir=str(tmp_path / "arrow"))
    assert load_splits(data)["train"]["captions"][:] == [["red", "红"], ["blue"], ["绿"]]


def test_an_id_that_begins_with_a_language_is_no_other_photos(tmp_path: Path) -> None:
    for language, names in {"en": ["zh/a", "a"], "zh": ["a"]}.items():
        for name in names:
            photo = tmp_path / language / f"{name}.png"
            photo.parent.mkdir(parents=True, exist_ok=True)
            noise(photo, len(name))
            photo.with_suffix(".txt").write_text(f"{language} {name}")
    languages = {language: str(tmp_path / language) for language in ("en", "zh")}
    data = DataArguments(source=str(tmp_path), languages=languages, eval_split=None, cache_dir=str(tmp_path / "arrow"))
    rows = load_splits(data)["train"]
    assert dict(zip(rows["image_id"], rows["captions"], strict=True)) == {
        "a.png": ["en a"],
        "zh/a.png": ["en zh/a"],
        "zh/zh/a.png": ["zh a"],
    }


def test_captions_of_a_further_source_are_in_the_first_language(tmp_path: Path) -> None:
    root, more = write_languages(tmp_path / "data"), write_data(tmp_path / "more", train=4)
    data = DataArguments(
        source=str(root), languages=NAMES, more_train_sources=[str(more)], cache_dir=str(tmp_path / "arrow")
    )
    splits = load_splits(data)
    assert len(splits["train"]) == 12 and len(splits["eval"]) == 3
    assert splits["train"][8]["image_id"] == "more/0" and splits["train"][8]["languages"] == ["en"] * 3


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        ({"english": NAMES["en"]}, ["'english'", "'en'"]),
        ({"en": {"sourc": "x"}}, ["`data.languages` (en)", "'sourc'"]),
        ({"en": NAMES["en"], "zh": "nothing.json"}, ["nothing.json"]),
        (
            {"en": NAMES["en"], "zh": "dataset_moved.json"},
            ["`data.languages` (zh)", "/images/0.png", "'val'", "'train'"],
        ),
    ],
)
def test_wrong_languages_are_named(tmp_path: Path, languages: dict, words: list[str]) -> None:
    root = write_languages(tmp_path)
    document = json.loads((root / NAMES["zh"]).read_text(encoding="utf-8"))
    document["images"][0]["split"] = "val"
    (root / "dataset_moved.json").write_text(json.dumps(document))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_splits(DataArguments(source=str(root), languages=languages, cache_dir=str(tmp_path / "arrow")))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_operators_once")
def test_a_captioner_of_three_languages_is_trained_scored_and_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_languages(tmp_path / "data")
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        root,
        data={"languages": NAMES, "captions_per_image": 3},
        training={"num_train_epochs": 30, "per_device_train_batch_size": 4},
    )
    metrics = train_from_yaml(recipe)
    values = [metrics[f"eval_CIDEr_{language}"] for language in NAMES]
    assert metrics["eval_CIDEr"] == pytest.approx(sum(values) / 3)
    out = tmp_path / "out"
    ids = [json.loads(line)["image_id"] for line in (out / "eval_captions.jsonl").read_text().splitlines()]
    assert ids == ["en/8", "en/9", "en/10", "zh/8", "zh/9", "zh/10", "de/8"]

    processor, model = AutoProcessor.from_pretrained(out), AutoModelForImageTextToText.from_pretrained(out)
    assert processor.languages == list(NAMES)
    photo = root / "images" / "0.png"
    beginnings = {"en": "a ", "zh": "一个", "de": "ein "}
    for language, beginning in beginnings.items():
        inputs = processor(images=str(photo), language=language, return_tensors="pt")
        assert inputs["input_ids"].tolist() == [[processor.bos_token_id, processor.language_token_ids[language]]]
        written = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        pixels = processor(images=str(photo), return_tensors="pt")
        asked = model.generate(**pixels, language=language, num_beams=2)
        assert written[0].startswith(beginning), written
        assert processor.batch_decode(asked, skip_special_tokens=True)[0].startswith(beginning)
    default = model.generate(**processor(images=str(photo), return_tensors="pt"))
    assert processor.batch_decode(default, skip_special_tokens=True)[0].startswith("a ")
    with pytest.raises(ValueError, match=r"`language` \('fr'\) must be one of 'en', 'zh', 'de'"):
        model.generate(**processor(images=str(photo), return_tensors="pt"), language="fr")
    with pytest.raises(ValueError, match=r"`language` \(\['zh'\]\) must be one of 'en', 'zh', 'de'"):
        model.generate(**processor(images=str(photo), return_tensors="pt"), language=["zh"])
    for wrong, shown in (("fr", "'fr'"), ("", "''"), ([["zh"]], r"\['zh'\]")):
        with pytest.raises(ValueError, match=rf"`language` \({shown}\) must be one of 'en', 'zh', 'de'"):
            processor(images=str(photo), language=wrong)

    assert main(["export", str(out), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    capsys.readouterr()
    for language, beginning in beginnings.items():
        captions = []
        for captioner in (out, tmp_path / "onnx"):
            assert main(["caption", str(photo), "--model", str(captioner), "--language", language]) == 0
            captions.append(json.loads(capsys.readouterr().out)["caption"])
        assert captions[0] == captions[1] and captions[0].startswith(beginning)
    pixels = processor(images=str(photo), return_tensors="np")["pixel_values"]
    exported = ExportedCaptioner(tmp_path / "onnx")
    assert exported.generate(pixels)[0].tolist() == default[0].tolist()
    for wrong in ("fr", "", ["zh"]):
        with pytest.raises(
            ValueError, match=rf"`language` \({re.escape(repr(wrong))}\) must be one of 'en', 'zh', 'de'"
        ):
            exported.caption([str(photo)], language=wrong)
    # an output layer for each language, and texts of several in one batch
    sources = [f"{language}={root / name}" for language, name in NAMES.items()]
    assert main(["export", str(out), "--to", "onnx", "--out", str(tmp_path / "short"), "--captions", *sources]) == 0
    short = ExportedCaptioner(tmp_path / "short")
    known = short.description["output_layers"]
    assert list(known) == list(NAMES) and max(map(len, known.values())) < short.description["vocab_size"]
    texts = np.array([short.beginning(language) for language in ("zh", "en", "de", "zh")])
    for images in (pixels.repeat(4, axis=0), pixels.repeat(2, axis=0)):  # one text of each image, and two
        for beams in (1, 3):
            found = short.generate(images, texts, num_beams=beams, max_new_tokens=8)
            for row, text in zip(found, texts):
                (alone,) = short.generate(pixels, text[None], num_beams=beams, max_new_tokens=8)
                assert row[: len(alone)].tolist() == alone.tolist()
                language = short.description["tokenizer"]["languages"][text[1] - short.beginning("en")[1]][0]
                assert set(row[2:].tolist()) <= set(known[language])
    capsys.readouterr()
    lacking = ["--captions", *sources[:2]]
    assert main(["export", str(out), "--to", "onnx", "--out", str(tmp_path / "no"), *lacking]) == 2
    assert "has no text for de=SOURCE; add it." in capsys.readouterr().err
    for captioner in (out, tmp_path / "onnx"):
        assert main(["caption", str(photo), "--model", str(captioner), "--language", "fr"]) == 2
        assert "`language` ('fr') must be one of 'en', 'zh', 'de'" in capsys.readouterr().err
    chinese = ["--source", str(root / NAMES["zh"]), "--language", "zh", "--beams", "1", "--max-new-tokens", "6"]
    assert main(["evaluate", str(out), *chinese]) == 0
    scores = json.loads(capsys.readouterr().out)["greedy"]
    assert scores["BLEU-1"] == pytest.approx(metrics["eval_BLEU-1_zh"], abs=1e-4)

    rewarded = write_recipe(
        tmp_path / "rewarded.yaml",
        root,
        model={"from_checkpoint": str(out)},
        data={"languages": NAMES},
        training={"stage": "self_critical", "output_dir": str(tmp_path / "rewarded"), "samples_per_image": 2},
    )
    assert "eval_CIDEr_zh" in train_from_yaml(rewarded)


def test_a_checkpoint_that_lacks_a_language_is_refused(tmp_path: Path) -> None:
    root = write_languages(tmp_path / "data")
    settings = {"training": {"max_steps": 1}}
    train_from_yaml(write_recipe(tmp_path / "recipe.yaml", root, data={"eval_split": None}, **settings))
    second = write_recipe(
        tmp_path / "second.yaml", root, model={"from_checkpoint": str(tmp_path / "out")}, data={"languages": NAMES}
    )
    with pytest.raises(ValueError, match=r"`data\.languages` \(en, zh, de\): .* does not know en, zh, de"):
        train_from_yaml(second, ["--training.output_dir", str(tmp_path / "other")])


def test_the_language_is_learned_first_without_images(tmp_path: Path) -> None:
    root = write_languages(tmp_path / "data")
    lines = [f"{number}\ta {colour} square\n" for number, colour in enumerate(["red", "blue"] * 8)]
    (root / "texts.txt.gz").write_bytes(gzip.compress("".join(lines).encode()))
    for photo in (root / "images").iterdir():
        photo.rename(photo.with_suffix(".hidden"))
    texts = {"languages": NAMES | {"en": "texts.txt.gz"}, "hide_images": True, "eval_split": None}
    first = write_recipe(tmp_path / "first.yaml", root, data=texts, training={"num_train_epochs": 30})
    train_from_yaml(first)
    out = tmp_path / "out"
    processor, model = AutoProcessor.from_pretrained(out), AutoModelForImageTextToText.from_pretrained(out)
    hidden = model.hidden_image(1)
    for language, beginning in {"en": "a ", "zh": "一个", "de": "ein "}.items():
        written = model.generate(image_hidden_states=hidden, language=language)
        assert processor.batch_decode(written, skip_special_tokens=True)[0].startswith(beginning)
    for photo in (root / "images").iterdir():
        photo.rename(photo.with_suffix(".png"))
    second = write_recipe(
        tmp_path / "second.yaml",
        root,
        model={"from_checkpoint": str(out)},
        data={"languages": NAMES},
        training={"max_steps": 1, "output_dir": str(tmp_path / "second")},
    )
    assert "eval_CIDEr_zh" in train_from_yaml(second)


@pytest.mark.parametrize(
    ("data", "training", "words"),
    [
        ({}, {}, ["`data.eval_split` ('val') is for images"]),
        ({"eval_split": None, "augmentations": ["flip"]}, {}, ["`data.augmentations` (['flip']) is for images"]),
        ({"eval_split": None}, {"stage": "self_critical"}, ["`data.hide_images` (True) is for cross-entropy"]),
        ({"eval_split": None, "source": "bad.gz"}, {}, ["bad.gz", "no UTF-8 text packed by gzip"]),
    ],
)
def test_wrong_settings_of_hidden_images(tmp_path: Path, data: dict, training: dict, words: list[str]) -> None:
    root = write_data(tmp_path / "data")
    (root / "bad.gz").write_bytes(b"no gzip")
    if "source" in data:
        data = data | {"source": str(root / data["source"])}
    recipe = write_recipe(tmp_path / "recipe.yaml", root, data={"hide_images": True, **data}, training=training)
    with pytest.raises(ValueError) as caught:
        train_from_yaml(recipe, ["--training.eval_strategy", "no", "--training.load_best_model_at_end", "false"])
    assert all(word in str(caught.value) for word in words), caught.value
