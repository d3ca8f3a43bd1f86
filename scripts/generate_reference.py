"""Write the pages of ``docs/reference`` from the code.

The recipe's keys, types, effective defaults and meanings come from its sections, the commands'
options from their own ``--help``, HTTP from the table of protocols, the JSON Schema of
``metrics.json`` from its records. A test compares the pages with
this script's output.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from plaudit.cli.data import COMMANDS as DATA_VERBS
from plaudit.cli.main import COMMANDS, main
from plaudit.evaluation.schema import RecordedEvaluation, RunMetrics
from plaudit.recipe.load import parse_recipe
from plaudit.recipe.problems import expected, fields_of, is_section, shown
from plaudit.recipe.schema import (
    HF_KEYS,
    KEY_VERSIONS,
    LORA_DEFAULTS,
    MANAGED,
    Recipe,
    Source,
    TemplateSection,
)

GROUPS = {"data": DATA_VERBS}
"""Verbs that have verbs of their own."""

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTICE = "<!-- Written by scripts/generate_reference.py; run `make docs` after a change. -->"


def recipe_reference() -> str:
    """Every key of a recipe: what it accepts, its default and its meaning."""
    parts = ["# Recipe keys", NOTICE, INTRODUCTION]
    for name, field in Recipe.model_fields.items():
        section = next(filter(is_section, (field.annotation, *get_args(field.annotation))))
        parts += [f"## {name}", ABOUT.get(name) or _plain(section.__doc__)]
        parts += _library_section(name, section) if name in MANAGED else [_section(name, section)]
        if name == "data":
            parts += ["### Sources", _plain(Source.__doc__), _section("source", Source)]
        if name == "tokens":
            parts += ["### Template", _plain(TemplateSection.__doc__)]
            parts += [_section("template", TemplateSection)]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """
A recipe is a YAML file with one section per stage:

```yaml
model:
  base: my-base
data:
  train: pairs.jsonl
train:
  learning_rate: 1.0e-5
  num_train_epochs: 1
```

Only `model.base` and `data.train` are required. Any key can be set on the command line:
`--set train.learning_rate=1e-5`. `plaudit init` writes a commented recipe, and
[shipped recipes](../../plaudit/recipes) are complete examples.

- An unknown key is an error that names the nearest known key. All problems of a recipe are
  reported together, each with its line.
