"""A captioner as files that run without torch."""

import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from fusion_captioner import __version__
from fusion_captioner.export.calibration_texts import CalibrationTexts
from fusion_captioner.export.int8 import compress_weights, quantize_decoder_part, quantize_image_part
from fusion_captioner.export.int8_tables import share_rows
from fusion_captioner.export.parts import Shape, export_decoder_step, export_image_part, export_output_layer
from fusion_captioner.files import atomic_folder, write_json
from fusion_captioner.fingerprints import fingerprint, write_digests
from fusion_captioner.image_processing_fusion_captioner import SETTINGS
from fusion_captioner.inference.exported_captioner import (
    DECODER_STEP,
    DESCRIPTION,
    FORMAT,
    IMAGE_PART,
    IMAGE_SETTINGS,
    output_layer_name,
)
from fusion_captioner.inference.runtimes import RUNTIMES_OF_PARTS, Part, import_runtime
from fusion_captioner.inference.token_search import SearchSettings
from fusion_captioner.modeling_fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.processing_fusion_captioner import NO_LIMIT, FusionCaptionerProcessor

# Fields of a generation config that say nothing about which tokens are chosen, or that the description holds
_NO_MATTER = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "_from_model_config",
}


def export_captioner(
    model: FusionCaptionerForConditionalGeneration,
    processor: FusionCaptionerProcessor,
    runtime: str,
    folder: str | Path,
    calibration: Sequence[str] | None = None,
    captions: Mapping[str, Iterable[str]] | None = None,
) -> Path:
    """
    Write a captioner as a folder that [`ExportedCaptioner`] loads: the image part and the decoder step, the config,
    the tokenizer, the settings of the image processor, and a description.

    Args:
        model, processor: the captioner. It takes images of the image processor's `size`, and no videos.
        runtime: `"onnx"`, `"openvino"`, or `"openvino+onnx"`: the image part for OpenVINO, the decoder step for ONNX
            Runtime.
        folder: created if it does not exist.
        calibration: files of some hundreds of images like those to be captioned, for an int8 export. By default the
            export is float32.
        captions: by language texts such as the training captions; of a captioner of one language by `""`. The export
            can say their tokens and no others, and saves the time for the others. By default it can say all.

    Returns:
        the folder.

    Raises:
        ValueError: if the captioner holds what an export cannot: other settings of generation than
            [`SearchSettings`] has, a tokenizer without `tokenizer.json`, images that are not resized, or, for int8, a
            layer that has no such form; or if `captions` are of other languages than the captioner's.
        ImportError: the runtime's packages are not installed; int8 needs ONNX Runtime's for either runtime.
    """
    if runtime not in RUNTIMES_OF_PARTS:
        raise ValueError(f"`runtime` ({runtime!r}) must be one of {', '.join(map(repr, RUNTIMES_OF_PARTS))}.")
    of_images, of_steps = RUNTIMES_OF_PARTS[runtime]
    if calibration is not None and not calibration:
        raise ValueError("`calibration` ([]) must name images, some hundreds like those to be captioned.")
    if not processor.image_processor.do_resize:
        raise ValueError(
            "`do_resize` (False) of the image processor must be true: an export takes images of one size."
        )
    if not processor.tokenizer.is_fast:
        raise ValueError("the tokenizer has no `tokenizer.json`; an export needs one of the library tokenizers.")
    output_layers = {} if captions is None else _output_layers(model, processor, captions)
    description = {
        "format": FORMAT,
        "runtime": runtime,
        "dtype": "float32" if calibration is None else "int8",
        "package_version": __version__,
        "checkpoint": fingerprint(weights=model.state_dict(), digest_size=16),
        "vocab_size": model.config.vocab_size,
        "max_positions": model.config.max_position_embeddings
        if "transformer" in (model.config.text_encoder_type, model.config.decoder_type)
        else None,
        "generation": _generation(model),
        "tokenizer": _tokenizer(processor),
        "output_layers": output_layers,
        "concept_bias": model.config.concept_bias,
        "concepts": _concepts(model),
    }
    model = deepcopy(model).eval().float().cpu()  # the caller's stays what it is
    size = (processor.image_processor.size["height"], processor.image_processor.size["width"])
    pixels_shape: list[Shape] = [["images", 3, *size]]
    token_shapes: list[Shape] = [["images", "texts"]]
    if description["max_positions"] is not None:
        token_shapes.append(["images", "texts", "seen"])
    with atomic_folder(folder, last=DESCRIPTION) as new:
        image_part, region_shapes = export_image_part(model, size)
        decoder_step, states = export_decoder_step(model, region_shapes, gives_logits=not output_layers)
        shapes = [*token_shapes, *region_shapes, *(state["shape"] for state in states)]
        layers = {name: export_output_layer(model, ids) for name, ids in output_layers.items()}
        layer_shapes: list[Shape] = [["texts", model.lm_head.in_features]]
        if calibration is None:
            EXPORTERS[of_images](image_part, pixels_shape, new / IMAGE_PART)
            EXPORTERS[of_steps](decoder_step, shapes, new / DECODER_STEP)
            for name, layer in layers.items():
                EXPORTERS[of_steps](layer, layer_shapes, new / output_layer_name(name))
        else:
            settings = {name: getattr(processor.image_processor, name) for name in SETTINGS}
            write_int8_image_part(image_part, pixels_shape, new / IMAGE_PART, of_images, calibration, settings)
            write = INT8_DECODER_EXPORTERS[of_steps]
            hidden_states: dict[str, np.ndarray] = {}

            def read_texts(step: Part) -> None:
                texts = CalibrationTexts(model, processor, calibration)
                hidden_states.update(texts.read(step, states, description["max_positions"]))

            def read_hidden_states(name: str, layer: Part) -> None:
                layer((hidden_states[name],))

            write(decoder_step, shapes, new / DECODER_STEP, read_texts)
            for name, layer in layers.items():
                write(layer, layer_shapes, new / output_layer_name(name), partial(read_hidden_states, name))
            if of_steps == "onnx":
                share_rows(
                    new / f"{DECODER_STEP}.onnx",
                    {new / f"{output_layer_name(name)}.onnx": ids for name, ids in output_layers.items()},
                )
        model.config.to_json_file(new / "config.json")
        processor.tokenizer.save_pretrained(new)
        processor.image_processor.to_json_file(new / IMAGE_SETTINGS)
        write_json(new / DESCRIPTION, description | {"regions": region_shapes, "states": states})
        write_digests(new)
    return Path(folder)


