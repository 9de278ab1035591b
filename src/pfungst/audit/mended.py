"""The mended model of an audit as it leaves: written, loaded anew, compared with what was audited, exported.

``mended/`` in the folder of an audit (for detectors ``mended/NAME/``, one per category and detector) holds
weights as safetensors, ``mended.json`` with preprocessing and outputs, ``sample.safetensors`` with images and
the outputs that the audit saw, and ``load.py``.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from pfungst import __version__
from pfungst.audit.quantities import REFERENCE, quantities
from pfungst.audit.result import Model, load
from pfungst.conditions import Condition, sides
from pfungst.conditions.step import Resize
from pfungst.data import Item
from pfungst.data.decode import Undecodable
from pfungst.data.deep import shown, window_of
from pfungst.data.item import NORMAL
from pfungst.data.window import Window
from pfungst.device import choose_device
from pfungst.encoders import load as load_model
from pfungst.encoders.checkpoints import load_state
from pfungst.encoders.edits import folded_state
from pfungst.encoders.preprocessing import Normalise
from pfungst.encoders.specification import parse
from pfungst.errors import ConfigError, DataError, InputError, PfungstError, UnreadableImages
from pfungst.files import read, reading, whole, write, write_json, write_tensors
from pfungst.mitigate import export
from pfungst.suggest import suggest

FOLDER = "mended"
_PROBE, _PROGRAM = "probe.safetensors", "program.pt2"
TOLERANCE = 1e-5
"""Of what is loaded anew, relative to the largest output."""
EXPORTED = 1e-4
"""Of other formats."""
COMPARED = 100  # images at most that a model loaded anew is compared on
_SAMPLE = 8  # of these, kept beside the model
_REMEDY = "run the audit again"
_LOADER = '''"""The mended model: images (N, C, H, W) in [0, 1] in, {outputs} out. Needs pfungst {version}."""

import sys
from pathlib import Path

from pfungst.audit.mended import Mended

model = Mended.load(Path(__file__).parent)
for file in sys.argv[1:] if __name__ == "__main__" else ():  # python load.py IMAGE …
    print(file, model.read(file))
'''


class About(Model):
    """What is known of a mended model, beside its weights."""

    format: Literal["pfungst.mended/1"] = "pfungst.mended/1"
    kind: Literal["classifier", "detector", "encoder"]
    name: str
    spec: str = Field(description="of the model as it was before")
    layer: str | None = None
    condition: str = Field(description="how files become images")
    audited: str = Field(description="the condition that it was compared under")
    size: int | tuple[int, int]
    mean: list[float] = Field([], description="subtracted inside the model")
    std: list[float] = Field([], description="divided by inside the model")
    outputs: list[str]
    classes: dict[int, str] = Field({}, description="names of the logits, of an encoder those of its probe")
    threshold: float | None = Field(None, description="of the score, above which an image is abnormal")
    window: tuple[float, float] | None = Field(
        None, description="values shown black and white, of pictures of more than 8 bits"
    )
    mended: str = Field(description="what was done")
    images: int = Field(0, description="on which the model loaded anew was compared with the audited one")
    gap: float | None = Field(None, description="largest difference of an output, relative to the largest")

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Of the mended model in a folder. Raises DataError if it is missing or damaged."""
        file = folder / "mended.json"
        try:
            return cls.model_validate(read(file, _REMEDY, format="pfungst.mended/1"))
        except ValidationError as error:
            raise DataError(f"{file} is damaged: {error}", _REMEDY) from None

    def words(self) -> dict[str, str]:
        """As texts, for formats whose metadata are texts."""
        found = self.model_dump(mode="json", exclude_none=True)
        return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in found.items()}


