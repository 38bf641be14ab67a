"""Captions per second in training, from pixels and from cached states, compared with fine-tuning BLIP-base's decoder.

    python benchmarks/training_from_pixels.py [--rounds 5] [--json FILE] [--tiny]

This package: EfficientNet-Lite2 at 224 px, hidden size 512, vocabulary 4,000, its encoder frozen and trained. The
peer: transformers' BLIP-base at its 384 px, vocabulary 30,524, its image encoder frozen, the decoder trained on what
the encoder gives. Random weights; tiny numbers, which they make and processors are slow at, count as 0. One caption
of 13 tokens per image, float32, AdamW; every model steps in turn in one run, the median of rounds. Batches are of a
size that the model likes: BLIP gains nothing by a larger. FLOPs are counted by torch.utils.flop_counter, and those of
recurrent layers, which it does not know, are added.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from caption_peers import blip_base
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusion_captioner import FusionCaptionerConfig, FusionCaptionerForConditionalGeneration
from fusion_captioner.checkpoints.converting import efficientnet_lite_config
from fusion_captioner.process_setup import keep_freed_memory

HIDDEN, VOCABULARY, TOKENS = 512, 4000, 13
BATCHES = {"fusion-captioner": 32, "BLIP-base": 8}


def captioner(train_encoder: bool) -> torch.nn.Module:
    model = FusionCaptionerForConditionalGeneration(
        FusionCaptionerConfig(
            vision_config=efficientnet_lite_config("lite2"), vocab_size=VOCABULARY, hidden_size=HIDDEN
        )
    )
    if not train_encoder:
        model.freeze_image_encoder()
    return model.train()


def captioner_loss(model: Any, cached: bool, batch: int, side: int) -> Callable[[], torch.Tensor]:
    input_ids = torch.randint(3, VOCABULARY, (batch, TOKENS + 1))
    inputs = {"input_ids": input_ids, "labels": input_ids, "skip_logits": True}
    pixels = torch.randn(batch, 3, side, side)
    if cached:
        with torch.no_grad():
            inputs["image_hidden_states"] = model.get_image_hidden_states(pixels)
    else:
        inputs["pixel_values"] = pixels
    return lambda: model(**inputs).loss


def blip_loss(model: Any, cached: bool, batch: int) -> Callable[[], torch.Tensor]:
    config = model.config
    side = config.vision_config.image_size
    pixels = torch.randn(batch, 3, side, side)
    input_ids = torch.randint(3, config.text_config.vocab_size, (batch, TOKENS + 1))

    def encode() -> torch.Tensor:
        with torch.no_grad():
            return model.vision_model(pixel_values=pixels).last_hidden_state

    states = encode() if cached else None

    def loss() -> torch.Tensor:
        return model.text_decoder(
            input_ids=input_ids,
            encoder_hidden_states=encode() if states is None else states,
            labels=input_ids,
            reduction="mean",
        ).loss

    return loss


def recurrent_operations(model: torch.nn.Module, batch: int) -> int:
    """Multiplications and additions of the recurrent layers in one step, forward and back."""
    weights = sum(
        weight.numel()
        for layer in model.modules()
        if isinstance(layer, torch.nn.RNNBase)
        for name, weight in layer.named_parameters()
        if name.startswith("weight")
    )
    return 3 * 2 * weights * TOKENS * batch


def training_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--tiny", action="store_true", help="a BLIP of toy size: does the benchmark work?")
    options = parser.parse_args()
    # random weights in evaluation mode make features so small that processors compute them at a fraction of the speed
    torch.set_flush_denormal(True)
    keep_freed_memory()  # for all, as the commands do
    torch.manual_seed(0)
    frozen, whole = captioner(train_encoder=False), captioner(train_encoder=True)
    blip = blip_base(options.tiny).build(torch.float32).train()
    blip.vision_model.requires_grad_(False).eval()
    side = 224
    own, peer = BATCHES["fusion-captioner"], BATCHES["BLIP-base"]
    systems = {
        "fusion-captioner, cached features": (frozen, captioner_loss(frozen, True, own, side), own),
        "fusion-captioner, pixels, encoder frozen": (frozen, captioner_loss(frozen, False, own, side), own),
        "fusion-captioner, pixels, encoder trained": (whole, captioner_loss(whole, False, own, side), own),
        "BLIP-base's decoder, cached states": (blip, blip_loss(blip, True, peer), peer),
        "BLIP-base's decoder, pixels, encoder frozen": (blip, blip_loss(blip, False, peer), peer),
    }
    steps = {name: training_step(model, loss) for name, (model, loss, _) in systems.items()}
    operations = {}
    for name, (model, loss, batch) in systems.items():
        # the counter knows attention by its products only
        is_peer = model is blip
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH) if is_peer else nullcontext():
            loss().backward()
        model.zero_grad()
        operations[name] = (counter.get_total_flops() + recurrent_operations(model, batch)) / batch
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: systems[name][2] / statistics.median(times) for name, times in seconds.items()}
    cached, pixels = (f"BLIP-base's decoder, {kind}" for kind in ("cached states", "pixels, encoder frozen"))
    print(f"{torch.get_num_threads()} threads, float32\n")
    print(
        "| | batch | captions/s | GFLOP a caption | times faster than BLIP | FLOP ratio |\n|---|---|---|---|---|---|"
    )
    figures = {}
    for name in systems:
        against = cached if "cached" in name else pixels
        figures[name] = {
            "captions_per_second": rates[name],
            "flop": operations[name],
            "speed_ratio": rates[name] / rates[against],
            "flop_ratio": operations[against] / operations[name],
        }
        row = figures[name]
        print(
            f"| {name} | {systems[name][2]} | {rates[name]:.1f} | {operations[name] / 1e9:.2f} "
            f"| {row['speed_ratio']:.1f} | {row['flop_ratio']:.1f} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
