"""Models with several outputs in the layouts of other tools, and averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import plaudit
from plaudit import registry
from plaudit.errors import ModelError
from plaudit.interop.export import export
from plaudit.interop.merge import merge
from tests.models import THREE, build_base, saved_with_outputs

pytestmark = pytest.mark.heavy

PROMPT, ANSWERS = "what is it?", ["forty two right", "no wrong", "it is so"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("to", registry.names("exporter"))
def test_an_export_gives_the_reward_of_the_outputs(to: str, base: Path, tmp_path: Path) -> None:
    """The export's own check has scored it with the tool's reader before the folder appears."""
    model = saved_with_outputs(tmp_path / "model", base, lora=True)
    result = export(model, to, tmp_path / "out")
    assert result.parity is not None
    assert any("0.6 * helpful + 0.5 * true + -0.1 * short" in note for note in result.notes)
    if not registry.find("exporter", to).plain:
        return
    again = plaudit.load(tmp_path / "out")
    assert again.metadata.outputs is None
    rewards = plaudit.load(model).score(PROMPT, ANSWERS)
    assert np.diff(again.score(PROMPT, ANSWERS)) == pytest.approx(np.diff(rewards), abs=1e-4)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_an_average_of_models_has_their_outputs(lora: bool, base: Path, tmp_path: Path) -> None:
    other = replace(THREE, weights=(0.2, 0.7, 0.1), offsets=(0.0, 1.0, 3.0))
    models = [
        saved_with_outputs(tmp_path / name, base, lora=lora, outputs=outputs)
        for name, outputs in (("one", THREE), ("two", other))
    ]
    merge(models, tmp_path / "out")
    found = plaudit.load(tmp_path / "out").metadata.outputs
    assert found is not None
    assert found.names == THREE.names
    assert found.weights == pytest.approx((0.4, 0.6, 0.0))
    assert found.offsets == pytest.approx((1.0, 2.0, 2.0))


def test_models_of_other_outputs_cannot_be_averaged(base: Path, tmp_path: Path) -> None:
    renamed = replace(THREE, names=("helpful", "true", "long"))
    models = [
        saved_with_outputs(tmp_path / name, base, lora=True, outputs=outputs)
        for name, outputs in (("one", THREE), ("two", renamed))
    ]
    with pytest.raises(ModelError, match="different outputs"):
        merge(models, tmp_path / "out")
    assert not (tmp_path / "out").exists()
