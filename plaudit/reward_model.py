"""A saved reward model in this process: ``plaudit.load(path).score(prompt, responses)``."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict, Unpack, get_args, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plaudit.data.formats.values import as_messages, as_tools, check_responses, check_rows
from plaudit.errors import DataError, ModelError
from plaudit.interop.formats import OpenedModel, ReadOptions, open_reward_model
from plaudit.model.checkpoint import CheckpointMetadata
from plaudit.model.load import dropouts_off
from plaudit.model.module import EncoderRewardModule, RewardModule, classifier
from plaudit.model.packing import choose_layout, patch_modules
from plaudit.model.precision import dtype_on
from plaudit.model.scoring import score_trees
from plaudit.recipe.schema import TokensSection
from plaudit.tokens.batch import PackedBatcher, make_batchers, share_prompts
from plaudit.tokens.encode import NOT_RENDERED, OVER_LENGTH, Encoder, encode, token_strings
from plaudit.tokens.rendering import freeze_dates
from plaudit.types import (
    MEDIA,
    Batch,
    Batcher,
    Best,
    Comparison,
    Dtype,
    FloatArray,
    Message,
    Outputs,
    Prompted,
    RewardChoice,
    RewardDetails,
    Skipped,
    Text,
    TokenReward,
    TokenTree,
    Tools,
    Turns,
    as_turns,
    conversation_digests,
    has_media,
)

logger = logging.getLogger("plaudit")

OnBatch: TypeAlias = Callable[[Sequence[TokenTree]], None]

DAY = date.fromisoformat(TokensSection().date)
"""The day on which a date-bearing template of another tool is read: the recipe's default."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RewardModel:
    """A loaded reward model, made by :func:`plaudit.load`.

    A higher reward is better. Rewards compare responses to the same prompt; do not compare rewards
    of different prompts. A conversation has one reward, alone, in any batch and in any order:
    within 1e-5 in fp32 on a CPU, within rounding on a GPU.

    A prompt or a response is text, or a list of messages with ``role`` and ``content``. Text given
    to a model that was trained on conversations is one user turn and one assistant turn.

    Attributes:
        source: The folder or Hub id that the model was loaded from.
        metadata: The base model, maximum length, temperature and other recorded settings.
        tokenizer: The tokenizer, with the chat template that the model was trained with.
        module: The PyTorch module.
        batcher: Builds packed or padded batches.
        encoder: Turns conversations into token ids.
        reward: Which number the reward is, of a model with an ensemble of heads: ``"mean"`` or
            ``"lower_bound"``.
        lower_bound_k: Standard deviations over the heads from the mean to the lower bound.
    """

    source: str
    module: RewardModule
    tokenizer: PreTrainedTokenizerBase
    metadata: CheckpointMetadata
    batcher: Batcher
    encoder: Encoder
    reward: RewardChoice = "mean"
    lower_bound_k: float = 1.0

    @property
    def dtype(self) -> str:
        """Name of the dtype of the body's weights, such as ``"bfloat16"``."""
        body = classifier(self.module.network).base_model
        return str(next(body.parameters()).dtype).removeprefix("torch.")

    @property
    def output_count(self) -> int:
        """O, the number of outputs of the head."""
        return 1 if self.metadata.outputs is None else len(self.metadata.outputs.names)

    def __repr__(self) -> str:
        parameter = next(self.module.parameters())
        layout = "packed" if isinstance(self.batcher, PackedBatcher) else "padded"
        bound = ""
        if self.reward == "lower_bound":
            bound = f", reward='lower_bound', lower_bound_k={self.lower_bound_k:g}"
        return (
            f"RewardModel(source={self.source!r}, base={self.metadata.base!r}, "
            f"architecture={self.module.config.model_type!r}, "
            f"max_length={self.metadata.max_length}, device='{parameter.device}', "
            f"dtype={self.dtype!r}, layout={layout!r}{bound})"
        )

    @overload
    def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: Literal[False] = False,
        uncertainty: Literal[False] = False,
    ) -> list[float]: ...

    @overload
    def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: Literal[True],
        uncertainty: bool = False,
    ) -> list[RewardDetails]: ...

    @overload
    def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: Literal[True],
    ) -> list[RewardDetails]: ...

    def score(
        self,
        prompt: Text,
        responses: Sequence[Text],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: bool = False,
    ) -> list[float] | list[RewardDetails]:
        """Score the responses to one prompt. The prompt is computed once.

        Args:
            prompt: The prompt.
            responses: One or more responses.
            tools: JSON schemas of the tools that the conversation may call. The chat template must
                render them.
            outputs: Return the outputs of the model too, by name.
            uncertainty: Return the mean and the standard deviation over the heads of an ensemble
                too, and the lower bound that they give.

        Returns:
            One reward per response, in the order of ``responses``; a :class:`RewardDetails` per
            response with ``outputs`` or ``uncertainty``.

        Raises:
            DataError: ``responses`` is empty or a single text, a text or tool has the wrong type, a
                conversation is longer than the model's maximum length, or it has content that the
                model cannot read: an image, or a field that the chat template does not render.
            ModelError: The model has no outputs beside the reward, or no ensemble.

        Examples:
            >>> model = plaudit.load("runs/first")
            >>> rewards = model.score("Name a prime.", ["7", "8"])
            >>> len(rewards)
            2
        """
        check_responses(responses)
        self.check_details(outputs=outputs, uncertainty=uncertainty)
        comparison = self.comparison(prompt, responses, tools=tools)
        (outcome,) = self.output_comparisons([comparison])
        if isinstance(outcome, Skipped):
            raise self._error("score", outcome)
        if outputs or uncertainty:
            return self.details(outcome, outputs=outputs, uncertainty=uncertainty)
        rewards: list[float] = self.rewards_of(outcome).tolist()
        return rewards

    @overload
    def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: Literal[False] = False,
        uncertainty: Literal[False] = False,
    ) -> list[list[float] | DataError]: ...

    @overload
    def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: Literal[True],
        uncertainty: bool = False,
    ) -> list[list[RewardDetails] | DataError]: ...

    @overload
    def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: Literal[True],
    ) -> list[list[RewardDetails] | DataError]: ...

    def score_many(
        self,
        rows: Sequence[Prompted],
        *,
        tools: Tools | None = None,
        outputs: bool = False,
        uncertainty: bool = False,
    ) -> list[list[float] | DataError] | list[list[RewardDetails] | DataError]:
        """Score many rows together. A prompt that several rows share is computed once.

        Args:
            rows: Pairs of a prompt and a list of responses.
            tools: JSON schemas of the tools, the same for every row.
            outputs: As for :meth:`score`.
            uncertainty: As for :meth:`score`.

        Returns:
            One entry per row: the list that :meth:`score` returns, or the ``DataError`` that says
            why the row cannot be scored.

        Raises:
            DataError: A row is not a prompt with a list of at least one response.
            ModelError: As for :meth:`score`.

        Examples:
            >>> rows = [("Name a prime.", ["7", "8"]), ("Name a color.", ["red"])]
            >>> [len(rewards) for rewards in model.score_many(rows)]
            [2, 1]
        """
        self.check_details(outputs=outputs, uncertainty=uncertainty)
        parsed: list[Comparison | DataError] = []
        for prompt, responses in check_rows(rows):
            try:
                parsed.append(self.comparison(prompt, responses, tools=tools))
            except DataError as error:
                parsed.append(error)
        encoded = iter(self.output_comparisons([c for c in parsed if isinstance(c, Comparison)]))
        outcomes: list[FloatArray | DataError] = []
        for row in parsed:
            outcome = row if isinstance(row, DataError) else next(encoded)
            if isinstance(outcome, Skipped):
                outcome = self._error("score_many", outcome)
            outcomes.append(outcome)
        if outputs or uncertainty:
            details = partial(self.details, outputs=outputs, uncertainty=uncertainty)
            return [o if isinstance(o, DataError) else details(o) for o in outcomes]
        return [o if isinstance(o, DataError) else self.rewards_of(o).tolist() for o in outcomes]

    def token_rewards(
        self, prompt: Text, response: Text, *, tools: Tools | None = None
    ) -> list[TokenReward]:
        """Reward at each token of a response, as if the response ended there.

        The last reward is the one that :meth:`score` returns. The model is trained at that token
        only. Use the other rewards to see which tokens move the reward, not to judge a partial
        response.

        Args:
            prompt: The prompt.
            response: One response.
            tools: JSON schemas of the tools that the conversation may call.

        Returns:
            One entry per token after the rendered prompt, tokens of the chat template included.

        Raises:
            DataError: The conversation is longer than the model's maximum length.
            ModelError: The model is an encoder: each of its tokens attends to the whole text.

        Examples:
            >>> import math
            >>> tokens = model.token_rewards("Name a prime.", "7")
            >>> reward = model.score("Name a prime.", ["7"])[0]
            >>> math.isclose(tokens[-1].reward, reward, abs_tol=1e-5)
            True
        """
        if isinstance(self.module, EncoderRewardModule):
            raise ModelError(
                "Per-token rewards need a causal model, and this model is an encoder, in which"
                " every token attends to the whole text; use score()."
            )
        comparison = self.comparison(prompt, [response, ""], tools=tools)
        answer, _ = comparison.responses
        (outcome,) = self.encode([replace(comparison, responses=(answer, _another(answer)))])
        if isinstance(outcome, Skipped):
            raise self._error("token_rewards", outcome)
        branch, _ = outcome.branches
        batch = self.batcher.collate([replace(outcome, branches=(branch,), grades=())])
        start = len(outcome.prefix)
        at_every_token = batch.read_at(range(start, start + len(branch)))
        with torch.no_grad():
            outputs_RO = self.forward(at_every_token).double().cpu().numpy()
        rewards_R = self.rewards_of(outputs_RO).tolist()
        texts = token_strings(self.tokenizer, branch.tolist(), outcome.prefix.tolist())
        return [
            TokenReward(text=text, reward=reward)
            for text, reward in zip(texts, rewards_R, strict=True)
        ]

    def _error(self, caller: str, skipped: Skipped) -> DataError:
        advice = {
            OVER_LENGTH: f"shorten the prompt or the responses to {self.metadata.max_length}"
            " tokens in total",
            MEDIA: "remove them",
            NOT_RENDERED: "remove it, or move it into the content of a message",
        }.get(skipped.reason, "change the messages so that the model's chat template accepts them")
        return DataError(f"{caller}() cannot score this input ({skipped.detail}); {advice}.")

    def prefer(self, prompt: Text, a: Text, b: Text, *, tools: Tools | None = None) -> float:
        """Probability that response ``a`` is preferred to response ``b``.

        It is the sigmoid of the reward difference divided by the temperature stored with the model
        (Guo et al., 2017). A model without a stored temperature uses that of its training loss, 1
        by default.

        Args:
            prompt: The prompt.
            a: One response.
            b: The other response.
            tools: JSON schemas of the tools that the conversation may call.

        Returns:
            A number between 0 and 1.

        Raises:
            DataError: As for :meth:`score`.

        Examples:
            >>> 0 < model.prefer("Name a prime.", "7", "8") < 1
            True
        """
        reward_a, reward_b = self.score(prompt, [a, b], tools=tools)
        scaled = (reward_a - reward_b) / self.metadata.probability_temperature
        return torch.tensor(scaled, dtype=torch.float64).sigmoid().item()

    def best_of(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> Best:
        """Choose the response with the highest reward. The first one wins a tie.

        Args:
            prompt: The prompt.
            responses: One or more responses.
            tools: JSON schemas of the tools that the conversation may call.

        Returns:
            The chosen response, its index and all rewards.

        Raises:
            DataError: As for :meth:`score`.

        Examples:
            >>> best = model.best_of("Name a prime.", ["7", "8"])
            >>> best.reward == max(best.rewards)
            True
        """
        return Best.of(responses, self.score(prompt, responses, tools=tools))

    def check_details(self, *, outputs: bool, uncertainty: bool) -> None:
        """Whether the model has what is asked for beside the reward.

        Raises:
            ModelError: it has not.
        """
        if outputs and self.metadata.outputs is None:
            raise ModelError(
                "The outputs were requested, but this model has one output; train a model with"
                " loss.outputs or loss.heads."
            )
        if uncertainty:
            check_ensemble(self.metadata.outputs, "The uncertainty")

    def details(
        self, outputs_KO: FloatArray, *, outputs: bool, uncertainty: bool
    ) -> list[RewardDetails]:
        """The reward of each response with what is asked for beside it."""
        made_of = self.metadata.outputs
        assert made_of is not None
        rewards_K, means_K = self.rewards_of(outputs_KO), made_of.rewards(outputs_KO)
        spreads_K, bounds_K = made_of.spreads(outputs_KO), self._lower_bounds(made_of, outputs_KO)
        return [
            RewardDetails(
                reward=float(rewards_K[k]),
                outputs=dict(zip(made_of.names, outputs_O.tolist(), strict=True))
                if outputs
                else None,
                mean=float(means_K[k]) if uncertainty else None,
                spread=float(spreads_K[k]) if uncertainty else None,
                lower_bound=float(bounds_K[k]) if uncertainty else None,
            )
            for k, outputs_O in enumerate(outputs_KO)
        ]

    def rewards_of(self, outputs_KO: FloatArray) -> FloatArray:
        """``rewards_K``: the one place where outputs become rewards.

        The reward of a response does not depend on the other rows.
        """
        outputs = self.metadata.outputs
        if outputs is None:
            return outputs_KO[:, 0]
        if self.reward == "lower_bound":
            return self._lower_bounds(outputs, outputs_KO)
        return outputs.rewards(outputs_KO)

    def _lower_bounds(self, outputs: Outputs, outputs_KO: FloatArray) -> FloatArray:
        return outputs.rewards(outputs_KO) - self.lower_bound_k * outputs.spreads(outputs_KO)

    def score_comparisons(self, comparisons: Sequence[Comparison]) -> list[FloatArray | Skipped]:
        """Per comparison its ``rewards_K``, or why it has none."""
        outcomes = self.output_comparisons(comparisons)
        return [o if isinstance(o, Skipped) else self.rewards_of(o) for o in outcomes]

    def output_comparisons(
        self, comparisons: Sequence[Comparison], *, earlier: ScoreCache | None = None
    ) -> list[FloatArray | Skipped]:
        """Per comparison its ``outputs_KO``, or why it has none.

        The prompt of several comparisons is computed once, and so is a conversation that occurs
        several times. ``earlier`` carries the outputs of conversations from one call to the next.
        """
        outcomes = self.encode(comparisons)
        trees = [outcome for outcome in outcomes if isinstance(outcome, TokenTree)]
        prompts = [repr(comparisons[tree.index].prompt) for tree in trees]
        scores = self.output_shared(trees, prompts)
        if earlier is not None:
            scores = list(map(earlier.settle, trees, scores))
        outputs = iter(scores)
        return [o if isinstance(o, Skipped) else next(outputs) for o in outcomes]

    def encode(self, comparisons: Sequence[Comparison]) -> list[TokenTree | Skipped]:
        """Token trees as this model reads them: one text has one score on every path.

        For a model trained on conversations alone, a plain text prompt is one user turn and a
        plain text response one assistant turn.
        """
        return encode(self.encoder, comparisons)

    def score_shared(
        self,
        trees: Sequence[TokenTree],
        prompts: Sequence[Hashable],
        *,
        on_batch: OnBatch | None = None,
    ) -> list[FloatArray]:
        """:meth:`score_trees`, with trees of equal ``prompts`` computed together."""
        return [
            self.rewards_of(one) for one in self.output_shared(trees, prompts, on_batch=on_batch)
        ]

    def output_shared(
        self,
        trees: Sequence[TokenTree],
        prompts: Sequence[Hashable],
        *,
        on_batch: OnBatch | None = None,
    ) -> list[FloatArray]:
        """:meth:`output_trees`, with trees of equal ``prompts`` computed together."""
        if not isinstance(self.batcher, PackedBatcher):
            return self.output_trees(trees, on_batch=on_batch)
        shared = share_prompts(trees, prompts, self.batcher.max_tokens)
        return shared.separate(self.output_trees(shared.trees, on_batch=on_batch))

    def score_trees(
        self, trees: Sequence[TokenTree], *, on_batch: OnBatch | None = None
    ) -> list[FloatArray]:
        """``rewards_K`` of each encoded comparison; ``on_batch`` is called with what is done."""
        return [self.rewards_of(one) for one in self.output_trees(trees, on_batch=on_batch)]

    def output_trees(
        self, trees: Sequence[TokenTree], *, on_batch: OnBatch | None = None
    ) -> list[FloatArray]:
        """``outputs_KO`` of each encoded comparison; a single column where the head has one."""
        return score_trees(self.forward, self.batcher, trees, on_batch=on_batch)

    def forward(self, batch: Batch) -> Tensor:
        """``outputs_RO`` of a batch."""
        outputs_RO: Tensor = self.module(batch, every_output=True)
        return outputs_RO

    def comparison(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> Comparison:
        """Texts or messages as the record that encoding reads.

        Raises:
            DataError: a message without role and content, or with content of another kind; a tool
                that is no object.
        """
        named = {"prompt": prompt} | {f"responses[{k}]": text for k, text in enumerate(responses)}
        user_turns, *answers = (
            text if isinstance(text, str) else as_messages(text, what)
            for what, text in named.items()
        )
        comparison = Comparison(
            id="0",
            prompt=user_turns,
            responses=tuple(answers),
            grades=(),
            group="0",
            source="python",
            where="the conversation",
            tools=as_tools(tools),
            unusable=MEDIA if has_media(user_turns, *answers) else None,
        )
        # Beside messages, a text is a turn: the template renders all of it or nothing.
        chat = not all(isinstance(text, str) for text in (user_turns, *answers))
        return as_turns(comparison) if chat else comparison


def _another(response: Turns) -> Turns:
    """A response that parts from this one at its first character: what both share is the prompt."""
    if isinstance(response, str):
        return "b" if response.lstrip()[:1] == "a" else "a"
    first = response[0]
    text = first.content if isinstance(first.content, str) else ""
    # Beside the other fields of a turn, a template may leave out its text.
    return (Message(role=first.role, content=_another(text)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions(ReadOptions):
    """How a reward model is loaded. ``dtype`` is that of the body; head and adapter stay fp32.

    ``reward`` and ``lower_bound_k`` are as in :class:`RewardModel`.
    """

    device: str | torch.device | None = None
    dtype: Dtype = "auto"
    max_tokens_per_microbatch: int | Literal["auto"] = "auto"
    reward: RewardChoice = "mean"
    lower_bound_k: float = 1.0

    def __post_init__(self) -> None:
        if self.reward not in get_args(RewardChoice):
            raise ModelError(f"reward is {self.reward!r}; expected mean or lower_bound.")
        if not 0 <= self.lower_bound_k < math.inf:
            raise ModelError(
                f"lower_bound_k is {self.lower_bound_k}; expected a finite number of at least 0."
            )


class LoadArguments(TypedDict, total=False):
    """The fields of :class:`LoadOptions`, as keyword arguments of :func:`load`."""

    base: str | None
    device: str | torch.device | None
    dtype: Dtype
    max_tokens_per_microbatch: int | Literal["auto"]
    reward: RewardChoice
    lower_bound_k: float
    trust_remote_code: bool
    source_version: str | None
    template: str | None
    output: int | None
    text: Literal["chat", "text"] | None
    normalize: bool


def open_frozen(path: str | Path, options: ReadOptions = ReadOptions()) -> OpenedModel:
    """A reward model whose chat template no longer depends on the clock.

    plaudit's own have been frozen since they were trained; another tool's rendered the day of its
    training, which nobody recorded, and would render today's.

    Raises:
        ModelError: nothing there that can be read, or a date that cannot be frozen.
    """
    opened = open_reward_model(path, options)
    template = opened.tokenizer.chat_template
    if opened.metadata.origin is None or not isinstance(template, str):
        return opened
    frozen = freeze_dates(template, DAY)
    if frozen == template:
        return opened
    opened.tokenizer.chat_template = frozen
    note = f"its chat template renders the current date; plaudit uses {DAY.isoformat()}"
    logger.warning("%s: %s.", path, note)
    origin = replace(opened.metadata.origin, notes=(*opened.metadata.origin.notes, note))
    return replace(opened, metadata=replace(opened.metadata, chat_template=frozen, origin=origin))


def encoder_of(opened: OpenedModel) -> Encoder:
    """How an opened model turns text into ids: by its own rendering, reading and length."""
    metadata = opened.metadata
    return Encoder(
        tokenizer=opened.tokenizer,
        max_length=metadata.max_length,
        truncation="drop",
        text_as_turns=metadata.text == "chat",
        chat_template_kwargs=metadata.chat_template_kwargs,
        rendering=metadata.rendering,
        scored_token=metadata.scored_token,
    )


def load(path: str | Path, **options: Unpack[LoadArguments]) -> RewardModel:
    """Load a reward model that plaudit or another tool trained.

    The format is recognised from the files: a plaudit run or model folder, a model of another
    supported trainer, or a sequence classifier of transformers. A self-check then chooses packed or
    padded batches.

    The last five arguments are for models of other tools, whose files do not
    record everything. What plaudit infers is logged as a warning.

    Args:
        path: A folder, or a model id on the Hugging Face Hub.

    Keyword Args:
        base (str | None): Path or Hub id of an adapter's base model. By default, the one that the
            adapter names.
        device (str | torch.device | None): The device, for example ``"cuda:1"``. By default, CUDA
            if there is one, else CPU.
        dtype (str): Precision of the body: ``"float32"``, ``"bfloat16"``, ``"float16"`` or
            ``"auto"``, the default. ``"auto"`` is bf16 on a GPU that has it, and fp32 elsewhere.
            The head and an adapter stay fp32.
        max_tokens_per_microbatch (int | Literal["auto"]): Tokens computed at once. It bounds memory
            and does not change rewards. ``"auto"`` by default.
        reward (str): Which number the reward of an ensemble of heads is, on every path:
            ``"mean"``, the default, or ``"lower_bound"``: ``mean - k * spread``, which is low
            where the heads disagree.
        lower_bound_k (float): The ``k`` of the lower bound, ``1.0`` by default.
        trust_remote_code (bool): Run Python code that comes with the model. ``False`` by default.
        source_version (str | None): Version of the tool that trained the model.
        template (str | None): Name of the other trainer's conversation template.
        output (int | None): Index of the output that is the reward, for a classifier with several.
        text (Literal["chat", "text"] | None): ``"chat"`` if the model was trained on conversations,
            ``"text"`` if on plain text.
        normalize (bool): Apply the mean and standard deviation stored beside the weights. ``True``
            by default.

    Returns:
        The model, ready to score.

    Raises:
        ModelError: There is no model at ``path``, its weights do not fit, it needs
            ``trust_remote_code``, or it has no ensemble for a lower bound.

    Examples:
        >>> import plaudit
        >>> model = plaudit.load("runs/first")
    """
    if "era" in options:
        raise ModelError("The argument era of load() was renamed to source_version.")
    return load_model(path, LoadOptions(**options))


def load_model(path: str | Path, options: LoadOptions) -> RewardModel:
    """:func:`load` with its arguments in one record."""
    opened = open_frozen(path, options)
    metadata, tokenizer = opened.metadata, opened.tokenizer
    if options.reward == "lower_bound":
        check_ensemble(metadata.outputs, f"The lower bound of {path}")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = opened.build(dtype_on(options.dtype, device, "score"))
    dropouts_off(network, keep_lora=False)
    network.to(device).eval()
    if not isinstance(tokenizer.pad_token_id, int):
        raise ModelError(f"The tokenizer in {path} has no padding token; save it with one.")
    batchers = make_batchers(options.max_tokens_per_microbatch, device, tokenizer.pad_token_id)
    model = choose_layout(
        patch_modules(network, metadata.reward_transform, metadata.outputs),
        "padded" if metadata.attention == "padded" else "auto",
        packed=batchers["packed"],
        padded=batchers["padded"],
    )
    model.module.eval()
    return RewardModel(
        source=str(path),
        module=model.module,
        tokenizer=tokenizer,
        metadata=metadata,
        batcher=batchers[model.layout],
        encoder=encoder_of(opened),
        reward=options.reward,
        lower_bound_k=options.lower_bound_k,
    )


def check_ensemble(outputs: Outputs | None, what: str) -> None:
    """Whether ``outputs`` are those of an ensemble; ``what`` is asked of them.

    Raises:
        ModelError: they are not.
    """
    if outputs is not None and outputs.ensemble:
        return
    found = "one output" if outputs is None else f"the outputs {', '.join(outputs.names)}"
    raise ModelError(
        f"{what} was requested, but the model has {found} and no ensemble of heads; train a model"
        " with loss.heads."
    )


CachedOutputs: TypeAlias = float | FloatArray
"""The outputs of a conversation: of a model with one, a number that is smaller than an array."""


def as_cached(outputs_O: FloatArray) -> CachedOutputs:
    """A row of outputs, to keep without the array that it is part of."""
    return float(outputs_O[0]) if len(outputs_O) == 1 else outputs_O.copy()


class ScoreCache:
    """Outputs of recent conversations by token ids, bounded; the least recently used go first.

    Used by the one thread that owns the model.

    A conversation is known by a 128-bit digest of its ids: 32 bytes of memory for any length.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._outputs: OrderedDict[bytes, CachedOutputs] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outputs)

    def get(self, key: bytes) -> CachedOutputs | None:
        outputs = self._outputs.get(key)
        if outputs is not None:
            self._outputs.move_to_end(key)
        return outputs

    def put(self, key: bytes, outputs: CachedOutputs) -> None:
        self._outputs[key] = outputs
        self._outputs.move_to_end(key)
        if len(self._outputs) > self._entries:
            self._outputs.popitem(last=False)

    def settle(self, tree: TokenTree, outputs_KO: FloatArray) -> FloatArray:
        """The outputs that each conversation got before; else these, which are kept."""
        settled_KO = outputs_KO.copy()
        for k, key in enumerate(conversation_digests(tree.branches, tree.prefix)):
            before = self.get(key)
            if before is None:
                self.put(key, as_cached(outputs_KO[k]))
            else:
                settled_KO[k] = before
        return settled_KO
