import pytest
from transformers import TrainerState

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.arguments import DataArguments
from fusion_captioner.training.arguments import ModelArguments, RunArguments, TokenizerArguments
from fusion_captioner.training.model_card import TrainedModel, TrainingRecord, build_model_card
from fusion_captioner.training.tasks.captioning import CaptioningTask
from fusion_captioner.training.train import training_record
from fusion_captioner.training.trainer import CAPTION_CARD
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments

BEST = {"step": 10, "eval_CIDEr": 0.5, "eval_BLEU-4": 0.2}
LAST = {"step": 20, "eval_CIDEr": 0.4, "eval_BLEU-4": 0.1}
AFTER = {"step": 20, "eval_CIDEr": 0.51, "eval_BLEU-4": 0.21}
SUMMARY = {"step": 20, "train_runtime": 1.0}


def trained(log: list[dict], record: TrainingRecord | None = None, best: bool = True) -> TrainedModel:
    return TrainedModel(
        repository="captioner",
        config=FusionCaptionerConfig(fusion_type="gated"),
        state=TrainerState(log_history=log, global_step=20, best_global_step=10 if best else None, epoch=2.0),
        is_best=best,
        record=record or TrainingRecord(),
        score_setting=", 3 beams",
        score_signature="CIDEr-D | images=3",
    )


@pytest.mark.parametrize(
    ("log", "best", "cider"),
    [
        ([BEST, LAST, SUMMARY, AFTER], True, 0.51),  # evaluated with the weights that are saved
        ([BEST, LAST, SUMMARY], True, 0.5),  # the best checkpoint was loaded at the end
        ([BEST, LAST, SUMMARY], False, 0.4),
    ],
)
def test_scores_are_those_of_the_saved_weights(log, best, cider):
    assert trained(log, best=best).scores()["CIDEr"] == cider


def test_card_without_scores_claims_none():
    card = build_model_card(trained([SUMMARY], TrainingRecord(data="flickr8k")), CAPTION_CARD)
    assert "Not scored." in card.text
    assert card.data.eval_results is None
    assert card.data.metrics is None


def test_scores_without_the_name_of_their_data_are_no_results():
    card = build_model_card(trained([BEST, SUMMARY]), CAPTION_CARD)
    assert "| CIDEr | 0.5000 |" in card.text
    assert card.data.eval_results is None
    assert (
        build_model_card(trained([BEST, SUMMARY]), CAPTION_CARD, data="flickr8k").data.eval_results[0].metric_value
        == 0.5
    )


def test_record_of_a_run_keeps_paths_to_itself(tmp_path):
    (tmp_path / "flickr8k").mkdir()
    run = RunArguments(
        model=ModelArguments(vision_model="google/efficientnet-b0"),
        data=DataArguments(source=str(tmp_path / "flickr8k"), eval_split="test"),
        tokenizer=TokenizerArguments(),
        training=FusionCaptionerTrainingArguments(output_dir=str(tmp_path / "run")),
    )
    record = training_record(CaptioningTask(run.data), run, "fusion-captioner train flickr8k.yaml")
    assert record == TrainingRecord(
        ["flickr8k"],
        "train",
        "test",
        "google/efficientnet-b0",
        "fusion-captioner train flickr8k.yaml",
        computes_in="float32",
    )
    card = str(build_model_card(trained([BEST, SUMMARY], record), CAPTION_CARD))
    assert str(tmp_path) not in card
    assert "Fusion: gated" in card


def test_pushing_what_training_resumes_from_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`hub_strategy` .'checkpoint'.*'end'"):
        FusionCaptionerTrainingArguments(output_dir=str(tmp_path), push_to_hub=True, hub_strategy="checkpoint")
