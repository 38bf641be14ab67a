"""Only one process writes an output."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_captioner.file_locks import lock_holder, lock_output
from fusion_captioner.files import atomic_write

HOLDER = """
import sys, time
from fusion_captioner.file_locks import lock_output
with lock_output(sys.argv[1], "--out"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "locked\n"
            message = rf"--out \(.*captions.jsonl\): is being written by process {process.pid} on "
            with pytest.raises(OSError, match=message), lock_output(out, "--out"):
                pass
            (tmp_path / "captions.jsonl.0123abcd.incomplete").write_text("half")
            (tmp_path / "captions.jsonl.part-0-of-2.0123abcd.incomplete").write_text("of another output")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    # the lock of a process that was killed is taken over, and what it left half-written goes
    with lock_output(out, "--out"):
        assert not (tmp_path / "captions.jsonl.0123abcd.incomplete").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["captions.jsonl.part-0-of-2.0123abcd.incomplete"]


def test_a_file_that_only_has_the_name_of_a_lock_is_kept(tmp_path: Path) -> None:
    other = tmp_path / "captions.jsonl.lock"
    other.write_text("[[package]]\n")
    with (
        pytest.raises(OSError, match=r"captions\.jsonl\.lock is not a lock of this package; move it"),
        lock_output(tmp_path / "captions.jsonl", "--out"),
    ):
        pass
    assert other.read_text() == "[[package]]\n"
    for left_by_a_kill in ("", "process 1 on a machine (caption)"):
        other.write_text(left_by_a_kill)
        with lock_output(tmp_path / "captions.jsonl", "--out"):
            pass
        assert not other.exists()


def test_what_a_kill_left_of_a_long_name_is_removed(tmp_path: Path) -> None:
    out = tmp_path / ("照" * 80 + ".jsonl")  # 246 bytes
    with pytest.raises(KeyboardInterrupt), atomic_write(out) as temporary:
        temporary.write_text("half")
        left = temporary.rename(tmp_path / "kept")
        raise KeyboardInterrupt
    left.rename(temporary)
    with lock_output(out, "--out"):
        assert not temporary.exists()


def test_nobody_holds_a_file_that_is_no_lock(tmp_path: Path) -> None:
    other = tmp_path / "captions.jsonl.lock"
    other.write_text("[[package]]\n")
    assert lock_holder(other) is None and other.read_text() == "[[package]]\n"
