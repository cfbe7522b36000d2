/* Runs every example of `examples.h` and prints what the network says, what it took, and how deep the stack went. */
#define NETWORK_HEADER
#include "examples.h"
#include "machine.h"
#include "network.c"

extern uint8_t stack_bottom[];

static void put_number(int32_t value)
{
    char text[13];
    char *end = text + 12;
    *end = 0;
    uint32_t left = value < 0 ? 0 - (uint32_t)value : (uint32_t)value;
    *--end = ' ';
    do
        *--end = (char)('0' + left % 10);
    while (left /= 10);
    if (value < 0)
        *--end = '-';
    put(end);
}

/* memory below this frame, painted before a run and looked at afterwards */
static uint8_t *paint(void)
{
    uint8_t *const here = (uint8_t *)__builtin_frame_address(0) - 128;
    for (volatile uint8_t *p = stack_bottom; p < here; p++)
        *p = 0xA5;
    return here;
}

int main(void)
{
    static int8_t output[NETWORK_OUTPUTS];
    for (int32_t e = 0; e < EXAMPLES; e++) {
        const uint8_t *const here = paint();
        restart();
        network_run_int8(examples[e], output);
        const uint32_t taken = instructions();
        const volatile uint8_t *deepest = stack_bottom;
        while (deepest < here && *deepest == 0xA5)
            deepest++;
        put_number((int32_t)taken);
        put_number((int32_t)((uint8_t *)__builtin_frame_address(0) - deepest));
        for (int32_t i = 0; i < NETWORK_OUTPUTS; i++)
            put_number(output[i]);
        put("\n");
    }
    return 0;
}
