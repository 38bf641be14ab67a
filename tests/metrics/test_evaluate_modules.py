import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fusion_captioner
from fusion_captioner.metrics import answer_scores, retrieval_recall, score_captions

pytestmark = pytest.mark.slow

MODULES = Path(fusion_captioner.__file__).parent / "metrics" / "evaluate_modules"
NAMES = sorted(path.name for path in MODULES.iterdir() if (path / f"{path.name}.py").is_file())
PREDICTIONS = ["a dog runs on the grass", "two men ride bikes"]
REFERENCES = [["a brown dog is running on grass", "a dog runs"], ["two people on bikes"]]
# four images, the first with two texts, the similarities to all five
SIMILARITY = [[0.5, 0.1, 0.6, 0, 0], [0.3, 0, 0.2, 0, 0], [0.4, 0, 0, 0.1, 0.9], [0, 0, 0, 0, 0.8]]
IMAGE_TEXTS = [[0, 1], [2], [3], [4]]

# In a process of its own: evaluate reads its settings at import, and every connection is refused.
SCRIPT = """
import json, socket, sys

def refuse(*arguments):
    raise AssertionError(f"connection to {arguments[-1]}")

socket.socket.connect = refuse
import evaluate

folder, names, predictions, references, similarity, image_texts = json.loads(sys.argv[1])
results, by_character = {}, {}
for name in names:
    if name in ("retrieval_recall", "answers"):
        continue
    module = evaluate.load(f"{folder}/{name}")
    results[name] = module.compute(predictions=predictions, references=references)
    by_character[name] = module.compute(predictions=predictions, references=references, tokenizer="characters")
    module.add_batch(predictions=predictions, references=references)
    assert module.compute() == results[name]
only_cider = evaluate.load(f"{folder}/caption_scores").compute(
    predictions=predictions, references=references, metrics=["CIDEr"]
)
module = evaluate.load(f"{folder}/retrieval_recall")
results["retrieval_recall"] = module.compute(predictions=similarity, references=image_texts)
in_folds = module.compute(predictions=similarity, references=image_texts, fold_size=2, ranks=[1])
answers = evaluate.load(f"{folder}/answers")
results["answers"] = answers.compute(
    predictions=predictions, references=[texts[0] for texts in references], kinds=["open", "closed"]
)
print(json.dumps([results, only_cider, in_folds, by_character]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    arguments = json.dumps([str(MODULES), NAMES, PREDICTIONS, REFERENCES, SIMILARITY, IMAGE_TEXTS])
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_they_load_from_a_path_without_network_and_give_the_same_scores(results):
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert results[0] == {
        "answers": answer_scores(PREDICTIONS, [texts[0] for texts in REFERENCES], ["open", "closed"]),
        "bleu": {name: scores[name] for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")},
        "caption_scores": scores,
        "cider": {"CIDEr": scores["CIDEr"]},
        "retrieval_recall": retrieval_recall(SIMILARITY, [0, 0, 1, 2, 3]),
        "meteor_exact_stem": {"METEOR-exact-stem": scores["METEOR-exact-stem"]},
        "rouge_l": {"ROUGE-L": scores["ROUGE-L"]},
    }


def test_options_reach_the_metric(results):
    assert set(results[1]) == {"CIDEr", "signature"}
    assert results[2] == retrieval_recall(SIMILARITY, [0, 0, 1, 2, 3], fold_size=2, ranks=[1])


def test_the_tokenizer_is_chosen_by_name(results):
    scores = score_captions(PREDICTIONS, REFERENCES, tokenizer="characters")
    assert results[3]["caption_scores"] == scores and "tokenizer=characters" in scores["signature"]
    for name, score in (("cider", "CIDEr"), ("bleu", "BLEU-4"), ("rouge_l", "ROUGE-L")):
        assert results[3][name][score] == scores[score] != results[0][name][score]
    assert results[3]["meteor_exact_stem"]["METEOR-exact-stem"] == scores["METEOR-exact-stem"]
