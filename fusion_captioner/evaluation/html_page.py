"""HTML pages of the package, each one file: style and pictures are inside, there is no script, and its content
security policy lets it fetch nothing. The templates are Jinja's and extend `page.html`."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

JPEG_QUALITY = 80
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1], encoding="utf-8"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """
    A page as HTML.

    Args:
        template: its file below the package, such as `"evaluation/report.html"`.
        values: of the template's variables, as plain text; it escapes them.
    """
    return _TEMPLATES.get_template(template).render(values)


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    """An RGB copy whose longer side is at most `side` pixels."""
    copy = picture.convert("RGB")
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy


def jpeg_uri(picture: Image.Image) -> str:
    """The picture as a JPEG in a `data:` URI."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
