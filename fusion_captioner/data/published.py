"""The published data sets that `fusion-captioner download` fetches: addresses, sizes, checksums, licences."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """
    An archive that is fetched and unpacked.

    Args:
        url: where it is.
        size: in bytes.
        members: patterns of the files in it that are unpacked, as paths in the folder of the data set.
        unpacked_size: of these, in bytes; of photos it is about that of the archive.
        checksum: `"md5:..."` or `"sha256:..."`; None: nobody has published one for certain, so that only the size is
            checked, and the SHA-256 of the first download is recorded and compared with later ones.
    """

    url: str
    size: int
    members: tuple[str, ...]
    unpacked_size: int
    checksum: str | None = None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class PublishedDataset:
    """
    Args:
        about: what it is, in a line.
        licence: terms of captions and photos.
        folder: where it is put by default.
        parts: archives by the names that `--only` takes, small ones first.
        hint: what to do next.
    """

    about: str
    licence: str
    folder: str
    parts: dict[str, PublishedFile]
    hint: str


COCO_LICENCE = (
    "captions CC BY 4.0 (cocodataset.org/#termsofuse); each photo under the licence that its Flickr user chose, named "
    "in the annotations"
)
_COCO = "http://images.cocodataset.org"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_KARPATHY_SIZE = 36_745_453
_KARPATHY_CHECKSUM = "sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817"


def _photos(name: str, size: int, checksum: str) -> PublishedFile:
    return PublishedFile(f"{_COCO}/zips/{name}.zip", size, (f"{name}/*.jpg",), size, checksum)


DATASETS = {
    "coco": PublishedDataset(
        "COCO 2017: 118,287 photos for training, 5,000 for validation, five captions each",
        COCO_LICENCE,
        "coco",
        {
            "annotations": PublishedFile(
                f"{_COCO}/annotations/annotations_trainval2017.zip",
                252_907_541,
                ("annotations/captions_*.json",),
                96_000_000,
                "md5:f4bbac642086de4f52a3fdda2de5fa2c",
            ),
            "val2017": _photos("val2017", 815_585_330, "md5:442b8da7639aecaf257c1dceb8ba8c80"),
            "train2017": _photos("train2017", 19_336_861_798, "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
        },
        "train with --data.source {folder}",
    ),
    "karpathy": PublishedDataset(
        "COCO 2014 with Karpathy's split: 113,287 photos for training, 5,000 for validation, 5,000 for testing",
        f"{COCO_LICENCE}; the split: Karpathy & Fei-Fei (2015)",
        "coco_karpathy",
        {
            "split": PublishedFile(_KARPATHY, _KARPATHY_SIZE, ("dataset_coco.json",), 144_186_139, _KARPATHY_CHECKSUM),
            "val2014": _photos("val2014", 6_645_013_297, "md5:a3d79f5ed8d289b7a7554ce06a5782b3"),
            "train2014": _photos("train2014", 13_510_573_713, "md5:0da8c0bd3d6becc4dcb32757491aca88"),
        },
        "train with --data.source {folder}",
    ),
    "flickr30k-annotations": PublishedDataset(
        "Flickr30k, captions alone: 31,014 photos with five captions each, in Karpathy's split",
        "captions for research and education (Young et al., 2014); the photos are given out on request only: "
        "shannon.cs.illinois.edu/DenotationGraph",
        "flickr30k",
        {
            "split": PublishedFile(
                _KARPATHY, _KARPATHY_SIZE, ("dataset_flickr30k.json",), 38_318_553, _KARPATHY_CHECKSUM
            )
        },
        "put the photos into {folder}/images, then train with --data.source {folder}",
    ),
}
