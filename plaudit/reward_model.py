"""A saved reward model in this process: ``plaudit.load(path).score(prompt, responses)``."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch
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
    Batcher,
    Best,
    Comparison,
    Dtype,
    FloatArray,
    Message,
    Prompted,
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
    """

    source: str
    module: RewardModule
    tokenizer: PreTrainedTokenizerBase
    metadata: CheckpointMetadata
    batcher: Batcher
    encoder: Encoder

    @property
    def dtype(self) -> str:
        """Name of the dtype of the body's weights, such as ``"bfloat16"``."""
        body = classifier(self.module.network).base_model
        return str(next(body.parameters()).dtype).removeprefix("torch.")

    def __repr__(self) -> str:
        parameter = next(self.module.parameters())
        layout = "packed" if isinstance(self.batcher, PackedBatcher) else "padded"
        return (
            f"RewardModel(source={self.source!r}, base={self.metadata.base!r}, "
            f"architecture={self.module.config.model_type!r}, "
            f"max_length={self.metadata.max_length}, device='{parameter.device}', "
            f"dtype={self.dtype!r}, layout={layout!r})"
        )

    def score(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> list[float]:
        """Score the responses to one prompt. The prompt is computed once.

        Args:
            prompt: The prompt.
            responses: One or more responses.
            tools: JSON schemas of the tools that the conversation may call. The chat template must
                render them.

        Returns:
            One reward per response, in the order of ``responses``.

        Raises:
            DataError: ``responses`` is empty or a single text, a text or tool has the wrong type, a
                conversation is longer than the model's maximum length, or it has content that the
                model cannot read: an image, or a field that the chat template does not render.

        Examples:
            >>> model = plaudit.load("runs/first")
            >>> rewards = model.score("Name a prime.", ["7", "8"])
            >>> len(rewards)
            2
        """
        check_responses(responses)
        comparison = self.comparison(prompt, responses, tools=tools)
        (outcome,) = self.score_comparisons([comparison])
        if isinstance(outcome, Skipped):
            raise self._error("score", outcome)
        return [float(reward) for reward in outcome]

    def score_many(
        self, rows: Sequence[Prompted], *, tools: Tools | None = None
    ) -> list[list[float] | DataError]:
        """Score many rows together. A prompt that several rows share is computed once.

        Args:
            rows: Pairs of a prompt and a list of responses.
            tools: JSON schemas of the tools, the same for every row.

        Returns:
            One entry per row: a list of rewards, or the ``DataError`` that says why the row cannot
            be scored.

        Raises:
            DataError: A row is not a prompt with a list of at least one response.

        Examples:
            >>> rows = [("Name a prime.", ["7", "8"]), ("Name a color.", ["red"])]
            >>> [len(rewards) for rewards in model.score_many(rows)]
            [2, 1]
        """
        parsed: list[Comparison | DataError] = []
        for prompt, responses in check_rows(rows):
            try:
                parsed.append(self.comparison(prompt, responses, tools=tools))
            except DataError as error:
                parsed.append(error)
        outcomes = iter(self.score_comparisons([c for c in parsed if isinstance(c, Comparison)]))
        scored: list[list[float] | DataError] = []
        for row in parsed:
            outcome = row if isinstance(row, DataError) else next(outcomes)
            if isinstance(outcome, Skipped):
                outcome = self._error("score_many", outcome)
            scored.append(outcome if isinstance(outcome, DataError) else outcome.tolist())
        return scored

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
            rewards_R = self.module(at_every_token).double().tolist()
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

    def score_comparisons(
        self, comparisons: Sequence[Comparison], *, earlier: ScoreCache | None = None
    ) -> list[FloatArray | Skipped]:
        """Per comparison its ``rewards_K``, or why it has none.

        The prompt of several comparisons is computed once, and so is a conversation that occurs
        several times. ``earlier`` carries the rewards of conversations from one call to the next.
        """
        outcomes = self.encode(comparisons)
        trees = [outcome for outcome in outcomes if isinstance(outcome, TokenTree)]
        prompts = [repr(comparisons[tree.index].prompt) for tree in trees]
        scores = self.score_shared(trees, prompts)
        if earlier is not None:
            scores = list(map(earlier.settle, trees, scores))
        rewards = iter(scores)
        return [o if isinstance(o, Skipped) else next(rewards) for o in outcomes]

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
        on_batch: Callable[[Sequence[TokenTree]], None] | None = None,
    ) -> list[FloatArray]:
        """:meth:`score_trees`, with trees of equal ``prompts`` computed together."""
        if not isinstance(self.batcher, PackedBatcher):
            return self.score_trees(trees, on_batch=on_batch)
        shared = share_prompts(trees, prompts, self.batcher.max_tokens)
        return shared.separate(self.score_trees(shared.trees, on_batch=on_batch))

    def score_trees(
        self,
        trees: Sequence[TokenTree],
        *,
        on_batch: Callable[[Sequence[TokenTree]], None] | None = None,
    ) -> list[FloatArray]:
        """``rewards_K`` of each encoded comparison; ``on_batch`` is called with what is done."""
        outputs = self.metadata.outputs
        if outputs is None:
            return score_trees(self.module, self.batcher, trees, on_batch=on_batch)
        return [outputs.rewards(one) for one in self.output_trees(trees, on_batch=on_batch)]

    def output_trees(
        self,
        trees: Sequence[TokenTree],
        *,
        on_batch: Callable[[Sequence[TokenTree]], None] | None = None,
    ) -> list[FloatArray]:
        """``outputs_KO`` of each encoded comparison; a single column where the head has one."""
        forward = partial(self.module, every_output=True)
        return score_trees(forward, self.batcher, trees, on_batch=on_batch)

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
    """How a reward model is loaded. ``dtype`` is that of the body; head and adapter stay fp32."""

    device: str | torch.device | None = None
    dtype: Dtype = "auto"
    max_tokens_per_microbatch: int | Literal["auto"] = "auto"


class LoadArguments(TypedDict, total=False):
    """The fields of :class:`LoadOptions`, as keyword arguments of :func:`load`."""

    base: str | None
    device: str | torch.device | None
    dtype: Dtype
    max_tokens_per_microbatch: int | Literal["auto"]
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
        ModelError: There is no model at ``path``, its weights do not fit, or it needs
            ``trust_remote_code``.

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
    )


class ScoreCache:
    """Rewards of recent conversations by token ids, bounded; the least recently used go first.

    Used by the one thread that owns the model.

    A conversation is known by a 128-bit digest of its ids: 32 bytes of memory for any length.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._rewards: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rewards)

    def get(self, key: bytes) -> float | None:
        reward = self._rewards.get(key)
        if reward is not None:
            self._rewards.move_to_end(key)
        return reward

    def put(self, key: bytes, reward: float) -> None:
        self._rewards[key] = reward
        self._rewards.move_to_end(key)
        if len(self._rewards) > self._entries:
            self._rewards.popitem(last=False)

    def settle(self, tree: TokenTree, rewards_K: FloatArray) -> FloatArray:
        """The reward that each conversation got before; else this one, which is kept."""
        settled_K = rewards_K.copy()
        for k, key in enumerate(conversation_digests(tree.branches, tree.prefix)):
            before = self.get(key)
            if before is None:
                self.put(key, float(rewards_K[k]))
            else:
                settled_K[k] = before
        return settled_K
