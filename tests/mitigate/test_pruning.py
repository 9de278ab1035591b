import pytest
import torch
from torch import nn

from pfungst.encoders import Encoder, Preprocessing, load
from pfungst.errors import ConfigError, InputError
from pfungst.mitigate import Pruning, filter_responses, prunable_layers, prune, region, sweep
from pfungst.relevance import Patches, attribute
from pfungst.relevance import composite as named


@pytest.fixture
def encoder() -> Encoder:
    return load("small:6", size=16, seed=1)


@pytest.fixture
def clean():
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5


@pytest.fixture
def stamped(clean):
    out = clean.clone()
    out[:, 0, 12:, :6] = 1.0
    return out


def hand_made() -> Encoder:
    """Filter 0 sees red, filter 1 green; the representation is their spatial mean."""
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).reshape(2, 3, 1, 1)
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Encoder(net, Preprocessing(16, "none", (0.0,) * 3, (1.0,) * 3))


def test_responses_by_hand(clean, stamped):
    encoder = hand_made()
    response = filter_responses(encoder, stamped, clean, ["1"])["1"]
    rise = (stamped - clean)[:, 0].mean()
    torch.testing.assert_close(response.values, torch.tensor([float(rise), 0.0]))
    inside = filter_responses(encoder, stamped, clean, ["1"], rows=(12, None), cols=(0, 6), batch_size=3)["1"]
    torch.testing.assert_close(inside.values[0], (stamped - clean)[:, 0, 12:, :6].mean())
    assert (response.top(1), response.share(1), response.size) == ([0], 1.0, (16, 16))


def test_pruning_by_hand(clean, stamped):
    encoder = hand_made()
    x = stamped
    everywhere = Pruning("1", 1).apply(encoder, stamped, clean)
    torch.testing.assert_close(everywhere(x), torch.stack([torch.zeros(8), x[:, 1].mean((1, 2))], 1))
    corner = Pruning("1", 1, rows=(12, None), cols=(None, 6)).apply(encoder, stamped, clean)
    expected = x[:, 0].clone()
    expected[:, 12:, :6] = 0
    torch.testing.assert_close(corner(x)[:, 0], expected.mean((1, 2)))
    larger = nn.functional.interpolate(x, scale_factor=2)
    torch.testing.assert_close(corner(larger), corner(x))  # the region scales with the map
    torch.testing.assert_close(encoder(x)[:, 0], x[:, 0].mean((1, 2)))  # the encoder itself is unchanged


def test_same_interface_and_saved_with_the_encoder(encoder, clean, stamped, tmp_path):
    pruned = Pruning("stage1.relu2", 3, rows=(8, 16)).apply(encoder, stamped, clean)
    pruned = Pruning("stage2.relu1", 2).apply(pruned, stamped, clean)
    assert isinstance(pruned, Encoder)
    assert pruned.preprocessing == encoder.preprocessing
    assert pruned.key() != encoder.key()
    again = load(f"pfungst:{pruned.save(tmp_path / 'pruned')}")
    assert torch.equal(again(stamped), pruned(stamped))
    assert again.edits == pruned.edits
    assert len(again.edits) == 2
    assert again.key() == pruned.key()
    assert (pruned(stamped) - encoder(stamped)).abs().max() > 1e-4


def test_relevance_goes_through_the_mask(encoder, clean, stamped):
    pruned = Pruning("stage1.relu1", 3).apply(encoder, stamped, clean)
    relevance = attribute(pruned, stamped, output=0, composite="epsilon_plus", basis=Patches(4))
    torch.testing.assert_close(relevance.score, pruned(stamped)[:, 0].detach())
    assert relevance.conservation_error().max() < 1e-3
    plain = torch.func.jvp(pruned, (stamped,), (clean,))[1]
    step = (pruned((stamped + 1e-3 * clean).double().float()) - pruned(stamped)) / 1e-3
    torch.testing.assert_close(plain, step, atol=0.05, rtol=0.1)


def test_relevance_equals_that_of_zeroed_weights(encoder, clean, stamped):
    """A filter pruned everywhere is a filter whose BatchNorm scale and shift are zero."""
    response = filter_responses(encoder, stamped, clean, ["stage1.relu2"])["stage1.relu2"]
    masked = prune(encoder, response, 3)
    zeroed = encoder.copy()
    norm = zeroed.features.stage1.bn2
    norm.weight.data[response.top(3)] = 0
    norm.bias.data[response.top(3)] = 0
    torch.testing.assert_close(masked(stamped), zeroed(stamped))
    for composite in ("epsilon_plus", "epsilon_gamma_box"):
        options = {} if composite == "epsilon_plus" else {"low": -1.0, "high": 1.0}
        a = attribute(masked, stamped, output=1, composite=named(composite, **options))
        b = attribute(zeroed, stamped, output=1, composite=named(composite, **options))
        torch.testing.assert_close(a.values, b.values, atol=1e-6, rtol=1e-4)


