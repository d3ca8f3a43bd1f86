"""``plaudit info``: versions, devices, cache and optional parts of this installation."""

from __future__ import annotations

import json as json_module
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Final

import typer

DEVELOPMENT: Final = ("test", "dev")
"""Extras that no command needs."""

PACKAGES: Final = ("tensorboard", "wandb", "deepspeed")
"""Packages that recipes often name and no extra brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The cache of encoded data; ``folder`` is None where it is off."""

    folder: str | None
    files: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An optional part: the installed packages of it by version, and how to install all."""

    installed: bool
    packages: Mapping[str, str]
    install: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What ``plaudit info`` shows. ``devices`` are descriptions by torch's name."""

    versions: Mapping[str, str]
    platform: str
    devices: Mapping[str, str]
    cache: Cache
    optional: Mapping[str, Part]


def info(
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Show versions, devices, cache and optional packages.

    Examples:
      plaudit info
    """
    from plaudit.report.record import describe_environment

    versions = describe_environment("")
    del versions["device"]
    installation = Installation(
        platform=versions.pop("platform"),
        versions=versions,
        devices=_devices(),
        cache=_cache(),
        optional=_optional(),
    )
    if json:
        print(json_module.dumps(asdict(installation), indent=2))
        return
    for title, rows in _tables(installation):
        print(title)
        width = max(len(name) for name in rows)
        for name, value in rows.items():
            print(f"  {name:<{width}}  {value}")


def _tables(installation: Installation) -> Iterable[tuple[str, Mapping[str, str]]]:
    """What is printed: titles, and values by name."""
    cache = installation.cache
    size = f"{cache.bytes / 1e6:,.1f} MB in {cache.files:,} files"
    yield "versions", {**installation.versions, "platform": installation.platform}
    yield "devices", installation.devices
    yield "cache", {cache.folder: size} if cache.folder else {"off": "PLAUDIT_CACHE is off"}
    yield (
        "optional packages",
        {
            name: ", ".join(f"{package} {number}" for package, number in part.packages.items())
            if part.installed
            else part.install
            for name, part in installation.optional.items()
        },
    )


def _devices() -> dict[str, str]:
    """Devices by torch's name; torch alone knows them."""
    import torch

    from plaudit.model.precision import has_bf16

    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in torch"}
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        bf16 = "" if has_bf16(torch.device("cuda", number)) else ", no bfloat16"
        devices[f"cuda:{number}"] = f"{card.name}, {card.total_memory / 1e9:.1f} GB{bf16}"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _cache() -> Cache:
    from plaudit.storage.arrow import cache_folder

    folder = cache_folder()
    sizes = []
    for below, _, names in () if folder is None else os.walk(folder):
        for name in names:
            # Other processes may delete files meanwhile.
            with suppress(OSError):
                status = (Path(below) / name).stat()
                if S_ISREG(status.st_mode):
                    sizes.append(status.st_size)
    return Cache(folder=None if folder is None else str(folder), files=len(sizes), bytes=sum(sizes))


def _optional() -> dict[str, Part]:
    """The extras of the distribution, and the packages beside them."""
    extras: dict[str, list[str]] = {}
    try:
        requirements = requires("plaudit") or []
    except PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        # As in `uvicorn<1,>=0.54; extra == "serve"`.
        match = re.match(r"""([\w.-]+).*\bextra == ["'](\w+)["']""", requirement)
        if match is not None and match[2] not in DEVELOPMENT:
            extras.setdefault(match[2], []).append(match[1])
    return {
        **{name: _part(packages, f"'plaudit[{name}]'") for name, packages in extras.items()},
        **{name: _part([name], name) for name in PACKAGES},
    }


def _part(packages: Sequence[str], install: str) -> Part:
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Part(
        installed=len(versions) == len(packages),
        packages=versions,
        install=f"pip install {install}",
    )
