"""From numbers to a sentence: what a classifier audit concludes, and the metrics that gates use.

A Clever Hans effect is only what an intervention shows: pasting what a component reads off the object carries
the class into other images, by an interval that excludes chance and what other models take for the class; or
images with only the feature are taken for the class, and switching the component off ends it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pfungst.audit.classifier.measure import Measured
from pfungst.audit.classifier.prepare import Study
from pfungst.audit.classifier.result import ClassEntry, Component, Faithful, Scores
from pfungst.audit.notes import note, notes
from pfungst.audit.result import About, Better, Interval, Level, Metric, Variant, Verdict
from pfungst.errors import few
from pfungst.measure import limits
from pfungst.measure.proportions import above_chance


@dataclass(frozen=True)
class Judge:
    """The verdict of an audit; `chosen_by`: who chose what is switched off."""

    study: Study
    measured: Measured
    entries: list[ClassEntry]
    chosen_by: str
    faithful: Faithful | None = None

    def __call__(self) -> Verdict:
        """The most serious thing first."""
        steps = (self._too_few, self._reordered, self._unfit, self._clever_hans, self._intervened)
        for step in (*steps, self._unexplained, self._condition, self._unverified):
            if found := step():
                return found
        return self._sound()

    @property
    def model(self) -> str:
        return self.study.fingerprint["name"]

    def _verdict(self, level: Level, headline: str, sentences: Sequence[str], about: About) -> Verdict:
        """One that rests on the numbers, which are said first."""
        return Verdict(level=level, headline=headline, sentences=[*self._figures(), *sentences], about=about)

    def _too_few(self) -> Verdict | None:
        n = self.measured.n_images
        if n >= limits.TEST_IMAGES:
            return None
        told = f"A verdict needs {limits.TEST_IMAGES:.0f} or more. Accuracy on these is "
        return Verdict(
            level="too-few",
            headline=f"{n} validation images are too few to judge {self.model}",
            sentences=[f"{told}{_range(self.measured.as_is.accuracy)}."],
            about=About(numbers={"images": n}),
        )

    def _reordered(self) -> Verdict | None:
        if self.measured.reordered is None:
            return None
        (best, order), here = self.measured.reordered, self.measured.as_is.accuracy
        return Verdict(
            level="unfit",
            headline=f"{self.model} answers in another order of classes than assumed: accuracy "
            f"{_percent(here.value)} in this one, {_percent(best.value)} in the one that fits best",
            sentences=[
                f"Assumed: {self.study.outputs.order}. What fits best, found on half of the validation "
                f"images and measured on the rest: {self.study.outputs.describe(order)}.",
                "Give the names in the order of the model's outputs (--class-names) and audit again; no "
                "other number here means anything.",
            ],
            about=About(numbers={"accuracy": here.value, "accuracy in the best order": best.value}),
        )

    def _unfit(self) -> Verdict | None:
        accuracy, chance = self.measured.as_is.accuracy, self.measured.chance
        assert accuracy.low is not None
        if above_chance(accuracy.low, chance):
            return None
        return Verdict(
            level="unfit",
            headline=f"{self.model} is not shown to classify: accuracy {_range(accuracy)} on the validation "
            f"images, where a constant answer has {_percent(chance)}",
            sentences=[
                f"The lower end of the interval is to lie {limits.ABOVE_CHANCE:.0%} of the way from that to "
                "100% above it. Check that its classes are in the order of the folders, and how its images "
                "are prepared."
            ],
            about=About(numbers={"accuracy": accuracy.value, "low": accuracy.low, "chance": chance}),
        )

    def _clever_hans(self) -> Verdict | None:
        chosen = [e for e in self.entries if e.suspects or e.transferred]
        proven = [e for e in chosen if is_triggered(e) and is_cured(e)]
        if not proven:
            return None
        first = max(proven, key=lambda e: triggered_share(e) - triggered_share(e, mitigated=True))
        before, after = triggered_share(first), triggered_share(first, mitigated=True)
        loss = self.measured.loss.value
        more = f" and {len(proven) - 1} more classes" if len(proven) > 1 else ""
        numbers = {"triggered": before, "triggered, mended": after, "accuracy loss": loss}
        ends = "Switching off what looks spurious ends it: this is a Clever Hans effect."
        return self._verdict(
            "clever-hans",
            f"{self.model} takes {_percent(before)} of the images with only a spurious feature for "
            f"{first.name}{more}; SpuFix leaves {_percent(after)} at {_percent(abs(loss))} "
            f"{'loss' if loss >= 0 else 'gain'} of accuracy",
            [f"{_component_words(first)}. {ends}"],
            About(entry=first.name, numbers=numbers),
        )

    def _intervened(self) -> Verdict | None:
        """What interventions alone prove; regions only where the maps that chose them beat chance."""
        mapped = self.faithful is not None and self.faithful.beats_random
        proven = [(e, c) for e in self.entries for c in e.proven if mapped or _look(c)]
        if not proven:
            return None
        entry, first = max(proven, key=lambda pair: pair[1].order)
        assert first.tested is not None
        tested = first.tested
        carries, left = tested.sufficiency[0].value, tested.retained.value
        alone = f"without it {_percent(left)} are still recognised"
        if tested.divides:
            alone = "the class has images without it"
        what, put = "something beside the object", "pasted into"
        if look := _look(first):
            what, put = f"a look ({look}) of its images", "given to"
        more = f" ({len(proven) - 1} more components likewise)" if len(proven) > 1 else ""
        names = few(o.name for o in self.study.witnesses)
        others = f" that {names} does not take for it" if names else ""
        return self._verdict(
            "clever-hans",
            f"{self.model} takes {what} for {entry.name}: {put} other images it carries "
            f"{_percent(min(carries, 1))} of the class, and {alone}{more}",
            [
                f"{entry.name}, component {first.component}: {tested.reason}. This rests on interventions in "
                f"{tested.images} {tested.on} images, with 95 % intervals: something{others} carries the "
                "class. What it is shows in the pictures; look at them before switching it off."
            ],
            About(
                entry=entry.name, numbers={"sufficiency": carries, "retained": left, "p": tested.corrected}
            ),
        )

    def _unexplained(self) -> Verdict | None:
        triggered = [e for e in self.entries if is_triggered(e)]
        if not triggered:
            return None
        worst = max(triggered, key=triggered_share)
        why = "interventions prove no component of the class spurious"
        if worst.suspects:
            why = "switching off the components that are spurious does not end it"
        share = triggered_share(worst)
        taken = f"{_percent(share)} of the images with only a spurious feature are taken for {worst.name}"
        told = ["Label the components of this class (pfungst label) and run the audit again."]
        about = About(entry=worst.name, numbers={"triggered": share})
        return self._verdict("fragile", f"{taken}, but {why}", told, about)

    def _condition(self) -> Verdict | None:
        if not (fallen := self._fallen()):
            return None
        worst = fallen[0]
        assert worst.fall is not None
        before, after = self.measured.as_is.accuracy.value, worst.accuracy.value
        numbers = {"accuracy": after, "fall": worst.fall.value}
        name = more = ""
        if worst.gains:
            gain = worst.gains[0]
            taken = (gain.predicted[1] - gain.predicted[0]) / self.measured.n_images
            more = f"; {gain.name} takes over"
            if taken < limits.TAKEN * worst.fall.value and worst.rises is not None:
                gain = worst.rises
                more = f"; the probability of {gain.name} rises most, × {_times(gain.times)} in the median"
            name = gain.name
            numbers |= {"times": gain.times, "taken": taken}
        under = worst.variant.condition
        headline = (
            f"{self.model} falls from {_percent(before)} to {_percent(after)} accuracy under {under}{more}"
        )
        return self._verdict("fragile", headline, [], About(entry=name, condition=under, numbers=numbers))

    def _unverified(self) -> Verdict | None:
        """What people judged spurious, or interventions prove by maps that beat no chance, no suspects."""
        found = [e for e in self.entries if (e.judged or e.proven) and e.under().spurious is None]
        if not found:
            return None
        count = sum(len(e.judged or e.proven) for e in found)
        what, why = f"component{'s' * (count > 1)}", "nothing shows that they do harm"
        if self.chosen_by in ("people", "rule"):
            what += " judged spurious" if self.chosen_by == "people" else " picked by a rule"
        else:
            what, why = f"suspicious {what}", "the maps behind it do not beat chance"
        headline = f"{count} {what} ({few((e.name for e in found), 3)}); {why}"
        told = ["Collect images with only the feature (pfungst pool) and pass them as --spurious."]
        about = About(entry=found[0].name, numbers={"suspects": count})
        return self._verdict("fragile", headline, told, about)

    def _sound(self) -> Verdict:
        count = sum(len(e.components) for e in self.entries)
        tested = sum(c.tested is not None for e in self.entries for c in e.components)
        sentences = [f"Interventions on {tested} of {count} components prove none of them spurious."]
        if suspects := sum(len(e.suspects) for e in self.entries):
            if any(e.judged or e.proven for e in self.entries):
                sentences = []
            look = "component looks" if suspects == 1 else "components look"
            sentences.append(
                f"{suspects} {look} suspicious, but nothing shows that images with only the feature trigger "
                "the class: collect some (pfungst pool, --spurious)."
            )
        if len(self.study.witnesses) < limits.WITNESSES:
            sentences.append(note("classifier", "unprovable"))
        about = About(numbers={"accuracy": self.measured.as_is.accuracy.value})
        headline = f"{self.model}: nothing proves reliance on a spurious feature"
        return self._verdict("sound", headline, sentences, about)

    def _fallen(self) -> list[Scores]:
        """Conditions under which the model as it is loses accuracy, the largest fall first."""
        fallen = [s for s in self.measured.scores.values() if not s.variant.mitigated and is_fallen(s)]
        return sorted(fallen, key=lambda s: s.accuracy.value)

    def _figures(self) -> list[str]:
        """Accuracy, spurious score and falls, in sentences."""
        as_is, mended, n = self.measured.as_is, self.measured.mended, self.measured.n_images
        text = f"Accuracy {_percent(as_is.accuracy.value)} on {n:,} validation images"
        found = [f"{text}; nothing was switched off."]
        if self.chosen_by != "nothing":
            count = sum(len(e.fixed or e.transferred) for e in self.entries)
            found = [
                f"{text}, {_percent(mended.accuracy.value)} with the {count} component"
                f"{'s' if count > 1 else ''} switched off that {_SWITCHED[self.chosen_by]}."
            ]
        if as_is.mauc is not None and mended.mauc is not None:
            tested = sum(e.under().spurious is not None for e in self.entries)
            found.append(
                f"Spurious score (mAUC) {_plain(as_is.mauc)} before and {_plain(mended.mauc)} after, over "
                f"{tested} class{'es' if tested > 1 else ''}; {_percent(as_is.triggered or 0.0)} and "
                f"{_percent(mended.triggered or 0.0)} of the images with only the feature are taken for the "
                "class."
            )
        return found + [self._fall_words(s) for s in self._fallen()]

    def _fall_words(self, scores: Scores) -> str:
        assert scores.fall is not None
        name, n = scores.variant.condition, self.measured.n_images
        text = (
            f"Under {name} accuracy falls by {_range(scores.fall)}, to {_percent(scores.accuracy.value)} of "
            "the same images"
        )
        if scores.gains:
            gain = scores.gains[0]
            before, after = (_percent(count / n) for count in gain.predicted)
            text += (
                f"; {gain.name} gains most: {before} of the images are taken for it before, {after} after, "
                f"its probability × {_times(gain.times)} in the median"
            )
        if scores.rises is not None and scores.gains and scores.rises.index != scores.gains[0].index:
            text += f"; the probability of {scores.rises.name} rises most, × {_times(scores.rises.times)}"
        original = self.measured.as_is.among
        if scores.among is not None and original is not None:
            text += (
                f"; with answers limited to the classes of these images accuracy is {_percent(scores.among)} "
                f"({_percent(original)} without the condition)"
            )
        mended = self.measured.scores.get(Variant(condition=name, mitigated=True))
        return f"{text}; SpuFix leaves {_percent(mended.accuracy.value)}." if mended else f"{text}."


def _look(component: Component) -> str:
    """The look that is proven; empty where it is a region."""
    tested = component.tested
    return "" if tested is None or tested.how == "region" else tested.how


def triggered_share(entry: ClassEntry, mitigated: bool = False) -> float:
    """Share of the images with only its feature that are taken for the class; 0 where there are none."""
    spurious = entry.under(mitigated=mitigated).spurious
    return 0.0 if spurious is None else spurious.triggered.value


def is_triggered(entry: ClassEntry) -> bool:
    """Whether the spurious images are taken for the class, far more often than other classes' images are."""
    spurious = entry.under().spurious
    if spurious is None or spurious.n_spurious < limits.SPURIOUS_IMAGES:
        return False
    rate = spurious.triggered
    low = rate.low if rate.low is not None else rate.value
    return rate.value >= limits.TRIGGERED and low > (entry.false_positives or 0.0)


