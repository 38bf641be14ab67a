"""Recall at K against ranks counted by hand."""

import numpy as np
import pytest

from fusion_captioner.metrics import retrieval_recall

# rows: images; columns: texts, of which 0 and 1 belong to image 0, 2 to image 1, 3 to image 2
SIMILARITY = np.array(
    [
        [0.1, 0.8, 0.9, 0.0],  # text 2 comes before the better one of its own: second
        [0.3, 0.2, 0.7, 0.1],  # first
        [0.9, 0.6, 0.8, 0.5],  # last
    ]
)
TEXT_IMAGES = [0, 0, 1, 2]


def test_ranks_both_ways() -> None:
    # text 0: images 2, 1, 0; text 1: 0, 2, 1; text 2: 0, 2, 1; text 3: 2, 1, 0
    assert retrieval_recall(SIMILARITY, TEXT_IMAGES, ranks=(1, 2, 3, 4)) == {
        "image_to_text_R@1": pytest.approx(1 / 3),
        "image_to_text_R@2": pytest.approx(2 / 3),
        "image_to_text_R@3": pytest.approx(2 / 3),
        "image_to_text_R@4": 1.0,
        "text_to_image_R@1": pytest.approx(2 / 4),
        "text_to_image_R@2": pytest.approx(2 / 4),
        "text_to_image_R@3": 1.0,
        "text_to_image_R@4": 1.0,
    }


def test_names_are_those_of_papers() -> None:
    assert list(retrieval_recall(SIMILARITY, TEXT_IMAGES)) == [
        f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]


def test_texts_may_stand_in_any_order() -> None:
    order = np.array([3, 1, 0, 2])
    shuffled = retrieval_recall(SIMILARITY[:, order], np.array(TEXT_IMAGES)[order], ranks=(1, 2))
    assert shuffled == retrieval_recall(SIMILARITY, TEXT_IMAGES, ranks=(1, 2))


def test_equal_scores_earn_nothing() -> None:
    recalls = retrieval_recall(np.zeros((12, 12)), np.arange(12))
    assert set(recalls.values()) == {0.0}


def test_many_images_are_ranked_as_one_by_one() -> None:
    generator = np.random.default_rng(0)
    text_images = np.repeat(np.arange(300), 5)
    similarity = generator.normal(size=(300, 1500)) + 2 * (text_images == np.arange(300)[:, None])
    recalls = retrieval_recall(similarity, text_images)
    by_image = [text_images[np.argsort(-row)] == image for image, row in enumerate(similarity)]
    by_text = [np.argsort(-column) == image for image, column in zip(text_images, similarity.T)]
    for k in (1, 5, 10):
        assert recalls[f"image_to_text_R@{k}"] == pytest.approx(np.mean([hits[:k].any() for hits in by_image]))
        assert recalls[f"text_to_image_R@{k}"] == pytest.approx(np.mean([hits[:k].any() for hits in by_text]))
    assert 0.05 < recalls["text_to_image_R@1"] < recalls["image_to_text_R@10"] < 1


def test_folds_are_searched_apart() -> None:
    generator = np.random.default_rng(1)
    text_images = np.repeat(np.arange(20), 2)
    similarity = generator.normal(size=(20, 40))
    folds = [
        retrieval_recall(similarity[s : s + 5, 2 * s : 2 * s + 10], np.repeat(np.arange(5), 2)) for s in (0, 5, 10, 15)
    ]
    found = retrieval_recall(similarity, text_images, fold_size=5)
    assert found == pytest.approx({name: np.mean([fold[name] for fold in folds]) for name in found})
    assert found["image_to_text_R@1"] > retrieval_recall(similarity, text_images)["image_to_text_R@1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": SIMILARITY[0]}, r"`similarity` \(4,\) must have the shape \(images, texts\)"),
        ({"text_images": [0, 1, 2]}, r"`text_images` \(3,\) must hold the image of each of the 4 texts"),
        ({"text_images": [0, 0, 1, 1]}, "image 2 has no text"),
        ({"text_images": [0, 1, 2, 3]}, "`text_images` names image 3, and there are 3"),
        ({"similarity": SIMILARITY * np.nan}, "not finite"),
        ({"fold_size": 2}, r"`fold_size` \(2\) must divide the number of images \(3\)"),
        ({"ranks": (0, 1)}, r"`ranks` \(\(0, 1\)\) must be numbers of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        retrieval_recall(**({"similarity": SIMILARITY, "text_images": TEXT_IMAGES} | arguments))
    assert "\n" not in str(caught.value)
