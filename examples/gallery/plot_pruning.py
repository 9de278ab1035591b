"""
A pruned encoder
================

Which filters respond to a tag that has no business in an X-ray, here in a digit? A few are switched off, only where the tag
lies, and the representation no longer tells the hospital.
"""

# %%

import matplotlib.pyplot as plt
import torch
from torchvision.transforms.functional import to_tensor

from pfungst.audit.demo import WEIGHTS
from pfungst.datasets import parting_digits, tag_image
from pfungst.encoders import load
from pfungst.mitigate import filter_responses, prunable_layers, prune

encoder = load(f"pfungst:{WEIGHTS}")
digits = parting_digits(seed=0)
plain = digits.select(split="test", source="hospital B", limit=100)
plain = plain.prepare("none", None).images
tag = tag_image(height=6)
tagged = plain.clone()
pixels = to_tensor(tag.convert("RGB"))
top, left = 32 - tag.height - 1, 1
tagged[:, :, top : top + tag.height, left : left + tag.width] = pixels

# %%
# The mean activation of each filter with the tag, less that without.

layers = prunable_layers(encoder, 32)
responses = filter_responses(encoder, tagged, plain, layers)
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for name, response in responses.items():
    ax.plot(sorted(response.values.tolist(), reverse=True)[:16], label=name)
ax.set(xlabel="filter, by response", ylabel="activation with the tag − without")
ax.legend(fontsize=7)
plt.show()

# %%
# How far the tag moves a picture in the representation, as filters are switched off:

layer = max(responses, key=lambda name: responses[name].share(5))
cosine = torch.nn.functional.cosine_similarity
moved = {}
with torch.no_grad():
    for k in (0, 1, 2, 3, 5, 8):
        pruned = prune(encoder, responses[layer], k) if k else encoder
        moved[k] = float(cosine(pruned(plain), pruned(tagged)).mean())
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].imshow(torch.cat([plain[0], tagged[0]], 2).permute(1, 2, 0))
axes[0].axis("off")
axes[1].plot(list(moved), list(moved.values()), "o-")
axes[1].set(xlabel=f"filters of {layer} off", ylabel="cosine, with and without the tag")
plt.show()
