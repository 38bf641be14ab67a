"""The command: help at once, and one line and exit status 2 for wrong input."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_model, tiny_tokenizer

from fusion_captioner import DEFAULT_CHECKPOINT, FusionCaptionerImageProcessor, FusionCaptionerProcessor, __version__
from fusion_captioner.cli import COMMANDS, build_parser, main
from fusion_captioner.commands import caption, train
from fusion_captioner.training.arguments import DEFAULT_TASK, ModelArguments, TokenizerArguments
from fusion_captioner.training.tasks import TASKS

# what the console script runs, for each line of flags, and whether anything heavy was imported
HELP_SCRIPT = """
import contextlib, io, json, sys
sys.argv[0] = "/somewhere/bin/fusion-captioner"
from fusion_captioner.cli import main
results = []
for flags in json.loads(sys.argv[1]):
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            status = main(flags)
    except SystemExit as end:
        status = end.code
    heavy = [name for name in ("torch", "transformers", "numpy", "PIL", "datasets", "tqdm") if name in sys.modules]
    results.append([status, output.getvalue(), heavy])
print(json.dumps(results))
"""


def test_help_explains_and_imports_nothing_heavy() -> None:
    flags = [["--help"], *([command, "--help"] for command in COMMANDS), ["--version"]]
    finished = subprocess.run(
        [sys.executable, "-c", HELP_SCRIPT, json.dumps(flags)], capture_output=True, text=True, check=True
    )
    (overview, *helps, version) = json.loads(finished.stdout)
    for status, text, heavy in (overview, *helps, version):
        assert (status, heavy) == (0, []), text
    assert [command for command in COMMANDS if command not in overview[1]] == []
    for command, (_, text, _) in zip(COMMANDS, helps):
        assert text.startswith(f"usage: fusion-captioner {command}")
    assert "--training.num_train_epochs" in dict(zip(COMMANDS, helps))["train"][1]
    assert version[1].strip() == __version__


@pytest.mark.parametrize(
    "command",
    [
        ["caption", "photo.jpg", "--model", "bundled"],
        ["serve", "--model", "bundled"],
        ["demo-page", "--model", "bundled"],
        ["answer", "photo.jpg", "--question", "what?", "--model", "bundled"],
        ["index", "photos/", "--out", "photos.index", "--model", "bundled"],
        ["evaluate", "bundled", "--source", "flickr8k"],
        ["export", "bundled", "--to", "onnx", "--out", "exported"],
        ["shrink", "bundled", "--out", "shrunk"],
        ["average", "bundled", "runs/captioner", "--out", "mean"],
    ],
    ids=lambda words: words[0],
)
def test_the_captioner_in_the_package_has_a_name(command: list[str]) -> None:
    options = build_parser(command[0]).parse_args(command)
    models = options.models if command[0] == "average" else [options.model, "runs/captioner"]
    assert models == [DEFAULT_CHECKPOINT, "runs/captioner"]


def test_importing_the_package_takes_a_fifth_of_a_second_at_most() -> None:
    script = "import time; start = time.process_time(); import fusion_captioner; print(time.process_time() - start)"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(finished.stdout) < 0.2


def test_the_help_of_training_names_fields_that_exist() -> None:
    task = TASKS[DEFAULT_TASK]
    sections = {
        "model": ModelArguments,
        "data": task.data_arguments,
        "tokenizer": TokenizerArguments,
        "training": task.training_arguments,
    }
    fields_of = {section: {field.name for field in fields(kind)} for section, kind in sections.items()}
    section, named = "", dict.fromkeys(fields_of, "")
    for line in train.EPILOG.split("\n\n")[2].splitlines():
        section = line.split(" ")[0] or section
        named[section] += line.removeprefix(section)
    for section, text in named.items():
        # in the row of `data`, which is a plain list, every word is a field; elsewhere those with an underscore are
        words = set(re.findall(r"\w+" if section == "data" else r"\w+_\w+", text))
        assert words and words <= fields_of[section], words - fields_of[section]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path)
    return path


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    tiny_model().save_pretrained(folder)
    image_processor = FusionCaptionerImageProcessor(size={"height": 32, "width": 32})
    FusionCaptionerProcessor(image_processor, tiny_tokenizer()).save_pretrained(folder)
    return folder


def config_folder(folder: Path, config: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one line about what is wrong."""
    assert main([str(flag) for flag in flags]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("fusion-captioner: ")
    return line


def test_a_picture_that_does_not_exist(capsys: pytest.CaptureFixture[str], captioner: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    line = refused(capsys, "caption", missing, "--model", captioner)
    assert str(missing) in line and "no such file" in line


def test_a_model_that_does_not_exist(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path) -> None:
    line = refused(capsys, "caption", picture, "--model", tmp_path / "nowhere")
    assert "nowhere" in line and "config.json" in line


def test_a_checkpoint_of_another_model(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "bert", json.dumps({"model_type": "bert"}))
    line = refused(capsys, "caption", picture, "--model", folder)
    assert str(folder) in line and "'bert'" in line and "'fusion_captioner'" in line


def test_a_config_that_is_no_json(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "broken", "{")
    assert "config.json: is not valid JSON" in refused(capsys, "caption", picture, "--model", folder)


def test_a_config_with_a_wrong_value(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path) -> None:
    folder = config_folder(tmp_path / "wrong", json.dumps({"model_type": "fusion_captioner", "hidden_size": "512"}))
    assert "hidden_size" in refused(capsys, "caption", picture, "--model", folder)


def test_a_folder_without_pictures(capsys: pytest.CaptureFixture[str], captioner: Path, tmp_path: Path) -> None:
    assert "holds no images" in refused(capsys, "caption", tmp_path, "--model", captioner)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--beams", "0"], ["--beams", "(0)", "at least 1"]),
        (["--num-captions", "4", "--beams", "2"], ["--num-captions", "(4)", "--beams", "(2)", "--sample"]),
        (["--batch-size", "-1"], ["--batch-size", "(-1)", "at least 1"]),
    ],
)
def test_flags_out_of_range(capsys: pytest.CaptureFixture[str], picture: Path, flags: list, words: list[str]) -> None:
    line = refused(capsys, "caption", picture, "--model", "unused", *flags)
    assert [word for word in words if word not in line] == []


