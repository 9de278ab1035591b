"""kill -9 at random moments, ten times each: the same result after it, and no process left after five seconds."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import classifier_factory
import similarity_factory
from factories import mini_mvtec
from label_sample import answer_under_load, image_task, server
from pfungst.label import Study
from pool_sample import folder_pool, scores_of

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("PFUNGST_KILLS", 10))
SECONDS = 5.0
pytestmark = pytest.mark.slow

FEATURES = """
import sys
from pathlib import Path
from pool_sample import Tiny
from pfungst.audit.images import Labelled
from pfungst.conditions import Condition
from pfungst.data import Item
from pfungst.spurious import extract_features
if __name__ == "__main__":
    items = [Item(f.name, f) for f in sorted(Path(sys.argv[1]).rglob("*.png"))]
    data = Labelled(items, [i % 3 for i in range(len(items))], Condition.parse("pillow-bilinear"), 16)
    extract_features(Tiny(), data, sys.argv[2], batch_size=4, commit_every=1, device="cpu", workers=2, progress=False)
"""


def command(kind, root):
    """The words of a run into OUT, of data made below a folder."""
    pfungst = [sys.executable, "-m", "pfungst"]
    if kind == "anomaly":
        data = mini_mvtec(root / "data", train=8, good=5, defective=3, size=40)
        return [
            *pfungst,
            "audit",
            "anomaly",
            data,
            "--size",
            32,
            "--seeds",
            3,
            "--model",
            "d2neighbors",
            "--model",
            "patchcore",
            "--out",
            "OUT",
        ]
    if kind == "similarity":
        listing = similarity_factory.mini_images(root / "data")
        words = "--encoder small:4 --size 16 --groups scanner --seeds 3 --folds 3 --patches 4 --explain 8 --pairs 1 --sweep 1,2"
        return [
            *pfungst,
            "audit",
            "similarity",
            "--images",
            listing,
            *words.split(),
            "--workers",
            2,
            "--out",
            "OUT",
        ]
    if kind == "classifier":
        toy = classifier_factory.make(root / "toy")
        words = "--size 16 --candidates 4 --shown 3 --steps 20 --batch-size 8 --workers 2 --out OUT"
        return [
            *pfungst,
            "audit",
            "classifier",
            "--model",
            f"{toy / 'toy.py'}:biased",
            "--train",
            toy / "train",
            "--val",
            toy / "val",
            *words.split(),
        ]
    if kind == "discovery":
        toy = classifier_factory.make(root / "toy")
        words = "--size 16 --batch-size 8 --changed 8 --out OUT"
        return [*pfungst, "discover", "--model", f"{toy / 'toy.py'}:biased", "--images", toy / "val", *words.split()]  # fmt: skip
    folder_pool(root / "files", 40)
    if kind == "features":
        (root / "features.py").write_text(FEATURES)
        return [sys.executable, root / "features.py", root / "files", "OUT"]
    subprocess.run(
        [*pfungst, "pool", "index", root / "files", "-o", root / "pool"], check=True, env=environment()
    )
    pool = json.loads((root / "pool" / "index.json").read_text())
    assert pool["rows"] == 40
    return [*pfungst, "pool", "score", "OUT", "--model", "tiny=pool_sample:tiny,size=16,condition=pillow-bilinear", "--workers", 2, "--batch-size", 4]  # fmt: skip


def environment(**more):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | more


def living(mark):
    """Processes that have the mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            pass
    return found


def numbers(kind, out):
    """What two runs must have alike."""
    if kind == "features":
        return [(out / f).read_bytes() for f in ("features.npy", "index.parquet", "store.json")]
    if kind == "pool":
        return scores_of(out)
    result = json.loads((out / "result.json").read_text())
    result = {k: v for k, v in result.items() if k not in ("created", "seconds", "config", "notes")}
    return result, sorted(str(p.relative_to(out)) for p in out.rglob("*") if "embeddings" not in p.parts)


@pytest.mark.parametrize("kind", ["anomaly", "similarity", "classifier", "discovery", "features", "pool"])
def test_killed_runs_give_the_same_result_and_leave_no_process(tmp_path, kind):
    words, chance = command(kind, tmp_path), random.Random(kind)
    wait = {"POOL_SAMPLE_WAIT": "0.1"} if kind in ("features", "pool") else {}

    def start(out, *more, **variables):
        given = [str(tmp_path / out) if w == "OUT" else str(w) for w in words]
        return subprocess.Popen([*given, *more], env=environment(**variables), stdout=subprocess.DEVNULL)

    if kind == "pool":
        for name in ("whole", "killed"):
            shutil.copytree(tmp_path / "pool", tmp_path / name)
    begun = time.monotonic()
    assert start("whole", **wait).wait(300) == 0
    lasts = time.monotonic() - begun
    resume = ["--resume"] if kind not in ("features", "pool") else []
    killed = number = 0
    while killed < KILLS and number < 3 * KILLS:
        number += 1
        mark = f"PFUNGST_KILL_MARK={os.getpid()}-{kind}-{number}"
        job = start("killed", *resume, PFUNGST_KILL_MARK=mark.partition("=")[2], **wait)
        time.sleep(lasts * chance.uniform(0.2, 0.95) / (1 + number % 3))
        alive = job.poll() is None
        killed += alive
        job.kill()
        job.wait()
        until = time.monotonic() + SECONDS
        while (left := living(mark)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left
        if not alive:  # it was finished: begin anew, so that there is something to kill
            shutil.rmtree(tmp_path / "killed")
            if kind == "pool":
                shutil.copytree(tmp_path / "pool", tmp_path / "killed")
    print(f"{kind}: {killed} of {number} runs killed, a whole one takes {lasts:.1f} s; no process left")
    assert killed == KILLS
    assert start("killed", *resume).wait(300) == 0
    assert numbers(kind, tmp_path / "killed") == numbers(kind, tmp_path / "whole")


@pytest.mark.parametrize("how", ["killed", "deleted", "replaced"])
def test_no_acknowledged_answer_is_lost(tmp_path, how):
    """The file may vanish under load: what was acknowledged before is in it, and nothing after."""
    folder, acknowledged = tmp_path / "task", []
    image_task(folder, 400)
    file, kept = folder / "labels.sqlite", tmp_path / "kept"
    for number in range(KILLS):
        with server(folder, "anna", "ben") as running:
            threads = answer_under_load(running, ("anna", "ben"), 8 + number, acknowledged)
            if how != "killed":
                for end in ("", "-wal", "-shm"):
                    os.link(f"{file}{end}", f"{kept}{end}")
                if how == "replaced":
                    shutil.copy(kept, tmp_path / "other")
                    os.replace(tmp_path / "other", file)
                else:
                    file.unlink()
                for thread in threads:
                    thread.join(60)
                    assert not thread.is_alive()
            running.process.kill()
            for thread in threads:
                thread.join()
        if how != "killed":
            for end in ("", "-wal", "-shm"):
                Path(f"{file}{end}").unlink(
                    missing_ok=True
                )  # renaming onto another link of the same file does nothing
                os.replace(f"{kept}{end}", f"{file}{end}")
        study = Study(folder, ["anna", "ben"])
        stored = {(e.person, str(study.index[e.item]), e.sequence) for e in study.store.since(0)}
        assert stored >= set(acknowledged)
        study.close()
    print(f"label, {how}: {len(acknowledged)} answers acknowledged over {KILLS} kills, none lost")
    assert len(acknowledged) == len(set(acknowledged)) > 8 * KILLS
