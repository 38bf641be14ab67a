"""Loading a captioner and its processor for the commands."""

import json
from pathlib import Path
from typing import Any

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor


def load_captioner(
    name: str, revision: str = "main", **config_fields: Any
) -> tuple[FusionCaptionerForConditionalGeneration, FusionCaptionerProcessor]:
    """
    Model, in evaluation mode, and processor from a folder or the Hub.

    Args:
        name, revision: as for `from_pretrained`.
        config_fields: fields of the saved config to change, such as `dropout`.

    Raises:
        FileNotFoundError: if `name` looks like a folder and is none, or has no `config.json`.
        ValueError: if it holds another kind of model.
    """
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        config = folder / "config.json"
        if not config.is_file():
            raise FileNotFoundError(
                f"{name}: has no config.json; give the folder of a saved captioner, or a Hub name."
            )
        try:
            model_type = json.loads(config.read_text()).get("model_type")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ValueError(f"{config}: is not valid JSON ({error}); save the captioner again.") from error
        if model_type != FusionCaptionerConfig.model_type:
            raise ValueError(
                f"{name}: is a checkpoint of type {model_type!r}, not {FusionCaptionerConfig.model_type!r}; give a "
                "captioner that this package trained."
            )
    model = FusionCaptionerForConditionalGeneration.from_pretrained(name, revision=revision, **config_fields)
    return model.eval(), FusionCaptionerProcessor.from_pretrained(name, revision=revision)
