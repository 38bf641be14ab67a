"""The processor and the model that a training run starts from."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase

from fusion_captioner.checkpoints.loading import Head as Model
from fusion_captioner.checkpoints.loading import load_head, load_processor
from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.tokenizer_training import train_tokenizer
from fusion_captioner.files import expanded
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor, language_token
from fusion_captioner.training.arguments import ModelArguments, TokenizerArguments


def build_processor(
    model: ModelArguments,
    arguments: TokenizerArguments,
    texts: Iterable[str],
    max_text_length: int = 512,
    languages: Sequence[str] = (),
) -> FusionCaptionerProcessor:
    """
    The processor of the checkpoint that training starts from, or of the vision model and the tokenizer.

    Args:
        model, arguments: the sections `model` and `tokenizer`.
        texts: the texts that a new tokenizer is trained on; not read where there is a tokenizer.
        max_text_length: maximum length of a text in tokens, for a new tokenizer.
        languages: codes of the languages of the texts, if there are several.

    Raises:
        ValueError: the checkpoint lacks a language.
    """
    if model.from_checkpoint is not None:
        processor = load_processor(model.from_checkpoint, trust_remote_code=model.trust_remote_code)
        if lacking := [language for language in languages if language not in processor.languages]:
            raise ValueError(
                f"`data.languages` ({', '.join(languages)}): {model.from_checkpoint} does not know "
                f"{', '.join(lacking)}; start from a checkpoint of these languages, or from a new model."
            )
        return processor
    vision_model = model.vision_model
    if vision_model is not None:
        _check_vision_model(vision_model)
        image_processor = AutoImageProcessor.from_pretrained(vision_model, trust_remote_code=model.trust_remote_code)
        if not isinstance(image_processor, FusionCaptionerImageProcessor):
            size = image_processor.size
            image_processor = FusionCaptionerImageProcessor(
                size=size if "height" in size else {"height": model.image_size, "width": model.image_size},
                resize_mode=model.resize_mode,
                image_mean=image_processor.image_mean,
                image_std=image_processor.image_std,
            )
    else:
        image_processor = FusionCaptionerImageProcessor(
            size={"height": model.image_size, "width": model.image_size}, resize_mode=model.resize_mode
        )
    if arguments.path is not None:
        tokenizer = _load_tokenizer(arguments.path, model.trust_remote_code)
        tokens = [language_token(language) for language in languages]
        if new := [token for token in tokens if token not in tokenizer.all_special_tokens]:
            tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, *new]})
        return FusionCaptionerProcessor(image_processor, tokenizer, languages=list(languages))
    tokenizer = train_tokenizer(
        texts,
        kind=arguments.kind,
        vocab_size=arguments.vocab_size,
        min_frequency=arguments.min_frequency,
        model_max_length=max_text_length,
        languages=languages,
    )
    return FusionCaptionerProcessor(image_processor, tokenizer, languages=list(languages))


def _load_tokenizer(path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # parsers of tokenizers raise KeyError, TypeError, plain Exception, ...
        raise OSError(
            f"`tokenizer.path` ({path}): no tokenizer can be loaded ({error}); give the folder or Hub name of one."
        ) from error


def _check_vision_model(name: str) -> None:
    if (name.startswith((".", "/", "~")) or Path(name).exists()) and not (expanded(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"`model.vision_model` ({name}) is not the folder of a vision model; make one with "
            "`fusion-captioner convert`."
        )


def build_model(
    model_class: type[Model], arguments: ModelArguments, processor: FusionCaptionerProcessor, **config_fields: Any
) -> Model:
    """
    The model that training starts from: a checkpoint, or a new model on a pretrained or a new image encoder.

    Args:
        model_class: class of the model; a checkpoint of one class is a start for every other class.
        arguments: the section `model`.
        processor: its processor.
        config_fields: fields of the config that the task sets; fields of the recipe override them.
    """
    fields = {**config_fields, **arguments.config}
    if arguments.from_checkpoint is not None:
        return load_head(
            model_class,
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
    if processor.languages:
        fields |= {
            "languages": processor.languages,
            "language_token_ids": list(processor.language_token_ids.values()),
        }
    config = FusionCaptionerConfig.plain(**fields) if arguments.preset == "plain" else FusionCaptionerConfig(**fields)
    model = model_class(config)
    if arguments.vision_model is not None:
        model.base_model.image_encoder.load_pretrained(arguments.vision_model)  # type: ignore[operator, union-attr]
    return model
