"""
Concepts: words of the vocabulary that an image's regions predict, and what fusion and output layer are given of them.

B: images, T = B·k: texts, L: tokens, P: regions, Dv: width of a region, D: hidden size, K: concepts,
N: concepts that become regions, V: vocabulary
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_fusion_captioner import FusionCaptionerConfig
from .losses import concept_loss


class ConceptHead(nn.Module):
    """
    Which concepts an image shows, from its regions (as a CNN is trained for the words of captions in Wu et al., 2016,
    section 3.1). Each region is scored, and scores are pooled half by their mean and half by a smooth maximum, the
    log-sum-exp of Pinheiro & Collobert (2015, eq. 6): many concepts fill a region, some the whole image.
    """

    # Of the smooth maximum: the larger, the nearer to the maximum
    SHARPNESS = 2.0
    # What the scores begin at: a concept is in few images
    STD, BIAS = 0.01, -3.5

    token_ids: torch.Tensor
    in_language: torch.Tensor

    def __init__(self, config: FusionCaptionerConfig, image_width: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(image_width)
        self.classifier = nn.Linear(image_width, len(config.concept_ids))
        for name, constant in self.constants().items():
            self.register_buffer(name, constant, persistent=False)

    def initialize(self) -> None:
        """Set the weights that the model's initialisation has for this head, and the constants."""
        init.normal_(self.classifier.weight, std=self.STD)
        init.constant_(self.classifier.bias, self.BIAS)
        for name, constant in self.constants().items():
            init.copy_(getattr(self, name), constant)

    def constants(self) -> dict[str, torch.Tensor]:
        """What follows from the config: `token_ids (K,)`, and `in_language`, 1 where a language has the concept,
        `(languages, K)`; a model without languages has one."""
        token_ids = torch.tensor(self.config.concept_ids, dtype=torch.long, device="cpu")
        ids: list[Any] = self.config.concept_token_ids or []
        lists = ids if self.config.languages else [ids]
        in_language = [torch.isin(token_ids, torch.tensor(each, dtype=torch.long, device="cpu")) for each in lists]
        return {"token_ids": token_ids, "in_language": torch.stack(in_language).float()}

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """From regions `(B, P, Dv)` to logits `(B, K)` in float32."""
        scores = self.classifier(self.norm(regions)).float()  # (B, P, K)
        # written out, since ONNX Runtime takes five times as long for `logsumexp` over regions
        peak = scores.detach().amax(dim=1, keepdim=True)
        smooth = (self.SHARPNESS * (scores - peak)).exp().mean(dim=1).log() / self.SHARPNESS + peak[:, 0]
        return (scores.mean(dim=1) + smooth) / 2

    def loss(
        self,
        logits: torch.Tensor,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_hidden_states: torch.Tensor | None,
    ) -> torch.Tensor:
        """[`concept_loss`] of logits `(B, K)` against [`targets`]; images whose `image_hidden_states` are all zero are
        hidden."""
        shown = None if image_hidden_states is None else image_hidden_states.flatten(1).any(dim=1)
        return concept_loss(logits, *self.targets(input_ids, labels, attention_mask, shown, len(logits)))

    @torch.no_grad()
    def targets(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        attention_mask: torch.Tensor | None,
        shown: torch.Tensor | None,
        images: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Which concepts the captions of each image name.

        Texts behind a prompt count nothing, since an answer does not describe its image. With several languages a
        concept counts for an image only if the language of one of its captions has it: an English caption does not
        tell that a German word is wrong.

        Args:
            input_ids, labels, attention_mask (`torch.LongTensor` of shape `(T, L)`): as the captioner takes them.
            shown (`torch.BoolTensor` of shape `(B,)`, *optional*): false where an image is hidden, which counts
                nothing.
            images (`int`): B.

        Returns:
            true concepts, and concepts that count, both of shape `(B, K)` and type bool.
        """
        language_ids = self.config.language_token_ids or []
        is_prompt = labels.eq(-100).long().cummin(dim=1).values.bool()  # up to the first label, which may never come
        if attention_mask is not None:
            is_prompt &= attention_mask.bool()
        is_caption = (labels != -100).any(dim=1) & (is_prompt.sum(dim=1) <= 1 + bool(language_ids))
        if shown is not None:
            is_caption &= shown.repeat_interleave(len(labels) // images)
        words = labels.masked_fill((labels == -100) | ~is_caption.unsqueeze(1), self.config.vocab_size)
        named = torch.zeros(images, self.config.vocab_size + 1, dtype=torch.bool, device=labels.device)
        true = named.scatter_(1, words.view(images, -1), True)[:, self.token_ids]
        languages = is_caption.unsqueeze(1)
        if language_ids:
            known = torch.tensor(language_ids, device=labels.device)
            languages = languages & (input_ids.unsqueeze(-1) == known).any(dim=1)  # (T, languages)
        of_image = languages.view(images, -1, languages.shape[1]).any(dim=1).float()
        return true, true | (of_image @ self.in_language > 0)

    def word_bias(self, logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """
        What concepts add to the scores of words: `concept_bias` times the concept's probability, and nothing to words
        that are no concept of the text's language.

        Args:
            logits (`torch.FloatTensor` of shape `(B, K)`): of the concepts.
            input_ids (`torch.LongTensor` of shape `(T, L)`): texts from their beginning on; one without the token of a
                language is in the first.

        Returns:
            `(T, V)` in float32: before the texts have any word, see [`unsaid`].
        """
        bias = self.config.concept_bias * logits.float().sigmoid()
        images, concepts = bias.shape
        texts = input_ids.shape[0]
        bias = bias.unsqueeze(1).expand(images, texts // images, concepts).reshape(texts, concepts)
        if self.config.languages:
            known = torch.tensor(self.config.language_token_ids, device=input_ids.device)
            spoken = (input_ids.unsqueeze(-1) == known).any(dim=1)  # (T, languages)
            spoken = torch.cat((spoken[:, :1] | ~spoken.any(dim=1, keepdim=True), spoken[:, 1:]), dim=1)
            bias = bias * (spoken.to(bias.dtype) @ self.in_language.to(bias.dtype))
        return bias.new_zeros(texts, self.config.vocab_size).index_copy(1, self.token_ids, bias)


def unsaid(bias: torch.Tensor, input_ids: torch.Tensor, texts: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """
    What is added to the scores of the next word at some places: nothing to a word that the text has up to there, so
    that a thing is named once.

    Args:
        bias (`torch.FloatTensor` of shape `(T, V)`): of each text before these tokens.
        input_ids (`torch.LongTensor` of shape `(T, L)`).
        texts, places (`torch.LongTensor` of shape `(N,)`): rows and columns of `input_ids`.

    Returns:
        `(N, V)`.
    """
    tokens, places = input_ids[texts], places.unsqueeze(1)
    is_before = torch.arange(input_ids.shape[1], device=input_ids.device) <= places
    return bias[texts].scatter(1, tokens.where(is_before, tokens.gather(1, places)), 0.0)


class ConceptRegions(nn.Module):
    """
    The likeliest concepts as further regions (in the place of LightCap's concepts, Wang et al., 2023, section 3.2):
    the word's embedding, normalised, times the concept's probability, and a vector that tells words from places. The
    probability passes the gradient of whatever is learned to the scores; the choice itself has none.
    """

    def __init__(self, config: FusionCaptionerConfig) -> None:
        super().__init__()
        self.count = config.num_concepts
        self.norm = nn.LayerNorm(config.hidden_size)
        # as long as a normalised word, so that its share of the sum is the probability, whatever the fusion's norm
        self.type_embedding = nn.Parameter(torch.empty(config.hidden_size))

    def initialize(self) -> None:
        """Set the weights that the model's initialisation has for these regions."""
        init.normal_(self.type_embedding)

    def forward(self, logits: torch.Tensor, token_ids: torch.Tensor, embedding: nn.Module) -> torch.Tensor:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(B, K)`), token_ids (`torch.LongTensor` of shape `(K,)`): of all
                concepts.
            embedding: the word embedding, which is learned from here too.

        Returns:
            regions `(B, N, D)`, the likeliest concept first.
        """
        best, places = logits.topk(self.count, dim=1)  # (B, N)
        if torch.compiler.is_exporting():
            # of all concepts first, so that an export holds their words and not the whole vocabulary's
            words = self.norm(embedding(token_ids))[places]
        else:
            words = self.norm(embedding(token_ids[places]))
        return best.sigmoid().unsqueeze(-1).to(words.dtype) * words + self.type_embedding
