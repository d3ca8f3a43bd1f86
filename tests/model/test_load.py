"""From a base on disk to a reward module, and back from a saved folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from plaudit.errors import ModelError, PlauditError
from plaudit.model.attention import interface
from plaudit.model.checkpoint import CheckpointMetadata, load_network, save_checkpoint
from plaudit.model.load import (
    BaseRequest,
    add_lora,
    batch_independent_length,
    check_max_length,
    choose_pad_token,
    dropouts_off,
    init_head,
    load_base,
    load_config,
    load_tokenizer,
    longest_input,
    trainable_parameters,
)
from plaudit.model.module import DecoderRewardModule, as_reward_module, classifier
from plaudit.model.packing import (
    PACKED_ARCHITECTURES,
    Prepared,
    SelfCheckResult,
    check_trees,
    choose_layout,
    patch_modules,
    self_check,
)
from plaudit.model.scoring import score_trees
from plaudit.reward_model import load as load_reward_model
from plaudit.tokens.batch import make_batchers
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.models import VOCABULARY, build_base, tiny_classifier, tiny_tokenizer

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
PAD = 2
LORA = {"r": 2, "target_modules": "all-linear"}


def base_of(path: Path, **options: Any) -> Any:
    return load_base(BaseRequest(base=str(path), **options), pad_id=PAD).network


# ---- padding token


def tokenizer_with(pad: str | None, *extra: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    tokenizer.pad_token = pad
    return tokenizer


@pytest.mark.parametrize(
    ("pad", "extra", "expected"),
    [
        ("<pad>", (), "<pad>"),
        ("</s>", (), "<pad>"),
        (None, (), "<pad>"),
        ("</s>", ("<|reserved_special_token_0|>",), "<|reserved_special_token_0|>"),
        ("</s>", ("<|finetune_right_pad_id|>", "[PAD]"), "<|finetune_right_pad_id|>"),
    ],
)
def test_the_pad_token_is_never_the_end_token(
    pad: str | None, extra: tuple[str, ...], expected: str
) -> None:
    assert choose_pad_token(tokenizer_with(pad, *extra), None, "base") == expected


def test_an_asked_for_pad_token() -> None:
    tokenizer = tokenizer_with("<pad>")
    assert choose_pad_token(tokenizer, "<|system|>", "base") == "<|system|>"
    for wrong in ("</s>", "no such token"):
        with pytest.raises(ModelError, match=r"tokens\.pad_token"):
            choose_pad_token(tokenizer, wrong, "base")


def test_no_pad_token_at_all() -> None:
    """GPT-2's tokenizer has one special token that is start, end and unknown at once."""
    from tokenizers import Tokenizer, models

    only = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<|endoftext|>": 0, "word": 1})),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    with pytest.raises(ModelError, match=r"no padding token .* tokens\.pad_token"):
        choose_pad_token(only, None, "base")
    assert choose_pad_token(only, "word", "base") == "word"


def test_a_tokenizer_that_pads_with_its_end_on_the_left(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_with("</s>")
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(str(tmp_path), revision=None, trust_remote_code=False, pad_token=None)
    assert (loaded.pad_token, loaded.padding_side) == ("<pad>", "right")


# ---- dropout


def test_every_dropout_is_off(tmp_path: Path) -> None:
    """As modules, and as numbers that attention functions read from the configuration."""
    family = "gpt_neox"
    base = build_base(
        tmp_path, family, attention_dropout=0.3, hidden_dropout=0.2, classifier_dropout=0.4
    )
    config = load_config(BaseRequest(base=str(base)))
    for name in ("attention_dropout", "hidden_dropout", "classifier_dropout"):
        assert getattr(config, name) == 0.0
    network = add_lora(base_of(base), {**LORA, "lora_dropout": 0.25})
    dropouts_off(network, keep_lora=True)
    dropped = {n: m.p for n, m in network.named_modules() if isinstance(m, nn.Dropout) and m.p}
    assert dropped
    assert all("lora_dropout" in name and p == 0.25 for name, p in dropped.items())
    dropouts_off(network, keep_lora=False)
    assert not any(m.p for m in network.modules() if isinstance(m, nn.Dropout))
    network.train()
    module = as_reward_module(network)
    padded = make_batchers("auto", CPU, PAD)["padded"]
    one, two = (score_trees(module, padded, check_trees(VOCABULARY)) for _ in range(2))
    assert [a.tolist() for a in one] == [b.tolist() for b in two]


# ---- heads


def test_a_fresh_head(tiny_base: Path) -> None:
    assert float(base_of(tiny_base).score.weight.detach().abs().max()) == 0
    network = base_of(tiny_base, head_init="normal")
    assert float(network.score.weight.detach().abs().max()) > 0


def test_a_normal_head_is_small() -> None:
    head = nn.Linear(4095, 400)
    init_head(head, "normal")
    assert float(head.weight.detach().std()) == pytest.approx(1 / 4096, rel=0.02)
    assert float(head.bias.detach().abs().max()) == 0


def test_a_head_that_the_checkpoint_has_is_kept(tmp_path: Path) -> None:
    model: Any = tiny_classifier()
    model.save_pretrained(tmp_path)
    found = base_of(tmp_path).score.weight.detach()
    assert torch.equal(found, model.score.weight.detach())


def test_a_head_for_several_labels(tmp_path: Path) -> None:
    config = tiny_classifier().config
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="with one label"):
        base_of(tmp_path)


