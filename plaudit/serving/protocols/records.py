"""Records of all protocols, and the shapes of requests that several share. Loads no torch."""

from __future__ import annotations

import codecs
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, cast

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, from_json

from plaudit.data.unread import has_words, kind_of_name
from plaudit.serving.errors import RejectionError, from_validation
from plaudit.types import RewardDetails, Text, TokenReward, media_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """A prompt and its responses, which the model's own template renders."""

    prompt: Text
    responses: tuple[Text, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


Part: TypeAlias = Dialogue | str | Sequence[int]
"""A dialogue, or a whole conversation: as text that the client rendered, or as token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """What a request wants scored.

    ``keep_last`` truncates each conversation to its last tokens (-1: to as many as the model
    reads), ``limit`` rejects longer ones. ``token_rewards`` asks for those of each response,
    ``outputs`` and ``uncertainty`` for the details of each reward.
    """

    parts: Sequence[Part]
    keep_last: int | None = None
    limit: int | None = None
    token_rewards: bool = False
    outputs: bool = False
    uncertainty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """Rewards and lengths of all conversations, in the order of the parts and of their responses.

    ``computed`` are the tokens that the model computed for this request, shared prompts once.
    """

    id: str
    model: str
    created: int
    temperature: float
    rewards: list[float]
    tokens: list[int]
    computed: int
    seconds: float
    token_rewards: tuple[tuple[TokenReward, ...], ...] | None = None
    details: Sequence[RewardDetails] | None = None


class Body(BaseModel):
    """A request body. Keys that a protocol's clients send and this server has no use for pass.

    Those that hold images, audio or video, and those that look like a prompt, are errors: they are
    part of what is to be scored.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), strict=False)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of keys, which are errors: they would be ignored otherwise."""
    tag: ClassVar[str] = ""
    """Its name in the place of an error, where a protocol has several bodies."""

    model: str | None = Field(
        default=None,
        description="Name of a served model; ignored if the server has only one.",
    )

    @model_validator(mode="before")
    @classmethod
    def _check_unread(cls, body: Mapping[str, Any]) -> Mapping[str, Any]:
        for old in cls.renamed.keys() & body.keys():
            raise PydanticCustomError("renamed", f"{old} was renamed to {cls.renamed[old]}")
        # OpenAI's clients name their end user by "user".
        for name in sorted(body.keys() - _names_of(cls) - {"user"}):
            kind = kind_of_name(name)
            if kind is not None and has_words(body[name]):
                keys = ", ".join(sorted(_names_of(cls)))
                message = f"looks like {kind}, but this endpoint does not read it; it reads {keys}"
                wrong = InitErrorDetails(
                    type=PydanticCustomError("unread_prompt", message),
                    loc=(name,),
                    input=None,
                )
                raise ValidationError.from_exception_data(cls.__name__, [wrong])
        for name in media_columns(body):
            raise PydanticCustomError("media", f"{name} is not supported; only text is scored")
        return body

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """What is to be scored."""

    def read(self) -> ScoreRequest:
        """The parts with the options of this body, if it has any.

        Raises:
            RejectionError: something in it cannot be read.
        """
        return ScoreRequest(parts=self.parts())


@cache
def _names_of(body: type[Body]) -> frozenset[str]:
    """Every key that a body reads, its other names included."""
    names = set(body.model_fields)
    for field_ in body.model_fields.values():
        if isinstance(field_.validation_alias, AliasChoices):
            names |= {
                choice for choice in field_.validation_alias.choices if isinstance(choice, str)
            }
    return frozenset(names)


Element = TypeVar("Element")
Many: TypeAlias = Annotated[list[Element], Field(fail_fast=True)]
"""A list in a request. Validation ends at its first wrong element: a megabyte of wrong ones would
otherwise take seconds to report."""


def one_of(otherwise: type[Body], **shapes: type[Body]) -> Any:
    """A request of several shapes: that of the first key that has a value, else ``otherwise``."""

    def tag_of(body: Mapping[str, Any]) -> str:
        found = (shape for key, shape in shapes.items() if body.get(key) is not None)
        return next(found, otherwise).tag

    bodies = dict.fromkeys((otherwise, *shapes.values()))
    tagged: Any = (Annotated[body, Tag(body.tag)] for body in bodies)
    return Annotated[reduce(or_, tagged), Discriminator(tag_of)]


class Usage(BaseModel):
    """Tokens of all conversations, as other servers count them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


