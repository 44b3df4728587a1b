"""Every task through the whole line on a tiny network: files restored, calibrated, quantized,
exported as a network and as a whole restoration, verified on trials; host and graph agree.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.data import smooth_picture
from helpers.deploy import calibrate
from helpers.house import NETWORKS, furnish
from helpers.quantized import one_thread  # noqa: F401

from export.edge import restobox_edge as edge
from export.runtime.session import Restorer
from restoration.io.ultrasound import write_clip
from restoration.task import KINDS
from solvers.denoiser import Denoiser
from solvers.solver import randn
from toolbox.api import load
from toolbox.deploy.export import options_of, run_export, run_export_restorer
from toolbox.deploy.options import Checks, Graph, Origin, Trials, Whole
from toolbox.deploy.quantize import run_quantize
from toolbox.deploy.report import run_report
from toolbox.deploy.verify import run_verify, run_verify_restorer
from toolbox.tasks import TASKS, task_by_name
from toolbox.tasks.options import (
    Cubes,
    Deblurring,
    Dehazing,
    Denoising,
    Enlarging,
    Frames,
    Inpainting,
    Pairs,
    Scanning,
)
from toolbox.tasks.scale.engine import restore_all
from toolbox.tasks.scale.job import Job
from toolbox.tasks.settings import Many, Output, Prior, Request, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {
    "inpaint": Inpainting("random:0.5"),
    "denoise": Denoising("0.1"),
    "superresolve": Enlarging(2),
    "deblur": Deblurring(1.0),
    "dehaze": Dehazing(view=32),
    "paired": Pairs(),
    "mri": Scanning("random", acceleration=2.0, coils="2"),
    "hsi": Cubes(),
    "ultrasound": Frames(),
}
STEPS, SIDE = 2, 32
SHOWN = ("denoise",)  # by default; the others are long
GRAPHS = [name for name in KINDS if name != "ultrasound"]


def some(names, kept=SHOWN):
    return [n if n in kept else pytest.param(n, marks=pytest.mark.long) for n in names]


def test_no_task_is_missing():
    assert set(NETWORKS) == set(KINDS) == set(TASKS) - {"generate", "decode"}
    assert {task_by_name(name).name for name in TASKS} == set(TASKS)
    with pytest.raises(ValueError, match="known: inpaint, denoise"):
        task_by_name("sharpen")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Models by task, pictures, pairs, a volume and a cube."""
    return furnish(tmp_path_factory.mktemp("house"))


def data_of(house, name):
    return {"mri": house / "volume.npz", "paired": house / "pairs"}.get(name, house / "pictures")


def partner(house, name):
    return {"partner": f"haze:{house / name}"} if name == "ultrasound" else {}


@pytest.mark.parametrize("name", KINDS)
def test_files_are_restored(house, tmp_path, name):
    task, options = task_by_name(name), OPTIONS[name]
    if name == "ultrasound":
        options = Frames(tissue=str(house / name), haze=str(house / name))
    source, out = {
        "mri": ("volume.npz", "o.nii.gz"),
        "hsi": ("cube.npz", "o.npz"),
        "ultrasound": ("frame.png", "o.png"),
    }.get(name, ("pictures/0.png", "o.png"))
    seen = []
    request = Request(
        house / source,
        Output(tmp_path / out),
        options,
        Prior(str(house / name)),
        Settings(task.settings.solver, STEPS if name != "hsi" else 1),
    )
    figures = task.restore(request, lambda done, total: seen.append(done))
    assert figures["task"] == name
    assert figures["nfe"] > 0
    assert seen
    assert (tmp_path / out).stat().st_size > 0


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_folders_of_files_are_restored(house, tmp_path, name):
    """Two measurements of each task, of which one is damaged; then nothing is left to do."""
    task, options = task_by_name(name), OPTIONS[name]
    if name == "ultrasound":
        options = Frames(tissue=str(house / name), haze=str(house / name))
    source = {"mri": "volume.npz", "hsi": "cube.npz"}.get(name, "frame.png")
    (tmp_path / "in" / "day").mkdir(parents=True)
    place = tmp_path / "in" / "day" / source
    if name == "ultrasound":  # a folder of pictures would be one clip
        write_clip(place.with_suffix(".h5"), iter(smooth_picture(32, 32, 2)), 2)
    else:
        shutil.copy(house / ("pictures/0.png" if source == "frame.png" else source), place)
    (tmp_path / "in" / f"bad{'.h5' if name == 'ultrasound' else place.suffix}").write_text("no")
    settings = replace(task.settings, steps=STEPS if name != "hsi" else 1)
    job = Job(name, Output(tmp_path / "out"), options, Prior(str(house / name)), settings)
    tally = restore_all(job, [tmp_path / "in"], Many())
    assert (tally.done, tally.failed) == (1, 1), tally.reasons
    assert tally.nfe > 0
    assert [p.name for p in (tmp_path / "out").rglob("day/*")]
    again = restore_all(job, [tmp_path / "in"], Many(resume=True))
    assert (again.done, again.kept, again.failed) == (0, 1, 1)


