"""A folder with ``report.html``, ``report.json`` and pictures."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from restoration.io.images import Photo, replace_file, write_image
from toolbox.pictures import sheet

STYLE = (
    "body{font-family:sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def write_report(folder: Path, title: str, figures: dict, body: Sequence[str]) -> None:
    """Write ``figures`` as JSON and ``body`` (HTML parts) as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "report.json", lambda p: p.write_text(json.dumps(figures, indent=2)))
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>'
    replace_file(folder / "report.html", lambda p: p.write_text("\n".join([head, *body]), encoding="utf-8"))


def html_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in header) + "</tr>"]
    for row in rows:
        cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join(lines) + "</table>"


def picture(folder: Path, name: str, panels: Sequence) -> str:
    """Write titled panels beside each other as ``name`` and return the HTML that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / name, Photo(sheet(list(panels))))
    return f'<p><img src="{html.escape(name)}" alt=""></p>'
