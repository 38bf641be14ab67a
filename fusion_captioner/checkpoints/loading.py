"""Loading a captioner and its processor for the commands. A checkpoint may come from anybody: each fault of it becomes
one line that names it, none of its code is run, and it gets no more memory than its files justify."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from transformers.initialization import no_init_weights
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import get_checkpoint_shard_files

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.files import expanded
from fusion_captioner.given_values import check_length_penalty
from fusion_captioner.image_encoder import FILES_HOLD, limited_weights
from fusion_captioner.image_loading import check_processed_size
from fusion_captioner.modeling_fusion_captioner import (
    FusionCaptionerForConditionalGeneration,
    FusionCaptionerPreTrainedModel,
)
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor

# Any count of layers above this is an attack or a mistake: some backbones compute with it before they build a layer.
MAX_LAYERS = 10_000
MAX_LABELS = 1_000_000
_LAYER_KEYS = re.compile("layer|depth|repeat|block|stage")

# Settings of generation that are numbers.
GENERATION_TYPES: dict[str, Any] = {
    **dict.fromkeys(("max_new_tokens", "max_length", "min_new_tokens", "min_length", "num_beams", "top_k"), int),
    "num_return_sequences": int,
    **dict.fromkeys(("temperature", "top_p", "length_penalty", "repetition_penalty"), int | float),
}

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
    trust_remote_code: bool = False,
    **config_fields: Any,
) -> tuple[Head, FusionCaptionerProcessor]:
    """
    Load a model, in evaluation mode, and its processor from a folder or the Hub.

    Args:
        head: class of the model.
        name, revision: as for `from_pretrained`.
        may_lack_weights: weights that the checkpoint lacks are random, with a warning of transformers, so that
            training can start from it with another head. By default missing weights are an error.
        trained_to: what such a model does, for the message about missing weights.
        trust_remote_code: run the Python code of a tokenizer that is not transformers' own.
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
        limit = FILES_HOLD.set(_held(_weight_files(name, revision)))
        try:
            if may_lack_weights:  # `config_fields` may ask for more than the files hold, but not the saved config
                with torch.device("meta"), no_init_weights(), limited_weights():
                    FusionCaptionerForConditionalGeneration(
                        FusionCaptionerConfig.from_pretrained(name, revision=revision)
                    )
                FILES_HOLD.set(None)
            with warnings.catch_warnings():
                # of a pickle in an unusual form; what is wrong with it is one line below
                warnings.filterwarnings("ignore", category=UserWarning, module="torch._weights_only_unpickler")
                loaded: Any = head.from_pretrained(
                    name,
                    revision=revision,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    trust_remote_code=False,
                    **config_fields,
                )
        finally:
            FILES_HOLD.reset(limit)
    except SafetensorError as error:
        raise ValueError(f"{name}: its weights are damaged ({error}); save or download it again.") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # parsers of weights raise UnpicklingError, KeyError, EOFError, ...
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
    _check_generation(name, model)
    processor = _load_processor(name, revision, trust_remote_code)
    if len(processor.tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{name}: its tokenizer has {len(processor.tokenizer)} tokens, and its model {model.config.vocab_size} "
            "(`vocab_size`); give the tokenizer that the model was trained with."
        )
    return model.eval(), processor


