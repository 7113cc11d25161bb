"""Have the C library keep freed memory, so that a step does not page in anew what it needs."""

import ctypes
import platform
from collections.abc import Callable

__all__ = ["keep_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = -1


def keep_memory(tell: Callable[..., None]) -> None:
    """From now on, and to the end of the process, glibc gives no freed memory back.

    Blocks of any size then come from the heap, whose end is never trimmed. Elsewhere nothing
    happens, and the event ``memory_not_kept`` tells why.
    """
    library, _ = platform.libc_ver()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if library == "glibc" else None
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER))
    if mallopt is None or not all(mallopt(*setting) for setting in settings):
        reason = f"the C library is {library or platform.system()}, not glibc"
        tell("memory_not_kept", reason=reason)
