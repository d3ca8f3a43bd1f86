from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from plaudit.evaluate.facts import summarise
from plaudit.evaluate.table import build_table
from plaudit.report.plots import CAPTIONS, PLOTS, write_plots
from plaudit.types import ScoreRow

GOLDEN = Path(__file__).parents[1] / "goldens" / "run" / "metrics.json"
METRICS = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


def test_every_plot_is_a_picture_with_a_caption(tmp_path, metrics):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    written = write_plots(tmp_path)
    assert [path.stem for path in written] == list(PLOTS) == list(CAPTIONS)
    for path in written:
        pixels = imread(path)
        assert pixels.shape[1] == 1080
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    assert sorted((tmp_path / "plots").iterdir()) == sorted(written)


def drawn(metrics):
    """Names of the plots that draw something; drawing must not fail."""
    names = []
    for name, plot in PLOTS.items():
        figure = plot(metrics)
        if figure is not None:
            figure.draw_without_rendering()
            names.append(name)
    return names


def labels(figure):
    return [text for axis in figure.axes for text in axis.get_legend_handles_labels()[1]]


def test_the_kept_step_and_the_baselines_are_named(metrics):
    assert "kept: step 6,000, 0.5818" in labels(PLOTS["losses"](metrics))
    baselines = metrics["eval"]["baselines"]
    named = {f"{name.replace('_', ' ')}: {b['accuracy']:.4f}" for name, b in baselines.items()}
    assert len(named) == 3
    assert named <= set(labels(PLOTS["accuracy"](metrics)))


def test_every_axis_is_labelled(metrics):
    for plot in PLOTS.values():
        for axis in plot(metrics).axes:
            assert axis.get_xlabel()
            assert axis.get_ylabel()


def test_a_single_evaluation(metrics):
    metrics["eval"]["history"] = metrics["eval"]["history"][:1]
    metrics["training_curve"] = metrics["training_curve"][:1]
    assert drawn(metrics) == list(PLOTS)


def test_losses_without_evaluation(metrics):
    assert drawn(metrics | {"eval": None, "best": None}) == ["losses"]


def test_nothing_recorded_draws_nothing_and_removes_stale_plots(tmp_path, metrics):
    bare = metrics | {"eval": None, "best": None, "training_curve": []}
    (tmp_path / "metrics.json").write_text(json.dumps(bare), encoding="utf-8")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "losses.png").touch()
    assert write_plots(tmp_path) == []
    assert list((tmp_path / "plots").iterdir()) == []


def evaluated(rewards, characters):
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
        )
        for number, pair in enumerate(rewards)
        for response, reward in enumerate(pair)
    ]
    return summarise(
        build_table(rows), dataset="eval", chose_checkpoint=True, baselines={"bag_of_words": None}
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
    assert found == ["losses", "rewards", "length", "reliability"]


def test_no_pairs(metrics):
    assert drawn(metrics | {"eval": evaluated([], (0, 0))}) == ["losses"]
