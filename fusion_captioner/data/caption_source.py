"""Where captions and their images are, and how they are laid out there."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self

from fusion_captioner.files import expanded


@dataclass
class CaptionSource:
    """
    A data set of images with captions; [`~fusion_captioner.data.caption_datasets.load_caption_dataset`] loads it.

    Args:
        source: path of a folder or file, or name of a Hub repository.
        layout: one of the layouts of `load_caption_dataset`, or `"auto"`: by what the folder holds; what does not
            exist as a path is a Hub repository.
        splits: split → the source's split, or several joined by `+` (`{"train": "train+restval"}`); only these are
            loaded. None: all under their usual names, with Karpathy's `restval` in `train`.
        images_folder: folder of the images, if they are not in the usual place of the layout.
        image_column: tables and JSON: column of images, or of the names of their files; by default a usual name.
        caption_column: tables, JSON and imagefolder: column of captions, each a text or a list of them, or a list of
            such columns; a dotted path for one inside a column (`json.caption`). By default `captions`, `caption`,
            `text`, `comment`, ..., or all of `caption_0`, `caption_1`, ...
        id_column: tables, JSON and imagefolder: id of the image; rows with the same id are joined (but not in a
            stream). By default the image's path; in shards and on the Hub `image_id`, a WebDataset's `__key__`,
            or a digest of the image.
        val_fraction: where there is no split `val`, this part of `train` becomes it. A hash of the image's id decides,
            so that the same images are in it every time, and further images move none of them.
        config_name: Hub only: the repository's configuration.
        revision: Hub only: branch, tag or commit.
        streaming: give `IterableDataset`s, which read a table's row and an image's header when its turn comes.
        cache_dir: where `datasets` keeps the Arrow files; by default its own place.
        skip_bad_images: leave bad examples out (logged, counted, listed) instead of raising at the first.
        allow_urls: tables only: fetch images that rows name by http(s) URLs of public servers.
    """

    source: str
    layout: str = "auto"
    images_folder: str | None = None
    image_column: str | None = None
    caption_column: str | list[str] | None = None
    id_column: str | None = None
    splits: dict[str, str] | None = field(default=None, metadata={"example": "{train: train+restval}"})
    val_fraction: float | None = None
    config_name: str | None = None
    revision: str | None = None
    streaming: bool = False
    skip_bad_images: bool = False
    cache_dir: str | None = None
    allow_urls: bool = False

    def __post_init__(self) -> None:
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"`val_fraction` ({self.val_fraction}) must be between 0 and 1, such as 0.1.")

    @property
    def path(self) -> Path:
        """`source` as an absolute path; it exists unless the source is on the Hub."""
        return expanded(self.source).absolute()

    @property
    def images_path(self) -> Path | None:
        """`images_folder` as an absolute path.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        if self.images_folder is None:
            return None
        path = expanded(self.images_folder).absolute()
        if not path.is_dir():
            raise FileNotFoundError(f"`images_folder` ({self.images_folder}) is no folder.")
        return path

    @classmethod
    def of(cls, other: "CaptionSource", **changes: object) -> Self:
        """The fields of `other`, which may have more of them, with some changed."""
        return cls(**{each.name: getattr(other, each.name) for each in fields(cls)} | changes)
