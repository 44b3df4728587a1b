"""A folder with a tiny model for each task, and small measurements."""

from pathlib import Path

import numpy as np
from helpers.data import smooth_picture
from helpers.networks import shallow_unet

# channels of image and condition, and what the condition is
NETWORKS = {
    "inpaint": (3, 4, "lift+known"),
    "denoise": (1, 0, None),
    "superresolve": (3, 4, "lift+known"),
    "deblur": (1, 0, None),
    "dehaze": (3, 7, "haze"),
    "paired": (3, 3, "degraded"),
    "ultrasound": (1, 0, None),
    "mri": (2, 7, "mri"),
    "hsi": (1, 0, None),
}


def furnish(place: Path) -> Path:
    """Models by task, pictures, pairs, a frame, a volume and a cube, in the folder ``place``."""
    from restoration.io.images import Photo, write_image
    from solvers.denoiser import Denoiser
    from solvers.processes.process import VP

    process = VP.cosine(100, zero_terminal_snr=True)
    for name, (channels, condition, shown) in NETWORKS.items():
        Denoiser(
            shallow_unet(channels + condition, channels),
            process,
            "v_prediction",
            condition_channels=condition,
            shown=shown,
        ).save_pretrained(place / name)
    for folder in ("pictures", "pairs/degraded", "pairs/clean"):
        (place / folder).mkdir(parents=True)
        for k in range(2):
            picture = smooth_picture(48, 40) * (1 - 0.2 * k)
            write_image(place / folder / f"{k}.png", Photo(picture.astype(np.float32)))
    write_image(place / "frame.png", Photo(smooth_picture(48, 40, 1)))
    np.savez(place / "volume.npz", image=smooth_picture(36, 40, 1))
    np.savez(place / "cube.npz", cube=np.stack([smooth_picture(24, 24, 1)[0]] * 6, -1))
    return place
