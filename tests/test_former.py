"""What version 0.1.0 wrote is read as it was meant: a model, a recipe, a calibration, a quantized
network, and bundles of a network and of a whole restoration. ``tests/former`` holds the files, and
in ``answers.npz`` what that version made of one measurement with each of them.
"""

import numpy as np
import pytest
import torch
from helpers.data import ROOT

from quant.calibration.trajectory import CalibrationSet
from quant.files import load_quantized
from restoration.photo.inpainting import InpaintingTask
from solvers import DDIM
from toolbox import load
from toolbox.training.recipe import FORMER, TrainingRecipe

FILES = ROOT / "tests" / "former"
# the same machine gives the same bits; another one rounds its convolutions otherwise, and a code of
# eight bits may then fall on the other side
FLOAT, INTEGER = 1e-5, 0.02


@pytest.fixture(scope="module")
def answers():
    with np.load(FILES / "answers.npz") as file:
        return dict(file)


def restored(denoiser, answers):
    image, mask = (torch.from_numpy(answers[name]) for name in ("image", "mask"))
    return InpaintingTask(denoiser, DDIM(), 2)(image, mask, seed=3).mean.numpy()


def test_model(answers):
    found = restored(load(FILES / "model"), answers)
    np.testing.assert_allclose(found, answers["float"], rtol=0, atol=FLOAT)


def test_quantized_network(answers):
    denoiser = load(FILES / "model")
    denoiser.network = load_quantized(FILES / "quantized", denoiser.network)
    np.testing.assert_allclose(
        restored(denoiser, answers), answers["simulated"], rtol=0, atol=INTEGER
    )


@pytest.mark.parametrize("name", ["bundle", "restorer"])
def test_bundles(answers, name):
    loaded = load(FILES / name, threads=1)
    if name == "restorer":
        image, mask = (torch.from_numpy(answers[key]) for key in ("image", "mask"))
        found = loaded(image, mask, seed=3).mean.numpy()
    else:
        found = restored(loaded, answers)
    np.testing.assert_allclose(found, answers[name], rtol=0, atol=INTEGER)


def test_calibration(answers):
    calibration = CalibrationSet.load(
        FILES / "calibration.safetensors", load(FILES / "model").network
    )
    assert calibration.hash == answers["calibration"][0]


def test_recipes_understand_the_former_words_for_tasks(tmp_path):
    assert TrainingRecipe.read(FILES / "recipe.toml").task == "inpaint"
    text = (FILES / "recipe.toml").read_text()
    for former, task in FORMER.items():
        (tmp_path / "r.toml").write_text(text.replace('"inpainting"', f'"{former}"'))
        if former == "inpainting":
            assert TrainingRecipe.read(tmp_path / "r.toml").task == task
        else:  # refused for its sections, by the name of now
            with pytest.raises(ValueError, match=f"'{task}'|'inpaint'"):
                TrainingRecipe.read(tmp_path / "r.toml")


def test_former_import_paths():
    """Model cards and scripts of 0.1.0 name these."""
    from export.session import Restorer, Session
    from restoration.inpainting import InpaintingTask as Former

    assert (Former, Session.__name__, Restorer.__name__) == (InpaintingTask, "Session", "Restorer")
