"""The page in the browser, with Gradio: tabs to caption a photo, to caption a folder, to ask and to search."""

import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from fusion_captioner.image_loading import load_image
from fusion_captioner.serving.page_photos import PagePhotos, save_csv, save_sidecars, saved_captions
from fusion_captioner.serving.page_texts import LANGUAGES, TEXTS, language_of
from fusion_captioner.serving.photo_search import PhotoSearch

RESULTS = 12
SHOWN_SIDE = 480
TABLE = "captions.csv"

# Gradio removes the outline of what has the keyboard's focus
STYLE = """
:focus-visible { outline: 3px solid #d97706 !important; outline-offset: 2px; }
@media (max-width: 40rem) { .found .grid-container { grid-template-columns: 1fr 1fr; } }
"""


def _shown_texts(language: str) -> dict[str, str]:
    # Gradio's own words have keys as well, such as "number": ours must not meet them
    return {f"page_{key}": words for key, words in TEXTS[language].items() if isinstance(words, str)}


_i18n = gr.I18n(en=_shown_texts("en"), **{code: _shown_texts("zh") for code in ("zh", "zh-CN", "zh-TW")})


def text(key: str) -> Any:
    """The words with this key in `TEXTS`, in the language of the browser."""
    return _i18n(f"page_{key}")


