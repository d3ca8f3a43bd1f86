"""A griffe extension of ``mkdocs.yml``: Sphinx roles of docstrings become Markdown code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")


class SphinxRoles(griffe.Extension):
    """Write ``:class:`X``` as code, which is all that Markdown has for it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
