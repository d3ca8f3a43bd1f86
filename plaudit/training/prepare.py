"""Everything a run needs before its first step: arguments, data, tokens, model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from plaudit import embedded, registry
from plaudit.data.load import SourceUse, for_other_objectives
from plaudit.errors import ModelError, RecipeError
from plaudit.evaluate_model import progress_bars
from plaudit.interop.formats import OpenedModel, ReadOptions, is_reward_model, open_reward_model
from plaudit.losses.loss import Loss, Start
from plaudit.losses.outputs import HeadLoss, HeadStart, head_start_of, output_names
from plaudit.model.checkpoint import CheckpointMetadata, copy_base, resolve_base
from plaudit.model.fast.kernels import apply_liger, compile_layers
from plaudit.model.language import read_language_head
from plaudit.model.load import (
    BaseRequest,
    LoadedBase,
    add_lora,
    check_four_bit,
    check_lora,
    check_max_length,
    check_token_ids,
    choose_pad_token,
    dropouts_off,
    freeze_layers,
    is_quantized,
    load_base,
    load_config,
    load_tokenizer,
    trainable_parameters,
)
from plaudit.model.module import DecoderRewardModule, RewardModule, classifier
from plaudit.model.packing import Prepared, choose_layout, patch_modules
from plaudit.model.precision import dtype_on, has_bf16
from plaudit.planning.measure import CudaMeter
from plaudit.planning.microbatch import MicroBatches
from plaudit.recipe.load import dump_recipe
from plaudit.recipe.objectives import LearnsFrom
from plaudit.recipe.schema import (
    LORA_DEFAULTS,
    DataSection,
    LossSection,
    ModelSection,
    Recipe,
    TemplateSection,
    TokensSection,
)
from plaudit.storage.manifest import check_model
from plaudit.tokens.batch import TokenBatcher, make_batchers
from plaudit.tokens.encode import Encoder
from plaudit.tokens.rendering import NamedTemplate, Renderer, freeze_dates
from plaudit.tokens.store import StoredTrees
from plaudit.training import corpus as corpora
from plaudit.training.budget import BudgetRequest, decide_micro_batches, unmeasured
from plaudit.training.corpus import Corpus
from plaudit.training.folder import RunFolder, check_data_unchanged, is_main_process
from plaudit.training.needs import read_template
from plaudit.training.sharding import fsdp_settings, reshard, shard
from plaudit.types import Outputs, Rendering, RewardTransform, ScoredTokenRule, TrainedObjective

logger = logging.getLogger("plaudit")


@dataclass
class StepArguments(TrainingArguments):
    """TrainingArguments whose batch is a whole optimizer step.

    The ``user_`` fields are the user's values of what the Trainer must not act on itself; logging
    integrations record those.
    """

    user_batch_size: int = 1
    user_accumulation: int = 1
    user_liger: dict[str, Any] | None = None
    user_compile: bool = False
    user_backend: str | None = None
    user_mode: str | None = None

    @property
    def autocast(self) -> torch.dtype | None:
        """The precision that weights of a higher one compute in; None for their own."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else None

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        record["per_device_train_batch_size"] = record.pop("user_batch_size")
        record["gradient_accumulation_steps"] = record.pop("user_accumulation")
        record["liger_kernel_config"] = record.pop("user_liger")
        record["use_liger_kernel"] = record["liger_kernel_config"] is not None
        record["torch_compile"] = record.pop("user_compile")
        record["torch_compile_backend"] = record.pop("user_backend")
        record["torch_compile_mode"] = record.pop("user_mode")
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """Everything a run needs before its first step."""

    folder: RunFolder
    recipe: Recipe
    recorded_recipe: str
    """The recipe as the run folder holds it, as YAML. ``recipe`` has a warm start's own LoRA."""
    base: str
    args: StepArguments
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    warm_start: OpenedModel | None
    built: Built
    started: datetime


