"""Documentation that cannot rot: its commands and code are run, its recipes and rows are read.

A page is run from top to bottom in a folder of its own that holds what the pages name: a tiny base
``my-base/``, files of pairs, and a finished run wherever a page uses one it did not make. A block
that could be run and is neither run nor listed here with a reason fails.

A ``text`` block is the output of the command or code before it, and is compared with what that
printed: see :func:`check_output`. Diagrams and file trees stand in blocks without a language.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from plaudit.cli.main import main
from plaudit.data.formats.readers import READERS, choose_reader, to_comparison
from plaudit.recipe.load import parse_recipe
from plaudit.recipe.problems import fields_of
from plaudit.recipe.schema import LossSection
from plaudit.recipe.yaml import read_yaml
from tests.conftest import pair_rows, write_jsonl
from tests.foreign import put_foreign_models
from tests.servers import running

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], key=lambda path: path.relative_to(ROOT)
)
SHELL = ("bash", "sh")
NOT_RUN_LANGUAGES = ("", "text", "json", "yaml")

# Commands that are not run here: how they begin, and why.
NOT_RUN = {
    "torchrun": "tests/laws/test_one_step.py runs two ranks; a page may ask for GPUs",
    "accelerate launch": "several GPUs",
    "python scripts/pretrain_embedded_base.py": "41 minutes of one core",
    "python scripts/measure_embedded_base.py": "minutes, on a base that was just pretrained",
    "plaudit train reference-schedule-small": "16,203 steps, half an hour and more",
    "plaudit compare runs/reference": "the evaluations of that run",
    "python -m benchmarks.studies.reference_schedule": "the checkpoints of that run",
    "plaudit eval runs/first --suite": "the Hub; tests/cli/test_eval_suites.py runs local folders",
    "plaudit push runs/first": "tests/cli/test_hub.py uploads to a Hub on loopback",
    "plaudit pull": "tests/cli/test_hub.py downloads from a Hub on loopback",
    "plaudit serve": "runs until it is stopped; tests/cli/test_serve.py starts it",
    "pip install": "the network",
    "python -m pip wheel": "the network",
    "python -c": "makes a token, which nothing here needs",
    "docker": "a container daemon",
    "MODEL=$PWD/runs/first": "a container daemon",
    "systemctl": "a machine's service manager",
    "kubectl": "a cluster",
    "vllm serve": "another tool's server, on a GPU",
    "python -m sglang.launch_server": "another tool's server, on a GPU",
    "python -m openrlhf.cli.train_ppo_ray": "another tool's trainer, on GPUs",
    "python -m benchmarks.quality.real_data": "half an hour, on preference sets elsewhere",
    "python -m benchmarks.speed.training": "minutes, on data elsewhere",
}
# Standard tools that pages use to look at files; run by a shell in the page's folder.
STANDARD_TOOLS = ("cat", "cp", "head", "ls", "mkdir", "mv", "tail", "wc")

# Pages that ask a server: a real one of ``runs/first`` stands in for the address they name.
ADDRESS = "http://127.0.0.1:8000"
ASKS_A_SERVER = ("README.md", "docs/how-to/serve-a-model.md", "docs/how-to/use-the-client.md")

# Code that goes into a file of the project, run with the names of those files in place.
GOES_INTO = {
    "docs/how-to/add-a-reader.md": ("plaudit.data.formats.readers",),
    "docs/how-to/add-a-protocol.md": ("plaudit.serving.protocols.table",),
    "docs/how-to/add-a-loss.md": (
        "plaudit.losses.pairwise",
        "plaudit.recipe.objectives",
        "tests.losses.test_objectives",
    ),
    "docs/how-to/add-a-suite.md": ("plaudit.evaluation.suites.table",),
    "docs/how-to/add-a-check.md": ("plaudit.data.audit.checks",),
    "docs/how-to/add-a-command.md": ("plaudit.cli.main",),
    "docs/how-to/add-a-perturbation.md": (
        "plaudit.data.perturb.text",
        "plaudit.data.perturb.table",
    ),
    "docs/how-to/add-a-writer.md": ("plaudit.data.formats.writers",),
}

# Pages that a script writes; tests/goldens/test_reference.py compares them with what it writes.
GENERATED = ("docs/reference/cli.md", "docs/reference/http.md")

# Commands whose exit code 1 is a result: on a few rows no temperature is better beyond noise.
MAY_SAY_NO = ("calibrate",)

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
RUN_FOLDER = re.compile(r"\bruns/[\w.-]*\w")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, and the line it starts on."""

    language: str
    text: str
    line: int


