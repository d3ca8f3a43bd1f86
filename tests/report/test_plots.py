from __future__ import annotations

import copy
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.image import imread
from matplotlib.text import Text

from plaudit.evaluation.analysis.perturbations import Perturbed, Probed
from plaudit.evaluation.compare import Scored, align, compare_aligned
from plaudit.evaluation.metrics.best_of import best_of_n
from plaudit.evaluation.schema import RunMetrics, adapter, json_safe
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.evaluation.table import ScoreTable
from plaudit.report import plots
from plaudit.report.comparison import best_of_figure, comparison_figure
from plaudit.report.html import IN_TABLES
from plaudit.report.pages import inline_svg
from plaudit.report.plots import (
    CARD_WIDTH,
    EVALUATION_PLOTS,
    PAGE_WIDTH,
    RUN_PLOTS,
    card_plots,
    drawable,
    drawn_plots,
    families_for,
    write_plots,
)
from tests.objectives import ENSEMBLE, NAMED, evaluated_outputs
from tests.tables import score_table

run_plots = partial(drawn_plots, RUN_PLOTS)
evaluation_plots = partial(drawn_plots, EVALUATION_PLOTS)

GOLDEN = Path(__file__).parents[1] / "goldens" / "run" / "metrics.json"
METRICS = json.loads(GOLDEN.read_text(encoding="utf-8"))


ALL = [*RUN_PLOTS, *EVALUATION_PLOTS]
# The golden run altered responses of its test data alone.
NOT_GOLDEN = ("perturbations", "outputs", "uncertainty", "coverage")
GOLDEN_PLOTS = [name for name in ALL if name not in NOT_GOLDEN]


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


def as_record(metrics) -> RunMetrics:
    """The records of a JSON mapping, which tests change more easily."""
    return adapter(RunMetrics).validate_python(metrics)


def figures(metrics):
    """Every plot there is, by name, the evaluation's of its ``eval`` block."""
    record = as_record(metrics)
    drawn = [*run_plots(record), *(evaluation_plots(record.eval) if record.eval else ())]
    return {one.name: one.figure for one in drawn}


RATING_BIN = {"given_ci95": None, "expected_p5": 1.5, "expected_p95": 3.5, "responses": 9}
RATINGS = {
    "by": "given",
    "bins": [{**RATING_BIN, "given": at, "expected": at / 2 + 1.5} for at in (1.0, 2.0, 5.0)],
}


OUTPUTS = json_safe(evaluated_outputs(NAMED, "bradley_terry").outputs)
UNCERTAINTY = json_safe(evaluated_outputs(ENSEMBLE, "mse").uncertainty)


@pytest.mark.slow
def test_every_plot_is_a_picture_with_a_caption(tmp_path, metrics):
    metrics["test"]["curves"]["ratings"] = RATINGS
    metrics["test"] |= {"outputs": OUTPUTS, "uncertainty": UNCERTAINTY}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    written = write_plots(tmp_path)
    assert [path.stem for path in written] == ALL
    captions = dict(card_plots(as_record(metrics), tmp_path))
    assert list(captions) == ALL
    assert captions["reliability"].endswith("(test set, 900 pairs)")
    for path in written:
        pixels = imread(path)
        assert pixels.shape[1] == 1080
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert sorted((tmp_path / "plots").iterdir()) == sorted(written)


def drawn(metrics):
    """Names of the plots that draw something; drawing must not fail."""
    found = figures(metrics)
    for figure in found.values():
        figure.draw_without_rendering()
    return list(found)


def labels(figure):
    return [text for axis in figure.axes for text in axis.get_legend_handles_labels()[1]]


def test_the_kept_step_and_the_baselines_are_named(metrics):
    assert "best checkpoint: step 6,000, 0.5818" in labels(figures(metrics)["losses"])
    baselines = metrics["eval"]["baselines"]
    named = {f"{name.replace('_', ' ')}: {b['accuracy']:.3f}" for name, b in baselines.items()}
    assert len(named) == 3
    assert named <= set(labels(figures(metrics)["accuracy"]))


def test_every_axis_is_labelled(metrics):
    for name, figure in figures(metrics).items():
        # Rows of a dot plot have names of their own; panels one above the other share an axis.
        named = name in ("slices", "bias", "length")
        assert figure.axes[-1].get_xlabel()
        assert all(axis.get_ylabel() or named for axis in figure.axes)


def perturbed(metadata=lambda number: {}):
    """An evaluation with perturbation tests."""
    kinds = ("degradation", "meaning_preserving", "reward_hacking")
    return evaluated(
        [(0.3, 0.1), (0.1, 0.4)] * 40,
        (9, 4),
        perturbations=Probed(
            perturbed=[
                Perturbed(kind=k, name="some_way", original=1, other=0, perturbed=0.5)
                for k in kinds
            ],
            responses=1,
            skipped={},
            seed=0,
        ),
        metadata=metadata,
    )


