import pytest
from transformers import AutoConfig

from minitron_nas.models.relatives import nearest_family


@pytest.mark.parametrize(
    ("model_type", "family"),
    [
        ("minimax", "minimax_m2"),
        ("jamba", "bamba"),
        ("ernie4_5_vl_moe_text", "ernie4_5_moe"),
        ("qwen4_exp_text", "qwen3_next"),
    ],
)
def test_the_nearest_family_goes_by_name_and_by_the_keys_of_the_config(model_type, family):
    nearest, shared, total = nearest_family(AutoConfig.for_model(model_type).to_dict())
    assert nearest == family
    assert 0 < shared <= total


def test_a_config_that_is_like_none_has_a_nearest_family_all_the_same():
    nearest, shared, total = nearest_family({"model_type": "", "width": 3})
    assert (shared, total) == (0, 1)
    assert isinstance(nearest, str)
