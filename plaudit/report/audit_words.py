"""An audit in plain sentences, for the terminal and the page. Every number is a recorded one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from plaudit.report.record import count

Facts = Mapping[str, Any]

STYLES: Final = {
    "error": "bold red",
    "warning": "yellow",
    "info": "cyan",
}
"""Severities, most severe first, each with its style on the terminal."""


def sentences(facts: Facts) -> list[str]:
    """What was read, how severe it is, and what the labels say that trivial judges say too."""
    return list(_sentences(facts))


def _sentences(facts: Facts) -> Iterator[str]:
    shape, usable = facts["shape"], facts["usable"]
    yield (
        f"{count(facts['rows'])} rows of {_plural(shape['prompts'], 'prompt')}; "
        f"{count(usable['rows'])} can train."
    )
    errors = [f for f in facts["findings"] if f["severity"] == "error" and f["rows"]]
    if errors:
        most = max(errors, key=lambda finding: finding["rows"])
        yield (
            f"{_plural(len(errors), 'error')}; the most frequent: "
            f"{_lower(most['title'])}, {_plural(most['rows'], 'row')}."
        )
    else:
        yield "No errors."
    yield from (part["not_read"] for part in facts["parts"] if part["not_read"])
    yield from surface_sentences(facts["surface"])
    fixed = facts.get("fixed")
    if fixed:
        yield (
            f"Cleaned copy: {count(fixed['kept'])} rows kept, {count(fixed['changed_rows'])} "
            f"changed, {count(sum(fixed['dropped'].values()))} dropped, of {count(fixed['rows'])}; "
            f"{fixed['ledger']} says why."
        )


def surface_sentences(surface: Facts) -> Iterator[str]:
    """What length and single words explain of the labels."""
    longer, shorter, bag = surface["longer"], surface["shorter"], surface["bag_of_words"]
    if not longer["pairs"]:
        yield "No pair has a winner, so nothing is known of what the labels reward."
        return
    yield (
        f"The longer response wins {_share(longer)} of {_plural(longer['pairs'], 'judged pair')}."
    )
    judges = [("the longer", longer), ("the shorter", shorter)]
    if bag is not None:
        yield (
            f"A bag of words that has not seen the prompts ranks {_share(bag)} right "
            f"(of {_plural(bag['pairs'], 'pair')})."
        )
        judges.append(("a bag of words", bag))
    name, best = max(judges, key=lambda judge: judge[1]["accuracy"])
    if best["accuracy_ci95"][0] > 0.5:
        yield (
            f"So surface may account for up to {_percent(2 * best['accuracy'] - 1)} of what the "
            f"labels say beyond a coin ({name}); a model must beat {_percent(best['accuracy'])} to "
            "show that it read anything."
        )


def shown_details(finding: Facts) -> str:
    """The facts of a finding that its title needs, in a few words."""
    details = finding["details"]
    if finding["check"] == "several_votes" and details.get("agreement") is not None:
        return f"{_percent(details['agreement'])} agree"
    if finding["check"] == "opposite_labels":
        return _plural(details["pairs"], "pair")
    if "fields" in details:
        return ", ".join(f"{field} {count(rows)}" for field, rows in details["fields"].items())
    if "max_length" in details:
        about = "" if details["tokens"].startswith("counted") else "about "
        return f"{about}{count(details['max_length'])} tokens"
    if details.get("candidates", 0) > details.get("checked", 0):
        return f"{count(details['checked'])} of {count(details['candidates'])} candidates looked at"
    return ""


def shown_share(finding: Facts) -> str:
    """The share of rows; of few rows that there are some."""
    share = finding["share"]
    return "< 0.1%" if share < 0.001 else _percent(share)


def compared(facts: Facts) -> str:
    """What the rows were compared with, or that they were not."""
    others = [part for part in facts["parts"] if part["kind"] != "data"]
    if not others:
        return (
            "Not looked for: overlap with evaluation data and benchmarks; name them with --eval "
            "and --suite."
        )
    named = ", ".join(f"{part['name']} ({_plural(part['rows'], 'row')})" for part in others)
    return f"Compared with {named}."


def _share(judged: Facts) -> str:
    low, high = judged["accuracy_ci95"]
    return f"{_percent(judged['accuracy'])} (95%: {_percent(low)} to {_percent(high)})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]
