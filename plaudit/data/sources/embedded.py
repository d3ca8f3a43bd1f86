"""The documentation set as a source: ``documentation:training:24004`` in a recipe's data section.

The part is ``training`` or ``heldout`` (whole modules that neither the embedded base nor the
training part has seen); a fourth field is the seed. ``documentation:ranked:300`` is held-out
passages with 16 answers of known quality each, for best-of-N.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from plaudit.embedded import documentation_path
from plaudit.errors import DataError
from plaudit.recipe.schema import Source

SCHEME = "documentation:"
DEFAULT_SEED = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentationSet:
    """Which pairs: part, number and seed."""

    part: Literal["training", "heldout", "ranked"]
    count: int
    seed: int


def is_documentation(source: Source) -> bool:
    """Whether a source names the embedded documentation set."""
    return source.path.startswith(SCHEME)


def parse(path: str) -> DocumentationSet:
    """``documentation:<part>:<count>[:<seed>]`` as a record.

    Raises:
        DataError: it is not of that form.
    """
    part, _, numbers = path.removeprefix(SCHEME).partition(":")
    count, _, seed = numbers.partition(":")
    if (
        part not in ("training", "heldout", "ranked")
        or not count.isdigit()
        or not (seed or "0").isdigit()
    ):
        raise DataError(
            f"{path} names no documentation set; expected documentation:training:<pairs>, "
            "documentation:heldout:<pairs> or documentation:ranked:<prompts>, with :<seed> behind "
            "it if wanted."
        )
    return DocumentationSet(
        part=cast(Literal["training", "heldout", "ranked"], part),
        count=int(count),
        seed=int(seed) if seed else DEFAULT_SEED,
    )


def read_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """The set's rows, built as they are read; the same for the same path, always.

    Raises:
        DataError: the path is not of the form above, or more pairs are asked for than are built.
    """
    from plaudit.data.sources.documentation_pairs import build_pairs
    from plaudit.data.sources.ranked_documentation import build_ranked

    wanted = parse(source.path)
    if wanted.part == "ranked":
        rows = build_ranked(wanted.count, wanted.seed)
    else:
        rows = build_pairs(wanted.count, wanted.seed, wanted.part)
    for number, row in enumerate(rows, start=1):
        yield f"{source.path}:row {number}", row


def fingerprint(source: Source) -> str:
    """The corpus's SHA-256 and the set built from it."""
    corpus = documentation_path()
    # Reading says what a missing corpus means.
    digest = hashlib.sha256(corpus.read_bytes() if corpus.is_file() else b"").hexdigest()
    wanted = parse(source.path)
    return f"sha256:{digest}/{wanted.part}/{wanted.count}/{wanted.seed}"
