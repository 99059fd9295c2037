"""The result file: what is in it, how it is written and how it is read.

``docs/result-format.md`` describes every variable for readers in other languages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from ._files import replacing
from .errors import ResultError
from .metrics import (
    Whitening,
    jackknife,
    mean_matrix,
    noise_matrix,
    selectivity,
    singular_values,
    whiten,
)
from .sums import Sums

FORMAT = "mnemoscope result"
FORMAT_VERSION = 1
NORMALIZATIONS = ("none", "whitened")
LEADING = (1, 5)
"""The n for which the selectivity (σ₁ + … + σₙ) / Σσ is stored."""

_CURVE = ("normalization", "group", "delay")
_MATRIX = ("group", "delay", "unit", "embedding")
_REQUIRED = {
    "count": ("group", "delay"),
    "singular_values": (*_CURVE, "order"),
    "singular_values_stderr": (*_CURVE, "order"),
    "selectivity": (*_CURVE, "leading"),
    "selectivity_stderr": (*_CURVE, "leading"),
    "noise_floor": _CURVE,
}
_OPTIONAL = {
    "gradient": _MATRIX,
    "noise": _MATRIX,
    "block_gradient": ("block", *_MATRIX),
    "block_count": ("block", "group", "delay"),
    "singular_value_sum": _CURVE,
    "singular_value_sum_stderr": _CURVE,
    "singular_value_sum_floor": _CURVE,
}
_ROOT = {
    "delay": ("delay",),
    "group": ("group",),
    "normalization": ("normalization",),
    "leading": ("leading",),
    "embedding_whitening": ("embedding", "direction"),
}
_OPTIONAL_ROOT = {
    "embeddings": ("token", "embedding"),
    "token": ("token",),
    "member_group": ("member",),
    "member_token": ("member",),
    "member_count": ("member",),
    "group_shared": ("group", "other"),
}
_EMBEDDINGS_LIMIT = 2**28  # bytes of the result file spent on the embeddings
_PER_UNIT = "state / embedding"
_PER_DEVIATION = "none: state / embedding; whitened: state / standard deviation of the embedding"


def check_state_names(names: list[str]) -> None:
    """Refuse state names that a result file cannot hold.

    Raises:
        ResultError: A name equals a variable of the root, or cannot name a netCDF group.
    """
    for name in names:
        reserved = name in _ROOT or name in _OPTIONAL_ROOT or name in (".", "..")
        if reserved or "/" in name or not _printable(name):
            raise ResultError(
                f"A result file cannot hold a state named {name!r}: "
                f"it must differ from {', '.join(_ROOT)} and hold printable characters but no "
                "slash. "
                "Give the state another name (mnemoscope export torch --state-names)."
            )


def check_group_names(names: list[str]) -> None:
    """Refuse names of groups that no report could print.

    Raises:
        ResultError: A name is empty, or holds a character that cannot be printed.
    """
    for name in names:
        if not _printable(name):
            raise ResultError(
                f"A result cannot hold a group named {name!r}: a name must be of printable "
                "characters and not empty. Give the group another name."
            )


def _printable(name: str) -> bool:
    """Whether a report can print a name: a line break could begin a command of a terminal."""
    return name.isprintable() and bool(name.strip())


def build(
    sums: dict[str, Sums],
    *,
    groups: list[str],
    embeddings: np.ndarray,
    state_info: dict[str, dict[str, Any]],
    attributes: dict[str, Any],
    block_gradient_limit: int = 2**28,
    precision: str = "float32",
    tokens: Sequence[str] | None = None,
    members: np.ndarray | None = None,
    shared: np.ndarray | None = None,
) -> xr.DataTree:
    """Derive the means and measures from sums, as the tree that a result file holds.

    Args:
        sums: One per state component, by its name.
        groups: ``[group]`` names.
        embeddings: ``[token, embedding]``, one row for each type of the vocabulary.
        state_info: By state name: ``kind``, ``layer`` and whatever else describes the state.
        attributes: Of the root: how the result was made. None is left out, True and False become
            1 and 0, and lists and dictionaries become JSON text.
        block_gradient_limit: Bytes; the mean of each block is kept if all of them together need
            no more.
        precision: Of the stored matrices, ``float32`` or ``float64``: that of the run.
        tokens: ``[token]`` names of the vocabulary.
        members: ``[member, 3]`` integers: a group, a token that is an input in it, and how often.
        shared: ``[group, other]``, how many positions belong to both.

    Raises:
        ResultError: A state has a name that the file cannot hold.
    """
    check_state_names(list(sums))
    whitening = whiten(embeddings)
    size = np.shape(embeddings)[1]
    padded = np.zeros((size, size))
    padded[:, : whitening.rank] = whitening.D
    delays = next(iter(sums.values())).block_sum.shape[2]
    root = xr.Dataset(
        {
            "embedding_whitening": _variable(
                _ROOT["embedding_whitening"],
                padded,
                "square root D of the covariance D Dᵀ of the embeddings; whitened = gradient D",
                "embedding / standard deviation",
                rank=whitening.rank,
                condition_number=whitening.condition_number,
                full_rank=whitening.full_rank,
            )
        },
        coords={
            "delay": _variable("delay", np.arange(delays), "words read since", "time step"),
            "group": _variable("group", np.array(groups, dtype=str), "class of input words", "1"),
            "normalization": _variable(
                "normalization",
                np.array(NORMALIZATIONS),
                "whether every direction of the embedding space has unit variance",
                "1",
            ),
            "leading": _variable(
                "leading", np.array(LEADING), "how many of the largest singular values", "1"
            ),
        },
        attrs={
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **encode_attributes(attributes),
        },
    )
    root = root.assign(_vocabulary(embeddings, tokens, members, shared))
    dtype = np.dtype(precision)
    keep_blocks = (
        sum(dtype.itemsize * s.block_sum.size for s in sums.values()) <= block_gradient_limit
    )
    # Thousands of small decompositions: threads inside each cost more than they give (three times
    # on an idle machine of two cores, twenty-five times on a busy one).
    with threadpool_limits(limits=1, user_api="blas"):
        children = {
            name: _state(s, whitening, keep_blocks, state_info.get(name, {}), dtype)
            for name, s in sums.items()
        }
    return xr.DataTree.from_dict({"/": root, **{f"/{n}": d for n, d in children.items()}})


def bytes_needed(
    groups: int, blocks: int, delays: int, cells: int, dtype: np.dtype, block_gradient_limit: int
) -> int:
    """How much memory `build` takes besides the sums.

    Args:
        groups: Number of groups.
        blocks: Number of blocks.
        delays: τ_max + 1.
        cells: Pairs of a unit and an embedding coordinate, all states together.
        dtype: Of the stored matrices.
        block_gradient_limit: As `build` takes it.
    """
    one = delays * cells
    means = groups * one * dtype.itemsize
    kept = means * blocks if means * blocks <= block_gradient_limit else 0
    # Means and noise, one of them again as it is written; the means of blocks too; and a few
    # copies of one group's matrices in double precision.
    return 3 * means + 2 * kept + 8 * one * 8


def _vocabulary(
    embeddings: np.ndarray,
    tokens: Sequence[str] | None,
    members: np.ndarray | None,
    shared: np.ndarray | None,
) -> dict[str, xr.Variable]:
    """What tells which directions of the embedding space are which words and classes."""
    found = {}
    if 4 * embeddings.size <= _EMBEDDINGS_LIMIT:
        found["embeddings"] = _variable(
            _OPTIONAL_ROOT["embeddings"], np.asarray(embeddings, np.float32),
            "embedding of each type of the vocabulary", "1",
        )  # fmt: skip
        if tokens is not None and all(map(_storable, tokens)):
            found["token"] = _variable("token", np.array(tokens, dtype=str), "types", "1")
    if shared is not None:
        found["group_shared"] = _variable(
            _OPTIONAL_ROOT["group_shared"], shared, "input positions that belong to both", "1"
        )
    if members is not None:
        for column, (name, what) in enumerate(
            (
                ("member_group", "group that a type is an input in"),
                ("member_token", "the type"),
                ("member_count", "how often the corpus has it in the group"),
            )
        ):
            found[name] = _variable("member", members[:, column], what, "1")
    return found


def _storable(token: str) -> bool:
    """netCDF text ends at a null character and is UTF-8."""
    return "\0" not in token and not any("\ud800" <= c <= "\udfff" for c in token)


def _state(
    sums: Sums,
    whitening: Whitening,
    keep_blocks: bool,
    info: dict[str, Any],
    dtype: np.dtype,
) -> xr.Dataset:
    counts = np.asarray(sums.block_count, dtype=np.int64)
    _, groups, delays, units, size = sums.block_sum.shape
    order = min(units, size)
    curve = (len(NORMALIZATIONS), groups, delays)
    gradient = np.empty((groups, delays, units, size), dtype)
    noise = np.empty_like(gradient)
    values, values_stderr = np.empty((2, *curve, order))
    ratios, ratios_stderr = np.empty((2, *curve, len(LEADING)))
    whole, whole_stderr = np.empty((2, *curve))
    floor, whole_floor = np.empty((2, *curve))

    def measures(matrix: np.ndarray) -> np.ndarray:
        return _measures(matrix, whitening.D)

    for g in range(groups):  # one group at a time: a few copies of one group's means at once
        total = sums.block_sum[:, g].sum(axis=0, dtype=np.float64)
        count = counts[:, g].sum(axis=0)
        mean = mean_matrix(total, count)
        half = noise_matrix(total, count, sums.half_sum[g], sums.half_count[g])
        with np.errstate(over="ignore"):
            gradient[g], noise[g] = mean, half
        found = np.moveaxis(measures(mean), -2, 0)
        errors = np.moveaxis(jackknife(sums.block_sum[:, g], counts[:, g], measures), -2, 0)
        values[:, g], ratios[:, g] = found[..., :order], found[..., order:-1]
        values_stderr[:, g], ratios_stderr[:, g] = errors[..., :order], errors[..., order:-1]
        whole[:, g], whole_stderr[:, g] = found[..., -1], errors[..., -1]
        by_chance = np.moveaxis(measures(half), -2, 0)
        floor[:, g], whole_floor[:, g] = by_chance[..., 0], by_chance[..., -1]
        sums.release()

    data = {
        "gradient": _variable(
            _MATRIX, gradient, "mean derivative of the state by the embedding", _PER_UNIT
        ),
        "noise": _variable(
            _MATRIX, noise, "half the difference of the means of two random halves", _PER_UNIT
        ),
        "count": _variable(_REQUIRED["count"], counts.sum(axis=0), "derivatives in each mean", "1"),
        "block_count": _variable(
            _OPTIONAL["block_count"], counts, "derivatives in the mean of each block", "1"
        ),
        "singular_values": _variable(
            _REQUIRED["singular_values"],
            values,
            "singular values of the mean gradient, largest first",
            _PER_DEVIATION,
        ),
        "singular_values_stderr": _variable(
            _REQUIRED["singular_values_stderr"],
            values_stderr,
            "standard errors of singular_values, by the delete-one-block jackknife",
            _PER_DEVIATION,
        ),
        "selectivity": _variable(
            _REQUIRED["selectivity"],
            ratios,
            "share of the leading singular values in the sum of all",
            "1",
        ),
        "selectivity_stderr": _variable(
            _REQUIRED["selectivity_stderr"],
            ratios_stderr,
            "standard errors of selectivity, by the delete-one-block jackknife",
            "1",
        ),
        "noise_floor": _variable(
            _REQUIRED["noise_floor"],
            floor,
            "largest singular value of noise: what a mean without consistent direction shows",
            _PER_DEVIATION,
        ),
        "singular_value_sum": _variable(
            _OPTIONAL["singular_value_sum"],
            whole,
            "sum of all singular values of the mean gradient",
            _PER_DEVIATION,
        ),
        "singular_value_sum_stderr": _variable(
            _OPTIONAL["singular_value_sum_stderr"],
            whole_stderr,
            "standard errors of singular_value_sum, by the delete-one-block jackknife",
            _PER_DEVIATION,
        ),
        "singular_value_sum_floor": _variable(
            _OPTIONAL["singular_value_sum_floor"],
            whole_floor,
            "sum of all singular values of noise: what a mean without consistent direction shows",
            _PER_DEVIATION,
        ),
    }
    if keep_blocks:
        with np.errstate(over="ignore"):
            data["block_gradient"] = _variable(
                _OPTIONAL["block_gradient"],
                np.stack(
                    [
                        mean_matrix(s, n).astype(dtype)
                        for s, n in zip(sums.block_sum, counts, strict=True)
                    ]
                ),
                "mean derivative of the state by the embedding, in each block of the corpus",
                _PER_UNIT,
            )
    return xr.Dataset(data, attrs=encode_attributes(info))


def _measures(matrix: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Find singular values, selectivities and the sum of all, plain and whitened.

    Args:
        matrix: ``[..., unit, embedding]``.
        d: ``[embedding, direction]``.

    Returns:
        ``[..., normalization, order + leading + 1]``; singular values that a singular whitening
        takes away are 0.
    """
    units, size = matrix.shape[-2:]
    order = min(units, size)
    if units >= 2 * size:
        # G = Q R: R has the singular values of G, and R D those of G D, at less work.
        matrix = np.asarray(np.linalg.qr(matrix, mode="r"))
    found = []
    for m in (matrix, matrix @ d):
        s = singular_values(m)
        s = np.concatenate([s, np.zeros((*s.shape[:-1], order - s.shape[-1]))], axis=-1)
        shares = [selectivity(s, n)[..., None] for n in LEADING]
        found.append(np.concatenate([s, *shares, s.sum(-1, keepdims=True)], -1))
    return np.stack(found, axis=-2)