@pytest.mark.parametrize("name", KINDS)
def test_trials_depend_on_seed_and_number_alone(house, name):
    task, denoiser = task_by_name(name), Denoiser.from_pretrained(house / name)
    options = task.simulated(denoiser, **partner(house, name))

    def trial(seed, k):
        return task.trial(task.source(data_of(house, name), denoiser, SIDE, seed), k, options)

    a, b, other = trial(3, 5), trial(3, 5), trial(3, 6)
    for key, value in a.inputs.items():
        torch.testing.assert_close(value, b.inputs[key], rtol=0, atol=0)
        assert torch.isfinite(value).all()
    assert any(not torch.equal(value, other.inputs[key]) for key, value in a.inputs.items())
    torch.testing.assert_close(a.truth, b.truth, rtol=0, atol=0)
    restored = task.restorer(denoiser, options, Settings(task.settings.solver, 1))(a.inputs, seed=1)
    assert restored.mean.shape == a.truth.shape
    assert {"psnr"} <= set(task.quality(restored.mean, a.truth)) <= {"psnr", "ssim"}


def test_noise_of_a_trial_is_not_where_its_sampler_starts(house):
    task, denoiser = task_by_name("inpaint"), Denoiser.from_pretrained(house / "inpaint")
    options, seed, asked = Inpainting("random:0.5", sigma=0.1), 3, []
    source = task.source(data_of(house, "inpaint"), denoiser, SIDE, seed)
    restore = task.restorer(denoiser, options, Settings("ddim", 2))
    denoiser.network.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    for k in range(3):
        asked.clear()
        trial = task.trial(source, k, options)
        restore(trial.inputs, seed=seed + k)
        state = asked[0][:, :3]
        start = torch.randn(state.shape[1:], generator=torch.Generator().manual_seed(seed + k))
        noise = trial.inputs["image"] - trial.known
        found = torch.corrcoef(torch.stack([x.flatten() for x in (state, start, noise)]))[0]
        assert found[1] > 0.9  # the start is what it is taken for
        assert abs(found[2]) < 0.2


@pytest.fixture(scope="module")
def quantized(house):
    """Calibration and quantized network of a task, made once."""
    made = {}

    def make(name):
        if name not in made:
            kept, folder = house / f"{name}.safetensors", house / f"{name}-q"
            task = task_by_name(name)
            options = {"solver": task.settings.solver, "steps": [STEPS], "count": 2, "side": SIDE}
            # the eigen-images' network is calibrated as a denoiser of planes
            of = "denoise" if name == "hsi" else name
            if name == "mri":
                options["steps"] = [1, STEPS]
            options |= partner(house, name)
            calibrate(house / name, data_of(house, name), kept, task=of, **options)
            run_quantize(str(house / name), kept, folder)
            made[name] = Origin(str(house / name), folder, kept)
        return made[name]

    return make


@pytest.mark.parametrize("name", some(KINDS))
def test_networks_are_deployed(house, tmp_path, quantized, name):
    """Calibrated, quantized, reported on, exported and verified on the task's own trials."""
    origin, solver = quantized(name), task_by_name(name).settings.solver
    trials = Trials(data_of(house, name), 2, SIDE, **partner(house, name))
    run = Settings(solver, STEPS)
    run_export(origin.model, tmp_path / "b", Graph(origin.quantized, "cpu"))
    figures = run_verify(tmp_path / "b", origin, trials, run, Checks(psnr_drop=100.0))
    assert not figures["failures"]
    assert figures["fused"] == figures["planned"] > 0
    assert len(figures["images"]) == 2
    assert all(np.isfinite(row["psnr_bundle"]) for row in figures["images"])
    # the float graph's session under the same loop is the network itself
    run_export(origin.model, tmp_path / "f", Graph(target="float"))
    task, denoiser = task_by_name(name), Denoiser.from_pretrained(origin.model)
    # the pseudo-inverse of a blur amplifies single precision's rounding
    options = task.simulated(denoiser, 0.02 if name == "deblur" else None, **partner(house, name))
    trial = task.trial(task.source(trials.data, denoiser, SIDE, 0), 0, options)
    host, graph = (
        task.restorer(d, options, run)(trial.inputs, seed=1).mean
        for d in (denoiser, load(tmp_path / "f"))
    )
    torch.testing.assert_close(graph, host, atol=1e-4, rtol=1e-4)
    if name in ("denoise", "paired"):
        network_runs_on_the_edge(tmp_path / "f", task, denoiser, trial)
    if name == "denoise":
        answers_at_any_time(tmp_path / "any", origin, denoiser)
    found = run_report(origin.quantized, origin, tmp_path / "r", trials, run)
    assert len(found["chain"]) >= 1
    # the graph's results are those of the simulation, so both reports tell the same
    simulated, run_by_graph = (
        found["psnr_quantized"],
        np.mean([row["psnr_bundle"] for row in figures["images"]]),
    )
    assert simulated == pytest.approx(run_by_graph, abs=1.0)


