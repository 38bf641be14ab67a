"""Screenshots of the page for the documentation: docs/page.jpg, and docs/page.zh.jpg in Chinese.

    python docs/page_screenshot.py [--chromium /usr/bin/chromium] [--out docs]

It starts `fusion-captioner demo-page`, gives it scikit-image's `chelsea`, and chooses a word, in headless Chromium.
Chinese needs a font of the system that has its characters.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from fusion_captioner.demo.photos import demo_photos
from fusion_captioner.serving.page_texts import TEXTS

LANGUAGES = {"en": ("en", "page.jpg"), "zh": ("zh-CN", "page.zh.jpg")}
WORD = "cat"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser (default: /usr/bin/chromium)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the pictures")
    options = parser.parse_args()
    photo = next(file for file in demo_photos() if file.stem == "chelsea")
    command = [sys.executable, "-m", "fusion_captioner.cli", "demo-page", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+?:\d+", line)))
        try:
            with sync_playwright() as playwright:
                flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
                browser = playwright.chromium.launch(executable_path=options.chromium, args=flags)
                for language, (locale, name) in LANGUAGES.items():
                    page = browser.new_page(viewport={"width": 900, "height": 700}, locale=locale)
                    page.set_default_timeout(120_000)
                    page.goto(url)
                    page.get_by_role("tab", name=TEXTS[language]["tab_caption"]).wait_for()
                    page.wait_for_timeout(2000)  # until the page has chosen the browser's language
                    page.get_by_role("radio", name="English").check()  # the language of WORD
                    page.locator("input[type=file]").first.set_input_files(photo)
                    words = page.locator(".word-maps label")
                    words.first.wait_for()
                    words.get_by_text(WORD, exact=True).first.click()
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(500)
                    page.screenshot(path=options.out / name, type="jpeg", quality=80, full_page=True)
                    page.close()
                browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
