"""Numbers and names as people read them: in sentences, cards, pages, plots and on the terminal.

A number that does not exist is a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

NOTHING: Final = "–"


def _known(form: Callable[[Any], str]) -> Callable[[float | None], str]:
    """A way to write a number, with a dash for one that does not exist."""
    return lambda value: NOTHING if value is None else form(value)


fraction = _known("{:.4f}".format)
"""Four decimals, as the training-results table of a card has them."""
metric = _known("{:.3f}".format)
"""An accuracy, a calibration error or a temperature: three decimals."""
percent = _known("{:.1%}".format)
"""A share of one, with one decimal."""
points = _known(lambda value: f"{100 * value:.1f}")
"""Percent with one decimal and no sign, as leaderboards print benchmark suites."""
count = _known("{:,}".format)
"""A whole number, its thousands apart."""
rate = _known("{:.2f}".format)
"""Two decimals: pairs a second."""
duration = _known(lambda seconds: str(timedelta(seconds=round(seconds))))
"""Hours, minutes and seconds."""


def signed(value: float | None, digits: int = 4) -> str:
    """A difference with its sign."""
    return NOTHING if value is None else f"{value:+.{digits}f}"


def probability(value: float | None) -> str:
    """A p-value: four decimals, and no zero."""
    return "< 0.0001" if value is not None and value < 0.0001 else fraction(value)


def interval(ends: Sequence[float] | None, digits: int = 4) -> str:
    """Both ends."""
    return NOTHING if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def signed_interval(ends: Sequence[float] | None, digits: int = 4) -> str:
    """Both ends of a difference."""
    return NOTHING if ends is None else f"{signed(ends[0], digits)} to {signed(ends[1], digits)}"


def percent_interval(ends: Sequence[float] | None) -> str:
    """Both ends of a share, in percent without the sign."""
    return NOTHING if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def counted(value: int, noun: str) -> str:
    """A whole number of things: ``1 pair``, ``2,000 pairs``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def setting(value: Any) -> str:
    """Any recorded setting, in its shortest exact form."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={setting(item)}" for key, item in value.items())
    return str(value)


def drops(reasons: Mapping[str, int]) -> str:
    """Dropped rows by reason."""
    return ", ".join(f"{words(name)} {count(rows)}" for name, rows in reasons.items()) or "none"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a whole number."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def words(name: str) -> str:
    """A recorded key as words: ``bag_of_words`` to ``bag of words``."""
    return str(name).replace("_", " ")


FORMATS: Final[Mapping[str, Callable[..., str]]] = {
    "fraction": fraction,
    "metric": metric,
    "signed": signed,
    "percent": percent,
    "points": points,
    "probability": probability,
    "interval": interval,
    "signed_interval": signed_interval,
    "percent_interval": percent_interval,
    "count": count,
    "counted": counted,
    "setting": setting,
    "drops": drops,
    "duration": duration,
    "rate": rate,
    "words": words,
}
"""Template filters, by name."""
