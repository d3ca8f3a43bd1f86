"""Estimates against worked examples; sizes are checked in test_architecture.py."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plaudit.data.split import split_rows
from plaudit.errors import DataError, RecipeError
from plaudit.planning.architecture import ModelSize, architectures, find_architecture
from plaudit.planning.estimate import (
    CONTEXT_BYTES,
    GPUS,
    Hardware,
    Length,
    Lengths,
    Plan,
    Split,
    activation_dtype,
    body_dtype,
    count_steps,
    equal_lengths,
    find_gpus,
    from_characters,
    plan,
    summarize,
    within,
)
from plaudit.planning.microbatch import (
    Cost,
    Shapes,
    by_layers,
    choose,
    packed_shape,
)
from plaudit.recipe.load import parse_recipe
from plaudit.recipe.schema import MICROBATCH_TOKENS, Recipe
from plaudit.training.corpus import _held_out_sizes, split_sizes
from plaudit.types import Comparison

LLAMA_3_8B_LORA = ModelSize(
    architecture="llama",
    layers=32,
    hidden=4096,
    attention_width=32 * 4096,
    total=7_525_900_288,
    trainable=20_975_616,
    body=7_504_924_672,
    linear=6_979_321_856,
    adapter=20_971_520,
)


KEPT = Cost(fixed=0.0, token=1_000_000.0, key=0.0, span=0.0)
RECOMPUTED = Cost(fixed=0.0, token=32 * 4096 * 2 + 1_000_000 / 32, key=0.0, span=0.0)
COSTS = by_layers(KEPT, RECOMPUTED, 32)


def recipe(**sections: Any) -> Recipe:
    given: dict[str, Any] = {"model": {"base": "some/base"}, "data": {"train": "pairs.jsonl"}}
    return parse_recipe({**given, **sections}, "test")


REFERENCE = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 3,
    "eval_steps": 2000,
}


def make(loaded: Recipe, **options: Any) -> Plan:
    return plan(
        loaded,
        **{
            "size": LLAMA_3_8B_LORA,
            "lengths": equal_lengths(300, 200),
            "split": Split(*split_sizes(loaded.data, 24_004)),
            "hardware": Hardware(gpus=GPUS),
            "packed": True,
            "costs": lambda rows: COSTS,
            **options,
        },
    )


def test_the_reference_run_is_the_one_its_card_implies() -> None:
    result = make(recipe(train=REFERENCE))
    assert (result.split.train, result.split.evaluation) == (21_603, 2_401)
    assert (result.steps.per_epoch, result.steps.total) == (5_401, 16_203)
    assert result.steps.mid_2024 == 16_200
    assert result.steps.evaluations == 8
    assert "carried the 3 left-over pairs" in " ".join(result.notes)


def test_no_word_of_left_over_pairs_where_there_are_none() -> None:
    result = make(recipe(train=REFERENCE), split=Split(21_600, 2_400, 0))
    assert result.steps.mid_2024 == result.steps.total
    assert "left-over" not in " ".join(result.notes)


@given(st.integers(1, 5000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_steps_are_those_of_the_step_sampler(
    train: int, batch: int, accumulation: int, devices: int
) -> None:
    arguments = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 2,
        "max_steps": -1,
        "eval_strategy": "no",
    }
    steps = count_steps(arguments, train, devices)
    # The sampler cuts the epoch into whole steps of all devices, the last one smaller.
    assert steps.per_epoch == math.ceil(train / (batch * accumulation * devices))
    assert steps.total == 2 * steps.per_epoch


def test_a_limit_of_steps_wins_over_epochs() -> None:
    steps = count_steps(recipe(train={"max_steps": 10}).training_arguments, 800, 1)
    assert (steps.total, steps.epochs) == (10, 0.1)


@pytest.mark.parametrize(
    ("train", "evaluations"),
    [({"eval_steps": 0.1}, 10), ({"eval_strategy": "epoch"}, 3), ({"eval_strategy": "no"}, 0)],
    ids=str,
)
def test_evaluations_on_schedule(train: dict[str, Any], evaluations: int) -> None:
    arguments = recipe(train=train).training_arguments
    assert count_steps(arguments, 8000, 1).evaluations == evaluations


@given(st.integers(10, 2_000), st.floats(0.01, 0.49), st.floats(0.01, 0.49), st.booleans())
def test_stated_pairs_are_split_as_the_rows_of_training_are(
    rows: int, evaluation: float, test: float, counted: bool
) -> None:
    size = {"eval_rows": math.ceil(evaluation * rows)} if counted else {"eval_fraction": evaluation}
    # Of a few rows, a count rounded up may leave nothing, which is an error.
    assume(not counted or size["eval_rows"] / rows + test < 1)
    data = recipe(data={"train": "a", **size, "test_fraction": test}).data
    row_N, group_N = np.arange(rows), np.arange(rows, dtype=np.uint64)
    parts = []
    for share in _held_out_sizes(data, rows):
        assert share is not None
        train_N, held_out_N = split_rows(row_N, group_N, share, by="prompt", seed=data.seed)
        parts.append(len(held_out_N))
        row_N, group_N = row_N[train_N], group_N[train_N]
    assert split_sizes(data, rows) == (len(row_N), *parts)


def test_files_of_their_own_hold_nothing_out() -> None:
    assert split_sizes(recipe(data={"train": "a", "eval": "b"}).data, 100) == (100, 0, 0)


def test_the_prompt_is_counted_once_packed_and_twice_padded() -> None:
    result = make(recipe(train=REFERENCE))
    assert result.tokens.packed_per_epoch == 700 * 21_603
    assert result.tokens.padded_per_epoch == 2 * 500 * 21_603


def test_attended_pairs_by_counting_them() -> None:
    length = Length(prompt=3, responses=(2, 4))
    count = sum(range(1, 4)) + (4 + 5) + (4 + 5 + 6 + 7)
    assert length.attended == count
    assert length.attended_padded == sum(range(1, 6)) + sum(range(1, 8))


def test_padding_counts_the_longest_of_each_batch() -> None:
    rows = tuple(Length(prompt=1, responses=(n, n)) for n in (1, 9))
    _, together = summarize(Lengths(rows=rows, how=""), max_length=99, truncation="drop", batch=2)
    _, alone = summarize(Lengths(rows=rows, how=""), max_length=99, truncation="drop", batch=1)
    assert (together.tokens, alone.tokens) == (4 * 10 / 2, (2 * 2 + 2 * 10) / 2)


def test_over_length_is_dropped_or_cut() -> None:
    rows = (Length(prompt=90, responses=(20, 5)), Length(prompt=10, responses=(5, 5)))
    lengths = Lengths(rows=rows, how="")
    dropped, _ = summarize(lengths, max_length=100, truncation="drop", batch=1)
    assert len(within(lengths, max_length=100, truncation="drop")) == 1
    assert dropped.tokens == 20
    cut, _ = summarize(lengths, max_length=100, truncation="left", batch=1)
    assert len(within(lengths, max_length=100, truncation="left")) == 2
    assert cut.largest == 80 + 25
    with pytest.raises(DataError, match=r"max_length \(20\)"):
        summarize(Lengths(rows=rows[:1], how=""), max_length=20, truncation="drop", batch=1)


def test_lengths_from_characters_say_so() -> None:
    pair = Comparison(
        id="1",
        prompt="p" * 400,
        responses=("r" * 9, ""),
        grades=(1.0, 0.0),
        group="1",
        source="s",
        where="s:1",
    )
    lengths = from_characters([pair])
    assert lengths.rows[0] == Length(prompt=100, responses=(3, 1))
    assert "4 characters per token" in lengths.how


def test_lora_memory_by_part() -> None:
    memory = make(recipe(train=REFERENCE)).memory
    assert memory.weights == 7_504_924_672 * 2
    assert memory.adapter_and_head == memory.gradients == 20_975_616 * 4
    assert memory.optimizer == 20_975_616 * 8
    assert memory.micro_batch_tokens == 4 * 700
    assert memory.activations == 2800 * 1_000_000
    assert memory.total == sum(
        (
            memory.weights,
            memory.adapter_and_head,
            memory.gradients,
            memory.optimizer,
            memory.activations,
        )
    )


def test_full_fine_tuning_keeps_fp32_weights() -> None:
    loaded = recipe(lora=None)
    size = replace(LLAMA_3_8B_LORA, total=101, body=100, trainable=101, linear=80, adapter=0)
    memory = make(loaded, size=size).memory
    assert (body_dtype(loaded), activation_dtype(loaded)) == ("float32", "bfloat16")
    assert (memory.weights, memory.gradients, memory.optimizer) == (400, 404, 808)
    assert memory.static == 400 + 4 + 404 + 808


def test_four_bit_weights_take_half_a_byte_and_a_bit() -> None:
    loaded = recipe(model={"base": "some/base", "quantize": "4bit"})
    memory = make(loaded).memory
    linear, rest = 6_979_321_856, 7_504_924_672 - 6_979_321_856
    assert memory.weights == pytest.approx(linear * 4.127 / 8 + rest * 2, rel=1e-4)
    assert activation_dtype(loaded) == "bfloat16"


def test_checkpointing_keeps_layer_inputs_and_computes_a_forward_more() -> None:
    plain = make(recipe(train=REFERENCE))
    saving = make(recipe(train={**REFERENCE, "gradient_checkpointing": True}))
    assert saving.memory.activations == 2800 * (32 * 4096 * 2 + 1_000_000 / 32)
    assert saving.flops.recomputation == saving.flops.forward == plain.flops.forward
    assert plain.flops.recomputation == 0


def test_eight_bit_adam_and_fsdp() -> None:
    small = make(recipe(train={"optim": "adamw_8bit"})).memory
    assert small.optimizer == 20_975_616 * 2
    planned = make(recipe(train={"fsdp": "full_shard"}), hardware=Hardware(gpus=GPUS, devices=4))
    shared = planned.memory
    assert shared.weights == 7_504_924_672 * 2 // 4
    assert shared.gradients == 20_975_616 * 4 // 4
    # Where weights are shared, a run takes the default size and recomputes nothing.
    assert shared.checkpointed_layers == 0
    chosen = [row.micro_batches for row in planned.gpus.values() if row.micro_batches is not None]
    assert chosen
    assert {one.tokens for one in chosen} == {MICROBATCH_TOKENS}
    copied = make(recipe(), hardware=Hardware(gpus=GPUS, devices=4)).memory
    assert copied.gradients == 20_975_616 * 4 * 2


def test_lora_costs_two_thirds_of_full_training() -> None:
    lora = make(recipe()).flops
    ratio = (lora.forward + lora.backward) / lora.forward
    assert 2.0 < ratio < 2.02
    full = make(recipe(lora=None), size=replace(LLAMA_3_8B_LORA, adapter=0)).flops
    assert (full.forward + full.backward) / full.forward == pytest.approx(3, abs=0.01)
    weights = 2 * (6_979_321_856 + 20_971_520) * 700
    attention = 4 * 32 * 4096 * Length(prompt=300, responses=(200, 200)).attended
    assert lora.forward == pytest.approx((weights + attention) * 21_603 * 3)


def test_time_is_operations_over_speed() -> None:
    one = make(recipe(), hardware=Hardware(gpus=GPUS, utilisation=0.5)).gpus["H100"]
    four = make(recipe(), hardware=Hardware(gpus=GPUS, utilisation=0.5, devices=4)).gpus["H100"]
    flops = make(recipe()).flops.total
    assert one.seconds == pytest.approx(flops / (989.5e12 * 0.5))
    assert four.seconds == pytest.approx(one.seconds / 4)


def test_what_does_not_fit_is_said() -> None:
    gpus = make(recipe()).gpus
    assert (gpus["T4"].fits, gpus["H100"].fits) == (False, True)
    unknown = make(recipe(), costs=lambda rows: None)
    assert (unknown.gpus["T4"].fits, unknown.gpus["H100"].fits) == (False, None)
    assert "activation memory of this architecture is unknown" in " ".join(unknown.notes)


def test_each_gpu_has_the_split_that_train_would_choose() -> None:
    """One rule: what is left beside weights goes to tokens first, then to recomputed layers."""
    loaded = recipe(train={**REFERENCE, "gradient_accumulation_steps": 64})
    result = make(loaded)
    for name, row in result.gpus.items():
        free = GPUS[name].gigabytes * 1e9 - CONTEXT_BYTES - result.memory.static
        expected = None
        if free > 0:
            shapes = Shapes.of([packed_shape(300, (200, 200))] * 1024)
            expected = choose(COSTS, shapes, free, trees_per_step=64)
        assert row.micro_batches == expected
    rows = result.gpus
    assert rows["T4"].micro_batches is None
    small, large = rows["A10G"].micro_batches, rows["H100"].micro_batches
    assert small is not None
    assert large is not None
    assert large.checkpointed_layers == 0
    assert large.tokens > small.tokens
    assert result.memory.gpu == "L4"
    assert f"as plaudit train would choose on {result.memory.gpu}" in " ".join(result.notes)
    fixed = make(recipe(train=REFERENCE, tokens={"max_tokens_per_microbatch": 2048}))
    assert fixed.gpus["H100"].micro_batches is not None
    assert fixed.gpus["H100"].micro_batches.tokens == 2048


def test_only_recomputed_layers_cost_another_forward_pass() -> None:
    heavy = Cost(fixed=0.0, token=12_000_000.0, key=0.0, span=0.0)
    costs = by_layers(heavy, RECOMPUTED, 32)
    result = make(
        recipe(train={**REFERENCE, "gradient_accumulation_steps": 64}),
        costs=lambda rows: costs,
        hardware=Hardware(gpus=find_gpus("A100-40GB")),
    )
    row = result.gpus["A100-40GB"].micro_batches
    assert row is not None
    assert row.checkpointed_layers
    assert 0 < row.checkpointed_layers < 32
    share = row.checkpointed_layers / 32
    assert result.flops.recomputation == pytest.approx(share * result.flops.forward)


def test_the_record_is_plain_values() -> None:
    record = make(recipe()).as_dict()
    assert record["memory"]["total"] > 0
    assert record["steps"]["per_epoch"] == 2701


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("h100", ["H100"]),
        ("RTX-4090", ["RTX4090"]),
        ("A100", ["A100-40GB", "A100-80GB"]),
        ("a100-80", ["A100-80GB"]),
        (None, list(GPUS)),
    ],
)
def test_gpus_by_name(asked: str | None, names: list[str]) -> None:
    assert list(find_gpus(asked)) == names


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean L40S"):
        find_gpus("L400S")
    with pytest.raises(RecipeError, match="expected one of T4"):
        find_gpus("")


def test_names_of_the_table_are_unique_and_found_in_any_case() -> None:
    names = [name.lower() for facts in architectures().values() for name in facts["names"]]
    assert len(names) == len(set(names))
    facts = find_architecture("META-LLAMA/meta-llama-3-8b")
    assert facts is not None
    assert facts["num_hidden_layers"] == 32
    assert find_architecture("nobody/nothing") is None
