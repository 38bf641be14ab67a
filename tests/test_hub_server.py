"""The tests' Hub serves the real `huggingface_hub` client, and through it transformers' push and load by name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, close_session, constants
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import load_file, save_file

MODEL = "user/model"


@pytest.fixture
def api(hub, monkeypatch):
    """The real client in this process, whichever switches `huggingface_hub` was imported under."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # a session reads the proxies when it is made
    yield HfApi(endpoint=hub.url, token=hub.token)
    close_session()


@pytest.fixture
def model_folder(tmp_path):
    """A regular file, a large one and one in a sub-folder."""
    folder = tmp_path / "model"
    (folder / "notes").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    (folder / "notes" / "a.txt").write_text("note")
    weights = {"weight": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.zeros(3, dtype=np.float16)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def pushed(api, model_folder):
    """The hash of the commit that pushed `model_folder` to a new repository."""
    api.create_repo(MODEL)
    return api.upload_folder(repo_id=MODEL, folder_path=model_folder).oid


def read(api, cache, path="config.json", **arguments):
    return Path(api.hf_hub_download(MODEL, path, cache_dir=cache, **arguments)).read_bytes()


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_folder_comes_back_as_it_was_pushed(hub, api, pushed, model_folder, tmp_path):
    files = [".gitattributes", "config.json", "model.safetensors", "notes/a.txt"]
    assert api.whoami()["name"] == hub.user
    assert api.list_repo_files(MODEL) == files
    snapshot = Path(api.snapshot_download(MODEL, cache_dir=tmp_path / "cache"))
    assert snapshot.name == pushed
    for path in files[1:]:
        assert (snapshot / path).read_bytes() == (model_folder / path).read_bytes()
    assert load_file(snapshot / "model.safetensors")["weight"].sum() == 66


def test_only_large_files_go_through_the_store_and_without_the_token(hub, api, pushed, tmp_path):
    regular, large = api.get_paths_info(MODEL, ["config.json", "model.safetensors"])
    assert regular.lfs is None
    assert f"PUT /{large.lfs.sha256}" in hub.requests  # the store refuses a request that carries the token
    read(api, tmp_path, "model.safetensors")
    assert hub.requests[-2:] == [f"HEAD /{MODEL}/resolve/main/model.safetensors", f"GET /{large.lfs.sha256}"]


def test_store_refuses_content_of_another_hash(api, hub):
    api.create_repo(MODEL)
    batch = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 3}]}
    headers = {"Authorization": f"Bearer {hub.token}"}
    request = Request(f"{hub.url}/{MODEL}.git/info/lfs/objects/batch", json.dumps(batch).encode(), headers)
    upload = json.load(urlopen(request))["objects"][0]["actions"]["upload"]["href"]
    with pytest.raises(HTTPError, match="400"):
        urlopen(Request(upload, b"abc", method="PUT"))


def test_file_at_branch_tag_and_commit(api, pushed, tmp_path):
    first = read(api, tmp_path)
    api.create_tag(MODEL, tag="v1.0")
    api.create_branch(MODEL, branch="feature/x", revision=pushed)
    api.upload_file(repo_id=MODEL, path_or_fileobj=b"{}", path_in_repo="config.json")
    api.upload_file(repo_id=MODEL, path_or_fileobj=b"[]", path_in_repo="config.json", revision="feature/x")
    assert read(api, tmp_path) == b"{}"
    assert read(api, tmp_path, revision="feature/x") == b"[]"
    assert read(api, tmp_path, revision="v1.0") == read(api, tmp_path, revision=pushed) == first
    assert api.model_info(MODEL, revision="v1.0").sha == api.model_info(MODEL, revision=pushed).sha == pushed
    assert api.model_info(MODEL).sha != pushed


def test_cache_serves_when_the_server_is_stopped(hub, api, pushed, tmp_path):
    path = api.hf_hub_download(MODEL, "config.json", cache_dir=tmp_path)
    before = len(hub.requests)
    assert api.hf_hub_download(MODEL, "config.json", cache_dir=tmp_path) == path
    assert hub.requests[before:] == [f"HEAD /{MODEL}/resolve/main/config.json"]  # a hit: no second GET
    hub.stop()
    assert api.hf_hub_download(MODEL, "config.json", cache_dir=tmp_path) == path
    assert api.hf_hub_download(MODEL, "config.json", cache_dir=tmp_path, local_files_only=True) == path
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download(MODEL, "model.safetensors", cache_dir=tmp_path, local_files_only=True)


