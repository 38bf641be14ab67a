"""The page in headless Chromium, the one of the system: what a person does there, by pointer and by keyboard."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusion_captioner.serving.page_texts import TEXTS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (such as apt install chromium)"),
]
PHONE = 375  # pixels wide
TIMEOUT = 60_000  # milliseconds; the machine may be busy
# What has the focus: its name, and whether it shows that it has it. A radio button that is not seen shows it by its
# label.
FOCUSED = """() => {
    const focused = document.activeElement, next = focused.nextElementSibling;
    const shown = getComputedStyle(focused).opacity === "0" ? next : focused;
    const name = focused.getAttribute("aria-label") || focused.closest("label")?.innerText || focused.innerText;
    return [(name || next?.innerText || "").trim(), getComputedStyle(shown).outlineStyle !== "none"];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    sync_api.expect.set_options(timeout=TIMEOUT)
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=TIMEOUT)
        yield browser
        browser.close()


def opened(browser: Any, url: str, width: int, locale: str, scheme: str) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 800}, locale=locale, color_scheme=scheme)
    page.set_default_timeout(TIMEOUT)
    page.goto(url)
    page.get_by_role("tab").first.wait_for()
    page.locator("input[type=file]").first.wait_for(state="attached")
    page.get_by_text("Loading...", exact=True).wait_for(state="detached")  # the tabs are there before their contents
    return page


def check(page: Any) -> None:
    """Nothing is wider than the page, maps and found photos have alt text, and axe-core finds no serious fault."""
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.locator("img:not([alt]):visible, .word-maps img[alt=''], .found img[alt='']").count() == 0
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    faults = [
        fault for fault in axe.Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")
    ]
    assert [(fault["id"], [node["target"] for node in fault["nodes"]]) for fault in faults] == []


@pytest.fixture
def saved(photo_folder: Path) -> Iterator[Path]:
    """The folder of photos; what is saved there is removed."""
    yield photo_folder
    for file in (*photo_folder.glob("*.txt"), *photo_folder.glob("*.csv")):
        file.unlink()


@pytest.mark.parametrize(
    ("language", "locale", "width", "scheme"), [("en", "en", 1280, "light"), ("zh", "zh-CN", PHONE, "dark")]
)
def test_every_tab_by_pointer(
    browser: Any, page_url: str, saved: Path, language: str, locale: str, width: int, scheme: str
) -> None:
    from playwright.sync_api import expect

    for file in (*saved.glob("*.csv"), *saved.glob("*.txt")):
        file.unlink()  # of the other language: its captions are not these
    texts = TEXTS[language]
    page = opened(browser, page_url, width, locale, scheme)
    panel = page.locator("[role=tabpanel]:visible")
    check(page)

    page.locator("input[type=file]").first.set_input_files(saved / "0.png")
    words = page.locator(".word-maps label")
    words.nth(1).wait_for()
    shown = page.locator(".word-maps .maps:visible img").first
    page.mouse.move(0, 0)
    first = shown.get_attribute("src")
    words.nth(1).hover()
    expect(shown).not_to_have_attribute("src", first)
    alternatives = page.get_by_role("radio", name=re.compile(r"%\)$"))
    assert alternatives.count() > 1 and alternatives.first.is_checked()
    explained = page.locator(".word-maps").inner_html()
    alternatives.nth(1).check()
    page.wait_for_function("old => document.querySelector('.word-maps')?.innerHTML !== old", arg=explained)
    check(page)

    page.get_by_role("tab", name=texts["tab_folder"]).click()
    check(page)
    page.get_by_role("button", name=texts["caption_all"]).click()
    expect(page.get_by_role("textbox", name=texts["written"])).to_have_value(
        texts["written_count"].format(count=3, total=3)
    )
    number, caption = (page.get_by_role("textbox", name=texts[key], exact=True) for key in ("number", "caption"))
    expect(number).to_have_value("1 / 3: 0.png")
    caption.fill("two dogs")
    page.get_by_role("button", name=texts["next"]).click()
    expect(number).to_have_value("2 / 3: 1.png")
    caption.fill("a cat")
    page.get_by_role("button", name=texts["save"], exact=True).click()
    result = page.get_by_role("textbox", name=texts["saved"], exact=True)
    expect(result).to_have_value(re.compile(r"captions\.csv"))
    assert (saved / "captions.csv").read_text(encoding="utf-8").splitlines()[1:3] == ["0.png,two dogs", "1.png,a cat"]
    page.get_by_role("radio", name=texts["sidecars"]).check()
    page.get_by_role("button", name=texts["save"], exact=True).click()
    expect(result).to_have_value(re.compile(r"^(?!.*captions\.csv).+"))  # it is empty at first
    assert (saved / "0.txt").read_text() == "two dogs\n" and (saved / "1.txt").read_text() == "a cat\n"
    check(page)

    page.get_by_role("tab", name=texts["tab_question"]).click()
    panel.locator("input[type=file]").set_input_files(saved / "0.png")
    panel.locator("img").first.wait_for()
    page.get_by_role("textbox", name=texts["question"]).press("Enter")
    page.get_by_text("the question is empty").first.wait_for()
    page.get_by_role("button", name="Close").last.click()
    expect(page.locator(".toast-body")).to_have_count(0)
    page.get_by_role("textbox", name=texts["question"]).fill("w5")
    with page.expect_response(lambda answer: "queue/join" in answer.url) as answered:
        page.get_by_role("button", name=texts["ask"], exact=True).click()
    assert answered.value.ok
    check(page)

    page.get_by_role("tab", name=texts["tab_search"]).click()
    page.get_by_role("textbox", name=texts["query"]).fill("a dog")
    page.keyboard.press("Enter")
    expect(panel.locator("img:visible")).to_have_count(2)
    check(page)
    page.close()


