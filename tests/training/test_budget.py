"""How a run splits its steps: decided on its own corpus and model, recorded, kept on resume."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from plaudit.errors import TrainingError
from plaudit.model.module import DecoderRewardModule
from plaudit.planning.measure import StorageMeter, pass_bytes
from plaudit.planning.microbatch import SPARE, MicroBatches
from plaudit.recipe.load import parse_recipe
from plaudit.training.budget import (
    BudgetRequest,
    decide_micro_batches,
    optimizer_bytes,
    stored_shapes,
)
from plaudit.training.folder import RunFolder, start_folder
from plaudit.training.prepare import PreparedRun, prepare, step_arguments
from plaudit.training.run import train
from plaudit.types import Batch, PackedBatch
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.models import tree_shape

pytestmark = pytest.mark.heavy

REQUEST = BudgetRequest(
    tokens=None,
    checkpointing=None,
    trees_per_step=8,
    optimizer="adamw_torch_fused",
    autocast=None,
)


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    folder = tmp_path_factory.mktemp("budget")
    rows = pair_rows(24, seed=4)
    rows[3]["prompt"][0]["content"] = "what is it? " * 6
    recipe = parse_recipe(recipe_of(tiny_base, write_jsonl(folder / "pairs.jsonl", rows)), "recipe")
    out = start_folder(folder / "run", recipe)
    return prepare(recipe, step_arguments(recipe, out), out, Console(quiet=True))


@pytest.mark.parametrize("packed", [True, False])
def test_stored_shapes_are_those_of_the_trees(run: PreparedRun, packed: bool) -> None:
    trees = run.corpus.train.trees
    shapes = stored_shapes(trees, packed=packed)
    found = np.stack([shapes.tokens_N, shapes.keys_N, shapes.spans_N], 1).tolist()
    assert found == [list(tree_shape(tree, packed=packed)) for tree in trees]


def test_what_the_optimizer_will_allocate_is_held_back(run: PreparedRun) -> None:
    parameters = [p for p in run.built.model.module.parameters() if p.requires_grad]
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    optimizer = torch.optim.AdamW(copies)
    for copy in copies:
        copy.grad = torch.ones_like(copy)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    real = sum(moment.nbytes for moment in moments if moment.dim())
    assert optimizer_bytes(run.built.model.module, REQUEST) == real
    gradients = sum(p.nbytes for p in parameters)
    two_ranks = replace(REQUEST, ranks=2)
    assert optimizer_bytes(run.built.model.module, two_ranks) == real + gradients


def decide(run: PreparedRun, total: int, request: BudgetRequest = REQUEST) -> MicroBatches:
    with StorageMeter(total=total) as meter:
        return decide_micro_batches(
            run.built.model.module, run.built.batcher, run.corpus.train.trees, request, meter
        )


def test_less_memory_recomputes_more_and_splits_further(run: PreparedRun) -> None:
    """And what real passes of the split steps allocate is within what was promised."""
    module, trees = run.built.model.module, run.corpus.train.trees
    rich = decide(run, 10**9)
    assert (rich.checkpointed_layers, rich.reason) == (0, "a whole step fits")
    assert rich.bytes_needed is not None
    chosen = [decide(run, int(share * rich.bytes_needed)) for share in (2.0, 1.0, 0.8, 0.5)]
    assert chosen[-1].checkpointed_layers == chosen[-1].layers == module.checkpointable_layers
    layers = [one.checkpointed_layers or 0 for one in chosen]
    assert layers == sorted(layers)
    assert chosen[0].tokens > chosen[-1].tokens
    for one in chosen:
        assert one.bytes_free is not None
        module.checkpoint_layers(one.checkpointed_layers or 0)
        batcher = replace(run.built.batcher, max_tokens=one.tokens)
        with StorageMeter() as meter:
            for start in range(0, len(trees), 8):
                step = list(trees[start : start + 8])
                for members in batcher.split(step):
                    found = pass_bytes(module, batcher, [step[i] for i in members], meter, None)
                    assert found is not None
                    # The spared share is for what the fit misses.
                    assert found <= one.bytes_free / (1 - SPARE)
                module.zero_grad()
    module.checkpoint_layers(0)


def test_a_setting_of_the_recipe_is_obeyed(run: PreparedRun) -> None:
    module = run.built.model.module
    small = decide(run, 10**9).bytes_needed
    assert small is not None
    never = decide(run, int(0.7 * small), replace(REQUEST, checkpointing=False))
    assert never.checkpointed_layers is None
    assert not any(layer.gradient_checkpointing for layer in module._layers())
    fixed = decide(run, int(0.7 * small), replace(REQUEST, tokens=10_000))
    assert fixed.tokens == 10_000
    assert fixed.checkpointed_layers
    module.checkpoint_layers(0)


def test_a_comparison_that_cannot_fit_is_one_sentence(run: PreparedRun) -> None:
    with pytest.raises(TrainingError, match=r"largest comparison .* does not fit .*max_length"):
        decide(run, 200_000)
    run.built.model.module.checkpoint_layers(0)


def test_what_runs_out_of_memory_is_not_chosen(run: PreparedRun) -> None:
    """The fit may promise what the device does not have, such as a kernel's workspace."""
    module = run.built.model.module
    most = 2 * max(tree.tokens for tree in run.corpus.train.trees)
    tried: list[int] = []

    def limited(_: object, inputs: tuple[PackedBatch]) -> None:
        tried.append(inputs[0].layout.tokens)
        if tried[-1] > most:
            # The code of a kernel, loaded at its first call, is not PyTorch's to allocate.
            raise RuntimeError("CUDA error: out of memory")

    with module.register_forward_pre_hook(limited):
        chosen = decide(run, 10**9, replace(REQUEST, checkpointing=False))
    assert max(tried) > most
    assert chosen.tokens <= most


