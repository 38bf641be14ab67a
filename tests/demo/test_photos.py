from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from fusion_captioner.demo import photos as demo_photos
from fusion_captioner.inference.attention_maps import DEFAULT_METHOD
from fusion_captioner.inference.attributions import ATTRIBUTIONS


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("skimage") is None or find_spec("sklearn") is None, reason="the extra `demo` is not installed"
)
def test_photographs_are_captioned_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the default encodes each photo 64 times
    monkeypatch.setitem(ATTRIBUTIONS, DEFAULT_METHOD, ATTRIBUTIONS["attention"])
    demo_photos.caption_demo_photos(tmp_path)
    printed = capsys.readouterr().out
    for file in demo_photos.demo_photos():
        assert file.name in printed
    assert (tmp_path / "photos.html").read_text().count("<section>") == 7
    assert Image.open(tmp_path / "photos.png").width > 1000


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_photos, "PHOTOS", {"no_such_package": ["a.png"]})
    with pytest.raises(ImportError, match=r"no_such_package .*fusion-captioner\[demo\]"):
        demo_photos.demo_photos()
    monkeypatch.setattr(demo_photos, "PHOTOS", {"json": ["a.png"]})
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        demo_photos.demo_photos()
