import re
from collections.abc import Callable

import numpy as np
import pytest
from transformers import AutoConfig

from minitron_nas.architecture.layout import Axis
from minitron_nas.architecture.rules import RULES, check_architecture
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.families.catalog import LAYOUTS


def shape(model_type: str, hidden_size: int) -> Architecture:
    return Architecture(model_type, 2, hidden_size, 64, 6, 2, 8, 100)


def refusal(action: Callable[[], object]) -> str:
    """Return the message with which an action fails, or nothing."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the class of transformers' refusal is not documented
        return str(error)
    return ""


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
@pytest.mark.parametrize("hidden_size", [4, 6, 46, 47, 48, 50, 54])
def test_a_shape_is_refused_exactly_when_transformers_refuses_it(model_type: str, hidden_size: int) -> None:
    architecture = shape(model_type, hidden_size)
    fields = architecture.to_dict()
    ours = refusal(lambda: check_architecture(architecture, LAYOUTS[model_type]))
    theirs = refusal(lambda: AutoConfig.for_model(fields.pop("model_type"), **fields))
    assert ours.startswith(f"hidden_size={hidden_size} with num_attention_heads=6") == bool(ours)
    assert ("is not a multiple of the number of attention" in theirs) == bool(theirs)
    assert bool(ours) == bool(theirs)


def test_at_least_one_family_is_bound_and_one_is_free() -> None:
    assert {LAYOUTS["llama"].hidden_multiple_of_heads, LAYOUTS["nemotron"].hidden_multiple_of_heads} == {
        True,
        False,
    }


def test_the_refusal_names_the_rule_and_the_nearest_legal_sizes() -> None:
    message = (
        "hidden_size=50 with num_attention_heads=6 breaks the rule hidden_size_multiple_of_heads: stock "
        "transformers refuses a config whose hidden_size is no multiple of num_attention_heads; "
        "nearest legal hidden_size: 48 or 54"
    )
    with pytest.raises(InvalidArchitectureError, match=f"^{re.escape(message)}$"):
        check_architecture(shape("llama", 50), LAYOUTS["llama"])


def test_zero_is_not_offered_as_a_legal_size() -> None:
    with pytest.raises(InvalidArchitectureError, match=r"nearest legal hidden_size: 6$"):
        check_architecture(shape("llama", 4), LAYOUTS["llama"])


def test_a_rule_judges_arrays_entry_by_entry() -> None:
    (rule,) = [rule for rule in RULES if rule.name == "hidden_size_multiple_of_heads"]
    sizes = {Axis.HIDDEN: np.array([46, 48, 54]), Axis.KV_GROUPS: np.array([2, 2, 3]), Axis.GROUP_HEADS: 3}
    assert rule.keeps(sizes).tolist() == [False, True, True]
