"""Other tools' reward models: the scores they gave, or a refusal that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
)

import plaudit
from plaudit.errors import ModelError
from plaudit.interop.formats import ReadOptions, formats, is_reward_model, read_contents
from plaudit.interop.importing import import_model
from plaudit.interop.llama_factory.model import infer_version
from plaudit.interop.llama_factory.templates import (
    BOS,
    CONTENT,
    EOS,
    NAMES,
    RULE_VERSIONS,
    fill,
    rule_version,
    template_of,
)
from plaudit.reward_model import LoadArguments, LoadOptions
from plaudit.tokens.encode import Encoder, encode, up_to_scored_token
from plaudit.types import (
    Comparison,
    Message,
    Rendering,
    RewardTransform,
    ScoredTokenRule,
    TokenTree,
)
from tests.foreign import (
    BASE,
    LLAMA_FACTORY,
    OLD_PEFT,
    TRL,
    complete,
    opened,
    rows,
    scores_of_ids,
)
from tests.models import tiny_classifier, tiny_tokenizer

CLOSE: dict[str, Any] = {"rel": 0, "abs": 1e-5}


def sides(path: Path) -> list[list[int]]:
    return [row[side] for row in rows(path) for side in ("chosen_ids", "rejected_ids")]


# ---- the scores that the tools themselves recorded


def test_llama_factory_gives_the_scores_it_gave(caplog: pytest.LogCaptureFixture) -> None:
    """From text: the ids are LLaMA-Factory's own, and so is every reward, bias and all."""
    model = opened(LLAMA_FACTORY / "adapter")
    recorded = rows(LLAMA_FACTORY / "scores.jsonl")
    for row in recorded:
        comparison = model.comparison(row["prompt"], [row["chosen"], row["rejected"]])
        (encoded,) = model.encode([comparison])
        assert isinstance(encoded, TokenTree)
        ids = [np.concatenate([encoded.prefix, branch]).tolist() for branch in encoded.branches]
        assert ids == [row["chosen_ids"], row["rejected_ids"]]
        assert model.score_trees([encoded])[0] == pytest.approx(row["rewards"], **CLOSE)
    said = caplog.text
    assert "template llama3, inferred" in said
    assert "bias (-0.0507467)" in said
    assert "inferred from PEFT 0.18.1" in said


def test_llama_factory_pickles_give_the_scores_they_gave() -> None:
    model = opened(LLAMA_FACTORY / "adapter_old_layout")
    recorded = LLAMA_FACTORY / "scores_old_layout.jsonl"
    expected = [
        row[f"{side}_reward_single"] for row in rows(recorded) for side in ("chosen", "rejected")
    ]
    assert scores_of_ids(model, sides(recorded)) == pytest.approx(expected, **CLOSE)
    assert model.metadata.rendering.template == "llama3"


def test_trl_gives_the_scores_it_gave() -> None:
    model = opened(TRL / "adapter")
    recorded = TRL / "scores.jsonl"
    expected = [
        row[f"{side}_reward_single"] for row in rows(recorded) for side in ("chosen", "rejected")
    ]
    assert scores_of_ids(model, sides(recorded)) == pytest.approx(expected, **CLOSE)


OLD = json.loads((OLD_PEFT / "scores.json").read_text())
READABLE = sorted(OLD["scores"].keys() - {"head_left_out", "lost_head"})


@pytest.mark.parametrize("name", READABLE)
def test_peft_0_11_gives_the_scores_it_gave(name: str, tmp_path: Path) -> None:
    """All task types, the head that PEFT wrapped, pad = end by both rules of mid-2024."""
    model = opened(complete(name, tmp_path / "adapter"))
    sequences = sides(LLAMA_FACTORY / "scores.jsonl")[:12]
    assert scores_of_ids(model, sequences) == pytest.approx(OLD["scores"][name], **CLOSE)


