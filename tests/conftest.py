"""Shared fixtures: pictures, a tiny photo network, its calibration."""

import os
from pathlib import Path

import pytest
import torch
from helpers.data import TINY_RECIPE, smooth_picture
from hypothesis import settings

torch.set_num_threads(1)  # test tensors are small: more threads only wait for each other

# a busy machine is no failure
settings.register_profile("default", deadline=None, max_examples=50)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def traces(tmp_path_factory):
    """Graphs are traced once in a run of all workers; see :mod:`helpers.traces`."""
    from helpers.traces import remembering

    import export.graphs.calls
    import export.graphs.network
    import export.graphs.restorer

    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traces"
        folder = Path(os.environ.get("RESTOBOX_TRACES", folder))  # .ci/run: of both its runs
        folder.mkdir(exist_ok=True)
        once = remembering(export.graphs.network.trace, folder)
        patch.setattr(export.graphs.network, "trace", once)
        patch.setattr(export.graphs.calls, "trace", once)
        patch.setattr(export.graphs.restorer, "trace", once)
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder with two small training pictures."""
    from restoration.io.images import Photo, write_image

    folder = tmp_path_factory.mktemp("pictures")
    write_image(folder / "a.png", Photo(smooth_picture(60, 80)))
    write_image(folder / "b.png", Photo(smooth_picture(96, 64)))
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_recipe, pictures) -> Path:
    """The folder of a tiny photo model after four training steps."""
    from toolbox.training.loop import train
    from toolbox.training.recipe import TrainingRecipe

    return train(
        TrainingRecipe.read(tiny_recipe), pictures, tmp_path_factory.mktemp("model") / "tiny"
    )


@pytest.fixture(scope="module")
def calibration(denoiser):
    """What the module's ``denoiser`` sees while it restores."""
    from helpers.quantized import recording

    return recording(denoiser)[0]


@pytest.fixture(scope="module")
def quantized(denoiser, calibration):
    """The module's ``denoiser`` at 8 bits."""
    from quant.quantize import quantize
    from quant.recipe import QuantRecipe

    return quantize(denoiser.network, calibration, QuantRecipe())
