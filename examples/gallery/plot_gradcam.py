"""
GradCAM and relevance propagation
=================================

GradCAM weights the channels of one layer; its maps are as coarse as that layer and do not sum to the score. Relevance
propagation goes down to the pixels, and does.
"""

# %%

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image

from pfungst.conditions import Condition
from pfungst.encoders import load
from pfungst.relevance import Patches, attribute, gradcam

classifier = load("efficientnet-lite0", "classifier")
model, preprocessing = classifier.model, classifier.preprocessing
photograph = Image.fromarray(load_sample_image("flower.jpg"))
image = Condition.parse(preprocessing.condition)(photograph, preprocessing.size)[None]
top = int(model(image).argmax())

# %%
# A layer is named as in ``model.named_modules()``.

layers = [name for name, _ in model.named_modules() if name.endswith("conv_head")]
layers += [
    name for name, _ in model.named_modules() if name.endswith(("blocks.4", "blocks.2"))
]
maps = {f"GradCAM {name}": gradcam(model, image, name, top) for name in layers}
fig, axes = plt.subplots(1, 2 + len(maps), figsize=(13, 3), layout="constrained")
axes[0].imshow(image[0].permute(1, 2, 0))
for ax, (name, values) in zip(axes[1:], maps.items(), strict=False):
    ax.imshow(image[0].permute(1, 2, 0))
    ax.imshow(values[0].detach(), cmap="jet", alpha=0.5)
    ax.set_title(name, fontsize=9)
relevance = attribute(model, image, top, "epsilon_gamma", Patches(7))
relevance.plot(0, ax=axes[-1])
axes[-1].set_title("relevance of patches of 7 px", fontsize=9)
for ax in axes:
    ax.axis("off")
plt.show()
print(relevance, "sum and bias:", float(relevance.values.sum() + relevance.bias[0]))
