"""The embedded base: small, loads as what it says it is, and its template ends where it should."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.embedded import base_path

transformers: Any = pytest.importorskip("transformers")
pytestmark = pytest.mark.heavy


TOKENIZER = transformers.AutoTokenizer.from_pretrained(base_path())


def test_the_folder_is_small_and_complete() -> None:
    names = {path.name for path in base_path().iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert sum(path.stat().st_size for path in base_path().iterdir()) <= 8 * 1024 * 1024


def test_the_config_is_a_classifier_of_one_label() -> None:
    config = json.loads((base_path() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert transformers.AutoConfig.from_pretrained(base_path()).num_labels == 1
    assert config["pad_token_id"] == TOKENIZER.pad_token_id
    assert config["vocab_size"] == len(TOKENIZER)


def test_it_loads_whole_and_scores_nothing_yet(caplog: pytest.LogCaptureFixture) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            base_path(), num_labels=1, dtype=torch.float32, output_loading_info=True
        )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not caplog.records
    ids = TOKENIZER("Return the sum.", return_tensors="pt")
    with torch.no_grad():
        output = model(**ids, output_hidden_states=True)
    assert float(output.logits) == 0.0
    assert bool(torch.isfinite(output.hidden_states[-1]).all())


def test_it_has_learnt_english_word_order() -> None:
    import torch

    model = transformers.LlamaForCausalLM.from_pretrained(base_path(), dtype=torch.float32)

    def loss(text: str) -> float:
        ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    assert loss("Return the name of the file.") < loss("Name file of return the the.") - 0.5


def test_the_template_has_one_start_and_ends_with_the_end_token() -> None:
    messages = [
        {"role": "user", "content": "What does `len` do?"},
        {"role": "assistant", "content": "Return the length."},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert ids == TOKENIZER.apply_chat_template(messages, return_dict=False)
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert ids[0] == TOKENIZER.bos_token_id
    assert ids[-1] == TOKENIZER.eos_token_id
    assert ids.count(TOKENIZER.eos_token_id) == 2
    assert TOKENIZER.pad_token_id not in ids
    opened = TOKENIZER.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(opened)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(Exception, match="system, user and assistant only"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "1"}], tokenize=False)


def test_special_tokens_are_distinct() -> None:
    ids = {TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id}
    ids |= {TOKENIZER.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant")}
    assert len(ids) == 5
    assert None not in ids


@given(st.text())
def test_any_text_is_read_byte_for_byte(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    special = any(token in text for token in TOKENIZER.all_special_tokens)
    assert special or TOKENIZER.decode(ids[1:]) == text
