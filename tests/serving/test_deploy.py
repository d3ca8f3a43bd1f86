"""The files of ``deploy/`` name options, paths, users and times that exist and agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from plaudit.cli.serve import serve
from plaudit.serving.app import OPEN_PATHS
from plaudit.serving.settings import ServerSettings

pytestmark = pytest.mark.heavy

DEPLOY = Path(__file__).parents[2] / "deploy"
USER = 10001


@pytest.fixture(scope="module")
def options() -> set[str]:
    import typer

    app = typer.Typer()
    app.command()(serve)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    return set(re.findall(r"--[a-z-]+", shown))


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(read("kubernetes.yaml")))


def compose() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load(read("compose.yaml"))["services"]["plaudit"]
    return service


def container() -> dict[str, Any]:
    (found,) = kubernetes()[0]["spec"]["template"]["spec"]["containers"]
    return found


def commands() -> dict[str, list[str]]:
    (dockerfile,) = re.findall(r"^CMD (\[.*\])$", read("Dockerfile"), re.MULTILINE)
    (unit,) = re.findall(
        r"^ExecStart=\S+/plaudit serve (.*)$", read("plaudit.service"), re.MULTILINE
    )
    return {
        "Dockerfile": yaml.safe_load(dockerfile),
        "compose.yaml": compose()["command"],
        "plaudit.service": unit.split(),
        "kubernetes.yaml": container()["args"],
    }


@pytest.mark.parametrize("name", commands())
def test_commands_use_options_that_there_are(name: str, options: set[str]) -> None:
    words = commands()[name]
    assert all(isinstance(word, str) for word in words)
    used = {word for word in words if word.startswith("--")}
    assert used
    assert used <= options
    assert words[words.index("--port") + 1] == "8000"


def test_probes_need_no_token() -> None:
    probes = {
        f"{kind}Probe": container()[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")
    }
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }
    checks = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", read("Dockerfile"))
    assert checks == ["/health"]
    assert {*paths.values(), *checks} <= OPEN_PATHS


def test_nothing_is_killed_while_it_answers() -> None:
    settings = ServerSettings(models=())
    needed = settings.drain_notice + settings.drain_timeout
    pod = kubernetes()[0]["spec"]["template"]["spec"]
    before = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= needed + before
    assert int(compose()["stop_grace_period"].rstrip("s")) >= needed
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", read("plaudit.service"), re.MULTILINE)
    assert int(stop) >= needed


def test_nobody_is_root_and_nothing_is_writable() -> None:
    assert f"USER {USER}:{USER}" in read("Dockerfile")
    pod = kubernetes()[0]["spec"]["template"]["spec"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (
        USER,
        True,
    )
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    assert compose()["read_only"] is True
    unit = set(read("plaudit.service").splitlines())
    assert {"DynamicUser=yes", "ProtectSystem=strict"} <= unit
    assert "ProcSubset=pid" not in unit, "torch does not start without /proc/cpuinfo"


def test_the_service_leads_to_the_deployment() -> None:
    deployment, service = kubernetes()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in container()["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == volumes


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "plaudit.service"
    # It looks for the program, which is not installed there.
    unit.write_text(read("plaudit.service").replace("/opt/plaudit/bin/plaudit", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
