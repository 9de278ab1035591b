"""pfungst reproduce: the catalogue, the papers' numbers, and every table and figure at the smallest size."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import confusion_matrix

from pfungst.anomaly.letters import letters_backbone, train_letters
from pfungst.audit.result import Interval, load
from pfungst.errors import CheckpointError, ConfigError, DataError, InputError
from pfungst.label import Study, read_task
from pfungst.measure.choice import choose_detector, criterion
from pfungst.papers import catalogue, find
from pfungst.papers.answers import shared, study_of
from pfungst.papers.cartoon import agreement, detectors, sample, truth
from pfungst.papers.catalogue import table
from pfungst.papers.classifiers import trained_on
from pfungst.papers.detectors import RETAINED, categories
from pfungst.papers.detectors import audit as audit_of_detectors
from pfungst.papers.diffused import exact
from pfungst.papers.encoders import _pruned, called, share_into
from pfungst.papers.lpips import LPIPS
from pfungst.papers.made import Made, Number, Numbers, Wish, mean_of
from pfungst.papers.neuron_votes import judged
from pfungst.papers.neurons import nearest_distances
from pfungst.papers.page import page
from pfungst.papers.pooled import FOUND, most_shown
from pfungst.papers.probe_maps import group_mean
from pfungst.papers.run import reproduce
from pfungst.papers.stand_ins import letters
from pfungst.relevance import Pixels, Relevance
from pfungst.report.page import render
from pfungst.report.text import percent
from pfungst.spurious import NeuralPCA

ROOT = Path(__file__).parents[2]
PAPERS = ROOT.parent / "shared" / "papers"
DOCS = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
MADE = re.findall(r"^\| \S+ \|.*?`pfungst reproduce (\S+)`", DOCS, re.MULTILINE)


def quick_first(keys):
    """One table or figure of every maker; the others, and the sweep of audits, are slow."""
    seen = {"encoders:sweep"}
    for key in keys:
        maker = find(key).maker
        yield key if maker not in seen else pytest.param(key, marks=pytest.mark.slow)
        seen.add(maker)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all, so that figures of one audit share it."""
    return tmp_path_factory.mktemp("papers")


def make(key, out):
    return reproduce(Wish(find(key), out, stand_in=True, tiny=True, device="cpu"))


def values(cell):
    """Ours and the paper's."""
    return [v for v in (cell.ours and cell.ours.value, cell.paper) if v is not None]


def digits(numbers, cell, value):
    """A number as the page has to show it: the paper's digits, 2 or 3; counts whole."""
    if numbers.unit == "percent":
        return percent(value)
    printed = [len(f"{c.paper:g}".split(".")[-1]) for c in numbers.cells if c.paper is not None]
    n = 0 if cell.column in numbers.counts else 3 if max(printed, default=0) >= 3 else 2
    shown = f"{value:.{n}f}"
    return shown.lstrip("-") if float(shown) == 0 else shown.replace("-", "−")


@pytest.mark.parametrize("key", list(quick_first(MADE)))
def test_every_table_and_figure_of_the_docs_is_made_from_its_stand_in(key, out):
    found, where = make(key, out)
    html = where.read_text()
    assert ("Stand-in" in html) == (find(key).needs != "nothing")
    assert found.stand_in.startswith("stand-in:")
    assert json.loads((out / f"{key}.json").read_text())["id"] == key
    assert found.numbers or "<svg" in html or "<img" in html or "<image" in html
    shown = Counter(re.findall(r'(?:class="value">|<small>)([^<]*)', html))
    for numbers in found.numbers:
        assert any(cell.ours is not None for cell in numbers.cells)
        assert all(digits(numbers, cell, v) in shown for cell in numbers.cells for v in values(cell))
        for cell in numbers.cells:
            assert cell.row in numbers.rows
            assert cell.column in numbers.columns


def test_the_docs_hold_the_catalogue():
    assert table() in DOCS
    assert [p.id for p in catalogue().values() if p.maker] == MADE
    assert not re.search(r"python only", DOCS, re.IGNORECASE)


