"""`fusion-captioner classify`: images and a text in, JSON lines out; one bad image does not stop the others."""

import argparse

from fusion_captioner.commands.shared_flags import add_image_flags, check_at_least_one, check_texts

HELP = "label images, a text, or both"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Label images, together with a text where one is given; or label the text alone.\n"
        "One JSON line per image on stdout."
    )
    add_image_flags(parser, "the classifier")
    parser.add_argument("--text", help="the text that belongs to the images, or the text to label")


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 1 if some of the images could not be read, or 2 if none could."""
    from fusion_captioner.data.image_files import find_images
    from fusion_captioner.inference.predictors import Classifier, print_predictions
    from fusion_captioner.process_setup import keep_stderr_quiet

    check_texts(options, "text")
    if options.text is not None and not options.text.strip():
        raise ValueError(f"--text ({options.text!r}) is empty; give a text, or leave it out.")
    if not options.images and options.text is None:
        raise ValueError("there is neither IMAGE nor --text; give one of them, or both.")
    check_at_least_one(options, "batch_size")
    images = list(find_images(options.images))
    keep_stderr_quiet(reads_data=False)
    classifier = Classifier(
        options.model, options.text, revision=options.revision, trust_remote_code=options.trust_remote_code
    )
    return print_predictions(classifier, images, options.batch_size, "classified")