def prepare(
    recipe: Recipe, args: StepArguments, folder: RunFolder, console: Console
) -> PreparedRun:
    """Cheap checks first: of the base's configuration, then of the data, then of its weights."""
    started, recorded_recipe = datetime.now(UTC), dump_recipe(recipe)
    set_seed(args.seed)
    if recipe.model.quantize is not None:
        check_four_bit()
    warm_start = open_warm_start(recipe.model)
    if warm_start is not None:
        check_warm_outputs(warm_start.metadata.outputs, recipe)
    base = (
        place_base(recipe.model.base, folder)
        if warm_start is None
        else place_warm_start(warm_start, Path(recipe.model.base), folder)
    )
    check_model(Path(base))
    request = BaseRequest(
        base=base,
        revision=recipe.model.revision,
        dtype=dtype_on(recipe.model.dtype, args.device, recipe.method),
        quantize=recipe.model.quantize,
        device=args.device,
        head_init=recipe.head_init,
        outputs=output_names(recipe.loss),
        trust_remote_code=recipe.model.trust_remote_code,
    )
    config = load_config(request)
    if recipe.lora is None and is_quantized(config):
        raise RecipeError(
            f"lora is null, but the weights of model.base {recipe.model.base} are stored quantized"
            " and cannot be trained; add a lora section, or choose another base."
        )
    if recipe.lora is not None and (warm_start is None or warm_start.metadata.kind == "full"):
        check_lora(config, recipe.lora)
    tokenizer = prepare_tokenizer(recipe.model, recipe.tokens, base, warm_start)
    with console.status("reading data") as status:
        comparisons = corpora.read_comparisons(
            recipe.data,
            recipe.loss,
            on_read=lambda name, rows: status.update(f"reading {name}: {rows:,} rows"),
        )
    check_data_unchanged(folder, *corpora.fingerprints(comparisons))
    encoder = make_encoder(recipe.tokens, tokenizer, warm_start, as_chat=recipe.data.as_chat)
    with progress_bars(console) as show:
        corpus = corpora.encode_corpus(
            encoder,
            comparisons,
            ignored=corpora.ignored_labels(recipe.loss),
            copy_seed=recipe.data.seed if recipe.loss.consistency else None,
            on_rows=partial(show, "encoding"),
        )
    if recipe.loss.outputs:
        corpora.check_outputs(corpus, recipe.loss)
    else:
        corpora.check_ratings(corpus, recipe.loss.kind)
    corpora.check_best_metric(corpus, recipe.loss, args.metric_for_best_model)
    for line in _about_data(corpus, recipe.data, recipe.tokens):
        console.print(line, soft_wrap=True)
    if recipe.loss.consistency:
        copied = int(np.count_nonzero(corpus.train.trees.lengths("copies")))
        console.print(
            f"copies: {copied:,} of {len(corpus.train.trees):,} training comparisons have a"
            " rewritten copy of a response (loss.consistency)",
            highlight=False,
            soft_wrap=True,
        )
    texts, total = corpora.plain_texts(corpus)
    remark = text_remark(encoder, recipe.data.as_chat, texts, total)
    if remark is not None:
        logger.warning("%s", remark)
    with console.status(f"loading {recipe.model.base}"):
        built = _build_model(recipe, request, tokenizer, args, corpus, folder, warm_start)
    if recipe.lora and warm_start is not None and warm_start.metadata.kind == "adapter":
        # The run records the LoRA settings that are trained, not those asked for.
        own = adapter_settings(built.model.module.network, recipe.lora)
        recipe = recipe.model_copy(update={"lora": own})
    trainable, total = built.parameters
    console.print(
        f"model: {trainable:,} of {total:,} parameters trainable ({trainable / total:.2%}), "
        f"{built.model.layout} batches",
        highlight=False,
        soft_wrap=True,
    )
    if args.device.type != "cpu":
        sentence = built.micro_batches.sentence()
        console.print(f"micro-batches: {sentence}", highlight=False, soft_wrap=True)
    return PreparedRun(
        folder=folder,
        recipe=recipe,
        recorded_recipe=recorded_recipe,
        base=base,
        args=args,
        corpus=corpus,
        tokenizer=tokenizer,
        encoder=encoder,
        warm_start=warm_start,
        built=built,
        started=started,
    )


