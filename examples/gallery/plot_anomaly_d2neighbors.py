"""
D2Neighbors: in pixels and in frequency bands
=============================================

The score is a soft minimum of the distances to all training images. Its explanation can be read in any basis, and in
each of them the parts sum to the score.
"""

# %%
# Rendered photographs of stamped plates, prepared by nearest-neighbour resizing, which keeps the sensor's grain.

import matplotlib.pyplot as plt

from pfungst.anomaly import D2Neighbors
from pfungst.datasets.synthetic import make_parts
from pfungst.relevance import DCTBands, PixelBands

parts = make_parts("stamped_plate", train=40, good=10, defective=12, size=480)[0]
images = parts.prepare("opencv-nearest", 96)
train, test = images[images.splits == "train"], images[images.splits == "test"]
detector = D2Neighbors().fit(train)
defects = test[test.labels == 1]
print(detector, detector.anomaly_score(defects))

# %%
# Pixels: where the image is unlike the training images.

relevance = detector.explain(defects)
print(relevance)
fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
axes[0].imshow(defects.images[0].permute(1, 2, 0))
axes[1].imshow(defects.masks[0], cmap="gray")
axes[0].set_title(defects.items[0].label)
axes[1].set_title("the defect's mask")
relevance.plot(0, ax=axes[2])
for ax in axes:
    ax.axis("off")
plt.show()

# %%
# Frequency bands: in which detail it is unlike them. Grain lies in the high bands.

fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
detector.explain(defects, DCTBands.paper()).plot(0, ax=ax)
plt.show()

# %%
# Both at once: pixels within bands. Summed over the bands they are the pixels, summed over the pixels the bands.

joint = detector.explain(defects, PixelBands.coarse())
joint.plot(0)
plt.show()
print(float((joint.values.sum(1) - relevance.values).abs().max()))
