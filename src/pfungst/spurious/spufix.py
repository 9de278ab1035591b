"""SpuFix: switch spurious components off without retraining, on any classifier (paper 003, equations 8 to
11)."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pfungst.errors import DataError, InputError, PfungstWarning, few
from pfungst.files import read, write_json, write_tensors
from pfungst.spurious.features import FeatureStore, extract_features, head_for
from pfungst.spurious.heads import FeatureHead, LinearHead, same_model
from pfungst.spurious.npca import NeuralPCA

FORMAT = "pfungst.spufix/1"
Reference = Literal["mean", "absent"]
_COLLINEAR = 1e-3  # smallest eigenvalue of the Gram matrix of unit directions that is inverted as it is


class FixedHead(nn.Module):
    """A linear head that subtracts what spurious components add: z_k − Σ_l max(⟨a_l, φ⟩ + c_l, 0).

    All components of all classes are one matrix product. It stands where the original layer stood and holds
    that layer's parameters under their names, so a state dict keeps its keys and gains three; whatever
    follows the layer in the model (a temperature) stays as it was.

    Args:
        linear: the original layer, an `nn.Linear` or a convolution of 1 × 1.
        weight, offset: a (M, D) and c (M,) in units of the layer's output; classes: k (M,) of each component.
        clip: subtract only what is positive.
    """

    weight_fix: Tensor
    offset_fix: Tensor
    class_fix: Tensor

    def __init__(
        self, linear: nn.Module, weight: Tensor, offset: Tensor, classes: Tensor, clip: bool = True
    ) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.clip = clip
        self.register_buffer("weight_fix", weight)
        self.register_buffer("offset_fix", offset)
        self.register_buffer("class_fix", classes)

    def beta(self, phi: Tensor) -> Tensor:
        """What is subtracted for each component, (N, M), in units of the layer's output; before clipping."""
        return nn.functional.linear(phi.flatten(1), self.weight_fix, self.offset_fix)

    def forward(self, phi: Tensor) -> Tensor:
        weight: Any = self.weight
        bias: Any = self.bias
        z = (nn.functional.linear if weight.ndim == 2 else nn.functional.conv2d)(phi, weight, bias)
        if len(self.class_fix) == 0:
            return z
        beta = self.beta(phi)
        if self.clip:
            beta = beta.clamp_min(0)
        return z.flatten(1).index_add(1, self.class_fix, -beta).view_as(z)

    def folded(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of the plain linear layer that does the same; None where there is none.

        Without clipping what is subtracted is linear and goes into the rows of its classes. With it the head
        has a kink for each component.
        """
        if self.clip and len(self.class_fix):
            return None
        weight: Any = self.weight
        bias: Any = self.bias
        weight = weight.detach()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        rows = weight.double().flatten(1).index_add(0, self.class_fix, -self.weight_fix.double())
        shift = bias.double().index_add(0, self.class_fix, -self.offset_fix.double())
        return rows.view_as(weight).to(weight), shift.to(bias)


class SpuFix(nn.Module):
    """A classifier whose logits no longer gain from its spurious components.

    logit_k(x) − Σ_{l ∈ S_k} max(α_l(x) − r_l, 0); all other logits are unchanged. The module replaces the
    model: same input, same output, differentiable, any batch size, exportable. It leaves the model as it was
    and shares the memory of its weights until one of the two is moved.

    The reference r_l is what counts as "without the feature". The paper has r_l = 0, the mean of the class's
    training images: of a feature in a share s of them, s of what it adds stays. "absent" goes beyond the
    paper: r_l is the mean α of the images that lack the feature, the lower group of the best split of α in
    two, so that nothing stays. It is the mean of all where α has no two groups (:attr:`NeuralPCA.absent_`),
    with a warning.

    Args:
        model: the classifier that `npca` was fitted on, or its head.
        npca: its components.
        components: {class: spurious components}; empty for the identity.
        clip: subtract only contributions above the reference (the method); False subtracts all.
        reference: "mean" (the paper) or "absent".

    Example:
        fixed = SpuFix(model, npca, {2: [0, 3]})
        other = fixed.transfer(other_model, images)
    """

    def __init__(
        self,
        model: nn.Module | FeatureHead,
        npca: NeuralPCA,
        components: Mapping[int, Sequence[int]],
        clip: bool = True,
        reference: Reference = "mean",
    ) -> None:
        super().__init__()
        if reference not in get_args(Reference):
            raise InputError(f"there is no reference {reference!r}", "choose mean or absent")
        known = npca.model
        if known is not None and known.model is model:
            model = known
        head = model if isinstance(model, FeatureHead) else FeatureHead(model)
        if not same_model(head.fingerprint(), npca.model_fingerprint_):
            raise InputError(
                "the components were fitted on another model",
                "build SpuFix on that model and carry it over with .transfer(other_model, …)",
            )
        chosen = _checked(npca, components)
        directions = {k: npca.components_[k][part].double() for k, part in chosen.items()}
        self.reference: Reference = reference
        self._npca: NeuralPCA | None = npca
        origins = {k: npca.mean_[k].double() for k in chosen}
        if reference == "absent":
            _warn_of_one_group(npca, chosen)
            origins = {k: _origins(npca, k, part) for k, part in chosen.items()}
        self._install(head, chosen, directions, origins, clip)
        self._source = head

    def _install(
        self,
        head: FeatureHead,
        components: dict[int, list[int]],
        directions: dict[int, Tensor],
        origins: dict[int, Tensor],
        clip: bool,
    ) -> None:
        weight, offset, classes = fold(head.linear, directions, origins)
        self._replace(head, weight, offset, classes, clip)
        self.components = components

    def _replace(
        self, head: FeatureHead, weight: Tensor, offset: Tensor, classes: Tensor, clip: bool
    ) -> None:
        like = head.module.weight
        # A new module tree over the same memory: moving or casting one of the two does not touch the other.
        shared: dict[int, Any] = {
            id(p): nn.Parameter(p.detach(), p.requires_grad) for p in head.model.parameters()
        }
        shared |= {id(b): b.detach() for b in head.model.buffers()}
        self.model = copy.deepcopy(head.model, shared)
        layer = self.model.get_submodule(head.layer)
        fixed = FixedHead(layer, weight.to(like), offset.to(like), classes.to(like.device), clip)
        if head.layer:
            parent, _, name = head.layer.rpartition(".")
            setattr(self.model.get_submodule(parent), name, fixed)
        else:
            self.model = fixed
        self.layer = head.layer
        self.fingerprint = head.fingerprint()
        self.eval()

    @property
    def head(self) -> FixedHead:
        """The corrected layer."""
        return self.model.get_submodule(self.layer)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Any:
        """What the model returns for images (N, C, H, W), with corrected logits."""
        return self.model(x)

    def transfer(
        self,
        model: nn.Module | FeatureHead,
        images: Iterable[tuple[Any, Tensor, int]] | None = None,
        *,
        source: FeatureStore | None = None,
        target: FeatureStore | None = None,
        clip: bool | None = None,
        classes: Mapping[int, int] | None = None,
    ) -> SpuFix:
        """The same fix for another classifier that knows the classes.

        For each component, the direction of the other model's ψ of greatest covariance with α over the
        class's training images; the coordinates in the span of a class's directions are found by least
        squares. Images are matched by identifier. The reference is the mean of the same images as here: all,
        or those that lack the feature.

        Args:
            model: the other classifier.
            images: (id, image, class index) of the classes with components; both models run on them. They are
                read twice, so pass a data set or a list.
            source, target: instead of images, stores of the first and of the other model's features.
            clip: as in the constructor; by default as here.
            classes: {class here: class of the other model}, which is what `target` is labelled with; by
                default the same.

        Raises:
            InputError: neither images nor stores, too few matching images (or none without a feature), other
                classes.
            DataError: an image has different labels in the two stores.
        """
        if self._npca is None:
            raise InputError("this SpuFix was loaded without its components", "build it from its NeuralPCA")
        if images is not None and iter(images) is images:
            raise InputError("images are an iterator, which can be read only once", "pass a list or data set")
        other = head_for(model, [] if images is None else images)
        npca, chosen = self._npca, self.components
        if classes is None and other.linear.n_classes != npca.head_.n_classes:
            raise InputError(
                f"the other model has {other.linear.n_classes} classes, this one {npca.head_.n_classes}",
                "transfer needs models with the same classes in the same order, or which class is which",
            )
        there = (
            {k: k for k in chosen} if classes is None else {k: v for k, v in classes.items() if k in chosen}
        )
        if unknown := sorted(set(chosen) - set(there)):
            raise InputError(f"classes {unknown} are none of the other model's", "leave their components out")
        with tempfile.TemporaryDirectory(prefix="pfungst-") as folder:
            if images is not None:
                wanted = _OfClasses(images, set(chosen))
                source = extract_features(
                    self._source, wanted, Path(folder, "source"), dtype="float32", progress=False
                )
                target = extract_features(
                    other, wanted, Path(folder, "target"), dtype="float32", progress=False
                )
            if source is None or target is None:
                raise InputError(
                    "nothing to match the models on", "pass images, or both source and target stores"
                )
            expected = {"source": npca.model_fingerprint_, "target": other.fingerprint()}
            for store, side in ((source, "source"), (target, "target")):
                if not same_model(store.meta["model"], expected[side]):
                    raise InputError(f"the {side} store was made with another model", "extract it again")
            labels = there if images is None else {k: k for k in chosen}
            pairs = _matched_rows(source, target, chosen, labels)
            directions, origins = {}, {}
            for k, part in chosen.items():
                rows, rows2 = pairs[k]
                k2 = there[k]
                phi = torch.from_numpy(source.features[rows].astype("float64"))
                phi2 = torch.from_numpy(target.features[rows2].astype("float64"))
                directions[k2], _ = match_directions(npca, k, part, phi, other.linear, phi2, k2)
                lacking = self._lacking(k, part, phi)
                origins[k2] = lacking.T @ other.linear.psi(phi2, k2).cpu() / lacking.sum(0)[:, None]
        new = SpuFix.__new__(SpuFix)
        nn.Module.__init__(new)
        carried = {there[k]: part for k, part in chosen.items()}
        new._install(other, carried, directions, origins, self.head.clip if clip is None else clip)
        new._npca, new._source, new.reference = None, other, self.reference
        return new

    def _lacking(self, class_: int, part: list[int], phi: Tensor) -> Tensor:
        """Which images, of features (n, D), the reference of each component is the mean of: (n, m) of 0 and
        1."""
        assert self._npca is not None
        alpha = self._npca.alpha_features(phi, class_)[:, part].cpu()
        if self.reference == "mean":
            return torch.ones_like(alpha)
        lacking = alpha <= self._npca.absent_[class_][part, 1]
        if not bool(lacking.any(0).all()):
            none = [c for c, some in zip(part, lacking.any(0).tolist(), strict=True) if not some]
            raise InputError(
                f"all matched images of class {class_} show the feature of components {none}",
                "match on more of the training images, or use the reference mean",
            )
        return lacking.to(alpha)

    def save(self, path: str | Path) -> None:
        """Write the fix alone, `path`.safetensors and `path`.json; the model's weights stay in its own
        checkpoint."""
        stem = Path(path).with_suffix("")
        head = self.head
        tensors = {"weight": head.weight_fix, "offset": head.offset_fix, "class": head.class_fix}
        meta = {
            "format": FORMAT,
            "model": self.fingerprint,
            "layer": self.layer,
            "clip": head.clip,
            "reference": self.reference,
            "components": {str(k): v for k, v in self.components.items()},
        }
        write_tensors(stem.with_suffix(".safetensors"), tensors)
        write_json(stem.with_suffix(".json"), meta)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | FeatureHead) -> SpuFix:
        """Apply a saved fix to the model it was made for."""
        stem = Path(path).with_suffix("")
        remedy = "pass what SpuFix.save wrote"
        meta = read(stem.with_suffix(".json"), remedy, InputError, FORMAT)
        tensors = read(stem.with_suffix(".safetensors"), remedy, InputError)
        head = model if isinstance(model, FeatureHead) else FeatureHead(model, meta["layer"])
        if not same_model(head.fingerprint(), meta["model"]):
            raise InputError(
                f"{stem} was made for another model", "load it on that model, or transfer it to this one"
            )
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._replace(head, tensors["weight"], tensors["offset"], tensors["class"], meta["clip"])
        new.components = {int(k): v for k, v in meta["components"].items()}
        new._npca, new._source = None, head
        new.reference = meta.get("reference", "mean")
        return new


def match_directions(
    npca: NeuralPCA,
    class_: int,
    components: Sequence[int],
    phi: Tensor,
    other: LinearHead,
    phi2: Tensor,
    there: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Directions of another model's ψ of greatest covariance with α (paper 003, equations 9 and 10).

    Args:
        npca: components of the first model.
        class_: their class.
        components: which.
        phi, phi2: (n, D) and (n, D2) features of the same n images of the class in the two models.
        other: head of the other model.
        there: the class in the other model; by default the same index.

    Returns:
        (m, D2) unit directions and the (m,) sums Σ_i α_l(x_i) ⟨b_l, ψ'(x_i) − mean⟩.
    """
    alpha = npca.alpha_features(phi, class_)[:, list(components)]
    psi = other.psi(phi2, class_ if there is None else there)
    u = alpha.T @ (psi - psi.mean(0))
    values = u.norm(dim=1)
    scale = alpha.norm(dim=0) * (psi - psi.mean(0)).norm()
    lost = values <= 1e-9 * scale
    if bool(lost.any()):
        numbers = [c for c, gone in zip(components, lost.tolist(), strict=True) if gone]
        raise InputError(
            f"components {numbers} of class {class_} do not vary together with the other model's features",
            "leave them out, or match on more images",
        )
    return u / values[:, None], values


def fold(
    head: LinearHead, directions: Mapping[int, Tensor], origins: Mapping[int, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """All components as one affine map of φ: β (in units of W φ + b) = φ weightᵀ + offset.

    With the unit directions of a class as rows of B, coordinates are c = (B Bᵀ)⁻¹ B (ψ − origin), and
    β_l = c_l ⟨1, b_l⟩, where the origin, (D,) or for each direction (m, D), is where β_l = 0. Near-collinear
    directions, for which the coordinates are not determined by the data, share them equally (pseudo-inverse)
    and a warning gives the numbers.

    Returns:
        weight (M, D), offset (M,), class index (M,).
    """
    weights, offsets, classes = [], [], []
    for k, b in directions.items():
        b = b.double().cpu()
        values, vectors = torch.linalg.eigh(b @ b.T)
        small = values < _COLLINEAR
        if bool(small.any()):
            cosine = (b @ b.T).fill_diagonal_(0).abs().max()
            warnings.warn(
                f"{len(b)} directions of class {k} are nearly dependent (smallest eigenvalue of their Gram "
                "matrix "
                f"{float(values[0]):.1e}, largest |cosine| {float(cosine):.4f}): their common part is "
                "shared equally "
                "among them instead of being solved for",
                PfungstWarning,
                stacklevel=4,
            )
        inverse = (vectors * torch.where(small, 0.0, 1 / values)) @ vectors.T
        rows = (inverse @ b) * b.sum(1, keepdim=True)
        weights.append(rows * head.weight[k].double().cpu())
        offsets.append(-head.temperature * (rows * origins[k].double().cpu()).sum(1))
        classes += [k] * len(b)
    if not weights:
        return torch.zeros(0, head.n_features), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    return torch.cat(weights), torch.cat(offsets), torch.tensor(classes)


class _OfClasses:
    """The items of some classes, read again at every iteration."""

    def __init__(self, data: Iterable[tuple[Any, Tensor, int]], classes: set[int]) -> None:
        self.data, self.classes = data, classes

    def __iter__(self) -> Any:
        return (item for item in self.data if int(item[2]) in self.classes)


def _origins(npca: NeuralPCA, class_: int, part: list[int]) -> Tensor:
    """Points of ψ that lack each component's feature and are like the mean otherwise, (m, D)."""
    level, scale = npca.absent_[class_][part, 0], npca.scale(class_)[part].double()
    coordinate = torch.where(level == 0, 0.0, level / scale)
    return npca.mean_[class_].double() + coordinate[:, None] * npca.components_[class_][part].double()


def _warn_of_one_group(npca: NeuralPCA, components: Mapping[int, list[int]]) -> None:
    if set(components) - set(npca.absent_):
        raise InputError(
            "these components were saved without what images that lack a feature have of them",
            "fit NeuralPCA again, or use the reference mean",
        )
    whole = [
        f"{c} of class {k}" for k, part in components.items() for c in part if npca.absent_[k][c, 1].isinf()
    ]
    if whole:
        warnings.warn(
            f"α of component {few(whole, 10)} does not fall into two groups, so no "
            "image lacks its feature: SpuFix measures it from the mean of the class",
            PfungstWarning,
            stacklevel=3,
        )


def _checked(npca: NeuralPCA, components: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    out = {}
    for k, part in components.items():
        numbers = sorted(set(map(int, part)))
        for component in numbers:
            npca._known(int(k), component)
        if numbers:
            out[int(k)] = numbers
    return out


def _matched_rows(
    source: FeatureStore,
    target: FeatureStore,
    components: Mapping[int, Sequence[int]],
    there: Mapping[int, int],
) -> dict[int, tuple[list[int], list[int]]]:
    where = {name: i for i, name in enumerate(target.ids)}
    ids, labels, unmatched, total = source.ids, target.labels, 0, 0
    out = {}
    for k, part in components.items():
        mine, theirs = [], []
        for row in source.rows(k).tolist():
            other = where.get(ids[row])
            total += 1
            if other is None:
                unmatched += 1
                continue
            if int(labels[other]) != there[k]:
                raise DataError(
                    f"image {ids[row]!r} has label {k} in one store and {int(labels[other])} in the other",
                    "both stores must come from the same labelled images",
                )
            mine.append(row)
            theirs.append(other)
        if len(mine) <= len(part):
            raise InputError(
                f"class {k} has {len(mine)} images with the same identifier in both stores",
                f"its {len(part)} components need at least {len(part) + 1}; check how identifiers are made",
            )
        out[k] = (mine, theirs)
    if unmatched:
        warnings.warn(
            f"{unmatched} of {total} images have no counterpart by identifier and are left out",
            PfungstWarning,
            stacklevel=3,
        )
    return out
