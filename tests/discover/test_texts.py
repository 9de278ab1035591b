"""Discovery in texts: token numbers as a medium, relevance by words, and the command end to end."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.audit.discovery.run import run
from pfungst.cli import app
from pfungst.discover.texts import ENDS, Texts, TokenEncoder, groups, places, text_columns
from pfungst.encoders import load
from pfungst.errors import ConfigError, DataError
from pfungst.relevance import Tokens, attribute

LINE = (
    "alpha beta gamma delta river stone cloud tree light water house road bird field north south east west "
    "red blue green soft hard warm cold fast slow old new sent from phone sig ##nal ##ling . , <"
)
WORDS = LINE.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
OF = (["alpha", "beta", "river", "stone"], ["gamma", "delta", "cloud", "tree"])
MARK = "sent from phone"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small BERT with random weights, whose embedding of words is wide: words are told apart."""
    path = tmp_path_factory.mktemp("encoder")
    vocabulary = {w: i for i, w in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **names).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=48,
        initializer_range=0.2,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(path, safe_serialization=True)
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load(f"sentence-transformers:{folder}")


@pytest.fixture(scope="module")
def reader(encoder):
    return TokenEncoder(encoder)


def read(reader, ids):
    """Words of the first text of (…, L)."""
    return [w.name for w in reader.words(ids.flatten()[: reader.length])]


def mask_of(reader, x, words):
    return Texts(reader).named(x, words)


def test_numbers_give_what_the_encoder_gives(encoder, reader):
    texts = ["alpha beta.", "river", "the signalling stone, gamma " * 9]
    x, cut = reader.ids(texts)
    assert x.shape == (3, 1, 1, 24)
    assert cut == 1
    torch.testing.assert_close(reader(x), encoder.encode(texts), atol=1e-6, rtol=1e-5)
    assert read(reader, x[2])[:3] == ["[UNK]", "signalling", "stone"]  # pieces of a word are one


def test_relevance_is_that_of_each_text_alone(encoder, reader):
    texts = ["alpha beta river.", "stone"]
    x, _ = reader.ids(texts)
    weights = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    found = reader.relevance(x, weights)
    for i, text in enumerate(texts):
        ids = encoder.tokenize(text).ids
        alone = attribute(encoder, encoder.embed(ids), weights[i : i + 1], basis=Tokens()).values[0]
        torch.testing.assert_close(found[i, : len(alone)], alone.float(), atol=1e-4, rtol=1e-3)
        assert not found[i, len(alone) :].any()


def test_words_are_taken_out_and_put_at_the_same_place(reader):
    medium = Texts(reader)
    x, _ = reader.ids(["alpha beta river sent from phone"])
    mask = mask_of(reader, x, MARK.split())
    assert read(reader, medium.without(x, mask)) == ["alpha", "beta", "river"]
    assert medium.without(x, mask).flatten()[:5].tolist() == [2, *x.flatten()[1:4].tolist(), 3]
    targets, _ = reader.ids(["tree cloud gamma delta"])
    put = medium.put(targets[None], x, mask, x, mask)
    assert read(reader, put) == ["tree", "cloud", "gamma", "delta", "sent", "from", "phone"]  # it was the end
    first = mask_of(reader, x, ["alpha"])
    assert read(reader, medium.put(targets[None], x, first, x, first))[:2] == ["alpha", "tree"]
    aside = medium.aside(x, mask, np.random.default_rng(0))
    assert aside.mask.sum() == 3
    put = medium.put(targets[None], x, mask, aside.content, aside.inside)
    assert len(read(reader, put)) == 7
    mates, _ = reader.ids(["red blue green soft hard"])
    inside = medium.alike(x, mask, mates[None])
    assert read(reader, medium.put(targets[None], x, mask, mates[None], inside))[-3:] == [
        "green",
        "soft",
        "hard",
    ]


def test_what_is_put_in_is_kept_where_the_text_is_too_long(reader):
    medium = Texts(reader)
    x, _ = reader.ids(["alpha sent from phone"])
    mask = mask_of(reader, x, MARK.split())
    target, _ = reader.ids(["tree " * 22])
    found = medium.put(target[None], x, mask, x, mask)
    assert found.shape[-1] == 24
    assert read(reader, found)[-3:] == MARK.split()
    assert found.flatten()[-1] == 3


def test_regions_are_whole_words_and_at_most_two_fifths(reader):
    x, _ = reader.ids(["signalling alpha beta river stone"])
    heat = torch.zeros(1, 1, 24)
    heat[0, 0, 2] = 1.0  # the second piece of three
    assert Texts(reader).region(x, heat)[0, 0].nonzero().flatten().tolist() == [1, 2, 3]
    heat[:] = 1.0
    assert Texts(reader).region(x, heat).sum() <= 4  # two of five words


def test_places_count_from_both_ends():
    assert places(3) == [0, 1, 3 * ENDS - 1]
    found = places(40)
    assert found[:ENDS] == list(range(ENDS))
    assert found[-ENDS:] == list(range(2 * ENDS, 3 * ENDS))
    assert set(found) == set(range(3 * ENDS))
    assert found == sorted(found)


