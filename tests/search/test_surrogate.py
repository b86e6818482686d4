import numpy as np
import pytest

from minitron_nas.search.surrogate import Surrogate


def planted(features):
    """Each axis alone, and a pair."""
    return np.exp(0.3 + 1.2 * features[:, 0] - 0.7 * features[:, 1] + 0.5 * features[:, 0] * features[:, 1])


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).random((60, 2))


@pytest.fixture(scope="module")
def fitted(points):
    return Surrogate.fit(points[:20], planted(points[:20]))


def test_it_says_what_unseen_shapes_would_measure(fitted, points):
    means, deviations = fitted.predict(points[20:])
    truth = np.log(planted(points[20:]))
    assert np.abs(means - truth).max() < 0.02
    assert np.abs(means - truth).max() < 4 * deviations.max()


def test_it_is_surer_where_it_was_measured_than_far_from_there(fitted, points):
    near, far = fitted.predict(points[:1])[1][0], fitted.predict(np.array([[3.0, -3.0]]))[1][0]
    assert near < far / 10


def test_believing_a_shape_changes_no_mean_and_makes_it_certain(fitted):
    point = np.array([[1.5, 1.5]])
    mean, deviation = fitted.predict(point)
    believed = fitted.believing(point)
    after, left = believed.predict(point)
    assert after == pytest.approx(mean, abs=1e-3)
    assert left[0] < deviation[0] / 3


def test_the_same_measurements_give_the_same_process(fitted, points):
    again = Surrogate.fit(points[:20], planted(points[:20]))
    assert np.array_equal(again.predict(points)[0], fitted.predict(points)[0])


def test_the_same_measurements_are_fitted_once():
    features = np.linspace(0, 1, 16).reshape(8, 2)
    kls = np.linspace(1, 2, 8)
    first = Surrogate.fit(features, kls)
    assert Surrogate.fit(features.copy(), kls.copy()).process is first.process
    assert Surrogate.fit(features, kls[::-1]).process is not first.process
