import re
from pathlib import Path

import pytest
import yaml

from minitron_nas.distillation.settings import CorrectionSettings, DistillationSettings
from minitron_nas.errors import MinitronNasError, PlanError, SpaceError
from minitron_nas.pipeline.plan import FamilyPlan, deciding, load_plan, make_plan, with_overrides
from minitron_nas.space.axes import load_space
from minitron_nas.space.size import Size

LEAST = {"teacher": "owner/name", "sizes": ["110M"], "data": "embedded"}


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        (["110M", "94.5m"], (110_000_000, 94_500_000)),
        ([8e9, "4B"], (8_000_000_000, 4_000_000_000)),
        ([1000], (1000,)),
        (["64k"], (64_000,)),
    ],
)
def test_sizes_are_read_as_people_write_them(sizes: list[object], counts: tuple[int, ...]) -> None:
    assert make_plan(LEAST | {"sizes": sizes}).sizes == tuple(map(Size.parse, counts))


def test_sizes_are_built_in_descending_order() -> None:
    assert make_plan(LEAST | {"sizes": ["4B", "8B", "2B"]}).descending_sizes == [*map(Size.parse, ["8B", "4B", "2B"])]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], r"sizes: .*at least 1 item"),
        (["big"], r"sizes\.0: 'big' is not a count; write a number such as 8e9 or '110M'"),
        ([0], r"sizes\.0: 0 is not a positive count"),
        ([True], r"sizes\.0: True is not a count"),
        (["94M", 94e6], r"sizes 94M, 94M are not distinct; name each size once"),
    ],
)
def test_sizes_that_will_not_do_are_refused(sizes: list[object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(LEAST | {"sizes": sizes})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "distilation",
            {},
            r"unknown key 'distilation'; did you mean 'distillation'\? known keys: baselines, card, cho",
        ),
        ("distillation", {"token": 1}, r"unknown key 'distillation\.token'; did you mean 'tokens'\?"),
        ("text", {"seq_length": 8}, r"unknown key 'text\.seq_length'; did you mean 'sequence_length'\?"),
        ("space", {"axes": {"hiden_size": {}}}, r"unknown key 'space\.axes\.hiden_size'; did you mean 'hidden_size'\?"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key: str, value: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(LEAST | {key: value})


def test_all_faults_are_told_at_once_with_their_origin() -> None:
    values = {"sizes": ["many"], "data": "x", "sede": 1, "distillation": {"learning_rate": -1}, "kd_teacher": "last"}
    with pytest.raises(PlanError) as caught:
        make_plan(values, "family.yaml")
    message = str(caught.value)
    assert message.startswith("family.yaml: ")
    for fault in ("teacher: Field required", "sizes.0: 'many'", "unknown key 'sede'", "distillation.learning_rate:"):
        assert fault in message
    assert "kd_teacher: Input should be 'first' or 'previous'" in message
    assert "\n" not in message


def test_a_plan_error_is_ours_and_a_value_error() -> None:
    with pytest.raises(PlanError) as caught:
        make_plan({})
    assert isinstance(caught.value, MinitronNasError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("override", [f"seed={10**400}", f"seed={2**63}", f"text.sequence_length={10**30}"])
def test_a_number_that_no_tensor_can_hold_is_refused(override: str) -> None:
    with pytest.raises(PlanError, match=f"{override.partition('=')[0]}: .*less than"):
        overridden(override)


@pytest.mark.parametrize("value", ["local", "ray"])
def test_a_runner_may_be_given_by_its_name(value: str) -> None:
    assert make_plan(LEAST | {"runner": value}).runner.kind == value


def test_a_space_may_be_given_by_its_name() -> None:
    assert make_plan(LEAST | {"space": "minitron-15b-to-4b"}).space == load_space("minitron-15b-to-4b")
    assert make_plan(LEAST).space == load_space("default")


def test_a_window_serves_one_size_alone() -> None:
    values = LEAST | {"sizes": ["8B", "7.9B"], "space": "minitron-15b-to-8b"}
    with pytest.raises(PlanError, match=r"space.window serves one size, and 2 are given \(8B, 7.9B\); give one size"):
        make_plan(values)


def test_an_unknown_space_lists_those_there_are() -> None:
    with pytest.raises(PlanError, match=r"space: no search space 'huge'; give the path of a YAML file or one of: def"):
        make_plan(LEAST | {"space": "huge"})


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_plan(LEAST).seed = 1


# --set


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("distillation.tokens=6k", "distillation={learning_rate: 1e-3}"),
        ("runner.max_failures=5", "runner=ray"),
        ("search.num_rungs=1", "search=random"),
        ("space.axes.hidden_size=null", "space.axes={}"),
        ("importance.depth.mode=block", " importance ={}"),
    ],
)
def test_a_group_that_would_undo_a_key_before_it_is_refused(earlier: str, later: str) -> None:
    with pytest.raises(PlanError, match=f"would undo --set '{re.escape(earlier)}' before it; give the group first"):
        overridden(earlier, "seed=1", later)
    assert overridden(later, earlier).seed == 0


def overridden(*overrides: str, **values: object) -> FamilyPlan:
    return make_plan(with_overrides(LEAST | values, overrides))


@pytest.mark.parametrize(
    ("written", "baselines"),
    [
        ("true", ("depth_only", "random_shape")),
        ("false", ()),
        ("largest_shape", ("largest_shape",)),
        ("[random_weights, depth_only]", ("random_weights", "depth_only")),
    ],
)
def test_baselines_are_switched_or_named(written: str, baselines: tuple[str, ...]) -> None:
    assert overridden(f"baselines={written}").baselines == baselines


@pytest.mark.parametrize("written", ["[depth_only, depth_only]", "depth", "1"])
def test_a_baseline_that_is_unknown_or_named_twice_is_refused(written: str) -> None:
    with pytest.raises(PlanError, match="baselines"):
        overridden(f"baselines={written}")


def test_an_override_reaches_a_nested_setting() -> None:
    plan = overridden("distillation.tokens=100M", "search.num_rungs=1", "baselines=false", "seed=7")
    assert (plan.distillation.tokens, plan.search.num_rungs, plan.baselines, plan.seed) == (10**8, 1, (), 7)


def test_an_override_can_be_a_list() -> None:
    plan = overridden("sizes=[8B, 4B]", "space.protected_layers=[0, 1, -1]", "evaluation.tasks=[arc_easy]")
    assert plan.to_dict()["sizes"] == [8 * 10**9, 4 * 10**9]
    assert plan.space.protected_layers == (0, 1, -1)
    assert plan.evaluation.tasks == ("arc_easy",)


def test_one_value_is_a_list_of_one() -> None:
    plan = overridden(
        "sizes=8B", "space.protected_layers=0", "evaluation.tasks=arc_easy", "distillation.report_to=wandb"
    )
    assert (plan.to_dict()["sizes"], plan.space.protected_layers) == ([8 * 10**9], (0,))
    assert (plan.evaluation.tasks, plan.distillation.report_to) == (("arc_easy",), ("wandb",))


def test_the_runner_can_be_named_and_then_adjusted() -> None:
    assert overridden("runner=local").runner.kind == "local"
    plan = overridden("runner.max_failures=5", runner="local")
    assert (plan.runner.kind, plan.runner.max_failures) == ("local", 5)


def test_the_space_can_be_named_and_then_adjusted() -> None:
    plan = overridden("space=smollm2-135m", "space.tolerance=0.1")
    assert plan.space == load_space("smollm2-135m").model_copy(update={"tolerance": 0.1})
    assert overridden("space.tolerance=0.1").space.axes == load_space("default").axes


def test_overrides_leave_what_they_were_given_as_it_was() -> None:
    values = LEAST | {"distillation": {"tokens": 1}}
    with_overrides(values, ["distillation.tokens=2", "space.tolerance=0.1"])
    assert values == LEAST | {"distillation": {"tokens": 1}}


def test_settings_given_as_objects_can_be_adjusted_too() -> None:
    space = load_space("smollm2-135m")
    plan = overridden(
        "space.tolerance=0.1",
        "distillation.tokens=1k",
        space=space,
        distillation=DistillationSettings(learning_rate=0.5),
    )
    assert plan.space == space.model_copy(update={"tolerance": 0.1})
    assert (plan.distillation.tokens, plan.distillation.learning_rate) == (1000, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"--set 'seed' is not of the form key=value, such as distillation\.tokens=100M"),
        ("=1", r"--set '=1' is not of the form key=value"),
        ("seed.more=1", r"--set 'seed\.more=1': seed is 0, which has no key 'more'"),
        ("sizes=[1", r"--set 'sizes=\[1': the value is not YAML: while parsing a flow sequence"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        with_overrides({"seed": 0}, [override])
    assert "\n" not in str(caught.value)


def test_adjusting_a_space_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SpaceError, match="no search space 'huge'"):
        with_overrides(LEAST | {"space": "huge"}, ["space.tolerance=0.1"])


def test_an_override_with_an_unknown_key_is_refused_like_any_other() -> None:
    with pytest.raises(PlanError, match=r"unknown key 'distillation\.tokns'; did you mean 'tokens'\?"):
        overridden("distillation.tokns=1")


# Files


def test_a_plan_comes_from_yaml_and_overrides_come_last(tmp_path: Path) -> None:
    file = tmp_path / "family.yaml"
    file.write_text("teacher: owner/name\nsizes: [110M]\ndata: embedded\nseed: 3\nrunner: local\n")
    plan = load_plan(file, ["sizes=[94M]"])
    assert (plan.teacher, [*map(str, plan.sizes)], plan.seed, plan.runner.kind) == ("owner/name", ["94M"], 3, "local")


def test_a_plan_survives_its_run_folder(tmp_path: Path) -> None:
    plan = overridden("space=smollm2-135m", "distillation.tokens=20k", "evaluation.tasks=[arc_easy]", "runner=local")
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({"plan": plan.to_dict(), "versions": {"torch": "2"}}))
    assert load_plan(file) == plan


