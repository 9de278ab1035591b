"""Several models in one audit: what is kept of each, what is computed again, and the memory of all."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import save_file

import pfungst.audit.classifier.run as classifier
import pfungst.encoders.encoder as encoders
import pfungst.spurious.features as features
from classifier_factory import make
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.compare_models import run_models
from pfungst.audit.result import load
from pfungst.errors import ConfigError
from similarity_factory import config as encoder_config
from similarity_factory import mini_images

RELIANCE = {"a": 40.0, "b": 20.0, "c": 0.0}  # on the mark, by which a pass is told whose it is
CLASSES, PASSES = [0, 1, 2], [144, 30, 8]  # training, validation and spurious images


def write(folder, result):
    """A page without its contents, which do not matter here."""
    (folder / "report.html").write_text(result.title)


def weights(root, name, reliance):
    scope = {}
    exec((root / "toy.py").read_text(), scope)
    file = root / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in scope["Net"](reliance).state_dict().items()}, str(file))
    return file


@pytest.fixture
def root(tmp_path):
    folder = make(tmp_path / "data")
    for name, reliance in RELIANCE.items():
        weights(folder, name, reliance)
    return folder


@pytest.fixture
def computed(monkeypatch):
    """Images of each pass and classes explained, by the model's reliance on the mark; ends a run at a word."""
    seen = {"passes": [], "classes": [], "end": None}
    real, explain = features.run, classifier.Explainer.__call__

    def note(kind, of, what):
        if seen["end"] == (kind, of, what):
            seen["end"] = None
            raise KeyboardInterrupt
        seen[kind].append((of, what))

    def counted(work, rows, *args, **options):
        rows = list(rows)
        if rows:
            note("passes", float(work.compute.__self__.head.weight[1, 3]), len(rows))
        return real(work, rows, *args, **options)

    def explained(self, class_):
        note("classes", float(self.study.head.weight[1, 3]), class_)
        return explain(self, class_)

    monkeypatch.setattr(features, "run", counted)
    monkeypatch.setattr(classifier.Explainer, "__call__", explained)
    return seen


def audit(root, out, names="ab", **options):
    spec = ",".join(f"{root / 'toy.py'}:clean,checkpoint={root / f'{n}.safetensors'}" for n in names)
    base = {
        "train": root / "train",
        "val": root / "val",
        "spurious": root / "spurious",
        "size": 16,
        "steps": 0,
    }
    base |= {"witness": "none", "shown": 1, "n_components": 4, "device": "cpu"}
    return run_models(ClassifierConfig.build(model=spec, out=out, **base | options), write)


def taken(seen):
    """What was computed since it was last asked, by reliance."""
    found = Counter(of for kind in ("passes", "classes") for of, _ in seen[kind])
    seen["passes"], seen["classes"] = [], []
    return dict(found)


def numbers(result, out):
    """The numbers of every model by name, as each audit says them."""
    skip = {"created", "seconds", "config", "inputs", "notes"}
    return {row.name: load(out / row.folder).model_dump(exclude=skip) for row in result.rows}


def test_a_third_model_and_another_order_compute_only_what_is_not_there(root, computed, tmp_path):
    out = tmp_path / "out"
    first = audit(root, out, "ab")
    every = len(PASSES) + len(CLASSES)
    assert taken(computed) == {40.0: every, 20.0: every}
    with pytest.raises(ConfigError, match="already holds a result"):
        audit(root, out, "abc")
    third = audit(root, out, "abc", resume=True)
    assert taken(computed) == {0.0: every}
    assert numbers(third, out).items() >= numbers(first, out).items()
    turned = audit(root, out, "cab", resume=True)
    assert taken(computed) == {}
    assert [row.name for row in turned.rows] == [third.rows[i].name for i in (2, 0, 1)]
    assert load(out) == turned
    fewer = audit(root, out, "ca", resume=True)
    assert taken(computed) == {}
    assert {row.name for row in fewer.rows} == {turned.rows[0].name, turned.rows[1].name}