def test_every_piece_is_made_by_something_or_says_why_not():
    for piece in catalogue().values():
        assert piece.state in ("done", "stand-in only", "drawing", "missing")
        assert bool(piece.maker) == (piece.state in ("done", "stand-in only"))
        if piece.maker:
            assert piece.needs
            assert piece.stand_in
            assert piece.make().__doc__
        else:
            with pytest.raises(ConfigError, match="cannot be made"):
                piece.make()
        if piece.state in ("stand-in only", "missing"):
            assert piece.note


def test_numbers_without_data_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="001-table2 needs MVTec AD"):
        reproduce(Wish(find("001-table2"), tmp_path))
    with pytest.raises(ConfigError, match="001-table2"):
        find("001-table3")


@pytest.mark.parametrize("key", [k for k, p in catalogue().items() if p.maker and p.needs != "nothing"])
def test_nothing_is_made_up_where_neither_data_nor_a_stand_in_are_asked_for(key, tmp_path):
    """001-series once made its own waves without --stand-in."""
    with pytest.raises(ConfigError, match=rf"{key} needs .*|--data FOLDER"):
        reproduce(Wish(find(key), tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not PAPERS.is_dir(), reason="the papers are not here")
@pytest.mark.parametrize(
    ("key", "row", "printed"),
    [
        ("001-table2", "D2Neighbors", "| D2Neighbors | 0.91 (FNR 4%) | 0.82 ↓ (FNR 23%) |"),
        ("001-table1", "SimCLR", "| SimCLR | – | – | 74.8 | 74.8 | 81.4 | 74.8 ↓↓ |"),
        ("003-table2", "ImageNet1k: VOLO-D5 224", "VOLO-D5 224[85] | 85.4% | 0.863 | 85.3% | 0.890 |"),
        ("003-table2", "ImageNet21k: BEiTV2-L/16 224", "BEiTV2-L\\16 224[46] | - | 0.951 | - | 0.951 |"),
        ("003-table1", "MIM: EVA-G/14 CLIP 560", "EVA-G\\14 CLIP 560[24] | 89.8% | 0.919 | 89.8% | 0.925 |"),
    ],
)
def test_numbers_are_those_of_the_paper(key, row, printed):
    """The line of the paper, read here a second way: its numbers in order."""
    texts = "\n".join(p.read_text() for p in PAPERS.glob(f"{key[:3]}_*.txt"))
    flat = re.sub(r"\s*\|\s*", " | ", re.sub(r"\s+", " ", texts))
    line = re.sub(r"\s*\|\s*", " | ", printed).strip()
    assert line in f"| {flat}"
    read = re.sub(r"^\|?[^|]*\|", "", printed)
    wanted = [float(v) for v in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", read)]
    ours = list(find(key).numbers[row].values())
    scaled = [w / 100 if w > 1 else w for w in wanted]
    assert sorted(ours) == pytest.approx(sorted(scaled))


def test_table_2_is_the_audit_that_lies_beside_it(out):
    found, _ = make("001-table2", out)
    (folder,) = (out / "audits").glob("detectors-*patchcore*")
    result = load(folder)
    entries = [e for e in result.entries if e.model == "d2neighbors:p=4"]
    cell = found.numbers[0].at("D2Neighbors ℓ4", "F1 deployed")
    assert cell.ours.value == pytest.approx(np.mean([e.deployed.f1.value for e in entries]))
    assert cell.paper == 0.84
    assert cell.difference.value == pytest.approx(cell.ours.value - 0.84)
    before = (folder / "result.json").stat().st_mtime_ns
    make("002-table3", out)
    assert (folder / "result.json").stat().st_mtime_ns == before  # shared, not made again


# --- formulas, by numpy ----------------------------------------------------------------------------------


def test_a_page_says_what_is_ours_what_the_papers_and_what_the_difference_is(tmp_path):
    """Rows that only the paper has were three lines each, with an empty difference; −0.00 stood for 0."""
    ours = {
        "a": {"x": Interval(value=0.8123, low=0.7, high=0.9), "n": 3.0},
        "b": {"x": 0.5},
        "c": {"x": 0.6301},
    }
    theirs = {"a": {"x": 0.75}, "c": {"x": 0.6304}, "d": {"x": 0.981}}
    numbers = Numbers.of("T", ours, theirs, caption="All.", counts=["n"])
    wish = Wish(find("003-table1"), tmp_path, stand_in=True)
    html = render(page(wish, Made([numbers])))
    (table,) = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    lines = [
        re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr.*?</tr>", unescape(table), re.DOTALL)
    ]
    assert lines == [
        ["x", "n"],
        ["a"], ["ours", "0.812", "0.700–0.900", "3"], ["paper", "0.750"], ["difference", "+0.062", "−0.050", "to", "0.150"],
        ["c"], ["ours", "0.630"], ["paper", "0.630"], ["difference", "0.000"],
        ["ours"], ["b", "0.500"],
        ["the", "paper's,", "not", "measured", "here"], ["d", "0.981"],
    ]  # fmt: skip
    assert "The difference is ours less the paper's" in unescape(html)
    assert "The paper prints no numbers here" in render(page(wish, Made([Numbers.of("T", ours, {})])))


def test_a_mean_over_categories_has_the_interval_of_independent_parts():
    """Against drawing from normal distributions of the same widths."""
    parts = [Interval(value=0.9, low=0.86, high=0.94), Interval(value=0.7, low=0.6, high=0.8)]
    found = mean_of(parts)
    rng = np.random.default_rng(0)
    draws = np.mean([rng.normal(p.value, (p.high - p.low) / 2 / 1.96, 200_000) for p in parts], axis=0)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-3)
    assert found.value == pytest.approx(0.8)
    assert mean_of([Interval(value=1.0), Interval(value=0.0)]) == Interval(value=0.5)


def test_differences_carry_the_interval_of_ours():
    number = Number(row="a", column="b", ours=Interval(value=0.8, low=0.7, high=0.85), paper=0.9)
    assert number.difference.value == pytest.approx(-0.1)
    assert (number.difference.low, number.difference.high) == pytest.approx((-0.2, -0.05))
    numbers = Numbers.of("t", {"a": {"x": 0.5, "y": float("nan")}}, {"a": {"y": 0.4}, "c": {"x": 0.1}})
    assert (numbers.rows, numbers.columns) == (["a", "c"], ["x", "y"])
    assert numbers.at("a", "y").ours is None


def test_the_criterion_pays_for_exposure():
    table = {"deep": (0.99, 0.7, 0.1), "bag": (0.95, 0.3, 0.2), "kde": (0.9, 0.2, 0.2)}
    found = choose_detector(table)
    by_hand = {name: auroc - 0.5 * np.max(exposed) for name, (auroc, *exposed) in table.items()}
    assert {n: v for n, (v, _) in found.items()} == pytest.approx(by_hand)
    order = [n for n, _ in sorted(found.items(), key=lambda item: item[1][1])]
    assert order == sorted(by_hand, key=by_hand.get, reverse=True)
    assert [rank for _, rank in choose_detector({"a": (0.8, 0.2), "b": (0.8, 0.2)}).values()] == [1, 1]
    with pytest.raises(Exception, match=r"1.2 is not in"):
        criterion(0.9, [1.2])


def test_nearest_distances_by_loops():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 5)))
    expected = []
    for a in range(3):
        for b in range(a + 1, 3):
            forth = [min(np.linalg.norm(p - q) for q in x[b].numpy()) for p in x[a].numpy()]
            back = [min(np.linalg.norm(p - q) for q in x[a].numpy()) for p in x[b].numpy()]
            expected.append((np.mean(forth) + np.mean(back)) / 2)
    np.testing.assert_allclose(nearest_distances(x), expected)


