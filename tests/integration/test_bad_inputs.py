"""Hundreds of bad inputs through the command line: exit code 2 and a named error, or right; nothing half-written.

Those of the fuzzers are damaged at random from a fixed seed. Every command fails at the latest when all of its
input is read (a column, a checkpoint or a gate that is not there), so that nothing is computed.
"""

import json
import os
import pickle
import random
import re
import shutil
import socket
import sqlite3
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import label_sample
from factories import mini_mvtec, png_bomb, truncated_jpeg
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.run import run as audit
from pfungst.cli import main
from pool_sample import Tiny, encoded, folder_pool, parquet_pool, tar_pool

LONG = "n" * 5000
FUZZED = 32  # damaged files of each kind
SAID = re.compile("^(pfungst: |Usage: |Error: )", re.MULTILINE)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop\n%%EOF\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound inputs of every kind, from which the bad ones are made."""
    root = tmp_path_factory.mktemp("sound")
    data = mini_mvtec(root / "data", train=4, good=3, defective=2, size=24)
    audit(AnomalyConfig.build(data=data, size=16, seeds=1, out=root / "audit"))
    label_sample.image_task(root / "task", 2)
    tar_pool(root / "tar", 6, shards=1)
    parquet_pool(root / "parquet", 6)
    folder_pool(root / "folder", 4)
    save_file({k: v.contiguous() for k, v in Tiny().state_dict().items()}, root / "tiny.safetensors")
    torch.save(Tiny().state_dict(), root / "tiny.pt")
    rows = ["path,label,split,mask"]
    rows += [f"{p.relative_to(root)},good,train," for p in sorted((data).rglob("train/good/*.png"))]
    rows += [f"{p.relative_to(root)},good,test," for p in sorted((data).rglob("test/good/*.png"))]
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    (root / "pairs.tsv").write_text("text a\ttext b\tscore\n" + "one\ttwo\t1\nthree\tfour\t0\n" * 3)
    main_ok(["pool", "index", root / "folder", "-o", root / "pool"])
    return root


def main_ok(words):
    with pytest.raises(SystemExit) as done:
        main(list(map(str, words)))
    assert done.value.code == 0


def refused(capsys, words, says="", fine=(2,)):
    """Run a command that must exit with 2 and a message that was written for it."""
    with pytest.raises(SystemExit) as done:
        main(list(map(str, words)))
    text = capsys.readouterr().err
    assert done.value.code in fine, (done.value.code, text)
    assert "Traceback" not in text
    assert "not foreseen" not in text, text
    assert done.value.code == 0 or SAID.search(text), text
    assert len(text) < 20_000
    assert says in text, text
    return text


def untouched(out):
    """Nothing is there, or nothing that looks like a result or is half-written."""
    assert not [p for p in out.rglob("*") if p.name in ("result.json", "report.html") or p.suffix == ".part"]


# --- options -----------------------------------------------------------------------------------------------

OPTIONS = [
    f"audit anomaly DATA --{option} {value}"
    for option, values in {
        "size": ("0", "-1", "1.5", "x", "99999999", "nan"),
        "seeds": ("0", "-3", "101", "x"),
        "seed": ("-1", "x"),
        "device": ("gpu", "cuda:99", "tpu", "''"),
        "workers": ("-1", "x", "1.5"),
        "model": ("nope", "d2neighbors:q=1", "patchcore:checkpoint=none.pt", "d2neighbors:k", ":", "=", "none.py:f", LONG),
        "original": ("opencv", "+", "pillow", LONG),
        "deployed": ("jpeg:0", "jpeg:101", "jpeg:x", "logo:none.png", "logo:DATA", "logo:", "blur:4", LONG),
        "mitigate": ("blurr", "blur:10,2", "blur:nan,2", "lowpass:0", "lowpass:-1", "lowpass:x", LONG),
        "groups": ("absent", LONG),
        "category": ("absent", LONG, ".."),
        "config": ("none.toml", "DATA", LONG),
        "out": ("/proc/pfungst", "/dev/null/x", f"/tmp/{LONG}"),
        "ray": ("nowhere", "host:port"),
        "nope": ("1",),
    }.items()
    for value in values
] + [
    "audit", "audit nope", "audit anomaly", "audit anomaly nowhere", f"audit anomaly {LONG}", "audit anomaly /dev/null",
    "audit anomaly DATA DATA", "audit similarity", "audit similarity --images nowhere --encoder timm:resnet18",
    "audit similarity --images DATA --encoder nope", "audit similarity --texts nowhere.tsv --encoder sentence-transformers:x",
    "audit classifier", "audit classifier --model nope --train DATA --val DATA",
    "audit classifier --model timm:nope --train nowhere --val nowhere", "discover", "discover --model nope --images DATA",
    "discover --model timm:nope --images nowhere", "check", "check nowhere", "check DATA", "check AUDIT --max auroc",
    "check AUDIT --max auroc=x", "check AUDIT --max =1", "check AUDIT --max nope=1", f"check AUDIT --max {LONG}=1",
    f"check {LONG}", "report nowhere", "report DATA", f"report {LONG}", "report /dev/null", "pool", "pool index",
    "pool index nowhere -o x", "pool index DATA/x.txt -o x", f"pool index {LONG} -o x", "pool index FOLDER -o /proc/x",
    "pool score nowhere --model timm:resnet18", "pool score POOL --model nope", "pool score POOL --model =",
    "pool score POOL --model a/b=pool_sample:tiny", "pool score POOL --model x=none.py:f", "pool score POOL --model x=pool_sample:nope",
    "pool score POOL --model x=pool_sample:tiny,checkpoint=none.pt", "pool score POOL --model x=pool_sample:tiny,size=x",
    "pool score POOL --model x=pool_sample:tiny,condition=nope", "pool score POOL --model x=pool_sample:tiny --device gpu",
    "pool score POOL --model x=pool_sample:tiny --workers x", "pool search POOL --npca nowhere --class 0 --component 0",
    "pool search POOL --npca AUDIT --class 0 --component 0", "pool export nowhere -o x", "pool export DATA -o x", "pool export TASK -o x",
    "label nowhere --labeller a", "label DATA --labeller a", "label TASK", "label TASK --labeller ''", f"label TASK --labeller {LONG}",
    "label TASK --labeller a --labeller A", "label TASK --labeller adjudicator", "label TASK --labeller a --host no.such.host.invalid",
    "label TASK --labeller a --port 99999", "label TASK --labeller a --port x", "demo --only nope", "claims nope", "nope", "--nope",
    "compare", "compare AUDIT", "compare AUDIT nowhere", "compare nowhere AUDIT", "compare AUDIT DATA", f"compare {LONG} AUDIT",
    "compare AUDIT AUDIT --fail-on nope", "compare AUDIT AUDIT --seed x", "compare AUDIT AUDIT --seed -1",
    "compare AUDIT AUDIT --out /proc/pfungst", "compare AUDIT AUDIT --out /dev/null/x", "watch", "watch AUDIT", "watch AUDIT nowhere",
    "watch nowhere DATA", "watch DATA DATA", "watch AUDIT FOLDER", "watch AUDIT FOLDER --entry nope", f"watch AUDIT {LONG}",
    "watch AUDIT DATA --device tpu", "watch AUDIT DATA --fail-on nope", "watch AUDIT /dev/null", "watch AUDIT TASK/label-task.json",
    "export", "export AUDIT", "export nowhere --onnx", "export DATA --onnx", f"export {LONG} --onnx", "export AUDIT --onnx --entry nope",
    "export AUDIT --entry MENDED --state-dict --out /proc/x", "export AUDIT --entry MENDED --state-dict --out /dev/null/x",
    "export AUDIT --entry MENDED --torch-export --out TASK/label-task.json", "export AUDIT --format onnx",
    "reproduce", "reproduce nope", f"reproduce {LONG}", "reproduce 001-fig1", "reproduce 001-table2", "reproduce 001-table2 --tiny",
    "reproduce 001-table2 --data nowhere", "reproduce 001-table2 --data TASK", "reproduce 001-table2 --data DATA --seeds 0",
    "reproduce 001-table2 --data DATA --device tpu", "reproduce 001-table2 --data DATA --out /proc/x",
    "reproduce 001-table2 --data DATA --models nope", "reproduce 001-table1 --data nowhere", "reproduce 001-table1 --data DATA --models nope",
    "reproduce 001-series --data nowhere.csv", "reproduce 001-series --data TABLE", "reproduce 001-series --data DATA",
    "reproduce 003-table1 --data DATA --models timm:nope", "reproduce 003-table1 --data DATA --people nowhere.csv",
] + [
    f"discover --images DATA {words}"
    for words in (
        "--detector nope", "--encoder nope", "--detector kde --encoder small", "--detector kde --layer fc", "--encoder small --witness x",
        "--detector kde --size 3", "--detector kde --size x", "--detector kde --per-class 5", "--detector kde --per-class nan",
        "--detector kde --most 0", "--detector kde --changed 1", "--detector kde --seed -1", "--detector kde --device tpu",
        "--detector kde --group absent", "--detector kde --out /proc/x", "--detector kde --out /dev/null/x", "--detector kde --original nope",
        "--detector kde --fail-on nope", "--detector kde --checkpoint nowhere.pt", "--detector kde --classes 1", "--detector kde --workers 2",
        "--detector d2neighbors:q=1", "--detector kde --config nowhere.toml", "--detector kde --category absent", "--model none.py:f",
        "--model pool_sample:nope", "--model pool_sample:tiny --class-names nowhere.json --size 16", "--model pool_sample:tiny --layer nope",
        "--model pool_sample:tiny --checkpoint nowhere.pt --size 16",
    )
] + [
    "discover --images nowhere --detector kde", "discover --images TABLE --detector kde --label-column nope", f"discover --images {LONG} --detector kde",
    "discover --images FOLDER --detector kde", "discover --images TASK --encoder small",
]  # fmt: skip


@pytest.mark.parametrize("line", OPTIONS, ids=lambda line: line.replace(LONG, "LONG").replace("/", "|"))
def test_options(sound, tmp_path, capsys, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    words = ["" if w == "''" else w for w in line.split()]
    places = {n: sound / n for n in ("data", "audit", "folder", "pool", "task")}
    places |= {"table": sound / "table.csv", "mended": Path(next((sound / "audit/mended").iterdir()).name)}
    for name, place in places.items():
        words = [w.replace(name.upper(), str(place)) for w in words]
    refused(capsys, words, fine=(2,))
    untouched(tmp_path)


# --- images ------------------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
IMAGES = {
    "postscript": POSTSCRIPT,
    "empty": b"",
    "text": b"no image",
    "zeros": bytes(5000),
    "bomb": png_bomb(),
    "truncated": truncated_jpeg(),
    "header": b"\x89PNG\r\n\x1a\n" + HEADER,
    "rubbish inside": b"\x89PNG\r\n\x1a\n" + HEADER + chunk(b"IDAT", b"rubbish"),
    "cut": encoded(0)[:-40],
    "gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00",
    "tiff": b"II*\x00\xff\xff\xff\x7f",
    "pickle": pickle.dumps({"a": 1}),
    "pdf": b"%PDF-1.7\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "fli": b"\x00\x00\x00\x00\x11\xaf" + bytes(200),
}


@pytest.mark.parametrize("name", [*IMAGES, "folder", "pipe", "socket", "loop", "sparse", "nobody"])
def test_images(sound, tmp_path, capsys, name):
    data = shutil.copytree(sound / "data", tmp_path / "data")
    file = sorted(data.rglob("train/good/*.png"))[0]
    file.unlink()
    if name in IMAGES:
        file.write_bytes(IMAGES[name])
    elif name == "folder":
        file.mkdir()
    elif name == "pipe":
        os.mkfifo(file)
    elif name == "socket":
        short = Path(os.path.relpath(file))
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(short))
            except OSError:
                pytest.skip("the path is too long for a socket")
    elif name == "loop":
        file.symlink_to(file.name)
    elif name == "sparse":
        with open(file, "wb") as stream:
            stream.write(encoded(0))
            stream.truncate(2**40)
    else:
        file.symlink_to("nobody.png")
    words = ["audit", "anomaly", data, "--size", 16, "--seeds", 1, "-o", tmp_path / "out"]
    if name in ("folder", "pipe", "socket", "loop", "nobody"):  # none of these is listed as an image
        refused(capsys, [*words, "--groups", "absent"], "absent")
    elif text := refused(capsys, words):
        assert file.name in text
        untouched(tmp_path / "out")


# --- files of every kind, damaged by hand -------------------------------------------------------------------

TEXTS = {
    "empty": b"",
    "blank": b"\n\n\n",
    "zero byte": b"path,label\na\x00b,good\n",
    "binary": bytes(range(256)),
    "latin-1": "path,label\nä.png,good\n".encode("latin-1"),
    "header only": b"path,label,split\n",
    "quote": b'path,label\n"a,good\n',
    "quotes": b'path,label\n"a"b,good\n',
    "ragged": b"path,label\na,good,x\nb\n",
    "twice": b"path,path\na,b\n",
    "no path": b"name,label\na,good\n",
    "no file": b"path,label\nnone.png,good\n",
    "long name": b"path,label\n" + b"n" * 5000 + b".png,good\n",
    "climbing": b"path,label\n../../../../etc/passwd,good\n",
    "utf-16": "path,label\na,good\n".encode("utf-16")[:-1],
    "wide": b"," * 200_000 + b"\n",
}
TOMLS = {
    "rubbish": b"= = =",
    "latin-1": 'out = "ä"'.encode("latin-1"),
    "deep": b"data = " + b"[" * 100_000,
    "deep and closed": b"a = " + b"[" * 5000 + b"]" * 5000,
    "zero in a path": b'data = "a\\u0000b"',
    "long path": f'data = "{LONG}"'.encode(),
    "number": b"data = 1e999",
    "list": b"data = [1, 2]",
    "table": b"[data]\na = 1",
    "date": b"data = 1979-05-27",
    "unknown": b'data = "x"\ndeploy = "y"',
    "twice": b'data = "x"\ndata = "y"',
    "huge": b'data = "x"\nseeds = 99999999999999999999999999',
    "nan": b'data = "x"\nsize = nan',
    "zero byte": b'data = "x"\x00',
}
JSONS = {
    "empty": b"",
    "cut": b'{"schema_version": "pfungst.result/2", "kind"',
    "null": b"null",
    "list": b"[]",
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "deep and closed": b'{"kind": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "digits": b'{"kind": ' + b"9" * 6000 + b"}",
    "binary": bytes(range(256)),
    "old": b'{"schema_version": "pfungst.result/1"}',
    "kind": b'{"schema_version": "pfungst.result/2", "kind": "nope"}',
    "kind of kind": b'{"schema_version": "pfungst.result/2", "kind": [1]}',
    "bare": b'{"schema_version": "pfungst.result/2", "kind": "anomaly"}',
    "surrogate": b'{"schema_version": "\\ud800", "kind": "\\ud800"}',
    "npz": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", TEXTS)
def test_tables(sound, tmp_path, capsys, name):
    file = tmp_path / "table.csv"
    file.write_bytes(TEXTS[name])
    refused(capsys, ["audit", "anomaly", file, "-o", tmp_path / "out", "--size", 16])
    refused(
        capsys,
        [
            "audit",
            "similarity",
            "--texts",
            file,
            "--encoder",
            "sentence-transformers:none",
            "-o",
            tmp_path / "out",
        ],
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TOMLS)
def test_configurations(tmp_path, capsys, name):
    file = tmp_path / "audit.toml"
    file.write_bytes(TOMLS[name])
    refused(capsys, ["audit", "anomaly", "--config", file])
    assert [p.name for p in tmp_path.iterdir()] == ["audit.toml"]


@pytest.mark.parametrize("name", JSONS)
def test_results_and_tasks(tmp_path, capsys, name):
    (tmp_path / "result.json").write_bytes(JSONS[name])
    (tmp_path / "label-task.json").write_bytes(JSONS[name])
    (tmp_path / "index.json").write_bytes(JSONS[name])
    for words in (
        ["check", tmp_path, "--max", "a=1"],
        ["report", tmp_path],
        ["pool", "export", tmp_path, "-o", tmp_path / "x"],
    ):
        refused(capsys, words)
    refused(capsys, ["label", tmp_path, "--labeller", "a", "--port", 0])
    refused(capsys, ["pool", "score", tmp_path, "--model", "x=pool_sample:tiny"])
    refused(capsys, ["pool", "search", tmp_path, "--npca", tmp_path, "--class", 0, "--component", 0])
    assert len(list(tmp_path.iterdir())) == 3


CHECKPOINTS = {
    "empty.pt": b"",
    "text.pt": b"no checkpoint",
    "pickle.pt": pickle.dumps({"a": Path("x")}),
    "code.pt": b"cos\nsystem\n(S'touch hacked'\ntR.",
    "empty.safetensors": b"",
    "long header.safetensors": struct.pack("<Q", 2**62) + b"{}",
    "deep header.safetensors": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "no header.safetensors": struct.pack("<Q", 2) + b"[]",
    "outside.safetensors": struct.pack("<Q", 64)
    + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(64)
    + b"1",
    "overlap.safetensors": struct.pack("<Q", 64)
    + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'.ljust(64)
    + b"1234",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(sound, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(CHECKPOINTS[name])
    shutil.copytree(sound / "pool", tmp_path / "pool")
    refused(
        capsys,
        ["pool", "score", tmp_path / "pool", "--model", f"x=pool_sample:tiny,size=16,checkpoint={name}"],
        name,
    )
    assert not (tmp_path / "pool" / "scores").exists() or not list(
        (tmp_path / "pool" / "scores").rglob("*.json")
    )
    assert not (tmp_path / "hacked").exists()


def test_sparse_and_strange_files_in_place_of_texts(tmp_path, capsys):
    for name in ("t.csv", "t.toml", "result.json"):
        with open(tmp_path / name, "wb") as stream:
            stream.truncate(2**40)
    os.mkfifo(tmp_path / "p.csv")
    os.mkfifo(tmp_path / "p.toml")
    for kind in "tp":
        refused(capsys, ["audit", "anomaly", tmp_path / f"{kind}.csv"], f"{kind}.csv")
        refused(capsys, ["audit", "anomaly", "--config", tmp_path / f"{kind}.toml"], f"{kind}.toml")
    refused(capsys, ["check", tmp_path, "--max", "a=1"], "result.json")


@pytest.mark.parametrize("how", ["text", "empty table", "other database", "cut"])
def test_answers_files(sound, tmp_path, capsys, how):
    shutil.copytree(sound / "task", tmp_path / "task")
    file = tmp_path / "task" / "labels.sqlite"
    for own in file.parent.glob("labels.sqlite*"):  # another test may have exported there
        own.unlink()
    if how == "text":
        file.write_text("no database" * 100)
    elif how == "other database":
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE events (a)")
        db.close()
    else:
        refused(capsys, ["pool", "export", tmp_path / "task", "-o", tmp_path / "x"])
        file.write_bytes(file.read_bytes()[:3000] if how == "cut" else b"SQLite format 3\0" + bytes(84))
    refused(capsys, ["pool", "export", tmp_path / "task", "-o", tmp_path / "x"])


# --- what an audit wrote, damaged afterwards ---------------------------------------------------------------

HARMS = {
    "missing": lambda file, _: file.unlink(),
    "empty": lambda file, _: file.write_bytes(b""),
    "text": lambda file, _: file.write_text("no such file"),
    "cut": lambda file, content: file.write_bytes(content[: len(content) // 2]),
    "other": lambda file, _: OTHERS[file.suffix](file),
    "folder": lambda file, _: (file.unlink(), file.mkdir()),
}
OTHERS = {  # sound files of their kind that hold something else
    ".json": lambda file: file.write_text(
        '{"format": "pfungst.mended/1", "schema_version": "pfungst.result/2"}'
    ),
    ".npz": lambda file: np.savez(file, a=np.zeros(3)),
    ".safetensors": lambda file: save_file({"a": torch.zeros(3)}, file),
}
READERS = {
    "result.json": ("check", "report", "compare"),
    "arrays": ("report", "compare"),
    "mended.json": ("export", "watch"),
    "detector.json": ("export", "watch"),
    "weights.safetensors": ("export", "watch"),
    "sample.safetensors": ("export",),
    "reference.npz": ("watch",),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", READERS)
def test_damaged_audits(sound, tmp_path, capsys, name, harm):
    audit = shutil.copytree(sound / "audit", tmp_path / "audit")
    (audit / "report.html").unlink(missing_ok=True)
    mended = next((audit / "mended").iterdir())
    file = {"result.json": audit / name, "arrays": next((audit / "arrays").iterdir())}.get(
        name, mended / name
    )
    HARMS[harm](file, file.read_bytes())
    commands = {
        "check": ["check", audit, "--max", "absent=1"],
        "report": ["report", audit],
        "compare": ["compare", sound / "audit", audit, "--out", tmp_path / "out"],
        "export": ["export", audit, "--entry", mended.name, "--state-dict", "--out", tmp_path / "out"],
        "watch": ["watch", audit, sound / "data", "--entry", mended.name, "--out", tmp_path / "out"],
    }
    for command in READERS[name]:
        text = refused(capsys, commands[command])
        gone = name == "mended.json" and harm == "missing"  # then there is no such entry
        assert gone or file.name in text or str(mended) in text or "absent" in text, text
        untouched(tmp_path / "out")
        assert not (audit / "report.html").exists()


# --- fuzzers -----------------------------------------------------------------------------------------------


def damaged(content, rng):
    """A file with bytes flipped, cut out, doubled, or its end lost."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 20])):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(5):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + rng.randrange(1, 50)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 200)]
            case _:
                data[at:at] = rng.choice(
                    [b"\0", b"\xff\xfe", b'"', b",", b"\n", b"[" * 3000, b"{", b"9" * 400, b"\xe2\x80\xa8"]
                )
    return bytes(data)


