"""How long a classifier audit of ImageNet-1k takes, computed from measured parts; docs/scale.md quotes what this prints.

python benchmarks/imagenet.py
"""

from __future__ import annotations

from dataclasses import dataclass

TRAIN, VAL, CONDITIONS, CLASSES = 1_281_167, 50_000, 2, 1000

# Measured, of ResNet-50 at 224 px (RESULTS.md); seconds of one core, or of the GPU, per image
FORWARD = 5.28 * 2 / 32  # 2026-11-22: batches of 32 on two cores
FORWARD_GPU = 0.0214 / 128  # 2026-11-26: batches of 128 on an H100, float32
LOAD = 0.0025  # 2026-11-27: a JPEG of 500 × 375 px decoded and prepared
COMPONENTS = 0.23  # 2026-11-27: neural PCA of one class, 1,300 × 2,048, 128 components
EXPLAINED = 700  # 2026-11-27: forwards per class of tests and pictures, counted in a small audit (610), and the heatmaps


@dataclass(frozen=True)
class Machine:
    """Where the audit runs: `nodes` machines of `cores`; the feature pass runs on all, the rest on one."""

    name: str
    cores: int
    nodes: int = 1
    gpu: bool = False

    def steps(self) -> tuple[float, float, float]:
        """Seconds of the feature pass, of neural PCA, and of tests and pictures."""
        images = TRAIN + CONDITIONS * VAL
        if self.gpu:  # loading processes run beside the GPU: the slower of the two counts
            each, forward = max(FORWARD_GPU, LOAD / min(8, self.cores - 1)), FORWARD_GPU
        else:
            each, forward = (FORWARD + LOAD) / self.cores, FORWARD / self.cores
        return images * each / self.nodes, CLASSES * COMPONENTS / self.cores, CLASSES * EXPLAINED * forward


MACHINES = (
    Machine("2 cores", 2),
    Machine("16 cores", 16),
    Machine("one H100, 16 cores", 16, gpu=True),
    Machine("Ray, 8 machines of 16 cores", 16, nodes=8),
)


def spoken(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def table() -> list[str]:
    """The rows of the page."""
    rows = [
        "| machine | feature pass | neural PCA | tests and pictures | together |",
        "|---|---|---|---|---|",
    ]
    for machine in MACHINES:
        steps = machine.steps()
        rows.append(f"| {machine.name} | {' | '.join(map(spoken, (*steps, sum(steps))))} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
