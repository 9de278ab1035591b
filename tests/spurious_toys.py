"""Inputs of the golden values, generated as their description states, and small models."""

import numpy as np
import torch
from torch import nn


def toy():
    classes, dim, n, rng = 4, 32, 60, np.random.RandomState(0)
    dirs, phi = [], []
    for _ in range(classes):
        base = np.abs(rng.randn(n, dim))
        d = np.abs(rng.randn(dim)) * (rng.rand(dim) < 0.2)
        has = rng.rand(n) < 0.4
        phi.append(base + 3.0 * has[:, None] * d)
        dirs.append(d)
    w, b = rng.randn(classes, dim) * 0.5, rng.randn(classes) * 0.1
    phi_test = np.abs(rng.randn(80, dim))
    has = rng.rand(80) < 0.5
    phi_test += 3.0 * has[:, None] * np.stack(dirs)[np.arange(80) % classes]
    f = np.float32
    phi, phi_test, w, b = np.stack(phi).astype(f), phi_test.astype(f), w.astype(f), b.astype(f)
    second = np.random.RandomState(1)
    a = second.randn(dim, 24)
    w2, b2 = (second.randn(classes, 24) * 0.5).astype(f), (second.randn(classes) * 0.1).astype(f)

    def up(x):
        return np.maximum(x.astype(np.float64) @ a, 0).astype(f)

    return {
        "phi": phi,
        "phi_test": phi_test,
        "W": w,
        "b": b,
        "phi2": up(phi),
        "phi2_test": up(phi_test),
        "W2": w2,
        "b2": b2,
    }


def toy_scores():
    rng, data = np.random.RandomState(5), {}
    for c, n_out, shift in [(3, 75, 1.0), (94, 60, 4.0), (400, 40, 5.0), (999, 75, 6.5)]:
        z_in, z_out = rng.randn(50, 1000), rng.randn(n_out, 1000)
        z_in[:, c] += 6 + 2 * rng.randn(50)
        z_out[:, c] += shift + 2 * rng.randn(n_out)
        if c == 400:  # many exact ties
            for z in (z_in, z_out):
                column = np.round(z[:, c])
                z[:] = 0
                z[:, c] = column
        data[c] = (z_in.astype(np.float32), z_out.astype(np.float32))
    return data


def toy_conv():
    f, r = np.float32, np.random.RandomState(2)
    p = {
        "conv1_w": r.randn(16, 3, 3, 3),
        "conv1_b": r.randn(16),
        "conv2_w": r.randn(32, 16, 3, 3),
        "conv2_b": r.randn(32),
        "fc_w": r.randn(4, 32),
        "fc_b": r.randn(4),
    }
    p = {k: (0.2 * v).astype(f) for k, v in p.items()}
    r = np.random.RandomState(4)
    x = r.rand(60, 3, 4, 4).repeat(8, axis=2).repeat(8, axis=3)
    p["train_images"] = np.clip(x + 0.05 * r.randn(60, 3, 32, 32), 0, 1).astype(f)
    t = np.random.RandomState(3).randn(1, 3, 32, 32)
    p["x_init"] = np.clip(0.5 + 3.0 * t / np.sqrt((t**2).sum()), 0, 1).astype(f)
    return p


class ConvNet(nn.Module):
    """The golden's network: two convolutions, spatial mean, linear head."""

    def __init__(self, p):
        super().__init__()
        self.conv1, self.conv2, self.fc = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.Linear(32, 4),
        )
        state = {}
        for name in ("conv1", "conv2", "fc"):
            state |= {
                f"{name}.weight": torch.tensor(p[f"{name}_w"]),
                f"{name}.bias": torch.tensor(p[f"{name}_b"]),
            }
        self.load_state_dict(state)

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))


class Vectors(nn.Module):
    """A linear head on inputs that are features already, (N, D, 1, 1); with a temperature."""

    def __init__(self, weight, bias=None, temperature=1.0):
        super().__init__()
        self.fc = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        self.fc.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        self.temperature = temperature

    def forward(self, x):
        return self.fc(x.flatten(1)) / self.temperature


def small_net(classes=5, seed=0, width=12, bias=True):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes, bias=bias),
    ).eval()


def items(n=60, classes=5, size=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(f"img{i:04d}", torch.rand(3, size, size, generator=g), i % classes) for i in range(n)]
