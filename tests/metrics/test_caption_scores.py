import subprocess
import sys

import pytest

from fusion_captioner import __version__
from fusion_captioner.metrics import DocumentFrequencies, score_captions
from fusion_captioner.metrics.bleu import bleu
from fusion_captioner.metrics.cider import cider_d
from fusion_captioner.metrics.meteor import meteor_exact_stem
from fusion_captioner.metrics.rouge import rouge_l

PREDICTIONS = ["A dog runs on the grass.", "two men ride bikes"]
REFERENCES = [["a brown dog is running on grass", "a dog runs"], ["two people on bikes"]]


def test_every_score_is_that_of_its_metric():
    scores = score_captions(PREDICTIONS, REFERENCES, per_image=True)
    images = scores.pop("per_image")
    signature = scores.pop("signature")
    assert "METEOR-exact-stem" in signature
    corpus_bleu, images_bleu = bleu(PREDICTIONS, REFERENCES)
    expected = {f"BLEU-{n}": (corpus_bleu[n - 1], images_bleu[:, n - 1]) for n in (1, 2, 3, 4)} | {
        "CIDEr": cider_d(PREDICTIONS, REFERENCES),
        "ROUGE-L": rouge_l(PREDICTIONS, REFERENCES),
        "METEOR-exact-stem": meteor_exact_stem(PREDICTIONS, REFERENCES),
    }
    assert scores == {name: corpus for name, (corpus, _) in expected.items()}
    assert all(type(score) is float for score in scores.values())
    assert set(images) == set(expected)
    assert all((images[name] == per_image).all() for name, (_, per_image) in expected.items())


def test_signature_says_how_the_scores_were_computed():
    signature = score_captions(PREDICTIONS, REFERENCES)["signature"].split(" | ")
    assert signature == [
        "CIDEr-D n=4 sigma=6 df=references of the 2 scored images",
        "BLEU coco-caption closest",
        "ROUGE-L beta=1.2",
        "METEOR-exact-stem 1.5 en norm snowball=2.2.0",
        "tokenizer=auto",
        "images=2",
        "references=1-2",
        f"fusion_captioner={__version__}",
    ]


def test_signature_names_corpus_and_tokenizer():
    frequencies = DocumentFrequencies.from_references(REFERENCES * 2, "COCO train2017", tokenizer=str.split)
    scores = score_captions(
        PREDICTIONS, REFERENCES, metrics=["CIDEr"], document_frequencies=frequencies, tokenizer=str.split
    )
    assert set(scores) == {"CIDEr", "signature"}
    assert "df=COCO train2017 | tokenizer=whitespace | images=2" in scores["signature"]


def test_order_of_images_does_not_matter():
    scores = score_captions(PREDICTIONS, REFERENCES)
    again = score_captions(PREDICTIONS[::-1], [captions[::-1] for captions in REFERENCES[::-1]])
    assert again.pop("signature") == scores.pop("signature")
    assert again == pytest.approx(scores)


def test_unknown_metrics_are_refused():
    for metrics in (["CIDEr", "SPICE"], []):
        with pytest.raises(
            ValueError, match=r"`metrics` is .*: choose from CIDEr, BLEU, ROUGE-L, METEOR-exact-stem, METEOR"
        ):
            score_captions(PREDICTIONS, REFERENCES, metrics=metrics)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 captions and `references` has 1 lists"):
        score_captions(PREDICTIONS, REFERENCES[:1])


def test_metrics_need_neither_torch_nor_transformers():
    # Under the console script's name the package registers no model classes, so that only the metrics load anything.
    script = (
        "import sys; sys.argv[0] = 'fusion-captioner'; import fusion_captioner.metrics;"
        "print({'torch', 'transformers', 'datasets', 'evaluate'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
