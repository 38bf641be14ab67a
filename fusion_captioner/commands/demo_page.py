"""`fusion-captioner demo-page`: the captioner on a page in the browser."""

import argparse
import socket
from importlib.util import find_spec

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.checkpoints.bundled import checkpoint_name
from fusion_captioner.commands.shared_flags import add_hub_flags
from fusion_captioner.files import expanded

HELP = "caption, explain and correct photos on a page in the browser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Open a page on this machine: captions with the places of the photo that each word depends on, a folder of\n"
        "captions to correct and save, questions, and a search. Needs the extra `demo`."
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="photos to caption, correct and save in there")
    parser.add_argument(
        "--model",
        default=DEFAULT_CHECKPOINT,
        type=checkpoint_name,
        help="folder or Hub name (default: bundled, the one in the package)",
    )
    parser.add_argument(
        "--answer-model",
        type=checkpoint_name,
        help="model that answers questions (default: --model, if it was trained to answer)",
    )
    parser.add_argument("--index", metavar="INDEX", help="folder that `index` wrote, to search")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=7860, help="port to listen on; 0: any that is free (default: 7860)"
    )
    add_hub_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    if find_spec("gradio") is None:
        raise ImportError("gradio is not installed: pip install -c constraints.txt 'fusion-captioner[demo]'")
    port = _free_port(options.host, options.port)
    folder = None if options.folder is None else expanded(options.folder)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"FOLDER ({options.folder}): no such folder; give the folder of the photos.")

    from fusion_captioner.checkpoints.loading import load_captioner
    from fusion_captioner.data.image_files import find_images
    from fusion_captioner.process_setup import keep_stderr_quiet
    from fusion_captioner.serving.page import build_page, launch_options
    from fusion_captioner.serving.page_photos import PagePhotos, answers_questions
    from fusion_captioner.serving.photo_search import PhotoSearch

    keep_stderr_quiet(reads_data=False)
    print("The page starts, which takes some seconds.", flush=True)
    files = list(find_images([str(folder)])) if folder is not None else None
    loading = {"trust_remote_code": options.trust_remote_code}
    photos = PagePhotos(*load_captioner(options.model, options.revision, **loading))
    answers = None
    if options.answer_model is not None:
        answers = PagePhotos(*load_captioner(options.answer_model, **loading))
    elif answers_questions(options.model, options.revision):
        answers = photos
    search = None if options.index is None else PhotoSearch(options.index, options.trust_remote_code)
    page = build_page(photos, answers, search, folder, files)
    # Gradio's own words are about public links, which this command does not make
    _, url, _ = page.launch(
        server_name=options.host, server_port=port, quiet=True, prevent_thread_lock=True, **launch_options()
    )
    print(f"The page is at {url} until this command is interrupted.", flush=True)
    page.block_thread()
    return 0


def _free_port(host: str, port: int) -> int:
    """The port, or any that is free for 0.

    Raises:
        OSError: the port cannot be listened on.
    """
    try:
        with socket.create_server((host, port)) as server:
            return server.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"--port ({port}): cannot be listened on at {host} ({reason}); give another one.") from error