@pytest.mark.parametrize("target", ["float", "cpu"])
@pytest.mark.parametrize("name", some(GRAPHS, ("denoise",)))
def test_whole_restorations_are_deployed(house, tmp_path, quantized, name, target):
    """One graph for the task: its results are the host's, to 1e-4 in float."""
    if (name, target) == ("denoise", "cpu"):
        pytest.skip("shown by the network's bundle and the float graph")
    origin, task = quantized(name), task_by_name(name)
    numbers = {"superresolve": {"factor": 2}, "deblur": {"blur": 1.0}}
    # mri: exact data of one coil; noise and coils are in test_restorer_jobs.py
    sigma = {"denoise": 0.1, "hsi": 0.1, "deblur": 0.01}.get(name, 0.0)
    whole = Whole(name, sigma=sigma, size=f"{SIDE}x{SIDE}", **numbers.get(name, {}))
    settings = Settings(task.settings.solver, 1 if name in ("hsi", "denoise") else STEPS)
    graph = Graph(origin.quantized if target == "cpu" else None, target)
    run_export_restorer(origin.model, tmp_path / "b", graph, whole, settings)
    given = origin if target == "cpu" else Origin(origin.model)
    trials = Trials(house / "pairs" if name == "paired" else house / "pictures", 2)
    figures = run_verify_restorer(tmp_path / "b", given, trials, Checks(psnr_drop=100.0))
    assert not figures["failures"]
    if target == "float":
        assert figures["psnr_between"] > 80  # 1e-4
        runs_on_the_edge(tmp_path / "b", task, origin, trials.data)
    else:
        assert figures["psnr_bundle_simulated"] > figures["psnr_between"] - 1
        # the same trace for TensorRT, whose rules the exporter holds it to
        graph = Graph(origin.quantized, "tensorrt")
        run_export_restorer(origin.model, tmp_path / "t", graph, whole, settings)


def answers_at_any_time(folder, origin, denoiser):
    """An 8-bit network with its layers of time, asked where it wasn't calibrated."""
    run_export(origin.model, folder, Graph(origin.quantized, "cpu", times="any"))
    found = load(folder)
    assert found.bundle.timesteps == []
    assert found.integer_convs() == found.bundle.planned > 0
    x = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    exact = denoiser(x, 61.5).x0
    assert 0 < (found(x, 61.5).x0 - exact).norm() / exact.norm() < 0.2
    with pytest.raises(ValueError, match="calibrated or any; got 'some'"):
        run_export(origin.model, folder, Graph(origin.quantized, "cpu", times="some"))


def network_runs_on_the_edge(folder, task, denoiser, trial):
    """A network's ``run.py`` follows its table to what the task makes of the picture."""
    runner, image = edge.Network(folder, threads=1), trial.inputs["image"]
    if task.name == "denoise":
        sigma = runner.levels[len(runner.levels) // 2]["kappa"] / 2  # a level as it is
        options = task.simulated(denoiser, sigma)
        host = task.restorer(denoiser, options, Settings(steps=1))(trial.inputs)
        found = runner.picture(image.numpy(), sigma=sigma)
    else:
        settings = Settings(task.settings.solver, STEPS)
        host = task.restorer(denoiser, task.simulated(denoiser), settings)(trial.inputs, seed=1)
        noise = randn((1, *image.shape), torch.Generator().manual_seed(1)).numpy()
        found = runner.picture(image.numpy(), noise=noise, steps=STEPS)
    np.testing.assert_allclose(found, host.mean.numpy(), rtol=0, atol=3.5e-5)


def runs_on_the_edge(folder, task, origin, data):
    """A bundle's ``run.py`` gives what its graph gives in the package."""
    denoiser, host = Denoiser.from_pretrained(origin.model), Restorer(folder, threads=1)
    _, options, _ = options_of(host.run, denoiser)
    source = task.source(data, denoiser, (SIDE, SIDE), 0)
    source = replace(source, channels=host.run.inputs.get("image", (source.channels,))[0])
    trial = task.trial(source, 0, options)
    runner = edge.Restorer(folder, threads=1)
    generator = torch.Generator().manual_seed(4)
    drawn = [randn((1, *runner.state), generator)[0].numpy() for _ in range(runner.draws)]
    inputs = {name: value.numpy() for name, value in trial.inputs.items()}
    found = runner.restore(inputs, np.stack(drawn) if drawn else None)
    wanted = host.restore(trial.inputs, seed=4).mean.numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.long
def test_pictures_smaller_than_a_restorer_are_refused_at_once(house, tmp_path):
    whole = Whole("denoise", sigma=0.1, size="64x64")
    run_export_restorer(
        str(house / "denoise"), tmp_path / "b", Graph(target="float"), whole, Settings(steps=1)
    )
    says = r"of 40 x 48 pixels, smaller than the restorer's 64 x 64"
    with pytest.raises(ValueError, match=says):
        run_verify_restorer(
            tmp_path / "b", Origin(str(house / "denoise")), Trials(house / "pictures")
        )


def test_ultrasound_has_no_restorer_graph(house, tmp_path):
    with pytest.raises(ValueError, match="no restorer graph"):
        run_export_restorer(
            str(house / "ultrasound"),
            tmp_path / "b",
            Graph(target="float"),
            Whole("ultrasound"),
            Settings(),
        )
