"""Law 3 over formats: whatever a model is read from, every export of it gives its scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plaudit import registry
from plaudit.errors import ModelError
from plaudit.interop.export import ExportOptions, export
from plaudit.interop.formats import formats, read_contents
from plaudit.interop.parity import CheckOptions, check_rows
from plaudit.recipe.schema import Source
from plaudit.reward_model import LoadOptions, load, load_model
from plaudit.tokens.batch import PackedBatcher
from plaudit.types import WeightDtype
from tests.conftest import pair_rows, set_metadata, write_jsonl
from tests.foreign import complete

pytestmark = pytest.mark.heavy

# How each format comes to be here: by the exporter that writes it, without plaudit's own facts.
LAYOUT_OF = {
    "plaudit": "adapter",
    "LLaMA-Factory": "llamafactory",
    "OpenRLHF": "openrlhf",
    "sequence classifier adapter": "adapter",
    "sequence classifier": "merged",
}
READ_OPTIONS: Mapping[str, LoadOptions] = {
    "LLaMA-Factory": LoadOptions(template="default", source_version="0.9.4"),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", pair_rows(4, seed=31))


@pytest.fixture(scope="module")
def models(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every format that is read, with a bias where the format has one."""
    biased = tmp_path_factory.mktemp("source") / "biased"
    shutil.copytree(finished_run, biased)
    set_metadata(biased, reward_transform={"scale": 1.5, "offset": -0.375})
    found = {}
    for name, layout in LAYOUT_OF.items():
        folder = tmp_path_factory.mktemp("formats") / name.replace(" ", "-")
        export(biased, layout, folder)
        if name != "plaudit":
            for own in ("plaudit.json", "export.json"):
                (folder / own).unlink(missing_ok=True)
        found[name] = folder
    return found


def rewards(path: Path, rows: Path, options: LoadOptions = LoadOptions()) -> list[float]:
    model = load_model(path, options)
    checked = check_rows(model, path, Source(path=str(rows)))
    scores: list[float] = np.concatenate(model.score_trees(checked.trees)).tolist()
    return scores


def test_every_format_is_walked(models: dict[str, Path]) -> None:
    assert set(LAYOUT_OF) == {row.name for row in formats()}
    assert set(LAYOUT_OF.values()) == set(registry.names("exporter"))
    for name, folder in models.items():
        contents = read_contents(folder)
        assert next(row.name for row in formats() if row.recognises(contents)) == name


