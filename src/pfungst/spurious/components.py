"""Which components of which classes are spurious: the file that the labelling app writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pfungst.errors import InputError
from pfungst.files import read, reading, write_json
from pfungst.spurious.heads import same_model

FORMAT = "pfungst.components/1"
Components = dict[int, list[int]]


def write_components(
    path: str | Path,
    components: Mapping[int, Iterable[int]],
    fingerprint: Mapping[str, Any],
    by: Literal["people", "rule"] = "people",
) -> None:
    """Write {class index: components} with the fingerprint of their model, and who chose them."""
    content = {
        "format": FORMAT,
        **({} if by == "people" else {"chosen_by": by}),
        "model": dict(fingerprint),
        "components": {str(k): sorted(set(map(int, v))) for k, v in sorted(components.items())},
    }
    write_json(path, content)


def read_components(
    path: str | Path, fingerprint: Mapping[str, Any] | None = None, allow_pickle: bool = False
) -> Components:
    """Read {class index: components}.

    Args:
        path: JSON as :func:`write_components` writes it, or the published `.npy` that holds a pickled dict.
        fingerprint: of the model to use them on (`head.fingerprint()`); a file of another model is refused.
        allow_pickle: needed for `.npy`. Unpickling runs code from the file: only for files you trust. Such
            files carry no fingerprint, so nothing can check that they belong to your model.

    Raises:
        InputError: another format, another model, or a pickle without the switch.
    """
    path = Path(path)
    if path.suffix == ".npy":
        if not allow_pickle:
            raise InputError(
                f"{path} holds a pickled dict, which can run code when it is read",
                "if you trust its source pass allow_pickle=True, or convert it to JSON once",
            )
        with reading(path, "pass a npy file that holds one dict", InputError):
            return _checked(np.load(path, allow_pickle=True).item(), path)
    content = read(path, "pass the components.json that the labelling app wrote", InputError, FORMAT)
    theirs = content.get("model") or {}
    if fingerprint is not None and not same_model(theirs, fingerprint):
        raise InputError(
            f"{path} was made for another model: {_describe(theirs)}; yours is {_describe(fingerprint)}",
            "component numbers mean nothing on another model; use SpuFix.transfer to carry the fix over",
        )
    return _checked(content.get("components"), path)


def components_chosen_by(path: str | Path) -> Literal["people", "rule"]:
    """Who chose the components of a file that :func:`read_components` reads; people unless it says a rule."""
    path = Path(path)
    if path.suffix == ".npy":
        return "people"
    found = read(path, "pass the components.json that the labelling app wrote", InputError, FORMAT)
    return "rule" if found.get("chosen_by") == "rule" else "people"


def _describe(fingerprint: Mapping[str, Any]) -> str:
    digest = str(fingerprint.get("head_sha256", "without a fingerprint"))[:12]
    name = f"{fingerprint['name']}, " if fingerprint.get("name") else ""
    classes, features, model = (fingerprint.get(key, "?") for key in ("classes", "features", "model_key"))
    return f"{name}{classes} classes, {features} features, head {digest}, model {model}"


def _checked(content: Any, path: Path) -> Components:
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds no table of components", "expected {class index: [component, …]}")
    out: Components = {}
    for key, values in content.items():
        try:
            items = [values] if isinstance(values, int | np.integer) else list(values)
            numbers = [int(v) for v in items]
            if int(key) < 0 or any(v < 0 for v in numbers):
                raise ValueError("negative index")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{path}: class {key!r} has components {values!r} ({error})", "use integers from 0"
            ) from None
        if numbers:
            out[int(key)] = sorted(set(numbers))
    return out
