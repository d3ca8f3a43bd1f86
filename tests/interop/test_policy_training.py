"""Law 3 inside a policy trainer: TRL's GRPO gets one reward from the exported and the own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plaudit.interop.export import export
from plaudit.interop.trl.reward_function import reward_function
from plaudit.reward_model import load
from tests.conftest import pair_rows

pytestmark = pytest.mark.heavy
STEPS = 3


def test_a_few_steps_of_grpo(finished_run: Path, tiny_base: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    export(finished_run, "merged", tmp_path / "merged")
    model = load(finished_run)
    own = reward_function(model)
    policy = AutoModelForCausalLM.from_pretrained(tiny_base)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    trainer = GRPOTrainer(
        model=policy,
        processing_class=AutoTokenizer.from_pretrained(tiny_base),
        # By its path TRL loads the classifier and renders with the template beside it.
        reward_funcs=[str(tmp_path / "merged"), own],
        train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in pair_rows(8, seed=2)]),
        args=GRPOConfig(
            output_dir=str(tmp_path / "policy"),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=12,
            max_steps=STEPS,
            learning_rate=1e-3,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=1,
        ),
    )
    trainer.train()
    logged: list[dict[str, Any]] = [e for e in trainer.state.log_history if "reward" in e]
    assert len(logged) == STEPS
    for entry in logged:
        for statistic in ("mean", "std"):
            found = entry[f"rewards/merged/{statistic}"]
            assert found == pytest.approx(entry[f"rewards/plaudit_reward/{statistic}"], abs=1e-4)
        assert entry["rewards/merged/std"] > 1e-3
    after = policy.state_dict()
    assert any(not before[name].equal(after[name]) for name in before)


def test_the_reward_function_is_the_models_score(finished_run: Path) -> None:
    model = load(finished_run)
    own = reward_function(model)
    rows = pair_rows(3, seed=5)
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    completions = [row[side] for row in rows for side in ("chosen", "rejected")]
    wanted = [
        score for r in rows for score in model.score(r["prompt"], [r["chosen"], r["rejected"]])
    ]
    assert own(prompts, completions, trainer_state=None) == pytest.approx(wanted, abs=1e-5)
    # What cannot be read costs the others of its prompt nothing.
    long = [{"role": "assistant", "content": "word " * 2000}]
    found = own([prompts[0]] * 3, [completions[0], long, completions[1]])
    assert found[1] is None
    assert [found[0], found[2]] == pytest.approx(wanted[:2], abs=1e-5)
    texts = own(["which one?"] * 2, ["this right", "that wrong"])
    assert texts == pytest.approx(model.score("which one?", ["this right", "that wrong"]), abs=1e-5)
