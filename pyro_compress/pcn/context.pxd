# Types for Cython; the program is context.py. Nothing but the writing of a byte needs Python's lock.
cimport cython

cdef long long SLOTS, FEW, INPUTS, MAX_UNARY, MAX_MAGNITUDE, ZERO, SIGN, MAGNITUDE, ESCAPE, LIMIT, LEARNING, START

@cython.locals(index=cython.longlong, part=cython.longlong)
cdef long long squash(long long[::1] table, long long z) noexcept nogil

cdef class Coder:
    cdef public bint decoding, wrong
    cdef const unsigned char[::1] data
    cdef public long long length, position, low, range, code, cache, pending
    cdef public bytearray out
    cdef long long next_byte(self) noexcept nogil
    @cython.locals(bound=cython.longlong)
    cdef long long bit(self, long long bit, long long probability) noexcept nogil
    @cython.locals(carry=cython.longlong)
    cdef void shift(self) noexcept with gil

cdef class Mixture:
    cdef Coder coder
    cdef long long[::1] squashed, stretched, rates, estimates, seen, weights, fresh, slots, inputs
    cdef long long contexts, extras, chance
    cdef void start(self) noexcept nogil
    cdef void context(self, long long value) noexcept nogil
    cdef void logit(self, long long value) noexcept nogil
    @cython.locals(first=cython.longlong, span=cython.longlong, base=cython.longlong, total=cython.longlong, index=cython.longlong, z=cython.longlong,
                   at=cython.longlong, count=cython.longlong, logit=cython.longlong, probability=cython.longlong,
                   error=cython.longlong, change=cython.longlong)
    cdef long long bit(self, long long kind, long long bit) noexcept nogil
    @cython.locals(probability=cython.longlong)
    cdef long long density(self, long long count, long long seen, long long prior) noexcept nogil

cdef long long bucket(long long count) noexcept nogil
cdef long long sign(long long value) noexcept nogil

cdef class Place:
    cdef long long planes, height, width, area, total, seen, last, row, plane, y, x, column, row_count, row_sum, here
    cdef long long left, up, up_left, up_right, left2, up2, near, wide, around
    cdef long long[::1] column_counts, column_sums, plane_counts
    @cython.locals(x=cython.longlong, y=cython.longlong, width=cython.longlong, back=cython.longlong,
                   side=cython.longlong)
    cdef void look(self, long long[::1] values, long long at) noexcept nogil
    cdef void count(self, long long value) noexcept nogil

@cython.locals(at=cython.longlong, row=cython.longlong, plane=cython.longlong, y=cython.longlong, x=cython.longlong)
cdef void run(Mixture mixture, Place place, long long[::1] values, long long rows, long long[::1] chances) noexcept nogil

cpdef code(Coder coder, long long[::1] values, long long rows, long long planes, long long height, long long width,
           long long[::1] chances=*)

@cython.locals(negative=cython.longlong, size=cython.longlong)
cdef long long code_value(Mixture mixture, Place place, long long known) noexcept nogil

@cython.locals(area=cython.longlong, column=cython.longlong, row=cython.longlong, left_up=cython.longlong,
               pattern=cython.longlong, in_column=cython.longlong, in_plane=cython.longlong, prior=cython.longlong,
               left_over=cython.longlong, before=cython.longlong)
cdef long long code_presence(Mixture mixture, Place place, long long known) noexcept nogil

@cython.locals(left=cython.longlong, up=cython.longlong, up_left=cython.longlong, up_right=cython.longlong)
cdef long long code_sign(Mixture mixture, Place place, long long known) noexcept nogil

@cython.locals(largest=cython.longlong, in_column=cython.longlong, size=cython.longlong)
cdef long long code_magnitude(Mixture mixture, Place place, long long known) noexcept nogil

@cython.locals(rest=cython.longlong, length=cython.longlong, found=cython.longlong, place=cython.longlong)
cdef long long code_rest(Mixture mixture, long long known) noexcept nogil