FUZZ = {
    "csv": ("table.csv", ["audit", "anomaly", "FILE", "--groups", "absent"]),
    "tsv": ("pairs.tsv", ["audit", "similarity", "--texts", "FILE", "--encoder", "sentence-transformers:none"]),
    "toml": ("audit.toml", ["audit", "anomaly", "--config", "FILE", "--groups", "absent"]),
    "result": ("audit/result.json", ["check", "FILE", "--max", "absent=1"]),
    "task": ("task/label-task.json", ["pool", "export", "FOLDER", "-o", "OUT"]),
    "answers": ("task/labels.sqlite", ["pool", "export", "FOLDER", "-o", "OUT"]),
    "tar": ("tar/shard-0.tar", ["pool", "index", "FILE", "-o", "OUT"]),
    "parquet": ("parquet/data-0.parquet", ["pool", "index", "FILE", "-o", "OUT"]),
    "parquet set": ("parquet/data-0.parquet", ["audit", "anomaly", "FILE", "--groups", "absent"]),
    "index": ("pool/index.json", ["pool", "score", "FOLDER", "--model", "pool_sample:nope"]),
    "shard": ("pool/index/part-000000.parquet", ["pool", "search", "POOL", "--npca", "none", "--class", "0", "--component", "0"]),
    "safetensors": ("tiny.safetensors", ["pool", "score", "POOL", "--model", "x=pool_sample:tiny,size=16,checkpoint=FILE"]),
    "pt": ("tiny.pt", ["pool", "score", "POOL", "--model", "x=pool_sample:tiny,size=16,checkpoint=FILE"]),
    "arrays": ("audit/arrays/*.npz", ["report", "FOLDER"]),
    "compared": ("audit/arrays/*.npz", ["compare", "SOUND", "FOLDER", "--out", "OUT"]),
    "mended": ("audit/mended/*/mended.json", ["export", "FOLDER", "--entry", "MENDED", "--state-dict", "--out", "OUT"]),
    "sample": ("audit/mended/*/sample.safetensors", ["export", "FOLDER", "--entry", "MENDED", "--state-dict", "--out", "OUT"]),
    "reference": ("audit/mended/*/reference.npz", ["watch", "FOLDER", "DATA", "--entry", "MENDED", "--out", "OUT"]),
}  # fmt: skip


