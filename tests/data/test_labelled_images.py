"""Labels as numbers, texts out of fields, and what is wrong with either."""

import json
from pathlib import Path

import pytest
from tiny_labels import write_labelled

from fusion_captioner.data.arguments import LabelledDataArguments
from fusion_captioner.data.labelled_images import class_weights, load_labelled_images, positive_weights

BOTH = {"train": None, "val": None}


def load(source: Path, **fields):
    return load_labelled_images(LabelledDataArguments(source=str(source), **fields), BOTH)


def change(source: Path, split: str, line: int, **fields) -> str:
    """Give a line other values; what messages call it."""
    path = source / split / "metadata.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line] |= fields
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{path}, line {line + 1}"


def test_labels_are_numbered_sorted_or_as_the_recipe_has_them(tmp_path: Path) -> None:
    source = write_labelled(tmp_path / "data", train=4, validation=4, number=[1, 0, 0, 1])
    splits, names = load(source)
    assert names == ["other", "same"]
    assert splits["train"]["label"] == splits["val"]["label"] == [1, 0, 0, 1]
    splits, names = load(source, labels=["same", "other"])
    assert names == ["same", "other"] and splits["train"]["label"] == [0, 1, 1, 0]
    splits, _ = load(source, labels=["same", "other"], label_column="number")
    assert splits["train"]["label"] == [1, 0, 0, 1]
    with pytest.raises(ValueError, match=r"label 1 is no text; name the labels of numbers in `data\.labels`"):
        load(source, label_column="number")


