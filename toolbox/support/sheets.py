"""Pictures for people: side-by-side sheets and uncertainty maps."""

from __future__ import annotations

from collections.abc import Sequence

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


def chart(title: str, x: Sequence[str], values: Sequence[float]) -> np.ndarray:
    """A curve over named places from 0, as ``(3, H, W)`` in [0, 1].

    Raises:
        ValueError: another number of values than places, or values that are negative or not finite.
        ImportError: matplotlib isn't installed (extra ``plots``).
    """
    if len(values) != len(x) or not np.isfinite(values).all() or min(values, default=0) < 0:
        raise ValueError(f"a chart of {len(x)} places takes as many finite values >= 0")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), dpi=100, layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.plot(x, values, marker=".")
    axes.set_ylim(bottom=0)
    axes.set_xticks(x[:: max(1, -(-len(x) // 12))])
    axes.grid(alpha=0.4)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.ascontiguousarray(drawn.transpose(2, 0, 1)).astype(np.float32) / 255
