"""A small convolutional encoder for small images: the demo's and the example's."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from pfungst.errors import ConfigError


def small_cnn(width: int = 32, channels: int = 3) -> nn.Sequential:
    """Six 3 × 3 convolutions with BatchNorm and ReLU in three stages, then the spatial mean.

    Stages have `width`, 2·`width` and 4·`width` channels and halve the resolution, so that the
    representation has 4·`width` values for images of any size from 4 px. Convolutions have no bias.
    Layers are called stage1.conv1, stage1.relu1, stage1.conv2, … for pruning.
    """
    if width < 1:
        raise ConfigError(f"encoder width {width} is not positive", "use 16 to 64")
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    before = channels
    for stage in (1, 2, 3):
        after = width * 2 ** (stage - 1)
        stages[f"stage{stage}"] = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(before, after, 3, padding=1, stride=1 if stage == 1 else 2, bias=False),
                bn1=nn.BatchNorm2d(after),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(after, after, 3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(after),
                relu2=nn.ReLU(),
            )
        )
        before = after
    stages["pool"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten(1)
    network = nn.Sequential(stages)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


class Projector(nn.Sequential):
    """The head that contrastive losses are computed on, thrown away after training."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(
            nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