def test_lpips_is_that_of_its_definition_by_loops(tmp_path):
    """Zhang et al. 2018, equation 1, from weights in the layout of the published files."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    network = alexnet().eval()
    rng = np.random.default_rng(0)
    linear = {
        f"lin{k}.model.1.weight": torch.rand(1, n, 1, 1) for k, n in enumerate((64, 192, 384, 256, 256))
    }
    torch.save(network.state_dict(), tmp_path / "alexnet.pth")
    torch.save(linear, tmp_path / "alex.pth")
    a, b = x = torch.from_numpy(rng.random((2, 3, 64, 64), dtype=np.float32))
    kept = []
    for i in (1, 4, 7, 9, 11):
        network.features[i].register_forward_hook(
            lambda m, i, out: kept.append(out.numpy().astype(float).copy())
        )
    with torch.no_grad():
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        network.features((2 * x - 1 - shift[:, None, None]) / scale[:, None, None])
    expected = 0.0
    for maps, w in zip(kept, linear.values(), strict=True):
        _, _, height, width = maps.shape
        for i in range(height):
            for j in range(width):
                y, z = (m[:, i, j] / (np.linalg.norm(m[:, i, j]) + 1e-10) for m in maps)
                expected += float(w.double().numpy().ravel() @ (y - z) ** 2) / (height * width)
    lpips = LPIPS(tmp_path / "alexnet.pth", tmp_path / "alex.pth")
    one, two = lpips(torch.stack([a, b]))
    assert float((one - two).pow(2).sum()) == pytest.approx(expected, rel=1e-5)
    assert nearest_distances(torch.stack([one, two])[:, None], power=2) == pytest.approx([expected], rel=1e-5)
    assert lpips(torch.rand(1, 3, 31, 31)).shape[0] == 1
    with pytest.raises(InputError, match="images of 30 px are too small"):
        lpips(torch.rand(1, 3, 30, 31))
    torch.save({k: -v for k, v in linear.items()}, tmp_path / "alex.pth")
    with pytest.raises(CheckpointError, match="negative weights"):
        LPIPS(tmp_path / "alexnet.pth", tmp_path / "alex.pth")
    with pytest.raises(CheckpointError, match="lacks"):
        LPIPS(tmp_path / "alexnet.pth", tmp_path / "alexnet.pth")


def test_lpips_stands_beside_the_other_distances(tmp_path, out):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    linear = {
        f"lin{k}.model.1.weight": torch.rand(1, n, 1, 1) for k, n in enumerate((64, 192, 384, 256, 256))
    }
    files = {"alexnet": tmp_path / "a.pth", "lpips": tmp_path / "l.pth"}
    torch.save(alexnet().state_dict(), files["alexnet"])
    torch.save(linear, files["lpips"])
    wish = Wish(find("003-fig17"), out, stand_in=True, tiny=True, device="cpu", more=files)
    made, _ = reproduce(wish)
    assert all(made.numbers[0].at(row, "least LPIPS distance").ours.value > 0 for row in made.numbers[0].rows)
    with pytest.raises(ConfigError, match="LPIPS needs two files"):
        reproduce(replace(wish, more={"lpips": files["lpips"]}))


def test_class_extension_and_shared_features_are_counted():
    """Against a loop over answers, and scipy's Wilson interval."""
    p = np.random.default_rng(0).dirichlet(np.full(4, 0.4), size=60)
    own, other, share = shared(p, 1)
    answers = [max(range(4), key=row.__getitem__) for row in p.tolist()]
    rest = Counter(a for a in answers if a != 1)
    assert (other, share.value) == (rest.most_common(1)[0][0], rest.most_common(1)[0][1] / 60)
    wilson = binomtest(answers.count(1), 60).proportion_ci(method="wilson")
    assert (own.low, own.high) == pytest.approx((wilson.low, wilson.high))
    assert shared(np.eye(4)[[1, 1]], 1)[1:] == (None, None)


