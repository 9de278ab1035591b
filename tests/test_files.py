"""Files are whole, damage is named, locks are those of living processes, digests are the standard's."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pfungst.errors import CheckpointError, DataError, InputError
from pfungst.files import (
    Lock,
    digest,
    mixed,
    read,
    reading,
    remove_leftovers,
    whole,
    write,
    write_json,
    write_tensors,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, ValueError, SystemExit])
def test_what_stops_the_writing_leaves_the_old_file_whole(tmp_path, trouble):
    file = tmp_path / "a.txt"
    write(file, "old")

    def stopped():
        with whole(file) as part:
            part.write_text("ne")
            assert part.parent == file.parent
            assert file.read_text() == "old"
            raise trouble("stopped")

    with pytest.raises(trouble):
        stopped()
    assert (file.read_text(), names(tmp_path)) == ("old", ["a.txt"])


def test_folders_appear_whole_and_replace_older_ones(tmp_path):
    def make(text, error=None):
        with whole(tmp_path / "f") as part:
            write(part / "a.txt", text)
            if error:
                raise error

    make("first")
    with pytest.raises(ValueError, match="stopped"):
        make("second", ValueError("stopped"))
    assert (tmp_path / "f" / "a.txt").read_text() == "first"
    make("third")
    assert (tmp_path / "f" / "a.txt").read_text() == "third"
    assert names(tmp_path) == ["f"]
    (tmp_path / "x.part").mkdir()
    (tmp_path / "x.part" / "a").write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["f"]


KILLED = """
import os, signal, sys
from pfungst.files import whole
with whole(sys.argv[1]) as part:
    part.write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_before_the_rename_leaves_the_old_file_whole_and_a_leftover_to_remove(tmp_path):
    file = tmp_path / "a.txt"
    write(file, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], env={"PYTHONPATH": "src"})
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.txt"]
    write(file, "new")
    assert file.read_text() == "new"


