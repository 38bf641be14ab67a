"""Captions per second in training from cached features, compared with show-attend-tell, and milliseconds per token;
or, of three kinds of training, how many times float32's rate bfloat16 has.

    python benchmarks/training_speed.py [--bf16]
    python benchmarks/training_speed.py --types [--rounds 9] [--images 8]

The peer (Xu et al., 2015) steps an LSTMCell through time with additive attention, its keys projected once. Both have
hidden size 512, vocabulary 4,000, 49 regions, 13 tokens, batch 64; measured in turn in one run, the median of rounds.
Once every caption has an image of its own, and once five captions share one: this package then projects an image once
for all of them, and so does the peer with its keys. Next to each rate stands the share of the machine's matrix-product
peak, measured in the same run, that the matrix products of a step reach.

With `--types` each step is taken in float32 and in bfloat16, in turn, and the ratio is that of neighbours: cached
features (the captioner above, in batches of the recipe `flickr8k_cpu`), fine-tuning of the image encoder (the bundled
captioner, 224 px, two captions per image, BatchNorm fixed), and self-critical training (as in
`self_critical_speed.py`; both types draw the same random numbers, and so captions of nearly the same length). Next to
the ratio of the wall clock stands that of the processor's time, which other programs disturb less.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import fusion_captioner
from fusion_captioner import FusionCaptionerConfig, FusionCaptionerForConditionalGeneration
from fusion_captioner.checkpoints.converting import efficientnet_lite_config
from fusion_captioner.process_setup import keep_freed_memory

HIDDEN, VOCABULARY, REGIONS, WIDTH, TOKENS, BATCH = 512, 4000, 49, 1280, 13, 64
# Captions per batch of the recipe `flickr8k_cpu`, where each is a row with its image
RECIPE_BATCH = 128


class ShowAttendTell(nn.Module):
    """Soft attention (Xu et al., 2015, section 3.1.2) with its loop over time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.keys = nn.Linear(WIDTH, HIDDEN)
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.energy = nn.Linear(HIDDEN, 1)
        self.gate = nn.Linear(HIDDEN, WIDTH)
        self.cell = nn.LSTMCell(HIDDEN + WIDTH, HIDDEN)
        self.start = nn.Linear(WIDTH, 2 * HIDDEN)
        self.output = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, regions: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        texts = len(input_ids) // len(regions)
        keys = self.keys(regions).repeat_interleave(texts, dim=0)
        regions = regions.repeat_interleave(texts, dim=0)
        embeddings = self.embedding(input_ids)
        hidden, memory = self.start(regions.mean(1)).chunk(2, dim=-1)
        states = []
        for step in range(input_ids.shape[1] - 1):
            weights = self.energy(torch.tanh(keys + self.query(hidden).unsqueeze(1))).softmax(dim=1)
            context = torch.sigmoid(self.gate(hidden)) * (weights * regions).sum(dim=1)
            hidden, memory = self.cell(torch.cat((embeddings[:, step], context), dim=-1), (hidden, memory))
            states.append(hidden)
        logits = self.output(torch.stack(states, dim=1))
        return nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())


def captioner() -> FusionCaptionerForConditionalGeneration:
    """The default captioner. Its encoder is not run: only the width of its regions matters."""
    vision = efficientnet_lite_config("lite2")
    model = FusionCaptionerForConditionalGeneration(
        FusionCaptionerConfig(vision_config=vision, vocab_size=VOCABULARY, hidden_size=HIDDEN)
    )
    model.freeze_image_encoder()
    return model


def floating_point_operations(name: str, texts: int) -> float:
    """Multiplications and additions in the matrix products of training on one caption; three times the forward pass,
    but twice where no gradient flows back, into the cached regions."""
    image = REGIONS * WIDTH * HIDDEN * 2 / texts
    word = VOCABULARY * HIDDEN
    if name == "fusion-captioner":
        attention = REGIONS * HIDDEN * 2 * HIDDEN * 3 / texts
        word += 2 * 4 * HIDDEN * 2 * HIDDEN + 2 * HIDDEN * HIDDEN + 2 * REGIONS * HIDDEN
    else:
        attention = 0
        word += 4 * HIDDEN * (2 * HIDDEN + WIDTH) + HIDDEN * HIDDEN + HIDDEN * WIDTH
    return 2 * (image + attention + 3 * word * TOKENS)