def test_the_reference_models_shape_is_read_by_its_own_release(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT 0.11.1 adapter, value head, pad = end: mid-2024 reads the token before the end token."""
    folder = complete("value_head", tmp_path / "adapter")
    keys = json.loads((folder / "adapter_config.json").read_text()).keys()
    assert "lora_bias" not in keys
    assert "peft_version" not in keys
    model = opened(folder)
    assert model.metadata.origin is not None
    assert model.metadata.origin.source_version == "0.8.2"
    assert model.metadata.scored_token == ScoredTokenRule(rule="before_trailing_pad", pad_id=4086)
    assert model.metadata.reward_transform.offset == pytest.approx(0.3, abs=0.1)
    for row, *expected in zip(
        rows(LLAMA_FACTORY / "scores.jsonl"),
        OLD["scores"]["value_head"][::2],
        OLD["scores"]["value_head"][1::2],
        strict=False,
    ):
        found = model.score(row["prompt"], [row["chosen"], row["rejected"]])
        assert found == pytest.approx(expected, **CLOSE)
    assert "the token before it is scored" in caplog.text
    later = opened(folder, source_version="0.9.1")
    assert later.metadata.scored_token == ScoredTokenRule()
    row = rows(LLAMA_FACTORY / "scores.jsonl")[0]
    assert later.score(row["prompt"], [row["chosen"]]) != pytest.approx(
        model.score(row["prompt"], [row["chosen"]]), abs=1e-3
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lost_head", "whose random initial values were not saved"),
        ("head_left_out", r"has no reward head.*modules_to_save"),
    ],
)
def test_a_lost_head_is_refused_with_its_reason(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=reason):
        opened(complete(name, tmp_path / "adapter"))


# ---- LLaMA-Factory's templates and releases


def conversation(system: str, turns: list[str]) -> Comparison:
    messages = [Message(role="system", content=system)] if system else []
    messages += [
        Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(turns)
    ]
    return Comparison(
        id="0",
        prompt=tuple(messages[:-1]),
        responses=((messages[-1],),),
        grades=(),
        group="0",
        source="test",
        where="here",
    )


def encoder_of(name: str, version: str, tokenizer: Any) -> Encoder:
    template = template_of(name, rule_version(version))
    if template.eos is not None and template.eos in tokenizer.get_vocab():
        tokenizer.eos_token = template.eos
    rendering = Rendering(kind="llamafactory", template=name, strings=template.strings())
    return Encoder(tokenizer=tokenizer, max_length=4096, rendering=rendering)


def test_every_template_of_every_release_gives_its_ids() -> None:
    """Against ids that the releases' own template code made."""
    recorded = rows(LLAMA_FACTORY / "templates.jsonl")
    assert {row["template"] for row in recorded} == set(NAMES)
    assert {rule_version(row["version"]) for row in recorded} == set(RULE_VERSIONS)
    for row in recorded:
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        encoder = encoder_of(row["template"], row["version"], tokenizer)
        (found,) = encode(encoder, [conversation(row["system"], row["turns"])])
        assert isinstance(found, TokenTree)
        assert found.branches[0].tolist() == row["ids"], (row["version"], row["template"])


def test_a_template_that_came_later_is_refused() -> None:
    with pytest.raises(ModelError, match=r"0\.8\.2 has no template qwen3"):
        template_of("qwen3", "0.8.2")
    with pytest.raises(ModelError, match="unknown template qwen9; expected one of default"):
        template_of("qwen9", "0.9.4")
    with pytest.raises(ModelError, match="'new' is not a version"):
        rule_version("new")


@pytest.mark.parametrize(
    ("peft", "transformers", "version"),
    [
        ((0, 10, 0), (4, 40, 0), "0.8.2"),
        ((0, 11, 1), (4, 41, 2), "0.8.2"),
        ((0, 12, 0), (4, 41, 2), "0.8.3"),
        ((0, 12, 0), (4, 46, 1), "0.8.3"),
        ((0, 12, 0), (4, 49, 0), "0.9.2"),
        ((0, 12, 0), None, None),
        ((0, 15, 2), (4, 52, 4), "0.9.3"),
        ((0, 18, 1), (5, 6, 0), "0.9.4"),
    ],
)
def test_the_release_is_inferred_from_its_libraries(
    peft: tuple[int, ...], transformers: tuple[int, ...] | None, version: str | None
) -> None:
    assert infer_version(peft, transformers) == version


def test_turns_that_do_not_alternate_are_counted_not_guessed() -> None:
    encoder = encoder_of("llama3", "0.9.5", AutoTokenizer.from_pretrained(BASE))
    item = conversation("", ["a", "b", "c", "d"])
    twice = Comparison(
        **{
            **{f: getattr(item, f) for f in Comparison.__slots__},
            "prompt": (item.prompt[0], item.prompt[0]),
        }
    )
    (outcome,) = encode(encoder, [twice])
    assert not isinstance(outcome, TokenTree)
    assert "alternate user and assistant" in outcome.detail


def test_slots_leave_the_contents_braces_alone() -> None:
    strings = template_of("llama3", "0.9.4").strings()
    pieces = fill(strings, "", [f"what is {CONTENT}?", "{{eos}}"])
    assert f"what is {CONTENT}?" in pieces[1]
    assert pieces[2] == "{{eos}}<|eot_id|>"
    assert pieces[0] == BOS
    assert EOS not in pieces


def without_versions(folder: Path) -> None:
    (folder / "README.md").unlink()


def test_what_decides_the_score_is_asked_for_and_not_guessed(tmp_path: Path) -> None:
    folder = complete("value_head", tmp_path / "adapter")
    without_versions(folder)
    with pytest.raises(ModelError, match="do not record the LLaMA-Factory release"):
        opened(folder)
    assert (
        opened(folder, source_version="0.8.2").metadata.scored_token.rule == "before_trailing_pad"
    )
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"do not name the template.*--template"):
        opened(folder, source_version="0.8.2")
    assert (
        opened(folder, source_version="0.8.2", template="llama3").metadata.rendering.template
        == "llama3"
    )
    (folder / "chat_template.jinja").write_text("{{ raise_exception('not like that') }}")
    with pytest.raises(ModelError, match=r"do not name the template.*--template"):
        opened(folder, source_version="0.8.2")


