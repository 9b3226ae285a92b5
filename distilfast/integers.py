"""Integers from a caller: every array of them that reaches a kernel is checked and converted here."""

from __future__ import annotations

from typing import Any

import numpy as np

from distilfast.errors import InputError

_INT32 = np.dtype(np.int32)


def int32(name: str, values: Any) -> np.ndarray:
    """The numbers of ``values`` as one aligned, C-contiguous row of int32; not copied where they are that already.

    Takes lists, torch tensors and numpy arrays of any integer dtype, byte order and strides. Raises InputError, which
    calls them ``name``, for other dtypes, another number of dimensions, and numbers that int32 does not hold.
    """
    if type(values) is np.ndarray and values.dtype == _INT32 and values.ndim == 1 and values.flags.carray:
        return values
    array = integers(name, values)
    if array.ndim != 1:
        raise InputError(f"{name} has {array.ndim} dimensions; one is needed.")
    converted = array.astype(_INT32)
    if (wrapped := converted != array).any():
        raise InputError(f"{name} has {array[wrapped][0]}, which is no 32-bit integer.")
    return converted


def integers(name: str, values: Any) -> np.ndarray:
    """``values`` as an array of integers of any dtype and shape; raises InputError for what holds none."""
    array = _array(name, values)
    if array.dtype.kind not in "iu":
        if array.size == 0 and not isinstance(values, np.ndarray):
            return array.astype(_INT32)  # an empty list has no dtype of its own
        raise InputError(f"{name} has dtype {array.dtype}; integers are needed.")
    return array


def mask(name: str, values: Any) -> np.ndarray:
    """``values`` as an array of bools; integers count where they are not zero, floats must be 0 or 1."""
    array = _array(name, values)
    if array.dtype.kind == "f":
        odd = array[(array != 0) & (array != 1)]
        if odd.size:
            raise InputError(f"{name} has {odd[0]}; a mask of floats holds 0 and 1 alone.")
    elif array.dtype.kind != "b":
        array = integers(name, array)
    return array != 0


def is_increasing(values: np.ndarray) -> bool:
    """Whether each number is larger than the one before; by comparison, since a difference could wrap."""
    return bool((values[1:] > values[:-1]).all())


def is_torch(values: Any) -> bool:
    """Whether this is a torch tensor, without an import of torch."""
    return type(values).__module__.partition(".")[0] == "torch" and hasattr(values, "detach")


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(_from_torch(name, values) if is_torch(values) else values)
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{name} is ragged; all its rows must be of one length.") from None
    except Exception:  # whatever the caller's object raises when numpy asks it for its values
        raise InputError(f"{name} is of type {type(values).__name__}, which numpy cannot read.") from None


def _from_torch(name: str, tensor: Any) -> Any:
    if tensor.is_meta:
        raise InputError(f"{name} is a tensor on the meta device, which holds no values.")
    if tensor.is_floating_point():
        tensor = tensor.double()  # numpy has no bfloat16
    try:
        return tensor.detach().cpu().numpy()
    except (RuntimeError, TypeError):  # sparse, quantised and other tensors without plain values
        raise InputError(f"{name} is a tensor of layout {tensor.layout}, which numpy cannot read.") from None
