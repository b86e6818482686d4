"""What landscapes of the replay are made of, fitted to what is recorded in `measured/`."""

from collections.abc import Sequence

import numpy as np
from replay_landscapes import AXES, cuts, read_measured, terms
from scipy.optimize import least_squares

from minitron_nas.search.costing import Values
from minitron_nas.space.axes import load_space

PENALTIES = np.logspace(-4, 0, 9)
STARTS = {
    "504/1024": {"hidden_size": 504, "intermediate_size": 1024},
    "hidden 432": {"hidden_size": 432},
    "FFN 1024": {"intermediate_size": 1024},
    "2 KV groups": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "half, 396/832": {"hidden_size": 396, "intermediate_size": 832},
}
"""Shapes of SmolLM2 whose start as the screening makes it is in `measured/starts.json`."""
CURVES = {
    "recovery | rotation, repair in sequence | 0.0001": "starts",
    "recovery | rotation, repair in sequence, L2 of means | 0.0001": "starts",
    "intermediate | 22 layers | 0.0001": "distillation",
    "corrected | corrected teacher | 0.0001": "distillation",
}
"""Recorded trainings of repaired students by forward KL, 102,400 tokens long, and the file that each is in."""
RECORDED_TOKENS = 102_400


def fitted_terms(cut: Values, kls: Values) -> tuple[Values, Values]:
    """Return coefficients of `terms` by ridge regression on relative errors, and those of shapes left out.

    Args:
        cut: (num_shapes, num_axes).
        kls: (num_shapes,), untrained KL.
    """
    found, best = terms(cut) / kls[:, None], (np.zeros(0), np.full(len(kls), np.inf))
    for penalty in PENALTIES:
        solve = np.linalg.solve(found.T @ found + penalty * np.eye(found.shape[1]), found.T)
        coefficients = solve.sum(axis=1)
        errors = (1 - found @ coefficients) / (1 - np.diag(found @ solve))
        best = min(best, (coefficients, errors), key=lambda each: float(np.mean(each[1] ** 2)))
    return best


def fitted_curve(shares: Sequence[float], tokens: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Return floor, tau and the root mean squared error of a curve, as shares of its start and in trials.

    Args:
        shares: KL as a share of the untrained KL.
        tokens: Trials' worth at each.
        alpha: The exponent.
    """

    def errors(values: Values) -> Values:
        floor, tau = values[0], np.exp(values[1])
        off: Values = floor + (1 - floor) * (1 + np.array(tokens) / tau) ** -alpha - np.array(shares)
        return off

    found = least_squares(errors, [0.7, -2.0], bounds=([0.0, -8.0], [1.0, 5.0]))
    return float(found.x[0]), float(np.exp(found.x[1])), float(np.sqrt(np.mean(found.fun**2)))


def show_fit() -> None:
    """Print coefficients of untrained KL, and floor and tau of the recorded curves."""
    source, starts = load_space("smollm2-135m").source_architecture(), read_measured("starts")
    rows = [[row[axis] for axis in AXES] + [row["near"]] for row in read_measured("pools").values()]
    num_of_pools = len(rows)
    if not rows:
        raise SystemExit("there is no measured/pools.json to fit to; study_search.py makes it")
    for name, sizes in STARTS.items():
        start = starts[f"starts | {name} | rotation, repair in one pass | 32,768 tokens"]
        rows.append([*(source.reshaped(sizes).sizes()[axis] for axis in AXES), start["near"]["kl_nats"]])
    table = np.array(rows)
    coefficients, errors = fitted_terms(cuts(source, dict(zip(AXES, table.T[:-1], strict=True))), table[:, -1])
    print(
        f"{num_of_pools} shapes of pools, {len(STARTS)} of starts: {', '.join(f'{each:.2f}' for each in coefficients)}"
    )
    pools, others = (100 * float(np.sqrt(np.mean(each**2))) for each in (errors[:num_of_pools], errors[num_of_pools:]))
    print(f"each predicted from the others: pools to {pools:.1f} %, starts to {others:.1f} %")
    for name, file in CURVES.items():
        rows_of = {key: row for key, row in read_measured(file).items() if key.rpartition(" | ")[0] == name}
        points = sorted((row["tokens"], row["near"]["kl_nats"]) for row in rows_of.values())
        tokens, kls = np.array(points).T
        for alpha in (0.5, 1.0):
            floor, tau, error = fitted_curve(kls / kls[0], tokens / RECORDED_TOKENS, alpha)
            print(f"{name}, alpha {alpha:g}: floor {floor:.3f}, tau {tau:.3f}, error {error:.4f}")
