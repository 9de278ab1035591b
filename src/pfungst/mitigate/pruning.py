"""Filter pruning: switch off the filters of an encoder that respond to an artefact.

Linhardt, Müller and Montavon 2024; Kauffmann et al. 2025, methods, "Details of CH mitigation techniques": the
response of a filter is its mean activation on images with the artefact minus that on images without; the k
filters of highest response are set to zero in the region where the artefact lies (there: CLIP ResNet-50
`relu3`, k = 5, rows from 90 of 112).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.device import double
from pfungst.encoders.edits import Span, apply_edit, resolve_layer
from pfungst.encoders.encoder import Encoder
from pfungst.errors import ConfigError, InputError
from pfungst.progress import track
from pfungst.suggest import suggest


@dataclass(frozen=True)
class Pruning:
    """What to prune: a layer, how many filters, and where.

    Args:
        layer: name of a module below `encoder.features`; it must run once per image.
        k: number of filters set to zero.
        rows: first and last (exclusive) row of the feature map, None for the border.
        cols: the same for columns.
    """

    layer: str
    k: int
    rows: Span | None = None
    cols: Span | None = None

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ConfigError(f"{self.k} filters cannot be pruned", "give 0 or more")

    @classmethod
    def parse(cls, text: str) -> Pruning:
        """Read ``LAYER:K[:rows=90-112][:cols=0-56]``; ``rows=90-`` reaches to the border."""
        parts = text.removeprefix("prune:").split(":")
        spans: dict[str, Span] = {}
        try:
            layer, k = parts[0], int(parts[1])
            for option in parts[2:]:
                key, _, value = option.partition("=")
                first, dash, last = value.partition("-")
                if key not in ("rows", "cols") or not dash:
                    raise ValueError
                spans[key] = (int(first) if first else None, int(last) if last else None)
        except (IndexError, ValueError):
            raise ConfigError(
                f"{text!r} says not what to prune", "write prune:LAYER:5 or prune:LAYER:5:rows=90-112"
            ) from None
        return cls(layer, k, spans.get("rows"), spans.get("cols"))

    def __str__(self) -> str:
        spans = [
            f":{name}={'' if s[0] is None else s[0]}-{'' if s[1] is None else s[1]}"
            for name, s in (("rows", self.rows), ("cols", self.cols))
            if s is not None
        ]
        return f"prune:{self.layer}:{self.k}{''.join(spans)}"

    def apply(self, encoder: Encoder, with_artefact: Any, without: Any, batch_size: int = 32) -> Encoder:
        """A pruned copy of the encoder; images as for :func:`filter_responses`."""
        responses = filter_responses(
            encoder, with_artefact, without, [self.layer], self.rows, self.cols, batch_size
        )
        return prune(encoder, responses[resolve_layer(encoder, self.layer)], self.k, self.rows, self.cols)


@dataclass(frozen=True)
class Response:
    """How much more the filters of a layer respond to images with the artefact.

    Attributes:
        layer: its full name.
        values: (C,) mean activation with the artefact minus without.
        size: height and width of the feature map; None for one without.
    """

    layer: str
    values: Tensor
    size: tuple[int, int] | None

    def top(self, k: int) -> list[int]:
        """The k filters of highest response, highest first.

        Raises:
            InputError: the layer has fewer filters.
        """
        if k > len(self.values):
            raise InputError(
                f"{k} filters of {self.layer} cannot be pruned: it has {len(self.values)}", "lower k"
            )
        return torch.argsort(self.values, descending=True, stable=True)[:k].tolist()

    def share(self, k: int) -> float:
        """Share of all positive response that the top k hold: near 1 where few filters carry the artefact."""
        positive = self.values.clamp(min=0)
        total = float(positive.sum())
        return float(positive[self.top(k)].sum()) / total if total > 0 else 0.0


def filter_responses(
    encoder: Encoder,
    with_artefact: Any,
    without: Any,
    layers: Sequence[str],
    rows: Span | None = None,
    cols: Span | None = None,
    batch_size: int = 32,
) -> dict[str, Response]:
    """Mean activation of each filter on images with the artefact minus without.

    Args:
        encoder: unchanged.
        with_artefact: (N, C, H, W) in [0, 1], or a `Prepared`.
        without: the same images without the artefact, or others.
        layers: names of modules below `encoder.features`, all read in one pass.
        rows: region that the mean is taken over, as in :class:`Pruning`.
        cols: the same for columns.
        batch_size: images at a time.

    Returns:
        By full layer name.

    Raises:
        InputError: an unknown layer, one that runs several times per image, one without channels, or an
            empty region.
    """
    names = [resolve_layer(encoder, layer) for layer in layers]
    means = []
    sizes: dict[str, tuple[int, int] | None] = {}
    for images in (with_artefact, without):
        means.append(_mean_activations(encoder, images, names, rows, cols, batch_size, sizes))
    return {n: Response(n, means[0][n] - means[1][n], sizes[n]) for n in names}


def prune(
    encoder: Encoder, response: Response, k: int, rows: Span | None = None, cols: Span | None = None
) -> Encoder:
    """A copy of the encoder with the k most responsive filters of a layer set to zero.

    The copy has the same interface, can be saved and loaded, explained, and pruned again.
    """
    pruned = encoder.copy()
    if k:
        edit = {
            "layer": response.layer,
            "filters": response.top(k),
            "rows": None if rows is None else list(rows),
            "cols": None if cols is None else list(cols),
            "size": None if response.size is None else list(response.size),
        }
        apply_edit(pruned, edit)
        pruned.name = f"{encoder.name} + {Pruning(response.layer, k, rows, cols)}"
    return pruned


@dataclass
class Sweep:
    """What pruning costs and brings, for each setting.

    Attributes:
        rows: one dictionary per trial: setting, k, share (of the positive response), and the measures.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)

    def best(self, measure: str) -> dict[str, Any]:
        """The row where a measure is highest; the fewest filters among equals."""
        if not self.rows or measure not in self.rows[0]:
            known = self.rows[0] if self.rows else ()
            raise InputError(f"the sweep has no measure {measure!r}", suggest(measure, known, "it has"))
        return max(self.rows, key=lambda r: (r[measure], -r["k"]))

    def table(self) -> str:
        """The rows as text in columns."""
        if not self.rows:
            return ""
        head = list(self.rows[0])
        lines = [head, *[[_cell(row[c]) for c in head] for row in self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)


def sweep(
    encoder: Encoder,
    with_artefact: Any,
    without: Any,
    evaluate: Callable[[Encoder], dict[str, float]],
    settings: Sequence[Pruning],
    batch_size: int = 32,
    progress: bool = False,
) -> Sweep:
    """Try some settings; the first row is the encoder as it is.

    Args:
        encoder: unchanged.
        with_artefact: images as for :func:`filter_responses`; not those that `evaluate` measures on.
        without: the same.
        evaluate: gives named measures of an encoder, for example accuracies of a probe fitted on it.
        settings: what to prune; those with more filters than their layer has are left out.
        batch_size: images at a time for the responses.
        progress: show a bar.
    """
    regions: dict[tuple[Span | None, Span | None], list[Pruning]] = {}
    for setting in settings:
        named = replace(setting, layer=resolve_layer(encoder, setting.layer))
        regions.setdefault((named.rows, named.cols), []).append(named)
    trials: Any = []
    for (rows, cols), members in regions.items():
        layers = list(dict.fromkeys(s.layer for s in members))
        responses = filter_responses(encoder, with_artefact, without, layers, rows, cols, batch_size)
        trials += [(s, responses[s.layer]) for s in members if 0 < s.k <= len(responses[s.layer].values)]
    result = Sweep([{"setting": "", "k": 0, "share": 0.0, **evaluate(encoder)}])
    for setting, response in track(trials, "pruning", progress):
        measures = evaluate(prune(encoder, response, setting.k, setting.rows, setting.cols))
        row = {"setting": str(setting), "k": setting.k, "share": response.share(setting.k)}
        result.rows.append(row | measures)
    return result


def region(size: tuple[int, int], box: tuple[int, int, int, int], image: int) -> tuple[Span, Span]:
    """The rows and columns of a feature map where a box of the image lies, and one more on each side.

    Args:
        size: rows and columns of the feature map.
        box: top, left, bottom, right in pixels.
        image: side of the image in pixels.
    """
    spans: list[Span] = []
    for length, low, high in ((size[0], box[0], box[2]), (size[1], box[1], box[3])):
        first, last = low * length // image - 1, -(-high * length // image) + 1
        spans.append((first if first > 0 else None, last if last < length else None))
    return spans[0], spans[1]


def prunable_layers(encoder: Encoder, image_size: int | None = None) -> list[str]:
    """Modules that run once per image and give feature maps (N, C, H, W): candidates for a sweep.

    Activations where there are any, else convolutions.
    """
    size = image_size or encoder.size
    seen: dict[str, list[Tensor]] = {}
    kinds = (nn.ReLU, nn.GELU, nn.SiLU, nn.Conv2d)
    modules: dict[str, nn.Module] = {
        n: m for n, m in encoder.features.named_modules() if isinstance(m, kinds)
    }

    def note(name: str, out: Tensor) -> None:
        seen.setdefault(name, []).append(out)

    with torch.no_grad(), _watch(modules, note):
        encoder.eval()(torch.zeros(1, encoder.mean.shape[1], size, size, device=encoder.device))
    once = [n for n, outs in seen.items() if len(outs) == 1 and outs[0].ndim == 4]
    activations = [n for n in once if not isinstance(modules[n], nn.Conv2d)]
    return activations or once


@contextmanager
def _watch(modules: dict[str, nn.Module], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda module, inputs, out: note(name, out)

    handles = [m.register_forward_hook(hook(n)) for n, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mean_activations(
    encoder: Encoder,
    images: Any,
    names: list[str],
    rows: Span | None,
    cols: Span | None,
    batch_size: int,
    sizes: dict[str, tuple[int, int] | None],
) -> dict[str, Tensor]:
    images = encoder._checked(images)
    sums: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def note(name: str, out: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        if not isinstance(out, Tensor) or out.ndim not in (2, 3, 4):
            raise InputError(f"{name} gives no feature map", "choose a convolution, activation or block")
        sizes[name] = (out.shape[2], out.shape[3]) if out.ndim == 4 else None
        if out.ndim == 4:
            out = out[:, :, slice(*(rows or (None, None))), slice(*(cols or (None, None)))]
        elif out.ndim == 3:
            out = out[:, slice(*(rows or (None, None)))].transpose(1, 2)
        if out.numel() == 0:
            raise InputError(
                f"the region rows={rows}, cols={cols} is empty in {name}, whose map is {sizes[name]}",
                "give rows and columns of the feature map, not of the image",
            )
        out = double(out)
        total = out.flatten(2).mean(2).sum(0) if out.ndim > 2 else out.sum(0)
        sums[name] = sums.get(name, 0) + total.cpu()

    modules = {n: encoder.features.get_submodule(n) for n in names}
    batches = range(0, len(images), batch_size)
    with torch.no_grad(), _watch(modules, note):
        for start in batches:
            encoder.eval()(images[start : start + batch_size].to(encoder.device))
    for name in names:
        count = calls.get(name, 0)
        if count != len(batches):
            often = f"{count / len(batches):g} times"
            raise InputError(
                f"{name} runs {often if count else 'never'} per image: its filters are not one feature map",
                "choose a module that runs once, such as a convolution or a whole block",
            )
    return {n: (s / len(images)).float() for n, s in sums.items()}


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
