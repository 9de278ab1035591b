"""Whether people are in an image, as a group: by torchvision's Faster R-CNN, or faces by MTCNN or OpenCV.

Kauffmann et al. (arXiv 2408.08041, supplementary note B) tell images that show a human by a Faster R-CNN
trained on COCO; the score that counts is not in the text, 0.9 is ours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pfungst.device import choose_device
from pfungst.errors import ConfigError
from pfungst.files import write

from .decode import MAX_PIXELS, Undecodable
from .item import Item
from .items import ImageSet
from .prepared import run_checked

_PERSON = 1  # in COCO's numbering, which torchvision's detection models keep

Detector = Callable[[Image.Image], bool]


class FasterRCNNPeople:
    """People by torchvision's Faster R-CNN v2 (ResNet-50, COCO).

    Args:
        checkpoint: its weights (`fasterrcnn_resnet50_fpn_v2_coco`), loaded safely.
        score: lowest score that counts.
        device: "auto" takes a GPU if there is one.
    """

    def __init__(self, checkpoint: str | Path, score: float = 0.9, device: str = "auto") -> None:
        from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

        from pfungst.encoders.checkpoints import load_state, read_checkpoint

        if not 0 < score <= 1:
            raise ConfigError(f"score {score} is no probability", "give a number above 0 up to 1")
        self.score, self.device = score, choose_device(device)
        self.name = f"Faster R-CNN v2, a person with a score of at least {score:g}"
        model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        load_state(model, read_checkpoint(checkpoint), checkpoint)
        self.model = model.eval().to(self.device)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> bool:
        x = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
        return self.found(self.model([x.to(self.device)])[0])

    def found(self, result: dict[str, torch.Tensor]) -> bool:
        """Whether a result of the model holds a person."""
        return bool(((result["labels"] == _PERSON) & (result["scores"] >= self.score)).any())


class FaceCascade:
    """Faces by OpenCV: the frontal-face cascade that OpenCV 4 brings along; other views of people are missed.

    Args:
        file: another cascade (XML), or a YuNet model (ONNX), which OpenCV 5 needs: it has no cascades any
            more.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        import cv2

        self._yunet = file is not None and Path(file).suffix == ".onnx"
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{file} does not exist", "give a cascade (.xml) or a YuNet model (.onnx)")
        if self._yunet:
            self.name = f"faces by OpenCV's FaceDetectorYN ({Path(str(file)).name})"
            self._detector: Any = cv2.FaceDetectorYN.create(str(file), "", (320, 320), 0.9)
            return
        cascades = Path(getattr(getattr(cv2, "data", None), "haarcascades", "") or ".")
        path = Path(file) if file is not None else cascades / "haarcascade_frontalface_default.xml"
        if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
            raise ConfigError(
                f"OpenCV {cv2.__version__} has no face cascade",
                "give weights of torchvision's Faster R-CNN, a YuNet model (.onnx), a group column, or "
                "install opencv-python-headless below 5",
            )
        self.name = f"faces by OpenCV's cascade {path.name}"
        self._detector = cv2.CascadeClassifier(str(path))

    def __call__(self, image: Image.Image) -> bool:
        import cv2

        array = np.asarray(image.convert("RGB"))[..., ::-1]
        if self._yunet:
            self._detector.setInputSize((array.shape[1], array.shape[0]))
            faces = self._detector.detect(np.ascontiguousarray(array))[1]
            return faces is not None and len(faces) > 0
        grey = cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_BGR2GRAY)
        return len(self._detector.detectMultiScale(grey, 1.1, 5, minSize=(24, 24))) > 0


class MTCNNFaces:
    """Faces by MTCNN (Zhang et al. 2016), as facenet-pytorch brings it along with its weights.

    Args:
        score: lowest probability of a face that counts.
    """

    def __init__(self, score: float = 0.9) -> None:
        try:
            from facenet_pytorch import MTCNN
        except ImportError:
            raise ConfigError("MTCNN needs facenet-pytorch", _INSTALL) from None
        self.score, self.name = score, f"a face by MTCNN with a probability of at least {score:g}"
        self._detector = MTCNN(keep_all=True, device="cpu")

    def __call__(self, image: Image.Image) -> bool:
        found, scores = self._detector.detect(image.convert("RGB"))
        return found is not None and max(scores) >= self.score


_INSTALL = (
    "pip install --no-deps facenet-pytorch, or make a CSV for --groups-file with `pfungst people --detector`"
)
_SAID = {True: "human", False: "no human"}


def installed_detector() -> Detector:
    """The detector that is installed: MTCNN, else OpenCV's face cascade.

    Raises:
        ConfigError: there is none.
    """
    for made in (MTCNNFaces, FaceCascade):
        try:
            return made()
        except ConfigError:
            continue
    raise ConfigError("no detector of people is installed", _INSTALL)


def people_column(items: Sequence[Item], detector: Detector | None = None) -> np.ndarray:
    """(N,) "human" where somebody is seen, else "no human"; "unreadable" where an image cannot be decoded.

    Raises:
        ConfigError: no detector is given or installed.
    """
    find = detector or installed_detector()

    def seen(item: Item) -> str:
        try:
            return _SAID[bool(find(item.read()))]
        except Undecodable:
            return "unreadable"

    return np.array([seen(item) for item in items])


def mark_people(
    images: ImageSet,
    detector: Detector,
    column: str = "human",
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> ImageSet:
    """The same set with a group `column`: "human" where the detector finds somebody, else "no human".

    What the detector is goes into the notes of the set.

    Raises:
        UnreadableImages: some images cannot be decoded; all are named.
    """
    found: dict[int, bool] = {}

    def look(index: int) -> None:
        found[index] = bool(detector(images.items[index].read(max_pixels)))

    run_checked(images.items, look, progress, 1, "looking for people", skip_bad=False)

    def marked(item: Item, there: bool) -> Item:
        return replace(item, groups={**item.groups, column: _SAID[there]})

    name = getattr(detector, "name", type(detector).__name__)
    note = f"{column}: {sum(found.values())} of {len(found)} images show a human ({name})"
    items = [marked(item, found[i]) for i, item in enumerate(images.items)]
    return ImageSet(images.name, items, [*images.notes, note])


def people_table(images: Path, detector: Path | None, out: Path, device: str = "auto") -> list[str]:
    """Write a CSV of path and human ("human", "no human") of the images of a folder or table.

    Args:
        images: as :func:`pfungst.data.open_images` reads it.
        detector: weights of Faster R-CNN, or a face cascade (.xml) or YuNet model (.onnx); by default the one
            that is installed (:func:`installed_detector`).
        out: the CSV; replaced where it exists. device: of Faster R-CNN.

    Returns:
        How many show people, and by which detector.

    Raises:
        ConfigError, CheckpointError: there is no such detector. UnreadableImages: images cannot be decoded.
    """
    from .layouts import open_images

    if detector is None:
        find = installed_detector()
    elif detector.suffix in (".xml", ".onnx"):
        find = FaceCascade(detector)
    else:
        find = FasterRCNNPeople(detector, device=device)
    marked = [mark_people(found, find, progress=True) for found in open_images(images)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "human"))
    rows.writerows((item.id, item.groups["human"]) for found in marked for item in found.items)
    write(out, text.getvalue())
    return [found.notes[-1] for found in marked]
