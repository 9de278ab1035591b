"""The picture of the README, from the anomaly part of the demo: ``python docs/picture.py pfungst-demo``."""

import sys
from pathlib import Path

import matplotlib
import numpy as np

from pfungst.audit.result import load
from pfungst.files import read
from pfungst.relevance.colours import overlay

matplotlib.use("Agg")


def main(folder: Path, out: Path) -> None:
    """Draw a defect that is missed once deployed, and means over the categories."""
    import matplotlib.pyplot as plt

    result = load(folder / "anomaly")
    shown = []
    for entry in result.entries:
        for example in entry.examples:
            original, deployed, mended = example.answers
            if example.defect and original.flagged and not deployed.flagged and mended.flagged:
                shown.append((sum(example.bands[len(example.bands) // 2 :]), entry, example))
    _, entry, example = max(shown, key=lambda s: s[0])
    arrays = read(folder / "anomaly" / entry.arrays, "run the demo again")
    fig, axes = plt.subplots(1, 4, figsize=(11, 2.8), width_ratios=(1, 1, 1.5, 1.4), layout="constrained")
    picture = arrays["image"][example.row]
    axes[0].imshow(picture)
    axes[0].contour(arrays["mask"][example.row], levels=[0.5], colors="red", linewidths=1)
    axes[0].set_title(f"{entry.category.replace('_', ' ')}: {example.label.replace('_', ' ')}", fontsize=10)
    axes[1].imshow(overlay(arrays["heat"][example.row].astype(np.float32), picture))
    axes[1].set_title("relevance in pixels", fontsize=10)
    spectra = [e.spectrum for e in result.entries]
    bands = np.arange(len(spectra[0].original))
    for values, name, colour in (
        ([s.original for s in spectra], "as it is", "tab:red"),
        ([s.mitigated for s in spectra], "mended", "tab:blue"),
    ):
        axes[2].plot(bands, np.mean(values, 0), "o-", markersize=3, color=colour, label=name)
    kept = np.mean([s.kept for s in spectra], 0)
    axes[2].axvspan(bands[kept < 0.5][0] - 0.5, bands[-1] + 0.5, color="0.9", label="removed when deployed")
    axes[2].set_title("relevance in frequency bands, low to high", fontsize=10)
    axes[2].legend(fontsize=8, frameon=False)
    axes[2].set(xticks=[], yticks=[])
    (scored,) = result.mean.values()
    rates = {"as tested": scored.original, "deployed": scored.deployed, "deployed, mended": scored.mended}
    for offset, measure, name, colour in (
        (-0.2, "fnr", "defects missed", "tab:red"),
        (0.2, "fpr", "false alarms", "tab:gray"),
    ):
        values = [getattr(s, measure).value for s in rates.values()]
        bars = axes[3].barh(np.arange(3) + offset, values, 0.38, color=colour, label=name)
        axes[3].bar_label(bars, [f"{v:.0%}" for v in values], padding=3, fontsize=9)
    axes[3].set_yticks(range(3), list(rates), fontsize=9)
    axes[3].invert_yaxis()
    axes[3].legend(fontsize=8, frameon=False, loc="upper right")
    axes[3].set(xlim=(0, 0.4), xticks=[])
    axes[3].spines[["top", "right", "bottom"]].set_visible(False)
    for ax in axes[:2]:
        ax.set(xticks=[], yticks=[])
    fig.savefig(out, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "_static" / "demo.png")
