"""Law 2: any cut of an optimizer step into micro-batches and ranks gives the same gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.errors import OutputError
from plaudit.evaluation.schema import read_metrics
from plaudit.losses.loss import LearnedParameters, Loss, start_of
from plaudit.losses.outputs import HeadLoss, OutputLabels, head_start_of
from plaudit.model.attention.interface import PACKED_ATTENTION
from plaudit.model.checkpoint import read_objective
from plaudit.model.module import DecoderRewardModule
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import LossSection
from plaudit.tokens.batch import PackedBatcher, PaddedBatcher
from plaudit.types import Batcher, TokenTree
from tests.conftest import recipe_of, rows_with_ties, write_jsonl
from tests.models import build_base, make_trees, tiny_classifier
from tests.ranks import run_on_two_ranks, weights

CPU = torch.device("cpu")


def labelled(trees: list[TokenTree]) -> list[TokenTree]:
    """Falling grades, some of them ratings or ties; other labels that differ."""

    def grades(tree: TokenTree) -> tuple[float, ...]:
        if tree.index % 4 == 2:
            return (1.0,) * len(tree.branches)
        return tuple(float(k == 0) for k in range(len(tree.branches)))

    return [
        replace(
            tree,
            grades=grades(tree),
            rated=tree.index % 2 == 0,
            margin=0.25 * (tree.index % 3),
            weight=1.0 + tree.index % 2,
            soft_label=0.7 + 0.3 * (tree.index % 2),
        )
        for tree in trees
    ]


def loss_of(kind: str, trees: list[TokenTree]) -> tuple[Loss, Tensor]:
    """A loss with every option that its objective reads, and its learned parameters."""
    options = {
        "label_smoothing": 0.1,
        "temperature": 0.7,
        "centering": 0.02,
        "huber_delta": 0.3,
        "length": "residual",
    }
    read = OBJECTIVES[kind].options
    section = LossSection(
        kind=kind, reward_norm=0.01, **{k: v for k, v in options.items() if k in read}
    )
    start = start_of(section, trees)
    return Loss(options=section, levels=start.levels), torch.tensor(start.learned)


def step_gradient(
    batcher: Batcher, trees: list[TokenTree], attention: str, kind: str
) -> tuple[dict[str, Tensor], float]:
    """The gradient of a step by name, the learned parameters' under "learned", and its count."""
    network = tiny_classifier("llama")
    network.set_attn_implementation(attention)
    module = DecoderRewardModule(network)
    loss, learned_C = loss_of(kind, trees)
    learned_C.requires_grad_()
    count = 0.0
    for cut in batcher.split(trees):
        members = [trees[i] for i in cut]
        summed = loss(module(batcher.collate(members)), loss.labels(members, CPU), learned_C)
        count += summed.count
        (summed.total / loss.count(trees)).backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    if learned_C.grad is not None:
        gradients["learned"] = learned_C.grad
    return gradients, count


TREES = make_trees([(9, (4, 11)), (0, (6, 3)), (14, (5, 5, 8)), (2, (20, 1)), (7, (9,))], seed=2)


@pytest.mark.parametrize("budget", [1, 40, 77, 200, 100_000])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_any_cut_into_micro_batches_gives_the_same_gradient(
    kind: str, budget: int, layout: str
) -> None:
    trees = labelled(TREES)
    batcher: Batcher = (
        PackedBatcher(max_tokens=budget, device=CPU)
        if layout == "packed"
        else PaddedBatcher(max_tokens=budget, pad_id=2, device=CPU)
    )
    attention = PACKED_ATTENTION if layout == "packed" else "sdpa"
    one_cut = PackedBatcher(max_tokens=10**6, device=CPU)
    whole, count = step_gradient(one_cut, trees, PACKED_ATTENTION, kind)
    cut, counted = step_gradient(batcher, trees, attention, kind)
    assert counted == count == loss_of(kind, trees)[0].count(trees) > 0
    assert cut.keys() == whole.keys()
    learns = OBJECTIVES[kind].learned is not None or "length" in OBJECTIVES[kind].options
    assert ("learned" in whole) == learns
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, atol=2e-6, rtol=2e-5)


OUTPUTS: dict[str, dict[str, Any]] = {
    "ratings": {"kind": "mse", "outputs": ("one", "two"), "gate": "learned", "centering": 0.02},
    "order": {"outputs": ("one", "two"), "reward_norm": 0.01},
    "ensemble": {"heads": 2, "label_smoothing": 0.1},
    "ensemble with ties": {"kind": "davidson", "heads": 2, "length": "residual"},
}


