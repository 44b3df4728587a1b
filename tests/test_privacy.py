"""Nothing leaves the machine: no address of the network, no file outside the outputs."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers.data import ROOT

FORMER = ROOT / "tests" / "former"
COMMANDS = {
    "restore": "restore inpaint {photo} --mask random:0.5 -o {out}/o.png --steps 1",
    "export": f"export {FORMER}/model --quantized {FORMER}/quantized -o {{out}}/b",
    "verify": (
        "verify {bundle} --model {former}/model --quantized {former}/quantized"
        " --calibration {former}/calibration.safetensors"
    ),
}


@pytest.mark.parametrize(
    "name",
    ["restore", *(pytest.param(name, marks=pytest.mark.long) for name in ("export", "verify"))],
)
def test_nothing_leaves_the_machine(name, pictures, tmp_path):
    """The home folder stays empty (telemetry would keep a device's id there), and where strace is
    installed, no address of the network is ever used.
    """
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    bundle = shutil.copytree(FORMER / "bundle", out / "bundle")
    words = COMMANDS[name].format(photo=pictures / "a.png", out=out, bundle=bundle, former=FORMER)
    trace = tmp_path / "trace"
    strace = shutil.which("strace")
    traced = (
        [strace, "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
        if strace
        else []
    )
    env = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*traced, sys.executable, "-m", "toolbox", *words.split()],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr
    left = [str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()]
    assert left == []
    if strace:
        # a library asks at its import whether IPv6 is there, by a socket that it never connects
        used = re.findall(r".*sa_family=AF_INET.*", trace.read_text())
        assert used == []
