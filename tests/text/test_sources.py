"""Documents from files, folders, globs, datasets and the hub: which, in what order, and what is refused."""

import json
import tracemalloc

import datasets
import pytest

from minitron_nas.errors import DataError
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.embedded import EMBEDDED_TEXTS
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import data_name, open_sources, read_documents, read_in_order

TEXTS = [f"This is document {number}." for number in range(20)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


def documents(data, seed=0, **settings):
    return list(read_documents(data, TextSettings(**settings), seed))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(texts, column="text"):
    return [{column: text} for text in texts]


@pytest.mark.parametrize("blank", ["\n\n", "\n \n", "\n\t \n"])
def test_a_plain_text_file_is_cut_at_blank_lines_into_passages_of_about_4000_characters(tmp_path, blank):
    paragraphs = [letter * 1500 for letter in "abcdefg"]
    file = tmp_path / "book.txt"
    file.write_text(blank.join(paragraphs))
    expected = [blank.join(paragraphs[start : start + 3]) for start in (0, 3, 6)]
    assert sorted(documents(file)) == expected


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json"])
def test_every_row_of_a_json_lines_file_is_a_document(tmp_path, suffix):
    file = write_jsonl(tmp_path / f"rows{suffix}", rows_of(TEXTS))
    assert sorted(documents(file)) == sorted(TEXTS)


def test_every_row_of_a_parquet_file_is_a_document(tmp_path):
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(20))}).to_parquet(file)
    assert sorted(documents(str(file))) == sorted(TEXTS)


@pytest.mark.parametrize("stream", [False, True])
def test_a_row_of_a_dataset_that_is_refused_is_named_by_its_number(stream):
    table = datasets.Dataset.from_list(
        [{"text": [text] if number == 12 else [], "n": 1} for number, text in enumerate(TEXTS)]
    )
    order = [row["n"] for row in datasets.Dataset.from_dict({"n": range(20)}).shuffle(seed=3)]
    data = table.to_iterable_dataset() if stream else table
    place = [row["text"] != [] for row in data.shuffle(seed=3)].index(True)
    assert stream or order[place] == 12
    row = f"{place + 1} of the stream as shuffled with seed=3 and buffer_size=10000" if stream else "13"
    with pytest.raises(DataError, match=rf"^the (Iterable)?Dataset, row {row}: "):
        documents(data, seed=3)


def test_another_column_can_be_named(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "no", "body": "yes"}])
    assert documents(file, column="body") == ["yes"]


def test_a_glob_reads_the_files_that_it_matches(tmp_path):
    for name in ("a-1.jsonl", "a-2.jsonl", "b-1.jsonl"):
        write_jsonl(tmp_path / name, rows_of([name]))
    assert sorted(documents(str(tmp_path / "a-*.jsonl"))) == ["a-1.jsonl", "a-2.jsonl"]


def test_a_folder_is_read_with_its_subfolders_and_all_formats(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.txt").write_text("one")
    write_jsonl(tmp_path / "two.jsonl", rows_of(["two"]))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    assert sorted(documents(tmp_path)) == ["one", "two"]


def test_a_dataset_object_is_read_as_it_is():
    assert sorted(documents(datasets.Dataset.from_dict({"text": TEXTS}))) == sorted(TEXTS)


def test_empty_documents_missing_values_and_repetitions_are_left_out(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", rows_of(["same", "", "other", "  \n", None, "same", " same\n"]))
    assert sorted(text.strip() for text in documents(file)) == ["other", "same"]


@pytest.mark.parametrize("form", ["file", "dataset"])
def test_the_seed_alone_decides_the_order(tmp_path, form):
    file = write_jsonl(tmp_path / "rows.jsonl", rows_of(TEXTS))
    data = file if form == "file" else datasets.Dataset.from_dict({"text": TEXTS})
    first = documents(data, seed=1)
    assert documents(data, seed=1) == first
    assert documents(data, seed=2) != first
    assert first != TEXTS
    assert sorted(first) == sorted(TEXTS)


def test_the_embedded_text_needs_no_file(monkeypatch):
    monkeypatch.setitem(EMBEDDED_TEXTS, "embedded-benchmarks", lambda: iter(TEXTS))
    assert sorted(documents("embedded-benchmarks")) == sorted(TEXTS)


def test_a_hub_dataset_is_streamed_with_the_configuration_and_split_of_the_settings(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = documents("someone/texts", config="english", split="test")
    assert calls == [(("someone/texts", "english"), {"split": "test", "streaming": True})]
    assert sorted(found) == sorted(TEXTS)


def test_files_read_in_order_keep_their_own_order_and_a_text_file_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(["x" * 4000, "end"]))
    write_jsonl(tmp_path / "rows.jsonl", rows_of(TEXTS))
    assert read_in_order(tmp_path / "book.txt", TextSettings()) == ["x" * 4000 + "\n\nend"]
    assert read_in_order(tmp_path / "rows.jsonl", TextSettings()) == TEXTS


@pytest.mark.parametrize("form", ["file", "dataset"])
def test_a_missing_column_is_an_error_that_lists_the_columns(tmp_path, form):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"id": 1, "body": "x"}])
    data = file if form == "file" else datasets.Dataset.from_dict({"id": [1], "body": ["x"]})
    with pytest.raises(DataError, match="has no column 'text' but id, body; choose one with --set text.column=NAME"):
        documents(data)


