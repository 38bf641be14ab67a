"""`fusion-captioner index`: embeds what is new in a folder or data set, and makes it searchable."""

import argparse
import logging

from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.commands.shared_flags import add_column_flags, add_hub_flags, check_at_least_one, data_options
from fusion_captioner.files import expanded

HELP = "make images searchable"
EPILOG = """\
  fusion-captioner index holiday/ --model runs/retrieval --out holiday.index            all images in a folder
  fusion-captioner index flickr8k --split val --model runs/retrieval --out val.index    a data set and its captions

Run it again after images were added, changed or removed: only new content is embedded, and removed images are not
found any more. A run that is killed loses nothing: `search` finds the same as before, and the next run continues.
Images that cannot be read are listed, and the others are indexed.

exit status: 0; 1 when some images could not be read; 2 when nothing was done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Embed the images of a folder, or those of a data set and their captions, to search them."
    parser.epilog = EPILOG
    parser.add_argument("source", metavar="FOLDER|DATASET", help="folder of images; data as for train; or a Hub name")
    parser.add_argument(
        "--model",
        required=True,
        metavar="CHECKPOINT",
        type=checkpoint_name,
        help="folder or Hub name of a retrieval model",
    )
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder of the index, new or to be updated")
    parser.add_argument(
        "--layout",
        default="auto",
        help="layout of the data, or `folder` for all images in it (default: recognised by its files)",
    )
    add_column_flags(parser)
    parser.add_argument("--split", help="the only split of a data set to index (default: all)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    add_hub_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 1 if some of the images could not be indexed."""
    from fusion_captioner.checkpoints.loading import check_captioner
    from fusion_captioner.inference.retriever import Retriever
    from fusion_captioner.printing import print_json, print_log, print_note
    from fusion_captioner.process_setup import keep_stderr_quiet
    from fusion_captioner.search.image_index import (
        MANIFEST,
        ImageIndex,
        Manifest,
        check_index_folder,
        require_faiss,
        updating,
    )
    from fusion_captioner.search.index_update import update_index
    from fusion_captioner.search.indexed_images import load_images

    keep_stderr_quiet(reads_data=True)
    print_log(logging.INFO)
    check_at_least_one(options, "batch_size")
    require_faiss()
    check_captioner(options.model)
    folder = expanded(options.out)
    columns = data_options(options)
    columns.pop("layout", None)
    if options.images_folder is not None:
        columns["images_folder"] = str(expanded(options.images_folder).absolute())
    check_index_folder(folder)
    if (folder / MANIFEST).is_file():
        ImageIndex(folder).check_source(options.source, options.split, columns)
    images = load_images(options.source, options.layout, options.split, columns)
    retriever = Retriever(options.model, options.revision, options.trust_remote_code)
    manifest = Manifest.of(retriever, options.source, options.layout, options.split, columns, options.revision)
    with updating(folder, manifest) as image_index:
        # again: another run may have made the index in the meantime
        image_index.check_source(options.source, options.split, columns)
        image_index.check_checkpoint(retriever)
        update = update_index(image_index, images, retriever, options.batch_size, print_note)
    print_json({"index": options.out, **update})
    return 1 if update["bad_images"] else 0
