"""What a curve says: the best validation, and whether training did harm."""

from math import nan

import pytest

from minitron_nas.distillation.training.curve import CurvePoint, TrainingResult


def a_result(*kls, judge="kl_nats"):
    """Validations every 1,000 tokens, with a point of training between them whose KL is lower than all."""
    points = []
    for place, kl in enumerate(kls):
        points.append(CurvePoint(1000 * place, kl, 3.0 - kl, None, None))
        points.append(CurvePoint(1000 * place + 500, 0.01, None, 0.01, 1e-4))
    return TrainingResult(tuple(points), judge)


@pytest.mark.parametrize(
    ("kls", "tokens"),
    [
        ((0.7, 0.6, 0.5), 2000),
        ((0.7, 0.5, 0.6), 1000),
        ((0.7, 0.7, 0.8), 0),
        ((nan, 0.7, 0.8), 1000),
        ((nan, nan), 1000),
    ],
)
def test_the_first_of_the_lowest_validations_is_the_best_and_the_last_where_none_is_a_number(kls, tokens):
    assert a_result(*kls).best.tokens == tokens


def test_by_the_next_token_loss_another_is_the_best():
    assert a_result(0.7, 0.5, 0.6, judge="loss_nats").best.tokens == 0


def test_a_training_that_ends_worse_than_it_began_is_told_with_both_numbers():
    assert a_result(0.72, 0.9, 0.825).harm == (
        "training made it worse: validation KL 0.720 nats before it, 0.825 after 2,000 tokens; of its weights the "
        "untrained ones are kept"
    )
    assert a_result(0.72, 0.71, 0.825).harm.endswith("those after 1,000 tokens are kept")
    assert a_result(0.5, 0.4, judge="loss_nats").harm.startswith("training made it worse: validation loss 2.500 nats")


@pytest.mark.parametrize("kls", [(0.7, 0.9, 0.6), (0.7, 0.7), (nan, 0.7), (0.7,)])
def test_a_training_that_ends_no_worse_did_no_harm(kls):
    assert a_result(*kls).harm is None
