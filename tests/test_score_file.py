"""Rows of one prompt as one tree: fewer tokens, the same conversations, the order given."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.sources.read import read_rows
from plaudit.errors import DataError, ModelError, OutputError
from plaudit.interop.trl.reward_function import reward_function
from plaudit.model.scoring import distinct_trees
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, load
from plaudit.score_file import ScoreColumns, score_file, score_to_stream
from plaudit.tokens.batch import PackedBatcher, share_prefixes, share_prompts
from plaudit.tokens.encode import common_prefix
from plaudit.types import PackedBatch, TokenTree
from tests.conftest import write_jsonl
from tests.models import FIVE_HEADS, saved_with_outputs

pytestmark = pytest.mark.heavy


def tree_of(conversations: list[list[int]], index: int) -> TokenTree:
    ids = [np.asarray(conversation, dtype=np.int32) for conversation in conversations]
    shared = common_prefix(ids)
    return TokenTree(
        index=index, prefix=ids[0][:shared], branches=tuple(row[shared:] for row in ids)
    )


def conversations_of(tree: TokenTree) -> list[list[int]]:
    return [[*tree.prefix.tolist(), *branch.tolist()] for branch in tree.branches]


CONVERSATION = st.lists(st.integers(0, 2), min_size=1, max_size=12)
ROWS = st.lists(
    st.tuples(st.lists(CONVERSATION, min_size=1, max_size=3), st.sampled_from("ab")), max_size=12
)


@given(ROWS, st.integers(1, 60))
def test_every_conversation_is_scored_once_for_its_own_row(
    rows: list[tuple[list[list[int]], str]], max_tokens: int
) -> None:
    trees = [tree_of(conversations, i) for i, (conversations, _) in enumerate(rows)]
    shared = share_prompts(trees, [prompt for _, prompt in rows], max_tokens)
    assert sum(tree.tokens for tree in shared.trees) <= sum(tree.tokens for tree in trees)
    for tree, members in zip(shared.trees, shared.members, strict=True):
        assert len({rows[member][1] for member in members}) == 1
        assert len(members) == 1 or tree.tokens <= max_tokens
        assert all(len(branch) for branch in tree.branches)
    # A conversation's score is itself here, written as a number.
    scores = [
        np.array([float("".join(map(str, [1, *c]))) for c in conversations_of(tree)])
        for tree in shared.trees
    ]
    for found, (conversations, _) in zip(shared.separate(scores), rows, strict=True):
        assert found.tolist() == [float("".join(map(str, [1, *c]))) for c in conversations]


def test_many_rows_of_one_prompt_cost_one_prompt() -> None:
    prompt = list(range(100, 200))
    trees = [tree_of([[*prompt, i, 1], [*prompt, i, 2]], i) for i in range(20)]
    trees += [tree_of([[*prompt, i, 3]], i) for i in range(20)]
    shared = share_prompts(trees, ["p"] * 40, 8192)
    (tree,) = shared.trees
    assert tree.tokens == 100 + 20 * 4 + 20 * 2
    assert len(share_prompts(trees, range(40), 8192).trees) == 40


@given(st.lists(st.lists(CONVERSATION, min_size=1, max_size=4), max_size=8))
def test_equal_conversations_are_computed_once_wherever_their_prompt_ends(
    rows: list[list[list[int]]],
) -> None:
    trees = [tree_of(conversations, i) for i, conversations in enumerate(rows)]
    distinct = distinct_trees(trees)
    computed = [tuple(c) for tree in distinct.trees for c in conversations_of(tree)]
    every = [[tuple(c) for c in conversations] for conversations in rows]
    assert computed == list(dict.fromkeys(c for conversations in every for c in conversations))
    whole = [conversations_of(tree) for tree in distinct.trees[:]]
    assert whole == [conversations_of(distinct.trees[i]) for i in range(len(distinct.trees))]
    if len(computed) == sum(map(len, rows)):
        assert distinct.trees is trees
    # Each computed conversation has a score of its own, its place.
    places = iter(range(len(computed)))
    scores = [np.array([float(next(places)) for _ in tree.branches]) for tree in distinct.trees]
    restored = [scores_K.tolist() for scores_K in distinct.restore(scores)]
    assert restored == [[computed.index(c) for c in conversations] for conversations in every]


@pytest.fixture(scope="module")
def model(finished_run: Path) -> RewardModel:
    return load(finished_run)


def test_a_file_of_few_prompts_has_the_scores_of_its_rows_alone(
    model: RewardModel, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(0)
    prompts = ["the quick brown fox jumps over " * 4 + str(number) for number in range(3)]
    rows = [
        {"prompt": generator.choice(prompts), "completion": f"answer {number} is right"}
        for number in range(30)
    ]
    comparisons = [model.comparison(row["prompt"], [row["completion"]]) for row in rows]
    trees = [tree for tree in model.encode(comparisons) if isinstance(tree, TokenTree)]
    separate = sum(tree.tokens for tree in trees)
    alone = [model.score(row["prompt"], [row["completion"]]) for row in rows]
    computed: list[TokenTree] = []
    collate = PackedBatcher.collate

    def spied(batcher: PackedBatcher, trees: Sequence[TokenTree]) -> PackedBatch:
        computed.extend(trees)
        return collate(batcher, trees)

    monkeypatch.setattr(PackedBatcher, "collate", spied)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    score_file(model, Source(path=str(data)), tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in written] == [row["completion"] for row in rows]
    assert np.allclose([row["rewards"] for row in written], alone, rtol=0, atol=1e-5)
    assert len(computed) == 3
    assert sum(tree.tokens for tree in computed) < separate / 3


PROMPT = "what is the answer to this question?"
AGAIN = "it is forty two"


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_text_has_one_reward_wherever_it_stands_in_a_call(
    finished_run: Path, tmp_path: Path, layout: str
) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "model")
    facts = json.loads((folder / "plaudit.json").read_text())
    (folder / "plaudit.json").write_text(json.dumps({**facts, "attention": layout}))
    (folder / "manifest.json").unlink()
    model = load(folder, max_tokens_per_microbatch=60)
    assert f"layout='{layout}'" in repr(model)
    others = [f"no, that is not right {'because ' * n}" for n in range(9)]
    responses = [r for other in others for r in (other, AGAIN)]
    assert len(set(model.score(PROMPT, responses)[1::2])) == 1
    assert model.best_of(PROMPT, [AGAIN, AGAIN]).index == 0
    assert model.prefer(PROMPT, AGAIN, AGAIN) == 0.5
    # The same conversation as messages, and beside others in further rows.
    messages = [{"role": "user", "content": PROMPT}], [{"role": "assistant", "content": AGAIN}]
    rows = [(PROMPT, [AGAIN, *others[:n]]) for n in range(5)] + [(messages[0], [messages[1]])]
    found = [rewards for rewards in model.score_many(rows) if isinstance(rewards, list)]
    assert len(found) == len(rows)
    assert len({rewards[0] for rewards in found}) == 1
    rewards = reward_function(model)([PROMPT] * len(responses), responses)
    assert len(set(rewards[1::2])) == 1


def test_a_row_has_one_reward_in_every_chunk_of_a_file_and_after_a_stop(
    model: RewardModel, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {"prompt": PROMPT, "completion": AGAIN}
    rows = [
        row
        for n in range(8)
        for row in ({"prompt": f"the fox {'jumps ' * n}", "completion": "over " * 3 * n}, again)
    ]
    data = Source(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    monkeypatch.setattr("plaudit.score_file.CHUNK_ROWS", 2)

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    score_file(model, data, whole)
    with pytest.raises(KeyboardInterrupt):
        score_file(model, data, stopped, on_progress=stop)
    assert score_file(model, data, stopped).resumed == 6
    assert stopped.read_bytes() == whole.read_bytes()
    rewards = [json.loads(line)["rewards"] for line in whole.read_text().splitlines()]
    assert len({tuple(reward) for reward in rewards[1::2]}) == 1


@pytest.mark.parametrize("columns", [ScoreColumns(), ScoreColumns(outputs=True, uncertainty=True)])
def test_a_resumed_file_has_the_outputs_of_an_uninterrupted_one(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: ScoreColumns
) -> None:
    """Rewards are lower bounds: a row without the outputs does not say what later rows need."""
    folder = saved_with_outputs(tmp_path / "model", tiny_base, lora=True, outputs=FIVE_HEADS)
    model = load(folder, reward="lower_bound")
    again = {"prompt": PROMPT, "completion": AGAIN}
    rows = [
        row
        for n in range(8)
        for row in (
            {"prompt": f"the fox {'jumps ' * n}", "completion": "over " * 3 * n},
            {"prompt": "x " * 400 * (n == 2), "completion": "too long"},
            again,
        )
    ]
    data = Source(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    monkeypatch.setattr("plaudit.score_file.CHUNK_ROWS", 3)

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    score_file(model, data, whole, columns)
    with pytest.raises(KeyboardInterrupt):
        score_file(model, data, stopped, columns, on_progress=stop)
    # As a kill leaves it: outputs of a chunk whose rows were not written.
    partial = stopped.with_name(".stopped.jsonl.partial.outputs")
    written = partial.read_bytes()
    assert len(written) == 8 * 8 * 5
    partial.write_bytes(written + b"\0" * 17)
    assert score_file(model, data, stopped, columns).resumed == 9
    assert stopped.read_bytes() == whole.read_bytes()
    read = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["rewards"] for row in read][2::3] == [read[2]["rewards"]] * 8
    assert not list(tmp_path.glob(".stopped*"))


def test_later_rows_take_what_a_stopped_call_computed(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal conversations differ in their last bits between batches: here by much, to be seen."""
    folder = saved_with_outputs(tmp_path / "model", tiny_base, lora=True, outputs=FIVE_HEADS)
    model = load(folder, reward="lower_bound")
    again = {"prompt": PROMPT, "completion": AGAIN}
    data = Source(path=str(write_jsonl(tmp_path / "rows.jsonl", [again] * 4)))
    monkeypatch.setattr("plaudit.score_file.CHUNK_ROWS", 2)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_file(model, data, out, on_progress=stop)
    computed = tmp_path / ".out.jsonl.partial.outputs"
    outputs_NO = np.frombuffer(computed.read_bytes()).reshape(2, 5)
    moved_NO = outputs_NO + np.arange(5.0)
    computed.write_bytes(moved_NO.tobytes())
    score_file(model, data, out)
    rewards = [json.loads(line)["rewards"][0] for line in out.read_text().splitlines()]
    assert rewards[:2] == model.rewards_of(outputs_NO).tolist()
    assert rewards[2:] == model.rewards_of(moved_NO).tolist()
    assert rewards[0] != rewards[2]


