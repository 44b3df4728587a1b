"""Small checkpoints of families whose published code is short, and that code."""

from pathlib import Path

import torch
from torch import nn


def chain(ins: int, outs: int, width: int = 8, layers: int = 5, seed: int = 0) -> nn.Sequential:
    """KAIR's convolutions with ReLU between: half of what comes in goes on."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = [nn.Conv2d(ins, width, 3, padding=1), nn.ReLU()]
    for _ in range(layers - 2):
        parts += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*parts, nn.Conv2d(width, outs, 3, padding=1)).eval()


class DnCNN(nn.Module):
    """KAIR's ``network_dncnn.DnCNN``."""

    def __init__(self, channels: int, layers: int = 5):
        super().__init__()
        self.model = chain(channels, channels, layers=layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.model(x)


class FFDNet(nn.Module):
    """KAIR's ``network_ffdnet.FFDNet`` on pictures of even size."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = chain(4 * channels + 1, 4 * channels)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        parts = nn.functional.pixel_unshuffle(x, 2)
        level = sigma.view(-1, 1, 1, 1).expand(-1, 1, *parts.shape[2:])
        return nn.functional.pixel_shuffle(self.model(torch.cat((parts, level), 1)), 2)


class DeepinvDnCNN(nn.Module):
    """``deepinv.models.DnCNN``."""

    def __init__(self, channels: int, layers: int = 5, width: int = 8):
        super().__init__()
        torch.manual_seed(1)
        self.in_conv = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_list = nn.ModuleList(
            [nn.Conv2d(width, width, 3, padding=1) for _ in range(layers - 2)]
        )
        self.out_conv = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.in_conv(x))
        for conv in self.conv_list:
            h = torch.relu(conv(h))
        return self.out_conv(h) + x


def nafnet() -> nn.Module:
    """spandrel's NAFNet, whose gates are opened a little."""
    from spandrel.architectures.NAFNet import NAFNet

    torch.manual_seed(2)
    made = NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith((".beta", ".gamma")):
                value.fill_(0.3)
    return made.eval()


def swinir() -> nn.Module:
    """spandrel's SwinIR for pictures as large as they were."""
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(3)
    kind = {"upscale": 1, "upsampler": "", "resi_connection": "1conv", "img_size": 16}
    depth = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "mlp_ratio": 2}
    return SwinIR(window_size=8, **kind, **depth).eval()


SPANDREL = ("nafnet", "swinir")
MADE = {
    "dncnn": lambda: DnCNN(1),
    "dncnn-deepinv": lambda: DeepinvDnCNN(3),
    "ffdnet": lambda: FFDNet(1),
    "ffdnet-colour": lambda: FFDNet(3),
    "nafnet": nafnet,
    "swinir": swinir,
}


def write(name: str, path: Path) -> nn.Module:
    """Its state dict as a file; the network."""
    network = MADE[name]()
    torch.save(network.state_dict(), path)
    return network
