"""`pfungst discover --series` end to end: a spike in most series of one class, from a table to the page."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from pfungst.audit.result import load
from pfungst.cli import app
from pfungst.errors import PfungstError

sys.path.insert(0, str(Path(__file__).parents[1] / "discover"))
from test_series import table, trained, waves

NET = """
from torch import nn
from safetensors.torch import load_file


def network():
    return nn.Sequential(
        nn.Conv1d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv1d(12, 16, 5, 2, 2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(7), nn.Flatten(), nn.Linear(112, 2),
    )


def clean():
    net = network()
    net.load_state_dict(load_file("FOLDER/clean.safetensors"))
    return net


def images():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(2))


def three():
    return nn.Sequential(nn.Flatten(), nn.Linear(56, 3))


def values():
    return nn.Flatten()


def nothing():
    return nn.Sequential(nn.Flatten(), nn.Linear(56, 2), nn.Softmax(1))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    x, y, has = waves(900)
    plain, *_ = waves(600, 7, planted=False)
    (folder / "net.py").write_text(NET.replace("FOLDER", str(folder)))
    save_file(trained(x[:600], y[:600]).state_dict(), str(folder / "net.safetensors"))
    save_file(trained(plain, y[:600], 1).state_dict(), str(folder / "clean.safetensors"))
    x, y, has = x[600:, 0].numpy().astype(float), y[600:].numpy(), has[600:]
    site = np.where(has, "north", np.where(np.arange(300) % 4 < 2, "south", "west"))
    table(folder / "s.csv", x, label=np.array(["one", "two"])[y], site=site)
    np.savez(folder / "s.npz", series=np.stack([x, x[:, ::-1]], 1), label=y)
    return folder


def discover(folder, out, *words, model="network", series="s.csv"):
    words = [
        "--series",
        str(folder / series),
        "--model",
        f"{folder / 'net.py'}:{model}",
        *words,
        "--out",
        str(out),
    ]
    return CliRunner().invoke(app, ["discover", *words, "--device", "cpu"])


def test_from_a_table_to_the_page_and_back_from_people(data, tmp_path):
    out, net = (
        tmp_path / "out",
        [
            "--checkpoint",
            str(data / "net.safetensors"),
            "--batch-size",
            "64",
            "--per-class",
            "100",
            "--most",
            "3",
        ],
    )
    net += ["--witness", f"{data / 'net.py'}:clean"]
    said = discover(data, out, *net, "--dry-run")
    assert "300 series of 56 points, 1 channel" in said.output, said.output
    assert "columns of groups: site" in said.output
    assert not out.exists()
    done = discover(data, out, *net)
    assert done.exit_code == 0, done.output
    result = load(out)
    assert result.verdict.level == "clever-hans", done.output
    entry, first = result.discovered.found()[0]
    assert (entry.name, entry.what, entry.noun) == ("two", "series", "series")
    assert {e.name for e, _ in result.discovered.found()} == {"two"}
    assert ("site", "north") in [(c.column, c.value) for c in first.columns]
    assert "of its series" in result.verdict.headline
    assert result.next_command == ""
    assert first.edits
    assert len(first.map) == 1
    page = (out / "report.html").read_text()
    for text in ("Series explained", "No audit goes through series", "Typical series", "site = north"):
        assert text in page
    for text in ("images are", "Typical images", "audit classifier"):
        assert text not in page
    assert all(
        (out / s.file).is_file() and (s.region is None or (out / s.region).is_file()) for s in first.images
    )
    task = json.loads((out / "label-task.json").read_text())
    assert (out / task["items"][0]["images"][0]["file"]).is_file()
    again = discover(data, out, *net, "--resume")
    assert again.exit_code == 0
    assert load(out) == result
    key = next(
        i for i in task["items"] if i["id"] == f"{result.discovered.entries.index(entry)}-{first.number}"
    )
    judged = {
        "class_index": key["class_index"],
        "component": key["component"],
        "answer": "object",
        "names": ["beat"],
    }
    answers = {"format": "pfungst.findings/1", "model": {"inputs": result.inputs}, "findings": [judged]}
    (tmp_path / "findings.json").write_text(json.dumps(answers))
    told = discover(data, out, *net, "--resume", "--answers", str(tmp_path / "findings.json"))
    assert told.exit_code == 0, told.output
    assert all(f.number != first.number for _, f in load(out).discovered.found())
    (data / "t.csv").write_text((data / "s.csv").read_text())
    other = discover(data, out, *net, "--resume", series="t.csv")
    assert "of other options, other data" in str(other.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "32"], "--size is about images"),
        (["--original", "pillow-bicubic"], "--original is about images"),
        (["--groups-file", "g.csv"], "--groups-file is about images"),
        (["--path-column", "file"], "--path-column is about images"),
        (["--skip-bad"], "--skip-bad is about images"),
        (["--group", "text"], "--group text reads images"),
        (["--group", "nowhere"], "no column 'nowhere'"),
        (["--images", "x"], "give one of --images, --series and --texts"),
        (["--label-column", "kind"], "no column 'kind'"),
        (["--classes", "five"], "five"),
        (["--layer", "nope"], "no layer 'nope'"),
        (["--model", "images"], "does not classify series of shape (2, 1, 56)"),
        (["--model", "values"], "no linear layer of the model gives 56 outputs"),
        (["--model", "three"], "the model has 3 classes"),
        (["--model", "nothing"], "softmax"),
        (["--series", "nowhere.csv"], "nowhere.csv"),
        (["--series", "s.npz"], "does not classify series of shape (2, 2, 56)"),
        (["--series", "net.py"], "net.py"),
        (["--witness", "three"], "has 3 outputs, the model 2"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(data, tmp_path, words, said):
    model, series, words = "network", "s.csv", list(words)
    if words[0] == "--model":
        model, words = words[1], []
    elif words[0] == "--series":
        series, words = words[1], []
    elif words[0] == "--witness":
        words[1] = f"{data / 'net.py'}:{words[1]}"
    torch.manual_seed(0)
    done = discover(data, tmp_path / "out", *words, model=model, series=series)
    assert isinstance(done.exception, PfungstError), done.output
    assert said in str(done.exception)
    assert not (tmp_path / "out" / "result.json").exists()


def test_series_need_a_classifier(data, tmp_path):
    words = ["discover", "--series", str(data / "s.csv"), "--detector", "kde", "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, PfungstError)
    assert "--series are read by a classifier" in str(done.exception)
