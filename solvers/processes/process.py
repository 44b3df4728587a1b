"""Forward processes ``x_t = a(t) x0 + c(t) y + b(t) eps``.

Time is the network's own index: ``t = 0 .. T-1`` (real numbers in between are allowed) and ``t =
-1`` is the clean image. Tables are float64 and live on the CPU; every coefficient a solver needs is
a Python float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from solvers.prediction import PREDICTION_TYPES, Prediction

CLEAN = -1.0
MOST_LEVELS = 100_000

Table = NDArray[np.float64]
# one time, or a tensor of times
Times = TypeVar("Times", float, Tensor)


class Process:
    """A Gaussian forward process given by tables at ``t = 0 .. T-1``; immutable.

    Args:
        a_table: signal coefficients, shape ``(T,)``, not negative, decreasing.
        b_table: noise coefficients, shape ``(T,)``, not negative, increasing.
        c_table: coefficients of the degraded image ``y``, shape ``(T,)``; zeros when ``y`` is not
            part of the process.

    Between table entries ``b^2`` and ``c`` are linear in ``t`` and ``a`` is log-linear (linear next
    to ``a = 0``).

    Attributes:
        origin: the time where noise begins (the clean level of the process's own clock).
        first: the least noisy time that networks are asked at.
        prediction_types: forms of network output that :meth:`predict` can read.
        raw_types: those of networks that are functions of the state itself, not of the state
            divided by its standard deviation.

    Raises:
        ValueError: tables of different or zero length, not finite, or negative.
    """

    origin: float = CLEAN
    first: float = 0.0
    prediction_types: tuple[str, ...] = PREDICTION_TYPES
    raw_types: tuple[str, ...] = ()

    def __init__(self, a_table: ArrayLike, b_table: ArrayLike, c_table: ArrayLike | None = None):
        self.a_table, self.b_table = _table("a_table", a_table), _table("b_table", b_table)
        self.c_table = _table(
            "c_table", np.zeros_like(self.a_table) if c_table is None else c_table
        )
        if not self.a_table.shape == self.b_table.shape == self.c_table.shape:
            raise ValueError(
                f"process tables differ in length: {len(self.a_table)}, {len(self.b_table)},"
                f" {len(self.c_table)}"
            )
        if (self.a_table < 0).any() or (self.b_table < 0).any():
            raise ValueError("process tables a and b must not be negative")

    def __len__(self) -> int:
        return self.a_table.size

    @property
    def end(self) -> float:
        """The noisiest time."""
        return float(len(self) - 1)

    @property
    def levels(self) -> int | None:
        """Number of levels; None for a continuous process."""
        return len(self)

    @property
    def holds_image(self) -> bool:
        """Whether the degraded image ``y`` is part of the state at some time."""
        return bool(self.c_table.any())

    def _key(self) -> tuple[object, ...]:
        """What makes two processes of one class equal."""
        return self.a_table.tobytes(), self.b_table.tobytes(), self.c_table.tobytes()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Process) and type(self) is type(other) and self._key() == other._key()
        )

    def __hash__(self) -> int:
        return hash((type(self), *self._key()))

    # -- coefficients ------------------------------------------------------------------------------
    # Each takes a float and returns a float, or takes a tensor of times and returns a float64 CPU t

    def a(self, t: Times) -> Times:
        """Signal coefficient at time ``t`` in ``[-1, end]``."""
        return evaluate(self._a, t, self.end)

    def b(self, t: Times) -> Times:
        """Noise coefficient at time ``t`` in ``[-1, end]``."""
        return evaluate(self._b, t, self.end)

    def c(self, t: Times) -> Times:
        """Coefficient of the degraded image at time ``t`` in ``[-1, end]``."""
        return evaluate(self._c, t, self.end)

    def _a(self, t: Table) -> Table:
        return log_linear(t, self.a_table, 1.0)

    def _b(self, t: Table) -> Table:
        return np.sqrt(_linear(t, self.b_table**2, 0.0))

    def _c(self, t: Table) -> Table:
        return _linear(t, self.c_table, 0.0)

    def kappa(self, t: float) -> float:
        """Noise-to-signal ratio ``b/a`` (the "VE sigma"); infinite where ``a = 0``."""
        a = self.a(t)
        return self.b(t) / a if a > 0 else math.inf

    def log_snr(self, t: float) -> float:
        """``2 log(a/b)``; ``+inf`` at the clean level, ``-inf`` at zero terminal SNR."""
        kappa = self.kappa(t)
        if kappa == 0:
            return math.inf
        return -math.inf if math.isinf(kappa) else -2 * math.log(kappa)

    def time_at(self, log_snr: float) -> float:
        """The (real) time in ``[-1, end]`` with this log-SNR; the nearest end of the process where
        it has none.

        This is how a network trained under one process answers a query of another
        (docs/design.md, "One process").
        """
        lo, hi = CLEAN, self.end
        if log_snr >= self.log_snr(lo):
            return lo
        if log_snr <= self.log_snr(hi):
            return hi
        for _ in range(
            9
        ):  # log-SNR decreases with t; each round keeps one 64th, down to the spacing of floats
            times = np.linspace(lo, hi, 65)
            with np.errstate(divide="ignore"):
                k = int(
                    np.argmax(
                        2 * (np.log(np.maximum(self._a(times), 0)) - np.log(self._b(times)))
                        < log_snr
                    )
                )
            if k == 0:  # rounding left no point below
                break
            lo, hi = float(times[k - 1]), float(times[k])
        t = 0.5 * (lo + hi)
        return float(round(t)) if abs(t - round(t)) < 1e-9 else t

    # -- states ------------------------------------------------------------------------------------

    def add_noise(self, x0: Tensor, eps: Tensor, t: float, y: Tensor | None = None) -> Tensor:
        """``a x0 + c y + b eps`` at one time for the whole batch; all tensors share one shape."""
        return self.shifted(self.a(t) * x0 + self.b(t) * eps, t, y)

    def start(self, y: Tensor, eps: Tensor) -> Tensor:
        """The noisiest state that can be built from the degraded image alone: ``(a + c) y + b eps``
        at ``end``.

        The image's part is filled with ``y``, which is exact where ``a = 0``.
        """
        return self.add_noise(y, eps, self.end, y)

    def predict(
        self, output: Tensor, x: Tensor, t: float, prediction_type: str, y: Tensor | None = None
    ) -> Prediction:
        """What a network's ``output`` says about the state ``x = a x0 + c y + b eps`` it saw at
        time ``t``.

        Residual processes read more forms than the three common ones; ``prediction_types`` lists
        them.

        Raises:
            ValueError: a form that this process does not have, or no ``y`` where the state holds
                it.
        """
        return Prediction.from_output(
            output, self.unshifted(x, t, y), self.a(t), self.b(t), prediction_type
        )

    def unshifted(self, x: Tensor, t: float, y: Tensor | None = None) -> Tensor:
        """``x - c y``."""
        c = self.c(t)
        if c == 0:
            return x
        if y is None:
            raise ValueError("this process holds the degraded image: pass it as y")
        return x - c * y

    def shifted(self, x: Tensor, t: float, y: Tensor | None = None) -> Tensor:
        """``x + c y``."""
        c = self.c(t)
        if c == 0:
            return x
        if y is None:
            raise ValueError("this process holds the degraded image: pass it as y")
        return x + c * y

    def transfer(
        self, x: Tensor, eps: Tensor, t: float, s: float, y: Tensor | None = None
    ) -> Tensor:
        """Move ``x`` from ``t`` to ``s`` along a fixed noise ``eps`` without forming ``x0`` (PNDM's
        phi).

        ``(a_s/a_t) x + a_s (kappa_s - kappa_t) eps`` for the state with the shift ``c y`` taken
        off: no nearly equal numbers are subtracted (Liu et al. 2022, eq. 11).

        Raises:
            ValueError: ``a(t) = 0``: from pure noise there is no such move; use the predicted image
                (``add_noise``).
        """
        a_t, a_s = self.a(t), self.a(s)
        if a_t == 0:
            raise ValueError(
                f"level t={t} has no signal left; the first move must use the predicted image"
            )
        if y is None or (self.c(t) == 0 and self.c(s) == 0):
            return (a_s / a_t) * x + a_s * (self.kappa(s) - self.kappa(t)) * eps
        x = x - self.c(t) * y
        x = (a_s / a_t) * x + a_s * (self.kappa(s) - self.kappa(t)) * eps
        return x + self.c(s) * y


class VP(Process):
    """Variance-preserving process (Ho et al. 2020): ``a^2 + b^2 = 1``, ``a^2 = abar``.

    Args:
        alphas_cumprod: ``abar``, shape ``(T,)``, strictly decreasing in ``[0, 1)``; a last entry of
            0 means zero terminal SNR.
    """

    def __init__(self, alphas_cumprod: ArrayLike):
        abar = _table("alphas_cumprod", alphas_cumprod)
        if (abar < 0).any() or (abar >= 1).any() or (np.diff(abar) >= 0).any():
            raise ValueError("alphas_cumprod must decrease strictly and lie in [0, 1)")
        self.alphas_cumprod = abar
        super().__init__(np.sqrt(abar), np.sqrt(1 - abar))

    def _b(self, t: Table) -> Table:
        # 1 - a^2 through expm1 of log a^2: no cancellation close to the clean level
        with np.errstate(divide="ignore"):
            return np.sqrt(-np.expm1(2 * np.log(self._a(t))))

    @classmethod
    def from_betas(cls, betas: ArrayLike, zero_terminal_snr: bool = False) -> VP:
        """From ``beta_t``, shape ``(T,)``, each in ``(0, 1)``; optionally rescaled to zero terminal
        SNR (Lin et al. 2024, alg. 1).

        The last ``beta`` may be 1: zero terminal SNR as it stands.
        """
        rates = np.asarray(betas, dtype=np.float64)
        if (
            rates.ndim != 1
            or rates.size == 0
            or not ((rates > 0) & (rates <= 1)).all()
            or (rates[:-1] == 1).any()
        ):
            raise ValueError(
                "betas must be a table (T,) with values in (0, 1); only the last may be 1"
            )
        abar = np.cumprod(1 - rates)
        if zero_terminal_snr:
            root = np.sqrt(abar)
            abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return cls(abar)

    @classmethod
    def linear(cls, T: int = 1000, start: float = 1e-4, end: float = 0.02, **kwargs: bool) -> VP:
        """DDPM's schedule: ``beta`` linear from ``start`` to ``end``."""
        return cls.from_betas(np.linspace(start, end, T), **kwargs)

    @classmethod
    def scaled_linear(
        cls, T: int = 1000, start: float = 8.5e-4, end: float = 0.012, **kwargs: bool
    ) -> VP:
        """Latent diffusion's schedule: ``sqrt(beta)`` linear."""
        return cls.from_betas(np.linspace(start**0.5, end**0.5, T) ** 2, **kwargs)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999, **kwargs: bool) -> VP:
        """Improved DDPM's schedule: ``abar = cos^2`` with offset ``s`` and betas capped at
        ``max_beta``.
        """
        f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
        return cls.from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta), **kwargs)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> VP:
        """From a diffusers scheduler config (``beta_schedule``, ``beta_start``, ``trained_betas``,
        ``rescale_betas_zero_snr`` ...).

        Raises:
            ValueError: an unknown ``beta_schedule``, or more levels than a table may have.
        """
        T = int(config.get("num_train_timesteps", 1000))
        if not 1 <= T <= MOST_LEVELS:
            raise ValueError(f"num_train_timesteps must be from 1 to {MOST_LEVELS}; got {T}")
        zero = bool(config.get("rescale_betas_zero_snr", False))
        if config.get("trained_betas") is not None:
            return cls.from_betas(config["trained_betas"], zero_terminal_snr=zero)
        start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        match config.get("beta_schedule", "linear"):
            case "linear":
                return cls.linear(T, start, end, zero_terminal_snr=zero)
            case "scaled_linear":
                return cls.scaled_linear(T, start, end, zero_terminal_snr=zero)
            case "squaredcos_cap_v2":
                return cls.cosine(T, zero_terminal_snr=zero)
            case "sigmoid":
                rise = 1 / (1 + np.exp(-np.linspace(-6, 6, T)))
                return cls.from_betas(start + (end - start) * rise, zero_terminal_snr=zero)
            case other:
                raise ValueError(
                    f"beta_schedule {other!r} is unknown; known: linear, scaled_linear,"
                    " squaredcos_cap_v2, sigmoid"
                )


