"""Each image is answered by a probe that no image of its unit was fitted to, and differences stay within it."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from pfungst.audit.findings.topics import Effort, encoder_topics
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.prepare import Study, open_labelled
from pfungst.audit.workspace import Workspace
from pfungst.discover import ClassSubject, Effects, Explanations, Judge, find
from pfungst.discover.find import _Panel
from pfungst.discover.mend import Pairs, class_edits
from pfungst.encoders import Encoder, Preprocessing
from pfungst.measure import bootstrap
from pfungst.progress import progress_bar
from pfungst.spurious import FeatureHead

SIDE, MARK = 8, (slice(None), slice(None), slice(0, 2), slice(0, 2))


def head(weight):
    """Class 1 by so much of each pixel of the corner."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.zero_()
        net[1].weight[1].view(3, SIDE, SIDE)[:, :2, :2] = weight
    return FeatureHead(net.eval(), example=torch.rand(4, 3, SIDE, SIDE))


def marked(n, bright):
    x = 0.2 + 0.05 * torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(n))
    x[MARK] = bright
    return x


def test_effects_are_those_of_each_part_by_its_own_judge():
    x, others = marked(24, 0.9), marked(16, 0.2)
    part, beside = np.arange(24) % 2, np.arange(16) % 2
    subjects = [ClassSubject(head(w), 1) for w in (1.0, 3.0)]
    mask = torch.zeros(24, SIDE, SIDE)
    mask[:, :2, :2] = 1
    get = lambda rows: x[np.asarray(list(rows), int)]
    blank = Explanations(np.zeros((24, 4, 4), np.float32), np.zeros((24, 8), np.float32), np.zeros(24), np.zeros(24, bool))  # fmt: skip
    found, _ = find(
        subjects,
        blank,
        get,
        others,
        views=[],
        text=lambda r: mask[list(r)],
        probes=(part, beside),
        n_images=24,
    )
    falls, gains, ways = np.zeros(24), np.zeros(24), []
    for p, subject in enumerate(subjects):
        judge = Judge(subject, x[part == p], others[beside == p])
        ways.append(judge.ends[0])
        effects = judge.regions(x[part == p], mask[part == p], None, letters=True)
        falls[part == p], gains[part == p] = effects.falls, effects.gains[0] * judge.way[0]
    way = np.concatenate([a for a, _ in ways]).mean() - np.concatenate([b for _, b in ways]).mean()
    proof = found[0].proof
    assert proof.remove.value == pytest.approx(falls.mean(), rel=1e-5)
    assert proof.insert.value == pytest.approx(gains.mean() / way, rel=1e-4)
    assert falls[part == 1].mean() == pytest.approx(3 * falls[part == 0].mean(), rel=0.1)


def test_every_part_has_a_judge_and_what_is_put_into_images_is_of_their_part():
    part = np.array([0] * 300 + [1] * 2)
    x, others = marked(302, 0.9), marked(12, 0.2)
    beside = np.array([0] * 10 + [1] * 2)
    subjects = [ClassSubject(head(w), 1) for w in (1.0, 3.0)]
    panel = _Panel(subjects, lambda r: x[list(r)], 302, others, (part, beside), 16, 0)
    assert sorted(panel.judges) == [0, 1]
    assert [len(j.others) for j in panel.judges.values()] == [10, 2]
    assert panel.judges[0].way == panel.judges[1].way
    assert [(p, at.tolist()) for p, _, at in panel.split([5, 301, 7])] == [(0, [0, 2]), (1, [1])]


def test_patients_count_once_in_proofs():
    rng = np.random.default_rng(0)
    who = np.array([0, 0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7])
    falls, gains = rng.normal(1, 1, 12), rng.normal(0.5, 0.2, (2, 12))
    before, said = rng.random((1, 12)), rng.random((3, 12)).round()
    empty = torch.zeros(12, 1, 1, 1)
    pairs = Pairs(empty, empty, empty[None], empty[None])
    effects = Effects(falls, gains, before, before / 2, said, said[:2], pairs)
    by = lambda v: np.array([v[who == u].mean() for u in range(8)])
    proof = effects.proof(3, who)
    expected = bootstrap(lambda w: (w @ by(falls)) / w.sum(-1), np.zeros(8), seed=3)
    assert proof.remove == pytest.approx(expected)
    assert proof.insert.value in [pytest.approx(by(g).mean()) for g in gains]
    assert proof.retained.value == pytest.approx(0.5)
    assert proof.accuracy == pytest.approx([by(s).mean() for s in said])
    assert effects.proof(3).remove.value == pytest.approx(falls.mean())


