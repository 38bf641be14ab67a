"""The section `data` of each task: what is read, and how."""

from dataclasses import dataclass, field, fields
from typing import Any

from fusion_captioner.data.augmentation import AUGMENTATIONS
from fusion_captioner.data.caption_source import CaptionSource
from fusion_captioner.metrics.tokenization import find_tokenizer

MODALITIES = ("image", "text")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@dataclass
class DataArguments(CaptionSource):
    """
    Images with captions: a [`CaptionSource`], and what of it is trained on, and how.

    Args:
        more_train_sources: folders, or Hub names, whose split `train` is trained on in addition to that of `source`;
            of several `languages` their captions are in the first.
        hide_images: train on the captions alone, with no image in front of them; `source`, or that of each language,
            may then be a `.gz` file of lines `image id<TAB>caption`. The language is learned first in this way, from
            more texts than there are images for; a second run starts from it and sees images. There is no evaluation.
        streaming: read the training images as they come, in an order shuffled in part, and keep no copy of them; needs
            `training.max_steps`. The images of `eval_split` are held in memory, a file's as its path.
        question_sources: folders of questions with answers that are learned together with the captions, each the
            fields of [`PromptDataArguments`] that say where questions and answers are. The question is the prompt, as
            a chat gives it; so words that no caption has get pictures. They are not evaluated.
        train_split, eval_split: names of the splits; `eval_split` unset: no evaluation.
        captions_per_image: captions of an image in one row, drawn anew each epoch, or `"all"`: each a row.
        augmentations: what is done to training images at random, of `flip`, `crop` and `colour`; see
            `augmentation.py`.
        feature_cache: folder of cached grid features of the frozen image encoder; unset: images are read each epoch.
            Of the augmentations a cache can hold `flip`: the mirrored training images are cached, too. The others
            begin when the image encoder is unfrozen.
        feature_batch_size: images per batch while the cache is made.
        max_train_images, max_eval_images: take the first so many.
        metric_tokenizer: tokenizer of scores and rewards, of `metrics.TOKENIZERS`.
        languages: captions of several languages: code → where its captions are, a source such as the folder or file
            of an other layout, or fields of `CaptionSource` that differ from those of this section. Images are the
            same if their ids are. The first language is the captioner's default.
        concept_min_images: images that have a word in a caption for it to be a concept, where the model looks for
            concepts (`num_concepts`, `concept_loss_weight` or `concept_bias`) and `model.config.concept_token_ids`
            names none.
    """

    source: str = ""
    languages: dict[str, str | dict[str, Any]] = field(
        default_factory=dict, metadata={"example": "{en: captions.json, zh: captions_zh.json}"}
    )
    more_train_sources: list[str] = field(default_factory=list)
    hide_images: bool = False
    question_sources: list[dict[str, Any]] = field(
        default_factory=list, metadata={"example": "[{source: visual7w, choices_column: choices}]"}
    )
    train_split: str = "train"
    eval_split: str | None = "val"
    captions_per_image: int | str = 1
    augmentations: list[str] = field(default_factory=list)
    feature_cache: str | None = None
    feature_batch_size: int = 8
    max_train_images: int | None = None
    max_eval_images: int | None = None
    metric_tokenizer: str = "auto"
    concept_min_images: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.concept_min_images < 1:
            raise ValueError(f"`data.concept_min_images` ({self.concept_min_images}) must be at least 1.")
        if self.feature_batch_size < 1:
            raise ValueError(f"`data.feature_batch_size` ({self.feature_batch_size}) must be at least 1.")
        find_tokenizer(self.metric_tokenizer, "data.metric_tokenizer")
        if not self.source:
            raise ValueError("`data.source` is missing; name the folder, or Hub repository, of the training data.")
        count = self.captions_per_image
        if count != "all" and (isinstance(count, str) or count < 1):
            raise ValueError(f"`data.captions_per_image` ({count!r}) must be a number of at least 1, or 'all'.")
        if self.splits is not None and not isinstance(self.splits, dict):
            raise ValueError(
                f"`data.splits` ({self.splits!r}) must say what each split is made of, such as "
                f"{{train: train+restval}}."
            )
        if not isinstance(self.augmentations, list) or set(self.augmentations) - set(AUGMENTATIONS):
            raise ValueError(
                f"`data.augmentations` ({self.augmentations!r}) must be a list of some of {', '.join(AUGMENTATIONS)}."
            )
        if not isinstance(self.more_train_sources, list):
            raise ValueError(f"`data.more_train_sources` ({self.more_train_sources!r}) must be a list of folders.")
        for number, fields_of in enumerate(self.question_sources):
            known = {"source", "question_column", "answer_column", "choices_column", "label_column"}
            if not isinstance(fields_of, dict) or "source" not in fields_of or set(fields_of) - known:
                raise ValueError(
                    f"`data.question_sources` ({number}: {fields_of!r}) must have a `source`, and of the other fields "
                    f"only {', '.join(sorted(known - {'source'}))}."
                )
        if self.question_sources and self.streaming:
            raise ValueError(
                "`data.question_sources` and `data.streaming` cannot be used together; unset one of them."
            )
        if self.hide_images:
            for name in ("eval_split", "feature_cache", "augmentations", "more_train_sources", "question_sources"):
                if value := getattr(self, name):
                    raise ValueError(
                        f"`data.{name}` ({value!r}) is for images, and `data.hide_images` hides them; unset it."
                    )
            if self.streaming:
                raise ValueError("`data.streaming` and `data.hide_images` cannot be used together; unset one of them.")
        for language, where in self.languages.items():
            # transformers is imported with it, and captions can be scored without
            from fusion_captioner.processing_fusion_captioner import language_token

            language_token(language)
            unknown = set(where) - {each.name for each in fields(CaptionSource)} if isinstance(where, dict) else set()
            if unknown:
                names = ", ".join(map(repr, sorted(unknown)))
                raise ValueError(f"`data.languages` ({language}) has unknown fields: {names}.")
        if self.languages and self.streaming:
            raise ValueError("`data.languages` and `data.streaming` cannot be used together; unset one of them.")
        if self.streaming and self.more_train_sources:
            raise ValueError(
                f"`data.more_train_sources` ({self.more_train_sources}) are not for streams; unset them, or "
                "`data.streaming`."
            )
        if self.streaming and self.augmentations:
            raise ValueError(
                f"`data.augmentations` ({self.augmentations}) are not for streams; unset them, or `data.streaming`."
            )
        if self.streaming and self.feature_cache is not None:
            raise ValueError(
                f"`data.feature_cache` ({self.feature_cache}) holds features of all images, and `data.streaming` "
                "(True) keeps none; unset one of them."
            )