def test_encoders_that_the_paper_calls_alike_keep_their_own_names():
    """Two ResNets were one row "Supervised", the second over the first."""
    assert called(["resnet18", "vissl:a.pth", "rn50"]) == ["Supervised", "SimCLR", "CLIP"]
    assert called(["resnet18 robust", "simclr_resnet", "resnet18 standard"]) == [
        "resnet18 robust",
        "SimCLR",
        "resnet18 standard",
    ]


def test_the_pruned_encoder_is_the_one_with_its_checkpoint(tmp_path, monkeypatch):
    """The sweep once dropped ",checkpoint=FILE" and would have pruned random weights."""
    seen = []

    def audit(wish, task, name="", **options):
        seen.append(options)
        raise ConfigError("enough", "")

    monkeypatch.setattr("pfungst.papers.encoders.audit", audit)
    (tmp_path / "imagenet").mkdir()
    models = "torchvision:resnet50,checkpoint=clip.pth,vissl:b.pth"
    wish = Wish(find("002-table2"), tmp_path, tmp_path, models=models, more={"logo": tmp_path / "logo.png"})
    with pytest.raises(ConfigError, match="enough"):
        _pruned(wish, "truck", 3)
    assert seen[0]["encoder"] == "torchvision:resnet50,checkpoint=clip.pth"
    assert (seen[0]["mitigate"], seen[0]["sweep"]) == ("prune:relu3:3:rows=90-", [3])
    assert _pruned(wish, "fish", 3) == ({}, None)  # no logo is pasted there


