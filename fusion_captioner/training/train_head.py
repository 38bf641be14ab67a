"""`fusion-captioner train` for the tasks other than captioning: from settings to a scored, saved model."""

import json
import logging
from pathlib import Path

from transformers import set_seed

from fusion_captioner.checkpoints.loading import load_config
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.row_dataset import rows_with_features
from fusion_captioner.files import check_output_folder
from fusion_captioner.training.arguments import HeadRunArguments
from fusion_captioner.training.generation_trainer import GenerationTrainer
from fusion_captioner.training.model_card import TrainingRecord
from fusion_captioner.training.run_folder import prepare_run_folder
from fusion_captioner.training.tasks.tasks import MIRRORED, TASKS, HeadTask, write_task
from fusion_captioner.training.train_captioner import build_head, build_processor

logger = logging.getLogger(__name__)


def train_head(run: HeadRunArguments, command: str, resume: bool = False) -> dict[str, float]:
    """
    Train, evaluate and save a head.

    Args:
        run: its settings.
        command: told in the model card.
        resume: go on with the newest complete checkpoint of `training.output_dir`.

    Returns:
        the scores of the saved model on `data.eval_split`.
    """
    data, arguments = run.data, run.training
    output = Path(str(arguments.output_dir))
    checkpoint = prepare_run_folder(output, resume)
    if data.feature_cache is not None:
        check_output_folder(data.feature_cache, "`data.feature_cache`")
    if arguments.eval_strategy != "no" and data.eval_split is None:
        raise ValueError("`data.eval_split` is unset and `training.eval_strategy` is not 'no'; set one of them.")
    set_seed(arguments.seed)

    started = run.model.from_checkpoint
    task: HeadTask = TASKS[run.task](data, None if started is None else load_config(started))
    splits = task.load_run()
    processor = build_processor(run, task.texts(splits["train"]), task.max_text_length)
    model = build_head(task.head, run.model, processor, **task.config_fields(splits["train"]))
    features: dict[str, ImageFeatures] = {}
    if data.feature_cache is not None:
        cached = cached_features(
            {role: task.images(rows) for role, rows in splits.items()},
            model,
            processor.image_processor,
            data.feature_cache,
            batch_size=data.feature_batch_size,
            skip_bad_images=data.skip_bad_images,
            mirrored=task.mirrored,
        )
        features = {role: split.features for role, split in cached.items()}
        splits = {role: rows_with_features(rows, features[role]) for role, rows in splits.items()}
        if cached["train"].mirrored_features is not None:
            features[MIRRORED] = cached["train"].mirrored_features

    trainer = task.trainer(model, processor, arguments, splits, features)
    trainer.training_record = TrainingRecord.of_run(run, command)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_metrics("train", result.metrics)
    metrics: dict[str, float] = {}
    if "eval" in splits:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_task(output, run.task, data)
        trainer.create_model_card()
        if "eval" in splits:
            report = json.dumps(task.report(trainer, splits["eval"]), indent=2, ensure_ascii=False)
            (output / "eval_report.json").write_text(report + "\n", encoding="utf-8")
            if isinstance(trainer, GenerationTrainer):
                lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in trainer.evaluated_texts]
                (output / "eval_texts.jsonl").write_text("".join(lines), encoding="utf-8")
    return metrics
