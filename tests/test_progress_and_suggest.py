"""One progress bar, silent off the terminal; one way to suggest the right name."""

import io

import pytest
import rich
from rich.console import Console

from pfungst.errors import UnreadableImages, few, lines
from pfungst.progress import progress_bar, track
from pfungst.suggest import suggest


@pytest.fixture
def screen(monkeypatch):
    """A terminal whose text can be read."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(rich, "_console", console)
    return console.file


def work():
    with progress_bar("outer", 3, done=1) as bar:
        bar.advance()
        bar.say("another")
        for _ in track(range(4), "inner"):
            pass
        bar.turn("later")
        bar.reach(2, 5)
    return True


def test_nothing_is_drawn_off_the_terminal(capsys):
    assert work()
    assert capsys.readouterr() == ("", "")


def test_bars_are_drawn_one_below_the_other_and_count(screen):
    assert work()
    text = screen.getvalue()
    for part in ("outer", "later", "2/5"):
        assert part in text


def test_hidden_bars_draw_nothing_and_pass_everything_on(screen):
    assert list(track([1, 2, 3], "hidden", show=False)) == [1, 2, 3]
    with progress_bar("hidden", show=False) as bar:
        bar.advance()
        bar.turn("x", 3)
        bar.reach(1, 2)
    assert screen.getvalue() == ""


def test_a_bar_left_by_an_error_or_a_break_makes_room_for_the_next(screen):
    with pytest.raises(ValueError, match="x"), progress_bar("first"):
        raise ValueError("x")
    for _ in track(range(5), "second"):
        break
    with progress_bar("third", 1) as bar:
        bar.advance()
    assert "third" in screen.getvalue()


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("blurr", ["none", "blur"], "did you mean 'blur'? known: none, blur"),
        ("zzz", ["none", "blur"], "known: none, blur"),
        ("zzz", [], "known: none"),
        ("ca", {"c a": 1, "b,": 2}.keys(), "did you mean 'c a'? known: 'c a', 'b,'"),
        ("resnet5O", ["resnet50", *(f"n{i}" for i in range(100))], "did you mean 'resnet50'?"),
        ("zzz", [f"n{i}" for i in range(100)], "known are for example n0, n1, n2, n3, n4 (100 in all)"),
    ],
)
def test_the_nearest_name_is_suggested(name, known, expected):
    assert suggest(name, known).startswith(expected)


def test_long_lists_are_cut_and_say_so():
    assert few("abc") == "a, b, c"
    assert few(range(12), 10) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … and 2 more"
    assert lines("ab", 1) == "\n    a\n    … and 1 more"
    assert "… and 5 more" in str(UnreadableImages([(f"{i}.png", "torn") for i in range(25)]))
