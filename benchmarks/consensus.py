"""What the captions of like photos know: as captions themselves, and to choose among the captioner's own.

    python benchmarks/consensus.py --checkpoint C --source FOLDER --cache FOLDER [--split val] [--photos 20]
        [--beams 3 5 10]

The photos of the training split whose concepts are most alike are looked up for each photo of the split. Their
captions are candidates, and the one that agrees most with all of them, by CIDEr-D, is the caption ("consensus", Devlin
et al., 2015, https://arxiv.org/abs/1505.04467); and they choose among the beams of the captioner in the same way (Mao
et al., 2015, https://arxiv.org/abs/1412.6632).
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from fusion_captioner.checkpoints.loading import load_captioner
from fusion_captioner.data.caption_datasets import load_caption_dataset
from fusion_captioner.data.feature_cache import CachedSplit, cached_features
from fusion_captioner.metrics.caption_scores import score_captions
from fusion_captioner.metrics.cider import CiderD, DocumentFrequencies
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.process_setup import keep_freed_memory

BATCH = 50


def batches_of(split: CachedSplit) -> Iterator[torch.Tensor]:
    """Cached features of the images of a split, `(B, P, Dv)`."""
    image_ids = split.rows["image_id"]
    for first in range(0, len(image_ids), BATCH):
        yield torch.stack([split.features[image_id] for image_id in image_ids[first : first + BATCH]]).float()


@torch.no_grad()
def concepts_of(model: FusionCaptionerForConditionalGeneration, split: CachedSplit) -> np.ndarray:
    """Square roots of the probabilities of all concepts, `(images, K)`."""
    return torch.cat([model.model.score_concepts(each).sigmoid().sqrt() for each in batches_of(split)]).numpy()


def nearest(found: np.ndarray, known: np.ndarray, number: int) -> np.ndarray:
    """Places of the most similar rows of `known`, `(images, number)`, by the cosine about the mean."""
    mean = known.mean(axis=0)
    found, known = ((each - mean) / np.linalg.norm(each - mean, axis=1, keepdims=True) for each in (found, known))
    return np.argsort(-(found @ known.T), axis=1, kind="stable")[:, :number]


def most_agreed(candidates: Sequence[Sequence[str]], consensus: CiderD) -> list[str]:
    """Of the candidates of each image the one that is most like the captions of its nearest photos."""
    images = np.repeat(np.arange(len(candidates)), [len(each) for each in candidates])
    scores = consensus.score([text for each in candidates for text in each], images)
    return [each[int(np.argmax(scores[images == image]))] for image, each in enumerate(candidates)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="captioner of this package that has concepts")
    parser.add_argument("--source", required=True, help="data, as for `evaluate`")
    parser.add_argument("--cache", required=True, help="folder of cached image features; filled where it is not")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--photos", type=int, default=20, help="nearest photos whose captions agree (default: 20)")
    parser.add_argument("--beams", type=int, nargs="+", default=[3, 5, 10], help="default: 3 5 10")
    options = parser.parse_args()
    keep_freed_memory()

    rows = load_caption_dataset(options.source)
    model, processor = load_captioner(options.checkpoint)
    splits = {split: rows[split] for split in ("train", options.split)}
    cached = cached_features(splits, model, processor.image_processor, options.cache)
    known, asked = cached["train"], cached[options.split]
    near = nearest(concepts_of(model, asked), concepts_of(model, known), options.photos)
    known_captions, references = known.rows["captions"], asked.rows["captions"]
    neighbours = [[text for place in places for text in known_captions[place]] for places in near]
    frequencies = DocumentFrequencies.from_references(known_captions, "train")
    consensus = CiderD(neighbours, frequencies)

    def show(name: str, captions: list[str]) -> None:
        scores = score_captions(captions, references)
        print(f"| {name} | {scores['CIDEr']:.4f} | {scores['BLEU-4']:.4f} |", flush=True)

    print("| | CIDEr | BLEU-4 |\n|---|---|---|")
    show(f"of {5 * options.photos} captions of the nearest photos", most_agreed(neighbours, consensus))
    for beams in options.beams:
        texts: list[str] = []
        for features in batches_of(asked):
            inputs = processor(text=[""] * len(features), return_tensors="pt")
            settings = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 30}
            generated = model.generate(image_hidden_states=features, **inputs, **settings)
            texts += processor.batch_decode(generated, skip_special_tokens=True)
        candidates = [texts[first : first + beams] for first in range(0, len(texts), beams)]
        show(f"the best of {beams} beams", [each[0] for each in candidates])
        show(f"of {beams} beams the one most agreed on", most_agreed(candidates, consensus))


if __name__ == "__main__":
    main()
