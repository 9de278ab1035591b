"""
What makes two photographs alike
================================

BiLRP explains a similarity: not the relevance of pixels, but of pairs of them, one in each image. The values of all
pairs sum to the dot product of the two embeddings.
"""

# %%
# Two crops of one photograph, and the encoder of an ImageNet network.

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image

from pfungst.conditions import Condition
from pfungst.encoders import load
from pfungst.relevance import Patches
from pfungst.similarity import SimilarityExplainer, strongest

encoder = load("mobilenetv2", size=128)
photograph = Image.fromarray(load_sample_image("china.jpg"))
condition = Condition.parse("pillow-bicubic")
left = condition(photograph.crop((0, 27, 400, 427)), 128)
right = condition(photograph.crop((240, 27, 640, 427)), 128)

# %%
# The encoder has 1,280 neurons. A sketch of 64 random directions estimates the pair without bias at a fraction of the
# passes; ``error`` is half the width of the 95 % interval of each value.

explainer = SimilarityExplainer(encoder, "epsilon_gamma", basis=Patches(16), sketch=64)
pair = explainer.pair(left, right)
print(pair, f"similarity {float(pair.score[0]):.1f}")

# %%
# Each line joins two patches; red ones make the photographs alike, blue ones different. The 120 strongest of 4,096:

fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
ax.imshow(left.permute(1, 2, 0), extent=(0, 128, 128, 0))
ax.imshow(right.permute(1, 2, 0), extent=(160, 288, 128, 0))
found = strongest(pair.values[0], 120)
largest = abs(found[0][2])
for p, q, value in reversed(found):
    y, x = divmod(p, 8)
    v, u = divmod(q, 8)
    colour = "tab:red" if value > 0 else "tab:blue"
    ax.plot(
        [16 * x + 8, 168 + 16 * u],
        [16 * y + 8, 16 * v + 8],
        colour,
        alpha=min(1, abs(value) / largest),
    )
ax.set(xlim=(0, 288), ylim=(128, 0))
ax.axis("off")
plt.show()
