"""Memory that Python freed, given back to the kernel through ctypes: the C library keeps it."""

import ctypes

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other C libraries have none, and keep less."""


def give_back() -> None:
    """Give back what is free within the heaps of all threads, not only at their ends.

    Tables of all known files are made anew with each scan, and lie between what is kept.
    """
    if _trim is not None:
        _trim(ctypes.c_size_t(0))
