"""
The commands of the guides run, on tiny data and models: every command with every set of flags, and every recipe, once.
Those that cannot run in a test are listed with a reason. Of all, and of the pages of results, the flags are checked.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from reader_folder import (
    DATA_OF_RECIPES,
    write_captions,
    write_first_captioner,
    write_languages,
    write_reader_folder,
    write_retriever,
)

from fusion_captioner.cli import build_parser, main
from fusion_captioner.commands.download import _plan
from fusion_captioner.data.published import DATASETS
from fusion_captioner.training.recipes import recipe_names

ROOT = Path(__file__).parents[1]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
GUIDES = [README, CHINESE, *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "docs" / "lab").glob("*.md"))

# Beginnings of commands that are not run, and why.
NOT_RUN = {
    "pip install ": "changes the environment that the tests run in",
    "make ": "installs packages, or runs these tests",
    "git clone ": "needs a network",
    "python3 -m venv ": "makes an environment",
    "hf ": "needs an account on the Hub",
    "docker ": "needs Docker, and builds an image of several GB",
    "accelerate launch ": "needs several GPUs or machines",
    "torchrun ": "starts processes, as tests/training/test_two_processes.py and tests/commands/test_caption.py do",
    "fusion-captioner caption s3://": "needs a store; tests/inference/test_ray_engine.py runs the engine",
    "python benchmarks/": "takes minutes to hours; tests/benchmarks runs their parts",
}
# One step on two images.
TRAINING = {
    "training.max_steps": 1,
    "training.per_device_train_batch_size": 2,
    "training.dataloader_num_workers": 0,
    "training.bf16": "false",
    "training.report_to": "none",
    "training.disable_tqdm": "true",
}
# What a page takes as given besides the folder that all have.
MORE_FILES: dict[str, Callable[[Path], None]] = {
    "captioning": write_captions,
    "languages": write_languages,
    "retrieval": write_retriever,
    "training": write_first_captioner,
}


def commands(guide: Path) -> list[str]:
    """The lines of the blocks without a language, without comments; `\\` at the end of a line continues it."""
    text = guide.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "".join(block for language, block in blocks if not language).splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line).strip())]


def is_run(command: str) -> bool:
    return not command.startswith(tuple(NOT_RUN))


def words_of(command: str) -> list[str]:
    """The arguments of `fusion-captioner` in a command, without what stands in front of a pipe or behind `>`."""
    return shlex.split(re.sub(r"^.*\| | > .*", "", command))[1:]


def form_of(command: str) -> tuple[str, ...]:
    """What two commands share that differ in names and values alone."""
    words = words_of(command)
    recipe = words[1:2] if words[0] in ("train", "recipes") else []
    return (words[0], *recipe, *sorted(word for word in words if word.startswith("-")))


def written_by(command: str) -> set[str]:
    """The names under which a command leaves what later ones read."""
    words = words_of(command)
    names = {name for flag, name in pairwise(words) if flag in ("--out", "--captions", "--training.output_dir")}
    return names | {f"runs/{words[1]}" for word in words[:1] if word == "train"} | set(command.split(" > ")[1:])


def one_of_each_form() -> dict[Path, list[str]]:
    """By guide, the last command of each form, and what it needs of the commands in front of it."""
    chosen: dict[Path, list[str]] = {}
    forms: set[tuple[str, ...]] = set()
    for guide in reversed([guide for guide in GUIDES if guide != CHINESE]):
        read: set[str] = set()
        for command in reversed([command for command in commands(guide) if is_run(command)]):
            # `write_reader_folder` has made what `convert` leaves
            if form_of(command) not in forms or (read & written_by(command) and words_of(command)[0] != "convert"):
                chosen.setdefault(guide, []).insert(0, command)
                read |= set(words_of(command))
            forms.add(form_of(command))
    return chosen


CHOSEN = one_of_each_form()


@pytest.mark.parametrize("guide", [*GUIDES, *RESULTS], ids=lambda path: path.name)
def test_commands_have_the_flags_that_are_shown(guide: Path) -> None:
    for command in commands(guide):
        if command.startswith("python benchmarks/"):
            script = (ROOT / command.split()[1]).read_text(encoding="utf-8")
            flags = re.findall(r" (--\w[\w-]*)(?![\w.-])", command)  # fields of a recipe have a dot
            assert [flag for flag in flags if f'"{flag}"' not in script] == [], command
        if not re.search(r"(^|\| )fusion-captioner ", command):
            continue
        words = words_of(command)
        options, unknown = build_parser(words[0]).parse_known_args(words)
        if options.command == "train":
            assert options.config in (*recipe_names(), "mine.yaml"), command
            unknown = [
                word for word in unknown[::2] if not re.fullmatch(r"--(model|data|tokenizer|training)\.[\w.]+", word)
            ]
        assert unknown == [], command


def test_every_reason_not_to_run_a_command_is_needed() -> None:
    shown = [command for guide in GUIDES for command in commands(guide)]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in shown)] == []
    assert sum(map(is_run, shown)) > 60


def test_a_command_of_every_form_that_is_shown_is_run() -> None:
    shown = {form_of(command) for guide in GUIDES for command in commands(guide) if is_run(command)}
    assert {form_of(command) for chosen in CHOSEN.values() for command in chosen} == shown


def test_the_readme_has_the_same_commands_in_chinese() -> None:
    assert commands(CHINESE) == commands(README)


def test_the_plan_that_is_shown_is_that_of_the_command() -> None:
    coco = DATASETS["coco"]
    assert _plan(coco, coco.parts, coco.parts, Path("coco")) in (ROOT / "docs" / "coco.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader") / "folder"
    write_reader_folder(folder)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_operators_once")
@pytest.mark.parametrize("guide", CHOSEN, ids=lambda path: path.stem)
def test_commands_run(guide: Path, reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(reader_folder, tmp_path, dirs_exist_ok=True)
    MORE_FILES.get(guide.stem, lambda folder: None)(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    # what `bundled` stands for; training the real one for a step takes long
    monkeypatch.setattr("fusion_captioner.checkpoints.bundled.DEFAULT_CHECKPOINT", "runs/captioner")
    waiting = list(CHOSEN[guide])
    while waiting:
        command = waiting.pop(0)
        if words_of(command)[0] in SERVERS:
            while waiting and waiting[0].startswith("curl "):
                command += f"\n{waiting.pop(0)}"
            SERVERS[words_of(command.splitlines()[0])[0]](command)
        else:
            run(command)


def run(command: str, stdin: str = "", statuses: tuple[int, ...] = (0,)) -> str:
    """Run one command line in this process. It must end well and write the files that it names; returns its stdout."""
    source, pipe, rest = command.rpartition(" | ")
    words = [os.path.expanduser(name_data(word, command)) for word in words_of(command)]
    if words[0] == "convert":
        words[words.index("--out") + 1] += "-of-ImageNet"  # trainings take the small one of the folder
    if words[0] == "train":
        words += [str(word) for name, value in TRAINING.items() for word in (f"--{name}", value)]
    if pipe:
        stdin = subprocess.run(source, shell=True, check=True, capture_output=True, text=True).stdout
    output = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin.encode()), encoding="utf-8"))
        patch.setattr(sys, "stdout", output)
        assert main(words) in statuses, command
    text = output.buffer.getvalue().decode()
    if " > " in rest:
        Path(rest.split(" > ")[1]).write_text(text, encoding="utf-8")
    for flag, name in pairwise(words):
        assert flag not in ("--out", "--report", "--captions") or Path(name).exists(), command
    return text


def name_data(word: str, command: str) -> str:
    """The folder of data that a placeholder of a guide stands for, or the word."""
    recipe = next((recipe for recipe in DATA_OF_RECIPES if recipe in command), None)
    data = "captions" if recipe is None else DATA_OF_RECIPES[recipe]
    if "val_fraction" in command:  # of a reader's own photos, which have no splits
        data = "flickr8k"
    return {"FOLDER": data, "FLICKR8K": "captions", "VISUAL7W": "choices"}.get(word, word)


def serve_http(lines: str, health: str = "/healthz") -> None:
    """Start a server on a free port, ask it for its health and as the lines behind the first do, and interrupt it."""
    command, *requests = lines.splitlines()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    answers: list[int] = []
    ended = Event()

    def ask() -> None:
        limit = time.monotonic() + 300
        while time.monotonic() < limit and not answers:
            time.sleep(0.1)
            with suppress(URLError, ConnectionError), urlopen(f"http://127.0.0.1:{port}{health}") as answer:
                answers.append(answer.status)
        for request in requests:
            done = subprocess.run(
                re.sub(r":\d{4}", f":{port}", request) + " --silent --fail", shell=True, capture_output=True
            )
            answers.append(200 if done.returncode == 0 and done.stdout else done.returncode)
        while not ended.is_set():  # a server that is still starting may not hear the first
            os.kill(os.getpid(), signal.SIGINT)
            ended.wait(5)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
    thread = Thread(target=ask)
    thread.start()
    try:
        run(f"{command} --port {port}", statuses=(0, 130))
    finally:
        ended.set()
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert answers == [200] * (1 + len(requests)), lines


def serve_page(command: str) -> None:
    serve_http(command, health="/")


def serve_tools(command: str) -> None:
    """Start the tool server and greet it; it ends when its stdin does."""
    version = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    greeting = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": version}
    (line,) = run(command, stdin=json.dumps(greeting) + "\n").splitlines()
    assert "tools" in json.loads(line)["result"]["capabilities"]


SERVERS = {"serve": serve_http, "demo-page": serve_page, "mcp": serve_tools}
