import numpy as np
import pytest
import torch
from tiny_captioner import tiny_model

from fusion_captioner.metrics.cider import cider_d
from fusion_captioner.metrics.tokenization import find_tokenizer
from fusion_captioner.training.self_critical.arguments import SelfCriticalArguments
from fusion_captioner.training.self_critical.rewards import BleuReward, CiderReward, MatchingReward
from fusion_captioner.training.self_critical.sampled_captions import END, SampledCaptions

REFERENCES = {
    "snow": ["A brown dog runs through the snow .", "a dog that is brown runs over white snow"],
    "beach": ["two children play on a beach", "children at the sea"],
    "street": ["a man rides a bike down the street", "a cyclist"],
}
ARGUMENTS = SelfCriticalArguments()


def sampled(texts: list[str], image_ids: list[str], ended: list[bool] | None = None) -> SampledCaptions:
    empty = torch.zeros(len(texts), 1, dtype=torch.long)
    return SampledCaptions(image_ids, texts, ended or [True] * len(texts), empty, empty, torch.zeros(1, 1, 1))


def test_cider_is_that_of_the_words_and_their_end() -> None:
    texts = ["a brown dog runs through the snow", "two children play", "a man rides a horse"]
    rewards = CiderReward(REFERENCES, tiny_model(), ARGUMENTS)(sampled(texts, list(REFERENCES)))
    tokens = [[*text.split(), END] for text in texts]
    references = [[[*caption.lower().replace(" .", "").split(), END] for caption in r] for r in REFERENCES.values()]
    np.testing.assert_allclose(rewards, cider_d(tokens, references, tokenizer=None)[1])


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
