"""An option that a call can't use is refused, never dropped."""

import numpy as np
import pytest
from helpers.commands import restobox
from helpers.data import ROOT

FORMER = ROOT / "tests" / "former"
VERIFY = f"verify {FORMER / 'restorer'} --model {FORMER / 'model'} --data {{data}}"
CALIBRATE = f"calibrate {FORMER / 'model'} --data {{data}} -o {{out}}/c"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(
            (f"export {FORMER / 'model'} -o {{out}}/b --target float", option)
            for option in (
                "--task deblur",
                "--factor 2",
                "--blur 1",
                "--coils 2",
                "--solver pndm",
                "--steps 3",
                "--grid leading",
                "--correction ddnm",
                "--sigma 0.1",
                "--size 64x64",
                "--estimates",
            )
        ),
        (f"export {FORMER / 'model'} -o {{out}}/b --target float --restorer", "--factor 2"),
        (f"export {FORMER / 'model'} -o {{out}}/b --target float --restorer", "--coils 2"),
        (VERIFY, "--calibration c"),
        (VERIFY, "--side 64"),
        (VERIFY, "--solver pndm"),
        (VERIFY, "--steps 3"),
        (CALIBRATE, "--partner tissue:x"),
        (CALIBRATE + " --task paired", "--correction ddnm"),
        (CALIBRATE + " --task dehaze", "--sigma 0.1"),
    ],
)
def test_options_that_have_no_effect_are_refused(command, option, pictures, tmp_path):
    words = f"{command} {option}".format(data=pictures, out=tmp_path).split()
    done = restobox(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert option.split()[0] in done.stderr
    assert "no effect" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option", ["--solver pndm", "--steps 3", "--grid leading", "--tile 64", "--cache 2"]
)
def test_a_whole_restoration_takes_no_settings(option, pictures, tmp_path):
    out = tmp_path / "o.png"
    words = f"restore inpaint {pictures}/a.png -o {out} --mask random:0.5 --model {FORMER}/restorer"
    done = restobox(*words.split(), *option.split())
    assert (done.returncode, out.exists()) == (2, False)
    assert "no effect on a whole restoration" in done.stderr


@pytest.mark.parametrize("option", ["--key cube", "--band-axis 0"])
def test_envi_has_one_array(option, tmp_path):
    (tmp_path / "c.hdr").write_text(
        "ENVI\nsamples = 4\nlines = 4\nbands = 3\ndata type = 4\ninterleave = bsq\n"
    )
    np.zeros((3, 4, 4), np.float32).tofile(tmp_path / "c.raw")
    words = f"restore hsi {tmp_path}/c.hdr -o {tmp_path}/o.hdr {option}".split()
    done = restobox(*words)
    assert done.returncode == 2
    assert "leave out --key and --band-axis" in done.stderr
