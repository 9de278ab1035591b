"""
Kernel density: two kernels, two explanations
=============================================

The negative log density under a Gaussian kernel is a soft minimum of distances; under the heavy tails of a Student kernel
it is a harmonic mean. What each of them says of the same corrupted digit:
"""

# %%
# Digits under a corruption of MNIST-C, with the exact change as mask; rendered from scikit-learn's digits.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from pfungst.anomaly import KDE
from pfungst.datasets import digits_c
from pfungst.measure import mask_agreement

digits = digits_c("zigzag", train=500, good=100, anomalous=100)[0].prepare("none", None)
train, test = digits[digits.splits == "train"], digits[digits.splits == "test"]
detectors = {kernel: KDE(kernel).fit(train) for kernel in ("gaussian", "student")}

# %%
# How well each separates, and how well its relevance agrees with what was changed: the cosine with the mask.

odd = np.flatnonzero(test.labels == 1)
fig, axes = plt.subplots(2, 4, figsize=(9.5, 4.6), layout="constrained")
for row, (name, detector) in zip(axes, detectors.items(), strict=True):
    relevance = detector.explain(test[odd])
    auroc = roc_auc_score(test.labels, detector.anomaly_score(test))
    agreement = np.nanmean(mask_agreement(relevance.values, test[odd].masks))
    print(f"{name}: AUROC {auroc:.2f}, agreement with the masks {agreement:.2f}")
    row[0].imshow(test[odd].images[0, 0], cmap="gray")
    row[0].set_title(name)
    for i, ax in enumerate(row[1:]):
        relevance.plot(i, ax=ax)
    for ax in row:
        ax.axis("off")
plt.show()
