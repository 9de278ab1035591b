"""
Does the score follow the defect, or where the image comes from?
================================================================

Two cameras, one of which is noisier. A detector that was trained on both still scores the noise.
"""

# %%
# Half of the normal images and 80 % of the defects come from the noisy camera.

import matplotlib.pyplot as plt
import numpy as np
import torch

from pfungst.anomaly import D2Neighbors
from pfungst.datasets import digits_c
from pfungst.measure import provenance

digits = digits_c("dotted_line", train=400, good=150, anomalous=150)[0]
digits = digits.prepare("none", None)
is_train, labels = digits.splits == "train", digits.labels
rng = np.random.default_rng(0)
noisy = rng.random(len(labels)) < np.where(labels == 1, 0.8, 0.5)
noise = 0.3 * torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
images = (digits.images + noise * torch.from_numpy(noisy)[:, None, None, None]).clamp(
    0, 1
)
detector = D2Neighbors().fit(images[torch.from_numpy(is_train)])
scores = detector.anomaly_score(images[torch.from_numpy(~is_train)]).numpy()
labels, camera = labels[~is_train], np.where(noisy, "noisy", "clean")[~is_train]

# %%
# The share of the score's variance that the camera explains, against that of the label; and the AUROC over all images
# against the one within each camera.

found = provenance(scores, labels, camera)
print(
    f"explained by the camera {found.eta2_group:.2f}, the label {found.eta2_label:.2f}"
)
print(f"AUROC {found.auroc_pooled:.2f}, within a camera {found.auroc_within:.2f}")
print("follows the camera:", found.follows_group, *found.reasons)

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for k, name in enumerate(("clean", "noisy")):
    for label, colour in ((0, "tab:blue"), (1, "tab:red")):
        rows = (camera == name) & (labels == label)
        jitter = rng.uniform(-0.12, 0.12, rows.sum())
        x = k + 0.3 * label + jitter
        ax.scatter(x, scores[rows], s=8, color=colour, alpha=0.6)
ax.set_xticks([0.15, 1.15], ["clean camera", "noisy camera"])
ax.set_ylabel("anomaly score")
ax.set_title("blue: normal, red: with a dotted line")
plt.show()
