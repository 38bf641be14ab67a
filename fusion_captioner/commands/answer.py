"""`fusion-captioner answer`: images and a question in, JSON lines out; one bad image does not stop the others."""

import argparse

from fusion_captioner.commands.shared_flags import add_image_flags, check_at_least_one, check_texts

HELP = "answer a question about images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer a question about images in words; or choose one of several answers, with images or without.\n"
        "One JSON line per image on stdout."
    )
    add_image_flags(parser, "the captioner that answers, or with --choices of the multiple-choice model")
    parser.add_argument("--question", required=True, help="the question")
    parser.add_argument("--choices", nargs="+", metavar="CHOICE", help="the answers to choose from")


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 1 if some of the images could not be read, or 2 if none could."""
    from fusion_captioner.data.image_files import find_images
    from fusion_captioner.inference.predictors import AnswerChooser, AnswerWriter, Predictor, print_predictions
    from fusion_captioner.process_setup import keep_stderr_quiet

    _check(options)
    images = list(find_images(options.images))
    keep_stderr_quiet(reads_data=False)
    loading = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    predictor: Predictor
    if options.choices is None:
        predictor = AnswerWriter(options.model, options.question, **loading)
    else:
        predictor = AnswerChooser(options.model, options.question, options.choices, **loading)
    return print_predictions(predictor, images, options.batch_size, "looked at")


def _check(options: argparse.Namespace) -> None:
    check_at_least_one(options, "batch_size")
    check_texts(options, "question", "choices")
    if not options.question.strip():
        raise ValueError(f"--question ({options.question!r}) is empty; ask something.")
    choices = options.choices
    if choices is None:
        if not options.images:
            raise ValueError("there is no IMAGE that the question is about; give one, or --choices to choose from.")
    elif len(choices) < 2 or len(set(choices)) < len(choices) or not all(map(str.strip, choices)):
        raise ValueError(f"--choices ({', '.join(map(repr, choices))}) must be two different answers or more.")
