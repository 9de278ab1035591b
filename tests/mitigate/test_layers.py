import numpy as np
import pytest
import scipy.fft
import torch
from scipy.ndimage import correlate1d
from torchvision.transforms.v2.functional import gaussian_blur

from pfungst.anomaly import D2Neighbors
from pfungst.errors import InputError
from pfungst.mitigate import GaussianBlur, LowPass, layer_from_dict, propose_cutoff
from pfungst.relevance import DCTBands, PixelBands, Pixels
from pfungst.relevance.dct import zigzag_rank


def images(count=3, height=20, width=24, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_blur_is_torchvisions_and_scipys():
    x = images()
    ours = GaussianBlur(11, 2.0)(x)
    torch.testing.assert_close(ours, gaussian_blur(x, [11, 11], [2.0, 2.0]), atol=1e-6, rtol=1e-5)
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 2.0) ** 2)
    kernel /= kernel.sum()
    expected = correlate1d(
        correlate1d(x.double().numpy(), kernel, 2, mode="mirror"), kernel, 3, mode="mirror"
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_low_pass_keeps_what_is_below():
    x = images().double()
    spectrum = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, zigzag_rank(20, 24) >= 37] = 0
    expected = scipy.fft.idctn(spectrum, axes=(2, 3), norm="ortho")
    low = LowPass(37)
    np.testing.assert_allclose(low(x), expected, atol=1e-12)
    torch.testing.assert_close(low(low(x)), low(x))
    torch.testing.assert_close(LowPass(20 * 24)(x), x)
    torch.testing.assert_close(LowPass(1)(x), x.mean((2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize("layer", [GaussianBlur(7, 1.5), LowPass(12)], ids=repr)
def test_layers_are_saved_by_name(layer):
    again = layer_from_dict(layer.to_dict())
    assert type(again) is type(layer)
    assert torch.equal(again(images()), layer(images()))
    assert repr(again) == repr(layer)
    assert not layer.state_dict()


@pytest.mark.parametrize(
    "call",
    [
        lambda: GaussianBlur(10),
        lambda: GaussianBlur(11, 0),
        lambda: GaussianBlur(11)(images(height=5)),
        lambda: LowPass(0),
        lambda: layer_from_dict({"name": "sharpen"}),
        lambda: propose_cutoff(np.ones((2, 3))),
        lambda: propose_cutoff(np.ones((2, 3)), edges=[0, 3, 9]),
        lambda: propose_cutoff(np.zeros((2, 3)), edges=[0, 3, 9, 16]),
        lambda: propose_cutoff(np.ones((2, 3)), edges=[0, 3, 9, 16], keep=0),
        lambda: propose_cutoff(np.ones((2, 3)), edges=[0, 3, 9, 16], labels=[1, 1]),
        lambda: propose_cutoff(D2Neighbors().fit(images(8)).explain(images(2), Pixels())),
        lambda: propose_cutoff(D2Neighbors().fit(images(8)).explain(images(2), DCTBands(count=3))),
    ],
)
def test_unusable_input(call):
    with pytest.raises(InputError):
        call()


def test_cutoff_by_share():
    spectrum = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    edges = [0, 3, 9, 30, 100]
    assert propose_cutoff(spectrum, edges, keep=0.7) == (9, pytest.approx(0.7), None)
    assert propose_cutoff(spectrum, edges, keep=1.0).cutoff == 100
    assert propose_cutoff(spectrum, [0, 3, 3, 30, 100], keep=0.4).cutoff == 3


def test_cutoff_finds_the_defects_band_and_mends_the_detector():
    # Defects are smooth blobs; the grain of the sensor is in all images and carries most of the score.
    generator = torch.Generator().manual_seed(0)

    def scene(count, defect):
        yy, xx = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        blob = torch.exp(-((yy - 12) ** 2 + (xx - 18) ** 2) / 40)
        grain = 0.06 * torch.randn(count, 3, 32, 32, generator=generator)
        return (0.5 + 0.15 * defect * blob + grain).clamp(0, 1)

    train, labels = scene(40, 0), np.repeat([0, 1], 20)
    validation = torch.cat([scene(20, 0), scene(20, 1)])
    detector = D2Neighbors().fit(train)
    joint = detector.explain(validation, PixelBands(count=12))
    found = propose_cutoff(joint, labels=labels)
    assert found.cutoff < 32 * 32 / 4
    assert found.separation >= 0.95
    spectrum = detector.explain(validation, DCTBands(count=12))
    assert propose_cutoff(spectrum, labels=labels, image_size=(32, 32)).cutoff == found.cutoff
    mended = D2Neighbors(features=LowPass(found.cutoff)).fit(train)
    exposed = mended.explain(validation, DCTBands(edges=(0, found.cutoff, None))).values
    assert exposed[:, 1].abs().sum() <= 1e-4 * exposed[:, 0].sum()

    def separation(model):
        scores = model.anomaly_score(validation)
        return (scores[20:, None] > scores[:20]).float().mean()

    assert separation(mended) >= separation(detector)
