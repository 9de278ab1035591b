"""
Watching: have the images changed since the audit?
==================================================

An audit keeps a reference of what its model says and where its relevance lies. New images need no labels to be held against
it.
"""

# %%
# An audit of plates, and two batches of new ones: from the same camera, and from one that sharpens.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import ImageFilter

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.run import run
from pfungst.audit.watch import watch
from pfungst.datasets.synthetic import make_parts, write

folder = Path(tempfile.mkdtemp())
parts = make_parts("stamped_plate", train=30, good=20, defective=12, size=320)[0]
write(folder / "parts", [parts])
run(
    AnomalyConfig.build(
        data=folder / "parts",
        size=64,
        seeds=1,
        original="opencv-nearest",
        deployed="pillow-bilinear",
        mitigate="blur",
        out=folder / "audit",
    )
)
new = make_parts("stamped_plate", train=0, good=20, defective=0, size=320, seed=9)[0]
for name in ("same", "sharpened"):
    (folder / name).mkdir()
    for item in new.items:
        picture = item.read()
        if name == "sharpened":
            picture = picture.filter(ImageFilter.UnsharpMask(1, 300))
        picture.save(folder / name / Path(item.id).name)

# %%
# Distances of the distributions, for each quantity; what is filled has shifted.

results = {n: watch(folder / "audit", folder / n) for n in ("same", "sharpened")}
for name, result in results.items():
    print(f"{name}: {result.verdict.level} - {result.verdict.headline}")
fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for name, colour in (("same", "tab:blue"), ("sharpened", "tab:red")):
    for q in results[name].quantities:
        face = colour if q.shifted else "none"
        ax.plot(q.distance, q.name, "o", markeredgecolor=colour, markerfacecolor=face)
ax.set(xlabel="distance from the reference, 0 to 1", xlim=(0, 1))
ax.set_title("blue: the same camera, red: one that sharpens")
plt.show()
