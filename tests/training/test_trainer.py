import json
import math
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_captioner import caption_rows, tiny_model, tiny_processor
from tiny_models import VISION_CONFIGS
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.evaluation.generated_captions import generate_captions
from fusion_captioner.training.callbacks import StopEarly, wins_tie
from fusion_captioner.training.run_folder import newest_complete_checkpoint
from fusion_captioner.training.trainer import FusionCaptionerTrainer, check_caption_length
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments


class Stop(TrainerCallback):
    """Ends training as a kill would: nothing more is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Record(TrainerCallback):
    def __init__(self) -> None:
        self.rows: list[tuple[int, bool]] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        trained = next(model.model.image_encoder.backbone.parameters()).requires_grad
        self.rows.append((state.global_step, trained))


def build(folder: Path, data: Path, callbacks=(), model_fields=None, **settings) -> FusionCaptionerTrainer:
    torch.manual_seed(0)
    processor = tiny_processor()
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "disable_tqdm": True,
        "generation_max_new_tokens": 6,
    }
    return FusionCaptionerTrainer(
        model=tiny_model(**(model_fields or {})),
        args=FusionCaptionerTrainingArguments(**(defaults | settings)),
        data_collator=CaptionCollator(processor),
        train_dataset=CaptionDataset(caption_rows(data / "train", 8), 1, seed=0),
        eval_dataset=CaptionDataset(caption_rows(data / "val", 3, first_seed=50), 1, seed=0),
        processing_class=processor,
        callbacks=list(callbacks),
    )


def with_features(trainer: FusionCaptionerTrainer, folder: Path) -> FusionCaptionerTrainer:
    """The same, its data reading from a feature cache."""
    splits = {"train": trainer.train_dataset.rows, "val": trainer.eval_dataset.rows}
    image_processor = trainer.processing_class.image_processor
    cached = cached_features(splits, trainer.model, image_processor, folder)
    trainer.train_dataset = CaptionDataset(splits["train"], 1, 0, cached["train"].features)
    trainer.eval_dataset = CaptionDataset(splits["val"], 1, 0, cached["val"].features)
    return trainer


def losses(trainer: FusionCaptionerTrainer) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


@pytest.mark.slow
def test_a_warm_up_that_outlasts_the_run_is_told(tmp_path: Path, caplog) -> None:
    for warmup_steps, told in ((2, 1), (1, 0)):
        caplog.clear()
        build(tmp_path / str(warmup_steps), tmp_path, max_steps=2, warmup_steps=warmup_steps).train()
        assert caplog.text.count("the learning rate rises for 2 steps, and training has 2") == told


@pytest.mark.parametrize(("ema_decay", "bf16"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.slow
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(
    tmp_path: Path, ema_decay: float, bf16: bool, monkeypatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", warnings.append)
    settings = {"save_strategy": "steps", "save_steps": 3, "ema_decay": ema_decay, "num_train_epochs": 2, "bf16": bf16}
    unbroken = build(tmp_path / "unbroken", tmp_path, **settings)
    unbroken.train()
    broken = build(tmp_path / "broken", tmp_path, [Stop(5)], **settings)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    # what a kill in the middle of saving leaves behind
    for step, text in {"5": None, "6": "", "7": '{"epoch": 1'}.items():
        folder = tmp_path / "broken" / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    checkpoint = newest_complete_checkpoint(tmp_path / "broken")
    assert checkpoint is not None and checkpoint.endswith("checkpoint-3")
    resumed = build(tmp_path / "broken", tmp_path, **settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert not [text for text in warnings if "missing keys" in text]
    expected = losses(unbroken)
    assert losses(resumed) == expected and len(expected) == 8
    for name, weight in unbroken.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight)


@pytest.mark.parametrize(("kind", "ema_decay"), [("vit", 0.0), ("vit", 0.5), ("deit", 0.0), ("beit", 0.0)])
@pytest.mark.slow
def test_encoders_that_are_saved_under_older_names_are_resumed_and_chosen_as_saved(
    tmp_path: Path, kind: str, ema_decay: float
) -> None:
    def trainer(folder: str, *callbacks: TrainerCallback) -> FusionCaptionerTrainer:
        return build(
            tmp_path / folder,
            tmp_path,
            callbacks,
            {"vision_config": {"model_type": kind, **VISION_CONFIGS["vit"]}},
            train_image_encoder_from_step=0,
            ema_decay=ema_decay,
            num_train_epochs=2,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            predict_with_generate=False,
            greater_is_better=True,  # the first checkpoint is the best
            save_total_limit=None,
        )

    unbroken, broken, resumed = trainer("whole"), trainer("broken", Stop(6)), trainer("broken")
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed.train(resume_from_checkpoint=newest_complete_checkpoint(tmp_path / "broken"))
    assert losses(resumed) == losses(unbroken) and len(losses(unbroken)) == 8
    assert unbroken.state.best_global_step == 4
    saved = type(unbroken.model).from_pretrained(tmp_path / "whole" / "checkpoint-4").state_dict()
    for name, weight in unbroken.model.state_dict().items():
        torch.testing.assert_close(weight, saved[name], rtol=0, atol=0)
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=0)


def test_every_loss_term_is_logged_on_its_own(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path, num_train_epochs=1, report_to="tensorboard")
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 4
    for row in rows:
        assert row["loss_caption"] == pytest.approx(row["loss"], abs=2e-4)
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    shown = EventAccumulator(str(events)).Reload()
    assert [point.step for point in shown.Scalars("train/loss_caption")] == [1, 2, 3, 4]


def test_loss_terms_of_accumulated_batches_are_those_of_the_step(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "logging_steps": 2}
    trainer = build(tmp_path / "out", tmp_path, **settings)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["loss_caption"] == pytest.approx(row["loss"], abs=2e-4)


def test_evaluation_generates_from_the_prompt_alone(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path, num_train_epochs=1)
    trainer.train()
    metrics = trainer.evaluate()
    captions = trainer.evaluated_captions
    rows = trainer.eval_dataset.rows
    replaced = rows.map(lambda row: {"captions": ["it is a picture of green"]})
    assert (
        generate_captions(trainer.model, trainer.processing_class, replaced, num_beams=3, max_new_tokens=6) == captions
    )
    for name in ("CIDEr", "BLEU-1", "BLEU-4", "ROUGE-L", "METEOR-exact-stem", "loss"):
        assert isinstance(metrics[f"eval_{name}"], float)
    assert "images=3" in trainer.score_signature


def test_the_image_encoder_is_frozen_until_its_step_and_has_its_own_rate(tmp_path: Path) -> None:
    record = Record()
    trainer = build(
        tmp_path / "out",
        tmp_path,
        [record],
        num_train_epochs=1,
        train_image_encoder_from_step=2,
        image_encoder_learning_rate=1e-4,
        lr_scheduler_type="constant",
    )
    before = {name: weight.clone() for name, weight in trainer.model.model.image_encoder.named_parameters()}
    trainer.train()
    assert record.rows == [(0, False), (1, False), (2, True), (3, True)]
    assert sorted({group["lr"] for group in trainer.optimizer.param_groups}) == [1e-4, 1e-2]
    after = dict(trainer.model.model.image_encoder.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_layers_of_the_image_encoder_have_rates_of_their_own_and_the_first_stay_frozen(tmp_path: Path) -> None:
    trainer = build(
        tmp_path / "out",
        tmp_path,
        num_train_epochs=1,
        train_image_encoder_from_step=0,
        image_encoder_learning_rate=1e-4,
        image_encoder_layer_decay=0.5,
        frozen_image_encoder_layers=1,
        lr_scheduler_type="constant",
    )
    encoder = trainer.model.model.image_encoder
    before = {name: weight.clone() for name, weight in encoder.backbone.named_parameters()}
    trainer.train()
    depths = encoder.depths()
    trained = {
        depths[name.rpartition(".")[0]]
        for name, weight in before.items()
        if not torch.equal(weight, dict(encoder.backbone.named_parameters())[name])
    }
    assert encoder.num_layers == 2 and trained == {2}
    assert sorted({group["lr"] for group in trainer.optimizer.param_groups}) == [0.5e-4, 1e-2]


def test_scales_of_the_image_encoders_normalisation_have_no_weight_decay(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path, train_image_encoder_from_step=0, weight_decay=0.1)
    backbone = trainer.model.model.image_encoder.backbone
    scales = [module.weight for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    groups = trainer.create_optimizer().param_groups
    decay = {weight: group["weight_decay"] for group in groups for weight in group["params"]}
    assert scales and all(decay[weight] == 0 for weight in scales)
    kernels = [weight for weight in backbone.parameters() if weight.dim() == 4]
    assert kernels and all(decay[weight] == 0.1 for weight in kernels)


def test_more_layers_than_the_image_encoder_has_cannot_be_frozen(tmp_path: Path) -> None:
    settings = {"train_image_encoder_from_step": 0, "frozen_image_encoder_layers": 3}
    with pytest.raises(ValueError, match=r"`num_frozen_layers` \(3\) must be 0 to 2"):
        build(tmp_path / "out", tmp_path, **settings).train()
    with pytest.raises(ValueError, match=r"`image_encoder_layer_decay` \(1.5\) must be above 0 and at most 1"):
        build(tmp_path / "out", tmp_path, image_encoder_layer_decay=1.5)


class Inputs:
    """Notes, call by call, what the model was given: `(training, optimiser step, name of the images)`."""

    def __init__(self, trainer: FusionCaptionerTrainer) -> None:
        self.calls: list[tuple[bool, int, str]] = []

        def note(model, arguments, keywords) -> None:
            for name in {"pixel_values", "image_hidden_states"} & set(keywords):
                self.calls.append((model.training, trainer.state.global_step, name))

        trainer.model.register_forward_pre_hook(note, with_kwargs=True)

    def names(self, training: bool) -> list[tuple[int, str]]:
        """By optimiser step, each once."""
        return list(dict.fromkeys((step, name) for mode, step, name in self.calls if mode is training))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_the_feature_cache_is_left_at_the_step_that_unfreezes_the_image_encoder(tmp_path: Path, workers: int) -> None:
    """At that very step, however far the data loader reads ahead; and a run resumed before or behind it does the
    same."""
    settings = {
        "train_image_encoder_from_step": 3,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "predict_with_generate": False,
        "dataloader_num_workers": workers,
    }
    trainer = with_features(build(tmp_path / "out", tmp_path, **settings), tmp_path / "features")
    before = {name: weight.clone() for name, weight in trainer.model.model.image_encoder.named_parameters()}
    inputs = Inputs(trainer)
    trainer.train()
    expected = [(step, "image_hidden_states" if step < 3 else "pixel_values") for step in range(8)]
    assert inputs.names(training=True) == expected
    evaluated = [(2, "image_hidden_states"), *((step, "pixel_values") for step in (4, 6, 8))]
    assert inputs.names(training=False) == evaluated
    after = dict(trainer.model.model.image_encoder.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    for step in (2, 5) if workers == 0 else ():
        resumed = with_features(build(tmp_path / "out", tmp_path, **settings), tmp_path / "features")
        inputs = Inputs(resumed)
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert inputs.names(training=True) == expected[step:]
        assert losses(resumed) == losses(trainer)


def test_generated_captions_are_those_of_the_encoder_as_it_is_now(tmp_path: Path) -> None:
    settings = {"train_image_encoder_from_step": 1, "num_train_epochs": 1, "image_encoder_learning_rate": 1.0}
    trainer = with_features(build(tmp_path / "out", tmp_path, **settings), tmp_path / "features")
    trainer.train()
    asked: list[set[str]] = []
    generate = trainer.model.generate

    def noting(**keywords):
        asked.append(set(keywords))
        return generate(**keywords)

    trainer.model.generate = noting
    trainer.evaluate()
    assert asked and all("pixel_values" in names and "image_hidden_states" not in names for names in asked)


def test_a_frozen_image_encoder_does_not_change(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path, num_train_epochs=1)
    before = {name: tensor.clone() for name, tensor in trainer.model.model.image_encoder.state_dict().items()}
    trainer.train()
    for name, tensor in trainer.model.model.image_encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_average_of_the_weights_is_what_is_saved(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path, save_strategy="steps", save_steps=4, ema_decay=0.9, num_train_epochs=1)
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-4"
    averaged = load_file(checkpoint / "model.safetensors")
    trained = load_file(checkpoint / "training_weights.safetensors")
    name = "decoder.layers.recurrent.weight_hh_l0"
    assert not torch.equal(averaged[name], trained[name])
    torch.testing.assert_close(trainer.model.state_dict()[name], averaged[name])


def test_the_best_checkpoint_by_cider_is_what_training_ends_with(tmp_path: Path) -> None:
    trainer = build(
        tmp_path / "out",
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        ema_decay=0.5,
        early_stopping_patience=1,
        num_train_epochs=6,
    )
    trainer.train()
    scores = {row["step"]: row["eval_CIDEr"] for row in trainer.state.log_history if "eval_CIDEr" in row}
    best = trainer.state.best_model_checkpoint
    assert trainer.state.best_metric == max(scores.values())
    saved = load_file(Path(best) / "model.safetensors")
    name = "model.fusion.query.weight"
    torch.testing.assert_close(trainer.model.state_dict()[name], saved[name])
    assert json.loads((Path(best) / "trainer_state.json").read_text())["global_step"] in scores


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ema_decay": 1.0}, ["ema_decay", "1.0"]),
        ({"train_image_encoder_from_step": -1}, ["train_image_encoder_from_step", "-1"]),
        ({"generation_num_beams": 0}, ["generation_num_beams", "0"]),
        ({"generation_no_repeat_ngram": -1}, ["generation_no_repeat_ngram", "-1"]),
        (
            {"early_stopping_patience": 2, "eval_strategy": "no", "load_best_model_at_end": False},
            ["early_stopping_patience", "2", "eval_strategy"],
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        FusionCaptionerTrainingArguments(output_dir=str(tmp_path), **settings)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("bf16", [False, True])
def test_training_stops_at_a_loss_that_is_not_finite(tmp_path: Path, bf16: bool) -> None:
    trainer = build(tmp_path / "out", tmp_path / "data", learning_rate=1e-3, bf16=bf16)

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.text_projection.weight.fill_(1.0)
                    model.lm_head.bias[3] = torch.nan

    trainer.add_callback(Break())
    with pytest.raises(
        ValueError, match=r"the loss of step 3 is nan, and training stops.*Batch: train-\d, train-\d\."
    ):
        trainer.train()
    state = json.loads((tmp_path / "out" / "non_finite" / "state.json").read_text())
    assert state["step"] == 3 and len(state["batch"]) == 2
    assert (tmp_path / "out" / "non_finite" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_training_stops_at_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path / "data", gradient_accumulation_steps=2)
    weight = trainer.model.model.fusion.query.weight
    weight.register_hook(lambda gradient: gradient * (torch.inf if trainer.state.global_step == 1 else 1))
    with pytest.raises(ValueError, match=r"the norm of the gradient of step 2 is (nan|inf), and training stops"):
        trainer.train()
    folder = tmp_path / "out" / "non_finite"
    assert len(json.loads((folder / "state.json").read_text())["batch"]) == 4  # two batches of two images
    assert load_file(folder / "model.safetensors")["model.fusion.query.weight"].isfinite().all()
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(os.listdir(folder))


@pytest.mark.parametrize("types", [("lstm", "lstm"), ("gru", "transformer"), ("transformer", "gru")])
@pytest.mark.slow
def test_bfloat16_rounds_products_and_learns_as_single_precision(tmp_path: Path, types: tuple[str, str]) -> None:
    vision = {"model_type": "efficientnet", **VISION_CONFIGS["efficientnet"]}
    fields = {"text_encoder_type": types[0], "decoder_type": types[1], "vision_config": vision}
    found = {}
    for bf16, checkpointing in ((False, False), (True, False), (True, True)):
        settings = {"bf16": bf16, "gradient_checkpointing": checkpointing, "learning_rate": 1e-3}
        trainer = build(tmp_path, tmp_path, (), fields, train_image_encoder_from_step=0, **settings)
        seen: set[torch.dtype] = set()
        trainer.model.model.fusion.query.register_forward_hook(
            lambda layer, inputs, output, seen=seen: seen.add(output.dtype)
        )
        trainer.train()
        assert seen == {torch.bfloat16 if bf16 else torch.float32}
        assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
        states = [state for states in trainer.optimizer.state.values() for state in states.values()]
        assert states and {state.dtype for state in states} == {torch.float32}
        found[bf16, checkpointing] = list(losses(trainer).values())
    assert found[True, False] != found[False, False]
    assert found[True, False] == pytest.approx(found[False, False], rel=0.01)
    assert found[True, True] == pytest.approx(found[True, False], rel=0.001)


def test_transformers_own_trainer_trains_in_bfloat16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(tmp_path), bf16=True, use_cpu=True, max_steps=2, remove_unused_columns=False, report_to="none"
    )
    model, processor = tiny_model(), tiny_processor()
    rows = CaptionDataset(caption_rows(tmp_path, 4), 1, seed=0)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = Trainer(model, arguments, data_collator=CaptionCollator(processor), train_dataset=rows)
    assert math.isfinite(trainer.train().training_loss)
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert "lm_head.bias" in changed and "decoder.layers.recurrent.weight_hh_l0" in changed
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path / "data", max_steps=1, learning_rate=1e39, lr_scheduler_type="constant")
    trainer.train()
    with pytest.raises(ValueError, match=r"step 1: .*weights that are not finite"):
        trainer.save_model()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_transformers_own_evaluation_by_generating_sees_the_prompts_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = tiny_model(), tiny_processor()
    rows = caption_rows(tmp_path / "val", 3)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        predict_with_generate=True,
        generation_max_length=6,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    collator = CaptionCollator(processor, prompt="it is")
    trainer = Seq2SeqTrainer(model, arguments, data_collator=collator, processing_class=processor)
    predicted = trainer.predict(CaptionDataset(rows, 1, seed=0)).predictions
    prompted = processor(images=[row["path"] for row in rows["image"]], text="it is", return_tensors="pt")
    expected = model.eval().generate(**prompted, max_length=6)
    assert predicted[:, : expected.shape[1]].tolist() == expected.tolist()


def test_captions_longer_than_the_positions_are_refused_before_training() -> None:
    model = tiny_model(decoder_type="transformer", max_position_embeddings=8)
    arguments = FusionCaptionerTrainingArguments(output_dir="unused", generation_max_new_tokens=8, report_to="none")
    with pytest.raises(ValueError, match=r"`training.generation_max_new_tokens` \(8\) must be below.*`decoder_type`"):
        check_caption_length(model, arguments)
    check_caption_length(tiny_model(max_position_embeddings=8), arguments)
    arguments.generation_max_new_tokens = 5
    check_caption_length(model, arguments, longest_prompt=3)
    with pytest.raises(ValueError, match=r"\(5\) after a prompt of 4 tokens must be below"):
        check_caption_length(model, arguments, longest_prompt=4)


def evaluation(step: int, **scores: float) -> dict[str, float]:
    return {"step": step, **{f"eval_{name.replace('_', '-')}": value for name, value in scores.items()}}


@pytest.mark.parametrize(
    ("before", "now", "wins", "stops"),
    [
        ({"CIDEr": 0.0, "BLEU_4": 0.1, "loss": 2.0}, {"CIDEr": 0.0, "BLEU_4": 0.2, "loss": 3.0}, True, False),
        ({"CIDEr": 0.0, "BLEU_4": 0.2, "loss": 3.0}, {"CIDEr": 0.0, "BLEU_4": 0.1, "loss": 2.0}, False, True),
        ({"CIDEr": 0.0, "BLEU_4": 0.0, "loss": 3.0}, {"CIDEr": 0.0, "BLEU_4": 0.0, "loss": 2.0}, True, False),
        ({"CIDEr": 0.0, "BLEU_4": 0.0, "loss": 2.0}, {"CIDEr": 0.0, "BLEU_4": 0.0, "loss": 3.0}, False, True),
        ({"CIDEr": 0.0, "BLEU_4": 0.0, "loss": 2.0}, {"CIDEr": 0.0, "BLEU_4": 0.0, "loss": 2.0}, True, True),
        ({"CIDEr": 0.3, "BLEU_4": 0.0, "loss": 2.0}, {"CIDEr": 0.2, "BLEU_4": 0.9, "loss": 1.0}, False, True),
    ],
)
def test_a_tie_of_scores_goes_to_the_next_score_the_loss_or_the_later_one(
    before: dict[str, float], now: dict[str, float], wins: bool, stops: bool
) -> None:
    state = TrainerState(best_metric=before["CIDEr"], best_global_step=4, global_step=8)
    state.log_history = [evaluation(4, **before), evaluation(8, **now)]
    metrics = evaluation(8, **now)
    assert wins_tie(metrics, state, "eval_CIDEr", ["eval_BLEU-4"]) is wins
    stop = StopEarly(1, ["eval_BLEU-4"])
    arguments = FusionCaptionerTrainingArguments(output_dir="unused", report_to="none")
    control = TrainerControl()
    stop.on_evaluate(arguments, state, control, metrics=metrics)
    assert control.should_training_stop is stops


def test_a_run_that_never_changes_stops_after_its_patience_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = build(
        tmp_path / "out",
        tmp_path / "data",
        learning_rate=0.0,
        num_train_epochs=9,
        early_stopping_patience=2,
        load_best_model_at_end=True,
        metric_for_best_model="CIDEr",
        **{"eval_strategy": "epoch", "save_strategy": "epoch"},
    )
    trainer.train()
    evaluations = [row["step"] for row in trainer.state.log_history if "eval_CIDEr" in row]
    assert len(evaluations) == 3
    assert trainer.state.best_global_step == evaluations[-1]


def test_the_tokenizer_of_scores_is_that_of_the_run(tmp_path: Path) -> None:
    trainer = build(tmp_path / "out", tmp_path / "data")
    trainer.metric_tokenizer = "characters"
    trainer.evaluate()
    assert "tokenizer=characters" in trainer.score_signature
