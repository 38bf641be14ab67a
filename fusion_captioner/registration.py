"""Registers the captioner's classes with transformers as soon as transformers is loaded, and no sooner.

An exported captioner runs without torch, whose import takes seconds: importing this package must not load it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.rpartition(".")[0]


class RegisterWhenLoaded(MetaPathFinder):
    """
    Watches the imports of transformers and of this package's modules. When the outermost of them is complete, and
    transformers is loaded, the classes are registered; earlier, they could be half defined.
    """

    def __init__(self) -> None:
        self.depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers" and not fullname.startswith(f"{PACKAGE}."):
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_when_transformers_loads() -> None:
    """Register the classes now if transformers is loaded, else once it is."""
    if "transformers" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, RegisterWhenLoaded())


def _register() -> None:
    """Make transformers' `Auto*` classes know the captioner and its other heads as if they were its own."""
    import transformers

    from .configuration_fusion_captioner import FusionCaptionerConfig
    from .image_processing_fusion_captioner import FusionCaptionerImageProcessor
    from .modeling_fusion_captioner import auto_classes
    from .processing_fusion_captioner import FusionCaptionerProcessor

    transformers.AutoConfig.register(FusionCaptionerConfig.model_type, FusionCaptionerConfig, exist_ok=True)
    for auto_class, head in auto_classes().items():
        getattr(transformers, auto_class).register(FusionCaptionerConfig, head, exist_ok=True)
    transformers.AutoImageProcessor.register(
        FusionCaptionerConfig, slow_image_processor_class=FusionCaptionerImageProcessor, exist_ok=True
    )
    transformers.AutoProcessor.register(FusionCaptionerConfig, FusionCaptionerProcessor, exist_ok=True)
