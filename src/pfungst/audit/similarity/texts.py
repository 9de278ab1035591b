"""The similarity audit of a sentence encoder: which tokens make two sentences alike."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfungst import measure
from pfungst.audit.result import Interval
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.result import Pair, Relation
from pfungst.audit.workspace import Workspace
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
        DataError: the file or a column is missing, a field is empty, there are fewer than two pairs or none of the relation `positive`; and as for
            ``read_rows``.
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
) -> tuple[Workspace, dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Similarities of all pairs, BiLRP of up to `explain` pairs per relation."""
    assert config.texts is not None
    relations = list(dict.fromkeys(r for *_, r in rows))
    expected = config.positive or (SAME if SAME in relations else relations[0])
    workspace = Workspace(config)
    words = [a for a, *_ in rows] + [b for _, b, _ in rows]
    vectors = encoder.encode(words, normalise=True).numpy()
    similarity = (vectors[: len(rows)] * vectors[len(rows) :]).sum(1)
    kinds = np.array([r for *_, r in rows])
    explainer = SimilarityExplainer(encoder, metric="cosine")
    arrays: dict[str, np.ndarray] = {"similarities": similarity.astype(np.float32), "relations": kinds}
    pairs: list[Pair] = []
    summaries: list[Relation] = []
    worst = 0.0
    chosen = {r: _chosen(kinds, similarity, r, config) for r in relations}
    with progress_bar("explaining pairs", sum(map(len, chosen.values()))) as bar:
        for relation, index in chosen.items():
            shared, special, bias = [], [], []
            for rank, i in enumerate(index):
                first, second, _ = rows[i]
                factors = explainer.factor([first, second])
                r = explainer.pair((factors, 0), (factors, 1))
                a, b = factors.tokens
                matrix = r.values[0].numpy().astype(np.float32)
                worst = max(
                    worst,
                    abs(float(r.values.sum() + r.bias[0]) - similarity[i]) / max(abs(similarity[i]), 1e-6),
                )
                equal, plain = _token_masks(a, b)
                positive = np.maximum(matrix, 0)
                shared.append(float(positive[equal].sum() / max(positive.sum(), 1e-12)))
                magnitude = np.abs(matrix)
                special.append(1 - float(magnitude[plain].sum() / max(magnitude.sum(), 1e-12)))
                bias.append(r.bias_share)
                if rank < config.pairs:
                    name = f"pair_{len(pairs)}"
                    arrays[name] = matrix
                    pairs.append(
                        Pair(
                            array=name,
                            title=relation,
                            first=first,
                            second=second,
                            similarity=float(similarity[i]),
                            bias_share=r.bias_share,
                            grids=([len(a)], [len(b)]),
                            tokens=(a, b),
                        )
                    )
                bar.advance()
            mine = kinds == relation
            summaries.append(
                Relation(
                    name=relation,
                    n=int(mine.sum()),
                    similarity=_interval(similarity[mine]),
                    shared_tokens=float(np.mean(shared)),
                    special_tokens=float(np.mean(special)),
                    bias_share=float(np.mean(bias)),
                )
            )
    summaries.sort(key=lambda s: s.name != expected)
    auroc = None
    if len(relations) > 1:
        auroc = float(measure.auroc((kinds == expected).astype(int), similarity))
    fields = {
        "title": f"{encoder.name} on {config.texts.name}",
        "width": vectors.shape[1],
        "modality": "texts",
        "n": len(rows),
        "classes": [s.name for s in summaries],
        "split": "none",
        "relations": summaries,
        "auroc": auroc,
        "pairs": pairs,
        "basis": "tokens",
        "composite": str(getattr(explainer.composite, "name", explainer.composite)),
        "conservation": worst,
    }
    return workspace, fields, arrays, []


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
