"""The model card of a fixed run, whole; rewrite it with PLAUDIT_UPDATE_GOLDENS=1.

``run/metrics.json`` was made by hand from random rewards and the history of a published run.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard

from plaudit.errors import DataError, OutputError
from plaudit.evaluation.schema import RunMetrics, adapter, read_metrics
from plaudit.report.card import code, escape, render_card, snippet, write_card
from plaudit.report.highlights import (
    MOST_EVALUATIONS,
    MOST_ROWS,
    NOT_EVALUATED,
    next_steps,
    shown_history,
)
from plaudit.report.record import read_recalibration

RUN = Path(__file__).parent / "run"
METRICS = json.loads((RUN / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def write(folder, metrics):
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return write_card(folder)


def test_whole_card(folder, metrics):
    (folder / "plots").mkdir()
    (folder / "plots" / "losses.png").touch()
    (folder / "recipe.yaml").touch()
    text = write(folder, metrics).read_text(encoding="utf-8")
    golden = RUN / "README.md"
    if os.environ.get("PLAUDIT_UPDATE_GOLDENS") == "1":
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
    assert "More information needed" not in text
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "metrics.json", "plots", "recipe.yaml"
    ]  # fmt: skip


def test_the_hub_reads_metadata_and_results(folder, metrics):
    card = ModelCard.load(write(folder, metrics))
    data = card.data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert data.base_model == "meta-llama/Meta-Llama-3-8B"
    assert data.pipeline_tag == "text-classification"
    assert data.datasets == ["Anthropic/hh-rlhf"]
    assert data.metrics == ["accuracy"]
    assert {"reward-model", "plaudit", "lora"} <= set(data.tags)
    assert all(isinstance(result, EvalResult) for result in data.eval_results)
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {(split, "accuracy"): metrics[split]["accuracy"] for split in ("eval", "test")}


def test_named_sets_keep_their_own_results(folder, metrics):
    sets = {name: {**metrics["eval"], "accuracy": value} for name, value in SETS.items()}
    metrics["eval"]["datasets"] = sets
    results = ModelCard.load(write(folder, metrics)).data.eval_results
    found = {r.dataset_config: r.metric_value for r in results if r.metric_type == "accuracy"}
    assert {name: found[name] for name in SETS} == SETS
    # A set that has the name of the evaluation is shown beside the whole.
    whole = [r for r in results if (r.dataset_split, r.dataset_config) == ("eval", "all")]
    assert [r.metric_value for r in whole if r.metric_type == "accuracy"] == [
        METRICS["eval"]["accuracy"]
    ]


SETS = {"chat": 0.61, "safety": 0.72, "eval": 0.83}


def test_a_set_named_all_is_not_merged_with_the_whole(folder, metrics):
    metrics["eval"]["datasets"] = {"all": {**metrics["eval"], "accuracy": 0.61}}
    results = ModelCard.load(write(folder, metrics)).data.eval_results
    found = {
        r.dataset_config: r.metric_value
        for r in results
        if (r.dataset_split, r.metric_type) == ("eval", "accuracy")
    }
    assert found == {"all": 0.61, "all sets": METRICS["eval"]["accuracy"]}


@pytest.mark.parametrize("name", ["eval", "test"])
def test_a_card_stays_short(folder, metrics, name):
    """Long tables belong to the report: a card keeps what is significant or extreme."""
    metrics[name]["slices"] *= 9
    metrics[name]["bias"]["features"] *= 9
    metrics[name]["warnings"] = ["Something is wrong."] * 9
    metrics["eval"]["history"] *= 9
    metrics["data"]["sources"] *= 9
    for block in (metrics["eval"], metrics["test"]):
        for part in (*block["slices"], *block["bias"]["features"]):
            part["significant"] = True
    text = write(folder, metrics).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    # The test set comes first: the golden run has two warnings of it.
    assert text.count("Something is wrong.") == (3 if name == "test" else 1)


def test_the_golden_card_is_read_in_a_few_minutes():
    assert len((RUN / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_sections_have_the_names_of_the_field(folder, metrics):
    found = re.findall(r"^## (.*)$", write(folder, metrics).read_text("utf-8"), re.MULTILINE)
    assert found == [
        *("How to use", "Intended use", "Training data", "Training procedure", "Evaluation"),
        *("Calibration", "Bias", "Robustness", "Limitations", "Citation", "Framework versions"),
    ]


def test_a_long_history_is_thinned_and_keeps_the_best_and_the_last(metrics):
    first = metrics["eval"]["history"][0]
    metrics["eval"]["history"] = [{**first, "step": step} for step in range(1, 41)]
    metrics["best"]["step"] = 23
    shown = [entry.step for entry in shown_history(adapter(RunMetrics).validate_python(metrics))]
    # The best and the last may come on top of the even ones.
    assert len(shown) <= MOST_EVALUATIONS + 2
    assert {23, 40} <= set(shown)


def test_warnings_of_an_evaluation_name_its_set_and_those_of_the_run_do_not(folder, metrics):
    metrics["data"]["leaked_prompts"] = 12
    metrics["test"]["warnings"] = ["Something is wrong."]
    text = write(folder, metrics).read_text(encoding="utf-8")
    leak = "12 held-out comparisons have prompts that are also in the training data."
    assert (
        f"**Warnings** (3 of 4):\n- {leak}\n- Test set: Something is wrong.\n- Evaluation set: "
    ) in text
    assert text.count(leak) == 2


CALIBRATED = {
    "temperature": 6.991,
    "temperature_fit": {"pairs": 60, "prompts": 50, "log_loss_before": 0.9, "log_loss": 0.6},
}


def test_a_temperature_fitted_after_training_replaces_what_was_said_of_it(folder, metrics):
    warned = "Over-confident: ECE 0.100 (0.020 if perfectly calibrated)."
    for block in (metrics["eval"], metrics["test"]):
        block |= {
            "stored_temperature": None,
            "temperature_improves": True,
            "warnings": [warned, "Something else is wrong."],
        }
    text = write(folder, metrics).read_text(encoding="utf-8")
    assert f"Test set: {warned}" in text
    assert text.count("| 1 (none stored) |") == 2
    assert "No temperature is stored with the model (T = 1)." in text
    assert next_steps_of(folder) == ["plaudit calibrate MODEL DATA"]

    (folder / "plaudit.json").write_text(json.dumps(CALIBRATED), encoding="utf-8")
    text = write(folder, metrics).read_text(encoding="utf-8")
    assert warned not in text
    assert "Test set: Something else is wrong." in text
    assert text.count("| 6.991 (stored after training) |") == 2
    assert "A temperature was fitted after training with `plaudit calibrate`. It is 6.991" in text
    assert "No temperature was stored at the evaluation (T = 1)." in text
    assert "none stored" not in text
    assert next_steps_of(folder) == []


def next_steps_of(folder):
    steps = next_steps(read_metrics(folder), read_recalibration(folder))
    return [step.command for step in steps if step.command and "calibrate" in step.command]


def test_a_temperature_fitted_again_keeps_the_first_in_the_past(folder, metrics):
    (folder / "plaudit.json").write_text(json.dumps(CALIBRATED), encoding="utf-8")
    text = write(folder, metrics).read_text(encoding="utf-8")
    assert "The temperature was fitted again after training with `plaudit calibrate`." in text
    assert "The stored temperature at the evaluation was 1.202" in text


def bias_section(folder, metrics, features):
    metrics["test"]["bias"]["features"] = features
    text = write(folder, metrics).read_text(encoding="utf-8")
    section = text[text.index("## Bias\n") : text.index("## Robustness")]
    rows = [line.split(" | ")[0][2:] for line in section.splitlines() if line.startswith("| ")]
    return section, rows[1:]


def features_of(metrics, tested, significant=()):
    gaps = {"p": 0.01, "p_adjusted": 0.02, "gap": 0.1, "gap_ci95": [0.05, 0.15]}
    nothing = dict.fromkeys(gaps)
    return [
        row
        | (gaps if row["feature"] in tested else nothing)
        | {"significant": row["feature"] in significant}
        for row in metrics["test"]["bias"]["features"]
    ]


def test_the_card_says_which_features_were_tested_for_bias(folder, metrics):
    names = [row["feature"] for row in metrics["test"]["bias"]["features"]]
    others = [name for name in names if name != "characters"]

    def found(tested, significant=()):
        return bias_section(folder, metrics, features_of(metrics, tested, significant))

    section, rows = found([])
    assert "No feature was tested: too few pairs differ in any of them." in section
    assert rows == []
    section, rows = found(others)
    assert "No tested feature shows a significant bias; length was not tested." in section
    assert rows == []
    section, rows = found(others, others[:1])
    assert "Length was not tested: too few pairs differ in it." in section
    assert len(rows) == 1
    section, rows = found(names)
    assert "No tested feature shows a significant bias.\n" in section
    assert rows == ["characters"]
    section, rows = found(names, others[: MOST_ROWS + 1])
    assert "tested" not in section
    assert len(rows) == MOST_ROWS + 1
    assert rows[-1] == "characters"


def test_the_mean_margin_is_rounded(folder, metrics):
    metrics["data"]["margins"] = {"comparisons": 3, "mean": 1 / 3}
    text = write(folder, metrics).read_text(encoding="utf-8")
    assert "margins of 3 comparisons (0.333 on average)" in text


def test_full_fine_tuning_of_a_local_base(folder, metrics):
    metrics["run"] |= {
        "method": "full",
        "lora": None,
        "base": "/home/someone/models/tiny-base",
        "base_is_hub_id": False,
        "base_revision": None,
    }
    card = ModelCard.load(write(folder, metrics))
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()
    assert "the local model `tiny-base`" in card.text
    assert "/home/someone" not in card.content
    assert "AutoModelForSequenceClassification.from_pretrained" in card.text
    assert "peft import" not in card.text


def test_without_evaluation_the_card_says_so(folder, metrics):
    metrics |= {"eval": None, "test": None, "best": None, "overfit": None}
    card = ModelCard.load(write(folder, metrics))
    assert card.text.count(NOT_EVALUATED) == 2
    assert "Accuracy is agreement" not in card.text
    assert card.data.eval_results is None


def test_numbers_that_do_not_exist_are_dashes(folder, metrics):
    block = metrics["eval"]
    for key in ("accuracy", "loss", "accuracy_ci95", "stored_temperature", "nll_stored"):
        block[key] = None
    block["baselines"]["bag_of_words"] = None
    metrics["test"] = None
    card = ModelCard.load(write(folder, metrics))
    assert "| 1 (none stored) |" in card.text
    assert "| bag of words | not fitted: no training data | – | – |" in card.text
    assert card.data.eval_results is None
    assert "None" not in card.text


HOSTILE = "a|b`c`\n# <script>alert(1)</script> ![x](http://e.x/i.png) **b** &amp; $$x$$"


def test_everything_from_data_is_escaped(folder, metrics):
    metrics["run"]["name"] = HOSTILE
    metrics["run"]["base"] = HOSTILE
    metrics["run"]["base_is_hub_id"] = False
    metrics["data"]["sources"][0] |= {"name": HOSTILE, "licence": HOSTILE, "path": HOSTILE}
    metrics["data"]["sources"][0]["fingerprint"] = "sha256:0"
    metrics["data"]["dropped"] = {HOSTILE: 3}
    metrics["eval"]["slices"][0] |= {"column": HOSTILE, "value": HOSTILE}
    metrics["eval"]["datasets"] = {HOSTILE: metrics["test"]}
    metrics["overfit"]["sentence"] = HOSTILE
    metrics["run"]["hyperparameters"] = [[HOSTILE, HOSTILE]]
    plain = metrics | {"run": metrics["run"] | {"base": "x"}}
    card = ModelCard.load(write(folder, plain))
    assert "<script" not in card.text
    assert "](http" not in card.text.replace("\\](http", "")
    width = 0
    for line in card.text.splitlines():
        assert not line.startswith("# <")
        if not line.startswith("|"):
            width = 0
            continue
        bars = len(re.findall(r"(?<!\\)\|", line))
        assert bars == (width or bars) >= 3
        width = bars
    assert "\\# &lt;script&gt;" in card.text
    assert ModelCard.load(write(folder, metrics)).data.model_name.startswith("a|b`c` # <script>")


def test_escape_keeps_names_readable():
    assert escape("learning_rate") == "learning_rate"
    assert escape("_emphasis_ 5e-05") == "\\_emphasis\\_ 5e-05"
    assert escape("a\u2028b\tc") == "a b c"
    assert code("a`b") == "``a`b``"
    assert code("`a") == "`` `a ``"


def test_snippets_are_python():
    for method in ("lora", "full"):
        for kind in ("chat", "text"):
            compile(snippet(method, kind), "snippet", "exec")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "give the folder of a finished run"),
        ("{", "not valid JSON"),
        ("[]", "has format None, expected 2"),
        ('{"format": 1}', "has format 1, expected 2"),
        ('{"format": 2}', "is damaged: plaudit_version: field required"),
        (json.dumps(METRICS | {"run": {"method": "full"}}), "is damaged: run.name: field required"),
    ],
)
def test_unusable_metrics_are_explained(folder, content, words):
    if content is not None:
        (folder / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        render_card(folder)
    assert not (folder / "README.md").exists()


def test_a_failed_write_leaves_the_old_card(folder, metrics, monkeypatch):
    write(folder, metrics).write_text("old", encoding="utf-8")

    def full(self, text, encoding):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == "old"