@pytest.mark.parametrize("target", registry.names("exporter"))
@pytest.mark.parametrize("source", LAYOUT_OF)
def test_every_pair_keeps_the_scores(
    source: str, target: str, models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    read = READ_OPTIONS.get(source, LoadOptions())
    whole = not (models[source] / "adapter_config.json").is_file()
    options = ExportOptions(load=read, check=CheckOptions(rows=Source(path=str(rows))))
    if target == "adapter" and whole:
        with pytest.raises(ModelError, match="has no LoRA adapter"):
            export(models[source], target, tmp_path / "out", options)
        return
    done = export(models[source], target, tmp_path / "out", options)
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    # And read again by plaudit, which renders and reads as the source does.
    again = rewards(
        tmp_path / "out",
        rows,
        # What a value head's template is stands in no file of a plain model.
        READ_OPTIONS["LLaMA-Factory"] if target == "llamafactory" else LoadOptions(),
    )
    if target == "llamafactory" and source != "LLaMA-Factory":
        return  # read by its own template, which is not the source's chat template
    np.testing.assert_allclose(again, rewards(models[source], rows, read), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LAYOUT_OF)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_body_in_half_precision_scores_packed_within_its_noise(
    name: str, dtype: WeightDtype, models: dict[str, Path], rows: Path
) -> None:
    options = replace(READ_OPTIONS.get(name, LoadOptions()), dtype=dtype)
    model = load_model(models[name], options)
    fp32 = {n for n, p in model.module.network.named_parameters() if p.dtype == torch.float32}
    body = {n for n, p in model.module.network.named_parameters() if n not in fp32}
    assert model.dtype == dtype
    assert body
    assert all(".lora_" in n or ".score." in f".{n}" for n in fp32)
    assert any(".score." in f".{n}" for n in fp32)
    assert isinstance(model.batcher, PackedBatcher)
    whole = rewards(models[name], rows, READ_OPTIONS.get(name, LoadOptions()))
    half = rewards(models[name], rows, options)
    apart = np.abs(np.subtract(half, whole)).max()
    assert 0 < apart < {"bfloat16": 5e-2, "float16": 1e-2}[dtype] * max(1.0, np.abs(whole).max())


# ---- models that the tools themselves trained, with the scores they gave ------------------------

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASE = str(FIXTURES / "llama_factory/base")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A tool's adapter, conversations as ids, and the score that the tool gave each."""

    adapter: Path
    ids_R: list[list[int]]
    scores_R: list[float]


def recorded(name: str) -> Recorded:
    folder, scores = {
        "llamafactory": ("llama_factory/adapter", "llama_factory/scores.jsonl"),
        "old llamafactory": (
            "llama_factory/adapter_old_layout",
            "llama_factory/scores_old_layout.jsonl",
        ),
        "trl": ("trl/adapter", "trl/scores.jsonl"),
    }[name]
    # Loading is tested on every row elsewhere; ten tell whether an export kept the scores.
    rows = [json.loads(line) for line in (FIXTURES / scores).read_text().splitlines()[:10]]
    sides = ("chosen", "rejected")
    given = [
        row["rewards"] if "rewards" in row else [row[f"{side}_reward_single"] for side in sides]
        for row in rows
    ]
    return Recorded(
        adapter=FIXTURES / folder,
        ids_R=[row[f"{side}_ids"] for row in rows for side in sides],
        scores_R=[score for pair in given for score in pair],
    )


def bias_of(adapter: Path) -> float:
    if (adapter / "value_head.safetensors").is_file():
        return float(load_file(adapter / "value_head.safetensors")["v_head.summary.bias"])
    if (adapter / "value_head.bin").is_file():
        stored = torch.load(adapter / "value_head.bin", weights_only=True)
        return float(stored["v_head.summary.bias"])
    return 0.0


def on_base(rows: Path | None = None) -> ExportOptions:
    """An export of an adapter on the base of the fixtures, checked where there are rows."""
    check = None if rows is None else CheckOptions(rows=Source(path=str(rows)))
    return ExportOptions(load=LoadOptions(base=BASE), check=check)


@pytest.mark.parametrize("target", registry.names("exporter"))
@pytest.mark.parametrize("name", ["llamafactory", "old llamafactory", "trl"])
def test_the_tools_own_scores_survive_every_export(
    name: str, target: str, rows: Path, tmp_path: Path
) -> None:
    source = recorded(name)
    out = tmp_path / "out"
    done = export(source.adapter, target, out, on_base(rows))
    assert done.parity is not None
    assert done.parity.largest_difference <= 1e-5
    found = registry.find("exporter", target).read(out, BASE)(source.ids_R)
    # A classifier has no place for the bias, and says so.
    lost = bias_of(source.adapter) if target in ("adapter", "merged") else 0.0
    assert any("cannot store" in note for note in done.notes) == (lost != 0.0)
    np.testing.assert_allclose(np.asarray(found) + lost, source.scores_R, atol=1e-4, rtol=0)


def test_there_and_back_changes_no_tensor(tmp_path: Path) -> None:
    pairs = [("llamafactory", "llamafactory"), ("trl", "adapter")]
    for name, target in pairs:
        adapter = recorded(name).adapter
        export(adapter, target, tmp_path / name, on_base())
        for path in adapter.glob("*.safetensors"):
            before, after = load_file(path), load_file(tmp_path / name / path.name)
            assert before.keys() == after.keys()
            assert all(before[key].equal(after[key]) for key in before)


def test_the_template_of_llamafactory_goes_with_the_model(rows: Path, tmp_path: Path) -> None:
    """Its name for LLaMA-Factory, its text for everybody else."""
    adapter = recorded("llamafactory").adapter
    export(adapter, "llamafactory", tmp_path / "back", on_base())
    assert (tmp_path / "back" / "llamafactory.yaml").read_text() == "template: llama3\n"
    done = export(adapter, "merged", tmp_path / "out", on_base(rows))
    assert done.parity is not None
    assert done.parity.text_differs == 0
    assert not any("other text" in note for note in done.notes)
    assert any("written as Jinja" in note for note in done.notes)
    # An older release's rules are named, since today's libraries wrote the rest of the folder.
    old = complete("value_head", tmp_path / "old")
    export(old, "llamafactory", tmp_path / "kept", on_base())
    was, kept = load(old, base=BASE), load(tmp_path / "kept", base=BASE)
    assert kept.metadata.origin is not None
    assert kept.metadata.origin.source_version == "0.8.2"
    assert kept.score("Hi", ["Hello"]) == pytest.approx(was.score("Hi", ["Hello"]), abs=1e-5)
    other = LoadOptions(base=BASE, template="qwen", source_version="0.8.2")
    unchecked = ExportOptions(load=other, check=None)
    done = export(old, "llamafactory", tmp_path / "qwen", unchecked)
    assert any("changed its template qwen after" in note for note in done.notes)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    )