def test_the_component_that_other_classes_show_most_by_a_loop():
    alpha = np.random.default_rng(0).normal(size=(50, 4))
    means = [np.mean(sorted(column)[-7:]) for column in alpha.T]
    assert most_shown(torch.from_numpy(alpha), 7) == int(np.argmax(means))
    assert most_shown(torch.from_numpy(alpha[:3]), 7) == int(np.argmax(alpha[:3].mean(0)))


def test_training_data_are_read_from_the_tags_of_timm():
    """Tags of models in the paper's table 2, and what it files them under."""
    filed = {
        "timm:convnext_base.fb_in22k_ft_in1k": "ImageNet21kFT1k",
        "timm:convnext_base.fb_in22k": "ImageNet21k",
        "timm:resnet50.a1_in1k": "ImageNet1k",
        "timm:tf_efficientnet_b7.ns_jft_in1k": "JFT-300M",
        "timm:resnet50.fb_ssl_yfcc100m_ft_in1k": "YFCC-100M",
        "timm:convnext_base.clip_laion2b_augreg_ft_in1k": "LAION-2B",
        "timm:eva_giant_patch14_336.m30m_ft_in22k_in1k": "MIM",
        "timm:resnet50": "",
        "torchvision:resnet50": "",
        "efficientnet-lite0": "ImageNet1k",
    }
    assert {spec: trained_on(spec) for spec in filed} == filed
    table = find("003-table2").numbers
    assert {name for name in filed.values() if name} <= {row.partition(":")[0] for row in table}


def test_the_exact_denoiser_is_the_mean_of_the_posterior():
    """Bayes' rule by numpy, image by image."""
    rng = np.random.default_rng(0)
    known, noised = rng.random((5, 1, 2, 2)), rng.normal(size=(3, 1, 2, 2))
    found = exact(torch.from_numpy(known), 50)
    for t in (0, 10, 49):
        level = float(np.prod(1 - np.linspace(1e-4, 0.02, 50)[: t + 1]))
        expected = []
        for x in noised:
            log_p = [norm.logpdf(x, np.sqrt(level) * (2 * k - 1), np.sqrt(1 - level)).sum() for k in known]
            p = np.exp(np.array(log_p) - max(log_p))
            expected.append(sum(w * (2 * k - 1) for w, k in zip(p / p.sum(), known, strict=True)))
        np.testing.assert_allclose(found.clean(torch.from_numpy(noised), t), expected, rtol=1e-6)


def test_a_diffusion_model_is_read_as_diffusers_saves_it(tmp_path, out):
    """The counterfactuals of figure 27 with a pipeline of its own; one of another size is refused."""
    diffusers = pytest.importorskip("diffusers")
    for size in (32, 16):
        unet = diffusers.UNet2DModel(size, 3, 3, block_out_channels=(8,), down_block_types=("DownBlock2D",),
                                     up_block_types=("UpBlock2D",), layers_per_block=1, norm_num_groups=4)  # fmt: skip
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(50)).save_pretrained(tmp_path / str(size))
    wish = Wish(find("003-fig27"), out, stand_in=True, tiny=True, device="cpu")
    made, _ = reproduce(replace(wish, more={"diffusion": tmp_path / "32"}))
    (row,) = made.numbers[0].rows
    assert made.numbers[0].at(row, "probability, counterfactual").ours.value <= 1
    assert not any("exact denoiser" in note for note in made.notes)
    with pytest.raises(ConfigError, match="makes images of 16 px, the classifier reads 32 px"):
        reproduce(replace(wish, more={"diffusion": tmp_path / "16"}))
    with pytest.raises(ConfigError, match="holds no diffusers pipeline"):
        reproduce(replace(wish, more={"diffusion": tmp_path}))