def ranked(responses: int, prompts: int, rewards) -> ScoreTable:
    """Response r of every prompt has grade -r and the reward ``rewards(prompt, r)``."""
    return score_table(
        [{"reward": rewards(prompt, response)} for response in range(responses)]
        for prompt in range(prompts)
    )


COMPARED = compare_aligned(
    align(
        [
            Scored(
                name=f"run of a very long name 中文 {step} " * 3,
                table=ranked(2, 20, lambda p, r, step=step: float(p * step % 5 * r)),
            )
            for step in (1, 2)
        ]
    )
)
BEST_OF = best_of_n(ranked(16, 9, lambda p, r: float((p * r) % 7)))


@pytest.mark.parametrize("width", [CARD_WIDTH, PAGE_WIDTH])
def test_nothing_is_cut_and_no_legend_lies_on_data(metrics, width):
    block = metrics["test"]
    block["curves"]["ratings"] = RATINGS
    block |= {"outputs": OUTPUTS, "uncertainty": UNCERTAINTY}
    block["slices"][0] |= {"column": "language", "value": "Straßenbahnhaltestelle " * 9}
    record = as_record(metrics)
    drawn = (*run_plots(record, width), *evaluation_plots(record.test, width))
    found = {one.name: one.figure for one in drawn}
    found |= {one.name: one.figure for one in evaluation_plots(perturbed(), width)}
    found |= {"best_of": best_of_figure(BEST_OF, width), "compare": comparison_figure(COMPARED)}
    assert {*ALL, "best_of", "compare"} == set(found)
    if width == PAGE_WIDTH:
        found = {name: figure for name, figure in found.items() if name not in IN_TABLES}
    for name, figure in found.items():
        figure.draw_without_rendering()
        frame = figure.bbox.padded(1)
        (legend,) = figure.legends
        of_axes = [text for axis in figure.axes for text in labels_and_ticks(axis)]
        for text in filter(Text.get_text, [*figure.texts, *legend.get_texts(), *of_axes]):
            box = text.get_window_extent()
            for x, y in ((box.x0, box.y0), (box.x1, box.y1)):
                assert frame.contains(x, y), (name, text.get_text())
        for axis in figure.axes:
            assert axis.get_legend() is None
            assert not legend.get_window_extent().overlaps(axis.get_window_extent()), name
            # Side by side they share the width; names of slices take a good part of it.
            panels = axis.get_gridspec().ncols
            assert axis.get_window_extent().width > 0.45 * figure.bbox.width / panels, name


def labels_and_ticks(axis):
    ends = [(axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())]
    shown = [
        tick.label1
        for one, limits in ends
        for tick in one.get_major_ticks()
        if min(limits) <= tick.get_loc() <= max(limits)
    ]
    return [axis.xaxis.label, axis.yaxis.label, *axis.texts, *shown]


def test_slices_below_and_above_the_rest_differ_in_colour_and_shape(metrics):
    block = metrics["test"]
    below, above, alike = block["slices"][:3]
    for entry, accuracy, significant in (
        (below, 0.1, True),
        (above, 0.9, True),
        (alike, 0.5, False),
    ):
        entry |= {"accuracy": accuracy, "significant": significant, "small": False, "pairs": 99}
    drawn_of_test = evaluation_plots(as_record(metrics).test)
    (figure,) = (one.figure for one in drawn_of_test if one.name == "slices")
    marks = {
        np.asarray(line.get_xdata())[0]: (line.get_color(), line.get_marker())
        for line in figure.axes[0].get_lines()
        if line.get_marker() != "None"
    }
    assert len({marks[value] for value in (0.1, 0.9, 0.5)}) == 3
    assert len({color for color, _ in marks.values()}) == 3
    assert len({marker for _, marker in marks.values()}) == 3


def test_the_marks_of_two_compared_models_are_whole():
    figure = comparison_figure(COMPARED)
    figure.draw_without_rendering()
    for axis in figure.axes:
        inside = axis.get_window_extent()
        for line in axis.get_lines():
            half = line.get_markersize() / 2 * figure.dpi / 72
            x, y = axis.transData.transform(
                (np.asarray(line.get_xdata())[0], np.asarray(line.get_ydata())[0])
            )
            assert inside.y0 + half < y < inside.y1 - half
            assert inside.x0 + half < x < inside.x1 - half


def test_letters_without_a_font_become_code_points(monkeypatch):
    assert drawable("a é Ω") == "a é Ω"
    assert families_for(["plain"]) == families_for([])
    # A machine without any other font.
    monkeypatch.setattr("matplotlib.font_manager.fontManager.ttflist", [])
    plots._fallbacks.cache_clear()
    assert drawable("東京") == " U+6771  U+4EAC "
    plots._fallbacks.cache_clear()


