"""The benchmark of human judgements, on files of the same form."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "human_judgements.py"
spec = importlib.util.spec_from_file_location("human_judgements", SCRIPT)
human_judgements = importlib.util.module_from_spec(spec)
spec.loader.exec_module(human_judgements)

CAPTIONS = {
    "a.jpg": ["a black dog runs on the grass", "a dog is running on grass"],
    "b.jpg": ["two men sit on a long bench", "two men on a bench"],
}


def test_better_captions_agree_with_better_judgements(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [f"{name}#{number}\t{caption}" for name, texts in CAPTIONS.items() for number, caption in enumerate(texts)]
    lines += ["c.jpg#0\ta black dog runs on grass", "c.jpg#1\ta red car on a street"]
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(lines))
    judged = [
        "a.jpg\tc.jpg#0\t4\t4\t3",
        "a.jpg\tc.jpg#1\t1\t1\t2",
        "b.jpg\tc.jpg#1\t1\t1\t1",
        "a.jpg\ta.jpg#0\t1\t1\t1",
    ]
    (tmp_path / "ExpertAnnotations.txt").write_text("\n".join(judged))
    human_judgements.main(["--expert", str(tmp_path)])
    rows = capsys.readouterr().out.splitlines()
    assert "9 judgements" in rows[0]  # the image's own caption is left out
    values = {row.split("|")[1].strip(): float(row.split("|")[2]) for row in rows[2:]}
    assert set(values) == set(human_judgements.SCORES)
    assert min(values.values()) > 0.5


def test_captions_of_people_are_scored_by_each_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("jieba")
    texts = [["一只黑狗在跑", "黑狗在草地上跑"], ["两个人坐着", "两个男人坐着"]]
    images = [{"split": "val", "sentences": [{"raw": text} for text in two]} for two in texts]
    (tmp_path / "zh.json").write_text(json.dumps({"images": images}))
    human_judgements.main(["--captions", str(tmp_path / "zh.json")])
    rows = [row.split("|") for row in capsys.readouterr().out.splitlines()[2:]]
    scores = {row[2].strip(): float(row[3]) for row in rows}
    assert scores["auto"] > scores["words"] == 0