def test_missing_repository_revision_and_file(api, pushed, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("user/other", "config.json", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("bert-base-uncased")  # one of the Hub's few names without a namespace
    with pytest.raises(RevisionNotFoundError):
        read(api, tmp_path, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id=MODEL, path_or_fileobj=b"", path_in_repo="x", revision=pushed)  # not a branch
    with pytest.raises(EntryNotFoundError):
        read(api, tmp_path, "processor_config.json")
    with pytest.raises(EntryNotFoundError):  # how transformers looks for chat templates
        list(api.list_repo_tree(MODEL, "additional_chat_templates"))
    # The client remembers under the commit that the file does not exist.
    assert (tmp_path / "models--user--model" / ".no_exist" / pushed / "processor_config.json").exists()
    assert api.file_exists(MODEL, "config.json") and not api.file_exists(MODEL, "processor_config.json")


@pytest.mark.parametrize("token", [False, "hf_wrong"])
def test_writing_needs_the_token(hub, api, pushed, token):
    stranger = HfApi(endpoint=hub.url, token=token)
    attempts = [
        lambda: stranger.create_repo("user/new"),
        lambda: stranger.upload_file(repo_id=MODEL, path_or_fileobj=b"", path_in_repo="x"),
        lambda: stranger.create_tag(MODEL, tag="v1"),
        lambda: stranger.create_branch(MODEL, branch="b"),
        lambda: stranger.delete_repo(MODEL),
    ]
    for attempt in attempts:
        with pytest.raises(HfHubHTTPError) as error:
            attempt()
        assert status(error) == 401
    assert api.model_info(MODEL).sha == pushed
    assert set(hub.repositories) == {("models", MODEL)}


def test_private_repository_is_hidden_from_strangers(hub, api):
    api.create_repo(MODEL, private=True)
    assert api.model_info(MODEL).private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info(MODEL)


def test_repositories_are_created_once_and_deleted(api):
    assert api.create_repo("model").repo_id == MODEL  # without a namespace: the user's own
    assert api.create_repo(MODEL, exist_ok=True).repo_id == MODEL
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(MODEL)
    assert status(error) == 409
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("somebody/model")
    assert status(error) == 403
    api.delete_repo(MODEL)
    assert not api.repo_exists(MODEL)


def test_branches_and_tags_are_listed_created_once_and_deleted(api, pushed):
    api.create_branch(MODEL, branch="b")
    api.create_tag(MODEL, tag="t", revision="b")
    for create in (lambda: api.create_branch(MODEL, branch="b"), lambda: api.create_tag(MODEL, tag="t")):
        with pytest.raises(HfHubHTTPError) as error:
            create()
        assert status(error) == 409
    api.create_branch(MODEL, branch="b", exist_ok=True)
    refs = api.list_repo_refs(MODEL)
    assert {branch.ref: branch.target_commit for branch in refs.branches} == {
        "refs/heads/main": pushed,
        "refs/heads/b": pushed,
    }
    assert {tag.ref: tag.target_commit for tag in refs.tags} == {"refs/tags/t": pushed}
    api.delete_branch(MODEL, branch="b")
    api.delete_tag(MODEL, tag="t")
    for delete in (lambda: api.delete_branch(MODEL, branch="b"), lambda: api.delete_tag(MODEL, tag="t")):
        with pytest.raises(RevisionNotFoundError):
            delete()
    with pytest.raises(HfHubHTTPError) as error:
        api.delete_branch(MODEL, branch="main")
    assert status(error) == 403


def test_tree_is_listed_by_folder_and_in_pages(hub, api, pushed):
    hub.page_size = 2
    root = [entry.path for entry in api.list_repo_tree(MODEL)]
    assert root == [".gitattributes", "config.json", "model.safetensors", "notes"]
    everything = [entry.path for entry in api.list_repo_tree(MODEL, recursive=True)]
    assert everything == [*root, "notes/a.txt"]
    assert [entry.path for entry in api.list_repo_tree(MODEL, "notes")] == ["notes/a.txt"]
    assert [entry.path for entry in api.get_paths_info(MODEL, ["notes", "config.json", "none"])] == [
        "notes",
        "config.json",
    ]


def test_commit_deletes_and_keeps_the_history(api, pushed):
    operations = [
        CommitOperationAdd("b.txt", b"b"),
        CommitOperationDelete("config.json"),
        CommitOperationDelete("notes/"),
    ]
    made = api.create_commit(MODEL, operations, commit_message="Tidy", commit_description="why", parent_commit=pushed)
    assert api.list_repo_files(MODEL) == [".gitattributes", "b.txt", "model.safetensors"]
    history = api.list_repo_commits(MODEL)
    assert [commit.commit_id for commit in history][:2] == [made.oid, pushed]
    assert (history[0].title, history[0].message) == ("Tidy", "why")
    with pytest.raises(HfHubHTTPError) as error:  # main has moved on
        api.create_commit(MODEL, [CommitOperationAdd("c", b"")], commit_message="Late", parent_commit=pushed)
    assert status(error) == 412
    for missing in ("config.json", "notes/"):
        with pytest.raises(EntryNotFoundError):
            api.create_commit(MODEL, [CommitOperationDelete(missing)], commit_message="Again")


def test_unchanged_folder_makes_no_commit(api, pushed, model_folder):
    assert api.upload_folder(repo_id=MODEL, folder_path=model_folder).oid == pushed


def test_model_info_reads_config_card_and_weights(api, pushed):
    card = b"---\nlibrary_name: transformers\npipeline_tag: image-to-text\ntags:\n- captioning\n---\n# Card\n"
    api.upload_file(repo_id=MODEL, path_or_fileobj=card, path_in_repo="README.md")
    info = api.model_info(MODEL, files_metadata=True)
    assert (info.library_name, info.pipeline_tag, info.tags) == ("transformers", "image-to-text", ["captioning"])
    assert info.config == {"model_type": "bert"}
    assert info.safetensors.parameters == {"F32": 12, "F16": 3} and info.safetensors.total == 15
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs is not None) for sibling in info.siblings}
    assert sizes["README.md"] == (len(card), False) and sizes["model.safetensors"][1]