# ---- whole models, built here


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A classifier as transformers saves one, its head three times as large as usual."""
    folder = tmp_path / "whole"
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def by_transformers(folder: Path, texts: list[str], **options: Any) -> list[float]:
    """What plain transformers gives, one text at a time."""
    network = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [
            float(
                network(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[
                    0, -1
                ]
            )
            for text in texts
        ]


ASKED = [{"role": "user", "content": "what is it?"}]
ANSWERS = ["this is better", "no"]


def conversations(model: Any) -> list[str]:
    return [
        str(
            model.tokenizer.apply_chat_template(
                [*ASKED, {"role": "assistant", "content": answer}], tokenize=False
            )
        )
        for answer in ANSWERS
    ]


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_whole_classifier_scores_as_in_plain_transformers(whole: Path) -> None:
    model = opened(whole, base=None)
    assert model.score(ASKED, ANSWERS) == pytest.approx(
        by_transformers(whole, conversations(model)), **CLOSE
    )


@pytest.mark.parametrize("version", ["4.48.3", "4.49.0"])
def test_pad_that_ends_texts_moves_the_scored_token_by_version(whole: Path, version: str) -> None:
    change_config(whole, pad_token_id=1, transformers_version=version)
    model = opened(whole, base=None)
    ids = model.tokenizer(conversations(model)[0], add_special_tokens=False)["input_ids"]
    read = up_to_scored_token(model.metadata.scored_token, np.asarray(ids, np.int32)).tolist()
    assert read == (ids[: ids.index(1)] if version == "4.48.3" else ids[:-1])
    if version == "4.49.0":
        # The installed release reads by the same rule.
        change_config(whole, transformers_version=None)
        assert model.score(ASKED, ANSWERS) == pytest.approx(
            by_transformers(whole, conversations(model)), **CLOSE
        )


def test_nemo_saves_the_bases_configuration(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A causal language model by its config.json, a classifier by its pickled weights."""
    expected = opened(whole, base=None).score(ASKED, ANSWERS)
    torch.save(load_file(whole / "model.safetensors"), whole / "pytorch_model.bin")
    (whole / "model.safetensors").unlink()
    change_config(whole, architectures=["LlamaForCausalLM"], id2label=None, label2id=None)
    assert opened(whole, base=None).score(ASKED, ANSWERS) == pytest.approx(expected, **CLOSE)
    assert "config.json names LlamaForCausalLM" in caplog.text


