"""Evidence about components of small planted networks, with witnesses: hits and false alarms.

    python benchmarks/evidence.py [--seeds 10]

Networks on digits with a white corner in half of the images of one class, and clean ones; witnesses are clean. Without
witnesses, on photographs and with other artefacts: benchmarks/truth.py; real networks: ``pfungst audit classifier``.
"""

from __future__ import annotations

import argparse

import torch
from _common import describe_machine
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pfungst.spurious import Evidence, FeatureHead, NeuralPCA, Witness, correct, evidence


def planted(args: argparse.Namespace) -> None:
    data = load_digits()
    clean = nn.functional.pad(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, (4, 4, 4, 4))
    y, marked = torch.tensor(data.target), clean.clone()
    rows = torch.nonzero(y == 3)[::2, 0]
    marked[rows, :, 1:4, 1:4] = 1
    witnesses = [digits_network(clean[:1200], y[:1200], 1000 + i) for i in range(args.witnesses)]
    hits, alarms, clean_alarms = 0, 0, 0
    for number, seed in enumerate(range(args.first, args.first + args.seeds), 1):
        for x, planted_ in ((clean, False), (marked, True)):
            net = digits_network(x[:1200], y[:1200], seed)
            head = FeatureHead(net, example=x[:2])
            with torch.no_grad():
                npca = NeuralPCA(4).fit(head, head.features(x[:1200]), y[:1200])
            found: list[Evidence] = []
            for k in range(10):
                own, rest = x[1200:][y[1200:] == k], x[1200:][y[1200:] != k]
                found += evidence(
                    npca, k, range(4), own, rest, [Witness(w, k) for w in witnesses], batch_size=64, seed=seed
                )
            words = {(e.class_, e.component) for e in correct(found) if e.word == "spurious"}
            if planted_:
                hits += any(k == 3 for k, _ in words)
            wrong = {w for w in words if not planted_ or w[0] != 3}
            alarms += bool(wrong)
            clean_alarms += bool(wrong) and not planted_
        print(
            f"seed {seed}: planted mark found in {hits} of {number}; false alarms in {clean_alarms} of {number} clean "
            f"networks, {alarms} of {2 * number} with those of other classes than the marked",
            flush=True,
        )


def digits_network(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU()),
        *(
            nn.Conv2d(24, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 48),
            nn.ReLU(),
            nn.Linear(48, 10),
        ),
    )
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(15):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    return net.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--witnesses", type=int, default=2)
    parser.add_argument("--first", type=int, default=10, help="seeds below 6 set the limits")
    arguments = parser.parse_args()
    print(describe_machine())
    planted(arguments)
