"""Where a cube of HDF or NetCDF lies on the ground: a grid in a projection, as tags of a TIFF, or
the latitude and longitude of each pixel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from restoration.io.containers.variables import Variables
from restoration.io.cubes.georeference import tags_of_crs

Tags = tuple[tuple[int, int, int, Any], ...]
# x0, its step along columns and rows, y0, and its steps, as GDAL has them: of corners, not centres
Transform = tuple[float, float, float, float, float, float]
DOUBLE, SHORT = 12, 3  # types of a TIFF's tags
LATITUDE, LONGITUDE = ("latitude", "lat"), ("longitude", "lon")
ROWS, COLUMNS = ("y", "northing", *LATITUDE), ("x", "easting", *LONGITUDE)
POINTS = 11  # a side, of the tie points that stand for all pixels


def tags_of_grid(epsg: int, transform: Transform) -> Tags:
    """Tags of a TIFF (GeoTIFF 1.1) for a grid in a projection, or in degrees, of EPSG's list."""
    x, dx, turn_x, y, turn_y, dy = transform
    tags: list[tuple[int, int, int, Any]]
    if turn_x == turn_y == 0 and dx > 0 > dy:
        tags = [(33550, DOUBLE, 3, (dx, -dy, 0.0)), (33922, DOUBLE, 6, (0.0, 0.0, 0.0, x, y, 0.0))]
    else:
        matrix = (dx, turn_x, 0.0, x, turn_y, dy, 0.0, y, *[0.0] * 7, 1.0)
        tags = [(34264, DOUBLE, 16, matrix)]
    degrees = 4000 <= epsg < 5000  # EPSG's numbers of systems without a projection
    return (*tags, _keys(2048 if degrees else 3072, epsg))


def _keys(key: int, epsg: int) -> tuple[int, int, int, Any]:
    """A directory of three keys: projected or not, pixels are areas, and the system."""
    model = 2 if key == 2048 else 1
    keys = (1, 1, 0, 3, 1024, 0, 1, model, 1025, 0, 1, 1, key, 0, 1, epsg)
    return (34735, SHORT, len(keys), keys)


def tags_of_places(latitude: np.ndarray, longitude: np.ndarray) -> Tags:
    """Tie points, some across the picture, of degrees ``(H, W)`` at its pixels' centres."""
    values = [
        float(v)
        for row, column, lat, lon in tie_points(latitude, longitude)
        for v in (column + 0.5, row + 0.5, 0.0, lon, lat, 0.0)
    ]
    return ((33922, DOUBLE, len(values), tuple(values)), _keys(2048, 4326)) if values else ()


def tie_points(latitude: np.ndarray, longitude: np.ndarray) -> list[tuple[int, int, float, float]]:
    """Row, column, latitude and longitude of some pixels across the picture whose place is
    known.
    """
    rows, columns = (
        sorted({round(v) for v in np.linspace(0, n - 1, POINTS)}) for n in latitude.shape
    )
    found = [(r, c, float(latitude[r, c]), float(longitude[r, c])) for r in rows for c in columns]
    return [p for p in found if abs(p[2]) <= 90 and abs(p[3]) <= 360]


def prisma_grid(says: Any, size: tuple[int, int]) -> Tags:
    """Of a geocoded product (L2D), whose corners are given in a projection; none of others.

    Corners are centres of pixels if that makes pixels of 30 m, else edges.

    Reference: ASI, PRISMA Products Specification, issue 2.3.
    """
    names = [f"Product_{c}corner_{axis}" for c in ("UL", "LR") for axis in ("easting", "northing")]
    if "Epsg_Code" not in says or any(n not in says for n in names):
        return ()
    left, top, right, bottom = (float(np.ravel(says[n])[0]) for n in names)
    height, width = size
    if min(size) < 2 or not (right > left and top > bottom):
        return ()
    centres = (right - left) / (width - 1), (top - bottom) / (height - 1)
    edges = (right - left) / width, (top - bottom) / height

    def far(steps: tuple[float, float]) -> float:
        return sum(abs(step - 30) for step in steps)

    between = far(centres) <= far(edges)
    dx, dy = centres if between else edges
    if between:
        left, top = left - dx / 2, top + dy / 2
    return tags_of_grid(int(np.ravel(says["Epsg_Code"])[0]), (left, dx, 0.0, top, 0.0, -dy))


def grid_of(file: Variables, key: str, size: Callable[[], tuple[int, int]]) -> Tags:
    """By the rules of NetCDF (CF 1.11, section 5.6) with GDAL's ``GeoTransform``: none where they
    name no grid.

    Args:
        key: the cube's array.
        size: of the picture.
    """
    said = file.says(key)
    name = text(said.get("grid_mapping", "")).partition(":")[0].strip()
    mapping = _find(file.names, (name.lower(),)) if name else None
    says = {} if mapping is None else file.says(mapping)
    numbers = [float(v) for v in text(says.get("GeoTransform", "")).split()]
    if len(numbers) == 6:
        x, dx, turn_x, y, turn_y, dy = numbers
        transform: Transform | None = (x, dx, turn_x, y, turn_y, dy)
    else:
        transform = _by_axes(file, *size())
    if transform is None:
        return ()
    words = text(says.get("spatial_ref", "")) or text(says.get("crs_wkt", ""))
    codes = re.findall(r"""(?:AUTHORITY|ID)\["EPSG",\s*"?(\d+)"?\]\s*\]\s*$""", words)
    degrees = mapping is None and _find(file.shapes, LATITUDE) is not None
    if codes or degrees:
        return tags_of_grid(int(codes[-1]) if codes else 4326, transform)
    return tags_of_crs(words, transform) if words else ()


def _by_axes(file: Variables, height: int, width: int) -> Transform | None:
    """Of coordinates along rows and columns that go on evenly."""
    ends = []
    for names, count in ((COLUMNS, width), (ROWS, height)):
        name = _find([n for n, s in file.shapes.items() if s == (count,)], names)
        if name is None or count < 2:
            return None
        values = file.read(name).astype(float)
        step = (values[-1] - values[0]) / (count - 1)
        if step == 0 or np.abs(np.diff(values) - step).max() > 0.01 * abs(step):
            return None
        ends.append((values[0] - step / 2, step))
    (x, dx), (y, dy) = ends
    return (x, dx, 0.0, y, 0.0, dy)


def places_of(file: Variables, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Latitude and longitude ``(H, W)`` of a cube's pixels, where the file holds such arrays."""
    shape = list(file.shapes[key])

    def fits(name: str) -> bool:
        own = list(file.shapes[name])
        return len(own) == 2 and any(own == shape[:k] + shape[k + 1 :] for k in range(3))

    flat = [name for name in file.shapes if fits(name)]
    found = [_find(flat, names) for names in (LATITUDE, LONGITUDE)]
    if found[0] is None or found[1] is None or len({file.shapes[n] for n in found if n}) > 1:
        return None
    latitude, longitude = (file.read(n).astype(np.float64) for n in found if n)
    return latitude, longitude


def _find(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The array of one of these names, in whatever group it lies; PRISMA names a detector, too."""
    last = {n: n.lower().rpartition("/")[2].removesuffix("_vnir") for n in names}
    return next((n for w in wanted for n, short in last.items() if short == w), None)


def text(value: Any) -> str:
    """An attribute's text, which may be bytes, or alone in an array."""
    one = np.ravel(value)[0] if np.size(value) == 1 else ""
    return one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
