"""What a server is started with. Loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plaudit.errors import PlauditError
from plaudit.types import Dtype, RewardChoice

MIB = 1 << 20


class SettingsError(PlauditError):
    """An option of the server cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model by the name that requests give it, and where it is loaded from."""

    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything a server process needs to know; the token is never in here.

    Times are seconds. ``max_batch_tokens`` bounds the tokens computed at once (None: 2,048 on a
    CPU, 16,384 on a GPU). ``max_requests`` and ``max_waiting_tokens`` bound what has been accepted
    and not answered, ``max_inflight_bytes`` the bodies of it, ``max_connections`` the connections
    of each process. Headers are read within ``body_timeout``, and so is a body.
    ``reward`` and ``lower_bound_k`` are as in :func:`plaudit.load`, for every model.
    ``prefix_cache_bytes`` bounds the prefix cache of each model; 0 turns it off. On loopback and
    without a token, requests name this machine or one of ``allowed_hosts``.
    """

    models: tuple[ModelSource, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    base: str | None = None
    device: str | None = None
    dtype: Dtype = "auto"
    reward: RewardChoice = "mean"
    lower_bound_k: float = 1.0
    trust_remote_code: bool = False
    workers: int = 1
    max_batch_tokens: int | None = None
    wait: float = 0.004
    max_requests: int = 1024
    max_waiting_tokens: int = 1 << 20
    max_body_bytes: int = 32 * MIB
    max_inflight_bytes: int = 256 * MIB
    max_connections: int = 8192
    max_conversations: int = 8192
    request_timeout: float = 180.0
    body_timeout: float = 30.0
    drain_notice: float = 0.5
    drain_timeout: float = 120.0
    cached_scores: int = 1 << 16
    prefix_cache_bytes: int = 512 * MIB
    complete_texts: bool = False
    token_file: str | None = None


def host_names(words: list[str]) -> tuple[str, ...]:
    """Names as a ``Host`` header has them in front of its port.

    Raises:
        SettingsError: one has a scheme, a port or brackets.
    """
    for word in words:
        if not word or set(word) & set(":/[] "):
            raise SettingsError(
                f"--allowed-host {word} is not a host name; expected a host without scheme and"
                " port."
            )
    return tuple(words)


def model_sources(words: list[str]) -> tuple[ModelSource, ...]:
    """``PATH`` or ``NAME=PATH`` each; a path's last part is its name.

    Raises:
        SettingsError: two models of one name.
    """
    sources: list[ModelSource] = []
    for word in words:
        name, given, path = word.partition("=")
        # A folder whose own name holds "=" is a path.
        if not given or not name or Path(word).exists():
            name, path = "", word
        name = name or Path(path).resolve().name or path
        if any(source.name == name for source in sources):
            raise SettingsError(
                f"Two models have the name {name}; set different names: {name}-a=PATH"
                f" {name}-b=PATH."
            )
        sources.append(ModelSource(name=name, path=path))
    return tuple(sources)
