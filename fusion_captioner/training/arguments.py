"""The settings of a training run, read from YAML and flags: `task`, and sections `model`, `data`, `tokenizer` and
`training`. `data` and `training` are described with each task, see `tasks/`."""

import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.training.recipes import find_recipe
from fusion_captioner.training.tasks import TASKS

SECTIONS = ("model", "data", "tokenizer", "training")
DEFAULT_TASK = next(iter(TASKS))
# Characters of a name, or of what a reader says, in messages.
MAX_SHOWN = 200


@dataclass
class ModelArguments:
    """
    The model to train.

    Args:
        vision_model: folder or Hub name of a pretrained image encoder, with its preprocessing; unset: the encoder of
            `config.vision_config` with random weights.
        from_checkpoint: model to start from, instead of a new one; its processor is taken, too. `bundled` is the
            captioner that comes with the package.
        preset: `"plain"` starts from `FusionCaptionerConfig.plain()`.
        image_size: side of the images in pixels, for an encoder without preprocessing of its own.
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
    config: dict[str, Any] = field(default_factory=dict, metadata={"example": "{fusion_type: gated}"})

    def __post_init__(self) -> None:
        if self.preset not in (None, "plain"):
            raise ValueError(f"`model.preset` ({self.preset!r}) must be 'plain' or unset.")
        if self.from_checkpoint is not None:
            self.from_checkpoint = checkpoint_name(self.from_checkpoint)


@dataclass
class TokenizerArguments:
    """
    The tokenizer: the `path` of an existing one, or how a new one is trained on the captions; see `train_tokenizer`.
    """

    path: str | None = None
    kind: str = "wordpiece"
    vocab_size: int = 4000
    min_frequency: int = 2


@dataclass
class RunArguments:
    """All sections of a run.

    Args:
        model, tokenizer: as above.
        data, training: of the classes that the task names.
        task: a key of [`TASKS`].

    Raises:
        ValueError: `data` and `training` do not fit together; the message names the fields.
    """

    model: ModelArguments
    data: Any
    tokenizer: TokenizerArguments
    training: Any
    task: str = DEFAULT_TASK

    def __post_init__(self) -> None:
        TASKS[self.task].check(self.data, self.training)


def read_run_arguments(path: str | Path, flags: Sequence[str] = ()) -> RunArguments:
    """
    Read a recipe of the package, or a YAML file, and flags such as `--training.seed 3`, which override the file.

    Raises:
        FileNotFoundError: there is no such recipe or file.
        ValueError: malformed YAML, a key that is there twice, an alias, an unknown section or field, or a value of the
            wrong type.
    """
    file = find_recipe(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not valid YAML ({error}).") from error
    try:
        document = _read_yaml(text) or {}
    except _MalformedYaml as error:
        place = f", line {error.line}" if error.line else ""
        raise ValueError(f"{path}{place}: is not valid YAML ({error}).") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: must have the sections {', '.join(SECTIONS)}.")
    for keys, value in _flags(flags):
        _put(document, keys, value)
    name = document.pop("task", DEFAULT_TASK)
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"`task` ({_shown(name)}) must be one of {', '.join(TASKS)}.")
    task = TASKS[name]
    for section, values in document.items():
        if section not in SECTIONS:
            raise ValueError(f"`{_cut(section)}` is not a section; the sections are {', '.join(SECTIONS)}.")
        if not isinstance(values, dict | None):
            raise ValueError(f"section `{section}` must hold fields, and is {_shown(values)}.")
    training = dict(document.get("training") or {})
    if not sys.stderr.isatty():
        training.setdefault("disable_tqdm", True)  # progress bars are noise in a log file
    training_arguments = task.training_arguments
    if task.stages:
        stage = training.pop("stage", next(iter(task.stages)))
        if not isinstance(stage, str) or stage not in task.stages:
            raise ValueError(f"`training.stage` ({_shown(stage)}) must be one of {', '.join(task.stages)}.")
        training_arguments = task.stages[stage]
    return RunArguments(
        task=name,
        model=_section(ModelArguments, "model", document.get("model") or {}),
        data=_section(task.data_arguments, "data", document.get("data") or {}),
        tokenizer=_section(TokenizerArguments, "tokenizer", document.get("tokenizer") or {}),
        training=_section(training_arguments, "training", training),
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.2 in two points: its only truth values are `true` and `false`, so that `eval_strategy: no` is a word; and
    `1e-3` is a number. A key that is there twice is an error, and so is an alias, with which a few lines make values
    of any size. What a constructor raises names the line."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (of the base class, without its truth values)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.get_event()
            problem = f"aliases such as *{alias.anchor} are not read; write the value itself, or put text in quotes"
            raise ComposerError(None, None, problem, alias.start_mark)
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # before `<<` adds the keys of other mappings, which may be the same
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # which no dict takes as a key
            # `<<` and `=` are keys without constructor
            is_sign = key_node.tag.endswith((":merge", ":value"))
            key = key_node.value if is_sign else self.construct_object(key_node, deep=True)
            if key in lines:
                problem = f"the key {_shown(key)} is there twice, first in line {lines[key]}; keep one of them"
                raise ConstructorError(None, None, problem, key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # raises where it has too many digits to be shown
            return value
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{_shown(node.value)} cannot be read as {kind}; put it in quotes if it is text"
            raise ConstructorError(None, None, problem, node.start_mark) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class _MalformedYaml(ValueError):
    """
    Args:
        problem: what is wrong.
        line: where, from 1; None: it cannot be told.
    """

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(_cut(problem))
        self.line = line


def _read_yaml(text: str) -> Any:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise _MalformedYaml(problem, error.problem_mark.line + 1 if error.problem_mark else None) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _MalformedYaml(f"the character {chr(error.character)!r} is not allowed", line) from error
    except RecursionError as error:
        raise _MalformedYaml("nested too deep", None) from error
    except (ValueError, OverflowError) as error:  # the scanner's, of escaped characters and of its directives
        raise _MalformedYaml(str(error), loader.line + 1 if loader else None) from error


def _cut(text: object) -> str:
    text = str(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _shown(value: Any) -> str:
    """A value for messages; of large ones no more than the beginning is looked at."""
    return reprlib.aRepr.repr1(value, 2)


def _flags(flags: Sequence[str]) -> list[tuple[list[str], Any]]:
    """Keys and value of each flag."""
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
        except _MalformedYaml as error:
            raise ValueError(
                f"{_cut(name)} ({_cut(value)}) is not valid YAML ({error}); put text in quotes, as in "
                f"'\"{_cut(value)}\"'."
            ) from error
    return pairs


def _put(document: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(document.get(key), dict):
            document[key] = {}
        document = document[key]
    document[keys[-1]] = value


# Values are checked as they are: text is no number, and a number is no text.
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _section(kind: Any, section: str, values: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `kind`, after its fields are known and have values of their types."""
    known = {item.name: item for item in fields(kind) if item.init}
    types = get_type_hints(kind)
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            hint = f"did you mean `{near[0]}`?" if near else "docs/training.md lists them."
            raise ValueError(f"`{section}.{_cut(name)}` is not a field; {hint}")
        try:
            TypeAdapter(types[name], config=_STRICT).validate_python(value)
        except ValidationError as error:
            expected = _expected(types[name], known[name].metadata.get("example", "{name: value}"))
            if value is None:
                message = f"`{section}.{name}` is null, and must {expected}; leave it out for its default."
            else:
                message = f"`{section}.{name}` ({_shown(value)}) must {expected}."
            raise ValueError(message) from error
    return kind(**values)


_EXPECTED = {
    bool: "be true or false",
    int: "be a whole number",
    float: "be a number",
    str: "be text; put it in quotes",
    list: "be a list",
}


def _expected(kind: Any, example: str) -> str:
    """What a value of a type must be, in words; `example` is one of a field that holds fields."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return ", or ".join(dict.fromkeys(_expected(part, example) for part in parts if part is not NoneType))
    if origin is Literal:
        return f"be one of {', '.join(map(repr, parts))}"
    if origin is dict:
        return f"hold fields, such as {example}"
    if origin is list and parts[0] is str:
        return "be a list of texts"
    return _EXPECTED.get(origin, f"be a {getattr(origin, '__name__', origin)}")
