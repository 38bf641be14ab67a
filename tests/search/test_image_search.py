"""`fusion-captioner index` and `search` on a tiny retrieval model: what is found, what is embedded, what survives."""

import errno
import json
import logging
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tiny_exports import tiny_processor
from tiny_models import randomize, tiny_head, tiny_model

from fusion_captioner import FusionCaptionerForImageTextRetrieval
from fusion_captioner.cli import main
from fusion_captioner.data.feature_shards import write_table
from fusion_captioner.file_locks import wait_for_lock
from fusion_captioner.fingerprints import hash_bytes
from fusion_captioner.inference.retriever import Retriever
from fusion_captioner.search import indexed_images
from fusion_captioner.search.image_index import ROW_FEATURES, ImageIndex

faiss = pytest.importorskip("faiss")

CAPTIONS = [["w5 w6", "w7"], ["w8 w9 w10", "w11 w12"], ["w13", "w14 w15"], ["w16 w17", "w5 w6"]]


class Result(NamedTuple):
    status: int
    lines: list[dict[str, Any]]
    errors: list[str]


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model() -> FusionCaptionerForImageTextRetrieval:
    fields = {"contrastive_loss_weight": 1.0, "matching_loss_weight": 1.0}
    return tiny_head(FusionCaptionerForImageTextRetrieval, **fields)


@pytest.fixture(scope="module")
def checkpoint(model: FusionCaptionerForImageTextRetrieval, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retriever")
    model.save_pretrained(folder)
    processor = tiny_processor()
    processor.tokenizer.model_max_length = 8
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same but for its weights."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("other") / "retriever")
    other = FusionCaptionerForImageTextRetrieval.from_pretrained(folder)
    randomize(other, seed=1)
    other.save_pretrained(folder)
    return folder


def save_picture(path: Path, seed: int) -> Path:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        save_picture(folder / f"{number}.png", number)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """COCO's layout, with a caption that two images share."""
    root = tmp_path / "data"
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for number, captions in enumerate(CAPTIONS):
        save_picture(root / "val2017" / f"{number}.png", number)
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [{"image_id": number, "caption": caption} for caption in captions]
    content = {"images": images, "annotations": annotations}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*flags: object) -> Result:
        status = main([str(flag) for flag in flags])
        output = capsys.readouterr()
        return Result(status, [json.loads(line) for line in output.out.splitlines()], output.err.splitlines())

    return run


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """The one line of a run that does nothing."""

    def refused(*flags: object) -> str:
        result = run(*flags)
        assert (result.status, result.lines) == (2, [])
        (line,) = result.errors
        assert line.startswith("fusion-captioner: ")
        return line

    return refused


