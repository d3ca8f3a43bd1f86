"""From a recipe's model section to a reward module: base, dropout off, head, LoRA, attention."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from plaudit.errors import ModelError
from plaudit.model.module import (
    classifier,
    has_score_head,
)
from plaudit.storage.atomic import missing_path

logger = logging.getLogger("plaudit")

# What transformers, tokenizers and safetensors raise for files that are missing, damaged or of
# another kind. RuntimeError is a tensor of another shape, StrictDataclassError a configuration
# whose values are of the wrong type.
LIBRARY_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)

# Tokens that vocabularies reserve and texts never hold, in the order they are tried.
SPARE_TOKENS = (
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
    "<|padding|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<unk>",
    "<|dummy_0|>",
)


HEADS = ("score", "classifier")
"""What transformers calls the head of a sequence classifier: of a decoder, of an encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRequest:
    """Which base to load and how; plain values, so that every stage above can make one."""

    base: str
    revision: str | None = None
    dtype: torch.dtype = torch.float32
    quantize: Literal["4bit"] | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    """Where a base is quantized: each rank does it on its own device."""
    head_init: Literal["zero", "normal"] = "zero"
    trust_remote_code: bool = False
    outputs: tuple[str, ...] = ()
    """Names of the outputs of a head that has several; a head of another shape is replaced."""
    foreign_head: bool = False
    """The caller sets the head: what the files hold under its name may be of another shape."""


def load_tokenizer(
    base: str, *, revision: str | None, trust_remote_code: bool, pad_token: str | None
) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the right with a token that is not the end token.

    With pad = eos the scored position moves: transformers reads the token before the end, older
    releases the end of an earlier turn (huggingface/trl issue 2758).

    Raises:
        ModelError: no tokenizer there, or no token that could pad.
    """
    tokenizer = read_tokenizer(base, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer.pad_token = choose_pad_token(tokenizer, pad_token, base)
    return tokenizer


def read_tokenizer(
    base: str, *, revision: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer as its files have it, but padding on the right.

    Raises:
        ModelError: no tokenizer there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base, revision=revision, trust_remote_code=trust_remote_code
        )
    except LIBRARY_ERRORS as error:
        raise ModelError(
            f"{base} has no usable tokenizer ({first_line(error)}); model.base must be a folder"
            " or Hub id with tokenizer files beside the weights."
        ) from None
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    tokenizer.padding_side = "right"
    return tokenizer


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, asked: str | None, base: str) -> str:
    """The asked-for token, the tokenizer's own if distinct from the end token, or a spare one."""
    vocabulary = tokenizer.get_vocab()
    if asked is not None:
        if asked not in vocabulary or asked == tokenizer.eos_token:
            raise ModelError(
                f"tokens.pad_token {asked!r} is not in the vocabulary of {base}, or is its end"
                " token; choose a token of the vocabulary that does not end texts."
            )
        return asked
    own = tokenizer.pad_token
    if own is not None and own != tokenizer.eos_token:
        return str(own)
    for spare in (*SPARE_TOKENS, tokenizer.unk_token, tokenizer.bos_token):
        if spare is not None and spare in vocabulary and spare != tokenizer.eos_token:
            return str(spare)
    raise ModelError(
        f"{base} has no padding token other than its end token; set tokens.pad_token to a token"
        " of its vocabulary that does not end texts."
    )


def load_config(request: BaseRequest) -> Any:
    """The base's configuration for one label or the outputs asked for, every dropout off.

    Raises:
        ModelError: no readable configuration there.
    """
    try:
        config = AutoConfig.from_pretrained(
            request.base,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
            **({} if request.outputs else {"num_labels": 1}),
        )
    except LIBRARY_ERRORS as error:
        raise ModelError(
            f"{no_config(request.base, first_line(error))}; model.base must be a transformers "
            "model folder or a Hub id."
        ) from None
    if request.outputs:
        # As an argument, it is a warning where the base has names for another number of labels.
        config.num_labels = len(request.outputs)
    for name, value in vars(config).items():
        silent = "dropout" in name or name.endswith(("pdrop", "layerdrop"))
        if silent and isinstance(value, float):
            setattr(config, name, 0.0)
    if is_soft_capped(config):
        # Before 5.23 transformers ran such models in SDPA, which leaves the soft-cap out.
        config._attn_implementation = "eager"
    return config