def test_edits_judge_each_image_by_its_own_probe():
    """Of a probe that reads nothing no image is turned, whatever the other one says."""
    x, bare = marked(16, 0.9), marked(32, 0.2).view(2, 16, 3, SIDE, SIDE)
    removed, put = x.clone(), bare.clone()
    removed[MARK] = 0.2
    put[:, :, :, :2, :2] = 0.9
    heads = [head(1.0), head(-1.0)]
    for part, turned in ((0, 1.0), (1, 0.0)):
        pairs = Pairs(x, removed, bare, put, torch.full((16,), part))
        edits = class_edits([ClassSubject(h, 1) for h in heads], pairs, None, None)
        assert all(e.turned[0] == turned for e in edits)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three classes of 30 patients with two images each; an encoder of pixels."""
    folder, rng = tmp_path_factory.mktemp("patients"), np.random.default_rng(0)
    lines = ["path,label,patient,split"]
    for i in range(180):
        label = i // 2 % 3
        pixels = rng.normal(110 + 30 * label, 40, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        lines.append(f"{i:03d}.png,{'abc'[label]},{i // 2},{'test' if i >= 144 else 'train'}")
    (folder / "images.csv").write_text("\n".join(lines))
    encoder = Encoder(
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), Preprocessing(SIDE, "pillow-bilinear"), "pixels"
    )

    def made(split):
        config = SimilarityConfig.build(
            images=folder / "images.csv", encoder="small:8", groups=["none"], seeds=1, split=split, device="cpu",
            out=tmp_path_factory.mktemp("out"),
        )  # fmt: skip
        images = open_labelled(config)
        with progress_bar("", 1, show=False) as bar:
            return Study.of(encoder, images, config, Workspace(config, "x"), bar)

    return made


@pytest.mark.parametrize(("split", "per_topic"), [("folds", 500), ("given", 500), ("given", 10)])
def test_evidence_is_that_of_probes_fitted_without_the_patient(study, split, per_topic):
    made = study(split)
    topics = encoder_topics(made, Effort(per_topic=per_topic, batch_size=32))
    labels, units, x = made.plan.labels, made.plan.units, made.original
    ids = [i.id for i in made.source.items]
    assert [t.name for t in topics] == ["a", "b", "c"]
    one = topics[0]
    rows = np.array([ids.index(i) for i in one.ids])
    assert len(one.subjects) == (1 if per_topic == 10 else 5)
    assert len(rows) == (10 if per_topic == 10 else 60)
    explained = one.explained(lambda n: None)
    part = one.probes[0]
    for p in np.unique(part):
        if per_topic == 10:
            trained = made.plan.rounds[0][0][0]
        else:
            held = set(units[rows[part == p]])
            others = [set(units[[ids.index(i) for i in t.ids]][t.probes[0] == p]) for t in topics]
            trained = np.flatnonzero(~np.isin(units, list(set.union(held, *others))))
        assert not set(units[trained]) & set(units[rows[part == p]])
        oracle = LogisticRegression(class_weight="balanced", fit_intercept=False, max_iter=1000)
        oracle.fit(x[trained], labels[trained])
        np.testing.assert_allclose(
            explained.evidence[part == p], oracle.decision_function(x[rows[part == p]])[:, 0], rtol=1e-3, atol=1e-3
        )  # fmt: skip


def test_features_of_images_of_different_probes_are_weighted_alike(study):
    """Otherwise images form clusters by fold: on X-rays five of a fifth each."""
    made = study("folds")
    topic = encoder_topics(made, Effort(per_topic=500, batch_size=32))[0]
    ids = [i.id for i in made.source.items]
    phi = made.original[[ids.index(i) for i in topic.ids]]
    mean = np.mean([s.head.linear.weight[0].numpy() for s in topic.subjects], 0)
    np.testing.assert_allclose(topic.explained(lambda n: None).psi, phi * mean, rtol=1e-3, atol=1e-4)
