"""How well the caption metrics agree with people, and people's captions of several languages with each other.

    python benchmarks/human_judgements.py --expert Flickr8k_text/
    python benchmarks/human_judgements.py --captions dataset_flickr8k.json dataset_flickr8k_zh.json

`--expert`: the folder of Flickr8k's text files, with `ExpertAnnotations.txt` (Hodosh et al., 2013: three people say
from 1 to 4 how well a caption describes an image) and `Flickr8k.token.txt`. Candidates that are among the image's own
captions are left out; what is left are 16,992 judgements. Agreement is Kendall's tau-c, as in Hessel et al. (2021),
table 1: BLEU-4 .308, ROUGE-L .323, CIDEr .439. `--captions`: Karpathy's files; the first caption of each image of
`val` is scored against its others. Needs scipy, and jieba for Chinese words.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import kendalltau

from fusion_captioner.metrics import score_captions

SCORES = ("BLEU-1", "BLEU-4", "ROUGE-L", "METEOR-exact-stem", "CIDEr")
LANGUAGE_TOKENIZERS = ("words", "auto", "jieba")


def read_expert_judgements(folder: Path) -> tuple[list[str], list[list[str]], list[list[int]]]:
    """Candidate captions, the references of their images, and the three judgements of each.

    Raises:
        FileNotFoundError: one of the two files is missing.
    """
    captions: dict[str, list[str]] = defaultdict(list)
    for line in (folder / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, caption = line.split("\t")
        captions[name.split("#")[0]].append(caption)
    candidates, references, judgements = [], [], []
    for line in (folder / "ExpertAnnotations.txt").read_text(encoding="utf-8").splitlines():
        image, caption, *scores = line.split("\t")
        if caption.split("#")[0] == image:
            continue
        source, number = caption.split("#")
        candidates.append(captions[source][int(number)])
        references.append(captions[image])
        judgements.append([int(score) for score in scores])
    return candidates, references, judgements


def agreement(
    candidates: Sequence[str], references: Sequence[list[str]], judgements: Sequence[list[int]]
) -> dict[str, float]:
    """Kendall's tau-c between each score of the single candidates and all judgements."""
    scores = score_captions(candidates, references, per_image=True)["per_image"]
    right = [judgement for three in judgements for judgement in three]
    return {
        name: float(
            kendalltau(
                [scores[name][i] for i, three in enumerate(judgements) for _ in three], right, variant="c"
            ).statistic
        )
        for name in SCORES
    }


def score_people(path: Path, split: str = "val") -> list[tuple[str, float, float]]:
    """For each tokenizer CIDEr and BLEU-4 of the first caption of each image against its others."""
    images = json.loads(path.read_text(encoding="utf-8"))["images"]
    captions = [[sentence["raw"] for sentence in image["sentences"]] for image in images if image["split"] == split]
    rows = []
    for tokenizer in LANGUAGE_TOKENIZERS:
        scores = score_captions(
            [first for first, *_ in captions],
            [others for _, *others in captions],
            metrics=("CIDEr", "BLEU"),
            tokenizer=tokenizer,
        )
        rows.append((tokenizer, scores["CIDEr"], scores["BLEU-4"]))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expert", type=Path, metavar="FOLDER", help="folder of Flickr8k's text files")
    parser.add_argument("--captions", type=Path, nargs="+", default=[], metavar="FILE", help="Karpathy's files")
    options = parser.parse_args(arguments)
    if options.expert is None and not options.captions:
        parser.error("give --expert FOLDER, --captions FILE, or both")
    if options.expert is not None:
        candidates, references, judgements = read_expert_judgements(options.expert)
        print(f"| score | Kendall's tau-c, {3 * len(judgements):,} judgements |\n|---|---|")
        for name, value in agreement(candidates, references, judgements).items():
            print(f"| {name} | {value:.3f} |")
    if options.captions:
        print("| file | tokenizer | CIDEr | BLEU-4 |\n|---|---|---|---|")
        for path in options.captions:
            for tokenizer, cider, bleu in score_people(path):
                print(f"| {path.name} | {tokenizer} | {cider:.3f} | {bleu:.3f} |")


if __name__ == "__main__":
    main()
