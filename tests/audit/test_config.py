from pathlib import Path

import pytest

from pfungst.audit.anomaly.config import AnomalyConfig
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
        ("data = ", "not readable TOML"),
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
