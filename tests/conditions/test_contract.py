"""What every registered step keeps, and what a stranger has to write for one."""

import dataclasses
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import pfungst.conditions
from pfungst.conditions import Condition, Step, condition_page, register
from pfungst.conditions.step import Range
from pfungst.errors import ConfigError
from pfungst.registry import CONDITIONS

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
GAMMA = '''"""Gamma correction."""

from pfungst.conditions import Step, number, register


@register("gamma")
class Gamma(Step):
    """Every value to a power: above 1 darkens, below 1 brightens."""

    title = "gamma correction with exponent {value}"

    value: float = number(0, above=True, example=0.5, neutral=1)

    def __call__(self, x, rng):
        return (x / 255.0 if x.dtype == "uint8" else x).astype("float32") ** self.value
'''


@pytest.fixture
def written(tmp_path):
    """How a step is written, with the files that its example names."""
    Image.fromarray(PIXELS[:4, :8]).save(tmp_path / "tag.png")
    return lambda text: text.replace("tag.png", str(tmp_path / "tag.png"))


def holds(cls, written):
    text = written(cls.example())
    step = Step.parse(text)
    assert str(step) == text
    assert step == Step.parse(str(step)) == pickle.loads(pickle.dumps(step))
    assert hash(step) == hash(Step.parse(text))
    assert step.describe()
    assert "{" not in step.describe()
    chain = f"{text}+none" if cls.crops else f"none+{text}"
    assert Condition.parse(chain).identity().startswith(chain)
    for x in (PIXELS, np.float32(PIXELS / 255)):
        before = x.copy()
        outs = [step(x, np.random.default_rng(3)) for _ in range(2)]
        assert np.array_equal(*outs)  # deterministic
        assert np.array_equal(x, before)  # writes into nothing
        out = outs[0]
        assert out.dtype in (np.uint8, np.float32)
        assert out.ndim == 3
        assert out.shape[2] == 3
        assert cls.crops or out.shape == x.shape
        assert out.min() >= 0
        assert out.max() <= (255 if out.dtype == np.uint8 else 1)
    if cls.neutral() is not None:
        same = Condition.parse(f"{written(cls.neutral())}+none")(PIXELS)
        torch.testing.assert_close(same, Condition.parse("none")(PIXELS), rtol=0, atol=1e-6)
    for field in dataclasses.fields(cls):
        allowed = field.metadata.get("allowed")
        bad = [allowed.low - 1, "much", float("nan"), allowed.high + 1] if isinstance(allowed, Range) else []
        for value in [v for v in [*bad, "a+b"] if v != float("inf")]:
            with pytest.raises(ConfigError):
                dataclasses.replace(step, **{field.name: value})
    with pytest.raises(ConfigError, match="is no option"):
        Step.parse(f"{text},nonsense=1")
    assert f"| `{cls.example()}` |" in condition_page()


@pytest.mark.parametrize("name", CONDITIONS.names())
def test_contract(name, written):
    holds(CONDITIONS[name], written)


class TestStranger:
    """One file with one registration makes a condition of a stranger."""

    @pytest.fixture(autouse=True)
    def forget(self):
        yield
        CONDITIONS.remove("gamma")
        sys.modules.pop("pfungst.conditions.gamma", None)

    def check(self, spec):
        torch.testing.assert_close(
            Condition.parse(f"none+{spec}")(PIXELS), (torch.tensor(PIXELS) / 255).permute(2, 0, 1).sqrt()
        )

    def test_beside_the_others(self, tmp_path, monkeypatch, written):
        (tmp_path / "gamma.py").write_text(GAMMA)
        monkeypatch.setattr(
            pfungst.conditions.__spec__,
            "submodule_search_locations",
            [*pfungst.conditions.__path__, str(tmp_path)],
        )
        monkeypatch.setattr(pfungst.conditions, "__path__", [*pfungst.conditions.__path__, str(tmp_path)])
        assert "gamma" in CONDITIONS.names()
        self.check("gamma:0.5")
        holds(CONDITIONS["gamma"], written)

    def test_by_its_file(self, tmp_path):
        (tmp_path / "mine.py").write_text(GAMMA)
        spec = f"{tmp_path / 'mine.py'}:gamma:value=0.5"
        self.check(spec)
        condition = Condition.parse(f"none+{spec}")
        assert str(condition) == f"none+{tmp_path / 'mine.py'}:gamma:0.5"
        assert pickle.loads(pickle.dumps(condition)) == condition == Condition.parse(str(condition))
        before = condition.identity()
        (tmp_path / "mine.py").write_text(GAMMA + "\n")
        assert condition.identity() != before
        with pytest.raises(ConfigError, match=r"'valu=0.5' in .* is no option"):
            Condition.parse(f"none+{spec.replace('value', 'valu')},valu=3")
        (tmp_path / "other.py").write_text(GAMMA)
        with pytest.raises(ConfigError, match="'gamma' is taken"):  # never one file's under the other's name
            Condition.parse(f"none+{tmp_path / 'other.py'}:gamma:0.5")

    def test_what_is_no_step_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="no step that can be registered"):

            @register("half")
            class Half(Step):
                """Not frozen, without a title."""

        (tmp_path / "mine.py").write_text(GAMMA.replace('"gamma"', '"none"'))
        with pytest.raises(ConfigError, match="no step that can be registered as 'none'"):
            Step.parse(f"{tmp_path / 'mine.py'}:none:1")
