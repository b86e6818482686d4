"""Which axes of shapes matter, from lines whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from minitron_nas.architecture.spec import SHAPE_FIELDS
from minitron_nas.reporting.axis_shares import AxisShares, axis_shares, held_out, shares
from minitron_nas.reporting.search_figures import axes_figure

Values = NDArray[np.float64]


def shapes(kls: Values, **sizes: Values) -> pd.DataFrame:
    given = {name: sizes.get(name) for name in SHAPE_FIELDS}
    return pd.DataFrame({"size": "94M", "screen_kl_nats": kls, **given})


def grid(layers: int, neurons: int) -> tuple[Values, Values]:
    """All pairs, so that the two are not correlated."""
    pairs = np.meshgrid(np.arange(20, 20 + layers), np.arange(1000, 1000 + 100 * neurons, 100))
    return pairs[0].ravel(), pairs[1].ravel()


def test_of_axes_that_are_not_correlated_each_has_its_own_squared_correlation() -> None:
    layers, neurons = grid(5, 4)
    sizes = np.log(np.stack([layers, neurons], axis=1))
    values = sizes @ [-2.0, -0.5] + np.random.default_rng(0).normal(0, 0.05, len(layers))
    expected = [np.corrcoef(sizes[:, at], values)[0, 1] ** 2 for at in (0, 1)]
    assert shares(sizes, values) == pytest.approx(expected, abs=1e-9)


def test_axes_that_are_the_same_share_evenly_and_all_shares_add_up_to_r_squared() -> None:
    random = np.random.default_rng(1)
    one, other = random.normal(size=(2, 40))
    values = one + other + random.normal(size=40)
    found = shares(np.stack([one, one, other], axis=1), values)
    assert found[0] == pytest.approx(found[1])
    line = np.column_stack([np.ones(40), one, other])
    left = values - line @ np.linalg.lstsq(line, values)[0]
    assert sum(found) == pytest.approx(1 - left.var() / values.var())


def test_what_is_held_out_is_foretold_as_if_it_had_never_been_seen() -> None:
    random = np.random.default_rng(2)
    sizes, values = random.normal(size=(12, 2)), random.normal(size=12)
    line, missed, spread = np.column_stack([np.ones(12), sizes]), 0.0, 0.0
    for at in range(12):
        others = np.arange(12) != at
        foretold = line[at] @ np.linalg.lstsq(line[others], values[others])[0]
        missed += (values[at] - foretold) ** 2
        spread += (values[at] - values[others].mean()) ** 2
    assert held_out(sizes, values) == pytest.approx(1 - missed / spread)


def test_the_greatest_share_comes_first_with_the_way_that_kl_went() -> None:
    layers, neurons = grid(5, 4)
    found = axis_shares(
        shapes(8.0 * layers**-2.0 * neurons**0.1, num_hidden_layers=layers, intermediate_size=neurons), "94M"
    )
    assert isinstance(found, AxisShares)
    assert [(axis.name, axis.rises) for axis in found.axes] == [
        ("num_hidden_layers", False),
        ("intermediate_size", True),
    ]
    assert (found.num_shapes, found.held_out) == (20, pytest.approx(1))
    bars = axes_figure(found)["data"]
    assert [(bar["name"], bar["y"]) for bar in bars] == [
        ("more of it, lower KL", ["layers"]),
        ("more of it, higher KL", ["neurons"]),
    ]
    assert sum(bar["x"][0] for bar in bars) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("kls", "reason"),
    [
        (np.full(20, np.nan), "0 screened shapes are too few"),
        (np.r_[np.ones(5), np.full(15, np.nan)], "5 screened shapes are too few to tell which axes"),
        (np.ones(20), "all screened shapes have the same KL"),
        (np.random.default_rng(3).uniform(1, 2, 20), "no line foretells the KL of 20 screened shapes: R"),
    ],
)
def test_where_nothing_can_be_told_it_says_why(kls: Values, reason: str) -> None:
    layers, neurons = grid(5, 4)
    found = axis_shares(shapes(kls, num_hidden_layers=layers, intermediate_size=neurons), "94M")
    assert isinstance(found, str)
    assert found.startswith(reason)
    figure = axes_figure(found)
    assert (figure["data"], figure["layout"]["annotations"][0]["text"]) == ([], f"nothing to draw: {found}")
