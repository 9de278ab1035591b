"""From numbers to a sentence: what a similarity audit concludes.

An effect is called Clever Hans only when explanation and intervention agree. Intervention: the probe gets
worse under a condition, and the images that it turns wrong gather in one class. Explanation: what the
condition pastes carries both the similarity of images of different classes and the probe's evidence for that
class, more than its area and more than the same place without it; and the explanations beat a random order of
patches (measure/faithfulness). An occlusion that merely costs accuracy may meet the second part, but scatters
its errors.

A fall on a group of the images is an observation, no intervention: it makes the verdict fragile.
"""

from __future__ import annotations

from collections.abc import Iterator

from pfungst.audit.result import About, Level, Variant, Verdict, recovered
from pfungst.audit.similarity.prepare import AS_IS, ERASED, OPPOSITE
from pfungst.audit.similarity.result import Artefact, Fall, Findings, Provenance, Subgroup
from pfungst.errors import few
from pfungst.measure import limits
from pfungst.measure.proportions import above_chance


def judge(result: Findings) -> Verdict:
    """The verdict, the most serious and best established thing first."""
    return _judge_texts(result) if result.modality == "texts" else _judge_images(result)


def _judge_images(result: Findings) -> Verdict:
    cases = (_too_few, _clever_hans, _followed, _unfit, _fragile, _open, _sound)
    found = next(verdict for case in cases if (verdict := case(result)) is not None)
    base = result.score(AS_IS)
    numbers = {"accuracy": base.accuracy.value, "n": base.n, "chance": 1 / len(result.classes)}
    about = found.about.model_copy(update={"numbers": {**numbers, **found.about.numbers}})
    sentences = [*found.sentences, *_more(result, found.level)]
    return found.model_copy(update={"about": about, "sentences": sentences})


def _what(result: Findings) -> str:
    return f"{result.encoder}{'' if result.trained else ' (random weights)'}"


def _reached(result: Findings) -> str:
    base = result.score(AS_IS)
    return f"class-balanced accuracy {base.accuracy.value:.2f} over {base.n} images"


def _too_few(result: Findings) -> Verdict | None:
    base, least = result.score(AS_IS), 2 * limits.TEST_IMAGES
    if base.n >= least:
        return None
    headline = f"{base.n} tested images are too few to judge {_what(result)}: fewer than {least:g}"
    chance = f"where chance is {1 / len(result.classes):.2f}"
    told = f"It has {_reached(result)}{base.accuracy.ends()}, {chance}."
    return Verdict(level="too-few", headline=headline, sentences=[told])


def _clever_hans(result: Findings) -> Verdict | None:
    worst = next((c for c in falls(result) if _agrees(result, c)), None)
    if worst is None:
        return None
    into = result.confusion[worst.key].into or ""
    before, after = (result.score(v).accuracy.value for v in (AS_IS, worst))
    headline = f"A probe on {_what(result)} reads {worst} as {into!r}: accuracy {before:.2f} → {after:.2f}"
    about = About(entry=into, condition=worst.condition, numbers={"after": after})
    return Verdict(level="clever-hans", headline=headline, sentences=[*_hans(result, worst)], about=about)


def _followed(result: Findings) -> Verdict | None:
    found = [p for p in result.provenance if p.follows]
    if not found:
        return None
    first, *more = sorted(found, key=lambda p: p.eta2_label - p.eta2_group)
    sentences = [*_provenance(first)]
    if more:
        others = ", ".join(f"{p.column} ({p.eta2_group:.0%})" for p in more)
        sentences.append(
            f"So it does with {len(more)} more of {len(result.provenance)} columns tried, of which each "
            f"explains: {others}."
        )
    sentences.append(f"Pooled, the probe has {_reached(result)} (chance {1 / len(result.classes):.2f}).")
    headline = f"{_what(result)}: the label follows {first.column}, and so does the probe"
    about = About(entry=first.label, column=first.column)
    return Verdict(level="provenance", headline=headline, sentences=sentences, about=about)


def _unfit(result: Findings) -> Verdict | None:
    accuracy, chance = result.score(AS_IS).accuracy, 1 / len(result.classes)
    if above_chance(accuracy.value if accuracy.low is None else accuracy.low, chance):
        return None
    headline = (
        f"{_what(result)} does not hold the label: {_reached(result)}{accuracy.ends()}, where chance is "
        f"{chance:.2f}"
    )
    told = f"The lower end is to lie {limits.ABOVE_CHANCE:.0%} of the way from chance to 1 above it."
    return Verdict(level="unfit", headline=headline, sentences=[told])


