"""A tokenizer of one's own, trained from captions."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def train_tokenizer(
    captions: Iterable[str],
    kind: str = "wordpiece",
    vocab_size: int = 4000,
    lower_case: bool = True,
    min_frequency: int = 2,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """
    Train a tokenizer from captions. The full stop that ends a caption is dropped: it costs a token and says nothing.

    Args:
        captions: at least one text.
        kind: `"wordpiece"` (Schuster & Nakajima, 2012), or `"byte_bpe"` (Radford et al., 2019), which has no unknown
            characters.
        vocab_size: entries, special tokens included.
        lower_case: whether case is dropped.
        min_frequency: how often a pair must occur to become an entry.
        model_max_length: longest text in tokens.

    Returns:
        a fast tokenizer with `<pad>` (id 0), `<bos>`, `<eos>` and `<unk>`.

    Raises:
        ValueError: if there are no captions, or `kind` or `vocab_size` cannot be used.
    """
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise ValueError("a tokenizer cannot be trained: there are no `captions` with text.")
    if kind not in ("wordpiece", "byte_bpe"):
        raise ValueError(f"`kind` ({kind!r}) must be 'wordpiece' or 'byte_bpe'.")
    smallest = len(SPECIAL_TOKENS) + (256 if kind == "byte_bpe" else 64)
    if vocab_size < smallest:
        raise ValueError(f"`vocab_size` ({vocab_size}) is too small for {kind!r}; give at least {smallest}.")

    cleaning: list[normalizers.Normalizer] = [normalizers.NFKC(), normalizers.Replace(Regex(r"[\s.]+$"), "")]
    if lower_case:
        cleaning.append(normalizers.Lowercase())
    settings = {"vocab_size": vocab_size, "min_frequency": min_frequency, "special_tokens": list(SPECIAL_TOKENS)}
    trainer: trainers.Trainer
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=True)
        trainer = trainers.WordPieceTrainer(show_progress=False, **settings)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings
        )
    tokenizer.normalizer = normalizers.Sequence([*cleaning, normalizers.Strip()])
    # sorted: entries of equal frequency then do not depend on the order in which captions come
    tokenizer.train_from_iterator(sorted(captions), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