@pytest.mark.parametrize("card", ["---\npipeline_tag: image-to-text\n", "---\nno mapping\n---\n"])
def test_malformed_card_metadata_is_refused(api, pushed, card):
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        api.upload_file(repo_id=MODEL, path_or_fileobj=card.encode(), path_in_repo="README.md")
    assert api.model_info(MODEL).sha == pushed


def test_parts_of_files_are_read_by_range(hub, api, pushed, model_folder):
    metadata = api.get_safetensors_metadata(MODEL)  # asks for the head of the file alone
    assert metadata.files_metadata["model.safetensors"].tensors["weight"].shape == [3, 4]
    content = (model_folder / "model.safetensors").read_bytes()
    with HfFileSystem(endpoint=hub.url, token=hub.token).open(f"{MODEL}/model.safetensors", block_size=16) as file:
        file.seek(40)
        assert file.read(8) == content[40:48]
    address = f"{hub.url}/{MODEL}/resolve/main/model.safetensors"
    last = urlopen(Request(address, headers={"Range": "bytes=-5"}))
    assert (last.status, last.read()) == (206, content[-5:])
    with pytest.raises(HTTPError, match="416"):
        urlopen(Request(address, headers={"Range": f"bytes={len(content)}-"}))


def test_dataset_repository_is_apart_from_the_model_of_the_same_name(api, pushed, tmp_path):
    api.create_repo(MODEL, repo_type="dataset")
    api.upload_file(repo_id=MODEL, repo_type="dataset", path_or_fileobj=b"{}\n", path_in_repo="data/train.jsonl")
    api.upload_file(repo_id=MODEL, repo_type="dataset", path_or_fileobj=b"PAR1", path_in_repo="data/a.parquet")
    files = [".gitattributes", "data/a.parquet", "data/train.jsonl"]
    assert [sibling.rfilename for sibling in api.dataset_info(MODEL).siblings] == files
    assert read(api, tmp_path, "data/train.jsonl", repo_type="dataset") == b"{}\n"
    assert read(api, tmp_path, "data/a.parquet", repo_type="dataset") == b"PAR1"
    assert api.model_info(MODEL).sha == pushed


