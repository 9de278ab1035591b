"""Discovery of time series: the reader, series as images of height 1, interventions by hand, a planted spike."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn

from pfungst.audit.pictures import plotted
from pfungst.data.series import read_series
from pfungst.discover import ClassSubject, Judge, correct, explain, find
from pfungst.discover.find import _fixed
from pfungst.discover.series import OverTime, as_read
from pfungst.errors import DataError, InputError
from pfungst.mitigate import LowPass
from pfungst.relevance import DCTBands, Patches, PixelBands, attribute
from pfungst.spurious import FeatureHead, Witness
from pfungst.spurious.inpaint import gaussian, inpaint, moved, soften

T = 56


def network(channels=1, classes=2, bias=True):
    return nn.Sequential(
        nn.Conv1d(channels, 12, 5, padding=2, bias=bias),
        nn.ReLU(),
        nn.Conv1d(12, 16, 5, 2, 2, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(7),
        nn.Flatten(),
        nn.Linear(112, classes, bias=bias),
    )


def waves(n, seed=0, planted=True):
    """One wave or two in noise; a spike at steps 10 to 12 in 60 % of the second class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    t = np.arange(T) / T
    x = np.sin(2 * np.pi * (t * (1 + y[:, None]) + rng.random((n, 1)))) + rng.normal(0, 1.0, (n, T))
    has = (y == 1) & (rng.random(n) < 0.6) & planted
    x[has, 10:13] += 6
    return torch.tensor(x[:, None]).float(), torch.tensor(y), has


def trained(x, y, seed=0):
    torch.manual_seed(seed)
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(15):
        for part in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    return net.eval()


# --- the reader --------------------------------------------------------------------------------------------


def table(path, values, **columns):
    names = [*columns, *(f"t{i}" for i in range(values.shape[1]))]
    rows = [[*(c[i] for c in columns.values()), *map(repr, v.tolist())] for i, v in enumerate(values)]
    path.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n")
    return path


def test_a_table_and_an_array_hold_the_same_series(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = np.random.default_rng(0).normal(size=(6, 5))
    told = {"label": list("ababab"), "id": list("uvwxyz"), "site": ["north", "", "south"] * 2}
    table(tmp_path / "s.csv", values, **told)
    pq.write_table(pa.table(told | {f"t{i}": values[:, i] for i in range(5)}), tmp_path / "s.parquet")
    np.savez(tmp_path / "s.npz", series=values[:, None], **{k: np.array(v) for k, v in told.items()})
    for name in ("s.csv", "s.parquet", "s.npz"):
        found = read_series(tmp_path / name)
        np.testing.assert_array_equal(found.values, values[:, None])
        assert found.ids == told["id"]
        assert found.columns["site"].tolist() == told["site"]
        first = found.items()[0]
        assert (first.id, first.label, first.groups) == ("u", "a", {"site": "north"})
    numbers = table(tmp_path / "g.csv", values, label=list("ababab"), patient=[1, 1, 2, 2, 3, 3])
    assert read_series(numbers).values.shape == (6, 1, 6)  # a number is a point in time
    assert read_series(numbers, groups=["patient"]).columns["patient"].tolist() == list("112233")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t0,t1,t2,t3\n1,2,3,4\n", "no column 'label'"),
        ("label,t0,t1,t2,t3\na,1,2,,4\nb,1,2,3,5\n", "series 1: column 't2' holds 'nothing', no number"),
        ("label,t0,t1,t2,t3\na,1,2,3,4\nb,1,nan,3,5\n", "series 2: column 't1' holds 'nan'"),
        ("label,t0,t1,t2,t3\na,1,2,3,x\nb,1,2,3,5\n", "series 1: column 't3' holds 'x'"),
        ("label,t0,t1,t2,t3\na,1,2,3,4\nb,1,2,3\n", "another number of fields"),
        ("label,t0,t1,t2,t3\na,1,1,1,1\nb,1,1,1,1\n", "channel 1 of 1 is always 1"),
        ("label,t0,t1\na,1,2\nb,3,4\n", "2 series of 2 points"),
        ("label,t0,t1,t2,t3\n,1,2,3,4\nb,1,2,3,5\n", "label is empty in row 1"),
        ("label,id,t0,t1,t2,t3\na,u,1,2,3,4\nb,u,1,2,3,5\n", "names series twice"),
    ],
)
def test_what_is_no_table_of_series_is_named(tmp_path, text, said):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_series(tmp_path / "s.csv")


