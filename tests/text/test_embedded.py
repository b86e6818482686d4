"""The embedded text: what is kept of a docstring, what is left out, and what all of it adds up to."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from minitron_nas.text import embedded as embedded_text
from minitron_nas.text.embedded import (
    benchmark_documents,
    embedded_documents,
    folder_documents,
    prose_paragraphs,
    source_folders,
)

NUMPY_STYLE = """
    Return the eigenvalues of a symmetric
    matrix in ascending order.

    Parameters
    ----------
    a : (M, M) array_like
        The matrix whose eigenvalues are to be computed by this function.

    Notes
    -----
    The algorithm is described in [1]_ and is used by
    :func:`~scipy.linalg.eigh` when ``a`` is real.

    .. math:: A v = w v

    It works as follows in the case of a small matrix::

        q, r = qr(a)

    There are two things that you should know:

    - The matrix is not checked, so that
      it should be symmetric.
    - The result is sorted in the order that is ascending.

    Examples
    --------
    >>> eigenvalues([[1, 0], [0, 2]])
    array([1, 2])
    """

LONG_SENTENCE = "A student is trained on the text that its teacher has read, so that it can be as good as it is."


def a_module(docstrings: list[str]) -> str:
    functions = [f'def function_{i}():\n    """{text}"""\n' for i, text in enumerate(docstrings)]
    return "\n".join(functions)


def three_paragraphs(subject: str) -> str:
    sentence = f"The {subject} is one of the things that are read from the files of this machine."
    return "\n\n".join(f"{sentence} It is in paragraph {word}." for word in ("one", "two", "three"))


def documents_of(folder: Path) -> list[str]:
    return list(folder_documents(folder, set()))


def test_a_docstring_becomes_its_english_paragraphs_without_wrapping_or_markup() -> None:
    assert prose_paragraphs(NUMPY_STYLE) == [
        "Return the eigenvalues of a symmetric matrix in ascending order.",
        "The algorithm is described in [1] and is used by `scipy.linalg.eigh` when `a` is real.",
        "There are two things that you should know:",
        (
            "- The matrix is not checked, so that it should be symmetric.\n"
            "- The result is sorted in the order that is ascending."
        ),
    ]


@pytest.mark.parametrize(
    ("marked_up", "plain"),
    [
        ("``a``", "`a`"),
        (":class:`.Select`", "`Select`"),
        (":meth:`_engine.Connection.execute`", "`Connection.execute`"),
        (":ref:`the guide <user_guide>`", "`the guide`"),
        ("`the paper <https://arxiv.org/abs/2407.14679>`__", "the paper"),
        ("[`~datasets.Dataset`]", "`datasets.Dataset`"),
        ("the book [2]_", "the book [2]"),
    ],
)
def test_markup_becomes_plain_text(marked_up: str, plain: str) -> None:
    sentence = "This is the page that you should read if you want to know it all: {}."
    assert prose_paragraphs(sentence.format(marked_up)) == [sentence.format(plain)]


@pytest.mark.parametrize(
    "block",
    [
        "Too short to be of use.",
        ">>> this is the output of a doctest and it is not a sentence\nthe output of it is here.",
        "x : int\n    The number of the things that are in it.",
        "Args:\n    x (int): The number of the things that are in it.",
        ":param name: the name of the thing that is to be read from the file.",
        "def f(a, b): return the_sum_of(a, b)  # this is the sum of a and b.",
        "| the | a | is |\n| of | to | and that it may be in the table. |",
        "AxisError    This is given when an axis is not one of the axes.",
        ".. note:: this is for the people who are in a hurry to read it.",
        "and so the sum of the terms is the same as it was in the last formula.",
        "The sentence that has no end is one of the things that we do not want",
        "Array Tensor Matrix Vector Scalar Index Shape Stride Buffer Dtype.",
        "The sum of 1, 2, 3, 4, 5, 6, 7, 8, 9 and 10 is 55 = 10 * 11 / 2 (see [3], [4]).",
        "The word \u00c3\u00a9t\u00c3\u00a9 is one of the words of the language that you should have seen.",
        "This is an example of the code that you may have to write:\n\n    x = f(y)",
        "",
    ],
)
def test_what_is_not_an_english_paragraph_is_dropped(block: str) -> None:
    assert prose_paragraphs(f"\n{block}\n") == []


def test_the_docstrings_of_a_module_form_one_document_in_source_order(tmp_path: Path) -> None:
    texts = [three_paragraphs("zebra"), three_paragraphs("ant")]
    tmp_path.joinpath("module.py").write_text(a_module(texts))

    assert documents_of(tmp_path) == ["\n\n".join(texts)]


def test_a_short_docstring_a_repeated_one_and_a_test_file_are_left_out(tmp_path: Path) -> None:
    text = "\n\n".join(map(three_paragraphs, ("ant", "bee")))
    tmp_path.joinpath("a.py").write_text(a_module([text, LONG_SENTENCE]))
    tmp_path.joinpath("b.py").write_text(a_module([text]))
    tmp_path.joinpath("tests").mkdir()
    tmp_path.joinpath("tests", "c.py").write_text(a_module([text.replace("machine", "computer")]))

    assert documents_of(tmp_path) == [text]


def test_a_file_that_cannot_be_parsed_or_decoded_is_skipped(tmp_path: Path) -> None:
    text = "\n\n".join(map(three_paragraphs, ("ant", "bee")))
    tmp_path.joinpath("a.py").write_text(a_module([text]) + "\nprint 'Python 2'")
    tmp_path.joinpath("b.py").write_bytes(a_module([text]).encode() + b"\n# \xff")
    tmp_path.joinpath("c.py").write_text(a_module([text]))

    assert documents_of(tmp_path) == [text]


def test_a_document_is_split_between_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_text, "_MAX_DOCUMENT_CHARACTERS", 1100)
    texts = ["\n\n".join(map(three_paragraphs, names)) for names in (("ant", "bee"), ("cow", "dog"))]
    tmp_path.joinpath("module.py").write_text(a_module(texts))

    assert documents_of(tmp_path) == texts


def test_a_package_stops_at_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_text, "_MAX_PACKAGE_CHARACTERS", 500)
    texts = ["\n\n".join(map(three_paragraphs, names)) for names in (("ant", "bee"), ("cow", "dog"))]
    for name, text in zip("ab", texts, strict=True):
        tmp_path.joinpath(f"{name}.py").write_text(a_module([text]))

    assert documents_of(tmp_path) == texts[:1]


def test_a_user_script_with_the_name_of_a_package_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("some_package.py").write_text("secret = 1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded_text, "_PACKAGES", ("some_package", "a_package_that_is_not_there"))

    assert len(list(source_folders())) == 1  # the standard library


def test_two_passes_give_the_same_documents() -> None:
    assert list(islice(embedded_documents(), 120)) == list(islice(embedded_documents(), 120))


def test_the_text_about_benchmarks_is_prose_and_fills_a_demos_validation_twice() -> None:
    documents = list(benchmark_documents())
    assert len(set(documents)) == len(documents) > 50
    assert sum(min(len(document), 1_000) for document in documents) > 2 * 12 * 1_000
    assert not set(documents) & set(islice(embedded_documents(), 500))
    assert not any("```" in document or "@inproceedings" in document for document in documents)


def test_reading_the_text_imports_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from itertools import islice\n"
        "from minitron_nas.text.embedded import embedded_documents, source_folders\n"
        "assert len(list(islice(embedded_documents(), 70))) == 70 and list(source_folders())\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_all_documents_are_distinct_and_hold_more_than_five_million_characters() -> None:
    documents = list(embedded_documents())
    paragraphs = [paragraph for document in documents for paragraph in document.split("\n\n")]

    assert len(set(paragraphs)) == len(paragraphs)
    assert sum(map(len, documents)) > 5_000_000
    assert min(map(len, documents)) >= 400
    assert not any(">>>" in paragraph[:3] or "\ufffd" in paragraph for paragraph in paragraphs)