- `~` at the start of a path is the home folder.
- Numbers, `true`, `false` and `null` are read as in YAML 1.2: `5e-5` is a number, `no` is text.
""".strip()

ABOUT = {
    "lora": "The keys of `peft.LoraConfig`, with the same names and meanings. `lora: null` trains "
    "all weights. Keys that a recipe does not set have the defaults below.",
    "train": "The keys of `transformers.TrainingArguments`, with the same names and meanings. By "
    "default plaudit evaluates and saves ten times per run, keeps the checkpoint with the lowest "
    "validation loss and the last one, logs every 10 steps and reports to no tracker. Without "
    "evaluation data, `eval_strategy` is `no` and plaudit keeps the last checkpoint.",
}
"""Introductions of the sections whose keys belong to another library."""

LIBRARIES = {"lora": ("peft", "PEFT"), "train": ("transformers", "transformers")}

COMMON: Mapping[str, Mapping[str, str]] = runpy.run_path(
    str(Path(__file__).resolve().parent / "generate_recipe_keys.py")
)["COMMON"]
"""Keys of other libraries that most recipes set, by section."""

MOST_CHOICES = 8
"""Choices of a key that are listed in its row; more are listed below the table."""


def _library_section(name: str, section: Any) -> list[str]:
    """Common keys, the other keys and the managed ones of a section of another library."""
    keys = fields_of(section)
    others = [key for key in keys if key not in COMMON[name]]
    package, title = LIBRARIES[name]
    managed = [(f"`{key}`", advice) for key, advice in MANAGED[name].items()]
    return [
        f"### Common {name} keys",
        _section(name, section, COMMON[name]),
        f"### Other {name} keys",
        f"Meanings are from the documentation of {title} {KEY_VERSIONS[package]}.",
        _section(name, section, others),
        f"### Managed {name} keys",
        "plaudit sets these keys. Setting one in a recipe is an error.",
        _table(("key", "reason, or what to use"), managed),
    ]


def _plain(docstring: str | None) -> str:
    """A docstring as Markdown: one paragraph a blank line, code between single backticks."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(one.replace("``", "`").split()) for one in paragraphs)


def _section(name: str, section: Any, keys: Iterable[str] | None = None) -> str:
    """The table of a section's keys; those with many choices have them in a list below."""
    known = fields_of(section)
    rows, choices = [], []
    for key in known if keys is None else keys:
        field = known[key]
        accepts = expected(field.annotation, field.metadata)
        names = re.split(r", | or ", accepts)
        if len(names) > MOST_CHOICES:
            accepts = "a name, listed below"
            choices.append(f"`{key}` accepts {', '.join(f'`{one}`' for one in names)}.")
        rows.append((f"`{key}`", accepts, _default(name, key, field), _plain(field.description)))
    return "\n\n".join([_table(("key", "accepts", "default", "meaning"), rows), *choices])


def _default(section: str, key: str, field: FieldInfo) -> str:
    """The value that is in effect where a recipe does not set a key."""
    if section not in HF_KEYS:
        value = field.get_default(call_default_factory=True, validated_data={})
        return "required" if field.is_required() else _code(value)
    smallest = parse_recipe({"model": {"base": "base"}, "data": {"train": "pairs"}}, "smallest")
    ours = {"train": smallest.training_arguments, "lora": LORA_DEFAULTS}[section]
    return _code(ours.get(key, HF_KEYS[section][key].default))


def _code(value: Any) -> str:
    if isinstance(value, str) and value:
        return f"`{value}`"
    return f"`{shown(list(value) if isinstance(value, tuple) else value)}`"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def cli_reference() -> str:
    """The help of plaudit, of every command and of the commands of each group, as tables."""
    introduction = (
        "`plaudit COMMAND --help` prints the same text. Exit codes: 0 success, 1 failure, 2 usage "
        "error."
    )
    parts = [
        "# Commands",
        NOTICE,
        introduction,
        *_help_page((), link="plaudit-"),
    ]
    for name in COMMANDS:
        parts += [f"## plaudit {name}", *_help_page((name,), link=f"plaudit-{name}-")]
        for command in GROUPS.get(name, ()):
            parts += [f"### plaudit {name} {command}", *_help_page((name, command))]
    return "\n\n".join(parts) + "\n"


HELP_OPTION = "-h, --help"


def _help_page(command: tuple[str, ...], *, link: str = "") -> list[str]:
    """The help of a command as Markdown; names of its own commands link to their sections."""
    usage, *lines = _help(*command).splitlines()
    parts = [f"**Usage:** `{usage.removeprefix('Usage: ')}`"]
    text, sections = _sections(lines)
    parts += [_as_markdown(paragraph) for paragraph in text]
    for title, entries in sections.items():
        if title == "Examples":
            examples = "\n".join(name for name, _ in entries)
            parts += ["**Examples**", f"```\n{examples}\n```"]
            continue
        rows = [
            (_name(name, title, link), _as_markdown(meaning))
            for name, meaning in entries
            if name != HELP_OPTION
        ]
        if rows:
            kind = "argument" if title == "Arguments" else "option"
            kind = "command" if link and rows[0][0].startswith("[") else kind
            parts += [f"**{title}**", _table((kind, "meaning"), rows)]
    return parts


def _sections(lines: Sequence[str]) -> tuple[list[str], dict[str, list[tuple[str, str]]]]:
    """The paragraphs of a help text, and the names and meanings of each titled section."""
    text = [""]
    sections: dict[str, list[tuple[str, str]]] = {}
    entries = None
    for line in lines:
        if line and not line.startswith(" "):
            entries = sections.setdefault(line.rstrip(":"), [])
        elif entries is None:
            text = [*text[:-1], f"{text[-1]} {line.strip()}".strip()] if line else [*text, ""]
        elif line.startswith("   ") and entries:
            name, meaning = entries[-1]
            entries[-1] = (name, f"{meaning} {line.strip()}".strip())
        elif line:
            name, _, meaning = line.strip().partition("  ")
            entries.append((name, meaning.strip()))
    return [paragraph for paragraph in text if paragraph], sections


def _name(name: str, title: str, link: str) -> str:
    is_command = not name.startswith("-") and "Argument" not in title and link
    return f"[`{name}`](#{link}{name})" if is_command else f"`{name}`"


def _as_markdown(text: str) -> str:
    """Options as code, and what stands in brackets behind a meaning as sentences."""
    text = re.sub(r"  ?\[default: (.+?)\]", r" Default: `\1`.", text)
    text = re.sub(r"  ?\[(\w+)\]", lambda found: f" {found[1].capitalize()}.", text)
    return re.sub(r"(?<![`\w-])(--[a-z][\w-]*(?: [A-Z]+)?)", r"`\1`", text)


