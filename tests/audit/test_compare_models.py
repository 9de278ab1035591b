"""Several models in one audit: the same numbers as alone, in folders of their own, resumed one by one."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pfungst.audit.similarity.run as similarity
from classifier_factory import make
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.compare_models import ModelsResult, named_models, run_models
from pfungst.audit.config import listed, with_checkpoint
from pfungst.audit.result import load
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.encoders import load as load_encoder
from pfungst.errors import ConfigError
from pfungst.report import write
from similarity_factory import config, logo, mini_images

OPTIONS = {"seeds": 1, "groups": "scanner", "explain": 6, "size": 16, "patches": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return mini_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "both"
    stamp = f"logo:{logo(tmp_path_factory.mktemp('logo') / 'tag.png')},width=0.6,margin=1"
    return (
        run_models(config(data, out, encoder="small:4,small:6", condition=[stamp], **OPTIONS), write),
        out,
        stamp,
    )


def test_several_models_have_the_numbers_that_each_has_alone(compared, data, tmp_path):
    result, out, stamp = compared
    assert isinstance(result, ModelsResult)
    assert [row.name for row in result.rows] == ["small:4", "small:6"]
    alone = similarity.run(config(data, tmp_path, encoder="small:6", condition=[stamp], **OPTIONS))
    row = result.rows[1]
    for variant in alone.variants:
        assert row.values[str(variant)] == alone.pooled(variant).accuracy
    assert row.values["scanner one"] == next(s for s in alone.scores if s.group == "one").rebalanced
    assert result.metrics["accuracy"].value == min(
        load(out / r.folder).metrics["accuracy"].value for r in result.rows
    )
    assert load(out).model_dump() == result.model_dump()


def test_the_grid_explains_the_same_pair_in_every_model(compared, data):
    """By hand: cosine of the representations of the two images, prepared apart from the audit."""
    from pfungst.data import ImageSet, open_images

    result, out, _ = compared
    arrays = np.load(out / result.arrays)
    (images,) = open_images(data)
    items = {item.id: item for item in images.items}
    for name in ("small:4", "small:6"):
        encoder = load_encoder(name, size=16)
        for i, pair in enumerate(result.pairs):
            two = ImageSet("two", [items[k] for k in pair.ids])
            prepared = two.prepare(encoder.preprocessing.condition, 16)
            with torch.no_grad():
                a, b = encoder.encode(prepared.images).double().numpy()
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert pair.similarity[name] == pytest.approx(cosine, abs=1e-5)
            matrix = arrays[pair.arrays[name]]
            assert matrix.shape == (16, 16)
            assert f"picture_{i}_0" in arrays


def test_finished_models_are_taken_over(data, tmp_path, monkeypatch):
    real, ran = similarity.run, []

    def run(own):
        ran.append(own.encoder)
        if own.encoder == "small:6" and len(ran) == 2:
            raise KeyboardInterrupt
        return real(own)

    monkeypatch.setattr(similarity, "run", run)
    with pytest.raises(KeyboardInterrupt):
        run_models(config(data, tmp_path, encoder="small:4,small:6", **OPTIONS), write)
    with pytest.raises(ConfigError, match="already holds a result"):
        run_models(config(data, tmp_path, encoder="small:4,small:6", **OPTIONS), write)
    (first,) = (p for p in tmp_path.glob("*/result.json"))
    before = first.read_bytes()
    result = run_models(config(data, tmp_path, encoder="small:4,small:6", resume=True, **OPTIONS), write)
    assert ran[3:] == ["small:4", "small:6"]
    assert first.read_bytes() == before  # the first one was resumed, which is free
    assert len(result.rows) == 2


def test_the_page_shows_every_model(compared):
    result, out, _ = compared
    page = write(out, result).read_text()
    assert "The same pairs in every model" in page
    assert page.count("small:6") > 3
    links = re.findall(r'<a href="([^"]*report.html)"', page)
    assert len(links) == 2
    assert all((out / link).is_file() for link in links)  # they began with a #


def test_checkpoints_go_with_their_model_on_the_command_line_and_in_toml(tmp_path):
    texts = listed("timm:a,checkpoint=x.pt,torchvision:b")
    assert [with_checkpoint(t, "--model") for t in texts][1] == ("torchvision:b", None)
    assert str(with_checkpoint(texts[0], "--model")[1]) == "x.pt"
    (tmp_path / "c.toml").write_text('encoder = ["small:4", "small:6"]\nimages = "synthetic"\n')
    assert SimilarityConfig.build(tmp_path / "c.toml").encoder == "small:4;small:6"
    with pytest.raises(ConfigError, match=r"write SPEC or SPEC,checkpoint=FILE"):
        with_checkpoint("a,b=c", "--model")


def test_a_model_may_have_a_size_of_its_own(data, tmp_path):
    """Networks of two sizes in one audit; the encoders see their own."""
    made = config(data, tmp_path / "o", encoder="small:4,size=12,small:6", size=16)
    assert [(n, c.size) for n, c in named_models(made, "encoder")] == [("small:4", 12), ("small:6", 16)]
    (only,) = named_models(config(data, tmp_path / "o", encoder="small:4,size=12"), "encoder")
    assert (only[1].encoder, only[1].size) == ("small:4", 12)
    for wrong in ("small:4,size=x", "small:4,size=4", "small:4,size=12,size=14"):
        with pytest.raises(ConfigError, match="write one size"):
            named_models(config(data, tmp_path / "o", encoder=wrong), "encoder")


def test_wrong_models_are_refused_before_the_first_runs(data, tmp_path, monkeypatch):
    monkeypatch.setattr(similarity, "run", lambda c: pytest.fail("ran"))
    for wrong, said in (
        ("small:4,small:4", "twice"),
        ("small:4,checkpoint=gone.pt,small:6", "gone.pt does not exist"),
        ("small:4,unknown:", "names no encoder"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_models(config(data, tmp_path, encoder=wrong), write)
    with pytest.raises(ConfigError, match="for 2 models"):
        run_models(config(data, tmp_path, encoder="small:4,small:6", checkpoint=data), write)


def test_classifiers_stand_side_by_side(tmp_path):
    """Two checkpoints of one network: the biased one is triggered, its mean and its classes are its own audit's."""
    root = make(tmp_path / "data")
    files = {}
    for name, reliance in (("biased", 40.0), ("clean", 0.0)):
        scope = {}
        exec((root / "toy.py").read_text(), scope)
        net: nn.Module = scope["Net"](reliance)
        files[name] = root / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, str(files[name]))
    spec = ",".join(f"{root / 'toy.py'}:clean,checkpoint={file}" for file in files.values())
    result = run_models(
        ClassifierConfig.build(
            model=spec,
            train=root / "train",
            val=root / "val",
            spurious=root / "spurious",
            size=16,
            witness="none",
            shown=1,
            n_components=4,
            out=tmp_path / "out",
            device="cpu",
        ),
        write,
    )
    biased, clean = result.rows
    assert biased.values["mAUC"].value < clean.values["mAUC"].value
    own = load(tmp_path / "out" / biased.folder)
    assert biased.values["mAUC"] == own.under().mauc
    (row,) = result.classes
    assert row.auc[biased.name] == next(e for e in own.entries if e.name == row.name).under().spurious.auc
    assert "Spurious score against accuracy" in write(tmp_path / "out", result).read_text()
