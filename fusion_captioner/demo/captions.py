"""True sentences about a composed scene: what there is, how many of it, and where, as different people say it."""

from random import Random

from fusion_captioner.demo.composition import Group, Scene
from fusion_captioner.demo.drawing import KINDS

CAPTIONS_PER_IMAGE = 5

_TEXTURE_NOUNS = {"striped": "stripes", "spotted": "spots", "checked": "checks"}

# Where things on the ground are, and where things in the air are, each so that it follows a noun or opens a sentence.
_ON = {
    "meadow": ("in a meadow", "on the grass", "in a green field"),
    "beach": ("on the beach", "on a sandy beach", "on the sand"),
    "night": ("in the dark", "at night", "in the moonlight"),
    "brick wall": ("by a brick wall", "near a brick wall", "next to a brick wall"),
    "wooden table": ("on a wooden table", "on the table", "on a table"),
    "snow": ("in the snow", "on a snowy field", "in deep snow"),
    "sea": ("on the sea", "on the water", "at sea"),
    "road": ("on the road", "on a road", "on the street"),
}
_OVER = {
    "meadow": ("over a meadow", "over the grass", "over a green field"),
    "beach": ("over the beach", "over a sandy beach", "over the sand"),
    "night": ("in the night sky", "at night", "in the moonlight"),
    "brick wall": ("by a brick wall", "near a brick wall", "next to a brick wall"),
    "wooden table": ("over a wooden table", "over the table", "over a table"),
    "snow": ("over the snow", "over a snowy field", "over deep snow"),
    "sea": ("over the sea", "over the water", "above the sea"),
    "road": ("over the road", "over a road", "over the street"),
}
# What is said of the first group towards the second, and of the second towards the first.
_RELATION_WORDS = {
    "left of": (("to the left of", "to the left of", "left of"), ("to the right of", "to the right of", "right of")),
    "above": (("above", "above", "over"), ("under", "under", "below")),
    "in front of": (("in front of",), ("behind",)),
}
# Sentences. `{A}` and `{B}` are the first and the second group where they open a sentence, `{a}` and `{b}` elsewhere.
_ABOUT_ONE = (
    "{A} {place}",
    "there {is_a} {a} {place}",
    "{A} {verb} {place}",
    "{place} {verb} {a}",
    "a picture of {a} {place}",
    "the {number}{noun} {here} {is_a} {look}",
)
_ABOUT_ONE_WITH_SIDE = ("{A} {side} of the picture", "there is {a} {side}, {place}")
_ABOUT_TWO = (
    "there {is_a} {a} {to} {b}",
    "{place}, {a} {is_a} {to} {b}",
    "{B} {is_b} {back} {a}",
    "a picture of {a} {to} {b}",
)
# A place at the end speaks of the group before it as well: where one hangs in the air, the other has to come last.
_PLACE_AFTER_FIRST = ("{B} {back} {a} {place}", "{B} and {a} {place}")
_PLACE_AFTER_SECOND = ("{A} {to} {b} {place}", "{A} and {b} {place}")
_STANDING = {"car", "cup", "house", "mushroom", "tree"}
_HANGING = {
    "kite": (("flies", "fly"), ("floats", "float")),
    "star": (("hangs", "hang"), ("floats", "float")),
}


