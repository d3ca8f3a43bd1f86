"""What an evaluation found, in plain sentences: what it is good for, how sure, what to watch.

The sentences are facts like any other: written once into ``metrics.json``, and only read by the
card, the report and the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Block: TypeAlias = Mapping[str, Any]
Part: TypeAlias = Callable[[Block], Iterator[str]]

_FEWEST_ALTERED = 20
_WELL_CALIBRATED = 0.03
_OVERCONFIDENT = 1.1
_ABOVE_CHANCE = 1.5


def answers(block: Block) -> list[dict[str, Any]]:
    """Plain sentences about one evaluation block by the question that they answer.

    Most important first; each sentence names its numbers, and a question without an answer is left
    out.
    """
    if block["accuracy"] is None:
        nothing = "There is no pair with a known order, so nothing can be said of accuracy."
        return [{"question": _QUALITY, "sentences": [nothing]}]
    answered = [
        {"question": question, "sentences": [said for part in parts for said in part(block)]}
        for question, parts in _questions().items()
    ]
    return [entry for entry in answered if entry["sentences"]]


_QUALITY = "What it is good for"


def _questions() -> dict[str, tuple[Part, ...]]:
    return {
        _QUALITY: (_quality, _baselines),
        "How sure it is": (_calibration,),
        "What to watch": (_length, _features, _behaviour, _slices),
    }


def percent(share: float) -> str:
    """A share of one, with one decimal."""
    return f"{100 * share:.1f}%"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(ends: Any) -> str:
    return "" if ends is None else f" (95%: {percent(ends[0])} to {percent(ends[1])})"


def _quality(block: Block) -> Iterator[str]:
    ends = block["accuracy_bootstrap_ci95"] or block["accuracy_ci95"]
    yield (
        f"It ranks {percent(block['accuracy'])} of {block['pairs']:,} pairs right{_range(ends)}; "
        "a coin ranks half."
    )
    if block["ties"]:
        yield (
            f"{block['ties']:,} pairs have equal rewards and count as wrong; with half a point "
            f"each, accuracy is {percent(block['accuracy_half_ties'])}."
        )
    ranks = block["ranks"]
    if ranks is not None:
        yield (
            f"Of {ranks['comparisons']:,} comparisons with more than two responses it puts a best "
            f"one first in {percent(ranks['top1'])} (by chance {percent(ranks['top1_by_chance'])})."
        )


def _baselines(block: Block) -> Iterator[str]:
    if block["baselines_sentence"] is not None:
        yield block["baselines_sentence"]


def _calibration(block: Block) -> Iterator[str]:
    temperature, before, after = (block[key] for key in ("temperature", "ece", "ece_calibrated"))
    if temperature is None or after is None:
        return
    chance = block["ece_by_chance"]
    off = before > max(_WELL_CALIBRATED, _ABOVE_CHANCE * chance)
    if off and temperature > _OVERCONFIDENT:
        opening = "Its rewards are over-confident"
    elif off and temperature < 1 / _OVERCONFIDENT:
        opening = "Its rewards are under-confident"
    elif off:
        opening = "Its probabilities are off, too sure here and too unsure there"
    else:
        opening = "Its confidence shows no clear fault"
    yield (
        f"{opening}: as trained, its probabilities are off by {_points(before)} points on "
        f"average, with the temperature {temperature:.3g} by {_points(after)}; exact ones would "
        f"show {_points(chance)} by chance."
    )


def _length(block: Block) -> Iterator[str]:
    rows = {row["feature"]: row for row in block["bias"]["features"]}
    row = rows["characters"]
    if row["p"] is None:
        return
    if row["stands_out"]:
        opening = f"It leans to {'longer' if row['gap'] > 0 else 'shorter'} responses"
    else:
        opening = "Length does not sway it noticeably"
    yield (
        f"{opening}: where the better response is longer it is right in {_more(row)}, where it is "
        f"shorter in {_less(row)}. It puts the longer one ahead in "
        f"{percent(row['model_prefers_more'])} of pairs, the labels in "
        f"{percent(row['labels_prefer_more'])}."
    )


def _features(block: Block) -> Iterator[str]:
    for row in block["bias"]["features"]:
        if row["stands_out"] and row["feature"] != "characters":
            direction = "to" if row["gap"] > 0 else "away from"
            yield (
                f"It leans {direction} more {row['feature'].replace('_', ' ')}: right in "
                f"{_more(row)} where the better response has more, in {_less(row)} where it has "
                f"less. It puts more ahead in {percent(row['model_prefers_more'])} of pairs that "
                f"differ, the labels in {percent(row['labels_prefer_more'])}."
            )


def _more(row: Block) -> str:
    return percent(row["accuracy_more"]["accuracy"])


def _less(row: Block) -> str:
    return percent(row["accuracy_less"]["accuracy"])


def _behaviour(block: Block) -> Iterator[str]:
    behaviour = block["behaviour"]
    if behaviour is None or not behaviour["operators"]:
        return
    rows = {
        kind: [
            row
            for row in behaviour["operators"]
            if row["kind"] == kind and row["responses"] >= _FEWEST_ALTERED
        ]
        for kind in behaviour["kinds"]
    }
    if rows["damage"]:
        worst = min(rows["damage"], key=lambda row: row["fell"])
        best = max(rows["damage"], key=lambda row: row["fell"])
        all_of_them = behaviour["kinds"]["damage"]["fell"]
        yield (
            f"Good responses made worse lose reward in {percent(all_of_them)} of cases: most often "
            f"by {_named(best)} ({percent(best['fell'])}), least by {_named(worst)} "
            f"({percent(worst['fell'])}); a coin would say half."
        )
    if rows["preserving"]:
        most = max(rows["preserving"], key=lambda row: row["flipped"])
        yield (
            f"Rewriting a response without changing what it says turns over at most "
            f"{percent(most['flipped'])} of comparisons ({_named(most)})."
        )
    fooled = [row for row in rows["hack"] if row["rose_ci95"][0] > 0.5]
    if fooled:
        listed = ", ".join(f"{_named(row)} ({percent(row['rose'])})" for row in fooled)
        yield f"Cheap tricks that raise its reward more often than not: {listed}."
    elif rows["hack"]:
        yield "No cheap trick that was tried raises its reward more often than not."


def _named(row: Block) -> str:
    return str(row["operator"]).replace("_", " ")


def _slices(block: Block) -> Iterator[str]:
    found = [entry for entry in block["slices"] if entry["stands_out"]]
    below = [entry for entry in found if entry["accuracy"] < block["accuracy"]]
    if below:
        worst = min(below, key=lambda entry: entry["accuracy"])
        yield (
            f"It is weaker where {worst['column'].replace('_', ' ')} is {worst['value']}: "
            f"{percent(worst['accuracy'])} of {worst['pairs']:,} pairs"
            f"{_range(worst['accuracy_ci95'])}."
        )
    small = sum(entry["small"] for entry in block["slices"])
    if small:
        have = "slice has" if small == 1 else "slices have"
        yield f"{small} {have} too few pairs to be compared with the rest."
