"""The demonstration's data: a whole folder in COCO's layout, and captions that say what the scene holds."""

import json
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from fusion_captioner.demo.backgrounds import BACKGROUNDS, draw_background
from fusion_captioner.demo.captions import write_captions
from fusion_captioner.demo.composition import HELD_OUT_PAIRS, Group, Scene
from fusion_captioner.demo.drawing import COLOURS, KINDS, TEXTURES, draw_thing
from fusion_captioner.demo.scenes import draw_scene, render_coco_folder, scenes

# A reader of captions that shares nothing with their writer but the words for kinds, colours and textures.
NOUNS = {plural: kind for kind in KINDS for plural in (kind, "fish" if kind == "fish" else kind + "s")}
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "a pair of": 2, "three": 3}
LOOKS = {**{t: t for t in TEXTURES}, "stripes": "striped", "spots": "spotted", "checks": "checked"}
NOUN_PHRASE = re.compile(
    r"(?<!the )\b(?P<number>a pair of|an|a|one|two|three)"
    rf"(?P<adjectives>(?: (?:{'|'.join([*COLOURS, *TEXTURES])}))*)"
    rf" (?P<noun>{'|'.join(sorted(NOUNS, key=len, reverse=True))})\b"
    r"(?: with (?P<pattern>stripes|spots|checks))?"
)
DEFINITE = re.compile(r"^the (?:(two|three) )?(\w+) .* (is|are) (\w+)(?: and (\w+))?\.$")
PLACES = {
    "meadow": {"meadow", "grass", "green field"},
    "beach": {"beach", "sand"},
    "night": {"night", "dark", "moonlight"},
    "brick wall": {"brick wall"},
    "wooden table": {"table"},
    "snow": {"snow", "snowy field"},
    "sea": {"sea", "water"},
    "road": {"road", "street"},
}


def left_of(a: Group, b: Group) -> bool:
    return max(box[2] for box in a.boxes) < min(box[0] for box in b.boxes)


def above(a: Group, b: Group) -> bool:
    return max(box[3] for box in a.boxes) < min(box[1] for box in b.boxes) and (
        min(a.span[2], b.span[2]) > max(a.span[0], b.span[0])
    )


def in_front_of(a: Group, b: Group) -> bool:
    overlap = min(a.span[2], b.span[2]) > max(a.span[0], b.span[0]) and a.span[1] < b.span[3]
    return overlap and a.span[3] > b.span[3]


# What stands between two noun phrases, after an optional "is" or "are", and what it claims.
BETWEEN = {
    "to the left of": left_of,
    "left of": left_of,
    "to the right of": lambda a, b: left_of(b, a),
    "right of": lambda a, b: left_of(b, a),
    "above": above,
    "over": above,
    "under": lambda a, b: above(b, a),
    "below": lambda a, b: above(b, a),
    "in front of": in_front_of,
    "behind": lambda a, b: in_front_of(b, a),
    "and": lambda a, b: True,
    "on the left and": left_of,
}


def check_caption(caption: str, scene: Scene) -> set[str]:
    """Read a caption and hold every claim of it against the scene; return the relations it claimed."""
    assert caption[0].isupper() and caption.endswith(".")
    text = caption[0].lower() + caption[1:]
    by_kind = {group.kind: group for group in scene.groups}
    found = []
    for match in NOUN_PHRASE.finditer(text):
        group = by_kind[NOUNS[match["noun"]]]
        assert NUMBERS[match["number"]] == group.count
        assert (match["noun"] == group.kind) == (group.count == 1 or group.kind == "fish")
        if match["number"] in ("a", "an"):
            next_word = match[0].split()[1]
            assert match["number"] == ("an" if next_word[0] in "aeiou" else "a")
        for word in match["adjectives"].split():
            assert word in (group.colour, group.texture)
        assert match["pattern"] is None or LOOKS[match["pattern"]] == group.texture
        found.append((match, group))
    definite = DEFINITE.match(text)
    if definite:
        number, noun, verb, colour, texture = definite.groups()
        (group,) = scene.groups
        assert (NOUNS[noun], colour, texture or "plain") == (group.kind, group.colour, group.texture)
        assert NUMBERS[number or "one"] == group.count and (verb == "is") == (group.count == 1)
    # Nothing is named that the readers above did not see.
    named = [word for word in re.findall(r"\w+", text) if word in NOUNS]
    assert len(named) == len(found) + bool(definite) > 0

    for place, words in PLACES.items():
        if place != scene.background:
            assert not any(re.search(rf"\b{word}\b", text) for word in words), place
    if text.startswith("there "):
        assert text.split()[1] == ("is" if found[0][1].count == 1 else "are")

    relations = set()
    if len(found) == 2:
        (first, a), (second, b) = found
        between = text[first.end() : second.start()].strip()
        if re.search(r"\bwith$", between):  # "a house [in a meadow] with a cup in front of it"
            relation, pronoun = text[second.end() :].strip(" .").rsplit(" ", 1)
            assert BETWEEN[relation](b, a) and pronoun == ("it" if a.count == 1 else "them")
        else:
            verb = re.match(r"(is|are) ", between)
            assert verb is None or verb[1] == ("is" if a.count == 1 else "are")
            relation = re.sub(r"^(is|are) ", "", between)
            assert BETWEEN[relation](a, b)
            assert relation != "on the left and" or text.endswith("on the right.")
        relations.add(relation)
    elif len(found) == 1 and len(scene.groups) == 1:
        left, _, right, _ = scene.groups[0].span
        centre = (left + right) / 2
        assert "on the left" not in text or centre < 0.4
        assert "on the right" not in text or centre > 0.6
        assert "in the middle" not in text or 0.4 < centre < 0.6
    return relations


