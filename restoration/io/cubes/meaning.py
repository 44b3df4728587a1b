"""What the numbers of an array in HDF or NetCDF mean, by its attributes: scale, missing entries,
the range of valid ones.

Reference: NetCDF Users Guide, appendix A; CF 1.11, sections 2.5.1 and 8.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.cubes.grids import text
from solvers.inputs.errors import InputError

# attributes that name the value of missing entries: NetCDF's, and those of products in HDF 5
_FILLS = ("_FillValue", "missing_value", "Data_Ignore_Value", "data_ignore_value", "nodata")
# scale and shift: NetCDF's, and those of SeaDAS (HICO)
_SCALES = (("scale_factor", "add_offset"), ("slope", "intercept"))
# what NetCDF fills arrays with of which nobody said otherwise
_DEFAULTS: dict[str, float] = {"i2": -32767, "i4": -2147483647, "u2": 65535, "u4": 4294967295}
_DEFAULTS |= dict.fromkeys(("f4", "f8"), 9.969209968386869e36)


@dataclass(frozen=True, eq=False)
class Meant:
    """Values in their units, the one that marks missing entries (None: none does), and bool like
    the values, which are valid (None: all others).
    """

    values: np.ndarray
    no_data: float | None = None
    valid: np.ndarray | None = None


def meant(path: Path, values: np.ndarray, says: Any, netcdf: bool = False) -> Meant:
    """Of stored values, by the attributes of their array. Scaled ones are float32, and NaN where
    they are missing or not valid.

    Args:
        netcdf: the file is NetCDF, which has a value of missing entries also where it names none.

    Raises:
        InputError: a range in which no entry lies.
    """
    if values.dtype.kind == "i" and text(says.get("_Unsigned", "")).lower() == "true":
        values = values.view(values.dtype.str.replace("i", "u"))
    fills = fills_of(says)
    if values.dtype.kind == "u":  # stated as signed numbers
        fills = [fill % 2 ** (8 * values.dtype.itemsize) for fill in fills]
    default = _DEFAULTS.get(values.dtype.str[1:]) if netcdf and not fills else None
    if default is not None and np.isclose(values, default, rtol=1e-6, atol=0).any():
        fills = [default]
    scale, shift = _scale(values, says)
    valid = _valid(path, values, says, (scale, shift))
    for fill in fills[1:]:
        valid = (values != fill) if valid is None else valid & (values != fill)
    no_data = fills[0] if fills else None
    if (scale, shift) == (1.0, 0.0):
        return Meant(values, no_data, None if valid is None or valid.all() else valid)
    missing = np.zeros(values.shape, bool) if valid is None else ~valid
    missing = missing if no_data is None else missing | (values == no_data)
    return Meant(np.where(missing, np.nan, values * scale + shift).astype(np.float32))


def fills_of(says: Any) -> list[float]:
    """The values of missing entries, without NaN, which is missing anyway."""
    found = [
        float(value)
        for name in _FILLS
        if name in says and np.asarray(says[name]).dtype.kind in "iuf"
        for value in np.ravel(says[name])
    ]
    return [v for v in dict.fromkeys(found) if not math.isnan(v)]


def _scale(values: np.ndarray, says: Any) -> tuple[float, float]:
    """Factor and shift that make values of stored numbers."""
    for factor, shift in _SCALES:
        if (scale := _number(says, factor)) is not None or shift in says:
            return 1.0 if scale is None else scale, _number(says, shift) or 0.0
    divisor = _number(says, "Scale_Factor")  # NEON's: of whole numbers for one
    if divisor is not None and divisor > 1 and values.dtype.kind in "iu":
        return 1.0 / divisor, 0.0
    return 1.0, 0.0


def _valid(
    path: Path, values: np.ndarray, says: Any, scaled: tuple[float, float]
) -> np.ndarray | None:
    """Where stored values lie in the range that is stated; None where none is."""
    low, high = _number(says, "valid_min"), _number(says, "valid_max")
    both = np.asarray(says.get("valid_range", ()))
    stated = [np.asarray(says[n]) for n in ("valid_min", "valid_max") if n in says]
    if both.size == 2 and both.dtype.kind in "iuf":
        low, high, stated = float(both.flat[0]), float(both.flat[1]), [both]
    if low is None and high is None:
        return None
    shown = values
    # ranges of floats beside whole numbers are those of the scaled values
    if scaled != (1.0, 0.0) and values.dtype.kind in "iu" and stated[0].dtype.kind == "f":
        shown = values * scaled[0] + scaled[1]
    elif values.dtype.kind == "u":  # stated as signed numbers
        room = 2 ** (8 * values.dtype.itemsize)
        low, high = (None if v is None else v % room for v in (low, high))
    valid = np.ones(values.shape, bool)
    valid &= True if low is None else ~(shown < low)
    valid &= True if high is None else ~(shown > high)
    if not valid.any():
        raise InputError(
            f"{path}: no entry lies in the range that its attributes call valid ({low} to {high});"
            " correct valid_range, valid_min and valid_max, or remove them"
        )
    return valid


def _number(says: Any, name: str) -> float | None:
    value = np.asarray(says.get(name, ()))
    return float(value.flat[0]) if value.size == 1 and value.dtype.kind in "iuf" else None