@dataclass
class RowDataArguments:
    """
    What every such task reads: a folder with `<split>/metadata.jsonl` next to the images, `file_name` in every line.

    Args:
        source: the folder.
        splits: split → the source's split, or several joined by `+`; unset: all under their usual names.
        train_split, eval_split: names of the splits; `eval_split` unset: no evaluation.
        modalities: what the model is given, of `image` and `text`; with both it is also evaluated on each alone.
        max_text_length: longest text in tokens; what is longer loses its end. Of a new tokenizer.
        skip_bad_images: leave images that cannot be read out, with a warning, instead of raising.
        feature_cache: folder of cached grid features of the frozen image encoder; unset: images are read each epoch.
        feature_batch_size: images per batch while the cache is made.
        max_train_rows, max_eval_rows: take the first so many.
    """

    source: str = ""
    splits: dict[str, str] | None = field(default=None, metadata={"example": "{train: train+extra}"})
    train_split: str = "train"
    eval_split: str | None = "val"
    modalities: list[str] = field(default_factory=lambda: list(MODALITIES))
    max_text_length: int = 512
    skip_bad_images: bool = False
    feature_cache: str | None = None
    feature_batch_size: int = 8
    max_train_rows: int | None = None
    max_eval_rows: int | None = None

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("`data.source` is missing; name the folder of the training data.")
        if self.splits is not None and not isinstance(self.splits, dict):
            raise ValueError(
                f"`data.splits` ({self.splits!r}) must say what each split is made of, such as {{train: train+extra}}."
            )
        if not isinstance(self.modalities, list) or not self.modalities or set(self.modalities) - set(MODALITIES):
            raise ValueError(
                f"`data.modalities` ({self.modalities!r}) must be a list of some of {', '.join(MODALITIES)}."
            )
        for name in ("max_text_length", "feature_batch_size", "max_train_rows", "max_eval_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`data.{name}` ({value}) must be at least 1.")
        if self.feature_cache is not None and "image" not in self.modalities:
            raise ValueError(
                f"`data.feature_cache` ({self.feature_cache}) is for images, and `data.modalities` "
                f"({self.modalities}) has none; unset it."
            )
        if self.train_split == self.eval_split:
            raise ValueError(
                f"`data.train_split` and `data.eval_split` are both {self.train_split!r}; name two splits."
            )

    @property
    def roles(self) -> dict[str, str]:
        """`train` and, if wanted, `eval` → the name of the split."""
        return {"train": self.train_split} | ({} if self.eval_split is None else {"eval": self.eval_split})

    @property
    def limits(self) -> dict[str, int | None]:
        """Split → number of its rows that are wanted, None: all."""
        rows = {"train": self.max_train_rows, "eval": self.max_eval_rows}
        return {split: rows[role] for role, split in self.roles.items()}


