"""Two claims of "The Clever Hans effect in anomaly detection" (Kauffmann et al. 2020), checked on digits-C.

1. In high dimension a Gaussian KDE scores like the distance to the mean (section 4, appendix B).
2. A bag of KDE, autoencoder and deep one-class lowers the Clever Hans score against its members (section 5).

    python examples/anomaly_claims.py [--train 1000] [--test 100] [--epochs 60]

Nothing is tuned to the outcome. The deep one-class features come from a CNN trained on rendered letters, where the
paper uses EMNIST letters.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch

from pfungst.anomaly import KDE, Autoencoder, Bag, DeepOneClass, rendered_letters, train_letters
from pfungst.datasets import digits_c
from pfungst.errors import PfungstWarning
from pfungst.measure import auroc, mask_agreement


def distance_to_mean(train: torch.Tensor, test: torch.Tensor, good: int) -> None:
    """Correlation of the KDE's score with ‖x − mean‖², at its fitted bandwidth and at wider ones."""
    squared = (test - train.mean(0)).flatten(1).double().square().sum(1) / 0.25
    print("KDE against the squared distance to the mean (Pearson r over good and corrupted test digits)")
    fitted = KDE(device="cpu").fit(train)
    for factor in (1, 2, 4, 8):
        model = KDE(bandwidth=fitted.bandwidth_ * factor, device="cpu").fit(train)
        score = model.anomaly_score(test).double()
        pair = torch.stack([score, squared])
        r, inner = (float(torch.corrcoef(p)[0, 1]) for p in (pair, pair[:, :good]))
        print(
            f"  bandwidth {factor} × the most likely ({model.bandwidth_:.3g}): r = {r:.4f}, good digits only {inner:.4f}"
        )
    noise = torch.Generator().manual_seed(0)
    for dim in (2, 10, 100, 1000, 10_000):
        x = torch.randn(300, dim, generator=noise, dtype=torch.float64)
        y = (
            torch.randn(200, dim, generator=noise, dtype=torch.float64)
            * torch.linspace(0.5, 1.5, 200)[:, None]
        )
        score = torch.as_tensor(KDE(device="cpu").fit(x.numpy()).anomaly_score(y.numpy()))
        r = float(torch.corrcoef(torch.stack([score, (y - x.mean(0)).square().sum(1)]))[0, 1])
        print(f"  Gaussian data of {dim} dimensions: r = {r:.4f}")


def clever_hans(args: argparse.Namespace) -> None:
    sets = digits_c(train=args.train, good=args.test, anomalous=args.test)
    train = sets[0].select(split="train").prepare("none", 28).images
    print(f"\ntraining: {len(train)} digits; letters CNN", flush=True)
    letters = train_letters(*rendered_letters(args.letters), epochs=args.epochs // 6)
    members = [
        ("KDE", KDE(device="cpu")),
        ("Auto", Autoencoder(epochs=args.epochs, device="cpu")),
        ("Deep", DeepOneClass(letters, mean=0.0, std=1.0, device="cpu")),
    ]
    bag = Bag(members).fit(train)
    models = {**bag.members_, "Bag": bag}
    rows = []
    print("Clever Hans score × 100 (AUROC − mean cosine of positive relevance and |change|)")
    print(
        f"{'':>14}"
        + "".join(f"{name:>8}" for name in models)
        + "   AUROC: "
        + "".join(f"{name:>8}" for name in models)
    )
    for part in sets:
        test = part.select(split="test").prepare("none", 28)
        clean = _clean(part, args)
        wrong = test.labels == 1
        change = (test.images[torch.as_tensor(wrong)] - clean).abs().mean(1).numpy()
        scores, areas = [], []
        for model in models.values():
            area = auroc(test.labels, np.asarray(model.anomaly_score(test.images)))
            heat = model.explain(test.images[torch.as_tensor(wrong)]).values.float().numpy()
            areas.append(area)
            scores.append(area - float(np.nanmean(mask_agreement(heat, change))))
        rows.append((scores, areas))
        print(
            f"{part.name:>14}" + "".join(f"{100 * s:>8.1f}" for s in scores) + "          "
            + "".join(f"{100 * a:>8.1f}" for a in areas), flush=True,
        )  # fmt: skip
    hans, area = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    print(f"{'mean':>14}" + "".join(f"{100 * s:>8.1f}" for s in hans.mean(0)) + "          "
          + "".join(f"{100 * a:>8.1f}" for a in area.mean(0)))  # fmt: skip
    random = np.random.default_rng(0)
    draws = random.integers(0, len(hans), (10_000, len(hans)))
    print(
        "\nDoes the bag lower the Clever Hans score? (mean over corruptions, 95 % bootstrap over corruptions)"
    )
    compared = [(name, hans[:, i]) for i, name in enumerate(bag.members_)]
    compared += [("members' mean", hans[:, :-1].mean(1)), ("members' worst", hans[:, :-1].max(1))]
    for name, other in compared:
        gap = 100 * (hans[:, -1] - other)
        low, high = np.quantile(gap[draws].mean(1), (0.025, 0.975))
        verdict = "yes" if high < 0 else "no, it raises it" if low > 0 else "undecided"
        print(f"  bag − {name:<15} {gap.mean():+6.1f} [{low:+.1f}, {high:+.1f}]  {verdict}")


def _clean(part, args: argparse.Namespace) -> torch.Tensor:
    """The uncorrupted images of a set's corrupted test digits, in order."""
    from pfungst.datasets.digits import _digits

    images, _ = _digits(28)
    rows = [int(i.id.rsplit("/", 1)[1]) for i in part.items if i.split == "test" and i.label != "good"]
    return torch.from_numpy(images[rows])[:, None].expand(-1, 3, -1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--letters", type=int, default=5200)
    args = parser.parse_args()
    warnings.simplefilter("ignore", PfungstWarning)
    sets = digits_c(
        ["shot_noise", "stripe", "dotted_line"], train=args.train, good=args.test, anomalous=args.test
    )
    train = sets[0].select(split="train").prepare("none", 28).images
    test = torch.cat([s.select(split="test").prepare("none", 28).images for s in sets])
    distance_to_mean(train, test, args.test)
    clever_hans(args)


if __name__ == "__main__":
    main()
