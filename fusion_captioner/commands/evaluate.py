"""`fusion-captioner evaluate`: scores of a model on a split, as JSON, and for captioners also as a page."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from fusion_captioner import __version__
from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.commands.shared_flags import (
    add_data_flags,
    add_dtype,
    add_hub_flags,
    add_language,
    add_length_penalty,
    add_no_repeat_ngram,
    check_at_least_one,
    check_search,
    data_options,
)
from fusion_captioner.files import expanded

if TYPE_CHECKING:
    from fusion_captioner.data.annotated_images import AnnotatedImage, SkippedExample

HELP = "score a model on a split"
BEAMS = [1, 3]
MAX_NEW_TOKENS = 30
# Flags of a model, for which a file of captions has no use.
MODEL_FLAGS = (
    "beams",
    "length_penalty",
    "no_repeat_ngram",
    "language",
    "dtype",
    "max_new_tokens",
    "as_captioner",
    "trust_remote_code",
)
# Flags that are about generated captions, and for captioners only.
CAPTION_FLAGS = (
    "beams",
    "max_new_tokens",
    "length_penalty",
    "no_repeat_ngram",
    "language",
    "dtype",
    "meteor",
    "tokenizer",
    "captions",
    "report",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Caption every image of a split, greedily and with beams, and score the captions: CIDEr-D, BLEU, ROUGE-L and\n"
        "METEOR; the share of captions that are unique and that break off; the number of words used. A model of\n"
        "another task gets the scores of its task, on all inputs and on each modality alone. Prints JSON on stdout.\n"
        "With --predictions, the captions of a file are scored, and no model is needed."
    )
    parser.add_argument(
        "model",
        nargs="?",
        type=checkpoint_name,
        help="folder or Hub name of the model; bundled: the captioner in the package",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="score the captions of a file instead of a model's: COCO's results format, or what caption --out writes",
    )
    parser.add_argument(
        "--source",
        required=True,
        help="data: a folder or file with captions, as in training, or a Hub name; docs/data.md has the layouts",
    )
    add_data_flags(parser)
    parser.add_argument("--split", default="val", help="split to score (default: val)")
    parser.add_argument("--beams", type=int, nargs="+", help="beam sizes; 1 is greedy (default: 1 3)")
    add_length_penalty(parser)
    add_no_repeat_ngram(parser)
    add_language(parser)
    add_dtype(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument("--max-new-tokens", type=int, help="maximum length of a caption in tokens (default: 30)")
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N images, or rows, only")
    parser.add_argument(
        "--meteor", action="store_true", help="compute METEOR 1.5 as well (needs Java and pycocoevalcap)"
    )
    parser.add_argument(
        "--tokenizer",
        choices=["auto", "words", "characters", "whitespace", "jieba"],
        help="tokenizer of the scores; auto serves every language (default: auto)",
    )
    parser.add_argument("--captions", metavar="FILE", help="write the captions to a file, as JSON lines")
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page: the scores, and the best and worst captions of the last beam size, with their images",
    )
    parser.add_argument(
        "--as-captioner", action="store_true", help="score the captions of a model that answers questions as well"
    )
    parser.add_argument("--skip-bad-images", action="store_true", help="skip and count images that cannot be read")
    add_hub_flags(parser)


def run(options: argparse.Namespace) -> int:
    """
    Raises:
        ValueError, OSError: a flag, the model or the data are wrong; as far as possible, before anything is computed.
    """
    from fusion_captioner.printing import print_log

    print_log(logging.INFO)
    if options.predictions is None and options.model is None:
        raise ValueError("no MODEL is given; name one, or give a file of captions with --predictions.")
    with _locked_outputs(options):
        if options.predictions is not None:
            return _evaluate_predictions(options)
        from fusion_captioner.process_setup import keep_stderr_quiet
        from fusion_captioner.training.task_file import is_captioner

        keep_stderr_quiet(reads_data=True)
        _check(options)
        if options.as_captioner or is_captioner(options.model, options.revision):
            return _evaluate_captioner(options)
        return _evaluate_task(options)


def _check(options: argparse.Namespace) -> None:
    from fusion_captioner.checkpoints.loading import check_captioner

    check_at_least_one(options, "batch_size", "max_new_tokens", "no_repeat_ngram", "limit")
    check_search(options)
    sizes = options.beams or BEAMS
    for beams in sizes:
        if beams < 1:
            raise ValueError(f"--beams ({beams}) must be at least 1; 1 is greedy.")
        if sizes.count(beams) > 1:
            raise ValueError(f"--beams ({' '.join(map(str, sizes))}) names {beams} twice; name it once.")
    check_captioner(options.model)
    if options.source.startswith((".", "/", "~")) and not expanded(options.source).exists():
        # before the Hub is asked for the model
        raise FileNotFoundError(f"--source ({options.source}): no such file or folder; check the path.")


@contextmanager
def _locked_outputs(options: argparse.Namespace) -> Iterator[None]:
    """Checks what is written and what it needs, before anything is computed, and keeps other runs from writing it."""
    from fusion_captioner.file_locks import lock_output
    from fusion_captioner.files import check_output_file
    from fusion_captioner.metrics.meteor_java import find_meteor_jar
    from fusion_captioner.metrics.tokenization import find_tokenizer

    if options.report and options.report == options.captions:
        raise ValueError(f"--report and --captions are both {options.report}; name two files.")
    outputs = {f"--{name}": path for name in ("captions", "report") if (path := getattr(options, name)) is not None}
    for flag, path in outputs.items():
        check_output_file(path, flag)
    if options.meteor:
        find_meteor_jar()
    if options.tokenizer is not None:
        find_tokenizer(options.tokenizer, "--tokenizer")
    with ExitStack() as locks:
        for flag, path in outputs.items():
            locks.enter_context(lock_output(path, flag))
        yield


def _evaluate_predictions(options: argparse.Namespace) -> int:
    """Returns 0, or 1 if images of the split have no caption."""
    from fusion_captioner.data.caption_source import CaptionSource
    from fusion_captioner.data.references import read_references
    from fusion_captioner.evaluation.caption_predictions import read_predictions
    from fusion_captioner.evaluation.scored_captions import score_by_setting
    from fusion_captioner.files import write_text
    from fusion_captioner.printing import json_line, print_json, print_note

    if options.model is not None:
        raise ValueError(f"both a model ({options.model}) and --predictions are given; leave one of them out.")
    for flag in MODEL_FLAGS:
        if getattr(options, flag):
            raise ValueError(
                f"--{flag.replace('_', '-')} is for a model, and --predictions scores a file; leave it out."
            )
    check_at_least_one(options, "limit")
    skipped: list[SkippedExample] = []
    fields: dict[str, Any] = {"skip_bad_images": options.skip_bad_images, **data_options(options)}
    source = CaptionSource(options.source, **fields)
    splits = read_references(source, skipped)
    _check_split(options, splits)
    images = splits[options.split][: options.limit]
    predictions = read_predictions(options.predictions, images)
    references = {image.image_id: image.captions for image in images}
    scores = score_by_setting(
        predictions.captions, references, meteor=options.meteor, tokenizer=options.tokenizer or "auto"
    )
    about = {
        "predictions": options.predictions,
        "source": options.source,
        "split": options.split,
        "images": len(scores.captions),
        "images_without_caption": len(predictions.without_caption),
        "fusion_captioner": __version__,
    }
    try:
        if options.captions:
            write_text(options.captions, "".join(f"{json_line(line)}\n" for line in scores.lines))
        if options.report:
            from fusion_captioner.evaluation.report import report_of_split

            write_text(options.report, report_of_split(about, scores, _as_rows(images)))
    finally:
        print_json(about | scores.settings, indent=2)
    if unknown := predictions.number_of_unknown:
        print_note(
            f"{options.predictions}: {unknown} images are not in the split {options.split!r} and are not scored, such "
            f"as {', '.join(predictions.unknown)}"
        )
    if missing := predictions.without_caption:
        print_note(
            f"{options.predictions}: {len(missing)} of {len(images)} images have no caption and are not scored, such "
            f"as {', '.join(missing[:3])}"
        )
    return 1 if missing else 0


def _as_rows(images: "list[AnnotatedImage]") -> Any:
    import datasets

    return datasets.Dataset.from_list(
        [
            {"image": {"path": image.path, "bytes": None}, "captions": image.captions, "image_id": image.image_id}
            for image in images
        ]
    )


def _check_split(options: argparse.Namespace, splits: Any) -> None:
    if not splits:
        raise ValueError(f"--source ({options.source}): has no images with captions.")
    if options.split not in splits:
        hint = " (--val-fraction 0.1 makes one)" if options.split == "val" and "train" in splits else ""
        raise ValueError(
            f"--split ({options.split!r}) is not in {options.source}{hint}; there are {', '.join(splits)}."
        )


def _evaluate_captioner(options: argparse.Namespace) -> int:
    from fusion_captioner.checkpoints.loading import load_captioner
    from fusion_captioner.evaluation.report import report_of_split
    from fusion_captioner.evaluation.split_scores import score_split
    from fusion_captioner.files import write_text
    from fusion_captioner.inference.fused_convolutions import quicken_encoder
    from fusion_captioner.printing import json_line, print_json

    rows, skipped = _rows(options)
    model, processor = load_captioner(options.model, options.revision, trust_remote_code=options.trust_remote_code)
    dtype = quicken_encoder(model, options.dtype or "auto")
    max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
    asked = {"length_penalty": options.length_penalty, "no_repeat_ngram_size": options.no_repeat_ngram}
    scores = score_split(
        model,
        processor,
        rows,
        options.beams or BEAMS,
        meteor=options.meteor,
        tokenizer=options.tokenizer or "auto",
        language=options.language,
        batch_size=options.batch_size,
        skip_bad_images=options.skip_bad_images,
        max_new_tokens=max_new_tokens,
        **{name: value for name, value in asked.items() if value is not None},
    )
    about = {
        "model": options.model,
        "source": options.source,
        "split": options.split,
        "images": len(scores.captions),
        "skipped_images": len({example.image_id for example in skipped}) + len(rows) - len(scores.captions),
        "max_new_tokens": max_new_tokens,
        "image_encoder_computes_in": str(dtype).removeprefix("torch."),
        "fusion_captioner": __version__,
    }
    try:
        if options.captions:
            write_text(options.captions, "".join(f"{json_line(line)}\n" for line in scores.lines))
        if options.report:
            write_text(options.report, report_of_split(about, scores, rows))
    finally:
        # also where the disk was full, since it took long
        print_json(about | scores.settings, indent=2)
    return 0


def _rows(options: argparse.Namespace) -> tuple[Any, "list[SkippedExample]"]:
    """The rows to score, and what of their split cannot be read."""
    from fusion_captioner.data.caption_datasets import load_caption_dataset

    skipped: list[SkippedExample] = []
    splits = load_caption_dataset(
        options.source, skip_bad_images=options.skip_bad_images, skipped=skipped, **data_options(options)
    )
    _check_split(options, splits)
    rows = splits[options.split]
    if options.limit is not None:
        rows = rows.select(range(min(options.limit, len(rows))))
    return rows, [example for example in skipped if example.split == options.split and example.is_bad_file]


def _evaluate_task(options: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from transformers import PrinterCallback

    from fusion_captioner.checkpoints.loading import load_config, load_head
    from fusion_captioner.printing import print_json
    from fusion_captioner.training.task_file import read_task
    from fusion_captioner.training.tasks import TASKS

    for flag in CAPTION_FLAGS:
        if getattr(options, flag):
            raise ValueError(
                f"--{flag.replace('_', '-')} is for captioners, and {options.model} is scored by its task; leave it "
                f"out, or add --as-captioner where the model captions as well."
            )
    changes = {"source": options.source, "skip_bad_images": options.skip_bad_images, **data_options(options)}
    name, data = read_task(options.model, options.revision, **changes)
    task = TASKS[name](data, load_config(options.model, options.revision))
    rows = task.load_split(options.split, options.limit)
    model, processor = load_head(
        task.model_class,
        options.model,
        options.revision,
        trained_to=task.trained_to,
        trust_remote_code=options.trust_remote_code,
    )
    with TemporaryDirectory(prefix="fusion-captioner-") as folder:
        arguments = task.training_arguments(
            output_dir=folder,
            per_device_eval_batch_size=options.batch_size,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = task.trainer(model, processor, arguments, {"eval": rows}, {})
        trainer.remove_callback(PrinterCallback)  # stdout is for the report
        trainer.evaluate()
    about = {
        "model": options.model,
        "source": options.source,
        "split": options.split,
        "fusion_captioner": __version__,
    }
    print_json(about | task.report(trainer, rows), indent=2)
    return 0
