"""The Auto classes know the captioner whichever package is imported first, and this package alone imports no torch."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

KNOWN = """
from transformers import AutoConfig, AutoModelForImageTextToText
from fusion_captioner import FusionCaptionerConfig
config = AutoConfig.for_model("fusion_captioner")
assert type(config) is FusionCaptionerConfig
assert FusionCaptionerConfig in AutoModelForImageTextToText._model_mapping
"""


@pytest.mark.parametrize(
    "beginning",
    [
        "import sys, fusion_captioner; assert 'torch' not in sys.modules and 'transformers' not in sys.modules",
        "from fusion_captioner.decoder import CaptionDecoder",
        "import transformers, fusion_captioner",
    ],
    ids=["this package first", "a module of it first", "transformers first"],
)
def test_the_auto_classes_know_the_captioner(beginning: str) -> None:
    finished = subprocess.run([sys.executable, "-c", beginning + KNOWN], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
