"""Discovery in texts: words instead of pixels. A batch of texts is a tensor of token numbers (n, 1, 1, L), −1
where there is none, so that what is proved of images is proved of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.data.traits import binned, common, same_partition
from pfungst.discover.explain import Explanations
from pfungst.discover.prove import FEWEST, Aside
from pfungst.discover.subjects import ClassSubject, Heat, What
from pfungst.errors import InputError
from pfungst.relevance import Tokens, attribute
from pfungst.spurious.evidence import LARGEST, SHARE
from pfungst.spurious.heads import FeatureHead

PREFIX = "text: "
ENDS = 8  # words that are counted one by one from each end of a text; the rest is as many parts
_PAD = -1
_LISTED = 10  # words that are taken out together, at most
_TRIES = 5  # groups of words of most relevance that are tried by themselves
_TOGETHER = 0.8  # Jaccard index of the texts that have two words, from which these are tried together
_DRAWS = 8  # places of a control, of which that with fewest words of the region is taken
_URL = re.compile(r"https?://|www\.|\b[\w.+-]+@[\w-]+\.\w")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_CODE = re.compile(r"^\s*(>>>|```|\$ |[{};]\s*$)|\w\(.*\)|::", re.MULTILINE)


class Word(NamedTuple):
    """Tokens `start` to `stop` of a text, and how they are written together."""

    start: int
    stop: int
    name: str


class TokenEncoder(nn.Module):
    """A sentence encoder that reads token numbers (n, 1, 1, L), −1 for none, and gives (n, K).

    Args:
        encoder: a :class:`pfungst.encoders.text.SentenceEncoder`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.inner = encoder
        tokenizer = encoder.tokenizer
        self.length = int(encoder.max_length)
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        unknown = {tokenizer.unk_token_id}
        special = set(tokenizer.all_special_ids) - unknown
        mark = next((m for m in ("##", "Ġ", "▁") if sum(str(p).startswith(m) for p in pieces) > 1), "")
        goes_on = lambda p: p.startswith("##") if mark in ("##", "") else not p.startswith(mark)
        self._names = [str(p).removeprefix(mark) for p in pieces]
        self._special = [i in special for i in range(len(pieces))]
        self._goes_on = [goes_on(str(p)) for p in pieces]
        self._padding = tokenizer.pad_token_id or 0

    def ids(self, texts: Sequence[str], batch_size: int = 256) -> tuple[Tensor, int]:
        """Token numbers (N, 1, 1, L), L what the model reads at most, and how many texts were cut.

        Raises:
            InputError: something is no text, or empty.
        """
        out = torch.full((len(texts), 1, 1, self.length), _PAD)
        cut = 0
        for start in range(0, len(texts), batch_size):
            some = list(texts[start : start + batch_size])
            found = self.inner.tokenize(some)
            ids = found.ids.cpu().masked_fill(found.mask.cpu() == 0, _PAD)
            out[start : start + len(some), 0, 0, : ids.shape[1]] = ids
            full = self.inner.tokenizer(some, truncation=False, verbose=False)["input_ids"]
            cut += sum(len(f) > self.length for f in full)
        return out, cut

    def embedded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads (n, L', D), and its mask (n, L'), for the longest of these texts."""
        ids = x.flatten(1).to(self.inner.device)
        mask = ids != _PAD
        longest = max(1, int(mask.sum(1).max()))
        ids, mask = ids[:, :longest], mask[:, :longest]
        return self.inner.embed(ids.masked_fill(~mask, self._padding)), mask.long()

    def forward(self, x: Tensor) -> Tensor:
        """Representations (n, K) of token numbers."""
        return self.inner(*self.embedded(x))

    def relevance(self, x: Tensor, weights: Tensor) -> Tensor:
        """Relevance (n, L) of each token for the sum of the representation's values with weights (n, K): with
        the row of a readout, what its logit rests on."""
        found = attribute(self.inner, self.embedded(x), weights, explain=0, basis=Tokens())
        values = found[0].values.float().cpu()
        return nn.functional.pad(values, (0, x.shape[-1] - values.shape[1]))

    def words(self, ids: Tensor) -> list[Word]:
        """The words of one text (L,), in order; special tokens are none."""
        out: list[Word] = []
        fresh = True
        for i, token in enumerate(ids.flatten().tolist()):
            if token == _PAD:
                break
            if self._special[token]:
                fresh = True
            elif self._goes_on[token] and not fresh:
                out[-1] = Word(out[-1].start, i + 1, out[-1].name + self._names[token])
            else:
                out.append(Word(i, i + 1, self._names[token]))
                fresh = False
        return out

    def each(self, x: Tensor) -> list[list[Word]]:
        """The words of texts (n, 1, 1, L)."""
        return [self.words(ids) for ids in x.flatten(1)]


class Texts:
    """What is done to texts, see :class:`pfungst.discover.prove.Medium`: words are taken out, and put between
    the words of others at the place where they were. Half a word is never moved; special tokens stay."""

    def __init__(self, encoder: TokenEncoder) -> None:
        self.encoder = encoder

    def region(self, x: Tensor, heat: Tensor) -> Tensor:
        """The words of most heat (n, 1, L), each with all its tokens, that hold three quarters of what is
        positive, at most 40 % of the words."""
        out = torch.zeros_like(heat)
        for row, (words, h) in enumerate(zip(self.encoder.each(x), heat[:, 0], strict=True)):
            sums = np.array([float(h[w.start : w.stop].sum()) for w in words]).clip(0)
            order = np.argsort(-sums, kind="stable")
            held = np.cumsum(sums[order]) - sums[order] < SHARE * sums.sum()
            for i in order[held & (np.arange(len(order)) < max(1, int(LARGEST * len(order))))]:
                out[row, 0, words[i].start : words[i].stop] = 1
        return out

    def named(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """Where some words are, a mask (n, 1, L)."""
        out = torch.zeros(len(x), 1, x.shape[-1])
        for row, words in enumerate(self.encoder.each(x)):
            for w in words:
                if w.name in names:
                    out[row, 0, w.start : w.stop] = 1
        return out

    def spread(self, grid: Tensor, x: Tensor) -> Tensor:
        """See :class:`Medium`: the value of each word's place among those from both ends."""
        out = torch.zeros(len(x), 1, x.shape[-1])
        for row, words in enumerate(self.encoder.each(x)):
            for w, place in zip(words, places(len(words)), strict=True):
                out[row, 0, w.start : w.stop] = grid[0, place]
        return out

    def widened(self, mask: Tensor) -> Tensor:
        """See :class:`Medium`: whole words are meant already."""
        return mask

    def without(self, x: Tensor, mask: Tensor) -> Tensor:
        """See :class:`Medium`: what follows moves up."""
        out = torch.full_like(x, _PAD)
        for row, (ids, gone) in enumerate(zip(x.flatten(1), mask[:, 0] > 0, strict=True)):
            kept = ids[~gone & (ids != _PAD)]
            out[row, 0, 0, : len(kept)] = kept
        return out

    def aside(self, x: Tensor, mask: Tensor, rng: np.random.Generator) -> Aside:
        """See :class:`Medium`: for each run of words as many elsewhere, where fewest are meant."""
        out = torch.zeros_like(mask)
        for row, words in enumerate(self.encoder.each(x)):
            taken = np.array([bool(mask[row, 0, w.start] > 0) for w in words])
            for start, stop in _runs(taken.copy()):
                tried = rng.integers(0, len(words) - (stop - start) + 1, _DRAWS)
                best = min(tried.tolist(), key=lambda a: int(taken[a : a + stop - start].sum()))
                taken[best : best + stop - start] = True
                for w in words[best : best + stop - start]:
                    out[row, 0, w.start : w.stop] = 1
        return Aside(out, x, out)

    def put(
        self, targets: Tensor, x: Tensor, mask: Tensor, content: Tensor, inside: Tensor, letters: bool = False
    ) -> Tensor:
        """See :class:`Medium`: each run of words between those of the target, at the relative place where it
        was; of what is longer than the model reads the target's last words go."""
        out = torch.full_like(targets, _PAD)
        every, meant = content.expand_as(targets), inside.expand(*targets.shape[:2], *inside.shape[-2:])
        for row, words in enumerate(self.encoder.each(x)):
            runs = _runs(_chosen(words, mask[row, 0]))
            for t in range(len(targets)):
                given = every[t, row, 0, 0].tolist()
                own = self.encoder.words(every[t, row])
                pieces = [
                    given[own[a].start : own[b - 1].stop] for a, b in _runs(_chosen(own, meant[t, row, 0]))
                ]
                at = [a / max(len(words) - (b - a), 1) for a, b in runs] or [0.5]
                found = self._joined(targets[t, row, 0, 0], pieces, at)
                out[t, row, 0, 0, : len(found)] = torch.tensor(found)
        return out

    def alike(self, x: Tensor, mask: Tensor, mates: Tensor) -> Tensor:
        """See :class:`Medium`: of each run as many words at the same relative place."""
        out = torch.zeros(*mates.shape[:2], *mask.shape[-2:])
        for row, words in enumerate(self.encoder.each(x)):
            for a, b in _runs(_chosen(words, mask[row, 0])):
                place = a / max(len(words) - (b - a), 1)
                for t in range(len(mates)):
                    theirs = self.encoder.words(mates[t, row])
                    first = round(place * max(len(theirs) - (b - a), 0))
                    for w in theirs[first : first + b - a]:
                        out[t, row, 0, w.start : w.stop] = 1
        return out

    def _joined(self, target: Tensor, pieces: list[list[int]], places_: list[float]) -> list[int]:
        ids = [i for i in target.tolist() if i != _PAD]
        words = self.encoder.words(target)
        while words and len(ids) + sum(map(len, pieces)) > len(target):
            last = words.pop()
            del ids[last.start : last.stop]
        ends = [w.start for w in words] + [words[-1].stop if words else min(1, len(ids))]
        where = [ends[round(places_[min(i, len(places_) - 1)] * len(words))] for i in range(len(pieces))]
        for place, piece in sorted(zip(where, pieces, strict=True), key=lambda p: -p[0]):
            ids[place:place] = piece
        return ids[: len(target)]