def _help(*command: str) -> str:
    output = io.StringIO()
    with _columns(100), contextlib.redirect_stdout(output):
        code = main([*command, "--help"])
    assert code == 0, f"plaudit {' '.join(command)} --help ended with {code}"
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines())


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def http_reference() -> str:
    """Every protocol of the server: where, what is asked, what is answered."""
    from plaudit.serving.errors import STATUS
    from plaudit.serving.protocols.table import PROTOCOLS

    parts = ["# HTTP", NOTICE, _http_introduction()]
    for protocol in PROTOCOLS.values():
        schema = TypeAdapter(protocol.request).json_schema()
        places = ", ".join(f"`{method} {p}`" for p in protocol.paths for method in protocol.methods)
        example = json.dumps(protocol.example, ensure_ascii=False)
        parts += [
            f"## {protocol.name}",
            f"{protocol.summary}. Used by {protocol.spoken_by}.",
            places,
            *(_body(one) for one in _alternatives(schema)),
            f"Example request:\n\n```text\n{example}\n```",
            "Response:\n\n" + _answer(protocol.response),
        ]
    kinds = [(f"`{kind}`", str(status)) for kind, status in STATUS.items()]
    parts += ["## Errors", _table(("type", "status"), kinds)]
    return "\n\n".join(parts) + "\n"


def _http_introduction() -> str:
    return (
        "The endpoints of [`plaudit serve`](../how-to/serve-a-model.md). The full schemas are at "
        "`/openapi.json`. Other endpoints: `GET /v1/models`, `GET /v1/models/NAME`, "
        "`POST /v1/models/NAME/reload`, `GET /health`, `GET /ready`, `GET /metrics`. Request "
        "headers: `Authorization: Bearer …`, `X-Request-Id`, `X-Client-Id`, `X-Request-Timeout`. "
        "Unknown keys are ignored; an unknown key that looks like a prompt or a system message is "
        "an error (422)."
    )


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The object schemas of a body: one, or those of a union."""
    named = schema.get("$defs", {})
    found = schema.get("oneOf", [schema])
    return [named[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in found]


def _body(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            f"`{name}`",
            _kind(field),
            "required" if name in required else _json(field.get("default")),
            field.get("description", ""),
        )
        for name, field in schema["properties"].items()
    ]
    words = " ".join(schema.get("description", "").split())
    return f"{words}\n\n" * bool(words) + _table(("key", "accepts", "default", ""), rows)


def _kind(field: Mapping[str, Any]) -> str:
    """A JSON schema's type in a few words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one) for one in field["anyOf"]))
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "enum" in field or "const" in field:
        return " or ".join(_json(v) for v in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = _kind(field.get("items", {}))
        return f"list of ({items})" if " or " in items else f"list of {items}"
    return str(field.get("type", "anything"))


def _json(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _answer(response: Any) -> str:
    schema = TypeAdapter(response).json_schema()
    named = schema.get("$defs", {})
    shapes = [
        one if "$ref" not in one else named[one["$ref"].rpartition("/")[2]]
        for one in schema.get("anyOf", [schema])
    ]
    lines = []
    for shape in shapes:
        if shape.get("type") == "array":
            lines.append(f"- a list of {_kind(shape['items'])}")
        else:
            lines.append("- " + ", ".join(f"`{name}`" for name in shape["properties"]))
    return "\n".join(lines)


def metrics_schema() -> str:
    """The JSON Schema of ``metrics.json``, of a training run or of an evaluation."""
    schema = TypeAdapter(RunMetrics | RecordedEvaluation).json_schema(mode="serialization")
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "metrics.json"}
    return json.dumps(dialect | schema, indent=1, ensure_ascii=False) + "\n"


PAGES = {
    "recipe.md": recipe_reference,
    "cli.md": cli_reference,
    "http.md": http_reference,
    "metrics.schema.json": metrics_schema,
}

if __name__ == "__main__":
    TARGET.mkdir(parents=True, exist_ok=True)
    for page, write in PAGES.items():
        (TARGET / page).write_text(write(), encoding="utf-8")
        print(f"wrote {TARGET / page}")
