"""Card, report, plots and terminal of runs that learn from ratings or ties."""

from __future__ import annotations

from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard
from rich.console import Console

from plaudit.cli.summary import show_run
from plaudit.evaluation.schema import read_metrics
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.report.card import DerivedCard, render_card, write_card, write_derived_card
from plaudit.report.html import render_report
from plaudit.report.pages import inline_formula
from plaudit.report.plots import write_plots
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
