"""Language models: texts as sequences of tokens, and how near a model is to another one on them."""

from secateur.language.fidelity import Fidelity, fidelity
from secateur.language.text import read_text, sequences

__all__ = ["Fidelity", "fidelity", "read_text", "sequences"]
