"""Only one process writes an output."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_captioner.file_locks import lock_output

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
