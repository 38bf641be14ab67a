"""The page without a browser, by Gradio's own client."""

import csv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a server of its own


@pytest.fixture(scope="module")
def client(page_url: str):
    from gradio_client import Client

    return Client(page_url, verbose=False)


def test_a_photo_gets_captions_and_maps(client, photo_folder: Path) -> None:
    from gradio_client import handle_file

    choices, maps = client.predict(handle_file(photo_folder / "0.png"), api_name="/describe")
    assert len(choices["choices"]) > 1 and all(shown.endswith("%)") for shown, _ in choices["choices"])
    assert choices["value"] == choices["choices"][0][1]
    assert maps.count("<input") == len(choices["value"].split())
    other = client.predict(handle_file(photo_folder / "0.png"), choices["choices"][1][1], api_name="/explain")
    assert other != maps and "data:image/jpeg;base64," in other


def test_a_folder_is_captioned_corrected_and_saved(client, photo_folder: Path) -> None:
    assert client.predict(None, False, "", api_name="/caption_folder") == "3 of 3 photos have a caption."
    said = client.predict("two\n dogs ", "csv", False, api_name="/save_captions")
    said = said[0] if isinstance(said, tuple | list) else said
    assert said.startswith("3 captions") and "captions.csv" in said
    rows = list(csv.DictReader((photo_folder / "captions.csv").open(encoding="utf-8")))
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert rows[0]["caption"] == "two dogs" and rows[1]["caption"] != "two dogs"
    client.predict("three dogs", "sidecars", False, api_name="/save_captions")
    assert (photo_folder / "0.txt").read_text() == "three dogs\n" and (photo_folder / "2.txt").exists()
    # what the page wrote itself it may replace, and what others wrote not
    client.predict("four dogs", "csv", False, api_name="/save_captions")
    assert "four dogs" in (photo_folder / "captions.csv").read_text()
    (photo_folder / "captions.csv").write_text("image,caption\n0.png,five dogs\n")
    with pytest.raises(Exception, match="exists already"):
        client.predict("six dogs", "csv", False, api_name="/save_captions")
    assert "five dogs" in (photo_folder / "captions.csv").read_text()


def test_captions_that_a_folder_has_are_kept_and_may_be_corrected(client, photo_folder: Path) -> None:
    for file in photo_folder.glob("*.txt"):
        file.unlink()
    (photo_folder / "captions.csv").write_text("image,caption\n0.png,a dog by hand\n")
    said = client.predict(None, False, "", api_name="/caption_folder")
    assert said.splitlines() == ["3 of 3 photos have a caption.", "1 of them had one before, which is kept."]
    client.predict("a red dog by hand", "csv", False, api_name="/save_captions")
    rows = list(csv.DictReader((photo_folder / "captions.csv").open(encoding="utf-8")))
    assert (rows[0]["caption"], len(rows)) == ("a red dog by hand", 3)
    # a correction that is not saved is kept, too; on request all are written anew
    said = client.predict(None, False, "a green dog", api_name="/caption_folder")
    assert said.endswith("3 of them had one before, which is kept.")
    client.predict("a green dog", "csv", False, api_name="/save_captions")
    assert "a green dog" in (photo_folder / "captions.csv").read_text()
    assert client.predict(None, True, "a green dog", api_name="/caption_folder") == "3 of 3 photos have a caption."


def test_a_question_is_answered(client, photo_folder: Path) -> None:
    from gradio_client import handle_file

    assert isinstance(client.predict(handle_file(photo_folder / "0.png"), "w5", api_name="/ask"), str)
    with pytest.raises(Exception, match="question is empty"):
        client.predict(handle_file(photo_folder / "0.png"), " ", api_name="/ask")
    with pytest.raises(Exception, match="Choose a photo first"):
        client.predict(None, "w5", api_name="/ask")


def test_photos_are_found_without_those_that_are_gone(client) -> None:
    found = client.predict("a dog", api_name="/search")
    assert [entry["caption"] for entry in found] == ["2.png (0.25)", "1.png (0.25)"]
    with pytest.raises(Exception, match="is empty; say what to find"):
        client.predict(" ", api_name="/search")


def test_what_the_page_lacks_is_said_on_it(page_url: str) -> None:
    from tiny_exports import tiny_processor
    from tiny_models import tiny_model

    from fusion_captioner.serving.page import build_page
    from fusion_captioner.serving.page_photos import PagePhotos

    page = build_page(PagePhotos(tiny_model(), tiny_processor()))
    said = str(page.get_config_file()["components"])
    assert "no_answers" in said and "no_index" in said
    assert "'/ask'" not in str(page.get_api_info()) and "'/search'" not in str(page.get_api_info())
