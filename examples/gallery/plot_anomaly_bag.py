"""
A bag of detectors, and who says what
=====================================

The mean of several detectors' scores, each standardised on normal images that none of them saw. The explanation is the mean
of theirs, in the same units.
"""

# %%

import matplotlib.pyplot as plt
import torch
from sklearn.metrics import roc_auc_score

from pfungst.anomaly import detector_from_spec
from pfungst.datasets import digits_c

digits = digits_c("spatter", train=600, good=100, anomalous=100)[0]
digits = digits.prepare("none", None)
train, test = digits[digits.splits == "train"], digits[digits.splits == "test"]
bag = detector_from_spec("bag:kde+autoencoder:epochs=8,code=24").fit(train)
alone = {name: detector_from_spec(name).fit(train) for name in ("kde", "d2neighbors")}
for name, detector in {"bag": bag, **alone}.items():
    score = detector.anomaly_score(test)
    print(f"{name}: AUROC {roc_auc_score(test.labels, score):.3f}")

# %%
# Relevance of the bag: values and bias sum to its score.

odd = test[test.labels == 1][:5]
relevance = bag.explain(odd)
whole = relevance.values.flatten(1).sum(1) + relevance.bias
torch.testing.assert_close(whole, relevance.score, rtol=1e-5, atol=0)
fig, axes = plt.subplots(2, 5, figsize=(10, 4), layout="constrained")
for i, (top, bottom) in enumerate(axes.T):
    top.imshow(odd.images[i, 0], cmap="gray")
    relevance.plot(i, ax=bottom)
for ax in axes.flat:
    ax.axis("off")
plt.show()
