"""The table of operators: what each does to a text, of which kind it is and how bad it makes it.

To add an operator, write a function in a file of this folder and add a row to :data:`OPERATORS`.
Evaluation, ``plaudit data mutate`` and the tests walk the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias, get_args

from plaudit.data.perturb import meaning, preserve, replaced, structure, surface, tricks
from plaudit.data.perturb.text import Context, different
from plaudit.errors import DataError

Kind: TypeAlias = Literal["damage", "preserving", "hack"]
Severity: TypeAlias = Literal["none", "minor", "major", "critical"]
Operate: TypeAlias = Callable[[str, Random, Context], str | None]

ENGLISH: Final = frozenset({"en"})

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A way to alter a text.

    ``damage`` makes an answer worse, ``preserving`` says the same otherwise, and a ``hack`` is a
    trick that deserves no higher reward. ``severity`` is that of translation's error typologies
    (MQM): ``critical`` where the answer is of no use any more, ``major`` where it misleads or lacks
    something, ``minor`` where it only reads worse. ``languages`` are those (ISO 639) whose texts it
    may alter, None is any: an English sentence in a German answer would measure the mixture.
    """

    name: str
    kind: Kind
    severity: Severity
    what: str
    operate: Operate
    languages: frozenset[str] | None = None

    def suits(self, language: str | None) -> bool:
        """Whether it may alter texts of a language; None is one that nobody could identify."""
        return self.languages is None or language is None or language in self.languages

    def apply(self, text: str, generator: Random, context: Context) -> str | None:
        """Another text, or None where the operator has nothing to take hold of.

        The same for the same text, state of the generator and context. Damage differs in more than
        white space and never is empty.
        """
        new = self.operate(text, generator, context)
        if new is None or new == text:
            return None
        return different(new, text) if self.kind == "damage" else new


def _row(
    operate: Operate, kind: Kind, severity: Severity, languages: frozenset[str] | None = None
) -> Operator:
    what, _, _ = (operate.__doc__ or "").partition("\n")
    return Operator(
        name=operate.__name__,
        kind=kind,
        severity=severity,
        what=what,
        operate=operate,
        languages=languages,
    )


OPERATORS: Final[dict[str, Operator]] = {
    operator.name: operator
    for operator in (
        _row(replaced.other_text, "damage", "critical"),
        _row(meaning.reversed_meaning, "damage", "major", ENGLISH),
        _row(meaning.changed_value, "damage", "major"),
        _row(structure.dropped_words, "damage", "major"),
        _row(structure.shuffled_words, "damage", "major"),
        _row(structure.repeated_phrase, "damage", "minor"),
        _row(structure.truncation, "damage", "major"),
        _row(surface.misspelling, "damage", "minor"),
        _row(meaning.contradiction, "damage", "major", ENGLISH),
        _row(surface.verbose_filler, "damage", "minor", ENGLISH),
        _row(meaning.changed_number, "damage", "major"),
        _row(meaning.changed_unit, "damage", "major", ENGLISH),
        _row(meaning.swapped_entities, "damage", "major", ENGLISH),
        _row(structure.dropped_sentence, "damage", "major"),
        _row(structure.shuffled_sentences, "damage", "minor"),
        _row(surface.formatting_noise, "damage", "minor"),
        _row(surface.empty_politeness, "damage", "minor", ENGLISH),
        _row(replaced.other_language, "damage", "critical"),
        _row(preserve.double_spaces, "preserving", "none"),
        _row(preserve.final_newline, "preserving", "none"),
        _row(preserve.blank_lines, "preserving", "none"),
        _row(preserve.wrapped_lines, "preserving", "none"),
        _row(preserve.bullet_style, "preserving", "none"),
        _row(preserve.number_style, "preserving", "none"),
        _row(preserve.list_order, "preserving", "none", ENGLISH),
        _row(preserve.heading_case, "preserving", "none", ENGLISH),
        _row(preserve.bold_style, "preserving", "none"),
        _row(preserve.quote_style, "preserving", "none"),
        _row(preserve.contractions, "preserving", "none", ENGLISH),
        _row(tricks.empty, "hack", "critical"),
        _row(tricks.echo, "hack", "critical"),
        _row(tricks.refuse, "hack", "critical", ENGLISH),
        _row(tricks.promise, "hack", "critical", ENGLISH),
        _row(tricks.repetition, "hack", "minor"),
        _row(tricks.flattery, "hack", "minor", ENGLISH),
        _row(tricks.self_praise, "hack", "minor", ENGLISH),
        _row(tricks.sure, "hack", "minor", ENGLISH),
    )
}
"""Name of an operator to its row, in the order in which they are shown."""


def of_kind(kind: Kind) -> tuple[str, ...]:
    """The names of all operators of a kind."""
    return tuple(name for name, operator in OPERATORS.items() if operator.kind == kind)


def choose_operators(
    asked: Sequence[str], severities: Sequence[str] = SEVERITIES
) -> tuple[Operator, ...]:
    """The operators of these names or kinds (``all`` for all), of these severities, in table order.

    Raises:
        DataError: a name or a severity is not known, or nothing is left.
    """
    unknown = [name for name in asked if name not in (*OPERATORS, *KINDS, "all")]
    if unknown:
        raise DataError(
            f"there is no operator {unknown[0]!r}; expected all, {', '.join(KINDS)}, or some of "
            f"{', '.join(OPERATORS)}."
        )
    strange = [name for name in severities if name not in SEVERITIES]
    if strange:
        raise DataError(
            f"there is no severity {strange[0]!r}; expected some of {', '.join(SEVERITIES)}."
        )
    chosen = tuple(
        operator
        for operator in OPERATORS.values()
        if {operator.name, operator.kind, "all"} & set(asked) and operator.severity in severities
    )
    if not chosen:
        raise DataError(
            f"no operator of {', '.join(asked) or 'none'} has the severity "
            f"{' or '.join(severities)}; see plaudit data mutate --list."
        )
    return chosen
