"""Real photographs that other packages ship, for the demonstration: `pip install 'fusion-captioner[demo]'`."""

from importlib.util import find_spec
from pathlib import Path

import fusion_captioner
from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.image_loading import load_image
from fusion_captioner.inference.attention_maps import explain_captions
from fusion_captioner.inference.attention_page import draw_sheet, render_page

PHOTOS = {
    "skimage": [
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/motorcycle_left.png",
        "data/rocket.jpg",
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
LEARNED_FROM = (
    "The captioner learned from Flickr8k's everyday scenes of people and dogs, and from some photos of COCO and "
    "Visual7W. Pictures of other things it describes with the words it knows, often wrongly; its model card shows how."
)


def demo_photos() -> list[Path]:
    """
    Files of scikit-image and scikit-learn, which are found but not imported.

    Raises:
        ImportError: if one of the two is not installed.
        FileNotFoundError: if a version of theirs lacks a photograph.
    """
    files = []
    for package, names in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ImportError(
                f"{package} is not installed, whose photographs are captioned here: pip install "
                f"'fusion-captioner[demo]'"
            )
        files += [Path(spec.origin).parent / name for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: the package ships no such photograph; install the version that setup.cfg names."
            )
    return files


def caption_demo_photos(out: Path) -> None:
    """
    Caption the photographs with the bundled captioner, in each of its languages; print the captions, and write
    `photos.html` and `photos.png`.

    Args:
        out: an existing folder.
    """
    model, processor = load_captioner(fusion_captioner.DEFAULT_CHECKPOINT)
    files = demo_photos()
    pictures = [load_image(file) for file in files]
    captions = explain_captions(model, processor, pictures)
    first, *others = processor.languages or [""]
    texts = [[(first, caption.text)] for caption in captions]
    inputs = processor(images=pictures, return_tensors="pt") if others else {}
    for language in others:
        written = processor.batch_decode(model.generate(**inputs, language=language), skip_special_tokens=True)
        for of_photo, text in zip(texts, written, strict=True):
            of_photo.append((language, text.strip()))
    print("photographs, captioned by the bundled checkpoint:")
    for file, of_photo in zip(files, texts, strict=True):
        for place, (language, text) in enumerate(of_photo):
            print(f"  {file.name if place == 0 else '':20} {language:3}{text}")
    print(f"  {LEARNED_FROM}")
    names = [file.name for file in files]
    page, sheet = out / "photos.html", out / "photos.png"
    page.write_text(
        render_page(
            "What the captioner says, and what in the picture it depends on", LEARNED_FROM, names, pictures, captions
        ),
        "utf-8",
    )
    draw_sheet(pictures, captions).save(sheet)
    print(f"each with the places that matter for every word: {page}, {sheet}", flush=True)
