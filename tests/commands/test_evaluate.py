"""`fusion-captioner evaluate`: numbers, page, exit status, on a tiny captioner and a folder in COCO's layout."""

import base64
import json
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model, tiny_tokenizer

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor
from fusion_captioner.cli import main
from fusion_captioner.evaluation.report import THUMBNAIL_SIDE, best_and_worst
from fusion_captioner.inference import fused_convolutions
from fusion_captioner.metrics.caption_scores import score_captions
from fusion_captioner.metrics.diversity import caption_diversity

NUMBER = 6
MARKUP = '<script>alert("x")</script> & <b>bold</b>'


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model().save_pretrained(folder)
    image_processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32})
    FusionCaptionerProcessor(image_processor, tiny_tokenizer()).save_pretrained(folder)
    return folder


def write_annotations(root: Path, captions: list[list[str]]) -> None:
    images = [{"id": 100 + index, "file_name": f"{index}.png"} for index in range(len(captions))]
    annotations = [
        {"image_id": 100 + index, "caption": text} for index, texts in enumerate(captions) for text in texts
    ]
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "captions_val2017.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "val2017").mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(NUMBER):
        pixels = random.integers(0, 256, (12, 16, 3), np.uint8).repeat(40, 0).repeat(40, 1)
        Image.fromarray(pixels).save(root / "val2017" / f"{index}.png")
    write_annotations(root, [[f"w3 w4 w{5 + index}", "w7 w8"] for index in range(NUMBER)])
    return root


