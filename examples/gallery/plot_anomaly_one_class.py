"""
One-class: far from the centre of a network's features
======================================================

The features of a trained network, whitened on normal images; the score is the squared distance to their centre. The
distance goes back through the whitening and then through the network.
"""

# %%

import matplotlib.pyplot as plt
from sklearn.metrics import roc_auc_score

from pfungst.anomaly import DeepOneClass
from pfungst.datasets.synthetic import make_parts
from pfungst.relevance import Patches

parts = make_parts("brush_hairs", train=40, good=15, defective=16, size=480)[0]
images = parts.prepare("pillow-bilinear", 128)
train, test = images[images.splits == "train"], images[images.splits == "test"]
detector = DeepOneClass("efficientnet-lite0").fit(train)
print(f"AUROC {roc_auc_score(test.labels, detector.anomaly_score(test)):.2f}")

# %%
# Red patches make the image abnormal, blue ones normal. The features are means over the whole image, so the relevance is
# spread wider than PatchCore's; biases of the network absorb nearly all of the score, and the map says where, not how much.

shown = test[test.labels == 1][:4]
relevance = detector.explain(shown, Patches(8))
print(relevance)
fig, axes = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
for i, (top, bottom) in enumerate(axes.T):
    top.imshow(shown.images[i].permute(1, 2, 0))
    top.contour(shown.masks[i], levels=[0.5], colors="red", linewidths=1)
    top.set_title(shown.items[i].label)
    relevance.plot(i, ax=bottom)
for ax in axes.flat:
    ax.axis("off")
plt.show()
