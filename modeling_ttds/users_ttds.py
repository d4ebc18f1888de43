"""The users that rows name while a model is tuned; nothing of them is saved with it."""

import copy

import numpy as np
import torch
from torch import Tensor

from .precision_ttds import TTDSFloat32
from .towers_ttds import TTDSTower


class TTDSUserHistories(TTDSFloat32):
    """Histories of users as of moments, made when their rows are asked for.

    A row is a user at a moment, and the rows of a user follow each other: the first has seen
    nothing, every further one an item more.

    Args:
        newest: Item row that each has seen last, -1 where it has seen none, (num_rows,).
        max_history: How many of the newest items a history keeps.
    """

    def __init__(self, newest: Tensor, max_history: int):
        super().__init__()
        self.max_history = max_history
        self.register_buffer("newest", newest, persistent=False)

    def __len__(self) -> int:
        return len(self.newest)

    def __getitem__(self, rows: Tensor | np.ndarray) -> Tensor:
        """Return item rows, newest last, padded left with -1, (len(rows), max_history)."""
        steps = torch.arange(1 - self.max_history, 1, device=self.newest.device)
        places = torch.as_tensor(rows, device=self.newest.device)[:, None] + steps
        items = self.newest[places.clamp_min(0)].long()
        earlier = (items < 0).flip(1).cumsum(1).flip(1) > 0  # another user's, or nobody's
        return items.masked_fill(earlier, -1)


def held(tower: TTDSTower) -> TTDSTower:
    """Return a copy of a tower that is neither trained nor saved.

    Args:
        tower: The tower.
    """
    tower = copy.deepcopy(tower.encode.__self__)  # what an adapter may have wrapped
    for module in tower.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
    return tower.eval()