def test_clip_stem_by_openais_name(clean):
    encoder = load("open_clip:RN50", size=64)
    x = torch.rand(2, 3, 64, 64)
    y = x.clone()
    y[:, :, 44:, 10:36] = 1
    pruned = Pruning.parse("prune:encoder.relu3:5:rows=26-32").apply(encoder, y, x)
    assert pruned.edits[0]["layer"] == "act3"
    assert pruned.edits[0]["size"] == [32, 32]
    assert len(set(pruned.edits[0]["filters"])) == 5
    assert pruned(x).shape == (2, 1024)


def test_transformer_tokens(clean, stamped):
    encoder = load("timm:vit_tiny_patch16_224", size=32)
    x, y = (nn.functional.interpolate(t[:2], (32, 32)) for t in (clean, stamped))
    pruned = Pruning("blocks.0.mlp.act", 4, rows=(3, None)).apply(encoder, y, x)
    assert pruned(x).shape == (2, 192)
    assert not torch.equal(pruned(x), encoder(x))


def test_sweep(encoder, clean, stamped):
    def evaluate(e):
        with torch.no_grad():
            return {"shift": float((e(stamped) - e(clean)).abs().mean()), "size": 1.0}

    settings = [Pruning("stage1.relu1", k) for k in (1, 4, 100)] + [
        Pruning("features.stage1.relu2", 2, (12, None))
    ]
    result = sweep(encoder, stamped, clean, evaluate, settings)
    known = ["", "prune:stage1.relu1:1", "prune:stage1.relu1:4", "prune:stage1.relu2:2:rows=12-"]
    assert [r["setting"] for r in result.rows] == known
    for row in result.rows[1:]:
        pruned = Pruning.parse(row["setting"]).apply(encoder, stamped, clean)
        assert evaluate(pruned)["shift"] == row["shift"]
    assert all(0 < r["share"] <= 1 for r in result.rows[1:])
    assert result.best("size")["k"] == 0
    assert result.best("shift")["shift"] == max(r["shift"] for r in result.rows)
    assert len(result.table().splitlines()) == 5
    with pytest.raises(InputError, match="no measure 'accuracy'"):
        result.best("accuracy")


def test_region_of_a_box():
    """By hand: pixels 20–28 of 32 are rows 5–7 of 8; one more on each side, the border where it is reached."""
    assert region((8, 8), (20, 4, 28, 13), 32) == ((4, None), (None, 5))
    assert region((16, 32), (20, 4, 28, 13), 32) == ((9, 15), (3, 14))
    assert region((1, 1), (20, 4, 28, 13), 32) == ((None, None), (None, None))


def test_layers_to_choose_from(encoder):
    assert prunable_layers(encoder) == [f"stage{i}.relu{j}" for i in (1, 2, 3) for j in (1, 2)]
    names = prunable_layers(load("torchvision:resnet18", size=32))
    assert names[0] == "relu"
    assert "layer1.0.relu" not in names  # runs twice in each block


def test_bad_input(encoder, clean, stamped):
    with pytest.raises(InputError, match=r"no layer 'stage1.relu9'") as caught:
        Pruning("stage1.relu9", 1).apply(encoder, stamped, clean)
    assert "stage1.relu1" in caught.value.remedy
    with pytest.raises(InputError, match="it has 6"):
        Pruning("stage1.relu1", 7).apply(encoder, stamped, clean)
    with pytest.raises(InputError, match="is empty"):
        Pruning("stage3.relu1", 1, rows=(90, None)).apply(encoder, stamped, clean)
    with pytest.raises(InputError, match="2 times"):
        Pruning("layer1.0.relu", 1).apply(load("torchvision:resnet18"), stamped, clean)
    with pytest.raises(InputError, match="shape"):
        Pruning("stage1.relu1", 1).apply(encoder, stamped[:, :1], clean)


@pytest.mark.parametrize("text", ["prune:a.b:5", "prune:a:5:rows=90-112", "prune:a:5:rows=90-:cols=-7"])
def test_round_trip(text):
    assert str(Pruning.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["prune:a", "prune:a:many", "prune:a:5:rows=90", "prune:a:5:depth=1-2", "a:-1"]
)
def test_unreadable(text):
    with pytest.raises(ConfigError):
        Pruning.parse(text)