def _fragile(result: Findings) -> Verdict | None:
    if fallen := falls(result):
        worst = fallen[0]
        before, after = (result.score(v).accuracy.value for v in (AS_IS, worst))
        headline = f"A probe on {_what(result)} does not survive {worst}: accuracy {before:.2f} → {after:.2f}"
        why = ["Explanation and intervention do not agree, so the cause is not established."]
        about = About(condition=worst.condition, numbers={"after": after})
        told = [] if worst == ERASED else why
        return Verdict(level="fragile", headline=headline, sentences=told, about=about)
    if not result.falling:
        return None
    g = result.falling[0]
    f = g.falls[0]
    numbers = {"inside": f.inside, "outside": f.outside, "p": f.p_value, "n": f.n}
    about = About(entry=g.group, column=g.column, numbers=numbers)
    headline = f"A probe on {_what(result)} falls on {g}: {_told(f)}"
    return Verdict(level="fragile", headline=headline, about=about)


def _open(result: Findings) -> Verdict | None:
    """What is large and not established: neither a finding nor its absence."""
    if seen := _seen(result):
        first = max(seen, key=lambda p: _gap(p) or 0.0)
        within = "not defined" if first.auroc_within is None else f"{first.auroc_within:.2f}"
        headline = (
            f"Not established whether a probe on {_what(result)} follows {first.column}: AUROC "
            f"{first.auroc_pooled:.2f} pooled, {within} within it, P = {first.p_value:.2g}"
        )
        about = About(entry=first.label, column=first.column, numbers={"p": first.p_value})
        told = f"Else it reaches {_reached(result)}{result.score(AS_IS).accuracy.ends()}."
        return Verdict(level="not-established", headline=headline, sentences=[told], about=about)
    lost = [c for c in result.conditions if c not in (ERASED, OPPOSITE)]
    if lost := [c for c in lost if _fall(result, c) >= limits.LARGE_FALL]:  # no comfort in a large P
        worst = max(lost, key=lambda c: _fall(result, c))
        before, after = result.score(AS_IS).accuracy.value, result.score(worst)
        headline = (
            f"Not established whether a probe on {_what(result)} survives {worst}: accuracy {before:.2f} → "
            f"{after.accuracy.value:.2f}, P = {after.p_value:.2g}"
        )
        return Verdict(level="not-established", headline=headline, about=About(condition=worst.condition))
    if doubtful := [(g, f) for g, f in _large(result) if f.p_value < limits.P_OPEN]:
        g, f = doubtful[0]
        headline = (
            f"Not established whether a probe on {_what(result)} falls on {g}: {_told(f)} over {f.n} images, "
            f"P = {f.p_value:.2g}"
        )
        falls_on = [
            f"{other}: {_told(fall)}, over {fall.n} images: a fall of {fall.fall.value:.2f}"
            f"{fall.fall.ends()}, P = {fall.p_value:.2g} (Holm)."
            for other, fall in doubtful[:3]
        ]
        falls_on.append(f"Else it reaches {_reached(result)}{result.score(AS_IS).accuracy.ends()}.")
        about = About(entry=g.group, column=g.column, numbers={"p": f.p_value, "n": f.n})
        return Verdict(level="not-established", headline=headline, sentences=falls_on, about=about)
    return None


def _seen(result: Findings) -> list[Provenance]:
    """Columns whose effect is large, and which the score is not shown to know beyond the label."""
    return [p for p in result.provenance if p.reasons and not p.follows]


def _gap(p: Provenance) -> float | None:
    return None if p.auroc_within is None else abs(p.auroc_pooled - p.auroc_within)


def _fall(result: Findings, condition: Variant) -> float:
    """How much accuracy a condition costs."""
    return result.score(AS_IS).accuracy.value - result.score(condition).accuracy.value


def _large(result: Findings) -> list[tuple[Subgroup, Fall]]:
    """Falls on groups, large and by their own interval no chance, but not after Holm; the largest first."""
    large = lambda f: not f.mark and f.fall.value >= limits.OPEN_FALL and (f.fall.low or 0) > 0
    return sorted(((g, f) for g, f in _tested(result) if large(f)), key=lambda pair: -pair[1].fall.value)