def test_a_written_plan_is_the_same_bytes_each_time() -> None:
    texts = {yaml.safe_dump(overridden("seed=1", "space.tolerance=0.1").to_dict()) for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("teacher: [", r"family\.yaml is not YAML: .*line 1"),
        ("just words", r"family\.yaml must hold a mapping such as 'teacher: \.\.\.'"),
        ("", r"family\.yaml must hold a mapping"),
        ("teacher: x\nsizes: [1M]\ndata: y\ntokens: 5\n", r"^family\.yaml: unknown key 'tokens'"),
        (b"teacher: \xff", r"family\.yaml cannot be read as a plan: .*codec can't decode"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "family.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PlanError, match=message) as caught:
        load_plan(file)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"there is no plan .*family\.yaml"):
        load_plan(tmp_path / "family.yaml")


def test_a_folder_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read as a plan: .*directory"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        [{"path": "a.parquet", "weight": 0.3}, {"path": "b.jsonl", "weight": 0.7}],
        {"a.parquet": 0.3, "b.jsonl": 0.7},
    ],
)
def test_a_blend_is_read_from_a_list_or_a_mapping_and_written_so_that_it_can_be_read_again(data: object) -> None:
    plan = make_plan(LEAST | {"data": data})
    assert isinstance(plan.data, tuple)
    assert [(source.path, source.weight) for source in plan.data] == [("a.parquet", 0.3), ("b.jsonl", 0.7)]
    assert make_plan(yaml.safe_load(yaml.safe_dump(plan.to_dict()))) == plan


