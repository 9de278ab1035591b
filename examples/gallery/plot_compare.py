"""
Two audits compared
===================

The same images, two detectors: what got better, what got worse, and is the difference more than chance? On the command line:
``pfungst compare FIRST SECOND``.
"""

# %%

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import pfungst as pf
from pfungst.audit.compare import compare
from pfungst.datasets import digits_c

digits = digits_c("dotted_line", train=300, good=80, anomalous=80)[0]
items = {s: [i for i in digits.items if i.split == s] for s in ("train", "test")}
folder = Path(tempfile.mkdtemp())
for name, model in (("first", "kde"), ("second", "mixture:components=2")):
    pf.audit_anomaly(
        [item.read() for item in items["train"]],
        [item.read() for item in items["test"]],
        [item.label for item in items["test"]],
        seeds=1,
        model=model,
        mitigate="none",
        out=folder / name,
    )
result = compare(folder / "first", folder / "second")
print(result.verdict.headline)
for sentence in result.verdict.shown:
    print("  ", sentence)

# %%
# The differences with their 95 % intervals, over the images that both saw:

changes = [c for c in result.changes if c.change.low is not None]
fig, ax = plt.subplots(figsize=(7, 0.5 + 0.4 * len(changes)), layout="constrained")
for y, c in enumerate(changes):
    ax.plot([c.change.low, c.change.high], [y, y], color="tab:gray")
    ax.plot(c.change.value, y, "o", color="tab:blue")
ax.set_yticks(range(len(changes)), [f"{c.words}, {c.variant}" for c in changes])
ax.axvline(0, color="black", linewidth=0.8)
ax.set_xlabel("second less first")
plt.show()
