"""Law 3 over formats: whatever a model is read from, every export of it gives its scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit.errors import ModelError
from plaudit.model.export.table import EXPORTERS
from plaudit.model.imports.formats import FORMATS, look
from plaudit.model.imports.records import Choices
from plaudit.recipe import Source
from plaudit.serve.scorer import load
from plaudit.share.export import export
from plaudit.share.rows import check_rows
from tests.conftest import pair_rows, write_jsonl

pytestmark = pytest.mark.heavy

# How each format comes to be here: by the exporter that writes it, without plaudit's own facts.
LAYOUT_OF = {
    "plaudit": "adapter",
    "LLaMA-Factory": "llamafactory",
    "OpenRLHF": "openrlhf",
    "sequence classifier adapter": "adapter",
    "sequence classifier": "merged",
}
CHOICES: Mapping[str, Choices] = {
    "LLaMA-Factory": Choices(template="default", era="0.9.4"),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", pair_rows(4, seed=31))


@pytest.fixture(scope="module")
def models(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every format that is read, with a bias where the format has one."""
    biased = tmp_path_factory.mktemp("source") / "biased"
    shutil.copytree(finished_run, biased)
    facts = json.loads((biased / "plaudit.json").read_text())
    facts["affine"] = {"scale": 1.5, "offset": -0.375}
    (biased / "plaudit.json").write_text(json.dumps(facts))
    found = {}
    for name, layout in LAYOUT_OF.items():
        folder = tmp_path_factory.mktemp("formats") / name.replace(" ", "-")
        export(biased, layout, folder)
        if name != "plaudit":
            for own in ("plaudit.json", "export.json"):
                (folder / own).unlink(missing_ok=True)
        found[name] = folder
    return found


def rewards(path: Path, rows: Path, choices: Choices = Choices()) -> list[float]:
    model = load(path, choices=choices)
    checked = check_rows(model, path, Source(path=str(rows)))
    scores: list[float] = np.concatenate(model.score_trees(checked.trees)).tolist()
    return scores


def test_every_format_is_walked(models: dict[str, Path]) -> None:
    assert set(LAYOUT_OF) == {row.name for row in FORMATS}
    assert set(LAYOUT_OF.values()) == set(EXPORTERS)
    for name, folder in models.items():
        contents = look(folder)
        assert next(row.name for row in FORMATS if row.recognises(contents)) == name


@pytest.mark.parametrize("target", EXPORTERS)
@pytest.mark.parametrize("source", LAYOUT_OF)
def test_every_pair_keeps_the_scores(
    source: str, target: str, models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    choices = CHOICES.get(source, Choices())
    whole = not (models[source] / "adapter_config.json").is_file()
    arguments: dict[str, Any] = {"rows": Source(path=str(rows)), "choices": choices}
    if target == "adapter" and whole:
        with pytest.raises(ModelError, match="has no LoRA adapter"):
            export(models[source], target, tmp_path / "out", **arguments)
        return
    done = export(models[source], target, tmp_path / "out", **arguments)
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    # And read again by plaudit, which renders and reads as the source does.
    again = rewards(
        tmp_path / "out",
        rows,
        # What a value head's template is stands in no file of a plain model.
        CHOICES["LLaMA-Factory"] if target == "llamafactory" else Choices(),
    )
    if target == "llamafactory" and source != "LLaMA-Factory":
        return  # read by its own template, which is not the source's chat template
    np.testing.assert_allclose(again, rewards(models[source], rows, choices), atol=2e-5, rtol=1e-5)
