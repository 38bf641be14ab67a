"""The bar of image batches: images per second, on a terminal only, and no line of results torn."""

import io
import sys
from pathlib import Path

import pytest
from fake_captioner import IMAGE_SETTINGS
from PIL import Image

from fusion_captioner.inference.image_batches import ImageBatches
from fusion_captioner.inference.launched_process import LaunchedProcess
from fusion_captioner.printing import print_json


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "process", "is_shown"),
    [
        (Terminal(), LaunchedProcess(), True),
        (io.StringIO(), LaunchedProcess(), False),
        (Terminal(), LaunchedProcess(1, 2, 1, 2), False),
    ],
)
def test_a_bar_with_images_per_second_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    stream: io.StringIO,
    process: LaunchedProcess,
    is_shown: bool,
) -> None:
    images = [str(tmp_path / f"{number}.png") for number in range(4)]
    for image in images:
        Image.new("RGB", (8, 8)).save(image)
    monkeypatch.setattr(sys, "stderr", stream)
    for _, names, _ in ImageBatches(images, range(4), 2, IMAGE_SETTINGS, process, total=10):
        print_json(names)
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        str(images[:2]).replace("'", '"'),
        str(images[2:]).replace("'", '"'),
    ]
    shown = stream.getvalue()
    if is_shown:
        assert "6/10" in shown and "10/10" in shown and " images/s" in shown
    else:
        assert shown == ""
