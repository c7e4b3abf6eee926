"""Independent work on threads of its own, with BLAS on one thread in each.

One sequence on each core is faster than all cores on one product at a time: what lies between the products runs in
parallel too, and no core waits for another. NumPy lets go of the interpreter's lock inside its loops.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from os import cpu_count
from typing import TypeVar

from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")
_spreading = threading.Lock()


def spread(function: Callable[[slice], _T], count: int) -> list[_T]:
    """Call a function on contiguous slices of range(count), one for each thread that BLAS is set to use.

    Args:
        function: called with a slice; what it computes for an item must not depend on the slice it came in.
        count: how many items there are.

    Returns:
        The results in order. One item, one thread, or a caller that is itself within `spread`: a single call with all
        of the items, and BLAS as it is.
    """
    libraries = _blas().lib_controllers
    threads = max((library.num_threads for library in libraries), default=cpu_count() or 1)
    parts = min(threads, count)
    # The limit belongs to the process: two callers that each restored what they found would leave it in place.
    if parts <= 1 or not _spreading.acquire(blocking=False):
        return [function(slice(0, count))]
    try:
        slices = [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
        with _blas().limit(limits=1), ThreadPoolExecutor(parts) as pool:
            return list(pool.map(function, slices))
    finally:
        _spreading.release()


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
