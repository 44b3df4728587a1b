"""Pictures for people: side-by-side sheets and uncertainty maps."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# dark to bright through purple and orange; even steps in lightness, so it also reads in grey
_COLOURS = (
    np.array(
        [[0, 0, 4], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]],
        dtype=np.float64,
    )
    / 255
)


def heat(values: np.ndarray, top: float | None = None) -> tuple[np.ndarray, float]:
    """Colour a map ``(H, W)`` of values >= 0; returns ``(3, H, W)`` in [0, 1] and the value shown
    brightest.
    """
    top = float(np.quantile(values, 0.995)) if top is None else top
    scaled = np.clip(values / max(top, 1e-8), 0, 1) * (len(_COLOURS) - 1)
    channels = [np.interp(scaled, np.arange(len(_COLOURS)), _COLOURS[:, c]) for c in range(3)]
    return np.stack(channels).astype(np.float32), top


def sheet(
    panels: list[tuple[str, np.ndarray]], gap: int = 8, columns: int | None = None
) -> np.ndarray:
    """Captioned pictures ``(C, H, W)`` in [0, 1], all of one size, on white; returns ``(3, H',
    W')`` in [0, 1].
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    height, width = panels[0][1].shape[-2:]
    font = ImageFont.load_default(size=max(12, min(20, width // 20)))
    bar = font.size + 10
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + bar)), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (caption, picture) in enumerate(panels):
        left, top = (k % columns) * (width + gap), (k // columns) * (height + bar)
        draw.text((left + 2, top + 3), caption, fill="black", font=font)
        rgb = np.broadcast_to(picture, (3, height, width)).transpose(1, 2, 0)
        canvas.paste(
            Image.fromarray(np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)), (left, top + bar)
        )
    return np.asarray(canvas).transpose(2, 0, 1).astype(np.float32) / 255


def chart(
    title: str, x: list[str], series: dict[str, list[float]], width: int = 720, height: int = 320
) -> np.ndarray:
    """Curves over named places, as ``(3, H, W)`` in [0, 1]: one line per series, linear axis from
    0.

    Raises:
        ValueError: a series of another length than ``x``, or values that are negative or not
            finite.
    """
    for name, values in series.items():
        if len(values) != len(x) or not np.isfinite(values).all() or min(values, default=0) < 0:
            raise ValueError(f"series {name!r} must hold {len(x)} finite values >= 0")
    font = ImageFont.load_default(size=13)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = 70, 34, width - 150, height - 34
    most = max((max(values, default=0) for values in series.values()), default=0) or 1.0
    draw.text((left, 8), title, fill="black", font=font)
    for share in (0, 0.25, 0.5, 0.75, 1):
        level = bottom - share * (bottom - top)
        draw.line([(left, level), (right, level)], fill=(220, 220, 220))
        draw.text((6, level - 8), f"{share * most:.3g}", fill="black", font=font)
    places = [left + (right - left) * k / max(len(x) - 1, 1) for k in range(len(x))]
    stride = max(1, -(-len(x) // 12))
    for place, name in list(zip(places, x, strict=True))[::stride]:
        draw.text((place - 4 * len(name), bottom + 8), name, fill="black", font=font)
    for k, (name, values) in enumerate(series.items()):
        shade = tuple(int(255 * v) for v in _COLOURS[1 + k % 3])
        points = [
            (place, bottom - value / most * (bottom - top))
            for place, value in zip(places, values, strict=True)
        ]
        draw.line(points, fill=shade, width=2)
        for px, py in points:
            draw.ellipse([px - 2, py - 2, px + 2, py + 2], fill=shade)
        draw.text((right + 10, top + 18 * k), name, fill=shade, font=font)
    return np.asarray(canvas).transpose(2, 0, 1).astype(np.float32) / 255