def _said(function: Callable) -> Callable:
    """What is wrong with the input is shown on the page."""

    @wraps(function)
    def said(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return said


def _language(request: gr.Request | None) -> str:
    return language_of(request.headers.get("accept-language", "") if request is not None else "")


def _required(value: Any, key: str, request: gr.Request) -> Any:
    if not value:
        raise ValueError(TEXTS[_language(request)][key])
    return value


def build_page(
    photos: PagePhotos,
    answers: PagePhotos | None = None,
    search: PhotoSearch | None = None,
    folder: Path | None = None,
    files: list[str] | None = None,
) -> gr.Blocks:
    """
    The page.

    Args:
        photos: the captioner.
        answers: the model that answers questions, if there is one.
        search: the index to search, if there is one.
        folder, files: the folder that is captioned, and its photos; without them, photos are uploaded.
    """
    with gr.Blocks(title="Fusion Captioner", analytics_enabled=False) as page:
        gr.Markdown(text("title"))
        language = _language_choice(page, photos.languages)
        with gr.Tab(text("tab_caption")):
            _caption_tab(photos, language)
        with gr.Tab(text("tab_folder")):
            _folder_tab(photos, language, folder, files or [])
        with gr.Tab(text("tab_question")):
            _question_tab(answers)
        with gr.Tab(text("tab_search")):
            _search_tab(search)
    return page


def launch_options() -> dict[str, Any]:
    """What the page needs of `launch`: nothing is fetched from other servers, and every text has a contrast of 4.5."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )
    return {
        "i18n": _i18n,
        "theme": theme,
        "css": STYLE,
        "footer_links": [],
        "ssr_mode": False,
        "max_file_size": "50mb",
    }


def _photo_input() -> gr.Image:
    return gr.Image(type="filepath", sources=["upload", "clipboard"], label=text("photo"), buttons=[])


def _language_choice(page: gr.Blocks, languages: list[str]) -> gr.Radio | gr.State:
    """The language of the captions, at first the browser's; nothing to choose where the captioner has one language."""
    if not languages:
        return gr.State(None)

    def of_browser(request: gr.Request) -> str:
        return language_of(request.headers.get("accept-language", ""), languages, languages[0])

    names = [(LANGUAGES.get(language, language), language) for language in languages]
    choice = gr.Radio(choices=names, value=languages[0], label=text("language"))
    page.load(of_browser, None, [choice], api_visibility="private")
    return choice


def _caption_tab(photos: PagePhotos, language: gr.Radio | gr.State) -> None:
    @_said
    def describe(path: str | None, language: str | None, request: gr.Request) -> tuple[Any, str]:
        photo = load_image(_required(path, "no_photo", request))
        found = photos.alternatives(photo, language)
        total = sum(each.probability for each in found)
        choices = [(f"{each.text} ({each.probability / total:.0%})", each.text) for each in found]
        return gr.Radio(choices=choices, value=found[0].text), photos.word_maps(
            photo, found[0].text, _language(request), language
        )

    @_said
    def explain(path: str | None, caption: str, language: str | None, request: gr.Request) -> str:
        photo = load_image(_required(path, "no_photo", request))
        return photos.word_maps(photo, caption, _language(request), language)

    with gr.Row():
        with gr.Column(min_width=280):
            photo = _photo_input()
            button = gr.Button(text("describe"), variant="primary")
        with gr.Column(min_width=280, scale=2):
            captions = gr.Radio(choices=[], label=text("alternatives"))
            maps = gr.HTML(label=text("words"))
    button.click(describe, [photo, language], [captions, maps], api_name="describe")
    photo.upload(describe, [photo, language], [captions, maps], api_visibility="private")
    captions.input(explain, [photo, captions, language], [maps], api_name="explain")


def _folder_tab(photos: PagePhotos, language: gr.Radio | gr.State, folder: Path | None, files: list[str]) -> None:
    known: dict[Path, str] = {}

    @_said
    def caption_all(
        uploads: list[str] | None,
        language: str | None,
        anew: bool,
        before: list[list[str]],
        machine: dict[str, str],
        place: int,
        shown: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[list[list[str]], dict[str, str], int, str]:
        chosen = _required(files if folder is not None else uploads, "no_photos", request)
        had: dict[str, str] = {}
        if folder is not None and not anew:
            names = {str(Path(path).relative_to(folder)): path for path in chosen}
            had = {names[name]: text for name, text in saved_captions(folder, [*names], folder / TABLE, known).items()}
        if not anew:  # a correction on the page is newer
            corrected = {path: text for path, text in kept(before, place, shown or "") if text != machine.get(path)}
            had |= {path: text for path, text in corrected.items() if path in chosen}
        captions = dict(had)
        problems: list[str] = []
        progress((len(captions), len(chosen)))
        for found, wrong in photos.captions([path for path in chosen if path not in had], language):
            captions |= dict(found)
            machine = machine | dict(found)
            problems += wrong
            progress((len(captions) + len(problems), len(chosen)))
        texts = TEXTS[_language(request)]
        written = [texts["written_count"].format(count=len(captions), total=len(chosen))]
        if had:
            written.append(texts["had_count"].format(count=len(had)))
        listed = [[path, captions[path]] for path in chosen if path in captions]
        return listed, machine, 0, "\n".join([*written, *problems])

    def show(captions: list[list[str]], place: int) -> tuple[Any, str, str]:
        if not captions:
            return None, "", ""
        path, caption = captions[place]
        picture = load_image(path, (SHOWN_SIDE, SHOWN_SIDE))
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return gr.Image(picture, alt_text=caption), caption, f"{place + 1} / {len(captions)}: {Path(path).name}"

    def kept(captions: list[list[str]], place: int, caption: str) -> list[list[str]]:
        """The captions with a correction of the one that is shown."""
        corrected = " ".join(caption.split())  # a caption is one line
        return [[path, corrected if number == place else old] for number, (path, old) in enumerate(captions)]

    def go(step: int) -> Callable:
        def move(captions: list[list[str]], place: int, caption: str) -> tuple[Any, ...]:
            corrected = kept(captions, place, caption)
            place = max(0, min(place + step, len(captions) - 1))
            return corrected, place, *show(corrected, place)

        return move

    @_said
    def save(
        captions: list[list[str]], place: int, caption: str, form: str, replaces: bool, request: gr.Request
    ) -> tuple[list[list[str]], str, Any]:
        corrected = kept(_required(captions, "no_captions", request), place, caption)
        target = folder or Path(tempfile.mkdtemp(prefix="captions-"))
        names = [str(Path(path).relative_to(folder)) if folder else Path(path).name for path, _ in corrected]
        pairs = list(zip(names, [caption for _, caption in corrected], strict=True))
        if form == "csv":
            result = save_csv(target / TABLE, pairs, replaces, known)
        else:
            save_sidecars(target, pairs, replaces, known)
            result = target
        if folder is None and form != "csv":
            result = Path(shutil.make_archive(str(target), "zip", target))
        said = TEXTS[_language(request)]["saved_count"].format(count=len(pairs), place=result)
        return corrected, said, None if folder is not None else str(result)

    captions, machine, place = gr.State([]), gr.State({}), gr.State(0)
    uploads = gr.File(
        file_count="multiple",
        file_types=["image"],
        type="filepath",
        label=text("photos"),
        visible=folder is None,
    )
    if folder is not None:
        gr.Markdown(f"{folder} ({len(files)})")
    anew = gr.Checkbox(label=text("anew"))
    start = gr.Button(text("caption_all"), variant="primary")
    written = gr.Textbox(label=text("written"), interactive=False, lines=2)
    with gr.Column(visible=False) as correction:
        with gr.Row():
            shown = gr.Image(label=text("photo"), interactive=False, buttons=[], min_width=280)
            with gr.Column(min_width=280):
                number = gr.Textbox(label=text("number"), interactive=False)
                caption = gr.Textbox(label=text("caption"), interactive=True)
                with gr.Row():
                    back = gr.Button(text("previous"), min_width=120)
                    forth = gr.Button(text("next"), min_width=120)
        form = gr.Radio([(text("csv"), "csv"), (text("sidecars"), "sidecars")], value="csv", label=text("form"))
        replaces = gr.Checkbox(label=text("replace"))
        button = gr.Button(text("save"), variant="primary")
        said = gr.Textbox(label=text("saved"), interactive=False)
        result = gr.File(label=text("download"), interactive=False, visible=folder is None)

    shows = [shown, caption, number]
    wanted = [uploads, language, anew, captions, machine, place, caption]
    started = start.click(caption_all, wanted, [captions, machine, place, written], api_name="caption_folder")
    opened = started.then(show, [captions, place], shows, api_visibility="private")
    opened.then(lambda captions: gr.Column(visible=bool(captions)), [captions], [correction], api_visibility="private")
    for press, step in ((back.click, -1), (forth.click, 1), (caption.submit, 1)):
        press(go(step), [captions, place, caption], [captions, place, *shows], api_visibility="private")
    cleared = button.click(lambda: "", None, [said], api_visibility="private")
    saving = [captions, place, caption, form, replaces]
    cleared.then(save, saving, [captions, said, result], api_name="save_captions")


def _question_tab(answers: PagePhotos | None) -> None:
    if answers is None:
        gr.Markdown(text("no_answers"))
        return

    @_said
    def ask(path: str | None, question: str, request: gr.Request) -> str:
        return answers.answer(load_image(_required(path, "no_photo", request)), question)

    photo = _photo_input()
    question = gr.Textbox(label=text("question"))
    button = gr.Button(text("ask"), variant="primary")
    answer = gr.Textbox(label=text("answer"), interactive=False)
    gr.on([button.click, question.submit], ask, [photo, question], [answer], api_name="ask")


def _search_tab(search: PhotoSearch | None) -> None:
    if search is None:
        gr.Markdown(text("no_index"))
        return

    @_said
    def find(query: str) -> list[tuple[Any, str]]:
        if not query.strip():
            raise ValueError("the text to search by is empty; say what to find.")
        found = []
        for result in search.find_text(query, RESULTS):
            try:
                picture = load_image(result["image"], (SHOWN_SIDE, SHOWN_SIDE))
            except (ValueError, OSError):  # a photo that is gone since it was indexed
                continue
            picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
            found.append((picture, f"{Path(result['image']).name} ({result['score']:.2f})"))
        return found

    query = gr.Textbox(label=text("query"))
    button = gr.Button(text("search"), variant="primary")
    results = gr.Gallery(label=text("results"), columns=3, height="auto", elem_classes="found", interactive=False)
    gr.on([button.click, query.submit], find, [query], [results], api_name="search")
