"""Pictures of more than 8 bits, of floats, and DICOM: which of their values become black and white.

One range is taken for a whole data set, or brightness would no longer compare between its pictures: the
values that are used, up to a power of two, so that 12 bits in a file of 16 keep their levels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pfungst.errors import ConfigError, DataError
from pfungst.files import DICOM, open_picture

from .decode import Undecodable, is_deep, load, open_image, to_rgb
from .item import Item
from .items import ImageSet
from .window import Window

_DEEP = (".png", ".tif", ".tiff", ".pgm")  # formats that can hold more than 8 bits
_GROUPS = {
    "patient": ("PatientID",),
    "sex": ("PatientSex",),
    "scanner": ("Manufacturer", "ManufacturerModelName"),
    "site": ("InstitutionName",),
    "view": ("ViewPosition",),
    "date": ("StudyDate",),
}
_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTSequence")


@dataclass(frozen=True)
class Deep:
    """A file whose values are shown through a window, read when called.

    Args:
        path: of DICOM, or of a picture of one channel.
        window: of its values; of DICOM the one in its header where this names none.
    """

    path: Path
    window: Window

    def __call__(self) -> Image.Image:
        """Levels 0 to 255, turned as the file says. Raises ``Undecodable``."""
        if self.path.suffix.lower() in DICOM:
            return Image.fromarray(_dicom_levels(_read_dicom(self.path), self.window))
        return Image.fromarray(self.window.levels(_values(self.path)))


def shown(path: Path, window: Window) -> Image.Image:
    """A file as the images of a data set are read that are shown through a window. Raises ``Undecodable``."""
    deep = path.suffix.lower() in DICOM or (window.given and _is_deep(Item(path.name, path)))
    return to_rgb(Deep(path, window)() if deep else load(open_image(path)))


def window_of(items: Sequence[Item]) -> tuple[float, float] | None:
    """The one range that pictures of more than 8 bits are shown through; None where there is none, or the
    headers of DICOM name it."""
    windows = {i.image.window for i in items if isinstance(i.image, Deep)}
    (one,) = windows if len(windows) == 1 else (Window(),)
    return None if one.low is None or one.high is None else (one.low, one.high)


def with_levels(sets: list[ImageSet], window: Window) -> bool:
    """Show pictures of more than 8 bits in the sets through one window, with notes that name it; DICOM gets
    what its header tells as groups. Returns whether there is any such picture.

    Raises:
        ConfigError: pydicom is not installed.
    """
    some = False
    for images in sets:
        dicom = [i for i in images.items if isinstance(i.image, Path) and i.image.suffix.lower() in DICOM]
        headers = {i.id: _header(i.image) for i in dicom if isinstance(i.image, Path)}
        own = {
            name
            for name, header in headers.items()
            if header is not None and any(k in header for k in _WINDOW)
        }
        deep = [i for i in images.items if _is_deep(i)]
        some = some or bool(dicom or deep)
        through: dict[str, Window] = {}
        if window.given:
            through = dict.fromkeys((i.id for i in (*dicom, *deep)), window)
        else:
            bare = [i for i in dicom if i.id not in own]
            for kind, items in (("DICOM files without a window in the header", bare), *_by_kind(deep)):
                found = _range(items)
                if found is not None:
                    through |= dict.fromkeys((i.id for i in items), found)
                    images.notes.append(
                        f"{len(items)} {kind} are shown from {found.low:,g} to {found.high:,g}, the range "
                        "in use (another: --window CENTRE,WIDTH)"
                    )
            through |= dict.fromkeys(own, window)
        if own and not window.given:
            images.notes.append(f"{len(own)} DICOM files are shown through the window in their header")
        images.items = [
            replace(i, image=Deep(i.image, through[i.id]))
            if isinstance(i.image, Path) and i.id in through
            else i
            for i in images.items
        ]
        told = {name: _groups(header) for name, header in headers.items() if header is not None}
        images.items = [replace(i, groups=told[i.id] | i.groups) if i.id in told else i for i in images.items]
    return some


def require_one_range(sets: Sequence[ImageSet]) -> None:
    """Raise DataError where pictures of several sets are shown through different ranges, found in each: they
    would not compare."""
    ranges = {
        f"{w.low:,g} to {w.high:,g}"
        for images in sets
        for item in images.items
        if isinstance(item.image, Deep) and (w := item.image.window).given
    }
    if len(ranges) > 1:
        names = " and ".join(images.name for images in sets)
        raise DataError(
            f"the pictures of {names} use different ranges of values: {', '.join(sorted(ranges))}",
            "name one for both: --window CENTRE,WIDTH",
        )


def _is_deep(item: Item) -> bool:
    """Whether a file has more than 8 bits per channel, by its header."""
    if not isinstance(item.image, Path) or item.image.suffix.lower() not in _DEEP:
        return False
    try:
        with open_picture(item.image) as image:
            return is_deep(image)
    except Exception:  # what is wrong with it is said when it is decoded
        return False


def _by_kind(items: Sequence[Item]) -> list[tuple[str, list[Item]]]:
    """Integers and floats apart, as a data set that holds both has two ranges."""
    kinds: dict[str, list[Item]] = {}
    for item in items:
        assert isinstance(item.image, Path)
        with open_picture(item.image) as image:
            kind = "pictures of floats" if image.mode.startswith("F") else "pictures of more than 8 bits"
        kinds.setdefault(kind, []).append(item)
    return list(kinds.items())


def _range(items: Sequence[Item]) -> Window | None:
    """The values that pictures use: from zero (or the least) to a power of two less one, of floats to the
    largest. None where nothing is to be done: no picture, all 16 bits in use, or floats from 0 to 1."""
    low, high, whole = math.inf, -math.inf, True
    for item in items:
        assert isinstance(item.image, Path)
        try:
            is_dicom = item.image.suffix.lower() in DICOM
            values = _stored(_read_dicom(item.image))[0] if is_dicom else _values(item.image)
        except Undecodable:
            continue  # it is named when it is decoded
        whole = whole and values.dtype.kind in "iu"
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if whole and not is_dicom and low >= 0 and 1 << 15 <= high < 1 << 16:
            return None
    if not math.isfinite(low) or (not whole and low >= 0 and high <= 1):
        return None
    if whole and low >= 0:
        return Window(0, float((1 << max(8, int(high).bit_length())) - 1))
    return Window(low, high if high > low else low + 1)


def _values(path: Path) -> np.ndarray:
    """The numbers (H, W) or (H, W, 3) of a picture of more than 8 bits. Raises ``Undecodable``."""
    image = load(open_image(path))
    values = np.asarray(image)
    if image.mode == "RGB":
        found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None or found.shape != values.shape:
            raise Undecodable("colours of more than 8 bits that cannot be read: convert it to 8 bits")
        values = found[..., ::-1]
    if values.ndim != 2 and image.mode != "RGB":
        raise Undecodable("its header promises one channel, and it holds several")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Undecodable("a float image with NaN or infinite values: replace them")
    return values


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError:
        raise ConfigError(
            "DICOM needs pydicom, which is not installed", "pip install 'pfungst[dicom]'"
        ) from None
    return pydicom


def _header(path: Path) -> Any:
    """What the header says of groups and windows; None where the file is no DICOM."""
    pydicom = _pydicom()
    tags = [*_WINDOW, *(t for names in _GROUPS.values() for t in names)]
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
    except Exception:  # what is wrong with it is said when it is decoded
        return None


def _groups(header: Any) -> dict[str, str]:
    """What the header tells of where a picture comes from; the date to the month."""
    texts = {
        g: " ".join(str(header.get(n, "") or "").strip() for n in names).strip()
        for g, names in _GROUPS.items()
    }
    texts["date"] = f"{texts['date'][:4]}-{texts['date'][4:6]}" if texts["date"][:6].isdigit() else ""
    return {group: text for group, text in texts.items() if text}


def _read_dicom(path: Path) -> Any:
    pydicom = _pydicom()
    try:
        return pydicom.dcmread(io.BytesIO(path.read_bytes()))
    except OSError as error:
        raise Undecodable(error.strerror or str(error)) from None
    except Exception as error:  # parsers of damaged files raise almost anything
        raise Undecodable(f"no DICOM that pydicom reads: {error}") from None


def _stored(data: Any) -> tuple[np.ndarray, bool]:
    """Values (H, W) after the modality transform, or colours (H, W, 3) uint8, of the first frame; and whether
    high values are dark. Raises ``Undecodable``."""
    pixels = _pydicom().pixels
    try:
        several = int(data.get("NumberOfFrames", 1) or 1) > 1
        kind = str(data.PhotometricInterpretation)
        values = pixels.pixel_array(data, index=0 if several else None)
        if kind == "PALETTE COLOR":
            values = pixels.apply_color_lut(values, data)
            return (values >> 8 if values.dtype == np.uint16 else values).astype(np.uint8)[..., :3], False
        if values.ndim == 3:
            if values.dtype != np.uint8:
                raise Undecodable(f"DICOM in colours of {values.dtype}: convert it to 8 bits")
            return values, False
        found = pixels.apply_modality_lut(values, data)
        whole = bool((found == np.rint(found)).all())
        return found.astype(np.int64) if whole else found, kind == "MONOCHROME1"
    except Undecodable:
        raise
    except Exception as error:  # a missing decoder, damaged pixels, missing fields
        raise Undecodable(f"its pixels cannot be read by pydicom: {error}") from None


def _dicom_levels(data: Any, window: Window) -> np.ndarray:
    """Levels as they are meant to be seen: (H, W) or (H, W, 3) uint8. DICOM PS3.3 C.11.2."""
    values, dark = _stored(data)
    if values.ndim == 3:
        return values
    if window.given:
        levels = window.levels(values)
    else:
        try:
            levels = _by_header(values, data)
        except Undecodable:
            raise
        except Exception as error:
            raise Undecodable(f"the window in its header cannot be read: {error}") from None
    return 255 - levels if dark else levels


def _by_header(values: np.ndarray, data: Any) -> np.ndarray:
    def first(name: str) -> float:
        value = data[name].value
        return float(value if np.ndim(value) == 0 else value[0])

    if "VOILUTSequence" in data:
        shown = _pydicom().pixels.apply_voi(values, data)
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        return np.rint(shown.astype(np.float64) * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    centre, width = first("WindowCenter"), first("WindowWidth")
    kind = str(data.get("VOILUTFunction", "LINEAR") or "LINEAR").upper()
    if not width > 0:
        raise Undecodable(f"the window in its header is {width:g} wide: give --window CENTRE,WIDTH")
    x = values.astype(np.float64)
    if kind == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (x - centre) / width))
    elif kind == "LINEAR_EXACT":
        share = (x - centre) / width + 0.5
    else:
        share = (x - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)
