"""
What a probe on an encoder reads
================================

A linear probe tells digits by the representations of an encoder. In training one hospital's name is on most eights; the heatmap
of the probe's decision shows that it reads the name.
"""

# %%
# The encoder and the pictures are those of the demo.

import matplotlib.pyplot as plt
import torch

from pfungst.audit.demo import WEIGHTS
from pfungst.datasets import parting_digits
from pfungst.encoders import load
from pfungst.probes import LogisticRegression, explain_probe

encoder = load(f"pfungst:{WEIGHTS}")
digits = parting_digits(seed=1907).prepare("none", None)
with torch.no_grad():
    representations = torch.cat(
        [encoder(part) for part in digits.images.split(256)]
    ).numpy()
names = digits.group("source")
labels = [item.label for item in digits.items]
train = digits.splits == "train"
eight = [label == "8" for label in labels]
probe = LogisticRegression().fit(
    representations[train], [e for e, t in zip(eight, train, strict=True) if t]
)

# %%
# Accuracy on test images with and without the name:

answer = probe.predict(representations)
for name in ("hospital A", "hospital B"):
    rows = ~train & (names == name)
    right = [a == e for a, e, r in zip(answer, eight, rows, strict=True) if r]
    print(f"{name}: {sum(right) / len(right):.2f} of {len(right)}")

# %%
# What speaks for "eight" in other digits that carry the name:

rows = [
    i
    for i in range(len(labels))
    if not train[i] and names[i] == "hospital A" and not eight[i]
][:6]
relevance = explain_probe(probe, encoder, digits.images[rows])
fig, axes = plt.subplots(2, 6, figsize=(10, 3.8), layout="constrained")
for i, (top, bottom) in enumerate(axes.T):
    top.imshow(digits.images[rows[i]].permute(1, 2, 0))
    relevance.plot(i, ax=bottom)
for ax in axes.flat:
    ax.axis("off")
plt.show()