def _variable(
    dims: str | tuple[str, ...], data: np.ndarray, long_name: str, units: str, **attributes: Any
) -> xr.Variable:
    attrs = {"long_name": long_name, "units": units, **encode_attributes(attributes)}
    return xr.Variable(dims, data, attrs=attrs)


def encode_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Put attributes in the types that netCDF has.

    None is left out, True and False become 1 and 0, and lists, tuples and dictionaries become
    JSON text; text and numbers stay.
    """
    encoded: dict[str, Any] = {}
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, bool | np.bool_):
            encoded[key] = int(value)
        elif isinstance(value, str | int | float | np.number):
            encoded[key] = value
        elif isinstance(value, list | tuple | dict):
            encoded[key] = json.dumps(value, ensure_ascii=False)
        else:
            encoded[key] = str(value)
    return encoded


def save_result(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Write a result file, whole or not at all.

    Raises:
        ResultError: The file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            tree.to_netcdf(temporary, engine="h5netcdf")
    except OSError as error:
        raise ResultError(
            f"The result cannot be written to {os.fspath(path)}: {error.strerror or error}. "
            "Choose a folder that exists, can be written and has room."
        ) from error


def open_result(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a result file, all of it, and close it.

    Raises:
        ResultError: The file is missing, not netCDF-4, damaged, of another format version, or
            has not the variables of a result.
    """

    def check(tree: xr.DataTree, shown: str) -> None:
        _check_version(tree, shown)
        _check_structure(tree, shown)

    return read_tree(path, check)