def test_a_half_precision_body_has_a_full_precision_head(tiny_base: Path) -> None:
    network = base_of(tiny_base, dtype=torch.bfloat16, head_init="normal")
    assert network.model.embed_tokens.weight.dtype == torch.bfloat16
    network = add_lora(network, LORA)
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    module = patch_modules(network).eval()
    batchers = make_batchers("auto", CPU, PAD)
    prepared = choose_layout(module, "auto", **batchers)  # type: ignore[arg-type]
    assert prepared.layout == "packed"
    with torch.no_grad():
        assert module(batchers["packed"].collate(check_trees(VOCABULARY))).dtype == torch.float32


# ---- bodies


def test_a_body_without_some_of_its_tensors(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    weights = load_file(base / "model.safetensors")
    lost = [name for name in weights if "down_proj" in name]
    for name in lost:
        del weights[name]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lacks {len(lost)} of the model's tensors"):
        base_of(base)


def test_four_bits_need_bitsandbytes(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.model.load.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs bitsandbytes; install it with pip install"):
        base_of(tiny_base, quantize="4bit")


def test_learned_positions_end() -> None:
    assert longest_input(tiny_classifier("llama")) is None
    bert = encoder("bert")
    assert longest_input(bert) == 64
    # RoBERTa's positions start behind its padding index.
    assert longest_input(encoder("roberta")) == 64 - PAD - 1
    check_max_length(bert, 64)
    with pytest.raises(ModelError, match="max_length is 65, but this base supports 64 positions"):
        check_max_length(bert, 65)


# ---- LoRA


def saved_and_loaded(network: Any, base: Path, folder: Path) -> Any:
    facts = CheckpointMetadata(
        kind="adapter",
        base=str(base),
        base_revision=None,
        max_length=64,
        text="text",
        chat_template=None,
        pad_token="<pad>",
        attention="padded",
        attention_note=None,
        head={},
    )
    save_checkpoint(folder, network, tiny_tokenizer(), facts)
    loaded, _ = load_network(folder, facts, dtype=torch.float32)
    dropouts_off(loaded, keep_lora=False)
    return loaded


def scores(network: Any) -> Tensor:
    module = as_reward_module(network).eval()
    found = score_trees(module, make_batchers(400, CPU, PAD)["padded"], check_trees(VOCABULARY))
    return torch.tensor([float(x) for row in found for x in row])


def randomise(network: Any) -> None:
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)


def test_the_head_is_saved_whole_with_what_the_user_names(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    options = {**LORA, "modules_to_save": ["embed_tokens", "score"], "target_modules": ["q_proj"]}
    network: Any = add_lora(base_of(tiny_base), options)
    assert {"score", "embed_tokens"} <= set(network.peft_config["default"].modules_to_save)
    randomise(network)
    loaded = saved_and_loaded(network, tiny_base, tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        head = tensors.get_tensor("base_model.model.score.weight")
    assert "base_model.model.model.embed_tokens.weight" in names
    assert not any("score" in name and "lora" in name for name in names)
    assert torch.equal(head, classifier(network).score.weight.detach())
    torch.testing.assert_close(scores(loaded), scores(network), atol=0, rtol=0)


def test_settings_that_peft_refuses(tiny_base: Path) -> None:
    with pytest.raises(PlauditError, match=r"target_modules: no_such_layer matches no module"):
        add_lora(base_of(tiny_base), {"target_modules": ["no_such_layer"]})


def test_the_heads_frozen_original_is_not_counted(tiny_base: Path) -> None:
    network = base_of(tiny_base)
    whole = sum(p.numel() for p in network.parameters())
    network = add_lora(network, {"r": 2, "target_modules": ["q_proj"]})
    lora = 3 * 2 * (32 + 32)
    assert trainable_parameters(network) == (lora + 32, whole + lora)


# ---- attention


@contextmanager
def warnings_said() -> Iterator[list[str]]:
    """What plaudit's logger says, whatever a command line did to it before."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, listener = logging.getLogger("plaudit"), Listener()
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


def chosen(network: Any, asked: Any = "auto") -> Prepared:
    batchers = make_batchers(400, CPU, PAD)
    module = patch_modules(network)
    return choose_layout(module, asked, packed=batchers["packed"], padded=batchers["padded"])


def blind(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    """An attention that looks at nothing but the token itself."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


def attending(attend: Callable[..., Tensor]) -> interface.Backend:
    """The CPU's backend with another function."""
    return replace(interface.BACKENDS["cpu"], attend=attend)


def test_a_failed_self_check_switches_to_padded_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scores(tiny_classifier())
    monkeypatch.setitem(interface.BACKENDS, "cpu", attending(blind))
    network = tiny_classifier()
    with warnings_said() as said:
        prepared = chosen(network)
    assert prepared.layout == "padded"
    assert prepared.note is not None
    assert "self-check" in prepared.note
    assert len(said) == 1
    assert prepared.note in said[0]
    torch.testing.assert_close(scores(network), expected)
    with pytest.raises(ModelError, match=r"model.attention is packed, but in the self-check"):
        chosen(tiny_classifier(), "packed")


def test_the_self_check_runs_in_the_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU another attention runs in half precision: that one must be tried."""
    seen: set[torch.dtype] = set()
    own = interface.BACKENDS["cpu"].attend

    def watched(query: Tensor, *others: Any) -> Tensor:
        seen.add(query.dtype)
        return own(query, *others)

    monkeypatch.setitem(interface.BACKENDS, "cpu", attending(watched))
    batchers = make_batchers(400, CPU, PAD)
    for autocast, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        seen.clear()
        prepared = choose_layout(
            patch_modules(tiny_classifier()),
            "auto",
            packed=batchers["packed"],
            padded=batchers["padded"],
            autocast=autocast,
        )
        assert (prepared.layout, seen) == ("packed", {expected})


def test_a_self_check_allows_for_the_coarsest_precision_of_a_body() -> None:
    """A quantized one has fp32 embeddings: the first tensor does not tell."""
    batchers = make_batchers(400, CPU, PAD)
    full, mixed = tiny_classifier(), tiny_classifier()
    mlp = mixed.model.layers[1].mlp.bfloat16()
    mlp.register_forward_pre_hook(lambda _, inputs: tuple(x.bfloat16() for x in inputs))
    tolerances = [
        self_check(DecoderRewardModule(network), batchers["packed"], batchers["padded"]).tolerance
        for network in (full, mixed)
    ]
    assert tolerances == [1e-3, 6e-2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("family", sorted(PACKED_ARCHITECTURES))
def test_every_architecture_runs_packed_in_half_precision(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny_classifier(family).save_pretrained(tmp_path)
    network = base_of(tmp_path, dtype=dtype)
    assert (network.score.weight.dtype, next(network.parameters()).dtype) == (torch.float32, dtype)
    batchers = make_batchers(400, CPU, PAD)
    module = patch_modules(network)
    assert isinstance(module, DecoderRewardModule)
    result = self_check(module, batchers["packed"], batchers["padded"])
    # Rounding stays far from the tolerance; wrong attention shows 0.1 and more.
    assert 0 < result.difference < result.tolerance / 2


def test_a_failed_self_check_is_recorded(
    tiny_base: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plaudit.training.run import train

    with monkeypatch.context() as patch:
        patch.setitem(interface.BACKENDS, "cpu", attending(blind))
        run = train(recipe_of(tiny_base, pairs_file, num_train_epochs=1), tmp_path / "run")
    facts = json.loads((run.folder / "plaudit.json").read_text())
    assert facts["attention"] == run.metrics.run.attention == "padded"
    assert "self-check" in facts["attention_note"]
    assert facts["attention_note"] == run.metrics.run.attention_note


def test_asked_for_padding_is_no_surprise() -> None:
    with warnings_said() as said:
        prepared = chosen(tiny_classifier(), "padded")
    assert (prepared.layout, said) == ("padded", [])


def test_a_self_check_of_nans_does_not_pass() -> None:
    assert not SelfCheckResult(difference=float("nan"), tolerance=1.0).passed
    network = tiny_classifier()
    nn.init.constant_(network.model.norm.weight, float("nan"))
    assert chosen(network).layout == "padded"


def test_a_family_that_is_not_proven_runs_padded() -> None:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=VOCABULARY, num_labels=1, n_embd=32, n_layer=2, n_head=4, pad_token_id=2
    )
    network = AutoModelForSequenceClassification.from_config(config).eval()
    with warnings_said() as said:
        prepared = chosen(network)
    assert prepared.layout == "padded"
    assert "gpt2 is not verified for packed batches" in said[0]
    with pytest.raises(ModelError, match="gpt2"):
        chosen(network, "packed")


# ---- encoders

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "deberta-v2": {"relative_attention": True, "position_biased_input": False},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {},
    "electra": {},
    "albert": {},
}


def encoder(family: str) -> Any:
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        num_labels=1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=PAD,
        **ENCODERS[family],
    )
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def encoder_base(family: str, folder: Path) -> Path:
    """A bare encoder as published: no pooler, and nothing of a classifier's head."""
    model = encoder(family)
    body = f"{model.base_model_prefix}."
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(body) and "pooler" not in name
    }
    model.save_pretrained(folder, state_dict=state)
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoders_fresh_layers_come_back(family: str, tmp_path: Path) -> None:
    """Pooler and dense layers start random and differ at each load, unless they are saved."""
    base = encoder_base(family, tmp_path / "base")
    network = add_lora(base_of(base), LORA)
    dropouts_off(network, keep_lora=False)
    assert float(scores(network).abs().max()) == 0, "a fresh head starts at zero"
    randomise(network)
    loaded = saved_and_loaded(network, base, tmp_path / "saved")
    expected = scores(network)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(scores(loaded), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoders_head_is_in_full_precision(family: str, tmp_path: Path) -> None:
    base = encoder_base(family, tmp_path / "base")
    network = add_lora(base_of(base, dtype=torch.bfloat16), LORA)
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    randomise(network)
    assert torch.isfinite(scores(network)).all()


def test_packed_on_an_encoder_is_refused(tmp_path: Path) -> None:
    network = base_of(encoder_base("bert", tmp_path))
    with pytest.raises(ModelError, match="bert is an encoder"):
        chosen(network, "packed")


# ---- whole runs


def transformers_scores(folder: Path, rows: list[dict[str, Any]], *, adapter: bool) -> Tensor:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = AutoPeftModelForSequenceClassification if adapter else AutoModelForSequenceClassification
    network = kind.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    network.config.pad_token_id = tokenizer.pad_token_id
    found = []
    for row in rows:
        for side in ("chosen", "rejected"):
            text = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            with torch.no_grad():
                found.append(float(network(**inputs).logits[0, 0]))
    return torch.tensor(found)


def tied(folder: Path) -> Path:
    return build_base(folder, tie_word_embeddings=True)


def bert(folder: Path) -> Path:
    return encoder_base("bert", folder)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("make", [tied, bert])
def test_a_run_from_base_to_plain_transformers(
    make: Callable[[Path], Path], lora: bool, tmp_path: Path
) -> None:
    from plaudit.training.run import train

    base = make(tmp_path / "base")
    rows = pair_rows(40, seed=5)
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = recipe_of(base, data)
    recipe["tokens"] = {"max_length": 64}
    if not lora:
        recipe["lora"] = None
    run = train(recipe, tmp_path / "run")
    assert run.metrics.run.attention == ("padded" if make is bert else "packed")
    model = load_reward_model(run.folder)
    fitting = [row for row in rows if len(row["prompt"][0]["content"]) < 60][:8]
    ours = torch.tensor(
        [s for row in fitting for s in model.score(row["prompt"], [row["chosen"], row["rejected"]])]
    )
    assert float(ours.std()) > 1e-4
    plain = transformers_scores(run.folder, fitting, adapter=lora)
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=1e-5)


def test_positions_are_checked_before_training(tmp_path: Path, pairs_file: Path) -> None:
    from plaudit.training.run import train

    recipe = recipe_of(encoder_base("bert", tmp_path / "base"), pairs_file)
    with pytest.raises(ModelError, match="supports 64 positions"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        (None, None),
        ({"rope_type": "default", "rope_theta": 1e4}, None),
        ({"rope_type": "dynamic", "original_max_position_embeddings": 32}, 32),
        ({"rope_type": "longrope"}, 64),
        (
            {
                "full_attention": {"rope_type": "dynamic"},
                "sliding_attention": {"rope_type": "default"},
            },
            64,
        ),
    ],
)
def test_positions_that_depend_on_the_batch_are_found(
    rope: dict[str, Any] | None, length: int | None
) -> None:
    """In one rotary setting for all layers, and in one for each kind of layer."""
    config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=64)
    assert batch_independent_length(config) == length


def test_a_soft_capped_base_never_runs_in_sdpa(tmp_path: Path) -> None:
    """Before 5.23 transformers chose SDPA for Gemma 2 by itself, without its soft-cap."""
    for family, chosen in (("gemma2", "eager"), ("llama", None)):
        base = build_base(tmp_path / family, family)
        assert load_config(BaseRequest(base=str(base)))._attn_implementation == chosen
