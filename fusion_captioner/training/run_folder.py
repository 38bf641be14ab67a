"""The output folder of a training: what it may hold at the start, and the checkpoint that an interrupted run continues
from."""

import json
import logging
import os
from pathlib import Path

from fusion_captioner.files import check_output_folder
from fusion_captioner.fingerprints import DIGESTS, digest_problem

logger = logging.getLogger(__name__)


def prepare_run_folder(output_dir: str | os.PathLike, resume: bool) -> str | None:
    """
    Check that a training may write to a folder.

    Returns:
        with `resume` the checkpoint to continue from, if there is one.

    Raises:
        OSError, ValueError: it cannot be written; or, without `resume`, it already holds the results of a training.
    """
    check_output_folder(str(output_dir), "`training.output_dir`")
    folder = Path(output_dir)
    if not resume:
        if (folder / "model.safetensors").exists() or newest_complete_checkpoint(folder) is not None:
            raise ValueError(
                f"`training.output_dir` ({output_dir}) holds what a training has written; go on with it by --resume, "
                "or name another folder."
            )
        return None
    checkpoint = newest_complete_checkpoint(folder)
    if checkpoint is None:
        logger.info("%s holds no complete checkpoint: training starts from the beginning", output_dir)
    return checkpoint


def newest_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest complete checkpoint of a run, or `None`. The log names damaged ones, and the steps that are lost.

    `trainer_state.json` is the last file of a checkpoint that `Trainer` writes, and `DIGESTS` is written after it: a
    folder without the first was being written when the run was killed, and one whose files differ from their digests
    was damaged later.
    """
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name[11:].isdigit()]
    steps = {int(folder.name[11:]): folder for folder in folders}
    damaged: list[tuple[int, str]] = []
    for step in sorted(steps, reverse=True):
        if (problem := checkpoint_problem(steps[step])) is None:
            for newer, what in damaged:
                logger.warning(
                    "%s is not taken (%s); training goes on from step %d, and the %d steps after it are repeated",
                    steps[newer], what, step, newer - step,
                )  # fmt: skip
            return str(steps[step])
        damaged.append((step, problem))
    for newer, what in damaged:
        logger.warning("%s is not taken (%s)", steps[newer], what)
    return None


def checkpoint_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or `None`. Checkpoints of other trainers have no digests; only their state is
    checked."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return "trainer_state.json is missing or damaged"
    return digest_problem(folder) if (folder / DIGESTS).exists() else None
