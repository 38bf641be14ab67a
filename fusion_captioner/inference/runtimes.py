"""The runtimes that an exported part can run on, without torch: ONNX Runtime and OpenVINO."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# One part of a captioner: arrays in, arrays out, in the order that it was exported with.
Part = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def load_onnx(folder: Path, name: str, num_threads: int | None) -> Part:
    """`NAME.onnx` on ONNX Runtime's CPU provider, with so many threads, or as many as there are cores."""
    onnxruntime = import_runtime("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    options.log_severity_level = 3  # errors only: its warnings are about graphs, which nobody here can act on
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays)))


def load_openvino(folder: Path, name: str, num_threads: int | None) -> Part:
    """`NAME.xml` on OpenVINO's CPU device, in float32 where the processor would take less precise types by itself."""
    openvino = import_runtime("openvino", "openvino")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", settings)
    request = compiled.create_infer_request()

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        request.infer(dict(enumerate(arrays)), share_inputs=True)
        # copies: the request writes its next results into the same memory
        return [tensor.data.copy() for tensor in request.output_tensors]

    return run


RUNTIMES: dict[str, Callable[[Path, str, int | None], Part]] = {"onnx": load_onnx, "openvino": load_openvino}


def import_runtime(package: str, extra: str) -> Any:
    """The module `package`, which the `extra` of that name installs.

    Raises:
        ImportError: says how to install it.
    """
    if package == "openvino" and package not in sys.modules:
        # importing OpenVINO would send a message to its makers; whoever captions photos has not asked for that
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the runtime {extra!r} needs the package {package} ({error}); "
            f"install it with: pip install 'fusion-captioner[{extra}]'"
        ) from error
