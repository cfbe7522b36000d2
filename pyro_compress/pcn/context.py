# cython: language_level=3, annotation_typing=False
"""Integers <-> bytes with a model that learns while it codes: a binary range coder under a mixture of contexts.

A tensor is read as rows of planes of `height × width` values (a row of a linear layer that looks at an image, a filter
of a convolution, a plain row with 1 × 1 planes). A value becomes binary decisions: zero or not, sign, magnitude in
unary. For each decision a handful of contexts (neighbouring pixels, how many non-zeros its column, row and plane had so
far, position) predict the bit; their predictions are mixed in the logistic domain with weights that follow the error
(Mahoney 2005, "Adaptive weighing of context models for lossless data compression").

Everything is integer arithmetic within 64 bits, so a file decodes to the same integers on every machine. This file is
plain Python and is also what Cython compiles (types stand in `context.pxd`): the compiled module, where there is one,
takes precedence and does the same, about a hundred times faster. The constants are part of the file format.
"""

from __future__ import annotations

from array import array

SLOTS = 4096
"""Contexts that each input of the mixer tells apart where a value may be zero."""
FEW = 256
"""The same for signs and magnitudes, whose contexts are few."""
INPUTS = 20
"""Most inputs of one mixer."""
MAX_UNARY = 20
"""Magnitudes up to this are unary; what exceeds it follows in Exp-Golomb code."""
MAX_MAGNITUDE = 1 << 15
"""Largest magnitude of a value."""
ZERO, SIGN, MAGNITUDE, ESCAPE = 0, 1, 2, 3


