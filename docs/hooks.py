"""What mkdocs calls while it writes the site: names in brackets, as transformers' docstrings refer, become links."""

import re


def on_page_content(html: str, **_: object) -> str:
    """`[name]` as a link to its place on the page, or, where the page has none, as the plain name."""
    places = re.findall(r'id="(fusion_captioner\.[\w.]+)"', html)

    def link(found: re.Match[str]) -> str:
        place = next((place for place in places if place.endswith(f".{found[1]}")), None)
        code = f"<code>{found[1]}</code>"
        return f'<a href="#{place}">{code}</a>' if place else code

    return re.sub(r"\[<code>([\w.]+)</code>\]", link, html)
