"""Wavelengths in nanometres, whatever a file says of their unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solvers.inputs.errors import InputError

UNITS: dict[str, float | None] = {
    **dict.fromkeys(("nanometers", "nanometer", "nanometres", "nanometre", "nm"), 1.0),
    **dict.fromkeys(("micrometers", "micrometer", "micrometres", "micrometre", "microns"), 1e3),
    **dict.fromkeys(("micron", "um", "\u00b5m", "\u03bcm"), 1e3),
    **dict.fromkeys(("millimeters", "millimetres", "mm"), 1e6),
    **dict.fromkeys(("centimeters", "centimetres", "cm"), 1e7),
    **dict.fromkeys(("meters", "metres", "m"), 1e9),
    **dict.fromkeys(("angstroms", "angstrom", "\u00e5"), 0.1),
    **dict.fromkeys(("index", "band number"), None),
}
# frequencies: the wavelength in nanometres is this number over them
FREQUENCIES = {"ghz": 299792458.0, "mhz": 299792458.0e3}
RECIPROCAL = ("wavenumber", "wavenumbers", "cm-1", "1/cm", "cm^-1")
NONE_SAID = ("", "unknown")


def nanometres(path: Path, wavelengths: np.ndarray, units: str) -> np.ndarray | None:
    """Wavelengths ``(bands,)`` by the file's words for their unit; without any, nothing below 50 is
    one in nanometres. None where they are no wavelengths (indices).

    Raises:
        InputError: unknown words.
    """
    word = units.strip().lower()
    if word in NONE_SAID:
        return wavelengths * (1e3 if wavelengths.max() < 50 else 1.0)
    if word in RECIPROCAL:
        return 1e7 / wavelengths
    if word in FREQUENCIES:
        return FREQUENCIES[word] / wavelengths
    if word not in UNITS:
        raise InputError(
            f"{path}: wavelength units {units!r} are unknown; known: {', '.join(UNITS)},"
            f" {', '.join((*FREQUENCIES, *RECIPROCAL))}: correct the field, or leave it out"
        )
    factor = UNITS[word]
    return None if factor is None else wavelengths * factor
