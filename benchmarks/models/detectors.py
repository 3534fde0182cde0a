"""The networks of torchvision's detectors: what chooses boxes between and behind them has no parameters to prune."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

REGIONAL = {"box": 7, "mask": 14, "keypoint": 14}
"""The side of the regions that heads of each kind see."""


class DetectorNetwork(nn.Module):
    """Backbone and heads of a detector. Heads that see regions see the first feature map instead, pooled to their size.

    Args:
        detector: A detector of torchvision, of one or of two stages.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head
        self.regional = nn.ModuleDict()
        heads = dict(detector.roi_heads.named_children()) if hasattr(detector, "roi_heads") else {}
        for kind in REGIONAL:
            if f"{kind}_head" in heads:
                self.regional[kind] = nn.Sequential(heads[f"{kind}_head"], heads[f"{kind}_predictor"])

    def forward(self, images: Tensor) -> list[Any]:
        """What the heads say of images `[n, 3, height, width]`."""
        features = list(self.backbone(images).values())
        found = [self.head(features)]
        pooled = {kind: F.adaptive_avg_pool2d(features[0], side) for kind, side in REGIONAL.items()}
        return [*found, *(head(pooled[kind]) for kind, head in self.regional.items())]
