"""Speed of the caption metrics compared with pycocoevalcap's, measured in the same run on the same tokens.

    python benchmarks/metrics_speed.py annotations/captions_val2017.json

The file is one of COCO's caption annotations (or the bare list of them). The references are five captions of each
image; its first caption stands for the prediction, and all five for the samples of self-critical training. Needs
pycocoevalcap, and Java for METEOR's row.
"""

import argparse
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

from fusion_captioner.metrics import CiderD, score_captions, tokenize_caption
from fusion_captioner.metrics.bleu import bleu
from fusion_captioner.metrics.cider import cider_d
from fusion_captioner.metrics.meteor import meteor_exact_stem
from fusion_captioner.metrics.meteor_java import meteor
from fusion_captioner.metrics.rouge import rouge_l

NUM_IMAGES, NUM_REFERENCES = 5000, 5
BATCH_IMAGES = 50  # of a step of self-critical training


def load_captions(path: str) -> list[list[str]]:
    """Tokenized captions, joined by spaces, of 5,000 images with five captions each; images repeat where there are
    fewer."""
    with open(path, encoding="utf-8") as file:
        annotations = json.load(file)
    images = defaultdict(list)
    for annotation in annotations["annotations"] if isinstance(annotations, dict) else annotations:
        images[annotation["image_id"]].append(" ".join(tokenize_caption(annotation["caption"])))
    complete = [captions[:NUM_REFERENCES] for captions in images.values() if len(captions) >= NUM_REFERENCES]
    print(f"{len(complete)} images with {NUM_REFERENCES} captions, repeated up to {NUM_IMAGES}\n")
    return list(islice(cycle(complete), NUM_IMAGES))


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Best of a few runs: other programs on the machine can only make a run longer."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="COCO caption annotations, such as annotations/captions_val2017.json")
    references = load_captions(parser.parse_args().captions)
    predictions = [captions[0] for captions in references]
    coco = dict(enumerate(references)), {i: [caption] for i, caption in enumerate(predictions)}

    cider = CiderD(references, tokenizer=str.split)
    scorer = CiderScorer()  # with its document frequencies prepared as well, which it offers no public way to do
    for prediction, captions in zip(predictions, references):
        scorer += (prediction, captions)
    scorer.compute_doc_freq()
    images = np.random.default_rng(0).choice(NUM_IMAGES, BATCH_IMAGES, replace=False)
    batch = images.repeat(NUM_REFERENCES)
    samples = [caption for image in images for caption in references[image]]

    def coco_rewards() -> None:
        scorer.crefs, scorer.ctest = [], []
        for image, sample in zip(batch, samples):
            scorer.cook_append(sample, references[image])
        scorer.compute_cider()

    first = slice(1000)
    rows: list[tuple[str, Callable[[], object], Callable[[], object] | None]] = [
        (
            "CIDEr-D, 5,000 images x 5",
            lambda: cider_d(predictions, references, tokenizer=str.split),
            lambda: Cider().compute_score(*coco),
        ),
        ("CIDEr-D prepared, 50 images x 5 samples", lambda: cider.score(samples, batch), coco_rewards),
        (
            "BLEU, 5,000 images x 5",
            lambda: bleu(predictions, references, str.split),
            lambda: Bleu(4).compute_score(*coco, verbose=0),
        ),
        (
            "ROUGE-L, 5,000 images x 5",
            lambda: rouge_l(predictions, references, str.split),
            lambda: Rouge().compute_score(*coco),
        ),
        (
            "METEOR-exact-stem, 1,000 images x 5 (Java)",
            lambda: meteor_exact_stem(predictions[first], references[first]),
            (lambda: meteor(predictions[first], references[first], modules="exact stem"))
            if shutil.which("java")
            else None,
        ),
        (
            "all of score_captions, 1,000 images x 5",
            lambda: score_captions(predictions[first], references[first]),
            None,
        ),
    ]
    print(f"{'':44}{'fusion_captioner':>18}{'pycocoevalcap':>16}{'times faster':>14}")
    for name, ours, theirs in rows:
        mine = seconds(ours)
        line = f"{name:44}{mine:16.4f} s"
        if theirs is not None:
            other = seconds(theirs)
            line += f"{other:14.4f} s{other / mine:14.1f}"
        print(line)


if __name__ == "__main__":
    main()
