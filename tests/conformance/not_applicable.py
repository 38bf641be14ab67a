"""The common tests of transformers that do not apply to this package, each with its reason."""

import re

# (pattern of the test class, pattern of the test's name) → reason; both must match whole
NOT_APPLICABLE: dict[tuple[str, str], str] = {
    (".*ConditionalGenerationTest", "test_generation_tester_mixin_inheritance"): (
        "GenerationTesterMixin is not in the source distribution; test_generation.py stands for it"
    ),
    ("ViT.*ConditionalGenerationTest", "test_can_capture_specific_layers_hidden_states"): (
        "`output_hidden_states` is true or false here; the test sees that the ViT inside takes numbers of layers"
    ),
    (".*(Model|ConditionalGeneration|ImageTextRetrieval)Test", "test_get_text_features_output_[02]"): (
        "the width is looked for in `text_config`, which this config has not: the text encoder's fields are its own"
    ),
    ("(ResNet|ViT).*(Model|ConditionalGeneration)Test", "test_get_(image|text)_features_attentions"): (
        "attention is between text and image, and an encoder by itself returns none"
    ),
    ("ProcessorTest", "test_apply_chat_template_image_[01]"): (
        "passes `num_frames` with an image, and this processor refuses arguments that it does not know"
    ),
    ("ProcessorTest", "test_args_overlap_kwargs"): (
        "sets `is_override` on the image processor, which refuses settings that it does not know"
    ),
    ("ProcessorTest", "test_call_arguments_default_none"): "`add_eos` is a flag, and its default is False",
    ("ProcessorTest", "test_call_arguments_not_in_processor_kwargs"): (
        "the groups of settings stand in the signature, since the processor checks each of their names"
    ),
    ("ProcessorTest", "test_processor_from_and_save_pretrained(_as_nested_dict)?"): (
        "saving notes `auto_map` in the processor that is saved, since its code goes with it"
    ),
    ("ProcessorTest", "test_processor_text_has_no_visual"): (
        "rows with an image and rows without one do not stand in one call"
    ),
    ("ProcessorTest", "test_subprocessor_defaults_preserved_by_kwargs_0_images"): (
        "padding and length are arguments of the call; `padding` and `max_length` stored in a tokenizer are not read"
    ),
    ("ProcessorTest", "test_structured_kwargs_nested_from_dict_0_images"): (
        "gives `return_tensors` twice, which this processor refuses"
    ),
    ("ImageProcessorTest", "test_call_numpy_4_channels"): "`do_convert_rgb=False` is refused: the model takes RGB",
    ("ImageProcessorTest", "test_image_processor_from_dict_with_kwargs_has_attributes"): (
        "`do_convert_rgb=False` is refused: the model takes RGB"
    ),
    ("ImageProcessorTest", "test_new_models_require_torchvision_backend"): (
        "one backend, Pillow, gives every machine the same pixels; torchvision is no dependency"
    ),
}


def reason(test_class: str, test: str) -> str | None:
    """Why a test does not apply; None: it does."""
    for (classes, tests), why in NOT_APPLICABLE.items():
        if re.fullmatch(classes, test_class) and re.fullmatch(tests, test):
            return why
    return None
