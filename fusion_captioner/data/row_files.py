"""Files of annotations as rows: JSON, JSON lines, and tables of text, with the place of what is malformed."""

import ast
import codecs
import csv
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.data.names import FILE_COLUMNS, choose_captions, choose_column

logger = logging.getLogger(__name__)

DELIMITERS = {",": "commas", "\t": "tabs", "|": "|", ";": "semicolons"}
TOKEN_FILES = (".token", ".token.txt")  # as Flickr8k and Flickr30k have
SAMPLED_ROWS = 20
JSON_BEGINNING = 2**20  # characters
# The name of an image file, and behind it the number of its caption, as in Flickr8k.token.txt
IMAGE_NAME = re.compile(r"(?P<name>[^\t|;]*\.(?:jpe?g|png|webp|gif|bmp|tiff?|hei[cf]|avif))(?:#\d+)?", re.IGNORECASE)

Broken = Callable[[int, str], None]


class _Repeated(dict[str, Any]):
    """A JSON object that has `key` more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.key = Counter(key for key, _ in pairs).most_common(1)[0][0]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _Repeated(pairs)


def read_json(path: Path, unique_keys: bool = False) -> Any:
    """The content of a JSON file.

    Args:
        unique_keys: mark objects that have a key twice, for [`json_rows`].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON in UTF-8; the message names file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=_object if unique_keys else None)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such annotation file.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "download or write the file again."
        ) from None
    except RecursionError:
        raise ValueError(f"{path}: JSON nested too deep; download or write the file again.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8.") from None
    except ValueError:
        # text may hold as many digits, but hardly behind one of these characters
        found = re.search(rf"(?<=[\s:,\[])-?\d{{{sys.get_int_max_str_digits() + 1}}}", text)
        line = f", line {text.count(chr(10), 0, found.start()) + 1}" if found else ""
        raise _long_number(f"{path}{line}") from None


def _long_number(where: str) -> ValueError:
    """The one other error of JSON's reader."""
    return ValueError(f"{where}: a number of more than {sys.get_int_max_str_digits()} digits; write a shorter one.")


def json_lines(path: Path, unique_keys: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its line number.

    Args:
        unique_keys: see [`json_rows`].

    Raises:
        ValueError: a line is no JSON object, or the file is not UTF-8; the message names file and line.
    """
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                row = _parsed_line(line, where, unique_keys)
                if not isinstance(row, dict):
                    raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}.")
                _check_keys(row, where)
                yield number, row
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from None


def _parsed_line(line: str, where: str, unique_keys: bool) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_object if unique_keys else None)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: malformed JSON ({error.msg}, column {error.colno}).") from None
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deep.") from None
    except ValueError:
        raise _long_number(where) from None


def _check_keys(row: dict[str, Any], where: str) -> None:
    if isinstance(row, _Repeated):
        raise ValueError(f"{where}: has the field {row.key!r} twice; keep one of them.")


def json_rows(path: Path, unique_keys: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list, each with its number from 1, or those of JSON lines.

    Args:
        unique_keys: refuse objects that have a key twice, of which otherwise the last counts. Reading takes half as
            long again.

    Raises:
        FileNotFoundError, ValueError: see [`read_json`] and [`json_lines`]; or it is JSON, but no list of objects.
    """
    if _has_json_lines(path):
        yield from json_lines(path, unique_keys)
        return
    document = read_json(path, unique_keys)
    if not isinstance(document, list):
        keys = f" with the keys {', '.join(map(str, list(document)[:5]))}" if isinstance(document, dict) else ""
        raise ValueError(
            f'{path}: expected a list of objects such as {{"image": "a.jpg", "caption": "..."}}, found a '
            f"{'JSON object' if keys else type(document).__name__}{keys}."
        )
    for number, row in enumerate(document, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f'{path}, entry {number}: expected an object such as {{"image": "a.jpg", "caption": "..."}}, found '
                f"{type(row).__name__}."
            )
        _check_keys(row, f"{path}, entry {number}")
        yield number, row


def _has_json_lines(path: Path) -> bool:
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    with suppress(ValueError, OSError, RecursionError), path.open(encoding="utf-8-sig") as lines:
        first, second = islice((line for line in lines if line.strip()), 2)
        return isinstance(json.loads(first), dict) and second.lstrip().startswith("{")
    return False


def read_beginning(path: Path) -> str:
    """The first characters of a JSON file, without white space in front."""
    with path.open(encoding="utf-8-sig") as file:
        return file.read(JSON_BEGINNING).lstrip()


def json_columns(path: Path) -> list[str]:
    """The fields of the first row of a JSON list or of JSON lines, of which no more than the beginning is read.

    Raises:
        ValueError: it is neither.
    """
    try:
        beginning = read_beginning(path)
        row, _ = json.JSONDecoder().raw_decode(beginning[1:].lstrip() if beginning.startswith("[") else beginning)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path}: does not begin with a list of objects, nor with a line that is one.") from None
    except ValueError:
        raise _long_number(str(path)) from None
    return list(row) if isinstance(row, dict) else []


