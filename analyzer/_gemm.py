"""Matrix products into parts of matrices, without the interpreter lock.

``numpy.matmul`` cannot add to its output, and SciPy's own ``sgemm`` holds the interpreter lock.
``scipy.linalg.cython_blas`` offers the address of the routine itself (SciPy manual, "BLAS functions
for Cython"), which `ctypes` calls without the lock.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.linalg import cython_blas


class Gemm(Protocol):
    """``gemm(a, b, out, add)``: ``out = a · b``, or ``out += a · b`` where `add`."""

    def __call__(
        self, a: np.ndarray, b: np.ndarray, out: np.ndarray, add: bool, transposed: bool = False
    ) -> None:
        """Multiply; by ``bᵀ`` where `transposed`."""


def gemm_of(dtype: np.dtype) -> Gemm:
    """The product of matrices of `dtype`.

    All three are matrices whose rows are contiguous; rows themselves may lie apart, as
    those of a range of columns do. `out` overlaps neither factor.
    """
    letter, real = {4: ("s", ctypes.c_float), 8: ("d", ctypes.c_double)}[np.dtype(dtype).itemsize]
    routine = _routine(f"{letter}gemm")
    if routine is None:
        return _with_numpy
    factors = [ctypes.byref(real(value)) for value in (0, 1)]

    def gemm(
        a: np.ndarray, b: np.ndarray, out: np.ndarray, add: bool, transposed: bool = False
    ) -> None:
        # Row by row is column by column of the transposed: outᵀ = bᵀ · aᵀ.
        sizes = (out.shape[1], out.shape[0], a.shape[1])
        columns, rows, inner = (ctypes.byref(ctypes.c_int(n)) for n in sizes)
        a_at, a_lead = _place(a)
        b_at, b_lead = _place(b)
        out_at, out_lead = _place(out)
        turned = b"T" if transposed else b"N"
        routine(turned, b"N", columns, rows, inner, factors[1], b_at, b_lead, a_at, a_lead,
                factors[add], out_at, out_lead)  # fmt: skip

    return gemm


def _place(matrix: np.ndarray) -> tuple[int, object]:
    """Address, and elements from one row to the next."""
    assert matrix.strides[1] == matrix.itemsize or matrix.shape[1] == 1
    lead = max(matrix.strides[0] // matrix.itemsize, matrix.shape[1], 1)
    return matrix.ctypes.data, ctypes.byref(ctypes.c_int(lead))


def _routine(name: str) -> Callable | None:
    """A routine of BLAS; None where this SciPy's has another signature than the classic one."""
    capsule = getattr(cython_blas, "__pyx_capi__", {}).get(name)
    if capsule is None:
        return None
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    real = rb"(\w+ \*)"
    classic = (rb"void \(char \*, char \*, int \*, int \*, int \*, " + real + rb", \1, int \*, \1, "
               rb"int \*, \1, \1, int \*\)")  # fmt: skip
    if not re.fullmatch(classic, signature):
        return None
    arguments = [ctypes.c_char_p] * 2 + [ctypes.c_void_p] * 11
    return ctypes.CFUNCTYPE(None, *arguments)(api.PyCapsule_GetPointer(capsule, signature))


def _with_numpy(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, add: bool, transposed: bool = False
) -> None:
    b = b.T if transposed else b
    if add:
        np.add(out, a @ b, out=out)
    else:
        np.matmul(a, b, out=out)
