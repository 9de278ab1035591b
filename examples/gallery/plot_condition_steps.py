"""
Steps of a condition: what happens to images on the way
=======================================================

Compression, blur, noise, colour: each is a step that is written into a condition, with its strength. What a model makes of
each is measured by ``--conditions`` of the audits.
"""

# %%
# Steps before the resizer act on the original image, steps after it on the small one.

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image

from pfungst.conditions import Condition

photograph = Image.fromarray(load_sample_image("flower.jpg"))
steps = ["", "jpeg:10", "blur:1.5", "noise:0.1", "sharpen:2", "quantize:4"]
steps += ["dither:4", "saltpepper:0.05", "brightness:1.5", "contrast:0.4"]
steps += ["saturation:0", "watermark:SAMPLE"]
texts = ["pillow-bilinear" + (f"+{step}" if step else "") for step in steps]
fig, axes = plt.subplots(3, 4, figsize=(9, 7.2), layout="constrained")
for ax, text in zip(axes.flat, texts, strict=True):
    ax.imshow(Condition.parse(text)(photograph, 96).permute(1, 2, 0))
    ax.set_title(text.removeprefix("pillow-bilinear+"), fontsize=9)
    ax.axis("off")
plt.show()

# %%
# The order counts. Blur of σ = 2 px of the photograph and of the small image:

fig, axes = plt.subplots(1, 2, figsize=(6, 3.2), layout="constrained")
orders = ("blur:2+pillow-bilinear", "pillow-bilinear+blur:2")
for ax, text in zip(axes, orders, strict=True):
    ax.imshow(Condition.parse(text)(photograph, 96).permute(1, 2, 0))
    ax.set_title(text, fontsize=9)
    ax.axis("off")
plt.show()
