"""Laws 3 and 5 for other tools' models: one score on every path, and importing is the identity."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import plaudit
from plaudit.evaluate_model import evaluate
from plaudit.interop.formats import ReadOptions
from plaudit.interop.importing import import_model
from plaudit.recipe.schema import Source
from plaudit.score_file import score_file
from plaudit.storage.manifest import write_model_manifest
from tests.conftest import pair_rows, set_metadata, write_jsonl
from tests.foreign import BASE, LLAMA_FACTORY, TRL, build_openrlhf, complete
from tests.models import tiny_classifier, tiny_tokenizer

ROWS = pair_rows(6, seed=3)


def llama_factory(_: Path) -> Path:
    return LLAMA_FACTORY / "adapter"


def mid_2024(folder: Path) -> Path:
    return complete("value_head", folder)


def trapped(folder: Path) -> Path:
    return complete("trapped_head", folder)


def trl(_: Path) -> Path:
    return TRL / "adapter"


def one_of_three(folder: Path) -> Path:
    from transformers import AutoModelForSequenceClassification

    config = tiny_classifier().config
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], Mapping[str, Any]]] = {
    "LLaMA-Factory": (llama_factory, {}),
    "LLaMA-Factory of mid-2024": (mid_2024, {}),
    "PEFT 0.11 with its head wrapped": (trapped, {}),
    "TRL": (trl, {}),
    "OpenRLHF": (build_openrlhf, {}),
    "one of three outputs": (one_of_three, {"output": 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_one_score_everywhere(name: str, tmp_path: Path) -> None:
    build, chosen = MODELS[name]
    source = build(tmp_path / "source")
    base = str(BASE) if (source / "adapter_config.json").exists() else None
    model = plaudit.load(source, base=base, **chosen)
    expected = [
        reward
        for row in ROWS
        for reward in model.score(row["prompt"], [row["chosen"], row["rejected"]])
    ]
    assert max(expected) - min(expected) > 1e-3
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    score_file(model, Source(path=str(data)), tmp_path / "out.jsonl")
    written = [json.loads(line)["rewards"] for line in (tmp_path / "out.jsonl").open()]
    close = pytest.approx(expected, rel=0, abs=1e-5)
    assert [reward for rewards in written for reward in rewards] == close
    assert evaluate(model, data).table.reward_N.tolist() == close

    out = tmp_path / "imported"
    import_model(source, out, ReadOptions(base=base, **chosen))
    imported = plaudit.load(out)
    assert imported.metadata.rendering == model.metadata.rendering
    assert imported.metadata.scored_token == model.metadata.scored_token
    assert evaluate(imported, data).table.reward_N.tolist() == close
    padded = plaudit.load(out, max_tokens_per_microbatch=8)
    assert evaluate(padded, data).table.reward_N.tolist() == close


def test_a_model_of_the_first_format_keeps_its_scores(tmp_path: Path) -> None:
    """Its names were others; a scaled reward and a token before the end would be lost unread."""
    out = tmp_path / "imported"
    import_model(build_openrlhf(tmp_path / "source"), out)
    changes = {"scored_token": {"rule": "first_pad", "pad_id": 0}}
    changes["reward_transform"] = {"scale": 2.0, "offset": 1.0}
    set_metadata(out, **changes)
    model = plaudit.load(out)
    path = out / "plaudit.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["reading"] = facts.pop("scored_token")
    facts["affine"] = facts.pop("reward_transform")
    facts["origin"]["era"] = facts["origin"].pop("source_version")
    path.write_text(json.dumps(facts | {"format": 1}), encoding="utf-8")
    write_model_manifest(out)
    assert plaudit.load(out).metadata == model.metadata
