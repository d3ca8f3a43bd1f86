"""The records that cross folders, and the shape legend. Loads no torch.

Shape legend, used in names everywhere (``scores_R``, ``hidden_TD``):

    B  rows of a batch            T  tokens (of a packed row, or of a padded row)
    D  hidden width               R  responses in a batch, all comparisons together
    K  responses of one comparison
    O  outputs of the head
    P  ordered pairs (winner, loser) inside a batch
    N  rows of a table            H  attention heads
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float64]

WeightDtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
"""What a body's weights may be held in; torch's own names."""

Dtype: TypeAlias = Literal["auto", WeightDtype]
"""What a user asks for: ``auto`` is decided by :mod:`plaudit.model.precision`."""


MEDIA: Final = "media"
"""The reason for which a comparison with images, audio or video is neither trained on nor scored:
only text is read.
"""

MEDIA_COLUMNS: Final = frozenset({"image", "images", "audio", "audios", "video", "videos"})
"""Names under which rows and requests carry images, audio and video."""


def media_columns(row: JsonObject) -> list[str]:
    """The columns of a row, or the keys of a request, that hold images, audio or video.

    A number or a truth value under such a name counts or identifies something; it is no media.
    """
    return [
        name
        for name in sorted(MEDIA_COLUMNS & row.keys())
        if (value := row[name]) and not isinstance(value, (bool, int, float))
    ]


METADATA_FIELDS: Final = frozenset(
    {
        "annotations",
        "country",
        "hashed_ip",
        "header",
        "id",
        "language",
        "model",
        "name",
        "state",
        "timestamp",
        "tool_call_id",
    }
)
"""Fields of a message that say whose it is and not what it says (OpenAI's API, WildChat)."""


JsonObject: TypeAlias = Mapping[str, Any]
"""An object of the user's: a tool, a message, a row. Its keys are not ours to name."""

Tools: TypeAlias = Sequence[JsonObject]
"""JSON schemas of the tools that a conversation may call, as chat templates take them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation, as chat templates read it.

    ``content`` is text, or None beside tool calls. It is a list of content parts only where one of
    them is an image, audio or video (:data:`MEDIA`). ``extra`` holds what else the turn carries
    (``tool_calls``, ``name``, …), untouched.
    """

    role: str
    content: Any
    extra: JsonObject = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.extra}

    def text_fields(self) -> dict[str, Any]:
        """What the turn says beside its content, such as ``tool_calls``.

        Metadata says nothing (:data:`METADATA_FIELDS`, numbers, true and false), nor do empty
        values.
        """
        return {
            name: value
            for name, value in self.extra.items()
            if name not in METADATA_FIELDS
            and isinstance(value, (str, list, tuple, Mapping))
            and (value.strip() if isinstance(value, str) else value)
        }


Turns: TypeAlias = tuple[Message, ...] | str
"""A prompt or a response: messages (rendered by the chat template) or plain text (concatenated)."""


Text: TypeAlias = str | Sequence[JsonObject]
"""A prompt or a response: text, or a list of messages with ``role`` and ``content``."""

Prompted: TypeAlias = tuple[Text, Sequence[Text]]
"""A prompt and its responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The response with the highest reward.

    Attributes:
        index: Its index in the list of responses.
        response: The response.
        reward: Its reward.
        rewards: The rewards of all responses, in their order.
    """

    index: int
    response: Text
    reward: float
    rewards: tuple[float, ...]

    @classmethod
    def of(cls, responses: Sequence[Text], rewards: Sequence[float]) -> Self:
        """The first of equals."""
        index = max(range(len(rewards)), key=lambda i: (rewards[i], -i))
        return cls(
            index=index, response=responses[index], reward=rewards[index], rewards=tuple(rewards)
        )


