"""Saved and pushed captioners load where the package is not installed, and describe themselves."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_form_load import describe, head_logits
from hub_form_push import captioner
from hub_server import HubServer
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

import fusion_captioner
from fusion_captioner.training.trainer import CAPTION_CARD

# one worker runs them all, as they share the processes' answers
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hub")]

PACKAGE = Path(fusion_captioner.__file__).parent
NOT_SHIPPED = {
    "__init__.py",
    "cli.py",
    "file_locks.py",
    "files.py",
    "fingerprints.py",
    "given_values.py",
    "hardware.py",
    "prefetching.py",
    "printing.py",
    "process_setup.py",
    "registration.py",
}
SHIPPED = {path.name for path in PACKAGE.glob("*.py")} - NOT_SHIPPED
PROCESSOR_FILES = {
    "image_decoding.py",
    "image_downloads.py",
    "image_loading.py",
    "image_processing_fusion_captioner.py",
    "processing_fusion_captioner.py",
    "text_rows.py",
}
CLASSES = [
    "FusionCaptionerConfig",
    "FusionCaptionerModel",
    "FusionCaptionerForConditionalGeneration",
    "FusionCaptionerProcessor",
    "FusionCaptionerImageProcessor",
    "FusionCaptionerImageProcessor",
    "FusionCaptionerForConditionalGeneration",
    "FusionCaptionerProcessor",
]

HEADS = {
    "AutoModelForZeroShotImageClassification": "FusionCaptionerForImageTextRetrieval",
    "AutoModelForSequenceClassification": "FusionCaptionerForSequenceClassification",
    "AutoModelForImageClassification": "FusionCaptionerForSequenceClassification",
    "AutoModelForMultipleChoice": "FusionCaptionerForMultipleChoice",
}


def run(script: str, *arguments: Path, cwd: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment | threads, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def load_without_package(folder: Path, environment: dict[str, str], **request) -> dict:
    """What `hub_form_load.py` finds in a fresh interpreter."""
    asked, answer = folder / "request.json", folder / "answer.json"
    asked.write_text(json.dumps({"image": str(folder / "photo.jpg")} | request))
    run("hub_form_load.py", asked, answer, cwd=folder, environment=environment)
    return json.loads(answer.read_text())


def save_photo(folder: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    return str(folder / "photo.jpg")


def assert_same(loaded: dict, expected: dict) -> None:
    """`loaded` is the captioner that `expected` describes, made from remote code and by every `Auto*` class."""
    assert expected["caption"]
    assert {key: loaded[key] for key in ("tokens", "caption")} == {key: expected[key] for key in ("tokens", "caption")}
    assert loaded["embedding"] == pytest.approx(expected["embedding"], abs=1e-3)
    assert loaded["pipeline"] == expected["caption"]
    assert loaded["classes"] == CLASSES
    assert loaded["modules"] == ["transformers_modules"]


def auto_map(content: bytes) -> dict[str, str]:
    return json.loads(content)["auto_map"]


def own_environment(home: Path) -> dict[str, str]:
    """Without network, token or cache, with dynamic modules of its own."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return outer | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict]:
    """A folder with a photo and a saved captioner, and what the captioner makes of the photo."""
    folder = tmp_path_factory.mktemp("saved")
    photo = save_photo(folder)
    model, processor = captioner()
    model.save_pretrained(folder / "captioner")
    processor.save_pretrained(folder / "captioner")
    return folder, describe(model, model.model, processor, photo)


def test_folder_holds_all_code_and_no_pickle(saved):
    files = {path.name for path in (saved[0] / "captioner").iterdir()}
    assert {name for name in files if name.endswith(".py")} == SHIPPED
    assert {Path(name).suffix for name in files} == {".py", ".json", ".jinja", ".safetensors"}
    for name in SHIPPED:
        assert (saved[0] / "captioner" / name).read_bytes() == (PACKAGE / name).read_bytes()


def test_shipped_files_need_only_what_transformers_brings():
    needed = set()
    for name in SHIPPED:
        for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needed |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                needed.add(node.module.split(".")[0])
    assert needed - sys.stdlib_module_names == {"PIL", "huggingface_hub", "numpy", "torch", "transformers"}


