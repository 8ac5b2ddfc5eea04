"""Settings of the integration's tests, and what fairseq itself warns of or has lost."""

import logging
import types
import warnings
from importlib.util import find_spec

import numpy
import pytest
import torch

collect_ignore_glob = [] if find_spec("fairseq") else ["test_*"]

# fairseq's own, on torch 2.13 and Python 3.11; a warning of anything else is an error, as everywhere.
WARNINGS = (
    r"ignore:.torch\.jit\.script. is deprecated:DeprecationWarning",  # decorates at import
    r"ignore:.torch\.jit\.export. is deprecated:DeprecationWarning",
    r"ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning",  # its dense attention
    r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",  # its LM task
    r"ignore:'pin_memory' argument is set as true:UserWarning",  # its loaders
    r"ignore:hydra\.experimental\.\w+\(\) is no longer experimental:UserWarning",  # written for hydra 1.0
    r"ignore:\nThe version_base parameter is not specified:UserWarning",
    r"ignore:In 'config'. Usage of deprecated keyword in package header:UserWarning",
    r"ignore:\n'config' is validated against ConfigStore schema:UserWarning",
    r"ignore:\nThe strict flag in the compose API is deprecated:UserWarning",
    r"ignore:.torch\.cuda\.amp\.autocast.* is deprecated:FutureWarning",
)

if find_spec("fairseq"):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".torch\.jit\.\w+. is deprecated", DeprecationWarning)
        import fairseq  # noqa: F401

if not hasattr(numpy, "compat"):  # gone in numpy 2; fairseq reads numpy.compat.long where it breaks at "eos"
    numpy.compat = types.SimpleNamespace(long=numpy.int64)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.startswith("tests/fairseq/"):
            for text in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(text))


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_logs_are_kept():
    """fairseq-preprocess leaves its log file to the process, and its folder may be gone by then."""
    yield
    for logger in list(logging.root.manager.loggerDict.values()):
        for handler in list(getattr(logger, "handlers", ())):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()
