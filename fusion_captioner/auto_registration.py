"""Makes transformers' `Auto*` classes know the captioner, as if it were one of their own."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .configuration_fusion_captioner import FusionCaptionerConfig
from .image_processing_fusion_captioner import FusionCaptionerImageProcessor
from .modeling_fusion_captioner import FusionCaptionerForConditionalGeneration, FusionCaptionerModel
from .processing_fusion_captioner import FusionCaptionerProcessor

AutoConfig.register(FusionCaptionerConfig.model_type, FusionCaptionerConfig)
AutoModel.register(FusionCaptionerConfig, FusionCaptionerModel)
AutoModelForImageTextToText.register(FusionCaptionerConfig, FusionCaptionerForConditionalGeneration)
AutoImageProcessor.register(FusionCaptionerConfig, slow_image_processor_class=FusionCaptionerImageProcessor)
AutoProcessor.register(FusionCaptionerConfig, FusionCaptionerProcessor)