@dataclass
class LabelledDataArguments(RowDataArguments):
    """
    Rows with a text and a label.

    Args:
        text_column: field of the text; for a text made of several fields see `text_template`.
        text_template: pieces of text with fields in braces, such as `["age {age}.", "{notes}"]`, joined by blanks; a
            piece is left out where one of its fields is empty. In place of `text_column`.
        hidden_words: words that are replaced by `...` in the texts, whatever their case.
        problem_type: `single_label_classification`, `multi_label_classification` or `regression`, as transformers has
            it: a row has one label, a list of any number of them, or a number that is to be told.
        label_column: field of the label, a text; or a number, counting `labels` from 0; or what `problem_type` says.
        labels: names of the labels in the order of their numbers; unset: those of a classifier that training goes on
            from, else those of the training split, sorted.
        label_groups: label → list of the values of `label_column` that it stands for, where these are not its name.
        other_label: label of all values that are neither a label's name nor in `label_groups`; unset: such a value is
            an error.
        group_column: field that rows belong together by, such as a patient: intervals are drawn over groups.
        class_balance: exponent of the labels' rarity in the loss: 0 weighs rows alike, 1 weighs labels alike; of
            several labels a row, those that rows have and those they have not.
    """

    text_column: str | None = None
    text_template: list[str] | None = None
    hidden_words: list[str] = field(default_factory=list)
    problem_type: str = "single_label_classification"
    label_column: str = "label"
    labels: list[str] | None = None
    label_groups: dict[str, list[str]] = field(default_factory=dict, metadata={"example": "{ill: [flu, cold]}"})
    other_label: str | None = None
    group_column: str | None = None
    class_balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_column is not None and self.text_template is not None:
            raise ValueError(
                f"`data.text_column` ({self.text_column!r}) and `data.text_template` are both set; unset one of them."
            )
        if "text" in self.modalities and self.text_column is None and self.text_template is None:
            self.text_column = "text"
        for name in ("text_template", "hidden_words", "labels"):
            value = getattr(self, name)
            if value is not None and not _are_texts(value):
                raise ValueError(f"`data.{name}` ({value!r}) must be a list of texts; put them in quotes.")
        if self.text_template == []:
            raise ValueError("`data.text_template` ([]) is empty; give it pieces of text, or unset it.")
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"`data.problem_type` ({self.problem_type!r}) must be one of {', '.join(PROBLEM_TYPES)}.")
        if self.problem_type == "regression":
            for name in ("labels", "label_groups", "other_label", "class_balance"):
                if getattr(self, name):
                    raise ValueError(
                        f"`data.{name}` ({getattr(self, name)!r}) is for labels, and `data.problem_type` is "
                        "'regression'; unset one of them."
                    )
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"`data.labels` ({self.labels}) must be two different names or more.")
        if not isinstance(self.label_groups, dict) or not all(map(_are_texts, self.label_groups.values())):
            raise ValueError(
                f"`data.label_groups` ({self.label_groups!r}) must give each label its list of values, such as "
                "{ill: [flu, cold]}."
            )
        values = [value for group in self.label_groups.values() for value in group]
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise ValueError(f"`data.label_groups` has {twice!r} in two places; leave it in one.")
        if self.labels is not None:
            for name in (*self.label_groups, *([] if self.other_label is None else [self.other_label])):
                if name not in self.labels:
                    raise ValueError(
                        f"{name!r} of `data.label_groups` or `data.other_label` is not among `data.labels` "
                        f"({self.labels}); add it there."
                    )
        elif self.other_label is not None:
            raise ValueError(
                f"`data.other_label` ({self.other_label!r}) needs `data.labels`, which says what it is not."
            )
        if not 0 <= self.class_balance <= 1:
            raise ValueError(f"`data.class_balance` ({self.class_balance}) must be from 0 to 1.")


