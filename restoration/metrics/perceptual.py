"""LPIPS (Zhang et al. 2018): the distance of two pictures in the features of a network.

The heads come with the package ``lpips``; AlexNet's features lie beside this file, torchvision's in
half precision (BSD-3-Clause), which moves no distance by more than 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.metrics.fidelity import Image, pair_of

ALEXNET = Path(__file__).with_name("alexnet.safetensors")
ELSEWHERE = {"vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
LEAST = 32  # pixels: AlexNet makes nothing of fewer


class LPIPSUnavailable(RuntimeError):
    """LPIPS can't be computed: the backbone's weights are not on this machine, or the picture is
    too small.
    """


def lpips(image: Image, reference: Image, backbone: str = "alex") -> float:
    """LPIPS distance of ``(3, H, W)`` images in [0, 1]; lower is closer.

    Args:
        backbone: ``alex``, which ships with the package and is what papers report most; ``vgg`` or
            ``squeeze``, whose weights are looked for in torch's hub folder.

    Raises:
        LPIPSUnavailable: images of fewer than 32 pixels along a side, or a backbone whose weights
            are not there; the message says which file to put where. Nothing is downloaded.
    """
    if backbone != "alex" and backbone not in ELSEWHERE:
        known = ", ".join(("alex", *ELSEWHERE))
        raise ValueError(f"LPIPS backbone {backbone!r} is unknown; known: {known}")
    image, reference = pair_of(image, reference)
    if min(image.shape[1:]) < LEAST:
        height, width = image.shape[1:]
        raise LPIPSUnavailable(
            f"LPIPS needs at least {LEAST} x {LEAST} pixels; got {width} x {height}"
        )
    one, other = (torch.as_tensor(v, dtype=torch.float32)[None] for v in (image, reference))
    with torch.no_grad():
        return float(_network(backbone)(one, other))


@cache
def _network(backbone: str) -> Callable[[Tensor, Tensor], Tensor]:
    """``network(image, reference)``, of pictures ``(B, 3, H, W)`` in [0, 1]."""
    if backbone == "alex":
        return _AlexNet()
    place = Path(torch.hub.get_dir()) / "checkpoints" / ELSEWHERE[backbone]
    if not place.is_file():
        raise LPIPSUnavailable(
            f"LPIPS needs the {backbone} backbone: put torchvision's {place.name} into"
            f" {place.parent}"
        )
    import lpips as package

    return partial(package.LPIPS(net=backbone, verbose=False), normalize=True)


class _AlexNet:
    """The distance in AlexNet's features, as the package computes it: without its import, which
    takes seconds, and the random weights of a whole AlexNet.
    """

    # number of the layer in ``features``, stride and padding; a pooling comes before those of
    # POOLED
    LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
    POOLED = (3, 6)
    MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]

    def __init__(self) -> None:
        from safetensors.torch import load_file

        self.weights = {k: v.float() for k, v in load_file(ALEXNET).items()}
        package = find_spec("lpips")
        assert package is not None
        assert package.origin is not None
        path = Path(package.origin).with_name("weights") / "v0.1" / "alex.pth"
        heads = torch.load(path, map_location="cpu", weights_only=True)
        self.heads = [heads[f"lin{k}.model.1.weight"] for k in range(len(self.LAYERS))]

    def features(self, image: Tensor) -> Iterator[Tensor]:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.MEAN, self.STD))
        x = (2 * image - 1 - mean) / std
        for number, stride, padding in self.LAYERS:
            if number in self.POOLED:
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (self.weights[f"features.{number}.{k}"] for k in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        pairs = zip(self.features(image), self.features(reference), self.heads, strict=True)
        return sum(  # type: ignore[return-value]
            F.conv2d((one - other).square(), head).mean() for one, other, head in pairs
        )
