"""``pfungst pool`` as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from typer.testing import CliRunner

from pfungst.cli import app
from pfungst.errors import ConfigError, DataError, InputError
from pfungst.pool import PoolModel, index, score
from pfungst.pool.parts import part_path
from pool_sample import folder_pool, other, scores_of, tiny

SAMPLE = Path(__file__).parents[1] / "pool_sample.py"


def pfungst(*args):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=True)


@pytest.fixture
def indexed(tmp_path):
    source = folder_pool(tmp_path / "source", 20, bad=(3,))
    done = pfungst("pool", "index", source, "--out", tmp_path / "pool")
    assert done.stdout == f"20 images in 1 shards: {tmp_path / 'pool'}\n"
    return tmp_path / "pool"


def test_two_models_each_with_its_own_preprocessing(tmp_path, indexed):
    first = f"first={SAMPLE}:tiny,condition=pillow-bilinear,size=16"
    second = f"{SAMPLE}:other,condition=opencv-nearest+jpeg:60,size=12"
    done = pfungst("pool", "score", indexed, "--model", first, "--model", second, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "20 images, 1 parts scored, 0 were finished before" in done.stdout
    assert "other: 1 images could not be read" in done.output
    again = pfungst("pool", "score", indexed, "--model", first, "--model", second, "--device", "cpu")
    assert "0 parts scored, 1 were finished before" in again.stdout

    plain = index(tmp_path / "source", tmp_path / "plain")
    models = [
        PoolModel("first", tiny, "pillow-bilinear", 16),
        PoolModel("other", other, "opencv-nearest+jpeg:60", 12),
    ]
    score(plain.folder, models, device="cpu")
    assert scores_of(indexed) == scores_of(plain.folder)


def test_a_librarys_model_brings_its_preprocessing(tmp_path, indexed):
    network = timm.create_model("resnet10t", num_classes=3)
    save_file(network.state_dict(), str(tmp_path / "weights.safetensors"))
    spec = f"timm:resnet10t,checkpoint={tmp_path / 'weights.safetensors'}"
    done = pfungst("pool", "score", indexed, "--model", spec, "--device", "cpu")
    assert done.exit_code == 0, done.output
    record = json.loads((indexed / "scores" / "resnet10t" / "model.json").read_text())
    config = timm.data.resolve_data_config({}, model=network)
    assert record["size"] == config["input_size"][-1]
    assert record["condition"] == f"crop:{config['crop_pct']:g}+pillow-{config['interpolation']}"
    assert record["head"]["classes"] == 3


def test_what_goes_wrong_is_said_before_anything_is_scored(tmp_path, indexed):
    def error(*args):
        return pfungst("pool", *args).exception

    good = f"{SAMPLE}:tiny,size=16"
    absent = error("index", tmp_path / "absent", "--out", tmp_path / "x")
    assert isinstance(absent, DataError)
    assert "there is no" in str(absent)
    assert not (tmp_path / "x").exists()
    assert "pfungst pool index" in str(error("score", tmp_path, "--model", good))
    for workers in (0, 2):  # a model that cannot be loaded is no dead worker
        wrong = error("score", indexed, "--model", f"{SAMPLE}:nothing", "--workers", workers)
        assert isinstance(wrong, ConfigError)
        assert "nothing" in str(wrong)
    twice = error("score", indexed, "--model", good, "--model", good)
    assert isinstance(twice, InputError)
    assert "a name of its own" in str(twice)
    assert not list((indexed / "scores").rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_leaves_what_the_next_run_goes_on_from(tmp_path, workers):
    pool = index(folder_pool(tmp_path / "source", 90), tmp_path / "pool", shard_rows=3)
    command = [sys.executable, "-m", "pfungst", "pool", "score", str(pool.folder)]
    command += ["--model", f"{SAMPLE}:slow,size=16", "--device", "cpu", "--batch-size", "1", "--threads", "1"]
    command += ["--workers", workers]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(SAMPLE.parents[1] / "src"), "OMP_NUM_THREADS": "1"},
    )
    while not part_path(pool, "slow", 1).is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the command gets it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted; finished parts are kept, run the same command to go on"
    done = sum(part_path(pool, "slow", s).is_file() for s in range(pool.shards))
    assert 2 <= done < pool.shards
    again = pfungst(*command[3:])
    assert f"{pool.shards - done} parts scored, {done} were finished before" in again.stdout
    assert not list(pool.folder.rglob("*.part"))