RewardChoice: TypeAlias = Literal["mean", "lower_bound"]
"""Which number of a model is its reward: the lower bound is that of an ensemble's mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardDetails:
    """A reward and what it is made of. What was not asked for is None.

    Attributes:
        reward: The reward.
        outputs: The outputs of the model by name.
        mean: The mean over the heads of an ensemble.
        spread: The standard deviation over the heads: the uncertainty of the mean.
        lower_bound: ``mean - k * spread``, where k is ``lower_bound_k`` of :func:`plaudit.load`.
    """

    reward: float
    outputs: Mapping[str, float] | None = None
    mean: float | None = None
    spread: float | None = None
    lower_bound: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReward:
    """The reward at one token of a response.

    Attributes:
        text: The token's text.
        reward: The reward of the conversation if it ended after this token.
    """

    text: str
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One prompt, K responses and what is known of their order.

    ``grades`` is the known standing of each response, higher is better (a pair: chosen 1.0,
    rejected 0.0); empty when nothing is known (rows to be scored). ``rated`` says that a grade
    means something by itself (a rating, or 1 and 0 for good and bad) and not only by its order.
    ``soft_label`` is the share of annotators who prefer the better response of a pair.
    ``attributes`` are named ratings (helpfulness, verbosity): for each, one number per response,
    None where it is missing. ``group`` names the prompt: rows with equal groups never stand on both
    sides of a split. Prompt and responses are of one kind, all text or all messages. ``unusable``
    is the name of a reason why its reader found it unfit for training; for :data:`MEDIA` it is not
    scored either.
    """

    id: str
    prompt: Turns
    responses: tuple[Turns, ...]
    grades: tuple[float, ...]
    group: str
    source: str
    where: str
    margin: float | None = None
    weight: float = 1.0
    soft_label: float | None = None
    rated: bool = False
    attributes: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    tools: tuple[JsonObject, ...] | None = None
    chat_template_kwargs: JsonObject = field(default_factory=dict)
    metadata: JsonObject = field(default_factory=dict)
    unusable: str | None = None


def has_media(*turns: Turns) -> bool:
    """Whether a message holds an image, audio or video."""
    return any(
        isinstance(message.content, list)
        for one in turns
        if not isinstance(one, str)
        for message in one
    )


