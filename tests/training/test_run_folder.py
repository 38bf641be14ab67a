from pathlib import Path

import pytest

from fusion_captioner.training.run_folder import newest_complete_checkpoint, prepare_run_folder


def checkpoint(folder: Path, state: str | None) -> None:
    folder.mkdir(parents=True)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)


def test_the_newest_checkpoint_that_is_complete_is_taken(tmp_path: Path) -> None:
    assert newest_complete_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (10, "{}"), (11, "{"), (12, None)):
        checkpoint(tmp_path / f"checkpoint-{step}", state)
    assert newest_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert prepare_run_folder(tmp_path, resume=True) == str(tmp_path / "checkpoint-10")


def test_what_a_training_has_written_is_not_overwritten(tmp_path: Path) -> None:
    assert prepare_run_folder(tmp_path / "new", resume=False) is None
    checkpoint(tmp_path / "broken" / "checkpoint-1", "{}")
    checkpoint(tmp_path / "finished", None)
    (tmp_path / "finished" / "model.safetensors").write_bytes(b"weights")
    for folder in ("broken", "finished"):
        with pytest.raises(ValueError, match=f"training.output_dir.*{folder}.*--resume"):
            prepare_run_folder(tmp_path / folder, resume=False)
    assert prepare_run_folder(tmp_path / "finished", resume=True) is None
