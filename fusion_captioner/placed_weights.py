"""Weights as tools leave them: quantisation changes their types, offloading keeps them elsewhere."""

import torch
from torch import nn

# What quantised weights are stored in are integers, bytes, or floats of 8 bits and less.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def compute_dtype(*modules: nn.Module) -> torch.dtype:
    """The type in which `modules` compute: that of their first weight that is not quantised."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.dtype in COMPUTE_DTYPES:
                return parameter.dtype
    return torch.get_default_dtype()


def offloading_hooks(module: nn.Module) -> list:
    """accelerate's hooks on `module`, outermost first."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def execution_device(model: nn.Module) -> torch.device | None:
    """Where accelerate brings offloaded weights to be computed with; `None` where nothing is offloaded."""
    hooks = (hook for module in model.modules() for hook in offloading_hooks(module))
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(device) for device in devices if device is not None), None)


def own_parameter(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter of `module` for code outside of the module's `forward`, the only place where accelerate's hooks
    bring offloaded parameters back."""
    parameter = getattr(module, name)
    if parameter.is_meta:
        for hook in offloading_hooks(module):
            if getattr(hook, "weights_map", None) is not None:
                return hook.weights_map[name].to(hook.execution_device)
    return parameter
