"""Files of annotations as Python objects: JSON and JSON lines, with the place of what is malformed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON in UTF-8; the message names file, line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
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


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its line number.

    Raises:
        ValueError: a line is no JSON object, or the file is not UTF-8; the message names file and line.
    """
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}.")
                yield number, row
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: malformed JSON ({error.msg}, column {error.colno}).") from None
        except RecursionError:
            raise ValueError(f"{path}, line {number}: JSON nested too deep.") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8.") from None
