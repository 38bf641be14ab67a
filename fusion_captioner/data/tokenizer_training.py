"""A tokenizer of one's own, trained from captions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from string import ascii_letters, ascii_lowercase, digits, punctuation

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fusion_captioner.metrics.tokenization import CHARACTER_SCRIPTS, CONTRACTIONS, folding
from fusion_captioner.processing_fusion_captioner import language_token

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"

# Full stops: Western, Chinese, of Hindi, Urdu, Burmese, Khmer, Tibetan, Amharic and Armenian.
_FULL_STOPS = "." + "".join(map(chr, (0x3002, 0x964, 0x965, 0x6D4, 0x104B, 0x17D4, 0xF0D, 0x1362, 0x589)))

# A word keeps its hyphens, apostrophes and decimal points (t-shirt, man's, 3.5); any other mark is a token of its
# own, and so is every character of the scripts of Chinese and Japanese.
_IN_WORD = rf"\w'\-\x{{200c}}\x{{200d}}&&[^{CHARACTER_SCRIPTS}]"
_WORD = (
    rf"[{CHARACTER_SCRIPTS}]\p{{M}}*"
    rf"|[{_IN_WORD}]+(?:(?<=\d)[.,:]\d[{_IN_WORD}]*)*"
    r"|[^\w\s]"
)

# Where the WordPiece decoder, which joins words with spaces, must take one away again: before closing marks, after
# opening marks, inside a pair of quotation marks (an opening one has an odd number of them behind it), between
# characters of Chinese and Japanese and next to their punctuation.
_NO_SPACE = (
    rf"(?<=[{CHARACTER_SCRIPTS}]) (?=[{CHARACTER_SCRIPTS}])",
    r" (?=[\x{3001}-\x{303f}&&\p{P}])|(?<=[\x{3001}-\x{303f}&&\p{P}]) ",
    r" (?=[.,!?;:%)\]}])",
    r"(?<=[(\[{#$]) ",
    r'(?<=") (?=[^"]*"(?:[^"]*"[^"]*")*[^"]*\z)',
    r' (?="[^"]*(?:"[^"]*"[^"]*)*\z)',
)


def train_tokenizer(
    captions: Iterable[str],
    kind: str = "wordpiece",
    vocab_size: int = 4000,
    lower_case: bool = True,
    min_frequency: int = 2,
    model_max_length: int = 512,
    languages: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer from captions; the same captions give the same vocabulary, whatever their order.

    Text is normalised first: Unicode NFKC, one kind of space and of apostrophe, no space before punctuation (captions
    often come tokenised: "the dog 's ball ."), lower case, and no full stop at the end, which costs a token and which
    no caption metric counts. Full stops between sentences stay.

    Args:
        captions: at least one text; read once.
        kind: `"wordpiece"` (Schuster & Nakajima, 2012; words and their pieces, as in BERT), or `"byte_bpe"`
            (byte-level byte-pair encoding, Sennrich et al., 2016; Radford et al., 2019), which knows every character
            of every language.
        vocab_size: entries at most, special tokens included; a small corpus fills fewer.
        lower_case: whether case is dropped.
        min_frequency: how often two pieces must meet to become one.
        model_max_length: longest text in tokens, by which `FusionCaptionerProcessor` measures prompts and captions.
        languages: codes such as `"en"`; each gets a special token, `<|en|>`, which captions in it begin with.

    Returns:
        a fast tokenizer with `<pad>` (id 0), `<bos>`, `<eos>` and, for WordPiece, `<unk>`; the tokens of languages are
        the last. Calling it puts BOS and EOS
        around a text; padding and truncation are on the right.

    Raises:
        ValueError: there are no captions, one is no text, or `kind`, `vocab_size` or another number cannot be used.
    """
    if kind not in ("wordpiece", "byte_bpe"):
        raise ValueError(f"`kind` ({kind!r}) must be 'wordpiece' or 'byte_bpe'.")
    for name, number in (("min_frequency", min_frequency), ("model_max_length", model_max_length)):
        if number < 1:
            raise ValueError(f"`{name}` ({number}) must be at least 1.")
    language_tokens = [language_token(language) for language in languages]
    normalizer = _normalizer(lower_case)
    texts = _normalized(captions, normalizer)
    vocab_size -= len(language_tokens)
    if kind == "wordpiece":
        backend = _train_wordpiece(texts, vocab_size, min_frequency, lower_case)
    else:
        backend = _train_byte_bpe(texts, vocab_size, min_frequency)
    if backend.get_vocab_size() > vocab_size:
        needed = backend.get_vocab_size() + len(language_tokens)
        raise ValueError(
            f"`vocab_size` ({vocab_size + len(language_tokens)}) is too small: special tokens and single characters "
            f"alone take {needed}; raise it, or `min_frequency` to leave rare characters out."
        )
    backend.normalizer = normalizer  # only now: the texts were normalised already
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} $B {EOS}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (BOS, EOS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK if kind == "wordpiece" else None,
        **({"extra_special_tokens": language_tokens} if language_tokens else {}),
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
    )


