"""
Fusion Captioner: image captioning by cross-modal fusion, on transformers.

Importing the package registers its classes with transformers' `Auto*` classes. This is done when transformers is
loaded: the package itself loads neither it nor torch, so that `--help` answers at once and exports run without them.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from .registration import register_when_transformers_loads

__version__ = "0.1.0"

# A folder of this package: the captioner that captions where no other is named. Its README.md is its model card.
DEFAULT_CHECKPOINT = str(Path(__file__).parent / "pretrained")

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

__all__ = ["DEFAULT_CHECKPOINT", "__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_transformers_loads()
