import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from minitron_nas.search.improvement import expected_hypervolume_gain, expected_improvement


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 0.5), (2.0, 1.0), (0.0, 0.1)])
def test_expected_improvement_is_the_integral_that_defines_it(mean, deviation):
    integral, _ = quad(lambda y: max(1.2 - y, 0) * norm.pdf(y, mean, deviation), -10, 1.2, points=[mean])
    assert expected_improvement(np.array([mean]), np.array([deviation]), 1.2)[0] == pytest.approx(integral, rel=1e-6)


def test_a_certain_shape_improves_by_what_it_is_better():
    gains = expected_improvement(np.array([0.5, 2.0]), np.array([0.0, 0.0]), 1.0)
    assert gains == pytest.approx([0.5, 0.0])


def test_a_certain_shape_gains_the_area_that_it_alone_dominates():
    # In a square of side 1 the front is (0, 1) and (1, 0); a point at (0.5, 0.25) dominates 0.5 x 0.75 of it.
    means, costs = np.array([0.5, 1.0, 0.0]), np.array([[0.25], [1.0], [1.0]])
    gains = expected_hypervolume_gain(means, np.zeros(3), costs, np.array([0.0, 1.0]), np.array([[1.0], [0.0]]), seed=0)
    assert gains[0] == pytest.approx(0.5 * 0.75, abs=0.03)
    assert gains[1:].tolist() == [0.0, 0.0]


def test_a_shape_that_may_be_better_gains_more_than_one_that_surely_is_not():
    means, costs = np.array([0.6, 0.6]), np.array([[0.5], [0.5]])
    measured, at = np.array([0.5, 0.9]), np.array([[0.5], [0.1]])
    sure, unsure = expected_hypervolume_gain(means, np.array([0.0, 0.3]), costs, measured, at, seed=0)
    assert sure == 0.0
    # Below 0.5 by what it is expected to be, over a range of 0.9 to 0; from its cost to a tenth above the greatest.
    ahead = expected_improvement(np.array([0.6]), np.array([0.3]), 0.5)[0]
    assert unsure == pytest.approx(ahead / 0.9 * 0.1, rel=0.25)