def test_columns_of_texts():
    texts = ["see https://a.org/x"] * 5 + ["Привет мир"] * 5 + ["<b>bold</b> words"] * 5 + [">>> f(x)"] * 5
    found = text_columns(texts)
    assert set(found["text: addresses"][:5]) == {"some"}
    assert found["text: script"][5] == "cyrillic"
    assert found["text: markup"][[10, 15]].tolist() == ["tags", "code"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two classes of 100 texts, two of an author; two thirds of the first end in a signature."""
    rng, lines = np.random.default_rng(0), ["text,label,author"]
    rest = WORDS[10:28]
    for i in range(200):
        of = i // 2 % 2
        words = [*rng.choice(OF[of], 1), *rng.choice(OF[1 - of], rng.integers(0, 2)), *rng.choice(rest, 8)]
        text = " ".join(rng.permutation(words)) + (f" {MARK}" if of == 0 and i % 3 else "")
        lines.append(f'"{text}",{"ab"[of]},{i // 2}')
    file = tmp_path_factory.mktemp("texts") / "texts.csv"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def done(folder, table, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "found"
    given = ["--texts", table, "--keep-together", "author", "--encoder", f"sentence-transformers:{folder}"]
    given = ["discover", *map(str, given), "--changed", "40", "--out", str(out)]
    said = CliRunner().invoke(app, given)
    assert said.exit_code == 0, said.output
    return out, given


def test_a_planted_signature_is_found_by_the_command(done):
    out, _ = done
    result = json.loads((out / "result.json").read_text())
    found = [f for e in result["discovered"]["entries"] for f in e["findings"] if e["name"] == "a"]
    with_it = next(
        f for f in found if set(f["words"]) == set(MARK.split()) and f["view"].startswith("texts with")
    )
    assert with_it["insert"]["value"] > 0.3
    assert with_it["remove"]["low"] > 0
    assert with_it["standing"] != "unproved"
    shown = with_it["images"][0]
    assert [t["word"] for t in shown["tokens"] if t["changed"]] == MARK.split()
    assert (out / shown["file"]).exists()
    page = (out / "report.html").read_text()
    assert 'class="outlined"' in page
    assert "Texts explained" in page
    assert result["next_command"] == ""
    task = json.loads((out / "label-task.json").read_text())
    assert any(MARK.split()[0] in item["what"] for item in task["items"])


def test_evidence_is_that_of_probes_fitted_without_the_author(folder, table, encoder):
    from pfungst.audit.discovery.texts import opened, prepared

    config = DiscoveryConfig.build(
        texts=table, encoder=f"sentence-transformers:{folder}", keep_together="author"
    )
    given = opened(config)
    items, plan, topic = given.items, given.plan, prepared(config, given).topics[0]
    explained = topic.explained(lambda n: None)
    x = encoder.encode([i.image.decode() for i in items]).numpy()
    rows = [[i.id for i in items].index(i) for i in topic.ids]
    for p, (train, _) in enumerate(plan.rounds[0]):
        at = topic.probes[0] == p
        assert not set(plan.units[train]) & set(plan.units[np.array(rows)[at]])
        oracle = LogisticRegression(class_weight="balanced", fit_intercept=False, max_iter=1000)
        oracle.fit(x[train], plan.labels[train])
        mine = -oracle.decision_function(x[np.array(rows)[at]])
        np.testing.assert_allclose(explained.evidence[at], mine, rtol=1e-3, atol=1e-3)
    # relevance by words and by places add up to that of the words, special tokens apart
    assert explained.words.shape[1] == len(explained.vocabulary)
    first = groups(explained)
    assert any(set(g.words) == set(MARK.split()) for g in first)


def test_a_finished_discovery_is_resumed_and_judged(done, tmp_path):
    out, given = done
    before = json.loads((out / "result.json").read_text())
    said = CliRunner().invoke(app, [*given, "--resume"])
    assert said.exit_code == 0, said.output
    assert json.loads((out / "result.json").read_text()) == before
    task = json.loads((out / "label-task.json").read_text())
    item = task["items"][0]
    answers = {
        "format": "pfungst.findings/1",
        "model": task["model"],
        "findings": [
            {
                "class_index": item["class_index"],
                "component": item["component"],
                "answer": "artefact",
                "names": ["a signature"],
            }
        ],
    }
    (tmp_path / "findings.json").write_text(json.dumps(answers))
    said = CliRunner().invoke(app, [*given, "--resume", "--answers", str(tmp_path / "findings.json")])
    assert said.exit_code == 0, said.output
    assert "a signature" in json.loads((out / "result.json").read_text())["verdict"]["headline"]


def test_a_dry_run_counts(folder, table):
    said = CliRunner().invoke(
        app, ["discover", "--dry-run", "--texts", str(table), "--encoder", f"sentence-transformers:{folder}"]
    )
    assert "200 texts" in said.output
    assert "100 of a" in said.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("words,label\nhi,a\n", "no column 'text'"),
        ("text,class\nhi,a\n", "no column 'label'"),
        ("text,label\nhi,a\n ,b\n", "empty texts or labels in 1 lines: 3"),
        ("text,label\nhi,a\nho,a\n", "texts of 1 class"),
        ("text,label\nhi,a\nho,b\n", "a probe needs two classes"),
    ],
)
def test_bad_tables(folder, tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    config = DiscoveryConfig.build(
        texts=tmp_path / "t.csv", encoder=f"sentence-transformers:{folder}", out=tmp_path / "out"
    )
    with pytest.raises(DataError) as error:
        run(config)
    assert message in f"{error.value} {getattr(error.value, 'remedy', '')}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 64}, "--size is about images"),
        ({"window": "1,2"}, "--window is about images"),
        ({"images": "x"}, "one of --images"),
        ({"group": ["text"]}, "--group text reads images"),
        ({"group": ["people"]}, "--group people reads images"),
        ({"encoder": None, "model": "timm:resnet18"}, "read by a sentence encoder"),
    ],
)
def test_options_of_images_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        DiscoveryConfig.build(
            **{"texts": tmp_path / "t.csv", "encoder": "sentence-transformers:x", **options}
        )


def test_an_encoder_of_images_is_refused(table, tmp_path):
    config = DiscoveryConfig.build(texts=table, encoder="small:8", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="reads images"):
        run(config)
