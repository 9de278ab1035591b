"""The faster copy of a network computes the same, and only what may be folded is."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from pfungst.features.folded import folded
from pfungst.spurious import FeatureHead


def _settled(model: nn.Module, x: Tensor) -> nn.Module:
    """With statistics that are not those of a fresh BatchNorm."""
    model.train()(x)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.normal_(m.bias)
    return model.eval()


def _norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "tf_efficientnet_lite0"])
def test_networks_fold_wholly_and_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 64, 64).double()
    make = timm.create_model if name.startswith("tf_") else torchvision.models.get_model
    model = _settled(make(name, num_classes=7).double(), x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = folded(model, x[:2])
    assert _norms(model) > 0
    assert _norms(fast) == 0
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


class _Reads(nn.Module):
    """A convolution whose output is read beside its BatchNorm, one that runs twice, one that folds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.na, self.nb, self.nc = (nn.BatchNorm2d(3) for _ in range(3))
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        x = self.na(a) + a
        x = self.nb(self.b(self.nb(self.b(x))))
        return self.fc(self.nc(self.c(x)).relu().mean((2, 3)))


def test_only_what_a_batch_norm_alone_reads_is_folded() -> None:
    torch.manual_seed(1)
    x = torch.rand(4, 3, 8, 8)
    model = _settled(_Reads(), x)
    fast = folded(model, x)
    assert [n for n, m in fast.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["na", "nb"]
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_folded_or_copied_runs_as_it_is() -> None:
    x = torch.rand(2, 3, 8, 8)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    assert folded(plain, x) is plain
    model = _settled(_Reads(), x)
    model.kept = torch.rand(3, requires_grad=True) * 2  # deepcopy refuses it
    assert folded(model, x) is model


class _Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


def test_a_copy_that_computes_something_else_is_not_used() -> None:
    torch.manual_seed(2)
    x = torch.rand(4, 3, 8, 8)
    net = nn.Sequential(_Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    model = _settled(net, x)
    assert folded(model, x) is model


def test_a_folded_head_keeps_the_models_name_and_values() -> None:
    torch.manual_seed(3)
    x = torch.rand(4, 3, 64, 64)
    model = _settled(torchvision.models.resnet18(num_classes=7), x)
    head, fast = FeatureHead(model, example=x), FeatureHead(model, example=x).fold(x)
    assert fast.runs is not model
    assert fast.fingerprint() == head.fingerprint()
    for ours, theirs in zip(fast.features_and_logits(x), head.features_and_logits(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