def write_onnx(program: ExportedProgram, shapes: list[Shape], path: Path) -> None:
    """`PATH.onnx`, weights included; batch normalisation is folded into the convolutions by the exporter."""
    import_runtime("onnxscript", "onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        torch.onnx.export(program, f=path.with_suffix(".onnx"), dynamo=True, external_data=False, verbose=False)


def write_openvino(program: ExportedProgram, shapes: list[Shape], path: Path) -> None:
    """`PATH.xml` and `PATH.bin`; batch normalisation is folded into the convolutions by the conversion."""
    openvino = import_runtime("openvino", "openvino")
    _save_openvino(openvino.convert_model(program), shapes, path)


def _save_openvino(converted: Any, shapes: list[Shape], path: Path) -> None:
    openvino = import_runtime("openvino", "openvino")
    # the conversion makes all sizes dynamic; fixed ones let the runtime choose its kernels beforehand
    fixed = [[size if isinstance(size, int) else -1 for size in shape] for shape in shapes]
    converted.reshape({port: openvino.PartialShape(shape) for port, shape in zip(converted.inputs, fixed)})
    openvino.save_model(converted, path.with_suffix(".xml"), compress_to_fp16=False)


EXPORTERS: dict[str, Callable[[ExportedProgram, list[Shape], Path], None]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
}


def write_int8_image_part(
    program: ExportedProgram,
    shapes: list[Shape],
    path: Path,
    runtime: str,
    images: Sequence[str],
    image_settings: dict[str, Any],
) -> None:
    """The image part, quantised by ONNX Runtime for both runtimes: OpenVINO reads what it writes."""
    openvino = import_runtime("openvino", "openvino") if runtime == "openvino" else None
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32", Path(folder) / "int8"
        write_onnx(program, shapes, source)
        quantized = path.with_suffix(".onnx") if openvino is None else target.with_suffix(".onnx")
        quantize_image_part(source.with_suffix(".onnx"), quantized, images, image_settings)
        if openvino is not None:
            _save_openvino(openvino.convert_model(quantized), shapes, path)


def write_int8_onnx_decoder(
    program: ExportedProgram, shapes: list[Shape], path: Path, run: Callable[[Part], None]
) -> None:
    """`PATH.onnx` with int8 weights; `run` calls the part so that its activations get scales."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float32"
        write_onnx(program, shapes, source)
        quantize_decoder_part(source.with_suffix(".onnx"), path.with_suffix(".onnx"), run)


def write_int8_openvino_decoder(
    program: ExportedProgram, shapes: list[Shape], path: Path, run: Callable[[Part], None]
) -> None:
    """`PATH.xml` and `PATH.bin` with int8 weights, which need no scales of activations."""
    openvino = import_runtime("openvino", "openvino")
    converted = openvino.convert_model(program)
    compress_weights(converted)
    _save_openvino(converted, shapes, path)


INT8_DECODER_EXPORTERS: dict[str, Callable[[ExportedProgram, list[Shape], Path, Callable[[Part], None]], None]] = {
    "onnx": write_int8_onnx_decoder,
    "openvino": write_int8_openvino_decoder,
}


def _output_layers(
    model: FusionCaptionerForConditionalGeneration,
    processor: FusionCaptionerProcessor,
    captions: Mapping[str, Iterable[str]],
) -> dict[str, list[int]]:
    """Language → the tokens of its captions and all special ones, ascending."""
    known = processor.languages or [""]
    if set(captions) != set(known):
        raise ValueError(
            f"`captions` are of {', '.join(map(repr, captions)) or 'no language'}; give those of "
            f"{', '.join(map(repr, known))}, which the captioner knows."
        )
    tokenizer, ends = processor.tokenizer, _generation(model)
    special = {*tokenizer.all_special_ids, *ends["eos_token_ids"], ends["pad_token_id"]}
    layers = {}
    for language in known:
        encodings = tokenizer(list(captions[language]), add_special_tokens=False)["input_ids"]
        layers[language] = sorted(special.union(*encodings))
    return layers


def _concepts(model: FusionCaptionerForConditionalGeneration) -> dict[str, list[int]]:
    """Language (`""` where there is one only) → the concepts that add to the scores of their words."""
    config = model.config
    if not config.concept_bias:
        return {}
    ids: list[Any] = config.concept_token_ids
    return dict(zip(config.languages, ids)) if config.languages else {"": ids}


def _generation(model: FusionCaptionerForConditionalGeneration) -> dict[str, Any]:
    """Special tokens of generation, and settings that the checkpoint itself brings."""
    config = model.generation_config
    settings = {}
    for name, value in config.to_diff_dict().items():
        is_neutral = not value or (value == 1 and value is not True)  # as a penalty of 1 is
        if name in SearchSettings.__dataclass_fields__:
            settings[name] = value
        elif not is_neutral and name not in _NO_MATTER and not name.startswith(("output_", "return_")):
            raise ValueError(
                f"the generation config sets `{name}` ({value!r}), which exports do not have; they have "
                f"{', '.join(SearchSettings.__dataclass_fields__)}. Remove it from `model.generation_config`."
            )
    eos = config.eos_token_id
    eos_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = config.pad_token_id if config.pad_token_id is not None else (eos_ids or [0])[0]
    return {"bos_token_id": config.bos_token_id, "eos_token_ids": eos_ids, "pad_token_id": pad, "settings": settings}


def _tokenizer(processor: FusionCaptionerProcessor) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    limit = tokenizer.model_max_length
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    return {
        "bos_token_id": processor.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "languages": [list(pair) for pair in processor.language_token_ids.items()],
        "model_max_length": limit if limit < NO_LIMIT else None,
        # transformers leaves the spaces of BPE tokenizers alone
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces) and not is_bpe,
    }
