"""The metrics equal coco-caption's, as pycocoevalcap packages it, on 4,872 photos: one human caption against the
others."""

import re

import numpy as np
import pytest

from fusion_captioner.metrics import CiderD, DocumentFrequencies, score_captions, tokenize_caption
from fusion_captioner.metrics.bleu import bleu
from fusion_captioner.metrics.cider import cider_d
from fusion_captioner.metrics.rouge import rouge_l

pytestmark = pytest.mark.real_data
pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")


def coco_format(predictions, references):
    return dict(enumerate(references)), {i: [caption] for i, caption in enumerate(predictions)}


@pytest.fixture(scope="module")
def coco_cider(coco_corpus):
    from pycocoevalcap.cider.cider import Cider

    return Cider().compute_score(*coco_format(*coco_corpus))


def test_cider_d(coco_corpus, coco_cider):
    assert len(coco_corpus[0]) == 4872
    corpus, images = cider_d(*coco_corpus, tokenizer=str.split)
    assert corpus == pytest.approx(coco_cider[0], abs=1e-6)
    assert np.abs(images - coco_cider[1]).max() < 1e-6


def test_prepared_cider_d(coco_corpus, coco_cider):
    predictions, references = coco_corpus
    frequencies = DocumentFrequencies.from_references(references, "val2017", tokenizer=str.split)
    cider = CiderD(references[:200], frequencies, tokenizer=str.split)
    order = np.random.default_rng(0).integers(200, size=500)
    rewards = cider.score([predictions[i] for i in order], images=order)
    assert np.abs(rewards - coco_cider[1][order]).max() < 1e-6


def test_bleu(coco_corpus):
    from pycocoevalcap.bleu.bleu import Bleu

    coco_corpus_scores, coco_images = Bleu(4).compute_score(*coco_format(*coco_corpus), verbose=0)
    corpus, images = bleu(*coco_corpus, tokenizer=str.split)
    assert corpus == pytest.approx(coco_corpus_scores, abs=1e-6)
    assert np.abs(images - np.transpose(coco_images)).max() < 1e-6


def test_rouge_l(coco_corpus):
    from pycocoevalcap.rouge.rouge import Rouge

    coco_score, coco_images = Rouge().compute_score(*coco_format(*coco_corpus))
    corpus, images = rouge_l(*coco_corpus, tokenizer=str.split)
    assert corpus == pytest.approx(coco_score, abs=1e-6)
    assert np.abs(images - coco_images).max() < 1e-6


def ptb_tokens(captions):
    """Captions of each image as coco-caption's tokenizer in Java splits them."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    images = {i: [{"caption": caption} for caption in image] for i, image in enumerate(captions)}
    return list(PTBTokenizer().tokenize(images).values())


@pytest.mark.java
@pytest.mark.parametrize(("corpus", "tolerance"), [("coco_captions", 5e-4), ("flickr8k_captions", 2e-4)])
def test_raw_captions_score_as_with_the_ptb_tokenizer(java, request, corpus, tolerance):
    captions = request.getfixturevalue(corpus)
    ours = score_captions([c[0] for c in captions], [c[1:] for c in captions])
    tokenized = ptb_tokens(captions)
    ptb = score_captions([c[0] for c in tokenized], [c[1:] for c in tokenized], tokenizer=str.split)
    del ptb["signature"], ours["signature"]
    assert ours == pytest.approx(ptb, abs=tolerance)


@pytest.mark.java
def test_captions_with_contractions_are_split_as_by_the_ptb_tokenizer(java, flickr8k_captions):
    captions = [c for image in flickr8k_captions for c in image if "'" in c or "n't" in c]
    alike = [caption for caption in captions if not re.search(r"[#&()=]|\w\.\w|'n'", caption)]
    assert len(alike) > 30
    joined = [caption.replace(" '", "'") for caption in alike]
    for forms in (alike, joined):
        assert [tokenize_caption(caption) for caption in forms] == [
            c[0].split() for c in ptb_tokens([[c] for c in forms])
        ]
