"""A saved reward model in this process: ``plaudit.load(path).score(prompt, responses)``."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.data.formats.values import as_messages, as_tools, check_responses, check_rows
from plaudit.errors import DataError, ModelError
from plaudit.interop.formats import OpenedModel, ReadOptions, open_reward_model
from plaudit.model.checkpoint import CheckpointMetadata
from plaudit.model.load import choose_dtype, dropouts_off
from plaudit.model.module import EncoderRewardModule, RewardModule
from plaudit.model.packing import choose_layout
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
    """A loaded reward model. Scores are fp32 and the same alone, in any batch and in any order.

    Higher is better. Scores compare only among responses to one prompt, unless the data it was
    trained on says otherwise. ``source`` is the folder or Hub id that it was loaded from.
    """

    source: str
    module: RewardModule
    tokenizer: PreTrainedTokenizerBase
    metadata: CheckpointMetadata
    batcher: Batcher
    encoder: Encoder

    def __repr__(self) -> str:
        parameter = next(self.module.parameters())
        layout = "packed" if isinstance(self.batcher, PackedBatcher) else "padded"
        return (
            f"RewardModel(source={self.source!r}, base={self.metadata.base!r}, "
            f"architecture={self.module.config.model_type!r}, "
            f"max_length={self.metadata.max_length}, device='{parameter.device}', "
            f"dtype={str(parameter.dtype).removeprefix('torch.')!r}, layout={layout!r})"
        )

    def score(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> list[float]:
        """One reward per response; the prompt is computed once.

        Text given to a model trained on conversations stands for one user turn and one assistant
        turn. ``tools`` are the schemas of the tools that the conversation may call; the chat
        template must render them.

        Raises:
            DataError: no responses, a single text in place of a list, something that is neither
                text nor messages, a tool that is no schema, a conversation over the model's maximum
                length, or one with something that the model cannot read (an image, tools or a field
                that the chat template does not render).
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
        """One reward per response of every row, a pair of a prompt and its responses.

        All rows are scored together: a prompt that several rows share is computed once. ``tools``
        are those of every row. A row that cannot be scored (no messages, too long, rejected by the
        chat template) has the error in its place.

        Raises:
            DataError: a row is not a prompt with a list of at least one response.
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
        """Per-token rewards: the reward at each token of a response, as if it ended there.

        One pass, since the models are causal; the last reward is that of :meth:`score`. The model
        was trained at that token alone, so the others show what moves the reward, not how good the
        response is so far. The tokens are those that follow the rendered prompt, the template's own
        among them.

        Raises:
            DataError: a conversation over the model's maximum length.
            ModelError: an encoder, whose tokens see what follows them.
        """
        if isinstance(self.module, EncoderRewardModule):
            raise ModelError(
                "Per-token rewards need a causal model; this one is an encoder, whose every token "
                "sees the whole text. Use score()."
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
            OVER_LENGTH: "shorten the prompt or the responses to "
            f"{self.metadata.max_length} tokens together",
            MEDIA: "leave them out",
            NOT_RENDERED: "leave it out, or put it into the text of a turn",
        }.get(skipped.reason, "change the messages so that the model's chat template takes them")
        return DataError(f"{caller}() cannot score this ({skipped.detail}); {advice}.")

    def prefer(self, prompt: Text, a: Text, b: Text, *, tools: Tools | None = None) -> float:
        """Calibrated probability that ``a`` is preferred to ``b``.

        The sigmoid of the reward difference over the temperature measured on evaluation data
        (Guo et al. 2017); a model without one is taken at temperature 1.
        """
        reward_a, reward_b = self.score(prompt, [a, b], tools=tools)
        scaled = (reward_a - reward_b) / (self.metadata.temperature or 1.0)
        return torch.tensor(scaled, dtype=torch.float64).sigmoid().item()

    def best_of(
        self, prompt: Text, responses: Sequence[Text], *, tools: Tools | None = None
    ) -> Best:
        """The highest-scored response; the first of equals."""
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
        return score_trees(self.module, self.batcher, trees, on_batch=on_batch)

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
    """How a reward model is loaded. ``dtype`` ``auto`` is fp32 on CPU and, for adapters, bf16 with
    an fp32 head on CUDA.
    """

    device: str | torch.device | None = None
    dtype: str = "auto"
    max_tokens_per_microbatch: int | Literal["auto"] = "auto"


class LoadArguments(TypedDict, total=False):
    """The fields of :class:`LoadOptions`, as keyword arguments of :func:`load`."""

    base: str | None
    device: str | torch.device | None
    dtype: str
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
    note = f"its chat template renders today's date; it is read as on {DAY.isoformat()}"
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
    """Load a reward model: plaudit's own, or another tool's by its own rules.

    ``path`` is a folder or a Hub id; the format is recognised from the files. ``base`` is the path
    or Hub id of an adapter's base model. ``dtype`` ``auto`` is fp32 on CPU and, for adapters, bf16
    with an fp32 head on CUDA. The self-check decides between packed and padded batches.
    ``trust_remote_code`` runs Python that comes with a model; what the folder itself says of it
    never suffices.

    The others say what another tool's files leave open: ``source_version``, the version that
    trained it; ``template``, its conversation template; ``output``, which output is the reward;
    ``text``, what it was trained on; ``normalize``, whether a recorded mean and standard deviation
    are applied. What is inferred is logged as a warning.

    Raises:
        ModelError: nothing to load there, weights that do not fit, a model that needs its own code
            and was not trusted, or an argument that has another name now.
    """
    if "era" in options:
        raise ModelError("The argument era of load() is called source_version now.")
    return load_model(path, LoadOptions(**options))


def load_model(path: str | Path, options: LoadOptions) -> RewardModel:
    """:func:`load` with its arguments in one record."""
    opened = open_frozen(path, options)
    metadata, tokenizer = opened.metadata, opened.tokenizer
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = opened.build(choose_dtype(options.dtype, device, lora=metadata.kind == "adapter"))
    dropouts_off(network, keep_lora=False)
    network.to(device).eval()
    if not isinstance(tokenizer.pad_token_id, int):
        raise ModelError(f"The tokenizer in {path} has no padding token; save it with one.")
    batchers = make_batchers(options.max_tokens_per_microbatch, device, tokenizer.pad_token_id)
    model = choose_layout(
        network,
        "padded" if metadata.attention == "padded" else "auto",
        packed=batchers["packed"],
        padded=batchers["padded"],
        reward_transform=metadata.reward_transform,
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

    A conversation is known by a 128-bit digest of its ids: 32 bytes of memory whatever its length.
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
