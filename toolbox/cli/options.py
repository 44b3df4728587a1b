"""How commands take their options."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from toolbox.tasks.settings import Checkpoint, Computing

Pictures = Annotated[
    list[Path],
    typer.Argument(
        help=(
            "PNG, JPEG, WebP, TIFF ...; 8 or 16 bits, grey or colour, with or without alpha."
            " Several files, folders, globs, or a list (.csv, .jsonl) with -o FOLDER/. A video"
            " (.mp4, .mkv ...)."
        )
    ),
]


_running: ContextVar[Any] = ContextVar("running")  # of the command that runs, typer's context


class Without:
    """``Annotated[Group, Without("grid")]``: such fields keep their defaults and are no options."""

    def __init__(self, *names: str):
        self.names = names


# of settings: what a run without choice of times and tiles takes
FEW = Without("grid", "correction", "tile", "symmetries")


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose parameters may be dataclasses: their fields become options (typer has no such
    groups), if they are ``Annotated``; their values arrive as objects. A parameter's default gives
    those of the fields.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Any, dict[str, Any]]] = {}
    flat: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        kind, *marks = (
            get_args(hints[parameter.name])
            if get_origin(hints[parameter.name]) is Annotated
            else (hints[parameter.name],)
        )
        if not dataclasses.is_dataclass(kind):
            flat.append(_keyword(parameter.name, hints[parameter.name], parameter.default))
            continue
        left_out = {name for mark in marks if isinstance(mark, Without) for name in mark.names}
        own = None if parameter.default is inspect.Parameter.empty else parameter.default
        types, fixed = get_type_hints(kind, include_extras=True), {}
        for f in dataclasses.fields(kind):
            missing = f.default is dataclasses.MISSING
            default = inspect.Parameter.empty if missing else f.default
            default = default if own is None else getattr(own, f.name)
            if f.name in left_out or get_origin(types[f.name]) is not Annotated:
                fixed[f.name] = default
            else:
                flat.append(_keyword(f.name, types[f.name], default))
        groups[parameter.name] = kind, fixed

    names = {p.name for p in flat}
    types, computing = {}, {}
    if {"model", "tissue"} & names:
        types = get_type_hints(Checkpoint, include_extras=True)
        own = get_type_hints(Computing, include_extras=True)
        computing = {name: kind for name, kind in own.items() if name not in names}
    flat += [_keyword(name, kind, None) for name, kind in (types | computing).items()]

    def call(**given: Any) -> Any:
        from toolbox.api import computing_with, reading_with

        said = {name: given.pop(name) for name in types}
        how = {name: given.pop(name) for name in computing}
        made = {
            name: kind(
                **fixed,
                **{
                    f.name: given.pop(f.name)
                    for f in dataclasses.fields(kind)
                    if f.name not in fixed
                },
            )
            for name, (kind, fixed) in groups.items()
        }
        with reading_with(said), computing_with(**how):
            return command(**given, **made)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in flat}
    return call


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def refuse_unused(names: Iterable[str], where: str) -> None:
    """Refuse options that this call can't use, instead of dropping them.

    Args:
        names: of the running command's parameters.
        where: ends the sentence "... has no effect".

    Raises:
        ValueError: the user gave one of them.
    """
    context = _running.get()
    flags = {p.name: p.opts[0] for p in context.command.params}
    given = [flags[n] for n in names if n in flags and _given(context, n)]
    if given:
        has = "has" if len(given) == 1 else "have"
        raise ValueError(f"{', '.join(given)} {has} no effect {where}; leave it out")


def refuse_missing() -> None:
    """Refuse that a needed option was left out, which lists of inputs may give instead.

    Raises:
        MissingParameter: typer's own, of the first of them.
    """
    context = _running.get()
    for parameter in context.command.params:
        if parameter.required and context.params.get(parameter.name) is None:
            parameter.process_value(context, None)


def written_as_folder(name: str) -> bool:
    """Whether the value of an option of the running command ends in a slash."""
    context = _running.get()
    parameter = next(p for p in context.command.params if p.name == name)
    words = context.meta["restobox.words"]
    after = [b for a, b in pairwise(words) if a in parameter.opts]
    joined = [w for w in words if w.startswith(tuple(f"{o}=" for o in parameter.opts))]
    return [*after, *joined, ""][0].endswith(("/", os.sep))


def given() -> set[str]:
    """Names of the running command's parameters that the user gave."""
    context = _running.get()
    return {p.name for p in context.command.params if _given(context, p.name)}


def _given(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


class CheckedCommand(TyperCommand):
    """A command whose values are checked in this one place: NaN, infinity and nothing at all are
    never meant.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["restobox.words"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{parameter.opts[0]} must be a finite number; got {number}")
                if number == "" and _given(ctx, parameter.name or ""):
                    raise ValueError(f"{parameter.opts[0]} is empty; give a value or leave it out")
        _running.set(ctx)
        return super().invoke(ctx)


class ListedCommand(CheckedCommand):
    """A command whose needed options a list of inputs may give instead, item by item:
    :func:`refuse_missing` refuses that they are missing elsewhere.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        listed = any(word.lower().endswith((".csv", ".jsonl")) for word in args)
        always = ("inputs", "out")
        needed = [p for p in self.params if listed and p.required and p.name not in always]
        for parameter in needed:
            parameter.required = False
        try:
            return super().parse_args(ctx, args)
        finally:
            for parameter in needed:
                parameter.required = True


class Commands(typer.Typer):
    """An app of such commands."""

    def command(self, *args: Any, **options: Any) -> Any:
        made = super().command(*args, **({"cls": CheckedCommand} | options))
        return lambda command: made(grouped(command))
