"""YAML as recipes use it: the scalars of YAML 1.2, no key twice, mistakes with their line.

PyYAML reads YAML 1.1, where ``5e-5`` is text, ``no`` is false, ``010`` is eight and
``2024-07-26`` is a date: each a silent mistake in a recipe (``eval_strategy: no``). The loader here
reads numbers, true, false and null as YAML 1.2's core schema does, and everything else as text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from itertools import chain
from typing import Any, Final

import yaml

from plaudit.errors import RecipeError

TAG = "tag:yaml.org,2002:"
CORE_SCHEMA: dict[str, tuple[str, str]] = {
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "float": (
        (
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
    "null": (r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    "merge": (r"^<<$", "<"),
}


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core schema and no duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[yaml.ScalarNode] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    self.repeated.append(key_node)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; quotes what either version of YAML would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in CORE_SCHEMA.items():
    for _kind in (Loader, Dumper):
        _kind.add_implicit_resolver(f"{TAG}{_name}", re.compile(_pattern), list(_first))
Loader.add_constructor(f"{TAG}int", lambda _, node: int(node.value))


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML document.

    Raises:
        RecipeError: the text is not YAML, keys stand twice, or its aliases stand for more than
            :data:`MOST_VALUES`; the message has the lines.
    """
    try:
        loader = Loader(text)
        document = loader.get_single_node()
        if document is not None:
            _check_aliases(document, where)
        value = None if document is None else loader.construct_document(document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
        raise RecipeError(f"{where}{line}: invalid YAML: {' '.join(problem.split())}.") from error
    if loader.repeated:
        raise RecipeError(
            *(
                f"{where}:{node.start_mark.line + 1}: invalid YAML: duplicate key {node.value!r}."
                for node in sorted(loader.repeated, key=lambda node: node.start_mark.line)
            )
        )
    return value


MOST_VALUES: Final = 100_000
"""Keys, values and entries of a document, where each alias counts as all that it stands for."""


def _check_aliases(document: yaml.Node, where: str) -> None:
    """Whether the document is small once its aliases are replaced by what they stand for.

    A few lines of aliases of aliases stand for more than a machine holds, and an anchor that holds
    itself has no end.

    Raises:
        RecipeError: the first node that is too large, by its line.
    """
    sizes: dict[int, float] = {}

    def size_of(node: yaml.Node) -> float:
        known = sizes.get(id(node))
        if known is not None:
            return known
        sizes[id(node)] = math.inf  # what an alias inside the node itself finds
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            inside = chain.from_iterable(node.value)
        size = sizes[id(node)] = 1 + sum(map(size_of, inside))
        if size > MOST_VALUES:
            raise RecipeError(
                f"{where}:{node.start_mark.line + 1}: the YAML aliases expand to more than"
                f" {MOST_VALUES:,} values; write the values out."
            )
        return size

    size_of(document)


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line, counted from 1, of every key and list entry of a document that can be read.

    They are in the order of the document; a key is named by the way to it.
    """
    lines: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node | None, path: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*path, str(key.value))] = key.start_mark.line + 1
                walk(value, (*path, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for number, entry in enumerate(node.value):
                lines[(*path, number)] = entry.start_mark.line + 1
                walk(entry, (*path, number))

    walk(yaml.compose(text, Loader=Loader), ())
    return lines


def write_yaml(value: Any) -> str:
    """A YAML document that :func:`read_yaml` reads back as the same value, keys in given order."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
