"""`evaluate --predictions`: scores of captions in a file, without a model, without torch, without the images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_captioner.cli import main
from fusion_captioner.metrics.caption_scores import score_captions

REFERENCES = [
    ["a dog runs", "the dog is running"],
    ["two cats sleep", "cats on a bed"],
    ["a red bus", "the bus stops"],
]
CAPTIONS = ["a dog is running", "two cats", "a red bus stops"]
IDS = [42, 7, 100]
SCRIPT = """
import sys
from fusion_captioner.cli import main
status = main(sys.argv[1:])
assert [name for name in ("torch", "transformers") if name in sys.modules] == []
sys.exit(status)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Annotations in COCO's layout, and none of their images."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    document = {
        "images": [{"id": image_id, "file_name": f"{image_id:012}.jpg"} for image_id in IDS],
        "annotations": [
            {"image_id": image_id, "caption": text} for image_id, texts in zip(IDS, REFERENCES) for text in texts
        ],
    }
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(document))
    return root


def evaluate(data: Path, content: object, *flags: object, name: str = "results.json") -> int:
    file = data.parent / name
    if isinstance(content, str):
        file.write_text(content)
    else:
        lines = [json.dumps(entry) for entry in content]
        file.write_text("\n".join(lines) + "\n" if name.endswith("l") else f"[{','.join(lines)}]")
    return main(["evaluate", "--predictions", str(file), "--source", str(data), *map(str, flags)])


def results(captions: list[str] = CAPTIONS, ids: list[int] = IDS) -> list[dict]:
    return [{"image_id": image_id, "caption": text} for image_id, text in zip(ids, captions)]


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusion-captioner: ")]


EXPECTED = {
    name: round(value, 4) for name, value in score_captions(CAPTIONS, REFERENCES).items() if name not in ("signature",)
}


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("results.json", lambda image_id: {"image_id": image_id}),
        ("results.json", lambda image_id: {"image_id": str(image_id)}),
        ("captions.jsonl", lambda image_id: {"image": f"/photos/of/somebody/{image_id:012}.jpg"}),
        ("captions.jsonl", lambda image_id: {"image": f"{image_id:012}.png", "captions": ["a", "b"]}),
        ("captions.jsonl", lambda image_id: {"image_id": f"{image_id:012}"}),
    ],
)
def test_scores_are_those_of_the_captions(name: str, image, data: Path, capsys) -> None:
    entries = [image(image_id) | {"caption": text} for image_id, text in zip(IDS[::-1], CAPTIONS[::-1])]
    assert evaluate(data, entries, name=name) == 0
    report = json.loads(capsys.readouterr().out)
    assert {key: report["scores"][key] for key in EXPECTED} == EXPECTED
    assert report["scores"]["unique_captions"] == 1.0 and report["images"] == 3
    assert report["images_without_caption"] == 0


def test_captions_of_several_beam_sizes_are_scored_apart(data: Path, capsys) -> None:
    entries = [entry | {"beams": 3} for entry in results()] + [
        entry | {"beams": 1} for entry in results(["a bus"] * 3)
    ]
    captions, report = data.parent / "scored.jsonl", data.parent / "page.html"
    assert evaluate(data, entries, "--captions", captions, name="captions.jsonl") == 0
    scores = json.loads(capsys.readouterr().out)
    assert list(scores)[-2:] == ["greedy", "beam 3"] and scores["beam 3"]["CIDEr"] == EXPECTED["CIDEr"]
    assert scores["greedy"]["CIDEr"] < EXPECTED["CIDEr"]
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    assert [line["image_id"] for line in lines] == [str(image_id) for image_id in IDS] * 2
    assert not report.exists()


