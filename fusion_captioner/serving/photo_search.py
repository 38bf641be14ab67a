"""An index that is open for searches, with the checkpoint that made it."""

import threading
from typing import Any

from PIL import Image

from fusion_captioner.files import expanded
from fusion_captioner.inference.retriever import Retriever
from fusion_captioner.search.image_index import ImageIndex, require_faiss
from fusion_captioner.search.ranking import Query, search_index


class PhotoSearch:
    """
    Photos for a text, and photos like a photo. Several threads may call it: one search runs at a time.

    Args:
        folder: of the index, as it is now: what `fusion-captioner index` changes later is found after a new start.
        trust_remote_code: see `load_head`.

    Raises:
        FileNotFoundError, ValueError: there is no such index, or it is damaged, or its checkpoint is.
        ImportError: faiss is not installed.
    """

    def __init__(self, folder: str, trust_remote_code: bool = False) -> None:
        require_faiss()
        self._index = ImageIndex(expanded(folder))
        self._rows = self._index.searchable("images")
        manifest = self._index.manifest
        self._retriever = Retriever(manifest.model, manifest.revision, trust_remote_code)
        self._index.check_checkpoint(self._retriever)
        self._lock = threading.Lock()

    @property
    def image_settings(self) -> dict[str, Any]:
        return self._retriever.image_processor.to_dict()

    def find_text(self, text: str, top: int, rerank: int = 0) -> list[dict[str, Any]]:
        """
        The photos that are closest to a text, best first.

        Args:
            top, rerank: see [`search_index`].

        Raises:
            ValueError: the text is longer than the tokenizer takes, or there is no score to re-rank by.
        """
        with self._lock:
            query = Query.of(text, None, self._retriever)
            return search_index(self._index, self._rows, self._retriever, query, top, rerank)[0]

    def find_like(self, picture: Image.Image, top: int) -> list[dict[str, Any]]:
        """The photos that are most like a picture, best first."""
        with self._lock:
            (embedding,) = self._retriever.embed_images([picture])
            query = Query(None, picture, embedding)
            return search_index(self._index, self._rows, self._retriever, query, top)[0]