class Mended(nn.Module):
    """A mended model, read from its folder: images (N, C, H, W) in [0, 1] → its outputs.

    One output is a tensor, several are a tuple, named by ``about.outputs``.

    Attributes:
        about: see :class:`About`.
        source: the object inside: a `SpuFix`, a `Detector`, a :class:`Probed` encoder, or the traced program
            of a model that was audited in memory.
    """

    def __init__(self, source: Any, about: About, folder: Path, network: nn.Module | None = None) -> None:
        super().__init__()
        self.source, self.about, self.folder = source, about, folder
        self._network = [network]  # not a submodule
        self.eval()

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", network: nn.Module | None = None) -> Mended:
        """The mended model of a folder that an audit wrote.

        Args:
            folder: ``mended/``, or of one of several detectors. device: where to.
            network: into which the weights go, where the audit was of a classifier in memory; without it the
                traced program is read.

        Raises:
            DataError, CheckpointError: it is missing or damaged.
            ConfigError: a classifier in memory that could not be traced needs its network.
        """
        folder = Path(folder)
        about = About.of(folder)
        if network is None and (folder / _PROGRAM).exists():
            return cls(_Program(folder / _PROGRAM, device), about, folder)
        if about.kind == "classifier":
            return cls(_load_classifier(folder, about, device, network), about, folder, network)
        read_in = _load_encoder if about.kind == "encoder" else _load_detector
        return cls(read_in(folder, about, device), about, folder)

    def answer(self, images: Tensor) -> Tensor:
        """The first output alone: scores (N,), logits (N, K) or representations (N, K)."""
        return self.answers(images)[0]

    def answers(self, images: Tensor) -> list[Tensor]:
        """All outputs but the map."""
        if self.about.kind == "detector":
            return [self.source.anomaly_score(images)]
        return export.outputs_of(self.source(images))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.answers(images)
        if "map" not in self.about.outputs:
            return found[0] if len(found) == 1 else tuple(found)
        (score,) = found
        from pfungst.anomaly.module import as_module

        with torch.no_grad():
            if not hasattr(self, "maps"):
                self.maps = as_module(self.source)
            return score, self.maps(images.to(score.device))[1]

    def prepare(self, image: Any) -> Tensor:
        """A Pillow image or array (H, W, 3) uint8 → (1, 3, S, S), as the model's images were prepared."""
        return Condition.parse(self.about.condition)(image, self.about.size)[None]

    def read(self, file: str | Path) -> dict[str, Any]:
        """What the model says of an image file."""
        try:
            image = shown(Path(file), Window(*self.about.window or ()))
        except Undecodable as error:
            raise UnreadableImages([(str(file), str(error))]) from None
        with torch.no_grad():
            outputs = self.answers(self.prepare(image))
        found = outputs[-1][0]
        if self.about.kind == "classifier":
            k = int(found.argmax())
            return {"class": self.about.classes.get(k, str(k)), "probability": float(found.softmax(0)[k])}
        if self.about.kind == "encoder":
            said = {"class": self.about.classes[int(found.argmax())]} if len(outputs) > 1 else {}
            return {**said, "embedding": outputs[0][0]}
        score, threshold = float(found), self.about.threshold
        return {"score": score, "abnormal": threshold is not None and score > threshold}

    def check(self) -> float:
        """The largest difference to what the audit saw, on the sample beside the model."""
        with torch.no_grad():
            images, expected = self.sample()
            return export.gap(self.answers(images), expected)

    def sample(self) -> tuple[Tensor, list[Tensor]]:
        """Images (n, C, H, W) and what the audited model said of them: its outputs but the map."""
        file = self.folder / "sample.safetensors"
        with reading(file, _REMEDY):
            kept = read(file, _REMEDY)
            return kept["images"], [kept[name] for name in self.about.outputs if name in kept]

    def portable(self) -> nn.Module:
        """The same in operations that torch can trace.

        Raises:
            InputError: there are none for this detector.
        """
        if self.about.kind != "detector":
            return self.source
        from pfungst.anomaly.module import as_module

        return as_module(self.source).eval()

    def state(self) -> tuple[dict[str, Tensor], nn.Module]:
        """Weights under the names of the original network, and a network into which they fit.

        SpuFix without clipping and filters that are off everywhere are folded into them, and the network is
        the original one. A clipped SpuFix adds three tensors beside the weights of the last layer.

        Raises:
            InputError: filters are off in a region, which no weight of the network can say.
            ConfigError: the network was in memory.
        """
        if isinstance(self.source, _Program):
            raise _in_memory(self.about)
        if self.about.kind == "detector":
            module = self.portable()
            return module.state_dict(), copy.deepcopy(module)
        plain: Any
        if self.about.kind == "encoder":
            state = folded_state(self.source.encoder)
            if state is None:
                raise InputError(
                    f"{self.about.mended} switches filters off that no weights of the network can",
                    "export --onnx or --torch-export",
                )
            size = None if parse(self.about.spec)[0] == "function" else sides(self.about.size)[0]
            plain = load_model(self.about.spec, weights=False, size=size)
            probe = self.source.probe
            state |= {f"probe.{k}": v for k, v in probe.state_dict().items()} if probe is not None else {}
            return state, _Normalised(Probed(plain, copy.deepcopy(probe)), plain.features)
        network = raw(self.source.model)
        state, layer = network.state_dict(), self.source.layer
        layer = layer if network is self.source.model else layer.removeprefix("model").lstrip(".")
        folded = self.source.head.folded()
        if folded is None:
            fixed = copy.deepcopy(self.source)
            return state, _Normalised(fixed, raw(fixed.model))
        at = f"{layer}." if layer else ""
        state = {k: v for k, v in state.items() if not k.startswith(at) or not k.endswith("_fix")}
        state[f"{at}weight"], bias = folded
        if f"{at}bias" in state or bool(bias.any()):
            state[f"{at}bias"] = bias
        plain = _classifier(self.folder, self.about, "cpu", self._network[0])
        return state, _Normalised(plain, raw(plain))


