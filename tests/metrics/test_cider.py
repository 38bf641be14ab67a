import math
from itertools import chain

import numpy as np
import pytest

from fusion_captioner.metrics.cider import CiderD, DocumentFrequencies, cider_d

REFERENCES = [
    ["a dog runs on the grass", "a brown dog is running", "the dog runs"],
    ["a man rides a red bike", "a man on a bike in the street"],
    ["two cats sleep on a bed", "the cats sleep", "a pair of cats sleeping on the bed", "cats"],
]
PREDICTIONS = ["a dog runs in the street", "a man rides a bike", "two cats on the bed bed bed"]


def test_whole_match():
    # Each n-gram is in one of two images. Of the four cosines those of trigrams and 4-grams are 0.
    assert cider_d(["a b", "c d"], [["a b"], ["c d"]])[1] == pytest.approx([5, 5])


def test_repeated_word_is_clipped():
    # Weights (2 log 2) against (log 2, log 2), clipped to log 2: cosine 1 / (2 √2) of unigrams, no other match.
    assert cider_d(["a a", "c d"], [["a b"], ["c d"]])[1][0] == pytest.approx(10 / 4 / (2 * math.sqrt(2)))


def test_length_penalty():
    # Cosine 1 / √2 of unigrams, lengths of 0 and 1 bigrams.
    expected = 10 / 4 / math.sqrt(2) * math.exp(-1 / (2 * 6**2))
    assert cider_d(["a", "c d"], [["a b"], ["c d"]])[1][0] == pytest.approx(expected)


def test_words_of_every_image_weigh_nothing():
    assert cider_d(["a", "a b"], [["a"], ["a b"]])[1] == pytest.approx([0, 10 / 4 * 2])


def test_mean_over_references_and_over_images():
    corpus, images = cider_d(["a b", "x"], [["a b", "e f"], ["c d"]])
    assert images == pytest.approx([2.5, 0])
    assert corpus == pytest.approx(1.25)


def test_a_reference_of_four_words_as_prediction_has_the_maximum():
    assert cider_d(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]])[0] == pytest.approx(10)


def test_order_of_images_and_references_does_not_matter():
    _, images = cider_d(PREDICTIONS, REFERENCES)
    _, reversed_images = cider_d(PREDICTIONS[::-1], [captions[::-1] for captions in REFERENCES[::-1]])
    assert reversed_images[::-1] == pytest.approx(images)


def test_prepared_equals_one_shot():
    cider = CiderD(REFERENCES)
    _, images = cider_d(PREDICTIONS, REFERENCES)
    assert (cider.score(PREDICTIONS) == images).all()
    # Several samples of an image, in any order, and again: scoring leaves nothing behind.
    samples = [PREDICTIONS[2], PREDICTIONS[0], "a dog on a bed", PREDICTIONS[2]]
    for _ in range(2):
        rewards = cider.score(samples, images=[2, 0, 2, 2])
        assert rewards[[0, 1, 3]] == pytest.approx(images[[2, 0, 2]])
        assert 0 < rewards[2] < 10


def test_token_ids_equal_words():
    captions = [*PREDICTIONS, *chain.from_iterable(REFERENCES)]
    vocabulary = {word: i for i, word in enumerate(sorted({word for caption in captions for word in caption.split()}))}

    def ids(caption):
        return [vocabulary[word] for word in caption.split()]

    references = [[ids(caption) for caption in captions] for captions in REFERENCES]
    cider = CiderD(references, tokenizer=None)
    words = cider_d(PREDICTIONS, REFERENCES)[1]
    assert cider.score([ids(caption) for caption in PREDICTIONS]) == pytest.approx(words)
    assert cider.score([np.array(ids(caption)) for caption in PREDICTIONS]) == pytest.approx(words)


def test_frequencies_of_another_corpus():
    # By hand: log(4 / 2) for "dog", in two of four training images; log(4) for "cat", which none has.
    train = [["dog"], ["dog"], ["man"], ["bike"]]
    frequencies = DocumentFrequencies.from_references(train, "train")
    score = CiderD([["dog cat"]], frequencies).score(["dog"])
    dog, cat = math.log(2), math.log(4)
    penalty = math.exp(-1 / (2 * 6**2))
    assert score == pytest.approx([10 / 4 * dog / math.hypot(dog, cat) * penalty])


def test_a_part_of_a_corpus_scores_as_in_the_whole():
    _, whole = cider_d(PREDICTIONS, REFERENCES)
    frequencies = DocumentFrequencies.from_references(REFERENCES, "all")
    _, part = cider_d(PREDICTIONS[1:], REFERENCES[1:], frequencies)
    assert part == pytest.approx(whole[1:])
    _, alone = cider_d(PREDICTIONS[1:], REFERENCES[1:])
    assert np.abs(alone - part).max() > 0.01  # the corpus matters


def test_frequencies_are_saved_and_loaded(tmp_path):
    path = tmp_path / "frequencies.df"  # no suffix is forced on it
    frequencies = DocumentFrequencies.from_references(REFERENCES, "Flickr8k train")
    frequencies.save(path)
    loaded = DocumentFrequencies.load(path)
    assert (loaded.corpus, loaded.num_images) == ("Flickr8k train", 3)
    assert (cider_d(PREDICTIONS, REFERENCES, loaded)[1] == cider_d(PREDICTIONS, REFERENCES)[1]).all()


def test_unreadable_frequencies(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of document frequencies at '.*missing.npz'"):
        DocumentFrequencies.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name}' holds no document frequencies"):
            DocumentFrequencies.load(tmp_path / name)


def test_frequencies_of_another_tokenizer_are_refused():
    frequencies = DocumentFrequencies.from_references(REFERENCES, "train", tokenizer=str.split)
    with pytest.raises(ValueError, match=r"of 'train' were counted with tokenizer 'whitespace'"):
        CiderD(REFERENCES, frequencies)


@pytest.mark.parametrize(
    ("predictions", "images", "message"),
    [
        (["a"], None, "1 captions for 3 images"),
        ([], [], "`predictions` is empty"),
        (["a", "b"], [0], r"shape \(1,\)"),
        (["a"], [0.5], "array of float64"),
        (["a"], [3], "from 3 to 3"),
        (["a"], [-1], "references of images 0 to 2"),
        ([7], [0], r"`predictions\[0\]` is 7"),
    ],
)
def test_bad_predictions_are_named(predictions, images, message):
    with pytest.raises(ValueError, match=message):
        CiderD(REFERENCES).score(predictions, images)


def test_captions_without_words():
    assert cider_d(["", "c d"], [["a b"], ["c d", ""]])[1] == pytest.approx([0, 2.5])
    assert (cider_d(["", "."], [["!"], [""]])[1] == 0).all()
