from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from plaudit.evaluate.behaviour import Altered, Probed
from plaudit.evaluate.facts import summarise
from plaudit.evaluate.table import build_table
from plaudit.report.pictures import inline_svg
from plaudit.report.plots import (
    EVALUATION_PLOTS,
    RUN_PLOTS,
    card_plots,
    evaluation_plots,
    run_plots,
    write_plots,
)
from plaudit.types import ScoreRow

GOLDEN = Path(__file__).parents[1] / "goldens" / "run" / "metrics.json"
METRICS = json.loads(GOLDEN.read_text(encoding="utf-8"))


ALL = [*RUN_PLOTS, *EVALUATION_PLOTS]
# The golden run altered responses of its test data alone.
GOLDEN_PLOTS = [name for name in ALL if name != "behaviour"]


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


def figures(metrics):
    """Every plot there is, by name, the evaluation's of its ``eval`` block."""
    block = metrics["eval"]
    drawn = [*run_plots(metrics), *(evaluation_plots(block) if block else ())]
    return {one.name: one.figure for one in drawn}


def test_every_plot_is_a_picture_with_a_caption(tmp_path, metrics):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    written = write_plots(tmp_path)
    assert [path.stem for path in written] == ALL
    captions = dict(card_plots(metrics, tmp_path))
    assert list(captions) == ALL
    assert captions["reliability"].endswith("(test data, 900 pairs.)")
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
    assert "kept: step 6,000, 0.5818" in labels(figures(metrics)["losses"])
    baselines = metrics["eval"]["baselines"]
    named = {f"{name.replace('_', ' ')}: {b['accuracy']:.4f}" for name, b in baselines.items()}
    assert len(named) == 3
    assert named <= set(labels(figures(metrics)["accuracy"]))


def test_every_axis_is_labelled(metrics):
    for name, figure in figures(metrics).items():
        # Rows of a dot plot have names of their own; panels one above the other share an axis.
        named = name in ("slices", "bias")
        assert figure.axes[-1].get_xlabel()
        assert all(axis.get_ylabel() or named for axis in figure.axes)


def test_a_single_evaluation(metrics):
    metrics["eval"]["history"] = metrics["eval"]["history"][:1]
    metrics["training_curve"] = metrics["training_curve"][:1]
    for one in run_plots(metrics):
        one.figure.draw_without_rendering()


def test_losses_without_evaluation(metrics):
    assert drawn(metrics | {"eval": None, "best": None}) == ["losses"]


def test_nothing_recorded_draws_nothing_and_removes_stale_plots(tmp_path, metrics):
    bare = metrics | {"eval": None, "test": None, "best": None, "training_curve": []}
    (tmp_path / "metrics.json").write_text(json.dumps(bare), encoding="utf-8")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "losses.png").touch()
    assert write_plots(tmp_path) == []
    assert list((tmp_path / "plots").iterdir()) == []


def evaluated(rewards, characters, behaviour=None, metadata=lambda number: {}):
    rows = [
        ScoreRow(
            comparison=str(number),
            number=number,
            group=str(number),
            dataset="eval",
            source="s",
            response=response,
            reward=reward,
            grade=1.0 - response,
            margin=0.0,
            tokens=3,
            characters=characters[response],
            metadata=metadata(number),
        )
        for number, pair in enumerate(rewards)
        for response, reward in enumerate(pair)
    ]
    return summarise(
        build_table(rows),
        dataset="eval",
        chose_checkpoint=True,
        baselines={"bag_of_words": None},
        behaviour=behaviour,
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
    found = drawn(metrics | {"eval": evaluated(rewards, characters)})
    assert found == ["losses", "rewards", "reliability", "risk_coverage", "length"]


def test_no_pairs(metrics):
    assert drawn(metrics | {"eval": evaluated([], (0, 0))}) == ["losses"]


def test_names_from_data_are_no_formulas_and_altered_responses_are_drawn():
    kinds = ("damage", "preserving", "hack")
    altered = [Altered(kind=k, name="some_way", original=1, other=0, altered=0.5) for k in kinds]
    block = evaluated(
        [(0.3, 0.1), (0.1, 0.4)] * 40,
        (9, 4),
        behaviour=Probed(altered=altered, responses=1, refused={}, seed=0),
        metadata=lambda number: {"kind": ["$x^{", "\u05d0\u05d1\n" * 40][number % 2]},
    )
    found = {one.name: one.figure for one in evaluation_plots(block)}
    for name in ("slices", "behaviour"):
        found[name].draw_without_rendering()


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
