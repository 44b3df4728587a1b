"""Writes ``docs/solvers/`` and ``docs/corrections.md`` from the docstrings: ``python
docs/build.py`` (a test compares them).
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

from restoration import posterior
from solvers import (
    DDCM,
    DDIM,
    EABM,
    PNDM,
    SOLVERS,
    Auto,
    DDPMInversion,
    DiffusersSolver,
    EVODiff,
    ProbabilityFlow,
    RDDMSampler,
    REDDiff,
    Resampled,
    ResfusionSampler,
)

HERE = Path(__file__).parent
FLOORS = ("toolbox", "export", "quant", "restoration", "solvers")
NOTE = "<!-- Made by docs/build.py from the docstrings: edit those. -->\n"
SECTIONS = ("When to use it", "NFE", "Reference", "Where the authors' code differs")
# page: class, order, network calls for N steps, stochastic, starts from, paper
TABLE = {
    "ddim": (DDIM, "1", "N", "with `eta`", "noise", "Song et al. 2021"),
    "pndm": (
        PNDM,
        "up to 4 (2 with fixed weights)",
        "N; `plms`, `s-pndm` N+1; `f-pndm`, `fon` N+9",
        "no",
        "noise",
        "Liu et al. 2022",
    ),
    "eabm": (EABM, "5 (to `order` + 1)", "N", "no", "noise", "this library's"),
    "auto": (Auto, "4 or 5", "N", "no", "noise", "this library's"),
    "evodiff": (EVODiff, "2 (`paper` mode 1)", "N", "no", "noise", "Li et al. 2025"),
    "probability-flow": (
        ProbabilityFlow,
        "5, adaptive",
        "as the error asks, about 60 to 200",
        "no",
        "noise",
        "Song et al. 2021",
    ),
    "resfusion": (ResfusionSampler, "1", "N", "yes (`eta=0`: no)", "y", "Shi et al. 2024"),
    "rddm": (
        RDDMSampler,
        "1",
        "N; `separate` 2N",
        "with `eta`, `ancestral`",
        "y",
        "Liu et al. 2024",
    ),
    "ddcm": (DDCM, "1", "N", "yes (`eta=0`: no)", "noise, or an image to edit", "Xu et al. 2024"),
    "ddpm-inversion": (
        DDPMInversion,
        "1",
        "N",
        "replays stored noise",
        "an inverted image",
        "Huberman-Spiegelglas et al. 2024",
    ),
    "red-diff": (REDDiff, "optimisation", "N", "yes", "an estimate from y", "Mardani et al. 2023"),
    "diffusers": (
        DiffusersSolver,
        "the scheduler's",
        "N; PLMS N+1, Heun 2N-1",
        "the scheduler's",
        "noise",
        "diffusers",
    ),
    "resampled": (
        Resampled,
        "the inner solver's",
        "`repeats` x the inner solver's",
        "yes",
        "noise",
        "Lugmayr et al. 2022",
    ),
}


def markdown(text: str) -> str:
    """The docstring dialect as Markdown: literals, cross-references, blocks of formulas, tables of
    equal signs.
    """
    out, rows = [], []
    for block in re.split(r"\n\s*\n", text):
        if re.match(r"=+ +=", block):
            rows = block.splitlines()
            spans = [m.span() for m in re.finditer("=+", rows[0])]
            ends = [start for start, _ in spans[1:]] + [None]
            cells = [
                [row[start:end].strip() for (start, _), end in zip(spans, ends, strict=True)]
                for row in rows[1:-1]
            ]
            cells[1] = ["---"] * len(spans)
            out.append("\n".join("| " + " | ".join(row) + " |" for row in cells))
        elif block.startswith("    "):
            if out and out[-1].endswith("::"):
                out[-1] = out[-1][:-1]
            out.append("```\n" + textwrap.dedent(block) + "\n```")
        else:
            out.append(block)
    text = "\n\n".join(out)
    return re.sub(r":\w+:`~?([\w.]+)`", lambda m: f"`{m[1].split('.')[-1]}`", text).replace(
        "``", "`"
    )


def signature(cls: type) -> str:
    given = inspect.signature(cls).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given)


def parts(cls: type) -> dict[str, str]:
    """A docstring by section: Idea, Update rule, the labelled paragraphs, Options, Raises."""
    doc = inspect.getdoc(cls)
    body, *rest = re.split(r"^(Args|Raises|Attributes):\n", doc, flags=re.MULTILINE)
    idea, _, body = body.strip().partition("\n\n")
    found, own = {"Idea": idea}, []
    for paragraph in re.split(r"\n\n", body.strip()):
        label = next((name for name in SECTIONS if paragraph.startswith(name + ":")), None)
        if label:
            text = paragraph[len(label) + 1 :].strip()
            found[label] = text[:1].upper() + text[1:]
        else:
            own.append(paragraph)
    found["Update rule"] = "\n\n".join(own)
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        items = re.split(r"\n(?=\S)", textwrap.dedent(text).strip())
        lines = [" ".join(line.strip() for line in item.splitlines()) for item in items]
        found[{"Args": "Options"}.get(name, name)] = "\n".join(
            re.sub(r"^([\w, ]+):", r"- `\1`:", line) for line in lines
        )
    order = (
        "Idea",
        "Update rule",
        "When to use it",
        "NFE",
        "Reference",
        "Where the authors' code differs",
        "Options",
        "Attributes",
        "Raises",
    )
    return {name: found[name] for name in order if found.get(name)}


def page(cls: type, names: list[str]) -> str:
    lines = [NOTE, f"# {cls.__name__}", "", f"`solvers.{cls.__name__}({signature(cls)})`"]
    if names:
        lines += ["", f"Named on the command line: {', '.join(f'`{name}`' for name in names)}."]
    for title, text in parts(cls).items():
        lines += ["", f"## {title}", "", markdown(text)]
    return "\n".join(lines) + "\n"


def names_of(cls: type) -> list[str]:
    return [name for name, make in SOLVERS.items() if type(make()) is cls]


def index() -> str:
    lines = [
        NOTE,
        "# Solvers",
        "",
        "N is the number of steps; y the degraded image. Every solver runs on every process.",
        "",
    ]
    lines += [
        (
            "| solver | names | order | network calls | stochastic | starts from | keeps history |"
            " paper |"
        ),
        "|" + "---|" * 8,
    ]
    for name, (cls, order, calls, stochastic, start, paper) in TABLE.items():
        history = getattr(cls, "keeps_history", False)
        called = ", ".join(f"`{n}`" for n in names_of(cls)) or "in Python"
        kept = "the inner solver's" if cls is Resampled else "yes" if history else "no"
        lines.append(
            f"| [{cls.__name__}]({name}.md) | {called} | {order} | {calls} | {stochastic} | {start}"
            f" | {kept} | {paper} |"
        )
    return "\n".join(lines) + "\n"


def house() -> str:
    """A picture of the floors and their rooms, as SVG: folders are boxes, files lie beside them."""
    width, line, out, top = 980, 19, [], 10
    for floor, name in enumerate(FLOORS, 1):
        root = HERE.parent / name
        folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name != "__pycache__")
        files = sorted(p.stem for p in root.glob("*.py") if not p.name.startswith("__"))
        rows = textwrap.wrap(", ".join(files), 118) if files else []
        height = 38 + line * len(rows) + 34 * -(-len(folders) // 7)
        box = f'<rect x="10" y="{top}" width="{width - 20}" height="{height}" rx="6"'
        out.append(f'{box} fill="#f4f1ea" stroke="#8a7f6a"/>')
        out.append(f'<text x="22" y="{top + 23}" font-weight="bold">{6 - floor}  {name}/</text>')
        y = top + 34
        for k, room in enumerate(folders):
            x, row = 22 + k % 7 * 134, y + k // 7 * 34
            out.append(f'<rect x="{x}" y="{row}" width="126" height="27" rx="4" fill="#d9e4dd"/>')
            out.append(f'<text x="{x + 8}" y="{row + 18}">{room.name}/</text>')
        y += 34 * -(-len(folders) // 7)
        for k, text in enumerate(rows):
            out.append(f'<text x="22" y="{y + 14 + k * line}" fill="#555">{text}</text>')
        top += height + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" '
    style = 'font-family="sans-serif" font-size="13">'
    return "\n".join([head + style, *out, "</svg>"]) + "\n"


def corrections() -> str:
    lines = [
        NOTE,
        "# Posterior corrections",
        "",
        "Each wraps a denoiser and a measurement, and is a denoiser: any solver runs on it.",
        "On the command line options follow the name: `--correction dps:scale=0.5`.",
        "",
    ]
    lines += ["| name | class | gradient through the network |", "|---|---|---|"]
    for name, cls in posterior.CORRECTIONS.items():
        lines.append(
            f"| `{name}` | `{cls.__name__}` |"
            f" {'yes: not on exported models' if cls.needs_gradient else 'no'} |"
        )
    for cls in dict.fromkeys(posterior.CORRECTIONS.values()):
        lines += ["", f"## {cls.__name__}"]
        for title, text in parts(cls).items():
            heading = (
                [] if title == "Idea" else ["", f"### {title}"] if title != "Update rule" else []
            )
            lines += [*heading, "", markdown(text)]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Every generated file by its path below ``docs``."""
    found = {f"solvers/{name}.md": page(cls, names_of(cls)) for name, (cls, *_) in TABLE.items()}
    return found | {
        "solvers/README.md": index(),
        "corrections.md": corrections(),
        "house.svg": house(),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")
