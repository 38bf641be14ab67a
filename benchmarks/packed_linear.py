"""The matrix products of one step of generation, by `nn.Linear` and by packed weights, for a few rows; and the
packing, which every call of `generate` pays for once.

    python benchmarks/packed_linear.py

Weights of the bundled captioner: two LSTMs of 512, attention's two projections, a vocabulary of 8,500. Rows are images
times beams. Best of rounds, in milliseconds.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fusion_captioner.causal_layers import MAX_ROWS, packed_weights
from fusion_captioner.process_setup import keep_freed_memory

SHAPES = [(2048, 512)] * 4 + [(512, 512)] * 2 + [(8500, 512)]
ROWS = (1, 3, 8, 24, 48, 96, MAX_ROWS)


def milliseconds(step: Callable[[], object]) -> float:
    for _ in range(5):
        step()
    rounds = []
    for _ in range(30):
        start = time.perf_counter()
        step()
        rounds.append(time.perf_counter() - start)
    return 1000 * min(rounds)


@torch.no_grad()
def main() -> None:
    keep_freed_memory()
    layers = nn.ModuleList(nn.Linear(inputs, outputs) for outputs, inputs in SHAPES)
    pack = milliseconds(lambda: [torch.ops.mkldnn._reorder_linear_weight(layer.weight) for layer in layers])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; packing: {pack:.1f} ms\n")
    print("| rows | nn.Linear | packed | times faster |\n|---|---|---|---|")
    for rows in ROWS:
        inputs = torch.randn(rows, SHAPES[0][1])
        step = partial(multiply, layers, inputs)
        usual = milliseconds(step)
        with packed_weights([layers], {}):
            packed = milliseconds(step)
        print(f"| {rows} | {usual:.2f} | {packed:.2f} | {usual / packed:.1f} |")


def multiply(layers: nn.ModuleList, inputs: torch.Tensor) -> None:
    for layer in layers:
        layer(inputs)


if __name__ == "__main__":
    main()