@pytest.fixture(scope="module")
def many() -> list[tuple[Scene, list[str]]]:
    composed = scenes("train", 600, 3) + scenes("val", 600, 3)
    return [(scene, write_captions(scene, Random(index))) for index, scene in enumerate(composed)]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_coco_folder(tmp_path_factory.mktemp("data") / "scenes", train=12, val=6, seed=5, size=96)


def test_folder_has_cocos_layout(rendered: Path) -> None:
    seen: set[tuple[str, int]] = set()
    for split, count in (("train2017", 12), ("val2017", 6)):
        content = json.loads((rendered / "annotations" / f"captions_{split}.json").read_text())
        assert set(content) == {"info", "images", "annotations", "licenses"}
        assert len(content["images"]) == count
        assert sorted(path.name for path in (rendered / split).iterdir()) == [
            image["file_name"] for image in content["images"]
        ]
        for image in content["images"]:
            with Image.open(rendered / split / image["file_name"]) as picture:
                assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (96, 96))
            assert (image["width"], image["height"]) == (96, 96)
            captions = [a["caption"] for a in content["annotations"] if a["image_id"] == image["id"]]
            assert len(captions) == len(set(captions)) == 5
        # The splits share no id, as in COCO.
        ids = {(table, entry["id"]) for table in ("images", "annotations") for entry in content[table]}
        assert len(ids) == 6 * count and not ids & seen
        seen |= ids


def test_folder_loads_as_a_caption_dataset(rendered: Path) -> None:
    from fusion_captioner.data.caption_datasets import load_caption_dataset

    dataset = load_caption_dataset(rendered)
    assert {len(captions) for split in dataset for captions in dataset[split]["captions"]} == {5}


def test_captions_say_what_the_scene_holds(many: list[tuple[Scene, list[str]]]) -> None:
    claimed: set[str] = set()
    for scene, captions in many:
        assert len(set(captions)) == 5
        for caption in captions:
            claimed |= check_caption(caption, scene)
    assert claimed == set(BETWEEN)


def test_a_false_caption_is_caught(many: list[tuple[Scene, list[str]]]) -> None:
    scene = next(scene for scene, _ in many if scene.relation == "left of")
    a, b = scene.groups
    swapped = Scene(scene.background, (Group(a.kind, a.colour, a.texture, b.boxes), b), scene.relation)
    with pytest.raises(AssertionError):
        for caption in write_captions(scene, Random(0)):
            check_caption(caption, swapped)


def test_scenes_are_varied_and_within_the_picture(many: list[tuple[Scene, list[str]]]) -> None:
    groups = [group for scene, _ in many for group in scene.groups]
    assert {group.kind for group in groups} == set(KINDS)
    assert {group.colour for group in groups} == set(COLOURS)
    assert {group.texture for group in groups} == set(TEXTURES)
    assert {group.count for group in groups} == {1, 2, 3}
    assert {scene.background for scene, _ in many} == set(BACKGROUNDS)
    for scene, _ in many:
        assert len({group.kind for group in scene.groups}) == len(scene.groups)
        for group in scene.groups:
            left, top, right, bottom = group.span
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert group.colour not in BACKGROUNDS[scene.background].hidden_colours
            for box, neighbour in zip(group.boxes, group.boxes[1:]):
                assert box[2] < neighbour[0]


