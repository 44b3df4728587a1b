"""A disk that is full."""

import contextlib
import resource


@contextlib.contextmanager
def small_disk(most):
    """The process's limit of a file's size, in bytes: the system refuses what goes beyond, as a
    full disk does.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