@pytest.fixture(scope="module")
def loaded_from_folders(saved, tmp_path_factory) -> tuple[Path, dict]:
    """A folder with the saved captioner and every head, and what a process without the package makes of them.

    Each is saved again to its name with `_again`; `from_captioner_again` is a head that starts from the captioner.
    """
    folder = tmp_path_factory.mktemp("without_package")
    save_photo(folder)
    shutil.copytree(saved[0] / "captioner", folder / "captioner")
    heads = {"from_captioner": ("AutoModelForSequenceClassification", folder / "captioner")}
    for auto_class, name in HEADS.items():
        head(name).save_pretrained(folder / auto_class)
        heads[auto_class] = (auto_class, folder / auto_class)
    request = {
        "sources": [{"name": str(folder / "captioner")}],
        "save_to": str(folder / "captioner_again"),
        "heads": [
            {"auto_class": auto_class, "name": str(path), "save_to": str(folder / f"{name}_again")}
            for name, (auto_class, path) in heads.items()
        ],
    }
    answer = load_without_package(folder, own_environment(folder / "home"), **request)
    return folder, answer | {"heads": dict(zip(heads, answer["heads"], strict=True))}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_loads_without_the_package_and_saves_itself_again_whole(saved, loaded_from_folders):
    folder, answer = loaded_from_folders
    assert_same(answer["loaded"][0], saved[1])
    before, after = contents(folder / "captioner"), contents(folder / "captioner_again")
    assert set(after) == set(before)
    # loading notes the backbone's dtype and that the tokenizer came from a folder
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"config.json", "tokenizer_config.json"}
    assert all(auto_map(after[name]) == auto_map(before[name]) for name in changed)


def test_loads_with_the_package_without_remote_code(saved):
    folder, expected = saved
    model = AutoModelForImageTextToText.from_pretrained(folder / "captioner")
    base_model = AutoModel.from_pretrained(folder / "captioner")
    processor = AutoProcessor.from_pretrained(folder / "captioner")
    for loaded in (model, base_model, processor, processor.image_processor):
        assert type(loaded).__module__.startswith("fusion_captioner.")
    found = describe(model, base_model, processor, str(folder / "photo.jpg"))
    assert found["tokens"] == expected["tokens"]
    assert found["embedding"] == pytest.approx(expected["embedding"], abs=1e-3)


def head(name: str) -> PreTrainedModel:
    config = captioner()[0].config
    config.contrastive_loss_weight = 1.0
    return getattr(fusion_captioner, name)(config).eval()


@pytest.mark.parametrize(("auto_class", "name"), HEADS.items())
def test_every_head_loads_without_the_package_and_saves_itself_again_whole(loaded_from_folders, auto_class, name):
    folder, answer = loaded_from_folders
    found, expected = answer["heads"][auto_class], head(name)
    assert (found["class"], found["module"]) == (name, "transformers_modules")
    expected.load_state_dict(load_file(folder / auto_class / "model.safetensors"))
    assert np.array(found["logits"]) == pytest.approx(np.array(head_logits(expected)), abs=1e-3)
    before, after = contents(folder / auto_class), contents(folder / f"{auto_class}_again")
    assert set(before) == set(after)
    assert {file for file in before if file.endswith(".py")} == SHIPPED - PROCESSOR_FILES
    assert auto_map(before["config.json"]) == auto_map(after["config.json"])
    assert set(auto_map(before["config.json"])) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
        *HEADS,
    }


def test_a_head_starts_from_a_captioner_without_the_package(loaded_from_folders):
    folder, answer = loaded_from_folders
    assert answer["heads"]["from_captioner"]["class"] == "FusionCaptionerForSequenceClassification"
    source, found = (load_file(folder / name / "model.safetensors") for name in ("captioner", "from_captioner_again"))
    shared = [name for name in source if name.startswith("model.")]
    assert len(shared) > 20
    assert all((source[name] == found[name]).all() for name in shared)


