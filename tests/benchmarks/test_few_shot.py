"""Few examples: the benchmark of LoRA compared with full fine-tuning, and an adapter that transformers' own `Trainer`
trains."""

import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from tiny_captioner import tiny_model, tiny_processor
from tiny_labels import write_labelled
from transformers import Trainer, TrainingArguments

from fusion_captioner import FusionCaptionerForSequenceClassification
from fusion_captioner.data.arguments import LabelledDataArguments
from fusion_captioner.data.labelled_images import load_labelled_images
from fusion_captioner.data.row_batches import LabelCollator, RowDataset
from fusion_captioner.training.lora import lora_layers

peft = pytest.importorskip("peft")
spec = importlib.util.spec_from_file_location("few_shot", Path(__file__).parents[2] / "benchmarks" / "few_shot.py")
assert spec is not None and spec.loader is not None
few_shot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(few_shot)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A captioner that knows nothing."""
    tiny_model(initializer_range=0.3).save_pretrained(tmp_path / "captioner")
    tiny_processor().save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


@pytest.mark.slow
def test_both_ways_learn_from_the_same_examples_and_the_table_says_so(
    tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_labelled(tmp_path / "data", train=12)
    results, cache = tmp_path / "few_shot.json", tmp_path / "cache"
    command = [str(data), "--json", str(results), "--checkpoint", str(start), "--cache", str(cache), "--seeds", "0"]
    command += ["--steps", "2", "--lora-rate", "1e-2", "--data.labels", "[other, same]"]
    assert few_shot.main([*command, "--sizes", "4"]) == 0
    assert few_shot.main([*command, "--sizes", "4", "all"]) == 0
    document = json.loads(results.read_text())
    runs = [(run["method"], run["size"], run["examples"]) for run in document["results"]]
    assert runs == [("lora", 4, 4), ("full", 4, 4), ("lora", "all", 12), ("full", "all", 12)]
    assert document["commonest"] == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    lora, full = (run["trained_parameters"] for run in document["results"][:2])
    assert 0 < lora < full < sum(weight.numel() for weight in tiny_model().parameters())

    # another budget may not go into the same table
    assert few_shot.main([*command, "--rank", "4"]) == 2
    assert "'rank': 8" in capsys.readouterr().err
    assert few_shot.main([*command[:-2], "--sizes", "1"]) == 2  # the recipe's labels are not those of the data
    assert few_shot.main(["--json", str(results), "--table", "--docs", str(tmp_path)]) == 0
    page = (tmp_path / "few_shot.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows[1:]] == [[n, m] for n in ("4", "12") for m in few_shot.METHODS.values()]
    assert [row[2] for row in rows[1:]] == [f"{run['accuracy']:.3f}" for run in document["results"]]
    assert "--steps 2 --lora-rate 0.01" in page and "accuracy of 0.500" in page and "macro-F1 of 0.333" in page
    circles = [node for node in ElementTree.parse(tmp_path / "few_shot.svg").iter() if node.tag.endswith("circle")]
    assert len(circles) == 2 + 2 * 4  # the legend's, and one a run in either panel


def test_fewer_examples_are_among_more_and_hold_every_label(tmp_path: Path, start: Path) -> None:
    data = write_labelled(tmp_path / "data", train=12)
    lines = [json.loads(line) | {"label": "same"} for line in (data / "train/metadata.jsonl").read_text().splitlines()]
    lines[7]["label"] = "other"
    (data / "train" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = few_shot.argparse.Namespace(
        data=str(data), checkpoint=str(start), cache=str(tmp_path / "cache"), steps=1
    )
    sentiment = few_shot.Sentiment(options, ["--data.labels", "[other, same]"])
    few, more = sentiment.examples(2, seed=3), sentiment.examples(6, seed=3)
    assert sorted(few["label"]) == [0, 1] and few["image_id"] == more["image_id"][:2]
    assert len({*sentiment.examples(None, seed=3)["image_id"]}) == 12
    assert sentiment.examples(6, seed=4)["image_id"] != more["image_id"]
    with pytest.raises(ValueError, match=r"`--sizes` \(1\) must be from 2, one example of each label, to the 12"):
        sentiment.examples(1, seed=0)


def test_the_trainer_of_transformers_trains_an_adapter_that_merges(tmp_path: Path, start: Path) -> None:
    torch.manual_seed(0)  # of the weights that are new; otherwise they depend on which tests ran before
    data = LabelledDataArguments(source=str(write_labelled(tmp_path / "data", train=8)))
    rows = RowDataset(load_labelled_images(data, {"train": None})[0]["train"])
    collate = LabelCollator(tiny_processor())
    model = FusionCaptionerForSequenceClassification.from_pretrained(start, num_labels=2)
    model.freeze_image_encoder()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, **lora_layers(model)))
    inputs = collate(rows.__getitems__(range(8)))
    before = adapted.eval()(**inputs)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=20,
        learning_rate=1e-2,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(adapted, arguments, train_dataset=rows, data_collator=collate).train()
    trained = adapted.eval()(**inputs)
    assert trained.loss < before.loss
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "classifier")
    merged = FusionCaptionerForSequenceClassification.from_pretrained(tmp_path / "classifier")
    torch.testing.assert_close(merged(**inputs).logits, trained.logits)
    again = FusionCaptionerForSequenceClassification.from_pretrained(start, num_labels=2)
    # the placeholders are new in either, and no row needs them
    loaded = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**inputs).logits, trained.logits)
