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
from typing import TYPE_CHECKING, Any, get_args

import yaml
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

if TYPE_CHECKING:
    from plaudit.serving.protocols.records import Protocol

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
    "train": "The keys of `transformers.TrainingArguments`, with the same names and meanings. A "
    "recipe file has the library's defaults below. `plaudit train --model BASE --data FILE` and "
    "`plaudit init` set a learning rate of 1e-4 with a cosine schedule and 5% warm-up, 2 epochs "
    "and 8 pairs per step. By default plaudit evaluates and saves ten times per run, keeps the "
    "checkpoint with the lowest validation loss and the last one, logs every 10 steps and reports "
    "to no tracker. Without evaluation data, `eval_strategy` is `no` and plaudit keeps the last "
    "checkpoint.",
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
        rows.append((f"`{key}`", _plain(field.description), accepts, _default(name, key, field)))
    return "\n\n".join([_table(("key", "meaning", "accepts", "default"), rows), *choices])


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
    """Every protocol of the server: its endpoints, a request and the response to it."""
    from plaudit.serving.errors import STATUS
    from plaudit.serving.protocols.table import PROTOCOLS

    recorded = json.loads(HTTP_EXAMPLES.read_text(encoding="utf-8"))
    table = [
        (f"[{name}](#{name})", _endpoints(protocol), protocol.spoken_by, protocol.summary)
        for name, protocol in PROTOCOLS.items()
    ]
    parts = ["# HTTP API", NOTICE, HTTP_INTRODUCTION]
    parts += [_table(("protocol", "endpoints", "used by", "what it returns"), table)]
    parts += [HTTP_NOTES]
    for name, protocol in PROTOCOLS.items():
        schema = TypeAdapter(protocol.request).json_schema()
        parts += [
            f"## {name}",
            f"{protocol.summary}. Used by {protocol.spoken_by}.",
            f"**Endpoints:** {_endpoints(protocol)}",
            *(_body(one) for one in _alternatives(schema)),
            f"**Example request**\n\n{_json_block(protocol.example)}",
            "**Response**",
            _json_block(recorded[name]) if name in recorded else _keys(protocol.response),
            _answer(protocol.response),
        ]
    parts += ["## Models and health", _table(("endpoint", "what it returns"), OTHER_ENDPOINTS)]
    parts += [
        f"`{endpoint}` returns:\n\n{_json_block(response)}"
        for endpoint, response in recorded.items()
        if endpoint == "GET /v1/models"
    ]
    kinds = [(f"`{kind}`", str(status), ERRORS[kind]) for kind, status in STATUS.items()]
    parts += ["## Errors", ERROR_BODY, _table(("type", "status", "meaning"), kinds)]
    return "\n\n".join(part for part in parts if part) + "\n"


HTTP_EXAMPLES = Path(__file__).resolve().parent / "http_examples.json"
"""Responses of a server, written by ``scripts/record_http_examples.py``."""

HTTP_INTRODUCTION = """
[`plaudit serve`](../how-to/serve-a-model.md) has endpoints for its own clients and for clients of
other tools. All of them return the same rewards. The full schemas are at `/openapi.json`.
""".strip()

HTTP_NOTES = """
- `model` names a served model. A client that cannot set it can use `?model=NAME`.
- An unknown key is ignored. An unknown key that looks like a prompt or a system message is an error
  (422), because its text would not be scored.
- A `ChatMessage` is an object with `role` and `content`.
- The example responses are from a small model. Your rewards will differ.

| request header | meaning |
| --- | --- |
| `Authorization: Bearer TOKEN` | the server's token, if it has one |
| `X-Request-Id` | id of the request, repeated in the response and in the server's log |
| `X-Client-Id` | name of the client; the queue takes turns between clients |
| `X-Request-Timeout` | seconds after which the request fails with 504 |
""".strip()

OTHER_ENDPOINTS = (
    ("`GET /v1/models`", "the served models, in the format of OpenAI's API"),
    ("`GET /v1/models/NAME`", "metadata of a model"),
    ("`POST /v1/models/NAME/reload`", "the metadata after the model's folder was loaded again"),
    ("`GET /health`", "200 while the server can score, else 503"),
    ("`GET /ready`", "200 while the server takes requests; 503 while it shuts down"),
    ("`GET /metrics`", "Prometheus metrics"),
)

ERROR_BODY = """
Every error has the same body, in every protocol. After a 4xx error, change the request.
After a 5xx error, send it again, after `Retry-After` seconds if the response has that header.

```json
{"error": {"type": "...", "message": "...", "param": "...", "request_id": "..."}}
```
""".strip()

ERRORS = {
    "bad_request": "the body is not JSON, or a conversation cannot be scored",
    "over_length": "a conversation is longer than the model's maximum length",
    "unauthorized": "the token is missing or wrong",
    "forbidden": "the server has no token, and the host name is not allowed",
    "not_found": "there is no such endpoint",
    "model_not_found": "there is no such model",
    "method_not_allowed": "the endpoint has another method",
    "slow_body": "the request body did not arrive in time",
    "conflict": "the model is already being loaded",
    "body_too_large": "the request body is too large",
    "invalid_request": "a key is missing or has the wrong type, or its content is not supported",
    "reward_not_finite": "the model's reward is NaN or infinite",
    "client_gone": "the client closed the connection",
    "internal_error": "an error in the server; its log has the traceback",
    "unavailable": "the server is shutting down or has stopped scoring",
    "overloaded": "the queue is full",
    "deadline_exceeded": "the request did not finish within its timeout",
}
"""What each type of error means."""


def _endpoints(protocol: Protocol) -> str:
    return ", ".join(f"`{method} {p}`" for p in protocol.paths for method in protocol.methods)


