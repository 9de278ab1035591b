"""
Autoencoder: what could not be reconstructed
============================================

The score is the squared distance to the reconstruction. The explanation holds the reconstruction constant, so that each
pixel is given its own squared error, and nothing is lost.
"""

# %%
# Trained for a few seconds on digits; tested on digits with a dotted line.

import matplotlib.pyplot as plt
import torch
from sklearn.metrics import roc_auc_score

from pfungst.anomaly import Autoencoder
from pfungst.datasets import digits_c
from pfungst.relevance import DCTBands

digits = digits_c("dotted_line", train=600, good=60, anomalous=60)[0]
digits = digits.prepare("none", None)
train, test = digits[digits.splits == "train"], digits[digits.splits == "test"]
detector = Autoencoder(epochs=12, code=24).fit(train)
print(f"AUROC {roc_auc_score(test.labels, detector.anomaly_score(test)):.2f}")

# %%
# The line stands out, but so do edges of the digit that a small code does not hold.

odd = test[test.labels == 1][:5]
relevance = detector.explain(odd)
torch.testing.assert_close(relevance.values.flatten(1).sum(1), relevance.score)
fig, axes = plt.subplots(2, 5, figsize=(10, 4), layout="constrained")
for i, (top, bottom) in enumerate(axes.T):
    top.imshow(odd.images[i, 0], cmap="gray")
    relevance.plot(i, ax=bottom)
for ax in axes.flat:
    ax.axis("off")
plt.show()

# %%
# In frequency bands: what a small code cannot hold is fine detail.

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
detector.explain(odd, DCTBands(count=12)).plot(0, ax=ax)
plt.show()
