"""The report's page: complete, escaped, and closed to everything but what is in it."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import DataError
from plaudit.report.html import write_report

GOLDEN = Path(__file__).parents[1] / "goldens" / "run" / "metrics.json"
METRICS = json.loads(GOLDEN.read_text(encoding="utf-8"))
HOSTILE = "</td></script><script>alert(1)</script><img src='http://e.x/i.png' onerror=\"x\">"
VOID = {"meta", "img", "link"}


class Page(HTMLParser):
    """What a browser would find: tags, addresses, text; and whether tags match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words, self.open = [], [], [], []
        self.ids, self.policy, self.scripts = [], None, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [found["id"]] if "id" in found else []
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.words).append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


NO_CURVES: dict[str, Any] = {
    "reward": None,
    "margin": None,
    "length": [],
    "reliability": [],
    "reliability_calibrated": None,
    "risk_coverage": [],
}


@pytest.fixture
def bare(metrics):
    """Facts without pictures, which take long to draw."""
    for block in (metrics["eval"], metrics["test"]):
        block["curves"] = NO_CURVES
        block["slices"] = block["slices"][:2]
    metrics["eval"]["history"] = []
    return metrics | {"training_curve": []}


def page(folder, metrics, mistakes=()):
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if mistakes:
        lines = "".join(json.dumps(row) + "\n" for row in mistakes)
        (folder / "mistakes.jsonl").write_text(lines, encoding="utf-8")
    found = Page(write_report(folder).read_text(encoding="utf-8"))
    assert found.open == []
    return found


def with_words(mistake, text, tokens=("one ", "two")):
    rewards = [{"text": t, "reward": 0.5 * n, "change": 0.5 * n} for n, t in enumerate(tokens)]
    along = {
        "tokens": rewards,
        "head": len(rewards),
        "left_out": 0,
        "largest_rise": rewards[-1],
        "largest_fall": None,
    }
    turns = [{"role": "user", "content": text, "name": text}, {"role": text, "content": None}]
    return {
        **mistake,
        "where": text,
        "prompt": turns,
        "text_better": text,
        "text_worse": text,
        "token_rewards_better": along,
        "token_rewards_worse": None,
    }


def test_the_page_holds_everything_itself(tmp_path, metrics):
    found = page(tmp_path, metrics)
    outside = [a for a in found.addresses if not a.startswith(("#", "data:"))]
    assert outside == []
    inside = {address[1:] for address in found.addresses if address.startswith("#")}
    assert inside <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert found.tags.count("svg") >= 6
    low, high = metrics["eval"]["accuracy_ci95"]
    accuracy = (f"{metrics['eval']['accuracy']:.3f}", f"{low:.3f} to {high:.3f}")
    for fact in (*accuracy, "24,021 rows", "0.5818", "hh_harmless"):
        assert fact in found.text
    assert metrics["overfit"]["sentence"] in found.text


def test_one_script_runs_and_the_policy_names_it(tmp_path, bare):
    found = page(tmp_path, bare)
    assert found.tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256("".join(found.scripts).encode()).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in found.policy.split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == f"'sha256-{digest}'"


def test_the_summary_comes_first_with_the_strongest_warnings(tmp_path, bare):
    bare["test"]["warnings"] = [f"Warning {number}." for number in range(5)]
    text = page(tmp_path, bare).text
    summary = text[text.index("Summary") : text.index("All comparisons of a prompt")]
    assert f"{bare['test']['accuracy']:.3f}" in summary
    assert f"{bare['eval']['accuracy']:.3f}" in summary
    assert f"{bare['test']['baselines']['bag_of_words']['delta_accuracy']:+.3f}" in summary
    shown, _, more = summary.partition("more warnings")
    assert [f"Warning {number}." in shown for number in range(5)] == [True] * 3 + [False] * 2
    # Those that the terminal counts are all here.
    assert "Test set: Warning 4." in more
    assert f"Evaluation set: {bare['eval']['warnings'][-1]}" in more
    assert bare["overfit"]["sentence"] in more


def test_a_temperature_fitted_after_training_is_the_one_of_the_summary(tmp_path, bare):
    for block in (bare["eval"], bare["test"]):
        block |= {"stored_temperature": None, "temperature_improves": True}
        block["warnings"] = ["Over-confident: ECE 0.100 (0.020 if perfectly calibrated)."]
    text = page(tmp_path, bare).text
    assert "Test set: Over-confident" in text
    assert "plaudit calibrate MODEL DATA" in text
    fit = {"pairs": 60, "prompts": 50, "log_loss_before": 0.9, "log_loss": 0.6}
    metadata = {"temperature": 6.991, "temperature_fit": fit}
    (tmp_path / "plaudit.json").write_text(json.dumps(metadata), encoding="utf-8")
    text = page(tmp_path, bare).text
    assert "Over-confident" not in text
    assert "plaudit calibrate MODEL DATA" not in text
    summary = text[text.index("Temperature") :]
    assert summary.split()[1:5] == ["6.991", "stored", "after", "training"]
    assert "No temperature was stored at the evaluation" in text
    assert "is stored with the model (T" not in text[text.index("Calibration error") :]


