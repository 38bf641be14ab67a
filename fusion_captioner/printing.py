"""Lines that commands print: results as JSON on stdout, notes and log messages on stderr. No name of a file can
confuse a terminal."""

import json
import logging
import re
import sys
from typing import Any, TextIO

# Control characters, such as ESC; separators of lines; characters that turn the direction of writing; lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_ERROR_NUMBER = re.compile(r"^\[Errno \d+\] ")
# torch raises an error of a worker process again, with its whole traceback as its message.
_WORKER_ERROR = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback.*\n[\w.]+: (.+)", re.DOTALL
)


def json_line(entry: Any, encoding: str = "utf-8", indent: int | None = None) -> str:
    """`entry` as JSON; what `encoding` does not have, and what a terminal obeys, is escaped."""
    line = json.dumps(entry, ensure_ascii=False, indent=indent)
    line = "\n".join(printable(part) for part in line.split("\n"))  # breaks come from `indent` alone
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(entry, indent=indent)
    return line


def print_json(entry: Any, indent: int | None = None) -> None:
    """Print `entry` as JSON on stdout, in one line by default."""
    print_line(json_line(entry, sys.stdout.encoding or "utf-8", indent), sys.stdout)


def print_note(text: str) -> None:
    """Print a note of the command in one line on stderr."""
    print_line(f"fusion-captioner: {printable(' '.join(text.split()))}", sys.stderr)


def error_text(error: Exception) -> str:
    """What an error says, without the traceback of a worker process and without Python's "[Errno 2]"."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    in_worker = _WORKER_ERROR.fullmatch(str(error).strip())
    return _ERROR_NUMBER.sub("", in_worker[1] if in_worker else str(error))


def printable(text: str) -> str:
    """`text` with every character escaped that a terminal obeys or cannot show."""
    return _UNPRINTABLE.sub(lambda character: f"\\u{ord(character[0]):04x}", text)


def print_line(line: str, file: TextIO) -> None:
    """
    Print a line at once; progress bars are drawn again below it.

    Raises:
        OSError: it cannot be written; names the stream.
    """
    try:
        if "tqdm" in sys.modules:  # no bar without it, and it takes longer to load than --help takes
            from tqdm import tqdm

            tqdm.write(line, file=file)
        else:
            print(line, file=file)
        file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output" if file is sys.stdout else file.name) from error


class _PrintableFormatter(logging.Formatter):
    """Names of files in messages may hold characters that a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def print_log(level: int = logging.WARNING) -> None:
    """Print log messages of `level` and above on stderr, without their level and logger."""
    formatter = _PrintableFormatter("%(message)s")
    if level >= logging.WARNING and logging.lastResort is not None:
        logging.lastResort.setFormatter(formatter)  # which prints where nobody has set up logging
        return
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler])
    for library in ("httpx", "faiss"):  # a line for each request to the Hub, and for each set of instructions
        logging.getLogger(library).setLevel(logging.WARNING)
