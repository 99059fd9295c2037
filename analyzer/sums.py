"""The one place where Jacobians are summed: per block, group and delay, and over one half.

A mean, a singular value, its standard error and its noise floor all derive from these sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Sums:
    """Sums of state-embedding Jacobians of one state component.

    Attributes:
        block_sum: ``[block, group, delay, unit, embedding]``, sum over the input positions of a
            block that belong to a group.
        block_count: ``[block, group, delay]`` integers, how many Jacobians each sum holds.
        half_sum: ``[group, delay, unit, embedding]``, the same over the input positions that
            fell in the first of the two random halves, all blocks together.
        half_count: ``[group, delay]`` integers.
    """

    block_sum: np.ndarray
    block_count: np.ndarray
    half_sum: np.ndarray
    half_count: np.ndarray
