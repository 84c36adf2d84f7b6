#!/usr/bin/env python3
"""Writes tests/fixtures/texts.parquet, as pyarrow does: what Hugging Face's datasets come in.

    python3 scripts/make_parquet.py

Needs pyarrow. The file has 60 rows in three groups, the texts compressed by zstd and in a dictionary, one of them null and
one empty; beside them a column of numbers and one of lists.
"""

import pathlib

import pyarrow
import pyarrow.parquet

TEXTS = [f"Document {n // 2} says good mörning.\n" for n in range(58)] + [None, ""]


def main():
    table = pyarrow.table(
        {
            "id": pyarrow.array(range(len(TEXTS)), pyarrow.int64()),
            "content": pyarrow.array(TEXTS, pyarrow.string()),
            "tags": pyarrow.array([["a", "b"]] * len(TEXTS), pyarrow.list_(pyarrow.string())),
        }
    )
    path = pathlib.Path(__file__).parent.parent / "tests" / "fixtures" / "texts.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=20)
    print(path)


if __name__ == "__main__":
    main()