def test_everything_by_keyboard(browser: Any, page_url: str, saved: Path) -> None:
    from playwright.sync_api import expect

    texts = TEXTS["en"]
    page = opened(browser, page_url, PHONE, "en", "light")

    def tab_to(name: str) -> None:
        passed = []
        end = time.monotonic() + TIMEOUT / 1000  # a tab that was just opened may still load its contents
        while time.monotonic() < end:
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                passed = []  # the page's end; the next press begins again
                continue
            focused, visible = page.evaluate(FOCUSED)
            assert visible, focused
            if focused == name:
                return
            passed.append(focused)
            assert len(passed) < 40, f"{name} is not among {passed}"
        raise AssertionError(f"{name} was not reached")

    tab_to("Drop an image file here to upload")
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(20):  # the first press may come before the page listens
        page.keyboard.press("Space")
        page.wait_for_timeout(500)
        if choosers:
            break
    choosers[0].set_files(saved / "0.png")
    words = page.locator(".word-maps label")
    words.nth(1).wait_for()
    tab_to(words.first.inner_text())
    page.keyboard.press("ArrowRight")
    page.mouse.move(0, 0)
    expect(page.locator(".word-maps .maps-2")).to_be_visible()
    expect(page.locator(".word-maps .maps-1")).not_to_be_visible()

    page.get_by_role("tab").first.focus()
    tab_to(texts["tab_folder"])
    page.keyboard.press("Enter")
    tab_to(texts["caption_all"])
    page.keyboard.press("Space")
    expect(page.get_by_role("textbox", name=texts["number"])).to_have_value("1 / 3: 0.png")
    tab_to(texts["caption"])
    page.keyboard.press("Control+a")
    page.keyboard.type("three dogs")
    page.keyboard.press("Enter")  # the next photo
    expect(page.get_by_role("textbox", name=texts["number"])).to_have_value("2 / 3: 1.png")
    tab_to(texts["csv"])
    tab_to(texts["replace"])
    page.keyboard.press("Space")
    expect(page.get_by_role("checkbox", name=texts["replace"])).to_be_checked()
    tab_to(texts["save"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name=texts["saved"], exact=True)).to_have_value(re.compile("captions.csv"))
    assert "0.png,three dogs" in (saved / "captions.csv").read_text(encoding="utf-8")
    page.close()