def _json_block(value: Any) -> str:
    return f"```json\n{_folded(value)}\n```"


def _folded(value: Any, indent: str = "") -> str:
    """JSON on one line if it fits, else with an element a line."""
    text = json.dumps(value, ensure_ascii=False)
    if len(indent + text) <= 88 or not isinstance(value, (Mapping, list)):
        return text
    inner = indent + "  "
    if isinstance(value, Mapping):
        parts = [f"{inner}{json.dumps(key)}: {_folded(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _folded(one, inner) for one in value) + f"\n{indent}]"


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
            field.get("description", ""),
            _kind(field),
            "required" if name in required else _json(field.get("default")),
        )
        for name, field in schema["properties"].items()
    ]
    words = _plain(schema.get("description"))
    return f"{words}\n\n" * bool(words) + _table(("key", "meaning", "accepts", "default"), rows)


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


def _keys(response: Any) -> str:
    """The keys of a response without an example, a line for each of its shapes."""
    schema = TypeAdapter(response).json_schema()
    named = schema.get("$defs", {})
    shapes = [
        one if "$ref" not in one else named[one["$ref"].rpartition("/")[2]]
        for one in schema.get("anyOf", [schema])
    ]
    return "\n".join(
        f"- {_kind(one)}"
        if one.get("type") == "array"
        else "- " + ", ".join(f"`{name}`" for name in one["properties"])
        for one in shapes
    )


def _answer(response: Any) -> str:
    """The keys of a response that have descriptions; other tools' protocols have none."""
    schema = TypeAdapter(response).json_schema()
    rows = [
        (f"`{name}`", field["description"], _kind(field))
        for name, field in schema.get("properties", {}).items()
        if "description" in field
    ]
    return _table(("key", "meaning", "type"), rows) if rows else ""


DESCRIPTIONS = Path(__file__).resolve().parent / "metric_descriptions.yaml"
SCHEMA_FILE = "metrics.schema.json"


def described_schema() -> dict[str, Any]:
    """The JSON Schema of ``metrics.json``, a description at each field.

    Raises:
        KeyError: a record or a field has no description.
    """
    words: dict[str, Any] = yaml.safe_load(DESCRIPTIONS.read_text(encoding="utf-8"))
    records = words.pop("records")
    schema = TypeAdapter(RunMetrics | RecordedEvaluation).json_schema(mode="serialization")
    for record, definition in schema["$defs"].items():
        if "properties" in definition:
            definition["description"] = records[record]
        for name, field in definition.get("properties", {}).items():
            interval = f"95% confidence interval of {name.removesuffix('_ci95')}."
            default = {name: interval} if name.endswith("_ci95") else {}
            field["description"] = words.get(f"{record}.{name}") or (default | words)[name]
    return schema


def metrics_schema() -> str:
    """The JSON Schema of ``metrics.json``, of a training run or of an evaluation."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "metrics.json"}
    return json.dumps(dialect | described_schema(), indent=1, ensure_ascii=False) + "\n"


METRICS_INTRODUCTION = """
`plaudit train` and `plaudit eval --out` write `metrics.json`. The model card, the report and the
terminal show its numbers and compute none. [Evaluation metrics](../concepts/metrics.md) says how
each metric is computed. The file validates against a [JSON Schema](metrics.schema.json).

- A number that cannot be computed is `null`.
- Shares and probabilities are between 0 and 1. Losses are in nats.
- An interval is a list of its two ends. All intervals are two-sided, at 95%.
- `format` is the version of the file. It changes if a key changes its name or meaning.

A training run writes a [RunMetrics](#runmetrics), an evaluation a
[RecordedEvaluation](#recordedevaluation).
""".strip()


def metrics_reference() -> str:
    """Every record and field of ``metrics.json``, the outer ones first."""
    records = described_schema()["$defs"]
    order = ["RunMetrics", "RecordedEvaluation"]
    for record in order:
        text = json.dumps(records[record])
        named = re.findall(r'"#/\$defs/(\w+)"', text)
        order += [one for one in dict.fromkeys(named) if one not in order and one != "Interval"]
    parts = ["# Metrics", NOTICE, METRICS_INTRODUCTION]
    for record in order:
        rows = [
            (f"`{name}`", field["description"], _record_kind(field))
            for name, field in records[record]["properties"].items()
        ]
        parts += [f"## {record}", records[record]["description"]]
        parts += [_table(("field", "meaning", "type"), rows)]
    return "\n\n".join(parts) + "\n"


def _record_kind(field: Mapping[str, Any]) -> str:
    """The type of a field of ``metrics.json``; a record links to its section."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(_record_kind, field["anyOf"])))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "interval" if name == "Interval" else f"[{name}](#{name.lower()})"
    if "enum" in field or "const" in field:
        return " or ".join(f"`{v}`" for v in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        # A list of names and values is an array of pairs.
        items = field.get("items", {})
        return "list of pairs" if "prefixItems" in items else f"list of {_record_kind(items)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_record_kind(values)}" if isinstance(values, Mapping) else "mapping"
    names = {"string": "text", "boolean": "true or false"}
    return names.get(field.get("type", "anything"), str(field.get("type", "anything")))


PAGES = {
    "recipe.md": recipe_reference,
    "cli.md": cli_reference,
    "http.md": http_reference,
    "metrics.md": metrics_reference,
    SCHEMA_FILE: metrics_schema,
}

if __name__ == "__main__":
    TARGET.mkdir(parents=True, exist_ok=True)
    for page, write in PAGES.items():
        (TARGET / page).write_text(write(), encoding="utf-8")
        print(f"wrote {TARGET / page}")