def test_a_recipe_and_data_that_do_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere.yaml" in refused(capsys, "train", tmp_path / "nowhere.yaml")
    assert "nodata" in refused(capsys, "evaluate", "unused", "--source", tmp_path / "nodata")


@pytest.mark.parametrize("flags", [[], ["sing"], ["caption", "x.jpg", "--model", "m", "--beans"]])
def test_flags_that_do_not_exist(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2
    assert "usage: fusion-captioner" in capsys.readouterr().err


def test_captions_are_json_lines(capsys: pytest.CaptureFixture[str], captioner: Path, picture: Path) -> None:
    assert main(["caption", str(picture), "--model", str(captioner), "--num-captions", "2", "--beams", "3"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["image"] == str(picture)
    assert len(result["captions"]) == 2
    assert result["caption"] == result["captions"][0]


def test_one_bad_picture_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], captioner: Path, picture: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    assert main(["caption", str(bad), str(picture), "--model", str(captioner), "--beams", "1"]) == 1
    output = capsys.readouterr()
    assert [json.loads(line)["image"] for line in output.out.splitlines()] == [str(picture)]
    errors = [line for line in output.err.splitlines() if line.startswith("fusion-captioner: ")]
    assert str(bad) in errors[0]
    assert "1 of 2 images" in errors[1]
    assert main(["caption", str(bad), "--model", str(captioner)]) == 2


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run(options: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(caption, "run", run)
    assert main(["caption", "photo.jpg"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fusion-captioner: not enough memory (")


def test_as_a_process_it_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "fusion_captioner.cli", "caption", str(tmp_path / "missing.png"), "--model", "m"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "FUSION_CAPTIONER_TRACEBACK"},
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert "missing.png: no such file or folder" in finished.stderr


@pytest.mark.parametrize("value", ["300", "-300", "nan", "inf"])
@pytest.mark.parametrize("command", [["caption", "a.jpg"], ["evaluate", "model", "--source", "data"]])
def test_a_length_penalty_out_of_range(command: list[str], value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--length-penalty", value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--length-penalty ({float(value)}) must be -10 to 10" in line


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["caption", "a.jpg"], "--prompt"),
        (["caption", "a.jpg"], "--prefix"),
        (["caption", "a.jpg"], "--suffix"),
        (["caption", "a.jpg"], "--bad-words"),
        (["answer", "a.jpg", "--model", "m"], "--question"),
        (["answer", "--model", "m", "--question", "what?", "--choices", "a"], "--choices"),
        (["classify", "--model", "m"], "--text"),
        (["search", "folder.index"], "TEXT"),
        (["serve"], "--name"),
    ],
)
def test_a_text_that_is_not_utf_8(command: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command == ["serve"]:
        pytest.importorskip("fastapi", reason="needs the extra 'serve'")
    text = os.fsdecode(b"caf\xe9")  # as Python reads it from the command line
    arguments = [text] if flag in ("TEXT", "--choices") else [flag, text]
    assert main([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{flag} ('caf\\udce9') is not UTF-8" in line


def test_a_checkpoint_is_not_replaced_by_what_is_made_of_it(
    capsys: pytest.CaptureFixture[str], captioner: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(captioner, tmp_path / "other")
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    for command in (
        ["shrink", other],
        ["average", captioner, other],
        ["export", other, "--to", "onnx"],
    ):
        assert f"--out ({other}): is what is read" in refused(capsys, *command, "--out", other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--temperature", "1e-320", "must be at least 1e-06"),
        ("--repetition-penalty", "1e-320", "must be 0.01 to 100"),
        ("--max-new-tokens", "99999999999999999999", "must be 1 to 100000"),
        ("--seed", "-1", "must be 0 to"),
        ("--seed", str(2**63), "must be 0 to"),
    ],
)
def test_numbers_that_no_captioner_can_take(
    capsys: pytest.CaptureFixture[str], picture: Path, flag: str, value: str, words: str
) -> None:
    line = refused(capsys, "caption", picture, "--model", "unused", "--sample", flag, value)
    assert f"{flag} (" in line and words in line


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("recipes >&-", "standard output: is closed"),
        ("recipes > /dev/full", "standard output: No space left on device"),
        ("caption --from-file - <&-", "--from-file (-): cannot be read (standard input is closed)"),
        ("recipes 2>&-", None),
    ],
)
def test_closed_and_full_streams(words: str, line: str | None) -> None:
    command = f"{shlex.quote(sys.executable)} -m fusion_captioner.cli {words}"
    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    if line is None:
        assert finished.returncode == 0 and "flickr8k_cpu" in finished.stdout
    else:
        assert finished.returncode == 2 and finished.stderr.startswith(f"fusion-captioner: {line}")
        assert finished.stderr.count("\n") == 1
