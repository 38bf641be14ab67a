"""A training run's settings, from YAML and flags: `task`, and sections `model`, `data`, `tokenizer` and `training`."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from fusion_captioner.data.arguments import (
    ChoiceDataArguments,
    DataArguments,
    LabelledDataArguments,
    PromptDataArguments,
    RowDataArguments,
)
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.training_arguments import (
    ClassificationTrainingArguments,
    FusionCaptionerTrainingArguments,
    GenerationTrainingArguments,
    HeadTrainingArguments,
    MultipleChoiceTrainingArguments,
    RetrievalTrainingArguments,
)

# What `training.stage` chooses: how the captioner is trained.
STAGES = {"cross_entropy": FusionCaptionerTrainingArguments, "self_critical": SelfCriticalArguments}
SECTIONS = ("model", "data", "tokenizer", "training")


@dataclass
class ModelArguments:
    """
    The model to train.

    Args:
        vision_model: folder or Hub name of a pretrained image encoder, with its preprocessing; unset: the encoder of
            `config.vision_config` with random weights.
        from_checkpoint: captioner to go on from, in place of a new one; its processor comes with it.
        preset: `"plain"` starts from `FusionCaptionerConfig.plain()`.
        image_size: side of the pictures in pixels, for an encoder without preprocessing of its own.
        resize_mode: `"squash"` or `"crop"`, for an encoder without preprocessing of its own.
        trust_remote_code: run the Python code of tokenizers and image processors that are not transformers' own.
        config: fields of `FusionCaptionerConfig`.
    """

    vision_model: str | None = None
    from_checkpoint: str | None = None
    preset: str | None = None
    image_size: int = 224
    resize_mode: str = "squash"
    trust_remote_code: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preset not in (None, "plain"):
            raise ValueError(f"`model.preset` ({self.preset!r}) must be 'plain' or unset.")
        if not isinstance(self.config, dict):
            raise ValueError(f"`model.config` ({self.config!r}) must hold fields, such as {{fusion_type: gated}}.")


@dataclass
class TokenizerArguments:
    """
    The tokenizer: `path` of one to take, or how one is trained on the captions; see `train_tokenizer`.
    """

    path: str | None = None
    kind: str = "wordpiece"
    vocab_size: int = 4000
    min_frequency: int = 2


@dataclass
class RunArguments:
    """All sections of a run."""

    model: ModelArguments
    data: DataArguments
    tokenizer: TokenizerArguments
    training: FusionCaptionerTrainingArguments

    def __post_init__(self) -> None:
        _check_augmentations(self.data, self.training)
        if self.data.streaming and self.training.max_steps <= 0:
            raise ValueError(
                f"`training.max_steps` ({self.training.max_steps}) must be positive with `data.streaming`: the length of "
                "a stream is not known; say how many steps to train."
            )


def _check_augmentations(data: DataArguments, training: HeadTrainingArguments) -> None:
    uncached = set(data.augmentations) - {"flip"}
    if uncached and data.feature_cache is not None and not training.trains_image_encoder:
        raise ValueError(
            f"`data.augmentations` ({data.augmentations}) change images, and with `data.feature_cache` and a frozen image "
            "encoder none is read; leave all but `flip` out, or unset the cache."
        )


@dataclass
class HeadRunArguments:
    """All sections of a run of another head than the captioner's; `task` is a key of `HEAD_SECTIONS`."""

    task: str
    model: ModelArguments
    data: RowDataArguments | DataArguments
    tokenizer: TokenizerArguments
    training: HeadTrainingArguments

    def __post_init__(self) -> None:
        is_regression = isinstance(self.data, LabelledDataArguments) and self.data.problem_type == "regression"
        if is_regression and self.training.metric_for_best_model == "macro_f1":
            # the default of the task, which numbers do not have
            self.training.metric_for_best_model = "pearson"
        if isinstance(self.data, DataArguments):
            _check_augmentations(self.data, self.training)
            if self.data.streaming:
                raise ValueError(f"`data.streaming` (True) is for captioning, and `task` is {self.task!r}; unset it.")
        if self.data.feature_cache is not None and self.training.trains_image_encoder:
            raise ValueError(
                f"`data.feature_cache` ({self.data.feature_cache}) holds features of a frozen image encoder, and "
                f"`training.train_image_encoder_from_step` ({self.training.train_image_encoder_from_step}) trains it; "
                "unset one of them."
            )


# What the sections `data` and `training` hold in the tasks other than captioning.
HEAD_SECTIONS: dict[str, tuple[type[RowDataArguments] | type[DataArguments], type[HeadTrainingArguments]]] = {
    "classification": (LabelledDataArguments, ClassificationTrainingArguments),
    "generation": (PromptDataArguments, GenerationTrainingArguments),
    "multiple_choice": (ChoiceDataArguments, MultipleChoiceTrainingArguments),
    "retrieval": (DataArguments, RetrievalTrainingArguments),
}
CAPTIONING = "captioning"


