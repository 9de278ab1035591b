"""A ResNet-18 of torchvision for images of 128 px, as an encoder of your own: a function that returns an :class:`Encoder`.

    pfungst audit similarity --encoder examples/imagenette_encoder.py:resnet18 --checkpoint imagenette_simclr_resnet18.safetensors \
        --images imagenette --groups-file imagenette/people.csv --groups "faces>0" --out simclr
"""

from torch import nn
from torchvision import models

from pfungst.encoders import Encoder, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet18() -> Encoder:
    """512 features, random weights: ``--checkpoint`` names those to load; a classifier's last layer is not used."""
    net = models.resnet18()
    net.fc = nn.Identity()
    return Encoder(net, Preprocessing(128, "pillow-bilinear", MEAN, STD), "resnet18", trained=False)
