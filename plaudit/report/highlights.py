"""What card and report show first: the results that stand out, chosen from recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from plaudit.evaluation.numbers import counted
from plaudit.evaluation.schema import (
    EvaluationMetrics,
    FeatureBias,
    HistoryEntry,
    Interval,
    OutputMetrics,
    Perturbation,
    RecordedEvaluation,
    RunInfo,
    RunMetrics,
    Slice,
)
from plaudit.evaluation.sentences import lower_slices
from plaudit.evaluation.warning_sentences import about_temperature, recorded_warnings
from plaudit.recipe.objectives import learns_from
from plaudit.report.record import Recalibration, evaluations
from plaudit.types import Outputs

TITLES: Final = {"test": "test set", "eval": "evaluation set"}
"""What an evaluation of a run is of."""
INTENDED_USE: Final = (
    "Rank responses to the same prompt: best-of-N sampling, filtering of preference data, and "
    "rewards for RLHF."
)
NOT_EVALUATED: Final = "No data were held out, so nothing is known of the accuracy of this model."
MOST_WARNINGS: Final = 3
"""Warnings in the summary of a card and of a report."""
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


def all_warnings(
    metrics: RunMetrics | RecordedEvaluation, recalibration: Recalibration | None = None
) -> list[str]:
    """The warnings about a run and its evaluations, the first ones the most important.

    Those of a run say which set they are about. A recalibration settles that of the temperature.
    """
    blocks, run = ordered(metrics), isinstance(metrics, RunMetrics)
    found = []
    if isinstance(metrics, RunMetrics):
        if not blocks:
            found.append(NOT_EVALUATED)
        if metrics.data.leaked_prompts:
            found.append(leak(metrics.data.leaked_prompts))
    for block in blocks:
        of = f"{TITLES[block.dataset].capitalize()}: " if run else ""
        found += [
            f"{of}{sentence}"
            for sentence in recorded_warnings(block)
            if recalibration is None or not about_temperature(sentence)
        ]
    if isinstance(metrics, RunMetrics):
        overfit = metrics.overfit
        if overfit is not None and overfit.verdict == "overfit":
            # The weakest: the saved checkpoint is from before the loss rose.
            found.append(overfit.sentence)
    return found


def leak(count: int) -> str:
    """A sentence about held-out comparisons with a prompt of the training data."""
    have = "has a prompt that is" if count == 1 else "have prompts that are"
    return f"{counted(count, 'held-out comparison')} {have} also in the training data."


def next_steps(
    metrics: RunMetrics | RecordedEvaluation, recalibration: Recalibration | None = None
) -> list[Step]:
    """What the recorded results suggest to do next.

    MODEL and DATA stand for paths, which are of no use to those with whom a report is shared.
    """
    blocks = ordered(metrics)
    if not blocks:
        return [Step("Evaluate the model on held-out data.", command="plaudit eval MODEL DATA")]
    block, steps = blocks[0], []
    if block.mistakes:
        sentence = "Read the most confident mistakes. Some of them may be labelling errors."
        steps.append(Step(sentence, part=f"{block.dataset}-mistakes"))
    stored = block.stored_temperature is not None or recalibration is not None
    if block.temperature_improves and not stored:
        sentence = "Fit a temperature on data that you do not report results on."
        steps.append(Step(sentence, command="plaudit calibrate MODEL DATA"))
    if lower_slices(block):
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
    """The largest significant biases, and length wherever it was tested."""
    tested = [row for row in block.bias.features if row.p is not None]
    significant = [row for row in tested if row.significant]
    shown = sorted(significant, key=lambda row: -abs(row.gap or 0.0))[:MOST_ROWS]
    return shown + [row for row in tested if row.feature == "characters" and row not in shown]


def bias_sentence(block: EvaluationMetrics) -> str:
    """What the table of biases cannot show: no significant feature, or length not tested."""
    tested = {row.feature: row.significant for row in block.bias.features if row.p is not None}
    if not block.pairs:
        return "Feature bias is measured on pairs, and no pair has a known order."
    if not tested:
        return "No feature was tested: too few pairs differ in any of them."
    if "characters" in tested:
        return "" if any(tested.values()) else "No tested feature shows a significant bias."
    if any(tested.values()):
        return "Length was not tested: too few pairs differ in it."
    return "No tested feature shows a significant bias; length was not tested."


def by_weight(outputs: Sequence[OutputMetrics]) -> list[OutputMetrics]:
    """Outputs by their part in the reward, the largest first."""
    return sorted(outputs, key=lambda one: -abs(one.weight))


def weakest_slices(block: EvaluationMetrics) -> list[Slice]:
    """The slices with significantly lower accuracy than the other pairs, lowest first."""
    return lower_slices(block)[:MOST_ROWS]


def slices_to_show(block: EvaluationMetrics) -> list[Slice]:
    """All slices: significantly lower ones first, lowest first, then the other significant ones."""
    lower = lower_slices(block)
    others = (row for row in block.slices if row not in lower)
    return [*lower, *sorted(others, key=lambda row: not row.significant)]


def shown_history(metrics: RunMetrics) -> list[HistoryEntry]:
    """Evaluations during training for the card: evenly spaced, with the best and the last."""
    history = list((metrics.eval and metrics.eval.history) or ())
    several = metrics.run.objective is not None and metrics.run.objective.outputs is not None
    # Such a card has a table more.
    most = MOST_EVALUATIONS // 2 if several else MOST_EVALUATIONS
    if len(history) <= most:
        return history
    every = -(-len(history) // (most - 1))
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


def limitations(*, measured: bool, loss: str | None, outputs: Outputs | None) -> list[str]:
    """What the numbers do not say, where some were measured, and what a reward model cannot do.

    ``loss`` is the name of the model's objective, None where it is not known; ``outputs`` are those
    of its head.
    """
    accuracy = (
        "Accuracy is agreement with the labels of the evaluation data. It may differ on other data."
    )
    rewards = "Rewards compare responses to the same prompt, not across prompts or between models."
    if outputs is not None and not outputs.ensemble:
        rewards = (
            "The reward is a sum of outputs that follow the labels of the training data; models do"
            " not share a scale."
        )
    elif learns_from(loss) == "ratings":
        accuracy = (
            "Metrics are of the ratings of the evaluation data. They may differ on other data."
        )
        rewards = "Rewards follow the ratings of the training data; models do not share a scale."
    return [
        rewards,
        *([accuracy] if measured else ()),
        "Strong optimization against a reward model raises the reward while quality falls.",
        "The licences of the base model and of the training data apply.",
    ]


TRUNCATIONS: Final[Mapping[str, str]] = {
    "drop": "were dropped",
    "left": "had the start of the prompt cut",
    "proportional": "had the ends of prompt and responses cut in proportion",
    "error": "were an error",
}
"""What training did with a conversation over the maximum length."""
