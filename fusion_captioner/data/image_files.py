"""Files of images: those that a command line names, names that stay inside their folder, the check of a header, decoding."""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from fusion_captioner.image_loading import load_image

# Opening a header waits for the disk, more so on network drives, and Pillow and the kernel release the GIL meanwhile.
HEADER_THREADS = 8

MISSING_IMAGE = "image file is missing"


def find_images(sources: list[str]) -> Iterator[str]:
    """The files, URLs, and images in the folders, that `sources` name.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images.
    """
    for source in sources:
        if not source:
            raise ValueError("IMAGE ('') is empty; name a file, a folder or a URL.")
        if source.startswith(("http://", "https://")):
            yield source
            continue
        path = Path(source).expanduser()
        if path.is_dir():
            suffixes = Image.registered_extensions()
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
            if not files:
                raise ValueError(f"{source}: the folder holds no images; check the path.")
            yield from map(str, files)
        elif path.exists():
            yield str(path)
        else:
            raise FileNotFoundError(f"{source}: no such file or folder; check the path.")


class ImageFolder:
    """A folder of images that `file_name` fields of annotations point into, and out of which they may not lead.

    Args:
        path: an existing folder; it may itself be a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._real_path = os.path.realpath(path)

    def resolve(self, file_name: object) -> str:
        """The absolute path of `file_name`, which need not exist.

        Raises:
            ValueError: `file_name` is no text, or leads out of the folder: `..`, an absolute path, or a link.
        """
        if not isinstance(file_name, str) or not file_name or "\0" in file_name:
            raise ValueError(f"file_name {file_name!r} is not the name of a file")
        path = os.path.join(self._real_path, file_name)
        if os.path.commonpath([self._real_path, os.path.realpath(path)]) != self._real_path:
            raise ValueError(f"file_name {file_name!r} leads out of the image folder {self.path}")
        return path


def image_problem(image: str | bytes) -> str | None:
    """What is wrong with an image, judged by its header alone (a path, or the bytes of a file); None if nothing is.

    A file that is cut off behind its header passes: that shows only when it is decoded, which the collator does.
    """
    if isinstance(image, str):
        try:
            size = os.stat(image).st_size
        except OSError:
            return MISSING_IMAGE
    else:
        size = len(image)
    if size == 0:
        return "image file is empty (0 bytes)"
    try:
        with Image.open(image if isinstance(image, str) else BytesIO(image)):
            return None
    except Image.DecompressionBombError:
        return "image has too many pixels (a decompression bomb); make it smaller"
    except Image.UnidentifiedImageError:
        return "not an image that Pillow can read"
    except Exception as error:
        # Pillow's plugins raise what their parsers meet: OSError, SyntaxError, struct.error, ValueError, ...
        return f"image cannot be read ({type(error).__name__}: {error})".replace("\n", " ")


def image_problems(paths: list[str], label: str) -> list[str | None]:
    """[`image_problem`] of many files, with a progress bar on a terminal."""
    with warnings.catch_warnings(), ThreadPoolExecutor(HEADER_THREADS) as pool:
        # A large but allowed image is no news here. (Filters belong to the process: set here, not in the threads.)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        results = pool.map(image_problem, paths)
        return list(tqdm(results, total=len(paths), desc=f"checking images of {label}", disable=None, leave=False))


def open_image(image: dict[str, Any], image_id: str, image_processor: Any) -> Image.Image:
    """Decode an image of a data set, as an upright RGB picture.

    Args:
        image: `path` and `bytes`, as `datasets.Image(decode=False)` gives; the path may be remote (`hf://`), of a stream.
        image_id: what messages call an image without path.
        image_processor: that the picture is for; a JPEG much larger than its `size` is decoded at half the size or less.

    Raises:
        FileNotFoundError, OSError, ValueError: the file is missing, unreadable, or no image; the message names it.
    """
    path, content = image["path"], image["bytes"]
    if content is None and path is not None and "://" in path:
        import datasets  # takes longer to load than a photo takes to caption

        return load_image(datasets.Image().decode_example(image), name=path)
    size = image_processor.size if image_processor.do_resize else {}
    target_size = (size["height"], size["width"]) if "height" in size and "width" in size else None
    return load_image(image, target_size, name=path or f"image_id {image_id!r}")