def _is(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _noun(group: Group) -> str:
    return group.kind if group.count == 1 or group.kind == "fish" else group.kind + "s"


def _verb(group: Group, background: str, rng: Random) -> str:
    if KINDS[group.kind].airborne:
        singular, plural = rng.choice(_HANGING[group.kind])
    elif background == "sea":
        singular, plural = "floats", "float"
    elif group.kind in _STANDING:
        singular, plural = "stands", "stand"
    else:
        singular, plural = rng.choice((("lies", "lie"), ("sits", "sit")))
    return singular if group.count == 1 else plural


def _noun_phrase(group: Group, rng: Random, *, opening: bool = False, may_trail: bool = True) -> str:
    """ "two striped red cups" and the like; now and then a detail is left out, as people do."""
    adjectives, tail = [group.colour], ""
    if group.texture != "plain" and rng.random() < 0.9:
        form = rng.random()
        if form < 0.2 and may_trail:
            tail = f" with {_TEXTURE_NOUNS[group.texture]}"
        elif form < 0.4:
            adjectives = [group.colour, group.texture]
        else:
            adjectives = [group.texture, group.colour]
    elif rng.random() < 0.06:
        adjectives = []
    words = " ".join([*adjectives, _noun(group)]) + tail
    number = {1: "an" if words[0] in "aeiou" else "a", 2: "two", 3: "three"}[group.count]
    # "There are a pair of" and "to the left of one kite" are nobody's English.
    if opening and rng.random() < 0.2:
        number = {1: "one", 2: "a pair of", 3: "three"}[group.count]
    return f"{number} {words}"


def _side(group: Group) -> str | None:
    """Which part of the picture a thing is in; None where people would not agree."""
    left, _, right, _ = group.span
    centre = (left + right) / 2
    if centre < 0.36 and right < 0.62:
        return "on the left"
    if centre > 0.64 and left > 0.38:
        return "on the right"
    return "in the middle" if 0.45 < centre < 0.55 else None


def _about_one(scene: Scene, rng: Random) -> list[str]:
    (group,) = scene.groups
    places = (_OVER if KINDS[group.kind].airborne else _ON)[scene.background]
    side = _side(group) if group.count == 1 else None
    forms = _ABOUT_ONE + (_ABOUT_ONE_WITH_SIDE if side else ())
    return [
        form.format(
            A=_noun_phrase(group, rng, opening=True),
            a=_noun_phrase(group, rng),
            is_a=_is(group),
            verb=_verb(group, scene.background, rng),
            place=rng.choice(places),
            here=places[0],
            side=side,
            number={1: "", 2: "two ", 3: "three "}[group.count],
            noun=_noun(group),
            look=group.colour + ("" if group.texture == "plain" else f" and {group.texture}"),
        )
        for form in rng.sample(forms, CAPTIONS_PER_IMAGE)
    ]


def _about_two(scene: Scene, rng: Random) -> list[str]:
    first, second = scene.groups
    forward, backward = _RELATION_WORDS[str(scene.relation)]
    first_hangs, second_hangs = KINDS[first.kind].airborne, KINDS[second.kind].airborne
    forms = list(_ABOUT_TWO)
    if second_hangs or not first_hangs:
        forms += _PLACE_AFTER_FIRST
    if first_hangs or not second_hangs:
        forms += _PLACE_AFTER_SECOND
    if scene.relation == "left of":
        # Said of a pair at one edge it would be a lie.
        if first.span[2] < 0.55 and second.span[0] > 0.45:
            forms.append("{A} on the left and {b} on the right")
    elif scene.relation == "above":
        forms.append("{plain_B} {place} with {a} above {it_b}")
    else:
        forms.append("{plain_B} with {a} in front of {it_b}")
    places = (_OVER if first_hangs and second_hangs else _ON)[scene.background]
    return [
        form.format(
            A=_noun_phrase(first, rng, opening=True),
            a=_noun_phrase(first, rng),
            B=_noun_phrase(second, rng, opening=True),
            b=_noun_phrase(second, rng),
            plain_B=_noun_phrase(second, rng, opening=True, may_trail=False),
            is_a=_is(first),
            is_b=_is(second),
            it_b="it" if second.count == 1 else "them",
            to=rng.choice(forward),
            back=rng.choice(backward),
            place=rng.choice(places),
        )
        for form in rng.sample(forms, CAPTIONS_PER_IMAGE)
    ]


def write_captions(scene: Scene, rng: Random) -> list[str]:
    """Say five true things about a scene.

    Args:
        scene: what to speak of.
        rng: source of chance; the same state gives the same sentences.

    Returns:
        `CAPTIONS_PER_IMAGE` sentences of different form, each with a capital and a full stop.
    """
    sentences = (_about_one if len(scene.groups) == 1 else _about_two)(scene, rng)
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]