def _tested(result: Findings) -> list[tuple[Subgroup, Fall]]:
    return [(g, f) for g in result.subgroups if g.whole is not None for f in (g.whole, *g.classes)]


def _unlikely(result: Findings) -> Iterator[str]:
    """What is large on a group, and no finding among so many tests."""
    large, tests = _large(result), len(_tested(result))
    if large:
        g, f = large[0]
        yield (
            f"Of {tests} tests of groups {len(large)} show{'s' * (len(large) == 1)} a fall of "
            f"{limits.OPEN_FALL:g} or more whose own interval lies above 0, the largest on {g}: {_told(f)} "
            f"over {f.n} images, a fall of {f.fall.value:.2f}{f.fall.ends()}. None is established, P = "
            f"{min(f.p_value for _, f in large):.2g} or more after Holm: by chance {0.025 * tests:.0f} such "
            "intervals lie above 0."
        )


def _sound(result: Findings) -> Verdict:
    held = ", ".join(str(c) for c in result.conditions if c not in (ERASED, OPPOSITE))
    headline = f"A probe on {_what(result)} reaches {_reached(result)}{held and f' and holds under {held}'}"
    return Verdict(level="sound", headline=headline)


def _more(result: Findings, level: str) -> Iterator[str]:
    """What every verdict says, the most important first; provenance has told where scores come from."""
    provenance = level == "provenance"
    for g in result.falling:
        yield from _group(g, result.falling)
    if level != "clever-hans":
        yield from _mended(result)
    for p in result.provenance if not provenance else []:
        if p.follows:
            yield from _provenance(p)
    if seen := _seen(result):
        told = "; ".join(f"{p.column}: {', '.join(p.reasons)} (P = {p.p_value:.2g})" for p in seen)
        yield f"Seen, but not established among {len(result.provenance)} columns tried: {told}."
    if level != "not-established":
        yield from _unlikely(result)
    yield from _erased(result)
    yield from _regions(result, every=provenance)
    if result.faithfulness is not None:
        absorbed = [g.bias_share for g in result.summaries if not g.column]
        told = f"; biases absorb {nearly_all(sum(absorbed) / len(absorbed))} of it" if absorbed else ""
        yield f"Explanations of the similarity: faithfulness {result.faithfulness}{told}."
        if not result.faithfulness.beats_random:
            yield "So no conclusion rests on them here."
    if untested := [str(g) for g in result.subgroups if g.whole is None]:
        yield (
            f"Not tested, as no class has {limits.TEST_IMAGES:g} images in it and as many outside: "
            f"{few(untested)}."
        )
    if not result.trained:
        yield "The encoder has random weights: it is a baseline, not a model anyone trained."


def nearly_all(share: float) -> str:
    """A share in per cent, with as many places as tell it from all: 99.998 %, not 100 %."""
    text = f"{share:.0%}"
    places = 0
    while text.rstrip("%").replace("0", "").replace(".", "") == "1" and 1 - share > 0 and places < 6:
        places += 1
        text = f"{share:.{places}%}"
    return text


def falls(result: Findings) -> list[Variant]:
    """Conditions under which the accuracy falls by a mark, the worst first."""
    marked = [c for c in result.conditions if c != OPPOSITE and result.score(c).mark.startswith("↓")]
    if ERASED in marked:
        without, opposite = (result.score(v).accuracy.value for v in (ERASED, OPPOSITE))
        marked = [c for c in marked if c != ERASED or opposite - without >= limits.FALL]
    return sorted(marked, key=lambda c: -_fall(result, c))


def _erased(result: Findings) -> Iterator[str]:
    """What becomes of the accuracy without the text."""
    if ERASED not in result.conditions:
        return
    was, without, control = (result.score(v).accuracy.value for v in (AS_IS, ERASED, OPPOSITE))
    yield (
        f"With burnt-in text erased the accuracy is {without:.2f} ({was:.2f} with it), with as much erased "
        f"at the opposite place {control:.2f}."
    )
    if (e := result.erased) is not None:
        yield (
            f"{e.images:.0%} of the images have text. Two of different classes that both have some are alike "
            f"by {e.alike:+.3f} more than two without; with text erased by {e.alike_erased:+.3f}, with as "
            f"much erased opposite by {e.alike_opposite:+.3f}."
        )