def read_run_arguments(path: str | Path, flags: Sequence[str] = ()) -> RunArguments | HeadRunArguments:
    """
    Read a YAML file and flags such as `--training.seed 3`; a flag wins. `task` chooses what is trained, captioning
    where it is left out.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for malformed YAML, an unknown section or field, or a value of the wrong type.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the YAML file of a recipe.")
    try:
        document = _read_yaml(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: must have the sections {', '.join(SECTIONS)}.")
    for keys, value in _flags(flags):
        _put(document, keys, value)
    if not sys.stderr.isatty() and isinstance(document.setdefault("training", {}), dict):
        document["training"].setdefault("disable_tqdm", True)  # the bar of a log file is noise
    task = document.pop("task", CAPTIONING)
    if task != CAPTIONING and (not isinstance(task, str) or task not in HEAD_SECTIONS):
        raise ValueError(f"`task` ({task!r}) must be one of {', '.join((CAPTIONING, *HEAD_SECTIONS))}.")
    unknown = sorted(set(document) - set(SECTIONS))
    if unknown:
        raise ValueError(f"`{unknown[0]}` is not a section; there are {', '.join(SECTIONS)}.")
    if task != CAPTIONING:
        data_kind, training_kind = HEAD_SECTIONS[task]
        return HeadRunArguments(
            task=task,
            model=_build(ModelArguments, "model", document),
            data=_build(data_kind, "data", document),
            tokenizer=_build(TokenizerArguments, "tokenizer", document),
            training=_build(training_kind, "training", document),
        )
    stage = (document.get("training") or {}).pop("stage", "cross_entropy")
    if stage not in STAGES:
        raise ValueError(f"`training.stage` ({stage!r}) must be one of {', '.join(STAGES)}.")
    return RunArguments(
        model=_build(ModelArguments, "model", document),
        data=_build(DataArguments, "data", document),
        tokenizer=_build(TokenizerArguments, "tokenizer", document),
        training=_build(STAGES[stage], "training", document),
    )


class _Loader(yaml.SafeLoader):
    """YAML whose only truth values are `true` and `false`, as in YAML 1.2: `eval_strategy: no` is a word."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (of the base class, without its truth values)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _flags(flags: Sequence[str]) -> list[tuple[list[str], Any]]:
    pairs: list[tuple[list[str], Any]] = []
    position = 0
    while position < len(flags):
        name, equals, value = flags[position].partition("=")
        if not name.startswith("--") or "." not in name:
            raise ValueError(f"{flags[position]!r} is not a flag of the form --SECTION.FIELD VALUE.")
        if not equals:
            position += 1
            if position == len(flags) or flags[position].startswith("--"):
                raise ValueError(f"{name} needs a value, as in {name} VALUE.")
            value = flags[position]
        position += 1
        try:
            pairs.append((name[2:].replace("-", "_").split("."), _read_yaml(value)))
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{name} ({value}) is not valid YAML; put it in quotes, as in '\"{value}\"'.") from error
    return pairs


def _put(document: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(document.get(key), dict):
            document[key] = {}
        document = document[key]
    document[keys[-1]] = value


# what a field is that takes no `null`, as dataclasses tell it: "float", or "<class 'float'>"
_NUMBERS = ("int", "float", "'int", "'float")


def _build(kind: Any, section: str, document: Mapping[str, Any]) -> Any:
    values = document.get(section) or {}
    if not isinstance(values, dict):
        raise ValueError(f"section `{section}` must hold fields, and is {values!r}.")
    known = {item.name: item for item in fields(kind) if item.init}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else "docs/training.md lists them."
            raise ValueError(f"`{section}.{name}` is not a field; {hint}")
        annotation = str(known[name].type)
        if value is None and known[name].default is not None and annotation.strip("<>'").split()[-1] in _NUMBERS:
            raise ValueError(f"`{section}.{name}` is null, and must be a number; leave it out for its default.")
        values[name] = _typed(f"{section}.{name}", value, annotation)
    return kind(**values)


def _typed(name: str, value: Any, annotation: str) -> Any:
    """YAML reads `1e-3` as text; a field of numbers takes it as the number that was meant."""
    if isinstance(value, str) and "float" in annotation:
        try:
            return float(value)
        except ValueError:
            if "str" not in annotation:
                raise ValueError(f"`{name}` ({value!r}) must be a number.") from None
    if annotation.removeprefix("<class '").removesuffix("'>").removesuffix(" | None") == "str" and not isinstance(
        value, str | None
    ):
        raise ValueError(f"`{name}` ({value!r}) must be text; put it in quotes.")
    for kind, expected in ((bool, "bool"), (int, "int")):
        plain = annotation.replace("<class '", "").replace("'>", "").removesuffix(" | None")
        if plain == expected and value is not None and not isinstance(value, kind):
            raise ValueError(f"`{name}` ({value!r}) must be {'true or false' if kind is bool else 'a whole number'}.")
    return value