class TableForm(NamedTuple):
    """
    How a table of text is written.

    Args:
        columns: of the header, or `image` and `caption` where there is none.
        delimiter: between columns.
        has_header: whether the first row is one.
    """

    columns: list[str]
    delimiter: str
    has_header: bool

    def about(self) -> str:
        """In words."""
        header = "" if self.has_header else "no header, so read as "
        return f"{header}the columns {', '.join(self.columns)}, separated by {DELIMITERS[self.delimiter]}"


def table_form(path: Path, source: CaptionSource) -> TableForm:
    """
    Find delimiter and header of a table: the delimiter by which the first row names a column of images and one of
    captions, or, without header, by which it begins with the name of an image.

    Args:
        source: its `image_column` and `caption_column` name columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such delimiter, or the file is no text; the message says what was found instead.
    """
    samples = {delimiter: _sample(path, delimiter) for delimiter in DELIMITERS}
    if not any(samples.values()):
        for _ in _records(path, ",", strict=False):
            pass  # raises where the first row is broken
        raise ValueError(f"{path}: the table is empty; write a header such as image,caption, and its rows.")
    fitting = []
    for delimiter, rows in samples.items():
        columns = [name.strip() for name in rows[0]] if rows else []
        with suppress(ValueError):
            table_columns(columns, source)
            fitting.append(TableForm(columns, delimiter, True))
            continue
        usual_width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
        if rows and usual_width == 2 and IMAGE_NAME.fullmatch(rows[0][0].strip()):
            fitting.append(TableForm(["image", "caption"], delimiter, False))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        which = " and ".join(DELIMITERS[form.delimiter] for form in fitting)
        raise ValueError(f"{path}: the delimiter cannot be told, {which} both fit; put the columns' values in quotes.")
    delimiter, rows = max(samples.items(), key=lambda item: len(item[1][0]) if item[1] else 0)
    columns = [name.strip() for name in rows[0]]
    if len(columns) < 2:
        problem = (
            f"the delimiter cannot be told: none of {', '.join(DELIMITERS.values())} separates images from captions "
            f"in its first line, {' '.join(columns)[:60]!r}; write a header such as image,caption."
        )
    elif IMAGE_NAME.fullmatch(columns[0]):
        problem = f"it has no header, and {len(columns)} values per row; write a header such as image,caption."
    else:
        problem = _column_problem(columns, source)
    raise ValueError(f"{path}: {problem}")


def _column_problem(columns: list[str], source: CaptionSource) -> str:
    try:
        table_columns(columns, source)
    except ValueError as error:
        return str(error)
    return ""


def table_columns(columns: list[str], source: CaptionSource) -> tuple[str, list[str]]:
    """
    The column of names of image files, and those of captions.

    Raises:
        ValueError: they are not among `columns`, or are there twice.
    """
    image = choose_column(source.image_column, FILE_COLUMNS, columns, "image_column")
    captions = choose_captions(source.caption_column, columns)
    for column in (image, *captions):
        if columns.count(column) > 1:
            raise ValueError(f"there are two columns {column!r}; rename one of them.")
    return image, captions


