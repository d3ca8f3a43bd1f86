from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from plaudit.errors import DataError
from plaudit.report.html import write_report

GOLDEN = Path(__file__).parents[1] / "goldens" / "run" / "metrics.json"
METRICS = json.loads(GOLDEN.read_text(encoding="utf-8"))
HOSTILE = "</td><script>alert(1)</script><img src='http://e.x/i.png' onerror=\"x\">"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a browser would find: tags, addresses, text; and whether tags match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def metrics():
    return copy.deepcopy(METRICS)


def page(folder, metrics):
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    found = Page(write_report(folder).read_text(encoding="utf-8"))
    assert found.open == []
    return found


def test_the_page_holds_everything_itself(tmp_path, metrics):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "losses.png").write_bytes(b"\x89PNG picture")
    found = page(tmp_path, metrics)
    assert [address.split(",")[0] for address in found.addresses] == ["data:image/png;base64"]
    assert not {"script", "link", "iframe"} & set(found.tags)
    text = " ".join(found.words)
    low, high = metrics["eval"]["accuracy_ci95"]
    accuracy = (f"{metrics['eval']['accuracy']:.4f}", f"{low:.4f} to {high:.4f}")
    for fact in (*accuracy, "24,021 rows", "0.5818", "hh_harmless"):
        assert fact in text
    assert metrics["overfit"]["sentence"] in text


def test_everything_from_data_is_escaped(tmp_path, metrics):
    metrics["run"] |= {"name": HOSTILE, "base": HOSTILE, "hyperparameters": [[HOSTILE, HOSTILE]]}
    metrics["data"]["sources"][0] |= {"name": HOSTILE, "licence": HOSTILE}
    metrics["data"]["dropped"] = {HOSTILE: 1}
    metrics["eval"]["slices"][0] |= {"column": HOSTILE, "value": HOSTILE}
    metrics["eval"]["datasets"] = {HOSTILE: metrics["test"]}
    metrics["overfit"]["sentence"] = HOSTILE
    metrics["environment"]["device"] = HOSTILE
    found = page(tmp_path, metrics)
    assert "script" not in found.tags
    assert found.addresses == []
    assert HOSTILE in found.words


@pytest.mark.parametrize("missing", ["eval", "test", "best", "overfit"])
def test_parts_may_be_absent(tmp_path, metrics, missing):
    page(tmp_path, metrics | {missing: None})


def test_without_evaluation_the_page_says_so(tmp_path, metrics):
    found = page(tmp_path, metrics | dict.fromkeys(("eval", "test", "best", "overfit")))
    assert "nothing is known" in " ".join(found.words)


def test_missing_numbers_are_dashes(tmp_path, metrics):
    for key in ("accuracy", "accuracy_ci95", "loss", "temperature", "ece_calibrated"):
        metrics["eval"][key] = None
    metrics["eval"]["baselines"]["bag_of_words"] = None
    text = " ".join(page(tmp_path, metrics).words)
    assert "None" not in text
    assert "not fitted" in text


def test_a_missing_fact_is_explained(tmp_path, metrics):
    del metrics["data"]["splits"]
    with pytest.raises(DataError, match="lacks a fact the report needs"):
        page(tmp_path, metrics)
