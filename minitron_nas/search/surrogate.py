"""The surrogate: a Gaussian process that says what every shape's untrained KL would be; a door to scikit-learn.

    log KL(x) = GP(0, k),    k = a (x . x' + b) + c Matern-5/2(x, x') + noise

with x the log of each size as a share of the source's, each axis scaled to its range. The linear part says what every
axis costs by itself, the rest how they bend and interact, with one length scale for all axes: a search ends after a few
dozen measurements, too few to tell one for each. All of k maximises the marginal likelihood.

Source: Rasmussen and Williams 2006, sections 2.2 and 5.4.
"""

import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from minitron_nas.search.costing import Values

_BLOCK = 1 << 15
"""Shapes that are predicted together, so that a million of them take little memory."""

_THREADS = 4
"""Blocks that are predicted at a time; numpy lets go of the interpreter while it computes."""

_LENGTHS, _VARIANCES, _NOISES = (0.05, 20.0), (1e-3, 1e3), (1e-6, 1e-2)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A fitted process.

    Attributes:
        process: Of scikit-learn.
        features: (num_measured, num_axes), where it was measured.
        values: (num_measured,), log KL there.
    """

    process: GaussianProcessRegressor
    features: Values
    values: Values

    @classmethod
    def fit(cls, features: Values, kls: Values) -> Self:
        """Fit a process to measurements; the same ones give the same process.

        Args:
            features: (num_measured, num_axes), each axis scaled to about one.
            kls: (num_measured,), positive, in nats.
        """
        values = np.log(kls)
        return cls(_maximised(features.shape[1], features.tobytes(), values.tobytes()), features, values)

    def believing(self, features: Values) -> Self:
        """Return the same process as if what it says of more shapes had been measured (Ginsbourger et al. 2010).

        Args:
            features: (num_believed, num_axes).
        """
        means, _ = self.predict(features)
        process = GaussianProcessRegressor(self.process.kernel_, optimizer=None, normalize_y=True)
        both = np.concatenate([self.features, features]), np.concatenate([self.values, means])
        return type(self)(process.fit(*both), *both)

    def predict(self, features: Values) -> tuple[Values, Values]:
        """Return mean and standard deviation of log KL.

        Args:
            features: (num_shapes, num_axes), scaled as those that it was fitted to.
        """
        means, deviations = np.empty(len(features)), np.empty(len(features))

        def fill(block: slice) -> None:
            means[block], deviations[block] = self.process.predict(features[block], return_std=True)

        blocks = [slice(start, start + _BLOCK) for start in range(0, len(features), _BLOCK)]
        with warnings.catch_warnings():
            # Where two shapes lie side by side, rounding makes a variance of zero negative; it is set to zero.
            warnings.filterwarnings("ignore", "Predicted variances smaller than 0", UserWarning)
            with ThreadPoolExecutor(_THREADS) as threads:
                deque(threads.map(fill, blocks), maxlen=0)
        return means, deviations


@lru_cache(maxsize=1)
def _maximised(num_axes: int, features: bytes, values: bytes) -> GaussianProcessRegressor:
    """Fit a process; kept for the same measurements, which a round predicts from and proposes from."""
    linear = ConstantKernel(1.0, _VARIANCES) * DotProduct(1.0, _VARIANCES)
    bent = ConstantKernel(0.1, _VARIANCES) * Matern(1.0, _LENGTHS, nu=2.5)
    kernel = linear + bent + WhiteKernel(1e-4, _NOISES)
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        # A length scale at its bound says that all axes are linear, which is an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return process.fit(np.frombuffer(features).reshape(-1, num_axes), np.frombuffer(values))
