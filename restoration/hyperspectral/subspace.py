"""Noise-whitened low-rank model of a hyperspectral cube, robust to stripes, dead lines and
impulses.

Spectra of a scene lie close to a subspace of few dimensions (Bioucas-Dias and Nascimento 2008,
"HySime"). In units of each band's noise the noise is white, and an orthonormal basis of the
subspace gives eigen-images whose noise is white with standard deviation 1 (Zhuang and Bioucas-Dias
2018, "FastHyDe"). What the subspace can't explain is noise, an offset of a column or row, or an
outlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from restoration.hyperspectral.noise import band_sigma, dead_pixels

OUTLIER = 4.5  # residuals beyond this many sigma are no Gaussian noise: 7 in a million entries
# standard errors from which on the mean of a line of residuals is an offset: 1 in 2000 by chance
SIGNIFICANT = 3.5
# eigenvalues that count at first, while stripes and outliers may still pose as spectra
FIRST_EDGES = (10.0, 4.0, 2.0)
MAX_RANK = 24


@dataclass(frozen=True, eq=False)
class Subspace:
    """``y_b = sigma_b (mean_b + basis_b a + stripe_b,column + unit noise)``, but for outliers.

    Attributes:
        sigma: ``(B,)`` noise per band, in the cube's units, positive.
        mean: ``(B,)`` mean spectrum over sigma.
        basis: ``(B, r)`` over sigma; orthonormal, but for the rows of bands that were learned from
            the others.
        stripes: ``(B, W)`` offsets of columns over sigma; 0 where there is none. Those of rows are
            found with each row.
        trusted: bool ``(B,)``; False for bands so full of impulses that they only receive: the
            eigen-images come from the others.
    """

    sigma: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    stripes: np.ndarray
    trusted: np.ndarray

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def whitened(self, values: np.ndarray) -> np.ndarray:
        """``(B, h, W)`` in units of noise, without mean and stripes."""
        z = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0) / self.sigma[:, None, None]
        return z - self.mean[:, None, None] - self.stripes[:, None, :]

    def project(
        self, values: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigen-images by least squares on the entries that are neither missing nor outliers.

        Args:
            values: ``(B, h, W)`` rows of the cube.
            valid: bool, the same shape.

        Returns:
            ``(r, h, W)``; its noise variance ``(r, h, W)``; bool ``(B, h, W)``, the entries used.
        """
        return self.project_lines(values, valid)[:3]

    def project_lines(
        self, values: np.ndarray, valid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same, and ``(B, h)`` offsets of rows over sigma that were found and subtracted; 0
        where there is none.
        """
        z, used = self.whitened(values), valid & self.trusted[:, None, None]
        a, variance = weighted_coefficients(self.basis, z, used)
        lines = np.zeros(z.shape[:2])
        # strong outliers and offsets first: what they have spread over the other bands must not be
        # taken for weak ones there
        for limit, significance in (
            (3 * OUTLIER, 4 * SIGNIFICANT),
            (OUTLIER, 2 * SIGNIFICANT),
            (OUTLIER, SIGNIFICANT),
            (OUTLIER, SIGNIFICANT),
        ):
            if len(z) <= 2 * self.rank:  # too few bands to contradict each other
                break
            residual = z - np.tensordot(self.basis, a, 1)
            found = _offsets(residual, used, 2, significance)
            residual = residual - found[:, :, None]
            here = valid & self.trusted[:, None, None]
            kept = _enough(here & (np.abs(residual) < limit), here, self.rank)
            if np.array_equal(kept, used) and np.array_equal(found != 0, lines != 0):
                continue
            used, lines = kept, found
            a, variance = weighted_coefficients(self.basis, z - lines[:, :, None], used)
        return a, variance, used, lines

    def spectra(self, a: np.ndarray) -> np.ndarray:
        """Eigen-images ``(r, h, W)`` to the cube ``(B, h, W)`` in its own units."""
        return self.sigma[:, None, None] * (
            self.mean[:, None, None] + np.tensordot(self.basis, a, 1)
        )


def weighted_coefficients(
    basis: np.ndarray, z: np.ndarray, used: np.ndarray, ridge: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """``argmin_a |W (z - E a)|^2`` per pixel with W of zeros and ones, and the noise variance of
    each coefficient.

    The ridge decides only where entries are too few: coefficients tend to 0 and their variance to
    ``1/ridge`` there.
    """
    rank, (bands, height, width) = basis.shape[1], z.shape
    flat, mask = z.reshape(bands, -1), used.reshape(bands, -1)
    a, variance = np.zeros((rank, flat.shape[1])), np.empty((rank, flat.shape[1]))
    whole = mask.all(0)
    if whole.any():
        gram = np.linalg.inv(basis.T @ basis + ridge * np.eye(rank))
        a[:, whole] = gram @ (basis.T @ flat[:, whole])
        variance[:, whole] = np.diag(gram)[:, None]
    products = (basis[:, :, None] * basis[:, None, :]).reshape(bands, -1)
    part = np.flatnonzero(~whole)
    for start in range(0, len(part), 65536):
        pixels = part[start : start + 65536]
        weight = mask[:, pixels].astype(np.float64)
        gram = np.linalg.inv((weight.T @ products).reshape(-1, rank, rank) + ridge * np.eye(rank))
        a[:, pixels] = np.einsum("nij,nj->in", gram, (weight * flat[:, pixels]).T @ basis)
        variance[:, pixels] = np.diagonal(gram, axis1=1, axis2=2).T
    return a.reshape(rank, height, width), variance.reshape(rank, height, width)


def fit_subspace(
    values: np.ndarray,
    valid: np.ndarray,
    sigma: np.ndarray | None = None,
    rank: int | None = None,
    iterations: int = 14,
) -> Subspace:
    """Fit the model to a cube, or to a part of its rows.

    Alternates eigenvectors, offsets of columns and rows, outliers and noise levels. The first
    rounds only take strong components (see :data:`FIRST_EDGES`): one that is missed adds next to
    nothing to any single band's residual, but a stripe taken for a spectrum would never be found.
    The rank is the number of eigenvalues beyond what white noise alone reaches, ``(1 +
    sqrt(B/N))^2`` (Marchenko and Pastur 1967). Axes are principal about zero light, not about the
    mean spectrum: light and shadow scale whole spectra, so their fine structure gathers in one
    eigen-image and leaves the others plain.

    Args:
        values: ``(B, h, W)``.
        valid: bool, the same shape: without missing and dead entries.
        sigma: ``(B,)`` noise levels, or None to estimate them.
        rank: dimensions of the subspace, or None to choose it, up to :data:`MAX_RANK`.

    Raises:
        ValueError: no band has two different valid values.
    """
    # 1. Start: means, and noise levels from differences of neighbours (or as given).
    bands, _, width = values.shape
    values = np.where(valid, values, 0).astype(np.float64)
    count = np.maximum(valid.sum((1, 2)), 1)
    centre = values.sum((1, 2)) / count
    spread = np.sqrt(((values - centre[:, None, None]) ** 2 * valid).sum((1, 2)) / count)
    if not (spread > 0).any():
        raise ValueError(
            "the cube is constant in every band (or has no data); there is nothing to restore"
        )
    # a band without noise would weigh infinitely much; a constant one takes no part
    floor = np.where(spread > 0, 1e-4 * spread, 1.0)
    given = sigma is not None
    spatial = np.maximum(
        np.nan_to_num(
            np.asarray(sigma, np.float64) if given else band_sigma(values, valid), nan=np.inf
        ),
        floor,
    )
    spatial = np.where(np.isinf(spatial), np.maximum(spread, floor), spatial)
    trusted = _trusted(values, valid)
    model = Subspace(
        spatial, centre / spatial, np.zeros((bands, 1)), np.zeros((bands, width)), trusted
    )
    used, low_rank, lines = (
        valid & trusted[:, None, None],
        np.zeros(values.shape),
        np.zeros(values.shape[:2]),
    )
    for k in range(iterations):
        # 2. Whiten, and set aside what doesn't belong to the fit. Columns and rows with an offset
        # are fitted by the other bands: a component that was once taken for offsets must be able to
        # come back.
        z = model.whitened(values) - lines[:, :, None]
        clear = _enough(
            used & (model.stripes == 0)[:, None, :] & (lines == 0)[:, :, None], used, model.rank
        )
        shift = np.where(clear, z, low_rank).mean((1, 2)) * trusted
        z, model = z - shift[:, None, None], replace(model, mean=model.mean + shift)
        # 3. Eigenvectors; the rank is the number of eigenvalues beyond those of noise.
        filled = np.where(clear, z, low_rank - shift[:, None, None] * (k > 0)).reshape(bands, -1)
        eigenvalues, vectors = np.linalg.eigh(filled @ filled.T / filled.shape[1])
        edge = noise_edge(int(trusted.sum()), filled.shape[1])
        edge = max(edge, FIRST_EDGES[k]) if k < len(FIRST_EDGES) else edge
        wanted = int((eigenvalues > edge).sum()) if rank is None else rank
        r = max(1, min(wanted, bands if rank is not None else MAX_RANK, int(trusted.sum())))
        model = replace(model, basis=vectors[:, ::-1][:, :r])
        if bands <= 2 * r:
            break
        # 4. Coefficients by what is trusted, then offsets of columns and of rows in what is left.
        a, _ = weighted_coefficients(model.basis, z, clear)
        low_rank = np.tensordot(model.basis, a, 1)
        residual = z + model.stripes[:, None, :] - low_rank
        stripes = _offsets(residual, used, 1)
        residual = residual - stripes[:, None, :] + lines[:, :, None]
        lines = _offsets(residual, used, 2)
        residual = residual - lines[:, :, None]
        # 5. Noise levels from the residuals. The fit has taken its share of the noise out of each,
        # a larger share where a component rests on few bands; `left` makes up for that.
        held = model.basis * clear.mean((1, 2))[:, None]
        own = (
            model.basis @ np.linalg.inv(held.T @ model.basis + 1e-6 * np.eye(r)) * model.basis
        ).sum(1)
        left = np.sqrt(np.maximum(1 - own, 0.1))
        scale = np.array([_mad(x[u]) for x, u in zip(residual, used, strict=True)]) / left
        new = model.sigma
        if not given:
            new = np.where(
                used.any((1, 2)) & (spread > 0),
                np.maximum(np.minimum(model.sigma * scale, spatial), floor),
                model.sigma,
            )
        # 6. Outliers by the new levels; done when neither they nor the levels change any more.
        factor = (model.sigma / new)[:, None]
        limit = OUTLIER * np.maximum(new / model.sigma, 0.5)[:, None, None]
        here = valid & trusted[:, None, None]
        kept = _enough(here & (np.abs(residual) < limit), here, r)
        settled = (
            k >= len(FIRST_EDGES)
            and (kept != used).mean() < 1e-4
            and np.abs(factor - 1).max() < 0.01
        )
        settled &= ((stripes != 0) != (model.stripes != 0)).mean() < 1e-3
        used, low_rank, lines = kept, low_rank * factor[:, :, None], lines * factor
        model = replace(model, sigma=new, mean=model.mean * factor[:, 0], stripes=stripes * factor)
        if settled:
            break
    return _about_zero(model, np.where(used, model.whitened(values) - lines[:, :, None], low_rank))


def noise_edge(bands: int, pixels: int) -> float:
    """What the largest eigenvalue of the covariance of white noise of unit variance hardly exceeds.

    Its limit is ``(1 + sqrt(B/N))^2``; around that it follows the Tracy-Widom law (Johnstone 2001),
    which lies above 2.02 once in a hundred times. At least 2 % above the limit, as noise levels are
    estimates.
    """
    b, n = math.sqrt(bands), math.sqrt(pixels)
    limit = (1 + b / n) ** 2
    return max(1.02 * limit, limit + 2.02 * (n + b) / n**2 * (1 / n + 1 / b) ** (1 / 3))


def _about_zero(model: Subspace, z: np.ndarray) -> Subspace:
    """The same subspace, its axes principal about zero light; ``z (B, h, W)`` whitened."""
    a = (np.tensordot(model.basis.T, z, 1) + (model.basis.T @ model.mean)[:, None, None]).reshape(
        model.rank, -1
    )
    return replace(model, basis=model.basis @ np.linalg.eigh(a @ a.T)[1][:, ::-1])


def _enough(wanted: np.ndarray, otherwise: np.ndarray, rank: int) -> np.ndarray:
    """``wanted``, but for spectra where it leaves fewer than two entries per dimension: nothing
    says which entry is right there.
    """
    return np.where(wanted.sum(0) >= 2 * rank, wanted, otherwise)


def learn_bands(model: Subspace, values: np.ndarray, valid: np.ndarray, a: np.ndarray) -> Subspace:
    """Mean and basis of the bands that are not trusted, by median regression on eigen-images ``a
    (r, h, W)`` learned from the others.

    Salt and pepper in equal parts, and clipping at the ends of the range, leave the median where it
    was, while the mean of the entries that look right is biased. So here the extremes count, as
    lying above or below.
    """
    mean, basis = model.mean.copy(), model.basis.copy()
    design = np.concatenate([np.ones((1, a[0].size)), a.reshape(model.rank, -1)])
    for b in np.flatnonzero(~model.trusted):
        known = valid[b].ravel()
        y, x = (values[b].ravel()[known] / model.sigma[b]).astype(np.float64), design[:, known]
        ridge = 1e-6 * np.diag((x**2).sum(1))
        weight, size = np.ones(len(y)), 0.05 * max(float(np.std(y)), 1e-12)
        for _ in range(30):  # iteratively reweighted least squares
            c = np.linalg.solve((x * weight) @ x.T + ridge, (x * weight) @ y)
            weight = 1 / np.maximum(np.abs(y - c @ x), size)
        mean[b], basis[b] = c[0], c[1:]
    return replace(model, mean=mean, basis=basis)


def data_mask(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``valid`` without dead entries, and the dead entries."""
    dead = dead_pixels(values, valid)
    return valid & ~dead, dead


def _trusted(values: np.ndarray, valid: np.ndarray, share: float = 0.03) -> np.ndarray:
    """Bands with few isolated holes. Whole missing columns or pixels are no reason for doubt;
    impulses are, as they also clip.
    """
    everywhere = ~valid.any(0)  # no data in any band
    columns = np.logical_not(valid.any(1))  # (B, W)
    isolated = ~valid & ~everywhere & ~columns[:, None, :]
    doubtful = isolated.mean((1, 2)) > share
    # most bands must agree before the others can be left out
    return ~doubtful if doubtful.mean() <= 0.5 else np.ones(len(values), bool)


def _offsets(
    residual: np.ndarray, used: np.ndarray, axis: int, significance: float = SIGNIFICANT
) -> np.ndarray:
    """Means along ``axis`` (1: ``(B, W)`` of columns, 2: ``(B, h)`` of rows) where they are
    significant, else 0; impulses are out of ``used`` and beyond the clip.
    """
    count = used.sum(axis)
    around = np.where(used, residual, 0).sum(axis) / np.maximum(count, 1)
    for _ in range(2):  # a mean of what lies within the outlier limit of it
        near = used & (np.abs(residual - np.expand_dims(around, axis)) < OUTLIER)
        around = np.where(near, residual, 0).sum(axis) / np.maximum(near.sum(axis), 1)
    error = 1 / np.sqrt(np.maximum(count, 1))  # the noise is of unit size
    return np.where((count >= 8) & (np.abs(around) > significance * error), around, 0.0)


def _mad(x: np.ndarray) -> float:
    return float(np.median(np.abs(x - np.median(x))) / 0.6744897501960817) if x.size else 1.0
