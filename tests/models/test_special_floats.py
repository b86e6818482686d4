import json
import math

from transformers import PreTrainedConfig

from minitron_nas.models.special_floats import plain_floats, tagged_floats

CONTENT = {"limit": [0.0, math.inf], "deep": {"least": -math.inf, "plain": 1.5}, "name": "Infinity", "none": None}


def test_floats_that_json_lacks_are_written_as_transformers_writes_them() -> None:
    written = json.loads(PreTrainedConfig(**CONTENT).to_json_string())
    assert tagged_floats(CONTENT) == {key: written.get(key) for key in CONTENT}


def test_what_was_tagged_is_read_as_it_was() -> None:
    assert plain_floats(json.loads(json.dumps(tagged_floats(CONTENT), allow_nan=False))) == CONTENT
    assert math.isnan(plain_floats(tagged_floats([math.nan]))[0])


def test_other_objects_stay() -> None:
    assert plain_floats({"__float__": "Large"}) == {"__float__": "Large"}
