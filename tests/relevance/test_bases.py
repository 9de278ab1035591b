import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfungst.errors import InputError
from pfungst.relevance import Basis, DCTBands, Patches, PixelBands, Pixels, Relevance, Tokens
from pfungst.relevance.dct import dct2, idct2, power_law_edges, zigzag_rank

IMAGE_BASES = [
    Pixels(),
    Pixels(channels=True),
    Patches(3),
    DCTBands(count=5),
    DCTBands(edges=(0, 3, 9, None)),
    PixelBands(count=4),
]


def test_dct_is_scipys():
    x = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    expected = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    np.testing.assert_allclose(dct2(x), expected, atol=1e-12)
    torch.testing.assert_close(idct2(dct2(x)), x)


def test_zigzag_starts_as_jpeg_does():
    rank = zigzag_rank(8, 8)
    assert rank[:3, :3].tolist() == [[0, 1, 5], [2, 4, 7], [3, 8, 12]]
    assert rank[7, 7] == 63
    assert sorted(zigzag_rank(5, 9).ravel()) == list(range(45))


def test_paper_bands_at_224_px():
    edges = power_law_edges(20, 224, 224)
    printed = [0, 3, 18, 70, 189, 410, 770, 1314, 2089, 3143, 4529, 6304, 8526, 11255]
    assert list(edges[:14]) == printed
    assert list(edges[15:]) == [18492, 23133, 28549, 34812, 41996, 50176]
    assert DCTBands.coarse().resolve(224, 224) == (0, 3, 190, 50176)


@pytest.mark.parametrize("basis", IMAGE_BASES, ids=repr)
@given(seed=st.integers(0, 2**16), h=st.integers(2, 11), w=st.integers(2, 11))
@settings(max_examples=20, deadline=None)
def test_contract_conserves_and_components_agree(basis, seed, h, w):
    generator = torch.Generator().manual_seed(seed)
    x, g = torch.randn(2, 2, 3, h, w, dtype=torch.float64, generator=generator)
    values = basis.contract(x, g)
    assert values.shape == (2, *basis.shape((3, h, w)))
    torch.testing.assert_close(values.flatten(1).sum(1), (x * g).flatten(1).sum(1))
    parts = basis.components(x)
    assert len(parts) == basis.size((3, h, w))
    torch.testing.assert_close(parts.sum(0), x)
    torch.testing.assert_close((parts * g).flatten(2).sum(2).T, values.flatten(1))
    half = basis.size((3, h, w)) // 2
    torch.testing.assert_close(torch.cat([basis.components(x, 0, half), basis.components(x, half)]), parts)


def test_bands_and_pixels_are_margins_of_the_joint_basis():
    x, g = torch.randn(2, 4, 3, 12, 10, dtype=torch.float64)
    joint = PixelBands(count=6).contract(x, g)
    torch.testing.assert_close(joint.sum(1), Pixels().contract(x, g))
    torch.testing.assert_close(joint.sum((2, 3)), DCTBands(count=6).contract(x, g))


def test_contract_broadcasts_over_outputs():
    x, g = torch.randn(4, 1, 3, 8, 8), torch.randn(4, 7, 3, 8, 8)
    for basis in IMAGE_BASES:
        values = basis.contract(x, g)
        torch.testing.assert_close(values[:, 2], basis.contract(x[:, 0], g[:, 2]), atol=1e-5, rtol=1e-4)


def test_tabular_and_tokens():
    x, g = torch.randn(2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(Pixels().contract(x, g, ndim=1), x * g)
    assert Pixels().components(x).shape == (6, 4, 6)
    x, g = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(Tokens().contract(x, g), (x * g).sum(-1))
    torch.testing.assert_close(Tokens().components(x).sum(0), x)


def test_bad_bases_are_refused_with_a_remedy():
    for make in (
        lambda: Patches(0),
        lambda: DCTBands(),
        lambda: DCTBands(edges=(0, 9, 3)),
        lambda: DCTBands(count=0),
    ):
        with pytest.raises(InputError, match="→"):
            make()
    with pytest.raises(InputError, match="cover"):
        DCTBands(edges=(1, 5)).resolve(4, 4)
    with pytest.raises(InputError, match="images"):
        Patches(2).shape((7,))


@pytest.mark.parametrize("basis", [*IMAGE_BASES, Tokens()], ids=repr)
def test_bases_survive_a_dictionary(basis):
    assert Basis.from_dict(basis.to_dict()) == basis


def test_relevance_saves_restricts_and_checks_itself(tmp_path):
    x, g = torch.rand(3, 3, 6, 6), torch.rand(3, 3, 6, 6)
    bias = torch.tensor([1.0, 0.0, -2.0])
    r = Relevance(Pixels().contract(x, g), (x * g).flatten(1).sum(1) + bias, Pixels(), bias)
    assert r.conservation_error().max() < 1e-5
    mask = torch.zeros(3, 6, 6)
    mask[:, :3] = 1
    torch.testing.assert_close(r.inside(mask).sum() + r.inside(1 - mask).sum(), r.sum())
    r.save(tmp_path / "r.safetensors")
    again = Relevance.load(tmp_path / "r.safetensors")
    assert torch.equal(again.values, r.values)
    assert again.basis == r.basis
    assert torch.equal(again.bias, bias)
    (tmp_path / "bad").write_text("nothing")
    with pytest.raises(InputError, match="bad"):
        Relevance.load(tmp_path / "bad")
    with pytest.raises(InputError, match="mask"):
        r.inside(torch.ones(5, 5))


def test_relevance_plots_every_kind(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    x, g = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    for basis in IMAGE_BASES:
        Relevance(basis.contract(x, g), (x * g).sum().reshape(1), basis).plot().savefig(tmp_path / "p.png")


def test_the_period_of_a_band_is_that_of_its_waves():
    from pfungst.relevance.dct import band_periods

    one = band_periods((0, 1, 2, 3), 8, 16)  # the constant, (0, 1) and (1, 0)
    assert one == pytest.approx([np.inf, 32, 16])
    x = np.cos(np.pi * (np.arange(16) + 0.5) / 16)  # the wave (0, 1) turns by half in 16 pixels
    assert (x[0] > 0) != (x[-1] > 0)
    assert np.isnan(band_periods((0, 4, 4, 9), 3, 3)[1])
