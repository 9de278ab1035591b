"""Options of the audits are made from their configurations."""

import pytest
import typer
from typer.testing import CliRunner

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.cli import app
from pfungst.cli.options import from_config

SHARED = "--config --out --seed --skip-bad --resume --overwrite --device --workers --ray --fail-on --help "
SHARED += "--path-column --mask-column --split-column --root --window --dry-run"
# The options when they were written by hand, without those above; and fields that only TOML files could set.
OPTIONS = {
    "anomaly": "--category --deployed --groups --mitigate --model --original --protocol --seeds --size",
    "similarity": "--cache --category --checkpoint --condition --encoder --explain --folds --groups --images "
    "--keep-together --labels --limit --mitigate --pairs --patches --positive --probe --seeds --size --split "
    "--sweep --texts --trust-checkpoint",
    "classifier": "--batch-size --candidates --checkpoint --class-names --classes --components --condition "
    "--features --fix --layer --masks --model --n-components --reference --shown --size --spurious --steps "
    "--train --trust-checkpoint --val",
}
ADDED = {
    "anomaly": {
        "--quantile",
        "--examples",
        "--label-column",
        "--normal",
        "--keep-together",
        "--discover",
        "--answers",
        "--outliers",
    },
    "classifier": {
        "--original",
        "--deployed",
        "--witness",
        "--rule",
        "--label-column",
        "--discover",
        "--answers",
        "--transfer",
    },
    "similarity": {
        "--classes",
        "--groups-file",
        "--discover",
        "--answers",
        "--rank",
        "--composite",
        "--metric",
        "--original",
    },
}


def parameters(command):
    return typer.main.get_command(app).commands["audit"].commands[command].params


@pytest.mark.parametrize("name", OPTIONS)
def test_option_names_are_those_of_the_hand_written_commands(name):
    names = {option for p in parameters(name) for option in p.opts if option.startswith("--")} | {"--help"}
    assert names == {*SHARED.split(), *OPTIONS[name].split(), *ADDED.get(name, ())}
    assert [p.opts for p in parameters(name) if p.name == "out"] == [["--out", "-o"]]
    arguments = [p.name for p in parameters(name) if not p.opts[0].startswith("-")]
    assert arguments == (["data"] if name == "anomaly" else [])


@pytest.mark.parametrize(
    ("name", "config"),
    [("anomaly", AnomalyConfig), ("similarity", SimilarityConfig), ("classifier", ClassifierConfig)],
)
def test_every_field_is_an_option_with_its_description_and_default(name, config):
    helps = {p.name: p.help for p in parameters(name)}
    assert helps.pop("file")
    assert helps.keys() == config.model_fields.keys()
    for key, field in config.model_fields.items():
        assert helps[key].startswith(field.description)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"[{field.default}]" in helps[key]


def parsed(config, *args, argument=None):
    found, command = [], typer.Typer()
    command.command()(from_config(config, argument)(found.append))
    done = CliRunner().invoke(command, args)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return found[0]


def test_values_of_all_types_and_what_is_not_given(tmp_path):
    config = parsed(AnomalyConfig, "tiles", "--model", "kde,bag:kde+kde", "--model", "d2neighbors:p=1,perplexity=2",
                    "--seed", "0", "--quantile", "0.9", "--resume", "-o", "there", argument="data")  # fmt: skip
    expected = AnomalyConfig(
        data="tiles",
        model=["kde", "bag:kde+kde", "d2neighbors:p=1,perplexity=2"],
        quantile=0.9,
        resume=True,
        out="there",
    )
    assert config == expected
    file = tmp_path / "a.toml"
    file.write_text('data = "tiles"\nmodel = ["kde"]\nseed = 3\nskip-bad = true\nsize = 64\n')
    config = parsed(AnomalyConfig, "--config", str(file), "--seed", "0", argument="data")
    assert (config.seed, config.skip_bad, config.size, config.model) == (0, True, 64, ["kde"])
    config = parsed(
        ClassifierConfig,
        *[
            "--model",
            "m:f",
            "--train",
            "t",
            "--val",
            "v",
            "--steps",
            "0",
            "--classes",
            "3,cat",
            "--classes",
            "1",
        ],
    )
    assert (config.steps, config.classes) == (0, ["3", "cat", "1"])
    config = parsed(
        SimilarityConfig, *["--encoder", "small:8", "--images", "synthetic", "--sweep", "1,2", "--sweep", "4"]
    )
    assert (config.images, config.sweep) == ("synthetic", [1, 2, 4])
