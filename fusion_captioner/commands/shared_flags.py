"""Flags that several commands have, and checks of their values."""

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.given_values import check_length_penalty, check_new_tokens, check_text

if TYPE_CHECKING:
    from fusion_captioner.serving.photo_search import PhotoSearch
    from fusion_captioner.serving.served_captioner import ServedCaptioner


# Those of `fusion_captioner.inference.runtimes` as well, which a parser does not wait for.
RUNTIMES = ["torch", "onnx", "openvino", "openvino+onnx"]


def add_hub_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", default="main", help="branch, tag or commit of a Hub model (default: main)")
    add_trust_flag(parser)


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code of the model's tokenizer, which can do anything here (default: refuse it)",
    )


def add_image_flags(parser: argparse.ArgumentParser, model: str) -> None:
    """Flags of a command that looks at images one by one; `model` describes what it runs."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder or URL")
    parser.add_argument("--model", required=True, type=checkpoint_name, help=f"folder or Hub name of {model}")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch (default: 8)")
    add_hub_flags(parser)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how captions are read; see [`data_options`]."""
    parser.add_argument("--layout", default="auto", help="layout of the data (default: recognised by its files)")
    add_column_flags(parser)
    parser.add_argument(
        "--val-fraction", type=float, metavar="F", help="part of the images that is the split val, as in training"
    )
    parser.add_argument(
        "--allow-urls", action="store_true", help="fetch images that tables name by URLs of public servers"
    )


def add_column_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say where the images and captions of rows are; see [`data_options`]."""
    parser.add_argument("--images-folder", metavar="FOLDER", help="folder of the images, where it is not found")
    parser.add_argument(
        "--image-column", metavar="COLUMN", help="column that names the images (default: a usual name)"
    )
    parser.add_argument(
        "--caption-column", nargs="+", metavar="COLUMN", help="columns of the captions (default: a usual name)"
    )


def data_options(options: argparse.Namespace) -> dict[str, object]:
    """The fields of `CaptionSource` whose flags were given."""
    names = ("layout", "images_folder", "image_column", "caption_column", "val_fraction", "allow_urls")
    return {name: value for name in names if (value := getattr(options, name, None)) not in (None, "auto", False)}


def add_length_penalty(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--length-penalty",
        type=float,
        help="exponent of the length that beam search divides scores by; lower values give shorter captions (default: "
        "the captioner's own)",
    )


def check_search(options: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: `--length-penalty` or `--max-new-tokens` is given and out of range.
    """
    if options.max_new_tokens is not None:
        check_new_tokens(options.max_new_tokens, "--max-new-tokens")
    if options.length_penalty is not None:
        check_length_penalty(options.length_penalty, "--length-penalty")


def add_no_repeat_ngram(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--no-repeat-ngram",
        type=int,
        metavar="N",
        help="no sequence of N tokens comes twice in a caption (default: the captioner's own)",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        help="on torch, the type of what is computed once per image; auto takes the one that is faster here (default: "
        "auto)",
    )


def add_language(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--language",
        metavar="CODE",
        help="language of the captions, such as zh, of a captioner that knows several (default: its first)",
    )


def check_at_least_one(options: argparse.Namespace, *names: str) -> None:
    """
    Raises:
        ValueError: a flag that is given is below 1.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} ({value}) must be at least 1.")


def check_texts(options: argparse.Namespace, *names: str) -> None:
    """
    Raises:
        ValueError: a text of a flag, or one of several, is not UTF-8.
    """
    for name in names:
        value = getattr(options, name)
        for text in value if isinstance(value, list) else [value]:
            check_text(text or "", f"--{name.replace('_', '-')}")


def require_extra(extra: str, *modules: str) -> None:
    """
    Args:
        extra: of the package, which installs the modules.

    Raises:
        ImportError: a module is not installed; names it, and the command that installs it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"this command needs {', '.join(missing)}; install the extra with: pip install 'fusion-captioner[{extra}]'"
        )


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a command that keeps a captioner loaded; see [`load_to_serve`]."""
    parser.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        type=checkpoint_name,
        help="folder or Hub name of the captioner, or folder of an export (default: bundled, the one in the package)",
    )
    parser.add_argument("--runtime", choices=RUNTIMES, help="runtime of the model (default: the one it is for)")
    parser.add_argument(
        "--prompts",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the captioner was trained with questions (default: as the folder of the model says)",
    )
    parser.add_argument("--beams", type=int, default=3, help="beam size; 1 is greedy (default: 3)")
    parser.add_argument("--max-new-tokens", type=int, default=30, help="maximum length in tokens (default: 30)")
    add_language(parser)
    add_hub_flags(parser)


def load_to_serve(options: argparse.Namespace, name: str | None = None) -> "ServedCaptioner":
    """The captioner that the flags name; `name` is what clients call it."""
    from fusion_captioner.serving.served_captioner import load_served_captioner

    check_new_tokens(options.max_new_tokens, "--max-new-tokens")
    return load_served_captioner(
        options.model,
        name=name,
        takes_prompts=options.prompts,
        beams=options.beams,
        max_new_tokens=options.max_new_tokens,
        language=options.language,
        revision=options.revision,
        runtime=options.runtime,
        trust_remote_code=options.trust_remote_code,
    )


def open_index(options: argparse.Namespace) -> "PhotoSearch | None":
    """The index that `--index` names, if it is given; torch is loaded only then."""
    if options.index is None:
        return None
    from fusion_captioner.process_setup import keep_stderr_quiet
    from fusion_captioner.serving.photo_search import PhotoSearch

    keep_stderr_quiet(reads_data=True)
    return PhotoSearch(options.index, options.trust_remote_code)
