from pathlib import Path

import pytest

from fusion_captioner.fingerprints import write_digests
from fusion_captioner.training.run_folder import newest_complete_checkpoint, prepare_run_folder

STATE = '{"global_step": 3}'


def checkpoint(folder: Path, state: str | None) -> None:
    folder.mkdir(parents=True)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)


def test_the_newest_checkpoint_that_is_complete_is_taken(tmp_path: Path) -> None:
    assert newest_complete_checkpoint(tmp_path) is None
    for step, state in ((9, STATE), (10, STATE), (11, "{"), (12, None), (13, "[]"), (14, "{}")):
        checkpoint(tmp_path / f"checkpoint-{step}", state)
    assert newest_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert prepare_run_folder(tmp_path, resume=True) == str(tmp_path / "checkpoint-10")


def test_what_a_training_has_written_is_not_overwritten(tmp_path: Path) -> None:
    assert prepare_run_folder(tmp_path / "new", resume=False) is None
    checkpoint(tmp_path / "broken" / "checkpoint-1", STATE)
    checkpoint(tmp_path / "finished", None)
    (tmp_path / "finished" / "model.safetensors").write_bytes(b"weights")
    for folder in ("broken", "finished"):
        with pytest.raises(ValueError, match=f"training.output_dir.*{folder}.*--resume"):
            prepare_run_folder(tmp_path / folder, resume=False)
    assert prepare_run_folder(tmp_path / "finished", resume=True) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        checkpoint(folder, STATE)
        for file in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (folder / file).write_bytes(b"weights of " + file.encode())
        write_digests(folder)
    assert newest_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    file = tmp_path / "checkpoint-8" / name
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:5] if damage == "truncated" else b"Weights" + file.read_bytes()[7:])
    assert prepare_run_folder(tmp_path, resume=True) == str(tmp_path / "checkpoint-4")
    (line,) = caplog.messages
    assert f"checkpoint-8 is not taken ({name} is " in line and "the 4 steps after it are repeated" in line
