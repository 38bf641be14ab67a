import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_captioner import tiny_model

from fusion_captioner.metrics.cider import DocumentFrequencies, cider_d
from fusion_captioner.metrics.tokenization import find_tokenizer
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.rewards import (
    BleuReward,
    CiderBetweenReward,
    CiderReward,
    MatchingReward,
    reward_weights,
)
from fusion_captioner.training.self_critical.sampled_captions import END, SampledCaptions

REFERENCES = {
    "snow": ["A brown dog runs through the snow .", "a dog that is brown runs over white snow"],
    "beach": ["two children play on a beach", "children at the sea"],
    "street": ["a man rides a bike down the street", "a cyclist"],
}
ARGUMENTS = SelfCriticalArguments()


def sampled(texts: list[str], image_ids: list, ended: list[bool] | None = None) -> SampledCaptions:
    empty = torch.zeros(len(texts), 1, dtype=torch.long)
    return SampledCaptions(image_ids, texts, ended or [True] * len(texts), empty, empty, torch.zeros(1, 1, 1))


def test_cider_is_that_of_the_words_and_their_end() -> None:
    texts = ["a brown dog runs through the snow", "two children play", "a man rides a horse"]
    rewards = CiderReward(REFERENCES, tiny_model(), ARGUMENTS)(sampled(texts, list(REFERENCES)))
    tokens = [[*text.split(), END] for text in texts]
    references = [[[*caption.lower().replace(" .", "").split(), END] for caption in r] for r in REFERENCES.values()]
    np.testing.assert_allclose(rewards, cider_d(tokens, references, tokenizer=None)[1])


def test_cider_between_is_that_of_the_batch_s_other_images() -> None:
    by_language = {(language, image): each for language in ("en", "de") for image, each in REFERENCES.items()}
    texts = ["a brown dog runs through the snow", "a dog", "two children play", "a bike on a beach", "children"]
    images = [("en", "snow"), ("en", "snow"), ("en", "beach"), ("en", "street"), ("de", "beach")]
    samples = sampled(texts, images)
    between = CiderBetweenReward(by_language, tiny_model(), ARGUMENTS)(samples)
    of_own = CiderReward(by_language, tiny_model(), ARGUMENTS)

    def against(*images: str) -> np.ndarray:
        return of_own(sampled(texts, [("en", image) for image in images]))

    first, second = against("beach", "beach", "snow", "snow", "snow"), against(*["street"] * 3, "beach", "snow")
    np.testing.assert_allclose(between[:4], (first + second)[:4] / 2)
    assert between[4] == 0  # the only German one
    assert between[3] > between[0]  # of a beach is also another image


def test_rewards_weigh_by_language() -> None:
    languages = ["en", "zh", "de"]
    assert reward_weights({"CIDEr": 1.0, "CIDEr-between": {"zh": -6.0, "de": -0.5}}, languages) == {
        "CIDEr": {"en": 1.0, "zh": 1.0, "de": 1.0},
        "CIDEr-between": {"en": 0.0, "zh": -6.0, "de": -0.5},
    }
    with pytest.raises(ValueError, match=r"`rewards` \(CIDEr: \{'fr': 1\}\) .* which has de, en, zh"):
        reward_weights({"CIDEr": {"fr": 1}}, languages)
    with pytest.raises(ValueError, match="one language"):
        reward_weights({"CIDEr": {"en": 1}}, [""])


CORPUS = {"1": ["a dog runs", "a brown dog"], "2": ["a dog sleeps"], "3": ["a boat"], "4": ["snow"], "5": ["a dog"]}


def corpus_file(folder: Path, text: str | None = None) -> str:
    lines = "".join(f"{image}\t{caption}\n" for image, captions in CORPUS.items() for caption in captions)
    path = folder / "captions.txt.gz"
    path.write_bytes(gzip.compress((lines if text is None else text).encode()))
    return str(path)


