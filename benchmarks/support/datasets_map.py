"""Hugging Face's part of `benchmarks/token_shards.py`: a file of JSON lines through `datasets.map`, into Arrow files.

    python datasets_map.py HOW FILE MODEL CACHE PROCESSES

HOW is `tokenizers`, `tokenizers words` or `sentencepiece`; MODEL is the tokenizer's file. Prints the seconds that
reading the file and mapping it took, and the number of tokens.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def tokenizer_of(how: str, model: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that is mapped over batches of rows."""
    if how == "sentencepiece":
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=model)
        return lambda rows: {"ids": processor.encode(rows["text"], num_threads=1)}
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(model)
    return lambda rows: {"ids": [e.ids for e in tokenizer.encode_batch_fast(rows["text"], add_special_tokens=False)]}


def main() -> None:
    how, file, model, cache, processes = sys.argv[1:]
    import datasets

    datasets.disable_progress_bars()
    begun = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
    read = time.perf_counter()
    mapped = rows.map(tokenizer_of(how, model), batched=True, num_proc=int(processes), remove_columns=rows.column_names)
    done = time.perf_counter()
    tokens = sum(len(chunk.flatten()) for chunk in mapped.data.column("ids").chunks)
    print(json.dumps({"read": read - begun, "map": done - read, "tokens": tokens, "rows": len(mapped)}))


if __name__ == "__main__":
    main()