def test_categories_are_chosen_by_the_f1_of_d2neighbors(tmp_path):
    """Of parts that are no categories of the paper's those above 0.9 of the audit; named ones go first."""
    from pfungst.datasets.synthetic import make_parts
    from pfungst.papers.stand_ins import write_mvtec

    data = write_mvtec(make_parts(train=8, good=5, defective=4, size=96, seed=1), tmp_path / "parts")
    (data / "complete").unlink()
    wish = Wish(find("001-table2"), tmp_path / "out", data, size=48, seeds=1, device="cpu")
    own = load(audit_of_detectors(wish, ["d2neighbors"])[1])
    expected = tuple(e.category for e in own.entries if e.original.f1.value > 0.9)
    if expected:
        assert categories(wish) == expected
    else:
        with pytest.raises(ConfigError, match="no category with an F1 above"):
            categories(wish)
    assert categories(replace(wish, classes=["x"])) == ("x",)
    for name in RETAINED:
        (data / name).mkdir()
    assert categories(wish) == RETAINED


def test_images_with_only_a_feature_are_found_where_none_are_given(tmp_path, out):
    """003-table1 of classifiers and images of one's own: highest α among images of other classes, by hand."""
    first, _ = make("003-table1", out)  # makes the digits and the classifiers
    assert first.stand_in
    root = out / "data" / "planted"
    spec = f"pfungst.audit.classifier.demo:model,checkpoint={root / 'robust.safetensors'}"
    wish = Wish(
        find("003-table1"), tmp_path / "own", root / "train", stand_in=True, models=f"{spec};{spec[:-18]}standard.safetensors",
        more={"val": root / "val"}, size=32, classes=["7", "3"], device="cpu",
    )  # fmt: skip
    found, _ = reproduce(wish)
    assert len({c.row for c in found.numbers[0].cells if c.ours is not None}) == 2
    assert any("No person looked" in note for note in found.notes)
    place = tmp_path / "own" / "data" / "pooled"
    chosen = json.loads((place / "components.json").read_text())
    assert chosen["chosen_by"] == "rule"
    audits = {
        f.parent: load(f.parent) for f in (tmp_path / "own" / "audits" / "classifiers").glob("*/result.json")
    }
    assert sorted(r.chosen_by for r in audits.values()) == ["rule", "transfer"]
    folder, result = next((f, r) for f, r in audits.items() if r.chosen_by == "rule")
    entry = next(e for e in result.entries if e.name == "7")
    assert entry.fixed == chosen["components"][str(entry.index)]
    study, _ = study_of(result, folder)
    npca = NeuralPCA.load(folder / "npca")
    alpha = {}
    for i, k in enumerate(study.val.labels):
        phi = study.head.features(study.val[i][1][None])
        if k != entry.index:
            alpha[f"{i:06d}"] = float(npca.alpha_features(phi, entry.index)[0, entry.fixed[0]])
    best = sorted(alpha, key=alpha.get, reverse=True)[:FOUND]
    found = place / "spurious" / f"spurious_class_7_component_{entry.fixed[0]}"
    assert {f.stem.partition("-")[2] for f in found.iterdir()} == set(best)


