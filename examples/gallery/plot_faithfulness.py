"""
Does an explanation explain? Faithfulness curves
================================================

Patches are replaced in the order of a map. If the map knows what the model uses, the score falls sooner than in a random
order, and later when the least relevant go first.
"""

# %%
# Crops of two photographs, and what an ImageNet network answers for each.

import matplotlib.pyplot as plt
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from pfungst.conditions import Condition
from pfungst.encoders import load
from pfungst.measure.faithfulness import Flipping, gradient_times_input, random_maps
from pfungst.relevance import attribute

model = load("mobilenetv2", "classifier", size=128).model
condition = Condition.parse("pillow-bicubic")
crops = []
for array in load_sample_images().images:
    photograph = Image.fromarray(array)
    for left in (0, 100, 213):
        for top in (0, 100):
            crops.append(
                condition(photograph.crop((left, top, left + 320, top + 320)), 128)
            )
images = torch.stack(crops)
with torch.no_grad():
    target = model(images).argmax(1)
print("classes", target.tolist())

# %%
# Every map is measured on the same images, with the same replacement and the same random orders.

flipping = Flipping(model, images, patch=16, target=target, orders=2, steps=8)
maps = {
    "LRP epsilon_gamma": attribute(model, images, target, "epsilon_gamma").values,
    "gradient × input": gradient_times_input(model, images, target),
    "noise": random_maps(images),
}
found = {name: flipping.of(values.detach()) for name, values in maps.items()}
for name, result in found.items():
    print(f"{name}: {result}")

fig, axes = plt.subplots(
    1, len(found), figsize=(11, 3.4), layout="constrained", sharey=True
)
for ax, (name, result) in zip(axes, found.items(), strict=True):
    for curve, label in zip(result.curves, ("most", "least", "random"), strict=True):
        ax.plot(result.replaced, curve, label=f"{label} relevant first")
    ax.set(title=f"{name}\n{result.value:+.2f}", xlabel="share of patches replaced")
axes[0].set_ylabel("logit")
axes[0].legend(["most relevant first", "least relevant first", "random order"])
plt.show()