def named_template(named: TemplateSection) -> NamedTemplate:
    """The template as its release had it.

    Raises:
        RecipeError: the tool has no templates of its own, none of that name, or none yet then.
    """
    renderer: Renderer = registry.find("renderer", named.tool)
    if renderer.template is None:
        raise RecipeError(
            f"tokens.template: {named.tool} has no templates of its own; remove it, or set"
            " tokens.chat_template to a Jinja file."
        )
    try:
        return renderer.template(named.name, named.release)
    except ModelError as error:
        raise RecipeError(f"tokens.template: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The model of a run, its batcher, parameters (trainable, all), where its head began, and the
    loss and where its own parameters start.
    """

    model: Prepared
    batcher: TokenBatcher
    micro_batches: MicroBatches
    parameters: tuple[int, int]
    head_init: str
    loss: HeadLoss
    start: HeadStart


def _build_model(
    recipe: Recipe,
    request: BaseRequest,
    tokenizer: PreTrainedTokenizerBase,
    args: StepArguments,
    corpus: Corpus,
    folder: RunFolder,
    warm_start: OpenedModel | None,
) -> Built:
    assert isinstance(tokenizer.pad_token_id, int)
    loaded = (
        load_base(request, pad_id=tokenizer.pad_token_id)
        if warm_start is None
        else load_warm_start(warm_start, recipe.model.base, recipe.lora, request.dtype)
    )
    network = loaded.network
    check_max_length(network, recipe.tokens.max_length)
    largest_id = max(int(part.trees.column("largest_id").max()) for part in corpus.every)
    check_token_ids(network, max(largest_id, tokenizer.pad_token_id), recipe.model.base)
    if recipe.lora is not None and not hasattr(network, "peft_config"):
        network = add_lora(network, recipe.lora)
    freeze_layers(network, recipe.model.freeze_layers)
    dropouts_off(network, keep_lora=True)
    parameters = trainable_parameters(network)
    sharing = fsdp_settings(args)
    if request.quantize is None and sharing is None:
        network.to(args.device)
    if args.user_liger is not None:
        apply_liger(network, args.user_liger, args.device)
    if args.user_compile:
        compile_layers(network, backend=args.user_backend, mode=args.user_mode)
    batchers = make_batchers(
        recipe.tokens.max_tokens_per_microbatch, args.device, tokenizer.pad_token_id
    )
    start = head_start_of(recipe.loss, corpus.train.trees)
    # A head that predicts already is left alone; the embedded base's was never asked for ratings.
    own_head = not loaded.fresh_head and recipe.model.base != embedded.NAME
    transform = RewardTransform(offset=0.0 if own_head else start.objective.offset)
    if own_head and start.outputs is not None:
        unmoved = replace(start.outputs, offsets=(0.0,) * len(start.outputs.names))
        start = replace(start, outputs=unmoved)
    if warm_start is not None:
        transform = warm_start.metadata.reward_transform
        start = _go_on_from(start, warm_start.metadata, recipe.loss)
    module = patch_modules(network, transform, start.outputs)
    if recipe.loss.language_model:
        add_language_head(module, request, args)
    if sharing is not None:
        shard(module, sharing, args, args.autocast)
    model = choose_layout(
        module,
        recipe.model.attention,
        packed=batchers["packed"],
        padded=batchers["padded"],
        autocast=args.autocast,
    )
    if sharing is not None:
        reshard(module)
    batcher = batchers[model.layout]
    # Where a pass needs all ranks, one that runs out of memory would leave the others waiting.
    wrapped = sharing is not None or args.deepspeed_plugin is not None
    micro_batches = folder.recorded_micro_batches()
    if micro_batches is None or micro_batches.asked != recipe.microbatch_tokens:
        micro_batches = _decide(model.module, batcher, corpus.train.trees, recipe, args, wrapped)
        folder.record_micro_batches(micro_batches)
    elif micro_batches.checkpointed_layers is not None:
        model.module.checkpoint_layers(micro_batches.checkpointed_layers)
    batcher = make_batchers(micro_batches.tokens, args.device, tokenizer.pad_token_id)[model.layout]
    return Built(
        model=model,
        batcher=batcher,
        micro_batches=micro_batches,
        parameters=parameters,
        head_init=recipe.head_init if loaded.fresh_head else "the base's own",
        loss=HeadLoss(
            of_output=Loss(
                options=recipe.loss,
                levels=start.objective.levels,
                length_unit=start.objective.length_unit,
            ),
            seed=args.seed,
        ),
        start=start,
    )


def add_language_head(module: RewardModule, request: BaseRequest, args: StepArguments) -> None:
    """Give a module the language-model head of its base.

    Raises:
        RecipeError: an encoder, or a run under FSDP or DeepSpeed.
        ModelError: the base has no such head.
    """
    if not isinstance(module, DecoderRewardModule):
        raise RecipeError(
            f"loss.language_model: {request.base} is an encoder, which predicts no next token;"
            " remove it, or choose a decoder."
        )
    if fsdp_settings(args) is not None or args.deepspeed_plugin is not None:
        raise RecipeError(
            "loss.language_model: FSDP and DeepSpeed split the language-model head; remove it, or"
            " train with DDP (torchrun)."
        )
    body = classifier(module.network)
    module.language_head = read_language_head(
        body.config, request.base, request.revision, next(body.parameters()).device
    )


def _go_on_from(start: HeadStart, before: CheckpointMetadata, options: LossSection) -> HeadStart:
    """The start with what a warm start had learned: its outputs, and its objective if the same.

    What the recipe fixes stays.
    """
    outputs, objective, trained = start.outputs, start.objective, before.objective
    if outputs is not None and before.outputs is not None:
        gate = before.outputs if options.gate in (None, "learned") else outputs
        outputs = replace(before.outputs, weights=gate.weights)
    if options.gate == "learned":
        assert outputs is not None
        objective = replace(objective, learned=outputs.weights)
    elif trained is not None and (trained.kind, trained.levels) == (options.kind, objective.levels):
        objective = _go_on_with(objective, trained, options)
    return HeadStart(outputs=outputs, objective=objective)


def _go_on_with(start: Start, before: TrainedObjective, options: LossSection) -> Start:
    """The start with what the same objective had learned.

    A number that the recipe fixes stays, and a weight of the length, which is of these data.
    """
    own = len(start.learned) - (options.length == "residual")
    if options.tie_parameter != "learned" or len(before.learned) < own:
        return start
    return replace(start, learned=(*before.learned[:own], *start.learned[own:]))


def _decide(
    module: RewardModule,
    batcher: TokenBatcher,
    trees: StoredTrees,
    recipe: Recipe,
    args: StepArguments,
    wrapped: bool,
) -> MicroBatches:
    """How the run splits its steps: measured on a GPU, else the default.

    On a CPU more tokens at once are no faster.
    """
    request = BudgetRequest(
        tokens=recipe.microbatch_tokens,
        checkpointing=recipe.checkpointing,
        trees_per_step=args.per_device_train_batch_size * args.world_size,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        autocast=args.autocast,
        ranks=args.world_size,
    )
    if args.device.type != "cuda":
        return unmeasured(request, reason="")
    if wrapped:
        return unmeasured(request, reason="FSDP and DeepSpeed: not measured")
    if request.checkpointing is not None and request.tokens is not None:
        return unmeasured(request, reason="the limit that the recipe sets")
    if request.checkpointing:
        # As the Trainer does when training begins.
        module.activation_checkpointing_enable(**checkpointing_options(args))
    return decide_micro_batches(module, batcher, trees, request, CudaMeter(args.device))


def checkpointing_options(args: StepArguments) -> dict[str, Any]:
    """The arguments of ``activation_checkpointing_enable`` that the recipe sets."""
    details: Any = dict(args.gradient_checkpointing_kwargs or {})  # type: ignore[arg-type]
    own = [name for name in ("every_n_layers", "offload") if name in details]
    options = {name: details.pop(name) for name in own}
    return {"activation_checkpointing_kwargs": details, **options}


def place_base(base: str, folder: RunFolder) -> str:
    """Where the base is loaded from.

    A local folder is an absolute path, so that the saved adapter finds it from anywhere; the
    embedded base is copied into the run, so that the run folder can be moved.
    """
    if base == embedded.NAME:
        return copy_into_run(embedded.base_path(), folder)
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def copy_into_run(base: Path, folder: RunFolder) -> str:
    """Where the copy of a base in the run folder is; elsewhere than on the main process, where the
    base itself is.
    """
    if not is_main_process():
        return str(base.resolve())
    if not folder.base.is_dir():
        copy_base(base, folder.path)
    return str(folder.base.resolve())


def prepare_tokenizer(
    model: ModelSection, tokens: TokensSection, base: str, warm_start: OpenedModel | None = None
) -> PreTrainedTokenizerBase:
    """The base's tokenizer with its pad token chosen and its chat template frozen in time.

    A reward model that is trained on brings its own, its pad token chosen already.
    """
    if warm_start is not None:
        tokenizer = warm_start.tokenizer
        if tokens.pad_token is not None:
            tokenizer.pad_token = choose_pad_token(tokenizer, tokens.pad_token, base)
    else:
        tokenizer = load_tokenizer(
            base,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            pad_token=tokens.pad_token,
        )
    if tokens.template is not None:
        named_template(tokens.template).prepare(tokenizer)
    if tokens.chat_template is not None:
        tokenizer.chat_template = read_template(tokens.chat_template)
    if isinstance(tokenizer.chat_template, dict):
        # A tokenizer may carry several named templates; transformers renders this one.
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = freeze_dates(
            tokenizer.chat_template, date.fromisoformat(tokens.date)
        )
    return tokenizer


def make_encoder(
    tokens: TokensSection,
    tokenizer: PreTrainedTokenizerBase,
    warm_start: OpenedModel | None,
    *,
    as_chat: bool | None = None,
) -> Encoder:
    """How a run turns comparisons into ids; a reward model that is trained on keeps its rules.

    ``as_chat`` is the recipe's ``data.as_chat``.

    Raises:
        RecipeError: ``data.as_chat`` is true, and nothing renders conversations.
    """
    rendering, arguments = Rendering(), tokens.chat_template_kwargs
    if warm_start is not None and tokens.chat_template is None:
        rendering = warm_start.metadata.rendering
        arguments = {**warm_start.metadata.chat_template_kwargs, **arguments}
    if tokens.template is not None:
        rendering = named_template(tokens.template).rendering
    encoder = Encoder(
        tokenizer=tokenizer,
        max_length=tokens.max_length,
        truncation=tokens.truncation,
        text_as_turns=as_chat is True,
        chat_template_kwargs=arguments,
        rendering=rendering,
        scored_token=ScoredTokenRule() if warm_start is None else warm_start.metadata.scored_token,
    )
    if encoder.text_as_turns and not encoder.has_template:
        raise RecipeError(
            "`data.as_chat` is true, but the base's tokenizer has no chat template; set"
            " tokens.chat_template to a Jinja file, or remove data.as_chat."
        )
    return encoder


def step_arguments(recipe: Recipe, folder: RunFolder) -> StepArguments:
    """TrainingArguments for one batch per optimizer step, from the recipe's own numbers.

    Raises:
        RecipeError: keys that contradict each other, or a value that transformers rejects.
    """
    arguments = recipe.training_arguments
    batch = int(arguments["per_device_train_batch_size"])
    accumulation = int(arguments["gradient_accumulation_steps"])
    liger = dict(arguments.pop("liger_kernel_config", None) or {})
    fixed = {
        "output_dir": str(folder.checkpoints),
        "per_device_train_batch_size": batch * accumulation,
        "gradient_accumulation_steps": 1,
        "user_batch_size": batch,
        "user_accumulation": accumulation,
        # The Trainer applies these to a PreTrainedModel alone; plaudit does it when it builds one.
        "user_liger": liger if arguments.pop("use_liger_kernel", False) else None,
        "user_backend": arguments.pop("torch_compile_backend", None),
        "user_mode": arguments.pop("torch_compile_mode", None),
        "user_compile": bool(arguments.pop("torch_compile", False)),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # It asks the device for every step's loss, and hides a loss that is not finite.
        "logging_nan_inf_filter": False,
    }
    known = {field.name for field in fields(TrainingArguments)}
    for name in ("activation_checkpointing", "activation_checkpointing_kwargs"):
        former = name.replace("activation", "gradient")
        values = [arguments.pop(one, None) for one in (name, former)]
        value = next((one for one in values if one is not None), None)
        if value is not None:
            # transformers < 5.20 has only the former name, and later ones warn about it.
            arguments[name if name in known else former] = value
    arguments.setdefault("ddp_find_unused_parameters", False)
    if not torch.accelerator.is_available():
        # Otherwise accelerate looks for a GPU backend, finds none, and every rank trains alone.
        arguments.setdefault("use_cpu", True)
    if recipe.defaults_to_bf16 and torch.cuda.is_available() and has_bf16(torch.device("cuda")):
        arguments["bf16"] = True
    try:
        args = StepArguments(**{**arguments, **fixed})
        if args.n_gpu > 1:
            logger.warning(
                "%d GPUs are visible but only one is used; launch with torchrun to use all.",
                args.n_gpu,
            )
            # Otherwise the Trainer splits batches by rows (DataParallel), and ours have none.
            args._n_gpu = 1
        return args
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: transformers rejected these settings ({error}).") from None


def text_remark(encoder: Encoder, as_chat: bool | None, texts: int, comparisons: int) -> str | None:
    """What becomes of plain text where there is a chat template, and how to choose.

    ``None`` where the recipe has chosen, or there is nothing to choose.
    """
    if not texts or as_chat is not None or not encoder.has_template:
        return None
    return (
        f"{texts:,} of {comparisons:,} comparisons are plain text, and the base has a chat"
        " template, which plain text does not use. Set data.as_chat: true to make the prompt a"
        " user turn and each response an assistant turn, or data.as_chat: false to keep the"
        " text."
    )


def _about_data(corpus: Corpus, data: DataSection, tokens: TokensSection) -> Iterator[Text]:
    """What became of the data, a line each."""
    use = corpora.data_use(corpus, data.split_by)
    sizes = ", ".join(f"{name} {part.used:,}" for name, part in use.splits.items())
    yield Text(f"data: {use.used:,} of {use.rows:,} rows used: {sizes}")
    if use.dropped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in use.dropped.items())
        yield Text(f"skipped: {sum(use.dropped.values()):,} rows: {reasons}")
    others = Counter[LearnsFrom]()
    for loaded in corpus.loaded.values():
        others.update(loaded.usable_by)
    yield from (Text(f"  {line}") for line in for_other_objectives(others))
    for example in [part.example for part in corpus.every if part.example][:1]:
        yield Text(f"  for example: {example}")
    mixture = [source for source in use.sources if source.split == "train"]
    total = sum(source.sampled or 0 for source in mixture)
    # Where there are several, or rows of one are left out or repeated.
    if len(mixture) > 1 or total != mixture[0].used:
        shares = (
            f"{source.name} {source.sampled:,} ({(source.sampled or 0) / total:.0%}) from "
            f"{source.used:,} distinct rows"
            for source in mixture
        )
        yield Text(f"sources: {'; '.join(shares)}")
    yield from map(Text, _unread_lines(use.sources))
    counts = use.tokens
    saved = 1 - counts.packed / counts.separate
    less = f" ({saved:.0%} fewer than once per response)" if saved >= 0.005 else ""
    yield Text(f"tokens: {counts.packed:,}, each prompt computed once{less}")
    if tokens.truncation == "proportional":
        yield Text.from_markup(
            f"[bold]truncated to {tokens.max_length:,} tokens: {counts.truncated_prompts:,}"
            f" prompts lost their end and the header of the answer ({counts.truncated_tokens:,}"
            f" tokens), {counts.truncated_responses:,} responses of"
            f" {counts.comparisons_with_truncated_responses:,} comparisons lost their end and the"
            " end token[/bold]; to skip such comparisons, set tokens.truncation: drop"
        )
    margins = use.margins
    if margins is not None:
        yield Text(
            f"margins: {margins.comparisons:,} comparisons, mean {margins.mean:.3g}; the loss "
            "subtracts it from the reward difference (to ignore margins, set loss.margin: ignore)"
        )
    soft_N = corpus.train.trees.label("soft_label")
    soft_N = soft_N[soft_N != 1.0]
    if len(soft_N):
        yield Text(
            f"soft labels: {len(soft_N):,} training comparisons, mean {soft_N.mean():.3g} (to"
            " ignore them, set loss.soft_label: ignore)"
        )
    if corpus.leaked_prompts:
        yield Text.from_markup(
            f"[bold]{corpus.leaked_prompts:,} evaluation or test comparisons have a prompt that "
            "is also in the training data[/bold]; accuracy on them is biased upward."
        )


def _unread_lines(sources: Iterable[SourceUse]) -> Iterator[str]:
    """The columns that are not read, a line for all sources with the same ones."""
    named: dict[str, list[str]] = {}
    for source in sources:
        if source.unread.listed is not None:
            named.setdefault(source.unread.listed, []).append(source.name)
    for columns, names in named.items():
        yield f"ignored columns: {columns} ({', '.join(dict.fromkeys(names))})"


# ---- a warm start: the head, rules and adapter of a reward model are kept
#
# An adapter is trained on as it is, under its own LoRA settings; with ``lora: null`` it is merged
# into its base and all weights train. A whole model is the base of what the recipe asks for.

PLAIN = "sequence classifier"


def check_warm_outputs(before: Outputs | None, recipe: Recipe) -> None:
    """A warm start keeps its head, and so its outputs.

    Raises:
        RecipeError: the recipe asks for others.
    """
    has = () if before is None else before.names
    asked = output_names(recipe.loss)
    if has == asked:
        return
    key = "heads" if before is not None and before.ensemble else "outputs"
    keep = (
        "remove loss.outputs and loss.heads"
        if before is None
        else f"set loss.heads to {len(has)}"
        if before.ensemble
        else f"set loss.outputs to [{', '.join(has)}]"
    )
    raise RecipeError(
        f"loss.{key}: model.base {recipe.model.base} is a reward model with"
        f" {_outputs(has)}, which it keeps, but the recipe asks for {_outputs(asked)}; {keep}, or"
        " choose another base."
    )


def _outputs(names: Sequence[str]) -> str:
    return f"the outputs {', '.join(names)}" if names else "one output"


def open_warm_start(model: ModelSection) -> OpenedModel | None:
    """The reward model that ``model.base`` is, None where it is a plain base.

    Raises:
        ModelError: a reward model that cannot be read.
        RecipeError: it cannot be loaded in 4 bits.
    """
    base = model.base
    if base == embedded.NAME or not is_reward_model(Path(base)):
        return None
    opened = open_reward_model(base, ReadOptions(trust_remote_code=model.trust_remote_code))
    if model.quantize is None:
        return opened
    if opened.metadata.origin is not None and opened.metadata.origin.format == PLAIN:
        # Its head is where load_base finds it.
        return None
    raise RecipeError(
        f"model.quantize is 4bit, but model.base {base} is a reward model that plaudit cannot"
        " quantize; set quantize to null."
    )


def place_warm_start(opened: OpenedModel, source: Path, folder: RunFolder) -> str:
    """Where the new run's base is; a base kept inside the old run is copied, as runs are moved."""
    if opened.metadata.kind == "full":
        return str(source.resolve())
    base = resolve_base(source, opened.metadata, None)
    return copy_into_run(Path(base), folder) if Path(base).is_relative_to(source) else base


def load_warm_start(
    opened: OpenedModel, base: str, lora: Mapping[str, Any] | None, dtype: torch.dtype
) -> LoadedBase:
    """The weights to train on: an adapter unfrozen, or merged where all weights train.

    Raises:
        RecipeError: LoRA settings that are not the adapter's.
    """
    network: Any = opened.build(dtype)
    if opened.metadata.kind == "full":
        return LoadedBase(network=network, fresh_head=False)
    if lora is None:
        network = network.merge_and_unload()
        network.requires_grad_(True)
    else:
        check_adapter_settings(lora, network, base)
        network.peft_config["default"].inference_mode = False
        network.set_adapter("default")
    return LoadedBase(network=network, fresh_head=False)


def check_adapter_settings(asked: Mapping[str, Any], network: Any, base: str) -> None:
    """The adapter keeps its shape: what a recipe sets beside the defaults must be what it has.

    Raises:
        RecipeError: another rank, other layers, or anything else that differs.
    """
    own = adapter_settings(network, asked)
    other = [
        f"{key} {_plain(asked[key])} (the adapter has {_plain(own[key])})"
        for key in sorted(asked)
        if asked[key] != LORA_DEFAULTS.get(key) and _plain(asked[key]) != _plain(own[key])
    ]
    if other:
        raise RecipeError(
            f"lora: model.base {base} is an adapter, which keeps its LoRA settings, but the"
            f" recipe sets {', '.join(other)}; remove these keys, or set lora: null to train all"
            " weights."
        )


def adapter_settings(network: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's own values of LoRA's main settings and of ``keys``."""
    config = network.peft_config["default"].to_dict()
    values = {key: config.get(key) for key in dict.fromkeys([*LORA_DEFAULTS, *keys])}
    return {k: sorted(v) if isinstance(v, (set, tuple)) else v for k, v in values.items()}


def _plain(value: Any) -> Any:
    """Lists, sets and tuples of names compare as sets of them."""
    return sorted(value) if isinstance(value, (list, set, tuple)) else value