@pytest.fixture
def index(run: Run, checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What `index SOURCE` with the index `tmp_path / "index"` reports."""

    def index(source: Path, *flags: object, status: int = 0) -> dict[str, Any]:
        result = run("index", source, "--model", checkpoint, "--out", tmp_path / "index", *flags)
        assert result.status == status, result.errors
        return result.lines[0]

    return index


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the image tower was given."""
    calls: list[int] = []
    embed = Retriever.embed_images
    monkeypatch.setattr(
        Retriever, "embed_images", lambda self, pictures: calls.append(len(pictures)) or embed(self, pictures)
    )
    return calls


@torch.no_grad()
def image_embeds(model: FusionCaptionerForImageTextRetrieval, paths: list[Path]) -> torch.Tensor:
    inputs = tiny_processor()(images=[str(path) for path in paths], return_tensors="pt")
    return model.get_image_features(**inputs).pooler_output


@torch.no_grad()
def text_embeds(model: FusionCaptionerForImageTextRetrieval, texts: list[str]) -> torch.Tensor:
    return model.get_text_features(**tiny_processor()(text=texts, add_eos=True, return_tensors="pt")).pooler_output


def ranked(names: list[Any], scores: torch.Tensor, ranks: torch.Tensor | None = None) -> list[tuple[Any, Any]]:
    """Names and scores, best first: by `ranks` if there are any."""
    order = (scores if ranks is None else ranks).argsort(descending=True).tolist()
    return [(names[place], pytest.approx(scores[place].item(), abs=1e-3)) for place in order]


def found(result: Result, key: str, score: str = "score") -> list[tuple[Any, Any]]:
    assert result.status == 0, result.errors
    return [(line[key], line[score]) for line in result.lines]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_images_are_found_by_text_and_by_image(
    run: Run,
    index: Callable[..., dict[str, Any]],
    model: FusionCaptionerForImageTextRetrieval,
    photos: Path,
    tmp_path: Path,
) -> None:
    assert index(photos) == {
        "index": str(tmp_path / "index"),
        "images": 5,
        "texts": 0,
        "embedded_images": 5,
        "embedded_texts": 0,
        "removed_images": 0,
        "bad_images": 0,
    }
    paths = sorted(photos.iterdir())
    embeds, names = image_embeds(model, paths), [str(path) for path in paths]
    by_text = run("search", tmp_path / "index", "w5 w6 w7")
    assert found(by_text, "image") == ranked(names, embeds @ text_embeds(model, ["w5 w6 w7"])[0])
    by_image = run("search", tmp_path / "index", "--image", paths[3], "--top", 2)
    assert found(by_image, "image") == ranked(names, embeds @ embeds[3])[:2]
    assert by_image.lines[0] == {"image": names[3], "score": 1.0}


def test_texts_are_found_by_image_and_fused_scores_order_both(
    run: Run,
    index: Callable[..., dict[str, Any]],
    model: FusionCaptionerForImageTextRetrieval,
    checkpoint: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    report = index(dataset, "--split", "val")
    assert (report["images"], report["texts"], report["embedded_texts"]) == (4, 7, 7)
    paths = sorted((dataset / "val2017").iterdir())
    names = [str(path) for path in paths]
    texts = sorted({text for captions in CAPTIONS for text in captions})
    by_image = run("search", tmp_path / "index", "--image", paths[2], "--find", "texts")
    embeds = image_embeds(model, paths)
    assert found(by_image, "text") == ranked(texts, text_embeds(model, texts) @ embeds[2])
    (shared,) = (line for line in by_image.lines if line["text"] == "w5 w6")
    assert shared["images"] == [names[0], names[3]]

    processor = tiny_processor()
    with torch.no_grad():
        inputs = processor(text=texts, add_eos=True, return_tensors="pt")
        states = model.get_text_features(**inputs).last_hidden_state
        regions = model.get_image_hidden_states(processor(images=names, return_tensors="pt")["pixel_values"])
        pairs = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(names)))
        matching = model.rerank(pairs, states, regions, inputs["attention_mask"]).view(len(texts), len(names))
        # what the towers see counts as well
        both = matching + model.alignment.inverse_temperature * text_embeds(model, texts) @ embeds.T
    by_text = run("search", tmp_path / "index", "w16 w17", "--rerank", 10)
    assert found(by_text, "image", "matching") == ranked(
        names, *(scores[texts.index("w16 w17")] for scores in (matching, both))
    )
    assert {line["image"]: line["captions"] for line in by_text.lines} == dict(zip(names, CAPTIONS))
    by_image = run("search", tmp_path / "index", "--image", paths[1], "--find", "texts", "--rerank", 10)
    assert found(by_image, "text", "matching") == ranked(texts, matching[:, 1], both[:, 1])

    # the best by similarity alone are looked at again, and the others follow in their order
    similar = [name for name, _ in ranked(names, embeds @ text_embeds(model, ["w16 w17"])[0])]
    some = run("search", tmp_path / "index", "w16 w17", "--rerank", 2)
    assert {line["image"] for line in some.lines if "matching" in line} == set(similar[:2])
    assert [line["image"] for line in some.lines if "matching" not in line] == similar[2:]

    paths[0].unlink()  # the data set, which is cached, still names it
    result = run("index", dataset, "--split", "val", "--model", checkpoint, "--out", tmp_path / "index")
    assert result.status == 1 and "0.png" in result.errors[0] and "1 of 4 images" in result.errors[1]
    assert (result.lines[0]["removed_images"], result.lines[0]["texts"]) == (1, 6)
    by_image = run("search", tmp_path / "index", "--image", paths[2], "--find", "texts", "--top", 10)
    assert sorted(line["text"] for line in by_image.lines) == sorted(set(texts) - {"w7"})


