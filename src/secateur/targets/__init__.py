"""Runtimes on devices, where models are run and measured, dense and pruned side by side."""

from secateur.targets.eager import measure
from secateur.targets.measure import Effort, Latency, Measurement, Memory, Ratio, ratio_of_medians, take_turns

__all__ = ["Effort", "Latency", "Measurement", "Memory", "Ratio", "measure", "ratio_of_medians", "take_turns"]
