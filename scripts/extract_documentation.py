"""Extract the documentation corpus from the running CPython.

    python scripts/extract_documentation.py [--out FILE]

Reads docstrings of the standard library (Python modules by parsing their source, C modules by
importing them), the language-reference topics of ``pydoc_data`` and, for pretraining alone, prose
comments and the test suite's docstrings; cleans them, parts them by module and removes near copies
across the parts.
The result depends on the Python version (and, for a few C modules, on how it was built); two runs
of one interpreter write the same bytes. The shipped corpus was made with CPython 3.11.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import lzma
import re
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

from plaudit.data.sources.documentation import Documentation, Kind, Part, is_prose, unwrap
from plaudit.embedded import documentation_path
from plaudit.storage.atomic import write_atomically

SHARES: dict[Part, float] = {"pretraining": 0.60, "training": 0.28, "heldout": 0.12}

SHINGLE = 5
NEAR_COPY = 0.5
"""A paragraph is a near copy of a part if half of its 5-word shingles, or more, stand in it."""
REPEAT = 0.9
"""Above this share of shingles already in its own part, a paragraph is said again, not anew."""

SHORTEST_TEXT = 20
SHORTEST_COMMENT = 70

SKIPPED_FOLDERS = {"__pycache__", "pydoc_data", "site-packages", "turtledemo"}
TEST_FOLDERS = {"idle_test", "test", "tests"}
TEST_SUITE = "test suite"
SKIPPED_FILES = re.compile(r"(_sysconfigdata.*|antigravity|this)\.py")
SKIPPED_MODULES = re.compile(r"(_test|_xx|xx|_ctypes_test)")

# One body of text under several module names: they belong to one group, hence to one part.
GROUPS = {
    "collections_abc": "collections", "lsprof": "profile", "cprofile": "profile",
    "compat_pickle": "pickle", "pickletools": "pickle", "genericpath": "os", "ntpath": "os",
    "posixpath": "os", "posix": "os", "nt": "os", "pydecimal": "decimal", "pyio": "io",
    "sre_compile": "re", "sre_constants": "re", "sre_parse": "re", "sre": "re",
    "strptime": "time", "thread": "threading", "threading_local": "threading",
    "markupbase": "html", "elementtree": "xml", "pyexpat": "xml", "compression": "gzip",
    "osx_support": "distutils", "aix_support": "distutils", "bootsubprocess": "subprocess",
    "posixsubprocess": "subprocess", "sha1": "hashlib", "sha256": "hashlib", "sha512": "hashlib",
    "sha3": "hashlib", "md5": "hashlib", "blake2": "hashlib", "cmath": "math",
    "weakrefset": "weakref", "frozen_importlib": "importlib", "imp": "importlib",
    "frozen_importlib_external": "importlib", "opcode": "dis", "multiprocessing": "multiprocessing",
    "nturl2path": "urllib", "dbm": "dbm", "gdbm": "dbm", "curses_panel": "curses",
    "asynchat": "asyncore", "smtpd": "asyncore", "codecs": "codecs", "multibytecodec": "codecs",
    "token": "tokenize", "contextvars": "contextvars", "xxsubinterpreters": "interpreters",
}  # fmt: skip

SIGNATURE = re.compile(r"^[\w.]+\([^\n]*\)(\s*(->|=>)[^\n]*)?$")
SIGNATURE_THEN_TEXT = re.compile(r"^[\w.]+\([^\n]*?\)\s*(->\s*[\w ,()\[\]]+?)?\s*(--|:)\s+(?=\S)")
UNDERLINE = re.compile(r"^\s*([=\-~*^#+\"'])\1{2,}\s*$", re.MULTILINE)


def main() -> None:
    """Write the corpus and print how many records and characters each part has."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=documentation_path())
    out: Path = parser.parse_args().out
    records = build()
    write_atomically(out, lambda path: path.write_bytes(compress(records)))
    for part in SHARES:
        texts = [record.text for record in records if record.part == part]
        print(f"{part}: {len(texts)} records, {sum(map(len, texts))} characters")
    print(f"{out}: {out.stat().st_size} bytes")


def build() -> tuple[Documentation, ...]:
    """The whole corpus: extracted, parted and without near copies, sorted by kind and name."""
    found = [*python_texts(), *c_docstrings(), *topics()]
    cleaned = (replace(record, text=clean(record.text)) for record in found)
    usable = sorted(
        (record for record in cleaned if len(record.text) >= SHORTEST_TEXT),
        key=lambda record: (record.kind, record.name, record.text),
    )
    parted = assign_parts(_without_repeats(usable))
    kept = remove_near_copies(parted)
    return tuple(sorted(kept, key=lambda record: (record.kind, record.name, record.text)))