@pytest.mark.parametrize("count", [3, pytest.param(FUZZED, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FUZZ)
def test_fuzzed(sound, tmp_path, capsys, monkeypatch, kind, count):
    monkeypatch.chdir(tmp_path)
    name, words = FUZZ[kind]
    base = shutil.copytree(sound, tmp_path / "base")
    if kind == "toml":
        fields = {
            "data": str(sound / "data"),
            "size": 16,
            "model": ["d2neighbors"],
            "deployed": "pillow-bilinear+jpeg:60",
        }
        (base / name).write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in fields.items()))
    if kind == "answers":
        refused(capsys, ["pool", "export", base / "task", "-o", tmp_path / "x"])
    file = next(base.glob(name))
    folder = {
        "task": base / "task",
        "answers": base / "task",
        "index": base / "pool",
        **dict.fromkeys(("arrays", "compared", "mended", "sample", "reference"), base / "audit"),
    }.get(kind, base)
    content, rng = file.read_bytes(), random.Random(kind)
    for number in range(count):
        file.write_bytes(damaged(content, rng))
        for old in folder.glob("labels.sqlite-*"):
            old.unlink()
        out = tmp_path / f"out-{number}"
        places = {
            "FILE": file,
            "FOLDER": folder,
            "OUT": out,
            "POOL": base / "pool",
            "SOUND": sound / "audit",
            "DATA": sound / "data",
        }
        places["MENDED"] = Path(file.parent.name)
        given = []
        for word in words:
            for place, path in places.items():
                word = word.replace(place, str(path))
            given.append(word)
        if SAID.search(refused(capsys, given, fine=(0, 2))):
            untouched(out)
        shutil.rmtree(base / "pool" / "scores", ignore_errors=True)
