"""Make the sample reports of the site.

``python packaging/samples.py`` runs the demo and puts its three reports into ``build/samples`` (``make docs``
does so once). ``python packaging/samples.py DATA`` audits photographs that are free to show and puts two case
studies into ``docs/samples``, which are kept in the repository: DATA holds ``magnetic_tile/mixed.csv``
(Huang et al.) and ``covid_xray`` (Winther et al., CC BY 3.0). Reports lose the folders they were made in.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = {"case": 1 << 20, "demo": 4 << 20}  # bytes
CASES = {
    "tiles": "anomaly magnetic_tile/mixed.csv --groups session --size 64",
    "xrays": "similarity --encoder efficientnet-lite0 --images covid_xray --labels icu --groups auto,files "
    "--split folds --patches 28 --explain 8 --pairs 2",
}


def pfungst(*words: object) -> None:
    """Run the command of this environment."""
    subprocess.run([sys.executable, "-m", "pfungst", *map(str, words)], check=True)


def keep(report: Path, target: Path, *folders: Path) -> None:
    """Copy a report, if it is no larger than a page may be, without the folders it was made in."""
    text = report.read_text(encoding="utf-8")
    for folder in folders:
        text = text.replace(f"{folder}/", "")
    target.parent.mkdir(parents=True, exist_ok=True)
    size = len(text.encode())
    if size > LARGEST[target.stem.partition("-")[0]]:
        raise SystemExit(f"{target.name} would have {size:,} bytes")
    target.write_text(text, encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: {size:,} bytes")


def main(data: Path | None) -> None:
    """The reports of the demo, or with data the case studies."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if data is None:
            pfungst("demo", "--out", out)
            for part in ("anomaly", "similarity", "classifier"):
                keep(out / part / "report.html", ROOT / "build" / "samples" / f"demo-{part}.html", out)
            return
        for name, words in CASES.items():
            given = [data / word if (data / word).exists() else word for word in words.split()]
            pfungst("audit", *given, "--out", out / name)
            keep(out / name / "report.html", ROOT / "docs" / "samples" / f"case-{name}.html", data, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None)