class StepIndexed(VP):
    """The level indexing of PNDM's released code: time ``t`` uses ``abar[floor(t) + 1]`` and ``-1``
    uses ``abar[0]``.

    Kept for reproducing published runs; the network is still called with the unshifted ``t``. Valid
    for ``t`` in ``[-1, T-2]``.
    """

    def _a(self, t: Table) -> Table:
        index = np.floor(t).astype(int) + 1
        if (index >= len(self)).any():
            raise ValueError(f"step-indexed levels exist for t <= {len(self) - 2}; got t={t.max()}")
        return self.a_table[index]

    def time_at(self, log_snr: float) -> float:
        """The whole time whose level is nearest: levels are constant between whole times."""
        with np.errstate(divide="ignore"):
            levels = 2 * (np.log(self.a_table) - np.log(self.b_table))
        return float(np.argmin(np.abs(levels - log_snr)) - 1) if log_snr < levels[0] else CLEAN


def _table(name: str, values: ArrayLike) -> Table:
    table = np.array(values, dtype=np.float64)
    if table.ndim != 1 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(
            f"{name} must be a finite table of shape (T,), T >= 1; got shape {table.shape}"
        )
    table.setflags(write=False)
    return table


def evaluate(f: Callable[[Table], Table], t: Times, end: float) -> Times:
    """``f`` of times in [CLEAN, end], numbers or a tensor of them, in double precision."""
    values = np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=np.float64)
    if not ((values >= CLEAN) & (values <= end)).all():
        raise ValueError(f"time must lie in [-1, {end:g}]; got {t}")
    out = f(np.atleast_1d(values))
    return torch.from_numpy(out.reshape(values.shape)) if isinstance(t, Tensor) else float(out[0])


def _linear(t: Table, table: Table, clean: float) -> Table:
    return np.interp(t, np.arange(-1, table.size), np.concatenate([[clean], table]))


def log_linear(t: Table, table: Table, clean: float) -> Table:
    """``table`` between its entries: straight in the logarithm where both are positive."""
    full = np.concatenate([[clean], table])
    k = np.clip(np.floor(t).astype(int) + 1, 0, full.size - 2)
    w = t - (k - 1)
    left, right = full[k], full[k + 1]
    positive = (left > 0) & (right > 0)
    ratio = np.where(positive, right, 1.0) / np.where(positive, left, 1.0)
    return np.where(positive, left * ratio**w, left * (1 - w) + right * w)
