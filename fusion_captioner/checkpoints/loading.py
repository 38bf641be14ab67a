"""Loading a captioner and its processor for the commands: whatever is wrong with it is one line that names it."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.modeling_fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerPreTrainedModel,
)
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor

# transformers leaves a damaged `generation_config.json` out in silence, and tells of others without their names
JSON_FILES = ("generation_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")

Head = TypeVar("Head", bound=FusionCaptionerPreTrainedModel)


def load_captioner(
    name: str, revision: str = "main", *, may_lack_weights: bool = False, **config_fields: Any
) -> tuple[FusionCaptionerForConditionalGeneration, FusionCaptionerProcessor]:
    """A captioner and its processor; see [`load_head`]."""
    return load_head(
        FusionCaptionerForConditionalGeneration,
        name,
        revision,
        may_lack_weights=may_lack_weights,
        trained_to="caption",
        **config_fields,
    )


def load_head(
    head: type[Head],
    name: str,
    revision: str = "main",
    *,
    may_lack_weights: bool = False,
    trained_to: str,
    **config_fields: Any,
) -> tuple[Head, FusionCaptionerProcessor]:
    """
    Model, in evaluation mode, and processor from a folder or the Hub.

    Args:
        head: class of the model.
        name, revision: as for `from_pretrained`.
        may_lack_weights: draw weights that the checkpoint lacks at random, with transformers' warning: training goes
            on from it with another part. By default that is an error.
        trained_to: what such a model does, for the message about weights that are lacking.
        config_fields: fields of the saved config to change, such as `dropout`.

    Raises:
        FileNotFoundError: if `name` looks like a folder and is none, or has no `config.json`.
        ValueError: if it holds another kind of model, another head where `may_lack_weights` is false, weights that are
            not finite, or something damaged.
    """
    check_captioner(name)
    verbosity = transformers_logging.get_verbosity()
    if not may_lack_weights:
        transformers_logging.set_verbosity_error()  # its report of many lines is one line below
    try:
        loaded: Any = head.from_pretrained(
            name, revision=revision, output_loading_info=True, ignore_mismatched_sizes=True, **config_fields
        )
    except SafetensorError as error:
        raise ValueError(f"{name}: its weights are damaged ({error}); save or download it again.") from error
    except (OSError, RuntimeError) as error:
        raise OSError(_cannot_load(name, "model", error)) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, report = loaded
    mismatched = sorted(entry[0] for entry in report["mismatched_keys"])
    others = [trained for trained in model.config.architectures or [] if trained != head.__name__]
    if mismatched and others and not any(tensor.startswith(f"{head.base_model_prefix}.") for tensor in mismatched):
        # what is not shared by the heads, of which two may use the same names
        if not may_lack_weights:
            raise ValueError(f"{name}: is a {others[0]}; give one that was trained to {trained_to}.")
        mismatched = []
    if mismatched:
        raise ValueError(
            f"{name}: {_counted(mismatched)} another shape than config.json says; save it again, or mend its config."
        )
    if (missing := sorted(report["missing_keys"])) and not may_lack_weights:
        raise ValueError(
            f"{name}: {_counted(missing)} no weights in the checkpoint; give one that was trained to {trained_to}."
        )
    check_finite(model, name)
    return model.eval(), load_processor(name, revision)


def check_finite(model: torch.nn.Module, name: str) -> None:
    """
    Refuse weights that are no numbers: such a model captions nothing, and says nothing of why.

    Args:
        name: of the model, for the message.

    Raises:
        ValueError: names the tensors that hold NaN or infinity.
    """
    wrong = [
        key for key, tensor in model.state_dict().items() if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if wrong:
        raise ValueError(
            f"{name}: {_counted(sorted(wrong))} weights that are not finite; train it again from an earlier checkpoint."
        )


def load_config(name: str, revision: str = "main") -> FusionCaptionerConfig:
    """
    The config of a checkpoint in a folder or on the Hub.

    Raises:
        FileNotFoundError, ValueError, OSError: as [`load_head`].
    """
    check_captioner(name)
    try:
        return FusionCaptionerConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        raise OSError(_cannot_load(name, "config", error)) from error


def load_processor(name: str, revision: str = "main") -> FusionCaptionerProcessor:
    """
    The processor of a captioner in a folder or on the Hub.

    Raises:
        FileNotFoundError, ValueError, OSError: as [`load_captioner`].
    """
    check_captioner(name)
    try:
        return FusionCaptionerProcessor.from_pretrained(name, revision=revision)
    except Exception as error:  # parsers of tokenizers raise KeyError, TypeError, plain Exception, ...
        raise OSError(_cannot_load(name, "processor", error)) from error


def check_captioner(name: str) -> None:
    """
    Raise what [`load_captioner`] would raise about the JSON files of a folder; takes no time. Names on the Hub pass.
    """
    if not _is_folder(name):
        return
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name}: has no config.json; give the folder of a saved captioner, or a Hub name.")
    config = _read_object(folder / "config.json")
    if config.get("model_type") != FusionCaptionerConfig.model_type:
        raise ValueError(
            f"{name}: is a checkpoint of type {config.get('model_type')!r}, not {FusionCaptionerConfig.model_type!r}; "
            "give a captioner that this package trained."
        )
    try:
        FusionCaptionerConfig.from_dict(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    for file in JSON_FILES:
        if (folder / file).is_file():
            _read_object(folder / file)


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not valid JSON ({error}); save the captioner again.") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: is not a JSON object but {type(document).__name__}; save the captioner again.")
    return document


def _cannot_load(name: str, part: str, error: Exception) -> str:
    reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError | TypeError | AttributeError) else error
    if _is_folder(name):
        return f"{name}: its {part} cannot be loaded ({reason}); save or download the captioner again."
    return f"{name}: is no folder here, and its {part} cannot be loaded from the Hub ({reason}); check the name."


def _counted(names: list[str]) -> str:
    return (
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} (first: {names[0]}) {'have' if len(names) > 1 else 'has'}"
    )
