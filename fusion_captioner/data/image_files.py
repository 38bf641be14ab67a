"""Files of images: those that a command line names, names that stay inside their folder, the check of a header,
decoding."""

import os
import unicodedata
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, JpegImagePlugin

from fusion_captioner.files import expanded
from fusion_captioner.image_decoding import MAX_IMAGE_PIXELS, REFUSED_FORMATS, is_heif, open_header
from fusion_captioner.image_downloads import MAX_DOWNLOAD_BYTES
from fusion_captioner.image_loading import is_url, load_image
from fusion_captioner.printing import error_text, print_note

# Opening a header waits for the disk, more so on network drives, and Pillow and the kernel release the GIL meanwhile.
HEADER_THREADS = 8

MISSING_IMAGE = "image file is missing"
HUB_SCHEME = "hf://"
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}


def find_images(sources: list[str]) -> Iterator[str]:
    """
    The files, URLs, and images in the folders, that `sources` name. In a folder, names that begin with a dot are left
    out; links that lead nowhere, pipes and the like, and HEIC photos that cannot be read are left out and counted on
    stderr.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images.
    """
    for source in sources:
        if not source:
            raise ValueError("IMAGE ('') is empty; name a file, a folder or a URL.")
        if is_url(source):
            yield source
            continue
        path = expanded(source)
        if path.is_dir():
            yield from _images_in(path, source)
        elif path.exists():
            yield str(path)
        else:
            raise FileNotFoundError(f"{source}: no such file or folder; check the path.")


def find_images_one_by_one(sources: list[str]) -> tuple[list[str], dict[int, str]]:
    """
    As [`find_images`], but a source that is not there stays among the images, so that the others can go on.

    Returns:
        images, and what is wrong with those that are none, by their place.
    """
    images: list[str] = []
    problems: dict[int, str] = {}
    for source in sources:
        try:
            images += find_images([source])
        except (ValueError, OSError) as error:
            problems[len(images)] = error_text(error)
            images.append(source)
    return images, problems


def _images_in(folder: Path, name: str) -> list[str]:
    suffixes = photo_suffixes()
    found = [file for file in folder.rglob("*") if file.suffix.lower() in suffixes | HEIF_SUFFIXES]
    found = sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(folder).parts))
    files = [file for file in found if file.is_file()]
    if odd := [file for file in found if not file.exists() or not (file.is_file() or file.is_dir())]:
        print_note(
            f"{name}: {len(odd)} left out that are no files (links that lead nowhere, pipes, ...), such as {odd[0]}"
        )
    if find_spec("pillow_heif") is None and (heif := [file for file in files if file.suffix.lower() in HEIF_SUFFIXES]):
        print_note(f"{name}: {len(heif)} HEIC photos left out; pip install 'fusion-captioner[heic]', which reads them")
        files = [file for file in files if file.suffix.lower() not in HEIF_SUFFIXES]
    if not files:
        raise ValueError(f"{name}: the folder holds no images; check the path.")
    return list(map(str, files))


def photo_suffixes() -> set[str]:
    """Endings of the files that are read as pictures."""
    extensions = Image.registered_extensions()  # which loads the formats
    return {suffix for suffix, kind in extensions.items() if kind in Image.OPEN.keys() - REFUSED_FORMATS - {"EPS"}}


