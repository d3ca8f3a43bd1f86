"""Law 3: one text has one score on every path, alone or in any batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.errors import DataError
from plaudit.evaluate_model import evaluate
from plaudit.interop.export import export
from plaudit.interop.trl.reward_function import reward_function
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, load
from plaudit.score_file import score_file
from plaudit.types import Outputs, RewardChoice, Skipped, TokenTree
from tests.conftest import pair_rows, write_jsonl
from tests.models import FIVE_HEADS, THREE, saved_with_outputs
from tests.servers import running


@pytest.fixture(scope="module")
def model(finished_run: Path) -> RewardModel:
    return load(finished_run)


ROWS = pair_rows(12, seed=7)


def python_scores(model: RewardModel, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Each row alone, as a caller would."""
    return [model.score(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]


def transformers_scores(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    adapter: bool,
    batch: int,
    outputs: Outputs | None = None,
) -> list[list[Any]]:
    """Plain transformers and PEFT, as the card's snippet has it; all logits with ``outputs``."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    loader = (
        AutoPeftModelForSequenceClassification if adapter else AutoModelForSequenceClassification
    )
    labels = 1 if outputs is None else len(outputs.names)
    network = loader.from_pretrained(folder, num_labels=labels, dtype=torch.float32)
    network.config.pad_token_id = tokenizer.pad_token_id
    network.eval()
    texts = [
        tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
        for row in rows
        for side in ("chosen", "rejected")
    ]
    scores: list[Any] = []
    for start in range(0, len(texts), batch):
        ids = tokenizer(texts[start : start + batch], add_special_tokens=False)["input_ids"]
        inputs = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            logits = network(**inputs).logits
            scores += (logits[:, 0] if outputs is None else logits).tolist()
    return [scores[i : i + 2] for i in range(0, len(scores), 2)]


def assert_same(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_scores_are_not_all_alike(model: RewardModel) -> None:
    assert torch.tensor(python_scores(model, ROWS)).std() > 1e-3


@pytest.mark.parametrize("batch", [1, 5, 24])
def test_plain_transformers_gives_the_same_scores(
    model: RewardModel, finished_run: Path, batch: int
) -> None:
    plain = transformers_scores(finished_run, ROWS, adapter=True, batch=batch)
    assert_same(plain, python_scores(model, ROWS))


def test_file_scoring_and_evaluation_give_the_same_scores(
    model: RewardModel, finished_run: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    expected = python_scores(model, ROWS)
    score_file(model, Source(path=str(data)), tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert_same([row["rewards"] for row in written], expected)
    rewards = evaluate(model, data).table.reward_N
    assert_same(rewards.reshape(-1, 2).tolist(), expected)


def test_http_gives_the_same_scores(model: RewardModel, finished_run: Path) -> None:
    with running(finished_run) as server:
        found = [
            server.post(
                "/v1/rewards",
                {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]},
            ).json()["rewards"]
            for row in ROWS
        ]
    assert_same(found, python_scores(model, ROWS))


def test_the_merged_export_gives_the_same_scores(
    model: RewardModel, finished_run: Path, tmp_path: Path
) -> None:
    export(finished_run, "merged", tmp_path / "merged")
    plain = transformers_scores(tmp_path / "merged", ROWS, adapter=False, batch=5)
    assert_same(plain, python_scores(model, ROWS))


@pytest.mark.parametrize(
    ("outputs", "reward"), [(THREE, "mean"), (FIVE_HEADS, "mean"), (FIVE_HEADS, "lower_bound")]
)
def test_a_reward_of_several_outputs_is_the_same_on_every_path(
    tiny_base: Path, tmp_path: Path, outputs: Outputs, reward: RewardChoice
) -> None:
    folder = saved_with_outputs(tmp_path / "model", tiny_base, lora=False, outputs=outputs)
    model = load(folder, reward=reward, lower_bound_k=1.5)
    logits = transformers_scores(folder, ROWS, adapter=False, batch=5, outputs=outputs)
    outputs_NO = np.array(logits).reshape(-1, len(outputs.names)) + outputs.offsets
    expected_N = outputs_NO @ outputs.weights
    if reward == "lower_bound":
        expected_N = outputs_NO.mean(axis=1) - 1.5 * outputs_NO.std(axis=1, ddof=1)
    expected = expected_N.reshape(-1, 2).tolist()
    assert np.std(expected) > 1e-2
    assert_same(python_scores(model, ROWS), expected)
    many = model.score_many([(row["prompt"], [row["chosen"], row["rejected"]]) for row in ROWS])
    assert_same([rewards for rewards in many if isinstance(rewards, list)], expected)
    for row, (chosen, _) in zip(ROWS[:3], expected, strict=False):
        assert model.token_rewards(row["prompt"], row["chosen"])[-1].reward == pytest.approx(
            chosen, abs=1e-5
        )
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    score_file(model, Source(path=str(data)), tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert_same([row["rewards"] for row in written], expected)
    rewards = evaluate(model, data).table.reward_N
    assert_same(rewards.reshape(-1, 2).tolist(), expected)
    of_trl = reward_function(model)
    found = [of_trl([row["prompt"]] * 2, [row["chosen"], row["rejected"]]) for row in ROWS]
    assert_same([[float(one) for one in some if one is not None] for some in found], expected)
    with running(folder, reward=reward, lower_bound_k=1.5) as server:
        # The second time from the cache, and with the prefixes that it kept.
        for _ in range(2):
            answers = [
                server.post(
                    "/v1/rewards",
                    {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]},
                ).json()["rewards"]
                for row in ROWS
            ]
            assert_same(answers, expected)


def test_companions_and_order_do_not_matter(model: RewardModel) -> None:
    row = ROWS[0]
    responses = [other["chosen"] for other in ROWS[:6]]
    together = model.score(row["prompt"], responses)
    backwards = model.score(row["prompt"], responses[::-1])[::-1]
    alone = [model.score(row["prompt"], [response])[0] for response in responses]
    assert_same([together], [alone])
    assert_same([together], [backwards])


def test_any_micro_batch_gives_the_same_scores(model: RewardModel, finished_run: Path) -> None:
    small = load(finished_run, max_tokens_per_microbatch=8)
    comparisons = [model.comparison(r["prompt"], [r["chosen"], r["rejected"]]) for r in ROWS]
    found = list(small.score_comparisons(comparisons))
    one_by_one = [rewards.tolist() for rewards in found if not isinstance(rewards, Skipped)]
    assert_same(one_by_one, python_scores(model, ROWS))


def test_text_for_a_chat_model_is_one_turn(model: RewardModel) -> None:
    row = ROWS[0]
    question, answer = row["prompt"][0]["content"], row["chosen"][0]["content"]
    assert_same([model.score(question, [answer])], [model.score(row["prompt"], [row["chosen"]])])


def test_plain_text_in_a_file_has_the_score_it_has_in_python(
    model: RewardModel, finished_run: Path, tmp_path: Path
) -> None:
    """A chat model takes a text row as turns on every path."""
    texts = [
        {side: row[side][0]["content"] for side in ("prompt", "chosen", "rejected")}
        for row in ROWS[:5]
    ]
    data = write_jsonl(tmp_path / "texts.jsonl", texts)
    score_file(model, Source(path=str(data)), tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert_same([row["rewards"] for row in written], python_scores(model, ROWS[:5]))
    rewards = evaluate(model, data).table.reward_N
    assert_same(rewards.reshape(-1, 2).tolist(), python_scores(model, ROWS[:5]))


def test_prefer_is_calibrated_and_symmetric(model: RewardModel) -> None:
    model = replace(model, metadata=replace(model.metadata, temperature=1.5))
    row = ROWS[0]
    p = model.prefer(row["prompt"], row["chosen"], row["rejected"])
    q = model.prefer(row["prompt"], row["rejected"], row["chosen"])
    assert p + q == pytest.approx(1.0)
    good, bad = model.score(row["prompt"], [row["chosen"], row["rejected"]])
    logit = torch.logit(torch.tensor(p, dtype=torch.float64))
    assert float(logit) == pytest.approx((good - bad) / 1.5, rel=1e-5)


def test_best_of_takes_the_highest_reward(model: RewardModel) -> None:
    responses = [row["chosen"][0]["content"] for row in ROWS]
    best = model.best_of("which one?", responses)
    assert best.reward == max(best.rewards)
    assert best.response == responses[best.index]


@pytest.mark.parametrize("response", ["It is forty two — naïve 好的 🙂.", "", "a", "brown fox"])
def test_the_reward_along_a_response_is_that_of_the_cut_conversation(
    model: RewardModel, response: str
) -> None:
    along = model.token_rewards("what is the answer?", response)
    (whole,) = model.score("what is the answer?", [response])
    assert along[-1].reward == pytest.approx(whole, abs=1e-5)
    rendered = model.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "what is the answer?"},
            {"role": "assistant", "content": response},
        ],
        tokenize=False,
    )
    # The tokens are those behind the prompt; their texts join to the end of the conversation.
    assert str(rendered).endswith("".join(token.text for token in along))
    assert response in "".join(token.text for token in along)
    ids = model.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    for behind, token in enumerate(reversed(along)):
        tree = TokenTree(
            index=0,
            prefix=np.zeros(0, np.int32),
            branches=(np.asarray(ids[: len(ids) - behind], np.int32),),
        )
        (reward_K,) = model.score_trees([tree])
        assert token.reward == pytest.approx(float(reward_K[0]), abs=1e-5)


def test_per_token_rewards_of_a_response_over_the_length_are_an_error(model: RewardModel) -> None:
    with pytest.raises(DataError, match=r"token_rewards\(\) cannot score this"):
        model.token_rewards("what?", "fox " * 5000)


def test_the_cards_own_snippet_runs(finished_run: Path) -> None:
    """The code a reader copies from the card, in a process of its own, in the run folder."""
    card = (finished_run / "README.md").read_text(encoding="utf-8")
    first = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", first],
        cwd=finished_run,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.strip().splitlines()[-1])
    snippet_rows = [
        {
            "prompt": [{"role": "user", "content": "How is sand made?"}],
            "chosen": [
                {
                    "role": "assistant",
                    "content": "Water, wind and ice wear rock down into grains.",
                }
            ],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        }
    ]
    assert_same([printed], python_scores(load(finished_run), snippet_rows))
