"""Images that clients send: within bounds of pixels, and in the size that the captioner takes."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from PIL import Image

from fusion_captioner.image_decoding import ImageTooLargeError, open_header
from fusion_captioner.image_downloads import download
from fusion_captioner.image_loading import is_url, load_resized_image, read_data_url
from fusion_captioner.inference.launched_process import usable_cores
from fusion_captioner.serving.errors import RequestError

DOWNLOADS_AT_ONCE = 4  # each holds up to 64 MiB
DOWNLOAD_SECONDS = 20.0


class RequestImages:
    """
    Reads images of requests in threads.

    Args:
        image_settings: those of the image processor.
        max_pixels: of an image; larger ones are answered 413 before they are decoded.
        allow_urls: fetch http(s) URLs, of public servers only.
    """

    def __init__(self, image_settings: Mapping[str, Any], max_pixels: int, allow_urls: bool) -> None:
        self.image_settings = image_settings
        self.max_pixels = max_pixels
        self.allow_urls = allow_urls
        self._readers = ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="read-image")
        self._downloaders = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="download")

    async def from_bytes(self, content: bytes, name: str) -> Image.Image:
        """
        The picture of a file's content.

        Raises:
            RequestError: 413 if it is too large, 400 if it is no image.
        """
        try:
            return await self._in(self._readers, self._read, content, name)
        except ImageTooLargeError as error:
            raise RequestError(413, str(error), code="image_too_large") from error
        except (ValueError, OSError) as error:
            raise RequestError(400, str(error), code="invalid_image") from error

    async def from_url(self, url: str, param: str) -> Image.Image:
        """
        The picture behind a data URL, or where that is allowed an http(s) URL.

        Args:
            param: the field of the request that holds it, for errors.

        Raises:
            RequestError: as above, and 400 for other URLs, and those that are not allowed or cannot be fetched.
        """
        try:
            if url[:5].lower() == "data:":
                content = await self._in(self._readers, read_data_url, url, "data URL")
            elif not is_url(url):
                raise ValueError(f"{url[:60]!r} is no URL of an image; send data:image/...;base64,...")
            elif not self.allow_urls:
                raise ValueError("http URLs are not fetched here (--allow-urls is off); send the image as a data URL.")
            else:
                fetch = partial(download, public_only=True, deadline=DOWNLOAD_SECONDS)
                content = await self._in(self._downloaders, fetch, url)
            return await self.from_bytes(content, "image" if url[:5].lower() == "data:" else url)
        except (ValueError, OSError) as error:
            raise RequestError(400, str(error), param, "invalid_image") from error
        except RequestError as error:
            error.param = param
            raise

    def close(self) -> None:
        self._readers.shutdown()
        self._downloaders.shutdown(wait=False, cancel_futures=True)

    def _read(self, content: bytes, name: str) -> Image.Image:
        try:
            with open_header(content) as image:
                pixels = image.width * image.height
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(f"{name}: too large ({error}); make the image smaller") from error
        except Exception:
            pixels = 0  # what is wrong with it is said below
        if pixels > self.max_pixels:
            raise ImageTooLargeError(
                f"{name}: {pixels / 1e6:.1f} megapixels are more than the {self.max_pixels / 1e6:g} that this server "
                "takes; make the image smaller"
            )
        return load_resized_image(content, self.image_settings, name)

    @staticmethod
    async def _in(threads: ThreadPoolExecutor, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
