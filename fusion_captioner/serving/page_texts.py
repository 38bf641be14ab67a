"""The page's own words, in English and Chinese."""

from collections.abc import Collection
from typing import Any

TEXTS: dict[str, dict[str, Any]] = {
    "en": {
        "title": "# Fusion Captioner\n\nA caption for a photo, and for each of its words the places of the photo that "
        "it depends on.",
        "tab_caption": "Caption",
        "tab_folder": "Folder",
        "tab_question": "Question",
        "tab_search": "Search",
        "photo": "Photo",
        "describe": "Write the caption",
        "caption": "Caption",
        "language": "Language of the captions",
        "alternatives": "Captions, each with its probability among these",
        "words": "Choose a word to see what it depends on",
        "map_occlusion": "Covering the bright places makes the word less likely",
        "map_attention": "Attention while the word was written",
        "map_alt": "For the word “{word}”, the {place} of the photo matters most.",
        "places": [
            *("upper left", "upper middle", "upper right"),
            *("middle left", "middle", "middle right"),
            *("lower left", "lower middle", "lower right"),
        ],
        "photos": "Photos",
        "caption_all": "Write the captions",
        "anew": "Write new captions also for photos that have one",
        "number": "Photo of the list",
        "previous": "Previous photo",
        "next": "Next photo",
        "form": "Save as",
        "csv": "one CSV table",
        "sidecars": "a text file next to each photo",
        "replace": "Replace existing files",
        "save": "Save",
        "saved": "Result",
        "download": "Download",
        "saved_count": "{count} captions are saved in {place}.",
        "written": "Progress",
        "written_count": "{count} of {total} photos have a caption.",
        "had_count": "{count} of them had one before, which is kept.",
        "question": "Question",
        "ask": "Ask",
        "answer": "Answer",
        "no_answers": "This captioner was not trained to answer questions. Start the page with "
        "`--answer-model CAPTIONER`, a model that was trained for the task `prompted`.",
        "query": "What to find",
        "search": "Search",
        "results": "Photos, best first",
        "no_index": "There is no index to search. Make one with `fusion-captioner index FOLDER --model CHECKPOINT "
        "--out INDEX`, and start the page with `--index INDEX`.",
        "no_photo": "Choose a photo first.",
        "no_photos": "There is no photo to caption; choose some.",
        "no_captions": "There is nothing to save yet; write the captions first.",
    },
    "zh": {
        "title": "# Fusion Captioner 图像描述\n\n为照片生成描述，并显示每个词依据照片的哪些区域。",
        "tab_caption": "描述",
        "tab_folder": "文件夹",
        "tab_question": "提问",
        "tab_search": "搜索",
        "photo": "照片",
        "describe": "生成描述",
        "caption": "描述",
        "language": "描述的语言",
        "alternatives": "候选描述，及其在候选中的概率",
        "words": "选择一个词，查看它依据的区域",
        "map_occlusion": "遮住明亮的区域会使该词的概率下降",
        "map_attention": "写出该词时的注意力",
        "map_alt": "对于“{word}”一词，照片的{place}最重要。",
        "places": ["左上方", "上方", "右上方", "左侧", "中间", "右侧", "左下方", "下方", "右下方"],
        "photos": "照片",
        "caption_all": "生成全部描述",
        "anew": "已有描述的照片也重新生成",
        "number": "列表中的照片",
        "previous": "上一张",
        "next": "下一张",
        "form": "保存为",
        "csv": "一个 CSV 表格",
        "sidecars": "每张照片旁一个文本文件",
        "replace": "替换已有文件",
        "save": "保存",
        "saved": "结果",
        "download": "下载",
        "saved_count": "{count} 条描述已保存到 {place}。",
        "written": "进度",
        "written_count": "{total} 张照片中，{count} 张已有描述。",
        "had_count": "其中 {count} 张原本已有描述，予以保留。",
        "question": "问题",
        "ask": "提问",
        "answer": "回答",
        "no_answers": "此模型未经问答训练。请用 `--answer-model CAPTIONER` 启动页面，"
        "并指定以任务 `prompted` 训练的模型。",
        "query": "要查找的内容",
        "search": "搜索",
        "results": "照片，最匹配的在前",
        "no_index": "没有可搜索的索引。请先运行 `fusion-captioner index FOLDER --model CHECKPOINT --out INDEX`，"
        "再用 `--index INDEX` 启动页面。",
        "no_photo": "请先选择一张照片。",
        "no_photos": "没有可描述的照片，请先选择。",
        "no_captions": "还没有可保存的内容，请先生成描述。",
    },
}


# What a language is called in itself.
LANGUAGES = {"de": "Deutsch", "en": "English", "es": "español", "fr": "français", "ja": "日本語", "zh": "中文"}


def language_of(accept_language: str, known: Collection[str] = TEXTS, default: str = "en") -> str:
    """The first language of a browser's header `Accept-Language` that is known; by default of those of the page."""
    for part in accept_language.split(","):
        language = part.split(";")[0].strip().lower().split("-")[0]
        if language in known:
            return language
    return default