def is_cured(entry: ClassEntry) -> bool:
    """Whether switching components off makes the spurious images lose the class."""
    before, after = (entry.under(mitigated=m).spurious for m in (False, True))
    if before is None or after is None or not entry.mended:
        return False
    share = before.triggered.value
    return share - after.triggered.value >= limits.CURED * share and after.auc.value >= before.auc.value


def is_fallen(scores: Scores) -> bool:
    """Whether a condition costs accuracy: a fall worth a mark, whose interval excludes none."""
    return scores.fall is not None and scores.fall.value >= limits.FALL and (scores.fall.low or 0.0) > 0


def _component_words(entry: ClassEntry) -> str:
    """The components of a class that are switched off, and why."""
    numbers = entry.fixed or entry.transferred
    name = f"{entry.name}, component{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    if entry.transferred:
        return f"{name} of the model they come from: its audit switches them off"
    found = [c for c in entry.components if c.component in entry.fixed and c.tested is not None]
    if entry.judged is not None or not found:
        return f"{name}: people judged its components spurious"
    assert found[0].tested is not None
    words = f"{name}: {found[0].tested.reason}"
    if found[0].off_object is not None:
        words += f"; {_percent(found[0].off_object)} of its relevance lies off the object"
    return words


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 9.5 else f"{value:.1f}"


