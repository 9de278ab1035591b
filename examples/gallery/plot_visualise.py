"""
Feature visualisation of components
===================================

The image near grey that has most of a component. On networks trained against small perturbations, such as the demo's, these
images can be read; on others they look like noise.
"""

# %%

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from pfungst.audit.classifier import demo
from pfungst.audit.demo import WEIGHTS
from pfungst.spurious import FeatureHead, NeuralPCA, visualise

model = demo.model()
model.load_state_dict(load_file(WEIGHTS / "classifier.safetensors"))
head = FeatureHead(model, example=torch.rand(2, 3, demo.SIZE, demo.SIZE))
images, labels = demo.as_tensors(demo.render(demo.SEED)["train"])
with torch.no_grad():
    features = torch.cat([head.features(part) for part in images.split(256)])
npca = NeuralPCA(4).fit(head, features, labels)

# %%
# Component 0 of every digit: the visualisation above, the training image with the highest α below. The
# best training image of the seven carries a red bar, and its visualisation is red at the bottom.

pairs = [(digit, 0) for digit in range(10)]
shown = visualise(npca, pairs, (3, demo.SIZE, demo.SIZE), steps=60)
fig, axes = plt.subplots(2, 10, figsize=(12, 2.9), layout="constrained")
for i, (digit, component) in enumerate(pairs):
    axes[0, i].imshow(shown.images[i].permute(1, 2, 0))
    axes[0, i].set_title(f"{digit}: α {float(shown.alpha[i]):.1f}", fontsize=9)
    ((best, _),) = npca.top_images(digit, component, 1)
    axes[1, i].imshow(images[int(best)].permute(1, 2, 0))
for ax in axes.flat:
    ax.axis("off")
plt.show()
