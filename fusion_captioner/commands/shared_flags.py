"""Flags that several commands have, and checks of their values."""

import argparse


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
    parser.add_argument("--model", required=True, help=f"folder or Hub name of {model}")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch (default: 8)")
    add_hub_flags(parser)


def add_length_penalty(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--length-penalty",
        type=float,
        help="exponent of the length that beam search divides scores by; lower values give shorter captions (default: "
        "the captioner's own)",
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