def test_no_torch_is_needed(data: Path) -> None:
    (data.parent / "results.json").write_text(json.dumps(results()))
    command = ["evaluate", "--predictions", str(data.parent / "results.json"), "--source", str(data)]
    finished = subprocess.run([sys.executable, "-c", SCRIPT, *command], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["scores"]["CIDEr"] == EXPECTED["CIDEr"]


def test_images_without_caption_and_captions_of_other_images_are_counted(data: Path, capsys) -> None:
    entries = [*results()[:2], {"image_id": 5, "caption": "a tree"}, {"image_id": 6, "caption": "a tree"}]
    assert evaluate(data, entries) == 1
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert (report["images"], report["images_without_caption"]) == (2, 1)
    assert "2 images are not in the split 'val' and are not scored, such as 5, 6" in output.err
    assert "1 of 3 images have no caption and are not scored, such as 100" in output.err
    assert evaluate(data, results(), "--limit", 2) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "malformed JSON at line 1"),
        ('{"annotations": []}', "expected a list of objects"),
        ('[{"image_id": 42, "caption": "a"}, 3]', "entry 2: expected an object"),
        ('[{"image_id": 42, "caption": "a"}, {"id": 7, "text": "b"}]', "entry 2: has the fields id, text; it needs"),
        ('[{"image_id": 42, "caption": ["a"]}]', "entry 1: has the fields image_id, caption; it needs"),
        ('[{"image_id": 42, "caption": "a", "beams": 0}]', "entry 1: `beams` (0) must be"),
        (
            '[{"image_id": 42, "caption": "a"}, {"image": "000000000042.jpg", "caption": "b"}]',
            "entry 2: a second caption",
        ),
        (
            '[{"image_id": 43, "caption": "a"}]',
            "has no caption of the 3 images of the split, such as 42 (000000000042.jpg)",
        ),
        ("[]", "it has no captions"),
        (
            '[{"image_id": 42, "caption": "a"}, {"image_id": 7, "image_id": 8, "caption": "a"}]',
            "entry 2: has the field",
        ),
        ('[{"image_id": 42, "caption": "a", "caption": "b"}]', "entry 1: has the field 'caption' twice; keep one"),
        ('{"image_id": 42, "caption": "a"}\n{"image": "a", "image": "b"}', "line 2: has the field 'image' twice"),
        pytest.param(
            f'[{{"caption": "a",\n"image_id": {"1" * 5000}}}]',
            "line 2: a number of more than 4300 digits",
            id="digits",
        ),
        (
            '[{"image_id": 42, "caption": "a"}, {"image": "a\\u0000/b.jpg", "caption": "a"}]',
            r"entry 2: 'a\x00/b.jpg' is",
        ),
        ('[{"image": "~\\ud800/b.jpg", "caption": "a"}]', r"entry 1: '~\ud800/b.jpg' is not the name of an image"),
    ],
)
def test_files_that_are_none(content: str, words: str, data: Path, capsys) -> None:
    assert evaluate(data, content) == 2
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if line.startswith("fusion-captioner: ")]
    assert output.out == "" and "results.json" in line and words in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "image,caption_0,caption_1\n{},a,b\n{},c,d\n{},e,f\n"),
        ("captions.csv", 'image_id;caption\n{};"a"\n{};c\n{};e\n'),
        ("captions.txt", "{}\ta\n{}\tc\n{}\te\n"),
        ("captions.txt", '{}\t"a\tb b\n{}\tc\td d\n{}\te\tf "f"\n'),
    ],
)
def test_tables_of_captions(name: str, content: str, data: Path, capsys) -> None:
    assert evaluate(data, content.format(*(f"/photos/{image_id:012}.jpg" for image_id in IDS)), name=name) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 3 and report["scores"]["max_length"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,caption\n1.jpg,a,b\n", "captions.csv, line 2: broken row: 3 values for the columns image, caption"),
        ('image,caption\n1.jpg,"a\n', "captions.csv, line 2: broken row"),
        ("photo of;words\n", "captions.csv: none of the columns"),
        ("words\n", "captions.csv: the delimiter cannot be told"),
        ("", "captions.csv: the table is empty"),
    ],
)
def test_broken_tables(content: str, words: str, data: Path, capsys) -> None:
    assert evaluate(data, content, name="captions.csv") == 2
    assert words in notes(capsys)[0]


def test_a_broken_line_is_named(data: Path, capsys) -> None:
    assert evaluate(data, "42.jpg\t\n43.jpg\ta\n44.jpg a\n", name="captions.txt") == 2
    assert "captions.txt, line 3: broken row: '44.jpg a' has no tab" in notes(capsys)[0]
    content = '{"image_id": 42, "caption": "a"}\n{"image_id": 7, "capt\n'
    assert evaluate(data, content, name="captions.jsonl") == 2
    assert "captions.jsonl, line 2: malformed JSON" in notes(capsys)[0]
    assert evaluate(data, f'\n{{"image_id": {"1" * 5000}}}\n', name="captions.jsonl") == 2
    assert "captions.jsonl, line 2: a number of more than 4300 digits" in notes(capsys)[0]
    assert evaluate(data, "image,caption\n42.jpg,a\n/\0.jpg,a\n", name="captions.csv") == 2
    assert "captions.csv, line 3: '/" in notes(capsys)[0]


@pytest.mark.parametrize("layout", ["auto", "coco"])
def test_the_file_of_one_split_is_a_source(data: Path, layout: str, capsys) -> None:
    file = data / "annotations" / "captions_val2017.json"
    assert evaluate(file, results(), "--layout", layout) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["CIDEr"] == EXPECTED["CIDEr"]


def test_data_without_images(data: Path, capsys) -> None:
    file = data / "annotations" / "captions_val2017.json"
    file.write_text('{"images": [], "annotations": []}')
    for source in (data, file):
        assert evaluate(source, results()) == 2
        assert notes(capsys)[0].endswith(f"--source ({source}): has no images with captions.")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["some/model"], "both a model (some/model) and --predictions"),
        (["--beams", "3"], "--beams is for a model"),
        (["--split", "test"], "--split ('test') is not in"),
        (["--layout", "karpathy"], "no dataset_*.json"),
        (["--val-fraction", "0.5"], "takes a split 'val' out of 'train'"),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], words: str, data: Path, capsys) -> None:
    assert evaluate(data, results(), *flags) == 2
    assert words in notes(capsys)[0]
    assert main(["evaluate", "--source", str(data)]) == 2
    assert "no MODEL is given" in notes(capsys)[0]


def test_a_held_out_part_is_the_one_of_training(tmp_path: Path, capsys) -> None:
    rows = [f"{number}.jpg,a dog {number}\n" for number in range(40)]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(rows))
    (tmp_path / "0.jpg").write_bytes(b"")
    entries = [{"image": f"{number}.jpg", "caption": f"a dog {number}"} for number in range(40)]
    assert evaluate(tmp_path / "captions.csv", entries, "--val-fraction", "0.3") == 0
    held_out = json.loads(capsys.readouterr().out)["images"]
    assert evaluate(tmp_path / "captions.csv", entries, "--val-fraction", "0.3", "--split", "train") == 0
    assert 0 < held_out < 40 and json.loads(capsys.readouterr().out)["images"] == 40 - held_out
