"""The PyTorch frontend: watch a model, score it, mask it, compact it, verify it."""

from secateur.torch.apply import compact, mask, plan_of, unmask
from secateur.torch.capture import Inputs, TracedNetwork, trace
from secateur.torch.graph import as_graph
from secateur.torch.verify import Proof, verify

__all__ = ["Inputs", "Proof", "TracedNetwork", "as_graph", "compact", "mask", "plan_of", "trace", "unmask", "verify"]