# Over HTTP: one process pushes, one loads by name, and one loads from the cache when the server is gone.


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A Hub with what `hub_form_push.py` pushed, the folder that it worked in, and what it noted."""
    folder = tmp_path_factory.mktemp("pushed")
    save_photo(folder)
    with HubServer(folder / "hf_home") as hub:
        pusher = hub.environment | {"HF_HOME": str(folder / "pusher_home")}
        run("hub_form_push.py", folder, cwd=folder, environment=pusher)
        yield hub, folder, json.loads((folder / "pushed.json").read_text())


@pytest.fixture(scope="module")
def loaded_by_name(pushed, loaded_from_folders) -> dict:
    """What a process without the package makes of `user/captioner` at `v1` and `main`, of `user/parts`, of the folder
    that an earlier one saved again, and of the code in the card."""
    hub, folder, _ = pushed
    shutil.rmtree(loaded_from_folders[0] / "captioner")
    (snippet,) = re.findall(
        r"```python\n(.*?)```", hub.files("models/user/captioner")["README.md"].decode(), re.DOTALL
    )
    saved_again = {"name": str(loaded_from_folders[0] / "captioner_again")}
    request = {"sources": [*SOURCES, saved_again], "snippet": snippet, "save_to": str(folder / "again")}
    return load_without_package(folder, hub.environment, **request)


SOURCES = [{"name": "user/captioner", "revision": "v1"}, {"name": "user/captioner"}, {"name": "user/parts"}]


@pytest.mark.parametrize(("name", "revision"), [("captioner", "v1"), ("captioner", "main"), ("parts", "main")])
def test_pushed_repository_is_whole_and_holds_no_pickle(pushed, name, revision):
    paths = set(pushed[0].files(f"models/user/{name}", revision))
    assert {path for path in paths if path.endswith(".py")} == SHIPPED
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= paths
    suffixes = {Path(path).suffix for path in paths}
    assert suffixes == {".json", ".jinja", ".md", ".py", ".safetensors"}


def test_loads_by_name_at_a_tag_and_at_main(pushed, loaded_by_name):
    expected = pushed[2]
    assert expected["v1"]["tokens"] != expected["main"]["tokens"]
    at_tag, at_main, parts, _ = loaded_by_name["loaded"]
    assert_same(at_tag, expected["v1"])
    assert_same(at_main, expected["main"])
    assert_same(parts, expected["main"])


def test_folder_saved_again_needs_neither_the_package_nor_the_first_folder(saved, loaded_by_name):
    assert_same(loaded_by_name["loaded"][3], saved[1])


def test_saved_again_after_loading_by_name_depends_on_no_repository(pushed, loaded_by_name):
    hub, folder, _ = pushed
    original = hub.files("models/user/captioner", "v1")
    again = {path.name: path.read_bytes() for path in (folder / "again").iterdir()}
    assert {name for name in again if name.endswith(".py")} == SHIPPED
    for name in ("config.json", "processor_config.json"):
        assert auto_map(again[name]) == auto_map(original[name])


def test_card_tells_data_scores_and_command(pushed):
    hub, _, expected = pushed
    card = ModelCard(hub.files("models/user/captioner", "v1")["README.md"].decode())
    data = card.data
    assert (data.pipeline_tag, data.library_name, data.license) == (
        "image-text-to-text",
        "transformers",
        "cc-by-4.0",
    )
    assert data.datasets == ["user/squares"]
    assert data.metrics == list(CAPTION_CARD.metrics.values())
    assert {"image-captioning", "fusion-captioner"} <= set(data.tags)
    results = {result.metric_name: result for result in data.eval_results}
    assert set(results) == set(CAPTION_CARD.metrics)
    assert expected["scores"]["eval_ROUGE-L"] > 0.5  # else equal scores would say little
    for metric, result in results.items():
        assert result.metric_value == round(expected["scores"][f"eval_{metric}"], 4)
        assert (result.dataset_name, result.dataset_split) == ("user/squares", "test")
    for metric in CAPTION_CARD.metrics:
        assert f"| {metric} | {expected['scores'][f'eval_{metric}']:.4f} |" in card.text
    assert f"`{expected['signature']}`" in card.text
    assert "`fusion-captioner train squares.yaml`" in card.text
    later = ModelCard(
        hub.files("models/user/captioner")["README.md"].decode()
    )  # after `push_to_hub` of model and processor
    assert later.data.eval_results == data.eval_results
    assert later.text.strip() == card.text.strip()


def test_code_in_the_card_runs(pushed, loaded_by_name):
    assert loaded_by_name["printed"] == pushed[2]["beam_caption"] + "\n"


def test_loads_from_the_cache_when_the_server_is_stopped(pushed, loaded_by_name):
    hub, folder, expected = pushed
    hub.stop()
    answer = load_without_package(folder, hub.environment | {"HF_HUB_OFFLINE": "1"}, sources=SOURCES[:2])
    assert_same(answer["loaded"][0], expected["v1"])
    assert_same(answer["loaded"][1], expected["main"])
