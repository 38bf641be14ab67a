"""Trains a tiny captioner and pushes it in every way: `python hub_form_push.py FOLDER`, which gets `pushed.json`.

`FOLDER/photo.jpg` must exist. `user/captioner` is pushed by the trainer, tagged `v1`, and then pushed anew by model
and processor with other weights; `user/parts` comes from model and processor alone.
"""

import json
import sys
from pathlib import Path

import datasets
import torch
from hub_form_load import describe
from huggingface_hub import HfApi
from PIL import Image
from transformers import ResNetConfig

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.caption_folder import FEATURES
from fusion_captioner.data.caption_sampling import CaptionDataset
from fusion_captioner.data.collating import CaptionCollator
from fusion_captioner.data.tokenizer_training import train_tokenizer
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.model_card import TrainingRecord
from fusion_captioner.training.trainer import FusionCaptionerTrainer
from fusion_captioner.training.training_arguments import FusionCaptionerTrainingArguments

COLOURS = ("red", "green", "blue", "white")
CAPTIONS = [[f"a {colour} square", f"a picture of a {colour} square"] for colour in COLOURS]
RECORD = TrainingRecord(data="user/squares", eval_split="test", command="fusion-captioner train squares.yaml")


def captioner() -> tuple[FusionCaptionerForConditionalGeneration, FusionCaptionerProcessor]:
    """A captioner of a few thousand random weights, large enough that its captions differ."""
    torch.manual_seed(0)
    captions = [caption for captions in CAPTIONS for caption in captions]
    tokenizer = train_tokenizer(captions, vocab_size=200, min_frequency=1)
    processor = FusionCaptionerProcessor(FusionCaptionerImageProcessor(size=32, resize_mode="crop"), tokenizer)
    config = FusionCaptionerConfig(
        vision_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_attention_heads=2,
        projection_dim=8,
        dropout=0.0,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return FusionCaptionerForConditionalGeneration(config).eval(), processor


def rows(folder: Path) -> datasets.Dataset:
    """One plain image of each colour."""
    folder.mkdir()
    images = [folder / f"{colour}.png" for colour in COLOURS]
    for colour, path in zip(COLOURS, images):
        Image.new("RGB", (32, 32), colour).save(path)
    table = {
        "image": [{"path": str(path), "bytes": None} for path in images],
        "captions": CAPTIONS,
        "image_id": list(COLOURS),
    }
    return datasets.Dataset.from_dict(table, features=FEATURES)


def main() -> None:
    folder = Path(sys.argv[1])
    photo = str(folder / "photo.jpg")
    data = CaptionDataset(rows(folder / "images"))
    model, processor = captioner()
    arguments = FusionCaptionerTrainingArguments(
        output_dir=str(folder / "run"),
        hub_model_id="captioner",
        max_steps=40,
        learning_rate=0.01,
        per_device_train_batch_size=4,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = FusionCaptionerTrainer(
        model=model,
        args=arguments,
        data_collator=CaptionCollator(processor),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
    )
    trainer.training_record = RECORD
    trainer.train()
    scores = trainer.evaluate()
    trainer.push_to_hub(license="cc-by-4.0")
    HfApi().create_tag("user/captioner", tag="v1")
    model.eval()
    answer = {
        "scores": scores,
        "signature": trainer.score_signature,
        "v1": describe(model, model.model, processor, photo),
    }

    other_model, other_processor = captioner()
    for name in ("captioner", "parts"):
        other_model.push_to_hub(name)
        other_processor.push_to_hub(name)
    beams = other_model.generate(**other_processor(images=photo, return_tensors="pt"), num_beams=3)
    answer["main"] = describe(other_model, other_model.model, other_processor, photo)
    answer["beam_caption"] = other_processor.batch_decode(beams, skip_special_tokens=True)[0]
    (folder / "pushed.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