def squash_table() -> array[int]:
    """65536 / (1 + exp(-z)) for z = -12 ... 12 in steps of 1/64, by integer recurrence."""
    falling = [1 << 30]
    for _ in range(12 * 64):
        falling.append(falling[-1] * 1057094580 >> 30)  # times exp(-1/64)
    upper = [(1 << 46) // ((1 << 30) + value) for value in falling]
    return array("q", [65536 - value for value in reversed(upper)] + upper[1:])


def squash(table: array[int], z: int) -> int:
    """Probability (16 bits) of a logit in units of 1/4096, by linear interpolation; never 0 or 1."""
    z = min(max(z, -11 * 4096), 11 * 4096) + 12 * 4096
    index = z >> 6
    part = z & 63
    return (table[index] * (64 - part) + table[index + 1] * part) >> 6


def stretch_table(squashed: array[int]) -> array[int]:
    """Inverse of `squash`: the logit, in units of 1/4096, of every probability of 12 bits."""
    found = array("q", bytes(8 * 4096))
    z = -11 * 4096
    for index in range(4096):
        while z < 11 * 4096 and squash(squashed, z) < 16 * index + 8:
            z += 16
        found[index] = z
    return found


def rate_table() -> array[int]:
    """Step of an estimate that has seen n bits: 1 / (n + 1.5) in units of 1/65536."""
    return array("q", [131072 // (2 * n + 3) for n in range(LIMIT + 1)])


LIMIT = 1000
SQUASH = squash_table()
STRETCH = stretch_table(SQUASH)
RATE = rate_table()


class Coder:
    """A carry-propagating binary range coder with 32-bit range (as in LZMA), writing or reading.

    Attributes:
        decoding: whether it reads.
        data: what it reads.
        length: how many bytes that are.
        position: how many bytes it has read, at most four more than it needed.
        wrong: whether a magnitude was larger than the format allows.
    """

    def __init__(self, data: bytes | None = None):
        self.decoding = data is not None
        self.data = data or b""
        self.length = len(self.data)
        self.position = 0
        self.wrong = False
        self.low = 0
        self.range = 0xFFFFFFFF
        self.code = 0
        self.cache = 0
        self.pending = 1
        self.out = bytearray()
        if self.decoding:
            for _ in range(4):
                self.code = (self.code << 8) | self.next_byte()

    def next_byte(self) -> int:
        """The next byte; zeros behind the end."""
        self.position += 1
        if self.position > self.length:
            return 0
        return self.data[self.position - 1]

    def bit(self, bit: int, probability: int) -> int:
        """Write a bit whose probability of being 1 is given in 16 bits, or read and return one."""
        bound = (self.range >> 16) * probability
        if self.decoding:
            bit = 1 if self.code < bound else 0
        if bit:
            self.range = bound
        else:
            self.range -= bound
            if self.decoding:
                self.code -= bound
            else:
                self.low += bound
        while self.range < 1 << 24:
            self.range <<= 8
            if self.decoding:
                self.code = (self.code << 8) | self.next_byte()
            else:
                self.shift()
        return bit

    def shift(self) -> None:
        """Write the top byte of `low`, once it is known whether a carry reaches it."""
        if self.low < 0xFF000000 or self.low > 0xFFFFFFFF:
            carry = self.low >> 32
            while self.pending > 0:
                self.out.append((self.cache + carry) & 255)
                self.cache = 255
                self.pending -= 1
            self.cache = (self.low >> 24) & 255
        self.pending += 1
        self.low = (self.low & 0xFFFFFF) << 8

    def written(self) -> int:
        """Bytes so far, about: those that are still open included."""
        return len(self.out) + self.pending - 1

    def finish(self) -> bytes:
        """The shortest byte string that decodes to what was written; zeros at its end are left out."""
        for zeros in (24, 16, 8, 0):
            value = ((self.low + (1 << zeros) - 1) >> zeros) << zeros
            if value < self.low + self.range:
                self.low = value
                break
        for _ in range(5):
            self.shift()
        return bytes(self.out[1:]).rstrip(b"\0")


class Mixture:
    """Adaptive estimates of four kinds of decision, each mixed from the contexts that are set before a bit is coded.

    Attributes:
        chance: the probability, in 16 bits, that was last given to a value to be another than zero.
    """

    def __init__(self, coder: Coder):
        self.coder = coder
        self.squashed = SQUASH
        self.stretched = STRETCH
        self.rates = RATE
        places = INPUTS * (SLOTS + 3 * FEW)
        self.estimates = array("q", [1 << 21]) * places
        self.seen = array("q", bytes(8 * places))
        self.weights = array("q", bytes(8 * 4 * INPUTS))
        self.fresh = array("q", [1, 1, 1, 1])
        self.slots = array("q", bytes(8 * INPUTS))
        self.inputs = array("q", bytes(8 * INPUTS))
        self.contexts = 0
        self.extras = 0
        self.chance = 0

    def start(self) -> None:
        """Begin a decision: no contexts, no other inputs."""
        self.contexts = 0
        self.extras = 0

    def context(self, value: int) -> None:
        """Add a context."""
        self.slots[self.contexts] = value & (SLOTS - 1)
        self.contexts += 1

    def logit(self, value: int) -> None:
        """Add an input that is a logit already, after all contexts."""
        self.inputs[self.contexts + self.extras] = value
        self.extras += 1

    def bit(self, kind: int, bit: int) -> int:
        """Code one decision under the contexts that were set, and learn from it."""
        first = kind * INPUTS
        span = SLOTS if kind == ZERO else FEW
        base = 0 if kind == ZERO else INPUTS * (SLOTS + (kind - 1) * FEW)
        total = self.contexts + self.extras
        if self.fresh[kind]:
            self.fresh[kind] = 0
            for index in range(self.contexts):
                self.weights[first + index] = 65536 * START // (16 * self.contexts)
        z = 0
        for index in range(self.contexts):
            at = base + index * span + self.slots[index]
            count = self.seen[at]
            if count == 0 and index > 0:
                self.estimates[at] = self.estimates[base + self.slots[0]]
            logit = self.stretched[self.estimates[at] >> 10]
            self.inputs[index] = logit if count > 3 else (logit * (2 * count + 1)) >> 3
        for index in range(total):
            z += self.weights[first + index] * self.inputs[index]
        probability = squash(self.squashed, z >> 16)
        if kind == ZERO:
            self.chance = probability
        bit = self.coder.bit(bit, probability)
        error = ((bit << 16) - probability) * LEARNING
        for index in range(total):
            self.weights[first + index] += (error * self.inputs[index]) >> 24
        for index in range(self.contexts):
            at = base + index * span + self.slots[index]
            count = self.seen[at]
            change = ((bit << 22) - self.estimates[at]) * self.rates[count]
            self.estimates[at] = min(max(self.estimates[at] + (change >> 16), 1 << 10), (1 << 22) - (1 << 10))
            if count < LIMIT:
                self.seen[at] = count + 1
        return bit

    def density(self, count: int, seen: int, prior: int) -> int:
        """Logit of (count + 2 prior) / (seen + 2); `count` in sixteenths, `prior` as 16 bits."""
        probability = ((count << 12) + 2 * prior) // (seen + 2)
        return self.stretched[min(max(probability, 8), 65527) >> 4]


LEARNING = 20
START = 16


def bucket(count: int) -> int:
    """Roughly logarithmic class of a count, 0 to 6."""
    if count < 3:
        return count
    if count < 5:
        return 3
    if count < 9:
        return 4
    return 5 if count < 17 else 6


def sign(value: int) -> int:
    """-1, 0 or 1."""
    return (1 if value > 0 else 0) - (1 if value < 0 else 0)


class Place:
    """Where the value being coded lies, the values around it, and the counts of those before it.

    Attributes:
        row, plane, y, x: where it lies.
        column: the same within its row.
        left, up, up_left, up_right, left2, up2: the values around it.
        near, wide: how many of these, and of a wider neighbourhood, are not zero.
        around: non-zero values so far in the columns beside its own.
        total, seen: non-zero values so far, and all.
        row_count, row_sum: non-zero values of its row so far, and the sum of their signs.
        here: non-zero values of its row and plane so far.
        last: non-zero values of the row before.
    """

    def __init__(self, planes: int, height: int, width: int):
        self.planes = planes
        self.height = height
        self.width = width
        self.area = height * width
        self.column_counts = array("q", bytes(8 * planes * self.area))
        self.column_sums = array("q", bytes(8 * planes * self.area))
        self.plane_counts = array("q", bytes(8 * planes))
        self.total = self.seen = self.last = 0
        self.row = self.plane = self.y = self.x = self.column = 0
        self.row_count = self.row_sum = self.here = 0
        self.left = self.up = self.up_left = self.up_right = self.left2 = self.up2 = 0
        self.near = self.wide = self.around = 0

    def look(self, values: array[int], at: int) -> None:
        """Read what surrounds the value at a place."""
        x, y, width = self.x, self.y, self.width
        self.column = self.plane * self.area + y * width + x
        self.left = values[at - 1] if x > 0 else 0
        self.up = values[at - width] if y > 0 else 0
        self.up_left = values[at - width - 1] if x > 0 and y > 0 else 0
        self.up_right = values[at - width + 1] if y > 0 and x + 1 < width else 0
        self.left2 = values[at - 2] if x > 1 else 0
        self.up2 = values[at - 2 * width] if y > 1 else 0
        self.near = (self.left != 0) + (self.up != 0) + (self.up_left != 0) + (self.up_right != 0)
        self.near += (self.left2 != 0) + (self.up2 != 0)
        self.wide = 0
        self.around = 0
        if self.area > 1:
            for back in range(max(y - 3, 0), y + 1):
                for side in range(max(x - 3, 0), min(x + 4, width)):
                    if back < y or side < x:
                        self.wide += values[at + (back - y) * width + side - x] != 0
            self.around += self.column_counts[self.column - 1] if x > 0 else 0
            self.around += self.column_counts[self.column + 1] if x + 1 < width else 0
            self.around += self.column_counts[self.column - width] if y > 0 else 0
            self.around += self.column_counts[self.column + width] if y + 1 < self.height else 0

    def count(self, value: int) -> None:
        """Add the value that was coded to the counts."""
        self.seen += 1
        if value != 0:
            self.column_counts[self.column] += 1
            self.column_sums[self.column] += sign(value)
            self.plane_counts[self.plane] += 1
            self.total += 1
            self.row_count += 1
            self.row_sum += sign(value)
            self.here += 1


def code(
    coder: Coder,
    values: array[int],
    rows: int,
    planes: int,
    height: int,
    width: int,
    chances: array[int] | None = None,
) -> None:
    """Code `rows × planes × height × width` integers in place: written from `values`, or read into it.

    `chances`, if given, receives the probability (in 16 bits) that each value was given to be another than zero.

    Raises:
        ValueError: a magnitude of `MAX_MAGNITUDE` or more; another number of values.
    """
    if len(values) != rows * planes * height * width:
        raise ValueError("another number of values than rows, planes, height and width make")
    run(Mixture(coder), Place(planes, height, width), values, rows, chances)
    if coder.wrong:
        raise ValueError("a magnitude is larger than the format allows")


def run(mixture: Mixture, place: Place, values: array[int], rows: int, chances: array[int] | None) -> None:
    """Code rows of values; whether one was too large is told by the coder's `wrong`."""
    at = 0
    for row in range(rows):
        place.row = row
        place.row_count = place.row_sum = 0
        for plane in range(place.planes):
            place.plane = plane
            place.here = 0
            for y in range(place.height):
                place.y = y
                for x in range(place.width):
                    place.x = x
                    place.look(values, at)
                    values[at] = code_value(mixture, place, values[at])
                    if chances is not None:
                        chances[at] = mixture.chance
                    place.count(values[at])
                    at += 1
        place.last = place.row_count


def code_value(mixture: Mixture, place: Place, known: int) -> int:
    """Code one value from what surrounds it; returns it. `known` is not looked at in reading."""
    if code_presence(mixture, place, known) == 0:
        return 0
    negative = code_sign(mixture, place, known)
    size = code_magnitude(mixture, place, abs(known))
    return -size if negative else size


def code_presence(mixture: Mixture, place: Place, known: int) -> int:
    """Code whether the value is another than zero."""
    area, column, row = place.area, place.column, place.row
    left_up = (place.left != 0) + 2 * (place.up != 0)
    pattern = left_up + 4 * (place.up_left != 0) + 8 * (place.up_right != 0)
    in_column, in_plane = place.column_counts[column], place.plane_counts[place.plane]
    prior = ((place.total * 10 + 3) << 16) // (place.seen * 10 + 100)

    mixture.start()
    mixture.context(0)
    mixture.context(bucket(in_column) * 8 + bucket(place.row_count))
    if area > 1:
        mixture.context(pattern)
        mixture.context(bucket(in_column) * 8 + bucket(place.around))
        mixture.context((place.y >> 1) * 64 + (place.x >> 1))
        mixture.context(place.near * 8 + bucket(in_column + place.around))
        mixture.context(min(place.wide, 15) * 8 + min(place.near, 7))
    else:
        mixture.context(bucket(in_column) * 8 + min(row, 7))
        mixture.context(bucket(place.row_count) * 8 + bucket(column))
    mixture.context(column)
    if place.planes > 1:
        mixture.context(bucket(place.here) * 8 + bucket(in_plane))
    mixture.logit(mixture.density(in_column * 16, row, prior))
    mixture.logit(mixture.density(place.row_count * 16, column, prior))
    if row > 0:
        left_over = max(place.last - place.row_count, 0)
        mixture.logit(mixture.density(left_over * 16, place.planes * area - column, prior))
    else:
        mixture.logit(0)
    if area > 1:
        before = place.y * place.width + place.x
        mixture.logit(mixture.density(place.around * 4, row, prior))
        mixture.logit(mixture.density(place.wide * 16, 24, prior))
        if place.planes > 1:
            mixture.logit(mixture.density(in_plane * 16, row * area + before, prior))
            mixture.logit(mixture.density(place.here * 16, before, prior))
    mixture.logit(1229)
    return mixture.bit(ZERO, known != 0)


def code_sign(mixture: Mixture, place: Place, known: int) -> int:
    """Code whether a value other than zero is negative."""
    left, up, up_left, up_right = sign(place.left), sign(place.up), sign(place.up_left), sign(place.up_right)
    mixture.start()
    mixture.context(0)
    mixture.context((left + 1) * 3 + up + 1)
    mixture.context(left + up + up_left + up_right + 4)
    mixture.context((((left + 1) * 3 + up + 1) * 3 + up_left + 1) * 3 + up_right + 1)
    mixture.context((min(max(place.column_sums[place.column], -2), 2) + 2) * 3 + sign(place.row_sum) + 1)
    return mixture.bit(SIGN, known < 0)


def code_magnitude(mixture: Mixture, place: Place, known: int) -> int:
    """Code the magnitude of a value other than zero."""
    largest = min(3, max(abs(place.left), abs(place.up)))
    in_column = bucket(place.column_counts[place.column])
    for size in range(1, MAX_UNARY + 1):
        mixture.start()
        mixture.context(size)
        mixture.context(size * 4 + largest)
        mixture.context(size * 8 + place.near)
        mixture.context(size * 8 + in_column)
        if mixture.bit(MAGNITUDE, known > size) == 0:
            return size
    return code_rest(mixture, known)


def code_rest(mixture: Mixture, known: int) -> int:
    """Code a magnitude above `MAX_UNARY` in Exp-Golomb code."""
    rest = known - MAX_UNARY
    length = 1
    while True:
        mixture.start()
        mixture.context(length)
        if mixture.bit(ESCAPE, rest >> length != 0) == 0:
            break
        length += 1
        if length > 15:
            mixture.coder.wrong = True
            return MAX_UNARY
    found = 1
    for place in range(length - 2, -1, -1):
        found = 2 * found + mixture.coder.bit((rest >> place) & 1, 32768)
    return found + MAX_UNARY
