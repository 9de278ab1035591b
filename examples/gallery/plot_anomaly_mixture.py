"""
Gaussian mixture: distances in units of the spread
==================================================

The Mahalanobis distance to each of a few components, and a soft minimum of them. The same deviation counts more where normal
images vary little.
"""

# %%

import matplotlib.pyplot as plt
from sklearn.metrics import roc_auc_score

from pfungst.anomaly import D2Neighbors, GaussianMixture
from pfungst.datasets import digits_c

digits = digits_c("dotted_line", size=14, train=700, good=100, anomalous=100)[0]
digits = digits.prepare("none", None)
train, test = digits[digits.splits == "train"], digits[digits.splits == "test"]
detectors = {
    "mixture of 4": GaussianMixture(components=4).fit(train),
    "D2Neighbors": D2Neighbors().fit(train),
}
for name, detector in detectors.items():
    score = detector.anomaly_score(test)
    print(f"{name}: AUROC {roc_auc_score(test.labels, score):.3f}")

# %%
# To the mixture, ink counts most where digits never have any, as the variance is close to nothing there.

odd = test[test.labels == 1]
fig, axes = plt.subplots(2, 4, figsize=(9.5, 4.6), layout="constrained")
for row, (name, detector) in zip(axes, detectors.items(), strict=True):
    relevance = detector.explain(odd)
    row[0].imshow(odd.images[0, 0], cmap="gray")
    row[0].set_title(name)
    for i, ax in enumerate(row[1:]):
        relevance.plot(i, ax=ax)
    for ax in row:
        ax.axis("off")
plt.show()