def test_a_run_goes_on_with_the_recorded_choice(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing is measured, so the record is written here."""
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(24, seed=4))
    recipe = recipe_of(tiny_base, pairs, num_train_epochs=1)
    recipe["evaluate"] = {"perturbation_tests": 0}
    plain = train(recipe, tmp_path / "plain").metrics
    folder = start_folder(tmp_path / "run", parse_recipe(recipe, "recipe"))
    chosen = MicroBatches(tokens=90, checkpointed_layers=1, layers=2)
    folder.record_micro_batches(chosen)
    passes: list[int] = []
    forward = DecoderRewardModule.raw

    def counted(module: DecoderRewardModule, batch: Batch) -> Tensor:
        if module.training:
            passes.append(sum(layer.gradient_checkpointing for layer in module._layers()))
            assert sum(tree.tokens for tree in batch.trees) <= 90
        return forward(module, batch)

    monkeypatch.setattr(DecoderRewardModule, "raw", counted)
    saving = train(recipe, folder.path, resume=True).metrics
    assert set(passes) == {1}
    assert folder.recorded_micro_batches() == chosen
    for one, two in zip(plain.training_curve, saving.training_curve, strict=True):
        assert two.loss == pytest.approx(one.loss, abs=1e-5)


def test_both_names_of_checkpointing_reach_any_transformers(
    tiny_base: Path, tmp_path: Path
) -> None:
    """5.17 has only the former name; 5.23 warns about it."""
    pairs = tmp_path / "pairs.jsonl"
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        for value in (True, False, None):
            options = {name: value, f"{name}_kwargs": {"use_reentrant": True}}
            recipe = parse_recipe(recipe_of(tiny_base, pairs, **options), "recipe")
            assert recipe.checkpointing is value
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)
                args = step_arguments(recipe, RunFolder(tmp_path / "run"))
            assert args.gradient_checkpointing is bool(value)
            assert args.gradient_checkpointing_kwargs == {"use_reentrant": True}
