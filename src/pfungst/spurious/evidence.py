"""Is a component spurious? By intervention: its region is taken away, and put where the class is not; so is
what its images have everywhere, as a cast.

Correlation ranks (the bimodality of α, the confidence of a visualisation) find what a component is active on;
only an intervention tells whether that decides, and only what is left without it tells whether it was the
object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.measure import Interval, best_split, bootstrap
from pfungst.measure.limits import (
    APART,
    CARRIED,
    CARRIED_ALONE,
    P_SPURIOUS,
    PARTED,
    PLACED,
    RETAINED,
    WITNESSES,
)
from pfungst.spurious.heads import FeatureHead, logits_of
from pfungst.spurious.inpaint import gaussian, inpaint, moved, soften
from pfungst.spurious.looks import LOOKS, Look, Parted, parted, parted_at
from pfungst.spurious.npca import NeuralPCA
from pfungst.spurious.visualise import select

Word = Literal["spurious", "core", "unclear"]
Score = Callable[[Tensor], Tensor]  # images (N, C, H, W) → (N,)
_Answer = tuple[np.ndarray, np.ndarray]  # log odds of the class, whether it is the answer
_Measured = tuple[
    tuple[Interval, ...], tuple[Interval, ...], Interval, tuple[float, float], Interval, float
]  # necessity to p of Evidence, without rows and α
SHARE = 0.75  # of the positive relevance that the region holds
LARGEST = 0.4  # of the image that it may cover
_GIVEN = 48  # images of other classes that a look is given to


@dataclass(frozen=True)
class Witness:
    """Another model that knows the class.

    Attributes:
        model: images (N, C, H, W) in [0, 1] → logits (N, K).
        class_: index of the class in its logits.
    """

    model: nn.Module
    class_: int


@dataclass(frozen=True)
class Looked:
    """Looks of images that the model was trained on, to see whether one parts the class.

    Attributes:
        own: what :func:`pfungst.spurious.looks.measure` says of n images of the class.
        others: the same of images of other classes.
        alpha: (n, components) of the images of the class.
    """

    own: Mapping[str, np.ndarray]
    others: Mapping[str, np.ndarray]
    alpha: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What interventions on a component's region, or on the look of its images, did. Evidence for a class is
    its log odds, log p − log(1 − p), in nats.

    Intervals are 95 % bootstrap over the component's images; the sufficiency of a look is over the images of
    other classes that it is given to.

    Attributes:
        class_, component: which.
        rows: the images it was measured on, rows of what was passed.
        alpha: their mean α.
        necessity: fall of the evidence when the region is painted over, beyond that of an equal region
            elsewhere in the same images, for the audited model and then each witness.
        sufficiency: rise of the evidence in images of other classes when the part of the region that is not
            the object is pasted into them, beyond that of other content of the same images at the same place,
            for each model; as a share of the way from the model's evidence for the class in other classes to
            that in the class.
        excess: sufficiency of the audited model beyond that of the witness where this is least; without
            witnesses sufficiency itself. What every model takes for the class is a piece of it, or a habit
            that all share.
        flips: share of these images that the audited model then takes for the class, and that with other
            content.
        retained: share of the images in which the class is still recognised without that part, by the
            witnesses that recognised it before (by the audited model where there are none).
        p: of excess ≤ 0 or sufficiency ≤ 0 (Wilcoxon signed ranks, the larger).
        corrected: p times Holm's factor for all that were tried, see :func:`correct`.
        apart: how clearly the class falls into images with the component and images without, see
            :func:`two_groups`; 0 where not measured.
        how: what was taken away and put elsewhere: "region", or the name of the look that was changed (then
            necessity is beyond the images unchanged, as sufficiency is).
        parted: how clearly that look, or for a region the one that does most, parts the class along α and not
            other classes, see :func:`pfungst.spurious.looks.parted`; 0 where not measured.
        placed: the same of what is in the place of the region, see
            :func:`pfungst.spurious.looks.parted_at`; 0 for a look.
    """

    class_: int
    component: int
    rows: tuple[int, ...]
    alpha: float
    necessity: tuple[Interval, ...]
    sufficiency: tuple[Interval, ...]
    excess: Interval
    flips: tuple[float, float]
    retained: Interval
    p: float
    corrected: float = 1.0
    apart: float = 0.0
    how: str = "region"
    parted: float = 0.0
    placed: float = 0.0

    @property
    def carries(self) -> bool:
        """Whether it raises the class elsewhere, beyond the witnesses; before chance is excluded."""
        return self.sufficiency[0].low > 0 and self.excess.low >= CARRIED

    @property
    def sufficient(self) -> bool:
        """Whether the part that is not the object raises the class elsewhere, beyond chance and beyond the
        witnesses."""
        return self.carries and self.corrected <= P_SPURIOUS

    @property
    def _carried(self) -> float:
        return min(max(self.sufficiency[0].value, 0.0), 1.0) ** 0.5

    @property
    def beside(self) -> float:
        """How surely it acts on some images of the class only and carries the class elsewhere, in [0, 1]."""
        shown = (v for v, least in ((self.parted, PARTED), (self.placed, PLACED)) if v >= least)
        return max(self.apart, *shown, 0.0) * self._carried

    @property
    def divides(self) -> bool:
        """Whether the labels show that it is not the object: the class has images without it."""
        return self.apart * self._carried >= APART or self.parted >= PARTED or self.placed >= PLACED

    @property
    def off_object(self) -> bool:
        """Whether what it reads is shown not to be the object: two witnesses still recognise the class
        without it, or the labels do (there are images of the class without it), or the model itself by a wide
        margin."""
        witnessed, left = len(self.necessity) > WITNESSES, self.retained.low >= RETAINED
        itself = len(self.necessity) == 1 and left and self.sufficiency[0].low >= CARRIED_ALONE
        return (witnessed and left) or self.divides or (itself and self.how == "region")

    @property
    def word(self) -> Word:
        if self.sufficient and self.off_object:
            return "spurious"
        needed = all(n.low > 0 for n in self.necessity)
        return "core" if needed and not any(s.low > 0 for s in self.sufficiency) else "unclear"

    @property
    def reason(self) -> str:
        """Why that word, in one sentence."""
        s, x, r = self.sufficiency[0], self.excess, self.retained
        put = "pasted elsewhere" if self.how == "region" else "given to other images"
        raised = f"{put} carries {s.value:.0%} of the class [{s.low:.0%}, {s.high:.0%}]"
        if len(self.sufficiency) > 1:
            raised += f", {x.value:+.0%} [{x.low:+.0%}, {x.high:+.0%}] against other models"
        raised += f" (corrected p {self.corrected:.2g})"
        left = f"without it {r.value:.0%} of the images are still recognised [{r.low:.0%}, {r.high:.0%}]"
        if self.word == "spurious":
            alone = "the class falls into images with it and images without" if self.divides else left
            what = "what it reads off the object" if self.how == "region" else f"a look ({self.how})"
            return f"{what} {raised}, and {alone}"
        if self.word == "core":
            least = min(self.necessity, key=lambda n: n.low)
            models = f"each of {len(self.necessity)} models" if len(self.necessity) > 1 else "the model"
            fall = f"{least.value:.2f} nats [{least.low:.2f}, {least.high:.2f}]"
            return (
                f"{models} loses evidence without its region, at least {fall}, and the rest carries nothing "
                "elsewhere"
            )
        if not self.sufficient:
            shared = len(self.sufficiency) > 1 and self.sufficiency[0].low > 0
            why = (
                "a piece of the object, or a habit that the models share" if shared else "no proof either way"
            )
            return f"{why}: what it reads off the object {raised}"
        if self.retained.low >= RETAINED:
            return (
                f"it {raised}, and {left}, but all images of the class may have it, and fewer than "
                f"{WITNESSES:.0f} witnesses cannot tell a piece of the object"
            )
        return f"it {raised}, but {left}, so the region may be the object"

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Sorts suspects first when sorted in falling order: the word, then what the class has two groups by,
        then the sufficiency that is certain."""
        return self.word == "spurious", self.beside, self.sufficiency[0].low


def two_groups(alpha: np.ndarray) -> float:
    """How clearly α of a class falls into images with a component and images without, in [0, 1].

    √separation of the best split (0 for what a bell curve gives by chance) times 1 − e^−gap, the share by
    which the gap between the groups changes the odds of the class; a tenth of it where a flat distribution
    would explain as much (up to 3/4 + 0.45/√n of n values in 95 % of samples; simulated for n from 10 to
    1,300): such α ranks, and proves nothing. On networks trained on photographs α has one peak and this is
    near 0; where something was added to a part of the images of a class it is large.

    Args:
        alpha: (n,) of the class's training images, in logits.
    """
    split = best_split(alpha)
    flat = 0.75 + 0.45 / math.sqrt(split.count)
    found = math.sqrt(split.separation) * -math.expm1(-max(split.gap, 0.0))
    return found if split.explained > flat else found / 10


def evidence(
    npca: NeuralPCA,
    class_: int,
    components: Sequence[int],
    images: Tensor,
    others: Tensor,
    witnesses: Sequence[Witness] = (),
    *,
    apart: Sequence[float] = (),
    looked: Looked | None = None,
    n_images: int = 12,
    n_targets: int = 2,
    batch_size: int = 8,
    seed: int = 0,
) -> list[Evidence]:
    """Intervene on the regions that components read.

    The region of a component in an image holds most of the positive relevance of α: integrated gradients from
    the blurred image, which on real networks found regions whose loss lowers α more than those of any
    composite of LRP (docs/evidence.md). The part that is not the object is that where α has more relevance
    than the class has in any witness.

    Args:
        npca: fitted, with its model attached.
        class_: class index.
        components: which of its components.
        images: (N, C, H, W) in [0, 1] of the class, best such that the model was not trained on; for each
            component the n_images of highest α are used.
        others: (M, C, H, W) of other classes.
        witnesses: other models that know the class; with fewer than two nothing is called spurious. Without
            any, the object is what the audited model itself still recognises, and the whole region is pasted.
        apart: for each component :func:`two_groups` of its training images, where known.
        looked: looks of training images: each that parts the class along α is tried like the region, and
            the strongest of them is returned, its p times the number tried.
        n_images: per component.
        n_targets: images of other classes that each region is pasted into.
        batch_size: images at a time.
        seed: of places, targets and the bootstrap.

    Returns:
        One for each component, in their order, p corrected for their number (:func:`correct` for several
        classes).

    Raises:
        InputError: fewer than 6 images or no others (n of 5 cannot reach p < 0.05 with any correction), or
            `apart` of another length.
    """
    head = npca.model
    if head is None:
        raise InputError("no model is attached", "fit with a FeatureHead, or call attach(model)")
    if len(images) < 6 or not len(others):
        raise InputError(
            f"{len(images)} images of the class and {len(others)} of others prove nothing",
            "pass at least 6 and 1",
        )
    if apart and len(apart) != len(components):
        raise InputError(f"apart of {len(apart)} for {len(components)} components", "pass one for each")
    with torch.no_grad():
        seen = [head.features_and_logits(part) for part in images.split(batch_size)]
    phi, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
    alpha = npca.alpha_features(phi, class_)
    lab = _Lab(head, class_, images, others, witnesses, batch_size, logits)
    out = []
    for number, component in enumerate(components):
        npca._known(class_, component)
        rows = alpha[:, component].topk(min(n_images, len(images))).indices
        rng = np.random.default_rng((seed, class_, component))
        project = npca.alpha_of(class_, component)
        score: Score = lambda x, f=project: f(head.features(x))  # type: ignore[misc]
        heat = relevance(score, images[rows], batch_size=batch_size).clamp_min(0)
        found = lab.intervene(heat, rows, n_targets, rng, seed)
        mean = float(alpha[rows, component].mean())
        groups = apart[number] if apart else 0.0
        parts = _parting(looked, component)
        most, at = max((p.value for _, p in parts), default=0.0), _parting_at(looked, component, heat)
        one = Evidence(class_, component, tuple(rows.tolist()), mean, *found, apart=groups, parted=most)
        one = replace(one, placed=at)
        tried = [one]
        for look, part in parts:
            given = lab.give(look, part, score, rows, seed)
            again = Evidence(class_, component, one.rows, mean, *given, apart=groups)
            tried.append(replace(again, how=look.name, parted=part.value))
        best = max(tried, key=lambda e: (e.carries and e.off_object, e.beside, e.how == "region"))
        out.append(replace(best, p=min(1.0, best.p * len(tried))))
    return correct(out)


def _parting(looked: Looked | None, component: int) -> list[tuple[Look, Parted]]:
    """The looks that part the class along α of a component."""
    if looked is None:
        return []
    alpha = looked.alpha[:, component]
    known = {look.of for look in LOOKS}
    parts = {of: parted(looked.own[of], looked.others[of], alpha) for of in known}
    return [(look, parts[look.of]) for look in LOOKS if parts[look.of].value >= PARTED]


def _parting_at(looked: Looked | None, component: int, heat: Tensor) -> float:
    """How clearly what is where a component's maps (N, H, W) are, in the mean, parts the class along α."""
    if looked is None:
        return 0.0
    mean = (heat / heat.sum((1, 2), keepdim=True).clamp_min(1e-12)).mean(0)
    return parted_at(looked.own["pixels"], looked.others["pixels"], looked.alpha[:, component], mean)


