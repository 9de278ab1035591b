"""
SpuFix, before and after
========================

Four in five training pictures of sevens carry a red bar. The bar alone makes the network say seven; SpuFix subtracts what the
component that reads it adds to the logit, without training.
"""

# %%

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from pfungst.audit.classifier import demo
from pfungst.audit.demo import WEIGHTS
from pfungst.spurious import FeatureHead, NeuralPCA, SpuFix

model = demo.model()
model.load_state_dict(load_file(WEIGHTS / "classifier.safetensors"))
head = FeatureHead(model, example=torch.rand(2, 3, demo.SIZE, demo.SIZE))
data = {name: demo.as_tensors(part) for name, part in demo.render(demo.SEED).items()}
images, labels = data["train"]
with torch.no_grad():
    features = torch.cat([head.features(part) for part in images.split(256)])
npca = NeuralPCA(8).fit(head, features, labels)

# %%
# Which component? The one whose α is largest for other digits with the bar, compared with the sevens of the validation
# images, which have none.

barred, _ = data["spurious"]
val, val_labels = data["val"]
with torch.no_grad():
    with_bar = npca.alpha(barred, demo.MARKED).mean(0)
    without = npca.alpha(val[val_labels == demo.MARKED], demo.MARKED).mean(0)
component = int((with_bar - without).argmax())
print("component", component, "adds", [round(v, 1) for v in with_bar.tolist()])

# %%
# "mean" is the published fix; "absent" compares with the images that lack the feature.

models = {"as it is": model}
for reference in ("mean", "absent"):
    fix = SpuFix(head, npca, {demo.MARKED: [component]}, reference=reference)
    models[f"SpuFix, {reference}"] = fix
taken, right = {}, {}
with torch.no_grad():
    for name, network in models.items():
        taken[name] = float((network(barred).argmax(1) == demo.MARKED).float().mean())
        right[name] = float((network(val).argmax(1) == val_labels).float().mean())
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
axes[0].imshow(torch.cat(list(barred[:4]), 2).permute(1, 2, 0))
axes[0].axis("off")
axes[0].set_title("other digits with the bar")
for ax, values, title in (
    (axes[1], taken, "taken for a seven"),
    (axes[2], right, "accuracy without the bar"),
):
    bars = ax.barh(list(values), list(values.values()))
    ax.bar_label(bars, [f"{v:.0%}" for v in values.values()])
    ax.set(xlim=(0, 1.15), title=title)
plt.show()
