"""Range searches and learned rounding against arrays computed by the authors' own functions."""

import numpy as np
import pytest
import torch
from helpers.data import golden
from torch.nn import functional as F

from quant.ranges.search import (
    AffineGrid,
    RunningRange,
    released_grid,
    search_range,
    search_symmetric_steps,
)
from quant.rounding.learned import RoundingLoss, h, initial_logits, rounded, squared_error

TIGHT = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def arrays():
    return {
        key: torch.from_numpy(np.asarray(value))
        for key, value in golden("quant").items()
        if key.startswith(("rng/", "ada/"))
    }


def bits_in(arrays, pattern: str) -> list[int]:
    """The bit widths that the file holds keys of this form for."""
    found = [b for b in range(2, 17) if pattern.format(b) in arrays]
    assert found
    return found


def assert_is_the_released_grid(arrays, key, grid, x):
    """The same step and rounding, and the same zero point but where it is a half, as that of every
    symmetric range (``round(7.5)``): there rounding of the last bit decides between two levels, and
    ours may be the other.
    """
    theirs = arrays[f"{key}_zp"]
    torch.testing.assert_close(grid.step, arrays[f"{key}_delta"], **TIGHT)
    torch.testing.assert_close(
        AffineGrid(arrays[f"{key}_delta"], theirs, grid.bits)(x), arrays[f"{key}_fq"]
    )
    tie = torch.as_tensor((2**grid.bits - 1) / 2)
    levels = torch.stack([tie.floor(), tie.ceil()])
    either = torch.isin(grid.zero_point, levels) & torch.isin(theirs, levels)
    assert ((grid.zero_point == theirs) | either).all()


def test_weight_search(arrays):
    for bits in bits_in(arrays, "rng/w{}_delta"):
        grid = released_grid(arrays["rng/weight"], bits, per_channel=True)
        assert_is_the_released_grid(arrays, f"rng/w{bits}", grid, arrays["rng/weight"])


def test_activation_search_and_running_range(arrays):
    names = sorted(
        {
            key.split("/")[1].rsplit("_a", 1)[0]
            for key in arrays
            if key.startswith("rng/act") and "_fq" in key
        }
    )
    assert names
    for name in names:
        x = arrays[f"rng/{name}"]
        for bits in bits_in(arrays, f"rng/{name}_a{{}}_delta"):
            key = f"rng/{name}_a{bits}"
            observer = RunningRange(bits)
            assert_is_the_released_grid(arrays, key, observer.see(x), x)
            torch.testing.assert_close(
                observer.see(1.7 * x).step, arrays[f"{key}_delta_after_ema"], **TIGHT
            )


def test_two_parameter_search(arrays):
    for bits in bits_in(arrays, "rng/asym{}_delta"):
        x = arrays[f"rng/asym{bits}_in"]
        grid = released_grid(x, bits, symmetric=False)
        torch.testing.assert_close(grid.step, arrays[f"rng/asym{bits}_delta"], **TIGHT)
        assert grid.zero_point == arrays[f"rng/asym{bits}_zp"]
        torch.testing.assert_close(grid(x), arrays[f"rng/asym{bits}_fq"], **TIGHT)


def test_our_symmetric_grid_is_within_its_levels_of_the_released_one(arrays):
    """127 levels a side against 127.5: the errors are compared, not the steps."""
    weight = arrays["rng/weight"]
    for bits in bits_in(arrays, "rng/w{}_delta"):
        top = 2 ** (bits - 1) - 1
        step = search_symmetric_steps(weight, bits, per_channel=True).reshape(-1, 1, 1, 1)
        ours = ((weight / step).round().clamp(-top, top) * step - weight).abs().pow(2.4).sum()
        theirs = (arrays[f"rng/w{bits}_fq"] - weight).abs().pow(2.4).sum()
        # the widest range is one of the candidates: where it is the best, both sums are of the
        # same terms, up to rounding
        nearest = weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1) / top
        widest = ((weight / nearest).round() * nearest - weight).abs().pow(2.4).sum()
        assert ours <= (1 + 1e-5) * widest
        assert ours <= (1 + 2.5 / top) ** 2.4 * theirs


def test_one_sided_ranges():
    x = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert search_range(x, 8)[0] == 0
    assert search_range(-x, 8)[1] == 0
    low, high = search_range(x - 0.5, 8)
    assert low == -high
    with pytest.raises(ValueError, match="bits"):
        search_range(x, 1)


def case(arrays, bits):
    weight = arrays["ada/weight"]
    step, zero = (
        arrays[f"ada/b{bits}_{k}"].reshape(-1, *[1] * (weight.ndim - 1)) for k in ("delta", "zp")
    )
    return weight, step, zero


def test_soft_and_hard_rounding(arrays):
    for bits in bits_in(arrays, "ada/b{}_soft0"):
        weight, step, zero = case(arrays, bits)
        # the stored alpha0 shares memory with alpha1 (it was written before the noise was added in
        # place): its soft0 is the truth
        for k, logits in enumerate((initial_logits(weight, step), arrays[f"ada/b{bits}_alpha1"])):
            torch.testing.assert_close(h(logits), arrays[f"ada/b{bits}_soft{k}"], **TIGHT)
            for hard, name in ((False, "soft"), (True, "hard")):
                found = rounded(weight, step, logits, 0, 2**bits - 1, zero, hard=hard)
                torch.testing.assert_close(found, arrays[f"ada/b{bits}_fq_{name}{k}"], **TIGHT)


def test_loss_table(arrays):
    for bits in bits_in(arrays, "ada/b{}_loss_table"):
        logits = arrays[f"ada/b{bits}_alpha1"]
        reconstruction = squared_error(arrays[f"ada/b{bits}_pred"], arrays[f"ada/b{bits}_tgt"])
        loss = RoundingLoss(1000, 0.01)
        for count, exponent, total, expected in arrays[f"ada/b{bits}_loss_table"].tolist():
            assert float(reconstruction) == pytest.approx(expected, rel=1e-5)
            assert loss.exponent(int(count)) == pytest.approx(exponent, rel=1e-9)
            assert float(reconstruction + loss([logits], int(count))) == pytest.approx(
                total, rel=1e-5
            )
        assert RoundingLoss(1000, 0.0)([logits], 900) == 0


def test_optimisation(arrays):
    for bits in bits_in(arrays, "ada/b{}_opt_x"):
        weight, step, zero = case(arrays, bits)
        x, losses = arrays[f"ada/b{bits}_opt_x"], arrays[f"ada/b{bits}_opt_losses"]
        logits = initial_logits(weight, step).requires_grad_()
        optimizer, regulariser = (
            torch.optim.Adam([logits], lr=1e-2),
            RoundingLoss(len(losses), 0.01),
        )
        target, found = F.conv2d(x, weight), []
        for count in range(1, len(losses) + 1):
            optimizer.zero_grad()
            soft = rounded(weight, step, logits, 0, 2**bits - 1, zero)
            loss = squared_error(F.conv2d(x, soft), target) + regulariser([logits], count)
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        hard = rounded(weight, step, logits.detach(), 0, 2**bits - 1, zero, hard=True)
        mse = float((F.conv2d(x, hard) - target).square().mean())
        np.testing.assert_allclose(found, losses, rtol=1e-3)
        assert mse <= 1.02 * float(arrays[f"ada/b{bits}_opt_mse_hard"])
        assert mse < float(arrays[f"ada/b{bits}_opt_mse_nearest"])
