"""`fusion-captioner train`: START HERE for training. From a YAML file to a scored, saved captioner."""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase, set_seed

from fusion_captioner.checkpoints.loading import Head, load_head, load_processor
from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.caption_datasets import captions_of, load_splits
from fusion_captioner.data.caption_sampling import CaptionDataset, StreamedCaptionDataset
from fusion_captioner.data.collating import CaptionCollator, SelfCriticalCollator
from fusion_captioner.data.feature_cache import cached_features
from fusion_captioner.data.feature_shards import ImageFeatures
from fusion_captioner.data.tokenizer_training import train_tokenizer
from fusion_captioner.files import check_output_folder, lock_output_folder
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.process_setup import print_log
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.arguments import (
    HeadRunArguments,
    ModelArguments,
    RunArguments,
    read_run_arguments,
)
from fusion_captioner.training.model_card import TrainingRecord
from fusion_captioner.training.run_folder import prepare_run_folder
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.trainer import SelfCriticalTrainer
from fusion_captioner.training.trainer import FusionCaptionerTrainer
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments

logger = logging.getLogger(__name__)

# Rows of a stream among which the next is drawn. Images are not decoded yet: of the Hub's, some 100 MB.
SHUFFLED_ROWS = 1000


def train_from_yaml(path: str | Path, flags: Sequence[str] = (), resume: bool = False) -> dict[str, float]:
    """
    Train, evaluate and save a captioner, or by `task` another head; see `arguments.py` for what the file holds.

    Args:
        path: YAML file.
        flags: such as `["--training.seed", "3"]`; they win over the file.
        resume: go on with the newest complete checkpoint of `training.output_dir`.

    Returns:
        the scores of the saved model on `data.eval_split`.
    """
    print_log(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    run = read_run_arguments(path, flags)
    command = " ".join(["fusion-captioner train", str(path), *flags])
    output_dir = str(run.training.output_dir)
    with lock_output_folder(output_dir, "`training.output_dir`") if run.training.process_index == 0 else nullcontext():
        if isinstance(run, HeadRunArguments):
            from fusion_captioner.training.train_head import train_head  # which builds on this file

            return train_head(run, command, resume)
        return train_captioner(run, command, resume)


def train_captioner(run: RunArguments, command: str, resume: bool = False) -> dict[str, float]:
    """Train with settings that are read already; `command` is told in the model card."""
    checkpoint = prepare_run_folder(str(run.training.output_dir), resume)
    if run.data.feature_cache is not None:
        check_output_folder(run.data.feature_cache, "`data.feature_cache`")
    set_seed(run.training.seed)
    splits = load_splits(run.data)
    if run.training.eval_strategy != "no" and "eval" not in splits:
        raise ValueError("`data.eval_split` is unset and `training.eval_strategy` is not 'no'; set one of them.")
    if run.data.streaming and run.tokenizer.path is None:
        logger.info("reading the captions of the stream once, to train the tokenizer; `tokenizer.path` spares that")
    processor = build_processor(run, captions_of(splits["train"]))
    model = build_model(run.model, processor)
    keep_generation_settings(model, run.training)

    features: dict[str, ImageFeatures] = {}
    mirrored_features: ImageFeatures | None = None
    if run.data.feature_cache is not None:
        if run.training.train_image_encoder_from_step == 0:
            raise ValueError(
                f"`data.feature_cache` ({run.data.feature_cache}) holds features of a frozen image encoder, and "
                "`training.train_image_encoder_from_step` (0) trains it from the start; unset one of them, or set the "
                "step above 0."
            )
        cached = cached_features(
            splits,
            model,
            processor.image_processor,
            run.data.feature_cache,
            batch_size=run.data.feature_batch_size,
            skip_bad_images=run.data.skip_bad_images,
            mirrored=["train"] if "flip" in run.data.augmentations else [],
        )
        splits = {name: split.rows for name, split in cached.items()}
        features = {name: split.features for name, split in cached.items()}
        mirrored_features = cached["train"].mirrored_features
    seed = run.training.seed
    train_data: CaptionDataset | StreamedCaptionDataset
    if isinstance(splits["train"], datasets.IterableDataset):
        shuffled = splits["train"].shuffle(seed=seed, buffer_size=SHUFFLED_ROWS)
        train_data = StreamedCaptionDataset(shuffled, run.data.captions_per_image, seed, endless=True)
    else:
        train_data = CaptionDataset(
            splits["train"],
            run.data.captions_per_image,
            seed,
            features.get("train"),
            run.data.augmentations,
            mirrored_features,
        )
    eval_data = CaptionDataset(splits["eval"], 1, seed, features.get("eval")) if "eval" in splits else None
    self_critical = isinstance(run.training, SelfCriticalArguments)
    trainer_class = SelfCriticalTrainer if self_critical else FusionCaptionerTrainer
    collator_class = SelfCriticalCollator if self_critical else CaptionCollator
    trainer = trainer_class(
        model=model,
        args=run.training,
        data_collator=collator_class(processor, skip_bad_images=run.data.skip_bad_images),
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=processor,
    )
    trainer.training_record = TrainingRecord.of_run(run, command)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_metrics("train", result.metrics)
    metrics: dict[str, float] = {}
    if eval_data is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    trainer.save_model()
    if trainer.is_world_process_zero():
        output = Path(run.training.output_dir)
        trainer.create_model_card()
        if trainer.evaluated_captions:
            lines = (
                json.dumps({"image_id": image, "caption": caption}, ensure_ascii=False)
                for image, caption in trainer.evaluated_captions.items()
            )
            (output / "eval_captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return metrics


def build_processor(
    run: RunArguments | HeadRunArguments, texts: Iterable[str], max_text_length: int = 512
) -> FusionCaptionerProcessor:
    """
    The processor of the checkpoint that training goes on from, or of the vision model and the tokenizer.

    Args:
        run: its sections `model` and `tokenizer`.
        texts: what a new tokenizer is trained on; not read where there is a tokenizer.
        max_text_length: of a new tokenizer, in tokens.
    """
    if run.model.from_checkpoint is not None:
        return load_processor(run.model.from_checkpoint, trust_remote_code=run.model.trust_remote_code)
    vision_model = run.model.vision_model
    if vision_model is not None:
        _check_vision_model(vision_model)
        image_processor = AutoImageProcessor.from_pretrained(
            vision_model, trust_remote_code=run.model.trust_remote_code
        )
        if not isinstance(image_processor, FusionCaptionerImageProcessor):
            size = image_processor.size
            image_processor = FusionCaptionerImageProcessor(
                size=size if "height" in size else {"height": run.model.image_size, "width": run.model.image_size},
                resize_mode=run.model.resize_mode,
                image_mean=image_processor.image_mean,
                image_std=image_processor.image_std,
            )
    else:
        image_processor = FusionCaptionerImageProcessor(
            size={"height": run.model.image_size, "width": run.model.image_size}, resize_mode=run.model.resize_mode
        )
    if run.tokenizer.path is not None:
        return FusionCaptionerProcessor(
            image_processor, _load_tokenizer(run.tokenizer.path, run.model.trust_remote_code)
        )
    tokenizer = train_tokenizer(
        texts,
        kind=run.tokenizer.kind,
        vocab_size=run.tokenizer.vocab_size,
        min_frequency=run.tokenizer.min_frequency,
        model_max_length=max_text_length,
    )
    return FusionCaptionerProcessor(image_processor, tokenizer)


def _load_tokenizer(path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # parsers of tokenizers raise KeyError, TypeError, plain Exception, ...
        raise OSError(
            f"`tokenizer.path` ({path}): no tokenizer can be loaded ({error}); give the folder or Hub name of one."
        ) from error


def _check_vision_model(name: str) -> None:
    if (name.startswith((".", "/", "~")) or Path(name).exists()) and not (
        Path(name).expanduser() / "config.json"
    ).is_file():
        raise FileNotFoundError(
            f"`model.vision_model` ({name}) is no folder of a vision model; make one with `fusion-captioner convert`."
        )


def build_model(
    arguments: ModelArguments, processor: FusionCaptionerProcessor
) -> FusionCaptionerForConditionalGeneration:
    """The checkpoint that training goes on from, or a new captioner on a pretrained or a new image encoder."""
    return build_head(FusionCaptionerForConditionalGeneration, arguments, processor)


def keep_generation_settings(
    model: FusionCaptionerForConditionalGeneration, training: FusionCaptionerTrainingArguments
) -> None:
    """What evaluation does becomes what `generate` of the saved captioner does by itself."""
    model.generation_config.update(
        num_beams=training.generation_num_beams,
        length_penalty=training.generation_length_penalty if training.generation_num_beams > 1 else 1.0,
        max_new_tokens=training.generation_max_new_tokens,
    )


def build_head(
    head: type[Head], arguments: ModelArguments, processor: FusionCaptionerProcessor, **config_fields: Any
) -> Head:
    """
    As [`build_model`], of any head; a checkpoint of one head is a start for every other.

    Args:
        config_fields: fields of the config that the task gives; the recipe's win.
    """
    fields = {**config_fields, **arguments.config}
    if arguments.from_checkpoint is not None:
        return load_head(
            head,
            arguments.from_checkpoint,
            may_lack_weights=True,
            trained_to="go on",
            trust_remote_code=arguments.trust_remote_code,
            **fields,
        )[0]
    if arguments.vision_model is not None:
        fields.setdefault("vision_config", AutoConfig.from_pretrained(arguments.vision_model, trust_remote_code=False))
    fields |= {
        "vocab_size": len(processor.tokenizer),
        "pad_token_id": processor.tokenizer.pad_token_id,
        "bos_token_id": processor.bos_token_id,
        "eos_token_id": processor.eos_token_id,
    }
    config = FusionCaptionerConfig.plain(**fields) if arguments.preset == "plain" else FusionCaptionerConfig(**fields)
    model = head(config)
    if arguments.vision_model is not None:
        model.base_model.image_encoder.load_pretrained(arguments.vision_model)  # type: ignore[operator, union-attr]
    return model
