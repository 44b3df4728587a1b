"""A video restored frame by frame, as the frames of a clip are (:mod:`toolbox.tasks.scale.frames`).

A frame is a picture file for as long as it is needed, in a hidden folder beside the result: tasks
read and write files, and a clip may be longer than the memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from restoration.io.images import Photo, read_image, write_image
from restoration.io.video import Frame, check_video_writable, open_video, write_video
from solvers.files import check_outputs, room_beside
from solvers.inputs.errors import InputError
from toolbox.tasks.base import Progress, silent
from toolbox.tasks.scale.frames import restored_frames
from toolbox.tasks.scale.items import Item
from toolbox.tasks.scale.job import Job
from toolbox.tasks.settings import Many


def restore_video(job: Job, path: Path, many: Many, progress: Progress = silent) -> dict[str, Any]:
    """Restore the frames of a video with one draw for all, and write them as a video.

    Those that don't change (``many.still``) get the last one's result, at most ``many.refresh``
    times in a row.

    Returns:
        The figures of the run, ``flicker`` and ``flicker_input`` among them.

    Raises:
        ValueError, OSError: options or files that can't be used; nothing is written then.
    """
    out, output = job.output.out, job.output
    if not job.one.is_picture:
        raise InputError(f"{job.task} takes no video; give what its command names")
    if output.std or output.write_samples or output.reference is not None:
        raise InputError(
            "a video has no --std, --write-samples and --reference; save its frames as pictures and"
            " give the folder with --clip"
        )
    check_video_writable(out)
    own = [getattr(job.options, name, None) for name in job.one.files]
    check_outputs([out], [path, job.prior.model or None, *own])
    records: list[dict[str, Any]] = []
    began = time.monotonic()
    with open_video(path) as video, room_beside(out.absolute()) as place:
        times = list[int | None]()
        inner = replace(job, output=replace(output, out=place))

        def items() -> Iterator[Item]:
            for k, frame in enumerate(video.frames):
                item = Item(f"{k:08d}.png", place / f"{k:08d}-given.png", place / f"{k:08d}.png")
                write_image(item.path, Photo(frame.codes.astype(np.float32) / 255))
                times.append(frame.time)
                yield replace(item, own={"seed": job.draws.seed})

        def results() -> Iterator[Frame]:
            kept: set[str] = set()
            for k, record in enumerate(restored_frames(inner, items(), many)):
                if record["status"] != "done":
                    raise InputError(f"frame {k} of {path}: {record['reason']}")
                result = place / record["item"]
                codes = np.rint(255 * read_image(result).pixels).astype(np.uint8)
                # the source of a still is read again
                kept, old = {record["item"], record.get("same_as", record["item"])}, kept
                for name in old - kept:
                    (place / name).unlink()
                (place / f"{k:08d}-given.png").unlink()
                records.append(record)
                progress(k + 1, max(video.count, k + 1))
                yield Frame(np.broadcast_to(codes, (3, *codes.shape[1:])), times[k])

        write_video(out, video, results(), output.quality)
    stills = sum("same_as" in record for record in records)
    figures = {"task": job.task, "video": str(path), "out": str(out), "frames": len(records)}
    figures |= {"stills": stills, "nfe": sum(record["nfe"] for record in records)}
    figures["seconds"] = round(time.monotonic() - began, 2)
    for name in ("flicker", "flicker_input"):
        found = [r["metrics"][name] for r in records if name in r["metrics"]]
        figures |= {name: round(statistics.fmean(found), 5)} if found else {}
    if not video.silent:
        figures["note"] = "the sound is left out"
    return figures
