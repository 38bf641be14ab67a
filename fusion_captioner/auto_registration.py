"""Makes transformers' `Auto*` classes know the captioner and its other heads, as if they were of its own."""

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

from .configuration_fusion_captioner import FusionCaptionerConfig
from .image_processing_fusion_captioner import FusionCaptionerImageProcessor
from .modeling_fusion_captioner import auto_classes
from .processing_fusion_captioner import FusionCaptionerProcessor

AutoConfig.register(FusionCaptionerConfig.model_type, FusionCaptionerConfig)
for auto_class, head in auto_classes().items():
    getattr(transformers, auto_class).register(FusionCaptionerConfig, head)
AutoImageProcessor.register(FusionCaptionerConfig, slow_image_processor_class=FusionCaptionerImageProcessor)
AutoProcessor.register(FusionCaptionerConfig, FusionCaptionerProcessor)
