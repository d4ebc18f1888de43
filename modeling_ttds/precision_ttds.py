"""What stays float32 when the language model is halved: all that semantic IDs are made of."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)


class TTDSFloat32(nn.Module):
    """A module that keeps its numbers whichever way a model is cast to half precision.

    `.half()`, `.bfloat16()` and `.to(dtype)` all go through `_apply`. In half precision a norm's
    epsilon is zero, small counts vanish, and near codebook vectors change places.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(lambda tensor: unhalved(tensor, fn(tensor)), recurse)


def unhalved(before: Tensor, after: Tensor) -> Tensor:
    """Return a tensor after a cast or a move, as it was before where it would lose digits.

    Half precision would lose them; `.type(dtype)` makes numbers of rows and codes too.

    Args:
        before: The tensor.
        after: What became of it; says where it is to be.
    """
    whole = not before.is_floating_point() and after.is_floating_point()
    return before.to(after.device) if whole or after.dtype in HALVES else after
