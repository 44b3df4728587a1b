"""What a network is shown: said by its files, inferred for those that don't say, and a task that is
given another kind refuses in one sentence that names models that fit.
"""

import json

import pytest
from helpers.covering import covering
from helpers.networks import tiny_unet

from restoration.task import KINDS, SHOWN, check_kind, shown_to
from solvers import VP, Denoiser
from toolbox.api import load_for, models
from toolbox.cli import main
from toolbox.training.network import build
from toolbox.training.recipe import TrainingRecipe

SHIPPED = {info.name: info for info in models()}
EXPECTED = {
    "photo": "lift+known",
    "photo-int8": "lift+known",
    "photo-x4": "lift+known",
    "photo-x4-int8": "lift+known",
    "grey": "none",
    "grey-int8": "none",
    "haze": "haze",
    "haze-int8": "haze",
    "low-light": "brightened",
    "shadow": "relit+mask",
    "mri": "mri",
    "mri-int8": "mri",
    "ultrasound": "degraded",
    "ultrasound-haze": "none",
    "ultrasound-tissue": "none",
}


@pytest.mark.parametrize("name", covering(EXPECTED, ["photo-int8", "grey", "haze", "mri"]))
def test_shipped_models_do_their_tasks_and_no_other(name):
    info = SHIPPED[name]
    assert info.tasks
    for task in info.tasks:
        assert shown_to(load_for(task, name, threads=1)) == (EXPECTED[name],)
    fitting = {task for task, (kinds, _) in KINDS.items() if EXPECTED[name] in kinds}
    for task in set(KINDS) - fitting:
        with pytest.raises(ValueError, match=f"{name}: {task} takes .* shipped models that fit: "):
            load_for(task, name, threads=1)


def test_what_a_model_says_wins(tmp_path):
    """Four channels beside a picture can be two things in a model of 0.1.0, which doesn't say."""
    unsaid = Denoiser(tiny_unet(7, 3), VP.linear(), condition_channels=4, multiple=2)
    assert shown_to(unsaid) == ("lift+known", "degraded+mask")
    check_kind(unsaid, "inpaint")
    check_kind(unsaid, "paired")
    masked = Denoiser(
        tiny_unet(7, 3), VP.linear(), condition_channels=4, multiple=2, shown="degraded+mask"
    )
    masked.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "denoiser.json").read_text())["shown"] == "degraded+mask"
    loaded = Denoiser.from_pretrained(tmp_path)
    assert shown_to(loaded) == ("degraded+mask",)
    check_kind(loaded, "paired")
    with pytest.raises(ValueError, match="is shown the degraded picture and a mask"):
        check_kind(loaded, "inpaint")


def test_trained_models_say_what_they_are_shown(tiny_recipe):
    assert shown_to(build(TrainingRecipe.read(tiny_recipe))) == ("lift+known",)


@pytest.mark.parametrize("task", KINDS)
def test_every_word_is_explained(task):
    assert set(KINDS[task][0]) <= set(SHOWN)


@pytest.mark.parametrize(
    "arguments",
    [
        "dehaze {photo} --model mri",
        "inpaint {photo} --mask random:0.5 --model mri",
        "paired {photo} --model photo",
        "ultrasound {photo} --grey --tissue photo",
        "denoise {photo} --sigma 0.1 --model haze",
        "deblur {photo} --blur 1 --model mri-int8",
    ],
)
def test_commands_refuse_in_one_line(arguments, pictures, tmp_path, monkeypatch, capsys):
    words = arguments.format(photo=pictures / "a.png").split()
    argv = ["restobox", "restore", *words, "-o", str(tmp_path / "o.png")]
    monkeypatch.setattr("sys.argv", argv)
    assert main() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "models that fit" in lines[0]
    assert not list(tmp_path.iterdir())
