"""Training in two processes: it learns what one process learns from the joint batches, and captions every image
once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_recipe import MODEL_CONFIG, log_history, write_data, write_recipe
from torch.distributed import TCPStore

from fusion_captioner.cli import main

pytestmark = pytest.mark.slow

# what is imported once serves both processes
FORKED = """
import os, sys
from fusion_captioner.cli import main
from fusion_captioner.training import train

other = os.fork()
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "1" if other == 0 else "0"
status = main(sys.argv[1:])
if other and os.waitpid(other, 0)[1]:
    status = "the second process failed"
sys.exit(status)
"""


def train_in_two_processes(recipe: Path) -> None:
    """As `torchrun` does it, whose agent holds the store, without the time that it takes to start."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a port that the system chooses
    names = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", FORKED, "train", str(recipe)]
    done = subprocess.run(command, env=os.environ | names, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Until the image encoder is unfrozen: from then on BatchNorm sees the images of its own process."""
    data = write_data(tmp_path / "data", train=16, val=5)
    recipes = {}
    for name, batch_size in {"one": 4, "two": 2}.items():
        (tmp_path / name).mkdir()
        recipes[name] = write_recipe(
            tmp_path / name / "recipe.yaml",
            data,
            model={"config": MODEL_CONFIG | {"dropout": 0.0, "contrastive_loss_weight": 0.5}},
            data={"feature_cache": str(tmp_path / name / "features"), "captions_per_image": 2},
            training={
                "per_device_train_batch_size": batch_size,
                "per_device_eval_batch_size": 2,
                "num_train_epochs": 1,
                "train_image_encoder_from_step": 3,
            },
        )
    assert main(["train", str(recipes["one"])]) == 0
    train_in_two_processes(recipes["two"])

    one, two = ([row for row in log_history(tmp_path / name / "out") if "loss" in row] for name in ("one", "two"))
    assert [row["step"] for row in two] == [1, 2, 3, 4]
    for row, expected in zip(two[:3], one[:3], strict=True):
        for name in ("loss", "loss_caption", "loss_contrastive", "grad_norm"):
            assert row[name] == pytest.approx(expected[name], abs=2e-3), (row["step"], name)
    assert two[0]["loss"] > two[0]["loss_caption"] > two[0]["loss_contrastive"] > 0
    lines = (tmp_path / "two" / "out" / "eval_captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == ["16", "17", "18", "19", "20"]
    assert log_history(tmp_path / "two" / "out")[-1]["eval_CIDEr"] >= 0