def as_turns(comparison: Comparison) -> Comparison:
    """A comparison of plain texts as one user turn and one assistant turn each."""

    def turn(text: Turns, role: str) -> Turns:
        return (Message(role=role, content=text),) if isinstance(text, str) else text

    return replace(
        comparison,
        prompt=turn(comparison.prompt, "user"),
        responses=tuple(turn(response, "assistant") for response in comparison.responses),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How a conversation becomes tokens.

    The kind ``chat_template`` is the tokenizer's own; the others are renderers of the registry.
    ``template`` names the template of such a renderer, and ``strings`` are its texts.
    """

    kind: str = "chat_template"
    template: str | None = None
    strings: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTokenRule:
    """Which token of an encoded conversation is scored.

    ``last``: the last. ``before_trailing_pad``: the last that is not ``pad_id``. ``first_pad``: the
    one before the first ``pad_id``. The models are causal, so the conversation is cut behind it.
    """

    rule: Literal["last", "before_trailing_pad", "first_pad"] = "last"
    pad_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What the O outputs of a head are, and the reward that they make.

    An output is a row of the head plus its entry of ``offsets``; the reward is the sum of
    ``weights * outputs``. The outputs of an ``ensemble`` all estimate the reward: their weights are
    equal, and their standard deviation is its uncertainty.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    offsets: tuple[float, ...]
    ensemble: bool = False

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.weights) == len(self.offsets) > 1:
            raise TypeError("outputs need one name, weight and offset each")
        if len(set(self.names)) < len(self.names):
            raise TypeError("outputs have the same name")
        numbers = (*self.weights, *self.offsets)
        if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in numbers):
            raise TypeError("a weight or offset of outputs is no finite number")

    def rewards(self, outputs_KO: FloatArray) -> FloatArray:
        """``rewards_K``: the weighted sum of the outputs of each response."""
        # Not a matrix product, whose last bits depend on the number of responses.
        rewards_K: FloatArray = (outputs_KO * np.asarray(self.weights)).sum(axis=-1)
        return rewards_K

    def spreads(self, outputs_KO: FloatArray) -> FloatArray:
        """``spreads_K``: the sample standard deviation over the outputs of each response."""
        spreads_K: FloatArray = np.std(outputs_KO, axis=-1, ddof=1)
        return spreads_K


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTransform:
    """``reward = scale * raw + offset``, where ``raw`` is the output of a head without bias."""

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedObjective:
    """What a model was trained for (a key of ``plaudit.recipe.objectives.OBJECTIVES``).

    ``learned`` are the objective's own parameters in the form that it trains
    (``plaudit.recipe.objectives.parameters_of`` has them under their names), ``levels`` the ratings
    of an objective that predicts levels.
    """

    kind: str
    temperature: float = 1.0
    learned: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()


def conversation_digests(
    branches: Iterable[IntArray], prefix_T: IntArray | None = None
) -> Iterator[bytes]:
    """Identify conversations that share a prefix: 128 bits each over its ids and a branch's.

    However a conversation is cut into prefix and branch, its digest is the same.
    """
    shared = blake2b(digest_size=16)
    if prefix_T is not None:
        shared.update(np.asarray(prefix_T, np.int32).tobytes())
    for branch_T in branches:
        whole = shared.copy()
        whole.update(np.asarray(branch_T, np.int32).tobytes())
        yield whole.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTree:
    """A comparison as tokens: the shared prefix once, then each response's own branch.

    ``prefix`` + ``branches[k]`` is the k-th fully encoded conversation; every branch has at least
    one token, and the last token of a branch is the scored one. The last branches are rewritten
    copies, without grades and attributes: ``copies`` has the number of the original of each.
    ``truncated`` counts the prompt tokens cut to fit, ``truncated_responses`` the responses that
    lost their end to fit.
    """

    index: int
    prefix: IntArray
    branches: tuple[IntArray, ...]
    grades: tuple[float, ...] = ()
    margin: float = 0.0
    weight: float = 1.0
    soft_label: float = 1.0
    rated: bool = False
    attributes: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    copies: tuple[int, ...] = ()
    truncated: int = 0
    truncated_responses: int = 0

    @property
    def tokens(self) -> int:
        """Tokens the model computes for this comparison."""
        return len(self.prefix) + sum(len(branch) for branch in self.branches)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Length in tokens of each whole conversation."""
        return tuple(len(self.prefix) + len(branch) for branch in self.branches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A comparison that cannot become tokens: a reason to count, and a sentence for people.

    ``field`` names what the chat template does not render, empty for other reasons.
    """

    index: int
    reason: str
    detail: str
    field: str = ""


class PrefixKV(Protocol):
    """Keys and values of the cached prompts of a packed row, which are not in the row."""

    def extend(self, key_1GTD: Tensor, value_1GTD: Tensor) -> tuple[Tensor, Tensor]:
        """The row's keys and values with the cached ones behind them; once a layer, in order."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the trees of a packed row lie: per tree its start, prefix length and branch lengths.

    Token order is prefix, branch 0, branch 1, …, next tree. ``ends`` are the scored tokens of the
    row, in its order. A tree with ``cached`` tokens has no prefix in the row: its prompt was
    computed in an earlier pass, and ``prefix_kv`` puts the keys and values of all cached prompts
    behind the row's, in the order of the trees. An empty ``cached`` is 0 for every tree. ``memo``
    holds what attention backends derive from the layout (masks, offsets), once for all layers.
    """

    starts: tuple[int, ...]
    prefixes: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    cached: tuple[int, ...] = ()
    prefix_kv: PrefixKV | None = field(default=None, compare=False, repr=False)
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return self.starts[-1] + self.prefixes[-1] + sum(self.branches[-1])

    def placed(self) -> Iterator[PlacedTree]:
        """Every tree with where its prompt's keys lie, in the row or behind it."""
        behind = self.tokens
        cached = self.cached or (0,) * len(self.starts)
        for start, prefix, lengths, outside in zip(
            self.starts, self.prefixes, self.branches, cached, strict=True
        ):
            prompt = slice(behind, behind + outside) if outside else slice(start, start + prefix)
            yield PlacedTree(start, prefix, lengths, prompt)
            behind += outside


@dataclass(frozen=True, slots=True)
class PlacedTree:
    """A tree of a row: ``prefix`` tokens of prompt in it, and the keys of the whole prompt."""

    start: int
    prefix: int
    branches: tuple[int, ...]
    prompt: slice

    @property
    def cached(self) -> int:
        """Tokens of the prompt that are not in the row."""
        return self.visible - self.prefix

    @property
    def visible(self) -> int:
        """Tokens of the prompt, which every branch sees."""
        return int(self.prompt.stop - self.prompt.start)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and all branches, whether they are in the row or not."""
        return self.visible + sum(self.branches)

    @property
    def stop(self) -> int:
        """Where the tree ends in the row."""
        return self.start + self.prefix + sum(self.branches)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Trees end to end in one row, no padding. ``ends_R`` indexes the scored tokens in the row."""

    ids_1T: Tensor
    positions_1T: Tensor
    ends_R: Tensor
    layout: PackedLayout
    trees: tuple[TokenTree, ...]

    def body_inputs(self) -> dict[str, Tensor | PackedLayout]:
        return {
            "input_ids": self.ids_1T,
            "position_ids": self.positions_1T,
            "packed_layout": self.layout,
        }

    def read_at(self, ends: Sequence[int]) -> PackedBatch:
        """The same tokens with other ones of them scored; ``ends`` ascend."""
        layout = replace(self.layout, ends=tuple(ends), memo={})
        (ends_R,) = arrays_to_device([np.asarray(layout.ends, np.int64)], self.ends_R.device)
        return replace(self, ends_R=ends_R, layout=layout)


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """One right-padded row per response. ``ends_R`` indexes the scored tokens, rows flattened."""

    ids_RT: Tensor
    mask_RT: Tensor
    ends_R: Tensor
    trees: tuple[TokenTree, ...]

    def body_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.ids_RT, "attention_mask": self.mask_RT}

    def read_at(self, ends: Sequence[int]) -> PaddedBatch:
        """The same tokens with other ones of them scored; ``ends`` ascend."""
        (ends_R,) = arrays_to_device([np.asarray(ends, np.int64)], self.ends_R.device)
        return replace(self, ends_R=ends_R)


Batch: TypeAlias = PackedBatch | PaddedBatch


class Batcher(Protocol):
    """How trees are split into micro-batches and laid out for the model."""

    def split(self, trees: Sequence[TokenTree]) -> list[list[int]]:
        """Positions in ``trees`` of each micro-batch; every tree in exactly one."""

    def collate(self, trees: Sequence[TokenTree]) -> Batch:
        """One micro-batch as tensors on the model's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One evaluated response: a line of ``predictions.parquet``.

    ``comparison`` is the id of its comparison, which need not be unique; ``number`` is its place in
    its dataset, which is. ``response`` is its number inside the comparison, ``tokens`` the length
    of the whole conversation, ``characters`` the length of the response's text; ``rated`` says that
    the grade is a rating. ``features`` are counts of what stands in the texts, where those were at
    hand (``evaluation/analysis``). ``outputs`` are those of a head that has several, and
    ``attributes`` the labels of the same names.
    """

    comparison: str
    number: int
    group: str
    dataset: str
    source: str
    response: int
    reward: float
    grade: float
    margin: float
    tokens: int
    characters: int
    rated: bool = False
    metadata: JsonObject = field(default_factory=dict)
    features: Mapping[str, float | str] = field(default_factory=dict)
    outputs: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPreview:
    """A token and the text that it adds; the text of a character's earlier tokens is empty."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPreview:
    """A comparison for people: the shared prefix once, and each response's own tokens.

    The last token of a branch is the scored one. There are no tokens where it cannot be encoded,
    for ``reason`` and in the words of ``detail``; with tokens, ``reason`` is why training drops it.
    ``truncated`` counts the prompt tokens cut to fit. ``objectives`` can learn from its labels.
    """

    id: str
    where: str
    grades: tuple[float, ...]
    rated: bool = False
    soft_label: float | None = None
    attributes: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    objectives: tuple[str, ...] = ()
    prefix: tuple[TokenPreview, ...] = ()
    branches: tuple[tuple[TokenPreview, ...], ...] = ()
    truncated: int = 0
    reason: str | None = None
    detail: str | None = None

    @property
    def packed(self) -> int:
        """Tokens that are computed, the prefix once."""
        return len(self.prefix) + sum(len(branch) for branch in self.branches)

    @property
    def separate(self) -> int:
        """Tokens of one sequence for each response."""
        return sum(len(self.prefix) + len(branch) for branch in self.branches)


def arrays_to_device(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[Tensor]:
    """NumPy arrays as tensors on ``device``: one copy for all.

    For CUDA it is a copy from pinned memory, so that the host goes on. On the CPU there is none.
    """
    import torch

    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    # Each begins at a multiple of 16 bytes, so that a view of any type may.
    starts = np.cumsum([0, *(-(-array.nbytes // 16) * 16 for array in arrays)])
    host = torch.empty(int(starts[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    places = [
        slice(int(start), int(start) + array.nbytes)
        for start, array in zip(starts[:-1], arrays, strict=True)
    ]
    kinds = [torch.from_numpy(array[:0]).dtype for array in arrays]
    for array, place in zip(arrays, places, strict=True):
        host.numpy()[place] = array.reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[place].view(kind).view(array.shape)
        for array, place, kind in zip(arrays, places, kinds, strict=True)
    ]