def test_one_of_several_outputs_is_chosen(whole: Path) -> None:
    folder = whole
    change_weights(
        folder,
        lambda tensors: {
            **tensors,
            "score.weight": torch.cat([tensors["score.weight"] * n for n in (3, 2, 1)]),
        },
    )
    labels = {"0": "help", "1": "truth", "2": "style"}
    change_config(folder, id2label=labels, label2id={v: int(k) for k, v in labels.items()})
    with pytest.raises(ModelError, match=r"3 outputs: 0 \(help\), 1 \(truth\), 2 \(style\)"):
        opened(folder, base=None)
    with pytest.raises(ModelError, match="--output 3 is not an output"):
        opened(folder, base=None, output=3)
    model = opened(folder, base=None, output=2)
    assert model.metadata.output is not None
    assert (model.metadata.output.index, model.metadata.output.name) == (2, "style")
    assert model.score(ASKED, ANSWERS) == pytest.approx(
        by_transformers(folder, conversations(model)), **CLOSE
    )


def test_a_head_of_many_objectives_is_read_without_its_code(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ArmoRM keeps its objectives in ``regression_layer``, beside a gate that needs its code."""
    expected = opened(whole, base=None).score(ASKED, ANSWERS)

    def as_armorm(tensors: dict[str, Any]) -> dict[str, Any]:
        head = tensors.pop("score.weight")
        gate = {"gating.layers.0.weight": torch.ones(2, 2), "reward_transform": torch.ones(2, 2)}
        return {**tensors, **gate, "regression_layer.weight": torch.cat([head * 7, head])}

    change_weights(whole, as_armorm)
    change_config(
        whole,
        architectures=["LlamaForRewardModelWithGating"],
        auto_map={"AutoModelForSequenceClassification": "modeling.LlamaForRewardModelWithGating"},
        id2label={str(n): f"objective {n}" for n in range(2)},
    )
    with pytest.raises(ModelError, match=r"0 \(objective 0\), 1 \(objective 1\)"):
        opened(whole, base=None)
    model = opened(whole, base=None, output=1)
    assert model.score(ASKED, ANSWERS) == pytest.approx(expected, **CLOSE)
    assert "2 tensors beside base and head are ignored (gating, reward_transform)" in caplog.text


def test_positions_that_turn_with_a_batch_bound_the_length(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond it a conversation's score would depend on its company."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    change_config(whole, rope_parameters={**rope, "original_max_position_embeddings": 32})
    assert opened(whole, base=None).metadata.max_length == 32
    assert "beyond 32 tokens its rotary embeddings depend" in caplog.text


def test_an_encoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A token classifier has a head of the same name, and no pooler for a sequence's."""
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,  # type: ignore[call-arg]
    )
    BertForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match=r"has no bert\.pooler.*another kind of model"):
        opened(tmp_path, base=None)


def test_a_bias_of_the_head_is_kept(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Token classifiers have one (verl trains them); transformers would drop it in silence."""
    expected = opened(whole, base=None).score(ASKED, ANSWERS)
    change_weights(whole, lambda tensors: {**tensors, "score.bias": torch.tensor([2.5])})
    found = opened(whole, base=None).score(ASKED, ANSWERS)
    assert found == pytest.approx([reward + 2.5 for reward in expected], **CLOSE)
    assert "has a bias (2.5)" in caplog.text


# ---- OpenRLHF


@pytest.fixture(params=["value_head", "score"])
def openrlhf(request: pytest.FixtureRequest, whole: Path) -> Path:
    """OpenRLHF's folder by both names of the head; the old name stands in no configuration."""
    prefix = request.param

    def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n.replace("score.", f"{prefix}."): t for n, t in tensors.items()}

    change_weights(whole, renamed)
    named = {"value_head_prefix": prefix} if prefix == "score" else {}
    change_config(whole, architectures=["RewardModel"], mean=0.5, std=4.0, **named)
    return whole