@pytest.mark.parametrize("name", ["nothing.txt", "./nothing", "nothing-*", "nothing.parquet", "~/nothing"])
def test_a_plan_refuses_a_missing_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    where = "" if name.startswith("~") else f" in {tmp_path}"
    with pytest.raises(
        DataError, match=r"no file matches .*nothing.*; give an existing file, glob, folder or a hub"
    ) as told:
        data_name(name)
    assert f"{name}{where}; " in str(told.value)


@pytest.mark.parametrize("name", ["~/mine.txt", "~/*.txt", "~", "{home}/a[1].txt"])
def test_a_home_folder_and_brackets_in_a_name_are_read(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ("a[1].txt" if "[" in name else "mine.txt")).write_text("Some text.")
    assert documents(name.format(home=tmp_path)) == ["Some text."]


def test_a_plan_refuses_a_folder_without_text(tmp_path):
    with pytest.raises(DataError, match=f"no file matches {tmp_path}"):
        data_name(tmp_path)


def test_a_plan_refuses_files_that_are_all_empty(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{tmp_path} is empty; give text to calibrate and train on"):
        data_name(tmp_path)
    (tmp_path / "b.txt").write_text("text")
    assert data_name(tmp_path) == str(tmp_path)


def test_a_missing_file_cannot_be_read_in_order(tmp_path):
    with pytest.raises(DataError, match=r"no file matches .*; give an existing text, jsonl or parquet file"):
        read_in_order(tmp_path / "nothing.jsonl", TextSettings())


def test_a_hub_dataset_that_cannot_be_opened_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'some/where' is neither a file here nor a hub dataset that .*: \S") as caught:
        documents("some/where")
    assert "\n" not in str(caught.value)


def test_a_binary_file_with_the_name_of_a_text_file_is_an_error_that_names_the_byte(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"abc\xff\x00")
    with pytest.raises(DataError, match=r"text\.txt is not UTF-8 text \(invalid start byte at byte 3\)"):
        documents(file)


@pytest.mark.parametrize(("name", "words"), [("model.bin", ".bin"), ("README", "files without suffix")])
def test_a_file_of_another_kind_is_refused_with_the_kinds_that_can_be_read(tmp_path, name, words):
    (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=rf"{name}: cannot read {words}; give \.txt, .*\.parquet, .*\.ndjson files"):
        documents(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.jsonl", b'{"text": "a"\n{"te', "row 1 cannot be read as json \\("),
        ("broken.parquet", b"PAR1 nothing", "cannot be read as parquet: .*not a parquet file"),
    ],
)
def test_a_broken_table_is_an_error_of_one_line_that_says_what_is_broken(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{reason}") as caught:
        documents(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "columns",
    [
        [{"title": None}, {"title": "x"}],
        [{"id": 1}, {"id": "one"}],
        [{"id": 1}, {"name": "x"}],
        [{"tags": ["a"]}, {"tags": {"a": 1}}],
        [{"meta": {"a": 1}}, {"meta": None}],
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_columns_that_nobody_asked_for_may_be_anything(tmp_path, columns, form):
    for number, others in enumerate(columns):
        rows = [{"text": f"document {number}", **others}]
        if form == "jsonl":
            write_jsonl(tmp_path / f"{number}.jsonl", rows)
        else:
            datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{number}.parquet")
    assert sorted(documents(tmp_path)) == ["document 0", "document 1"]


def test_a_plan_names_files_absolutely_and_hub_datasets_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("text")
    assert data_name("book.txt") == str(tmp_path / "book.txt")
    assert data_name("someone/texts") == "someone/texts"


def test_a_plan_names_a_dataset_object_by_its_content():
    names = {data_name(datasets.Dataset.from_dict({"text": texts})) for texts in (["a"], ["a"], ["b"])}
    assert len(names) == 2


def stream_of(texts, column="text"):
    def rows():
        yield from rows_of(texts, column)

    return datasets.IterableDataset.from_generator(rows)


def test_an_iterable_dataset_is_read_and_read_again():
    stream = stream_of(TEXTS)
    first = documents(stream, seed=1)
    assert documents(stream, seed=1) == first
    assert documents(stream, seed=2) != first
    assert sorted(first) == sorted(TEXTS)


def test_a_plan_names_an_iterable_dataset_by_its_first_rows_and_reads_it_from_the_start_afterwards():
    streams = [stream_of(texts) for texts in (TEXTS, TEXTS, TEXTS[1:])]
    assert len({data_name(stream) for stream in streams}) == 2
    assert sorted(documents(streams[0])) == sorted(TEXTS)


def test_an_iterable_dataset_that_does_not_say_its_columns_is_refused_if_it_lacks_the_one_that_is_wanted():
    with pytest.raises(
        DataError, match="the IterableDataset has no column 'text' but body; choose one with --set text"
    ):
        documents(stream_of(TEXTS, "body"))


def test_a_dataset_of_several_splits_is_refused_with_their_names():
    whole = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": TEXTS}) for name in ("train", "test")})
    with pytest.raises(DataError, match=r"has the splits train, test; give one of them, such as data\['train'\]"):
        data_name(whole)


def test_the_sources_of_a_blend_have_shares_and_settings_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", rows_of(TEXTS))
    table = datasets.Dataset.from_dict({"body": TEXTS})
    blend = [
        {"path": "a.jsonl", "weight": 1},
        {"path": table, "weight": 2, "column": "body"},
        {"path": "someone/texts", "weight": 1, "config": "english", "split": "test"},
    ]
    sources = open_sources(blend, TextSettings(config="french"))
    assert [source.share for source in sources] == [0.25, 0.5, 0.25]
    assert [source.name for source in sources] == [str(tmp_path / "a.jsonl"), data_name(table), "someone/texts"]
    chosen = [(source.settings.column, source.settings.config, source.settings.split) for source in sources]
    assert chosen == [("text", "french", "train"), ("body", "french", "train"), ("text", "english", "test")]
    assert sorted(read_documents(sources[1].data, sources[1].settings, 0)) == sorted(TEXTS)


def test_a_blend_may_be_a_mapping_from_path_to_weight(tmp_path):
    files = [write_jsonl(tmp_path / name, rows_of(TEXTS)) for name in ("a.jsonl", "b.jsonl")]
    blend = {str(files[0]): 30, str(files[1]): 70}
    assert [source.share for source in open_sources(blend, TextSettings())] == [0.3, 0.7]
    assert data_name(blend) == [{"path": str(files[0]), "weight": 30.0}, {"path": str(files[1]), "weight": 70.0}]


def test_one_source_has_all_of_the_tokens():
    (source,) = open_sources("someone/texts", TextSettings())
    assert (source.name, source.data, source.share) == ("someone/texts", "someone/texts", 1.0)


def test_a_blend_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file matches .*nothing\.txt"):
        open_sources([{"path": tmp_path / "nothing.txt", "weight": 1}], TextSettings())


def test_documents_that_another_source_has_given_are_left_out():
    seen = set()
    first = list(read_documents(datasets.Dataset.from_dict({"text": TEXTS[:12]}), TextSettings(), 0, seen))
    second = list(read_documents(datasets.Dataset.from_dict({"text": TEXTS[8:]}), TextSettings(), 0, seen))
    assert (len(first), sorted(second)) == (12, sorted(TEXTS[12:]))


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_conversations_are_found_where_a_table_has_no_text(tmp_path):
    file = write_jsonl(tmp_path / "chat.jsonl", [{"id": 1, "messages": CHAT}])
    assert documents(file) == [Conversation(CHAT)]
    assert documents(datasets.Dataset.from_dict({"conversations": [CHAT]})) == [Conversation(CHAT)]
    assert documents(stream_of([CHAT], "messages")) == [Conversation(CHAT)]


def test_text_goes_before_conversations_unless_the_column_is_named(tmp_path):
    file = write_jsonl(tmp_path / "both.jsonl", [{"text": "plain", "messages": CHAT}])
    assert documents(file) == ["plain"]
    assert documents(file, column="messages") == [Conversation(CHAT)]


def test_a_conversation_comes_with_the_tools_of_its_row(tmp_path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    rows = [{"messages": CHAT, "tools": json.dumps(tools)}]
    assert documents(write_jsonl(tmp_path / "chat.jsonl", rows)) == [Conversation(CHAT, tools)]


def test_a_file_is_not_read_whole_before_its_first_document(tmp_path):
    file = tmp_path / "book.txt"
    paragraph = "A line of a book that is long enough to be read for a while.\n" * 65
    file.write_text("\n\n".join(f"{number}\n{paragraph}" for number in range(2000)))
    tracemalloc.start()
    next(iter(read_documents(file, TextSettings(), 0)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < file.stat().st_size / 2


def test_lines_may_end_as_they_do_on_windows(tmp_path):
    paragraphs = [letter * 2500 for letter in "abcd"]
    file = tmp_path / "book.txt"
    file.write_bytes("\r\n\r\n".join(paragraphs).encode())
    assert sorted(documents(file)) == ["\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:])]
