"""Proof of a cluster by intervention: what its images share is taken out of them, and put into images of
other classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from pfungst.discover.explain import side_of
from pfungst.discover.mend import Pairs
from pfungst.discover.subjects import WORDS, Subject, What
from pfungst.errors import InputError
from pfungst.measure import Interval
from pfungst.measure.limits import CARRIED_ALONE, DECIDES, P_SPURIOUS, RETAINED
from pfungst.relevance import DCTBands
from pfungst.spurious.evidence import above_zero, mean_interval, ratio_interval, region
from pfungst.spurious.inpaint import inpaint, moved, soften

FEWEST = 6  # images of a cluster: signed ranks of 5 cannot reach p < 0.05 with any correction
N_TARGETS = 2  # images that what an image holds is put into


@dataclass(frozen=True)
class Proof:
    """What interventions on a cluster's images did. Evidence for a class is its log odds, in nats; that of a
    detector is its score, 0 at the median of the training images and 1 at the threshold.

    Intervals are 95 % bootstrap over the images of the cluster that were changed.

    Attributes:
        n: how many these were.
        remove: fall of the evidence without what they share, beyond a control: an equal region elsewhere in
            the same images, or tone or bands of another image of the cluster.
        insert: rise of the evidence in images of other classes that it is put into, beyond controls, as a
            share of the way from the model's evidence in other classes to that in the class, or to the
            threshold. Controls: other content of the same images at the same place, and the content of images
            of the class outside the cluster; of both the least.
        accuracy: share of the images taken for the class as they are, without it, and with the control.
        flips: share of the images of other classes taken for the class with it, and with the controls.
        retained: what is left of the class without it: of the probability that the witnesses give it; where
            there are none, of the images that the audited model takes for it. 1 in normal images, which have
            nothing that should raise a score.
        p: of no fall or no rise beyond any control (Wilcoxon signed ranks, the largest).
        corrected: p corrected for all that were tried (Holm).
        what: of the subject.
        alone: whether nothing tells it from the object: no witness judged it and only interventions tell its
            images from the others of the class; or all images of the class have it, and it carries too little
            (``CARRIED_ALONE``).
    """

    n: int
    remove: Interval
    insert: Interval
    accuracy: tuple[float, float, float]
    flips: tuple[float, float]
    retained: Interval
    p: float
    corrected: float = 1.0
    what: What = "class"
    alone: bool = False

    @property
    def survives(self) -> bool:
        """Whether explanation and intervention agree: it decides, and it is not the object."""
        return self.decides and self.retained.low >= RETAINED and not self.alone

    @property
    def decides(self) -> bool:
        """Whether the class falls without it and rises with it, beyond the controls and what was tried."""
        return self.moves and self.insert.low >= DECIDES

    @property
    def moves(self) -> bool:
        """The same by any amount."""
        return min(self.remove.low, self.insert.low) > 0 and self.corrected <= P_SPURIOUS

    @property
    def reason(self) -> str:
        """Why it survives, or why not, in one sentence."""
        i, r, k, words = self.insert, self.remove, self.retained, WORDS[self.what]
        carried = f"{i.value:.0%} of {words.carried} [{i.low:.0%}, {i.high:.0%}]"
        put = f"put into {words.targets} it carries {carried}"
        fall = f"{r.value:.2g} {words.unit} [{r.low:.2g}, {r.high:.2g}]"
        gone = f"without it the evidence falls by {fall} more than without a control"
        left = f"{k.value:.0%} of the {words.noun} are {words.kept} without it [{k.low:.0%}, {k.high:.0%}]"
        left = "the images are normal, so that it is no defect" if self.what == "normal" else left
        if self.survives:
            return f"{put}, {gone}, and {left} (corrected p {self.corrected:.2g})"
        if self.decides and self.alone and k.low >= RETAINED:
            only = f"but no {words.noun} are surely without it: only a witness tells it from the object"
            only += f", where it carries {CARRIED_ALONE:.0%}"
            return f"{put}, {gone}, and {left}, {only}"
        if self.decides:
            return f"{put} and {gone}, but {left}, so it may be the object"
        little = f"; below {DECIDES:.0%} at the lower end it decides little"
        if self.moves:
            return f"{put} and {gone} (corrected p {self.corrected:.2g}){little}"
        if i.low < DECIDES:
            return f"no proof: {put}{little}"
        if r.low <= 0:
            return f"no proof: {put}, but {gone}"
        return f"no proof: {put}, but p is {self.corrected:.2g} after correction for all that were tried"


@dataclass(frozen=True)
class Effects:
    """What interventions on n images of one cluster did, image by image.

    Attributes:
        falls: (n,) of the evidence, beyond the controls. gains: (g, n) rises in other images, as shares of
            the way: of the audited model itself, and beyond each control and each witness.
        before, after: (w, n) probability that the witnesses give with it and without it, at most as much;
            without witnesses whether the audited model takes the image for it.
        right: (3, n) whether that takes it for the subject as it is, without it, and with the control.
        turned: (2, n) share of the other images taken for it with the content, and with the controls.
        pairs: the images. what: of the subject.
    """

    falls: np.ndarray
    gains: np.ndarray
    before: np.ndarray
    after: np.ndarray
    right: np.ndarray
    turned: np.ndarray
    pairs: Pairs
    what: What = "class"

    @classmethod
    def joined(cls, parts: Mapping[int, Effects]) -> Effects:
        """Those of several parts of the images, by number of part, one after the other."""
        every = list(parts.values())
        names = [f.name for f in fields(cls) if f.name not in ("pairs", "what")]
        arrays = {n: np.concatenate([getattr(p, n) for p in every], axis=-1) for n in names}
        pairs = Pairs.joined({number: p.pairs for number, p in parts.items()})
        return cls(**arrays, pairs=pairs, what=every[0].what)

    def proof(self, seed: int = 0, units: np.ndarray | None = None) -> Proof:
        """What follows, p not corrected.

        Args:
            seed: of the bootstrap. units: (n,) of what is not independent, such as patients: each counts
                once, by the mean of its images; all images by default.
        """
        n = len(self.falls)
        _, code = np.unique(np.arange(n) if units is None else units, return_inverse=True)
        share = np.eye(code.max() + 1)[code]
        share /= share.sum(0)
        falls, gains = self.falls @ share, self.gains @ share
        normal = self.what == "normal"
        after, before = (v.sum(0) @ share for v in (self.after, self.before))
        return Proof(
            n,
            mean_interval(falls, seed),
            min((mean_interval(g, seed) for g in gains), key=lambda i: i.low),
            tuple((self.right @ share).mean(1).tolist()),
            tuple((self.turned @ share).mean(1).tolist()),
            Interval(1.0, 1.0, 1.0) if normal else ratio_interval(after, before, seed, nothing=0.0),
            max(above_zero(v) for v in (falls, *gains)),
            what=self.what,
        )


class Aside(NamedTuple):
    """As much elsewhere in the same inputs: the mask (n, H, W) that is taken out, and what goes into others,
    as content (n, C, H, W) and its mask."""

    mask: Tensor
    content: Tensor
    inside: Tensor


class Medium(Protocol):
    """What is done to inputs (n, C, H, W) at masks (n, H, W): the only part of a proof that knows what they
    are."""

    def region(self, x: Tensor, heat: Tensor) -> Tensor:
        """Where the heat (n, H, W) is, 0 and 1."""

    def spread(self, grid: Tensor, x: Tensor) -> Tensor:
        """Heat (n, H, W) of one grid (R, S), as of ``Explanations.maps``, in inputs."""

    def widened(self, mask: Tensor) -> Tensor:
        """The mask that is taken out and put in, with its edge."""

    def without(self, x: Tensor, mask: Tensor) -> Tensor:
        """Inputs with nothing of their own at the mask."""

    def aside(self, x: Tensor, mask: Tensor, rng: np.random.Generator) -> Aside:
        """As much elsewhere, drawn at random."""

    def put(
        self, targets: Tensor, x: Tensor, mask: Tensor, content: Tensor, inside: Tensor, letters: bool = False
    ) -> Tensor:
        """Targets (t, n, C, H, W) with what the content (n, …) or (t, n, …) has inside, at the place of the
        mask in x; `letters`: only what it has over its surroundings."""

    def alike(self, x: Tensor, mask: Tensor, mates: Tensor) -> Tensor:
        """Of other inputs (t, n, C, H, W) as much, at the same place: what of them is put in."""


class Pictures:
    """Images: regions with soft edges, painted over from around them."""

    def region(self, x: Tensor, heat: Tensor) -> Tensor:
        """See :class:`Medium`."""
        return region(heat)

    def spread(self, grid: Tensor, x: Tensor) -> Tensor:
        """See :class:`Medium`."""
        height, width = x.shape[-2:]
        whole = [n * side_of(width) for n in grid.shape]  # the last patches may stick out
        heat = functional.interpolate(grid[None, None], whole, mode="bilinear", align_corners=False)
        return heat[0, :, :height, :width].expand(len(x), -1, -1)

    def widened(self, mask: Tensor) -> Tensor:
        """See :class:`Medium`."""
        return soften(mask)

    def without(self, x: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Medium`."""
        return inpaint(x, mask)

    def aside(self, x: Tensor, mask: Tensor, rng: np.random.Generator) -> Aside:
        """See :class:`Medium`."""
        moves = [tuple(int(rng.integers(s // 4, s - s // 4)) for s in x.shape[-2:]) for _ in range(len(x))]
        return Aside(moved(mask, moves), moved(x, moves), mask)

    def put(
        self, targets: Tensor, x: Tensor, mask: Tensor, content: Tensor, inside: Tensor, letters: bool = False
    ) -> Tensor:
        """See :class:`Medium`."""
        edge = mask[:, None]
        if not letters:
            return targets * (1 - edge) + content * edge
        every = content.expand_as(targets)
        return (targets + every - torch.stack([inpaint(c, mask) for c in every])).clamp(0, 1)

    def alike(self, x: Tensor, mask: Tensor, mates: Tensor) -> Tensor:
        """See :class:`Medium`."""
        return mask


PICTURES = Pictures()


class Judge:
    """Intervenes on the images of a subject.

    Args:
        subject: whose evidence is measured.
        own: (n, C, H, W) of it, others: (M, C, H, W) not of it: what lies between is the whole way.
        batch_size: images at a time. medium: what they are, images by default.

    Attributes:
        ends: evidence in both, by model. way: the whole, by model.

    Raises:
        InputError: no images of one side.
    """

    def __init__(
        self,
        subject: Subject,
        own: Tensor,
        others: Tensor,
        batch_size: int = 16,
        medium: Medium = PICTURES,
    ) -> None:
        if not len(own) or not len(others):
            raise InputError(f"{len(own)} images and {len(others)} of others prove nothing", "pass both")
        self.subject, self.others, self.batch_size, self.medium = subject, others, batch_size, medium
        self.ends = [tuple(self.odds(i, x)[0] for x in (own, others)) for i in range(subject.n_models)]
        self.way = [subject.way(*ends) for ends in self.ends]

    def odds(self, number: int, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Evidence in images (..., C, H, W) by one of the models, and whether it says so."""
        parts = x.flatten(0, -4).split(self.batch_size)
        with torch.no_grad():
            answers = [self.subject.answer(number, p.to(self.subject.device)) for p in parts]
        evidence, said = (torch.cat(a).cpu().view(x.shape[:-3]).numpy() for a in zip(*answers, strict=True))
        return evidence, said

    def beyond(self, x: Tensor, heat: Tensor) -> Tensor:
        """The heat, each map of sum 1, less the most that any witness has there; unchanged without
        witnesses."""
        if self.subject.n_models == 1:
            return heat
        maps = [self.subject.seen_by(i, self.batch_size)(x) for i in range(1, self.subject.n_models)]
        unit = lambda m: m / m.sum((1, 2), keepdim=True).clamp_min(1e-12)
        return unit(heat) - torch.stack([unit(m) for m in maps]).max(0).values

    def regions(
        self,
        x: Tensor,
        mask: Tensor,
        mates: Tensor | None,
        seed: int = 0,
        letters: bool = False,
    ) -> Effects:
        """Effects of regions.

        Args:
            x: (n, C, H, W) of the cluster, at least 6.
            mask: (n, H, W) of 0 and 1, 1 in the region, such as :func:`pfungst.spurious.evidence.region` of
                a heatmap.
            mates: images of the class outside the cluster, None where there are none.
            letters: put only what the content has over its surroundings, without these: of text the letters.
        """
        rng, n, medium = np.random.default_rng((seed, self.subject.index)), len(x), self.medium
        soft = medium.widened(mask)
        far = [medium.aside(x, soft, rng) for _ in range(2)]
        controls = [medium.without(x, aside.mask) for aside in far]
        targets = self._drawn(self.others, (N_TARGETS, n), rng)
        put = lambda of, inside: medium.put(targets, x, soft, of, inside, letters)
        against = [put(far[0].content, far[0].inside)]
        if mates is not None:
            others = self._drawn(mates, (N_TARGETS, n), rng)
            against.append(put(others, medium.alike(x, soft, others)))
        return self._weigh(x, medium.without(x, soft), controls, targets, put(x, soft), against)

    def falls(self, x: Tensor, mask: Tensor, seed: int = 0) -> np.ndarray:
        """Fall (n,) of the evidence in images without regions, beyond a control; args as of :meth:`regions`,
        whose controls are others."""
        soft, rng = self.medium.widened(mask), np.random.default_rng((seed, self.subject.index, 2))
        control = self.medium.aside(x, soft, rng).mask
        gone = [self.medium.without(x, m) for m in (soft, control)]
        left, kept = self.odds(0, torch.stack(gone))[0]
        return kept - left

    def bands(self, x: Tensor, kept: np.ndarray, mates: Tensor, seed: int = 0) -> Effects:
        """Effects of frequency bands: those of an image are exchanged for those of another.

        Args:
            x: (n, C, H, W) of the cluster, at least 6.
            kept: (B,) boolean, the bands that the cluster's images share, of as many bands of the power law.
            mates: images of the subject outside the cluster.
        """
        basis = DCTBands(count=len(kept))

        def inside(z: Tensor) -> Tensor:
            parts = basis.components(z.flatten(0, -4))[torch.from_numpy(kept)]
            return parts.sum(0).view_as(z)

        exchange = lambda z, source: (z - inside(z) + inside(source)).clamp(0, 1)
        return self._exchanged(exchange, x, mates, seed)

    def tone(self, x: Tensor, mates: Tensor, seed: int = 0) -> Effects:
        """Effects of brightness, contrast and colour: mean and standard deviation of each channel of an image
        are exchanged for those of another (Reinhard et al. 2001). Args as of :meth:`bands`."""

        def exchange(z: Tensor, source: Tensor) -> Tensor:
            spread = lambda y: y.std((-2, -1), keepdim=True).clamp_min(1e-3)
            mean = lambda y: y.mean((-2, -1), keepdim=True)
            return ((z - mean(z)) / spread(z) * spread(source) + mean(source)).clamp(0, 1)

        return self._exchanged(exchange, x, mates, seed)

    def _exchanged(
        self,
        exchange: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        mates: Tensor,
        seed: int,
    ) -> Effects:
        """Effects of a property that `exchange(z, source)` gives to z from another image: taken from mates,
        against that of other images of the cluster; put into others, against that of mates and of others."""
        rng, n = np.random.default_rng((seed, self.subject.index, 1)), len(x)
        others = self._drawn(mates, (N_TARGETS, n), rng)
        targets = self._drawn(self.others, (N_TARGETS, n), rng)
        sources = (x.expand_as(targets), others, self._drawn(self.others, (N_TARGETS, n), rng))
        put, *against = (exchange(targets, source) for source in sources)
        removed, control = exchange(x, others[0]), exchange(x, torch.roll(x, 1, 0))
        return self._weigh(x, removed, [control], targets, put, against)

    def _weigh(
        self,
        x: Tensor,
        removed: Tensor,
        controls: list[Tensor],
        targets: Tensor,
        put: Tensor,
        against: list[Tensor],
    ) -> Effects:
        """Compare; `targets`, `put` and `against` are (targets, n, C, H, W), the others (n, C, H, W)."""
        answers = [self.odds(i, torch.stack([x, removed, *controls])) for i in range(self.subject.n_models)]
        odds, hit = answers[0]
        judged = [expit(o) for o, _ in answers[1:]] or [hit.astype(float)]
        before = np.stack([h[0] for h in judged])
        seen = [self.odds(i, torch.stack([put, *against])) for i in range(self.subject.n_models)]
        rises = [
            [(o[0] - other).mean(0) / way for other in o[1:]]
            for (o, _), way in zip(seen, self.way, strict=True)
        ]
        hits = seen[0][1]
        return Effects(
            falls=odds[2:].mean(0) - odds[1],
            gains=np.stack([*rises[0], *(rises[0][0] - r[0] for r in rises[1:])]),
            before=before,
            after=np.minimum(np.stack([h[1] for h in judged]), before),
            right=np.stack([hit[0], hit[1], hit[2:].mean(0)]).astype(float),
            turned=np.stack([hits[0].mean(0), hits[1:].mean((0, 1))]),
            pairs=Pairs(x, removed, targets, put),
            what=self.subject.what,
        )

    @staticmethod
    def _drawn(pool: Tensor, shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
        chosen = rng.choice(len(pool), shape, replace=len(pool) < shape[0] * shape[1])
        return pool[torch.from_numpy(chosen)]
