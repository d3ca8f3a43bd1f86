"""What differs between two recipes, and which keys of a run may change when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from plaudit.recipe.problems import shown
from plaudit.recipe.schema import Recipe

Role: TypeAlias = Literal["measures", "splits", "trains"]

_MEASURES = """
data.test
evaluate.calibrate evaluate.baselines evaluate.perturbation_tests evaluate.perturbation_share
report.html report.plots
train.report_to train.run_name train.project train.trackio_space_id train.trackio_bucket_id
train.trackio_static_space_id train.log_level train.log_level_replica train.log_on_each_node
"""
_TRAINS = """
model.base model.revision model.dtype model.quantize model.attention model.head_init
model.trust_remote_code model.head_learning_rate model.freeze_layers
data.train data.stopping_strategy data.eval data.eval_fraction data.eval_rows data.test_fraction
data.as_chat data.split_by data.seed
tokens.max_length tokens.truncation tokens.chat_template tokens.template tokens.chat_template_kwargs
tokens.pad_token tokens.date
loss.kind loss.margin loss.soft_label loss.label_smoothing loss.temperature loss.centering
loss.reward_norm loss.consistency loss.length loss.tie_parameter loss.huber_delta
loss.outputs loss.gate loss.heads loss.language_model
evaluate.early_stopping_patience evaluate.early_stopping_threshold
"""
ROLES: Final[Mapping[str, Role]] = {
    **dict.fromkeys(_MEASURES.split(), "measures"),
    "tokens.max_tokens_per_microbatch": "splits",
    **dict.fromkeys(_TRAINS.split(), "trains"),
}
"""What each key of plaudit's own sections does, and those of ``train`` that measure.

A key that trains changes weights, chooses the checkpoint or ends training. A key that measures
changes only what is measured of the trained model, and how it is logged and reported. A key that
splits changes how a step is divided, and its result only by rounding (law 2). A key of
``train`` or ``lora`` that is not here trains: a key that a new transformers or PEFT brings must
stay as it is until it is classified here.
"""


class Change(NamedTuple):
    """A key whose value differs between two recipes."""

    key: str
    before: Any
    after: Any
    role: Role

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.before)} → {_short(self.after)}"


def _short(value: Any) -> str:
    """A value as a message shows it; sources are their paths."""
    if isinstance(value, list):
        value = [entry["path"] if isinstance(entry, dict) else entry for entry in value]
    return shown(value)


def changes(before: Recipe, after: Recipe) -> Iterator[Change]:
    """The keys whose values differ. ``lora`` is one key where it is null on one side."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    for section, was in old.items():
        now = new[section]
        if not isinstance(was, dict) or not isinstance(now, dict):
            if was != now:
                yield Change(section, was, now, "trains")
            continue
        for name in sorted(was | now):
            if was.get(name) != now.get(name):
                key = f"{section}.{name}"
                role = ROLES.get(key, "trains")
                if key == "data.test" and before.data.test_fraction is not None:
                    # Without test files, that fraction is taken from the training data.
                    role = "trains"
                yield Change(key, was.get(name), now.get(name), role)