class _Normalised(nn.Module):
    """A model and the network inside it that a state dict is of."""

    def __init__(self, model: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.model, self.network = model, network

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        probe = getattr(self.model, "probe", None)
        if isinstance(self.model, Probed) and probe is not None:
            own = {k: v for k, v in state.items() if k.startswith("probe.")}
            probe.load_state_dict({k.removeprefix("probe."): v for k, v in own.items()})
            state = {k: v for k, v in state.items() if k not in own}
        return self.network.load_state_dict(state, strict, assign)

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


class Probed(nn.Module):
    """An encoder with its linear probe: images → representation (N, K) and, with one, logits (N, classes)."""

    def __init__(self, encoder: nn.Module, probe: nn.Linear | None = None) -> None:
        super().__init__()
        self.encoder, self.probe = encoder, probe
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.encoder(images)
        return (found,) if self.probe is None else (found, self.probe(found))

    def save(self, folder: Path) -> None:
        """Write `encoder.json`, `encoder.safetensors` and `probe.safetensors`; see :meth:`Encoder.save`."""
        self.encoder.save(folder)  # type: ignore[operator]
        if self.probe is not None:
            write_tensors(folder / _PROBE, self.probe.state_dict())


class _Program(nn.Module):
    """A traced model; it stays in evaluation mode."""

    def __init__(self, file: Path, device: str) -> None:
        super().__init__()
        self.program = export.read_torch_export(file)
        self.module = export.on_device(self.program, device).module()

    def train(self, mode: bool = True) -> _Program:
        """Leaves the mode: that of a traced model is fixed."""
        return self

    def forward(self, images: Tensor) -> Any:
        return self.module(images)


def _in_memory(about: About) -> ConfigError:
    return ConfigError(
        f"{about.name} was audited in memory, so it is not known how to build it",
        "pass the network: Mended.load(folder, network=...); its weights come from the folder",
    )


def raw(model: nn.Module) -> nn.Module:
    """The network of a classifier, without a normalisation that was put in front."""
    return model.get_submodule("model") if "normalize" in dict(model.named_children()) else model


# --- writing ---------------------------------------------------------------------------------------------


def write_mended(
    folder: Path,
    about: About,
    save: Callable[[Path], object],
    images: Tensor,
    expected: Sequence[Tensor],
    items: Sequence[Item],
    *,
    device: str = "cpu",
    network: nn.Module | None = None,
    mended: nn.Module | None = None,
) -> str:
    """Write a mended model, load it anew and compare it; a model that differs is not kept.

    Args:
        folder: of this model; appears whole or not at all.
        about: what is known of it, without the comparison.
        save: writes the weights into a folder.
        images: (n, C, H, W) of the audit; expected: (n, …) the audited model's outputs on them but the map.
        items: n; those that are not abnormal are the reference of :mod:`pfungst.audit.watch`.
        device: where it is compared. network: of a classifier in memory.
        mended: the mended model, which is traced where what was audited was in memory.

    Returns:
        A note: how it compares, or why there is none.
    """
    with tempfile.TemporaryDirectory(prefix="pfungst-") as place:
        work = Path(place)
        untraced = ""
        about = about.model_copy(update={"window": window_of(items)})
        try:
            save(work)
            write_json(work / "mended.json", about.model_dump(mode="json"))
            if mended is not None and about.spec.startswith("memory:"):
                try:
                    program = export.trace(copy.deepcopy(mended).cpu(), images[:_SAMPLE])
                    export.write_torch_export(program, work / _PROGRAM, about.words())
                except InputError as error:
                    if about.kind == "encoder":
                        raise
                    untraced = f"; it loads with its network only: {error.message}"
            models = [Mended.load(work, device)] if network is None or (work / _PROGRAM).exists() else []
            models += [] if network is None else [Mended.load(work, device, network)]
            gap = max(export.gap(_answers(model, images), expected) for model in models)
        except PfungstError as error:
            return f"the mended model could not be written: {error.message}"
        if not gap <= TOLERANCE:
            return (
                f"the mended model was not written: loaded anew it differs by {gap:.2g} on "
                f"{len(images)} images, more than {TOLERANCE:g}"
            )
        about = about.model_copy(update={"images": len(images), "gap": gap})
        write_json(work / "mended.json", about.model_dump(mode="json"))
        kept = dict(zip(about.outputs, [e[:_SAMPLE] for e in expected], strict=False))
        write_tensors(work / "sample.safetensors", {"images": images[:_SAMPLE], **kept})
        normal = [i for i, item in enumerate(items) if about.kind != "detector" or item.label == NORMAL]
        model = models[-1]
        own = (
            images[normal] if about.kind == "detector" else images[normal].to(next(model.parameters()).device)
        )
        with (work / REFERENCE).open("wb") as stream:
            np.savez_compressed(stream, **quantities(model, own, [items[i] for i in normal]))  # type: ignore[arg-type]
        write(work / "load.py", _LOADER.format(outputs=" and ".join(about.outputs), version=__version__))
        with whole(folder) as part:
            shutil.copytree(work, part)
    return (
        f"the mended model is in {FOLDER}/{'' if folder.name == FOLDER else folder.name}: loaded anew it "
        f"differs by {gap:.1g} on {len(images)} images{untraced}"
    )


def _answers(model: Mended, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        own = lambda x: x if model.about.kind == "detector" else x.to(next(model.parameters(), x).device)
        found = [[out.cpu() for out in model.answers(own(part))] for part in images.split(32)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def preparation(condition: Condition) -> str:
    """The steps of a condition that prepare an image: crop and resize. The others stand for what happens to
    images before or on the way."""
    return str(Condition(tuple(s for s in condition.steps if isinstance(s, Resize) or s.crops)))


def resolved(spec: str) -> str:
    """A specification that means the same from any folder."""
    file, colon, rest = spec.partition(":")
    return f"{Path(file).resolve()}:{rest}" if colon and file.endswith(".py") else spec


# --- loading ---------------------------------------------------------------------------------------------


def _classifier(folder: Path, about: About, device: str, network: nn.Module | None) -> nn.Module:
    """The classifier as it was, images in [0, 1] → logits."""
    weights = folder / "model.safetensors"
    if about.spec.startswith("memory:"):
        if network is None:
            raise _in_memory(about)
        made = copy.deepcopy(network).to(choose_device(device)).eval()
        load_state(made, read(weights, _REMEDY), str(weights))
        front = OrderedDict(normalize=Normalise(about.mean, about.std), model=made)
        return nn.Sequential(front).to(choose_device(device)).eval() if about.mean else made
    complete = parse(about.spec, "classifier")[0] in ("package", "function")  # built with all its classes
    made = load_model(
        about.spec,
        "classifier",
        checkpoint=None if complete else weights,
        weights=False,
        size=sides(about.size)[0],
        condition=about.condition,
        device=device,
    ).model
    if complete:
        load_state(raw(made), read(weights, _REMEDY), str(weights))
    return made


def _load_classifier(folder: Path, about: About, device: str, network: nn.Module | None) -> Any:
    from pfungst.spurious import FeatureHead, SpuFix

    model = _classifier(folder, about, device, network)
    example = torch.rand(2, 3, *sides(about.size), generator=torch.Generator().manual_seed(0))
    head = FeatureHead(model, about.layer, example.to(next(model.parameters()).device))
    return SpuFix.load(folder / "spufix", head)


def _load_encoder(folder: Path, about: About, device: str) -> Probed:
    encoder, probe = load_model(f"pfungst:{folder}", device=device), None
    if (folder / _PROBE).exists():
        state = read(folder / _PROBE, _REMEDY)
        probe = nn.Linear(*state["weight"].T.shape)
        load_state(probe, state, str(folder / _PROBE))
    return Probed(encoder, probe).to(choose_device(device))


def _load_detector(folder: Path, about: About, device: str) -> Any:
    from pfungst.anomaly import Detector
    from pfungst.registry import DETECTORS

    if about.spec.partition(":")[0].endswith(".py"):
        DETECTORS.find(about.spec)  # runs the file that registers it
    return Detector.load(folder)


# --- exporting -------------------------------------------------------------------------------------------


def folders(audit: Path, entry: str | None = None) -> list[Path]:
    """The mended models of an audit, all or the named one.

    Raises:
        DataError: there is none, and why.
        ConfigError: no such entry.
    """
    root = audit / FOLDER
    found = (
        [root] if (root / "mended.json").exists() else sorted(p.parent for p in root.glob("*/mended.json"))
    )
    if not found:
        result = load(audit)
        reasons = [n for n in _notes(result) if "mended model" in n]
        raise DataError(
            f"{audit} holds no mended model" + (f": {reasons[0]}" if reasons else ""),
            "nothing was mended: audit with --mitigate; a classifier needs components to switch off"
            if not reasons
            else _REMEDY,
        )
    if entry is None:
        return found
    named = {p.name: p for p in found} | {About.of(p).name: p for p in found}
    if entry not in named:
        raise ConfigError(f"{audit} has no mended model {entry!r}", suggest(entry, named, "it has"))
    return [named[entry]]


def _notes(result: Any) -> list[str]:
    return [*result.notes, *(n for e in getattr(result, "entries", []) for n in e.notes)]


def export_mended(folder: Path, formats: Sequence[str], out: Path) -> dict[Path, float]:
    """Write a mended model in other formats, each read back and compared on its sample.

    Args:
        folder: of the model. formats: of :data:`pfungst.mitigate.export.FORMATS`. out: where to.

    Returns:
        {file: largest difference}.

    Raises:
        InputError: torch cannot trace it, weights cannot say it, or a format differs by more than
            :data:`EXPORTED`; that file is removed.
        ConfigError: a package is missing.
    """
    model = Mended.load(folder)
    images, expected = model.sample()
    found: dict[Path, float] = {}
    program = None
    out.mkdir(parents=True, exist_ok=True)
    words = model.about.words()
    for name in formats:
        path = out / export.FORMATS[name]
        if name == "state-dict":
            state, network = model.state()
            write_tensors(path, state, **words)
            for parameter in network.state_dict().values():
                parameter.zero_()  # so that nothing but the file can give the answers
            try:
                network.load_state_dict(read(path, _REMEDY))
            except RuntimeError as error:
                path.unlink()
                raise InputError(
                    f"the original network does not take these weights: {error}",
                    "export --onnx or --torch-export",
                ) from None
            run: Callable[[Tensor], list[Tensor] | None] = _runner(network.eval())
        else:
            portable = model.portable()
            if isinstance(portable, _Program):
                program = portable.program
            program = program or export.trace(portable, images)
            outputs = list(getattr(portable, "outputs", model.about.outputs))
            if name == "onnx":
                export.write_onnx(program, path, outputs, words)
                run = lambda x, path=path: export.run_onnx(path, x)  # type: ignore[misc]
            else:
                export.write_torch_export(program, path, words)
                run = lambda x, path=path: export.run_torch_export(path, x)  # type: ignore[misc]
        found[path] = _compared(run, images, expected, path)
    about = model.about.model_dump(mode="json") | {
        "exported": {p.name: None if g != g else g for p, g in found.items()}
    }
    write_json(out / "export.json", about)
    return found


def _runner(network: nn.Module) -> Callable[[Tensor], list[Tensor] | None]:
    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return export.outputs_of(network(images))

    return run


def _compared(
    run: Callable[[Tensor], list[Tensor] | None], images: Tensor, expected: list[Tensor], path: Path
) -> float:
    """The largest difference over the sample at once and its first image alone; NaN if nothing can run it."""
    gaps = []
    for count in {len(images), 1}:
        got = run(images[:count])
        if got is None:
            print(f"{path.name} was not compared: pip install onnxruntime", file=sys.stderr)
            return float("nan")
        gaps.append(export.gap(got[: len(expected)], [e[:count] for e in expected]))
    if not max(gaps) <= EXPORTED:
        path.unlink()
        raise InputError(
            f"{path.name} differs from the audited model by {max(gaps):.2g}, more than {EXPORTED:g}",
            "export another format, and report this model",
        )
    return max(gaps)
