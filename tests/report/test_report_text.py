import pytest

from pfungst.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.914, "0.91"), (-0.25, "−0.25"), (float("nan"), "–"), (1.0, "1.00")],
)
def test_ratio(value, shown):
    assert text.ratio(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.314, "31 %"), (0.004, "0.4 %"), (0.0, "0 %"), (1.0, "100 %"), (0.997, "99.7 %"), (0.99998, ">99.9 %"), (1e-5, "<\u202f0.1 %".replace("\u202f", " ").replace(" ", "", 1))]
)  # fmt: skip
def test_percent(value, shown):
    assert text.percent(value).replace("\u202f", " ").replace("< ", "<").replace("> ", ">") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5, "1,230"), (0.01234, "0.0123"), (0, "0"), (-7.126, "−7.13"), (98.5, "98.5"), (3.2e-9, "3.20 · 10⁻⁹"), (float("inf"), "–")],
)  # fmt: skip
def test_number(value, shown):
    assert text.number(value).replace("\u202f", " ") == shown


def test_interval_has_the_unit_once():
    assert text.interval(0.22, 0.41, text.percent) == "22–41"
    assert text.interval(-0.2, 0.4, text.ratio) == "−0.20 to 0.40"
    assert text.interval(None, 0.4, text.ratio) == ""


def test_names():
    assert text.shorten("a" * 50, 11) == "aaaaa…aaaaa"
    assert text.shorten("short") == "short"
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.plural(1, "category", "categories") == "1 category"
    assert text.plural(1200, "image") == "1,200 images"
    assert text.duration(95) == "1\u202fmin 35\u202fs"


def test_settings_become_dotted_names():
    settings = {"model": {"p": 2, "features": None, "blur": True}, "seeds": [0, 1], "name": ""}
    assert text.flatten(settings) == [
        ("model.p", "2"),
        ("model.features", "none"),
        ("model.blur", "yes"),
        ("seeds", "0, 1"),
        ("name", "“”"),
    ]
