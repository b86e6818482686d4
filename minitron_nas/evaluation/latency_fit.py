"""From measured stacks to a `LatencyModel`: terms by non-negative least squares, and what they miss by a process."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import LinearRegression

from minitron_nas.errors import LatencyError
from minitron_nas.evaluation.latency import (
    PHASES,
    LatencyModel,
    PhaseModel,
    Residual,
    WholeModel,
)
from minitron_nas.evaluation.latency_design import StackTimes, WholeTimes
from minitron_nas.evaluation.latency_terms import (
    OUTSIDE_TERMS,
    TERMS,
    Reals,
    Setting,
    layer_sizes,
    layer_terms,
    sum_of_terms,
)

FEWEST_SHAPES = 6
_FOLDS = 8


@dataclass(frozen=True, slots=True)
class _Stacks:
    """What pairs of stacks take in one phase.

    Attributes:
        columns: Sizes of their layers, (num_shapes,) each.
        num_layers: (num_shapes,), layers of the shorter one; the longer one has twice as many.
        short: (num_shapes,), seconds of the shorter one.
        long: (num_shapes,), seconds of the longer one.
    """

    columns: Mapping[str, Any]
    num_layers: Reals
    short: Reals
    long: Reals

    def part(self, chosen: Any) -> "_Stacks":
        """Return some of the shapes."""
        columns = {name: sizes[chosen] for name, sizes in self.columns.items()}
        return _Stacks(columns, self.num_layers[chosen], self.short[chosen], self.long[chosen])


@dataclass(frozen=True, slots=True)
class _Fit:
    """Seconds for each unit of the terms once a model and of a layer, and what corrects a layer."""

    outside: dict[str, float]
    layer: dict[str, float]
    residual: Residual | None = None

    def long(self, setting: Setting, stacks: _Stacks) -> Reals:
        """Return the seconds of the longer stacks."""
        layer = sum_of_terms(self.layer, stacks.columns, setting)
        if self.residual is not None:
            layer = layer * self.residual.factor(stacks.columns)
        return sum_of_terms(self.outside, stacks.columns, setting) + 2 * stacks.num_layers * layer


def fit_latency(setting: Setting, stacks: Sequence[StackTimes], wholes: Sequence[WholeTimes] = ()) -> LatencyModel:
    """Fit what was measured.

    Times are relative to a reference that was measured in the same turns; its median over all of them makes them
    seconds again, so that a machine that was slower for a while does not tell.

    Args:
        setting: What was measured.
        stacks: At least `FEWEST_SHAPES` shapes of layers.
        wholes: Whole models to test the fit with.

    Raises:
        LatencyError: If there are fewer shapes.
    """
    if len(stacks) < FEWEST_SHAPES:
        raise LatencyError(
            f"{len(stacks)} shapes of layers were measured, and at least {FEWEST_SHAPES} are needed; give a space with "
            "more sizes, such as default"
        )
    references = [each.reference_seconds for each in stacks] + [each.reference_seconds for each in wholes]
    reference = np.median(references, axis=0)
    columns = {name: np.array([each.shape[name] for each in stacks]) for name in layer_sizes(setting)}
    num_layers = np.array([float(each.num_layers) for each in stacks])
    long = np.array([each.stack for each in stacks]) * reference
    short = long - num_layers[:, None] * np.array([each.layer for each in stacks]) * reference
    phases = {
        name: _phase(setting, _Stacks(columns, num_layers, short[:, index], long[:, index]))
        for index, name in enumerate(PHASES)
    }
    held_out = [
        WholeModel(
            shape=each.shape,
            prefill_seconds=each.whole[0] * reference[0],
            decode_seconds=each.whole[1] * reference[1],
        )
        for each in wholes
    ]
    return LatencyModel(
        setting=setting,
        prefill=phases["prefill"],
        decode=phases["decode"],
        num_measurements=2 * len(stacks),
        held_out=tuple(held_out),
    )


def _phase(setting: Setting, stacks: _Stacks) -> PhaseModel:
    """Fit one phase, with a residual where it predicts better what was left out."""
    found = {smooth: _cross_validated(setting, stacks, smooth) for smooth in (False, True)}
    errors = {smooth: np.abs(predicted / stacks.long - 1) for smooth, predicted in found.items()}
    smooth = float(np.mean(errors[True] ** 2)) < float(np.mean(errors[False] ** 2))
    fit, off = _fit(setting, stacks, smooth), stacks.long - found[smooth]
    return PhaseModel(
        outside=fit.outside,
        layer=fit.layer,
        residual=fit.residual,
        r_squared=1 - float(np.sum(off**2) / np.sum((stacks.long - stacks.long.mean()) ** 2)),
        layer_error=float(np.median(errors[smooth])),
    )


def _cross_validated(setting: Setting, stacks: _Stacks, smooth: bool) -> Reals:
    """Return the seconds of each longer stack as predicted from the shapes of all other folds."""
    fold = np.arange(len(stacks.long)) % min(_FOLDS, len(stacks.long))
    predicted = np.empty(len(fold))
    for held in np.unique(fold):
        fit = _fit(setting, stacks.part(fold != held), smooth)
        predicted[fold == held] = fit.long(setting, stacks.part(fold == held))
    return predicted


def _fit(setting: Setting, stacks: _Stacks, smooth: bool) -> _Fit:
    """Fit non-negative seconds per unit of all terms to both stacks of each pair; relative errors count."""
    names, columns = layer_terms(setting), stacks.columns
    once = np.stack([TERMS[name](columns, setting) for name in OUTSIDE_TERMS], axis=1)
    layer = np.stack([TERMS[name](columns, setting) for name in names], axis=1)
    num = stacks.num_layers[:, None]
    seconds = np.concatenate([stacks.short, stacks.long])
    rows = np.concatenate([np.hstack([once, num * layer]), np.hstack([once, 2 * num * layer])]) / seconds[:, None]
    unit = rows.max(axis=0)
    found = LinearRegression(positive=True, fit_intercept=False).fit(rows / unit, np.ones(len(rows))).coef_ / unit
    outside, per_layer = np.split(found, [len(OUTSIDE_TERMS)])
    plain = _Fit(_named(OUTSIDE_TERMS, outside), _named(names, per_layer))
    if not smooth:
        return plain
    predicted = plain.long(setting, stacks)
    # What the whole stack missed is what its layers missed over their part of it.
    part = 2 * stacks.num_layers * sum_of_terms(plain.layer, columns, setting) / predicted
    return replace(plain, residual=_residual(columns, np.log(stacks.long / predicted) / part))


def _named(names: Sequence[str], coefficients: Reals) -> dict[str, float]:
    return {name: float(each) for name, each in zip(names, coefficients, strict=True) if each > 0}


def _residual(columns: Mapping[str, Any], missed: Reals) -> Residual | None:
    """Fit a smooth function of the sizes that differ to what terms missed, and noise beside it."""
    names = tuple(name for name, sizes in columns.items() if np.ptp(sizes) > 0)
    if not names:
        return None
    points = np.log2(np.stack([columns[name] for name in names], axis=1).astype(np.float64))
    kernel = ConstantKernel(1.0, (1e-3, 1e2)) * Matern([1.0] * len(names), (0.2, 20.0), nu=2.5)
    kernel += WhiteKernel(0.1, (1e-3, 1e1))
    process = GaussianProcessRegressor(kernel, normalize_y=False, n_restarts_optimizer=0, random_state=0)
    spread = float(np.sqrt(np.mean(missed**2))) or 1.0
    with warnings.catch_warnings():
        # A length scale at its bound says that an axis does not matter, which is an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points, missed / spread)
    smooth = process.kernel_.k1
    weights = process.alpha_ * smooth.k1.constant_value * spread
    scales = np.broadcast_to(smooth.k2.length_scale, len(names))
    return Residual(
        sizes=names, points=points.tolist(), length_scales=tuple(scales.tolist()), weights=tuple(weights.tolist())
    )
