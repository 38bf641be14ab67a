"""`fusion-captioner mcp`: a tool server for assistants, by the Model Context Protocol."""

import argparse
import sys
from contextlib import redirect_stdout

from fusion_captioner.commands.shared_flags import (
    add_serving_flags,
    check_at_least_one,
    load_to_serve,
    open_index,
    require_extra,
)

HELP = "let assistants caption and search photos (MCP)"
EPILOG = """\
An assistant starts this command itself. Its settings hold the command and its flags, such as

  {"mcpServers": {"photos": {"command": "fusion-captioner", "args": ["mcp", "--root", "/home/me/photos"]}}}

The tools are caption_image, caption_folder, answer_question and search_photos. Nothing outside of --root is read or
written. Over HTTP there is no authentication: who reaches the port sees the photos."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve tools for assistants by the Model Context Protocol, on stdin and stdout or over HTTP."
    parser.epilog = EPILOG
    parser.add_argument(
        "--root", action="append", required=True, metavar="FOLDER", help="folder of photos; may be given several times"
    )
    parser.add_argument("--index", metavar="INDEX", help="folder that `index` wrote, for search_photos")
    parser.add_argument(
        "--transport", choices=["stdio", "http"], default="stdio", help="http is streamable HTTP (default: stdio)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address for http (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="for http; 0 takes any that is free (default: 8000)")
    add_serving_flags(parser)


def run(options: argparse.Namespace) -> int:
    require_extra("mcp", "mcp")
    check_at_least_one(options, "beams", "max_new_tokens")
    from fusion_captioner.serving.roots import Roots

    roots = Roots(options.root)
    with redirect_stdout(sys.stderr):  # stdout belongs to the protocol; while it serves, the transport sees to that
        from fusion_captioner.serving.photo_tools import PhotoTools, create_tool_server

        if options.transport == "stdio":
            server = create_tool_server(PhotoTools(load_to_serve(options), roots, open_index(options)))
        else:
            from fusion_captioner.serving.http_server import bind, run_server

            with bind(options.host, options.port) as listener:
                server = create_tool_server(PhotoTools(load_to_serve(options), roots, open_index(options)))
                app = server.streamable_http_app(host=options.host)
                run_server(app, listener, "tools for assistants at /mcp", shutdown_seconds=5)
            return 0
    server.run("stdio")
    return 0
