"""What the HTML pages of the package share: a file that needs nothing beside itself. Style and pictures are in it, there
is no script, and its content security policy lets it fetch nothing."""

import base64
from html import escape
from io import BytesIO

from PIL import Image

JPEG_QUALITY = 80

STYLE = """\
:root { color-scheme: light dark; --text: #1d2129; --soft: #56606e; --page: #f6f7f9; --card: #fff; --line: #d5dae1; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8eaee; --soft: #a9b2bf; --page: #14171c; --card: #1d2128; --line: #39404b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; }
.soft { color: var(--soft); font-size: .9rem; }
"""


def render(title: str, heading: str, style: str, body: str) -> str:
    """
    The page as HTML.

    Args:
        title, heading: as plain text; the window's and the first line's.
        style: CSS that is added to the shared one.
        body: HTML, escaped by its maker.
    """
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{STYLE}{style}</style>
</head>
<body>
<main>
<h1>{escape(heading)}</h1>
{body}
</main>
</body>
</html>
"""


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    """An RGB copy whose longer side is `side` pixels at most."""
    copy = picture.convert("RGB")
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy


def jpeg_uri(picture: Image.Image) -> str:
    """The picture as a JPEG in a `data:` URI."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
