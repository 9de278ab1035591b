"""
A time series, in time and in frequency
=======================================

A classifier of heartbeat-like series that learned the mains hum of one recorder instead of the beat. In time its relevance is
everywhere; in frequency it is one band.
"""

# %%
# Two classes differ in the width of the beat; in training one of them also hums at 50 Hz.

import matplotlib.pyplot as plt
import torch
from torch import nn

from pfungst.relevance import attribute
from pfungst.relevance.time_bands import TimeBands

RATE, LENGTH = 250, 250  # samples per second, samples
t = torch.arange(LENGTH) / RATE


def series(labels, hum, seed):
    random = torch.Generator().manual_seed(seed)
    start = 0.3 + 0.4 * torch.rand(len(labels), 1, generator=random)
    width = 0.02 + 0.01 * labels[:, None]
    x = torch.exp(-(((t - start) / width) ** 2))
    x = x + 0.15 * torch.randn(x.shape, generator=random)
    phase = 6.28 * torch.rand(len(labels), 1, generator=random)
    return (x + 0.3 * hum[:, None] * torch.sin(6.2832 * 50 * t + phase))[:, None]


labels = torch.arange(400) % 2
train = series(labels, labels.float(), 0)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv1d(1, 16, 9, padding=4, bias=False),
    nn.ReLU(),
    nn.Conv1d(16, 16, 9, padding=4, bias=False),
    nn.ReLU(),
    nn.AdaptiveAvgPool1d(1),
    nn.Flatten(),
    nn.Linear(16, 2, bias=False),
)
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(60):
    loss = nn.functional.cross_entropy(model(train), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
for name, hum in (("as in training", labels), ("hum exchanged", 1 - labels)):
    answer = model(series(labels, hum.float(), 1)).argmax(1)
    print(f"accuracy, {name}: {float((answer == labels).float().mean()):.2f}")

# %%
# The same score, read in time and in 25 bands of 5 Hz. The values of both sum to it.

x = series(torch.ones(1), torch.ones(1), 2)
contrast = torch.tensor([-1.0, 1.0])  # logit of class 1 less that of class 0
in_time = attribute(model, x, contrast, "epsilon_plus")
in_bands = attribute(model, x, contrast, "epsilon_plus", TimeBands(25, "fourier"))
fig, axes = plt.subplots(3, 1, figsize=(8, 6.4), layout="constrained")
axes[0].plot(t, x[0, 0])
axes[0].set(title="a series of class 1", xlabel="s")
axes[1].plot(t, in_time.values[0].flatten())
axes[1].set(title="relevance in time", xlabel="s")
axes[2].bar(5 * torch.arange(25) + 2.5, in_bands.values[0], width=4.5)
axes[2].set(title="relevance in frequency", xlabel="Hz")
plt.show()
print(in_time, in_bands)
