"""A corpus as the files that fairseq's language modeling task reads: one token for each byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import data_file_path, index_file_path, make_builder
from rich.progress import Progress

from lf_backend.errors import LFError
from lf_fairseq.recipes.corpus import Corpus

# fairseq reads whole items to fill a sequence: short ones, so that no sequence reads much more than itself.
ITEM = 4096
RECORD = "corpus.json"


def symbol(byte: int) -> str:
    """Name a byte for dict.txt: the character itself where it prints, else its number."""
    return chr(byte) if 33 <= byte <= 126 else f"0x{byte:02x}"


def binarise(corpus: Corpus, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write the splits and their dictionary to a folder, once; what `corpus.json` there records.

    Raises:
        LFError: the folder holds another corpus.
    """
    record = {
        "corpus": corpus.name,
        "sha256": corpus.sha256,
        "splits": {name: len(text) for name, text in corpus.splits().items()},
    }
    path = folder / RECORD
    if path.exists():
        found = json.loads(path.read_text("utf8"))
        if found["sha256"] != corpus.sha256:
            raise LFError(
                f"{folder}: data of {corpus.name} ({corpus.sha256[:12]}) wanted, got that of "
                f"{found['corpus']} ({found['sha256'][:12]}); give another --out"
            )
        return dict(found)
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = dictionary_of(corpus.content)
    dictionary.save(str(folder / "dict.txt"))
    for name, text in corpus.splits().items():
        write(folder / name, encode(text, dictionary), len(dictionary), progress)
    path.write_text(json.dumps(record, indent=1) + "\n", "utf8")  # last: all else is there
    return record


def dictionary_of(content: bytes) -> Dictionary:
    """A symbol for each byte that occurs, in the order of bytes."""
    dictionary = Dictionary()
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    for byte in np.flatnonzero(counts).tolist():
        dictionary.add_symbol(symbol(byte), n=int(counts[byte]))
    return dictionary


def encode(text: bytes, dictionary: Dictionary) -> np.ndarray:
    """Bytes to tokens, int32 [bytes]."""
    table = np.array([dictionary.index(symbol(byte)) for byte in range(256)], np.int32)
    return table[np.frombuffer(text, np.uint8)]


def write(prefix: Path, tokens: np.ndarray, vocabulary: int, progress: Progress) -> None:
    """A split for fairseq, as PREFIX.bin and PREFIX.idx.

    Args:
        tokens: int [tokens].
        vocabulary: number of different tokens.
    """
    builder = make_builder(data_file_path(str(prefix)), "mmap", vocab_size=vocabulary)
    for start in progress.track(range(0, len(tokens), ITEM), description=f"tokens of {prefix.name}"):
        builder.add_item(torch.from_numpy(tokens[start : start + ITEM]))
    builder.finalize(index_file_path(str(prefix)))
