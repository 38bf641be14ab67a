"""Processor: rows to continue and rows to learn from, chats, decoding, saving, loading with and without the
package."""

import base64
import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast, ResNetConfig, pipeline

from fusion_captioner.configuration_fusion_captioner import FusionCaptionerConfig
from fusion_captioner.data.tokenizer_training import train_tokenizer
from fusion_captioner.image_processing_fusion_captioner import FusionCaptionerImageProcessor
from fusion_captioner.image_text_retrieval import FusionCaptionerForImageTextRetrieval
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import FusionCaptionerProcessor
from fusion_captioner.sequence_classification import FusionCaptionerForSequenceClassification

CAPTIONS = ["a man's dog runs on the beach", "two red dogs", "question: what colour is the dog? answer: red"] * 4


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def made_processor(kind: str = "wordpiece", **settings: Any) -> FusionCaptionerProcessor:
    tokenizer = train_tokenizer(CAPTIONS, kind, vocab_size=400, **settings)
    return FusionCaptionerProcessor(FusionCaptionerImageProcessor(size=16), tokenizer)


def bert_like_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(CAPTIONS, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        clean_up_tokenization_spaces=True,
    )


def gpt2_like_tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
    """One special token, and spaces that belong to the words behind them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CAPTIONS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", **special_tokens)


def text_of(processor: FusionCaptionerProcessor, ids: Any) -> str:
    return processor.decode(ids, skip_special_tokens=True)


# Choices


def test_each_choice_is_a_row_behind_its_question_and_missing_ones_are_padding():
    processor = made_processor()
    choices = [["red", "two red dogs"], ["the beach"]]
    batch = processor(
        images=[noise(), noise(1)], text=["what colour is it?", "where?"], choices=choices, return_tensors="pt"
    )
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert "labels" not in batch
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[:2] == (2, 2)
    assert not batch["attention_mask"][1, 1].any()
    for question, number, text in ((0, 0, "what colour is it? red"), (1, 0, "where? the beach")):
        row = batch["input_ids"][question, number][batch["attention_mask"][question, number].bool()].tolist()
        assert (row[0], row[-1]) == (processor.bos_token_id, processor.eos_token_id)
        assert row == processor(text=text, add_eos=True)["input_ids"][0]
    assert batch["attention_mask"][:, :, 0].tolist() == [[1, 1], [1, 0]]  # padded on the right


def test_one_question_or_none_serves_all():
    processor = made_processor()
    alone = processor(choices=[["red", "dogs"], ["beach", "dog"]], return_tensors="pt")
    assert alone["input_ids"].shape[:2] == (2, 2)
    asked = processor(text="what?", choices=[["red", "dogs"], ["beach", "dog"]], return_tensors="pt")
    added = asked["attention_mask"].sum(dim=-1) - alone["attention_mask"].sum(dim=-1)
    assert (added == added[0, 0]).all() and added[0, 0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choices": []}, r"`choices` \(\[\]\) must be a list"),
        ({"choices": [["red"], []]}, r"`choices\[1\]` \(\[\]\) must be a list of at least one"),
        ({"choices": ["red"]}, r"`choices\[0\]` \('red'\) must be a list"),
        ({"choices": [["red", " "]]}, r"`choices\[0\]\[1\]` \(' '\) must be a text that is not empty"),
        ({"choices": [["red"]], "text": ["a", "b"]}, "`text` holds 2 questions for `choices` of 1"),
        ({"choices": [["red"]], "images": [noise(), noise()]}, "those of 1 questions for 2 `images`"),
        ({"choices": [["red"]], "text_target": "red"}, "`choices` and `text_target`"),
        ({"choices": [["red"]], "text": "what?", "add_eos": True}, "`add_eos`"),
    ],
)
def test_choices_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        made_processor()(**arguments)
    assert "\n" not in str(caught.value)


# Rows to continue


def test_images_alone_give_pixels_alone():
    batch = made_processor()(images=[noise(), noise(1)], return_tensors="pt")
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("text", ["", ["", ""]])
def test_empty_prompt_is_a_lone_bos(text: Any):
    processor = made_processor()
    batch = processor(images=[noise(), noise(1)], text=text, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[processor.bos_token_id]] * 2
    assert batch["attention_mask"].tolist() == [[1], [1]]


def test_prompts_begin_with_bos_and_are_padded_on_the_left():
    processor = made_processor()
    batch = processor(text=["two dogs", "a man runs on the beach"], return_tensors="pt")
    assert list(batch) == ["input_ids", "attention_mask"]
    assert batch["input_ids"].dtype == torch.int64
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], ["two dogs", "a man runs on the beach"]):
        kept = ids[mask.bool()]
        assert mask.tolist() == sorted(mask.tolist())  # zeros first
        assert kept[0] == processor.bos_token_id
        assert processor.eos_token_id not in kept
        assert text_of(processor, kept) == text


def test_several_prompts_an_image():
    processor = made_processor()
    prompts = ["a", "two", "the", "red"]
    batch = processor(images=[noise(), noise(1)], text=prompts, return_tensors="np")
    assert len(batch["pixel_values"]) == 2
    assert [text_of(processor, row) for row in batch["input_ids"]] == prompts


def test_add_eos_ends_each_text():
    processor = made_processor()
    batch = processor(text=["two dogs", "a man runs on the beach"], add_eos=True, return_tensors="pt")
    lengths = batch["attention_mask"].sum(-1)
    assert (batch["input_ids"][torch.arange(2), lengths - 1] == processor.eos_token_id).all()
    assert (batch["input_ids"][:, 0] == processor.bos_token_id).all()  # padding is on the right
    assert batch["input_ids"][1].tolist() == processor.tokenizer("a man runs on the beach")["input_ids"]


def test_padding_choices():
    processor = made_processor()
    texts = ["two dogs", "two red dogs"]
    assert [len(row) for row in processor(text=texts, padding=False)["input_ids"]] == [3, 4]
    assert [len(row) for row in processor(text=texts)["input_ids"]] == [4, 4]
    assert [len(row) for row in processor(text=texts, padding="max_length", max_length=9)["input_ids"]] == [9, 9]
    assert [len(row) for row in processor(text=texts, pad_to_multiple_of=8)["attention_mask"]] == [8, 8]


# Rows to learn from


def test_learnable_rows_hold_prompt_caption_and_eos_and_label_the_last_two():
    processor = made_processor()
    prompts, captions = ["question: what?", ""], ["two red dogs", "a man's dog runs on the beach"]
    batch = processor(
        images=[noise(), noise(1)], text=prompts, text_target=captions, return_tensors="pt", max_length=64
    )
    assert list(batch) == ["pixel_values", "input_ids", "attention_mask", "labels"]
    for row in range(2):
        ids, mask, labels = (batch[name][row] for name in ("input_ids", "attention_mask", "labels"))
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padded on the right
        assert ids[0] == processor.bos_token_id
        assert ids[mask.bool()][-1] == processor.eos_token_id
        assert text_of(processor, ids) == f"{prompts[row]} {captions[row]}".strip()
        learned = labels != -100
        assert (labels[learned] == ids[learned]).all()
        assert text_of(processor, labels[learned]) == captions[row]
        assert learned.sum() == len(processor.tokenizer(captions[row])["input_ids"]) - 1  # with EOS, without BOS


def test_prompt_of_a_learnable_row_is_the_prompt_that_is_continued():
    processor = made_processor()
    prompt = "question: what colour is the dog? answer:"
    learnable = processor(text=prompt, text_target="red", return_tensors="pt")["input_ids"][0]
    continued = processor(text=prompt, return_tensors="pt")["input_ids"][0]
    assert learnable[: len(continued)].tolist() == continued.tolist()


@pytest.mark.parametrize(
    "text_target", [["two", "red", "dogs", "a"], [["two", "red"], ["dogs", "a"]], (("two", "red"), ("dogs", "a"))]
)
def test_k_captions_of_an_image_stand_together(text_target: Any):
    processor = made_processor()
    batch = processor(images=[noise(), noise(1)], text=["man", "beach"], text_target=text_target)
    texts = [text_of(processor, ids) for ids in batch["input_ids"]]
    assert texts == ["man two", "man red", "beach dogs", "beach a"]
    assert len(batch["pixel_values"]) == 2
    alone = processor(text_target=text_target)["labels"]
    assert [text_of(processor, [i for i in row if i >= 0]) for row in alone] == ["two", "red", "dogs", "a"]


def test_long_captions_lose_their_end_and_keep_eos():
    processor = made_processor()
    batch = processor(text="a", text_target=["two red dogs", "red"], max_length=4)
    assert text_of(processor, batch["input_ids"][0]) == "a two"
    assert batch["labels"][0][-1] == batch["input_ids"][0][-1] == processor.eos_token_id
    assert text_of(processor, batch["input_ids"][1]) == "a red"
    with pytest.raises(ValueError, match=r"'two red dogs' of 6 tokens, .* makes a row longer than the maximum of 4"):
        processor(text="a", text_target="two red dogs", max_length=4, truncation=False)


def test_prompts_are_never_cut_unasked():
    processor = made_processor(model_max_length=5)
    with pytest.raises(
        ValueError, match=r"'two red dogs on the beach' of 7 tokens, .* maximum of 5; shorten it or raise"
    ):
        processor(text=["two", "two red dogs on the beach"])
    with pytest.raises(ValueError, match=r"of 4 tokens, .* leaves no room for its caption within the maximum of 5"):
        processor(text="two red dogs", text_target="red")
    assert len(processor(text="two red dogs on the beach", max_length=7)["input_ids"][0]) == 7
    cut = processor(text="two red dogs on the beach", truncation=True, add_eos=True)["input_ids"][0]
    assert text_of(processor, cut) == "two red dogs"
    assert (len(cut), cut[-1]) == (5, processor.eos_token_id)


def test_repeated_truncated_rows_stay_within_the_limit():
    processor = made_processor()
    batch = processor(text_target=CAPTIONS, max_length=3, return_tensors="pt")
    assert batch["input_ids"].shape == (len(CAPTIONS), 3)
    assert (batch["input_ids"][:, -1] == processor.eos_token_id).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to process"),
        ({"text": []}, r"`text` \(\[\]\) must be a text or a list of at least one"),
        ({"text_target": []}, "`text_target`"),
        ({"text": ["a", None]}, r"`text\[1\]` \(None\) must be a text"),
        ({"text": 7}, r"`text` \(7\)"),
        ({"text_target": ["a", "  "]}, r"`text_target\[1\]` is empty"),
        ({"text": ["a", "b", "c"], "text_target": ["a", "b"]}, "3 prompts for 2 captions"),
        ({"text_target": [["a", "b"], ["a"]]}, "1 to 2 captions per image"),
        ({"images": [noise()] * 2, "text_target": ["a"] * 3}, "3 captions for 2 `images`"),
        ({"images": [noise()] * 2, "text_target": [["a"]] * 3}, "captions of 3 images for 2 `images`"),
        ({"images": [noise()] * 2, "text": ["a"] * 3}, "3 prompts for 2 `images`"),
        ({"images": []}, "`images` is empty"),
        ({"images": noise(), "add_eos": True}, "`add_eos`"),
        ({"text_target": "a", "add_eos": True}, "`add_eos`"),
        ({"text": "a", "padding": "left"}, r"`padding` \('left'\)"),
        ({"text": "a", "max_length": 0}, r"`max_length` \(0\)"),
        ({"text": "a", "colour": 1}, "`colour` is no argument"),
        ({"videos": [noise()]}, "`videos` cannot be processed"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        made_processor()(**arguments)


def test_image_settings_of_a_call():
    processor = made_processor()
    assert processor(images=noise(), size=8)["pixel_values"].shape == (1, 3, 8, 8)
    assert processor(images=noise(), images_kwargs={"size": 8})["pixel_values"].shape == (1, 3, 8, 8)
    assert processor(images=[[noise(), noise()]], text="a")["pixel_values"].shape == (1, 2, 3, 16, 16)


# Any tokenizer


def test_bert_like_tokenizer_begins_with_cls_and_ends_with_sep():
    tokenizer = bert_like_tokenizer()
    processor = FusionCaptionerProcessor(FusionCaptionerImageProcessor(size=16), tokenizer)
    assert (processor.bos_token_id, processor.eos_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert "token_type_ids" not in processor.model_input_names
    batch = processor(text="two", text_target="a man's dog")
    assert batch["input_ids"][0][0] == tokenizer.cls_token_id
    assert batch["labels"][0][-1] == tokenizer.sep_token_id
    assert text_of(processor, batch["input_ids"][0]) == "two a man's dog"


def test_gpt2_like_tokenizer_begins_with_eos_and_keeps_spaces():
    tokenizer = gpt2_like_tokenizer(pad_token="<|end|>")
    processor = FusionCaptionerProcessor(FusionCaptionerImageProcessor(size=16), tokenizer)
    assert processor.bos_token_id == processor.eos_token_id == tokenizer.eos_token_id
    batch = processor(text=["two", ""], text_target=["red dogs", "a man's dog runs on the beach"], return_tensors="pt")
    assert text_of(processor, batch["input_ids"][0]) == "two red dogs"
    assert text_of(processor, batch["input_ids"][1]) == "a man's dog runs on the beach"
    # EOS is learned although padding is the same token
    learned = batch["labels"][0] != -100
    assert batch["labels"][0][learned][-1] == tokenizer.eos_token_id
    assert learned.sum() < batch["attention_mask"][0].sum() < len(learned)


def test_tokenizer_without_padding_or_end_is_refused():
    image_processor = FusionCaptionerImageProcessor(size=16)
    with pytest.raises(ValueError, match=r"no `pad_token`; set one, for example by `tokenizer\.pad_token = "):
        FusionCaptionerProcessor(image_processor, gpt2_like_tokenizer())
    tokenizer = gpt2_like_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither `eos_token` nor `sep_token`"):
        FusionCaptionerProcessor(image_processor, tokenizer)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
def test_captions_decode_cleanly(kind: str):
    processor = made_processor(kind)
    rows = processor(text_target=["A man 's dog .", "two red dogs"], return_tensors="pt")["input_ids"]
    expected = ["a man's dog", "two red dogs"]
    assert processor.batch_decode(rows, skip_special_tokens=True) == expected
    assert processor.post_process_image_text_to_text(rows) == expected
    assert processor.decode(rows[0], skip_special_tokens=True) == expected[0]


# Chats


def turn(role: str, text: str | None = None, *images: Any) -> dict[str, Any]:
    content = [{"type": "image", "image": image} for image in images]
    return {"role": role, "content": content + ([{"type": "text", "text": text}] if text else [])}


@pytest.mark.parametrize(
    ("chat", "settings", "expected"),
    [
        ([turn("user", None, noise())], {"add_generation_prompt": True}, ""),
        ([turn("user", "What is it?", noise())], {"add_generation_prompt": True}, "question: What is it? answer:"),
        ([turn("user", "What is it?")], {}, "question: What is it?"),
        ([{"role": "user", "content": "What?"}], {"add_generation_prompt": True}, "question: What? answer:"),
        (
            [
                turn("system", "be brief"),
                turn("user", "What?", noise()),
                turn("assistant", "a dog"),
                turn("user", "Red?"),
            ],
            {"add_generation_prompt": True},
            "be brief question: What? answer: a dog question: Red? answer:",
        ),
        (
            [turn("user", None, noise()), turn("assistant", "a dog"), turn("user", "Red?")],
            {"add_generation_prompt": True},
            "a dog question: Red? answer:",
        ),
        (
            [turn("user", "What?", noise()), turn("assistant", "two red")],
            {"continue_final_message": True},
            "question: What? answer: two red",
        ),
        ([turn("user", None, noise()), turn("assistant", "two")], {"continue_final_message": True}, "two"),
    ],
)
def test_chat_template(chat: list[dict[str, Any]], settings: dict[str, Any], expected: str):
    assert made_processor().apply_chat_template(chat, **settings) == expected


def test_unknown_role_is_refused():
    with pytest.raises(Exception, match="the role of a message is 'tool'"):
        made_processor().apply_chat_template([turn("tool", "7")])


def test_chats_become_model_inputs(tmp_path: Path):
    processor = made_processor()
    Image.fromarray(noise()).save(tmp_path / "noise.png")
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    one = processor.apply_chat_template([turn("user", "what colour?", noise())], **settings)
    assert {name: tuple(tensor.shape[:1]) for name, tensor in one.items()} == {
        "pixel_values": (1,),
        "input_ids": (1,),
        "attention_mask": (1,),
    }
    assert text_of(processor, one["input_ids"][0]) == "question: what colour? answer:"

    content = (tmp_path / "noise.png").read_bytes()
    encoded = base64.b64encode(content).decode()
    same = [
        {"type": "image", "path": str(tmp_path / "noise.png")},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "image", "image": Image.open(BytesIO(content))},
    ]
    chats = [[{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}] for image in same]
    batch = processor.apply_chat_template(chats, **settings)
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    for pixels in batch["pixel_values"]:
        torch.testing.assert_close(pixels, one["pixel_values"][0])

    frames = processor.apply_chat_template([turn("user", "what?", noise(), noise(1))], **settings)
    assert frames["pixel_values"].shape == (1, 2, 3, 16, 16)


def test_control_tokens_of_users_can_be_made_plain_text():
    processor = made_processor()
    chat = [turn("user", "<eos> dogs")]
    settings = {"tokenize": True, "return_dict": True}
    raw = processor.apply_chat_template(chat, **settings)["input_ids"][0]
    clean = processor.apply_chat_template(chat, sanitize_control_tokens=True, **settings)["input_ids"][0]
    assert processor.eos_token_id in raw
    assert processor.eos_token_id not in clean
    assert clean[0] == processor.bos_token_id


def test_pipeline_takes_images_and_chats():
    processor = made_processor()
    torch.manual_seed(0)
    config = FusionCaptionerConfig(
        vision_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        num_attention_heads=2,
        projection_dim=8,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.bos_token_id,
        eos_token_id=processor.eos_token_id,
    )
    model = FusionCaptionerForConditionalGeneration(config).eval()
    captioner = pipeline("image-text-to-text", model=model, processor=processor)
    picture = Image.fromarray(noise())
    settings = {"max_new_tokens": 5}
    inputs = processor(images=picture, text="", return_tensors="pt")
    expected = processor.batch_decode(model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True)[0]
    assert captioner(picture, text="", **settings)[0]["generated_text"] == expected
    batch = captioner([picture, picture], text=["", ""], **settings)
    assert [result["generated_text"] for result in batch] == [expected, expected]
    chat = [turn("user", "what colour?", picture)]
    answer = captioner(text=chat, **settings)[0]["generated_text"]
    assert answer[:-1] == chat
    assert answer[-1]["role"] == "assistant"
    assert "what colour" not in answer[-1]["content"]
    assert captioner(text=[turn("user", None, picture)], **settings)[0]["generated_text"][-1]["content"] == expected


# Saving and loading


def assert_equal_processors(one: FusionCaptionerProcessor, other: FusionCaptionerProcessor) -> None:
    arguments: dict[str, Any] = {"images": noise(), "text": "two", "text_target": "red dogs", "return_tensors": "pt"}
    for (name, value), (other_name, other_value) in zip(
        one(**arguments).items(), other(**arguments).items(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(value, other_value)
    assert one.chat_template == other.chat_template


def test_saves_and_loads(tmp_path: Path):
    processor = made_processor(model_max_length=33)
    processor.image_processor.resize_mode = "crop"
    processor.save_pretrained(tmp_path)
    for loaded in (FusionCaptionerProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is FusionCaptionerProcessor
        assert loaded.image_processor.resize_mode == "crop"
        assert loaded.tokenizer.model_max_length == 33
        assert_equal_processors(loaded, processor)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is FusionCaptionerImageProcessor
    assert_equal_processors(pickle.loads(pickle.dumps(processor)), processor)  # as data loader workers get it


def test_another_chat_template_is_kept(tmp_path: Path):
    processor = FusionCaptionerProcessor(
        FusionCaptionerImageProcessor(size=16), train_tokenizer(CAPTIONS), chat_template="{{ messages | length }}"
    )
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.apply_chat_template([turn("user", "what?")]) == "1"


def test_the_code_is_saved_too(tmp_path: Path):
    """What a fresh process without the package makes of it, `tests/hub` shows."""
    made_processor().save_pretrained(tmp_path)
    shipped = {
        "image_decoding.py",
        "image_downloads.py",
        "image_loading.py",
        "image_processing_fusion_captioner.py",
        "processing_fusion_captioner.py",
        "text_rows.py",
    }
    assert {path.name for path in tmp_path.glob("*.py")} == shipped
    auto_map = json.loads((tmp_path / "processor_config.json").read_text())["auto_map"]
    assert auto_map["AutoProcessor"] == "processing_fusion_captioner.FusionCaptionerProcessor"


@pytest.mark.real_data
def test_real_photo_and_its_captions(real_data: Path):
    dataset = json.loads((real_data / "flickr8k" / "dataset_flickr8k.json").read_text())["images"][0]
    captions = [sentence["raw"] for sentence in dataset["sentences"]]
    processor = FusionCaptionerProcessor(FusionCaptionerImageProcessor(), train_tokenizer(captions))
    batch = processor(
        images=real_data / "flickr8k" / "images" / dataset["filename"], text_target=captions, return_tensors="pt"
    )
    assert batch["pixel_values"].shape == (1, 3, 224, 224)
    decoded = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert decoded == [caption.lower().removesuffix(".").strip() for caption in captions]


def test_settings_may_stand_in_groups() -> None:
    processor, texts = made_processor(), ["two red dogs", "dog"]
    flat = processor(images=[noise()] * 2, text=texts, padding="max_length", max_length=9, size=8, return_tensors="pt")
    grouped = processor(
        images=[noise()] * 2,
        text=texts,
        text_kwargs={"padding": "max_length", "max_length": 9},
        images_kwargs={"size": 8},
        common_kwargs={"return_tensors": "pt"},
    )
    assert grouped.keys() == flat.keys()
    assert all(torch.equal(grouped[name], flat[name]) for name in flat)
    for settings in ({"size": 8, "images_kwargs": {"size": 8}}, {"max_length": 9, "text_kwargs": {"max_length": 9}}):
        with pytest.raises(ValueError, match=r"`(size|max_length)` is given twice"):
            processor(images=noise(), text="dog", **settings)
    for group in ("text_kwargs", "images_kwargs", "common_kwargs"):
        with pytest.raises(ValueError, match="`colour` is no argument"):
            processor(images=noise(), text="dog", **{group: {"colour": 1}})


def test_padding_stands_on_the_side_that_is_asked_for() -> None:
    processor, texts = made_processor(), ["two red dogs", "dog"]
    pad = processor.tokenizer.pad_token_id
    for settings, side in (({}, 0), ({"padding_side": "left"}, 0), ({"padding_side": "right"}, -1)):
        assert processor(text=texts, **settings)["input_ids"][1][side] == pad
    learned = processor(text_target=texts, padding_side="left")
    assert learned["input_ids"][1][0] == pad
    assert learned["labels"][1][0] == -100
    with pytest.raises(ValueError, match=r"`padding_side` \('top'\) must be 'left' or 'right'"):
        processor(text=texts, padding_side="top")


def test_settings_of_other_processors_may_be_left_unset() -> None:
    processor = made_processor()
    expected = processor(images=noise(), text="dog")
    found = processor(
        images=noise(), text="dog", stride=0, return_token_type_ids=False, do_pad=None, verbose=True, videos_kwargs={}
    )
    assert found["input_ids"] == expected["input_ids"]
    assert "attention_mask" not in processor(text="dog", return_attention_mask=False)
    for name in ("return_token_type_ids", "do_pad"):
        with pytest.raises(ValueError, match=f"`{name}` "):
            processor(images=noise(), text="dog", **{name: True})
    pixels = np.moveaxis(noise(), -1, 0)
    first = processor(images=pixels, input_data_format="channels_first")["pixel_values"]
    np.testing.assert_array_equal(first, processor(images=noise())["pixel_values"])


def test_the_words_of_the_assistant_are_marked() -> None:
    processor = made_processor()
    chats = [
        [turn("user", "what?", noise()), turn("assistant", "two red dogs"), turn("user", "red?")],
        [turn("user", "what?", noise()), turn("assistant", "dog")],
    ]
    output = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    for row, words in enumerate(("two red dogs", "dog")):
        said = output["input_ids"][row][output["assistant_masks"][row].bool()]
        assert processor.decode(said) == words
    with pytest.raises(ValueError, match=r"`return_offsets_mapping` \(True\) is for `text` alone"):
        processor(text_target="two", return_offsets_mapping=True)


@pytest.mark.parametrize("given", ["a folder", "parts"])
@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("zero-shot-image-classification", FusionCaptionerForImageTextRetrieval),
        ("image-classification", FusionCaptionerForSequenceClassification),
    ],
)
def test_what_a_pipeline_of_parts_saves_loads_without_a_question(
    task: str, head: Any, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any) -> str:
        pytest.fail("transformers asks whether to run code")

    monkeypatch.setattr("builtins.input", ask)
    processor = made_processor()
    processor.chat_template = "{{ '' }}"
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    config = FusionCaptionerConfig(
        vision_config=vision, vocab_size=len(processor.tokenizer), hidden_size=16, contrastive_loss_weight=1.0
    )
    model = head(config).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    if given == "parts":
        parts = AutoImageProcessor.from_pretrained(tmp_path / "model"), processor.tokenizer
        first = pipeline(task, model=model, image_processor=parts[0], tokenizer=parts[1])
    else:
        first = pipeline(task, model=str(tmp_path / "model"))
    first.save_pretrained(tmp_path / "saved")
    loaded = pipeline(task, model=str(tmp_path / "saved"))
    asked = {"candidate_labels": ["two dogs", "the beach"]} if task.startswith("zero") else {}
    photo = Image.fromarray(noise())
    # sums round differently where weights lie in memory differently
    rounded = [{**each, "score": pytest.approx(each["score"], abs=1e-6)} for each in first(photo, **asked)]
    assert loaded(photo, **asked) == rounded
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    if loaded.tokenizer is not None:
        whole = AutoProcessor.from_pretrained(tmp_path / "saved")
        assert type(whole) is FusionCaptionerProcessor
        assert whole.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert given == "parts" or whole.chat_template == "{{ '' }}"


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_what_a_pipeline_saves_it_loads_and_captions_alike(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it asks for torchvision, which it needs for videos only
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *_: None)
    processor = made_processor()
    processor.chat_template = "{{ '' }}"
    torch.manual_seed(0)
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    config = FusionCaptionerConfig(
        vision_config=vision, vocab_size=len(processor.tokenizer), hidden_size=16, initializer_range=0.3
    )
    model = FusionCaptionerForConditionalGeneration(config).eval()
    chat = [turn("user", None, Image.fromarray(noise()))]
    captioner = pipeline(task, model=model, processor=processor)
    expected = captioner(chat, max_new_tokens=5, return_full_text=False)[0]["generated_text"]
    captioner.save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").is_file()
    loaded = pipeline(task, model=str(tmp_path))
    assert loaded.processor.chat_template == "{{ '' }}"
    assert loaded.processor.image_processor.size == processor.image_processor.size
    assert loaded(chat, max_new_tokens=5, return_full_text=False)[0]["generated_text"] == expected
