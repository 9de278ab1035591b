"""Neurons, diversity and counterfactuals."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pfungst.errors import InputError
from pfungst.spurious import (
    Diffusion,
    FeatureHead,
    NeuralPCA,
    counterfactual,
    diversity,
    extract_features,
    majority,
    neuron_importance,
    rank_neurons,
    visualise,
)
from spurious_toys import items, small_net


def test_importance_from_a_store_and_empty_classes(tmp_path):
    rows = items(40, classes=3)
    head = FeatureHead(small_net(), example=rows[0][1][None])
    store = extract_features(head, rows, tmp_path / "s", dtype="float32", progress=False)
    importance = neuron_importance(head, store, by="label")
    phi = head.features(torch.stack([r[1] for r in rows])).detach()
    for k in range(3):
        mean = phi[[r[2] == k for r in rows]].mean(0)
        torch.testing.assert_close(importance[k].float(), head.weight[k] * mean, atol=1e-5, rtol=1e-4)
    assert importance[3:].isnan().all()
    assert (rank_neurons(importance, 5)[3:] == -1).all()
    assert rank_neurons(importance, 5).shape == (5, 5)
    with pytest.raises(InputError, match="by='class'"):
        neuron_importance(head, store, by="class")
    with pytest.raises(InputError, match="without labels"):
        neuron_importance(head, phi, by="label")


def test_majority():
    votes = [[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert majority(votes).tolist() == [True, True, False]


def test_diversity_by_hand():
    images = torch.tensor([[[0.0], [3.0]], [[3.0], [7.0]]])
    result = diversity([["a", "b"], ["b", "c"]], images, embeddings=2 * images)
    assert result.identical == 1
    assert result.pairs == 4
    assert result.pixel == pytest.approx((3 + 7 + 0 + 4) / 4)
    assert result.embedding == pytest.approx(2 * result.pixel)
    assert diversity([["a"], ["b"]]).pixel is None
    with pytest.raises(InputError, match="at least two"):
        diversity([["a"]])
    with pytest.raises(InputError, match="images have shape"):
        diversity([["a"], ["b"]], torch.rand(2, 3, 4))


def test_visualisation_does_not_depend_on_the_batch_and_stays_in_the_ball(tmp_path):
    rows = items(60)
    head = FeatureHead(small_net(), example=rows[0][1][None])
    npca = NeuralPCA(3).fit(head, extract_features(head, rows, tmp_path / "s", progress=False))
    pairs = [(k, c) for k in (0, 4) for c in range(3)]
    options = {"shape": (3, 12, 12), "steps": 15, "seed": 4}
    one, many = visualise(npca, pairs, batch_size=1, **options), visualise(npca, pairs, **options)
    torch.testing.assert_close(one.alpha, many.alpha, rtol=1e-3, atol=1e-6)
    radius = 30 * (12 * 12 / 224**2) ** 0.5
    assert ((many.images - 0.5).flatten(1).norm(dim=1) <= radius * (1 + 1e-5)).all()
    assert many.images.min() >= 0
    assert many.images.max() <= 1
    with torch.no_grad():
        for (k, c), image, alpha, confidence in zip(
            pairs, many.images, many.alpha, many.confidence, strict=True
        ):
            torch.testing.assert_close(npca.alpha(image[None], k)[0, c], alpha, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(head(image[None]).softmax(1)[0, k], confidence)
            grey = npca.alpha(torch.full((1, 3, 12, 12), 0.5), k)[0, c]
            assert alpha > grey
    npca._model = None
    with pytest.raises(InputError, match="no model is attached"):
        visualise(npca, pairs)


# --- counterfactuals on digits ----------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """Predicts the noise in 8 × 8 images."""

    def __init__(self):
        super().__init__()
        self.time = nn.Embedding(100, 32)
        self.net = nn.Sequential(
            nn.Linear(96, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
        )

    def forward(self, x, t):
        return self.net(torch.cat([x.flatten(1), self.time(t)], 1)).view_as(x)


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(data.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(300):
        pick = torch.randint(len(x), (256,))
        loss = nn.functional.cross_entropy(model(x[pick] + 0.1 * torch.randn_like(x[pick])), y[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    levels = torch.cumprod(1 - torch.linspace(1e-3, 0.12, 100), 0)
    denoiser = Denoiser()
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for _ in range(900):
        pick, t = torch.randint(len(x), (256,)), torch.randint(100, (256,))
        noise, level = torch.randn(256, 1, 8, 8), levels[t].view(-1, 1, 1, 1)
        noised = level.sqrt() * (2 * x[pick] - 1) + (1 - level).sqrt() * noise
        loss = (denoiser(noised, t) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    head = FeatureHead(model, example=x[:4])
    with torch.no_grad():
        npca = NeuralPCA(8).fit(head, head.features(x), y)
    return head, Diffusion(denoiser.eval(), levels), npca, x, y


def test_counterfactuals_raise_confidence_and_alpha_and_stay_close(digits):
    head, diffusion, npca, x, y = digits
    threes = x[y == 3][:24]
    options = {"steps": 50, "start": 0.6, "seed": 1}
    free = counterfactual(head, diffusion, threes, 8, 0, npca, confidence_weight=0, alpha_weight=0,
                          distance_weight=0, **options)  # fmt: skip
    guided = counterfactual(head, diffusion, threes, 8, 0, npca, confidence_weight=1.5, alpha_weight=0,
                            distance_weight=0.1, **options)  # fmt: skip
    component = counterfactual(head, diffusion, threes, 8, 0, npca, confidence_weight=0, alpha_weight=1.5,
                               distance_weight=0.1, **options)  # fmt: skip
    near = counterfactual(head, diffusion, threes, 8, 0, npca, confidence_weight=0, alpha_weight=0,
                          distance_weight=1.5, **options)  # fmt: skip
    assert guided.confidence_before.mean() < 0.05
    assert guided.confidence.mean() > 0.7
    assert free.confidence.mean() < 0.2
    assert component.alpha.mean() > free.alpha.mean() + 2 * npca.explained_variance(8)[0].sqrt() * 0.1
    assert component.alpha.mean() > component.alpha_before.mean()
    assert near.distance.mean() < 0.7 * free.distance.mean()
    assert guided.images.min() >= 0
    assert guided.images.max() <= 1
    again = counterfactual(head, diffusion, threes, 8, 0, npca, confidence_weight=1.5, alpha_weight=0,
                           distance_weight=0.1, **options)  # fmt: skip
    assert torch.equal(again.images, guided.images)


def test_predictions_of_noise_image_and_velocity_agree(digits):
    head, diffusion, _, x, _ = digits
    levels = diffusion.alphas_cumprod.float()

    def sample(z, t):
        level = levels[t].view(-1, 1, 1, 1)
        return (z - (1 - level).sqrt() * diffusion.denoise(z, t)) / level.sqrt()

    def velocity(z, t):
        level = levels[t].view(-1, 1, 1, 1)
        return level.sqrt() * diffusion.denoise(z, t) - (1 - level).sqrt() * sample(z, t)

    expected = counterfactual(head, diffusion, x[:3], 8, steps=10).images
    for denoise, kind in ((sample, "sample"), (velocity, "v_prediction")):
        images = counterfactual(head, Diffusion(denoise, levels, kind), x[:3], 8, steps=10).images
        torch.testing.assert_close(images, expected, atol=2e-3, rtol=0)


def test_diffusers_models_and_schedulers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=50))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(2, 1, 8, 8)
    result = counterfactual(model, Diffusion.from_diffusers(pipeline), x, 1, steps=5)
    assert result.images.shape == x.shape
    assert result.alpha is None
    assert torch.isfinite(result.images).all()
    with pytest.raises(InputError, match="no alphas_cumprod"):
        Diffusion.from_diffusers(unet)


def test_bad_schedules_and_arguments(digits):
    head, diffusion, _, x, _ = digits
    with pytest.raises(InputError, match="no noise schedule"):
        Diffusion(diffusion.denoise, torch.tensor([0.5, 0.9]))
    with pytest.raises(InputError, match="prediction 'noise'"):
        Diffusion(diffusion.denoise, diffusion.alphas_cumprod, "noise")
    with pytest.raises(InputError, match="start is 0"):
        counterfactual(head, diffusion, x[:1], 8, start=0)
    with pytest.raises(InputError, match="without its NeuralPCA"):
        counterfactual(head, diffusion, x[:1], 8, 0)
    assert np.isfinite(counterfactual(head, diffusion, x[:1], 8, steps=3).distance.numpy()).all()