def _chosen(words: Sequence[Word], mask: Tensor) -> np.ndarray:
    """Which words a mask (L,) means, boolean."""
    return np.array([bool(mask[w.start] > 0) for w in words], bool)


def _runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of each run of true values."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(steps[::2], steps[1::2], strict=True)]


def places(count: int) -> list[int]:
    """Of the words of a text, which of 3 · ENDS places each is at: first ones, parts between, last ones."""
    ends = min(ENDS, (count + 1) // 2), min(ENDS, count // 2)
    middle = count - sum(ends)
    inner = [ENDS + i * ENDS // max(middle, 1) for i in range(middle)]
    return [*range(ends[0]), *inner, *range(3 * ENDS - ends[1], 3 * ENDS)]


@dataclass(frozen=True)
class TextSubject(ClassSubject):
    """The log odds of a class of a probe on a sentence encoder; texts are token numbers."""

    what: What = "texts"
    encoder: TokenEncoder | None = None

    def content(self, contrast: np.ndarray | None, batch_size: int) -> Heat:
        """Where what raises the evidence lies: relevance by tokens."""
        assert self.encoder is not None
        encoder, along = self.encoder, self.head.linear.weight[self.index].detach()
        if contrast is not None:
            direction = torch.from_numpy(contrast).to(along)
            along = along * direction / direction.norm().clamp_min(1e-12)

        def heat(x: Tensor) -> Tensor:
            parts = [encoder.relevance(p, along.expand(len(p), -1)) for p in x.split(batch_size)]
            return torch.cat(parts).clamp_min(0)[:, None]

        return heat


@dataclass(frozen=True)
class Group:
    """Texts that have some words, to be tried like a cluster.

    Attributes:
        words: that go together. member: (N,) which texts have one of them. held: (N,) relevance of them.
    """

    words: tuple[str, ...]
    member: np.ndarray
    held: np.ndarray


def explain_texts(
    heads: Sequence[FeatureHead],
    part: np.ndarray,
    class_: int,
    encoder: TokenEncoder,
    x: Tensor,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> Explanations:
    """Explain the logit of a class of texts, each by its own probe, in one backward pass.

    Args:
        heads: the probes on `encoder`. part: (N,) which of them answers for each text.
        class_: index of the class.
        x: (N, 1, 1, L) token numbers, of which memory is kept for the relevance.
        batch_size: texts at a time. progress: called with the number of texts of each batch.

    Raises:
        InputError: no texts.
    """
    if not len(x):
        raise InputError(f"class {class_} has no texts to explain", "pass at least one")
    rows = torch.stack([h.linear.weight[class_].detach() for h in heads])
    relevance, phi, logits = [], [], []
    for start in range(0, len(x), batch_size):
        some, which = x[start : start + batch_size], torch.from_numpy(part[start : start + batch_size])
        relevance.append(encoder.relevance(some, rows[which].to(encoder.inner.device)))
        with torch.no_grad():
            phi.append(encoder(some).float().cpu())
            each = torch.stack([h.linear.logits(phi[-1]).cpu() for h in heads])
            logits.append(each[which, torch.arange(len(some))])
        if progress is not None:
            progress(len(some))
    r, f, said = torch.cat(relevance).numpy(), torch.cat(phi), torch.cat(logits)
    texts = encoder.each(x)
    seen = Counter(name for words in texts for name in {w.name for w in words})
    known = {name: i for i, name in enumerate(n for n, count in seen.items() if count >= FEWEST)}
    by_word, has = (np.zeros((len(x), max(len(known), 1)), np.float32) for _ in range(2))
    maps = np.zeros((len(x), 1, 3 * ENDS), np.float32)
    for row, words in enumerate(texts):
        for w, place in zip(words, places(len(words)), strict=True):
            value = r[row, w.start : w.stop].sum()
            maps[row, 0, place] += value
            if w.name in known:
                by_word[row, known[w.name]] += value
                has[row, known[w.name]] = 1
    return Explanations(
        maps=maps,
        spectra=np.zeros((len(x), 0), np.float32),
        evidence=said[:, class_].float().numpy(),
        said=(said.argmax(1) == class_).numpy(),
        psi=(f * rows.mean(0).cpu()).numpy(),
        words=by_word,
        has=has > 0,
        vocabulary=tuple(known),
    )


def surplus(explained: Explanations, rows: np.ndarray, rest: np.ndarray) -> tuple[str, ...]:
    """The words, ten at most, that hold more of the positive relevance in some texts than in the rest."""
    assert explained.words is not None
    positive = explained.words.clip(0)
    share = positive / np.maximum(positive.sum(1, keepdims=True), 1e-12)
    more = share[rows].mean(0) - (share[rest].mean(0) if len(rest) else 0)
    order = np.argsort(-more, kind="stable")[:_LISTED]
    return tuple(explained.vocabulary[i] for i in order if i < len(explained.vocabulary) and more[i] > 0)


def groups(explained: Explanations) -> list[Group]:
    """Of the words of most positive relevance in all texts those that part them, with the words that go with
    them."""
    assert explained.words is not None
    assert explained.has is not None
    if not explained.vocabulary:
        return []
    has, positive = explained.has, explained.words.clip(0)
    taken = np.zeros(has.shape[1], bool)
    found: list[Group] = []
    for i in np.argsort(-positive.sum(0), kind="stable"):
        if taken[i] or positive[:, i].sum() <= 0 or len(found) == _TRIES:
            continue
        both, either = (has & has[:, [i]]).sum(0), (has | has[:, [i]]).sum(0)
        near = np.flatnonzero((both >= _TOGETHER * either) & ~taken)
        near = near[np.argsort(-positive[:, near].sum(0), kind="stable")][:_LISTED]
        taken[near] = True
        words = tuple(explained.vocabulary[j] for j in near)
        found.append(Group(words, np.asarray(has[:, near].any(1)), explained.words[:, near].sum(1)))
    return found


def text_columns(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What texts tell of where they come from, {"text: NAME": (N,) text}: length in words, capitals, digits,
    line breaks, addresses, markup or code, script; with at least two groups of five, each partition once."""
    ratio = lambda t, test: sum(map(test, t)) / max(len(t), 1)
    numbers = {
        "length": [len(t.split()) for t in texts],
        "capitals": [ratio(t, str.isupper) for t in texts],
        "digits": [ratio(t, str.isdigit) for t in texts],
        "line breaks": [t.count("\n") for t in texts],
    }
    names = {
        "addresses": ["some" if _URL.search(t) else "none" for t in texts],
        "markup": ["tags" if _TAG.search(t) else "code" if _CODE.search(t) else "none" for t in texts],
        "script": [_script(t) for t in texts],
    }
    every = {n: np.array(v) for n, v in names.items()}
    every |= {n: binned(np.array(v, dtype=float)) for n, v in numbers.items()}
    columns: dict[str, np.ndarray] = {}
    for name, values in every.items():
        values = common(values)
        counts = sorted(Counter(values.tolist()).values())
        if (
            len(counts) > 1
            and counts[-2] >= 5
            and not any(same_partition(values, c) for c in columns.values())
        ):
            columns[PREFIX + name] = values
    return columns


def _script(text: str) -> str:
    """The commonest writing system of the letters, by the names that Unicode gives them."""
    seen = Counter(unicodedata.name(c, "?").split()[0].lower() for c in text[:2000] if c.isalpha())
    return seen.most_common(1)[0][0] if seen else "none"
