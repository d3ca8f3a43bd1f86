"""How a module of a loaded model runs other code, while all that it holds stays as it is.

A file of its own, since each kind of fused layer builds on it.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class PatchedModule(nn.Module):
    """Mixed in before a module's own class.

    The class has the name of the module's own, under which pickle would find that one; so a copy is
    made by making the class again. Its bases are the mixin and the module's own class.
    """

    @classmethod
    def of(cls, kind: type) -> type:
        """The class that runs a module of class ``kind``."""
        return type(kind.__name__, (cls, kind), {"__module__": kind.__module__})

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, type(self).__bases__, vars(self)


def _empty(mixin: type[PatchedModule], kind: type) -> nn.Module:
    module: nn.Module = object.__new__(mixin.of(kind))
    return module
