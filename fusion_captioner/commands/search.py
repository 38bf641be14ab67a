"""`fusion-captioner search`: the images or texts of an index that are closest to a text or an image, as JSON lines."""

import argparse

from fusion_captioner.commands.shared_flags import add_trust_flag
from fusion_captioner.files import expanded
from fusion_captioner.given_values import check_text

HELP = "find images for a text, texts for an image, images like an image"
EPILOG = """\
  fusion-captioner search holiday.index "a dog in the snow"                  images for a text
  fusion-captioner search val.index --image photo.jpg --find texts           texts for an image
  fusion-captioner search holiday.index --image photo.jpg                    images like an image
  fusion-captioner search holiday.index "a dog in the snow" --rerank 50      look at the best 50 more closely

`score` is the cosine of two embeddings. --rerank fuses the text with each of the best candidates and orders them by
the sum of `matching` and the scaled `score`: slower, and better where the checkpoint was trained with a matching
loss."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find what is closest to a text or an image in an index. One JSON line per result, best first."
    )
    parser.epilog = EPILOG
    parser.add_argument("index", metavar="INDEX", help="folder that `index` wrote")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to find, in quotes")
    parser.add_argument("--image", metavar="FILE", help="search by an image, a file or URL, instead of a text")
    parser.add_argument("--find", choices=["images", "texts"], default="images", help="what to find (default: images)")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="results to print (default: 10)")
    parser.add_argument(
        "--rerank",
        type=int,
        default=0,
        metavar="N",
        help="order the best N by the score of fused pairs (default: none)",
    )
    parser.add_argument("--model", metavar="CHECKPOINT", help="where the index's checkpoint is now, if it was moved")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model (default: the index's)")
    add_trust_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 1 if an image could not be read for re-ranking."""
    from fusion_captioner.inference.retriever import Retriever
    from fusion_captioner.printing import print_json, print_note
    from fusion_captioner.process_setup import keep_stderr_quiet
    from fusion_captioner.search.image_index import ImageIndex, require_faiss
    from fusion_captioner.search.ranking import Query, search_index

    keep_stderr_quiet(reads_data=True)
    _check(options)
    require_faiss()
    image_index = ImageIndex(expanded(options.index))
    rows = image_index.searchable(options.find)
    manifest = image_index.manifest
    retriever = Retriever(
        options.model or manifest.model, options.revision or manifest.revision, options.trust_remote_code
    )
    image_index.check_checkpoint(retriever)
    query = Query.of(options.text, options.image, retriever)
    results, problems = search_index(image_index, rows, retriever, query, options.top, options.rerank)
    for result in results:
        print_json(result)
    for problem in problems:
        print_note(problem)
    return 1 if problems else 0


def _check(options: argparse.Namespace) -> None:
    check_text(options.text or "", "TEXT")
    if (options.text is None) == (options.image is None):
        raise ValueError("give either a text to search by, or --image FILE.")
    if options.text is not None and not options.text.strip():
        raise ValueError(f"the text to search by ({options.text!r}) is empty; say what to find.")
    if options.image == "":
        raise ValueError("--image ('') is empty; name a file or a URL.")
    if options.top < 1:
        raise ValueError(f"--top ({options.top}) must be at least 1.")
    if options.rerank < 0:
        raise ValueError(f"--rerank ({options.rerank}) must be a number of candidates, or 0 for none.")
    if options.rerank and (options.image is None) == (options.find == "texts"):
        kind = "texts with a text" if options.find == "texts" else "images with an image"
        raise ValueError(f"--rerank ({options.rerank}) scores a text with an image, not {kind}; leave it out.")