def test_installed_fonts_draw_letters_that_matplotlib_lacks(metrics, tmp_path, recwarn):
    if drawable("中") != "中":
        pytest.skip("no installed font has Chinese letters")
    block = metrics["test"]
    block["slices"][0] |= {"column": "語", "value": "中文", "small": False, "pairs": 99}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_plots(tmp_path)
    assert not [str(w.message) for w in recwarn if "missing from" in str(w.message)]


def test_a_single_evaluation(metrics):
    metrics["eval"]["history"] = metrics["eval"]["history"][:1]
    metrics["training_curve"] = metrics["training_curve"][:1]
    found = {one.name: one.figure for one in run_plots(as_record(metrics))}
    for figure in found.values():
        figure.draw_without_rendering()
    lines = {
        line.get_label(): line
        for name in ("losses", "accuracy")
        for line in found[name].axes[0].get_lines()
    }
    # A line through one point shows its marker alone.
    for label in ("training", "validation", "this model, 95% CI"):
        assert len(np.asarray(lines[label].get_xdata())) == 1
        assert lines[label].get_marker() == "o"
    assert [
        len(lines.get_segments())
        for lines in found["accuracy"].axes[0].collections
        if isinstance(lines, LineCollection)
    ] == [1]


def test_evaluations_without_an_interval_have_no_band(metrics):
    whole = figures(metrics)["accuracy"].axes[0].get_lines()[0]
    for entry in metrics["eval"]["history"]:
        entry["accuracy_ci95"] = None
    figure = figures(metrics)["accuracy"]
    figure.draw_without_rendering()
    line = figure.axes[0].get_lines()[0]
    assert line.get_ydata().tolist() == whole.get_ydata().tolist()


def test_losses_without_evaluation(metrics):
    assert drawn(metrics | {"eval": None, "best": None}) == ["losses"]


def test_nothing_recorded_draws_nothing_and_removes_stale_plots(tmp_path, metrics):
    bare = metrics | {"eval": None, "test": None, "best": None, "training_curve": []}
    (tmp_path / "metrics.json").write_text(json.dumps(bare), encoding="utf-8")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "losses.png").touch()
    assert write_plots(tmp_path) == []
    assert list((tmp_path / "plots").iterdir()) == []


def evaluated(rewards, characters, perturbations=None, metadata=lambda number: {}):
    return summarise(
        score_table(
            [
                {"reward": reward, "characters": length, "metadata": metadata(number)}
                for reward, length in zip(pair, characters, strict=True)
            ]
            for number, pair in enumerate(rewards)
        ),
        EvaluationContext(
            dataset="eval",
            chose_checkpoint=True,
            baselines={"bag_of_words": None},
            perturbations=perturbations,
        ),
    )


@pytest.mark.parametrize(
    ("rewards", "characters"),
    [
        ([(0.0, 0.0)] * 5, (4, 4)),
        ([(1e-9, -1e-9)] * 5, (9, 4)),
        ([(1e6, 1e6 + 1)] * 5, (4, 9)),
        ([(0.3, 0.1)], (4, 9)),
    ],
)
def test_constant_and_lone_rewards(metrics, rewards, characters):
    found = drawn(metrics | {"eval": json_safe(evaluated(rewards, characters))})
    assert found == ["losses", "rewards", "reliability", "risk_coverage", "length"]


def test_no_pairs(metrics):
    assert drawn(metrics | {"eval": json_safe(evaluated([], (0, 0)))}) == ["losses"]


def test_names_from_data_are_no_formulas_and_perturbed_responses_are_drawn():
    block = perturbed(lambda number: {"kind": ["$x^{", "\u05d0\u05d1\n" * 40][number % 2]})
    found = {one.name: one.figure for one in evaluation_plots(block)}
    for name in ("slices", "perturbations"):
        found[name].draw_without_rendering()
    ticks = found["slices"].axes[0].get_yticklabels()
    (formula,) = [tick for tick in ticks if "x^{" in tick.get_text()]
    assert "$x^{" in formula.get_text()
    assert not formula.get_parse_math()
    assert all("\n" not in tick.get_text() for tick in ticks)


def test_the_captions_use_the_fields_terms():
    words = EVALUATION_PLOTS["perturbations"].caption
    assert all(word in words for word in ("degradation", "flip the ranking", "reward hacking"))


def test_a_picture_in_the_page_has_the_pages_colours_and_ids_of_its_own(metrics):
    found = [inline_svg(figure, name, name) for name, figure in figures(metrics).items()]
    ids = [own for svg in found for own in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in found:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
        assert "var(--blue)" in svg
        assert "<style" not in svg
        assert "<text" in svg
        targets = {*re.findall(r'href="#([^"]+)"', svg), *re.findall(r"url\(#([^)]+)\)", svg)}
        assert targets <= set(ids)
