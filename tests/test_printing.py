"""Lines of commands: one line each, which no terminal obeys and every encoding holds."""

import io
import json
import logging
import sys

import pytest
from PIL import UnidentifiedImageError
from torch._utils import ExceptionWrapper

from fusion_captioner.printing import error_text, json_line, print_json, print_log, print_note

# ESC, CSI in one byte, a bell, a turn of the writing direction, a byte that is no UTF-8
ATTACKS = ["\x1b[2J", "\x9b31m", "\a", "\u202egnp", "caf\udce9", "two\nlines"]


@pytest.mark.parametrize("name", ATTACKS)
def test_no_name_reaches_the_terminal_as_it_is(capsys: pytest.CaptureFixture[str], name: str) -> None:
    entry = {"image": name, "caption": "ein Café"}
    print_json(entry)
    print_note(f"{name}: no such file")
    output = capsys.readouterr()
    (line,) = output.out.splitlines()
    assert json.loads(line) == entry and "Café" in line
    assert name not in output.err and output.err.count("\n") == 1
    assert all(character.isprintable() for character in (output.out + output.err).replace("\n", ""))


def test_a_name_that_the_encoding_does_not_have_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    entry = {"image": "\u72d7.png", "caption": "ein Café"}
    print_json(entry)
    assert json.loads(written.getvalue().decode("cp1252")) == entry
    assert "Café" in json_line({"caption": "ein Café"}, "cp1252")
    assert json.loads(json_line(entry, "utf-8", indent=2)) == entry


@pytest.mark.parametrize("name", ATTACKS)
def test_no_name_reaches_the_terminal_by_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    print_log()
    logger = logging.Logger("without handlers")
    logger.warning("image left out: %s", name)
    error = capsys.readouterr().err
    assert error.startswith("image left out: ")
    assert all(character.isprintable() for character in error.replace("\n", ""))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a.jpg: cut off; use it: not"), "a.jpg: cut off; use it: not"),
        (FileNotFoundError("a.jpg: no such file"), "a.jpg: no such file"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (UnidentifiedImageError("not an image"), "not an image"),
    ],
)
def test_an_error_of_a_worker_process_is_its_message_alone(error: Exception, text: str) -> None:
    try:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise error from cause
    except type(error):
        wrapper = ExceptionWrapper(where="in DataLoader worker process 11")
    with pytest.raises(type(error)) as caught:
        wrapper.reraise()
    assert "Traceback" in str(caught.value)
    assert error_text(caught.value) == error_text(error) == text
