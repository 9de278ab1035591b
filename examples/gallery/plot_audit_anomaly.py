"""
An audit in five lines, and what it says
========================================

From images in memory to a verdict: how well does a detector work, what does deployment behind another resizer cost, and does a
blur inside the model mend it?
"""

# %%

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import pfungst as pf
from pfungst.datasets.synthetic import make_parts

parts = make_parts("stamped_plate", train=30, good=20, defective=20, size=480)[0]
out = Path(tempfile.mkdtemp()) / "audit"
items = {
    split: [i for i in parts.items if i.split == split] for split in ("train", "test")
}
result = pf.audit_anomaly(
    [item.read() for item in items["train"]],
    [item.read() for item in items["test"]],
    [item.label for item in items["test"]],
    masks=[item.read_mask() for item in items["test"]],
    size=96,
    seeds=1,
    original="opencv-nearest",
    deployed="pillow-bilinear",
    mitigate="blur",
    out=out,
)
print(result.verdict.level, "-", result.verdict.headline)
for sentence in result.verdict.shown:
    print("  ", sentence)

# %%
# Scores of the test images under each variant, from the arrays that lie beside the result; the line is the threshold.

entry = result.entries[0]
arrays = np.load(out / entry.arrays)
fig, axes = plt.subplots(1, len(entry.scores), figsize=(10, 3), layout="constrained")
for ax, scores in zip(axes, entry.scores, strict=True):
    values = arrays[f"scores_{scores.variant.key}"]
    bins = np.linspace(values.min(), values.max(), 25)
    for label, name in enumerate(("good", "defective")):
        ax.hist(values[arrays["labels"] == label], bins, alpha=0.6, label=name)
    ax.axvline(
        float(arrays[f"threshold_{scores.variant.key}"]),
        color="black",
        label="threshold",
    )
    ax.set_title(f"{scores.variant}: F1 {scores.f1.value:.2f}", fontsize=10)
axes[0].legend(fontsize=8)
plt.show()
print(sorted(path.name for path in out.iterdir()))
