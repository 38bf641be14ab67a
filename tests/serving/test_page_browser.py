"""The page in headless Chromium, the one of the system, on the width of a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (such as apt install chromium)"),
]
WIDTH = 375


@pytest.fixture
def browser_page(page_url: str) -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 800})
        page.goto(page_url)
        page.get_by_role("tab").first.wait_for()
        yield page
        browser.close()


def test_a_word_shows_its_map_by_pointer_and_by_keyboard(browser_page, photo_folder: Path) -> None:
    page = browser_page
    page.locator("input[type=file]").first.set_input_files(photo_folder / "0.png")
    page.locator(".word-maps label").nth(1).wait_for(timeout=60_000)
    shown = page.locator(".word-maps .maps:visible img").first
    before = shown.get_attribute("src")
    page.locator(".word-maps label").nth(1).hover()
    assert page.locator(".word-maps .maps:visible img").first.get_attribute("src") != before
    page.mouse.move(0, 0)
    page.locator(".word-maps input").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".word-maps .maps-2").is_visible() and not page.locator(".word-maps .maps-1").is_visible()
    assert all(image.get_attribute("alt") for image in page.locator(".word-maps img").all())
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH


def test_no_serious_fault_for_people_with_disabilities(browser_page, photo_folder: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = browser_page
    page.locator("input[type=file]").first.set_input_files(photo_folder / "0.png")
    page.locator(".word-maps label").first.wait_for(timeout=60_000)
    faults = axe.Axe().run(page).response["violations"]
    assert [fault["id"] for fault in faults if fault["impact"] in ("serious", "critical")] == []
