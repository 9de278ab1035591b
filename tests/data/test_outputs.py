"""Labels of a data set and the outputs of a model: ImageNet's classes in any spelling, indices, given names, order."""

from importlib.resources import files

import pytest

from pfungst.data import imagenet_classes as imagenet
from pfungst.data import open_images
from pfungst.data.outputs import match_outputs
from pfungst.errors import InputError

SUBSET = {"n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03888257": 701}


@pytest.mark.parametrize(
    ("outputs", "file"),
    [
        (1000, "imagenet_synsets.txt"),
        (10450, "imagenet21k_miil_w21_synsets.txt"),
        (11221, "imagenet21k_miil_synsets.txt"),
        (11821, "imagenet12k_synsets.txt"),
        (21841, "imagenet22k_synsets.txt"),
        (21842, "imagenet22k_ms_synsets.txt"),
        (21843, "imagenet21k_goog_synsets.txt"),
    ],
)
def test_orders_are_those_of_timm(outputs, file):
    pytest.importorskip("timm")
    listed = files("timm.data").joinpath("_info", file).read_text().split()
    assert list(imagenet.order(outputs)) == listed


def test_names_are_wordnets(tmp_path):
    pytest.importorskip("timm")
    text = files("timm.data").joinpath("_info", "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    lemmas = dict(line.split("\t", 1) for line in text.splitlines())
    assert all(imagenet.title(w) == f"{w} {lemmas[w].split(', ')[0]}" for w in imagenet.order(21843))
    for wnid in imagenet.order(1000):
        for name in lemmas[wnid].split(", "):
            owners = [w for w in imagenet.order(1000) if name in lemmas[w].split(", ")]
            if len(owners) == 1:
                assert imagenet.names(1000)[imagenet.plain(name)] in {(wnid,), *imagenet.names(1000).values()}
    assert imagenet.order(999) is None


def test_a_model_of_1000_classes_knows_wordnet_ids_names_and_indices():
    """Regression: folders named by WordNet id were refused by a model of 1,000 classes."""
    assert match_outputs(SUBSET, 1000).index == SUBSET
    names = {
        "tench": 0, "English_springer": 217, "CASSETTE PLAYER": 482, "chainsaw": 491, "Chain-Saw": 491,
        "n03888257_parachute": 701, "parachute, chute": 701,
    }  # fmt: skip
    assert match_outputs(names, 1000).index == names
    by_index = match_outputs(["0", "491"], 1000)
    assert by_index.index == {"0": 0, "491": 491}
    assert by_index.names == {0: "n01440764 tench", 491: "n03000684 chain saw"}
    assert match_outputs(SUBSET, 1000).name(478) == "n02971356 carton"  # of classes that the data lack, too
    assert (
        match_outputs(["tench"], 21843)
        .names[match_outputs(["tench"], 21843).index["tench"]]
        .endswith("tench")
    )


def test_a_model_of_as_many_outputs_keeps_the_sorted_order():
    found = match_outputs(SUBSET, 5)
    assert found.index == {w: i for i, w in enumerate(sorted(SUBSET))}
    assert found.names[3] == "n03000684 chain saw"
    assert match_outputs(map(str, range(12)), 12).index == {
        str(i): i for i in range(12)
    }  # not 0, 1, 10, 11, 2
    assert match_outputs(["3", "11"], 2).index == {"3": 0, "11": 1}


def test_given_names_are_found_in_any_spelling():
    names = ["English springer", "tench", "n03000684"]
    labels = {"n02102040": 0, "Tench": 1, "chain_saw": 2}
    assert match_outputs(labels, 3, names).index == labels
    with pytest.raises(InputError, match="2 class names are given, the model has 3"):
        match_outputs(labels, 3, names[:2])


@pytest.mark.parametrize(
    ("labels", "n_outputs", "says"),
    [
        (["tench", "chain swa"], 1000, r"'chain swa'(.|\n)*chain saw"),
        (["crane"], 1000, r"names 2 classes(.|\n)*n02012849 crane, n03126707 crane"),
        (["a", "b"], 3, "the model has 3 classes, the image set 2"),
        (["7", "1001"], 1000, "the model has 1000 classes"),
    ],
)
def test_labels_that_match_nothing_are_named(labels, n_outputs, says):
    with pytest.raises(InputError, match=says) as caught:
        match_outputs(labels, n_outputs)
    assert caught.value.remedy


def test_another_order_is_said_in_words():
    by_number = match_outputs(map(str, range(12)), 12)
    as_text = {k: sorted(map(str, range(12))).index(str(k)) for k in range(12)}
    assert by_number.describe(as_text) == "the labels sorted as text"
    by_wnid = match_outputs(SUBSET, 5)
    names = sorted(by_wnid.names.values(), key=lambda name: name.partition(" ")[2].lower())
    alphabetical = {k: names.index(name) for k, name in by_wnid.names.items()}
    assert by_wnid.describe(alphabetical) == "the class names in alphabetical order"
    assert "n01440764 tench at output 2" in by_wnid.describe({0: 2, 1: 1, 2: 0, 3: 3, 4: 4})


def test_links_to_class_folders_are_followed(tmp_path):
    """Regression: class folders that are symbolic links were silently left out."""
    from PIL import Image

    for name in ("store/x", "data/plain"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    (tmp_path / "data/linked").symlink_to(tmp_path / "store/x")
    (tmp_path / "data/linked/up").symlink_to(tmp_path / "data")  # a circle ends
    found = open_images(tmp_path / "data")[0]
    assert {"linked/a.png", "plain/a.png"} <= set(found.ids)
    assert set(found.classes) == {"linked", "plain"}
