"""What the demonstration's pictures show: scenes drawn at random, in words and boxes, before anything is painted."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from fusion_captioner.demo.backgrounds import BACKGROUNDS
from fusion_captioner.demo.drawing import COLOURS, KINDS, TEXTURES

Box = tuple[float, float, float, float]  # left, top, right, bottom: fractions of the picture's side

# Never drawn in a training picture: what is said of them in a validation picture was put together from a kind and a
# colour seen apart. Every kind and every colour still occurs in training in its other combinations.
HELD_OUT_PAIRS = frozenset(
    {
        ("ball", "purple"),
        ("boat", "black"),
        ("car", "yellow"),
        ("cup", "orange"),
        ("fish", "red"),
        ("house", "blue"),
        ("kite", "white"),
        ("mushroom", "green"),
        ("star", "orange"),
        ("tree", "red"),
    }
)

# The first group of a scene is ... the second.
RELATIONS = ("left of", "above", "in front of")

_MARGIN = 0.03
_GAP = 0.03  # between neighbours
_BIG = ("boat", "car", "house", "tree")  # may stand behind something
_SMALL = ("ball", "cup", "fish", "mushroom")  # may stand before something


@dataclass(frozen=True)
class Group:
    """One to three things alike, and where they are."""

    kind: str
    colour: str
    texture: str
    boxes: tuple[Box, ...]

    @property
    def count(self) -> int:
        return len(self.boxes)

    @property
    def span(self) -> Box:
        """The box around all of them."""
        return (
            min(box[0] for box in self.boxes),
            min(box[1] for box in self.boxes),
            max(box[2] for box in self.boxes),
            max(box[3] for box in self.boxes),
        )


@dataclass(frozen=True)
class Scene:
    """One or two groups of different kinds before a background.

    Attributes:
        background: a key of `BACKGROUNDS`.
        groups: one group, or two.
        relation: of the first group to the second, one of `RELATIONS`; None with one group.
    """

    background: str
    groups: tuple[Group, ...]
    relation: str | None = None

    @property
    def shows_held_out_pair(self) -> bool:
        return any((group.kind, group.colour) in HELD_OUT_PAIRS for group in self.groups)


def _row(rng: Random, kinds: Sequence[str], height: float, groups: Sequence[int]) -> list[Box]:
    """Boxes side by side from left to right with their tops at 0, as tall as fits, `height` at the most.

    Args:
        kinds: a kind for every box.
        groups: the group of every box; things of one group are as tall as each other, nearly.
    """
    scale = {group: height * rng.uniform(0.82, 1.0) for group in sorted(set(groups))}
    heights = [scale[g] * KINDS[k].size * rng.uniform(0.95, 1.0) for k, g in zip(kinds, groups, strict=True)]
    widths = [h * KINDS[k].aspect for k, h in zip(kinds, heights, strict=True)]
    room = 1 - 2 * _MARGIN - _GAP * (len(kinds) - 1)
    fit = min(1.0, 0.97 * room / sum(widths))
    cuts = sorted(rng.random() for _ in kinds)
    slack = room - fit * sum(widths)
    boxes = []
    left = _MARGIN
    for i in range(len(kinds)):
        before = cuts[i] - (cuts[i - 1] if i else 0.0)
        left += slack * before
        boxes.append((left, 0.0, left + fit * widths[i], fit * heights[i]))
        left += fit * widths[i] + _GAP
    return boxes


def _to_bottom(box: Box, bottom: float) -> Box:
    return (box[0], bottom - (box[3] - box[1]), box[2], bottom)


def _placed(rng: Random, background: str, kind: str, boxes: Sequence[Box]) -> tuple[Box, ...]:
    """Move boxes that start at 0 down: to the ground, or somewhere into the air."""
    height = max(box[3] for box in boxes)
    ground = BACKGROUNDS[background].ground
    # Hung lower, a thing seems to stand on the ground.
    lowest = max(height + 0.05, 0.6)
    bottom = rng.uniform(height + _MARGIN, lowest) if KINDS[kind].airborne else rng.uniform(ground + 0.04, 0.95)
    bottom = max(bottom, height + _MARGIN)
    return tuple(_to_bottom(box, min(0.97, bottom + rng.uniform(-0.02, 0.02))) for box in boxes)


def _lay_out_alone(rng: Random, background: str, kind: str, count: int) -> tuple[Box, ...]:
    height = {1: 0.55, 2: 0.46, 3: 0.4}[count]
    return _placed(rng, background, kind, _row(rng, [kind] * count, height, [0] * count))


def _lay_out_left(
    rng: Random, background: str, kinds: Sequence[str], counts: Sequence[int]
) -> tuple[tuple[Box, ...], ...]:
    things = [kinds[0]] * counts[0] + [kinds[1]] * counts[1]
    boxes = _row(rng, things, {2: 0.46, 3: 0.4}[len(things)], [0] * counts[0] + [1] * counts[1])
    return (
        _placed(rng, background, kinds[0], boxes[: counts[0]]),
        _placed(rng, background, kinds[1], boxes[counts[0] :]),
    )


def _lay_out_above(
    rng: Random, background: str, kinds: Sequence[str], counts: Sequence[int]
) -> tuple[tuple[Box, ...], ...]:
    while True:
        upper = _row(rng, [kinds[0]] * counts[0], 0.36, [0] * counts[0])
        lower = _row(rng, [kinds[1]] * counts[1], 0.38, [0] * counts[1])
        shared = min(upper[-1][2], lower[-1][2]) - max(upper[0][0], lower[0][0])
        # Nobody says "above" of what is off to the side.
        if shared >= 0.6 * min(upper[-1][2] - upper[0][0], lower[-1][2] - lower[0][0]):
            break
    hang, stand = rng.uniform(_MARGIN, 0.06), rng.uniform(0.91, 0.95)
    return (
        tuple(_to_bottom(box, hang + box[3] + rng.uniform(-0.01, 0.01)) for box in upper),
        tuple(_to_bottom(box, stand + rng.uniform(-0.01, 0.01)) for box in lower),
    )


def _lay_out_in_front(rng: Random, kinds: Sequence[str]) -> tuple[tuple[Box, ...], ...]:
    """The first thing hides a lower corner of the second, a third of its width at the most, or part of a trunk."""
    ((left, _, right, tall),) = _row(rng, [kinds[1]], 0.56, [0])
    base = rng.uniform(0.82, 0.87)
    height = 0.34 * KINDS[kinds[0]].size * rng.uniform(0.9, 1.1)
    width = height * KINDS[kinds[0]].aspect
    bottom = base + rng.uniform(0.06, 0.1)
    hidden = min(0.75 * width, 0.33 * (right - left)) * rng.uniform(0.8, 1.0)
    if kinds[1] == "tree":  # there is nothing to hide at the corners
        hidden = 0.5 * (right - left) + 0.3 * width
    x = left + hidden - width if rng.random() < 0.5 else right - hidden
    if x < 0.01 or x + width > 0.99:  # no room on this side
        x = right - hidden if x < 0.01 else left + hidden - width
    x = min(max(x, 0.01), 0.99 - width)
    return ((x, bottom - height, x + width, bottom),), ((left, base - tall, right, base),)


def _named(rng: Random, background: str, kind: str) -> tuple[str, str]:
    """A colour and a texture for a thing, such that it can be seen before this background."""
    colour = rng.choice([c for c in COLOURS if c not in BACKGROUNDS[background].hidden_colours])
    return colour, rng.choices(TEXTURES, weights=(6, 2, 2, 2))[0]


def _compose(rng: Random) -> Scene:
    background = rng.choice(list(BACKGROUNDS))
    kinds = BACKGROUNDS[background].kinds
    relation = rng.choices((None, *RELATIONS), weights=(45, 27, 16, 12))[0]
    if relation is None:
        kind, count = rng.choice(kinds), rng.choice((1, 1, 2, 3))
        colour, texture = _named(rng, background, kind)
        return Scene(background, (Group(kind, colour, texture, _lay_out_alone(rng, background, kind, count)),))

    if relation == "left of":
        pair = rng.sample(kinds, 2)
        counts = rng.choice(((1, 1), (1, 1), (2, 1), (1, 2)))
        boxes = _lay_out_left(rng, background, pair, counts)
    elif relation == "above":
        pair = [
            rng.choice([k for k in kinds if KINDS[k].airborne]),
            rng.choice([k for k in kinds if not KINDS[k].airborne]),
        ]
        counts = rng.choice(((1, 1), (1, 1), (2, 1), (1, 2), (2, 2)))
        boxes = _lay_out_above(rng, background, pair, counts)
    else:
        back = rng.choice([k for k in kinds if k in _BIG])
        pair = [rng.choice([k for k in kinds if k in _SMALL]), back]
        boxes = _lay_out_in_front(rng, pair)
    first, second = _named(rng, background, pair[0]), _named(rng, background, pair[1])
    while first[0] == second[0] and relation == "in front of":  # one colour before the same is one blot
        second = _named(rng, background, pair[1])
    return Scene(background, (Group(pair[0], *first, boxes[0]), Group(pair[1], *second, boxes[1])), relation)


def compose_scene(rng: Random, *, held_out: bool) -> Scene:
    """Draw a scene at random.

    Args:
        rng: source of chance; the same state gives the same scene.
        held_out: whether the scene must show one of `HELD_OUT_PAIRS` at least, or none of them.
    """
    while True:
        scene = _compose(rng)
        if scene.shows_held_out_pair == held_out:
            return scene
