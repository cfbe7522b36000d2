"""The parts of a generated C file that are the same for every network, but for the `name_` and `NAME_` in it."""

HOW_TO = """\
Compile this file, repeat its declarations where it is used (they follow the numbers below), and call

    name_run(input, n, output, workspace);

with n examples of NAME_INPUTS {value} values each, one behind the other,
room for n times NAME_OUTPUTS floats of output,
and NAME_WORKSPACE floats of workspace, of any content; every thread needs its own.

It allocates nothing, keeps no state and calls nothing but libm. Examples are worked off in blocks, fewer than a
quarter of a block one by one. With -DNAME_LANES=1 there are no blocks: less code, less workspace.

As a program it reads examples from standard input and prints what the network says of each:

    cc -O3 -march=native -DNAME_MAIN {file} -o {program} -lm
    ./{program} < examples
"""

DECLARATIONS = """
#ifdef __cplusplus
extern "C" {
#endif
void name_run(const name_value *input, size_t n, float *output, float *workspace);
extern const size_t name_sizes[4];
extern const float name_scale;
{declared}#ifdef __cplusplus
}
#endif

/* for whoever loads it at run time: inputs, bytes of an input value, outputs, floats of workspace */
const size_t name_sizes[4] = {NAME_INPUTS, sizeof(name_value), NAME_OUTPUTS, NAME_WORKSPACE};
{labels}
#define LANES NAME_LANES

/* Vectors where the compiler has them; elsewhere the same code runs number by number. */
#if defined(__AVX__) && defined(__GNUC__)
#define VECTOR 8
#elif defined(__GNUC__)
#define VECTOR 4
#else
#define VECTOR 1
#endif
#if defined(__GNUC__)
typedef float vector __attribute__((vector_size(4 * VECTOR), aligned(4), may_alias));
#else
typedef float vector;
#endif
/* a vector in memory; how many of them cover n values; where the j-th begins (the last may overlap the one before) */
#define AT(p) (*(vector *)(p))
#define FROM(p) (*(const vector *)(p))
#define VECTORS(n) (((n) + VECTOR - 1) / VECTOR)
#define PLACE(j, n) ((j) * VECTOR + VECTOR <= (n) ? (j) * VECTOR : (n) - VECTOR)

#if defined(__cplusplus) || !defined(__STDC_VERSION__) || __STDC_VERSION__ < 199901L
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif
"""

RUN = """
void name_run(const name_value *input, size_t n, float *output, float *workspace)
{
float *const front = workspace + {raw}, *const block = workspace + {front};
while (n > 0) {
size_t taken = 1;
#if LANES > 1
if (4 * n >= LANES) {
taken = n < LANES ? n : LANES;
take_block(input, taken, workspace);
const float *found = run_back_lanes(block, block + {crossing} * LANES);
for (size_t l = 0; l < taken; l++)
for (size_t i = 0; i < NAME_OUTPUTS; i++)
output[l * NAME_OUTPUTS + i] = found[i * LANES + l];
} else
#endif
{
const float *found = run_back(run_front(as_floats(input, workspace), front), block);
for (size_t i = 0; i < NAME_OUTPUTS; i++)
output[i] = found[i];
}
input += taken * NAME_INPUTS;
output += taken * NAME_OUTPUTS;
n -= taken;
}
}
"""

MAIN = """
#ifdef NAME_MAIN
#include <stdio.h>

int main(void)
{
static name_value example[NAME_INPUTS];
static float output[NAME_OUTPUTS], workspace[NAME_WORKSPACE];
size_t got;
while ((got = fread(example, sizeof *example, NAME_INPUTS, stdin)) == NAME_INPUTS) {
{check}name_run(example, 1, output, workspace);
{print}putchar('\\n');
}
if (got > 0) {
fprintf(stderr, "error: the last example has %lu values of %d\\n", (unsigned long)got, NAME_INPUTS);
return 1;
}
return 0;
}
#endif
"""

CHECK = """
for (size_t i = {start}; i < {end}; i++)
if (!(example[i] >= 0 && example[i] <= 1)) {
fprintf(stderr, "error: a value of %g; {name} takes raw values divided by %g\\n", example[i], {scale});
return 1;
}
"""

CHECK_WHOLE = """
for (size_t i = {start}; i < {end}; i++)
if (!(example[i] >= {low} && example[i] <= {high} && example[i] == floorf(example[i]))) {
fprintf(stderr, "error: a value of %g; {name} takes whole numbers from {low} to {high}\\n", example[i]);
return 1;
}
"""

CHECK_TOKENS = """
for (size_t i = 0; i < NAME_INPUTS; i++)
if (example[i] < 0 || example[i] >= NAME_TOKENS) {
fprintf(stderr, "error: the token %ld; this network knows those from 0 to %d\\n", (long)example[i], NAME_TOKENS - 1);
return 1;
}
"""

CLASS = """
{
size_t best = {start};
for (size_t i = {start}; i < {end}; i++)
best = output[i] > output[best] ? i : best;
fputs(name_classes[best], stdout);
}
"""

LABELS = """
{
int more = 0;
for (size_t i = {start}; i < {end}; i++)
if (output[i] > 0) {
if (more++)
putchar(';');
fputs(name_classes[i], stdout);
}
}
"""

NEXT = """
{
size_t place = 0, best = 0;
for (size_t i = 1; i < {places}; i++)
place = {there} ? i : place;
for (size_t i = 1; i < NAME_OUTPUTS / {places}; i++)
best = output[i * {places} + place] > output[best * {places} + place] ? i : best;
fputs(name_classes[best], stdout);
}
"""

ERROR = """
{
double sum = 0;
for (size_t i = 0; i < NAME_OUTPUTS; i++) {
const double gap = (double)output[i] - (double)({value});
sum += gap * gap;
}
printf("%.7g", sqrt(sum / NAME_OUTPUTS));
}
"""

CLASSES = """
for (size_t place = 0; place < {places}; place++) {
size_t best = 0;
for (size_t i = 1; i < NAME_OUTPUTS / {places}; i++)
best = output[i * {places} + place] > output[best * {places} + place] ? i : best;
fputs(name_classes[best], stdout);
if (place + 1 < {places})
putchar(' ');
}
"""

TARGET = """
for (size_t i = {start}; i < {end}; i++)
printf(i + 1 < {end} ? "%.7g " : "%.7g", (double)output[i] * {std} + {mean});
"""