def is_soft_capped(config: Any) -> bool:
    """Whether attention logits are soft-capped (Gemma 2), which SDPA cannot express."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def no_config(base: str, reason: str) -> str:
    """Why a base has no configuration, as half a sentence; ``reason`` is the library's."""
    if Path(base).is_dir():
        return f"{base} has no usable config.json ({reason})"
    missing = missing_path(base)
    if missing is not None:
        return missing
    return f"{base} is not a local folder and was not found on the Hub ({reason})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBase:
    """A one-label classifier, and whether its head is new (else its checkpoint's, kept).

    ``missing`` names the tensors that no file held.
    """

    network: nn.Module
    fresh_head: bool
    missing: frozenset[str] = frozenset()


@contextmanager
def silence_load_messages() -> Iterator[None]:
    """Two messages about loading are dropped: false here, or about code that is not the caller's.

    transformers reports ``score.weight`` as newly initialized before PEFT loads the trained head
    from the adapter (huggingface/peft issue 2367). TRL drops that report too (huggingface/trl pull
    request 5058). What is missing or misshapen is checked by plaudit, as an error. And PEFT 0.21
    asks models for an attribute that transformers 5.23 calls deprecated.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter = logging.getLogger("transformers.modeling_utils")
    reporter.addFilter(is_other)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            yield
    finally:
        reporter.removeFilter(is_other)


def load_base(request: BaseRequest, *, pad_id: int) -> LoadedBase:
    """The base as a one-label classifier with a fresh head, or the head its checkpoint has.

    Raises:
        ModelError: no weights, no classification class for the architecture, a head for several
            labels, or 4-bit asked for where bitsandbytes is missing.
    """
    config = load_config(request)
    known = config.get_text_config().vocab_size
    if pad_id >= known:
        raise ModelError(
            f"The tokenizer's padding token has id {pad_id}, but {request.base} has {known}"
            " tokens; use the tokenizer of this base."
        )
    config.pad_token_id = pad_id
    _leave_head_whole(config)
    options: dict[str, Any] = {"dtype": request.dtype}
    if request.quantize is not None:
        options["quantization_config"] = _four_bit(request.dtype)
        options["device_map"] = {"": request.device}
    try:
        with silence_load_messages():
            network, info = AutoModelForSequenceClassification.from_pretrained(
                request.base,
                config=config,
                revision=request.revision,
                trust_remote_code=request.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=request.foreign_head or bool(request.outputs),
                **options,
            )
    except LIBRARY_ERRORS as error:
        raise ModelError(
            f"{request.base} cannot be loaded as a sequence classifier with one label"
            f" ({first_line(error)}); expected weights (model.safetensors) of an architecture"
            " with a sequence classification class in transformers."
        ) from None
    _compute_four_bits_by_dequantizing(network)
    _check_missing_weights(request.base, network, set(info["missing_keys"]))
    head_name, head = output_layer(network)
    mismatched = _mismatched_heads(request.base, head_name, info["mismatched_keys"])
    missing = frozenset(info["missing_keys"]) | mismatched
    fresh_head = f"{head_name}.weight" in missing
    names = tuple(name for _, name in sorted(network.config.id2label.items()))
    if request.outputs and names != request.outputs:
        # As many outputs of other names, such as the classes of a classifier.
        fresh_head = True
        network.config.id2label = dict(enumerate(request.outputs))
        network.config.label2id = {name: number for number, name in enumerate(request.outputs)}
    if fresh_head:
        init_head(head, request.head_init)
    for name in head_modules(network):
        _run_in_fp32(network.get_submodule(name))
    return LoadedBase(network=network, fresh_head=fresh_head, missing=missing)


def longest_input(network: nn.Module) -> int | None:
    """Tokens that learned positions reach; None for rotary and relative ones, which have no end."""
    tables = [
        child
        for name, child in network.named_modules()
        if isinstance(child, nn.Embedding)
        and name.rpartition(".")[2] in ("position_embeddings", "embed_positions", "wpe")
    ]
    # A table with a padding index (RoBERTa's) starts counting behind it.
    reaches = [
        t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables
    ]
    return min(reaches, default=None)


def check_max_length(network: nn.Module, max_length: int) -> None:
    """Conversations longer than the learned positions would stop the run in its middle.

    Raises:
        ModelError: ``max_length`` is over what the model can read.
    """
    limit = longest_input(network)
    if limit is not None and max_length > limit:
        raise ModelError(
            f"tokens.max_length is {max_length}, but this base supports {limit} positions; set it"
            f" to {limit} or less."
        )
    turning = batch_independent_length(classifier(network).config)
    if turning is not None and max_length > turning:
        raise ModelError(
            f"tokens.max_length is {max_length}, but beyond {turning} tokens the rotary"
            " embeddings of this base depend on the longest sequence of a batch, so scores would"
            f" depend on the other sequences in the batch; set it to {turning} or less."
        )


def batch_independent_length(config: Any) -> int | None:
    """Tokens up to which rotary positions do not depend on the batch; None where they never do.

    transformers' dynamic and longrope frequencies look at the largest position of the whole batch.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    kinds = [rope] if "rope_type" in rope else [one for one in rope.values() if one]
    turning = [
        int(one.get("original_max_position_embeddings") or config.max_position_embeddings)
        for one in kinds
        if isinstance(one, Mapping) and one.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(turning, default=None)


def check_token_ids(network: nn.Module, largest_id: int, base: str) -> None:
    """An id beyond the embedding table would stop a device in the middle of a step.

    Raises:
        ModelError: the tokenizer knows tokens that the model does not.
    """
    rows = classifier(network).get_input_embeddings().num_embeddings
    if largest_id >= rows:
        raise ModelError(
            f"The tokenizer of {base} has token id {largest_id}, but the model has embeddings for"
            f" {rows} tokens; use the tokenizer of this model, or resize its embeddings."
        )


def _check_missing_weights(base: str, network: nn.Module, missing: set[str]) -> None:
    """A body whose tensors were not in the files would train from noise without a word."""
    prefix = f"{network.base_model_prefix}."
    absent = sorted(key for key in missing if key.startswith(prefix) and "pooler" not in key)
    if absent:
        raise ModelError(
            f"{base} lacks {len(absent)} of the model's tensors (first: {absent[0]}), which would"
            " be initialized at random; use a folder with the whole model."
        )


def _mismatched_heads(base: str, head: str, mismatched: Iterable[Any]) -> frozenset[str]:
    """Where the head may be of another shape, nothing else may.

    Raises:
        ModelError: something else is.
    """
    # transformers gives names, or names with the two shapes.
    names = {str(item[0] if isinstance(item, tuple) else item) for item in mismatched}
    others = sorted(name for name in names if not name.startswith(f"{head}."))
    if others:
        raise ModelError(
            f"{base} has {others[0]} in another shape than its config.json says; use weights and"
            " a config.json of the same model."
        )
    return frozenset(names)


def output_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """The linear layer whose one output is the reward, with its name in the classifier.

    A decoder's is ``score``; an encoder's is ``classifier`` or the last layer inside it.
    """
    head = "score" if has_score_head(network) else "classifier"
    layers = _linear_layers(network, [head])
    if not layers:
        raise ModelError(
            f"{type(network).__name__} has neither a score nor a classifier head; choose another"
            " base."
        )
    return layers[-1]


def _linear_layers(network: nn.Module, modules: Sequence[str]) -> list[tuple[str, nn.Linear]]:
    """The linear layers of some modules of a network, with their names in it."""
    return [
        (name, child)
        for name, child in network.named_modules()
        if isinstance(child, nn.Linear) and f"{name}.".startswith(tuple(f"{m}." for m in modules))
    ]


def head_modules(network: Any) -> list[str]:
    """What a classifier has on top of its body, and the body's pooler: trained and saved whole.

    A checkpoint of a bare encoder holds no pooler and none of these layers, so they start random;
    an adapter that did not carry them would reload with other random ones.
    """
    body = network.base_model
    heads = [
        name
        for name, child in network.named_children()
        if child is not body and any(True for _ in child.parameters())
    ]
    inside = f"{network.base_model_prefix}.pooler"
    return heads + [name for name, _ in network.named_modules() if name == inside]


def _run_in_fp32(head: nn.Module) -> None:
    """Keep a head in fp32 on a half-precision body: its input is widened where it enters."""
    head.float()
    head.register_forward_pre_hook(_widened)


def _widened(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def init_head(head: nn.Linear, kind: Literal["zero", "normal"]) -> None:
    """Zero scores at the start, or N(0, 1/(D+1))."""
    if kind == "zero":
        nn.init.zeros_(head.weight)
    else:
        nn.init.normal_(head.weight, std=1.0 / (head.in_features + 1))
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def check_four_bit() -> None:
    """Whether a base can be quantized here.

    Raises:
        ModelError: no bitsandbytes.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            "model.quantize: 4bit needs bitsandbytes; install it with pip install 'plaudit[gpu]'."
        )


def _four_bit(dtype: torch.dtype) -> Any:
    check_four_bit()
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(HEADS),
    )


def is_quantized(config: Any) -> bool:
    """Whether the weights of a base are stored quantized."""
    return getattr(config, "quantization_config", None) is not None


def _leave_head_whole(config: Any) -> None:
    """Add the heads to what a base that is stored quantized leaves alone.

    Its list is of a language model, so it misses them, and a quantized head crashes or degrades.
    transformers 5 ignores a list that is passed beside it (unslothai/unsloth issue 5027).
    """
    settings = config.quantization_config if is_quantized(config) else {}
    for key in ("llm_int8_skip_modules", "modules_to_not_convert"):
        # Without a list, transformers itself leaves the output layer alone.
        if settings.get(key):
            settings[key] = [*settings[key], *(h for h in HEADS if h not in settings[key])]


def _compute_four_bits_by_dequantizing(network: nn.Module) -> None:
    """Keep bitsandbytes from its own CPU kernel, for which it repacks weights at an evaluation.

    The kernel has no backward pass, so training after an evaluation would lose gradients without an
    error, and it needs widths that are multiples of 64 (bitsandbytes 0.50, AVX-512 BF16).
    """
    for layer in network.modules():
        if "support_avx512bf16_for_cpu" in vars(layer):
            setattr(layer, "support_avx512bf16_for_cpu", False)  # noqa: B010


def check_lora(config: Any, options: Mapping[str, Any]) -> None:
    """Whether LoRA's target modules are in a base, by its configuration alone.

    The classifier is built without storage (meta device). A base that needs its own code to be
    built is checked when it is loaded.

    Raises:
        ModelError: a name in ``target_modules`` matches no module.
    """
    try:
        with torch.device("meta"):
            network: nn.Module = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    except LIBRARY_ERRORS:
        return
    check_target_modules(network, options.get("target_modules"))


def check_target_modules(network: nn.Module, targets: str | Sequence[str] | None) -> None:
    """Whether every target is in a classifier; PEFT is content with one of a list.

    Raises:
        ModelError: a name or a regular expression matches no module.
    """
    if targets is None or targets == "all-linear":
        return
    names = [name for name, _ in network.named_modules()]
    if isinstance(targets, str):
        absent = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        ends = {name for name in targets for known in names if f".{known}".endswith(f".{name}")}
        absent = [name for name in targets if name not in ends]
    if not absent:
        return
    linear = dict.fromkeys(
        name.rpartition(".")[2]
        for name, child in network.named_modules()
        if isinstance(child, nn.Linear) and name.count(".") > 1
    )
    hint = (
        "write several names as a YAML list"
        if "," in absent[0]
        else "all-linear selects all of them"
    )
    raise ModelError(
        f"lora.target_modules: {', '.join(absent)} matches no module of this base; its linear "
        f"layers are {', '.join(linear)} ({hint})."
    )


def add_lora(network: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """PEFT's LoRA over the classifier, the whole head trained and saved beside it.

    ``options`` are ``peft.LoraConfig``'s own. ``modules_to_save`` always holds the head
    (:func:`head_modules`), because an adapter without it reloads with a random one (trl issue
    1379); LoRA then leaves the head alone. The body is frozen and keeps its dtypes, quantized or
    not: PEFT's ``prepare_model_for_kbit_training`` would widen it, and all activations with it.

    Raises:
        ModelError: PEFT rejects the options for this architecture.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    check_target_modules(network, options.get("target_modules"))
    heads = head_modules(network)
    saved = [*heads, *(n for n in options.get("modules_to_save") or () if n not in heads)]
    chosen = {
        **{k: v for k, v in options.items() if k != "modules_to_save"},
        "exclude_modules": _without_heads(network, heads, options.get("exclude_modules")),
    }
    try:
        config = LoraConfig(task_type=TaskType.SEQ_CLS, modules_to_save=saved, **chosen)
        # PEFT keeps adapter weights in fp32 on a half-precision body (autocast_adapter_dtype).
        with silence_load_messages():
            return get_peft_model(network, config)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"lora: PEFT rejected these settings ({first_line(error).rstrip('.')});"
            f" target_modules is {options.get('target_modules')!r}."
        ) from None


def _without_heads(
    network: nn.Module, heads: Sequence[str], asked: str | Sequence[str] | None
) -> str | list[str] | None:
    """``exclude_modules`` with the layers of the heads added: PEFT cannot both adapt and save."""
    if has_score_head(network):
        # PEFT itself leaves a head of this name alone.
        return asked if asked is None or isinstance(asked, str) else list(asked)
    layers = [name for name, _ in _linear_layers(network, heads)]
    if isinstance(asked, str):
        return "|".join([asked, *(re.escape(name) for name in layers)])
    return [*(asked or ()), *layers]


def freeze_layers(network: nn.Module, count: int) -> None:
    """Keep the embeddings and the first ``count`` layers of a classifier as they are.

    Raises:
        ModelError: it has fewer layers than that, or layers that transformers does not mark.
    """
    if not count:
        return
    body = classifier(network).base_model
    layers = [one for one in body.modules() if isinstance(one, GradientCheckpointingLayer)]
    if count > len(layers):
        raise ModelError(
            f"model.freeze_layers is {count}, but this base has {len(layers)} layers; set it to"
            f" {len(layers)} or less."
        )
    embeddings = [one for one in body.modules() if isinstance(one, nn.Embedding)]
    for frozen in (*embeddings, *layers[:count]):
        frozen.requires_grad_(False)


def trainable_parameters(network: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters, the head's frozen original not counted twice.

    4-bit weights are counted as the parameters they stand for.
    """
    trainable = total = 0
    for name, parameter in network.named_parameters():
        if ".original_module." in name:
            continue
        size = parameter.numel()
        if parameter.__class__.__name__ == "Params4bit":
            size *= 2
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def dropouts_off(network: nn.Module, *, keep_lora: bool) -> None:
    """Every dropout module silent, except LoRA's own where the recipe asked for it."""
    for name, child in network.named_modules():
        if isinstance(child, nn.Dropout) and not (keep_lora and "lora_dropout" in name):
            child.p = 0.0


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