def read_tree(
    path: str | os.PathLike[str], check: Callable[[xr.DataTree, str], None]
) -> xr.DataTree:
    """Read a netCDF-4 file, all of it, and close it.

    Args:
        path: The file.
        check: Called with the tree, before its values are read, and its name for messages;
            raises a `ResultError` for what is not as it should be.

    Raises:
        ResultError: The file is missing, not netCDF-4 or damaged.
    """
    shown = os.fspath(path)
    _check_magic(Path(path), shown)
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            check(tree, shown)
            return tree.load()
    except ResultError:
        raise
    except Exception as error:  # the readers below raise what they like on damaged bytes
        raise ResultError(
            f"{shown} is a netCDF-4 file that cannot be read: it is truncated or damaged "
            f"({type(error).__name__}: {error}). Run mnemoscope analyze again."
        ) from error


def _check_magic(path: Path, shown: str) -> None:
    """netCDF-4 files are HDF5 files, which begin with these eight bytes."""
    expected = f"Expected a result file, as mnemoscope analyze writes it; {shown} "
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise ResultError(f"{expected}does not exist. Check the path.") from None
    except IsADirectoryError:
        raise ResultError(f"{expected}is a folder. Name the file in it.") from None
    except OSError as error:
        raise ResultError(f"{expected}cannot be read: {error.strerror}.") from error
    if head != b"\x89HDF\r\n\x1a\n":
        found = "is empty" if not head else "is no netCDF-4 file"
        hint = " (it looks like a model: run mnemoscope analyze on it first)"
        raise ResultError(f"{expected}{found}{hint if path.suffix == '.onnx' else ''}.")