def test_another_checkpoint_of_one_model_computes_only_its_own(root, computed, tmp_path):
    out = tmp_path / "out"
    before = numbers(audit(root, out), out)
    taken(computed)
    weights(root, "b", 30.0)
    with pytest.raises(ConfigError, match="finished result, of other options"):
        audit(root, out, resume=True)
    assert taken(computed) == {}
    after = numbers(audit(root, out, resume=True, overwrite=True), out)
    assert taken(computed) == {30.0: len(PASSES) + len(CLASSES)}
    (a, b) = before
    assert after[a] == before[a]
    assert after[b] != before[b]
    audit(root, out, overwrite=True)  # all of it, as is said
    assert set(taken(computed)) == {40.0, 30.0}


def test_kept_features_are_of_their_own_model_and_found_again(root, computed, tmp_path):
    audit(root, tmp_path / "one", features=tmp_path / "features")
    assert computed["passes"] == [(r, n) for r in (40.0, 20.0) for n in PASSES]
    taken(computed)
    audit(root, tmp_path / "two", "cba", features=tmp_path / "features")
    assert computed["passes"] == [(0.0, n) for n in PASSES]


@pytest.mark.parametrize(
    "end",
    [("passes", 40.0, 30), ("passes", 20.0, 144), ("classes", 20.0, 2)],
)
def test_every_model_goes_on_where_it_was_interrupted(root, computed, tmp_path, end):
    """In the middle of the first one's features, between the two, and in the middle of the second's classes."""
    out = tmp_path / "out"
    computed["end"] = end
    with pytest.raises(KeyboardInterrupt):
        audit(root, out)
    result = audit(root, out, resume=True)
    passes = [(r, n) for r in (40.0, 20.0) for n in PASSES]
    assert sorted(computed["passes"]) == sorted(passes)  # every pass once, before or after
    assert sorted(computed["classes"]) == sorted((r, k) for r in (40.0, 20.0) for k in CLASSES)
    assert numbers(result, out) == numbers(audit(root, tmp_path / "whole"), tmp_path / "whole")


def test_the_result_of_one_model_is_not_replaced_by_several_unasked(root, tmp_path):
    """Regression: --resume with a second model wrote over the first one's finished result."""
    out = tmp_path / "out"
    one = audit(root, out, "a")
    with pytest.raises(ConfigError, match="holds the result of one model"):
        audit(root, out, "ab", resume=True)
    assert load(out) == one


def test_embeddings_of_encoders_are_kept_and_found_again(tmp_path, monkeypatch):
    """The same of encoders, whose embeddings stay below their own folder."""
    seen, real = Counter(), encoders.run

    def counted(work, rows, *args, **options):
        for done in real(work, list(rows), *args, **options):
            seen[len(seen)] = done.count
            yield done

    monkeypatch.setattr(encoders, "run", counted)
    options = {"groups": "scanner", "explain": 6, "seeds": 1, "mitigate": "none", "resume": True}
    data = mini_images(tmp_path / "data")

    def compare(encoder, **more):
        seen.clear()
        result = run_models(encoder_config(data, tmp_path / "out", encoder=encoder, **options | more), write)
        return result, sum(seen.values())

    both, n = compare("small:4,small:6")
    assert n == 2 * 36
    three, n = compare("small:4,small:6,small:8")
    assert n == 36
    assert three.rows[:2] == both.rows
    turned, n = compare("small:8,small:4,small:6")
    assert n == 0
    assert turned.rows == [three.rows[2], *three.rows[:2]]
    again, n = compare(
        "small:8,small:4,small:6", seeds=2, overwrite=True
    )  # other options: all audits, no pass
    assert n == 0
    assert [row.name for row in again.rows] == [row.name for row in turned.rows]


@pytest.mark.slow
def test_three_models_need_the_memory_of_one(root, tmp_path):
    """Networks that hold 120 MB each: the peak of three is that of one, to a third of a network."""
    toy = root / "toy.py"
    toy.write_text(
        toy.read_text().replace(
            "self.fc = nn.Linear(4, 3)\n",
            "self.fc = nn.Linear(4, 3)\n        self.ballast = nn.Parameter(torch.ones(30_000_000))\n",
        )
    )
    for name, reliance in RELIANCE.items():
        weights(root, name, reliance)
    code = (
        "import resource, sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from test_models_resumed import audit; audit(Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peak = {}
    for names in ("a", "abc"):
        paths = [*map(str, Path(__file__).parents[:2]), str(root), str(tmp_path / names), names]
        done = subprocess.run(
            [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
        )
        peak[names] = int(done.stdout.split()[-1])
    shutil.rmtree(root)  # 360 MB
    assert peak["abc"] < peak["a"] + 40
