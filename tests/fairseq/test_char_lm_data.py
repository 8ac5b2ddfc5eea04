"""Text of the recipe: where it is found, how it is split, and how fairseq reads it."""

import zipfile
from types import SimpleNamespace

import pytest
from rich.progress import Progress

from lf_backend.errors import LFError
from lf_fairseq.recipes import binarise, corpus


@pytest.fixture
def small(monkeypatch):
    """A corpus as distributed, but of 2,000 bytes."""
    monkeypatch.setattr(corpus, "DISTRIBUTED_BYTES", 2000)
    return bytes(index * 7 % 256 for index in range(2000))


def test_a_folder_as_distributed_is_split_90_5_5(tmp_path, small):
    (tmp_path / "text8").write_bytes(small)
    found = corpus.load(tmp_path)
    splits = found.splits()
    assert found.name == "text8"
    assert [len(text) for text in splits.values()] == [1800, 100, 100]
    assert b"".join(splits.values()) == small
    assert list(splits) == ["train", "valid", "test"]


def test_the_published_sizes_are_split_as_in_the_literature():
    splits = corpus.Corpus("enwik8", bytes(corpus.DISTRIBUTED_BYTES)).splits()
    assert [len(text) for text in splits.values()] == [90_000_000, 5_000_000, 5_000_000]


def test_a_zip_is_read(tmp_path, small):
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", small)
    assert corpus.load(tmp_path) == corpus.Corpus("enwik8", small)


def test_a_folder_without_the_files_says_what_was_looked_for(tmp_path):
    message = "--data: a folder with one of text8, text8.zip, enwik8, enwik8.zip wanted, .* has none of them"
    with pytest.raises(LFError, match=message):
        corpus.load(tmp_path)
    with pytest.raises(LFError, match=message):
        corpus.load(tmp_path / "missing")


def test_two_corpora_or_a_part_of_one_are_refused(tmp_path, small):
    (tmp_path / "text8").write_bytes(small[:-1])
    with pytest.raises(LFError, match=r"2,000 bytes of text8 wanted, .*text8 holds 1,999"):
        corpus.load(tmp_path)
    (tmp_path / "enwik8").write_bytes(small)
    with pytest.raises(LFError, match=r"has both .*text8 and .*enwik8"):
        corpus.load(tmp_path)


def test_a_zip_that_holds_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("readme", "no text")
    with pytest.raises(LFError, match=r"text8 inside .*text8\.zip wanted, got .*no item named 'text8'"):
        corpus.load(tmp_path)


def test_the_standard_library_is_some_megabytes_of_text():
    one, two = corpus.standard_library(), corpus.load(None)
    assert one == two
    assert len(one.content) > 3_000_000
    assert b"def " in one.content[:100_000]


def test_what_differs_between_machines_is_left_out(tmp_path):
    for name in ("a.py", "b/c.py", "site-packages/d.py", "test/e.py", "_sysconfigdata_x.py", "config-3/f.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert sorted(corpus.standard_library(tmp_path).content.decode().split(".py")) == ["", "a", "b/c"]


def test_no_sources_is_an_error(tmp_path):
    with pytest.raises(LFError, match="Python's standard library has no sources at"):
        corpus.standard_library(tmp_path)


def test_fairseq_reads_every_byte_in_order(tmp_path, small):
    from fairseq import data
    from fairseq.tasks.language_modeling import LanguageModelingTask

    text = corpus.Corpus("text8", small * 5)
    with Progress(disable=True) as progress:
        record = binarise.binarise(text, tmp_path, progress)
    assert record["splits"] == {"train": 9000, "valid": 500, "test": 500}
    dictionary = data.Dictionary.load(str(tmp_path / "dict.txt"))
    assert len(dictionary) == 256 + 4
    table = {dictionary.index(binarise.symbol(byte)): byte for byte in range(256)}
    for split, wanted in text.splits().items():
        found = data.data_utils.load_indexed_dataset(str(tmp_path / split), dictionary, None)
        read = [table[int(token)] for index in range(len(found)) for token in found[index]]
        assert bytes(read) == wanted
    options = SimpleNamespace(
        data=str(tmp_path),
        output_dictionary_size=-1,
        tokens_per_sample=64,
        sample_break_mode="none",
        dataset_impl=None,
        shorten_method="none",
        shorten_data_split_list="",
        seed=1,
        use_plasma_view=False,
        plasma_path="",
        pad_to_fixed_length=False,
        pad_to_fixed_bsz=False,
        add_bos_token=False,
    )
    task = LanguageModelingTask.setup_task(options)
    task.load_dataset("valid")
    first = task.datasets["valid"][1]
    assert [table[int(token)] for token in first["target"]] == list(text.splits()["valid"][64:128])
    assert [table[int(token)] for token in first["source"]] == list(text.splits()["valid"][63:127])


def test_text_is_binarised_once_and_never_mixed(tmp_path, small):
    with Progress(disable=True) as progress:
        binarise.binarise(corpus.Corpus("text8", small), tmp_path, progress)
        before = (tmp_path / "train.bin").stat().st_mtime_ns
        binarise.binarise(corpus.Corpus("text8", small), tmp_path, progress)
        assert (tmp_path / "train.bin").stat().st_mtime_ns == before
        with pytest.raises(
            LFError, match=r"data of enwik8 .* wanted, got that of text8 .*give another --out"
        ):
            binarise.binarise(corpus.Corpus("enwik8", small[::-1]), tmp_path, progress)


def test_symbols_are_distinct_and_print():
    symbols = [binarise.symbol(byte) for byte in range(256)]
    assert len(set(symbols)) == 256
    assert (symbols[32], symbols[97], symbols[10]) == ("0x20", "a", "0x0a")
    assert all(symbol.isprintable() and " " not in symbol for symbol in symbols)
