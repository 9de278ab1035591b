"""Frequency bands over time against SciPy's and numpy's transforms."""

import itertools

import numpy as np
import pytest
import torch
from scipy.fft import dct

from pfungst.anomaly import D2Neighbors
from pfungst.errors import DataError, InputError
from pfungst.papers.series import made_series, series_of
from pfungst.relevance import Basis
from pfungst.relevance.time_bands import TimeBands


@pytest.mark.parametrize("length", [15, 16])
@pytest.mark.parametrize("transform", ["dct", "fourier"])
def test_bands_are_those_of_scipy_and_numpy(length, transform):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 3, length))
    basis = TimeBands(4, transform)
    found = basis.contract(torch.from_numpy(x), torch.from_numpy(g)).numpy()
    if transform == "dct":
        products = dct(x, norm="ortho") * dct(g, norm="ortho")
    else:
        full = (np.fft.fft(x) * np.fft.fft(g).conj()).real / length
        products = full[:, : length // 2 + 1].copy()
        products[:, 1 : (length + 1) // 2] *= 2
    edges = basis.edges(length)
    expected = np.stack([products[:, a:b].sum(1) for a, b in itertools.pairwise(edges)], 1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), (x * g).sum(1))
    parts = basis.components(torch.from_numpy(x))
    np.testing.assert_allclose(parts.sum(0).numpy(), x, atol=1e-12)
    np.testing.assert_allclose((parts.numpy() * g).sum(2).T, expected, atol=1e-12)


def test_channels_are_summed_and_the_basis_is_saved():
    x, g = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    basis = TimeBands(4)
    whole = basis.contract(x, g, ndim=2)
    torch.testing.assert_close(whole, sum(basis.contract(x[:, c], g[:, c]) for c in range(3)))
    assert Basis.from_dict(basis.to_dict()) == basis
    with pytest.raises(InputError, match="reads series"):
        basis.shape((3, 4, 4))
    with pytest.raises(InputError, match="dct or fourier"):
        TimeBands(4, "wavelet")


def test_a_detector_of_series_is_explained_in_bands():
    series = made_series(60)
    detector = D2Neighbors().fit(series.values[series.train])
    for transform in ("dct", "fourier"):
        found = detector.explain(series.values[~series.train], TimeBands(8, transform))
        total = np.asarray(found.values).sum(1) + np.asarray(found.bias)
        np.testing.assert_allclose(total, detector.anomaly_score(series.values[~series.train]), rtol=1e-6)


def test_series_from_csv_and_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    series = made_series(24, length=6)
    label = np.where(series.labels == 1, "bump", "good").tolist()
    split = np.where(series.train, "train", "test").tolist()
    columns = {"label": label, "split": split} | {f"t{i}": series.values[:, i].tolist() for i in range(6)}
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    lines = [",".join(columns)] + [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    for name in ("s.parquet", "s.csv"):
        found = series_of(tmp_path / name)
        np.testing.assert_allclose(found.values, series.values)
        assert (found.labels == series.labels).all()
        assert (found.train == series.train).all()
    (tmp_path / "bad.csv").write_text("label,t0\ngood,1\n")
    with pytest.raises(DataError, match="no column 'split'"):
        series_of(tmp_path / "bad.csv")
    (tmp_path / "text.csv").write_text(lines[0] + "\n" + "good,train,a,1,2,1,2,1\n")
    with pytest.raises(DataError, match="no numbers"):
        series_of(tmp_path / "text.csv")
