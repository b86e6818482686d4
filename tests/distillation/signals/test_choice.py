"""Which signal is settled on, by what the disk can hold."""

from dataclasses import replace
from typing import get_args

import pytest

from minitron_nas.distillation.settings import DistillationSettings, LogitLoss
from minitron_nas.distillation.signals.choice import Speech, settle

LARGE = Speech(100_000_000, 2, 128_256, 4096 * 2)  # 819 GB of hidden states, 154 GB of 256 tokens each


@pytest.mark.parametrize(
    ("free_gb", "kind"),
    [(1_700, "hidden_cache"), (1_639, "hidden_cache"), (1_600, "top_k"), (308, "top_k"), (307, "online")],
)
def test_a_cache_takes_at_most_half_of_the_free_disk(free_gb: int, kind: str) -> None:
    settings, told = settle(DistillationSettings(), LARGE, free_gb * 10**9)
    assert settings.teacher_signal == kind
    assert told.startswith(f"teacher_signal: {kind}")
    assert "819 GB" in told
    assert ("154 GB" in told) == (kind != "hidden_cache")


@pytest.mark.parametrize(("free_gb", "kind"), [(1_700, "hidden_cache"), (1_600, "online"), (300, "online")])
def test_the_most_probable_tokens_are_not_kept_for_one_training(free_gb: int, kind: str) -> None:
    settings, told = settle(DistillationSettings(), replace(LARGE, num_trainings=1), free_gb * 10**9)
    assert settings.teacher_signal == kind
    assert "154 GB" not in told
    assert ("which costs no more than to write for it alone" in told) == (kind == "online")


def test_a_loss_over_whole_distributions_never_gets_the_most_probable_tokens() -> None:
    settings, told = settle(DistillationSettings(loss="mse"), LARGE, 1_600 * 10**9)
    assert settings.teacher_signal == "online"
    assert "most probable" not in told


@pytest.mark.parametrize("free_gb", [0, 400, 1_700])
@pytest.mark.parametrize("loss", get_args(LogitLoss))
@pytest.mark.parametrize("intermediate", ["none", "auto", "always"])
def test_what_is_settled_on_could_have_been_named(free_gb: int, loss: str, intermediate: str) -> None:
    if loss == "lm" and intermediate != "none":
        return  # no such settings
    asked = {"loss": loss, "intermediate": intermediate}
    settings, _ = settle(DistillationSettings(**asked), LARGE, free_gb * 10**9)
    assert settings == DistillationSettings(**asked, teacher_signal=settings.teacher_signal)


def test_what_was_named_stays_and_is_not_explained() -> None:
    for kind in ("hidden_cache", "top_k", "online"):
        named = DistillationSettings(teacher_signal=kind)
        assert settle(named, LARGE, 0) == (named, "")


def test_hidden_states_inside_the_teacher_need_it_beside_the_student() -> None:
    matching = DistillationSettings(intermediate="always")
    assert not matching.caches_training
    assert settle(matching, LARGE, 10**18)[0].teacher_signal == "online"


def test_text_of_unknown_length_is_cached_and_that_is_said() -> None:
    settings, told = settle(DistillationSettings(), Speech(None, 2, 128_256, 8192), 0)
    assert settings.teacher_signal == "hidden_cache"
    assert "8,192 bytes" in told
    assert "set distillation.tokens" in told


def test_a_training_without_a_teacher_has_nothing_to_settle() -> None:
    assert settle(DistillationSettings(loss="lm"), LARGE, 0)[1] == ""
