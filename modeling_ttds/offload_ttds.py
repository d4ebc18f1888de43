"""Weights that accelerate has put away, read beside the call of the module that holds them."""

from torch import Tensor, nn


def at_hand(module: nn.Module, name: str) -> Tensor:
    """Return a parameter of a module, from wherever accelerate keeps it meanwhile.

    With offloading a module has its weights only while it is called.

    Args:
        module: The module.
        name: Name of the parameter.
    """
    weight = getattr(module, name)
    hook = getattr(module, "_hf_hook", None)
    if hook is None or not weight.is_meta:
        return weight
    hook.pre_forward(module)
    weight = getattr(module, name)
    hook.post_forward(module, None)
    return weight
