"""Ultrasound dehazing against arrays of the published code."""

import json
import re

import numpy as np
import pytest
import torch
from helpers.data import golden

from restoration.ultrasound.companding import a_law, a_law_inverse, mu_law, mu_law_inverse
from restoration.ultrasound.measures import gcnr, ks
from restoration.ultrasound.patches import cut, stitch
from restoration.ultrasound.released import Predicted, ReleasedSampler, ReleasedVP, SimpleVE


def cases(arrays, family):
    """``(number, arrays of the case)`` of one family."""
    numbers = sorted({int(m[1]) for k in arrays if (m := re.match(rf"{family}/(\d+)/", k))})
    assert numbers
    for n in numbers:
        prefix = f"{family}/{n}/"
        case = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        yield (
            n,
            json.loads(str(case.pop("options"))),
            {k: torch.from_numpy(v) for k, v in case.items()},
        )


def sde_of(options):
    return ReleasedVP() if options.get("sde") == "vpsde" else SimpleVE(options["sigma"])


def sampler(options):
    return ReleasedSampler(
        options["guidance"],
        options["lambda"],
        options["kappa"],
        options["blend"],
        options.get("N", 1),
        options.get("eps", 1e-3),
        options.get("start"),
        options.get("n_corr", 1) if options.get("corrector", "none") == "langevin" else 0,
        options.get("snr", 0.17),
        options["noise_stddev"],
        sde_of(options),
    )


def scores(sde):
    """The closed-form stand-ins; tensors are (B, H, W, C)."""

    def score_x(x, t):
        var = sde.std(t).view(-1, 1, 1, 1) ** 2
        return (0.45 * x.tanh() + 0.10 * x.roll(1, 2) - x) / (var + 0.5)

    def score_h(h, t):
        var = sde.std(t).view(-1, 1, 1, 1) ** 2
        return (0.30 * (1.2 * h).sin() - 0.08 * h.roll(-1, 1) - 0.9 * h) / (var + 0.8)

    return score_x, score_h


def assert_close(ours, theirs):
    """1e-5 of the array's size: the arrays are float32 sums of many steps."""
    theirs = torch.as_tensor(theirs)
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=theirs.dtype),
        theirs,
        rtol=0,
        atol=1e-5 * max(1.0, float(theirs.abs().max())),
    )


def test_levels():
    arrays = golden("dehaze")
    t = torch.from_numpy(arrays["sde/t"])
    sde = SimpleVE(float(arrays["sde/sigma"]))
    assert_close(sde.std(t), arrays["sde/std"])
    assert_close(sde.g(t), arrays["sde/g"])


def test_runs():
    for _, options, case in cases(golden("dehaze"), "sample"):
        ours, draws, track = sampler(options), iter(case["noise"]), []
        assert_close(ours.times(), case["t"])
        score_x, score_h = scores(ours.sde)
        joint = options["joint"]
        result, _ = ours.run(
            case["y"],
            score_x,
            score_h if joint else None,
            lambda shape, draws=draws: next(draws),
            lambda x, h, track=track: track.append((x, h)),
        )
        assert next(draws, None) is None, "every draw is used"
        for k, name in enumerate(["x_track", "h_track"][: 1 + joint]):
            assert_close(torch.stack([step[k] for step in track]), case[name])
        assert_close(result, case["x_track"][-1])


def test_guidance_steps():
    for _, options, case in cases(golden("dehaze"), "step"):
        draws = iter(case.get("noise", ()))
        tissue = Predicted(case["x"], case["x_mean"], case["grad_x"])
        haze = Predicted(case["h"], case["h_mean"], case["grad_h"])
        x, h = sampler(options).guide(
            case["y"],
            tissue,
            haze,
            case["t"],
            lambda shape: next(draws),  # noqa: B023
        )
        assert_close(x, case["x_new"])
        assert_close(h, case["h_new"])


def test_companding():
    arrays = golden("dehaze")
    x = torch.from_numpy(arrays["compand/in"])
    for key in {k.split("/")[1] for k in arrays if k.startswith("compand/") and k.count("/") == 2}:
        there, back = (a_law, a_law_inverse) if key == "a" else (mu_law, mu_law_inverse)
        extra = () if key == "a" else (float(key.removeprefix("mu")),)
        assert_close(there(x, *extra), arrays[f"compand/{key}/compressed"])
        assert_close(back(x, *extra), arrays[f"compand/{key}/expanded"])


def test_metrics():
    arrays = golden("dehaze")
    x, y = arrays["gcnr/x"], arrays["gcnr/y"]
    assert gcnr(x, y) == pytest.approx(
        float(arrays["gcnr/value"]), abs=1e-7
    )  # theirs adds a little to each histogram
    assert gcnr(x, y, bins=64) == pytest.approx(
        float(arrays["gcnr/value_bins64"]), abs=1e-7
    )  # theirs adds a little to each histogram
    statistic, pvalue = ks(x, y)
    assert statistic == pytest.approx(float(arrays["ks/statistic"]), abs=1e-12)
    assert pvalue == pytest.approx(float(arrays["ks/pvalue"]), rel=1e-6)


def test_patches():
    arrays = golden("dehaze")
    image = torch.from_numpy(arrays["patch/image"]).permute(0, 3, 1, 2)
    size, overlap = (tuple(map(int, arrays[f"patch/{k}"])) for k in ("size", "overlap"))
    patches = cut(image, size, overlap)
    np.testing.assert_array_equal(patches.permute(0, 1, 2, 4, 5, 3), arrays["patch/patches"])
    modified = torch.from_numpy(arrays["patch/modified"]).permute(0, 1, 2, 5, 3, 4)
    for mode in ("replace", "average", "hann"):
        out = stitch(modified, overlap, mode).permute(0, 2, 3, 1)
        theirs = arrays[f"patch/stitched_{mode}"]
        assert_close(out, theirs[:, : out.shape[1], : out.shape[2]])
