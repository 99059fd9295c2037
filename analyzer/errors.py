"""The errors a user can cause, so that a command can print them without a traceback."""


class MnemoscopeError(Exception):
    """An input or a call that cannot be used.

    The message says what was expected, what was found, and what to do next. Commands print it
    and exit with status 2.
    """


class ModelError(MnemoscopeError):
    """A model file that cannot be read, or whose roles do not fit its graph."""


class CorpusError(MnemoscopeError):
    """A corpus that cannot be read or does not fit the model's vocabulary."""


class ResultError(MnemoscopeError):
    """A result file that cannot be read or written."""


class NoBlockRule(MnemoscopeError):
    """An operator (or a use of it) whose derivative has no block rule."""


class NoDerivative(NoBlockRule):
    """An operator that rounds its input: a staircase, flat or steep, without a derivative."""


class ResourceError(MnemoscopeError):
    """A run that would not fit in memory, or a provider that this machine lacks."""


class BudgetError(MnemoscopeError):
    """A budget that cannot be read, or that asks for what a result does not have."""


class GroupError(MnemoscopeError):
    """Classes of input words that a corpus does not have, or cannot be averaged apart."""


class PropertyError(MnemoscopeError):
    """A property that cannot be formed from a result, or a file of them that cannot be read."""


class CheckpointError(MnemoscopeError):
    """A checkpoint that cannot be written, read or gone on from, or that another run holds."""
