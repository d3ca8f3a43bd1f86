"""Words and phrases with their opposites: a small table of plain English and of programming."""

from __future__ import annotations

import re
from typing import Final

_BOTH_WAYS: Final[tuple[tuple[str, str], ...]] = (
    ("true", "false"), ("all", "none of the"), ("always", "never"), ("before", "after"),
    ("first", "last"), ("next", "previous"), ("start", "end"), ("begin", "finish"),
    ("beginning", "end of"), ("add", "remove"), ("added", "removed"), ("open", "close"),
    ("opened", "closed"), ("read", "write"), ("reads", "writes"), ("reading", "writing"),
    ("encode", "decode"), ("encoding", "decoding"), ("encoded", "decoded"),
    ("maximum", "minimum"), ("max", "min"), ("greater", "less"), ("larger", "smaller"),
    ("higher", "lower"), ("longer", "shorter"), ("largest", "smallest"), ("upper", "lower"),
    ("increase", "decrease"), ("enable", "disable"), ("enabled", "disabled"),
    ("include", "exclude"), ("includes", "excludes"), ("including", "excluding"),
    ("included", "excluded"), ("left", "right"), ("input", "output"), ("parent", "child"),
    ("optional", "required"), ("mutable", "immutable"), ("success", "failure"),
    ("successful", "failed"), ("succeeds", "fails"), ("ascending", "descending"),
    ("valid", "invalid"), ("local", "remote"), ("absolute", "relative"), ("more", "less"),
    ("same", "opposite"), ("equal", "unequal"), ("public", "private"), ("import", "export"),
    ("lock", "unlock"), ("acquire", "release"), ("push", "pop"), ("load", "save"),
    ("connect", "disconnect"), ("register", "unregister"), ("compress", "decompress"),
    ("present", "absent"), ("supported", "unsupported"), ("known", "unknown"),
    ("ignore", "respect"), ("ignored", "respected"), ("allow", "forbid"),
    ("allowed", "forbidden"), ("allows", "forbids"), ("must", "must not"), ("can", "cannot"),
    ("should", "should not"), ("will", "will not"), ("may", "may not"), ("is", "is not"),
    ("are", "are not"), ("was", "was not"), ("has", "lacks"), ("contains", "lacks"),
    ("empty", "non-empty"), ("new", "old"), ("old", "new"), ("client", "server"),
    ("source", "destination"), ("both", "neither of"), ("only", "not only"), ("single", "double"),
    ("sorted", "unsorted"), ("signed", "unsigned"), ("synchronous", "asynchronous"),
    ("explicitly", "implicitly"), ("explicit", "implicit"), ("default", "unusual"),
    ("existing", "missing"), ("temporary", "permanent"), ("forward", "backward"),
    ("outside", "inside"), ("above", "below"), ("long", "short"), ("high", "low"),
    ("safe", "unsafe"), ("unique", "duplicate"), ("running", "stopped"), ("on", "off"),
)  # fmt: skip


_ONE_WAY: Final[dict[str, str]] = {
    "cannot": "can", "can't": "can", "can not": "can", "is not": "is", "isn't": "is",
    "are not": "are", "aren't": "are", "does not": "does", "doesn't": "does", "do not": "do",
    "don't": "do", "must not": "must", "should not": "should", "will not": "will",
    "won't": "will", "may not": "may", "was not": "was", "has no": "has a", "without": "with",
    "if": "unless", "unless": "if", "otherwise": "likewise", "any": "no", "every": "no",
    "none": "all", "nothing": "everything", "non-empty": "empty", "lacks": "has",
    "returned": "discarded", "raised": "suppressed", "ignoring": "respecting",
}  # fmt: skip


def _opposites() -> dict[str, str]:
    """Word or phrase to its opposite. "On" is no site: it is rarely the opposite of "off"."""
    table = {second: first for first, second in reversed(_BOTH_WAYS)}
    table |= dict(_BOTH_WAYS)
    table |= _ONE_WAY
    return {word: opposite for word, opposite in table.items() if word != "on"}


OPPOSITES: Final = _opposites()


OPPOSITE: Final = re.compile(
    # Longest first, so that "is not" is one site; not inside names, options or quotes.
    r"(?<![\w.\-'\"`*])(?:"
    + "|".join(
        re.escape(word).replace(r"\ ", r"\s+")
        for word in sorted(OPPOSITES, key=lambda word: (-len(word), word))
    )
    + r")(?![\w(='\"`*]|[.\-]\w)",
    re.IGNORECASE,
)


LEADING_VERB: Final = re.compile(
    r"(?:return|create|get|set|convert|construct|print|copy|format|parse|run|make|find|check|"
    r"process|send|test|generate|handle|produce|initialize|raise|extract|compute|call|retrieve|"
    r"override|split|delete|clear|replace|list|guess|wait|perform|build|define|determine|display|"
    r"execute|give|implement|insert|install|iterate|join|look|move|provide|represent|reset|"
    r"search|show|store|update|use|apply|calculate|decide|describe|emit|fetch|yield)s?\b",
    re.IGNORECASE,
)
