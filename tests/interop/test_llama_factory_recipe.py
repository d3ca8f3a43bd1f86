"""A reward YAML of LLaMA-Factory: every key taken over, left out or refused, with its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plaudit.errors import RecipeError
from plaudit.interop.llama_factory.recipe import KEYS, translate
from plaudit.recipe.load import parse_recipe, read_draft

RUN = Path(__file__).parents[1] / "fixtures" / "llama_factory" / "run"
LEAST = {"stage": "rm", "model_name_or_path": "org/base", "dataset": "pairs"}


def recipe_of(**settings: Any) -> Any:
    return parse_recipe(translate(LEAST | settings, "reward.yaml").recipe, "reward.yaml")


def complaint(settings: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as raised:
        translate(settings, "reward.yaml")
    message = str(raised.value)
    assert message.startswith("reward.yaml: ")
    assert "\n" not in message
    return message


def test_a_real_runs_yaml() -> None:
    translated = translate(read_draft(RUN / "reward.yaml").values, "reward.yaml")
    recipe = parse_recipe(translated.recipe, "reward.yaml")
    assert recipe.model.base == "../base"
    assert recipe.lora is not None
    assert (recipe.lora["r"], recipe.lora["lora_alpha"]) == (8, 16)
    (source,) = recipe.data.train
    assert (source.path, source.subset, source.max_rows) == ("dataset_info.json", "dpo_en_demo", 90)
    assert (recipe.data.eval_fraction, recipe.data.split_by, recipe.data.seed) == (0.3333, "row", 1)
    assert (recipe.tokens.max_length, recipe.tokens.truncation) == (512, "proportional")
    assert recipe.tokens.template is not None
    assert recipe.tokens.template.name == "llama3"
    assert recipe.train["warmup_steps"] == 2
    assert recipe.train["gradient_checkpointing"] is True
    assert translated.out == Path("out")
    keys = set(read_draft(RUN / "reward.yaml").values)
    assert keys <= {note.key for note in translated.notes}
    assert not [note for note in translated.notes if note.outcome == "unknown"]
    assert any("bias and 10% dropout" in note.words for note in translated.notes)


def test_every_key_says_what_became_of_it() -> None:
    """With a value that is harmless for each; none ends in anything but words or an error."""
    for key in KEYS:
        for value in (None, False, 4, "a,b", ["x"], 0.5):
            said = words_for(key, value)
            assert said, key


def words_for(key: str, value: Any) -> str:
    try:
        translated = translate(LEAST | {key: value}, "reward.yaml")
    except RecipeError as error:
        return str(error) if key in str(error) else ""
    (note,) = [note for note in translated.notes if note.key == key]
    return note.words


@pytest.mark.parametrize(
    ("settings", "place", "expected"),
    [
        ({"val_size": 500}, "data.eval_rows", 500),
        ({"val_size": 0.0}, "data.eval_fraction", None),
        ({}, "data.eval_fraction", None),
        ({}, "tokens.max_length", 2048),
        ({"seed": 7}, "data.seed", 7),
        ({"finetuning_type": "full"}, "lora", None),
        ({"lora_rank": 32}, "lora.lora_alpha", 64),
        ({"lora_rank": 32, "lora_alpha": 8}, "lora.lora_alpha", 8),
        ({"lora_target": "q_proj, v_proj"}, "lora.target_modules", ["q_proj", "v_proj"]),
        ({"additional_target": "embed_tokens"}, "lora.modules_to_save", ["embed_tokens"]),
        ({"pissa_init": True}, "lora.init_lora_weights", "pissa_niter_16"),
        ({"quantization_bit": 4}, "model.quantize", "4bit"),
        ({"pure_bf16": True}, "model.dtype", "bfloat16"),
        ({"adapter_name_or_path": "earlier"}, "model.base", "earlier"),
        ({"disable_gradient_checkpointing": True}, "train.gradient_checkpointing", False),
        ({"enable_liger_kernel": True}, "train.use_liger_kernel", True),
        ({"warmup_ratio": 0.1}, "train.warmup_steps", 0.1),
        ({"weight_decay": 0.1}, "train.weight_decay", 0.1),
        ({"evaluation_strategy": "steps", "val_size": 0.1}, "train.eval_strategy", "steps"),
        ({"early_stopping_steps": 3, "val_size": 0.1}, "evaluate.early_stopping_patience", 3),
    ],
)
def test_keys_and_where_they_go(settings: dict[str, Any], place: str, expected: Any) -> None:
    found: Any = recipe_of(**settings).model_dump()
    for name in place.split("."):
        found = found[name]
    assert found == expected


def test_several_data_sets_are_concatenated_or_interleaved() -> None:
    both = recipe_of(dataset="a, b", dataset_dir="sets").data
    assert [(s.path, s.subset, s.probability) for s in both.train] == [
        ("sets/dataset_info.json", "a", None),
        ("sets/dataset_info.json", "b", None),
    ]
    mixed = recipe_of(
        dataset="a,b", mix_strategy="interleave_over", interleave_probs="0.7,0.3"
    ).data
    assert [source.probability for source in mixed.train] == [0.7, 0.3]
    assert mixed.stopping_strategy == "all_exhausted"
    evaluated = recipe_of(eval_dataset="c,d", dataset_dir="ONLINE", streaming=True).data
    assert [(s.path, s.streaming) for s in evaluated.eval] == [("c", True), ("d", True)]
    assert "2 data sets; expected one number per data set" in complaint(
        LEAST | {"dataset": "a,b", "mix_strategy": "interleave_under", "interleave_probs": "1"}
    )


def test_saving_follows_evaluation() -> None:
    """Another schedule for saving would be refused, because the best could not be kept."""
    recipe = recipe_of(val_size=0.1, eval_strategy="steps", eval_steps=10, save_steps=500)
    assert "save_steps" not in recipe.train
    assert recipe_of(save_steps=500).train["save_steps"] == 500


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stage": "dpo"}, "stage is 'dpo', but plaudit trains only reward models"),
        ({"stage": None}, "stage is null"),
        ({"dataset": None}, "dataset is missing"),
        ({"model_name_or_path": ""}, "model_name_or_path is missing"),
        ({"val_size": 0.1, "eval_dataset": "b"}, "val_size and eval_dataset both set"),
        ({"val_size": "some"}, "val_size is 'some'; expected a number"),
        ({"finetuning_type": "freeze"}, "finetuning_type is 'freeze'"),
        ({"quantization_bit": 8}, "supports only 4-bit quantization"),
        ({"adapter_name_or_path": "a,b"}, "a single adapter"),
        ({"use_galore": True}, "use_galore is true, but"),
        ({"rope_scaling": "yarn"}, "it would train a different model"),
        ({"dataset_dir": "REMOTE:a/b"}, "download that dataset_info.json"),
        ({"disable_shuffling": True}, "always shuffles the training rows"),
    ],
)
def test_what_would_be_another_run_is_refused(settings: dict[str, Any], expected: str) -> None:
    assert expected in complaint(LEAST | settings)


def test_unknown_keys_are_said_and_secrets_are_not_kept() -> None:
    translated = translate(
        LEAST | {"learning_rat": 1e-5, "hf_hub_token": "hf_secret", "ppo_epochs": 3}, "reward.yaml"
    )
    note = {note.key: note for note in translated.notes}
    assert note["learning_rat"].outcome == "unknown"
    assert "did you mean learning_rate?" in note["learning_rat"].words
    assert note["ppo_epochs"].outcome == "ignored"
    assert "hf_secret" not in str(translated)
