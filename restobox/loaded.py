"""A loaded model with a task's settings, which is called on pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from restobox.pictures import Picture, RestoredPicture, read_picture
from restoration.io.pictures.gamut import view_of
from restoration.metrics import psnr, ssim
from restoration.task import Restored

if TYPE_CHECKING:
    from restobox.many import Place, Tally


@dataclass(frozen=True)
class Restoration:
    """A loaded model and a task's settings. Call it on a picture, or on a list of them.

    Attributes:
        task: its name.
        model: what was loaded.
        settings: as given to the task's function.
        known: of the picture and what else the task is given, ``(H, W)``, 1 where the picture holds
            something; None: everywhere.
    """

    task: str
    model: Any
    settings: dict[str, Any]
    run: Callable[..., Restored] = field(repr=False)
    extra: tuple[str, ...] = ()
    call: dict[str, Any] | None = field(default=None, repr=False)  # for :meth:`map`
    known: Callable[..., Tensor] | None = field(default=None, repr=False)

    @overload
    def __call__(self, picture: Picture, *extra: Any, **options: Any) -> RestoredPicture: ...

    @overload
    def __call__(
        self, picture: list[Picture] | tuple[Picture, ...], *extra: Any, **options: Any
    ) -> list[RestoredPicture]: ...

    def __call__(
        self,
        picture: Picture | list[Picture] | tuple[Picture, ...],
        *extra: Any,
        reference: Picture | None = None,
        num_samples: int = 1,
        seed: int = 0,
        progress: bool = True,
        **options: Any,
    ) -> RestoredPicture | list[RestoredPicture]:
        """Restore one picture, or each of a list.

        Args:
            picture: PIL, NumPy, torch or a path (:func:`restobox.pictures.read_picture`).
            extra: what else the task needs, such as a mask; for a list of pictures a list too.
            reference: the true picture: the result then has ``metrics``.
            num_samples: posterior samples; the result is their mean, ``std`` where they disagree.
            seed: sample k uses ``seed + k``.
            progress: a bar in terminals and notebooks, for what takes longer than a second.
            options: the task's own, such as ``sigma``.

        Raises:
            TypeError, ValueError: a picture or an option that doesn't fit.
        """
        options |= {"num_samples": num_samples, "seed": seed, "progress": progress}
        if isinstance(picture, (list, tuple)):
            others = [e if isinstance(e, (list, tuple)) else [e] * len(picture) for e in extra]
            truths = (
                reference if isinstance(reference, (list, tuple)) else [reference] * len(picture)
            )
            rows = zip(picture, truths, *others, strict=True)
            return [self(p, *more, reference=truth, **options) for p, truth, *more in rows]
        if len(extra) > len(self.extra):
            takes = ", ".join(("a picture", *self.extra))
            raise TypeError(f"{self.task} takes {takes}; got {len(extra) + 1} arguments")
        pixels, form = read_picture(picture)
        found = self._restored(pixels, form.notes.icc, extra, options)
        metrics = {} if reference is None else _compare(found.mean, read_picture(reference)[0])
        fields = {
            name: getattr(found, name)
            for name in ("samples", "mean", "std", "nfe", "seconds", "level")
        }
        return RestoredPicture(**fields, given=pixels, form=form, metrics=metrics)

    def _restored(
        self, pixels: Tensor, icc: bytes | None, extra: Sequence[Any], options: dict[str, Any]
    ) -> Restored:
        """In the picture's own colours; networks are shown sRGB."""
        view = view_of(pixels.numpy(), icc)
        if view.gamut is None:
            return self._run(pixels, extra, options)
        exact = not options.get("sigma")
        shown = torch.from_numpy(view.shown)
        found = self._run(shown, extra, options)
        known = None if self.known is None else self.known(shown, *extra)

        def own(picture: Tensor) -> Tensor:
            share = None if known is None else known.numpy()
            back = torch.from_numpy(view.back(picture.numpy(), share))
            return torch.where(known > 0, pixels, back) if known is not None and exact else back

        samples = torch.stack([own(sample) for sample in found.samples])
        std = samples.std(0) if len(samples) > 1 else torch.zeros_like(samples[0])
        if (
            found.level is not None
        ):  # as much wider as it was made in sRGB, whose channels are mixed
            plain, told = found.samples.std(0).mean(0), found.std.mean(0)
            std = std * torch.where(plain > 0, told / plain, 1.0)
        return replace(found, samples=samples, mean=own(found.mean), std=std)

    def map(self, inputs: Place | Iterable[Place], out: Place, **options: Any) -> Tally:
        """Restore files, folders, globs and lists into a folder; see :func:`restobox.map`.

        Args:
            options: of :func:`restobox.map`; the model and settings are those of this object.

        Raises:
            ValueError: the model is an object of the caller's, or was converted to a ``dtype``;
                and as :func:`restobox.map`.
        """
        from restobox.many import map

        if self.call is None:
            raise ValueError(
                "map loads the model where it runs: give a name, a file or a folder, without dtype"
            )
        return map(self.task, inputs, out, **self.call | options)

    def _run(self, pixels: Tensor, extra: Sequence[Any], options: dict[str, Any]) -> Restored:
        with tqdm(
            desc=self.task, delay=1.0, disable=None if options.pop("progress") else True
        ) as bar:
            return self.run(pixels, *extra, callback=lambda *_: bar.update() and None, **options)


def _compare(restored: Tensor, truth: Tensor) -> dict[str, float]:
    if restored.shape != truth.shape:
        raise ValueError(
            f"the reference is {tuple(truth.shape)} but the result {tuple(restored.shape)}"
            " (channels, height, width)"
        )
    pair = restored.numpy(), truth.numpy()
    found = {"psnr": psnr(*pair)}
    return found | ({"ssim": ssim(*pair)} if min(restored.shape[1:]) >= 11 else {})
