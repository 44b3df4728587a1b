"""The run: every item once, whatever happens to some of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from restoration.io.scenes import is_scene
from solvers.files import clear_parts
from solvers.inputs.errors import InputError
from toolbox.tasks.scale.items import Found, Item
from toolbox.tasks.scale.job import Job
from toolbox.tasks.scale.manifest import Manifest
from toolbox.tasks.scale.plan import Plan, lines_of, plan
from toolbox.tasks.scale.search import find_items
from toolbox.tasks.settings import Many

Restored = Callable[[Iterator[Item]], Iterator[dict[str, Any]]]
SHOWN = 24  # items of the contact sheet
NAMED = 20  # failures that are named at the end


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        total: items to restore; ``kept`` more are up to date.
        done, failed: how many have ended.
        nfe: network calls of those that are done.
        began: time of the start, of :func:`time.monotonic`.
        reasons: of the first failures, with their items.
        metrics: sum and number by name.
        warnings: results that the task itself warns of.
        stopped: why the rest was not begun; empty if it was.
        dashboard: address of Dask's; empty where there is none.
    """

    total: int
    kept: int = 0
    done: int = 0
    failed: int = 0
    nfe: int = 0
    began: float = field(default_factory=time.monotonic)
    reasons: list[tuple[str, str]] = field(default_factory=list)
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    warnings: int = 0
    stopped: str = ""
    dashboard: str = ""

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    def take(self, record: dict[str, Any]) -> None:
        """Count an item that has ended."""
        if record["status"] != "done":
            self.failed += 1
            if len(self.reasons) < NAMED:
                self.reasons.append((record["item"], record["reason"]))
            return
        self.done += 1
        self.nfe += record["nfe"]
        self.warnings += "warning" in record
        for name, value in record["metrics"].items():
            total, count = self.metrics.get(name, (0.0, 0))
            self.metrics[name] = total + value, count + 1

    def figures(self) -> dict[str, Any]:
        """For the summary and for JSON."""
        seconds = self.seconds
        found: dict[str, Any] = {"done": self.done, "failed": self.failed, "kept": self.kept}
        found["left"] = self.total - self.done - self.failed
        found |= {"seconds": round(seconds, 2), "nfe": self.nfe, "warnings": self.warnings}
        found["items_per_second"] = round((self.done + self.failed) / max(seconds, 1e-9), 3)
        found["means"] = {n: round(v / k, 4) for n, (v, k) in self.metrics.items()}
        found["failures"] = [{"item": item, "reason": why} for item, why in self.reasons]
        return found | ({"stopped": self.stopped} if self.stopped else {})


def restore_all(
    job: Job,
    inputs: Iterable[Path],
    many: Many,
    told: Callable[[Tally], None] = lambda tally: None,
    found: Found | None = None,
) -> Tally:
    """Restore the measurements of ``inputs`` into the folder ``job.output.out``.

    A bad item is recorded with its reason and the others go on. Where the disk is full the run
    stops: no other item would fare better.

    Args:
        told: called at the start and whenever an item has ended.
        found: the items, where they were searched for already.

    Raises:
        ValueError, OSError: inputs, options or a folder of results that the run can't begin with;
            nothing is written then.
        FullDiskError: the manifest itself found no room.
    """
    job, ready, manifest = prepared(job, inputs, many, found)
    tally = Tally(len(ready.todo) + len(ready.refused), len(ready.kept))
    claimed: dict[str, list[str]] = {}
    written: list[Path] = []
    with _restoring(job, many, ready) as (restored, tally.dashboard), manifest:

        def end(record: dict[str, Any]) -> None:
            if record.pop("full_disk", False):
                tally.stopped = record["reason"]
            places = claimed.pop(record["item"], [])
            if record["status"] == "failed":
                record |= manifest.left(places)
            manifest.write(record)
            tally.take(record)
            told(tally)

        def fail(item: Item, reason: str) -> None:
            end(item.failed(reason))

        def begun() -> Iterator[Item]:
            for item in ready.todo:
                places = job.of(item).outputs()
                there = [p for p in places if os.path.lexists(p) and not manifest.is_ours(p)]
                if there:  # since the run was planned
                    fail(item, f"{there[0]} is there already; nothing is replaced")
                    continue
                out = [manifest.place(place) for place in places]
                manifest.write({"item": item.name, "status": "begun", "out": out})
                claimed[item.name] = out
                written.extend(places)
                yield item

        told(tally)
        for item, reason in ready.refused:
            fail(item, reason)
        for record in restored(begun()):
            end(record)
            if tally.stopped:
                break
        else:  # all workers are done
            clear_parts(written)
        if many.sheet is not None:
            write_sheet(many.sheet, [*ready.kept, *(item.name for item in ready.todo)], manifest)
    return tally


