"""transformers' common tests of processors and image processors."""

import unittest

from common_tests import load
from tiny_models import tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from fusion_captioner import FusionCaptionerImageProcessor, FusionCaptionerProcessor

processing_common = load("test_processing_common")
ProcessorTesterMixin = processing_common.ProcessorTesterMixin
# a factor that makes pixels negative once they are normalised, as the tests' own does, which is negative itself
processing_common.MODALITY_TEST_SPECS["images"]["init_time_kwargs"]["rescale_factor"] = 1e-6
image_tests = load("test_image_processing_common")


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = FusionCaptionerProcessor

    @classmethod
    def _setup_image_processor(cls) -> FusionCaptionerImageProcessor:
        return FusionCaptionerImageProcessor(size={"height": 32, "width": 32})

    @classmethod
    def _setup_tokenizer(cls):
        # the tests compare with what the tokenizer alone returns, which here begins with BOS as the processor's rows
        # do
        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
        return tokenizer


class ImageProcessorTester(image_tests.ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase) -> None:
        super().__init__(parent, size={"height": 18, "width": 18}, do_resize=True)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": FusionCaptionerImageProcessor}


class ImageProcessorTest(image_tests.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester
