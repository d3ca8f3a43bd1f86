"""Runs off the beaten path, in process: schedules by epoch, no checkpoint chosen, equal ids."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections import Counter
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from plaudit.cli.printing import show_evaluation
from plaudit.data import store
from plaudit.data.store import decode
from plaudit.errors import DataError, ModelError, RecipeError, TrainingError
from plaudit.evaluate_model import evaluate
from plaudit.evaluation.schema import BestCheckpoint, MarginUse
from plaudit.reward_model import load
from plaudit.training import run as training
from plaudit.training.folder import RunFolder
from plaudit.training.needs import logging_into
from plaudit.training.prepare import StepArguments
from plaudit.training.run import TrainedRun, _evaluate, _on_main_process, train
from plaudit.types import Comparison
from tests.conftest import pair_rows, recipe_of, set_metadata, write_jsonl

pytestmark = pytest.mark.heavy


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", pair_rows(40, seed=8))


def test_a_schedule_by_epochs(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, pairs, eval_strategy="epoch", save_strategy="epoch")
    del recipe["train"]["eval_steps"]
    metrics = train(recipe, tmp_path / "run").metrics
    assert [entry.epoch for entry in metrics.eval.history] == [1.0, 2.0]
    assert metrics.train.steps == metrics.eval.history[-1].step == 14


def test_perturbation_tests_stay_within_their_share_and_equal_texts_have_one_reward(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    german = "Das ist nicht richtig, und man muss es noch einmal lesen."
    rows = pair_rows(12, seed=3)
    for number, row in enumerate(rows):
        # One conversation in every pair, beside others of many lengths.
        row["prompt"][0]["content"] = "what is the answer to this question?" + " " * (number >= 6)
        row["chosen"] = [
            {"role": "assistant", "content": "it is forty two" if number < 6 else german}
        ]
    for row in rows[6:]:
        row["prompt"] = [
            {"role": "user", "content": f"Warum ist das {row['rejected'][0]['content']}"}
        ]
    recipe = recipe_of(tiny_base, pairs, num_train_epochs=1)
    recipe["data"]["eval"] = str(write_jsonl(tmp_path / "eval.jsonl", rows))
    recipe["evaluate"] = {"perturbation_tests": 6, "perturbation_share": 2.0, "baselines": []}
    recipe["report"] = {"plots": False}
    screen = io.StringIO()
    run = train(recipe, tmp_path / "run")
    show_evaluation(Console(file=screen, width=400), run.metrics.eval)
    block, tokens = run.metrics.eval.perturbations, run.metrics.train.tokens
    assert (block.run_tokens, block.budget_share) == (tokens, 2.0)
    assert 0 < block.tokens <= 2.0 * tokens
    assert block.responses > 0 < block.over_budget
    assert block.responses + block.over_budget == 6
    assert sum(block.languages.values()) == block.responses
    assert set(block.not_for_language.values()) == {block.languages["de"]}
    cost, left_out, skipped = run.metrics.eval.perturbation_notes
    assert f"{block.tokens:,} tokens, {block.tokens / tokens:.1%} of the training tokens." in cost
    for shown in (
        (run.folder / "report.html").read_text(),
        (run.folder / "README.md").read_text(),
        screen.getvalue(),
    ):
        assert all(note in unescape(shown) for note in (cost, left_out, skipped))
    table = pq.read_table(run.folder / "predictions.parquet").to_pylist()
    same = [row["reward"] for row in table if row["number"] < 6 and row["response"] == 0]
    assert (len(same), len(set(same))) == (6, 1)


def test_without_a_chosen_checkpoint_the_last_is_kept_and_said_so(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, pairs, load_best_model_at_end=False)
    del recipe["report"]
    folder = tmp_path / "run"
    metrics = train(recipe, folder).metrics
    assert metrics.eval.chose_checkpoint is False
    assert metrics.best == BestCheckpoint(step=metrics.train.steps, metric=None, value=None)
    card = (folder / "README.md").read_text()
    assert "no checkpoint was chosen" in card
    assert "None" not in card
    assert "Touched once" not in card


def test_without_evaluation_data_there_are_no_evaluation_claims(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, pairs)
    recipe["data"]["eval_fraction"] = None
    del recipe["train"]["eval_steps"], recipe["report"]
    folder = tmp_path / "run"
    metrics = train(recipe, folder).metrics
    assert (metrics.eval, metrics.best, metrics.overfit) == (None, None, None)
    assert (folder / "README.md").is_file()
    assert load(folder).metadata.temperature is None


def test_an_evaluation_decodes_each_comparison_once(
    tiny_base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs, metrics, baselines and predictions share one pass; mistakes look up their own."""
    decoded: Counter[str] = Counter()

    def counted(text: bytes) -> Comparison:
        comparison = decode(text)
        decoded[comparison.where] += 1
        return comparison

    def evaluating(*args: Any) -> TrainedRun:
        decoded.clear()
        return _evaluate(*args)

    monkeypatch.setattr(store, "decode", counted)
    monkeypatch.setattr(training, "_evaluate", evaluating)
    test = write_jsonl(tmp_path / "test.jsonl", pair_rows(12, seed=9))
    recipe = recipe_of(tiny_base, pairs)
    recipe["report"] = {"plots": False}
    recipe["data"]["test"] = str(test)
    recipe["evaluate"] = {"perturbation_tests": 0}
    run = train(recipe, tmp_path / "run")
    mistakes = [json.loads(line) for line in (run.folder / "mistakes.jsonl").open()]
    looked_up = Counter(mistake["where"] for mistake in mistakes)
    assert len(decoded) == 40 + 12
    assert decoded - looked_up == dict.fromkeys(decoded, 1)
    table = pq.read_table(run.folder / "predictions.parquet")
    assert table.num_rows == run.metrics.eval.pairs * 2 + 12 * 2


