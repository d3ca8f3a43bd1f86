"""What every protocol turns a request into, and what it makes its answer of. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from plaudit.data.unread import has_words, kind_of_name
from plaudit.serving.rejection import RefusalError
from plaudit.types import Text, media_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """A prompt and its responses, which the model's own template renders."""

    prompt: Text
    responses: tuple[Text, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """A whole conversation as text that the client rendered."""

    text: str


@dataclass(frozen=True, slots=True)
class Ids:
    """A whole conversation as token ids."""

    ids: tuple[int, ...]


Part: TypeAlias = Dialogue | Written | Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request wants scored.

    ``keep_last`` cuts each conversation to its last tokens (-1: to as many as the model reads),
    ``limit`` refuses longer ones.
    ``along`` asks for the reward along each response as well.
    """

    parts: tuple[Part, ...]
    model: str | None = None
    keep_last: int | None = None
    limit: int | None = None
    along: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A token of a response, and the reward if the response ended there."""

    text: str
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Rewards and lengths of each part's conversations, in the order asked.

    ``computed`` are the tokens that the model computed for this request, shared prompts once.
    """

    id: str
    model: str
    created: int
    temperature: float
    rewards: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    computed: int
    seconds: float
    along: tuple[tuple[Step, ...], ...] | None = None

    @property
    def flat(self) -> list[float]:
        return [reward for part in self.rewards for reward in part]

    @property
    def flat_tokens(self) -> list[int]:
        return [count for part in self.tokens for count in part]


END_USER: Final = "user"
"""OpenAI's clients name their end user by it."""


class Body(BaseModel):
    """A request body. Keys that a protocol's clients send and this server has no use for pass.

    Those that hold images, audio or video, and those that look like a prompt, are errors: they are
    part of what is to be scored.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), strict=False)

    @model_validator(mode="before")
    @classmethod
    def _check_media(cls, body: Any) -> Any:
        for name in media_columns(body) if isinstance(body, Mapping) else ():
            raise PydanticCustomError("media", f"{name} cannot be scored; only text is read")
        return body

    @model_validator(mode="before")
    @classmethod
    def _check_unread(cls, body: Any) -> Any:
        if not isinstance(body, Mapping):
            return body
        unread = body.keys() - _names_of(cls) - {END_USER}
        for name in sorted(name for name in unread if isinstance(name, str)):
            kind = kind_of_name(name)
            if kind is not None and has_words(body[name]):
                keys = ", ".join(sorted(_names_of(cls)))
                message = f"looks like {kind}, but is not read; the keys that are read are {keys}"
                wrong = InitErrorDetails(
                    type=PydanticCustomError("unread_prompt", message),
                    loc=(name,),
                    input=None,
                )
                raise ValidationError.from_exception_data(cls.__name__, [wrong])
        return body


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


def keys_of(body: Any) -> frozenset[str] | None:
    """Keys under which a body holds something, for telling two shapes of one path apart.

    None where it is no JSON object, so that no shape fits.
    """
    if not isinstance(body, Mapping | BaseModel):
        return None
    items = body if isinstance(body, Mapping) else vars(body)
    return frozenset(name for name, value in items.items() if value is not None)


class Usage(BaseModel):
    """Tokens of all conversations, as other servers count them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


def usage(scored: Scored) -> Usage:
    total = sum(scored.flat_tokens)
    return Usage(prompt_tokens=total, total_tokens=total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One row: where it listens, what it takes, how it is read and answered.

    ``request`` is a pydantic model or an annotated union of some, ``response`` what ``answer``
    gives. ``example`` is a request that the tests send and the reference shows. ``exact_model``:
    a name that is not served is refused even where one model is served, which clients of other
    tools could not know.
    """

    name: str
    summary: str
    spoken_by: str
    paths: tuple[str, ...]
    request: Any
    response: Any
    read: Callable[[Any], Ask]
    answer: Callable[[Any, Scored], Any]
    example: Mapping[str, Any]
    methods: tuple[str, ...] = ("POST",)
    exact_model: bool = False


def activated(reward: float, activation: bool | None) -> float:
    """The raw reward, or its sigmoid where the client asks for an activation."""
    if not activation:
        return reward
    return 1 / (1 + math.exp(-reward)) if reward >= 0 else 1 - 1 / (1 + math.exp(reward))


def asks_activation(*given: bool | None) -> bool:
    """Whether any of a protocol's names for it is true; unsaid is raw."""
    return any(value is True for value in given)


def refuse_empty(count: int, name: str) -> None:
    """For protocols that want at least one.

    Raises:
        RefusalError: there is none.
    """
    if count == 0:
        raise RefusalError("bad_request", f"{name} is empty; give at least one.", param=name)