class ImageFolder:
    """A folder of images that `file_name` fields of annotations point into, and out of which they may not lead.

    Args:
        path: an existing folder; it may itself be a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._real_path = os.path.realpath(path)
        self._names: dict[str, dict[str, str]] = {}

    def resolve(self, file_name: object) -> str:
        """The absolute path of `file_name`, which need not exist. A file that has this name with slashes for
        backslashes, or in another Unicode normal form, is found.

        Raises:
            ValueError: `file_name` is no text, or leads out of the folder: `..`, an absolute path, or a link.
        """
        if not isinstance(file_name, str) or not file_name or "\0" in file_name:
            raise ValueError(f"file_name {file_name!r} is not the name of a file")
        path = os.path.join(self._real_path, file_name)
        if not os.path.lexists(path):
            path = self._find(file_name.replace("\\", "/")) or path
        if os.path.commonpath([self._real_path, os.path.realpath(path)]) != self._real_path:
            raise ValueError(f"file_name {file_name!r} leads out of the image folder {self.path}")
        return path

    def _find(self, name: str) -> str | None:
        """The file whose path equals `name` in one normal form."""
        folder = self._real_path
        for part in name.split("/"):
            path = os.path.join(folder, part)
            if not os.path.lexists(path):
                if folder not in self._names:
                    entries = os.listdir(folder) if os.path.isdir(folder) else []
                    self._names[folder] = {unicodedata.normalize("NFC", entry): entry for entry in entries}
                entry = self._names[folder].get(unicodedata.normalize("NFC", part))
                if entry is None:
                    return None
                path = os.path.join(folder, entry)
            folder = path
        return folder


def image_path_problem(path: str, folder: str, allow_urls: bool) -> str | None:
    """
    What forbids to read an image that data name by a path or URL; None: nothing does. Data are a stranger's: without
    this, a table could have any file of this machine read, or any address of its network asked.

    Args:
        path: as the data has it.
        folder: where its files may lie.
        allow_urls: whether URLs of public servers may be fetched.
    """
    if is_url(path):
        return (
            None
            if allow_urls
            else "is a URL; --allow-urls, or `data.allow_urls: true`, fetches those of public servers"
        )
    if path.startswith(HUB_SCHEME) and "::" not in path:
        return None
    if "://" in path or "::" in path or "\0" in path:
        return "is neither a file nor an http(s) URL"
    folder = os.path.realpath(folder)
    return (
        None
        if os.path.commonpath([folder, os.path.realpath(path)]) == folder
        else "lies outside the folder of the data"
    )


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
        with open_header(image):
            return None
    except Image.DecompressionBombError as error:
        return None if _is_large_jpeg(image) else f"image is too large ({error}); make it smaller"
    except Image.UnidentifiedImageError:
        if not is_heif(image):
            return "not an image, or one of a format that is not read"
        return (
            None if find_spec("pillow_heif") else "an HEIC photo; pip install 'fusion-captioner[heic]', which reads it"
        )
    except Exception as error:
        # Pillow's plugins raise what their parsers meet: OSError, SyntaxError, struct.error, ValueError, ...
        return f"image cannot be read ({type(error).__name__}: {error})".replace("\n", " ")


def _is_large_jpeg(image: str | bytes) -> bool:
    """Whether it is a JPEG above Pillow's limit that cameras write."""
    try:
        with JpegImagePlugin.JpegImageFile(image if isinstance(image, str) else BytesIO(image)) as opened:
            return opened.width * opened.height <= MAX_IMAGE_PIXELS
    except Exception:
        return False


def image_problems(paths: list[str], label: str) -> list[str | None]:
    """[`image_problem`] of many files, with a progress bar on a terminal."""
    from tqdm import tqdm  # it would delay the first caption

    with warnings.catch_warnings(), ThreadPoolExecutor(HEADER_THREADS) as pool:
        # A large but allowed image is no news here. (Filters belong to the process: set here, not in the threads.)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        results = pool.map(image_problem, paths)
        return list(tqdm(results, total=len(paths), desc=f"checking images of {label}", disable=None, leave=False))


def read_stored(url: str) -> bytes:
    """
    The content of a file in a store that fsspec knows, as large as a download may be.

    Raises:
        ValueError: it cannot be read, or is larger.
    """
    import fsspec  # takes longer to load than a photo takes to caption

    try:
        with fsspec.open(url, "rb") as file:
            content = file.read(MAX_DOWNLOAD_BYTES + 1)
    except Exception as error:  # stores raise all sorts
        raise ValueError(f"{url}: cannot be read ({' '.join(error_text(error).split())})") from error
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"{url}: more than {MAX_DOWNLOAD_BYTES // 1024**2} MiB")
    return content


def open_image(image: dict[str, Any], image_id: str, image_processor: Any) -> Image.Image:
    """Decode an image of a data set, as an upright RGB picture.

    Args:
        image: `path` and `bytes`, as `datasets.Image(decode=False)` gives; the path of a stream may be remote
            (`hf://`), and an http(s) URL is fetched from public servers only.
        image_id: what messages call an image without path.
        image_processor: that the picture is for; a large one is decoded near its `size`.

    Raises:
        FileNotFoundError, OSError, ValueError: the file is missing, unreadable, or no image; the message names it.
    """
    path, content = image["path"], image["bytes"]
    if content is None and path is not None and "://" in path and not is_url(path):
        if not path.startswith(HUB_SCHEME) or "::" in path:
            raise ValueError(f"{path}: is neither a file nor an http(s) URL")
        image = {"path": path, "bytes": read_stored(path)}
    size = image_processor.size  # transformers' `SizeDict`, which iterates over pairs, as no dict does
    target_size = None
    if image_processor.do_resize and "height" in size and "width" in size:
        target_size = (size["height"], size["width"])
    return load_image(image, target_size, name=path or f"image_id {image_id!r}", public_only=True)
