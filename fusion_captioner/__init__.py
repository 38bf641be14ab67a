"""
Fusion Captioner: image captioning by cross-modal fusion, on transformers.

Importing the package registers its classes with transformers' `Auto*` classes, except in the console script, which
must answer `--help` and run exported models without loading torch, and registers when it needs a model.
"""

import os
import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "FusionCaptionerConfig": "configuration_fusion_captioner",
    "FusionCaptionerForConditionalGeneration": "modeling_fusion_captioner",
    "FusionCaptionerForImageTextRetrieval": "image_text_retrieval",
    "FusionCaptionerForMultipleChoice": "multiple_choice",
    "FusionCaptionerForSequenceClassification": "sequence_classification",
    "FusionCaptionerImageProcessor": "image_processing_fusion_captioner",
    "FusionCaptionerModel": "modeling_fusion_captioner",
    "FusionCaptionerProcessor": "processing_fusion_captioner",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if os.path.basename(sys.argv[0]).removesuffix(".exe") != "fusion-captioner":
    import_module(f"{__name__}.auto_registration")
