"""Attention on CPUs by kernels of our own, compiled when the package is built.

A call is one parallel region: tasks are taken from a counter, so that a busy core holds up nobody. Queries
lie in the lanes of vectors, keys stream past them, and one softmax goes over all windows and global columns.

    backend.py   the face to the registry
    library.py   the compiled library: finding it, and what it can run here
    arguments.py a call as the library reads it
    src/         C++; `call.h` is the border, `unit.cpp` is compiled once for each instruction set, and
                 products are those of `products.h`, or of `tiles.h` for bfloat16 with its own instructions

Without a C++ compiler at build time there is no library, which is a reason against this backend and no error.
"""

from lf_backend.backends.native.backend import Native

__all__ = ["Native"]
