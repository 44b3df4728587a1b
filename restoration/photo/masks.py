"""Inpainting masks: 1 = known, 0 = missing. Every draw takes an explicit ``numpy`` generator."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# kinds, and the share of missing pixels that calibration and reports give each of them
MISSING = {"random": 0.8, "strokes": 0.25, "text": 0.1, "box": 0.1}
KINDS = tuple(MISSING)


def random_mask(height: int, width: int, missing: float, rng: np.random.Generator) -> np.ndarray:
    """Each pixel is missing with probability ``missing`` in (0, 1). Returns float32 ``(H, W)``."""
    return (rng.random((height, width)) >= missing).astype(np.float32)


def stroke_mask(height: int, width: int, missing: float, rng: np.random.Generator) -> np.ndarray:
    """Random brush strokes until at least the fraction ``missing`` of the pixels is covered.
    Returns float32 ``(H, W)``.
    """
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    side = min(height, width)
    covered = 0.0
    while covered < missing:
        thickness = max(1, int(side * rng.uniform(0.02, 0.1)))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle = rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(2, 8))):
            angle += rng.normal(0, 0.6)
            length = side * rng.uniform(0.08, 0.3)
            x2, y2 = x + length * np.cos(angle), y + length * np.sin(angle)
            draw.line([(x, y), (x2, y2)], fill=0, width=thickness)
            r = thickness / 2
            draw.ellipse([x2 - r, y2 - r, x2 + r, y2 + r], fill=0)
            x, y = x2, y2
        covered = 1 - np.asarray(canvas).mean() / 255
    return (np.asarray(canvas) > 127).astype(np.float32)


def text_mask(height: int, width: int, missing: float, rng: np.random.Generator) -> np.ndarray:
    """Lines of random letters until at least the fraction ``missing`` of the pixels is covered.
    Returns float32 ``(H, W)``.
    """
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789"))
    covered, attempts = 0.0, 0
    while covered < missing and attempts < 1000:
        font = ImageFont.load_default(size=int(rng.uniform(10, max(11, min(40, height / 3)))))
        line = "".join(rng.choice(letters, size=int(rng.integers(6, 40))))
        draw.text(
            (rng.uniform(-width * 0.3, width * 0.9), rng.uniform(-8, height)),
            line,
            fill=0,
            font=font,
        )
        covered, attempts = 1 - np.asarray(canvas).mean() / 255, attempts + 1
    return (np.asarray(canvas) > 127).astype(np.float32)


def box_mask(height: int, width: int, missing: float, rng: np.random.Generator) -> np.ndarray:
    """One rectangle of about the fraction ``missing`` of the area at a random place. Returns
    float32 ``(H, W)``.
    """
    aspect = np.exp(rng.uniform(-0.5, 0.5))
    h = int(np.clip(height * np.sqrt(missing) * aspect, 1, height))
    w = int(np.clip(width * np.sqrt(missing) / aspect, 1, width))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    mask = np.ones((height, width), np.float32)
    mask[top : top + h, left : left + w] = 0
    return mask


def make_mask(
    kind: str, height: int, width: int, missing: float, seed: int | np.random.Generator
) -> np.ndarray:
    """A mask by name (``random``, ``strokes``, ``text``, ``box``), float32 ``(H, W)`` with 1 =
    known.

    Raises:
        ValueError: unknown kind, or ``missing`` outside (0, 1).
    """
    if kind not in KINDS:
        raise ValueError(f"mask kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    if not 0 < missing < 1:
        raise ValueError(f"the missing fraction must lie in (0, 1); got {missing}")
    rng = np.random.default_rng(seed)
    draw = {"random": random_mask, "strokes": stroke_mask, "text": text_mask, "box": box_mask}[kind]
    return draw(height, width, missing, rng)


def parse_mask(text: str) -> tuple[str, float]:
    """``KIND:FRACTION``, e.g. ``random:0.8``, to what :func:`make_mask` takes.

    Raises:
        ValueError: anything else.
    """
    kind, _, fraction = text.partition(":")
    try:
        return kind, float(fraction)
    except ValueError:
        raise ValueError(
            f"mask {text!r} is neither a file nor KIND:FRACTION such as random:0.8"
        ) from None
