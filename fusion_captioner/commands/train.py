"""`fusion-captioner train`: from a recipe to a scored, saved model."""

import argparse

from fusion_captioner.commands.shared_flags import add_trust_flag

HELP = "train a model from a recipe"
EPILOG = """\
RECIPE is the name of a recipe of the package, which `fusion-captioner recipes` lists, or a YAML file. It has the
sections `model`, `data`, `tokenizer` and `training`, and above them `task`: captioning by default, or classification,
prompted (answers and reports), multiple_choice or retrieval. Every field is a flag as well, named SECTION.FIELD, and a
flag wins:

  fusion-captioner train flickr8k_cpu --training.num_train_epochs 3 --model.config.fusion_type gated

model      vision_model      folder or Hub name of the pretrained image encoder
           from_checkpoint   captioner to start from, instead of a new one; bundled: the one in the package
           config.FIELD      any field of FusionCaptionerConfig
data       source, layout, splits, train_split, eval_split, captions_per_image, feature_cache, streaming,
           skip_bad_images, ...
tokenizer  path, or kind, vocab_size, min_frequency of a tokenizer that is trained on the captions
training   any field of transformers' TrainingArguments, and image_encoder_learning_rate,
           train_image_encoder_from_step, ema_decay, generation_num_beams, early_stopping_patience, ...

These are the fields of captioning; docs/tasks.md has the fields of `data` for the other tasks.

--resume continues an interrupted run from its newest complete checkpoint."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a captioner, score it on the captions that it generates, and save it with its model card; or train the "
        "model of another `task`."
    )
    parser.epilog = EPILOG
    parser.add_argument("config", metavar="RECIPE", help="name of a recipe, or YAML file")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest complete checkpoint of the run"
    )
    add_trust_flag(parser)


def run(options: argparse.Namespace) -> int:
    """`options.fields` are the flags of the form `--SECTION.FIELD VALUE`."""
    from fusion_captioner.process_setup import keep_stderr_quiet
    from fusion_captioner.training.train import train_from_yaml

    keep_stderr_quiet(reads_data=True)
    trust = ["--model.trust_remote_code", "true"] if options.trust_remote_code else []
    train_from_yaml(options.config, [*options.fields, *trust], resume=options.resume)
    return 0
