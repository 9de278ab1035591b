from pathlib import Path

import pytest

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.errors import ConfigError


def test_options_win_over_the_file(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('data = "tiles"\nmodel = ["kde"]\nskip-bad = true\nsize = 64\n')
    config = AnomalyConfig.build(file, size=32, deployed=None)
    assert config.data == tmp_path / "tiles"
    assert (config.model, config.size, config.skip_bad) == (["kde"], 32, True)


def test_a_wrong_key_is_answered_with_the_nearest_right_one(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('data = "tiles"\nmitigation = "blur"\n')
    with pytest.raises(ConfigError, match=r"unknown key 'mitigation' in .*a\.toml") as error:
        AnomalyConfig.build(file)
    assert "did you mean 'mitigate'?" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = ", "cannot be read: Invalid value"),
        ("size = 3\ndata = 'x'", "size = 3"),
        ("size = 64", "'data' is missing"),
    ],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        AnomalyConfig.build(file)
    with pytest.raises(ConfigError, match="does not exist"):
        AnomalyConfig.build(tmp_path / "none.toml")


def test_lists_from_the_command_line():
    config = AnomalyConfig.build(
        data="x", model="kde, d2neighbors:p=1,perplexity=0.3,bag:kde+kde", groups="session"
    )
    assert config.model == ["kde", "d2neighbors:p=1,perplexity=0.3", "bag:kde+kde"]
    assert config.groups == ["session"]
    with pytest.raises(ConfigError, match="no detector"):
        AnomalyConfig.build(data="x", model="")


def test_the_fingerprint_ignores_what_does_not_change_numbers():
    one = AnomalyConfig.build(data="x", out=Path("a"))
    assert one.fingerprint() == AnomalyConfig.build(data="x", out=Path("b"), resume=True).fingerprint()
    assert one.fingerprint() != AnomalyConfig.build(data="x", size=64).fingerprint()


@pytest.mark.parametrize(
    ("kind", "given", "paths"),
    [
        (AnomalyConfig, {"data": "tiles"}, ["data", "out"]),
        (
            SimilarityConfig,
            {"encoder": "timm:resnet18", "texts": "pairs.csv"},
            ["texts", "checkpoint", "cache", "out"],
        ),
        (SimilarityConfig, {"encoder": "timm:resnet18", "images": "xrays"}, ["images"]),
        (
            ClassifierConfig,
            {"model": "timm:resnet18", "train": "train", "val": "val"},
            [
                "train",
                "val",
                "checkpoint",
                "spurious",
                "components",
                "class_names",
                "masks",
                "features",
                "out",
            ],
        ),
    ],
)
def test_all_paths_of_a_file_are_relative_to_the_file(tmp_path, monkeypatch, kind, given, paths):
    """`texts`, `checkpoint` and `cache` of the similarity audit were relative to the working folder."""
    values = given | {key: given.get(key, f"some/{key}") for key in paths}
    file = tmp_path / "folder" / "a.toml"
    file.parent.mkdir()
    file.write_text("".join(f'{key.replace("_", "-")} = "{value}"\n' for key, value in values.items()))
    monkeypatch.chdir(tmp_path)
    config = kind.build("folder/a.toml")
    assert {key: getattr(config, key) for key in paths} == {key: file.parent / values[key] for key in paths}
    assert getattr(kind.build("folder/a.toml", **{paths[0]: "here"}), paths[0]) == Path("here")


def test_words_that_stand_for_data_are_no_paths(tmp_path):
    file = tmp_path / "a.toml"
    for word in ("synthetic", "digits-c"):
        file.write_text(f'data = "{word}"\n')
        assert AnomalyConfig.build(file).data == word
    file.write_text('encoder = "small:8"\nimages = "synthetic"\n')
    assert SimilarityConfig.build(file).images == "synthetic"
    file.write_text('encoder = "small:8"\nimages = "digits-c"\n')
    assert SimilarityConfig.build(file).images == tmp_path / "digits-c"


def test_lists_are_texts_repeated_options_or_lists_of_a_file(tmp_path):
    def conditions(value):
        return SimilarityConfig.build(encoder="small:8", images="x", condition=value).condition

    assert conditions("jpeg:30,blur:2") == ["jpeg:30", "blur:2"]
    assert conditions("logo:tag.png,width=0.3,at=top; jpeg:30") == [
        "logo:tag.png,width=0.3,at=top",
        "jpeg:30",
    ]
    assert conditions("logo:tag.png,width=0.3,jpeg:30") == ["logo:tag.png,width=0.3", "jpeg:30"]
    assert conditions(("logo:tag.png,at=top", "jpeg:30")) == ["logo:tag.png,at=top", "jpeg:30"]
    file = tmp_path / "a.toml"
    file.write_text(
        'encoder = "small:8"\nimages = "x"\ncategory = "a, b"\nsweep = [1, 3]\ngroups = ["a, b"]\n'
    )
    config = SimilarityConfig.build(file)
    assert (config.category, config.sweep, config.groups) == ("a, b", [1, 3], ["a, b"])
    assert SimilarityConfig.build(file, sweep="2,4").sweep == [2, 4]
    with pytest.raises(ConfigError, match="sweep"):
        SimilarityConfig.build(file, sweep="0")
    classifier = {"model": "m:f", "train": "x", "val": "x"}
    assert ClassifierConfig.build(**classifier, classes=[3, "cat"]).classes == ["3", "cat"]
