"""From measured stacks to a `LatencyModel`: terms by non-negative least squares, and what they miss by a process."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
class _Layers:
    """What one phase's layers take.

    Attributes:
        columns: Sizes, (num_shapes,) each.
        seconds: (num_shapes,).
    """

    columns: Mapping[str, Any]
    seconds: Reals

    def part(self, chosen: Any) -> "_Layers":
        """Return some of the shapes."""
        return _Layers({name: sizes[chosen] for name, sizes in self.columns.items()}, self.seconds[chosen])


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
    phases = {
        name: _phase(
            setting,
            _Layers(columns, np.array([each.layer[index] for each in stacks]) * reference[index]),
            np.array([each.stack[index] for each in stacks]) * reference[index],
            np.array([2.0 * each.num_layers for each in stacks]),
        )
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


def _phase(setting: Setting, layers: _Layers, stack_seconds: Reals, num_layers: Reals) -> PhaseModel:
    """Fit one phase: layers with a residual where it predicts better what was left out, then what comes once."""
    found = {smooth: _cross_validated(setting, layers, smooth) for smooth in (False, True)}
    errors = {smooth: np.abs(predicted / layers.seconds - 1) for smooth, predicted in found.items()}
    smooth = float(np.mean(errors[True] ** 2)) < float(np.mean(errors[False] ** 2))
    coefficients, residual = _fit_layers(setting, layers, smooth)
    predicted = _layer_seconds(setting, layers.columns, coefficients, residual)
    outside = _terms(
        OUTSIDE_TERMS, setting, layers.columns, stack_seconds - num_layers * predicted, scale=stack_seconds
    )
    off = layers.seconds - found[smooth]
    return PhaseModel(
        outside=outside,
        layer=coefficients,
        residual=residual,
        r_squared=1 - float(np.sum(off**2) / np.sum((layers.seconds - layers.seconds.mean()) ** 2)),
        layer_error=float(np.median(errors[smooth])),
    )


def _cross_validated(setting: Setting, layers: _Layers, smooth: bool) -> Reals:
    """Return the seconds of each shape as predicted from the shapes of all other folds."""
    fold = np.arange(len(layers.seconds)) % min(_FOLDS, len(layers.seconds))
    predicted = np.empty(len(fold))
    for held in np.unique(fold):
        fitted = _fit_layers(setting, layers.part(fold != held), smooth)
        predicted[fold == held] = _layer_seconds(setting, layers.part(fold == held).columns, *fitted)
    return predicted


def _fit_layers(setting: Setting, layers: _Layers, smooth: bool) -> tuple[dict[str, float], Residual | None]:
    coefficients = _terms(layer_terms(setting), setting, layers.columns, layers.seconds, scale=layers.seconds)
    if not smooth:
        return coefficients, None
    missed = np.log(layers.seconds / _layer_seconds(setting, layers.columns, coefficients, None))
    return coefficients, _residual(layers.columns, missed)


def _terms(
    names: Sequence[str], setting: Setting, columns: Mapping[str, Any], seconds: Reals, *, scale: Reals
) -> dict[str, float]:
    """Fit non-negative seconds per unit of some terms, so that squares of errors over `scale` are least."""
    table = np.stack([TERMS[name](columns, setting) / scale for name in names], axis=1)
    unit = table.max(axis=0)
    fit = LinearRegression(positive=True, fit_intercept=False).fit(table / unit, seconds / scale)
    return {name: float(found) for name, found in zip(names, fit.coef_ / unit, strict=True) if found > 0}


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


def _layer_seconds(
    setting: Setting, columns: Mapping[str, Any], coefficients: dict[str, float], residual: Residual | None
) -> Reals:
    seconds = sum_of_terms(coefficients, columns, setting)
    return seconds * residual.factor(columns) if residual is not None else seconds