def table_rows(path: Path, form: TableForm, broken: Broken) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    The rows of a table by column, each with the number of its first line; blank rows are left out.

    A cell that holds a list, as pandas writes one, becomes a list. The row of Flickr30k's results.csv that lacks a
    delimiter (`2199200615.jpg| 4   A dog runs ...`) is read as it was meant.

    Args:
        broken: is called with the line and the fault of a row that has too few or too many values.

    Raises:
        ValueError: quotes that do not fit, or no UTF-8; the message names file and line.
    """
    width = len(form.columns)
    for number, (line, row) in enumerate(_records(path, form.delimiter)):
        if (form.has_header and number == 0) or not any(value.strip() for value in row):
            continue
        if (
            form.delimiter == "|"
            and len(row) == width - 1 > 1
            and (match := re.fullmatch(r"\s*(\d+)\s+(\S.*)", row[-1]))
        ):
            logger.info("%s, line %d: a missing delimiter behind the number %s was added", path, line, match[1])
            row = [*row[:-1], *match.groups()]
        while len(row) > width and not row[-1].strip():
            row.pop()
        if len(row) != width:
            values = f"{len(row)} value{'s' * (len(row) != 1)}"
            fix = (
                f"put values with {DELIMITERS[form.delimiter]} inside in quotes" if len(row) > width else "complete it"
            )
            broken(line, f"broken row: {values} for the columns {', '.join(form.columns)}; {fix}")
            continue
        yield line, {column: _cell(value.strip()) for column, value in zip(form.columns, row, strict=True)}


def _cell(value: str) -> Any:
    if value.startswith("[") and value.endswith("]"):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            parsed = ast.literal_eval(value)
            if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
                return parsed
    return value


def _records(path: Path, delimiter: str, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as file:
        # Flickr8k.token.txt has quotes that quote nothing; behind "| " none is at the beginning of a value
        quoting: Any = csv.QUOTE_NONE if path.name.lower().endswith(TOKEN_FILES) else csv.QUOTE_MINIMAL
        reader = csv.reader(
            file, delimiter=delimiter, strict=strict, quoting=quoting, skipinitialspace=delimiter in ",;"
        )
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fix = "double the quotes inside of quoted values, and close them"
                if "field limit" in str(error):
                    fix += ", or shorten the value"
                raise ValueError(f"{path}, line {line}: broken row ({error}); {fix}.") from None
            except UnicodeError:
                raise ValueError(_not_text(path)) from None
            if line == 1 and re.fullmatch(r"sep=.", delimiter.join(row), re.IGNORECASE):
                continue  # a line for Excel
            yield line, row


def _sample(path: Path, delimiter: str) -> list[list[str]]:
    rows = (row for _, row in _records(path, delimiter, strict=False) if any(value.strip() for value in row))
    sample: list[list[str]] = []
    try:
        for row in islice(rows, SAMPLED_ROWS):
            sample.append(row)
    except ValueError as error:
        if "not UTF-8" in str(error):
            raise
        # what is broken by this delimiter may be a table by another; else reading all rows reports it
    return sample


def open_text(path: Path) -> TextIO:
    """A text file in UTF-8, or in UTF-16 where it begins with that mark, as what Excel calls Unicode text."""
    with path.open("rb") as file:
        is_utf_16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return path.open(encoding="utf-16" if is_utf_16 else "utf-8-sig", newline="")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without white space around them.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        with open_text(path) as file:
            return [line.strip() for line in file.read().splitlines()]
    except UnicodeError:
        raise ValueError(_not_text(path)) from None


def _not_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return (
            f"{path}, line {line}: not UTF-8 text (byte 0x{content[error.start]:02x}); save it as UTF-8 (in Excel: "
            f"CSV UTF-8), or convert it, if it is latin-1: iconv -f latin1 -t utf-8 {path.name}"
        )
    return f"{path}: not UTF-8 text; save it as UTF-8."
