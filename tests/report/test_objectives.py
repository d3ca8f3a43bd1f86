"""Card, report, plots and terminal of runs that learn from ratings or ties."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard
from rich.console import Console

from plaudit.cli.summary import show_run
from plaudit.evaluation.schema import json_safe, read_metrics
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.report.card import DerivedCard, render_card, write_card, write_derived_card
from plaudit.report.html import render_report
from plaudit.report.pages import inline_formula
from plaudit.report.plots import write_plots
from plaudit.storage.atomic import write_json
from tests.objectives import model_metadata, write_run

RATED = ("mse", "bce", "ordinal")


def texts(page: str) -> str:
    """The words of a page, without its script and style."""
    found: list[str] = []

    class Words(HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag in ("script", "style")

        def handle_data(self, data: str) -> None:
            if not self.inside:
                found.append(data)

    Words().feed(page)
    return " ".join(found)


def screen(folder: Path) -> str:
    output = StringIO()
    show_run(Console(file=output, width=80), folder, read_metrics(folder))
    return output.getvalue()


@pytest.mark.parametrize("kind", [*RATED, "davidson"])
def test_nothing_that_is_shown_is_empty(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path, kind)
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


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_card_and_a_report_say_what_the_loss_is(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path, kind)
    row, card = OBJECTIVES[kind], render_card(tmp_path)
    assert f"\n\n$${row.formula}$$\n\n" in card
    assert row.source in card
    assert "label_smoothing 0.125" in card
    page = render_report(tmp_path)
    assert 'class="formula"' in page
    assert row.source in texts(page)
    assert ("+2.718" in card) == ("+2.718" in page) == (row.family == "pointwise")


def test_learned_parameters_have_the_names_of_their_paper(tmp_path: Path) -> None:
    write_run(tmp_path, "davidson")
    assert "Learned with the model: nu 0.741." in render_card(tmp_path)
    write_run(tmp_path, "ordinal")
    assert "Learned with the model: thresholds -1.500, -0.395, 0.827, 1.731." in render_card(
        tmp_path
    )


def test_card_and_report_separate_what_was_learned(tmp_path: Path) -> None:
    metrics = write_run(tmp_path, "davidson")
    assert metrics.run.objective is not None
    learned = {"nu": (0.75,), "length_weight": (-0.5,)}
    run = replace(metrics.run, objective=replace(metrics.run.objective, learned=learned))
    write_json(tmp_path / "metrics.json", json_safe(replace(metrics, run=run)))
    for text in (render_card(tmp_path), texts(render_report(tmp_path))):
        assert "Learned with the model: nu 0.750; length_weight -0.500." in text


def test_the_loss_of_all_pairs_is_that_of_a_comparison(tmp_path: Path) -> None:
    for kind, item in (("all_pairs", "comparison"), ("hinge", "pair"), ("mse", "response")):
        write_run(tmp_path, kind)
        for text in (render_card(tmp_path), texts(render_report(tmp_path))):
            assert f"For one {item} it is" in text


def table_of(card: str, head: str) -> list[list[str]]:
    """The cells of the table whose header begins so."""
    lines = card[card.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_of_ratings_have_one_set_of_columns(tmp_path: Path) -> None:
    metrics = write_run(tmp_path, "bce")
    assert metrics.eval is not None
    assert metrics.eval.ratings is not None
    one_label = replace(
        metrics.eval.ratings, auc=None, auc_ci95=None, spearman=None, spearman_ci95=None
    )
    without_auc = replace(metrics.eval, ratings=one_label)
    for first, second in ((without_auc, metrics.eval), (metrics.eval, without_auc)):
        test, held_out = replace(first, dataset="test", history=None), second
        write_json(tmp_path / "metrics.json", json_safe(replace(metrics, test=test, eval=held_out)))
        card = render_card(tmp_path)
        head, _, *rows = table_of(card, "evaluation")
        assert head[2:4] == ["AUC (95% CI)", "log loss"]
        if first is without_auc:
            rows = rows[::-1]
        assert rows[0][2].startswith("**0.")
        assert rows[1][2] == rows[1][4] == "–"
        assert float(rows[1][3]) == pytest.approx(float(rows[0][3]))
        head, _, *rows = table_of(card, "ratings")
        assert head[2] == "MAE (95% CI)"
        assert {len(row) for row in rows} == {len(head)}


def test_a_card_of_an_older_run_has_no_formula() -> None:
    card = render_card(Path(__file__).parents[1] / "goldens" / "run")
    assert "$$" not in card


@pytest.mark.parametrize(
    ("kind", "expected"), [("mse", {"mae", "spearmanr"}), ("bce", {"roc_auc"})]
)
def test_the_hub_gets_results_without_an_accuracy(
    tmp_path: Path, kind: str, expected: set[str]
) -> None:
    metrics = write_run(tmp_path, kind)
    data = ModelCard.load(write_card(tmp_path)).data
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert set(found) == set(data.metrics) == expected
    ratings = metrics.eval.ratings if metrics.eval else None
    assert ratings is not None
    assert set(found.values()) <= {ratings.mae, ratings.spearman, ratings.auc}


def test_an_exported_model_has_the_ratings_of_its_source(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "exported"
    for each in (run, folder):
        each.mkdir()
    write_run(run, "mse")
    model = model_metadata("mse")
    made = DerivedCard(
        name="m", made="Made", model=model, tags=(), parity=None, notes=(), results_of=run
    )
    write_derived_card(folder, made)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "| evaluation | rated responses | MAE (95% CI) |" in text
    assert "Measured on the source model." in text
    assert "| evaluation set | 0 |" not in text
    assert "Rewards follow the ratings of the training data" in text
    assert "Rewards compare responses to the same prompt" not in text


@pytest.mark.parametrize("kind", RATED)
def test_ratings_are_drawn_and_plots_of_pairs_are_not(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path, kind)
    assert {path.stem for path in write_plots(tmp_path)} == {"losses", "ratings"}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_formula_is_drawn_without_a_font(kind: str) -> None:
    root = ElementTree.fromstring(inline_formula(OBJECTIVES[kind].formula))
    assert root.attrib["aria-label"] == OBJECTIVES[kind].formula
    (path,) = root
    assert len(path.attrib["d"]) > 200
    assert float(root.attrib["width"]) > 30