def _check_version(tree: xr.DataTree, shown: str) -> None:
    found = tree.attrs.get("format_version")
    if tree.attrs.get("format") != FORMAT or found is None:
        raise ResultError(
            f"{shown} is a netCDF file, but not a mnemoscope result: its attribute format is "
            f"{tree.attrs.get('format')!r}, expected {FORMAT!r}. "
            "Give a file that mnemoscope analyze wrote."
        )
    if found != FORMAT_VERSION:
        raise ResultError(
            f"{shown} has result format version {found}, this program reads version "
            f"{FORMAT_VERSION}. Run mnemoscope analyze again, or use the version of mnemoscope "
            f"that wrote the file (its versions: {tree.attrs.get('versions', 'not stated')})."
        )


def _check_structure(tree: xr.DataTree, shown: str) -> None:
    def complain(what: str) -> ResultError:
        return ResultError(
            f"{shown} says that it is a mnemoscope result of version {FORMAT_VERSION}, but {what}. "
            "Run mnemoscope analyze again."
        )

    def check(node: xr.DataTree, where: str, wanted: dict[str, tuple[str, ...]]) -> None:
        for name, dims in wanted.items():
            if name not in node.variables:
                raise complain(f"{where} has no variable {name}")
            if node.variables[name].dims != dims:
                found = ", ".join(map(str, node.variables[name].dims))
                raise complain(f"{name} of {where} has axes [{found}], not [{', '.join(dims)}]")

    here = {n: d for n, d in _OPTIONAL_ROOT.items() if n in tree.variables}
    check(tree, "the root", _ROOT | here)
    if not tree.children:
        raise complain("it holds no state")
    for what, names in (("state", tree.children), ("group", tree.coords["group"].values)):
        for name in map(str, names):
            if not _printable(name):
                raise complain(f"it has a {what} named {name!r}, which cannot be printed")
    for name, child in tree.children.items():
        present = {n: d for n, d in _OPTIONAL.items() if n in child.variables}
        check(child, f"state {name}", _REQUIRED | present)
    for name, values in (("normalization", NORMALIZATIONS), ("leading", LEADING)):
        found = tree.coords[name].values.tolist()
        if tuple(found) != values:
            raise complain(f"its {name} is {found}, not {list(values)}")
