"""
All outputs at once
===================

For a fixed input the rewritten network is a linear map. ``linearize`` reads it off once and then explains every output, one
row each; ``Replay`` explains many inputs of one shape, recorded once on a GPU.
"""

# %%
# A small classifier of digits that comes with Pfungst.

import time

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from pfungst.audit.classifier import demo
from pfungst.audit.demo import WEIGHTS
from pfungst.relevance import Patches, Pixels, Replay, attribute, linearize

model = demo.model()
model.load_state_dict(load_file(WEIGHTS / "classifier.safetensors"))
model.eval()
images, labels = demo.as_tensors(demo.render(demo.SEED)["val"])
x = images[:8]

# %%
# Ten classes of eight images: one program, or eighty explanations.

started = time.perf_counter()
lin = linearize(model, x, "epsilon_gamma")
rows = lin.rows(torch.eye(10), Pixels())
together = time.perf_counter() - started
started = time.perf_counter()
alone = [attribute(model, x, k, "epsilon_gamma").values for k in range(10)]
print(f"together {together:.2f} s, one by one {time.perf_counter() - started:.2f} s")

factor = lin.factor(Patches(4))
print("relevance of every output in every patch:", tuple(factor.shape))
fig, axes = plt.subplots(1, 11, figsize=(14, 1.8), layout="constrained")
axes[0].imshow(x[0].permute(1, 2, 0))
limit = float(factor[0].abs().max())
for k, ax in enumerate(axes[1:]):
    ax.imshow(factor[0, k].reshape(8, 8), cmap="seismic", vmin=-limit, vmax=limit)
    ax.set_title(f"{k}: {float(lin.output[0, k]):.1f}", fontsize=9)
for ax in axes:
    ax.axis("off")
plt.show()

# %%
# ``Replay`` gives what ``attribute`` gives; without a GPU it is the plain call.

replay = Replay(model, x, 3, "epsilon_gamma")
print(
    float(
        (
            replay(images[8:16]).values
            - attribute(model, images[8:16], 3, "epsilon_gamma").values
        )
        .abs()
        .max()
    )
)