class Printed(NamedTuple):
    """What a command wrote to stdout and to stderr."""

    out: str
    err: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=match[2],
            text="\n".join(line.removeprefix(match[1]) for line in match[3].splitlines()) + "\n",
            line=text[: match.start()].count("\n") + 1,
        )
        for match in FENCE.finditer(text)
    ]


def of_language(*languages: str) -> list[Any]:
    """``pytest`` parameters: every block of these languages, named by page and line."""
    return [
        pytest.param(page, block, id=f"{name_of(page)}:{block.line}")
        for page in PAGES
        for block in blocks(page)
        if block.language in languages
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of each command; a backslash joins lines and ``#`` starts a comment."""
    joined = block.text.replace("\\\n", " ")
    split = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [words for words in split if words]


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in (*SHELL, "python")]


def listed(words: list[str]) -> bool:
    command = " ".join(words)
    return any(command == start or command.startswith(f"{start} ") for start in NOT_RUN)


# ---- the folder a page runs in -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Verbs silence libraries for the rest of their process, which here goes on to other tests."""
    found = logging.getLogger("plaudit")
    before = (found.level, found.propagate, list(found.handlers))
    environment = dict(os.environ)
    yield
    found.setLevel(before[0])
    found.propagate = before[1]
    found.handlers[:] = before[2]
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


@pytest.fixture
def workplace(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder that the pages assume."""
    (tmp_path / "my-base").symlink_to(tiny_base)
    put_foreign_models(tmp_path)
    for seed, name in enumerate(("pairs", "held_out", "hard", "final")):
        write_jsonl(tmp_path / f"{name}.jsonl", pair_rows(24, seed=seed))
    problems = [{**row, "problem": row.pop("prompt")} for row in pair_rows(24, seed=9)]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    for name, rows in labelled_rows(24).items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def labelled_rows(count: int) -> dict[str, list[dict[str, Any]]]:
    """Rows with labels other than pairs, by the name of their file."""
    rows: dict[str, list[dict[str, Any]]] = {
        n: [] for n in ("ratings", "votes", "ties", "rankings", "rated")
    }
    for at, pair in enumerate(pair_rows(count, seed=10)):
        prompt, both = pair["prompt"], [pair["chosen"], pair["rejected"]]
        one = both[at % 2]
        rows["ratings"].append({"prompt": prompt, "responses": [one], "grades": [1 + at % 5]})
        rows["votes"].append({"prompt": prompt, "completion": one, "label": at % 2 == 0})
        rows["ties"].append({"prompt": prompt, "responses": both, "grades": [1, int(at % 3 == 0)]})
        attributes = {"helpfulness": [4, at % 3], "verbosity": [at % 2, None]}
        rows["rated"].append({**pair, "attributes": attributes})
        more = [[{"role": "assistant", "content": f"{at + n}"}] for n in range(2)]
        rows["rankings"].append(
            {"prompt": prompt, "responses": [*both, *more], "grades": [3, 1, 2, 0]}
        )
    return rows


def outs(page: Path) -> tuple[set[str], set[str]]:
    """Folders that the page's commands make, and those they go on with."""
    made, resumed = set(), set()
    for block in blocks(page):
        for words in commands(block) if block.language in SHELL else ():
            if "--resume" in words:
                resumed.add(words[2])
            elif "--out" in words:
                made.add(words[words.index("--out") + 1])
        if block.language == "python":
            made |= set(re.findall(r'plaudit\.train\(.*?"(runs/[\w-]+)"', block.text))
    return made, resumed - made


def put_runs(page: Path, workplace: Path, finished_run: Path) -> None:
    """A finished run wherever the page names one that it does not make itself.

    Where the page resumes one, it is put back to a run that was killed after its first checkpoint.
    """
    made, resumed = outs(page)
    code = "\n".join(block.text for block in runnable(page))
    for name in set(RUN_FOLDER.findall(code)) - made:
        shutil.copytree(finished_run, workplace / name)
    for name in resumed:
        stop(workplace / name)


def stop(run: Path) -> None:
    for name in ("metrics.json", "plaudit.json", "adapter_model.safetensors"):
        (run / name).unlink()
    _, *later = sorted(
        (run / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2])
    )
    assert later, "the finished run needs two checkpoints"
    for checkpoint in later:
        shutil.rmtree(checkpoint)


