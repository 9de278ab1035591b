"""BiLRP from factors: y = ⟨φ(x), φ(x′)⟩ is explained by A(x)ᵀ A(x′).

Eberle et al. 2022 (BiLRP); Kauffmann et al. 2025, methods. Row k of A(x) is the layer-wise relevance of
neuron k in the components of x. The published procedure runs one backward pass per neuron and pair; here A(x)
is computed once per input in the cheaper direction, and every pair after that is one matrix product.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.encoders.encoder import Encoder
from pfungst.errors import ConfigError, InputError
from pfungst.features import Workers, combined, content_key, model_key
from pfungst.features.engine import shards
from pfungst.memory import available_memory
from pfungst.progress import progress_bar, track
from pfungst.relevance import Basis, Composite, Patches, Tokens, linearize
from pfungst.relevance import composite as named_composite
from pfungst.relevance.linearize import LinearizedModel
from pfungst.similarity.decomposition import Decomposition
from pfungst.similarity.factors import Factors, FactorStore
from pfungst.similarity.pairs import PairRelevance, Pairs
from pfungst.similarity.sketch import Sketch
from pfungst.similarity.summary import GroupSummary, summarise

_THREADS = 2  # that compute a factor in each of several processes: more of them share its work less well
_ROOM = 4 << 30  # bytes of memory for each of them
_START = 20.0  # seconds that processes must save: a start takes a few, and a copy of the encoder in each


class SimilarityExplainer:
    """Explains the similarity of pairs of inputs to an encoder.

    Args:
        encoder: an :class:`Encoder`, a `SentenceEncoder`, or any module from inputs to (N, K).
        composite: the rules, by name or object; "auto" takes `transformer` for networks with LayerNorm, else
            `epsilon_gamma_box` from −3 to 3 (the paper's rules, with the shortcuts kept).
        basis: of each input; by default patches of 8 px, tokens for texts.
        metric: "dot", "cosine" (the norms are held constant), or a matrix M (K, K) for y = φᵀMφ′.
        sketch: estimate from this many random directions instead of all K neurons (an int or a
            :class:`Sketch`), or from the leading directions of each input (:class:`Decomposition`); used only
            where it saves passes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        composite: str | Composite = "auto",
        basis: Basis | None = None,
        metric: str | Tensor = "dot",
        sketch: int | Sketch | Decomposition | None = None,
    ) -> None:
        if isinstance(metric, str) and metric not in ("dot", "cosine"):
            raise ConfigError(f"metric {metric!r} is not known", "use dot, cosine, or a matrix")
        self.encoder = encoder
        self.text = hasattr(encoder, "tokenize") and hasattr(encoder, "embed")
        self.composite = _composite(encoder) if composite == "auto" else composite
        self.basis = basis or (Tokens() if self.text else Patches(8))
        self.metric = metric
        self.sketch = Sketch(sketch) if isinstance(sketch, int) else sketch
        if isinstance(self.sketch, Sketch) and isinstance(metric, Tensor):
            raise ConfigError("a sketch cannot be used with a matrix as metric", "use metric dot or cosine")

    # -- factors -----------------------------------------------------------------------------------------

    def factor(
        self,
        x: Any,
        batch_size: int = 1,
        store: str | Path | None = None,
        dtype: str = "float32",
        progress: bool = False,
        workers: Workers = 0,
        ray: str | None = None,
        device: str = "auto",
    ) -> Factors:
        """A(x) of every input; computed once, used for all pairs.

        Args:
            x: images (N, C, H, W) or `Prepared`; texts for a sentence encoder; else any (N, *sample).
            batch_size: inputs at a time.
            store: a folder for the factors, memory-mapped: memory stays bounded, and an interrupted run
                resumes.
            dtype: in the store, "float32" or "float16".
            progress: show a bar.
            workers: processes that compute what a store lacks and share this one's threads, the encoder being
                on the CPU; "auto" takes one for two threads and 4 GiB where that saves time. The bytes are
                those of one process with as many threads as each. With ``ray``, at most so many tasks.
            ray: "auto" or ``host:port``: what a store lacks is computed on that cluster.
            device: on Ray, where; "cuda" or "auto" reserves a GPU for each task.

        Returns:
            The factors, with cosine's norms divided out.

        Raises:
            InputError: inputs or an encoder that cannot be explained; representations of zero length with
                cosine.
            DataError: the store holds factors of something else; a worker died, and the same call goes on.
        """
        if self.text:
            return self._factor_texts(x, progress)
        inputs = self._inputs(x)
        values: Any
        if store is None:
            batches = [
                self._factor(inputs[i : i + batch_size])
                for i in track(range(0, len(inputs), batch_size), "explaining", progress)
            ]
            values, representations = (torch.cat([b[j] for b in batches]) for j in (0, 1))
        else:
            filled = self._fill(inputs, batch_size, Path(store), dtype, progress, workers, ray, device)
            values, representations = filled.values, torch.from_numpy(filled.representations)
        grid = self.basis.shape(tuple(inputs.shape[1:]))
        return Factors(
            values, representations, [grid] * len(inputs), checks=values.shape[2] - math.prod(grid)
        )

    def _fill(
        self,
        inputs: Tensor,
        batch_size: int,
        folder: Path,
        dtype: str,
        progress: bool,
        workers: Workers,
        ray: str | None,
        device: str,
    ) -> FactorStore:
        """The store with all factors; batches lie on a fixed grid, whatever was there before."""
        known = FactorStore.describe(folder)
        shape, width = ((0, 0), 0) if known is None else (known["shape"], known["width"])
        opened = partial(FactorStore, folder, width=width, key=self._key(inputs), dtype=dtype)
        store = None if known is None else opened((len(inputs), *shape[1:]))
        grid = [range(len(inputs))[i : i + batch_size] for i in range(0, len(inputs), batch_size)]
        todo = grid if store is None else [rows for rows in grid if not store.done[list(rows)].all()]
        tasks = [(list(rows), inputs[rows.start : rows.stop].cpu().contiguous().numpy()) for rows in todo]
        here = _device(self.encoder)
        with progress_bar("explaining", len(tasks), show=progress) as bar:
            begun = time.monotonic()
            for task in tasks[:1]:  # here: it tells the shape, the time, and what cannot work
                found = self._task(task)
                store = store or opened((len(inputs), *found[1].shape[1:]), width=found[2].shape[1])
                store.put(*found)
                bar.advance()
            assert store is not None
            rest, where, count = tasks[1:], device, workers
            each = _THREADS
            if ray is None:
                where, seconds = str(here), (time.monotonic() - begun) * len(rest)
                count = _processes(workers, seconds) if here.type == "cpu" else 0
                each = max(1, torch.get_num_threads() // max(count, 1))
            for done in shards(partial(_computing, self), rest, count, where, each, ray):
                store.put(*cast(tuple[list[int], np.ndarray, np.ndarray], done))
                bar.advance()
        if ray is not None:
            self.encoder.to(here)
        return store

    def _task(self, task: tuple[list[int], np.ndarray]) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Factors and representations of some inputs by number."""
        values, representations = self._factor(torch.from_numpy(task[1]))
        return task[0], values.numpy(), representations.numpy()

    def _factor_texts(self, texts: Any, progress: bool) -> Factors:
        texts = [texts] if isinstance(texts, str) else list(texts)
        values, representations, tokens = [], [], []
        encoder: Any = self.encoder
        for i in track(range(len(texts)), "explaining", progress):
            tokenized = encoder.tokenize(texts[i])  # one by one: no padding, no mask
            a, r = self._factor(encoder.embed(tokenized.ids))
            values.append(a[0])
            representations.append(r[0])
            tokens.append(tokenized.tokens[0])
        if not texts:
            raise InputError("there is no text", "pass at least one")
        return Factors(values, torch.stack(representations), [(len(t),) for t in tokens], tokens)

    def _factor(self, x: Tensor) -> tuple[Tensor, Tensor]:
        linear = linearize(self.encoder, x.to(_device(self.encoder)), self.composite)
        width = linear.output.shape[1]
        components = self.basis.size(tuple(x.shape[1:]))
        if self._sketched(width, components):
            a = self._sketch(linear)
        else:
            a = linear.factor(self.basis)
        y = linear.output
        if self.metric == "cosine":
            norm = y.norm(dim=1)
            if not bool((norm > 0).all()):
                raise InputError(
                    f"{int((norm == 0).sum())} inputs have a representation of length zero",
                    "use metric='dot'",
                )
            a, y = a / norm[:, None, None], y / norm[:, None]
        if not bool(torch.isfinite(a).all()):
            raise InputError("the relevance contains NaN or infinity", "check the encoder's weights")
        return a.detach().cpu(), y.detach().cpu()

    def _sketch(self, linear: LinearizedModel) -> Tensor:
        if isinstance(self.sketch, Decomposition):
            return self.sketch.factor(linear, self.basis)
        assert self.sketch is not None
        directions = self.sketch.directions(linear.output.shape[1]).to(linear.output)
        return linear.rows(directions, self.basis).reshape(len(linear.output), len(directions), -1)

    def _sketched(self, width: int, components: int) -> bool:
        if self.sketch is None or (self.text and isinstance(self.sketch, Decomposition)):  # texts are short
            return False
        return self.sketch.size < min(width, components)

    # -- pairs -------------------------------------------------------------------------------------------

    def pair(self, x1: Any, x2: Any) -> PairRelevance:
        """BiLRP of two inputs, given as factors of one input each, or as inputs.

        Args:
            x1: an image (C, H, W) or (1, C, H, W), a text, or a tuple (factors, index).
            x2: the other.

        Returns:
            Values (1, P, Q) with values.sum() + bias == y.
        """
        (f1, i), (f2, j) = self._one(x1), self._one(x2)
        return self._pair(f1, i, f2, j)

    def _pair(self, f1: Factors, i: int, f2: Factors, j: int) -> PairRelevance:
        a, b = f1[i], f2[j]
        y1, y2 = f1.representations[i], f2.representations[j]
        mb, my2 = b, y2
        if isinstance(self.metric, Tensor):
            matrix = self.metric.to(b)
            if matrix.shape != (len(y1), len(y2)):
                raise ConfigError(
                    f"a matrix {tuple(matrix.shape)} is no metric for representations of {len(y1)} values",
                    "pass one of shape (K, K)",
                )
            mb, my2 = matrix @ b, matrix @ y2
        values = (a.T @ mb)[None]
        score = (y1 @ my2)[None].to(values)
        error, remainder = None, 0.0
        if f1.checks and isinstance(self.sketch, Decomposition):
            remainder = self.sketch.remainder(
                a, mb, f1.seen(i), f2.seen(j) if mb is b else matrix @ f2.seen(j)
            )
        elif len(a) != len(y1):
            assert isinstance(self.sketch, Sketch)
            error = self.sketch.error(a, b, len(y1))[None]
        bias, grids = score - values.sum((1, 2)), (f1.grids[i], f2.grids[j])
        return PairRelevance(values, score, Pairs(self.basis), bias, grids, error, remainder)

    def all_pairs(self, factors: Factors) -> Iterator[tuple[int, int, PairRelevance]]:
        """BiLRP of all pairs i < j, one at a time: (i, j, relevance)."""
        for i in range(len(factors)):
            for j in range(i + 1, len(factors)):
                yield i, j, self._pair(factors, i, factors, j)

    def group_summary(
        self, factors: Factors, labels: Sequence[Any], max_pairs: int = 200, top: int = 10, seed: int = 0
    ) -> list[GroupSummary]:
        """What similarity within each class or subgroup rests on; see :func:`summarise`."""
        return summarise(
            lambda i, j: self._pair(factors, i, factors, j), factors, labels, max_pairs, top, seed
        )

    # -- helpers -----------------------------------------------------------------------------------------

    def _one(self, x: Any) -> tuple[Factors, int]:
        if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], Factors):
            return x
        if isinstance(x, Factors):
            if len(x) != 1:
                raise InputError(f"a pair has one input on each side, not {len(x)}", "pass (factors, index)")
            return x, 0
        if self.text:
            return self.factor([x] if isinstance(x, str) else x), 0
        x = torch.as_tensor(x)
        if isinstance(self.encoder, Encoder) and x.ndim == 3:
            x = x[None]
        if len(x) != 1:
            raise InputError(f"a pair has one input on each side, not {len(x)}", "pass one image")
        return self.factor(x), 0

    def _inputs(self, x: Any) -> Tensor:
        if isinstance(self.encoder, Encoder):
            return self.encoder._checked(x)
        x = x.images if hasattr(x, "images") else torch.as_tensor(x)
        if len(x) == 0:
            raise InputError("there are no inputs to explain", "pass at least one")
        return x

    def _key(self, inputs: Tensor) -> dict[str, Any]:
        encoder = self.encoder
        return {
            "encoder": encoder.key() if isinstance(encoder, Encoder) else model_key(encoder),
            "composite": repr(self.composite),
            "basis": self.basis.to_dict(),
            "metric": self.metric if isinstance(self.metric, str) else "matrix",
            "sketch": None if self.sketch is None else self.sketch.to_dict(),
            "inputs": combined(*map(content_key, inputs)),
        }


def _processes(workers: Workers, seconds: float) -> int:
    """How many share work that takes one of them so long, 0 for this one."""
    if workers != "auto":
        return workers
    count = min(torch.get_num_threads() // _THREADS, (available_memory() or _ROOM) // _ROOM)
    return count if count > 1 and seconds * (1 - 1 / count) > _START else 0


def _computing(explainer: SimilarityExplainer, device: str) -> Callable[[Any], object]:
    """In a process that computes: what it does with a task."""
    explainer.encoder.to(device)
    return explainer._task


def _composite(encoder: nn.Module) -> Composite:
    if any(isinstance(m, nn.LayerNorm) for m in encoder.modules()):
        return named_composite("transformer")
    return named_composite("epsilon_gamma_box", low=-3.0, high=3.0)


def _device(module: nn.Module) -> torch.device:
    return next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0)).device
