# Types for Cython; the program is context.py.
cimport cython

cdef long long SLOTS, FEW, INPUTS, MAX_UNARY, MAX_MAGNITUDE, ZERO, SIGN, MAGNITUDE, ESCAPE, LIMIT, LEARNING, START

@cython.locals(index=cython.longlong, part=cython.longlong)
cdef long long squash(long long[::1] table, long long z)

cdef class Coder:
    cdef public bint decoding
    cdef public bytes data
    cdef public long long position, low, range, code, cache, pending
    cdef public bytearray out
    cdef long long next_byte(self)
    @cython.locals(bound=cython.longlong)
    cpdef long long bit(self, long long bit, long long probability)
    @cython.locals(carry=cython.longlong)
    cdef void shift(self)

cdef class Mixture:
    cdef Coder coder
    cdef long long[::1] squashed, stretched, rates, estimates, seen, weights, fresh, slots, inputs
    cdef long long contexts, extras
    cdef void start(self)
    cdef void context(self, long long value)
    cdef void logit(self, long long value)
    @cython.locals(first=cython.longlong, span=cython.longlong, base=cython.longlong, total=cython.longlong, index=cython.longlong, z=cython.longlong,
                   at=cython.longlong, count=cython.longlong, logit=cython.longlong, probability=cython.longlong,
                   error=cython.longlong, change=cython.longlong)
    cdef long long bit(self, long long kind, long long bit)
    @cython.locals(probability=cython.longlong)
    cdef long long density(self, long long count, long long seen, long long prior)

cdef long long bucket(long long count)
cdef long long sign(long long value)

cdef class Plane:
    cdef long long rows, planes, height, width, total, seen, last
    cdef long long[::1] column_counts, column_sums, plane_counts

@cython.locals(at=cython.longlong, row=cython.longlong, plane=cython.longlong, y=cython.longlong, x=cython.longlong,
               row_count=cython.longlong, row_sum=cython.longlong, here=cython.longlong, value=cython.longlong,
               column=cython.longlong, mixture=Mixture, state=Plane, rest=cython.longlong)
cpdef code(Coder coder, long long[::1] values, long long rows, long long planes, long long height, long long width)

@cython.locals(width=cython.longlong, area=cython.longlong, column=cython.longlong, left=cython.longlong,
               up=cython.longlong, up_left=cython.longlong, up_right=cython.longlong, left2=cython.longlong,
               up2=cython.longlong, pattern=cython.longlong, near=cython.longlong, counts="long long[::1]",
               in_column=cython.longlong, around=cython.longlong, in_plane=cython.longlong, prior=cython.longlong,
               known=cython.longlong, across=cython.longlong, negative=cython.longlong, largest=cython.longlong,
               size=cython.longlong, left_over=cython.longlong, wide=cython.longlong,
               back=cython.longlong, side=cython.longlong)
cdef long long code_value(Mixture mixture, Plane state, long long[::1] values, long long at, long long row,
                          long long plane, long long y, long long x, long long row_count, long long row_sum,
                          long long here) except? -32768

@cython.locals(rest=cython.longlong, length=cython.longlong, found=cython.longlong, place=cython.longlong)
cdef long long code_rest(Mixture mixture, long long known) except? -32768
