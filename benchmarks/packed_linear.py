"""The matrix products of one step of generation, by `nn.Linear` and by packed weights, for a few rows.

    python benchmarks/packed_linear.py

Weights of the default captioner: two LSTMs of 512, attention's two projections, a vocabulary of 4,000. Rows are images
times beams. Best of rounds, in milliseconds.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fusion_captioner.packed_linear import few_row_linear
from fusion_captioner.process_setup import keep_freed_memory

SHAPES = [(2048, 512)] * 4 + [(512, 512)] * 2 + [(4000, 512)]
ROWS = (1, 3, 8, 24, 48, 96, 192)


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
    weights = [torch.randn(shape) for shape in SHAPES]
    biases = [torch.randn(shape[0]) for shape in SHAPES]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| rows | nn.Linear | packed | times faster |\n|---|---|---|---|")
    for rows in ROWS:
        usual, packed = (
            milliseconds(partial(multiply, linear, torch.randn(rows, 512), weights, biases))
            for linear in (nn.functional.linear, few_row_linear)
        )
        print(f"| {rows} | {usual:.2f} | {packed:.2f} | {usual / packed:.1f} |")


def multiply(linear: Callable, inputs: torch.Tensor, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> None:
    for weight, bias in zip(weights, biases, strict=True):
        linear(inputs, weight, bias)


if __name__ == "__main__":
    main()