def matrix_product_peak(dtype: torch.dtype) -> float:
    """Floating-point operations a second of the best of ten square products."""
    size = 1536
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def training_step(loss: Callable[[], torch.Tensor], model: nn.Module, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def loss_of_cached_features(name: str, model: nn.Module, images: int, texts: int) -> Callable[[], torch.Tensor]:
    regions = torch.randn(images, REGIONS, WIDTH)
    input_ids = torch.randint(3, VOCABULARY, (images * texts, TOKENS + 1))
    if name == "fusion-captioner":
        inputs = {"image_hidden_states": regions, "input_ids": input_ids, "labels": input_ids, "skip_logits": True}
        return lambda: model(**inputs).loss
    return lambda: model(regions, input_ids)


def loss_of_pixels(model: nn.Module, images: int) -> Callable[[], torch.Tensor]:
    # smooth as photos are, so that activations stay in their range
    pixel_values = nn.functional.interpolate(torch.randn(images, 3, 14, 14), size=(224, 224), mode="bilinear")
    input_ids = torch.randint(3, model.config.vocab_size, (2 * images, TOKENS + 1))
    inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "labels": input_ids, "skip_logits": True}
    return lambda: model(**inputs).loss


def self_critical_step(images: int, bf16: bool, folder: str) -> Callable[[], None]:
    from self_critical_speed import build_trainer  # which imports this file

    options = argparse.Namespace(rewards=["CIDEr"], samples=5, images=images, steps=1, bf16=bf16)
    torch.manual_seed(0)
    trainer = build_trainer(options, folder)
    rows = [trainer.train_dataset[row] for row in range(images)]
    model, optimizer = trainer.accelerator.prepare(trainer.model.train(), trainer.create_optimizer())
    model.freeze_image_encoder()
    trainer.current_gradient_accumulation_steps = 1

    def step() -> None:
        trainer.training_step(model, trainer.data_collator(rows))
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_types(rounds: int, images: int) -> None:
    """Print captions per second of each kind of training in both types, and the ratios."""
    torch.set_flush_denormal(True)
    cached = captioner().train()
    whole = FusionCaptionerForConditionalGeneration.from_pretrained(
        Path(fusion_captioner.__file__).parent / "pretrained"
    ).train()
    whole.unfreeze_image_encoder(fix_batch_norm=True)
    of_cached, of_pixels = (
        loss_of_cached_features("fusion-captioner", cached, RECIPE_BATCH, 1),
        loss_of_pixels(whole, images),
    )
    with tempfile.TemporaryDirectory() as folder:
        # float32 first: a trainer sets accelerate's state of the process, of which float32 reads nothing
        steps = {
            "cached features": [training_step(of_cached, cached, bf16) for bf16 in (False, True)],
            "image encoder trained": [training_step(of_pixels, whole, bf16) for bf16 in (False, True)],
            "self-critical": [self_critical_step(2 * images, bf16, folder) for bf16 in (False, True)],
        }
        captions = {
            "cached features": RECIPE_BATCH,
            "image encoder trained": 2 * images,
            "self-critical": 10 * images,
        }
        clocks = (time.perf_counter, time.process_time)
        seconds: dict[str, list[list[tuple[float, ...]]]] = {name: [[], []] for name in steps}
        for round_number in range(rounds + 1):
            for name, pair in steps.items():
                # each type goes first in every other round
                for kind in (0, 1) if round_number % 2 else (1, 0):
                    torch.manual_seed(round_number)
                    starts = [clock() for clock in clocks]
                    pair[kind]()
                    if round_number:  # the first is warm-up
                        seconds[name][kind].append(
                            tuple(clock() - start for clock, start in zip(clocks, starts, strict=True))
                        )
    print(f"{torch.get_num_threads()} threads, {rounds} pairs; median (lowest to highest)\n")
    print("| | float32, captions/s | bfloat16 | ratio, wall clock | ratio, processor time |\n|---|---|---|---|---|")
    figures = {}
    for name, (single, half) in seconds.items():
        rates = [captions[name] / statistics.median(wall for wall, _ in times) for times in (single, half)]
        ratios = [sorted(a[clock] / b[clock] for a, b in zip(single, half, strict=True)) for clock in (0, 1)]
        shown = [f"{statistics.median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f})" for ratio in ratios]
        print(f"| {name} | {rates[0]:.1f} | {rates[1]:.1f} | {shown[0]} | {shown[1]} |")
        figures[name] = {"captions_per_second": rates, "ratios": ratios[0], "ratios_of_processor_time": ratios[1]}
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (default: 9)")
    parser.add_argument("--bf16", action="store_true", help="both under bf16 autocast")
    parser.add_argument("--types", action="store_true", help="compare bfloat16 with float32 instead")
    parser.add_argument("--images", type=int, default=8, help="with --types: images per batch of pixels (default: 8)")
    options = parser.parse_args()
    keep_freed_memory()  # for both, as the commands do
    torch.manual_seed(0)
    if options.types:
        compare_types(options.rounds, options.images)
        return
    models = {"fusion-captioner": captioner().train(), "show-attend-tell loop": ShowAttendTell().train()}
    keys = [(name, texts) for texts in (1, 5) for name in models]
    steps = {
        (name, texts): training_step(
            loss_of_cached_features(name, models[name], BATCH // texts, texts), models[name], options.bf16
        )
        for name, texts in keys
    }
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    for round_number in range(options.rounds + 1):
        for key, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:  # the first is warm-up
                seconds[key].append(time.perf_counter() - start)
    rates = {key: BATCH // key[1] * key[1] / statistics.median(times) for key, times in seconds.items()}
    peak = matrix_product_peak(torch.bfloat16 if options.bf16 else torch.float32)

    model = models["fusion-captioner"].eval()
    regions = torch.randn(1, REGIONS, WIDTH)
    tokens = []
    for _ in range(options.rounds + 1):
        start = time.perf_counter()
        model.generate(image_hidden_states=regions, max_new_tokens=20, min_new_tokens=20)
        tokens.append((time.perf_counter() - start) / 20 * 1000)
    milliseconds = statistics.median(tokens[1:])

    print(f"{torch.get_num_threads()} threads, matrix-product peak {peak / 1e9:.0f} GFLOP/s")
    ratios = {}
    for texts in (1, 5):
        print(f"\n{texts} caption{'s' if texts > 1 else ''} an image")
        for name in models:
            rate, operations = rates[name, texts], floating_point_operations(name, texts)
            print(
                f"  {name:24} {rate:8.1f} captions/s   {operations / 1e6:6.0f} MFLOP a caption   "
                f"{rate * operations / peak:4.0%} of the peak"
            )
        ratios[texts] = rates["fusion-captioner", texts] / rates["show-attend-tell loop", texts]
        limit = peak / floating_point_operations("fusion-captioner", texts) / rates["show-attend-tell loop", texts]
        print(f"  {'ratio':24} {ratios[texts]:8.2f}              (at the peak it would be {limit:.2f})")
    print(f"\ngenerate, greedy, one image, 20 tokens: {milliseconds:.2f} ms a token")
    print(
        json.dumps(
            {
                "captions_per_second": {f"{name}, {texts} an image": rate for (name, texts), rate in rates.items()},
                "ratio": ratios,
                "milliseconds_per_token": milliseconds,
                "matrix_product_peak": peak,
            }
        )
    )


if __name__ == "__main__":
    main()
