"""Captions photographs with the bundled checkpoint; then renders pictures, trains a small captioner on them as
users do, and prints its captions."""

import json
import shutil
import time
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.demo.photos import caption_demo_photos
from fusion_captioner.demo.scenes import render_coco_folder
from fusion_captioner.evaluation.generated_captions import generate_captions
from fusion_captioner.files import expanded
from fusion_captioner.training.train import train_from_yaml

SHOWN = 8

RECIPE = """\
model:
  image_size: 64
  config:
    vision_config:
      model_type: resnet
      layer_type: basic
      embedding_size: 24
      hidden_sizes: [24, 48, 96, 128]
      depths: [1, 1, 1, 1]
    hidden_size: 192
    num_attention_heads: 4
    dropout: 0.1
tokenizer:
  vocab_size: 400
  min_frequency: 1
data:
  captions_per_image: {captions_per_image}
  max_train_images: 2000
  max_eval_images: 200
training:
  train_image_encoder_from_step: 0
  per_device_train_batch_size: 32
  per_device_eval_batch_size: 50
  num_train_epochs: {epochs}
  learning_rate: 2.0e-3
  warmup_steps: 60
  max_grad_norm: 1.0
  eval_strategy: "no"
  save_strategy: "no"
  load_best_model_at_end: false
  report_to: none
  logging_steps: 50
  seed: 0
"""


def run_demo(out: str, data: str | None) -> int:
    """
    Args:
        out: folder for data, model and captions.
        data: folder in COCO's or Karpathy's layout to train on instead of rendered pictures.

    Returns:
        the exit status.
    """
    if data is not None and not expanded(data).is_dir():
        raise FileNotFoundError(f"--data ({data}): no such folder; give one in COCO's or Karpathy's layout.")
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    caption_demo_photos(folder)
    if data is None:
        source = folder / "scenes"
        if not (source / "annotations").is_dir():
            print("\nrendering pictures ...", flush=True)
            render_coco_folder(source, train=1600, val=150, seed=0)
    else:
        source = Path(data)
    recipe = folder / "demo.yaml"
    recipe.write_text(RECIPE.format(captions_per_image=2, epochs=18), encoding="utf-8")
    model_folder = folder / "model"
    shutil.rmtree(model_folder, ignore_errors=True)  # of an earlier demonstration
    flags = ["--data.source", str(source), "--training.output_dir", str(model_folder)]
    print("training ...", flush=True)
    metrics = train_from_yaml(recipe, flags)

    print("\nscores on pictures that training never saw, beam 3:")
    for name, value in metrics.items():
        if name.startswith(("eval_CIDEr", "eval_BLEU", "eval_ROUGE", "eval_METEOR")):
            print(f"  {name.removeprefix('eval_'):18} {value:.3f}")

    # loaded back by transformers' own classes, as any user would
    model = AutoModelForImageTextToText.from_pretrained(model_folder)
    processor = AutoProcessor.from_pretrained(model_folder)
    rows = load_caption_dataset(source)["val"]
    rows = rows.select(range(min(SHOWN, len(rows))))
    captions = generate_captions(model, processor, rows, num_beams=3, max_new_tokens=30)  # type: ignore[arg-type]
    print("\ncaptions of unseen pictures, by the model saved and loaded back with AutoModelForImageTextToText:")
    for row in rows:
        print(f"\n  {row['image']['path']}")
        print(f"    model   {captions[row['image_id']]}")
        print(f"    people  {row['captions'][0]}" if data else f"    truth   {row['captions'][0]}")
    (folder / "captions.json").write_text(json.dumps(captions, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"\nmodel in {model_folder}, captions in {folder / 'captions.json'}; {time.perf_counter() - start:.0f} s in "
        f"all"
    )
    return 0