@dataclass
class PromptDataArguments(RowDataArguments):
    """
    Rows with a prompt and the text that is to follow it: a question and its answer, a record and its report.
    `modalities: [text]` is the prompt alone, `[image]` the image alone.

    Args:
        question_column: field of the question; "" asks for a caption.
        text_template: pieces of a prompt with fields in braces, such as `["age {age}.", "view {view}."]`, joined by
            blanks; a piece is left out where one of its fields is empty. In place of `question_column`; what follows
            is then scored as a text, by BLEU and ROUGE-L, and not as an answer, by exact match and token-F1.
        answer_column: field of the text that follows; rows where it is empty are left out.
        choices_column, label_column: in place of `answer_column`: a list of texts, and the number of the right one.
        answer_type_column: field of the kind of question, such as `closed` or `open`, by which scores are grouped.
        folds, fold: the images of `train_split` are dealt out into so many parts; that of number `fold`, counted from
            0, becomes `eval_split`, and the others `train_split`. No image is in two parts.
        max_turns: questions about the image in a training prompt at most; those that stand before its own have their
            answers, so that conversations are learned.
        caption_source: captions in any layout of captioning, learned in addition to the questions from an empty
            prompt, and evaluated where it has an `eval_split`.
        metric_tokenizer: tokenizer of the scores of texts and captions, of `metrics.TOKENIZERS`.
    """

    question_column: str | None = None
    text_template: list[str] | None = None
    answer_column: str | None = None
    choices_column: str | None = None
    label_column: str = "label"
    answer_type_column: str | None = None
    folds: int | None = None
    fold: int = 0
    max_turns: int = 1
    caption_source: str | None = None
    metric_tokenizer: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        find_tokenizer(self.metric_tokenizer, "data.metric_tokenizer")
        if self.question_column is not None and self.text_template is not None:
            raise ValueError(
                f"`data.question_column` ({self.question_column!r}) and `data.text_template` are both set; unset one "
                "of them."
            )
        if self.text_template is None:
            self.question_column = self.question_column or "question"
        elif not _are_texts(self.text_template) or not self.text_template:
            raise ValueError(
                f"`data.text_template` ({self.text_template!r}) must be a list of texts, at least one; put them in "
                "quotes."
            )
        if self.answer_column is not None and self.choices_column is not None:
            raise ValueError(
                f"`data.answer_column` ({self.answer_column!r}) and `data.choices_column` ({self.choices_column!r}) "
                "are both set; unset one of them."
            )
        if self.choices_column is None:
            self.answer_column = self.answer_column or "answer"
        if self.folds is not None and (self.folds < 2 or self.eval_split is None):
            raise ValueError(
                f"`data.folds` ({self.folds}) must be at least 2, with `data.eval_split` ({self.eval_split!r}) as "
                "the name of the part that is held out."
            )
        if not 0 <= self.fold < (self.folds or 1):
            raise ValueError(f"`data.fold` ({self.fold}) must be a number below `data.folds` ({self.folds}), from 0.")
        if self.max_turns < 1:
            raise ValueError(f"`data.max_turns` ({self.max_turns}) must be at least 1, the question itself.")
        if self.max_turns > 1 and "text" not in self.modalities:
            raise ValueError(
                f"`data.max_turns` ({self.max_turns}) is for prompts, and `data.modalities` ({self.modalities}) has "
                "none; unset it."
            )

    @property
    def asks(self) -> bool:
        """Whether prompts are questions, and what follows is scored as an answer."""
        return self.text_template is None


CHOICE_LAYOUTS = ("imagefolder", "tvqa")


@dataclass
class ChoiceDataArguments(RowDataArguments):
    """
    Questions with choices, about an image or the frames of a clip. `modalities: [text]` is the question alone.

    Args:
        layout: `imagefolder`; or `tvqa`, whose `source` holds `tvqa_<split>.jsonl`.
        question_column, choices_column, label_column: fields of an imagefolder: a text, a list of texts, and the
            number of the right one.
        frames_folder: of `tvqa`: folder with `<show>/<clip>/<number>.jpg`; unset: `frames` in the source.
        subtitles: of `tvqa`: a folder of `<clip>.srt`, or a file of JSON lines; unset: questions stand alone.
        max_subtitle_words: words of the subtitles before a question at most, the first ones.
        frame_rate: of `tvqa`: frames a second in the folders.
        num_frames: of `tvqa`: frames that a question is answered from, evenly spread.
        localised: of `tvqa`: only what lies within a question's `ts`; false: the whole clip.
    """

    layout: str = "imagefolder"
    question_column: str = "question"
    choices_column: str = "choices"
    label_column: str = "label"
    frames_folder: str | None = None
    subtitles: str | None = None
    max_subtitle_words: int = 150
    frame_rate: float = 3.0
    num_frames: int = 8
    localised: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if "text" not in self.modalities:
            raise ValueError(f"`data.modalities` ({self.modalities}) must hold `text`: there is always a question.")
        if self.layout not in CHOICE_LAYOUTS:
            raise ValueError(f"`data.layout` ({self.layout!r}) must be one of {', '.join(CHOICE_LAYOUTS)}.")
        for name in ("max_subtitle_words", "frame_rate", "num_frames"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`data.{name}` ({getattr(self, name)}) must be positive.")
        for name in ("frames_folder", "subtitles"):
            if self.layout != "tvqa" and getattr(self, name) is not None:
                raise ValueError(
                    f"`data.{name}` ({getattr(self, name)}) is for `data.layout: tvqa`, and it is {self.layout!r}."
                )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)
