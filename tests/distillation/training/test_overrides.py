"""Trainer's own methods never take the place of ours unnoticed."""

import pytest
import transformers
from transformers import Trainer

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.arguments import check_engine
from minitron_nas.distillation.training.overrides import OVERRIDDEN, check_trainer
from minitron_nas.distillation.training.trainer import _DistillationTrainer, distill
from minitron_nas.errors import PlanError


def test_every_method_that_is_replaced_is_named():
    replaced = {
        name for name, value in vars(_DistillationTrainer).items() if callable(value) and hasattr(Trainer, name)
    }
    assert replaced - {"__init__"} == set(OVERRIDDEN)


def test_trainer_has_them_all():
    check_trainer()


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_a_trainer_that_lacks_one_is_refused_by_its_name(monkeypatch, name):
    monkeypatch.delattr(Trainer, name)
    with pytest.raises(
        PlanError,
        match=rf"the Trainer of transformers {transformers.__version__} has no {name}, .* version from 5\.16 to 5",
    ):
        check_trainer()


def test_such_a_trainer_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.delattr(Trainer, "_save_checkpoint")
    with pytest.raises(PlanError, match="has no _save_checkpoint"):
        check_engine(DistillationSettings())
    with pytest.raises(PlanError, match="has no _save_checkpoint"):
        distill(None, None, tmp_path)
