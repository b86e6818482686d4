import pytest
import yaml

from minitron_nas.storage.plain_yaml import load_yaml


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1",
        "a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 2}",
        "[1, {a: 2}]",
        "3",
        "a:\n  a: 1\nb:\n  a: 1",
        "[0, 0.5, -0.01, 1_000, 0x1F, 8e9, 1e-4, 10]",
        "['010', '1:30', 0o17, 10:30am, 'a: 1']",
    ],
)
def test_plain_texts_are_read_as_before(text):
    assert load_yaml(text) == yaml.safe_load(text)


DOUBLING = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGING = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (DOUBLING, "line 16 stands for more than 100,000 values"),
        (MERGING, "stands for more than 100,000 values"),
        ("a: &a [*a]", "line 1 refers to itself"),
        ("a: &a {b: *a}", "line 1 refers to itself"),
        ("[" * 5000 + "]" * 5000, "it nests without end"),
        ("{a: " * 5000, "it nests without end"),
        ("a: 1\nb: 2\na: 3", "'a' is given twice, in lines 1 and 3; keep one"),
        ("text:\n  seed: 1\n  seed: 1", "'seed' is given twice, in lines 2 and 3"),
        ("a: 1\n'a': 2", "'a' is given twice"),
        ("#" * 1_000_001, "it holds 1,000,001 characters"),
        ("a: [1", "while parsing a flow sequence"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: 2024-13-45", "month must be in"),
        ("{[a]: {b: 1}, {c: 1}: 2}", "found unhashable key"),
        ("a: 1\nsizes: [1:30]", "line 2: 1:30 would be the number 90; write a number without colons and leading zeros"),
        ("seed: 010", "line 1: 010 would be the number 8; write a number"),
        ("seed: -0_17", "line 1: -0_17 would be the number -15"),
        ("a: 1:30.5", "line 1: 1:30.5 would be the number 90.5"),
        ("007: a", "line 1: 007 would be the number 7"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_texts_that_mislead_or_do_harm_are_refused_on_one_line(text, fault):
    with pytest.raises(ValueError, match=fault) as error:
        load_yaml(text)
    assert "\n" not in str(error.value)
