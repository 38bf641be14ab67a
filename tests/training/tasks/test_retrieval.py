"""Retrieval is trained on captions and measured by recall, of the towers and re-ranked."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from tiny_captioner import WORDS, caption_rows, tiny_processor
from tiny_captioner import tiny_model as tiny_captioner
from tiny_labels import write_head_recipe
from tiny_recipe import write_data

from fusion_captioner.cli import main
from fusion_captioner.evaluation.retrieval_scores import retrieval_scores
from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval
from fusion_captioner.metrics.retrieval import retrieval_recall
from fusion_captioner.training.train import train_from_yaml


def test_it_is_trained_scored_saved_and_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_head_recipe(
        tmp_path / "recipe.yaml",
        write_data(tmp_path / "data", train=6, val=4),
        task="retrieval",
        data={"feature_cache": str(tmp_path / "features"), "augmentations": ["flip"], "captions_per_image": 2},
        training={"num_train_epochs": 1, "ema_decay": 0.5, "rerank_candidates": 2},
    )
    metrics = train_from_yaml(recipe)
    logged = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][0]
    assert logged["loss"] == pytest.approx(logged["loss_contrastive"] + logged["loss_matching"], abs=1e-3)
    assert metrics["eval_image_to_text_R@10"] >= metrics["eval_image_to_text_R@1"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card and "reranked text to image R@1" in card

    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out"), "--source", str(tmp_path / "data")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["captions"]) == (4, 12)
    assert found["image_to_text_R@5"] == metrics["eval_image_to_text_R@5"]


def test_re_ranking_adds_the_matching_score_to_the_candidates_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_captioner(contrastive_loss_weight=1.0, matching_loss_weight=1.0, initializer_range=0.3).config
    model = FusionCaptionerForImageTextRetrieval(config).eval()
    processor, words = tiny_processor(), Random(0)
    # each caption another: those that are equal would be told apart by rounding
    rows = caption_rows(tmp_path, 6).map(
        lambda row: {"captions": [" ".join(words.choices(WORDS[4:], k=6)) for _ in range(2)]}
    )
    scores = retrieval_scores(model, processor, rows, batch_size=4, candidates=12)

    captions = [caption for texts in rows["captions"] for caption in texts]
    pictures = [image["path"] for image in rows["image"]]
    inputs = processor(images=pictures, text=captions, add_eos=True, return_tensors="pt")
    with torch.inference_mode():
        similarity = model(**inputs).logits_per_image
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        regions = model.get_image_hidden_states(inputs["pixel_values"])
        pairs = torch.cartesian_prod(torch.arange(12), torch.arange(6))
        matching = model.rerank(pairs, texts, regions, inputs["attention_mask"]).view(12, 6).T
    owners = [number // 2 for number in range(12)]
    for prefix, expected in (("", similarity), ("reranked_", similarity + matching)):
        recall = retrieval_recall(expected.numpy(), owners)
        assert {name: scores[prefix + name] for name in recall} == recall
    # with one candidate nothing changes its place
    of_one = retrieval_scores(model, processor, rows, candidates=1)
    assert (
        of_one["reranked_mean_R@1"] == of_one["mean_R@1"]
        and of_one["reranked_text_to_image_R@5"] == of_one["text_to_image_R@5"]
    )
    assert "reranked_mean_R@1" not in retrieval_scores(model, processor, rows, candidates=0)


def test_a_stream_is_refused(tmp_path: Path) -> None:
    recipe = write_head_recipe(tmp_path / "recipe.yaml", tmp_path, task="retrieval", data={"streaming": True})
    with pytest.raises(ValueError, match=r"`data\.streaming` \(True\) is for captioning, and `task` is 'retrieval'"):
        train_from_yaml(recipe)
    with pytest.raises(ValueError, match=r"`task` \('singing'\) must be one of captioning, classification, "):
        train_from_yaml(write_head_recipe(tmp_path / "recipe.yaml", tmp_path, task="singing"))
