"""`fusion-captioner evaluate` for the heads other than the captioner's: scores by task, as JSON."""

import argparse
import json
from tempfile import TemporaryDirectory

from transformers import PrinterCallback

from fusion_captioner import __version__
from fusion_captioner.checkpoints.loading import load_config, load_head
from fusion_captioner.training.arguments import HEAD_SECTIONS
from fusion_captioner.training.tasks.tasks import TASKS, HeadTask, read_task

# Flags of `evaluate` that say how captions are generated and shown.
CAPTION_FLAGS = ("beams", "max_new_tokens", "length_penalty", "meteor", "captions", "report")


def evaluate_head(options: argparse.Namespace) -> int:
    """
    Run the command; returns the exit status.

    Raises:
        ValueError, OSError: a flag, the model or the data are wrong.
    """
    for flag in CAPTION_FLAGS:
        if getattr(options, flag):
            raise ValueError(
                f"--{flag.replace('_', '-')} is for captioners, and {options.model} is scored by its task; leave it out, "
                "or, where the model captions as well, add --as-captioner."
            )
    changes = {"source": options.source, "skip_bad_images": options.skip_bad_images}
    if options.layout != "auto":
        changes["layout"] = options.layout
    name, data = read_task(options.model, options.revision, **changes)
    task: HeadTask = TASKS[name](data, load_config(options.model, options.revision))
    rows = task.load_split(options.split, options.limit)
    model, processor = load_head(task.head, options.model, options.revision, trained_to=task.trained_to)
    with TemporaryDirectory(prefix="fusion-captioner-") as folder:
        arguments = HEAD_SECTIONS[name][1](
            output_dir=folder,
            per_device_eval_batch_size=options.batch_size,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = task.trainer(model, processor, arguments, {"eval": rows}, {})
        trainer.remove_callback(PrinterCallback)  # stdout is for the report
        trainer.evaluate()
    about = {
        "model": options.model,
        "source": options.source,
        "split": options.split,
        "fusion_captioner": __version__,
    }
    print(json.dumps(about | task.report(trainer, rows), indent=2, ensure_ascii=False))
    return 0
