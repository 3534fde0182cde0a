"""Compensation: changing what stays, to make up for what goes, without training."""

from secateur.torch.compensate.batchnorm import ReestimateBatchNorm
from secateur.torch.compensate.refit import FoldMean, Refit
from secateur.torch.compensate.step import Compensation, compensate

__all__ = ["Compensation", "FoldMean", "ReestimateBatchNorm", "Refit", "compensate"]
