"""Card, report, plots and terminal of models whose head has several outputs."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import plaudit
from plaudit.evaluate_model import EvaluateOptions
from plaudit.evaluation.schema import read_metrics
from plaudit.evaluation.table import read_table
from plaudit.report.card import escape, render_card
from plaudit.report.html import render_report
from plaudit.report.pages import inline_svg
from plaudit.report.plots import EVALUATION_PLOTS, drawn_plots, write_plots
from plaudit.types import Outputs
from tests.conftest import write_jsonl
from tests.models import THREE, build_base, saved_with_outputs
from tests.objectives import ENSEMBLE, HOSTILE_NAMES, NAMED, write_outputs_run
from tests.report.test_objectives import screen, table_of, texts

CASES = [
    pytest.param(outputs, kind, paired, id=f"{what}-{kind}-{'pairs' if paired else 'ratings'}")
    for what, outputs in (("named", NAMED), ("ensemble", ENSEMBLE))
    for kind, paired in (("bradley_terry", True), ("mse", True), ("mse", False))
]


@pytest.mark.parametrize(("outputs", "kind", "paired"), CASES)
def test_nothing_that_is_shown_is_empty(tmp_path: Path, outputs, kind, paired) -> None:
    write_outputs_run(tmp_path, outputs, kind, paired=paired)
    write_plots(tmp_path)
    shown = {
        "card": render_card(tmp_path),
        "report": texts(render_report(tmp_path)),
        "screen": screen(tmp_path),
    }
    for place, text in shown.items():
        for mark in ("None", "nan", "– (–)", "**–**", " 0 pairs", " 0 prompts", "no pair with"):
            assert mark not in text, (place, mark)
    assert len(shown["screen"].strip().splitlines()) <= 20
    assert len(shown["card"].splitlines()) < 200


@pytest.mark.parametrize("kind", ["bradley_terry", "mse"])
def test_the_card_names_outputs_with_their_weights(tmp_path: Path, kind: str) -> None:
    metrics = write_outputs_run(tmp_path, NAMED, kind)
    assert metrics.eval is not None
    card = render_card(tmp_path)
    first, second, third = map(escape, HOSTILE_NAMES)
    assert f"sum: 0.75 × {first} + 0.5 × {second} − 0.25 × {third[:5]}" in card
    assert "outputs=True)" in card
    assert "returns one number; of two" in card
    head, _, *rows = card.split("| output (")[1].split("\n\n")[0].splitlines()
    assert len(rows) == 3
    for row, name, one in zip(rows, (first, second, third), metrics.eval.outputs, strict=True):
        # A bar in a name is no border of a cell.
        assert row.startswith(f"| {name} | {one.weight:+.3f} | 400 | {one.own.pairs} |")
        assert row.replace("\\|", "").count("|") == head.count("|") + 1
        assert f"{one.own.accuracy:.3f} (" in row
    assert ("MAE (of the median rating)" in head) == (kind == "mse")


def test_names_out_of_data_are_shown_as_they_stand(tmp_path: Path) -> None:
    metrics = write_outputs_run(tmp_path, NAMED, "bradley_terry", noise=9.0)
    page, terminal = render_report(tmp_path), screen(tmp_path)
    assert "<b>help" not in page
    assert "&lt;b&gt;help|ful&lt;/b&gt;" in page
    assert "\x1b" not in page
    assert not {"\x1b", "\u202e"} & set(terminal + render_card(tmp_path))
    assert metrics.eval is not None
    assert "`true` [a](b)" in " ".join(terminal.split())
    assert any("short\\u202e\\x1b[31m is" in one for one in metrics.eval.warnings or ())
    for drawn in drawn_plots(EVALUATION_PLOTS, metrics.eval):
        if drawn.name == "outputs":
            svg = inline_svg(drawn.figure, "x", "")
            labels = [text.text or "" for text in ElementTree.fromstring(svg).iter("text")]
            # No formula, no markup.
            assert any(label.startswith("$x_y$ `true` [a](b)") for label in labels)
            assert any(label.startswith("<b>help|ful</b>") for label in labels)
            break
    else:
        pytest.fail("the outputs are not drawn")


def test_every_output_is_shown_by_the_labels_of_every_name(tmp_path: Path) -> None:
    metrics = write_outputs_run(tmp_path, NAMED, "bradley_terry")
    assert metrics.eval is not None
    page = render_report(tmp_path)
    matrix = page[page.index("Every output by the labels") :]
    matrix = matrix[: matrix.index("</details>")]
    for one in metrics.eval.outputs:
        for cell in one.attributes:
            shown = f"{cell.accuracy:.3f}"
            own = cell.attribute == one.name
            assert (f"<strong>{shown}</strong>" if own else f'<td class="n">{shown}') in matrix


def test_the_card_of_an_ensemble_compares_its_spread_with_the_size_alone(tmp_path: Path) -> None:
    metrics = write_outputs_run(tmp_path, ENSEMBLE, "mse")
    assert metrics.eval is not None
    found = metrics.eval.uncertainty
    assert found is not None
    assert found.ratings is not None
    card = render_card(tmp_path)
    assert "The head has 4 outputs, head_0 to head_3, that all learn the reward" in card
    assert "uncertainty=True)" in card
    assert "returns one number, the rating that it expects;" in card
    table = table_of(card, "probability that the heads state | 0.50 | 0.80 | 0.90 | 0.95")
    assert {len(row) for row in table} == {5}
    _, _, share, accuracy, inside = table
    assert share[4] == f"{found.levels[3].share:.1%}"
    assert accuracy[1].startswith(f"{found.levels[0].accuracy:.3f} (")
    assert inside[4].startswith(f"{found.ratings.levels[3].coverage:.3f} (")
    spread, _, margin = found.scores
    assert f"| spread over heads | {spread.auroc:.3f} (" in card
    assert f"| size of the difference alone | {margin.auroc:.3f} (" in card
    assert f"{spread.auroc:.3f} ({margin.auroc:.3f})" in screen(tmp_path)


def test_plots_of_outputs_are_drawn_and_removed(tmp_path: Path) -> None:
    write_outputs_run(tmp_path, ENSEMBLE, "mse")
    names = {path.stem for path in write_plots(tmp_path)}
    assert {"uncertainty", "coverage"} <= names
    assert "outputs" not in names
    write_outputs_run(tmp_path, NAMED, "mse")
    names = {path.stem for path in write_plots(tmp_path)}
    assert "outputs" in names
    assert not (tmp_path / "plots" / "coverage.png").exists()


def test_a_record_without_outputs_reads_as_before() -> None:
    golden = Path(__file__).parents[1] / "goldens" / "run"
    metrics = read_metrics(golden)
    assert metrics.eval is not None
    assert metrics.eval.outputs == ()
    assert metrics.eval.uncertainty is None
    assert metrics.eval.has_pairs


@pytest.mark.heavy
@pytest.mark.parametrize("outputs", [THREE, ENSEMBLE], ids=["named", "ensemble"])
def test_a_saved_model_is_evaluated_by_its_outputs(tmp_path: Path, outputs: Outputs) -> None:
    base = build_base(tmp_path / "base")
    model = saved_with_outputs(tmp_path / "model", base, lora=True, outputs=outputs)
    rows = [
        {
            "prompt": f"p{number}",
            "responses": [f"a{number}", "b b"],
            "grades": [number % 3, 1],
            "attributes": {"helpful": [number, 3], "true": [None, 1]},
        }
        for number in range(12)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out"
    result = plaudit.evaluate(model, data, EvaluateOptions(out=out))
    block = result.metrics.eval
    assert block is not None
    assert (len(block.outputs), block.uncertainty is not None) == (
        (0, True) if outputs.ensemble else (3, False)
    )
    table = read_table(out / "predictions.parquet")
    assert list(table.outputs) == list(outputs.names)
    summed_N = np.stack([*table.outputs.values()], axis=1) @ np.asarray(outputs.weights)
    np.testing.assert_allclose(summed_N, table.reward_N)
    if not outputs.ensemble:
        assert [one.responses for one in block.outputs] == [24, 12, 0]
        assert list(table.attributes) == ["helpful", "true"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert ("measure of uncertainty" if outputs.ensemble else "Outputs of the head") in page
