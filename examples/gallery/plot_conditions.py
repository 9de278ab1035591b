"""
One photograph, twelve ways into a model
========================================

The same file reaches a model differently through each resizer. What differs between them is noise to people and may be
the signal that a model learned: nearest-neighbour resizing keeps the finest texture, antialiasing removes it.
"""

# %%
# A condition is written as steps joined by ``+``; :doc:`/conditions` lists them. An image becomes a float32 tensor
# (3, S, S) in [0, 1].

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image

from pfungst.conditions import RESIZERS, Condition

photograph = Image.fromarray(load_sample_image("china.jpg"))
resizers = [name for name in RESIZERS if name != "none"]
prepared = {name: Condition.parse(name)(photograph, 96) for name in resizers}

fig, axes = plt.subplots(3, 4, figsize=(9, 7.2), layout="constrained")
for ax, (name, image) in zip(axes.flat, prepared.items(), strict=True):
    ax.imshow(image[:, 40:80, 28:68].permute(1, 2, 0))
    ax.set_title(name, fontsize=9)
    ax.axis("off")
fig.suptitle("the middle of the same photograph at 96 px")
plt.show()

# %%
# How much of the variance lies in the highest quarter of the spatial frequencies? Relative to the smoothest of them,
# nearest neighbour keeps several times as much.

import torch


def fine(image: torch.Tensor) -> float:
    """Share of the variance above 3/8 of the sampling frequency, of an image (3, S, S)."""
    power = (
        torch.fft.fft2(image - image.mean((1, 2), keepdim=True)).abs().square().sum(0)
    )
    frequency = torch.fft.fftfreq(len(power)).abs()
    high = torch.maximum(frequency[:, None], frequency) > 3 / 8
    return float(power[high].sum() / power.sum())


shares = {name: fine(image) for name, image in prepared.items()}
fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
order = sorted(shares, key=shares.get)
ax.barh(order, [shares[name] for name in order])
ax.set_xlabel("share of the variance at high frequencies")
plt.show()
