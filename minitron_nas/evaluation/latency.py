"""`LatencyModel`: how long shapes of one family take on one device, fitted to measurements; no torch.

A model of uniform layers takes

    outside(hidden_size) + num_hidden_layers x layer(all other sizes)

seconds, where each of the two is a sum of `TERMS`, none of them negative, and a layer may be corrected by a smooth
factor of its sizes. Prefill is one forward pass over a prompt, decode one token after a context.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import LatencyError
from minitron_nas.evaluation.latency_terms import Columns, Reals, Setting, layer_sizes, sum_of_terms
from minitron_nas.settings import Settings, plan_error
from minitron_nas.storage.atomic import read_json, write_json

Phase: TypeAlias = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")

_BLOCK = 2**12
"""Shapes that are looked at together: few enough for their distances to all measured shapes to stay in the cache."""


class Residual(Settings):
    """A smooth factor of a layer's sizes: what terms alone miss, a Gaussian process over logarithms of sizes.

    Attributes:
        sizes: Names of the sizes it depends on.
        points: (num_points, num_sizes), base 2 logarithms of the sizes that were measured.
        length_scales: (num_sizes,), how far a measurement tells, in powers of two.
        weights: (num_points,), of the measurements.
    """

    sizes: tuple[str, ...]
    points: tuple[tuple[float, ...], ...]
    length_scales: tuple[float, ...]
    weights: tuple[float, ...]

    def factor(self, columns: Columns) -> Reals:
        """Return what a layer's time by its terms is multiplied with; 1 far from all measurements.

        Args:
            columns: (num_shapes,) each.
        """
        given = np.log2(np.stack([columns[name] for name in self.sizes], axis=1)) / self.length_scales
        points = np.asarray(self.points) / self.length_scales
        weights = np.asarray(self.weights)
        blocks = (given[start : start + _BLOCK] for start in range(0, len(given), _BLOCK))
        logarithms: Reals = np.concatenate([np.zeros(0), *(matern(block, points) @ weights for block in blocks)])
        return np.exp(logarithms)


def matern(left: Reals, right: Reals) -> Reals:
    """Return the Matérn covariance of smoothness 5/2 between points, whose coordinates are in length scales.

    Args:
        left: (num_left, num_sizes).
        right: (num_right, num_sizes).

    Returns:
        (num_left, num_right).

    Source: Rasmussen and Williams 2006, equation 4.17.
    """
    distance: Reals = left @ (-10 * right.T)
    distance += (5 * (left**2).sum(axis=1))[:, None]
    distance += 5 * (right**2).sum(axis=1)
    np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
    polynomial: Reals = distance / 3
    polynomial += 1
    polynomial *= distance
    polynomial += 1
    np.exp(np.negative(distance, out=distance), out=distance)
    polynomial *= distance
    return polynomial


class PhaseModel(Settings):
    """The seconds of one phase.

    Attributes:
        outside: Seconds for each unit of the terms once a model, by name.
        layer: Seconds for each unit of the terms of a layer, by name.
        residual: Corrects the time of a layer; None where terms alone predict better.
        r_squared: Of stacks of layers that were left out of the fit (cross-validated), of their seconds.
        layer_error: Median relative error of the same.
    """

    outside: dict[str, Annotated[float, Field(ge=0)]]
    layer: dict[str, Annotated[float, Field(ge=0)]]
    residual: Residual | None = None
    r_squared: float
    layer_error: float

    def seconds(self, columns: Columns, setting: Setting) -> tuple[Reals, Reals]:
        """Return what models with such layers take once, and for each layer.

        Args:
            columns: (num_shapes,) each.
            setting: What was measured.

        Returns:
            (num_shapes,) each, in seconds.
        """
        layer = sum_of_terms(self.layer, columns, setting)
        if self.residual is not None:
            layer *= self.residual.factor(columns)
        return sum_of_terms(self.outside, columns, setting), layer


class WholeModel(Settings):
    """A whole model that took no part in the fit.

    Attributes:
        shape: Its sizes, by the names of SHAPE_FIELDS.
        prefill_seconds: As measured.
        decode_seconds: As measured, for a token.
    """

    shape: dict[str, int]
    prefill_seconds: float
    decode_seconds: float


class LatencyModel(Settings):
    """Seconds of prefill and decode for every shape of a family on one device.

    Attributes:
        format: Of the file.
        setting: What it was measured for.
        prefill: The model of one forward pass over `setting.batch` prompts.
        decode: The model of one more token for each of `setting.batch` sequences.
        num_measurements: Stacks of layers that it was fitted to.
        held_out: Whole models, measured to see how far off it is.
    """

    format: Literal[1] = 1
    setting: Setting
    prefill: PhaseModel
    decode: PhaseModel
    num_measurements: int
    held_out: tuple[WholeModel, ...] = ()

    def predict(self, columns: Columns) -> dict[str, Reals]:
        """Predict the time of many shapes at once.

        Args:
            columns: Sizes, (num_shapes,) each, by the names of SHAPE_FIELDS.

        Returns:
            `prefill_seconds` and `decode_seconds`, (num_shapes,) each: of a prompt, and for a token.
        """
        arrays = {name: np.asarray(sizes, dtype=np.int64) for name, sizes in columns.items()}
        layers, place = _distinct([arrays[name] for name in layer_sizes(self.setting)])
        distinct = {name: arrays[name][layers] for name in layer_sizes(self.setting)}
        found = {}
        for name in PHASES:
            outside, layer = self.phase(name).seconds(distinct, self.setting)
            found[f"{name}_seconds"] = outside[place] + arrays["num_hidden_layers"] * layer[place]
        return found

    def phase(self, name: Phase) -> PhaseModel:
        """Return the model of a phase."""
        return self.prefill if name == "prefill" else self.decode

    def errors(self, phase: Phase) -> Reals:
        """Return the relative errors on the whole models held out, (num_held_out,): predicted over measured, less 1.

        Args:
            phase: Of the two.
        """
        if not self.held_out:
            return np.zeros(0)
        shapes = {name: np.array([each.shape[name] for each in self.held_out]) for name in self.held_out[0].shape}
        measured = np.array([getattr(each, f"{phase}_seconds") for each in self.held_out])
        return np.asarray(self.predict(shapes)[f"{phase}_seconds"] / measured - 1)

    def told(self) -> dict[str, Any]:
        """Return in plain values what was measured and how well it is predicted."""
        fits: dict[str, Any] = {
            name: {
                "r_squared": self.phase(name).r_squared,
                "layer_error": self.phase(name).layer_error,
                "whole_model_errors": self.errors(name).tolist(),
            }
            for name in PHASES
        }
        return {"setting": self.setting.model_dump(), "num_measurements": self.num_measurements, **fits}

    def require_made_for(self, architecture: Architecture, dtype: str | None = None) -> None:
        """Refuse to predict for models that the measurements say nothing of.

        Args:
            architecture: A shape of the family.
            dtype: What its models compute in, as torch names it; not compared without it.

        Raises:
            LatencyError: If family, vocabulary, size of heads, mixers or dtype differ; names each of them.
        """
        names = ("model_type", "vocab_size", "head_dim", "num_experts_per_tok")
        wanted: dict[str, Any] = {name: getattr(architecture, name) for name in names}
        wanted["has_mamba"] = architecture.mamba_num_heads > 0
        wanted |= {} if dtype is None else {"dtype": dtype}
        others = [
            f"{name}={getattr(self.setting, name)!r} where {value!r} is needed"
            for name, value in wanted.items()
            if getattr(self.setting, name) != value
        ]
        if others:
            raise LatencyError(
                f"this latency model was made for {', '.join(others)}; make one for this teacher with "
                "`minitron-nas latency TEACHER --out FILE`"
            )

    def save(self, path: Path) -> None:
        """Write everything to one JSON file."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            LatencyError: If the file is missing, or holds something else; names what is wrong.
        """
        advice = "make it with `minitron-nas latency TEACHER --out FILE`"
        try:
            return cls.model_validate(read_json(Path(path)))
        except ValidationError as error:
            raise LatencyError(f"{plan_error(error, cls, str(path))}; {advice}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise LatencyError(f"{path} holds no latency model: {error}; {advice}") from None

    @classmethod
    def load_for(cls, path: Path, architecture: Architecture) -> Self:
        """Read what `save` wrote, for models of a family.

        Args:
            path: The file.
            architecture: A shape of the family.

        Raises:
            LatencyError: If it cannot be read, or was made for other models.
        """
        model = cls.load(path)
        model.require_made_for(architecture)
        return model


def _distinct(columns: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return where each distinct row of columns stands first, and for every row which of these it is."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    for sizes in columns:
        key = key * (int(sizes.max(initial=0)) + 1) + sizes
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    return first, place
