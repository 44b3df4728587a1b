"""JSON with one meaning: an object, no key twice, no NaN, nothing without end."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from solvers.inputs.errors import InputError, RestoboxError

MOST_BYTES = 2**24


def read_object(
    path: str | Path, kind: type[RestoboxError] = InputError, *, infinities: bool = False
) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        infinities: whether the words ``Infinity`` and ``-Infinity`` are numbers, which diffusers
            writes for limits that are none.

    Raises:
        FileNotFoundError: no such file.
        RestoboxError: of this ``kind``: not UTF-8, larger than 16 MiB, or as :func:`parse_object`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise kind(f"{path} has {size} bytes; JSON of at most {MOST_BYTES} is accepted")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise kind(f"{path} is not readable JSON: {error}") from error
    return parse_object(text, str(path), kind, infinities=infinities)


def finite(content: Any) -> Any:
    """The same for JSON, which has no infinity (the PSNR of equal pictures): null."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def parse_object(
    text: str, what: str, kind: type[RestoboxError] = InputError, *, infinities: bool = False
) -> dict[str, Any]:
    """The JSON object of a text; ``what`` names it in errors.

    Raises:
        RestoboxError: of this ``kind``: not JSON, no object, a key given twice, NaN or infinity (as
            words, or as numbers that float64 doesn't hold), or nested too deeply.
    """
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_word if infinities else _number,
            parse_float=_number,
        )
    except RecursionError:
        raise kind(f"{what} is not readable JSON: it is nested too deeply") from None
    except ValueError as error:
        raise kind(f"{what} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise kind(f"{what} must hold a JSON object; it holds a {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} is given twice")
    return content


def _word(text: str) -> float:
    return _number(text) if text == "NaN" else float(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:60]} is no finite number")
    return value
