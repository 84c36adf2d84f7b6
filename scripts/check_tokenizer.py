"""Prints the ids that Python's `tokenizers` gives a text, as JSON, and checks that they decode back to it.

    python scripts/check_tokenizer.py FOLDER TEXTFILE

FOLDER is a run or any folder with a tokenizer.json. If it has a tokenizer_config.json and `transformers` is
installed, the folder is also loaded with AutoTokenizer, which must give the same ids and the same text.
Needs: pip install tokenizers [transformers]
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer


def main(folder: Path, text_file: Path) -> None:
    # Bytes, not text mode: Python would turn "\r\n" into "\n".
    text = text_file.read_bytes().decode("utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text, "tokenizers decodes to another text"

    if (folder / "tokenizer_config.json").exists():
        try:
            from transformers import AutoTokenizer
        except ImportError:
            print("transformers is not installed: AutoTokenizer not checked", file=sys.stderr)
        else:
            auto = AutoTokenizer.from_pretrained(folder)
            assert auto(text, add_special_tokens=False)["input_ids"] == ids, "AutoTokenizer gives other ids"
            assert auto.decode(ids) == text, "AutoTokenizer decodes to another text"
            print(f"AutoTokenizer agrees: {type(auto).__name__}, {len(auto)} tokens", file=sys.stderr)

    print(json.dumps(ids))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