def usage(scored: ScoreResult) -> Usage:
    total = sum(scored.tokens)
    return Usage(prompt_tokens=total, total_tokens=total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One row: where it listens, what it takes, how it is answered.

    ``request`` is a :class:`Body` or :func:`one_of` several, ``response`` what ``answer``
    gives. ``example`` is a request that the tests send and the reference shows. ``exact_model``:
    a name that is not served is rejected even where one model is served, which clients of other
    tools could not know.
    """

    name: str
    summary: str
    spoken_by: str
    paths: tuple[str, ...]
    request: Any
    response: Any
    answer: Callable[[Any, ScoreResult], Any]
    example: Mapping[str, Any]
    methods: tuple[str, ...] = ("POST",)
    exact_model: bool = False


def activated(reward: float, activation: bool | None) -> float:
    """The raw reward, or its sigmoid where the client asks for an activation."""
    if not activation:
        return reward
    return 1 / (1 + math.exp(-reward)) if reward >= 0 else 1 - 1 / (1 + math.exp(reward))


class ChatMessage(BaseModel):
    """One message. Other keys (``tool_calls``, ``name``, …) are passed to the chat template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | Many[str | dict[str, Any]] | None = None


Messages: TypeAlias = Annotated[Many[ChatMessage], Field(min_length=1)]
Tools: TypeAlias = Annotated[
    Annotated[tuple[dict[str, Any], ...], Field(fail_fast=True)] | None,
    Field(description="JSON schemas of tools for the chat template, which must render them."),
]
TokenIds: TypeAlias = Annotated[Many[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1)]
TextInput: TypeAlias = str | TokenIds | Many[str] | Many[TokenIds]
"""One text or its ids, or several."""


def as_text(text: str | Sequence[ChatMessage]) -> Text:
    """A text, or messages as plain mappings."""
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def is_single(given: TextInput) -> bool:
    """Whether it is one text, or the ids of one."""
    return isinstance(given, str) or (len(given) > 0 and isinstance(given[0], int))


def parts_of(given: TextInput) -> Sequence[Part]:
    """Each text or list of ids as a part of its own."""
    return cast(Sequence[Part], [given] if is_single(given) else given)


NO_OBJECT = "The body is not a JSON object; send one with Content-Type: application/json."


def parse_body(request: TypeAdapter[Any], content_type: str, body: bytes) -> Any:
    """The request in a body of JSON, which is UTF-8 (RFC 8259); a byte order mark is ignored.

    A foreign page cannot send ``application/json`` without asking first, so no other type is read.

    Raises:
        RejectionError: it is not JSON, holds half of a surrogate pair, which no text can, or does
            not fit ``request``.
    """
    if not body or not _is_json(content_type):
        raise RejectionError("invalid_request", NO_OBJECT)
    try:
        value = from_json(body.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise RejectionError("bad_request", _why(body, str(error))) from None
    if not isinstance(value, dict):
        raise RejectionError("invalid_request", NO_OBJECT)
    try:
        return request.validate_python(value)
    except ValidationError as error:
        raise from_validation(error) from None


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _why(body: bytes, detail: str) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return "The body is not valid UTF-8."
    if "\0" in text:
        return "The body is not UTF-8: it contains NUL bytes, as UTF-16 and UTF-32 do."
    if "hex escape" in detail:
        return f"A text has an unpaired UTF-16 surrogate; send valid Unicode ({detail})."
    return f"The body is not valid JSON: {detail}."
