"""Speed of D2Neighbors at the size of the paper: 209 training and 83 test images of 3 × 224 × 224.

Each task is run by Pfungst and by a straightforward loop over images with torch's autograd, in turn, in the
same process with the same number of threads. The loop is written as one would write it: differences to all
prototypes at once, soft minimum, one backward pass per image; for joint relevance the input's coefficients
are computed once and filtered band by band. Because the loop takes minutes, it runs on the first few images of
each task (``--images``) and its time is scaled to all; ``--full`` runs it on all of them.
The time of the bare matrix products is the limit that Pfungst is compared with.

    python benchmarks/anomaly.py [--full] [--images 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings

import torch

from pfungst.anomaly import D2Neighbors
from pfungst.mitigate import GaussianBlur
from pfungst.relevance import PixelBands, Pixels
from pfungst.relevance.dct import dct2, idct2

TRAIN, TEST, SIZE = 209, 83, 224


def parts(count, seed):
    """Aligned images of one object with grain and uneven light: smooth, with small differences."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, SIZE)
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    ring = torch.sigmoid(40 * (0.7 - radius)) - torch.sigmoid(40 * (0.35 - radius))
    light = 0.1 * torch.randn(count, 3, 1, 1, generator=generator) * axis[:, None]
    grain = 0.05 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return (0.2 + 0.5 * ring + light + grain).clamp(0, 1)


# --- the loop -----------------------------------------------------------------------------------------------


def loop_score(x, u, gamma, p):
    d = (x - u).abs().pow(p).flatten(1).sum(1)
    return -(torch.logsumexp(-gamma * d, 0) - torch.log(torch.tensor(float(len(u))))) / gamma


def loop_fit_score(train, test, gamma, p):
    """Distances among the training points and scores of the test points, an image at a time."""
    with torch.no_grad():
        u = (train - 0.5) / 0.5
        between = torch.stack([(x - u).abs().pow(p).flatten(1).sum(1) for x in u])
        scores = torch.stack([loop_score((x - 0.5) / 0.5, u, gamma, p) for x in test])
    return between, scores


def loop_weighted_gradient(x, u, gamma, p):
    """The difference to every prototype, and the gradient of Σ_j R_j log d_j / p with R_j constant."""
    delta = (x - u).requires_grad_()
    d = delta.abs().pow(p).flatten(1).sum(1)
    share = torch.softmax(-gamma * d, 0).detach()
    score = -(torch.logsumexp(-gamma * d, 0) - torch.log(torch.tensor(float(len(u))))) / gamma
    (g,) = torch.autograd.grad((share * score.detach() * d.log()).sum() / p, delta)
    return delta.detach(), g


def loop_pixels(test, u, gamma, p):
    out = []
    for x in test:
        delta, g = loop_weighted_gradient((x - 0.5) / 0.5, u, gamma, p)
        out.append((delta * g).sum((0, 1)))
    return torch.stack(out)


def loop_joint(test, u, gamma, p, masks):
    out = []
    for x in test:
        delta, g = loop_weighted_gradient((x - 0.5) / 0.5, u, gamma, p)
        coefficients = dct2(delta)
        out.append(torch.stack([(idct2(coefficients * mask) * g).sum((0, 1)) for mask in masks]))
    return torch.stack(out)


# --- measuring ----------------------------------------------------------------------------------------------


def clock(function, repeat=1):
    best, result = float("inf"), None
    for _ in range(repeat):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def report(name, ours, loop, images, limit, floor):
    ratio = loop / ours
    bound = "" if limit is None else f"  products {limit:6.2f} s"
    verdict = "" if floor is None else f"  (wanted ≥ {floor}: {'yes' if ratio >= floor else 'NO'})"
    print(
        f"{name:34s} ours {ours:7.2f} s  loop {loop:8.1f} s{images}  ×{ratio:6.1f}{bound}{verdict}",
        flush=True,
    )


def relative(a, b):
    return ((a - b).abs().sum() / b.abs().sum()).item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true", help="run the loop on all test images")
    parser.add_argument("--images", type=int, default=3, help="test images the loop runs on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--powers", type=int, nargs="+", default=[2, 1, 4])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("error")
    train, test = parts(TRAIN, 0), parts(TEST, 1)
    some = TEST if args.full else args.images
    scale = TEST / some
    note = "" if args.full else f" ({some} of {TEST} images, scaled)"
    bands = PixelBands.paper()
    masks = bands.masks(SIZE, SIZE, train)
    print(f"{TRAIN} training and {TEST} test images of 3 × {SIZE} × {SIZE}, {args.threads} threads, float32")

    u = ((train - 0.5) / 0.5).flatten(1)
    x = ((test - 0.5) / 0.5).flatten(1)
    w = torch.rand(TEST, TRAIN)
    u_pixels = u[:, : SIZE * SIZE].contiguous()
    products_fit, _ = clock(lambda: (u @ u.T, x @ u.T), 3)
    products_pixels, _ = clock(lambda: (w @ u, w @ u_pixels), 3)
    images, cosines = u.view(-1, SIZE, SIZE), dct2(torch.eye(SIZE))
    one_band, _ = clock(lambda: (cosines @ images @ cosines, w @ u_pixels), 3)
    limits = {"fit": products_fit, "pixels": products_fit * TEST / (TRAIN + TEST) + products_pixels}
    limits["joint"] = 20 * one_band

    for p in args.powers:
        print(f"p = {p}")
        limit = limits if p == 2 else {}

        def ours_fit(p=p):
            detector = D2Neighbors(p=p).fit(train)
            return detector, detector.anomaly_score(test)

        ours, (detector, scores) = clock(ours_fit, 2)
        gamma, prototypes = detector.gamma_, (train - 0.5) / 0.5
        loop, (_, loop_scores) = clock(lambda: loop_fit_score(train, test, gamma, p))  # noqa: B023
        assert relative(scores, loop_scores) < 1e-3, relative(scores, loop_scores)
        report("fit + score", ours, loop, "", limit.get("fit"), 5 if p == 2 else None)

        ours, found = clock(lambda: detector.explain(test, Pixels()), 2)  # noqa: B023
        loop, expected = clock(lambda: loop_pixels(test[:some], prototypes, gamma, p))  # noqa: B023
        assert relative(found.values[:some], expected) < 1e-3
        report(
            "pixels, all test images", ours, loop * scale, note, limit.get("pixels"), 20 if p == 2 else None
        )

        ours, found = clock(lambda: detector.explain(test, bands))  # noqa: B023
        loop, expected = clock(lambda: loop_joint(test[:some], prototypes, gamma, p, masks))  # noqa: B023
        assert relative(found.values[:some], expected) < 1e-3
        assert found.conservation_error().max() < 1e-4
        report("pixels × 20 bands", ours, loop * scale, note, limit.get("joint"), 30 if p == 2 else None)
        print(f"   peak memory so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")

    seconds, detector = clock(lambda: D2Neighbors(features=GaussianBlur()).fit(train))
    pixels, _ = clock(lambda: detector.explain(test, Pixels()))
    joint, found = clock(lambda: detector.explain(test, bands))
    assert found.conservation_error().max() < 1e-4
    print(
        f"blur in front, p = 2: fit {seconds:.2f} s, pixels {pixels:.2f} s, pixels × 20 bands {joint:.2f} s"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB (wanted ≤ 6)")


if __name__ == "__main__":
    main()