def test_openrlhf_is_normalised_and_its_texts_end_its_way(
    openrlhf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = opened(openrlhf, base=None, text="text")
    raw = opened(openrlhf, base=None, text="text", normalize=False)
    texts = ["what is it? this\n\n", "what is it? this </s>"]
    expected = raw_scores(openrlhf, ["what is it? this </s>"] * 2)
    assert raw.score("what is it?", [text.removeprefix("what is it?") for text in texts]) == (
        pytest.approx(expected, **CLOSE)
    )
    assert model.score("what is it?", [" this"]) == pytest.approx(
        [(expected[0] - 0.5) / 4.0], **CLOSE
    )
    assert "mean 0.5 and std 4" in caplog.text
    change_config(openrlhf, std=float("nan"))
    # The standard deviation of one evaluation row is no number.
    assert opened(openrlhf, base=None).metadata.reward_transform == RewardTransform()
    assert "are not numbers, so they are ignored" in caplog.text


def test_an_openrlhf_adapter_with_its_head_is_read_by_openrlhfs_rules(tmp_path: Path) -> None:
    folder = complete("no_task", tmp_path / "adapter")
    raw = opened(folder, text="text").score("what is it?", [" this</s>"])
    added = {"value_head_prefix": "score", "mean": 0.5, "std": 4.0}
    (folder / "config.json").write_text(json.dumps(added))
    model = opened(folder, text="text")
    assert model.metadata.origin is not None
    assert model.metadata.origin.format == "OpenRLHF"
    assert model.metadata.rendering.kind == "openrlhf"
    assert model.metadata.reward_transform == RewardTransform(scale=0.25, offset=-0.125)
    end = str(model.tokenizer.eos_token)
    found = model.score("what is it?", [f" this {end}\n"])
    assert found == model.score("what is it?", [" this"])
    assert len(raw) == len(found)


def raw_scores(folder: Path, texts: list[str]) -> list[float]:
    """The last state of each text, no special token added, times the head."""
    body, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    (head,) = [t for n, t in load_file(folder / "model.safetensors").items() if t.shape[0] == 1]
    with torch.no_grad():
        return [
            float(
                head
                @ body(
                    **tokenizer(text, add_special_tokens=False, return_tensors="pt")
                ).last_hidden_state[0, -1]
            )
            for text in texts
        ]


def test_openrlhf_without_a_head_is_refused(openrlhf: Path) -> None:
    change_config(openrlhf, value_head_prefix="score")
    change_weights(
        openrlhf,
        lambda tensors: {n: t for n, t in tensors.items() if "head" not in n and "score" not in n},
    )
    with pytest.raises(ModelError, match="has no reward head"):
        opened(openrlhf, base=None)


# ---- LLaMA-Factory, whole


def test_llama_factorys_merged_model(tmp_path: Path) -> None:
    """The merged model is a language model with the value head copied beside it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = LLAMA_FACTORY / "adapter"
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), adapter)
    folder = tmp_path / "merged"
    merged.merge_and_unload().save_pretrained(folder)
    for file in (
        adapter / "value_head.safetensors",
        *adapter.glob("*token*"),
        BASE / "chat_template.jinja",
    ):
        shutil.copy(file, folder / file.name)
    row = rows(LLAMA_FACTORY / "scores.jsonl")[0]
    model = opened(folder, base=None, source_version="0.9.5")
    assert model.score(row["prompt"], [row["chosen"], row["rejected"]]) == pytest.approx(
        row["rewards"], rel=0, abs=5e-5
    )
    assert model.metadata.kind == "full"


# ---- recognition, and what is refused


def test_each_format_is_recognised_by_its_own_row(
    tmp_path: Path, finished_run: Path, tiny_base: Path, whole: Path
) -> None:
    expected = {
        finished_run: "plaudit",
        LLAMA_FACTORY / "adapter": "LLaMA-Factory",
        TRL / "adapter": "sequence classifier adapter",
        whole: "sequence classifier",
    }
    for folder, name in expected.items():
        contents = read_contents(folder)
        assert next(row.name for row in formats() if row.recognises(contents)) == name
        assert is_reward_model(folder)
    assert not is_reward_model(tiny_base)
    assert not is_reward_model(BASE)


def test_a_base_is_no_reward_model(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a model without a reward head"):
        plaudit.load(tiny_base)
    with pytest.raises(ModelError, match="has no model"):
        plaudit.load(tmp_path)
    with pytest.raises(ModelError, match=r"nowhere does not exist"):
        plaudit.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="not on the Hub or the Hub is unreachable"):
        plaudit.load("nobody/nothing-of-that-name")


@pytest.mark.parametrize("layout", ["safetensors", "bin", "value_head"])
def test_a_hub_id_is_fetched_without_what_no_score_needs(
    layout: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickled weights only where there are no others, and never a checkpoint's state."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    source = complete("value_head", tmp_path / "source") if layout == "value_head" else whole
    torch.save({}, source / "training_args.bin")
    torch.save({"x": torch.zeros(1)}, source / "pytorch_model.bin")
    if layout == "bin":
        torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    (source / "checkpoint-1").mkdir()
    (source / "checkpoint-1" / "config.json").write_text("{}")
    fetched = tmp_path / "fetched"

    def fetch(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == "someone/model"
        names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
        for kept in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (fetched / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / kept, fetched / kept)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    base = BASE if layout == "value_head" else None
    expected = opened(source, base=base).score(ASKED, ANSWERS)
    assert opened(Path("someone/model"), base=base).score(ASKED, ANSWERS) == expected
    assert not (fetched / "training_args.bin").exists()
    assert not (fetched / "checkpoint-1").exists()
    assert (fetched / "pytorch_model.bin").exists() == (layout == "bin")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(LLAMA_FACTORY / "adapter_old_layout", folder)
    mark = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (mark,))

    torch.save({"v_head.summary.weight": Attack()}, folder / "value_head.bin")
    with pytest.raises(ModelError, match="never executes pickle code"):
        opened(folder)
    assert not mark.exists()
    for damage in (b"", b"not a pickle", b"\x80\x02]q\x00."):
        (folder / "value_head.bin").write_bytes(damage)
        with pytest.raises(ModelError, match=r"value_head\.bin"):
            opened(folder)


@pytest.mark.parametrize("damage", [{"hidden_size": -1}, {"attention_bias": "perhaps"}])
def test_a_configuration_of_wrong_values_is_refused(damage: dict[str, Any], whole: Path) -> None:
    change_config(whole, **damage)
    with pytest.raises(ModelError, match=r"has no usable config\.json"):
        opened(whole, base=None)


def test_adapter_settings_of_wrong_values_are_refused(tmp_path: Path) -> None:
    folder = complete("seq_cls", tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["modules_to_save"] = -1
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="does not fit its base"):
        opened(folder)


def test_an_index_without_shards_is_refused(whole: Path) -> None:
    (whole / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"index\.json has no weight_map"):
        opened(whole, base=None)


def test_another_trainers_checkpoint_is_not_taken_for_plaudits(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "checkpoint-12"
    shutil.copytree(TRL / "adapter", folder)
    facts = opened(folder).metadata
    assert facts.origin is not None
    assert facts.origin.format == "sequence classifier adapter"


def test_another_base_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match=r"has 400 tokens; use the tokenizer of this base"):
        opened(LLAMA_FACTORY / "adapter", base=tiny_base)
    with pytest.raises(ModelError, match=r"tiny-llama.*--base"):
        opened(LLAMA_FACTORY / "adapter", base=None)


def test_a_value_head_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(LLAMA_FACTORY / "adapter", folder)
    save_file({"weight": torch.zeros(1, 128)}, folder / "value_head.safetensors")
    with pytest.raises(ModelError, match=r"holds weight; expected v_head\.summary\.weight"):
        opened(folder)


def test_load_arguments_are_the_fields_of_its_options() -> None:
    assert LoadArguments.__annotations__.keys() == {f.name for f in fields(LoadOptions)}


def test_an_old_argument_names_the_new_one() -> None:
    old: dict[str, Any] = {"era": "0.8.2"}
    with pytest.raises(ModelError, match="was renamed to source_version"):
        plaudit.load("anywhere", **old)


def test_options_do_not_change_plaudits_own(finished_run: Path) -> None:
    with pytest.raises(ModelError, match="records these settings; remove source_version"):
        opened(finished_run, base=None, source_version="0.8.2")


def test_a_template_that_renders_today_is_frozen(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = whole / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %b %Y') }}" + path.read_text())
    model = opened(whole, base=None)
    assert "26 Jul 2024" in conversations(model)[0]
    assert "renders the current date; plaudit uses 2024-07-26" in caplog.text


OWN_CODE = """
from pathlib import Path
from transformers import AutoModel, LlamaConfig, LlamaForSequenceClassification, LlamaModel

Path(__file__).with_name("ran").touch()


class TwinConfig(LlamaConfig):
    model_type = "plaudit_twin"


class TwinForSequenceClassification(LlamaForSequenceClassification):
    config_class = TwinConfig


class TwinModel(LlamaModel):
    config_class = TwinConfig


AutoModel.register(TwinConfig, TwinModel, exist_ok=True)
"""


def test_a_models_own_code_runs_only_when_asked(whole: Path, tmp_path: Path) -> None:
    expected = opened(whole, base=None).score(ASKED, ANSWERS)
    mark = tmp_path / "ran"
    code = OWN_CODE.replace('Path(__file__).with_name("ran")', f"Path({str(mark)!r})")
    (whole / "modeling_twin.py").write_text(code)
    change_config(
        whole,
        model_type="plaudit_twin",
        architectures=["TwinForSequenceClassification"],
        auto_map={
            "AutoConfig": "modeling_twin.TwinConfig",
            "AutoModelForSequenceClassification": "modeling_twin.TwinForSequenceClassification",
        },
    )
    with pytest.raises(ModelError, match="trust_remote_code"):
        plaudit.load(whole)
    assert not mark.exists()
    model = plaudit.load(whole, trust_remote_code=True)
    assert mark.exists()
    assert model.metadata.trust_remote_code
    assert model.score(ASKED, ANSWERS) == pytest.approx(expected, **CLOSE)
    with pytest.raises(ModelError, match="custom Python code, which an import does not copy"):
        import_model(whole, tmp_path / "out", ReadOptions(trust_remote_code=True))


def test_a_head_with_code_of_its_own_is_named(whole: Path) -> None:
    change_weights(whole, lambda t: {n.replace("score.", "v_head."): x for n, x in t.items()})
    with pytest.raises(ModelError, match="whose head needs custom code"):
        plaudit.load(whole)


# ---- the rules of reading


@pytest.mark.parametrize(
    ("rule", "ids", "read"),
    [
        ("last", [5, 6, 1], [5, 6, 1]),
        ("before_trailing_pad", [5, 1, 6, 1, 1], [5, 1, 6]),
        ("before_trailing_pad", [5, 6], [5, 6]),
        ("before_trailing_pad", [1, 1], [1]),
        ("first_pad", [5, 1, 6, 1], [5]),
        ("first_pad", [5, 6], [5, 6]),
        ("first_pad", [1, 5], [1, 5]),
    ],
)
def test_a_conversation_is_cut_behind_the_token_that_is_read(
    rule: Any, ids: list[int], read: list[int]
) -> None:
    scored_token = ScoredTokenRule(rule=rule, pad_id=None if rule == "last" else 1)
    assert up_to_scored_token(scored_token, np.asarray(ids, np.int32)).tolist() == read