def check_finite(model: torch.nn.Module, name: str) -> None:
    """
    Refuse weights that are not finite: such a model writes no captions and gives no reason.

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
            f"{name}: {_counted(sorted(wrong))} weights that are not finite; train it again from an earlier "
            f"checkpoint."
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
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise OSError(_cannot_load(name, "config", error)) from error


def load_processor(name: str, revision: str = "main", trust_remote_code: bool = False) -> FusionCaptionerProcessor:
    """
    The processor of a captioner in a folder or on the Hub.

    Raises:
        FileNotFoundError, ValueError, OSError: as [`load_captioner`].
    """
    check_captioner(name)
    return _load_processor(name, revision, trust_remote_code)


def _load_processor(name: str, revision: str, trust_remote_code: bool) -> FusionCaptionerProcessor:
    try:
        processor = FusionCaptionerProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code
        )
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # parsers of tokenizers raise KeyError, TypeError, plain Exception, ...
        raise OSError(_cannot_load(name, "processor", error)) from error
    if not isinstance(limit := processor.tokenizer.model_max_length, int | float):
        raise ValueError(f"{name}: `model_max_length` ({limit!r:.60}) of its tokenizer must be a number of tokens.")
    if processor.image_processor.do_resize:
        check_processed_size(processor.image_processor.to_dict()["size"], name)
    return processor


def check_captioner(name: str) -> None:
    """
    Raise what [`load_captioner`] would raise about the JSON files of a folder; takes no time. Names on the Hub pass.
    """
    if not _is_folder(name):
        return
    folder = expanded(name)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name}: has no config.json; give the folder of a saved captioner, or a Hub name.")
    config = _read_object(folder / "config.json")
    if config.get("model_type") != FusionCaptionerConfig.model_type:
        raise ValueError(
            f"{name}: is a checkpoint of type {config.get('model_type')!r}, not {FusionCaptionerConfig.model_type!r}; "
            "give a captioner that this package trained."
        )
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(each, str) for each in architectures):
        raise ValueError(f"{folder / 'config.json'}: `architectures` ({architectures!r:.60}) must be a list of names.")
    _check_counts(folder / "config.json", config)
    try:
        FusionCaptionerConfig.from_dict(config)
    except Exception as error:  # configs of backbones compute with values of any type
        raise ValueError(f"{folder / 'config.json'}: {reason_of(error)}") from error
    # transformers ignores a damaged `generation_config.json` silently, and reports others without their names
    documents = {file.name: _read_object(file) for file in sorted(folder.glob("*.json"))}
    _check_numbers(folder / "generation_config.json", documents.get("generation_config.json", {}))


def _is_folder(name: str) -> bool:
    return expanded(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # of JSON and of UTF-8; nested too deep; no ordinary file
        raise ValueError(f"{path}: is not valid JSON ({error}); save the captioner again.") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: is not a JSON object but {type(document).__name__}; save the captioner again.")
    return document


def _check_counts(path: Path, config: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a config describes more layers or labels than any model has.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_counts(path, value)
            continue
        counts = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
        most = MAX_LABELS if key == "num_labels" else MAX_LAYERS if _LAYER_KEYS.search(key) else None
        if most is not None and sum(counts) > most:
            raise ValueError(f"{path}: `{key}` ({str(value)[:60]}) must be at most {most:,} in all; correct it.")


def _held(files: Iterable[str]) -> tuple[int, int] | None:
    """Numbers and tensors in files of weights, at most; `None` where there are none."""
    elements, weights = 0, 0
    for file in files:
        if not file.endswith(".safetensors"):  # at least a byte for each number, and a name for each tensor
            elements += Path(file).stat().st_size
            weights += Path(file).stat().st_size // 64
            continue
        with safe_open(file, "pt") as tensors:
            shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118 (it is no dict)
        elements += sum(map(prod, shapes))
        weights += len(shapes)
    return (elements, weights) if weights else None


def _weight_files(name: str, revision: str) -> list[str]:
    """The files of a checkpoint that hold its weights, all shards."""
    folder = expanded(name)
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        return [str(file) for file in files]
    # errors of the Hub are reported when the model is loaded
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if file := cached_file(name, "model.safetensors", revision=revision, **missing):
        return [file]
    if index := cached_file(name, "model.safetensors.index.json", revision=revision, **missing):
        return get_checkpoint_shard_files(name, index, revision=revision)[0]
    file = cached_file(name, "pytorch_model.bin", revision=revision, **missing)
    return [] if file is None else [file]


def _check_generation(name: str, model: Any) -> None:
    """
    Raises:
        ValueError: token ids or settings of generation are of another type, or outside the vocabulary.
    """
    settings = getattr(model, "generation_config", None)
    for file, holder in (("config.json", model.config), ("generation_config.json", settings)):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(holder, key, None)
            for token in value if isinstance(value, list) and value else [value]:
                if token is not None and (type(token) is not int or not 0 <= token < model.config.vocab_size):
                    raise ValueError(
                        f"{name}: `{key}` ({value!r}) of its {file} must be below `vocab_size` "
                        f"({model.config.vocab_size}); correct it."
                    )
    if settings is not None:
        _check_numbers(f"{name}: its generation_config.json", settings.to_dict())


def _check_numbers(file: str | Path, settings: Mapping[str, Any]) -> None:
    for key, kinds in GENERATION_TYPES.items():
        value = settings.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ValueError(f"{file}: `{key}` ({value!r}) must be a number; correct it.")
    if (penalty := settings.get("length_penalty")) is not None:
        check_length_penalty(penalty, f"{file}: `length_penalty`")


def _cannot_load(name: str, part: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{name}: its {part} needs Python code of its own, which is not run; read the code, and add "
            "--trust-remote-code if you trust it."
        )
    reason = reason_of(error)
    if _is_folder(name):
        return f"{name}: its {part} cannot be loaded ({reason}); save or download the captioner again."
    return f"{name}: is no folder here, and its {part} cannot be loaded from the Hub ({reason}); check the name."


def reason_of(error: Exception) -> str:
    """Why a file cannot be loaded, without what a library advises that would be unsafe."""
    if isinstance(error, UnpicklingError):
        # torch's own text advises to run the code of the file
        return "a pickle that holds code, or no weights; it was not run"
    if isinstance(error, OSError | ValueError | RuntimeError) and str(error):
        return str(error)
    return f"{type(error).__name__} {error}".strip()


def _counted(names: list[str]) -> str:
    return (
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} (first: {names[0]}) {'have' if len(names) > 1 else 'has'}"
    )
