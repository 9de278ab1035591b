from pathlib import Path

import pytest

from pfungst.errors import ConfigError, InputError
from pfungst.pool import PoolModel


def test_what_the_command_line_says(tmp_path):
    weights, code = tmp_path / "w.safetensors", tmp_path / "nets.py"
    weights.touch()
    code.touch()
    text = f"robust=timm:resnet50,checkpoint={weights},condition=crop:0.875+pillow-bicubic,size=160"
    assert PoolModel.parse(text) == PoolModel(
        "robust", "timm:resnet50", "crop:0.875+pillow-bicubic", 160, weights
    )
    assert PoolModel.parse("timm:vit_tiny_patch16_224.augreg") == PoolModel(
        "vit_tiny_patch16_224.augreg", "timm:vit_tiny_patch16_224.augreg"
    )
    assert PoolModel.parse(f"{code}:make", trust_checkpoint=True) == PoolModel(
        "make", f"{code}:make", trust_checkpoint=True
    )


def test_files_become_absolute_for_workers_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "nets.py").touch()
    monkeypatch.chdir(tmp_path)
    model = PoolModel.parse("nets.py:make,checkpoint=nets.py")
    assert model.source == f"{tmp_path / 'nets.py'}:make"
    assert model.checkpoint == Path(tmp_path / "nets.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:a,sise=3", "no option 'sise'"),
        ("timm:a,size=3,size=4", "an option twice"),
        ("timm:a,size=big", "'big' is no number of pixels"),
        ("timm:a,size=0", "'0' is no number of pixels"),
        ("timm:a,checkpoint=/absent", "there is no /absent"),
        ("absent.py:a", r"there is no absent\.py"),
    ],
)
def test_what_it_cannot_say(text, message):
    with pytest.raises(ConfigError, match=message):
        PoolModel.parse(text)


def test_names_are_safe_as_folders():
    with pytest.raises(InputError, match="no name"):
        PoolModel.parse("../x=timm:a")
    with pytest.raises(InputError, match="no name"):
        PoolModel.parse("timm:")
