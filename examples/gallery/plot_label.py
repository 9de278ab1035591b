"""
A labelling task, and how much two people agree
===============================================

``pfungst label FOLDER`` shows the components of a classifier in the browser, to each person alone. The same folder can be made
and read from Python.
"""

# %%

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file
from torchvision.utils import save_image

from pfungst.audit.classifier import demo
from pfungst.audit.demo import WEIGHTS
from pfungst.label import ComponentItem, ComponentTask, ShownImage, Study, write_task
from pfungst.spurious import FeatureHead, NeuralPCA

model = demo.model()
model.load_state_dict(load_file(WEIGHTS / "classifier.safetensors"))
head = FeatureHead(model, example=torch.rand(2, 3, demo.SIZE, demo.SIZE))
images, labels = demo.as_tensors(demo.render(demo.SEED)["train"])
with torch.no_grad():
    parts = [head.features_and_logits(part) for part in images.split(256)]
features, logits = (torch.cat(values) for values in zip(*parts, strict=True))
npca = NeuralPCA(2).fit(head, features, labels)

# %%
# The first component of four digits, with the five training images that have most of it.

folder, items, shown = Path(tempfile.mkdtemp()), [], {}
for digit in (1, 3, 7, 8):
    best = npca.top_images(digit, 0, 5)
    shown[digit] = [int(name) for name, _ in best]
    pictures = []
    for row in shown[digit]:
        save_image(images[row], folder / f"{row}.png")
        pictures.append(ShownImage(file=f"{row}.png", id=str(row)))
    items.append(
        ComponentItem(
            id=f"digit {digit}",
            class_index=digit,
            class_name=str(digit),
            component=0,
            alpha=[alpha for _, alpha in best],
            confidence=logits[shown[digit]].softmax(1)[:, digit].tolist(),
            images=pictures,
        )
    )
write_task(folder, ComponentTask(title="digits", items=items))

fig, axes = plt.subplots(4, 5, figsize=(6, 5), layout="constrained")
for row, rows in zip(axes, shown.values(), strict=True):
    for ax, i in zip(row, rows, strict=True):
        ax.imshow(images[i].permute(1, 2, 0))
        ax.axis("off")
plt.show()

# %%
# Two people answer, here by the server's own call; what is settled, and how much they agree:

study = Study(folder, ["anna", "ben"])
answers = {"anna": "digit 7", "ben": "digit 7 digit 8"}
for person, spurious in answers.items():
    for item in items:
        answer = "spurious" if item.id in spurious else "not"
        study.act(person, item.id, 0, "answer", answer)
print(study.agreement())
print("to be settled:", study.disagreements())
for item, verdict in study.verdicts().items():
    print(item, verdict)
study.close()
