"""
Discovery: nobody named the watermark
=====================================

The explanations of a class are clustered. What the images of a cluster share is removed from them and put into images of other
classes: what carries the class there, and is missed by nobody here, is a shortcut.
"""

# %%

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from pfungst.audit.classifier import demo
from pfungst.audit.demo import WEIGHTS
from pfungst.discover import ClassSubject, correct, explain, find
from pfungst.spurious import FeatureHead

model = demo.model()
model.load_state_dict(load_file(WEIGHTS / "classifier.safetensors"))
head = FeatureHead(model, example=torch.rand(2, 3, demo.SIZE, demo.SIZE))
images, labels = demo.as_tensors(demo.render(demo.SEED)["train"])
sevens, others = images[labels == demo.MARKED], images[labels != demo.MARKED][:64]
get = lambda rows: sevens[list(rows)]
explained = explain(head, demo.MARKED, get, len(sevens))
found, clusterings = find(
    ClassSubject(head, demo.MARKED), explained, get, others, n_images=10
)
for name, parts in clusterings.items():
    print(f"{name}: {parts.n_clusters} clusters of {len(sevens)} images")

# %%
# The findings, what is proved first: the mean heatmap of the cluster, and its most typical images.

found = correct(found)
for finding in found[:3]:
    print(
        f"{finding.view}, {finding.kind}, {finding.share:.0%} of the images:",
        finding.proof.reason,
    )
fig, axes = plt.subplots(3, 6, figsize=(10, 5.2), layout="constrained")
for row, finding in zip(axes, found, strict=False):
    limit = abs(finding.map).max()
    row[0].imshow(finding.map, cmap="seismic", vmin=-limit, vmax=limit)
    row[0].set_title(f"{finding.view}: {finding.kind}", fontsize=9)
    for ax, index in zip(row[1:], finding.rows, strict=False):
        ax.imshow(sevens[int(index)].permute(1, 2, 0))
for ax in axes.flat:
    ax.axis("off")
plt.show()