def test_what_is_not_served_is_refused_by_name(api, pushed):
    with pytest.raises(BadRequestError, match="no pull requests"):
        api.upload_file(repo_id=MODEL, path_or_fileobj=b"", path_in_repo="x", create_pr=True)
    with pytest.raises(BadRequestError, match="no `expand`"):
        list(api.list_repo_tree(MODEL, expand=True))
    with pytest.raises(HfHubHTTPError, match="no route GET /api/models/user/model/likers"):
        list(api.list_repo_likers(MODEL))


PUSH = """
import json
import torch
from custom_bert import CustomBertModel
from huggingface_hub import HfApi, ModelCard, ModelCardData
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, Trainer, TrainingArguments

torch.manual_seed(0)
config = BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "dog": 3}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")

model = CustomBertModel(config)
CustomBertModel.register_for_auto_class("AutoModel")
sums = {"custom@v1": sum(p.sum().item() for p in model.parameters())}
model.push_to_hub("user/custom")
tokenizer.push_to_hub("user/custom")
card = ModelCard.from_template(ModelCardData(license="apache-2.0", pipeline_tag="fill-mask", tags=["tiny"]))
card.push_to_hub("user/custom")
HfApi().create_tag("user/custom", tag="v1")
with torch.no_grad():
    model.embeddings.word_embeddings.weight.add_(1.0)
sums["custom@main"] = sum(p.sum().item() for p in model.parameters())
model.push_to_hub("user/custom")
model.push_to_hub("user/custom", revision="new-branch")

arguments = TrainingArguments("run", hub_model_id="user/trained", max_steps=1, report_to=[], save_strategy="no", use_cpu=True)
rows = [{"input_ids": [2, 3], "attention_mask": [1, 1], "labels": 1}] * 2
trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=rows, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
sums["trained@main"] = sum(p.sum().item() for p in trainer.model.parameters())
print(json.dumps(sums))
"""

CUSTOM_BERT = """
from transformers import BertModel


class CustomBertModel(BertModel):
    pass
"""

# The argument `stopped` spares the tokenizers the client's retries, 23 seconds for each listing of the repository's
# files; configs and models fall back on the cache by themselves and at once.
LOAD = """
import json
import sys
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

sums = {}
for revision in ("v1", "main"):
    model = AutoModel.from_pretrained("user/custom", revision=revision, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    sums[f"custom@{revision}"] = sum(p.sum().item() for p in model.parameters())
assert AutoConfig.from_pretrained("user/trained").hidden_size == 8
model = AutoModelForSequenceClassification.from_pretrained("user/trained")
sums["trained@main"] = sum(p.sum().item() for p in model.parameters())
for name in ("user/custom", "user/trained"):
    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=sys.argv[1:] == ["stopped"])
    assert tokenizer("a dog")["input_ids"] == [2, 3]
print(json.dumps(sums))
"""


def run(script: str, folder: Path, environment: dict[str, str], *arguments: str) -> dict[str, float]:
    """The JSON that a fresh interpreter prints last, run in `folder` and importing modules from there."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_transformers_pushes_loads_by_name_and_loads_from_the_cache(hub, api, tmp_path):
    (tmp_path / "push").mkdir()
    (tmp_path / "push" / "custom_bert.py").write_text(CUSTOM_BERT)
    pushed = run(PUSH, tmp_path / "push", hub.environment | {"HF_HOME": str(tmp_path / "push_home")})
    assert pushed["custom@v1"] != pushed["custom@main"]
    assert {"custom_bert.py", "model.safetensors", "tokenizer.json"} <= set(api.list_repo_files("user/custom"))
    assert {branch.name for branch in api.list_repo_refs("user/custom").branches} == {"main", "new-branch"}
    info = api.model_info("user/custom")
    assert (info.pipeline_tag, info.tags) == (
        "fill-mask",
        ["tiny"],
    )  # the card pushed outlives the models pushed later

    loaded = run(LOAD, tmp_path / "load", hub.environment)
    assert loaded == pytest.approx(pushed, rel=1e-6)
    hub.stop()
    assert run(LOAD, tmp_path / "load", hub.environment, "stopped") == loaded


def test_environment_lets_nothing_of_the_caller_in(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "/elsewhere")
    environment = hub.environment
    assert not {"HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"} & set(environment)
    assert (environment["HF_ENDPOINT"], environment["PATH"]) == (hub.url, os.environ["PATH"])
