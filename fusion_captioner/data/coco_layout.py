"""COCO's own layout: `annotations/captions_<split>.json` beside a folder of images for each split.

    annotations/captions_train2017.json    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    annotations/captions_val2017.json
    train2017/000000000009.jpg ...
    val2017/...

Other files in `annotations/` (instances, keypoints, image_info) are no captions and are left alone.
"""

from collections.abc import Sequence
from pathlib import Path

from fusion_captioner.data.annotated_images import (
    AnnotatedImage,
    BadExamples,
    SkippedExample,
    clean_captions,
    merge_repeated,
    read_json,
    required_list,
)
from fusion_captioner.data.image_files import ImageFolder

PREFIX = "captions_"


def annotation_files(root: Path) -> dict[str, Path]:
    """The caption file of every split, by COCO's name of the split (`train2017`)."""
    return {path.stem.removeprefix(PREFIX): path for path in sorted(root.glob(f"annotations/{PREFIX}*.json"))}


def read_coco(
    root: Path, source_splits: Sequence[str], images_folder: Path | None, split: str, bad: BadExamples
) -> list[AnnotatedImage]:
    """Read the named COCO splits, in the order of their `images` lists; no image is opened.

    Args:
        root: the folder that holds `annotations/`.
        source_splits: COCO's names, joined into one split.
        images_folder: where the images are, if not beside `annotations/`: the folder of the split or one above it.
        split: the name that the joined split is to have, for messages.
        bad: told of annotations without image, images without caption and names that leave the image folder.

    Raises:
        FileNotFoundError: no annotation file or no image folder for a split.
        ValueError: malformed JSON or an entry without the fields above.
    """
    files = annotation_files(root)
    images = []
    for source_split in source_splits:
        folder = ImageFolder(_image_folder(root, images_folder, source_split))
        images += _read_file(files[source_split], folder, split, bad)
    return merge_repeated(images, split, bad)


def _image_folder(root: Path, images_folder: Path | None, source_split: str) -> Path:
    if images_folder is not None:
        candidates = [images_folder / source_split, images_folder]
    else:
        candidates = [root / source_split, root / "images" / source_split, root / "images"]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"{root}: no folder with the images of COCO split {source_split!r} (looked for "
        f"{', '.join(map(str, candidates))}); put it there, name it with `images_folder`, or choose the splits "
        'to load with `splits`, e.g. {"val": "val2017"}.'
    )


def _read_file(path: Path, folder: ImageFolder, split: str, bad: BadExamples) -> list[AnnotatedImage]:
    document = read_json(path)
    file_names: dict[str, str] = {}
    captions: dict[str, list[object]] = {}
    for number, entry in enumerate(required_list(document, "images", path)):
        try:
            image_id, file_name = str(entry["id"]), entry["file_name"]
        except (TypeError, KeyError) as error:
            raise ValueError(
                f'{path}: images[{number}] has no {error}; COCO has "id" and "file_name" there.'
            ) from None
        if file_names.setdefault(image_id, file_name) != file_name:
            reason = f"image id {image_id} already names {file_names[image_id]!r}"
            bad.report(SkippedExample(split, image_id, str(file_name), reason))
        captions.setdefault(image_id, [])
    for number, entry in enumerate(required_list(document, "annotations", path)):
        try:
            image_id, caption = str(entry["image_id"]), entry["caption"]
        except (TypeError, KeyError) as error:
            raise ValueError(
                f'{path}: annotations[{number}] has no {error}; COCO has "image_id" and "caption" there.'
            ) from None
        if image_id in captions:
            captions[image_id].append(caption)
        else:
            reason = f'annotation without image: "images" has no id {image_id} (caption {caption!r})'
            bad.report(SkippedExample(split, image_id, str(path), reason))

    images = []
    for image_id, file_name in file_names.items():
        try:
            image_path = folder.resolve(file_name)
        except ValueError as error:
            bad.report(SkippedExample(split, image_id, str(path), str(error)))
            continue
        if texts := clean_captions(captions[image_id], split, image_id, image_path, bad):
            images.append(AnnotatedImage(image_id, image_path, texts))
    return images
