"""A captioner as a server has it: prompts of chats, settings, and batches of different prompts, on both runtimes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_captioner import FakeCaptioner
from PIL import Image
from tiny_exports import Export, tiny_processor
from tiny_models import tiny_model

from fusion_captioner.cli import main
from fusion_captioner.given_values import MIN_TEMPERATURE
from fusion_captioner.inference.captioner import load_on_runtime
from fusion_captioner.serving import served_captioner
from fusion_captioner.serving.served_captioner import (
    ServedCaptioner,
    load_served_captioner,
    plain_chat_prompt,
)

CHATS = [
    [{"role": "user", "content": "what is it?"}],
    [{"role": "system", "content": "be brief."}, {"role": "user", "content": "what is it?"}],
    [{"role": "system", "content": "be brief."}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": " "}, {"role": "assistant", "content": "a dog"}],
    [
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "what colour?"},
    ],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "captioner"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_a_language_that_the_captioner_lacks_is_refused_and_one_that_it_has_is_used(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"--language \('zh'\) .* one language"):
        load_served_captioner(str(checkpoint), language="zh")
    captioner = FakeCaptioner()
    ServedCaptioner(captioner, "fake", False, language="zh").caption([Image.new("RGB", (6, 4))], [""])
    assert captioner.settings["language"] == "zh"


@pytest.mark.parametrize("messages", CHATS)
def test_plain_prompts_are_those_of_the_chat_template(messages: list[dict[str, str]]) -> None:
    templated = tiny_processor().apply_chat_template(messages, add_generation_prompt=True)
    assert plain_chat_prompt(messages) == templated


def test_what_a_server_knows_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    served = load_served_captioner(str(checkpoint))
    assert (served.name, served.takes_prompts) == ("captioner", False)
    assert served.chat_prompt(CHATS[0]) == ""
    assert served.count_tokens("w5 w6 w7") == 3 and served.count_tokens("") == 0
    (checkpoint / "task.json").write_text(json.dumps({"task": "prompted", "data": {}}))
    served = load_served_captioner(str(checkpoint), name="mine")
    assert (served.name, served.takes_prompts) == ("mine", True)
    assert served.chat_prompt(CHATS[0]) == "question: what is it? answer:"
    assert not load_served_captioner(str(checkpoint), takes_prompts=False).takes_prompts
    (checkpoint / "task.json").unlink()


@pytest.fixture
def fake_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any folder is a captioner, such as an export, whose files are not those of a checkpoint."""
    monkeypatch.setattr(served_captioner, "load_on_runtime", lambda *arguments, **settings: FakeCaptioner())


@pytest.mark.parametrize("command", ["serve", "mcp"])
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"task": "prompted"}', b'{"task": "other", "data": {}}', b"\xff"])
@pytest.mark.usefixtures("fake_runtime")
def test_a_damaged_task_file_is_a_line(
    tmp_path: Path, command: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip({"serve": "fastapi", "mcp": "mcp"}[command])
    (tmp_path / "task.json").write_bytes(content)
    flags = ["--port", "0"] if command == "serve" else ["--root", str(tmp_path)]
    assert main([command, "--model", str(tmp_path), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'task.json'}: is damaged (" in line and "train or download it again" in line
    assert load_served_captioner(str(tmp_path), takes_prompts=True).takes_prompts  # the file is not asked


@pytest.mark.usefixtures("fake_runtime")
def test_a_name_that_no_answer_can_hold_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    assert load_served_captioner(str(folder)).name == "caf?"


def test_captions_are_those_of_the_command(checkpoint: Path) -> None:
    served = load_served_captioner(str(checkpoint), beams=2, max_new_tokens=6)
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    command = load_on_runtime(str(checkpoint))
    assert served.caption(pictures, ["", ""]) == command.caption(pictures, "", num_beams=2, max_new_tokens=6)
    greedy = command.caption(pictures, "", num_beams=1, max_new_tokens=3, length_penalty=1.0)
    served.beams = 1
    assert served.caption(pictures, ["", ""], served.settings(max_new_tokens=3)) == greedy


def different_prompts(served: ServedCaptioner) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    prompts = ["", "w5 w6 w7 w8", "w9"]
    alone = [served.caption([picture], [prompt])[0] for picture, prompt in zip(pictures, prompts, strict=True)]
    assert served.caption(pictures, prompts) == alone
    assert len({text for (text,) in alone}) > 1


def test_different_prompts_in_one_batch(checkpoint: Path) -> None:
    torch.manual_seed(0)
    different_prompts(load_served_captioner(str(checkpoint), max_new_tokens=6))


@pytest.mark.slow
def test_an_export_is_served_in_the_same_way(export: Export) -> None:
    pytest.importorskip("onnxruntime")
    served = load_served_captioner(str(export("onnx")), takes_prompts=True, max_new_tokens=6)
    assert served.name == "onnx"
    assert served.chat_prompt(CHATS[0]) == "question: what is it? answer:"
    assert served.count_tokens("w5 w6 w7") == 3
    different_prompts(served)


@pytest.mark.parametrize("module", ["http_app", "photo_tools"])
def test_a_server_of_an_export_imports_no_torch(module: str) -> None:
    program = f"import sys, fusion_captioner.serving.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_temperature_that_no_score_can_be_divided_by_is_the_lowest_that_can() -> None:
    served = ServedCaptioner(FakeCaptioner(), "fake", takes_prompts=False)  # type: ignore[arg-type]
    assert served.settings(1, 10, 1e-320, None)["temperature"] == MIN_TEMPERATURE