# ---- the tests -----------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name_of(page)) for page in PAGES if runnable(page)]
)
def test_a_page_runs_from_top_to_bottom(
    page: Path, workplace: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_runs(page, workplace, finished_run)
    names: dict[str, Any] = {}
    for module in GOES_INTO.get(name_of(page), ()):
        names |= vars(import_module(module))
    # Tables are copied: a row that a page adds must not be there for other tests.
    names = {n: dict(v) if n.isupper() and type(v) is dict else v for n, v in names.items()}
    names["__name__"] = "page"
    with ExitStack() as servers:
        printed: Printed | None = None
        address = None
        for block in blocks(page):
            where = f"{name_of(page)}:{block.line}"
            if ADDRESS in block.text and name_of(page) in ASKS_A_SERVER:
                address = address or servers.enter_context(running(workplace / "runs/first")).url
                block = replace(block, text=block.text.replace(ADDRESS, address))
            if block.language == "text" and name_of(page) not in GENERATED:
                check_output(block, printed, where)
            elif block.language == "python":
                exec(compile("\n" * block.line + block.text, where, "exec"), names)
                printed = Printed(*capsys.readouterr())
            elif block.language in SHELL:
                for words in commands(block):
                    printed = run_command(words, where, capsys)
    for name in outs(page)[1]:
        assert (workplace / name / "metrics.json").is_file(), f"{name} was not finished"


def run_command(words: list[str], where: str, capsys: pytest.CaptureFixture[str]) -> Printed | None:
    """Run one command and return what it printed; None where it is not run here."""
    if listed(words):
        return None
    command = f"{where}: {shlex.join(words)}"
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"{command}: the Makefile has no such target"
        return None
    if words[0] == "curl" or words[0] in STANDARD_TOOLS:
        fail = ["--fail"] if words[0] == "curl" else []
        done = subprocess.run([*words, *fail], check=True, capture_output=True, text=True)
        return Printed(done.stdout, done.stderr)
    assert words[0] == "plaudit", f"{command}: neither run nor listed in NOT_RUN"
    assert not {"|", ">", "&&", ";", "&"} & set(words), f"{command}: write one plain command"
    code = main(words[1:])
    said_no = code == 1 and words[1] in MAY_SAY_NO
    printed = Printed(*capsys.readouterr())
    assert code == 0 or said_no, f"{command}: exit code {code}: {printed.err[-2000:]}"
    return printed


# How many of these lines a run writes depends on its speed.
PROGRESS = re.compile(r"^step .* training loss .*\n", re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
# Where a warning wraps depends on the width of its numbers.
WRAPPED = re.compile(r"^! .*(?:\n  \S.*)+", re.MULTILINE)


def shape(text: str) -> list[str]:
    """The lines of an output with every number as ``#`` and every gap as one space."""
    text = PROGRESS.sub("", text)
    text = WRAPPED.sub(lambda warning: warning[0].replace("\n", " "), text)
    lines = (" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines())
    return [line for line in lines if line]


def matches(expected: list[str], lines: list[str]) -> bool:
    """Whether the lines are those expected, where ``...`` stands for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in expected
    )
    return re.fullmatch(pattern, "".join(line + "\n" for line in lines)) is not None


def check_output(block: Block, printed: Printed | None, where: str) -> None:
    """The block is what the command before it printed, on either stream or on both.

    Numbers may differ: the pages show real data, which these tests replace by a few rows.
    """
    assert printed is not None, f"{where}: no command before this output was run"
    streams = (printed.out, printed.err, printed.err + printed.out, printed.out + printed.err)
    expected = shape(block.text)
    assert any(matches(expected, shape(text)) for text in streams), (
        f"{where}: the page shows\n{block.text}\nthe command printed\n{printed.err}{printed.out}"
    )


@pytest.mark.parametrize(
    ("page", "lines", "same"),
    [
        ("a 0.5\nb", "a 12.75\nb\n", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("a   b", " a b", True),
        ("! Test set: a\n  b.\n! c", "! Test set: a b.\n! c", True),
        ("a", "a\nb", False),
        ("a\nb", "b\na", False),
        ("loss 0.5", "Loss 0.5", False),
        ("a", "a\nstep 1/2  epoch 0.5    training loss 0.7  accuracy 0.5  9 comparisons/s\n", True),
    ],
)
def test_outputs_are_compared_line_by_line(page: str, lines: str, same: bool) -> None:
    assert matches(shape(page), shape(lines)) is same


@pytest.mark.slow
@pytest.mark.heavy
def test_the_page_of_losses_makes_one_that_passes_its_tests_and_trains(
    tmp_path: Path, workplace: Path
) -> None:
    """Its blocks at the places that it names, in a copy of the project."""
    for folder in ("plaudit", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "copy")
    function, row, case = (
        block.text
        for block in blocks(ROOT / "docs/how-to/add-a-loss.md")
        if block.language == "python"
    )
    for name, text, before in (
        ("plaudit/losses/pairwise.py", function, None),
        ("plaudit/recipe/objectives.py", row, None),
        ("tests/losses/test_objectives.py", case, "\ndef test_every_objective_has_a_value"),
    ):
        path = tmp_path / "copy" / name
        old = path.read_text(encoding="utf-8")
        at = len(old) if before is None else old.index(before)
        path.write_text(f"{old[:at]}\n\n{text}\n{old[at:]}", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "copy")}
    files = ("tests/losses/test_objectives.py", "tests/laws/test_one_step.py")
    pytest_command = ["-m", "pytest", "-q", *files, "-k", "error_rate or by_hand"]
    train_command = ["-m", "plaudit", "train", "--model", str(workplace / "my-base")]
    train_command += ["--data", str(workplace / "pairs.jsonl"), "--out", str(tmp_path / "run")]
    for command in (pytest_command, [*train_command, "--set", "loss.kind=error_rate"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path / "copy",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    recorded = json.loads((tmp_path / "run" / "plaudit.json").read_text(encoding="utf-8"))
    assert recorded["objective"]["kind"] == "error_rate"


def test_what_is_not_run_is_still_in_the_pages() -> None:
    """A line of the list that no page needs any more would hide the next command like it."""
    shell = [block for page in PAGES for block in blocks(page) if block.language in SHELL]
    used = [" ".join(words) for block in shell for words in commands(block) if listed(words)]
    unused = [start for start in NOT_RUN if not any(c.startswith(start) for c in used)]
    assert unused == []


@pytest.mark.parametrize(("page", "block"), of_language(*NOT_RUN_LANGUAGES))
def test_no_command_hides_in_a_block_that_is_not_run(page: Path, block: Block) -> None:
    if name_of(page) == "docs/reference/cli.md":
        return  # examples of --help, which tests/cli/test_help.py parses
    lines = [line.strip() for line in block.text.splitlines()]
    assert [line for line in lines if re.match(r"\$ |plaudit \w", line)] == []


def test_every_block_has_a_known_language() -> None:
    known = {*SHELL, *NOT_RUN_LANGUAGES, "python"}
    unknown = {
        f"{name_of(page)}:{block.line}": block.language
        for page in PAGES
        for block in blocks(page)
        if block.language not in known
    }
    assert unknown == {}


@pytest.mark.parametrize(("page", "block"), of_language("yaml"))
def test_yaml_is_a_part_of_a_recipe(page: Path, block: Block) -> None:
    where = f"{name_of(page)}:{block.line}"
    given = read_yaml(block.text, where)
    for section, required in (("model", {"base": "my-base"}), ("data", {"train": "pairs.jsonl"})):
        given[section] = {**required, **given.get(section, {})}
    parse_recipe(given, where)


@pytest.mark.parametrize(("page", "block"), of_language("json"))
def test_json_is_a_row_that_a_reader_takes(page: Path, block: Block) -> None:
    where = f"{name_of(page)}:{block.line}"
    if name_of(page) == "docs/reference/http.md":
        json.loads(block.text)  # requests and responses, not rows
        return
    for line in block.text.splitlines():
        row = json.loads(line)
        if name_of(page) == "docs/how-to/add-a-reader.md":
            continue  # a row of the format that the page adds; its own code is run above
        reader = choose_reader(row, where=where)
        to_comparison(reader, row, number=1, where=where, source="docs")


def test_the_page_of_formats_shows_every_format() -> None:
    page = ROOT / "docs/reference/data-formats.md"
    sections = re.split(r"^### ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    shown = {}
    for section in sections:
        example = re.search(r"```json\n(.*?)```", section, re.DOTALL)
        assert example is not None, section
        reader = choose_reader(json.loads(example[1]), where="the example")
        shown[section.split("\n")[0]] = reader.name
    assert shown == {name: name for name in READERS}


def test_the_page_of_conversion_names_every_format_and_loss() -> None:
    from plaudit.data.formats.records import LOSSES, SKIP_REASONS
    from plaudit.data.formats.writers import WRITERS

    page = (ROOT / "docs/how-to/convert-and-split.md").read_text(encoding="utf-8")
    named = {
        name
        for line in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for name in re.findall(r"`([\w]+)`", line)
    }
    assert named == {*WRITERS, *SKIP_REASONS, *LOSSES}


def test_the_page_of_objectives_says_what_the_table_says() -> None:
    from plaudit.recipe.objectives import EVERY_OBJECTIVE, OBJECTIVES, OF_OUTPUTS

    page = (ROOT / "docs/how-to/choose-an-objective.md").read_text(encoding="utf-8")
    section = page.partition("## All objectives")[2].partition("\n## Ties")[0]
    formulas, rest = section.split("### Options")
    options, learned = rest.split("### Learned parameters")
    shown = {}
    for family in re.split(r"^(?=\w+wise objectives)", formulas, flags=re.MULTILINE)[1:]:
        for name, _, learns_from, source in table_rows(family):
            shown[name] = (family.partition("wise")[0].lower() + "wise", learns_from, source)
    assert shown == {
        f"`{name}`": (row.family, row.learns_from.replace("_", " "), row.source)
        for name, row in OBJECTIVES.items()
    }
    read_by = {name.strip("`"): users for name, _, users in table_rows(options)}
    every = {key for row in OBJECTIVES.values() for key in row.options}
    assert read_by == {
        key: ", ".join(f"`{name}`" for name, row in OBJECTIVES.items() if key in row.options)
        for key in every
    }
    assert every | EVERY_OBJECTIVE | OF_OUTPUTS == set(fields_of(LossSection))
    assert {
        name.strip("`"): (re.match(r"`(\w+)`", what) or [""])[1]
        for name, what in table_rows(learned)
    } == {name: row.learned for name, row in OBJECTIVES.items() if row.learned is not None}


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    heads = {at for at, row in enumerate(cells) if set("".join(row)) <= set("-| ")}
    return [row for at, row in enumerate(cells) if at not in heads and at + 1 not in heads]


def test_the_page_of_formats_explains_every_reason() -> None:
    from plaudit.data.reasons import EXPLANATIONS
    from plaudit.tokens import encode

    page = (ROOT / "docs/how-to/train-on-your-data.md").read_text(encoding="utf-8")
    section = page.partition("## What is dropped")[2].partition("\n| `tokens.truncation`")[0]
    table = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert table == {
        *EXPLANATIONS,
        encode.OVER_LENGTH,
        encode.TEMPLATE_ERROR,
        encode.NOT_RENDERED,
        encode.IDENTICAL_TOKENS,
        encode.NO_TOKENS,
    }


# Messages of other libraries that the page of error messages explains.
FOREIGN_MESSAGES = ("CUDA out of memory",)


def string_constants() -> list[str]:
    """Every string of the package's sources but docstrings, adjacent literals joined."""
    found = []
    for path in sorted((ROOT / "plaudit").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append("".join(map(str, parts)))
                skipped |= {id(part) for part in node.values}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [node.value] if id(node) not in skipped else []
    return found


@pytest.mark.parametrize(
    ("page", "place"),
    [
        ("docs/how-to/troubleshoot.md", r"^### (`.*`)$"),
        ("docs/how-to/act-on-a-report.md", r"^\| (`.+?`) \|"),
    ],
)
def test_quoted_messages_are_in_the_code(page: str, place: str) -> None:
    """The fixed parts of each message are in one string; an ellipsis stands for what varies."""
    text = (ROOT / page).read_text(encoding="utf-8")
    cells = re.findall(place, text, re.MULTILINE)
    quoted = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 10
    strings = string_constants()
    gone = [
        message
        for message in quoted
        if message not in FOREIGN_MESSAGES
        and not any(in_order(message.split("…"), string) for string in strings)
    ]
    assert gone == []


def in_order(parts: list[str], text: str) -> bool:
    """Whether the text holds the parts one after the other."""
    for part in parts:
        _, found, text = text.partition(part) if part else ("", "found", text)
        if not found:
            return False
    return True


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return text.replace(" ", "-")


def test_the_architecture_page_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", page))
    assert len(named) > 30
    # Folders inside a folder are named by themselves.
    roots = [
        ROOT,
        ROOT / "plaudit",
        *(ROOT / "plaudit" / n for n in ("data", "evaluation", "model")),
    ]
    assert [name for name in sorted(named) if not any((r / name).exists() for r in roots)] == []


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor:
            found = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in found}, f"{name_of(page)}: {link}"


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    links = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)\)", index)}
    missing = [
        name_of(page)
        for page in PAGES
        if page.is_relative_to(ROOT / "docs")
        and page not in {*links, ROOT / "docs/README.md"}
        and page.parent not in links
    ]
    assert missing == []
