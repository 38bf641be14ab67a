"""Captions a second in training from cached features, beside a show-attend-tell decoder's, and milliseconds a token.

    python benchmarks/training_speed.py [--bf16]

The peer (Xu et al., 2015) steps an LSTMCell through time with additive attention, its keys projected once. Both have
hidden size 512, vocabulary 4,000, 49 regions, 13 tokens, batch 64; measured in turn in one run, the median of rounds.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

from fusion_captioner import FusionCaptionerConfig, FusionCaptionerForConditionalGeneration
from fusion_captioner.training.convert_efficientnet_lite import efficientnet_lite_config

HIDDEN, VOCABULARY, REGIONS, WIDTH, TOKENS, BATCH = 512, 4000, 49, 1280, 13, 64


class ShowAttendTell(nn.Module):
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
        keys = self.keys(regions)
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
    # the encoder is not run: only the width of its regions matters
    vision = efficientnet_lite_config("lite2")
    model = FusionCaptionerForConditionalGeneration(
        FusionCaptionerConfig(vision_config=vision, vocab_size=VOCABULARY, hidden_size=HIDDEN)
    )
    model.freeze_image_encoder()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each (default: 9)")
    parser.add_argument("--bf16", action="store_true", help="both under bf16 autocast")
    options = parser.parse_args()
    torch.manual_seed(0)
    regions = torch.randn(BATCH, REGIONS, WIDTH)
    input_ids = torch.randint(3, VOCABULARY, (BATCH, TOKENS + 1))
    models = {"fusion-captioner": captioner().train(), "show-attend-tell loop": ShowAttendTell().train()}
    steps = {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])

        def step(name=name, model=model, optimizer=optimizer) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                if name == "fusion-captioner":
                    loss = model(image_hidden_states=regions, input_ids=input_ids, labels=input_ids).loss
                else:
                    loss = model(regions, input_ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    rates = {name: BATCH / statistics.median(times) for name, times in seconds.items()}

    model = models["fusion-captioner"].eval()
    tokens = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        model.generate(image_hidden_states=regions[:1], max_new_tokens=20, min_new_tokens=20)
        tokens.append((time.perf_counter() - start) / 20 * 1000)

    for name, rate in rates.items():
        print(f"{name:24} {rate:8.1f} captions/s")
    ratio = rates["fusion-captioner"] / rates["show-attend-tell loop"]
    print(f"{'ratio':24} {ratio:8.2f}")
    print(
        f"{'generate, greedy, 1 image':24} {statistics.median(tokens):7.2f} ms/token ({torch.get_num_threads()} threads)"
    )
    print(json.dumps({"captions_per_second": rates, "ratio": ratio, "ms_per_token": statistics.median(tokens)}))


if __name__ == "__main__":
    main()
