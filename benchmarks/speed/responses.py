"""How fast are N responses to one prompt scored, against a plain padded scorer?

    python -m benchmarks.speed.responses [--models 25m] [--prompts 64,512] [--responses 2,4,16]

plaudit computes the prompt once; the plain scorer, ``AutoModelForSequenceClassification`` on the
same saved weights under ``torch.inference_mode``, computes it for every response. All responses
have the same length, so that it needs no padding and no mask and its causal kernel serves, which is
the best that can happen to it; and it runs with all N in one batch or in smaller ones, whichever
was faster in the warm-up. Token ids are random, the same for both, and scores must agree within
1e-4.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import plots
from benchmarks.common.models import LLAMAS, MODELS, build_base
from benchmarks.common.results import (
    Shown,
    console,
    figure,
    median,
    numbers,
    parser,
    show,
    words,
)

if TYPE_CHECKING:
    from plaudit.reward_model import RewardModel
    from plaudit.types import TokenTree

QUESTION = "responses"
TOLERANCE = 1e-4
PADDED_BATCHES = (16, 4)
"""Rows at a time that the plain scorer may choose beside all N."""


def tree_of(prompt: int, responses: int, length: int, vocabulary: int, seed: int) -> TokenTree:
    """One prompt and its responses, as token ids that are neither the pad nor the end token."""
    import numpy as np

    from plaudit.types import TokenTree

    generator = np.random.default_rng((seed, prompt, responses))

    def ids(count: int) -> Any:
        return generator.integers(10, vocabulary, count, dtype=np.int32)

    return TokenTree(
        index=0, prefix=ids(prompt), branches=tuple(ids(length) for _ in range(responses))
    )


def plain_scorer(network: Any, tree: TokenTree, rows: int) -> Callable[[], list[float]]:
    """The tree's conversations through plain transformers, ``rows`` at a time."""
    import numpy as np
    import torch

    ids_RT = torch.from_numpy(
        np.stack([np.concatenate([tree.prefix, branch]) for branch in tree.branches])
    ).long()

    def score() -> list[float]:
        with torch.inference_mode():
            chunks = [network(input_ids=ids, use_cache=False).logits for ids in ids_RT.split(rows)]
            scores: list[float] = torch.cat(chunks).squeeze(-1).tolist()
            return scores

    return score


def packed_scorer(model: RewardModel, tree: TokenTree) -> Callable[[], list[float]]:
    def score() -> list[float]:
        (rewards,) = model.score_trees([tree])
        return [float(reward) for reward in rewards]

    return score


def timed(score: Callable[[], list[float]]) -> tuple[float, list[float]]:
    began = time.perf_counter()
    scores = score()
    return time.perf_counter() - began, scores


def measure(model: RewardModel, network: Any, tree: TokenTree, rounds: int) -> dict[str, Any]:
    """Both sides in turn; the plain one's batch is chosen while it warms up."""
    count = len(tree.branches)
    choices = sorted({count, *(rows for rows in PADDED_BATCHES if rows < count)})
    tried = {rows: timed(plain_scorer(network, tree, rows))[0] for rows in choices}
    rows = min(tried, key=lambda r: tried[r])
    sides = {"plaudit": packed_scorer(model, tree), "padded": plain_scorer(network, tree, rows)}
    for score in sides.values():
        score()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    difference = 0.0
    for number in range(rounds):
        scores: dict[str, list[float]] = {}
        for side in list(sides) if number % 2 == 0 else list(reversed(sides)):
            took, scores[side] = timed(sides[side])
            seconds[side].append(took)
        apart = max(abs(a - b) for a, b in zip(scores["plaudit"], scores["padded"], strict=True))
        difference = max(difference, apart)
    if not difference <= TOLERANCE:
        raise SystemExit(f"scores are {difference:.2g} apart; they must agree within {TOLERANCE}")
    mine, theirs = median(seconds["plaudit"]), median(seconds["padded"])
    return {
        "tokens": {"plaudit": tree.tokens, "padded": sum(tree.lengths)},
        "padded_rows_at_a_time": rows,
        "padded_rows_tried": tried,
        "seconds": seconds,
        "responses_per_second": {"plaudit": count / mine, "padded": count / theirs},
        "ratio": theirs / mine,
        "token_ratio": sum(tree.lengths) / tree.tokens,
        "largest_score_difference": difference,
    }


def table(record: dict[str, Any]) -> Shown:
    """One line per prompt length and number of responses."""
    rows = [
        (
            case["model"],
            f"{case['prompt']:,}",
            str(case["responses"]),
            figure(case["responses_per_second"]["plaudit"]),
            figure(case["responses_per_second"]["padded"]),
            f"{case['ratio']:.2f}x",
            f"{case['token_ratio']:.2f}x",
        )
        for case in record["cases"]
    ]
    headings = (
        "model",
        "prompt tokens",
        "responses",
        "plaudit, responses/s",
        "padded, responses/s",
        "speedup",
        "token ratio",
    )
    return Shown(headings, tuple(rows))


def main() -> None:
    """Parse, measure every cell, write after each."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--models", default="25m", help=f"of {', '.join(MODELS)}")
    made.add_argument("--prompts", default="64,512,2048", help="tokens")
    made.add_argument("--responses", default="2,4,16,64", help="responses to a prompt")
    made.add_argument("--length", type=int, default=32, help="tokens of a response")
    arguments = made.parse_args()
    import torch
    from transformers import AutoModelForSequenceClassification

    from benchmarks.common.saved import saved_model
    from benchmarks.common.sides import begin
    from plaudit.reward_model import load

    recorder = begin(
        QUESTION,
        arguments,
        settings={"llamas": LLAMAS},
        peers={
            "padded": "AutoModelForSequenceClassification, fp32, sdpa attention, no mask as all "
            "rows have one length, torch.inference_mode"
        },
    )
    for name in words(arguments.models):
        with tempfile.TemporaryDirectory() as work:
            base = build_base(name, Path(work) / "base", seed=arguments.seed)
            folder = saved_model(base, Path(work) / "run")
            model = load(folder)
            network = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=torch.float32
            ).eval()
            for prompt in numbers(arguments.prompts):
                for responses in numbers(arguments.responses):
                    tree = tree_of(
                        prompt,
                        responses,
                        arguments.length,
                        network.config.vocab_size,
                        arguments.seed,
                    )
                    found = measure(model, network, tree, arguments.rounds)
                    console.log(f"{name} {prompt} x {responses}: {found['ratio']:.2f}x")
                    recorder.add({"model": name, "prompt": prompt, "responses": responses, **found})
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)


def draw(record: dict[str, Any], folder: Path) -> None:
    """The question's plot."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in record["cases"]:
        key = f"{case['model']}, prompt {case['prompt']:,}"
        lines.setdefault(key, []).append((case["responses"], case["ratio"]))
    plots.lines(
        folder / "ratio.png",
        lines,
        x="responses to a prompt",
        y="plaudit is faster, times",
        log_x=True,
    )


if __name__ == "__main__":
    main()
