"""Runtimes on devices, where models are run, checked and measured, dense and pruned side by side."""

from secateur.targets.agreement import Agreement, worst
from secateur.targets.compiled import Compile
from secateur.targets.eager import EAGER, Eager
from secateur.targets.measure import Measurement, measure
from secateur.targets.memory import Memory
from secateur.targets.onnx_runtime import OnnxRuntime
from secateur.targets.openvino import OpenVINO
from secateur.targets.target import Loaded, Target
from secateur.targets.turns import Effort, Latency, Ratio, ratio_of_medians, take_turns

__all__ = [
    "EAGER",
    "Agreement",
    "Compile",
    "Eager",
    "Effort",
    "Latency",
    "Loaded",
    "Measurement",
    "Memory",
    "OnnxRuntime",
    "OpenVINO",
    "Ratio",
    "Target",
    "measure",
    "ratio_of_medians",
    "take_turns",
    "worst",
]