def compress(records: Iterable[Documentation]) -> bytes:
    """JSON lines under xz, which stores no time, so that equal records are equal bytes."""
    lines = "".join(
        json.dumps(asdict(record), ensure_ascii=False, sort_keys=True) + "\n" for record in records
    )
    return lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)


def _record(name: str, module: str, kind: Kind, text: str) -> Documentation:
    # The part is known once all records are; until then every record stands in the first.
    return Documentation(name=name, module=module, kind=kind, part="pretraining", text=text)


def _sources() -> Iterator[tuple[str, str, ast.Module]]:
    """Dotted name, source and tree of every Python module of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED_FOLDERS & set(parts) or SKIPPED_FILES.fullmatch(path.name):
            continue
        if not all(part.removesuffix(".py").isidentifier() for part in parts):
            continue
        dotted = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        try:
            with tokenize.open(path) as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = file.read()
                tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue  # the test suite holds files that are wrong on purpose
        yield dotted, source, tree


def python_texts() -> Iterator[Documentation]:
    """Docstrings and comments of Python modules, read from source, nothing imported."""
    for module, source, tree in _sources():
        for name, node in _documented(tree, module):
            text = ast.get_docstring(node)
            if text:
                yield _record(name, module, "docstring", text)
        yield from _comments(module, source)


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(tree: Documented, name: str) -> Iterator[tuple[str, Documented]]:
    yield name, tree
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _documented(node, f"{name}.{node.name}")
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            for inner in ast.iter_child_nodes(node):
                if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield from _documented(inner, f"{name}.{inner.name}")


def c_docstrings() -> Iterator[Documentation]:
    """Docstrings of modules written in C, of their functions, classes and methods."""
    for module in _c_modules():
        yield from _module_docstrings(module)


def _c_modules() -> Iterator[ModuleType]:
    folder = Path(sysconfig.get_paths()["platstdlib"]) / "lib-dynload"
    names = {path.name.split(".")[0] for path in folder.glob("*.so")} | set(
        sys.builtin_module_names
    )
    for name in sorted(names):
        if SKIPPED_MODULES.match(name):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                yield importlib.import_module(name)
        except ImportError:
            print(f"{name}: not importable here, left out", file=sys.stderr)


def _module_docstrings(module: ModuleType) -> Iterator[Documentation]:
    owner = _public(module.__name__)
    if module.__doc__:
        yield _record(owner, owner, "docstring", module.__doc__)
    for name, value in sorted(vars(module).items()):
        if inspect.isclass(value):
            yield from _class_docstrings(value)
        elif inspect.isbuiltin(value) and value.__doc__:
            yield _record(f"{owner}.{name}", owner, "docstring", value.__doc__)


def _class_docstrings(value: type) -> Iterator[Documentation]:
    owner = _public(value.__module__)
    name = f"{owner}.{value.__qualname__}"
    if isinstance(value.__doc__, str):
        yield _record(name, owner, "docstring", value.__doc__)
    for member, item in sorted(vars(value).items()):
        text = getattr(item, "__doc__", None)
        documented = inspect.isroutine(item) or inspect.isdatadescriptor(item)
        if documented and not inspect.isfunction(item) and isinstance(text, str):
            yield _record(f"{name}.{member}", owner, "docstring", text)


def _public(module: str) -> str:
    """The name people import: ``io`` for ``_io``, ``os`` for ``posix``."""
    name = {"posix": "os", "_sre": "re", "_thread": "threading"}.get(module, module)
    return name[1:] if name[0] == "_" and name[1:] in sys.stdlib_module_names else name


def topics() -> Iterator[Documentation]:
    """Topics of the language reference, as ``help("TOPIC")`` shows them."""
    found: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name, text in found.items():
        yield _record(name, name, "topic", text)


def _comments(module: str, source: str) -> Iterator[Documentation]:
    """Runs of whole-line comments that are prose, :data:`SHORTEST_COMMENT` characters or more."""
    for block in _comment_blocks(source):
        text = "\n\n".join(unwrap(part) for part in block.split("\n\n") if is_prose(part))
        if len(text) >= SHORTEST_COMMENT:
            yield _record(module, module, "comment", text)


def _comment_blocks(source: str) -> Iterator[str]:
    lines: list[str] = []
    for line in (*source.splitlines(), ""):
        stripped = line.strip()
        if stripped.startswith("#") and not stripped.startswith("#!"):
            lines.append(stripped.lstrip("#").removeprefix(" "))
        elif lines:
            yield "\n".join(lines)
            lines = []


def clean(text: str) -> str:
    """Dedented text without signature lines, doctests, underlines and repeated empty lines."""
    text = inspect.cleandoc(text).replace("\r", "")
    text = SIGNATURE_THEN_TEXT.sub("", _without_signatures(text))
    text = UNDERLINE.sub("", text)
    paragraphs = (_without_doctest(paragraph).rstrip() for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph.strip())


def _without_signatures(text: str) -> str:
    lines = text.split("\n")
    while lines and (SIGNATURE.match(lines[0]) or not lines[0].strip()):
        lines.pop(0)
    return inspect.cleandoc("\n".join(lines))


def _without_doctest(paragraph: str) -> str:
    """The paragraph up to its first doctest prompt; what follows is code and output."""
    start = re.search(r"^\s*>>>", paragraph, re.MULTILINE)
    return paragraph[: start.start()] if start else paragraph


def words(text: str) -> tuple[str, ...]:
    """The text's words and numbers in lower case: what copies are compared by."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def shingles(text: str, size: int = SHINGLE) -> frozenset[tuple[str, ...]]:
    """Every run of ``size`` words; the whole text where it is shorter."""
    found = words(text)
    return frozenset(found[at : at + size] for at in range(max(len(found) - size + 1, 1)))