def test_the_majority_of_five_judges_the_neurons(tmp_path, out):
    """Votes given in the labelling app, counted here by hand; another model's task is refused."""
    make("003-fig5", out)
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "data" / "neurons"
    people = ["ann", "bob", "cid", "dot", "eve"]
    study = Study(folder, people)
    rng = np.random.default_rng(0)
    votes = {item: rng.random(5) < 0.5 for item in study.items}
    for item, of in votes.items():
        for person, vote in zip(people, of.tolist(), strict=True):
            said = "spurious" if vote else "not"
            assert study.act(person, item, study.progress(person).sequence(item), "answer", said)
    study.close()
    found, where = make("003-fig5", tmp_path)
    for index, name in {(e.class_index, e.class_name) for e in read_task(folder).items}:
        expected = sum(of.sum() >= 3 for item, of in votes.items() if item.startswith(f"{index}-"))
        assert found.numbers[0].at(f"{name}, neurons", "spurious by majority").ours.value == expected
    assert ", not spurious" in where.read_text()
    with pytest.raises(DataError, match="another model"):
        judged(folder, {"name": "other"})


def test_errors_into_named_classes_are_those_of_the_wrong_answers():
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    matrix = confusion_matrix(true, said)
    expected = np.isin(said[true != said], [1, 3]).mean()
    assert share_into(matrix.tolist(), list("abcde"), ["b", "d"]) == pytest.approx(expected)
    fishes = [
        "n01440764 tench",
        "n02514041 barracouta",
        "c",
        "d",
        "e",
    ]  # what an audit of ImageNet calls them
    assert share_into(matrix.tolist(), fishes, ["barracouta", "d"]) == pytest.approx(expected)
    assert share_into(matrix.tolist(), fishes, ["n02514041 barracouta", "D"]) == pytest.approx(expected)
    with pytest.raises(ConfigError, match="no class is called 'x'"):
        share_into(matrix.tolist(), list("abcde"), ["x"])


def test_letters_of_emnist_train_the_network_that_the_detector_loads(tmp_path):
    """Published files, transposed; the same weights as trained on the upright images by hand."""
    rng = np.random.default_rng(0)
    images, labels = (
        rng.integers(0, 256, (40, 28, 28)).astype(np.uint8),
        rng.integers(1, 27, 40).astype(np.uint8),
    )
    labels[0] = 26
    for part in ("train", "test"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (tmp_path / f"emnist-letters-{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    wish = Wish(find("004-fig2"), tmp_path / "out", stand_in=True, more={"letters": tmp_path})
    loaded = letters_backbone(letters(wish)).state_dict()
    x = torch.from_numpy(images.transpose(0, 2, 1).copy()).float()[:, None].repeat(1, 3, 1, 1) / 255
    expected = train_letters(x, torch.from_numpy(labels.astype(np.int64)) - 1, seed=1907).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(loaded[name], tensor)


def test_a_subgroup_mean_counts_every_image_alike():
    values = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    values[1] *= 1000
    found = group_mean(Relevance(torch.from_numpy(values), torch.zeros(3), Pixels(), torch.zeros(3)))
    np.testing.assert_allclose(found, np.mean([v / np.abs(v).sum() for v in values], axis=0), rtol=1e-5)


def test_the_cartoon_is_computed():
    """Explanations sum to the scores; the KDE's by hand; the way to the normal region from the flank of the ellipse."""
    inliers, outliers = sample(60)
    assert ((inliers / np.array([1.6, 0.35])) ** 2).sum(1).max() <= 1
    for name, (score, explain) in detectors(inliers).items():
        if name != "KDE":  # Pfungst's own has its constant in the bias
            np.testing.assert_allclose(explain(outliers).sum(1), score(outliers), rtol=1e-8)
    way = truth(np.array([[0.0, 1.0], [2.6, 0.0]]))
    np.testing.assert_allclose(way, [[0.0, 0.65**2], [1.0, 0.0]], atol=1e-3)
    np.testing.assert_allclose(
        agreement(np.array([[1.0, -5.0], [0.0, -1.0]]), way[:2]), [0.0, 0.0], atol=1e-3
    )
    centred = inliers - inliers.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    residual = ((outliers - inliers.mean(0)) @ vectors[:, 0]) ** 2
    np.testing.assert_allclose(detectors(inliers)["autoencoder"][0](outliers), residual, rtol=1e-8)
    assert values[0] < values[1]
