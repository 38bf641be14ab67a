"""`fusion-captioner serve`: captions over HTTP, by OpenAI's API among others."""

import argparse

from fusion_captioner.commands.shared_flags import (
    add_serving_flags,
    check_at_least_one,
    check_texts,
    load_to_serve,
    open_index,
    require_extra,
)

HELP = "serve captions over HTTP (OpenAI's API)"
EPILOG = """\
  fusion-captioner serve --port 8000
  curl -F file=@photo.jpg http://127.0.0.1:8000/caption

  POST /v1/chat/completions   OpenAI's API with images, streaming too      GET  /v1/models
  POST /caption               a form with one or more files                GET  /healthz
  GET  /search?q=TEXT         photos for a text, with --index              GET  /metrics
  POST /search                photos like a photo, with --index

There is no authentication: put a proxy in front before other machines may reach it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve captions over HTTP. Concurrent requests are captioned in one batch."
    parser.epilog = EPILOG
    add_serving_flags(parser)
    parser.add_argument(
        "--name", help="what clients call the model (default: fusion-captioner, or the end of --model)"
    )
    parser.add_argument("--index", metavar="INDEX", help="folder that `index` wrote, for /search")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free (default: 8000)")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch, at most (default: 8)")
    parser.add_argument(
        "--batch-wait", type=float, default=10.0, metavar="MS", help="milliseconds a batch waits (default: 10)"
    )
    parser.add_argument("--queue", type=int, default=64, help="images that may wait (default: 64)")
    parser.add_argument("--max-body-mib", type=float, default=20.0, help="size of a request (default: 20)")
    parser.add_argument("--max-megapixels", type=float, default=50.0, help="size of an image (default: 50)")
    parser.add_argument("--allow-urls", action="store_true", help="fetch images by URL, from public servers only")
    parser.add_argument(
        "--shutdown-seconds", type=int, default=30, help="that running requests have at the end (default: 30)"
    )


def run(options: argparse.Namespace) -> int:
    require_extra("serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    _check(options)
    from fusion_captioner.serving.http_server import bind

    with bind(options.host, options.port) as listener:
        from fusion_captioner.serving.http_app import Limits, create_app
        from fusion_captioner.serving.http_server import run_server

        limits = Limits(
            options.batch_size,
            options.batch_wait / 1000,
            options.queue,
            int(options.max_body_mib * 2**20),
            int(options.max_megapixels * 1e6),
            options.allow_urls,
        )
        captioner = load_to_serve(options, options.name)
        app = create_app(captioner, limits, open_index(options))
        run_server(app, listener, f"serving {captioner.name}", options.shutdown_seconds)
    return 0


def _check(options: argparse.Namespace) -> None:
    check_at_least_one(options, "beams", "max_new_tokens", "batch_size", "queue", "shutdown_seconds")
    check_texts(options, "name")
    for name in ("max_body_mib", "max_megapixels"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} ({value}) must be above 0, such as 20.")
    if not 0 <= options.batch_wait <= 10_000:
        raise ValueError(f"--batch-wait ({options.batch_wait}) must be 0 to 10000 milliseconds, such as 10.")
    if options.name == "":
        raise ValueError("--name ('') is empty; leave it out, or give the model a name.")
