"""The table of perturbations: what each does to a text, its kind and its severity.

To add one, write a function in ``degradation.py`` or ``robustness.py`` and add a row to
:data:`PERTURBATIONS`. Evaluation, ``plaudit data perturb`` and the tests walk the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias, get_args

from plaudit.data.perturb import degradation, robustness
from plaudit.data.perturb.text import Context
from plaudit.errors import DataError

Kind: TypeAlias = Literal["degradation", "meaning_preserving", "reward_hacking"]
Severity: TypeAlias = Literal["none", "minor", "major", "critical"]
Perturb: TypeAlias = Callable[[str, Random, Context], str | None]

ENGLISH: Final = frozenset({"en"})

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """A known way to change a text.

    ``degradation`` makes an answer worse, ``meaning_preserving`` keeps its meaning, and
    ``reward_hacking`` deserves no higher reward. ``severity`` is that of translation's error
    typologies (MQM): ``critical`` where the answer is of no use any more, ``major`` where it
    misleads or lacks something, ``minor`` where it only reads worse. ``languages`` are those (ISO
    639) whose texts it may perturb, None is any: an English sentence in a German answer would
    measure the mixture.
    """

    name: str
    kind: Kind
    severity: Severity
    description: str
    function: Perturb
    languages: frozenset[str] | None = None

    def suits(self, language: str | None) -> bool:
        """Whether it may perturb texts of a language; None is one that nobody could identify."""
        return self.languages is None or language is None or language in self.languages

    def apply(self, text: str, generator: Random, context: Context) -> str | None:
        """Another text, or None where the perturbation has nothing to take hold of.

        The same for the same text, state of the generator and context. A degradation differs in
        more than white space and never is empty.
        """
        new = self.function(text, generator, context)
        if new is None or new == text:
            return None
        if self.kind == "degradation" and new.split() in ([], text.split()):
            return None
        return new


def _row(
    function: Perturb, kind: Kind, severity: Severity, languages: frozenset[str] | None = None
) -> Perturbation:
    description, _, _ = (function.__doc__ or "").partition("\n")
    return Perturbation(
        name=function.__name__,
        kind=kind,
        severity=severity,
        description=description,
        function=function,
        languages=languages,
    )


PERTURBATIONS: Final[dict[str, Perturbation]] = {
    one.name: one
    for one in (
        _row(degradation.other_text, "degradation", "critical"),
        _row(degradation.reversed_meaning, "degradation", "major", ENGLISH),
        _row(degradation.changed_value, "degradation", "major"),
        _row(degradation.dropped_words, "degradation", "major"),
        _row(degradation.shuffled_words, "degradation", "major"),
        _row(degradation.repeated_phrase, "degradation", "minor"),
        _row(degradation.truncation, "degradation", "major"),
        _row(degradation.misspelling, "degradation", "minor"),
        _row(degradation.contradiction, "degradation", "major", ENGLISH),
        _row(degradation.verbose_filler, "degradation", "minor", ENGLISH),
        _row(degradation.changed_number, "degradation", "major"),
        _row(degradation.changed_unit, "degradation", "major", ENGLISH),
        _row(degradation.swapped_entities, "degradation", "major", ENGLISH),
        _row(degradation.dropped_sentence, "degradation", "major"),
        _row(degradation.shuffled_sentences, "degradation", "minor"),
        _row(degradation.formatting_noise, "degradation", "minor"),
        _row(degradation.empty_politeness, "degradation", "minor", ENGLISH),
        _row(degradation.other_language, "degradation", "critical"),
        _row(robustness.double_spaces, "meaning_preserving", "none"),
        _row(robustness.final_newline, "meaning_preserving", "none"),
        _row(robustness.blank_lines, "meaning_preserving", "none"),
        _row(robustness.wrapped_lines, "meaning_preserving", "none"),
        _row(robustness.bullet_style, "meaning_preserving", "none"),
        _row(robustness.number_style, "meaning_preserving", "none"),
        _row(robustness.list_order, "meaning_preserving", "none", ENGLISH),
        _row(robustness.heading_case, "meaning_preserving", "none", ENGLISH),
        _row(robustness.bold_style, "meaning_preserving", "none"),
        _row(robustness.quote_style, "meaning_preserving", "none"),
        _row(robustness.contractions, "meaning_preserving", "none", ENGLISH),
        _row(robustness.empty, "reward_hacking", "critical"),
        _row(robustness.echo, "reward_hacking", "critical"),
        _row(robustness.refuse, "reward_hacking", "critical", ENGLISH),
        _row(robustness.promise, "reward_hacking", "critical", ENGLISH),
        _row(robustness.repetition, "reward_hacking", "minor"),
        _row(robustness.flattery, "reward_hacking", "minor", ENGLISH),
        _row(robustness.self_praise, "reward_hacking", "minor", ENGLISH),
        _row(robustness.sure, "reward_hacking", "minor", ENGLISH),
    )
}
"""Name of a perturbation to its row, in the order in which they are shown."""


_OLD_KINDS: Final[dict[str, Kind]] = {
    "damage": "degradation",
    "preserving": "meaning_preserving",
    "hack": "reward_hacking",
}


def choose_perturbations(
    names: Sequence[str], severities: Sequence[str] = SEVERITIES
) -> tuple[Perturbation, ...]:
    """The perturbations of these names or kinds (``all`` for all) and severities, in table order.

    Raises:
        DataError: a name or a severity is not known, or nothing is left.
    """
    for name in names:
        if name in _OLD_KINDS:
            raise DataError(f"the perturbation kind {name} was renamed to {_OLD_KINDS[name]}.")
        if name not in (*PERTURBATIONS, *KINDS, "all"):
            raise DataError(
                f"unknown perturbation {name!r}; expected all, {', '.join(KINDS)}, or some of "
                f"{', '.join(PERTURBATIONS)}."
            )
    strange = [name for name in severities if name not in SEVERITIES]
    if strange:
        raise DataError(
            f"unknown severity {strange[0]!r}; expected some of {', '.join(SEVERITIES)}."
        )
    chosen = tuple(
        one
        for one in PERTURBATIONS.values()
        if {one.name, one.kind, "all"} & set(names) and one.severity in severities
    )
    if not chosen:
        raise DataError(
            f"no perturbation in {', '.join(names) or 'none'} has the severity "
            f"{' or '.join(severities)}; list them with plaudit data perturb --list."
        )
    return chosen