@pytest.mark.parametrize("budget", [1, 77])
@pytest.mark.parametrize("case", sorted(OUTPUTS))
def test_any_cut_gives_the_same_gradient_of_every_output(case: str, budget: int) -> None:
    holes = {0: (1.0, None, 3.0), 1: (None, 2.0, 2.0), 2: (None, None, None)}
    trees = [
        replace(
            tree,
            attributes={
                "one": holes[tree.index % 3][: len(tree.branches)],
                "two": holes[(tree.index + 1) % 3][: len(tree.branches)],
            },
        )
        for tree in labelled(TREES)
    ]
    section = LossSection(**OUTPUTS[case])
    start = head_start_of(section, trees)
    loss = HeadLoss(of_output=Loss(options=section), seed=3)

    def gradients(batcher: Batcher) -> tuple[dict[str, Tensor], float]:
        network = tiny_classifier("llama", num_labels=2)
        network.set_attn_implementation(PACKED_ATTENTION)
        module = DecoderRewardModule(network, outputs=start.outputs)
        learned = LearnedParameters[OutputLabels](loss, start.objective.learned, CPU)
        count, share = 0.0, 1.0 / loss.count(trees)
        for cut in batcher.split(trees):
            members = [trees[i] for i in cut]
            outputs_RO = module(batcher.collate(members), every_output=True)
            labels = loss.labels(members, CPU)
            summed = loss(outputs_RO, labels, learned.value_C)
            learned.accumulate(outputs_RO, labels, share)
            count += summed.count
            (summed.total * share).backward()
        learned.step(lambda gradient: gradient, 1.0)
        found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        return found | {"learned": learned.value_C}, count

    whole, count = gradients(PackedBatcher(max_tokens=10**6, device=CPU))
    cut, counted = gradients(PackedBatcher(max_tokens=budget, device=CPU))
    assert counted == pytest.approx(count) == loss.count(trees)
    assert float(whole["score.weight"].abs().sum()) > 0
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, atol=2e-6, rtol=2e-5)


def test_micro_batches_do_not_change_a_run(
    tiny_base: Path, pairs_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    """The finished run's steps fit in one micro-batch; here every comparison is its own."""
    from plaudit.training.run import train

    recipe = recipe_of(tiny_base, pairs_file)
    recipe["tokens"] = {**recipe["tokens"], "max_tokens_per_microbatch": 2}
    train(recipe, tmp_path / "run")
    expected = weights(finished_run)
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=1e-3)


def test_accumulation_is_only_a_way_to_write_the_batch(
    tiny_base: Path, pairs_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    from plaudit.training.run import train

    recipe = recipe_of(
        tiny_base, pairs_file, per_device_train_batch_size=4, gradient_accumulation_steps=1
    )
    train(recipe, tmp_path / "run")
    expected = weights(finished_run)
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name


def test_two_ranks_train_what_one_does(
    tmp_path: Path,
    write_recipe: Callable[[Mapping[str, Any]], Path],
) -> None:
    """Two gloo ranks under DDP, through torchrun, then resumed from their middle checkpoint.

    43 pairs leave a last step that only one rank has rows for; ties train a parameter of the
    objective, each of two heads learns from its own bootstrap sample, and the base stays a language
    model. AdamW would amplify the rounding of a sum taken in another order, so plain SGD trains the
    network here.
    """
    tied = build_base(tmp_path / "base", tie_word_embeddings=True)
    data = write_jsonl(tmp_path / "pairs.jsonl", rows_with_ties(43, seed=1))
    held_out = write_jsonl(tmp_path / "held_out.jsonl", rows_with_ties(13, seed=2))
    shared = {"optim": "sgd", "learning_rate": 0.3, "num_train_epochs": 1, "eval_steps": 4}

    def recipe(batch: int) -> dict[str, Any]:
        base = recipe_of(tied, data, per_device_train_batch_size=batch, **shared)
        base["train"]["gradient_accumulation_steps"] = 1
        base["train"]["save_total_limit"] = 5
        base["data"] = {"train": str(data), "eval": str(held_out)}
        base["tokens"]["max_tokens_per_microbatch"] = 50
        base["loss"] = {"kind": "davidson", "heads": 2, "language_model": 0.05}
        return base

    from plaudit.training.run import train

    alone = train(recipe(6), tmp_path / "one")
    out = tmp_path / "two"
    command = ("train", str(write_recipe(recipe(3))), "--out", str(out))
    run_on_two_ranks("ddp", tmp_path, *command)
    for rank in (0, 1):
        facts = json.loads((tmp_path / f"two-rank-{rank}.json").read_text())
        assert facts["wrapper"] == "DistributedDataParallel"
    assert_trained_alike(out, tmp_path / "one")
    objective, expected = read_objective(out), read_objective(tmp_path / "one")
    assert objective is not None
    assert expected is not None
    # Adam steps it, which amplifies rounding.
    assert objective.learned == pytest.approx(expected.learned, abs=1e-4)
    together = read_metrics(out)
    assert together.train.steps == alone.metrics.train.steps == 8
    assert together.train.comparisons == 43
    # Every fourth of them is a tie.
    assert together.train.pairs == 32
    assert together.eval.pairs == 9
    assert together.eval.loss == pytest.approx(alone.metrics.eval.loss, abs=1e-5)
    for one, two in zip(alone.metrics.training_curve, together.training_curve, strict=True):
        assert two.loss == pytest.approx(one.loss, abs=1e-5)

    whole = weights(out)
    for name in ("metrics.json", "adapter_model.safetensors", "plaudit.json"):
        (out / name).unlink()
    with pytest.raises(OutputError, match="2 processes"):
        train(out / "recipe.yaml", out, resume=True)
    # Damaged, so that both ranks go back to the checkpoint before it.
    (out / "checkpoints" / "checkpoint-8" / "counters-1.pt").unlink()
    run_on_two_ranks("ddp", tmp_path, "train", str(out), "--resume")
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, whole[name]), name
    assert read_objective(out) == objective


def assert_trained_alike(found: Path, expected: Path) -> None:
    same = weights(expected)
    for name, tensor in weights(found).items():
        torch.testing.assert_close(tensor, same[name], atol=1e-5, rtol=1e-3)
