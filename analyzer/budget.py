"""Budgets: what a model must remember, read from TOML, judged against a result.

``docs/check.md`` describes the format and the rules.
"""

from __future__ import annotations

from ._budget import ANALYSIS, RULES, Budget, Rule, read_budget
from ._draft import draft
from ._judges import Verdict, check, completed

__all__ = [
    "ANALYSIS",
    "RULES",
    "Budget",
    "Rule",
    "Verdict",
    "check",
    "completed",
    "draft",
    "read_budget",
]