def test_lost_outputs_of_a_stopped_call_are_an_error(
    model: RewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": PROMPT, "completion": str(n)} for n in range(4)]
    data = Source(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    monkeypatch.setattr("plaudit.score_file.CHUNK_ROWS", 2)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_file(model, data, out, on_progress=stop)
    (tmp_path / ".out.jsonl.partial.outputs").unlink()
    with pytest.raises(OutputError, match=r"partial\.outputs is incomplete; delete .*\.json"):
        score_file(model, data, out)
    (tmp_path / ".out.jsonl.partial.json").unlink()
    assert score_file(model, data, out).resumed == 0


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_columns_of_outputs_and_uncertainty(tiny_base: Path, tmp_path: Path, ending: str) -> None:
    folder = saved_with_outputs(tmp_path / "model", tiny_base, lora=False, outputs=FIVE_HEADS)
    model = load(folder, lower_bound_k=0.5)
    rows = [
        {"prompt": PROMPT, "chosen": AGAIN, "rejected": "no"},
        {"prompt": "x " * 400, "chosen": AGAIN, "rejected": "no"},
    ]
    data = Source(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    out = tmp_path / f"out.{ending}"
    score_file(model, data, out, ScoreColumns(rewards="r", outputs=True, uncertainty=True))
    scored, skipped = (row for _, row in read_rows(Source(path=str(out))))
    if ending == "csv":
        scored = {k: json.loads(v) if k.startswith("r_") and v else v for k, v in scored.items()}
    expected = model.score(PROMPT, [AGAIN, "no"], outputs=True, uncertainty=True)
    for field in ("mean", "spread", "lower_bound"):
        wanted = [getattr(one, field) for one in expected]
        np.testing.assert_allclose(scored[f"r_{field}"], wanted, atol=1e-5)
    for found, one in zip(scored["r_outputs"], expected, strict=True):
        assert found == pytest.approx(dict(one.outputs or {}), abs=1e-5)
    assert skipped["r_reason"] == "over_length"
    assert not any(skipped.get(f"r_{field}") for field in ("outputs", "mean", "spread"))


def test_a_taken_column_and_a_missing_ensemble_are_errors(
    model: RewardModel, tiny_base: Path, tmp_path: Path
) -> None:
    folder = saved_with_outputs(tmp_path / "model", tiny_base, lora=False)
    row = {"prompt": PROMPT, "completion": AGAIN, "rewards_outputs": 1}
    data = Source(path=str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="already has a column 'rewards_outputs'"):
        score_file(load(folder), data, out, ScoreColumns(outputs=True))
    with pytest.raises(ModelError, match=r"no ensemble of heads; train a model with loss\.heads"):
        score_file(load(folder), data, out, ScoreColumns(uncertainty=True))
    with pytest.raises(ModelError, match="The outputs were requested"):
        score_to_stream(model, data, sys.stdout, ScoreColumns(outputs=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]


@st.composite
def whole_conversations(draw: st.DrawFn) -> list[np.ndarray[Any, Any]]:
    """Several prompts that begin alike, each with several responses, in any order."""
    system = draw(st.lists(st.integers(0, 3), max_size=20))
    prompts = draw(st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=4))
    answers = st.lists(st.integers(0, 3), min_size=1, max_size=6)
    rows = [
        system + prompt + answer
        for prompt in prompts
        for answer in draw(st.lists(answers, min_size=1, max_size=5))
    ]
    return [np.asarray(row, np.int32) for row in draw(st.permutations(rows))]


@settings(max_examples=200, deadline=None)
@given(conversations=whole_conversations(), limit=st.integers(10, 300))
def test_conversations_of_unnamed_prompts_stay_what_they_are(
    conversations: list[np.ndarray[Any, Any]], limit: int
) -> None:
    shared = share_prefixes(conversations, limit)
    scores = [
        np.asarray([hash(tuple(np.concatenate([tree.prefix, b]))) for b in tree.branches], float)
        for tree in shared.trees
    ]
    expected = [float(hash(tuple(ids))) for ids in conversations]
    assert [float(one[0]) for one in shared.separate(scores)] == expected
    assert sum(tree.tokens for tree in shared.trees) <= sum(map(len, conversations))
    assert all(len(branch) > 0 for tree in shared.trees for branch in tree.branches)
    assert all(tree.tokens <= limit for tree in shared.trees if len(tree.branches) > 1)


def test_prompts_with_a_common_beginning_are_each_computed_once() -> None:
    """Sharing the system text alone would leave the longer prompts to be computed again."""
    system = list(range(20))
    conversations = [
        np.asarray([*system, *[prompt] * 50, answer], np.int32)
        for answer in range(200, 204)
        for prompt in (100, 101)
    ]
    shared = share_prefixes(conversations, 10_000)
    assert sorted(len(tree.prefix) for tree in shared.trees) == [70, 70]
    assert {tuple(sorted(members)) for members in shared.members} == {(0, 2, 4, 6), (1, 3, 5, 7)}
