"""
Composites side by side
=======================

A composite says which rule each layer gets. All of them conserve the score; they differ in what counts as contribution.
"""

# %%

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image

from pfungst.conditions import Condition
from pfungst.encoders import load
from pfungst.relevance import attribute

classifier = load("efficientnet-lite0", "classifier")
model, preprocessing = classifier.model, classifier.preprocessing
photograph = Image.fromarray(load_sample_image("flower.jpg"))
image = Condition.parse(preprocessing.condition)(photograph, preprocessing.size)[None]
top = int(model(image).argmax())

# %%
# ``lost`` is the share of the score that the rules lost, which ``auto`` avoids; ``bias share`` is what additive constants
# absorbed. In this network they absorb nearly all of it under most rules: the maps say where, and hardly how much.

names = ["auto", "epsilon_gamma", "epsilon_plus_flat", "epsilon_alpha2_beta1"]
names += ["lrp_zero", "gradient"]
fig, axes = plt.subplots(2, 3, figsize=(10, 6.6), layout="constrained")
for ax, name in zip(axes.flat, names, strict=True):
    relevance = attribute(model, image, top, name, measure=True)
    relevance.plot(0, ax=ax)
    lost = "" if relevance.lost is None else f", lost {relevance.lost:.1%}"
    ax.set_title(f"{name}\nbias share {relevance.bias_share:.0%}{lost}", fontsize=9)
    ax.axis("off")
plt.show()
