"""Why detectors explain wrongly, in two dimensions: 004 figure 5, computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pfungst.papers.made import Made, Numbers, Wish
from pfungst.report import plots
from pfungst.report.page import Figure, Key

WRONG = 0.8  # cosine of explanation and truth below which an outlier is a Clever Hans example
_HALF = np.array([1.6, 0.35])  # semi-axes of the normal region, an ellipse

Score = Callable[[np.ndarray], np.ndarray]


def sample(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inliers (n, 2) even on the ellipse, and outliers (16, 2) around it."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.random(n))
    inliers = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] * _HALF
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False) + 0.1
    return inliers, np.stack([np.cos(turn), np.sin(turn)], 1) * (_HALF + 0.9)


def truth(points: np.ndarray) -> np.ndarray:
    """(N, 2) squared way from each point outside to the nearest of the ellipse, by axis: what its anomaly
    is."""
    turn = np.linspace(0, 2 * np.pi, 7200)
    edge = np.stack([np.cos(turn), np.sin(turn)], 1) * _HALF
    nearest = edge[((points[:, None] - edge[None]) ** 2).sum(2).argmin(1)]
    return (points - nearest) ** 2


def detectors(inliers: np.ndarray) -> dict[str, tuple[Score, Score]]:
    """Score (N,) and explanation (N, 2) of each family; every explanation sums to its score.

    KDE: Pfungst's. Autoencoder: its optimal linear form with one code, the projection on the first
    principal axis (Baldi and Hornik 1989), ‖x − r(x)‖² by axis. Deep one-class: squared norm of features
    that compress one direction and mix it with the other, φ(x) = A (x − mean), relevance by x ⊙ (AᵀA x).
    """
    from pfungst.anomaly import KDE

    kde = KDE().fit(inliers)
    mean = inliers.mean(0)
    _, _, axes = np.linalg.svd(inliers - mean, full_matrices=False)
    off = np.eye(2) - np.outer(axes[0], axes[0])
    scale = np.sqrt(((inliers - mean) @ axes.T).var(0))
    mix = np.diag(1 / scale) @ np.array([[0.8, 0.6], [-0.25, 0.4]]) @ axes

    def parts(x: np.ndarray, form: np.ndarray) -> np.ndarray:
        return (x - mean) * ((x - mean) @ form)

    return {
        "KDE": (kde.anomaly_score, lambda x: np.asarray(kde.explain(x).values)),
        "autoencoder": (
            lambda x: (((x - mean) @ off) ** 2).sum(1),
            lambda x: ((x - mean) @ off) ** 2,
        ),
        "deep one-class": (
            lambda x: (((x - mean) @ mix.T) ** 2).sum(1),
            lambda x: parts(x, mix.T @ mix),
        ),
    }


def agreement(explained: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Cosine of max(explanation, 0) and truth, (N,)."""
    r = np.maximum(explained, 0)
    norm = np.linalg.norm(r, axis=1) * np.linalg.norm(true, axis=1)
    return np.divide((r * true).sum(1), norm, out=np.zeros(len(r)), where=norm > 0)


def cartoon(wish: Wish) -> Made:
    """Outliers that every detector finds, and for which its explanation is wrong."""
    inliers, outliers = sample(40 if wish.tiny else 200)
    true = truth(outliers)
    ours: dict[str, dict[str, float]] = {}
    panels = []
    for name, (score, explain) in detectors(inliers).items():
        limit = float(np.quantile(score(inliers), 0.95))
        found = score(outliers) > limit
        right = agreement(np.asarray(explain(outliers)), true)
        ours[name] = {
            "outliers found": float(found.mean()),
            "mean cosine with the truth": float(right.mean()),
            "Clever Hans examples": float((found & (right < WRONG)).mean()),
        }
        panels.append(plots.Plane(name, score, limit, inliers, outliers, right < WRONG))
    figure = Figure(
        title="Three detectors of the same normal data",
        picture=plots.planes(panels, "Contours of three detectors over normal points and outliers"),
        narrow=plots.planes(panels, "Contours of three detectors over normal points and outliers", width=344),
        legend=[
            Key(label="normal", colour="good", shape="circle"),
            Key(label="outlier", colour="original", shape="circle"),
            Key(label="found for the wrong reason", colour="defect", shape="circle"),
        ],
        caption=f"Dashed: the threshold. Marked: the explanation's cosine with the way to the normal region, "
        f"an ellipse, is "
        f"below {WRONG:g}.",
    )
    return Made([Numbers.of("The example", ours, wish.piece.numbers)], [figure])
