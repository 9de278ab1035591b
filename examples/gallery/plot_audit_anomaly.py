"""
An audit in five lines, and what it says
========================================

From images in memory to a verdict: how well does a detector work, what does deployment behind another resizer cost, and does a
blur inside the model mend it?
"""

# %%

import tempfile
from pathlib import Path

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
    masks=[None if m is None else m for m in (i.read_mask() for i in items["test"])],
    size=96,
    original="opencv-nearest",
    deployed="pillow-bilinear",
    mitigate="blur",
    out=out,
)
print(result.verdict.level, "-", result.verdict.headline)
for sentence in result.verdict.shown:
    print("  ", sentence)

# %%
# The scores that the report's histograms show, from the same folder:

entry = result.entries[0]
print({str(s.variant): round(s.auroc.value, 3) for s in entry.scores})
print(sorted(path.name for path in out.iterdir()))