def _normalizer(lower_case: bool) -> normalizers.Normalizer:
    steps = [
        *folding(lower_case, joiners=True),
        normalizers.Replace(
            Regex(rf" (?=(?:{CONTRACTIONS})(?![\w\x{{200c}}\x{{200d}}&&[^{CHARACTER_SCRIPTS}]]))"), ""
        ),
        normalizers.Replace(Regex(r" (?=[.,!?;:])"), ""),
        normalizers.Replace(Regex(rf"[ {_FULL_STOPS}]+\z"), ""),
        normalizers.Strip(),
    ]
    return normalizers.Sequence(steps)


def _normalized(captions: Iterable[str], normalizer: normalizers.Normalizer) -> list[str]:
    if isinstance(captions, str):
        raise ValueError(f"`captions` ({captions[:40]!r}) must be a list of texts, not one text.")
    texts = []
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"`captions[{index}]` ({caption!r}) must be a text, not a {type(caption).__name__}.")
        texts.append(normalizer.normalize_str(caption))
    if not any(texts):
        raise ValueError(f"`captions` ({len(texts)} of them) must hold at least one text with a word in it.")
    return texts


def _train_wordpiece(texts: list[str], vocab_size: int, min_frequency: int, lower_case: bool) -> Tokenizer:
    counts = Counter(chain.from_iterable(texts))
    # A character rarer than any piece may be, such as an emoji in a million captions, would fill entries of its own
    rare = {ord(character): " " for character, count in counts.items() if count < min_frequency}
    letters = ascii_lowercase if lower_case else ascii_letters
    characters = {*letters, *digits, *punctuation} | {character for character in counts if ord(character) not in rare}
    # In a fixed order and given as special tokens: left alone, the trainer numbers pieces in the order of a hash
    # table, and breaks ties by number, so that no two runs agree. What can stand inside a word also needs its inner
    # form.
    pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    first_entries = [PAD, BOS, EOS, UNK, *sorted(characters - {" "})]
    first_entries += [
        f"##{character}"
        for character in sorted(characters)
        if len(pre_tokenizer.pre_tokenize_str(f"1{character}1")) == 1
    ]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=first_entries, show_progress=False
    )
    scratch = Tokenizer(models.WordPiece(unk_token=UNK))
    scratch.pre_tokenizer = pre_tokenizer
    scratch.train_from_iterator((text.translate(rare) for text in texts), trainer)

    # Built anew, without those special tokens
    backend = Tokenizer(models.WordPiece(scratch.get_vocab(), unk_token=UNK, max_input_chars_per_word=1000))
    backend.add_special_tokens([PAD, BOS, EOS, UNK])
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            *(decoders.Replace(Regex(pattern), "") for pattern in _NO_SPACE),
        ]
    )
    return backend


def _train_byte_bpe(texts: list[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    # The space before the first word makes its tokens the same as inside a sentence; the decoder takes it away again
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend
