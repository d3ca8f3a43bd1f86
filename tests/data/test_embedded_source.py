"""The documentation set named in a recipe: the same rows for the same path, and clear refusals."""

from __future__ import annotations

import pytest

from plaudit.data.load import load_comparisons
from plaudit.data.sources.read import read_rows, source_fingerprint
from plaudit.errors import DataError
from plaudit.recipe.schema import Source


def source(path: str) -> Source:
    return Source(path=path)


def test_pairs_are_read_like_any_file() -> None:
    loaded = load_comparisons([source("documentation:training:40")], seed=1)
    assert loaded.tally.rows == loaded.tally.used == 40
    (facts,) = loaded.sources
    assert (facts.name, facts.format, facts.licence) == (
        "documentation",
        "explicit_conversational",
        "PSF-2.0",
    )
    operators = [comparison.metadata["subset"] for comparison in loaded.comparisons]
    assert {operators.count(name) for name in set(operators)} == {4}
    assert len(set(operators)) == 10


def test_the_same_path_gives_the_same_rows_and_another_seed_others() -> None:
    def rows(path: str) -> list[dict[str, object]]:
        return [row for _, row in read_rows(source(path))]

    assert rows("documentation:heldout:20") == rows("documentation:heldout:20:42")
    assert rows("documentation:heldout:20") != rows("documentation:heldout:20:7")
    assert source_fingerprint(source("documentation:heldout:20")) != source_fingerprint(
        source("documentation:heldout:21")
    )


@pytest.mark.parametrize(
    "path",
    [
        "documentation:",
        "documentation:training",
        "documentation:training:many",
        "documentation:pretraining:10",
        "documentation:training:10:first",
        "documentation:training:0",
        "documentation:training:24005",
    ],
)
def test_what_is_no_documentation_set_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"documentation|pairs were asked for"):
        list(read_rows(source(path)))
