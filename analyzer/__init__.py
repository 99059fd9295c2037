"""Linearise, multiply, average and read the memory of a recurrent language model.

The names below are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._analyze import analyze
    from ._describe import describe
    from .budget import check, read_budget
    from .comparison import compare
    from .corpus import Corpus, read_corpus
    from .errors import MnemoscopeError
    from .grouping import group_positions, read_unions
    from .groups import Groups
    from .model import MemoryModel, open_model
    from .result import open_result, save_result
    from .roles import Roles, State, Vocabulary

_HOME = {
    "Corpus": ".corpus",
    "Groups": ".groups",
    "MemoryModel": ".model",
    "MnemoscopeError": ".errors",
    "Roles": ".roles",
    "State": ".roles",
    "Vocabulary": ".roles",
    "analyze": "._analyze",
    "check": ".budget",
    "compare": ".comparison",
    "describe": "._describe",
    "group_positions": ".grouping",
    "open_model": ".model",
    "open_result": ".result",
    "read_budget": ".budget",
    "read_corpus": ".corpus",
    "read_unions": ".grouping",
    "save_result": ".result",
}

__all__ = [
    "Corpus",
    "Groups",
    "MemoryModel",
    "MnemoscopeError",
    "Roles",
    "State",
    "Vocabulary",
    "__version__",
    "analyze",
    "check",
    "compare",
    "describe",
    "group_positions",
    "open_model",
    "open_result",
    "read_budget",
    "read_corpus",
    "read_unions",
    "save_result",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
