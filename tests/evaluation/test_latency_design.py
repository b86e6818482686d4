"""Which shapes are measured: far apart, and of the sizes that candidates have."""

import numpy as np

from minitron_nas.evaluation.latency_design import at_random, far_apart

NAMES = ("hidden_size", "intermediate_size")


def grid(hidden, neurons, layers=(1,)):
    columns = np.array([(h, f, n) for h in hidden for f in neurons for n in layers])
    return dict(zip((*NAMES, "num_hidden_layers"), columns.T, strict=True))


def test_the_corners_come_first_and_then_the_middle():
    found = far_apart(grid([64, 128, 256], [100, 200, 400], layers=[2, 3]), NAMES, 5)
    assert found[0] == {"hidden_size": 256, "intermediate_size": 400}
    assert found[1] == {"hidden_size": 64, "intermediate_size": 100}
    corners = {(each["hidden_size"], each["intermediate_size"]) for each in found[:4]}
    assert corners == {(256, 400), (64, 100), (64, 400), (256, 100)}
    # On logarithmic axes 128 is half-way between 64 and 256.
    assert found[4] == {"hidden_size": 128, "intermediate_size": 200}


def test_of_a_small_space_every_shape_is_picked_once():
    found = far_apart(grid([64, 128], [100], layers=[2, 3, 4]), NAMES, 24)
    assert sorted(each["hidden_size"] for each in found) == [64, 128]


def test_shapes_at_random_are_shapes_of_the_space_and_the_same_each_time():
    columns = grid([64, 128, 256], [100, 200, 400], layers=[2, 3])
    found = at_random(columns, 4)
    rows = {tuple(row) for row in np.stack(list(columns.values()), axis=1).tolist()}
    assert len({tuple(each.values()) for each in found}) == 4
    assert all(tuple(each.values()) in rows for each in found)
    assert found == at_random(columns, 4)
    assert len(at_random(columns, 100)) == 18
