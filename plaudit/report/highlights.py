"""What card and report show first: the results that stand out, chosen from recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from plaudit.evaluation.schema import (
    BaselineMetrics,
    EvaluationMetrics,
    FeatureBias,
    HistoryEntry,
    Interval,
    Perturbation,
    RecordedEvaluation,
    RunInfo,
    RunMetrics,
    Slice,
)
from plaudit.evaluation.sentences import best_baseline
from plaudit.report.record import evaluations

TITLES: Final = {"test": "test set", "eval": "evaluation set"}
"""What an evaluation of a run is of."""
INTENDED_USE: Final = (
    "Rank responses to the same prompt: best-of-N sampling, filtering of preference data, and "
    "rewards for RLHF."
)
NOT_EVALUATED: Final = "No data were held out, so nothing is known of the accuracy of this model."
MOST_WARNINGS: Final = 3
MOST_ROWS: Final = 3
"""Rows of a table in the card; the report has all of them."""
MOST_OUTCOMES: Final = 2
"""Perturbations of a kind in the card."""
MOST_EVALUATIONS: Final = 8
"""Evaluations during training in the card."""


class Kind(NamedTuple):
    """A kind of perturbation: what the reward should do, and the rate that measures it."""

    title: str
    expected: str
    rate: Literal["fell", "flipped", "rose"]
    measure: str
    high_is_good: bool


KINDS: Final[Mapping[str, Kind]] = {
    "degradation": Kind("Degradation", "the reward should fall", "fell", "reward fell", True),
    "meaning_preserving": Kind(
        "Meaning-preserving", "the ranking should not flip", "flipped", "ranking flipped", False
    ),
    "reward_hacking": Kind(
        "Reward hacking", "the reward should not rise", "rose", "reward rose", False
    ),
}


class Outcome(NamedTuple):
    """A perturbation with the rate by which its kind is measured."""

    perturbation: Perturbation
    rate: float | None
    ci95: Interval


class Step(NamedTuple):
    """What to do next: a sentence, and the command or the part of the report that does it."""

    sentence: str
    command: str | None = None
    part: str | None = None


def ordered(metrics: RunMetrics | RecordedEvaluation) -> list[EvaluationMetrics]:
    """The evaluations, the test data first: they took no part in choosing the checkpoint."""
    return evaluations(metrics)[::-1]


def strongest_warnings(metrics: RunMetrics | RecordedEvaluation) -> list[str]:
    """The strongest warnings about the run and its main evaluation."""
    found = []
    blocks = ordered(metrics)
    if isinstance(metrics, RunMetrics):
        if not blocks:
            found.append(
                "No data were held out, so nothing is known of the accuracy of this model."
            )
        if metrics.data.leaked_prompts:
            found.append(
                f"{metrics.data.leaked_prompts:,} held-out comparisons have a prompt that is also "
                "in the training data."
            )
    return [*found, *(blocks[0].warnings if blocks else ())][:MOST_WARNINGS]


def strongest_baseline(block: EvaluationMetrics) -> tuple[str, BaselineMetrics] | None:
    """The name and the numbers of the most accurate baseline."""
    return best_baseline(block.baselines)


def next_steps(metrics: RunMetrics | RecordedEvaluation) -> list[Step]:
    """What the recorded results suggest to do next."""
    blocks = ordered(metrics)
    if not blocks:
        return [Step("Evaluate the model on held-out data.", command="plaudit eval MODEL DATA")]
    block, steps = blocks[0], []
    if block.mistakes:
        sentence = "Read the most confident mistakes. Some of them may be labelling errors."
        steps.append(Step(sentence, part=f"{block.dataset}-mistakes"))
    if block.temperature_improves and block.stored_temperature is None:
        sentence = "Fit a temperature on data that you do not report results on."
        steps.append(Step(sentence, command="plaudit calibrate MODEL DATA"))
    if any(_below(row, block) for row in block.slices):
        sentence = "Inspect the slices with significantly lower accuracy."
        steps.append(Step(sentence, part=f"{block.dataset}-slices"))
    if block.perturbations is None:
        sentence = "Run the perturbation tests."
        steps.append(Step(sentence, command="plaudit eval MODEL DATA --perturbation-tests 200"))
    if block.chose_checkpoint:
        sentence = "Evaluate on data that did not choose the checkpoint."
        steps.append(Step(sentence, command="plaudit eval MODEL DATA"))
    return steps


def worst_outcomes(block: EvaluationMetrics, name: str) -> list[Outcome]:
    """The perturbations of a kind that the model most surely fails, by their intervals."""
    kind, found = KINDS[name], []
    for row in block.perturbations.rows if block.perturbations else ():
        ends: Interval | None = getattr(row, f"{kind.rate}_ci95")
        if row.kind == name and ends is not None:
            found.append(Outcome(row, getattr(row, kind.rate), ends))
    if kind.high_is_good:
        return sorted(found, key=lambda outcome: outcome.ci95.high)[:MOST_OUTCOMES]
    return sorted(found, key=lambda outcome: -outcome.ci95.low)[:MOST_OUTCOMES]


def strongest_biases(block: EvaluationMetrics) -> list[FeatureBias]:
    """The significant biases, and length, which is always of interest."""
    tested = [row for row in block.bias.features if row.p is not None]
    shown = [row for row in tested if row.significant or row.feature == "characters"]
    return sorted(shown, key=lambda row: (not row.significant, -abs(row.gap or 0.0)))[:MOST_ROWS]


def weakest_slices(block: EvaluationMetrics) -> list[Slice]:
    """The slices with significantly lower accuracy than the other pairs, lowest first."""
    return [row for row in slices_to_show(block) if _below(row, block)][:MOST_ROWS]


def slices_to_show(block: EvaluationMetrics) -> list[Slice]:
    """All slices: significantly lower ones first, lowest first, then the other significant ones."""

    def place(row: Slice) -> tuple[bool, bool, float]:
        below = _below(row, block)
        return not below, not row.significant, (row.accuracy or 0.0) if below else 0.0

    return sorted(block.slices, key=place)


def _below(row: Slice, block: EvaluationMetrics) -> bool:
    return row.significant and (row.accuracy or 0.0) < (block.accuracy or 0.0)


def shown_history(metrics: RunMetrics) -> list[HistoryEntry]:
    """Evaluations during training for the card: evenly spaced, with the best and the last."""
    history = list((metrics.eval and metrics.eval.history) or ())
    if len(history) <= MOST_EVALUATIONS:
        return history
    every = -(-len(history) // (MOST_EVALUATIONS - 1))
    best = metrics.best.step if metrics.best else None
    return [
        entry
        for number, entry in enumerate(history, start=1)
        if number % every == 0 or number == len(history) or entry.step == best
    ]


GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Optimizer": (
        *("optimizer", "learning_rate", "weight_decay", "max_grad_norm"),
        *("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args"),
    ),
    "Schedule": ("lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "seed"),
    "Batch size": (
        *("total_train_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "num_devices"),
    ),
}


def grouped_hyperparameters(run: RunInfo) -> dict[str, list[tuple[str, Any]]]:
    """Hyperparameters by what they set; those of no group come last."""
    rest = dict(run.hyperparameters)
    groups: dict[str, list[tuple[str, Any]]] = {
        title: [(name, rest.pop(name)) for name in names if name in rest]
        for title, names in GROUPS.items()
    }
    attention = f"{run.attention} ({run.attention_note})" if run.attention_note else run.attention
    groups["LoRA"] = list((run.lora or {}).items())
    groups["Model"] = [
        ("dtype", run.dtype),
        ("attention", attention),
        ("max_length", run.max_length),
        ("head_init", run.head_init),
    ]
    groups["Other"] = list(rest.items())
    return {title: settings for title, settings in groups.items() if settings}


LIMITATIONS: Final = (
    "Rewards compare responses to the same prompt, not across prompts or between models.",
    "Accuracy is agreement with the labels of the evaluation data, and was measured on no others.",
    "Strong optimization against a reward model raises the reward while quality falls.",
    "The licences of the base model and of the training data apply.",
)
"""What the numbers do not say, and what a reward model cannot do."""

TRUNCATIONS: Final[Mapping[str, str]] = {
    "drop": "were dropped",
    "left": "had the start of the prompt cut",
    "proportional": "had the ends of prompt and responses cut in proportion",
    "error": "were an error",
}
"""What training did with a conversation over the maximum length."""