def _artefact(result: Findings, condition: Variant) -> Artefact | None:
    return next((a for a in result.artefacts if a.condition == condition.condition), None)


def _rests(share: float, without: float, area: float) -> bool:
    """Whether a share of relevance shows that what was pasted counts, not merely the place."""
    return share - area >= limits.EXCESS and share >= limits.TIMES * without


def _agrees(result: Findings, condition: Variant) -> bool:
    """Similarity and evidence rest on what was pasted, and errors gather in one class because of it."""
    artefact, errors = _artefact(result, condition), result.confusion[condition.key]
    faithful = result.faithfulness is not None and result.faithfulness.beats_random
    if artefact is None or errors.into is None or not faithful:
        return False
    similar = _rests(artefact.share, artefact.share_without, artefact.area)
    read = _rests(artefact.evidence, artefact.evidence_without, artefact.area)
    enough = limits.GATHER_OF_TWO if len(result.classes) == 2 else limits.GATHER
    return similar and read and errors.turned_share >= enough and errors.turned > 0


def _hans(result: Findings, condition: Variant) -> Iterator[str]:
    artefact, errors = _artefact(result, condition), result.confusion[condition.key]
    assert artefact is not None
    yield "Explanation and intervention agree: this is a Clever Hans effect."
    yield from _mended(result)
    yield (
        f"With it pasted, {artefact.share:.0%} of what makes images of different classes alike lies on the "
        f"pasted region, {artefact.area:.0%} of the area ({artefact.share_without:.0%} without it); their "
        f"mean similarity goes from {artefact.similarity_without:.2f} to {artefact.similarity:.2f}."
    )
    yield (
        f"{artefact.evidence:.0%} of the probe's evidence for {errors.into!r} lies there "
        f"({artefact.evidence_without:.0%} without it)."
    )
    yield (
        f"Of {errors.turned} images that {condition} turns wrong, {errors.turned_share:.0%} are taken for "
        f"{errors.into!r}; so are {errors.share:.0%} of all {errors.errors} errors under it."
    )
    place = {r.group: r.share for r in result.regions if r.name == f"where {condition} lies" and not r.column}
    own = place.pop(errors.into or "", 0.0)
    others = [share for name, share in place.items() if name]
    if others and own >= sum(others) / len(others) + limits.EXCESS:
        yield (
            f"In images as they are, {own:.0%} of what makes two images of {errors.into!r} alike lies there "
            f"(other classes: {sum(others) / len(others):.0%}): the class itself holds it."
        )


def _told(f: Fall) -> str:
    """Whose accuracy goes from where to where."""
    who = f"accuracy for {f.classes[0]!r}" if len(f.classes) == 1 else "class-balanced accuracy"
    return f"{who} {f.outside:.2f} → {f.inside:.2f}"


def _group(g: Subgroup, falling: list[Subgroup]) -> Iterator[str]:
    """Falls on a group: how large, over which images, what they are taken for, and what they share."""
    for f in g.falls[:4]:
        yield (
            f"{g}: {_told(f)} against the other images of "
            f"{'these classes' if len(f.classes) > 1 else 'the class'}, over "
            f"{f.n} images: a fall of {f.fall.value:.2f}{f.fall.ends()}, P = {f.p_value:.2g}."
        )
        if f.into is not None:
            yield f"{f.into_inside:.0%} of them are taken for {f.into!r}, of the others {f.into_outside:.0%}."
            others = [o for o in falling if o.column == g.column and o.group != g.group]
            first = all(falling.index(g) < falling.index(o) for o in others)
            if first and any(other.classes == [f.into] for o in others for other in o.falls):
                yield f"{f.into!r} outside {g} falls too: the probe reads {g} as a sign of {f.into!r}."
    excess = g.alike_excess
    if excess is None or excess.low is None or excess.high is None:
        return
    told = f"{g.alike:.2f}, of the others {g.alike_outside:.2f}, {excess.value:+.2f}{excess.ends()}"
    if excess.low > 0:
        yield (
            f"The encoder sees what they share: two images of different classes in {g} have a mean "
            f"similarity of {told}. That goes with the fall and is no proof of its cause."
        )
    elif excess.high >= 0:
        yield f"Its images of different classes are no more alike than others ({told}): not explained."


