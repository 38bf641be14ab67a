"""Sampled captions per second of self-critical training from cached features, and what a step's time goes to.

    python benchmarks/self_critical_speed.py [--rewards CIDEr discriminator]

The trainer's own loop on random features of 49 x 1280: hidden size 512, vocabulary 3,500, 32 images x 5 samples,
CIDEr-D against the captions of 6,000 images, at most 25 tokens. A captioner with random weights would rarely end a
caption: the output layer's bias says how frequent words are and that every twelfth token ends the caption. Beside the
rate stands what the machine's matrix-product peak, measured in the same run, would allow for the products of the
sampled tokens: one forward pass to sample them, one forward and one backward pass for their gradient. What is spent on
captions that have ended, until they are dropped, is not among these.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from training_speed import matrix_product_peak
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from fusion_captioner import FusionCaptionerConfig, FusionCaptionerForConditionalGeneration
from fusion_captioner.checkpoints.converting import efficientnet_lite_config
from fusion_captioner.data.collating import SelfCriticalCollator
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.process_setup import keep_freed_memory
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.trainer import SelfCriticalTrainer

HIDDEN, VOCABULARY, REGIONS, WIDTH = 512, 3500, 49, 1280
TRAIN_IMAGES, REFERENCES, LONGEST, TOKENS = 6000, 5, 25, 12
SPECIAL = ["<pad>", "<s>", "</s>"]
END = SPECIAL.index("</s>")


class CachedCaptions(torch.utils.data.Dataset):
    """Random captions of words as frequent as words are (Zipf), and random features, shared by many images."""

    def __init__(self, words: Sequence[str], frequencies: np.ndarray) -> None:
        draw = np.random.default_rng(0)
        ends = draw.integers(TOKENS - 5, TOKENS + 4, TRAIN_IMAGES * REFERENCES).cumsum()
        drawn = draw.choice(words, ends[-1], p=frequencies)
        texts = [" ".join(caption) for caption in np.split(drawn, ends[:-1])]
        captions = [texts[start : start + REFERENCES] for start in range(0, len(texts), REFERENCES)]
        self.captions = captions
        self.rows = Dataset.from_dict(
            {"image_id": [str(image) for image in range(TRAIN_IMAGES)], "captions": captions}
        )
        self.features = draw.random((64, REGIONS, WIDTH), np.float32).astype(np.float16)

    def __len__(self) -> int:
        return TRAIN_IMAGES

    def __getitem__(self, image: int) -> dict[str, Any]:
        features = torch.from_numpy(self.features[image % len(self.features)])
        return {"image_id": str(image), "captions": self.captions[image][:1], "image_hidden_states": features}


class TimedTrainer(SelfCriticalTrainer):
    """Seconds of every step and of its parts, and tokens sampled."""

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.seconds: dict[str, list[float]] = {"sampling": [], "rewards": [], "step": []}
        self.tokens: list[int] = []
        self.remove_callback(PrinterCallback)
        self.add_callback(StepTimer(self.seconds["step"]))

    def _sample(self, *arguments):
        start = time.perf_counter()
        samples, sampled = super()._sample(*arguments)
        self.seconds["sampling"].append(time.perf_counter() - start)
        self.tokens.append(int(sampled.sum()))
        return samples, sampled

    def _advantages(self, *arguments):
        start = time.perf_counter()
        advantages = super()._advantages(*arguments)
        self.seconds["rewards"].append(time.perf_counter() - start)
        return advantages


class StepTimer(TrainerCallback):
    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.start)


def build_trainer(options: argparse.Namespace, folder: str) -> TimedTrainer:
    words = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    frequencies = 1 / (10 + np.arange(len(words)))
    frequencies /= frequencies.sum()
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(SPECIAL + words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w0"
    )
    config = FusionCaptionerConfig(
        vision_config=efficientnet_lite_config("lite2"),  # it is not run: only the width of its regions matters
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        dropout=0.0,
    )
    model = FusionCaptionerForConditionalGeneration(config)
    shares = np.concatenate((np.full(len(SPECIAL), 1e-9), frequencies * (1 - 1 / TOKENS)))
    shares[END] = 1 / TOKENS
    model.lm_head.bias.data = torch.from_numpy(np.log(shares)).float()
    processor = FusionCaptionerProcessor(FusionCaptionerImageProcessor(), fast)
    return TimedTrainer(
        model=model,
        args=SelfCriticalArguments(
            output_dir=folder,
            rewards=dict.fromkeys(options.rewards, 1.0),
            samples_per_image=options.samples,
            per_device_train_batch_size=options.images,
            max_steps=options.steps + 1,
            generation_max_new_tokens=LONGEST,
            learning_rate=1e-6,  # the samples stay what they are
            bf16=options.bf16,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=SelfCriticalCollator(processor),
        train_dataset=CachedCaptions(words, frequencies),
        processing_class=processor,
    )


def floating_point_operations(tokens: float, samples: int) -> float:
    """Multiplications and additions in the matrix products of one sampled caption: forward to sample it, and three
    times that for the gradient, but twice where none flows back, into the cached regions."""
    regions = REGIONS * WIDTH * HIDDEN * (1 + 2) / samples
    attention = REGIONS * HIDDEN * 2 * HIDDEN * (1 + 3) / samples
    word = VOCABULARY * HIDDEN + 2 * 4 * HIDDEN * 2 * HIDDEN + 2 * HIDDEN * HIDDEN + 2 * REGIONS * HIDDEN
    return 2 * (regions + attention + word * (1 + 3) * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="measured steps, after one of warm-up (default: 15)")
    parser.add_argument("--images", type=int, default=32, help="images per step (default: 32)")
    parser.add_argument("--samples", type=int, default=5, help="captions sampled of each (default: 5)")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    parser.add_argument(
        "--rewards",
        nargs="+",
        default=["CIDEr"],
        choices=["CIDEr", "BLEU-4", "discriminator"],
        help="rewards, of weight 1 each (default: CIDEr)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the commands do
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(options, folder)
        trainer.train()
    peak = matrix_product_peak(torch.bfloat16 if options.bf16 else torch.float32)

    seconds = {name: statistics.median(values[1:]) for name, values in trainer.seconds.items()}
    step = seconds.pop("step")
    seconds["gradient"] = step - sum(seconds.values())
    captions = options.images * options.samples
    tokens = statistics.mean(trainer.tokens[1:]) / captions
    operations = floating_point_operations(tokens, options.samples)
    rate, limit = captions / step, peak / operations
    print(f"{torch.get_num_threads()} threads, matrix-product peak {peak / 1e9:.0f} GFLOP/s")
    print(f"{options.images} images x {options.samples} samples, {tokens:.1f} tokens per caption, median of steps\n")
    print(f"{rate:.1f} sampled captions/s (aim: 80)")
    print(
        f"{operations / 1e6:.0f} MFLOP a caption: {rate / limit:.0%} of the peak, at which it would be {limit:.0f}/s\n"
    )
    for name, part in seconds.items():
        aim = " (aim: at most 15 %)" if name == "rewards" else ""
        print(f"{name:10} {part * 1000:7.1f} ms {part / step:5.1%}{aim}")
    print(
        json.dumps(
            {
                "captions_per_second": rate,
                "captions_per_second_at_the_peak": limit,
                "share_of_step": {name: part / step for name, part in seconds.items()},
                "tokens_per_caption": tokens,
                "rewards": options.rewards,
                "matrix_product_peak": peak,
            }
        )
    )


if __name__ == "__main__":
    main()
