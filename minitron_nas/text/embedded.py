"""English text that every machine already has, so that a first run needs no download.

The text is the language manual that ships with CPython, and the docstrings of the standard library and
of the installed packages that minitron_nas depends on. Their source files are read and parsed; nothing of
them is imported or run. The text is read on the user's own machine and is never shipped.

A second, smaller text is of another kind: what lm-eval's tasks say of their benchmarks, most of it abstracts of papers.

The same installed versions give the same documents in the same order; other versions give other text.
"""

import ast
import importlib.util
import inspect
import os
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

# Most text per second of parsing first. sqlalchemy and mpmath come with optuna and sympy.
_PACKAGES = (
    *("sqlalchemy", "scipy", "sympy", "networkx", "sklearn", "numpy", "pandas", "torch", "ray"),
    *("transformers", "mpmath", "huggingface_hub", "optuna", "datasets", "pyarrow"),
)
_SKIPPED_FOLDERS = frozenset(
    ("_vendor", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests")
)
_MIN_DOCSTRING_CHARACTERS = 200  # of prose, after cleaning
_MIN_DOCUMENT_CHARACTERS = 400
_MAX_DOCUMENT_CHARACTERS = 20_000
_MAX_PACKAGE_CHARACTERS = 1_000_000

# What makes a paragraph English: enough words, most characters letters or spaces, and enough of the small
# words that no sentence does without (the idea of Rae et al. 2021, arXiv 2112.11446, appendix A.1.1).
_MIN_WORDS = 8
_MIN_LETTER_FRACTION = 0.8  # letters and spaces
_MIN_FUNCTION_WORD_FRACTION = 0.2
_FUNCTION_WORD = re.compile(
    r"\b(?:a|an|and|are|as|at|be|by|can|for|from|has|have|if|in|is|it|its|may|not|of|on|one|or|should|that|the"
    r"|their|then|there|these|they|this|to|was|we|when|which|will|with|you)\b"
)

_TRIPLE_QUOTED = re.compile(rb'""".*?"""', re.DOTALL)
_HEADING = re.compile(r"^.*\n[ \t]*([-=~^*\"'#])\1{2,}[ \t]*$", re.MULTILINE)
_LIST_ITEM = re.compile(r"(?:[-*•]|\d+[.)])\s")
_LIST_BREAK = re.compile(rf"\n(?=\s*{_LIST_ITEM.pattern})")
_CODE_OR_TABLE = re.compile(
    r"^\s*(?:[>@|+#]|\.\. |\.\.\. |```|[-=]{3,}|:\w+(?: |:(?!`))|[\w.*, ]+ : )|\S {3,}\S", re.MULTILINE
)
_MOJIBAKE = re.compile("[\ufffd\x00-\x08]|\u00e2\u20ac|\u00c3[\u0080-\u00bf]")
_MARKUP = (
    (re.compile(r":[a-z:+-]+:`[~!.]?(?:_\w+\.)?([^`<]*?)(?:\s*<[^`>]*>)?`"), r"`\1`"),  # :class:`Text <a>`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),  # `Text <address>`_
    (re.compile(r"\[(`[^`]*`)\](?:\([^)]*\))?"), r"\1"),  # [`Class`]
    (re.compile(r"\[([\w#]+)\]_"), r"[\1]"),  # [1]_
    (re.compile(r"`[~!]"), "`"),
    (re.compile("``"), "`"),
)


def embedded_documents() -> Iterator[str]:
    """English documents found on this machine: CPython's manual, then docstrings module by module.

    No paragraph occurs twice. A file is read when its turn comes, so the first documents arrive at once.

    Yields:
        Plain text of at most about 20,000 characters; one blank line between paragraphs, which are not
        wrapped.
    """
    seen: set[str] = set()
    yield from _manual_documents(seen)
    for folder in source_folders():
        yield from folder_documents(folder, seen)


def benchmark_documents() -> Iterator[str]:
    """English documents of another kind: what the tasks of lm-eval say of their benchmarks.

    Yields:
        One document per task that says enough, in the order of paths.
    """
    spec, seen = importlib.util.find_spec("lm_eval"), set[str]()
    if spec is None or spec.origin is None:
        return
    for path in sorted(Path(spec.origin).parent.glob("tasks/**/*.md")):
        yield from _packed(_unseen_paragraphs(path.read_text(encoding="utf-8", errors="ignore"), seen))


def source_folders() -> Iterator[Path]:
    """Folders of the standard library and of the installed packages, found without importing them."""
    yield Path(sysconfig.get_path("stdlib"))
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and Path(spec.origin).name == "__init__.py":
            yield Path(spec.origin).parent


def folder_documents(folder: Path, seen: set[str]) -> Iterator[str]:
    """Documents made of the docstrings below a folder, up to a package's share of the text.

    Args:
        folder: Searched for `*.py`, in the order of paths; tests are left out.
        seen: Paragraphs that were given out before. They are left out, and new ones are added.

    Yields:
        One document per module, more if it is long; docstrings keep the order of the source.
    """
    num_characters = 0
    for path in _source_files(folder):
        texts = ("\n\n".join(_unseen_paragraphs(docstring, seen)) for docstring in _docstrings(path))
        for document in _packed(text for text in texts if len(text) >= _MIN_DOCSTRING_CHARACTERS):
            yield document
            num_characters += len(document)
            if num_characters >= _MAX_PACKAGE_CHARACTERS:
                return


def prose_paragraphs(docstring: str) -> list[str]:
    """The English paragraphs of a docstring, unwrapped and without reStructuredText roles.

    Code, doctests, tables, formulas, headings and parameter lists are left out, and so is a sentence that
    ends in a colon and announces one of them.

    Args:
        docstring: As it stands in the source.
    """
    text = _HEADING.sub("\n", inspect.cleandoc(docstring))
    blocks = [_prose(textwrap.dedent(block)) for block in re.split(r"\n\s*\n", text)]
    pairs = zip(blocks, [*blocks[1:], ""], strict=True)
    return [block for block, following in pairs if block and (following or not block.endswith(":"))]


def _prose(block: str) -> str:
    """The paragraph unwrapped, or "" if it is not English that starts and ends as sentences do."""
    is_definition = re.search(r"^\s", block, re.MULTILINE) and not _LIST_ITEM.match(block)
    if is_definition or _CODE_OR_TABLE.search(block) or _MOJIBAKE.search(block):
        return ""
    text = _unwrapped(block)
    if not text or text[0].islower() or text[-1] not in '.:!?)"':
        return ""
    num_words = len(re.findall("[A-Za-z]+", text))
    if num_words < _MIN_WORDS:
        return ""
    letter_fraction = (sum(map(str.isalpha, text)) + text.count(" ")) / len(text)
    function_word_fraction = len(_FUNCTION_WORD.findall(text.lower())) / num_words
    is_english = letter_fraction >= _MIN_LETTER_FRACTION and function_word_fraction >= _MIN_FUNCTION_WORD_FRACTION
    return text if is_english else ""


def _unwrapped(block: str) -> str:
    text = "\n".join(" ".join(item.split()) for item in _LIST_BREAK.split(block))
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def _unseen_paragraphs(docstring: str, seen: set[str]) -> list[str]:
    """The paragraphs that are not in `seen` yet; adds them to it."""
    paragraphs = dict.fromkeys(prose_paragraphs(docstring))  # a docstring can repeat itself too
    fresh = [paragraph for paragraph in paragraphs if paragraph not in seen]
    seen.update(fresh)
    return fresh


def _manual_documents(seen: set[str]) -> Iterator[str]:
    for name in sorted(topics):
        yield from _packed(_unseen_paragraphs(topics[name], seen))


def _source_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings in source order; none if the file cannot be parsed, or is less than 30 % docstrings.

    The second case saves more than half of the time and loses a quarter of the text.
    """
    try:
        source = path.read_bytes()
        if sum(map(len, _TRIPLE_QUOTED.findall(source))) < 0.3 * len(source):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    yield from _docstrings_below(tree)


def _docstrings_below(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring and len(docstring) >= _MIN_DOCSTRING_CHARACTERS:
        yield docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_below(child)


def _packed(texts: Iterable[str]) -> Iterator[str]:
    """Join texts by blank lines into documents, starting a new one where the next text would not fit."""
    document = ""
    for text in texts:
        if document and len(document) + len(text) > _MAX_DOCUMENT_CHARACTERS:
            yield document
            document = ""
        document = f"{document}\n\n{text}" if document else text
    if len(document) >= _MIN_DOCUMENT_CHARACTERS:
        yield document


EMBEDDED_TEXTS: dict[str, Callable[[], Iterator[str]]] = {
    "embedded": embedded_documents,
    "embedded-benchmarks": benchmark_documents,
}
"""What finds each text that every machine has, by the name that a plan calls it."""
