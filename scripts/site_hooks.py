"""Hooks of ``mkdocs.yml``: files outside ``docs/`` that pages link to become pages of the site.

On a code host such a link opens the file. On the site it opens a page of the file, at the place
that ``PLACES`` gives it or under ``source/``; pictures and large files are copied as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"

PLACES = {
    "README.md": "README.md",
    "docs": "README.md",
    "docs/decisions": "decisions/README.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "tests/laws": "project/laws.md",
    "tests/laws/README.md": "project/laws.md",
    "benchmarks": "results/benchmarks.md",
    "benchmarks/README.md": "results/benchmarks.md",
    "benchmarks/gpu": "results/gpu-check.md",
    "benchmarks/gpu/README.md": "results/gpu-check.md",
    "benchmarks/studies/objectives": "results/objectives.md",
    "benchmarks/studies/objectives/README.md": "results/objectives.md",
    "plaudit/recipes": "reference/shipped-recipes.md",
}
"""Files and folders of the repository, and their pages."""

CONTENTS = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "tests/laws/README.md",
    "benchmarks/README.md",
    "benchmarks/gpu/README.md",
    "benchmarks/studies/objectives/README.md",
)
"""Markdown files outside ``docs/`` that are pages of the navigation."""

RECIPES = "plaudit/recipes"
LANGUAGES = {".py": "python", ".sql": "sql", ".sh": "bash", ".toml": "toml", ".service": "ini"}
LANGUAGES |= dict.fromkeys((".yaml", ".yml"), "yaml") | dict.fromkeys((".json", ".jsonl"), "json")
LANGUAGES |= {"Dockerfile": "docker", ".txt": "text"}
BOOSTS = {"how-to/": 4, "start-here": 4, "concepts/": 2, "reference/metrics": 0.5}
"""Weights of pages in the search, by the start of their path: what to do comes first."""
LONGEST = 40_000
"""Bytes of the largest file that is shown as a page."""

FENCE = re.compile(r"^ *(`{3,})[^\n]*\n.*?^ *\1 *$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")

_places: dict[str, str] = {}
"""Each path of the repository that a page links to, and its path on the site."""
_origins: dict[str, str] = {}
"""Each page that stands for a file outside ``docs/``, and that file."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside ``docs/`` that pages of the navigation link to."""
    _places.clear()
    _origins.clear()
    _places.update(PLACES)
    for recipe in sorted((ROOT / RECIPES).glob("*.yaml")):
        _places[f"{RECIPES}/{recipe.name}"] = f"{PLACES[RECIPES]}#{recipe.stem}"
    add = _adder(files, config)
    add(RECIPES, PLACES[RECIPES], _recipes())
    for name in CONTENTS:
        add(name, PLACES[name], (ROOT / name).read_text(encoding="utf-8"))
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    seen = {file.src_uri for file in waiting}
    while waiting:
        page = waiting.pop()
        for target in _outside(page.content_string, _origin(page.src_uri)):
            place = _add_target(target, add)
            new = files.get_file_from_path(place.partition("#")[0])
            if new is not None and new.src_uri.endswith(".md") and new.src_uri not in seen:
                seen.add(new.src_uri)
                waiting.append(new)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave ``docs/`` at the pages of the files that they name."""
    source = page.file.src_uri
    boosts = (boost for start, boost in BOOSTS.items() if source.startswith(start))
    page.meta.setdefault("search", {"boost": next(boosts, 1)})
    origin = _origin(source)

    def moved(match: re.Match[str]) -> str:
        target = _target(match[2], origin)
        place = _place(target) if target else None
        if place is None:
            return match[0]
        path, _, anchor = place.partition("#")
        end = f"#{anchor})" if anchor else match[3]
        return f"{match[1]}{relpath(path, dirname(source) or '.')}{end}"

    return _outside_code(markdown, lambda text: LINK.sub(moved, text))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark the pages of the reference, whose tables have their meanings in the second column."""
    if page.file.src_uri.startswith("reference/"):
        return f'<div class="reference">{html}</div>'
    return html


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the search dialog for screen readers, which the theme does not."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def _adder(files: Files, config: MkDocsConfig) -> Callable[[str, str, str | None], None]:
    """What adds a file to the site: as a page of the text, or without a text as a copy."""

    def add(path: str, place: str, text: str | None) -> None:
        if text is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, place, content=text))
            _origins[place] = path

    return add


def _add_target(target: str, add: Callable[[str, str, str | None], None]) -> str:
    """The place of a linked path; a path that has none yet gets one.

    Raises:
        PluginError: there is no such path.
    """
    known = _place(target)
    if known is not None:
        return known
    path = ROOT / target
    if not path.exists():
        raise PluginError(f"a page links to {target}, which does not exist")
    text = _as_page(path)
    as_page = "" if text is None or path.suffix == ".md" else ".md"
    _places[target] = f"source/{target}{as_page}"
    add(target, _places[target], text)
    return _places[target]


def _as_page(path: Path) -> str | None:
    """Markdown that shows a file or lists a folder; None for a file to be copied."""
    name = path.relative_to(ROOT).as_posix()
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
    if path.is_dir():
        inside = sorted(one.name for one in path.iterdir() if one.is_file() and one.name[0] != ".")
        return head + "\n".join(f"- [{one}]({one})" for one in inside) + "\n"
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    language = LANGUAGES.get(path.suffix or path.name)
    if language is None or path.stat().st_size > LONGEST:
        return None
    return f"{head}````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n````\n"


def _recipes() -> str:
    """A page of all recipes that come with plaudit."""
    introduction = (
        "These recipes come with the package. Name one without a path, for example "
        "`plaudit train qwen3-0.6b --data pairs.jsonl`. Every key is described in "
        f"[Recipe keys]({relpath('docs/reference/recipe.md', RECIPES)})."
    )
    parts = ["# Shipped recipes", introduction]
    for path in sorted((ROOT / RECIPES).glob("*.yaml")):
        text = path.read_text(encoding="utf-8").rstrip()
        parts += [f"## {path.stem} {{#{path.stem}}}", f"```yaml\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _origin(source: str) -> str:
    """The path in the repository of a page of the site."""
    return _origins.get(source, f"{DOCS}/{source}")


def _target(link: str, origin: str) -> str | None:
    """The path in the repository that a relative link of a file names; None for a URL."""
    if re.match(r"[a-z]+:|/", link):
        return None
    folder = origin if (ROOT / origin).is_dir() else dirname(origin)
    return normpath(join(folder, link))


def _place(target: str) -> str | None:
    """The path on the site of a path of the repository, if it has one."""
    if target in _places:
        return _places[target]
    return target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else None


def _outside(markdown: str, origin: str) -> Iterator[str]:
    """Paths that a page links to and that are not files of ``docs/``."""
    for link in LINK.finditer(_outside_code(markdown, str, code="")):
        target = _target(link[2], origin)
        if target is not None and not target.startswith(f"{DOCS}/"):
            yield target


def _outside_code(markdown: str, change: Callable[[str], str], *, code: str | None = None) -> str:
    """The text with ``change`` applied outside of code; ``code`` replaces each piece of code."""
    parts, end = [], 0
    for found in FENCE.finditer(markdown):
        parts += [change(markdown[end : found.start()]), found[0] if code is None else code]
        end = found.end()
    return "".join([*parts, change(markdown[end:])])
