"""Restore a photo with a restorer bundle: onnxruntime, numpy and Pillow, nothing else.

python restore.py BUNDLE photo.png mask.png restored.png      (in the mask, white = missing)
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is imported
import onnxruntime

folder, photo, missing, out = sys.argv[1:5]
run = json.loads((Path(folder) / "bundle.json").read_text())["run"]
draws, th, tw = run["draws"], run["height"], run["width"]
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
known = onnxruntime.get_available_providers()
session = onnxruntime.InferenceSession(f"{folder}/restorer.onnx", options, providers=known)
image = np.asarray(Image.open(photo).convert("RGB"), np.float32).transpose(2, 0, 1) / 255
known = (np.asarray(Image.open(missing).convert("L"))[None] < 128).astype(np.float32)
height, width = image.shape[1:]
corner = ((0, 0), (0, max(0, th - height)), (0, max(0, tw - width)))  # unknown, if any
x, m = np.pad(image * known, corner), np.pad(known, corner)
noise = np.random.default_rng(0).standard_normal((draws, *x.shape), np.float32)
over = min(th, tw) // 8  # tiles share this many pixels
ramp = [np.minimum(np.arange(n) + 1, np.arange(n, 0, -1)).clip(max=over) / over for n in (th, tw)]
total, weights = np.zeros_like(x), np.zeros(x.shape[1:], np.float32)
for top in sorted({min(t, x.shape[1] - th) for t in range(0, x.shape[1], th - over)}):
    for left in sorted({min(s, x.shape[2] - tw) for s in range(0, x.shape[2], tw - over)}):
        at = (..., slice(top, top + th), slice(left, left + tw))
        feed = {"image": x[at][None], "mask": m[at][None], "noise": noise[at][:, None]}
        total[at] += session.run(["restored"], feed)[0][0] * np.outer(*ramp)
        weights[at] += np.outer(*ramp)
restored = np.where(known > 0, image, (total / weights)[:, :height, :width])
Image.fromarray((restored.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)).save(out)
