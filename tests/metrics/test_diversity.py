import pytest

from fusion_captioner.metrics import caption_diversity


def test_numbers_by_hand():
    captions = ["A dog runs.", "a dog runs", "a man with a", "two men riding bikes"]
    assert caption_diversity(captions) == {
        "unique_captions": 3 / 4,
        "dangling_endings": 1 / 4,
        "vocabulary": 9,
        "mean_length": 14 / 4,
        "min_length": 3,
        "max_length": 4,
    }


def test_an_empty_caption_does_not_dangle():
    assert caption_diversity(["", "."])["dangling_endings"] == 0


@pytest.mark.parametrize(
    ("captions", "message"),
    [([], "`captions` is empty"), ("a dog", "one string"), (["a", 3], r"`captions\[1\]` is 3")],
)
def test_bad_input_is_named(captions, message):
    with pytest.raises(ValueError, match=message):
        caption_diversity(captions)


@pytest.mark.real_data
def test_people_rarely_leave_a_caption_dangling(coco_captions):
    diversity = caption_diversity([captions[0] for captions in coco_captions])
    assert 0 < diversity["dangling_endings"] < 0.002
    assert diversity["unique_captions"] > 0.98