def test_arrays_of_other_shapes_are_named(tmp_path):
    def said(**arrays):
        np.savez(tmp_path / "s.npz", **arrays)
        with pytest.raises(DataError) as error:
            read_series(tmp_path / "s.npz")
        return str(error.value)

    x, y = np.random.default_rng(0).normal(size=(4, 2, 9)), np.array(list("abab"))
    assert "no column 'series'" in said(label=y)
    assert "no column 'label'" in said(series=x)
    assert "label has shape (3,)" in said(series=x, label=y[:3])
    assert "shape (4,)" in said(series=x[:, 0, 0], label=y)
    assert "not finite, the first is 2" in said(series=np.where(np.arange(4)[:, None, None] == 1, np.nan, x), label=y)  # fmt: skip
    assert "cannot be read" in said(series=np.array([[1.0], [1.0, 2.0]], dtype=object), label=y[:2])
    (tmp_path / "t.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_series(tmp_path / "t.npz")


# --- series as images of height 1 --------------------------------------------------------------------------


def test_the_network_reads_what_it_read_before():
    x = torch.randn(6, 3, T) * torch.tensor([1.0, 50, 0.01])[:, None] + 7
    net = network(3).eval()
    model = OverTime(net, x)
    z = model.scaled(x)
    assert z.shape == (6, 3, 1, T)
    torch.testing.assert_close(z.amin((0, 2, 3)), torch.zeros(3))
    torch.testing.assert_close(z.amax((0, 2, 3)), torch.ones(3))
    torch.testing.assert_close(model(z), net(x), rtol=1e-3, atol=1e-4)
    flat = nn.Linear(T, 4)
    torch.testing.assert_close(OverTime(flat, x[:, :1])(OverTime(flat, x[:, :1]).scaled(x[:, :1])), flat(x[:, 0]))  # fmt: skip
    for wrong in (nn.Linear(T + 1, 4), nn.Conv1d(1, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(T, 1))):
        with pytest.raises(InputError, match="does not classify series of shape"):
            OverTime(wrong, x[:, :1])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.lstm(x.transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize("kind", ["convolutions", "lstm"])
def test_relevance_is_that_of_the_network_in_its_own_units(kind):
    torch.manual_seed(0)
    net = network(2, bias=False).eval() if kind == "convolutions" else Recurrent().eval()
    x = torch.randn(5, 2, T)
    model = OverTime(net, x)
    z = model.scaled(x)
    head = FeatureHead(model, example=z)
    read, units = as_read(model, z)
    torch.testing.assert_close(units[:, :, 0], x, atol=1e-5, rtol=1e-5)
    found = explain(head, 1, lambda r: z[list(r)], 5, "gradient")
    grown = x.clone().requires_grad_(True)
    by_hand = (grown * torch.autograd.grad(net(grown)[:, 1].sum(), grown)[0]).sum(1).detach()
    np.testing.assert_allclose(found.maps[:, 0], by_hand.unflatten(1, (14, 4)).sum(2), atol=1e-4)
    if kind == "convolutions":  # without biases everything arrives, also by the rules of LRP
        logit = net(x)[:, 1].detach()
        for basis in (PixelBands(count=8), DCTBands(count=8), Patches(4)):
            values = attribute(read, units, 1, "lrp_zero", basis).values.flatten(1).sum(1)
            torch.testing.assert_close(values.float(), logit, atol=1e-3, rtol=1e-3)
    whole = explain(head, 1, lambda r: z[list(r)], 5)
    np.testing.assert_allclose(whole.maps.sum((1, 2)), whole.spectra.sum(1), rtol=1e-3, atol=1e-4)


def test_a_series_is_blurred_along_time_alone():
    x = torch.rand(2, 3, 1, 40)
    expected = gaussian_filter1d(x.numpy(), 2.0, mode="mirror", radius=6)
    np.testing.assert_allclose(gaussian(x, 2.0), expected, atol=1e-5)
    image = torch.rand(1, 2, 30, 40)
    both = gaussian_filter1d(gaussian_filter1d(image.numpy(), 2.0, -1, mode="mirror", radius=6), 2.0, -2, mode="mirror", radius=6)  # fmt: skip
    np.testing.assert_allclose(gaussian(image, 2.0), both, atol=1e-5)


def test_a_window_is_filled_from_both_sides():
    mask = torch.zeros(1, 1, 64)
    mask[..., 24:32] = 1
    soft = soften(mask)
    assert soft[..., 24:32].min() > 0.999
    assert soft[..., :20].max() < 0.01
    x = torch.where(torch.arange(64) < 28, 0.2, 0.6).expand(1, 1, 1, 64).clone()
    spiked = x + mask[:, None]
    for given in (x, spiked):  # what was inside has gone
        fill = inpaint(given, mask)
        torch.testing.assert_close(fill[..., :24], x[..., :24])
        torch.testing.assert_close(fill[..., 32:], x[..., 32:])
        inside = fill[0, 0, 0, 24:32]
        assert inside.min() >= 0.2
        assert inside.max() <= 0.6
        assert (inside.diff() > -1e-6).all()
    assert (inpaint(x, mask) == inpaint(spiked, mask)).all()
    constant = torch.full((1, 2, 1, 64), 0.3)
    torch.testing.assert_close(inpaint(constant, mask), constant)
    assert torch.equal(moved(mask, [(0, 5)])[..., 29:37], torch.ones(1, 1, 8))


@pytest.mark.parametrize("length", [T, 61, 286])
def test_a_heatmap_lies_where_its_patches_lay(length):
    """Patches that stick out at the end moved every place but the first."""
    side = max(1, length // 14)
    heat = torch.zeros(1, 1, length)
    heat[..., -2 * side - 3 : -side - 3] = 1
    patches = Patches(side).contract(heat[:, None], torch.ones_like(heat)[:, None])[0].numpy()
    back = _fixed(patches)(None)(torch.zeros(1, 1, 1, length))
    assert back.shape == heat.shape
    steps = torch.arange(length)
    centre = lambda h: float((h[0, 0] * steps).sum() / h.sum())
    assert abs(centre(back) - centre(heat)) <= side / 2 + 1


def test_bands_and_low_pass_are_those_of_the_transform_over_time():
    from scipy.fft import dct, idct

    x = torch.rand(3, 2, 1, T)
    edges = DCTBands(count=8).resolve(1, T)
    spectrum = dct(x[:, :, 0].numpy(), norm="ortho")
    parts = DCTBands(count=8).components(x)
    for b in range(8):
        kept = np.zeros(T)
        kept[edges[b] : edges[b + 1]] = 1
        np.testing.assert_allclose(parts[b, :, :, 0], idct(spectrum * kept, norm="ortho"), atol=1e-5)
    low = idct(spectrum * (np.arange(T) < 9), norm="ortho")
    np.testing.assert_allclose(LowPass(9)(x)[:, :, 0], low, atol=1e-5)


# --- interventions -----------------------------------------------------------------------------------------


class At(nn.Module):
    """Evidence for class 1: what is at steps 20 to 23 of the first channel."""

    def forward(self, x):
        said = x[:, 0, 20:24].mean(1)
        return torch.stack([-said, said], 1)


def test_taken_out_and_put_in_by_hand():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.uniform(-1, 1, (40, 2, T))).float()
    x[:20, 0, 20:24] += 8
    model = OverTime(At(), x)
    z = model.scaled(x)
    subject = ClassSubject(type("Head", (), {"model": model, "device": torch.device("cpu")})(), 1)
    judge = Judge(subject, z[:20], z[20:])
    mask = torch.zeros(8, 1, T)
    mask[..., 19:25] = 1
    found = judge.regions(z[:8], mask, None)
    said = lambda v: 2 * v[:, 0, 20:24].mean(1).numpy()  # log odds of two classes
    gone = model.units(inpaint(z[:8], soften(mask)))[:, :, 0]
    np.testing.assert_allclose(found.falls, said(x[:8]) - said(gone), rtol=0.2, atol=0.5)
    assert found.falls.min() > 10
    assert found.gains[0].min() > 0.7
    proof = found.proof()
    assert proof.flips[0] == 1
    tone = judge.tone(z[:8], z[8:20])
    assert abs(tone.proof().insert.value) < 0.5


def test_a_planted_spike_is_the_first_finding_and_a_clean_class_has_none():
    x, y, has = waves(1000)
    plain, *_ = waves(600, 7, planted=False)
    net, witness = trained(x[:600], y[:600]), trained(plain, y[:600], 1)
    x, y, has = x[600:], y[600:], has[600:]
    models = [OverTime(m, x) for m in (net, witness)]
    z = models[0].scaled(x)
    head, found = FeatureHead(models[0], example=z[:8]), []
    for k in (0, 1):
        own = z[y == k]
        get = lambda rows, own=own: own[list(rows)]
        subject = ClassSubject(head, k, [Witness(models[1], k)], "series")
        explained = explain(head, k, get, len(own), batch_size=64)
        found += find(subject, explained, get, z[y != k][:100], batch_size=64)[0]
    found = correct(found)
    first = found[0]
    assert first.proof.survives, first.proof.reason
    assert "series are still recognised" in first.proof.reason
    assert first.index == 1
    assert {f.index for f in found if f.proof.survives} == {1}
    assert has[(y == 1).numpy()][first.rows].mean() > 0.9
    region = next(f.regions for f in found if f.proof.survives and f.regions is not None)
    assert region.shape[1:] == (1, T)
    assert region[:, 0, 10:13].mean() > 0.5


def test_a_series_is_drawn_as_lines_with_its_window_shaded():
    series = np.sin(np.arange(80) / 5)[None].repeat(3, 0)
    bare = plotted(series)
    region = np.zeros((1, 80), bool)
    region[0, 40:60] = True
    shaded = plotted(series, region)
    assert bare.shape == shaded.shape
    assert bare.dtype == np.uint8
    columns = np.flatnonzero((bare != shaded).any((0, 2)))
    width = bare.shape[1]
    assert width * 0.4 < columns[0] < columns[-1] < width * 0.85
    assert (plotted(series, np.zeros((1, 80), bool)) == bare).all()
