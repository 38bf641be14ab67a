"""TVQA as published (Lei et al., 2018): questions about clips of television shows, with subtitles.

<source>/tvqa_train.jsonl, tvqa_val.jsonl, tvqa_test_public.jsonl
    {"qid": 7, "q": "...", "a0": "...", ..., "a4": "...", "answer_idx": 4, "ts": "1.21-8.49",
     "vid_name": "met_s06e22_seg01_clip_02", "show_name": "How I Met You Mother"}
<frames>/<show>/<vid_name>/00001.jpg ...         3 frames a second
<subtitles>/<vid_name>.srt                       or a file of JSON lines:
    {"vid_name": "...", "sub": [{"text": "...", "start": 0.5, "end": 2.1}, ...]}
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from fusion_captioner.data.arguments import ChoiceDataArguments
from fusion_captioner.data.choice_questions import TEXT_FEATURES, UNKNOWN, check_choices
from fusion_captioner.data.names import choose_splits
from fusion_captioner.data.row_files import json_lines
from fusion_captioner.files import expanded

FEATURES = datasets.Features(
    {
        "frames": datasets.List(datasets.Image(decode=False)),
        "frame_ids": datasets.List(datasets.Value("string")),
        **TEXT_FEATURES,
    }
)
ANSWERS = ("a0", "a1", "a2", "a3", "a4")
SRT_TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
# Names of speakers stay: TVQA's questions ask by them.
SRT_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


class Subtitle(NamedTuple):
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def load_tvqa(data: ChoiceDataArguments, splits: Mapping[str, int | None]) -> dict[str, datasets.Dataset]:
    """Questions of TVQA's files.

    Args:
        data: what is read, and how.
        splits: split → number of questions to take from its beginning, None: all.

    Returns:
        split → columns `frames` (`num_frames` of `datasets.Image(decode=False)`), `frame_ids`, `question` (what is
        said, then what is asked), `choices` and `label` (-100 in a test split).

    Raises:
        FileNotFoundError: a file of questions, the frames of a clip or its subtitles are not there.
        ValueError: a split that is not there, or malformed lines, times or subtitles.
    """
    root = expanded(data.source).absolute()
    files = {path.stem.removeprefix("tvqa_"): path for path in sorted(root.glob("tvqa_*.jsonl"))}
    files = {name: path for name, path in files.items() if "subtitles" not in name}
    if not files:
        raise FileNotFoundError(f"{data.source}: holds no tvqa_<split>.jsonl; give the folder of TVQA's questions.")
    chosen = choose_splits(list(files), data.splits)
    clips = _Clips(data, root)
    result = {}
    for split, limit in splits.items():
        if split not in chosen:
            raise ValueError(f"{data.source}: there is no split {split!r}; there are {', '.join(chosen)}.")
        lines = [(path, *line) for path in map(files.get, chosen[split]) for line in json_lines(Path(str(path)))]
        entries = [clips.entry(fields, f"{path}, line {number}") for path, number, fields in lines[:limit]]
        result[split] = datasets.Dataset.from_list(entries, features=FEATURES)
    return result


class _Clips:
    """Frames and subtitles by the names of clips."""

    def __init__(self, data: ChoiceDataArguments, root: Path) -> None:
        self.data = data
        self.frames_root = root / "frames" if data.frames_folder is None else expanded(data.frames_folder)
        self.folders: dict[str, Path] = {}
        if "image" in data.modalities:
            if not self.frames_root.is_dir():
                raise FileNotFoundError(
                    f"{self.frames_root}: no such folder of frames; name it by `data.frames_folder`."
                )
            self.folders = {path.name: path for path in sorted(self.frames_root.absolute().glob("*/*"))}
        self.frames: dict[str, list[Path]] = {}
        self.subtitles_root = None if data.subtitles is None else expanded(data.subtitles)
        self.subtitles: dict[str, list[Subtitle]] = {}
        if self.subtitles_root is not None and not self.subtitles_root.is_dir():
            self.subtitles = read_subtitle_lines(self.subtitles_root)

    def entry(self, fields: dict[str, Any], where: str) -> dict[str, Any]:
        missing = [name for name in ("q", "vid_name", *ANSWERS) if not isinstance(fields.get(name), str)]
        if missing:
            raise ValueError(f"{where}: has no text {missing[0]!r}; give TVQA's own files.")
        choices, label = [fields[name] for name in ANSWERS], fields.get("answer_idx", UNKNOWN)
        check_choices(choices, label, where)
        span = read_span(fields.get("ts"), where) if self.data.localised else None
        clip = fields["vid_name"]
        question = " ".join(fields["q"].split())
        if self.subtitles_root is not None:
            words = [
                word
                for line in self._said(clip, where)
                if span is None or (line.end >= span[0] and line.start <= span[1])
                for word in line.text.split()
            ]
            question = " ".join([*words[: self.data.max_subtitle_words], question])
        frames = self._sampled(clip, span, where) if "image" in self.data.modalities else []
        return {
            "frames": [{"path": str(path), "bytes": None} for path in frames],
            "frame_ids": [f"{clip}/{path.name}" for path in frames],
            "question": question,
            "choices": choices,
            "label": label,
        }

    def _sampled(self, clip: str, span: tuple[float, float] | None, where: str) -> list[Path]:
        """`num_frames` frames, evenly spread over what is asked about; where there are fewer, some twice."""
        if clip not in self.frames:
            if clip not in self.folders:
                raise FileNotFoundError(
                    f"{where}: there is no folder <show>/{clip} in {self.frames_root}; unpack its frames there."
                )
            self.frames[clip] = sorted(
                (path for path in self.folders[clip].iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")),
                key=lambda path: (len(path.stem), path.stem),
            )
            if not self.frames[clip]:
                raise FileNotFoundError(f"{self.folders[clip]}: holds no frames; unpack them there.")
        frames = self.frames[clip]
        first, last = 0, len(frames) - 1
        if span is not None:
            # a frame at least: clips end a little before some of the times
            first = min(int(span[0] * self.data.frame_rate), last)
            last = max(first, min(math.ceil(span[1] * self.data.frame_rate), last))
        return [frames[round(number)] for number in np.linspace(first, last, self.data.num_frames)]

    def _said(self, clip: str, where: str) -> list[Subtitle]:
        root = self.subtitles_root
        if root is not None and clip not in self.subtitles and root.is_dir():
            path = root / f"{clip}.srt"
            if not path.is_file():
                raise FileNotFoundError(f"{where}: there is no {path}; unpack the subtitles of the clip there.")
            self.subtitles[clip] = read_srt(path)
        if clip not in self.subtitles:
            raise ValueError(f"{where}: {root} has no subtitles of {clip!r}; add them, or unset `data.subtitles`.")
        return self.subtitles[clip]


def read_span(value: Any, where: str) -> tuple[float, float] | None:
    """The times in seconds of `"1.21-8.49"`; None of a question without, of which TVQA has some (`"nan-nan"`).

    Raises:
        ValueError: it is neither, or ends before it begins.
    """
    if value is None:
        return None
    try:
        start, end = (float(part) for part in str(value).split("-"))
    except ValueError:
        raise ValueError(f"{where}: the `ts` {value!r} must be two times in seconds, such as '1.21-8.49'.") from None
    if math.isnan(start) or math.isnan(end):
        return None
    if end < start:
        raise ValueError(f"{where}: the `ts` {value!r} ends before it begins; correct it, or leave it out.")
    return start, end


def read_srt(path: Path) -> list[Subtitle]:
    """The subtitles of a `.srt` file, in its order, without markup.

    Raises:
        ValueError: the file is no text, or a block has no times.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # as older ones are
    subtitles = []
    for block in re.split(r"\r?\n\s*\r?\n", text.strip()):
        lines = block.strip().splitlines()
        timed = next((number for number, line in enumerate(lines[:2]) if SRT_TIME.search(line)), None)
        if timed is None:
            if not lines:
                continue
            raise ValueError(
                f"{path}: {lines[0]!r} has no times such as 00:00:01,210 --> 00:00:08,490; give a .srt file."
            )
        found = SRT_TIME.search(lines[timed])
        hours, minutes, seconds, part, to_hours, to_minutes, to_seconds, to_part = found.groups()  # type: ignore[union-attr]
        start = 3600 * int(hours) + 60 * int(minutes) + float(f"{seconds}.{part}")
        end = 3600 * int(to_hours) + 60 * int(to_minutes) + float(f"{to_seconds}.{to_part}")
        subtitles.append(Subtitle(start, end, SRT_MARKUP.sub("", " ".join(lines[timed + 1 :]))))
    return subtitles


def read_subtitle_lines(path: Path) -> dict[str, list[Subtitle]]:
    """Clip → subtitles, of a file of JSON lines.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: a line that is malformed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such folder or file of subtitles; correct `data.subtitles`.")
    result = {}
    for number, fields in json_lines(path):
        try:
            result[fields["vid_name"]] = [
                Subtitle(float(said["start"]), float(said["end"]), str(said["text"])) for said in fields["sub"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: must have `vid_name`, and in `sub` a list of `start`, `end` and `text` "
                f"({type(error).__name__}: {error}); give TVQA's own file."
            ) from None
    return result
