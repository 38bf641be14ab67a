"""A captioner on the runtime that it is for: torch, or one of an export."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from fusion_captioner import DEFAULT_CHECKPOINT
from fusion_captioner.files import expanded
from fusion_captioner.inference.exported_captioner import ExportedCaptioner, is_export
from fusion_captioner.inference.runtimes import RUNTIMES_OF_PARTS

# The int8 export of the bundled captioner, which captions where torch is not asked for.
BUNDLED_EXPORT = os.path.join(DEFAULT_CHECKPOINT, "onnx")


class Captioner(Protocol):
    """What a captioner offers, on any runtime."""

    @property
    def image_settings(self) -> Mapping[str, Any]: ...

    @property
    def languages(self) -> Collection[str]: ...

    def caption(
        self,
        images: list[Image.Image],
        prompt: str | Sequence[str],
        *,
        language: str | None = None,
        seed: int | None = None,
        bad_words: Sequence[str] = (),
        **settings: Any,
    ) -> list[list[str]]: ...


def load_on_runtime(
    model: str,
    revision: str = "main",
    runtime: str | None = None,
    *,
    num_threads: int | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Captioner:
    """
    Load a captioner: a checkpoint on torch, or an export on its own runtime without torch. The bundled captioner has
    both forms; by default its int8 export runs on ONNX Runtime.

    Args:
        model: folder or Hub name of a checkpoint, or folder of an export.
        revision: branch, tag or commit of a Hub model.
        runtime: `"torch"`, `"onnx"`, `"openvino"` or `"openvino+onnx"`; by default the one that `model` is for.
        num_threads: threads of the runtime; by default it chooses.
        dtype: on torch, the type of what is computed once per image, by default the one that is faster here; see
            [`quicken_encoder`].
        trust_remote_code: run the code of a checkpoint's tokenizer.

    Raises:
        ValueError: `model` is for another runtime, or `dtype` is given for an export, whose type is fixed; and what
            loading raises.
    """
    folder = BUNDLED_EXPORT if runtime in (None, "onnx") and _is_bundled(model) else model
    exported = is_export(folder)
    if exported and runtime != "torch":
        if dtype is not None:
            fix = "leave it out" if folder == model else "add --runtime torch, or leave it out"
            raise ValueError(
                f"--dtype ({dtype}) is for torch, and {folder} is an export with a type of its own; {fix}."
            )
        captioner = ExportedCaptioner(folder, num_threads)
        if runtime is not None and captioner.runtime != runtime:
            raise ValueError(
                f"{model}: was exported for --runtime {captioner.runtime}, not {runtime}; leave --runtime out, or "
                f"export the checkpoint with --to {runtime}."
            )
        return captioner
    if exported:
        raise ValueError(
            f"{model}: is an export, which torch does not run; leave --runtime out, or name the checkpoint."
        )
    if runtime in RUNTIMES_OF_PARTS:
        raise ValueError(
            f"{model}: is no export; write one with: fusion-captioner export {model} --to {runtime} --out FOLDER"
        )
    from fusion_captioner.inference.torch_captioner import TorchCaptioner
    from fusion_captioner.process_setup import keep_stderr_quiet

    keep_stderr_quiet(reads_data=False)
    return TorchCaptioner(model, revision, num_threads, dtype or "auto", trust_remote_code)


def _is_bundled(model: str) -> bool:
    return os.path.realpath(expanded(model)) == os.path.realpath(DEFAULT_CHECKPOINT)
