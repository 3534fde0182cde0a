"""A pruned model on disk: a folder with safetensors for the weights and one JSON for the plan. No pickle; all or nothing."""

from secateur.artefact.dense import load_weights, save_weights
from secateur.artefact.folder import load, read, save
from secateur.artefact.manifest import Artefact, StoredTensor, WeightsFile
from secateur.artefact.pretrained import save_pretrained
from secateur.artefact.program import export

__all__ = [
    "Artefact",
    "StoredTensor",
    "WeightsFile",
    "export",
    "load",
    "load_weights",
    "read",
    "save",
    "save_pretrained",
    "save_weights",
]
