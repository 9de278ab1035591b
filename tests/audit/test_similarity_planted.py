"""A planted Clever Hans effect is found and mended; an encoder that never saw the tag is not accused of one."""

import pytest

from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.run import run
from pfungst.datasets import tagged
from pfungst.encoders.training import train_small


def audit(images, out):
    prepared = images.prepare("pillow-bilinear", 32, masks=False)
    train = prepared[prepared.splits == "train"]
    captions = [
        f"digit {c} from {i.groups['source']}" for c, i in zip(train.classes, train.items, strict=True)
    ]
    encoder = train_small(
        train.images, captions, "clip", width=8, steps=60, batch_size=128, learning_rate=5e-3, flip=False,
        min_scale=0.5, seed=3,
    )  # fmt: skip
    tag = tagged.tag_image(height=6)
    tag.save(out / "tag.png")
    return run(
        SimilarityConfig.build(
            encoder=f"pfungst:{encoder.save(out / 'encoder')}", images="synthetic", seed=3, seeds=3, pairs=1, explain=20,
            condition=[f"logo:{out / 'tag.png'},width={tag.width / 32},margin=1"],
            mitigate="prune:auto", sweep="2,5", out=out / "audit",
        )
    )  # fmt: skip


@pytest.mark.slow
def test_a_planted_tag_is_found_and_mended(tmp_path):
    result = audit(tagged.parting_digits(3), tmp_path)
    assert result.verdict.level == "clever-hans"
    assert "'8'" in result.verdict.headline
    (artefact,) = result.artefacts
    assert artefact.share > 4 * artefact.area
    assert result.mitigation.recovered["logo:tag"] > 0.5
    groups = {s.group: s.accuracy.value for s in result.scores if s.variant.key == "original" and s.column}
    assert groups["hospital A"] < groups["hospital B"] - 0.3


@pytest.mark.slow
def test_an_encoder_that_never_saw_the_tag_is_not_accused(tmp_path, monkeypatch):
    clean = tagged.tagged_digits(rate=0.0, elsewhere=0.0, seed=3)
    monkeypatch.setattr(tagged, "parting_digits", lambda seed: clean)
    result = audit(clean, tmp_path)
    assert result.verdict.level in ("sound", "fragile")
    assert result.confusion["logo:tag"].turned_share < 0.5