def test_several_labels_a_row_are_ones_and_zeros(tmp_path: Path) -> None:
    seen = [["dog", "snow"], [], ["cat"], ["kitten", "cat"]]
    source = write_labelled(tmp_path / "data", train=4, validation=4, seen=seen)
    several = {"label_column": "seen", "problem_type": "multi_label_classification"}
    splits, names = load(source, **several, label_groups={"cat": ["kitten"]})
    assert names == ["cat", "dog", "snow"]
    assert splits["train"]["label"] == splits["val"]["label"] == [[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    splits, _ = load(source, **several, labels=["dog", "other"], other_label="other")
    assert splits["train"]["label"] == [[1, 1], [0, 0], [0, 1], [0, 1]]
    with pytest.raises(ValueError, match=r"line 1: the label 'snow' is none of cat, dog, kitten"):
        load(source, **several, labels=["cat", "dog", "kitten"])
    with pytest.raises(ValueError, match=r"line 1: the label 'same' is no list, .* write it as a list, \[\] for none"):
        load(source, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match=r"line 1: the label \['dog', 'snow'\] is a list; .*multi_label_class"):
        load(source, label_column="seen")


def test_values_are_read_as_numbers(tmp_path: Path) -> None:
    source = write_labelled(tmp_path / "data", train=4, validation=4, stars=[1, 2.5, -3, 0])
    splits, names = load(source, label_column="stars", problem_type="regression")
    assert names == ["stars"] and splits["train"]["label"] == [1, 2.5, -3, 0]
    where = change(source, "train", 1, stars="many")
    with pytest.raises(ValueError) as caught:
        load(source, label_column="stars", problem_type="regression")
    assert str(caught.value).startswith(f"{where}: 'stars' is 'many', and `data.problem_type` is 'regression'")


def test_values_are_grouped_and_the_rest_is_other(tmp_path: Path) -> None:
    source = write_labelled(tmp_path / "data", train=4, validation=4, finding=["flu", "cold", "burn", "flu, cold"])
    splits, names = load(
        source,
        label_column="finding",
        labels=["no flu", "flu"],
        label_groups={"flu": ["flu, cold"]},
        other_label="no flu",
    )
    assert names == ["no flu", "flu"] and splits["train"]["label"] == [1, 0, 0, 1]


def test_a_label_that_training_does_not_know_is_named(tmp_path: Path) -> None:
    source = write_labelled(tmp_path / "data", train=4, validation=4)
    where = change(source, "validation", 2, label="Same")
    with pytest.raises(ValueError) as caught:
        load(source)
    assert str(caught.value).startswith(f"{where}: the label 'Same' is none of other, same;")


def test_a_template_leaves_empty_fields_and_hidden_words_out(tmp_path: Path) -> None:
    source = write_labelled(
        tmp_path / "data", train=2, validation=2, age=["70", ""], notes=["Flu, no influenza.\n Better", "SARS-2"]
    )
    splits, _ = load(source, text_template=["{{age}} {age}.", "{notes}"], hidden_words=["flu", "sars"])
    assert splits["train"]["text"] == ["{age} 70. ..., no influenza. Better", "...-2"]
    for template in ("{age.real}", "{age!r}", "{0}", "{age"):
        with pytest.raises(ValueError, match=r"in `text_template`"):
            load(source, text_template=[template])
    with pytest.raises(ValueError, match=r"line 1: there is no field 'weight', only file_name, .*notes"):
        load(source, text_template=["{weight}"])


def test_numbers_are_texts_and_null_is_none(tmp_path: Path) -> None:
    source = write_labelled(tmp_path / "data", train=2, validation=2, age=[70, None], dose=[0.5, 0])
    splits, _ = load(source, text_template=["age {age}.", "dose {dose}."])
    assert splits["train"]["text"] == ["age 70. dose 0.5.", "dose 0."]
    change(source, "train", 1, age=True)
    with pytest.raises(ValueError, match=r"line 2: 'age' is True, no text"):
        load(source, text_template=["age {age}."])


def test_a_bad_image_and_an_image_outside_are_named_or_left_out(tmp_path: Path) -> None:
    source = write_labelled(tmp_path / "data", train=4, validation=4)
    (source / "train" / "1.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1\.png .*not an image"):
        load(source)
    splits, _ = load(source, skip_bad_images=True)
    assert splits["train"]["image_id"] == ["train/0.png", "train/2.png", "train/3.png"]
    change(source, "train", 2, file_name="../validation/0.png")
    with pytest.raises(ValueError, match="leads out of the image folder"):
        load(source)


def test_half_a_character_is_named_or_left_out(tmp_path: Path) -> None:
    source = write_labelled(tmp_path / "data", train=4, validation=4)
    change(source, "train", 1, note="a dog \ud83d")
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2 .*no UTF-8"):
        load(source)
    splits, _ = load(source, skip_bad_images=True)
    assert splits["train"]["image_id"] == ["train/0.png", "train/2.png", "train/3.png"]


def test_rare_labels_weigh_more() -> None:
    labels = [0] * 8 + [1] * 2
    assert class_weights(labels, 2, 1.0) == pytest.approx([0.625, 2.5])
    assert class_weights(labels, 2, 0.0) == [1, 1]
    with pytest.raises(ValueError, match="label 2 of 3 has no training row"):
        class_weights(labels, 3, 1.0)


def test_having_a_rare_label_weighs_more() -> None:
    labels = [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    assert positive_weights(labels, ["a", "b", "c"], 1.0) == pytest.approx([1 / 4, 3, 1])
    assert positive_weights(labels, ["a", "b", "c"], 0.0) == [1, 1, 1]
    with pytest.raises(ValueError, match="label 'b' has no training row"):
        positive_weights(labels[1:], ["a", "b", "c"], 0.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": ["a"]}, ["data.labels", "two"]),
        ({"modalities": ["sound"]}, ["data.modalities", "sound", "image, text"]),
        ({"other_label": "a"}, ["data.other_label", "data.labels"]),
        ({"labels": ["a", "b"], "other_label": "c"}, ["'c'", "data.labels"]),
        ({"text_column": "text", "text_template": ["{text}"]}, ["data.text_column", "data.text_template"]),
        ({"modalities": ["text"], "feature_cache": "cache"}, ["data.feature_cache", "data.modalities"]),
        ({"problem_type": "ranking"}, ["data.problem_type", "'ranking'", "regression"]),
        ({"problem_type": "regression", "labels": ["a", "b"]}, ["data.labels", "['a', 'b']", "regression"]),
        ({"problem_type": "regression", "class_balance": 0.5}, ["data.class_balance", "0.5", "regression"]),
        ({"train_split": "val"}, ["data.train_split", "data.eval_split"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        LabelledDataArguments(source="data", **fields)
    assert [word for word in words if word not in str(caught.value)] == []
