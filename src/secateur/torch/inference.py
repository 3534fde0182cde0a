"""Where a model cannot be watched, nor differentiated: inside `torch.inference_mode()`."""

import torch
from torch import nn

from secateur.errors import CaptureError


def refuse_inference_mode(model: nn.Module) -> None:
    """Refuse to go on there: torch keeps no gradients, and shows layers as wholes instead of the operators they consist of.

    Raises:
        CaptureError: The calling code is inside `torch.inference_mode()`.
    """
    if torch.is_inference_mode_enabled():
        raise CaptureError(
            f"{type(model).__name__} cannot be looked into inside torch.inference_mode(), where torch neither shows which "
            "operators use which weights nor keeps gradients; call Secateur outside of it, or use torch.no_grad() in its place"
        )
