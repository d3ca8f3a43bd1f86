"""The installed TRL trains reward models, and plaudit gives the scores TRL's own model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import plaudit
from tests.conftest import pair_rows

ROWS = pair_rows(8, seed=5)


def trained_by_trl(base: Path, out: Path, **adapter: Any) -> Any:
    """TRL's trainer after a few steps, its model and tokenizer saved to ``out``."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in pair_rows(16)]
    trainer = RewardTrainer(
        model=str(base),
        args=RewardConfig(
            output_dir=str(out),
            max_steps=4,
            learning_rate=5e-3,
            per_device_train_batch_size=2,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            seed=1,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(**adapter) if adapter else None,
    )
    trainer.train()
    trainer.save_model(str(out))
    return trainer


@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"task_type": "SEQ_CLS", "r": 4, "target_modules": "all-linear"},
        {"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["score"]},
    ],
    ids=["whole", "SEQ_CLS", "no task type"],
)
def test_trl_trains_and_plaudit_gives_its_scores(
    adapter: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    trainer = trained_by_trl(tiny_base, tmp_path / "trl", **adapter)
    network = trainer.model.eval()
    tokenizer = trainer.processing_class
    model = plaudit.load(tmp_path / "trl")
    for row in ROWS:
        for side in ("chosen", "rejected"):
            inputs = tokenizer.apply_chat_template(
                [*row["prompt"], *row[side]], return_tensors="pt", return_dict=True
            )
            with torch.no_grad():
                (expected,) = network(**inputs).logits[:, 0].tolist()
            assert model.score(row["prompt"], [row[side]]) == pytest.approx([expected], abs=1e-5)