def test_cider_takes_the_document_frequencies_of_another_corpus(tmp_path: Path) -> None:
    texts = ["a brown dog runs through the snow", "two children play", "a man rides a horse"]
    samples = sampled(texts, list(REFERENCES))
    settings = SelfCriticalArguments(document_frequencies=corpus_file(tmp_path))
    rewards = CiderReward(REFERENCES, tiny_model(), settings)(samples)
    tokens = [[*text.split(), END] for text in texts]
    references = [[[*caption.lower().replace(" .", "").split(), END] for caption in r] for r in REFERENCES.values()]
    corpus = [[[*caption.split(), END] for caption in captions] for captions in CORPUS.values()]
    frequencies = DocumentFrequencies.from_references(corpus, "corpus", tokenizer=None)
    np.testing.assert_allclose(rewards, cider_d(tokens, references, frequencies, tokenizer=None)[1])
    assert np.abs(rewards - CiderReward(REFERENCES, tiny_model(), ARGUMENTS)(samples)).max() > 1e-2
    # a language with a corpus, next to one that counts its own references
    by_language = {("en", image): captions for image, captions in REFERENCES.items()} | {("de", "x"): ["ein Hund"]}
    settings.document_frequencies = {"en": corpus_file(tmp_path)}
    of_english = CiderReward(by_language, tiny_model(), settings)(
        sampled(texts, [("en", each) for each in REFERENCES])
    )
    np.testing.assert_allclose(of_english, rewards)
    settings.document_frequencies = corpus_file(tmp_path)
    with pytest.raises(ValueError, match=r"`document_frequencies` .* sources by language, of en, de"):
        CiderReward(by_language, tiny_model(), settings)


@pytest.mark.parametrize("text", ["1\ta dog\n2 a boat\n", "1\t \n", ""])
def test_a_corpus_of_other_lines_is_refused(tmp_path: Path, text: str) -> None:
    settings = SelfCriticalArguments(document_frequencies=corpus_file(tmp_path, text))
    with pytest.raises(ValueError, match=r"captions.txt.gz: .*`image id<TAB>caption`"):
        CiderReward(REFERENCES, tiny_model(), settings)


@pytest.mark.parametrize("kind", [CiderReward, BleuReward])
def test_a_caption_earns_by_its_own_image_and_by_ending(kind: type) -> None:
    reward = kind(REFERENCES, tiny_model(), ARGUMENTS)
    caption = "a brown dog runs through the snow"
    right, wrong, cut, dangling = reward(
        sampled(
            [caption, caption, caption, caption.removesuffix(" snow")],
            ["snow", "beach", "snow", "snow"],
            [True, True, False, False],
        )
    )
    assert right > cut > dangling > wrong


def test_bleu_tells_short_matches_apart() -> None:
    better, worse = BleuReward(REFERENCES, tiny_model(), ARGUMENTS)(
        sampled(["a dog runs on snow", "snow a on runs dog"], ["snow"] * 2)
    )
    assert 1 > better > worse > 0


def test_the_matching_reward_is_the_models_own_score() -> None:
    torch.manual_seed(0)
    model = tiny_model(matching_loss_weight=1.0, contrastive_loss_weight=1.0).eval()
    samples = sampled(["a red square"] * 4, ["snow", "snow", "beach", "beach"])
    samples.input_ids = torch.tensor([[1, 4, 5, 8, 2], [1, 4, 6, 2, 0], [1, 7, 2, 0, 0], [1, 8, 8, 8, 2]])
    samples.attention_mask = (samples.input_ids != 0).long()
    samples.image_hidden_states = torch.randn(2, 4, 12)
    scores = MatchingReward(REFERENCES, model, ARGUMENTS)(samples)
    assert scores.shape == (4,) and ((scores > 0) & (scores < 1)).all()
    model.alignment.matching.head[-1].weight.data.neg_()
    model.alignment.matching.head[-1].bias.data.neg_()
    np.testing.assert_allclose(MatchingReward(REFERENCES, model, ARGUMENTS)(samples), 1 - scores, rtol=1e-5)


def test_without_a_matching_head_there_is_no_matching_reward() -> None:
    with pytest.raises(ValueError, match="`matching_loss_weight` above 0"):
        MatchingReward(REFERENCES, tiny_model(), ARGUMENTS)


@pytest.mark.parametrize("kind", [CiderReward, BleuReward])
def test_captions_without_spaces_earn_by_the_tokenizer_of_the_scores(kind: type) -> None:
    references = {"dog": ["一只黑狗在草地上跑", "黑狗跑"], "sea": ["两个男人在海边"], "red": ["红色的车"]}
    samples = sampled(["一只狗在草地上", "两个人在海边"], ["dog", "dog"], [False, False])
    right, wrong = kind(references, tiny_model(), ARGUMENTS)(samples)
    assert right > wrong
    samples.tokenizer = find_tokenizer("words")
    assert kind(references, tiny_model(), ARGUMENTS, samples.tokenizer)(samples).max() < 1e-3
