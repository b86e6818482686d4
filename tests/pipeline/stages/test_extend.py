"""What is taken over of an earlier screening, shape by shape; runs that extend others are in `test_search.py`."""

from minitron_nas.execution.runner import Outcome
from minitron_nas.families.catalog import layout_of
from minitron_nas.pipeline.stages.extend import TakenOver, _add
from minitron_nas.search.costing import Costing, Deployment
from minitron_nas.search.exploration import Exploration
from minitron_nas.search.pool import Pool
from minitron_nas.space.axes import load_space
from minitron_nas.space.enumerate import enumerate_candidates


def test_shapes_of_a_model_without_experts_are_found_again_though_others_of_its_family_have_them() -> None:
    space = load_space("gemma-4-e2b")
    source = space.source_architecture()
    layout = layout_of(source.model_type)
    found = enumerate_candidates(space, "4B", source, layout)
    pool = Pool.of(found, Costing(source, layout, 1024, Deployment(8, 32_000)))
    shape = pool.candidates[1]
    assert "num_experts" in pool.candidates.columns()
    assert "num_experts" not in shape.architecture.sizes()
    outcome = Outcome(shape.id, "completed", {"kl_nats": 1.0}, None, 0)
    content = {**Exploration({1: outcome}, {1: 1}, "").to_dict(), "shapes": {"1": shape.architecture.sizes()}}
    taken = TakenOver()
    _add(taken, content, pool)
    assert taken.known == {1: outcome}
    assert not taken.beyond
