"""Seeded damage: what happens to files on disks and networks, and what somebody would try."""

from __future__ import annotations

import re

import numpy as np

EXTREMES = (0, 1, 2, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63)
NUMBERS = ("0", "-1", "1", "3", "1e9", "1000000000", "99999999999999999999", "NaN", "1e999", "0.5")
WORDS = (b"true", b"null", b'""', b"[]", b"{}", b'"x"', b"[[[[[[]]]]]]", b"NaN", b"-Infinity")


def mutate(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """The content with one to three damages, and their names."""
    names = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        damage = DAMAGES[rng.integers(len(DAMAGES))]
        content = damage(content, rng)
        names.append(damage.__name__)
    return content, "+".join(names)


def _place(content: bytes, rng: np.random.Generator, length: int = 1) -> int:
    """Half of the time in the first bytes, where headers are."""
    most = max(1, len(content) - length + 1)
    return int(rng.integers(min(most, 400) if rng.random() < 0.5 else most))


def _put(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    at = _place(content, rng)
    return _put(content, at, bytes([content[at] ^ 1 << int(rng.integers(8))])) if content else b"x"


def byte(content: bytes, rng: np.random.Generator) -> bytes:
    return _put(content, _place(content, rng), bytes([int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))]))


def number(content: bytes, rng: np.random.Generator) -> bytes:
    size = int(rng.choice([2, 4, 8]))
    value = int(EXTREMES[rng.integers(len(EXTREMES))]) % 2 ** (8 * size)
    at = _place(content, rng, size) // size * size
    return _put(content, at, value.to_bytes(size, "little" if rng.random() < 0.7 else "big"))


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def remove(content: bytes, rng: np.random.Generator) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + int(rng.integers(1, 40)) :]


def repeat(content: bytes, rng: np.random.Generator) -> bytes:
    at, length = _place(content, rng), int(rng.integers(1, 200))
    return content[: at + length] + content[at:]


def insert(content: bytes, rng: np.random.Generator) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.bytes(int(rng.integers(1, 20))) + content[at:]


def blank(content: bytes, rng: np.random.Generator) -> bytes:
    return _put(content, _place(content, rng), bytes(int(rng.integers(1, 64))))


def digits(content: bytes, rng: np.random.Generator) -> bytes:
    """Another number in a text."""
    found = list(re.finditer(rb"\d[\d.]*", content[:20_000]))
    if not found:
        return flip(content, rng)
    one = found[rng.integers(len(found))]
    new = NUMBERS[rng.integers(len(NUMBERS))].encode()
    return content[: one.start()] + new + content[one.end() :]


def word(content: bytes, rng: np.random.Generator) -> bytes:
    """Another word in a text."""
    found = list(re.finditer(rb'"[^"\n]{0,40}"|\b(?:true|false|null)\b', content[:20_000]))
    if not found:
        return byte(content, rng)
    one = found[rng.integers(len(found))]
    return content[: one.start()] + WORDS[rng.integers(len(WORDS))] + content[one.end() :]


def line(content: bytes, rng: np.random.Generator) -> bytes:
    """A line twice."""
    lines = content.split(b"\n")
    at = int(rng.integers(len(lines)))
    return b"\n".join([*lines[: at + 1], *lines[at:]])


DAMAGES = (flip, byte, number, cut, remove, repeat, insert, blank, digits, word, line)
