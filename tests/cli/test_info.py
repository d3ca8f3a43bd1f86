"""``plaudit info``: what is shown, for people and as JSON."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from plaudit import __version__
from plaudit.cli import info
from plaudit.cli.main import main


def test_versions_devices_cache_and_optional_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(package: str) -> str:
        if package in ("bitsandbytes", "wandb"):
            raise PackageNotFoundError(package)
        return "1.2"

    (tmp_path / "entry.arrow").write_bytes(b"x" * 1500)
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path))
    # Asking torch takes its import.
    monkeypatch.setattr(info, "_devices", lambda: {"cuda:0": "a card, 80.0 GB"})
    monkeypatch.setattr(info, "version", version)
    extras = ["fastapi<1; extra == 'serve'", "pytest>=8; extra == 'test'", "torch>=2"]
    gpu = ['bitsandbytes>=0.46; sys_platform == "linux" and extra == "gpu"']
    monkeypatch.setattr(info, "requires", lambda package: [*extras, *gpu])
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["plaudit"] == __version__
    assert {"python", "torch", "transformers", "peft"} <= facts["versions"].keys()
    assert facts["cache"] == {"folder": str(tmp_path), "files": 1, "bytes": 1500}
    assert facts["optional"].keys() == {"serve", "gpu", "tensorboard", "wandb", "deepspeed"}
    assert facts["optional"]["gpu"]["installed"] is False
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for words in ("a card, 80.0 GB", "fastapi 1.2", "pip install 'plaudit[gpu]'", "install wandb"):
        assert words in shown


def test_files_may_vanish_from_the_cache_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stays").write_bytes(b"xy")
    listed: list[tuple[str, list[str], list[str]]] = [(str(tmp_path), [], ["stays", "deleted"])]
    monkeypatch.setattr(os, "walk", lambda folder: iter(listed))
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path))
    assert info._cache() == info.Cache(folder=str(tmp_path), files=1, bytes=2)


def test_the_cache_may_be_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", "off")
    monkeypatch.setattr(info, "_devices", lambda: {"cpu": "2 cores"})
    assert main(["info"]) == 0
    assert "PLAUDIT_CACHE is off" in capsys.readouterr().out