def _percent(value: float) -> str:
    return f"{value:.1%}" if 0 < abs(value) < 0.0995 else f"{value:.0%}"


def _range(value: Interval) -> str:
    ends = [v for v in (value.low, value.high) if v is not None]
    return _percent(value.value) + (f" ({' to '.join(map(_percent, ends))})" if ends else "")


def _plain(value: Interval) -> str:
    ends = "" if value.low is None else f" ({value.low:.2f}–{value.high:.2f})"
    return f"{value.value:.2f}{ends}"


# --- gates -----------------------------------------------------------------------------------------------


def metrics(measured: Measured, entries: list[ClassEntry], faithful: Faithful | None) -> dict[str, Metric]:
    """The metrics that ``pfungst check`` can gate on: of the whole, and of the worst class or condition."""
    table: dict[str, Metric] = {}

    def whole(name: str, better: Better, meaning: str, value: float | Interval | None) -> None:
        value = value.value if isinstance(value, Interval) else value
        if value is not None and math.isfinite(value):
            table[name] = Metric(value=value, where="all classes", meaning=meaning, better=better)

    def worst(name: str, better: Better, meaning: str, per: dict[str, float]) -> None:
        if per:
            table[name] = Metric.worst(per, better, meaning)

    for end, mitigated in (("", False), ("-fixed", True)):
        scores = measured.mended if mitigated else measured.as_is
        also = ", with SpuFix" * mitigated
        whole(f"accuracy{end}", "higher", f"accuracy on the validation images{also}", scores.accuracy)
        mauc = f"mean ROC AUC, images of a class against its spurious feature alone{also}"
        whole(f"mauc{end}", "higher", mauc, scores.mauc)
        published = f"mean average precision, as the published code computes{also}"
        whole(f"published-map{end}", "higher", published, scores.published_map)
        spurious = {e.name: s for e in entries if (s := e.under(mitigated=mitigated).spurious)}
        auc = {name: s.auc.value for name, s in spurious.items()}
        worst(f"class-auc{end}", "higher", f"ROC AUC of one class{also}", auc)
        taken = f"share of images with only the spurious feature that are taken for the class{also}"
        worst(f"triggered{end}", "lower", taken, {n: s.triggered.value for n, s in spurious.items()})
        under = {v.condition: s for v, s in measured.scores.items() if v.mitigated is mitigated and s.fall}
        accuracies = {name: s.accuracy.value for name, s in under.items()}
        worst(f"condition-accuracy{end}", "higher", f"accuracy under a condition{also}", accuracies)
        falls = {name: s.fall.value for name, s in under.items() if s.fall}
        worst(f"fall{end}", "lower", f"accuracy minus that under a condition{also}", falls)
    whole("accuracy-loss", "lower", "accuracy minus that with SpuFix", measured.loss)
    whole("mauc-gain", "higher", "mAUC with SpuFix minus without", measured.gain)
    pairs = {e.name: (e.under().accuracy, e.under(mitigated=True).accuracy) for e in entries}
    losses = {name: a.value - b.value for name, (a, b) in pairs.items() if a and b}
    worst("class-accuracy-loss", "lower", "accuracy minus that with SpuFix, of one class", losses)
    carried = "share of the class that a component, pasted, carries elsewhere for certain"
    tested = [e for e in entries if any(c.tested for c in e.components)]
    worst("carried", "lower", carried, {e.name: e.carried for e in tested})
    proven = "components that interventions prove spurious, or people judge so"
    worst("spurious", "lower", proven, {e.name: float(len(e.suspects)) for e in entries})
    relevant = "how much better than a random order the maps of components are"
    whole("faithfulness", "higher", relevant, None if faithful is None else faithful.value)
    return table


