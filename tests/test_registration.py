"""The Auto classes know the captioner whichever package is imported first, and this package alone imports no torch."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# What takes transformers longest is imported once: each beginning has a process of its own, forked from this one.
PROGRAM = """
import os, sys
import accelerate, scipy.optimize, torch, torch._dynamo, torch.distributed.tensor

for beginning in sys.argv[2:]:
    if os.fork() == 0:
        exec(beginning + "\\n" + sys.argv[1], {})
        os._exit(0)
    assert os.wait()[1] == 0, beginning
"""

KNOWN = """
from transformers import AutoConfig, AutoModelForImageTextToText
from fusion_captioner import FusionCaptionerConfig
config = AutoConfig.for_model("fusion_captioner")
assert type(config) is FusionCaptionerConfig
assert FusionCaptionerConfig in AutoModelForImageTextToText._model_mapping
"""


BEGINNINGS = [
    "import fusion_captioner",
    "from fusion_captioner.decoder import CaptionDecoder",
    "import transformers, fusion_captioner",
]


def run(*arguments: str) -> None:
    finished = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_auto_classes_know_the_captioner() -> None:
    run(PROGRAM, KNOWN, *BEGINNINGS)


def test_this_package_alone_imports_no_torch() -> None:
    run("import sys, fusion_captioner; assert not {'torch', 'transformers'} & set(sys.modules)")