@pytest.fixture
def evaluate(captioner: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """The JSON of a run that ends well."""

    def run(*flags: object) -> dict:
        command = ["evaluate", captioner, "--source", data, "--max-new-tokens", 8, "--batch-size", 4, *flags]
        assert main([str(flag) for flag in command]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(captioner: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a run that is refused."""

    def run(*flags: object, model: object = captioner, source: object = data) -> str:
        assert main([str(flag) for flag in ["evaluate", model, "--source", source, *flags]]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        assert line.startswith("fusion-captioner: ")
        return line

    return run


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_json_holds_scores_and_what_they_do_not_see(evaluate: Callable[..., dict], tmp_path: Path) -> None:
    result = evaluate("--beams", 1, 2, "--captions", tmp_path / "captions.jsonl")
    assert (result["split"], result["images"], result["skipped_images"]) == ("val", NUMBER, 0)
    lines = read_lines(tmp_path / "captions.jsonl")
    references = [[f"w3 w4 w{5 + index}", "w7 w8"] for index in range(NUMBER)]
    for name, beams in {"greedy": 1, "beam 2": 2}.items():
        captions = [line["caption"] for line in lines if line["beams"] == beams]
        assert len(captions) == NUMBER
        expected = score_captions(captions, references) | caption_diversity(captions)
        assert result[name].keys() == expected.keys()
        for key, value in expected.items():
            assert result[name][key] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), key
    assert [line["image_id"] for line in lines[:NUMBER]] == [str(100 + index) for index in range(NUMBER)]


def test_a_table_is_scored_as_the_same_captions_in_cocos_layout(
    evaluate: Callable[..., dict], refused: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    rows = "".join(f"{index}.png;w3 w4 w{5 + index};w7 w8\n" for index in range(NUMBER))
    table = tmp_path / "tables" / "val.csv"
    table.parent.mkdir()
    table.write_text(f"picture;english 1;english 2\n{rows}")
    flags = ["--images-folder", data / "val2017", "--image-column", "picture", "--caption-column"]
    flags += ["english 1", "english 2", "--beams", 1]
    expected = evaluate("--beams", 1)["greedy"]
    assert evaluate("--source", table, "--split", "train", *flags)["greedy"] == expected
    assert "(--val-fraction 0.1 makes one); there are train." in refused(*flags, source=table)
    assert 0 < evaluate("--source", table, "--val-fraction", 0.5, *flags)["images"] < NUMBER


def test_beams_are_those_that_were_asked_for(evaluate: Callable[..., dict]) -> None:
    result = evaluate("--beams", 3, "--limit", 2)
    assert [name for name, value in result.items() if isinstance(value, dict)] == ["beam 3"]
    assert result["images"] == 2
    assert "images=2" in result["beam 3"]["signature"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_of_the_image_encoder_is_said(
    evaluate: Callable[..., dict], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(fused_convolutions, "faster_dtype", lambda device: getattr(torch, dtype))
    assert evaluate("--beams", 1)["image_encoder_computes_in"] == dtype
    assert evaluate("--beams", 1, "--dtype", "float32")["image_encoder_computes_in"] == "float32"


def test_no_sequence_of_tokens_comes_twice(evaluate: Callable[..., dict], tmp_path: Path) -> None:
    def repeated(*flags: object) -> list[bool]:
        path = tmp_path / f"captions{len(flags)}.jsonl"
        evaluate("--beams", 1, "--captions", path, *flags)
        words = [line["caption"].split() for line in read_lines(path)]
        return [len(set(pairwise(each))) < len(each) - 1 for each in words]

    assert any(repeated()) and not any(repeated("--no-repeat-ngram", 2))


def test_report_shows_best_and_worst_of_the_last_setting(
    evaluate: Callable[..., dict], data: Path, tmp_path: Path
) -> None:
    evaluate("--beams", 1, "--captions", tmp_path / "captions.jsonl")
    said = [line["caption"].split() for line in read_lines(tmp_path / "captions.jsonl")]
    # references that agree with what the captioner says, the more the later the image stands
    write_annotations(
        data,
        [
            [" ".join([*words[: 1 + index], *["other"] * (len(words) - 1 - index), f"of{index}"])]
            for index, words in enumerate(said)
        ],
    )
    result = evaluate("--beams", 2, 1, "--captions", tmp_path / "captions.jsonl", "--report", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))

    lines = [line for line in read_lines(tmp_path / "captions.jsonl") if line["beams"] == 1]
    scores = [line["CIDEr"] for line in lines]
    assert len(set(scores)) > 3
    best = sorted(lines, key=lambda line: -line["CIDEr"])[:3]
    assert [image["alt"] for image in page.all("img")][:3] == [f"Picture {line['image_id']}" for line in best]
    assert len({image["alt"] for image in page.all("img")}) == len(page.all("img")) == NUMBER
    by_id = {f"Picture {line['image_id']}": line["CIDEr"] for line in lines}
    worst = [by_id[image["alt"] or ""] for image in page.all("img")][3:]
    assert worst == sorted(worst) and max(worst) <= min(line["CIDEr"] for line in best)

    text = "\n".join(page.texts)
    assert "Best 3 by CIDEr-D, greedy" in text and "Worst 3 by CIDEr-D, greedy" in text
    for line in lines:
        assert line["caption"] in text
    for setting in ("beam 2", "greedy"):
        assert f"{100 * result[setting]['BLEU-1']:.2f}" in page.texts
        assert str(result[setting]["vocabulary"]) in page.texts


def test_report_needs_nothing_beside_itself_and_is_accessible(evaluate: Callable[..., dict], tmp_path: Path) -> None:
    evaluate("--beams", 1, "--report", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert not page.all("script") and not page.all("link")
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert {header.get("scope") for header in page.all("th")} == {"row", "col"}
    for image in page.all("img"):
        start, _, content = (image["src"] or "").partition(",")
        assert start == "data:image/jpeg;base64" and image["alt"]
        with Image.open(BytesIO(base64.b64decode(content))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (THUMBNAIL_SIDE, THUMBNAIL_SIDE * 3 // 4))


def test_report_escapes_what_is_not_its_own(evaluate: Callable[..., dict], data: Path, tmp_path: Path) -> None:
    write_annotations(data, [[MARKUP]] * NUMBER)
    evaluate("--beams", 1, "--report", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.all("script") and not page.all("b")
    assert MARKUP in page.texts


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--beams", "0"], ["--beams (0)", "at least 1"]),
        (["--beams", "1", "3", "3"], ["--beams (1 3 3)", "3 twice"]),
        (["--limit", "0"], ["--limit (0)", "at least 1"]),
        (["--no-repeat-ngram", "0"], ["--no-repeat-ngram (0)", "at least 1"]),
        (["--batch-size", "0"], ["--batch-size (0)", "at least 1"]),
        (["--max-new-tokens", "-1"], ["--max-new-tokens (-1)", "at least 1"]),
        (["--report", "/nowhere/at/all/page.html"], ["--report", "/nowhere/at/all does not exist"]),
        (["--captions", "."], ["--captions (.)", "is a folder"]),
        (["--captions", "same", "--report", "same"], ["--report and --captions", "two files"]),
    ],
)
def test_bad_settings_fail_before_anything_else(
    refused: Callable[..., str], flags: list[str], words: list[str]
) -> None:
    # neither the model nor the data is there: they were not looked at yet
    line = refused(*flags, model="/nowhere/model", source="/nowhere/data")
    assert [word for word in words if word not in line] == []


def test_a_split_a_model_and_data_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    report = tmp_path / "page.html"
    line = refused("--split", "dev", "--report", report)
    assert "--split ('dev')" in line and line.endswith("there are val.")
    assert "no such file or folder" in refused("--report", report, source=tmp_path / "nodata")
    assert "config.json" in refused("--report", report, model=tmp_path / "nomodel")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused("--report", report, source=tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "empty"]


def test_an_image_that_is_cut_off(
    evaluate: Callable[..., dict], refused: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    image = data / "val2017" / "2.png"
    image.write_bytes(image.read_bytes()[:-100])
    line = refused("--beams", 1, "--report", tmp_path / "page.html", "--captions", tmp_path / "captions.jsonl")
    assert str(image) in line and "--skip-bad-images" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]

    result = evaluate("--beams", 1, "--skip-bad-images", "--captions", tmp_path / "captions.jsonl")
    assert (result["images"], result["skipped_images"]) == (NUMBER - 1, 1)
    assert "102" not in [line["image_id"] for line in read_lines(tmp_path / "captions.jsonl")]


def test_an_image_that_is_none(evaluate: Callable[..., dict], refused: Callable[..., str], data: Path) -> None:
    (data / "val2017" / "0.png").write_text("no picture")
    assert "0.png" in refused("--beams", 1)
    result = evaluate("--beams", 1, "--skip-bad-images")
    assert (result["images"], result["skipped_images"]) == (NUMBER - 1, 1)


def test_no_image_is_both_among_the_best_and_the_worst() -> None:
    assert best_and_worst(np.array([0.5])) == ([0], [])
    assert best_and_worst(np.array([0.1, 0.3, 0.2])) == ([1, 2], [0])
    assert best_and_worst(np.arange(10.0), shown=3) == ([9, 8, 7], [0, 1, 2])
    best, worst = best_and_worst(np.zeros(100))
    assert len(best) == len(worst) == 20 and not set(best) & set(worst)
