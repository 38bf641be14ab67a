"""`fusion-captioner train`: START HERE for training. Settings of any task in, a scored and saved model out."""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed

from fusion_captioner.checkpoints.loading import load_config
from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.row_batches import rows_with_features
from fusion_captioner.file_locks import lock_output_folder
from fusion_captioner.files import check_output_folder
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerPreTrainedModel
from fusion_captioner.printing import print_log
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.arguments import RunArguments, read_run_arguments
from fusion_captioner.training.building import build_model, build_processor
from fusion_captioner.training.model_card import TrainingRecord, public_name
from fusion_captioner.training.run_folder import prepare_run_folder
from fusion_captioner.training.task_file import write_task
from fusion_captioner.training.tasks import TASKS
from fusion_captioner.training.tasks.task import MIRRORED, Task

logger = logging.getLogger(__name__)


def train_from_yaml(path: str | Path, flags: Sequence[str] = (), resume: bool = False) -> dict[str, float]:
    """
    Train, evaluate and save a model; see `arguments.py` for the settings.

    Args:
        path: name of a recipe of the package, or YAML file.
        flags: such as `["--training.seed", "3"]`; they override the file.
        resume: continue from the newest complete checkpoint of `training.output_dir`.

    Returns:
        the scores of the saved model on `data.eval_split`.
    """
    print_log(logging.INFO)
    run = read_run_arguments(path, flags)
    command = " ".join(["fusion-captioner train", str(path), *flags])
    output_dir = str(run.training.output_dir)
    with lock_output_folder(output_dir, "`training.output_dir`") if run.training.process_index == 0 else nullcontext():
        return train(run, command, resume)


def train(run: RunArguments, command: str, resume: bool = False) -> dict[str, float]:
    """As [`train_from_yaml`], with settings that are read already; `command` is stored in the model card."""
    data, arguments = run.data, run.training
    checkpoint = prepare_run_folder(str(arguments.output_dir), resume)
    if data.feature_cache is not None:
        check_output_folder(data.feature_cache, "`data.feature_cache`")
    if arguments.eval_strategy != "no" and data.eval_split is None:
        raise ValueError("`data.eval_split` is unset and `training.eval_strategy` is not 'no'; set one of them.")
    set_seed(arguments.seed)
    logger.info("training computes in %s; weights are float32 (`training.bf16`)", arguments.computes_in)

    start = run.model.from_checkpoint
    task = TASKS[run.task](data, None if start is None else load_config(start))
    splits = task.load_run()
    texts = task.texts(splits["train"])
    processor = build_processor(run.model, run.tokenizer, texts, task.max_text_length, task.languages)
    if isinstance(splits["train"], datasets.Dataset):  # a stream would be read once more for that
        _log_cut_texts(task.whole_texts(splits["train"]), processor)
    fields = task.config_fields(splits["train"])
    if lacks_concepts(run.model.config, task.config):
        fields["concept_token_ids"] = task.concept_token_ids(splits["train"], processor)
    model = build_model(task.model_class, run.model, processor, **fields)
    features: dict[str, ImageFeatures] = {}
    if data.feature_cache is not None:
        splits, features = _cache_features(task, splits, model, processor)

    trainer = task.trainer(model, processor, arguments, splits, features)
    trainer.training_record = training_record(task, run, command)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_metrics("train", {**result.metrics, "train_computes_in": arguments.computes_in})
    metrics: dict[str, float] = {}
    if "eval" in splits:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    trainer.save_model()
    if trainer.is_world_process_zero():
        output = Path(str(arguments.output_dir))
        write_task(output, run.task, data)
        trainer.create_model_card()
        if "eval" in splits:
            report = json.dumps(task.report(trainer, splits["eval"]), indent=2, ensure_ascii=False)
            (output / "eval_report.json").write_text(report + "\n", encoding="utf-8")
            if (generated := task.generated(trainer)) is not None:
                name, lines = generated
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (output / name).write_text(text, encoding="utf-8")
    return metrics


def lacks_concepts(fields: dict[str, Any], start: FusionCaptionerConfig | None) -> bool:
    """Whether fields of a recipe ask for concepts, and neither they nor the checkpoint to start from name any."""
    asked = fields.get("num_concepts") or fields.get("concept_loss_weight") or fields.get("concept_bias")
    known = fields.get("concept_token_ids") or (start is not None and start.concept_token_ids)
    return bool(asked) and not known


def _log_cut_texts(texts: Iterable[str], processor: FusionCaptionerProcessor) -> None:
    """Say how many texts are longer than the tokenizer's maximum."""
    limit = processor.tokenizer.model_max_length - 2  # BOS and EOS
    count, long = 0, []
    for text in texts:
        count += 1
        if len(text.encode()) > limit:  # a token has at least one byte
            long.append(text)
    rows = processor.tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"] if long else []
    if cut := sum(len(row) > limit for row in rows):
        logger.warning(
            "%d of %d training texts are longer than %d tokens, the tokenizer's `model_max_length`, and are cut",
            *(cut, count, limit + 2),
        )


def _cache_features(
    task: Task[Any],
    splits: dict[str, Any],
    model: FusionCaptionerPreTrainedModel,
    processor: FusionCaptionerProcessor,
) -> tuple[dict[str, Any], dict[str, ImageFeatures]]:
    """The rows whose images can be decoded, and the features of their images, computed where they are not cached."""
    cached = cached_features(
        {role: task.images(rows) for role, rows in splits.items()},
        model,
        processor.image_processor,
        task.data.feature_cache,
        batch_size=task.data.feature_batch_size,
        skip_bad_images=task.data.skip_bad_images,
        mirrored=task.mirrored,
    )
    features = {role: split.features for role, split in cached.items()}
    splits = {role: rows_with_features(rows, features[role]) for role, rows in splits.items()}
    if (mirrored := cached["train"].mirrored_features) is not None:
        features[MIRRORED] = mirrored
    return splits, features


def training_record(task: Task[Any], run: RunArguments, command: str) -> TrainingRecord:
    """The origin of the model, for its card."""
    encoder = run.model.vision_model
    return replace(
        task.training_record(),
        vision_model=None if encoder is None else public_name(encoder),
        command=command,
        computes_in=run.training.computes_in,
    )
