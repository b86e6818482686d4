"""What a folder or a glob holds: what is read of it, and what is passed over by name."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_nas.errors import DataError
from minitron_nas.storage.run_folder import RunFolder, beginning
from minitron_nas.text.listing import list_files
from minitron_nas.text.settings import TextSettings
from minitron_nas.text.sources import data_fingerprint, data_name, read_documents, read_in_order


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


def documents(data, **settings):
    return sorted(read_documents(str(data), TextSettings(**settings), 0))


def fill(folder, names):
    """Write files, each of which says its own name as text; return the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(".parquet"):
            pq.write_table(pa.table({"text": [name]}), path)
        elif "json" in path.suffix.lower():
            path.write_text(json.dumps({"text": name}) + "\n")
        else:
            path.write_text(name)
    return folder


def zst_compress(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst_compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("inner", [".jsonl", ".JSON", ".txt"])
def test_compressed_files_are_read_beside_others(tmp_path, packed, inner):
    fill(tmp_path, ["a" + inner])
    content = b'{"text": "packed"}\n{"text": "twice"}\n' if "js" in inner.lower() else b"packed\n\ntwice"
    (tmp_path / f"b{inner}{packed.upper()}").write_bytes(PACK[packed](content))
    found = documents(tmp_path)
    assert found == documents(f"{tmp_path}/*")
    assert found == sorted(["a" + inner, *(["packed", "twice"] if "js" in inner.lower() else ["packed\n\ntwice"])])


def test_members_of_a_compressed_file_are_all_read(tmp_path):
    rows = [b'{"text": "%d"}\n' % number for number in range(3)]
    for suffix, pack in PACK.items():
        (tmp_path / f"rows.jsonl{suffix}").write_bytes(b"".join(map(pack, rows)))
        assert documents(tmp_path / f"rows.jsonl{suffix}") == ["0", "1", "2"]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("damage", ["cut", "not packed"])
def test_a_broken_compressed_file_is_named(tmp_path, packed, damage):
    whole = PACK[packed](json.dumps({"text": "text " * 1000}).encode())
    file = tmp_path / f"a.jsonl{packed}"
    file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b'{"text": "plain"}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl\{packed} cannot be unpacked as \{packed} \(.*\); fetch"):
        documents(file)


FOLDERS = {
    "capitals": (["A.JSONL", "B.TXT.old"], ["A.JSONL"], [".old is not read: B.TXT.old"]),
    "hidden": (["a.txt", ".b.txt", ".cache/c.txt", "__MACOSX/a.txt"], ["a.txt"], ["3 files (hidden: .b.txt, ...)"]),
    "a card alone": (["a.md", "README.md"], ["a.md"], ["card, licence or metadata: README.md"]),
    "licences": (
        ["a.txt", "LICENSE", "LICENSE.txt", "LICENCE-APACHE.txt", "NOTICE.md", "readme_zh.md", "CITATION.txt"],
        ["a.txt"],
        ["6 files (card, licence or metadata: CITATION.txt, ...)"],
    ),
    "no licence": (["notice-of-motion.txt", "readmes.txt"], ["notice-of-motion.txt", "readmes.txt"], []),
    "metadata": (["a.jsonl", "dataset_infos.json", "metadata.json"], ["a.jsonl"], ["dataset_infos.json"]),
    "prose beside tables": (
        ["data/a.jsonl", "urls.txt", "data/about.rst", "books/b.txt"],
        ["books/b.txt", "data/a.jsonl"],
        ["prose beside tables: data/about.rst, ..."],
    ),
    "other kinds": (
        ["a.txt", "b.csv", "c.csv", "d.zip", "e.csv.gz"],
        ["a.txt"],
        ["2 files (.csv is", ".zip is"],
    ),
    "packed tables": (["a.jsonl", "b.parquet.gz"], ["a.jsonl"], [".parquet.gz is not read"]),
    "splits by file": (
        ["train.jsonl", "test.jsonl", "dev.jsonl", "Validation-00000.jsonl"],
        ["train.jsonl"],
        ["split test: test.jsonl", "split validation: Validation-00000.jsonl, ..."],
    ),
    "splits by folder": (["train/a.txt", "test/b.txt", "val/c.txt"], ["train/a.txt"], ["split test: test/b.txt"]),
    "wikitext": (["wiki.train.txt", "wiki.test.txt", "wiki.valid.txt"], ["wiki.train.txt"], ["split test"]),
    "shards": (
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["split test: data/test-00000-of-00001.parquet"],
    ),
    "no split": (
        ["latest.jsonl", "contest.txt", "dev2/a.txt"],
        ["latest.jsonl", "dev2/a.txt"],
        ["contest.txt"],
    ),
    "splits by other names": (
        [
            "train.jsonl",
            "testData.jsonl",
            "tests.jsonl",
            "holdout.jsonl",
            "held-out.json",
            "aTestSet.json",
            "devset.txt",
        ],
        ["train.jsonl"],
        ["5 files (split test: aTestSet.json, ...)", "prose beside tables: devset.txt"],
    ),
    "prose of splits by other names": (
        ["train.txt", "testdata.txt", "heldout/a.txt", "valSet.md"],
        ["train.txt"],
        ["2 files (split test: heldout/a.txt, ...)", "split validation: valSet.md"],
    ),
    "prose is not so easily a split": (
        ["dev-diary.txt", "evaluation.md", "tests.rst", "withheld.txt"],
        ["dev-diary.txt", "evaluation.md", "tests.rst", "withheld.txt"],
        [],
    ),
    "others beside a test split": (["web.jsonl", "test.jsonl"], ["web.jsonl"], ["split test: test.jsonl"]),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_read_of_a_folder_and_what_is_passed_over_by_name(tmp_path, name):
    names, read, passed = FOLDERS[name]
    fill(tmp_path, names)
    listing = list_files(str(tmp_path), TextSettings())
    assert documents(tmp_path) == sorted(read)
    assert [str(file.relative_to(tmp_path)) for file in listing.files] == sorted(read)
    said = listing.about_passed_over()
    assert all(words in said for words in passed)
    assert sum(map(len, listing.passed_over.values())) == len(names) - len(read)


@pytest.mark.parametrize(
    ("split", "read"),
    [("test", ["test.jsonl"]), ("dev", ["val.jsonl"]), ("train+test", ["test.jsonl", "train.jsonl"])],
)
def test_a_split_that_is_asked_for_is_read(tmp_path, split, read):
    fill(tmp_path, ["train.jsonl", "test.jsonl", "val.jsonl"])
    assert documents(tmp_path, split=split) == read


@pytest.mark.parametrize(
    ("pattern", "read"),
    [
        ("*.jsonl", ["train.jsonl"]),
        ("test*.jsonl", ["test-1.jsonl", "test.jsonl"]),
        ("t*.jsonl", ["train.jsonl"]),
        ("test.jsonl", ["test.jsonl"]),
        ("*.txt", ["notes.txt"]),
        ("*", ["train.jsonl"]),
    ],
)
def test_a_glob_reads_the_split_that_it_names_and_else_the_one_of_the_settings(tmp_path, pattern, read):
    fill(tmp_path, ["train.jsonl", "test.jsonl", "test-1.jsonl", "notes.txt"])
    assert documents(tmp_path / pattern) == read


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    fill(tmp_path, ["data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl"])
    with pytest.raises(DataError, match=r"has the splits test_sft, train_sft, and none is 'train'; choose"):
        documents(tmp_path)
    assert documents(tmp_path, split="train_sft") == ["data/train_sft-00000-of-00001.jsonl"]
    fill(tmp_path / "other", ["test.jsonl"])
    with pytest.raises(DataError, match="has the splits test, and none is 'train'"):
        documents(tmp_path / "other")
    assert data_name(tmp_path / "other") == str(tmp_path / "other")


def test_the_card_of_a_clone_says_what_its_splits_are(tmp_path):
    fill(tmp_path, ["en/one.jsonl", "en/two.jsonl", "de/one.jsonl", "more.jsonl"])
    card = """---
configs:
- config_name: en
  default: true
  data_files:
  - split: train
    path: en/one.jsonl
  - {split: test, path: ["en/two*"]}
- config_name: de
  data_files: "de/*.jsonl"
---
# Card
"""
    (tmp_path / "README.md").write_text(card)
    assert documents(tmp_path) == ["en/one.jsonl"]
    assert documents(tmp_path, split="test") == ["en/two.jsonl"]
    assert documents(tmp_path, config="de") == ["de/one.jsonl"]
    assert "in no split: de/one.jsonl, ..." in list_files(str(tmp_path), TextSettings()).about_passed_over()
    with pytest.raises(DataError, match="has the configurations en, de, and none is 'fr'; choose one with --set text"):
        documents(tmp_path, config="fr")


LANGUAGES = [f"{language}/{split}-00000-of-00001.jsonl" for language in ("en", "fr") for split in ("train", "test")]


def test_a_folder_named_after_the_configuration_is_the_one_that_is_read(tmp_path):
    fill(tmp_path, LANGUAGES)
    (tmp_path / "README.md").write_text("no card")
    assert documents(tmp_path, config="en") == documents(tmp_path / "*" / "*", config="en") == [LANGUAGES[0]]
    assert documents(tmp_path, config="fr", split="test") == [LANGUAGES[3]]
    listing = list_files(str(tmp_path), TextSettings(config="en"))
    assert "2 files (not of configuration en: fr/test-00000-of-00001.jsonl, ...)" in listing.about_passed_over()
    assert documents(tmp_path / LANGUAGES[2], config="en") == [LANGUAGES[2]]  # which is named itself
    with pytest.raises(DataError, match="has no configuration 'de', .* only en, fr; choose one with --set text.config"):
        documents(tmp_path, config="de")
    with pytest.raises(DataError, match="has no configuration 'en', .* nor any other; choose"):
        documents(tmp_path / "fr", config="en")


def test_what_is_read_beside_a_split_without_being_of_one_is_said(tmp_path):
    fill(tmp_path, ["train.jsonl", "more.jsonl", "web.jsonl"])
    assert list_files(str(tmp_path), TextSettings()).split == "train and 2 files (in no split: more.jsonl, ...)"


def test_a_folder_that_datasets_saved_is_read(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "one")
    assert documents(tmp_path / "one") == ["a", "b"]
    assert documents(tmp_path) == ["a", "b"]
    both = {"train": ["a", "b"], "test": ["c"], "extra": ["d"]}
    splits = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": texts}) for name, texts in both.items()})
    splits.save_to_disk(tmp_path / "splits")
    assert documents(tmp_path / "splits") == ["a", "b"]
    assert documents(tmp_path / "splits", split="extra") == ["d"]


NAMES = [
    "a[1].jsonl",
    "a[1]/b.jsonl",
    "x::y.jsonl",
    "a=0.5.jsonl",
    "line\nbreak.jsonl",
    "*.jsonl",
    "{a,b}.parquet",
    "q?.txt",
]


@pytest.mark.parametrize("name", [*NAMES, "p[1].parquet", "x::y.parquet", "a=b,c.parquet", "%20#.parquet"])
def test_names_with_signs_that_mean_something_elsewhere_are_read(tmp_path, name):
    fill(tmp_path / "folder [0]", [name])
    assert documents(tmp_path / "folder [0]" / name) == [name]
    assert documents(tmp_path / "folder [0]") == [name]
    if "/" not in name:
        assert documents(f"{tmp_path}/folder [0]/*") == [name]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    fill(tmp_path, [name])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert documents(tmp_path) == [name]
    assert read_in_order(tmp_path, TextSettings()) == [name]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_pointer_in_the_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer, not the file itself; fetch it"):
        documents(tmp_path)


@pytest.mark.parametrize("content", [b"zero\0byte", "text".encode("utf-16"), "text".encode("utf-16-be")])
def test_a_text_file_that_is_no_text_is_named(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt is (no text: it holds a zero byte|not UTF-8 text \(.*\) but)"):
        documents(tmp_path)


def test_a_folder_of_nothing_to_read_says_what_lies_in_it(tmp_path):
    fill(tmp_path, ["README.md", "a.csv"])
    with pytest.raises(DataError, match=r"no file matches .*passed over: 1 file \(card.*README.md\), 1 file \("):
        data_name(tmp_path)


def test_the_fingerprint_changes_with_what_is_read_and_with_nothing_else(tmp_path):
    fill(tmp_path, ["train.jsonl", "test.jsonl", "README.md"])
    settings = TextSettings()
    first = data_fingerprint(str(tmp_path), settings)
    fill(tmp_path, ["test-2.jsonl", ".hidden.jsonl", "LICENSE.txt"])
    assert data_fingerprint(str(tmp_path), settings) == first
    changed = {data_fingerprint(str(tmp_path), TextSettings(split="test")), first}
    fill(tmp_path, ["train-2.jsonl"])
    changed.add(data_fingerprint(str(tmp_path), settings))
    changed.add(data_fingerprint(f"{tmp_path}/train-*", settings))
    (tmp_path / "train.jsonl").write_text('{"text": "other"}\n')
    changed.add(data_fingerprint(str(tmp_path), settings))
    assert len(changed) == 5


def test_a_run_among_its_own_text_reads_nothing_that_it_writes(tmp_path):
    fill(tmp_path, ["a.txt"])
    run, settings = RunFolder(tmp_path / "runs" / "x"), TextSettings()
    looks = [data_fingerprint(str(tmp_path), settings)]
    with run.lock():
        fill(run.path, ["work/now.json"])
        looks += [data_fingerprint(str(tmp_path), settings)]
        fill(run.path, ["plan.yaml", "ledger.jsonl", "tokens/about.json", "students/90k/config.json", "trials.parquet"])
        looks += [data_fingerprint(str(tmp_path), settings)]
    looks += [data_fingerprint(str(tmp_path), settings)]
    (run.path / ".lock").unlink()  # as where a run was brought from elsewhere
    looks += [data_fingerprint(str(tmp_path), settings)]
    assert len(set(looks)) == 1
    listing = list_files(str(tmp_path), settings)
    assert documents(tmp_path) == documents(f"{tmp_path}/**/*") == ["a.txt"]
    assert listing.about_passed_over() == (
        "passed over: 5 files (of a run, a step or a model: runs/x/ledger.jsonl, ...)"
    )


WRITTEN = {
    "a student": ["config.json", "model.safetensors", "tokenizer.json", "lineage.json"],
    "scores": ["scores.safetensors", "scores.parquet", "tokens.json"],
    "a comparison": ["comparison.parquet", "comparison.md"],
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_a_step_has_made_among_text_is_no_text(tmp_path, kind):
    fill(tmp_path, ["a.txt", "texts/config.json.txt"])
    fill(tmp_path / "out", WRITTEN[kind])
    assert documents(tmp_path) == ["a.txt", "texts/config.json.txt"]


def test_what_a_step_goes_on_from_is_no_text(tmp_path):
    fill(tmp_path, ["a.txt"])
    with beginning(tmp_path / "out.work"):
        fill(tmp_path / "out.work", ["training/job.json"])
        assert documents(tmp_path) == ["a.txt"]
    assert documents(tmp_path) == ["a.txt"]


def test_a_folder_of_a_run_is_read_where_it_is_named_itself(tmp_path):
    with RunFolder(tmp_path / "run").lock():
        fill(tmp_path / "run", ["rows.jsonl"])
        assert documents(tmp_path / "run") == documents(tmp_path / "run" / "*.jsonl") == ["rows.jsonl"]
