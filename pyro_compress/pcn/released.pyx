# cython: language_level=3
"""`context.code` without Python's lock, so that threads code several streams at a time."""

from pyro_compress.pcn.context cimport Coder, Mixture, Place, run


def code(Coder coder, long long[::1] values, long long rows, long long planes, long long height, long long width):
    """Arguments as for `context.code`."""
    if len(values) != rows * planes * height * width:
        raise ValueError("another number of values than rows, planes, height and width make")
    cdef Mixture mixture = Mixture(coder)
    cdef Place place = Place(planes, height, width)
    with nogil:
        run(mixture, place, values, rows, None)
    if coder.wrong:
        raise ValueError("a magnitude is larger than the format allows")