def test_a_fault_of_a_blend_names_the_source_and_the_nearest_key() -> None:
    with pytest.raises(PlanError, match=r"data: source 2 of the blend: unknown key 'columns'; did you mean 'column'"):
        make_plan(LEAST | {"data": [{"path": "a", "weight": 1}, {"path": "b", "weight": 1, "columns": "x"}]})


def test_correction_is_off_unless_one_of_its_keys_is_set() -> None:
    assert make_plan(LEAST).correct is None
    plan = make_plan(with_overrides(LEAST, ["correct.tokens=1M", "correct.weights=lora"]))
    assert plan.correct is not None
    assert (plan.correct.tokens, plan.correct.weights, plan.correct.warmup_steps) == (1_000_000, "lora", 120)
    assert overridden("correct=true").correct == CorrectionSettings()
    assert overridden("correct=true", "correct.tokens=1M").correct == CorrectionSettings(tokens=1_000_000)
    assert overridden("correct=false").correct is None


def test_what_decides_a_plans_students_is_all_but_how_work_is_done() -> None:
    before = deciding(make_plan(LEAST).to_dict())
    free = ("runner.max_failures=7", "evaluation.tasks=[arc_easy]", "distillation.deepspeed=zero-3")
    free += ("distillation.micro_batch_sequences=2", "distillation.gradient_checkpointing=true", "card.license=mit")
    assert deciding(overridden(*free).to_dict()) == before
    assert {"seed", "distillation.tokens", "space.protected_layers", "sizes"} <= before.keys()
    assert not [key for key in before if key.startswith(("runner", "evaluation", "card"))]


