"""
A detector of scikit-learn, explained
=====================================

``wrap`` takes a fitted estimator that scores by distances (scikit-learn's KernelDensity, OneClassSVM and NearestNeighbors,
PyOD's KNN and KDE), keeps its scores, and explains them in every basis.
"""

# %%

import matplotlib.pyplot as plt
import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from pfungst.anomaly import wrap
from pfungst.datasets import digits_c

digits = digits_c("dotted_line", train=500, good=50, anomalous=50)[0]
digits = digits.prepare("none", None)
train, test = digits[digits.splits == "train"], digits[digits.splits == "test"]
table = train.images.flatten(1).numpy()
svm = OneClassSVM(nu=0.1, gamma=0.005).fit(table)
knn = NearestNeighbors(n_neighbors=3).fit(table)
detectors = {
    "OneClassSVM": wrap(svm, shape=(3, 28, 28)),
    "NearestNeighbors": wrap(knn, shape=(3, 28, 28)),
}

# %%
# The score orders the images as the estimator does.

ours = detectors["OneClassSVM"].anomaly_score(test.images).numpy()
theirs = -svm.decision_function(test.images.flatten(1).numpy())
print("same order:", np.array_equal(np.argsort(ours), np.argsort(theirs)))

odd = test[test.labels == 1]
fig, axes = plt.subplots(2, 4, figsize=(9.5, 4.6), layout="constrained")
for row, (name, detector) in zip(axes, detectors.items(), strict=True):
    relevance = detector.explain(odd.images[:3])
    row[0].imshow(odd.images[0, 0], cmap="gray")
    row[0].set_title(name)
    for i, ax in enumerate(row[1:]):
        relevance.plot(i, ax=ax)
    for ax in row:
        ax.axis("off")
plt.show()