def test_words_are_few(many: list[tuple[Scene, list[str]]]) -> None:
    words = {word for _, captions in many for caption in captions for word in re.findall(r"\w+", caption.lower())}
    assert len(words) <= 150


def test_held_out_pairs_are_in_a_third_of_validation_only() -> None:
    assert not any(scene.shows_held_out_pair for scene in scenes("train", 1500, 0))
    validation = scenes("val", 400, 0)
    assert 0.25 < np.mean([scene.shows_held_out_pair for scene in validation]) < 0.42
    seen = {(group.kind, group.colour) for scene in validation for group in scene.groups}
    assert seen >= HELD_OUT_PAIRS
    trained = {(group.kind, group.colour) for scene in scenes("train", 1500, 0) for group in scene.groups}
    for kind, colour in HELD_OUT_PAIRS:
        assert any(k == kind for k, _ in trained) and any(c == colour for _, c in trained)


def test_same_seed_gives_the_same_files(rendered: Path, tmp_path: Path) -> None:
    again = render_coco_folder(tmp_path / "again", train=12, val=6, seed=5, size=96)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) == 12 + 6 + 2
    for file in files:
        assert (again / file).read_bytes() == (rendered / file).read_bytes(), file
    other = render_coco_folder(tmp_path / "other", train=12, val=6, seed=6, size=96)
    assert (other / files[-1]).read_bytes() != (rendered / files[-1]).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_fills_its_box_in_its_colour(kind: str) -> None:
    picture = Image.new("RGB", (120, 120), (128, 128, 128))
    draw_thing(picture, kind, COLOURS["red"], "plain", (20.0, 30.0, 100.0, 90.0))
    pixels = np.asarray(picture).astype(int)
    rows, columns = np.nonzero((np.abs(pixels - 128) > 12).any(axis=-1))
    assert (
        np.abs(np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) - (20, 30, 100, 90)).max() <= 2
    )
    red = (pixels[..., 0] > 130) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    assert red.sum() > 0.12 * 80 * 60


@pytest.mark.parametrize("texture", [t for t in TEXTURES if t != "plain"])
def test_a_texture_shows(texture: str) -> None:
    plain, textured = (Image.new("RGB", (96, 96)) for _ in range(2))
    for picture, name in ((plain, "plain"), (textured, texture)):
        draw_thing(picture, "ball", COLOURS["blue"], name, (8.0, 8.0, 88.0, 88.0))
    changed = (np.abs(np.asarray(plain).astype(int) - np.asarray(textured)) > 60).any(axis=-1)
    assert 0.1 < changed.mean() < 0.5


def test_what_is_said_to_be_in_front_is_painted_last() -> None:
    scene = next(s for s in scenes("train", 300, 1) if s.relation == "in front of")
    front, back = scene.groups
    both = np.asarray(draw_scene(scene, 96, Random(1))).astype(int)
    swapped = np.asarray(draw_scene(Scene(scene.background, (back, front), None), 96, Random(1))).astype(int)
    assert (both == swapped).all()  # the order of painting comes from the boxes, not from the order of mention
    without = np.asarray(draw_background(scene.background, 96, Random(1))).astype(int)
    left, top, right, bottom = (round(96 * side) for side in front.span)
    assert (np.abs(both - without)[top:bottom, left:right] > 30).any(axis=-1).mean() > 0.3


@pytest.mark.parametrize(
    "argument, message",
    [({"train": 0}, "`train` (0) must be between"), ({"val": -1}, "`val` (-1)"), ({"size": 16}, "`size` (16)")],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, argument: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render_coco_folder(tmp_path / "new", **argument)
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        render_coco_folder(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_rendering_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(scene: Scene, rng: Random) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusion_captioner.demo.scenes.write_captions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render_coco_folder(tmp_path / "new", train=1, val=1, size=64)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert render_coco_folder(tmp_path / "sub" / "new", train=1, val=1, size=64) == tmp_path / "sub" / "new"
    (tmp_path / "empty").mkdir()
    render_coco_folder(tmp_path / "empty", train=1, val=1, size=64)
    assert len(list((tmp_path / "empty" / "train2017").iterdir())) == 1
