"""Classes of a loaded model's modules, exchanged for subclasses of them that are made for it."""

from __future__ import annotations

from typing import Any

from torch import nn


class Exchanged(nn.Module):
    """Mixed in before a module's own class: state, names and all other methods are inherited.

    The class has the name of the module's own, under which pickle would find that one; so a copy is
    made by making the class again. Its bases are the mixin and the module's own class.
    """

    @classmethod
    def of(cls, kind: type) -> type:
        """The class that runs a module of class ``kind``."""
        return type(kind.__name__, (cls, kind), {"__module__": kind.__module__})

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, type(self).__bases__, vars(self)


def _empty(mixin: type[Exchanged], kind: type) -> nn.Module:
    module: nn.Module = object.__new__(mixin.of(kind))
    return module
