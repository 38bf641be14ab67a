"""The runtimes that an exported part can run on, without torch: ONNX Runtime and OpenVINO."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# Its kernel of a sum with its normalisation is slower than the two kernels one after the other.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
# Microseconds for which ONNX Runtime's threads wait awake for the next operator: to wake one takes as long as many
# operators do. If they waited longer, they would keep other threads of a busy machine from a core.
AWAKE = "10"
# One part of a captioner: arrays in, arrays out, in the order that it was exported with.
Part = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def load_onnx(folder: Path, name: str, num_threads: int | None) -> Part:
    """`NAME.onnx` on ONNX Runtime's CPU provider, with so many threads, or as many as there are cores."""
    onnxruntime = import_runtime("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    options.add_session_config_entry("session.intra_op.spin_duration_us", AWAKE)
    options.log_severity_level = 3  # errors only: its warnings are about graphs, which nobody here can act on
    path = folder / f"{name}.onnx"
    with reading_export(path):
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
        )
    names = [argument.name for argument in session.get_inputs()]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with reading_export(path):
            return session.run(None, dict(zip(names, arrays, strict=True)))

    return run


def load_openvino(folder: Path, name: str, num_threads: int | None) -> Part:
    """`NAME.xml` on OpenVINO's CPU device, in float32 where the processor would take less precise types by itself."""
    core = openvino_core()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    path = folder / f"{name}.xml"
    with reading_export(path):
        compiled = core.compile_model(path, "CPU", settings)
        request = compiled.create_infer_request()

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with reading_export(path):
            request.infer(dict(enumerate(arrays)), share_inputs=True)
        # copies: the request writes its next results into the same memory
        return [tensor.data.copy() for tensor in request.output_tensors]

    return run


@cache
def openvino_core() -> Any:
    """
    The process's one `openvino.Core`, never released.

    A core gives its thread a stack for signal handlers. When cores are released out of order, or in another thread,
    the freed stack stays in use, and the next signal (Ctrl-C, the end of a child process) crashes the process.
    """
    return import_runtime("openvino", "openvino").Core()


RUNTIMES: dict[str, Callable[[Path, str, int | None], Part]] = {"onnx": load_onnx, "openvino": load_openvino}
# Runtime of an export → the runtimes of its image part and of its decoder step.
RUNTIMES_OF_PARTS = {**{name: (name, name) for name in RUNTIMES}, "openvino+onnx": ("openvino", "onnx")}


@contextmanager
def reading_export(path: Path) -> Iterator[None]:
    """
    While a file of an export is read, or run, which may come from anybody.

    Raises:
        ValueError: names the file, for all that parsers and runtimes raise.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: is damaged ({lines[-1].strip()[:200]}); export the captioner again.") from error


def import_runtime(package: str, extra: str) -> Any:
    """The module `package`, which the `extra` of that name installs.

    Raises:
        ImportError: says how to install it.
    """
    if package == "openvino" and package not in sys.modules:
        # importing OpenVINO would send a message to its makers, which nobody has asked for
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the runtime {extra!r} needs the package {package} ({error}); "
            f"install it with: pip install 'fusion-captioner[{extra}]'"
        ) from error
