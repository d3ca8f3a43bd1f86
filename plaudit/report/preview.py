"""Comparisons token by token: as a page, and the words and marks that page and terminal share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from plaudit.errors import printable
from plaudit.evaluation.numbers import counted
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.report.record import template_environment
from plaudit.storage.atomic import write_text
from plaudit.types import ComparisonPreview

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE: Final = "preview.html.jinja"

SPACE, NEWLINE, TAB, PART = "·", "↵", "→", "…"
LEGEND: Final = (
    f"{SPACE} is a space, {NEWLINE} a line break, {TAB} a tab, {PART} part of a character that the "
    "next token completes"
)


def visible(text: str) -> str:
    """A token's text with marks for white space, and escapes for what would not show or would act.

    Line breaks keep their effect behind their mark. Control characters, and those that change the
    direction of text or have no width, are escaped.
    """
    if not text:
        return PART
    marks = {" ": SPACE, "\n": f"{NEWLINE}\n", "\t": TAB}
    return "".join(marks.get(character) or printable(character) for character in text)


def sizes(shown: ComparisonPreview) -> str:
    """The tokens of a comparison in a sentence."""
    branches = " + ".join(f"{len(branch):,}" for branch in shown.branches)
    count = len(shown.branches)
    if count == 1:
        return f"{counted(shown.packed, 'token')}, one response."
    sharing = "both" if count == 2 else f"all {count}"
    saved = 1 - shown.packed / shown.separate
    return (
        f"{counted(len(shown.prefix), 'token')} shared by {sharing} responses, then {branches} of "
        f"their own. {shown.packed:,} tokens are computed, instead of {shown.separate:,} in "
        f"{count} separate sequences ({saved:.0%} fewer)."
    )


def remarks(shown: ComparisonPreview, unusable: str | None) -> list[str]:
    """What else happens to the comparison, in sentences.

    ``unusable`` says why training drops it for its texts, in words.
    """
    lines = []
    if shown.detail is not None:
        lines.append(f"Not encoded ({shown.reason}): {shown.detail}.")
    if shown.truncated:
        lines.append(
            f"{shown.truncated:,} tokens of the prompt, the oldest, are cut to fit the maximum "
            "length."
        )
    if unusable is not None:
        lines.append(f"Training drops it: {unusable}.")
    elif shown.detail is None and shown.reason is not None:
        lines.append("Training drops it: all responses have the same tokens.")
    return lines


def labels(shown: ComparisonPreview) -> str:
    """What is known of the responses, and which objectives learn from it."""
    grades = ", ".join(f"{grade:g}" for grade in shown.grades)
    named = f"attributes {', '.join(shown.attributes)}" if shown.attributes else ""
    if not grades:
        return f"Labels: {named}. Learned by outputs of these names." if named else "No label."
    count = len(shown.grades)
    what = "an order" if len(set(shown.grades)) > 1 else "a tie" if count > 1 else ""
    parts = [what] if what else []
    if shown.rated:
        parts.append(f"{'rating' if count == 1 else 'grades or ratings'} {grades}")
    if shown.soft_label is not None:
        parts.append(f"soft label {shown.soft_label:g}")
    learned = _learned_by(shown.objectives, rated=shown.rated)
    if named:
        parts.append(named)
        learned += "; attributes by outputs of their names"
    return f"Labels: {'; '.join(parts)}. {learned}."


def _learned_by(objectives: Sequence[str], *, rated: bool) -> str:
    if not objectives:
        return "Learned by no objective"
    of_ratings = [kind for kind in objectives if OBJECTIVES[kind].learns_from == "ratings"]
    every = len(objectives) == len(OBJECTIVES)
    learned = f"Learned by {'every objective' if every else ', '.join(objectives)}"
    if rated or not of_ratings:
        return learned
    return f"{learned}; by {', '.join(of_ratings)} only beside rows with ratings"


def standing(shown: ComparisonPreview, response: int) -> str:
    """What is known of a response, for its heading."""
    if not shown.grades:
        return f"Response {response + 1}"
    grade = shown.grades[response]
    if len(shown.grades) == 2 and set(shown.grades) == {0.0, 1.0}:
        return "Chosen" if grade else "Rejected"
    kind = "rating" if shown.rated and len(shown.grades) == 1 else "grade"
    return f"Response {response + 1}, {kind} {grade:g}"


def attributes(shown: ComparisonPreview, response: int) -> str:
    """The attributes of a response, as far as they are known."""
    known = {name: numbers[response] for name, numbers in shown.attributes.items()}
    return ", ".join(f"{name} {n:g}" for name, n in known.items() if n is not None)


def breakable(text: str) -> Markup:
    """Text where a line may end before the mark of a space, and behind a slash of a path."""
    from markupsafe import Markup, escape

    end = Markup("<wbr>")
    return escape(text).replace(SPACE, end + SPACE).replace("/", "/" + end)


def write_preview(
    path: Path, rows: Sequence[tuple[ComparisonPreview, Sequence[str]]], *, data: str, model: str
) -> None:
    """A page of comparisons with their remarks that holds everything it shows.

    It has no script and loads nothing; all that comes from data is escaped. Raises OutputError.
    """
    page = template_environment()
    page.filters.update(
        visible=visible, breakable=breakable, escaped=printable, sizes=sizes, labels=labels
    )
    page.globals |= {"standing": standing, "attributes": attributes}
    write_text(
        path,
        page.get_template(TEMPLATE).render(rows=rows, data=data, model=model, legend=LEGEND),
    )
