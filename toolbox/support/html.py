"""A folder with ``report.html``, ``report.json`` and pictures."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from restoration.io.images import Photo, write_image
from solvers.files import check_marked, replace_marked_folder
from toolbox.support.sheets import sheet

STYLE = (
    "body{font-family:sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


KIND = "report"


def check_report(folder: Path | None) -> None:
    """Raise before any work is done if a report can't become ``folder``; None is no report."""
    if folder is not None:
        check_marked(folder, KIND)


def write_report(
    folder: Path, title: str, figures: dict, body: Sequence[str], pictures: Mapping[str, np.ndarray]
) -> None:
    """Write ``figures`` as JSON, ``body`` (HTML parts) as a page, and the pictures ``(C, H, W)``
    that it shows.
    """
    head = (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    )

    def write(place: Path) -> None:
        (place / "report.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
        (place / "report.html").write_text("\n".join([head, *body]), encoding="utf-8")
        for name, pixels in pictures.items():
            write_image(place / name, Photo(pixels))

    replace_marked_folder(folder, write, KIND)


def html_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Rows of numbers and words as HTML."""
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in header) + "</tr>"]
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join(lines) + "</table>"


def picture(
    pictures: dict[str, np.ndarray], name: str, panels: Iterable[tuple[str, np.ndarray]]
) -> str:
    """Put titled panels beside each other, as ``name``, into ``pictures`` and return the HTML that
    shows them.
    """
    pictures[name] = sheet(list(panels))
    return f'<p><img src="{html.escape(name)}" alt=""></p>'