@pytest.mark.parametrize(
    ("distillation", "num_rungs", "tokens"),
    [
        ({"teacher_signal": "online", "learning_rate": 1e-4}, 3, 2_000),
        ({"teacher_signal": "online"}, 3, 2_000),
        ({"teacher_signal": "online"}, 0, 2_500),
        ({"teacher_signal": "online", "learning_rate": 1e-4}, 0, 0),
        ({"teacher_signal": "hidden_cache"}, 3, 0),
    ],
)
def test_a_teacher_speaks_over_as_much_as_the_longest_short_training_reads(
    distillation: dict[str, object], num_rungs: int, tokens: int
) -> None:
    given = {"teacher": "x", "sizes": ["1M"], "data": "x", "search": {"num_rungs": num_rungs}}
    plan = make_plan({**given, "distillation": distillation})
    assert plan.trial_tokens(100_000, 4096) == tokens


def test_states_of_trials_that_are_many_are_not_kept() -> None:
    plan = overridden("distillation.teacher_signal=online", "search.tokens=2.4M")
    assert plan.trial_tokens(10**9, 4096) == 2_400_000
    assert plan.trial_tokens(10**9, 5120) == 0


def test_sizes_in_memory_and_speed_are_read_written_and_ordered() -> None:
    plan = make_plan(LEAST | {"sizes": ["memory=3GB", "memory=6GiB"]})
    assert [size.label for size in plan.descending_sizes] == ["memory-6.442450944GB", "memory-3GB"]
    assert plan.to_dict()["sizes"] == ["memory=3GB", "memory=6.442450944GB"]
    assert make_plan(plan.to_dict()) == plan
    faster = overridden("sizes=[decode=2x, decode=1.5x]")
    assert [size.label for size in faster.descending_sizes] == ["decode-1.5x", "decode-2.0x"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (["memory=6GB", 4e9], r"sizes memory=6GB, 4B are of several units, .* give all in one unit"),
        (["decode=2x", "prefill=2x"], r"sizes decode=2.0x, prefill=2.0x are of several units"),
        (["memory=1GB", "memory=1000MB"], r"sizes memory=1GB, memory=1GB are not distinct"),
        (["memory=6Gb"], r"sizes\.0: size 'memory=6Gb': Gb stands for bits"),
        (["speed=2"], r"sizes\.0: size 'speed=2': 'speed' is no unit of a size"),
    ],
)
def test_sizes_in_other_units_that_will_not_do_are_refused(sizes: list[object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(LEAST | {"sizes": sizes})


def test_a_speed_asks_for_a_latency_model_and_memory_does_not() -> None:
    assert overridden("sizes=decode=2x").asks_for_seconds
    assert overridden("sizes=memory=1GB", "search.objectives=[kl, decode_seconds]").asks_for_seconds
    assert not overridden("sizes=memory=1GB").asks_for_seconds