def test_a_failing_rename_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    write(file, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    for target, message in ((Path, "replace"), (__import__("os"), "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(target, message, full)
            with pytest.raises(DataError, match=r"disk is full.*a\.bin"):
                write(file, b"new")
    assert (file.read_bytes(), names(tmp_path)) == (b"old", ["a.bin"])


@pytest.mark.parametrize("work", [lambda f: write(f, "x"), lambda f: write_tensors(f, {"a": torch.ones(2)})])
def test_what_cannot_be_written_is_named(tmp_path, work):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/a\.x cannot be written.*\n.*choose another"):
        work(tmp_path / "file" / "a.x")


def test_missing_folders_are_made_and_contents_come_back(tmp_path):
    write(tmp_path / "a" / "b" / "ä.txt", "ä\n")
    assert (tmp_path / "a" / "b" / "ä.txt").read_bytes() == "ä\n".encode()
    write_json(tmp_path / "x.json", {"ä": [1.5, None]})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"ä": [1.5, None]}


def test_tensors_that_share_memory_or_are_views_come_back(tmp_path):
    a = torch.arange(12.0).reshape(3, 4)
    given = {
        "a": a,
        "tied": a,
        "t": a.T,
        "row": a[1],
        "half": torch.ones(2).half(),
        "empty": torch.ones(0, 2),
    }
    write_tensors(tmp_path / "w.safetensors", given, format="f/1")
    back = read(tmp_path / "w.safetensors", "")
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype


# --- reading ---------------------------------------------------------------------------------------------


def samples(folder: Path) -> list[Path]:
    values = np.arange(1000, dtype=np.float32)
    np.save(folder / "a.npy", values)
    np.savez_compressed(folder / "a.npz", x=values, y=np.array(["ä"]))
    write_tensors(folder / "a.safetensors", {"x": torch.arange(1000.0)})
    pq.write_table(pa.table({"x": values}), folder / "a.parquet")
    write_json(folder / "a.json", {"format": "f/1", "x": values.tolist()})
    return sorted(folder.iterdir())


def test_every_kind_comes_back(tmp_path):
    for file in samples(tmp_path):
        got = read(file, "remedy")
        x = np.asarray(got if file.suffix == ".npy" else got["x"])
        np.testing.assert_array_equal(x, np.arange(1000))
    assert isinstance(read(tmp_path / "a.npy", ""), np.memmap)
    assert read(tmp_path / "a.npz", "")["y"].tolist() == ["ä"]


@pytest.mark.parametrize("suffix", ["json", "npy", "npz", "parquet", "safetensors"])
def test_damage_is_named_with_its_remedy_and_never_read_as_less(tmp_path, suffix):
    samples(tmp_path)
    file = tmp_path / f"a.{suffix}"
    content = file.read_bytes()
    broken = [content[: len(content) * k // 8] for k in range(8)] + [b"\0" * len(content), b"no such thing"]
    for i, damaged in enumerate([*broken, None]):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="make it again") as error:
            read(file, "make it again", CheckpointError)
        assert f"{file} cannot be read: " in str(error.value), i
        file.write_bytes(content)


def test_flipped_bytes_of_checked_formats_are_noticed(tmp_path):
    samples(tmp_path)
    rng = np.random.default_rng(0)
    content = (tmp_path / "a.npz").read_bytes()
    for place in rng.choice(len(content), 200, replace=False):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(changed)
        try:
            got = read(tmp_path / "a.npz", "again")
        except DataError as error:
            assert "a.npz" in str(error)  # noqa: PT017
        else:  # a byte that says nothing about the values
            assert [v.tolist() for v in got.values()] == [list(range(1000)), ["ä"]]


def test_another_format_and_pickles_are_refused(tmp_path):
    write_json(tmp_path / "a.json", {"format": "g/2"})
    with pytest.raises(InputError, match=r"a\.json has format 'g/2', not 'f/1'\n.*make it"):
        read(tmp_path / "a.json", "make it", InputError, "f/1")
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(DataError, match="has format None"):
        read(tmp_path / "a.json", "make it", format="f/1")
    np.save(tmp_path / "p.npy", np.array([{1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"p\.npy cannot be read"):
        read(tmp_path / "p.npy", "make it")


def test_our_own_errors_and_missing_packages_pass_through_reading():
    for error in (InputError("mine"), ImportError("mine")):
        with pytest.raises(type(error), match="mine"), reading("f", "remedy"):
            raise error


# --- locks -----------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pfungst.files import Lock
lock = Lock(sys.argv[1], "it")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")],
        env={"PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lock_keeps_another_process_out_and_that_of_a_dead_one_is_taken_over(tmp_path, holder):
    with pytest.raises(DataError, match=rf"the store is in use by another process \(number {holder.pid}\)"):
        Lock(tmp_path / ".lock", "the store")
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with Lock(tmp_path / ".lock", "the store"):
        assert (tmp_path / ".lock").read_text() not in ("", str(holder.pid))
    assert names(tmp_path) == []


def test_a_lock_is_released_after_an_error_and_lets_its_own_process_in(tmp_path):
    with pytest.raises(ValueError, match="x"), Lock(tmp_path / "n" / ".lock", "it"):
        raise ValueError("x")
    assert names(tmp_path / "n") == []
    first = Lock(tmp_path / ".lock", "it")
    with Lock(tmp_path / ".lock", "it"):
        pass
    first.release()
    first.release()


def test_one_of_many_processes_at_a_time(tmp_path):
    code = (
        "import sys, time\nfrom pfungst.files import Lock\nfrom pfungst.errors import DataError\n"
        "end, n = time.time() + 1.5, 0\n"
        "while time.time() < end:\n"
        "    try:\n"
        "        with Lock(sys.argv[1] + '/.lock', 'it'):\n"
        "            open(sys.argv[1] + '/inside', 'x').close()\n"
        "            __import__('os').unlink(sys.argv[1] + '/inside')\n"
        "            n += 1\n"
        "    except DataError:\n"
        "        pass\n"
        "print(n)"
    )
    many = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={"PYTHONPATH": "src"}, stdout=-1)
        for _ in range(3)
    ]
    counts = [int(p.communicate()[0]) for p in many]
    assert [p.returncode for p in many] == [0, 0, 0]  # no two were inside at once: "x" would have failed
    assert sum(counts) > 3


def test_stores_are_locked_against_another_process(tmp_path):
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.workspace import Workspace

    config = AnomalyConfig.build(data="x", out=tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")],
        env={"PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="in use by another process"):
            Workspace(config)
    finally:
        process.kill()
        process.wait()
    started = time.monotonic()
    Workspace(config).finish(set())
    assert time.monotonic() - started < 5
    assert names(tmp_path) == []


# --- digests ---------------------------------------------------------------------------------------------


def test_digests_are_sha256_of_the_bytes():
    x = torch.arange(6.0).reshape(2, 3)
    expected = hashlib.sha256("ä".encode() + b"b" + x.numpy().tobytes() + b"\x01").hexdigest()
    assert digest("ä", b"b", x, torch.tensor(True)) == expected
    assert digest("ä", b"b", x, torch.tensor([True]), length=8) == expected[:8]
    assert digest(x.T) == hashlib.sha256(np.ascontiguousarray(x.numpy().T).tobytes()).hexdigest()
    assert digest(torch.ones(0), x.bfloat16()) == digest(x.bfloat16().view(torch.int16))
    assert digest(x.requires_grad_()) == digest(x.detach())


def test_mixed_numbers_are_blake2b():
    assert mixed("0/a") == int.from_bytes(hashlib.blake2b(b"0/a", digest_size=8).digest(), "little")
    assert len({mixed(f"{i}") for i in range(1000)}) == 1000
