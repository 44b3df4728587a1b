"""Calls of the deployment whose options come by name."""

from dataclasses import fields
from pathlib import Path

from toolbox.deploy.calibrate import run_calibrate
from toolbox.deploy.options import Recording, Trajectories


def calibrate(model, data, out, progress=lambda done: None, **options) -> dict:
    """``run_calibrate`` with the fields of its groups as keywords."""
    groups = [
        group(**{f.name: options.pop(f.name) for f in fields(group) if f.name in options})
        for group in (Trajectories, Recording)
    ]
    assert not options, f"unknown options {', '.join(options)}"
    data = None if data is None else Path(data)
    told = {"progress": lambda done, total: progress(done)}
    return run_calibrate(str(model), data, Path(out), *groups, **told)
