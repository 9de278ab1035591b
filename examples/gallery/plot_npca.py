"""
Neural PCA of a network trained on ImageNet
===========================================

A class's logit is a sum over features. The principal components of that sum, over the images of the class, are what the images
of the class differ in; some of them may have nothing to do with the class.
"""

# %%
# 240 random crops of a photograph of a flower and of a temple; the classes are what an ImageNet network answers.

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from pfungst.conditions import Condition
from pfungst.encoders import load
from pfungst.relevance import Patches, attribute
from pfungst.spurious import FeatureHead, NeuralPCA

head = FeatureHead(load("mobilenetv2", "classifier", size=96).model)
encoder = load("mobilenetv2", size=96)  # its features without the head
condition, rng = Condition.parse("pillow-bicubic"), np.random.default_rng(0)
crops = []
for array in load_sample_images().images:
    photograph = Image.fromarray(array)
    for _ in range(120):
        side = int(rng.integers(150, 400))
        x, y = rng.integers(0, 640 - side), rng.integers(0, 427 - side)
        crops.append(condition(photograph.crop((x, y, x + side, y + side)), 96))
images = torch.stack(crops)
with torch.no_grad():
    parts = [head.features_and_logits(part) for part in images.split(32)]
features, answers = (torch.cat(values) for values in zip(*parts, strict=True))
answers = answers.argmax(1)
class_ = int(answers.mode().values)
print("class", class_, "is the answer for", int((answers == class_).sum()), "crops")

# %%
# α of a component is what it adds to the logit of the class. The five crops that have most of each of the first three
# components, and where in the first of them α comes from:

npca = NeuralPCA(8).fit(head, features, answers, classes=[class_])
share = npca.explained_variance_ratio(class_)
fig, axes = plt.subplots(3, 6, figsize=(10, 5.4), layout="constrained")
for component, row in enumerate(axes):
    best = npca.top_images(class_, component, 5)
    for ax, (name, alpha) in zip(row, best, strict=False):
        ax.imshow(images[int(name)].permute(1, 2, 0))
        ax.set_title(f"α {alpha:.1f}", fontsize=9)
    x = images[int(best[0][0])][None]
    score = npca.alpha_of(class_, component)
    attribute(encoder, x, score, "epsilon_gamma", Patches(4)).plot(0, ax=row[5])
    row[0].set_ylabel(f"{share[component]:.0%} of the variance")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()