def _without_repeats(records: Iterable[Documentation]) -> list[Documentation]:
    """The first record of each text, words compared; the test suite's copies give way."""
    first: dict[tuple[str, ...], Documentation] = {}
    for record in sorted(records, key=lambda record: _group(record) == TEST_SUITE):
        first.setdefault(words(record.text), record)
    return list(first.values())


def assign_parts(records: Iterable[Documentation]) -> list[Documentation]:
    """Give whole groups of modules, and whole topics, to one part each.

    The largest packages are the base's reading, so that the comparisons are about many modules and
    none weighs much. Comments follow their module, and only those of pretraining are kept.
    """
    records = list(records)
    part_of = {**_module_parts(records), **_topic_parts(records)}
    parted = (replace(record, part=part_of[_group(record)]) for record in records)
    return [item for item in parted if item.kind != "comment" or item.part == "pretraining"]


def _module_parts(records: Iterable[Documentation]) -> dict[str, Part]:
    sizes = Counter({TEST_SUITE: 0})
    for record in records:
        if record.kind != "topic" and _group(record) != TEST_SUITE:
            sizes[_group(record)] += len(record.text) if record.kind == "docstring" else 0
    parts: dict[str, Part] = {TEST_SUITE: "pretraining"}
    filled: Counter[Part] = Counter()
    for group, size in _largest_first(sizes):
        lacking = filled["pretraining"] < SHARES["pretraining"] * sizes.total()
        part: Part = "pretraining" if lacking else _neediest(filled, ("training", "heldout"))
        filled[part] += size
        parts.setdefault(group, part)
    return parts


def _topic_parts(records: Iterable[Documentation]) -> dict[str, Part]:
    sizes = Counter({_group(item): len(item.text) for item in records if item.kind == "topic"})
    parts: dict[str, Part] = {}
    filled: Counter[Part] = Counter()
    for group, size in _largest_first(sizes):
        parts[group] = _neediest(filled, tuple(SHARES))
        filled[parts[group]] += size
    return parts


def _largest_first(sizes: Counter[str]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))


def _neediest(filled: Counter[Part], parts: tuple[Part, ...]) -> Part:
    return min(parts, key=lambda part: filled[part] / SHARES[part])


def _group(record: Documentation) -> str:
    if record.kind == "topic":
        return f"topic {record.module}"
    folders = record.module.lower().split(".")
    if TEST_FOLDERS & set(folders):
        return TEST_SUITE
    top = folders[0].lstrip("_")
    return GROUPS.get(top, top)


def remove_near_copies(records: Iterable[Documentation]) -> Iterator[Documentation]:
    """Drop paragraphs that stand in an earlier part, or nearly word for word in their own.

    A part loses a paragraph if :data:`NEAR_COPY` or more of its shingles stand anywhere in the
    parts before it, or :data:`REPEAT` or more in its own part so far.
    """
    records = list(records)
    earlier: set[tuple[str, ...]] = set()
    for part in SHARES:
        own: set[tuple[str, ...]] = set()
        for record in (record for record in records if record.part == part):
            kept = []
            for paragraph in record.text.split("\n\n"):
                found = shingles(paragraph)
                if _share(found, earlier) < NEAR_COPY and _share(found, own) < REPEAT:
                    kept.append(paragraph)
                    own |= found
            text = "\n\n".join(kept)
            if len(text) >= SHORTEST_TEXT:
                yield replace(record, text=text)
        earlier |= own


def _share(found: frozenset[tuple[str, ...]], known: set[tuple[str, ...]]) -> float:
    return len(found & known) / len(found)


if __name__ == "__main__":
    main()
