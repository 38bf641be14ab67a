"""The folder that a training writes: what it may hold when one starts, and where an interrupted one goes on."""

import json
import logging
import os
from pathlib import Path

from fusion_captioner.files import check_output_folder

logger = logging.getLogger(__name__)


def prepare_run_folder(output_dir: str | os.PathLike, resume: bool) -> str | None:
    """
    Make sure that a training may write to a folder.

    Returns:
        with `resume` the checkpoint to go on from, where there is one.

    Raises:
        OSError, ValueError: it cannot be written; or, without `resume`, it holds a training's results already.
    """
    check_output_folder(str(output_dir), "`training.output_dir`")
    folder = Path(output_dir)
    if not resume:
        if (folder / "model.safetensors").exists() or newest_complete_checkpoint(folder) is not None:
            raise ValueError(
                f"`training.output_dir` ({output_dir}) holds what a training has written; go on with it by --resume, or "
                "name another folder."
            )
        return None
    checkpoint = newest_complete_checkpoint(folder)
    if checkpoint is None:
        logger.info("%s holds no complete checkpoint: training starts from the beginning", output_dir)
    return checkpoint


def newest_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The newest checkpoint of a run that was written to its end, or `None`.

    `trainer_state.json` is the last file that `Trainer` writes of a checkpoint: a folder without it, or with a part of
    it, is what a kill left behind.
    """
    complete: dict[int, str] = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdigit() and _is_json(folder / "trainer_state.json"):
            complete[int(step)] = str(folder)
    return complete[max(complete)] if complete else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True