_SWITCHED = {
    "people": "people judge spurious",
    "rule": "a rule picks",
    "evidence": "interventions single out",
    "transfer": "the audit of another model switches off",
}


def explain_numbers(study: Study, measured: Measured, chosen_by: str, faithful: Faithful | None) -> list[str]:
    """How the numbers were made, for the reader of the report."""
    names = ["classes", "components", "alpha", f"rule-{study.config.rule}", "intervention", "looks"]
    maps = ["unfaithful"] if faithful is None else ["faithful", not faithful.beats_random and "nothing"]
    last = [f"spufix-{study.config.reference}", "intervals", len(study.conditions) > 1 and "conditions"]
    last += [measured.gain is not None and "gain", chosen_by in ("transfer", "evidence") and chosen_by]
    said = partial(notes, "classifier", study=study, fall=_percent(limits.FALL), faithful=faithful)
    return [*said(names), _witnessed(study), " ".join(said(maps)), *said(last)]


def _witnessed(study: Study) -> str:
    chosen = "given"
    if not study.config.witness:
        chosen = "chosen by themselves as their packages are installed (--witness none: no other)"
    names = ["witnessed" if study.witnesses else "unwitnessed"]
    names += ["unprovable"] * (len(study.witnesses) < limits.WITNESSES)
    return " ".join(notes("classifier", names, names=few(w.name for w in study.witnesses), chosen=chosen))