def test_images_inside_of_tables(run: Run, index: Callable[..., dict[str, Any]], photos: Path, tmp_path: Path) -> None:
    contents = [{"bytes": path.read_bytes(), "path": None} for path in sorted(photos.iterdir())]
    table = {"image": contents, "caption": [f"w{5 + number}" for number in range(5)], "image_id": list("abcde")}
    features = {"image": datasets.Image(), "caption": datasets.Value("string"), "image_id": datasets.Value("string")}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(
        tmp_path / "table" / "train.parquet"
    )
    assert index(tmp_path / "table")["images"] == 5
    by_image = run("search", tmp_path / "index", "--image", photos / "2.png", "--top", 1)
    assert by_image.lines == [{"image": "train/c", "score": 1.0, "captions": ["w7"]}]
    by_text = run("search", tmp_path / "index", "w6", "--rerank", 5)
    assert found(by_text, "image", "matching") and all("matching" in line for line in by_text.lines)


def test_captions_of_tables_and_of_files_next_to_photos(
    run: Run, index: Callable[..., dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    for number, text in enumerate(["w5 w6", "w7\nw8 w9"]):
        (photos / f"{number}.txt").write_text(text)
    counts = index(photos)
    # photos without a caption file are found, too
    assert (counts["images"], counts["texts"], counts["bad_images"]) == (5, 3, 0)
    for file in photos.glob("*.txt"):
        file.unlink()
    (photos / "captions.csv").write_text("image,caption\n0.png,w5 w6\n1.png,w7\n1.png,w8 w9\n")
    counts = index(photos)
    assert (counts["images"], counts["texts"], counts["embedded_images"], counts["removed_images"]) == (2, 3, 0, 3)
    result = run("search", tmp_path / "index", "w5 w6", "--top", 1)
    assert result.status == 0, result.errors


def test_columns_and_a_folder_of_images_are_named_and_kept(
    run: Run,
    index: Callable[..., dict[str, Any]],
    refused: Callable[..., str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "all.csv").write_text("photo,seen,said\n0.png,w5 w6,w10\n1.png,w7,w11\n")
    monkeypatch.chdir(tmp_path)
    flags = ["--images-folder", "photos", "--image-column", "photo", "--caption-column", "seen", "said"]
    counts = index(tmp_path / "tables", *flags)
    assert (counts["images"], counts["texts"]) == (2, 4)
    monkeypatch.chdir(photos)  # the index knows the folder by its absolute path
    by_text = run("search", tmp_path / "index", "w5 w6", "--rerank", 2)
    assert by_text.status == 0 and len(by_text.lines) == 2, by_text.errors
    manifest = ImageIndex(tmp_path / "index").manifest
    again = run(*shlex.split(manifest.command(tmp_path / "index"))[1:])
    assert again.status == 0 and again.lines[0]["embedded_images"] == 0, again.errors
    model = ["--model", manifest.model]
    line = refused("index", tmp_path / "tables", *model, "--out", tmp_path / "index")
    assert "image_column photo" in line and "name another folder" in line
    other = [*model, "--out", tmp_path / "other", "--image-column", "picture"]
    assert "--image-column is for data sets" in refused("index", photos, "--layout", "folder", *other)
    line = refused("index", tmp_path / "tables", *other)
    assert "all.csv" in line and "'picture'" in line
    assert not (tmp_path / "other").exists()


def test_two_runs_at_once_do_not_mix_what_they_index(
    run: Run, checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_picture(other / "9.png", 9)
    flags = ("--model", checkpoint, "--out", tmp_path / "index")

    def load_later(*arguments: Any) -> Any:
        # another run makes the index while this one reads its images
        monkeypatch.setattr(indexed_images, "load_images", load)
        assert run("index", other, *flags).status == 0
        return load(*arguments)

    load = indexed_images.load_images
    monkeypatch.setattr(indexed_images, "load_images", load_later)
    second = run("index", photos, *flags)
    assert second.status == 2 and f"is an index of {other}, not of {photos}; name another folder" in second.errors[-1]
    assert ImageIndex(tmp_path / "index").rows("images").num_rows == 1


def test_a_run_waits_for_the_other_and_says_so(
    run: Run, checkpoint: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    results: list[Result] = []
    second = threading.Thread(
        target=lambda: results.append(run("index", photos, "--model", checkpoint, "--out", index))
    )
    with caplog.at_level(logging.INFO), wait_for_lock(index / ".lock", "tests"):
        second.start()
        deadline = time.monotonic() + 300
        while "waiting for" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert f"waiting for process {os.getpid()} on " in caplog.text and f"which updates {index}" in caplog.text
        assert not results and not (index / "index.json").exists()
    second.join()
    assert results[0].lines[0]["images"] == 5


def test_a_second_run_embeds_what_is_new_or_changed_and_drops_what_is_gone(
    run: Run,
    index: Callable[..., dict[str, Any]],
    embedded: list[int],
    model: FusionCaptionerForImageTextRetrieval,
    photos: Path,
    tmp_path: Path,
) -> None:
    def all_found() -> list[tuple[Any, Any]]:
        return found(run("search", tmp_path / "index", "w5 w6"), "image")

    def expected() -> list[tuple[Any, Any]]:
        paths = sorted(photos.iterdir())
        scores = image_embeds(model, paths) @ text_embeds(model, ["w5 w6"])[0]
        return ranked([str(path) for path in paths], scores)

    index(photos, "--batch-size", 3)
    assert embedded == [3, 2]
    before = files(tmp_path / "index")
    index(photos)
    assert embedded == [3, 2] and files(tmp_path / "index") == before

    (photos / "more").mkdir()
    save_picture(photos / "more" / "new.png", 7).rename(photos / "5.png")
    (photos / "more").rmdir()
    assert index(photos)["embedded_images"] == 1  # behind those that were there: the FAISS index is extended
    assert all_found() == expected()

    save_picture(photos / "1.png", 8)
    (photos / "2.png").unlink()
    (photos / "3.png").rename(photos / "renamed.png")
    report = index(photos)
    assert embedded == [3, 2, 1, 1]
    assert (report["images"], report["embedded_images"], report["removed_images"]) == (5, 1, 2)
    assert all_found() == expected()
    shards = sorted(path.name for path in (tmp_path / "index").glob("images-*.arrow"))
    assert shards == ["images-00000.arrow", "images-00001.arrow", "images-00002.arrow"]


class Killed(BaseException):
    """Nobody catches it."""


@pytest.fixture
def kill_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The file whose renaming does not happen any more."""
    victims: list[str] = []
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).name in victims:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    yield victims


@pytest.mark.slow
def test_a_kill_between_writing_and_renaming_loses_nothing(
    run: Run,
    index: Callable[..., dict[str, Any]],
    refused: Callable[..., str],
    embedded: list[int],
    kill_before: list[str],
    photos: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "index"
    kill_before[:] = ["image_rows-1.faiss"]
    with pytest.raises(Killed):
        index(photos)
    assert "never finished; go on with: fusion-captioner index" in refused("search", folder, "w5")
    kill_before.clear()
    assert index(photos)["images"] == 5 and embedded == [5]

    save_picture(photos / "5.png", 5)
    (photos / "0.png").unlink()
    before = run("search", folder, "w5 w6")
    for victim in ("images-00001.arrow", "image_rows-2.arrow", "image_rows-2.faiss", "index.json"):
        kill_before[:] = [victim]
        with pytest.raises(Killed):
            index(photos)
        # what a process leaves that cannot clean up any more
        (folder / f"{victim}.incomplete").write_bytes(b"half")
        assert run("search", folder, "w5 w6") == before
    kill_before.clear()
    report = index(photos)
    # the shard was lost once, and then complete
    assert embedded == [5, 1, 1] and (report["images"], report["removed_images"]) == (5, 1)
    after = {line["image"] for line in run("search", folder, "w5 w6").lines}
    assert after == {str(path) for path in photos.iterdir()}
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("image")) == [
        ".lock",
        "index.json",
        "text_rows-2.arrow",
    ]


def test_a_search_that_began_before_a_run_ended(
    index: Callable[..., dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    index(photos)
    opened = ImageIndex(tmp_path / "index")
    save_picture(photos / "5.png", 5)
    index(photos)
    assert len(opened.searchable("images")) == 6


def test_one_bad_image_does_not_stop_the_others(
    run: Run, refused: Callable[..., str], checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    command = ["index", photos, "--model", checkpoint, "--out", tmp_path / "index"]
    (photos / "1.png").write_bytes(b"no picture")
    shutil.copy(photos / "1.png", photos / "3.png")
    result = run(*command)
    assert result.status == 1
    listed, counted = result.errors[:-1], result.errors[-1]
    assert result.lines[0]["bad_images"] == len(listed) == 2 and "2 of 5 images could not be indexed" in counted
    assert "1.png" in listed[0] and "3.png" in listed[1] and "not an image" in listed[1]
    names = {Path(line["image"]).name for line in run("search", tmp_path / "index", "w5").lines}
    assert names == {"0.png", "2.png", "4.png"}

    before = files(tmp_path / "index")
    for path in photos.iterdir():
        path.write_bytes(b"no picture either")
    result = run(*command)
    assert (result.status, result.lines) == (2, [])
    assert "none of its 5 images can be read, and the index stays as it was" in result.errors[-1]
    after = files(tmp_path / "index")
    assert {name: after[name] for name in before if name != "image_hashes.feather"} == {
        name: before[name] for name in before if name != "image_hashes.feather"
    }


@pytest.mark.parametrize("layout", ["folder", "sidecar", "json"])
def test_a_name_that_is_no_text_does_not_stop_the_others(
    run: Run, checkpoint: Path, photos: Path, tmp_path: Path, layout: str
) -> None:
    odd = photos / os.fsdecode(b"caf\xe9.png")
    shutil.copy(photos / "0.png", odd)
    for photo in list(photos.iterdir()) if layout == "sidecar" else []:
        photo.with_suffix(".txt").write_text("w5")
    if layout == "json":
        rows = [{"image": photo.name, "caption": "w5"} for photo in photos.iterdir()]
        (photos / "captions.json").write_text(json.dumps(rows))
    result = run("index", photos, "--model", checkpoint, "--out", tmp_path / "index")
    assert (result.status, result.lines[0]["images"], result.lines[0]["bad_images"]) == (1, 5, 1), result.errors
    listed = [line for line in result.errors if "caf\\udce9.png: its name is no UTF-8 text" in line]
    assert listed and "1 of 6 images could not be indexed" in result.errors[-1]


def test_an_image_that_has_changed_since_is_not_ranked_by_what_it_shows_now(
    run: Run, index: Callable[..., dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    index(photos)
    save_picture(photos / "1.png", 9)
    (photos / "2.png").unlink()
    result = run("search", tmp_path / "index", "w5", "--rerank", 5)
    assert result.status == 1
    assert {Path(line["image"]).name for line in result.lines[3:]} == {"1.png", "2.png"}
    assert [line for line in result.lines if "matching" in line] == result.lines[:3]
    assert sorted("has changed" in line for line in result.errors) == [False, True]
    assert all("1.png" in line or "2.png" in line for line in result.errors)


def test_an_index_of_another_checkpoint(
    refused: Callable[..., str],
    run: Run,
    index: Callable[..., dict[str, Any]],
    checkpoint: Path,
    other_checkpoint: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    index(photos)
    before = files(tmp_path / "index")
    save_picture(photos / "5.png", 5)
    for line in (
        refused("index", photos, "--model", other_checkpoint, "--out", tmp_path / "index"),
        refused("search", tmp_path / "index", "w5", "--model", other_checkpoint),
    ):
        assert "was built by another checkpoint" in line
        assert str(checkpoint) in line and str(other_checkpoint) in line
    assert files(tmp_path / "index") == before
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    assert run("search", tmp_path / "index", "w5", "--model", moved).status == 0
    assert "another checkpoint" in refused("search", tmp_path / "index", "w5", "--model", with_larger_images(moved))


def with_larger_images(checkpoint: Path) -> Path:
    path = checkpoint / "processor_config.json"
    document = json.loads(path.read_text())
    document["image_processor"]["size"] = {"height": 64, "width": 64}
    path.write_text(json.dumps(document))
    return checkpoint


def test_a_corrupt_index(
    refused: Callable[..., str], run: Run, index: Callable[..., dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    index(photos)
    sound = run("search", folder, "w5")
    for name in ("image_rows-1.faiss", "image_rows-1.arrow"):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:40] + bytes([content[40] ^ 255]) + content[41:])
        line = refused("search", folder, "w5")
        assert str(path) in line and "is damaged; make it again" in line
    # made again from the embeddings, by the command that the line names
    assert index(photos)["embedded_images"] == 0
    assert run("search", folder, "w5") == sound
    # behind a digest that was changed with it, as a stranger can: of other rows, and of something else
    manifest = json.loads((folder / "index.json").read_text())
    narrow = faiss.IndexFlatIP(3)
    narrow.add(np.zeros((5, 3), np.float32))
    for index_of_others in (narrow, faiss.IndexFlatIP(8), None):
        content = b"IxFI" + bytes(60) if index_of_others is None else faiss.serialize_index(index_of_others).tobytes()
        (folder / "image_rows-2.faiss").write_bytes(content)
        manifest["digests"]["image_rows-2.faiss"] = hash_bytes(content)
        (folder / "index.json").write_text(json.dumps(manifest))
        line = refused("search", folder, "w5")
        assert "image_rows-2.faiss: is no index of these rows; make it again with" in line
    (folder / "image_rows-2.faiss").unlink()
    assert "image_rows-2.faiss: is missing" in refused("search", folder, "w5")
    assert index(photos)["embedded_images"] == 0 and run("search", folder, "w5") == sound

    shard = folder / "images-00000.arrow"
    command = ["index", photos, "--model", ImageIndex(folder).manifest.model, "--out", folder]
    for content, words in (
        ("{", "is not valid JSON"),
        ("[" * 200_000, "is not valid JSON"),
        ("[]", "no description of an index"),
        ('{"format_version": 9}', "`format_version` (9) must be 1"),
        ('{"format_version": 1}', "model, revision, fingerprint"),
    ):
        (folder / "index.json").write_text(content)
        for flags in (command, ["search", folder, "w5"]):
            line = refused(*flags)
            assert str(folder / "index.json") in line and words in line
    assert shard.is_file()


@pytest.mark.parametrize(
    ("name", "embedded", "loss"),
    [
        ("images-00000.arrow", 5, "what it held is embedded again"),
        ("image_hashes.feather", 0, "the images are hashed again"),
        ("image_rows-1.faiss", 0, "it is made again"),
        ("image_rows-1.arrow", 0, "it is made again"),
    ],
)
@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.slow
def test_what_is_damaged_of_an_index_is_named_and_made_again(
    run: Run,
    index: Callable[..., dict[str, Any]],
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    embedded: int,
    loss: str,
    is_cut: bool,
) -> None:
    folder = tmp_path / "index"
    index(photos)
    sound = run("search", folder, "w5 w6")
    content = (folder / name).read_bytes()
    place = len(content) * 2 // 3
    (folder / name).write_bytes(
        content[:place] + (b"" if is_cut else bytes([content[place] ^ 8]) + content[place + 1 :])
    )
    assert index(photos)["embedded_images"] == embedded
    (line,) = caplog.messages
    assert line.startswith(f"{folder / name}: is damaged") and line.endswith(f"; {loss}")
    assert run("search", folder, "w5 w6") == sound
    assert index(photos)["embedded_images"] == 0 and caplog.messages == [line]


@pytest.mark.parametrize(
    "kind", ["other vectors", "a flipped bit", "other ids", "distances", "more rows", "too large"]
)
def test_a_faiss_file_behind_a_digest_of_its_damage(
    run: Run,
    refused: Callable[..., str],
    index: Callable[..., dict[str, Any]],
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    folder = tmp_path / "index"
    path = folder / "image_rows-1.faiss"
    index(photos)
    sound = run("search", folder, "w5 w6")
    known = faiss.read_index(str(path))
    vectors = known.reconstruct_n(0, 5)
    content = path.read_bytes()
    if kind == "other vectors":  # of length 1, as a search cannot tell
        known = faiss.IndexFlatIP(8)
        known.add(vectors[::-1].copy())
    elif kind == "other ids":
        known = faiss.IndexIDMap(faiss.IndexFlatIP(8))
        known.add_with_ids(vectors, np.arange(5) + 10**9)
    elif kind == "distances":
        known = faiss.IndexFlatL2(8)
        known.add(vectors)
    elif kind == "more rows":
        known.add(vectors)
    content = faiss.serialize_index(known).tobytes()
    if kind == "a flipped bit":
        content = content[:-1] + bytes([content[-1] ^ 64])  # of an exponent
    elif kind == "too large":
        content = content.replace((40).to_bytes(8, "little"), (2**40).to_bytes(8, "little"))
    path.write_bytes(content)
    manifest = json.loads((folder / "index.json").read_text())
    manifest["digests"][path.name] = hash_bytes(content)
    (folder / "index.json").write_text(json.dumps(manifest))

    if kind != "other vectors":
        assert f"{path}: is no index of these rows; make it again" in refused("search", folder, "w5 w6")
    index(photos)
    (line,) = caplog.messages
    assert line.startswith(f"{path}: ") and line.endswith("; it is made again")
    assert run("search", folder, "w5 w6") == sound


def test_a_full_disk_is_named(
    refused: Callable[..., str], checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = refused("index", photos, "--model", checkpoint, "--out", tmp_path / "index")
    assert f"{tmp_path / 'index'}" in line and "cannot be written (No space left on device); make room" in line


def test_rows_that_a_stranger_wrote(
    run: Run, index: Callable[..., dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    """Pipes are not waited for, and places that do not exist are no faults of ours."""
    folder = tmp_path / "index"
    index(photos)
    path = folder / "image_rows-1.arrow"
    rows = datasets.Dataset.from_file(str(path)).to_list()
    os.mkfifo(tmp_path / "pipe.png")
    rows[0]["image"] = str(tmp_path / "pipe.png")
    rows[1]["image"] = "/dev/zero"
    rows[2] |= {"split": "", "row": -(10**9)}
    rows[3] |= {"split": "", "row": None}
    write_table(path, pa.Table.from_pylist(rows, schema=ROW_FEATURES["images"].arrow_schema))
    manifest = json.loads((folder / "index.json").read_text())
    manifest["digests"][path.name] = hash_bytes(path.read_bytes())
    (folder / "index.json").write_text(json.dumps(manifest))
    result = run("search", folder, "w5", "--rerank", 5)
    assert (result.status, len(result.lines), len(result.errors)) == (1, 5, 4)
    assert all("has changed since it was indexed" in line for line in result.errors)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["search", "nowhere", ""], "is empty; say what to find"),
        (["search", "nowhere", "  \n"], "is empty; say what to find"),
        (["search", "nowhere"], "either a text to search by, or --image"),
        (["search", "nowhere", "w5", "--image", "x.png"], "either a text to search by, or --image"),
        (["search", "nowhere", "--image", ""], "--image ('') is empty"),
        (["search", "nowhere", "w5", "--top", "0"], "--top (0) must be at least 1"),
        (["search", "nowhere", "w5", "--rerank", "-1"], "--rerank (-1)"),
        (["search", "nowhere", "--image", "x.png", "--rerank", "5"], "not images with an image"),
        (["search", "nowhere", "w5", "--find", "texts", "--rerank", "5"], "not texts with a text"),
        (["search", "nowhere", "w5"], "nowhere: no such folder; make one with: fusion-captioner index"),
        (["search", ".", "w5"], ".: holds no index; make one with"),
        (["index", "nowhere", "--model", "m", "--out", "o", "--batch-size", "0"], "--batch-size (0)"),
        (["index", ".", "--model", "/no/model", "--out", "o"], "/no/model: has no config.json"),
    ],
)
def test_flags_that_cannot_be_meant(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(*flags)
    assert list(tmp_path.iterdir()) == []


def test_sources_and_folders_that_do_not_fit(
    refused: Callable[..., str],
    run: Run,
    index: Callable[..., dict[str, Any]],
    checkpoint: Path,
    photos: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    def refuse(source: object, *flags: object, out: Path = tmp_path / "index", model: object = checkpoint) -> str:
        return refused("index", source, "--model", model, "--out", out, *flags)

    (tmp_path / "empty").mkdir()
    assert "empty: the folder holds no images" in refuse(tmp_path / "empty")
    assert "no such file or folder" in refuse(tmp_path / "nowhere")
    assert "is for data sets" in refuse(photos, "--split", "val")
    assert "--split ('dev') is not in" in refuse(dataset, "--split", "dev")
    assert "is neither empty nor an index" in refuse(photos, out=photos)
    assert "is a file; name a folder" in refuse(photos, out=photos / "1.png")
    tiny_model().save_pretrained(tmp_path / "captioner")
    tiny_processor().save_pretrained(tmp_path / "captioner")
    assert "was not trained to search by (`contrastive_loss_weight` is 0.0)" in refuse(
        photos, model=tmp_path / "captioner"
    )
    assert not (tmp_path / "index").exists()

    index(photos)
    before = files(tmp_path / "index")
    assert f"is an index of {photos}, not of {dataset}; name another folder" in refuse(dataset)
    assert "holds no texts to find; index a data set with captions" in refused(
        "search", tmp_path / "index", "w5", "--find", "texts"
    )
    assert "of 11 tokens" in refused("search", tmp_path / "index", "w5 " * 9)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "broken.png: not an image" in refused("search", tmp_path / "index", "--image", tmp_path / "broken.png")
    for path in photos.iterdir():
        path.unlink()  # as a drive that is not mounted
    assert "holds no images" in refuse(photos)
    assert files(tmp_path / "index") == before


def test_without_faiss_the_extra_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for flags in (["index", photos, "--model", checkpoint, "--out", tmp_path / "index"], ["search", photos, "w5"]):
        line = refused(*flags)
        assert "faiss-cpu" in line and "pip install 'fusion-captioner[search]'" in line
    assert not (tmp_path / "index").exists()


def test_a_checkpoint_without_matching_score_finds_but_does_not_rerank(
    run: Run, refused: Callable[..., str], checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    plain = shutil.copytree(checkpoint, tmp_path / "plain")
    tiny_head(FusionCaptionerForImageTextRetrieval, contrastive_loss_weight=1.0).save_pretrained(plain)
    assert run("index", photos, "--model", plain, "--out", tmp_path / "index").status == 0
    assert len(run("search", tmp_path / "index", "w5").lines) == 5
    assert "has no score of fused pairs" in refused("search", tmp_path / "index", "w5", "--rerank", 5)
