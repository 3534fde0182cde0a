"""What training changes on its way and has to leave as it was: modes, gradients, global random numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from secateur.torch.state import evaluating, same_modes

__all__ = ["evaluating", "seeded", "training"]


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Train mode inside, with gradients; afterwards every module is in the mode it was in and no gradient is left.

    A model that is in train mode already stays as it is, with those of its modules that somebody put into eval mode. Modules with
    frozen parameters and buffers, such as a frozen batch normalisation, go into eval mode, or their statistics would change.
    """
    model.zero_grad(set_to_none=True)
    try:
        with same_modes(model), torch.inference_mode(False), torch.enable_grad():
            if not model.training:
                model.train()
            for module in model.modules():
                if _is_frozen_with_buffers(module):
                    module.training = False
            yield
    finally:
        model.zero_grad(set_to_none=True)


@contextmanager
def seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Global random numbers from `seed` inside; afterwards they go on as if nothing had been drawn.

    These are torch's on the CPU and on the model's devices, Python's and numpy's: data is often shuffled or augmented with them.
    """
    devices = sorted({(t.device.type, t.device.index or 0) for t in model.parameters() if t.device.type != "cpu"})
    kind = devices[0][0] if devices else None
    indices = [index for other, index in devices if other == kind]
    python = random.getstate()
    arrays = np.random.get_state()  # noqa: NPY002  (the global generator is what has to be put back)
    try:
        with torch.random.fork_rng(indices, device_type=kind):
            torch.default_generator.manual_seed(seed)
            for index in indices:
                with torch.accelerator.device_index(index):
                    torch.get_device_module(kind).manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def _is_frozen_with_buffers(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    return frozen and any(True for _ in module.buffers(recurse=False))
