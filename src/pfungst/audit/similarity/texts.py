"""The similarity audit of a sentence encoder: which tokens make two sentences alike."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pfungst import measure
from pfungst.audit.result import Interval
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.result import Findings, Pair, Relation
from pfungst.data.delimited import read_rows, require
from pfungst.errors import DataError
from pfungst.progress import progress_bar
from pfungst.similarity import SimilarityExplainer

Sentences = tuple[str, str, str]  # first, second, relation
COLUMNS = ("first", "second", "relation")
SAME = "same"
_MARKERS = ("[CLS]", "[SEP]", "<s>", "</s>", "[PAD]", "<pad>")


def read_pairs(path: Path, positive: str | None = None) -> list[Sentences]:
    """Sentence pairs and their relation from a CSV with the columns first, second and relation.

    Raises:
        DataError: the file or a column is missing, a field is empty, there are fewer than two pairs or none
            of the relation `positive`; and as for ``read_rows``.
    """
    table = read_rows(path)
    require(path, table.fields, COLUMNS)
    rows = [tuple(row[c].strip() for c in COLUMNS) for row in table.rows]
    bad = [line for line, row in zip(table.lines, rows, strict=True) if not all(row)]
    if bad:
        raise DataError(f"{path} has empty fields in lines {bad[:10]}", "fill or remove them")
    if len(rows) < 2:
        raise DataError(f"{path} has {len(rows)} pairs", "give at least two")
    relations = dict.fromkeys(c for *_, c in rows)
    if positive not in (None, *relations):
        raise DataError(f"no pair has the relation {positive!r}", f"relations: {', '.join(relations)}")
    return [(a, b, c) for a, b, c in rows]


def audit(
    encoder: Any, rows: list[Sentences], config: SimilarityConfig
) -> tuple[Findings, dict[str, np.ndarray]]:
    """Similarities of all pairs, BiLRP of up to `explain` pairs per relation: findings and arrays."""
    relations = list(dict.fromkeys(r for *_, r in rows))
    expected = config.positive or (SAME if SAME in relations else relations[0])
    words = [a for a, *_ in rows] + [b for _, b, _ in rows]
    vectors = encoder.encode(words, normalise=config.metric == "cosine").numpy()
    similarity = (vectors[: len(rows)] * vectors[len(rows) :]).sum(1)
    kinds = np.array([r for *_, r in rows])
    explainer = SimilarityExplainer(encoder, metric=config.metric, composite=config.composite)
    arrays: dict[str, np.ndarray] = {"similarities": similarity.astype(np.float32), "relations": kinds}
    pairs: list[Pair] = []
    summaries: list[Relation] = []
    worst = 0.0
    chosen = {r: _chosen(kinds, similarity, r, config) for r in relations}
    with progress_bar("explaining pairs", sum(map(len, chosen.values()))) as bar:
        for relation, index in chosen.items():
            shares = []
            for rank, i in enumerate(index):
                pair, matrix, share = _explain(explainer, rows[i], f"pair_{len(pairs)}")
                error = abs(float(matrix.sum()) + share.bias - similarity[i])
                worst = max(worst, error / max(abs(similarity[i]), 1e-6))
                shares.append((share.shared, share.special, pair.bias_share))
                if rank < config.pairs:
                    arrays[pair.array] = matrix
                    pairs.append(pair)
                bar.advance()
            mine = kinds == relation
            shared, special, bias = np.mean(shares, axis=0).tolist()
            summaries.append(
                Relation(
                    name=relation,
                    n=int(mine.sum()),
                    similarity=_interval(similarity[mine]),
                    shared_tokens=shared,
                    special_tokens=special,
                    bias_share=bias,
                )
            )
    summaries.sort(key=lambda s: s.name != expected)
    auroc = None
    if len(relations) > 1:
        auroc = float(measure.auroc((kinds == expected).astype(int), similarity))
    found = Findings(
        encoder=encoder.name,
        trained=encoder.trained,
        width=vectors.shape[1],
        modality="texts",
        n=len(rows),
        classes=[s.name for s in summaries],
        split="none",
        seeds=[config.seed + i for i in range(config.seeds)],
        relations=summaries,
        auroc=auroc,
        pairs=pairs,
        basis="tokens",
        metric=config.metric,
        composite=str(getattr(explainer.composite, "name", explainer.composite)),
        conservation=worst,
    )
    return found, arrays


class _Shares(NamedTuple):
    shared: float
    special: float
    bias: float


def _explain(explainer: SimilarityExplainer, row: Sentences, name: str) -> tuple[Pair, np.ndarray, _Shares]:
    """A pair of sentences, its matrix, and which shares lie between equal words and on no words."""
    first, second, relation = row
    factors = explainer.factor([first, second])
    r = explainer.pair((factors, 0), (factors, 1))
    a, b = factors.tokens
    matrix = r.values[0].numpy().astype(np.float32)
    equal, plain = _token_masks(a, b)
    positive, magnitude = np.maximum(matrix, 0), np.abs(matrix)
    pair = Pair(
        array=name,
        title=relation,
        first=first,
        second=second,
        similarity=float(r.score[0]),
        bias_share=r.bias_share,
        grids=([len(a)], [len(b)]),
        tokens=(a, b),
    )
    shares = _Shares(
        shared=float(positive[equal].sum() / max(positive.sum(), 1e-12)),
        special=1 - float(magnitude[plain].sum() / max(magnitude.sum(), 1e-12)),
        bias=float(r.bias[0]),
    )
    return pair, matrix, shares


def _chosen(kinds: np.ndarray, similarity: np.ndarray, relation: str, config: SimilarityConfig) -> list[int]:
    """The most similar pairs of a relation, then others drawn at random."""
    mine = np.flatnonzero(kinds == relation)
    ordered = mine[np.argsort(-similarity[mine], kind="stable")]
    top, rest = ordered[: config.pairs], ordered[config.pairs :]
    more = np.random.default_rng(config.seed).permutation(rest)[: max(0, config.explain - len(top))]
    return [*top.tolist(), *more.tolist()]


def _token_masks(a: Sequence[str], b: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(P, Q) pairs of equal words, and pairs of words that are neither markers nor punctuation."""
    word = [
        np.array([t not in _MARKERS and not set(t) <= set(string.punctuation) for t in side])
        for side in (a, b)
    ]
    plain = word[0][:, None] & word[1][None]
    return (np.array(a)[:, None] == np.array(b)[None]) & plain, plain


def _interval(values: np.ndarray) -> Interval:
    mean = float(values.mean())
    if len(values) < 5:
        return Interval(value=mean)
    drawn = np.random.default_rng(0).choice(values, (1000, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value=mean, low=float(low), high=float(high))
