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

register uint8_t *stack_pointer __asm__("sp");

int main(void)
{
    static int8_t output[NETWORK_OUTPUTS];
    for (int32_t e = 0; e < EXAMPLES; e++) {
        for (volatile uint8_t *p = stack_bottom; p < stack_pointer; p++)
            *p = 0xA5; /* what a run leaves of it tells how deep the stack went */
        restart();
        network_run_int8(examples[e], output);
        const uint32_t taken = instructions();
        const volatile uint8_t *deepest = stack_bottom;
        while (deepest < stack_pointer && *deepest == 0xA5)
            deepest++;
        put_number((int32_t)taken);
        put_number((int32_t)(stack_pointer - deepest));
        for (int32_t i = 0; i < NETWORK_OUTPUTS; i++)
            put_number(output[i]);
        put("\n");
    }
    return 0;
}