def test_a_run_shorter_than_its_logging_steps_has_a_throughput(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_base, pairs, logging_steps=100, max_steps=2)
    recipe["data"]["eval_fraction"] = None
    del recipe["train"]["eval_steps"]
    took = train(recipe, tmp_path / "run").metrics.train
    assert took.comparisons == 2 * 4
    assert took.pairs_per_second == pytest.approx(took.comparisons / took.seconds)


def test_comparisons_with_equal_ids_stay_apart(
    tiny_base: Path, finished_run: Path, tmp_path: Path
) -> None:
    """Two files that both count from zero."""
    files = []
    for name, seed in (("one", 1), ("two", 2)):
        rows = [{**row, "id": str(i)} for i, row in enumerate(pair_rows(7, seed=seed))]
        files.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    both = evaluate(finished_run, files)
    alone = [evaluate(finished_run, file).metrics.eval for file in files]
    assert both.metrics.eval.pairs == 14
    assert both.metrics.eval.loss == pytest.approx(sum(e.loss for e in alone) / 2)


def test_a_name_for_two_held_out_sets_is_refused(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    held_out = write_jsonl(tmp_path / "same.jsonl", pair_rows(5, seed=3))
    (tmp_path / "other").mkdir()
    other = write_jsonl(tmp_path / "other" / "same.jsonl", pair_rows(5, seed=4))
    recipe = recipe_of(tiny_base, pairs)
    recipe["data"] = {"train": str(pairs), "eval": str(held_out), "test": str(other)}
    with pytest.raises(DataError, match="both named same"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_activation_checkpointing_changes_memory_alone(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    plain = train(recipe_of(tiny_base, pairs), tmp_path / "plain").metrics
    saving = train(
        recipe_of(tiny_base, pairs, gradient_checkpointing=True), tmp_path / "saving"
    ).metrics
    for one, two in zip(plain.training_curve, saving.training_curve, strict=True):
        assert two.loss == pytest.approx(one.loss, abs=1e-5)


def test_margins_are_subtracted_unless_left_out(tiny_base: Path, tmp_path: Path) -> None:
    """Margins in quality points swamp a reward difference, so a run says that they are there."""
    rows = [{**row, "margin": 20.0} for row in pair_rows(24, seed=6)]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = recipe_of(tiny_base, data, num_train_epochs=1)
    with_margins = train(recipe, tmp_path / "with").metrics
    without = train({**recipe, "loss": {"margin": "ignore"}}, tmp_path / "without").metrics
    assert with_margins.data.margins == MarginUse(comparisons=24, mean=20.0)
    assert without.data.margins is None
    assert with_margins.training_curve[0].loss > 19
    assert without.training_curve[0].loss == pytest.approx(0.693, abs=0.02)
    assert "margins of 24 comparisons" in (tmp_path / "with" / "README.md").read_text()


def test_the_schedule_ends_at_zero(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    """With accumulation and several epochs: other trainers multiplied one of them in twice."""
    recipe = recipe_of(tiny_base, pairs, lr_scheduler_type="linear", num_train_epochs=3)
    rates = [e.learning_rate for e in train(recipe, tmp_path / "run").metrics.training_curve]
    assert rates == sorted(rates, reverse=True)
    steps = 21
    assert rates[-1] == pytest.approx(3e-3 / steps)


def test_a_resumed_run_keeps_its_patience(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    """Stopped by patience or not, the run is that of one call."""
    import shutil

    recipe = recipe_of(
        tiny_base, pairs, num_train_epochs=6, eval_steps=4, save_total_limit=20, learning_rate=2e-2
    )
    recipe["evaluate"] = {"early_stopping_patience": 3}
    whole = tmp_path / "whole"
    expected = train(recipe, whole).metrics
    assert expected.train.steps < expected.train.planned_steps, "patience never ended it"
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    last = expected.train.steps
    shutil.rmtree(cut / "checkpoints" / f"checkpoint-{last}")
    for name in ("metrics.json", "plaudit.json", "README.md"):
        (cut / name).unlink()
    for _ in ("from the checkpoint before", "from the one at which patience ended it"):
        found = train(recipe, cut, resume=True).metrics
        assert found.train.steps == last
        assert found.eval.history == expected.eval.history
        assert weights(cut) == weights(whole)
        (cut / "metrics.json").unlink()


def weights(run: Path) -> bytes:
    return (run / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_run_killed_after_its_last_checkpoint_trains_no_further(
    evaluated: bool, tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    """Its last step is inside an epoch."""
    recipe = recipe_of(
        tiny_base,
        pairs,
        max_steps=5,
        eval_strategy="steps" if evaluated else "no",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2 if evaluated else 5,
        lr_scheduler_type="constant",
    )
    recipe["data"]["eval_fraction"] = 0.3 if evaluated else None
    recipe["evaluate"] = {"perturbation_tests": 0}
    run = tmp_path / "run"
    expected, written = train(recipe, run).metrics, weights(run)
    for name in ("metrics.json", "adapter_model.safetensors", "plaudit.json", "manifest.json"):
        (run / name).unlink()
    found = train(recipe, run, resume=True).metrics
    assert weights(run) == written
    assert found.train.steps == 5
    assert found.train.epochs == expected.train.epochs
    if evaluated:
        assert [entry.step for entry in found.eval.history] == [2, 4, 5]
        assert found.eval == expected.eval


def test_a_run_killed_before_its_card_gets_it_on_resume(finished_run: Path, tmp_path: Path) -> None:
    import shutil

    cut = tmp_path / "run"
    shutil.copytree(finished_run, cut)
    before = (cut / "README.md").read_text()
    for name in ("README.md", "report.html"):
        (cut / name).unlink()
    shutil.rmtree(cut / "plots")
    train(cut / "recipe.yaml", cut, resume=True)
    assert (cut / "README.md").read_text().replace("lora", "") == before.replace("lora", "")
    assert (cut / "report.html").is_file()


def test_a_folder_cannot_ask_for_its_own_code_to_run(finished_run: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    set_metadata(folder, trust_remote_code=True)
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load(folder)
    assert load(folder, trust_remote_code=True).score("a", ["b"])


def test_trackers_write_into_the_run_and_not_beside_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import integration_utils as trackers

    opened: list[str] = []
    writer = SimpleNamespace(SummaryWriter=lambda log_dir: opened.append(log_dir))
    monkeypatch.setattr(trackers, "is_tensorboard_available", lambda: True)
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, writer)
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWANLAB_LOG_DIR", "mine")
    folder = RunFolder(tmp_path / "run")
    with logging_into(folder, ["tensorboard", "wandb", "swanlab", "mlflow"]):
        callback = trackers.TensorBoardCallback()
        state = SimpleNamespace(is_world_process_zero=True, is_hyper_param_search=False)
        callback.on_train_begin(SimpleNamespace(output_dir=folder.checkpoints), state, None)
        assert opened == [str(folder.path / "logs" / "tensorboard")]
        assert os.environ["WANDB_DIR"] == str(folder.path / "logs")
        assert Path(os.environ["WANDB_DIR"]).is_dir()
        assert os.environ["SWANLAB_LOG_DIR"] == "mine"
    assert "WANDB_DIR" not in os.environ
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    with logging_into(RunFolder(tmp_path / "other"), []):
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("error", [TrainingError("damaged"), PermissionError("no access")])
def test_every_error_on_the_main_process_reaches_the_other_ranks(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a broadcast the other ranks would wait for one until they time out."""
    sent: list[list[object]] = []

    def broadcast(value: list[object]) -> list[object]:
        sent.append(value)
        return value

    monkeypatch.setattr("plaudit.training.run.broadcast_object_list", broadcast)

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        _on_main_process(fail, cast(StepArguments, SimpleNamespace(world_size=2)))
    assert raised.value is error
    ((outcome,),) = sent
    assert isinstance(outcome, TrainingError)
    assert str(error) in str(outcome)


def test_the_head_has_a_learning_rate_of_its_own(
    tiny_base: Path, pairs: Path, tmp_path: Path
) -> None:
    """At 0 a full run leaves the head where it was, and the body learns."""
    recipe = recipe_of(tiny_base, pairs, num_train_epochs=1)
    recipe |= {"lora": None, "model": {"base": str(tiny_base), "head_init": "normal"}}
    train(recipe, tmp_path / "both")
    recipe["model"]["head_learning_rate"] = 0
    train(recipe, tmp_path / "body")
    recipe["train"]["learning_rate"] = 0
    train(recipe, tmp_path / "neither")
    both, body, neither = (_full_weights(tmp_path / name) for name in ("both", "body", "neither"))
    layer = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(body["score.weight"], neither["score.weight"])
    assert not torch.equal(both["score.weight"], neither["score.weight"])
    assert not torch.equal(body[layer], neither[layer])


def test_frozen_layers_stay_as_they_were(tiny_base: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, pairs, num_train_epochs=1)
    recipe |= {"lora": None, "model": {"base": str(tiny_base), "freeze_layers": 2}}
    metrics = train(recipe, tmp_path / "run").metrics
    before, after = load_file(tiny_base / "model.safetensors"), _full_weights(tmp_path / "run")
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    frozen = {name for name in before if re.search(r"embed_tokens|layers\.[01]\.", name)}
    assert frozen
    assert moved == {name for name in before if re.search(r"layers\.2\.|^model\.norm", name)}
    counted = sum(tensor.numel() for name, tensor in before.items() if name not in frozen)
    head = after["score.weight"].numel()
    assert metrics.run.parameters.trainable == counted + head
    recipe["model"]["freeze_layers"] = 4
    with pytest.raises(ModelError, match="this base has 3 layers; set it to 3 or less"):
        train(recipe, tmp_path / "more")
    recipe["lora"] = {}
    with pytest.raises(RecipeError, match="layers_to_transform"):
        train(recipe, tmp_path / "adapter")


def _full_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")
