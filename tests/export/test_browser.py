"""The page that restores a photo in the browser gives what the runner gives.

Needs Chromium and ONNX Runtime's npm package: ``apt install chromium`` and, in ``examples/edge``,
``npm install onnxruntime-web``.
"""

import base64
import functools
import io
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from helpers.data import ROOT, smooth_picture
from PIL import Image

from export.edge import restobox_edge as edge

PAGE = ROOT / "examples" / "edge" / "browser.html"
PACKAGES = PAGE.parent / "node_modules"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(
        not (PACKAGES / "onnxruntime-web").is_dir(), reason="no onnxruntime-web in examples/edge"
    ),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """A folder as the page describes it, and its address."""
    shutil.copy(PAGE, tmp_path / "index.html")
    shutil.copytree(ROOT / "tests" / "former" / "restorer", tmp_path / "restorer")
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()


def visited(folder, address):
    """The page once it has come to rest: what it says, and its last picture."""
    words = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=600000", "--dump-dom"),
    ]
    done = subprocess.run(
        [*words, address], capture_output=True, text=True, timeout=200, check=True
    )
    said = re.search(r'id="said"[^>]*>([^<]*)', done.stdout)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)', done.stdout)
    return said[1], base64.b64decode(pictures[-1]) if pictures else None


def test_the_browser_restores_as_the_runner_does(site):
    folder, address = site
    pixels = smooth_picture(32, 32)
    missing = np.random.default_rng(0).random((32, 32)) < 0.4
    edge.write_picture(folder / "p.png", pixels)
    edge.write_picture(folder / "m.png", missing[None].astype(np.float32))
    runner = edge.Restorer(folder / "restorer", threads=1)
    noise = runner.noise((3, 32, 32), 0)
    (folder / "n.bin").write_bytes(noise.tobytes())
    asked = f"{address}?picture=p.png&mask=m.png"
    said, png = visited(folder, f"{asked}&noise=n.bin")
    assert said.startswith("done: 2 network calls"), said
    found = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float32) / 255
    given = edge.read_picture(folder / "p.png")
    wanted = runner.picture(given, (~missing).astype(np.float32), noise=noise)
    # half a grey level of the PNG, and 8 bits whose sums fall on either side of a code
    assert np.abs(found.transpose(2, 0, 1) - wanted).max() < 0.5 / 255 + 8e-3
    graph = folder / "restorer" / "restorer.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    said, png = visited(folder, asked)
    assert "was changed" in said
    assert png is None