def _mended(result: Findings) -> Iterator[str]:
    if result.mitigation is None:
        return
    taken = result.mitigation.trials[result.mitigation.chosen]
    where = "" if taken.where == "everywhere" else f" ({taken.where})"
    for condition, share in result.mitigation.recovered.items():
        if share is not None:
            before, after = (
                result.score(Variant(condition=condition, mitigated=m)).accuracy.value for m in (False, True)
            )
            back = f"{share:.0%} of the fall" if share >= 0 else recovered(share, "the fall")
            if share > 1.05:
                back = "more than the fall, since original images hold the artefact too"
            yield (
                f"Setting {taken.k} filters of {taken.layer} to zero{where} brings the accuracy under "
                f"{condition} from {before:.2f} to {after:.2f}: {back}."
            )


def _provenance(p: Provenance) -> Iterator[str]:
    within = "not defined" if p.auroc_within is None else f"{p.auroc_within:.2f}"
    accuracy = ""
    if p.accuracy_within is not None:
        accuracy = f", class-balanced accuracy {p.accuracy_pooled:.2f} and {p.accuracy_within:.2f}"
    yield (
        f"{p.column} explains {p.eta2_group:.0%} of the variance of the score for {p.label!r} and the label "
        f"{p.eta2_label:.0%}; AUROC is {p.auroc_pooled:.2f} pooled and {within} within {p.column}{accuracy}."
    )
    yield (
        f"Naming the commonest label of each {p.column}, without looking at any image, has a class-balanced "
        f"accuracy of {p.by_group_alone:.2f}. The score knows {p.column} beyond the label: P = "
        f"{p.p_value:.1g}, adjusted for all columns tried (Holm)."
    )
    if p.group_readable >= p.group_chance + limits.READABLE * (1 - p.group_chance):
        yield (
            f"{p.column} can be read from the representation: accuracy {p.group_readable:.2f}, chance "
            f"{p.group_chance:.2f}."
        )


def _regions(result: Findings, every: bool) -> Iterator[str]:
    """Shares on places that should not matter: all of them, or those that carry more than their area."""
    for r in result.regions:
        whole = r.name in ("border", "burnt-in marks", "burnt-in text") and not r.column and not r.group
        if whole and (every or r.share >= limits.TIMES * r.area):
            yield f"{r.share:.1%} of the relevance lies on the {r.name}, {r.area:.1%} of the area."


def _judge_texts(result: Findings) -> Verdict:
    expected, *others = result.relations
    sentences = [
        f"Mean similarity: {expected.name} {expected.similarity.value:.2f}"
        + "".join(f", {o.name} {o.similarity.value:.2f}" for o in others)
        + f". Sums over token pairs and biases agree with the similarity to {result.conservation:.1e}."
    ]
    if not others or result.auroc is None:
        about = About(entry=expected.name)
        told = (
            f"{expected.shared_tokens:.0%} of what makes {expected.name} pairs alike lies between equal words"
        )
        return Verdict(level="sound", headline=f"{result.encoder}: {told}", sentences=sentences, about=about)
    worst = max(others, key=lambda o: o.similarity.value)
    about = About(entry=worst.name, numbers={"auroc": result.auroc, "shared": worst.shared_tokens})
    sentences.append(
        f"{worst.shared_tokens:.0%} of the positive relevance of {worst.name} pairs lies between equal "
        f"words, {worst.special_tokens:.0%} of all relevance on separators and punctuation."
    )
    level: Level = "unfit"
    headline = f"{result.encoder} finds {worst.name} pairs as alike as {expected.name} ones (AUROC "
    headline += f"{result.auroc:.2f})"
    if result.auroc >= limits.TELLS_APART:
        level, rest = "sound", ", ".join(o.name for o in others)
        headline = f"{result.encoder} tells {expected.name} from {rest}: AUROC {result.auroc:.2f}"
    elif worst.shared_tokens >= limits.EQUAL_WORDS:
        level, headline = "clever-hans", f"{headline}: it looks at shared words"
        sentences.append(
            "Changing what a sentence says leaves the similarity high, and the relevance lies on the words "
            "that did not change: explanation and intervention agree, it looks at shared words."
        )
    return Verdict(level=level, headline=headline, sentences=sentences, about=about)