def prepared(
    job: Job, inputs: Iterable[Path], many: Many, found: Found | None = None
) -> tuple[Job, Plan, Manifest]:
    """All that can be checked before the first item; nothing is written.

    Raises:
        ValueError, OSError: as :func:`restore_all`.
    """
    if many.scheduler is not None and many.workers is not None:
        raise InputError(
            "--workers starts processes on this machine and --scheduler takes those of a cluster;"
            " give one of them"
        )
    if many.gpus_per_worker is not None and (many.scheduler or (many.workers or 1) < 2):
        raise InputError("--gpus-per-worker means something with --workers 2 or more; leave it out")
    if not many.clip and (many.still, many.refresh) != (Many.still, Many.refresh):
        raise InputError("--still and --refresh are for frames: add --clip, or leave them out")
    out = Path(os.path.abspath(job.output.out))
    if out.exists() and not out.is_dir():
        raise InputError(f"output {job.output.out} is a file; several results go to a folder")
    job = replace(job, output=replace(job.output, out=out))
    manifest = Manifest.read(out)
    found = found or find_items(job.one, inputs, out)
    items = found.items
    if many.clip:
        from toolbox.tasks.scale.frames import as_clip

        items = as_clip(job, items, many)
    ready = plan(job, items, manifest, many.suffix, many.resume)
    if many.sheet is not None:
        from restoration.io.images import check_writable

        if not job.one.is_picture:
            raise InputError(
                f"--sheet shows pictures; results of {job.task} are others: leave it out"
            )
        check_writable(many.sheet)
        place = Path(os.path.abspath(many.sheet))
        if (place.exists() and not manifest.is_ours(place)) or place in {i.out for i in ready.todo}:
            raise InputError(f"--sheet {many.sheet} is there already; give another name")
    return job, ready, manifest


@contextlib.contextmanager
def _restoring(job: Job, many: Many, ready: Plan) -> Iterator[tuple[Restored, str]]:
    """What restores items as they come, and gives their records; and where to watch it."""
    if many.scheduler is not None or (many.workers or 1) > 1:
        from toolbox.tasks.scale.cluster import over_cluster

        with over_cluster(job, many, begin=bool(ready.todo)) as found:
            yield found
        return
    from toolbox.tasks.scale.worker import check_models, restore_item

    if ready.todo:
        check_models(job)
    if many.clip:
        from toolbox.tasks.scale.frames import restored_frames

        yield lambda items: restored_frames(job, items, many), ""
        return
    yield lambda items: (restore_item(job, item) for item in items), ""


def write_sheet(place: Path, names: Iterable[str], manifest: Manifest) -> None:
    """A picture of the first results, by name, beside what was given."""
    import numpy as np
    from PIL import Image, ImageOps

    from restoration.io.images import Photo, read_image, write_image
    from toolbox.support.sheets import sheet
    from toolbox.tasks.scale.digests import digest_of

    def small(path: Path) -> np.ndarray:
        pixels = read_image(path).pixels
        pixels = np.rint(np.broadcast_to(pixels, (3, *pixels.shape[1:])) * 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        fitted = np.asarray(ImageOps.pad(image, (192, 192), color="white"))
        return fitted.transpose(2, 0, 1).astype(np.float32) / 255

    ended = (manifest.items[name] for name in sorted(names) if name in manifest.items)
    done = (r for r in ended if r["status"] == "done" and not is_scene(Path(r["input"])))
    panels = [
        (record["item"][-36:], np.concatenate([small(given), small(result)], axis=2))
        for record in itertools.islice(done, SHOWN)
        for given, result in [(Path(record["input"]), manifest.folder / record["out"][0])]
    ]
    if not panels:
        return
    out = [manifest.place(Path(os.path.abspath(place)))]
    manifest.write({"item": "", "status": "begun", "out": out})  # else a killed run's is a stranger
    write_image(place, Photo(sheet(panels, columns=min(3, len(panels)))))
    known = {out[0]: digest_of(place)}
    manifest.write({"item": "", "status": "sheet", "out": out, "out_sha256": known})


__all__ = ["Tally", "lines_of", "prepared", "restore_all"]
