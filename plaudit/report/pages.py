"""What all pages have in common: every value is escaped, and none may be missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from plaudit.report.record import FORMATS, TEMPLATES

if TYPE_CHECKING:
    from jinja2 import Environment


def page_environment(finalize: Callable[[Any], Any] = lambda value: value) -> Environment:
    """Templates of HTML pages; ``finalize`` sees every value before it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FORMATS)
    return environment