def correct(found: Sequence[Evidence]) -> list[Evidence]:
    """The same with p corrected for all of them together (Holm 1979): call it on the evidence of all
    classes."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    out, least = list(found), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, found[i].p * (len(found) - place)))
        out[i] = replace(found[i], corrected=least)
    return out


def paper_rule(
    npca: NeuralPCA, class_: int, n: int = 10, candidates: int = 128, **options: object
) -> list[int]:
    """The published selection (Neuhaus et al. 2023, section 4): of the `candidates` components of highest
    variance the n whose feature visualisation has the highest confidence, most confident first. For
    adversarially robust networks.

    Args:
        options: for :func:`pfungst.spurious.visualise`.
    """
    return [component for _, component in select(npca, class_, n, candidates, **options).pairs]


def relevance(score: Score, x: Tensor, steps: int = 4, batch_size: int = 8) -> Tensor:
    """Integrated gradients of a score from the blurred image to the image (Sundararajan et al. 2017), summed
    over channels and smoothed, (N, H, W); midpoint rule.

    Args:
        score: images (N, C, H, W) → (N,), each from its own image.
        x: (N, C, H, W).
    """
    parts = []
    for part in x.split(batch_size):
        start = gaussian(part, part.shape[-1] / 16)
        total = torch.zeros_like(part)
        for step in range(steps):
            z = (start + (step + 0.5) / steps * (part - start)).requires_grad_(True)
            total += torch.autograd.grad(score(z).sum(), z)[0]
        parts.append((total / steps * (part - start)).sum(1, keepdim=True))
    return gaussian(torch.cat(parts), x.shape[-1] / 32)[:, 0]


def region(heat: Tensor, share: float = SHARE, largest: float = LARGEST) -> Tensor:
    """Where the strongest positive values hold `share` of all positive ones, at most the part `largest` of
    the image.

    Args:
        heat: (N, H, W).

    Returns:
        (N, H, W) of 0 and 1.
    """
    flat = heat.clamp_min(0).flatten(1)
    values, order = flat.sort(1, descending=True)
    held = values.cumsum(1) - values < share * values.sum(1, keepdim=True)
    held[:, int(largest * flat.shape[1]) :] = False
    return torch.zeros_like(flat).scatter(1, order, held.to(flat)).view_as(heat)


class _Lab:
    """The models and images of one class, with what several components need kept."""

    def __init__(
        self,
        head: FeatureHead,
        class_: int,
        images: Tensor,
        others: Tensor,
        witnesses: Sequence[Witness],
        batch_size: int,
        logits: Tensor,
    ) -> None:
        self.models = [Witness(head.runs, class_), *witnesses]
        self.images, self.others, self.batch_size = images, others, batch_size
        self._seen: dict[int, Tensor] = {}
        numbers = range(len(self.models))
        self.own = [self.judged(0, logits), *(self.answer(i, images) for i in numbers[1:])]
        some, rest = slice(None, None, max(1, len(images) // 32)), others[:: max(1, len(others) // 32)]
        # nats between the class and the others
        self.way = [max(self.own[i][0][some].mean() - self.answer(i, rest)[0].mean(), 0.1) for i in numbers]

    def answer(self, number: int, x: Tensor) -> _Answer:
        """Log odds of the class, and whether it is the answer, of images (..., C, H, W) by one model."""
        model = self.models[number].model
        with torch.no_grad():
            flat = [logits_of(model(part)) for part in x.flatten(0, -4).split(self.batch_size)]
        return self.judged(number, torch.cat(flat).unflatten(0, x.shape[:-3]))

    def judged(self, number: int, logits: Tensor) -> _Answer:
        """The same of logits (..., K) by that model."""
        logits, k = logits.float(), self.models[number].class_
        own, rest = logits[..., k], torch.cat([logits[..., :k], logits[..., k + 1 :]], -1)
        odds, hit = own - rest.logsumexp(-1), own > rest.max(-1).values
        return odds.double().cpu().numpy(), hit.cpu().numpy()

    def elsewhere(self, rows: Tensor) -> Tensor:
        """Most relevance that the class has in any witness, each map summing to 1, (n, H, W)."""
        if new := [row for row in rows.tolist() if row not in self._seen]:
            maps = []
            for witness in self.models[1:]:

                def odds(x: Tensor, w: Witness = witness) -> Tensor:
                    logits = logits_of(w.model(x))
                    return logits[:, w.class_] - logits.logsumexp(1)

                heat = relevance(odds, self.images[new], 2, self.batch_size).clamp_min(0)
                maps.append(heat / heat.sum((1, 2), keepdim=True).clamp_min(1e-12))
            self._seen.update(zip(new, torch.stack(maps).max(0).values, strict=True))
        return torch.stack([self._seen[row] for row in rows.tolist()])

    def intervene(
        self, heat: Tensor, rows: Tensor, n_targets: int, rng: np.random.Generator, seed: int
    ) -> _Measured:
        """Necessity, sufficiency, excess, flips, retained and p of :class:`Evidence`, from maps (N, H, W)."""
        x, n = self.images[rows], len(rows)
        whole = part = region(heat)
        if len(self.models) > 1:
            heat = heat / heat.sum((1, 2), keepdim=True).clamp_min(1e-12)
            part = region(heat - self.elsewhere(rows))
        moves = [self._moves(x, rng) for _ in range(2)]
        soft, soft_part = soften(whole), soften(part)
        gone = torch.stack(
            [inpaint(x, soft), *(inpaint(x, moved(soft, m)) for m in moves), inpaint(x, soft_part)]
        )
        answers = [self.answer(i, gone) for i in range(len(self.models))]
        necessity = tuple(mean_interval(odds[1:3].mean(0) - odds[0], seed) for odds, _ in answers)
        retained = self._retained(rows, [hit[3] for _, hit in answers], seed)
        picked = rng.choice(len(self.others), (n_targets, n), replace=n_targets * n > len(self.others))
        targets = self.others[torch.from_numpy(picked).to(self.others.device)].to(x)
        edge = soft_part[:, None]
        pasted = targets * (1 - edge) + x * edge
        control = targets * (1 - edge) + moved(x, moves[0]) * edge
        seen = [self.answer(i, torch.stack([pasted, control])) for i in range(len(self.models))]
        rises = [(odds[0] - odds[1]).mean(0) / way for (odds, _), way in zip(seen, self.way, strict=True)]
        flips = float(seen[0][1][0].mean()), float(seen[0][1][1].mean())
        return _measured(necessity, rises, flips, retained, seed)

    def give(self, look: Look, part: Parted, score: Score, rows: Tensor, seed: int) -> _Measured:
        """The same of a look, from the images that have it and to others: each against itself unchanged.

        Of what the class rises by in an image at most what the component does, both in nats: the rest goes
        through others."""
        gone = look.change(self.images[rows], -part.change)
        answers = [self.answer(i, gone) for i in range(len(self.models))]
        own = [odds[rows.cpu().numpy()] for odds, _ in self.own]
        targets = self.others[:: max(1, len(self.others) // _GIVEN)]
        given = torch.stack([look.change(targets, part.change), targets])
        seen = [self.answer(i, given) for i in range(len(self.models))]
        necessity = tuple(mean_interval(a - b, seed) for a, (b, _) in zip(own, answers, strict=True))
        rises = [(odds[0] - odds[1]) / way for (odds, _), way in zip(seen, self.way, strict=True)]
        with torch.no_grad():
            alpha = [torch.cat([score(part) for part in side.split(self.batch_size)]) for side in given]
        rises[0] = np.minimum(rises[0], (alpha[0] - alpha[1]).double().cpu().numpy() / self.way[0])
        flips = float(seen[0][1][0].mean()), float(seen[0][1][1].mean())
        retained = self._retained(rows, [hit for _, hit in answers], seed)
        return _measured(necessity, rises, flips, retained, seed)

    def _retained(self, rows: Tensor, hits: Sequence[np.ndarray], seed: int) -> Interval:
        """Share of the images still recognised, by the witnesses where there are any, each model's (n,)."""
        before = np.stack([hit[rows.cpu().numpy()] for _, hit in self.own[1:] or self.own])
        after = np.stack(hits[1:] or hits) & before
        return ratio_interval(after.sum(0), before.sum(0), seed)

    @staticmethod
    def _moves(x: Tensor, rng: np.random.Generator) -> list[tuple[int, int]]:
        """For each image how far a region is moved, round the edges: a quarter to three quarters of the
        width."""
        h, w = x.shape[-2:]
        return [(int(rng.integers(h // 4, h - h // 4)), int(rng.integers(w // 4, w - w // 4))) for _ in x]


def _measured(
    necessity: tuple[Interval, ...],
    rises: list[np.ndarray],
    flips: tuple[float, float],
    retained: Interval,
    seed: int,
) -> _Measured:
    """With what rises (one array for each model) say: sufficiency, excess and p."""
    beyond = [rises[0] - rise for rise in rises[1:]]
    p = max(above_zero(values) for values in [rises[0], *beyond])
    excess = min((mean_interval(values, seed) for values in beyond or rises), key=lambda i: i.low)
    return necessity, tuple(mean_interval(r, seed) for r in rises), excess, flips, retained, p


def above_zero(values: np.ndarray) -> float:
    """P of values (n,) that are not above 0 (Wilcoxon signed ranks, one-sided); 1 where all are 0."""
    from scipy import stats  # takes a third as long as torch

    return float(stats.wilcoxon(values, alternative="greater").pvalue) if values.any() else 1.0


def mean_interval(values: np.ndarray, seed: int) -> Interval:
    """Mean of values (n,), one for each image, with its bootstrap interval over them."""
    return ratio_interval(values, np.ones(len(values)), seed)


def ratio_interval(top: np.ndarray, bottom: np.ndarray, seed: int, nothing: float = float("nan")) -> Interval:
    """Σ top / Σ bottom over images with its bootstrap interval; where the bottom is empty `nothing`, and the
    widest interval."""
    if not bottom.any():
        return Interval(nothing, 0.0, 1.0)
    ratio = lambda w: (w @ top) / np.where(w @ bottom == 0, np.nan, w @ bottom)
    return bootstrap(ratio, np.zeros(len(top)), seed=seed)
