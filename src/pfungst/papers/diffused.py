"""Diffusion counterfactuals that put a spurious feature into images of other classes (003, figure 27)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.images import colour
from pfungst.audit.result import Interval
from pfungst.errors import ConfigError
from pfungst.papers.answers import study_of, three
from pfungst.papers.classifiers import audit
from pfungst.papers.made import Made, Numbers, Wish, picture, singles
from pfungst.report.page import Exhibit, Gallery, Strip, Tile
from pfungst.spurious import NeuralPCA, counterfactual
from pfungst.spurious.counterfactual import Diffusion
from pfungst.spurious.heads import logits_of

_CLASSES, _SHOWN, _KNOWN = 4, 4, 500


def exact(x: Tensor, steps: int = 1000) -> Diffusion:
    """The best denoiser of images that are drawn from a finite set: E[x_0 | x_t], a mean of them weighted by
    N(x_t; √ᾱ_t x_i, 1 − ᾱ_t). The schedule is DDPM's, β from 1e-4 to 0.02.

    Args:
        x: (M, C, H, W) in [0, 1].
        steps: of the schedule.
    """
    levels = (1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)).cumprod(0)
    known = x.flatten(1) * 2 - 1

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        level = levels[t.cpu()].to(x_t)[:, None]
        near = known.to(x_t)
        gap = (x_t.flatten(1)[:, None] - level[..., None].sqrt() * near).square().sum(2)
        return ((-gap / (2 * (1 - level))).softmax(1) @ near).view_as(x_t)

    return Diffusion(denoise, levels, "sample")


def _diffusion(wish: Wish, study: Study) -> Diffusion:
    """The model that ``--diffusion`` names; a stand-in has the exact one of its training images."""
    size = study.classifier.preprocessing.size
    folder = wish.more.get("diffusion")
    if folder is None:
        if not wish.stand_in:
            raise ConfigError(
                f"{wish.piece.id} needs a diffusion model in image space",
                "give --diffusion FOLDER, a pipeline as diffusers saves it",
            )
        rows = np.random.default_rng(study.config.seed).permutation(len(study.train.items))[:_KNOWN]
        return exact(torch.stack([colour(study.train[int(i)][1]) for i in rows]))
    if importlib.util.find_spec("diffusers") is None:
        raise ConfigError("the package diffusers is not installed", "pip install diffusers")
    if not (Path(folder) / "model_index.json").is_file():
        raise ConfigError(f"{folder} holds no diffusers pipeline", "give a folder with model_index.json")
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    found = Diffusion.from_diffusers(pipeline)
    side = pipeline.unet.config.sample_size
    if side != size:
        raise ConfigError(
            f"the diffusion model makes images of {side} px, the classifier reads {size} px",
            f"give --size {side}",
        )
    pipeline.unet.to(study.head.device).eval()
    return found


def generated(wish: Wish) -> Made:
    """Images of other classes, changed towards a class and its component; the answers before and after."""
    result, folder = audit(wish)
    name, own, place = singles(result, folder, ClassifierResult, "model")[0]
    study, _ = study_of(own, place)
    npca = NeuralPCA.load(place / "npca", study.head)
    diffusion = _diffusion(wish, study)
    rng = np.random.default_rng(study.config.seed)
    labels = np.asarray(study.val.labels)
    ours: dict[str, dict[str, Interval]] = {}
    exhibits = []
    entries = sorted(own.entries, key=lambda e: not e.fixed)
    for entry in entries[: 1 if wish.tiny else _CLASSES]:
        component = (entry.fixed or [c.component for c in entry.components])[0]
        rows = rng.permutation(np.flatnonzero(labels != entry.index))[:_SHOWN]
        x = torch.stack([colour(study.val[int(i)][1]) for i in rows]).to(study.head.device)
        steps = 10 if wish.tiny else 200
        made = counterfactual(
            study.head, diffusion, x, entry.index, component, npca, steps=steps, seed=study.config.seed
        )
        assert made.alpha_before is not None
        assert made.alpha is not None
        ours[f"{entry.name}, component {component}"] = {
            "probability": Interval(value=float(made.confidence_before.mean())),
            "probability, counterfactual": Interval(value=float(made.confidence.mean())),
            "α": Interval(value=float(made.alpha_before.mean())),
            "α, counterfactual": Interval(value=float(made.alpha.mean())),
            "mean change of a value": Interval(value=float(made.distance.mean())),
        }
        strips = []
        for title, images in (("Images of other classes", x), ("Counterfactuals", made.images)):
            with torch.no_grad():
                p = logits_of(study.head.model(images)).softmax(1).cpu().double().numpy()
            tiles = [
                Tile(three(study, row), three(study, row), picture(image.cpu()))
                for image, row in zip(images, p, strict=True)
            ]
            strips.append(Strip(title, tiles))
        exhibits.append(Exhibit(name=entry.name, reason=f"component {component} of {name}", strips=strips))
    caption = "Guided towards the class and the component, close to the image; below: the likeliest classes."
    gallery = Gallery(title="Counterfactuals", caption=caption, exhibits=exhibits, outlines=False)
    notes = ["The diffusion model is the exact denoiser of training images: what it makes resembles them."]
    notes = [] if "diffusion" in wish.more else notes
    return Made([Numbers.of("Means over the images", ours, {})], [gallery], notes, [place])