def test_sections_have_the_names_of_the_card(tmp_path, bare):
    page(tmp_path, bare)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall("<h2[^>]*>([^<]*)</h2>", html) == [
        *("Summary", "Training data", "Training", "Evaluation", "Calibration", "Bias"),
        *("Robustness", "Mistakes", "Limitations", "How to use", "Framework versions"),
    ]


def test_every_recorded_sentence_is_in_the_page(tmp_path, bare):
    text = page(tmp_path, bare).text
    places = [
        text.index(part)
        for answer in bare["test"]["answers"]
        for part in (answer["question"], *answer["sentences"])
    ]
    assert places == sorted(places)


def test_everything_from_data_is_escaped(tmp_path, bare):
    bare["run"] |= {"name": HOSTILE, "base": HOSTILE, "hyperparameters": [[HOSTILE, HOSTILE]]}
    bare["data"]["sources"][0] |= {"name": HOSTILE, "licence": HOSTILE}
    bare["data"]["dropped"] = {HOSTILE: 1}
    for block in (bare["eval"], bare["test"]):
        block["slices"][0] |= {"column": HOSTILE, "value": HOSTILE, "small": False, "pairs": 3}
        block["mistakes"][0] |= {"id": HOSTILE, "source": HOSTILE}
    bare["eval"]["datasets"] = {HOSTILE: bare["test"]}
    bare["overfit"]["sentence"] = HOSTILE
    bare["environment"]["device"] = HOSTILE
    mistakes = [
        with_words(mistake, HOSTILE, (HOSTILE, HOSTILE)) for mistake in bare["eval"]["mistakes"]
    ]
    found = page(tmp_path, bare, mistakes)
    assert found.tags.count("script") == 1
    assert not {"img", "iframe"} & set(found.tags)
    assert not [a for a in found.addresses if not a.startswith(("#", "data:"))]
    assert HOSTILE in found.words


def test_what_cannot_be_shown_becomes_a_sign(tmp_path, bare):
    text = "nul \x00 bell \x07 return \r del \x7f end"
    mistakes = [with_words(m, text, (text, "x")) for m in bare["eval"]["mistakes"]]
    found = page(tmp_path, bare, mistakes)
    assert "nul ␀ bell ␇ return ␍ del ␡ end" in found.text


def test_long_texts_are_cut_and_the_cut_is_counted(tmp_path, bare):
    text = "a" * 50_000
    bare["eval"]["slices"][0]["value"] = text
    mistakes = [with_words(m, text) for m in bare["eval"]["mistakes"]]
    found = page(tmp_path, bare, mistakes)
    assert "46,000 characters left out" in found.text
    assert "… (50,000 characters)" in found.text
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_the_reward_along_a_response_is_shown(tmp_path, bare):
    first = bare["eval"]["mistakes"][0]
    page(tmp_path, bare, [with_words(first, "some text")])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<span title="0.0000, +0.0000">one </span>' in html
    assert '<span class="u4" title="0.5000, +0.5000">two</span>' in html
    assert "Largest rise: +0.5000 at" in html


def test_without_texts_nothing_of_them_is_in_the_page(tmp_path, bare):
    mistakes = [with_words(m, "a secret", ("secret",)) for m in bare["eval"]["mistakes"]]
    assert "secret" in page(tmp_path, bare, mistakes).text
    html = write_report(tmp_path, with_texts=False).read_text(encoding="utf-8")
    assert "secret" not in html
    assert "Their texts are not in this report" in html


def test_broken_mistakes_are_explained(tmp_path, bare):
    (tmp_path / "mistakes.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=re.escape("mistakes.jsonl")):
        page(tmp_path, bare)


@pytest.mark.parametrize("missing", ["eval", "test", "best", "overfit"])
def test_parts_may_be_absent(tmp_path, bare, missing):
    page(tmp_path, bare | {missing: None})


def test_without_evaluation_the_page_says_so(tmp_path, bare):
    found = page(tmp_path, bare | dict.fromkeys(("eval", "test", "best", "overfit")))
    assert "nothing is known" in found.text


def test_missing_numbers_are_dashes(tmp_path, bare):
    for key in ("accuracy_ci95", "loss", "temperature", "ece_calibrated"):
        bare["eval"][key] = None
    bare["eval"]["baselines"]["bag_of_words"] = None
    text = page(tmp_path, bare).text
    assert "None" not in text
    assert "not fitted" in text


def test_an_evaluation_by_itself(tmp_path, bare):
    kept = {key: bare[key] for key in ("format", "plaudit_version", "eval", "environment")}
    data = {"rows": 5, "used": 4, "dropped": {"over_length": 1}, "sources": []}
    found = page(tmp_path, kept | {"model": "runs/first", "data": data})
    assert "5 rows read, 4 used; dropped: over length 1" in found.text
    assert "Training" not in found.text


def test_a_missing_fact_is_explained(tmp_path, bare):
    del bare["data"]["splits"]
    with pytest.raises(DataError, match=re.escape("is damaged: data.splits: field required")):
        page(tmp_path, bare)


def test_metrics_of_something_else_are_explained(tmp_path):
    with pytest.raises(DataError, match="is damaged: plaudit_version: field required"):
        page(tmp_path, {"format": 2})
