/* Cortex-M on QEMU's mps2-an385: vectors, text by semihosting, SysTick as a counter of instructions. */
#include "machine.h"

int main(void);
extern uint32_t stack_top[];
static void reset(void);

__attribute__((section(".vectors"), used)) static void *const vectors[2] = {stack_top, (void *)reset};

static volatile uint32_t *const systick = (volatile uint32_t *)0xE000E010;

static void ask(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void put(const char *text)
{
    ask(0x04, text);
}

void finish(void)
{
    ask(0x18, (const void *)0x20026);
    for (;;)
        ;
}

/* it counts down from 2^24 - 1; a tick is 40 ns, an instruction 16 ns */
void restart(void)
{
    systick[1] = 0xFFFFFF;
    systick[2] = 0;
    systick[0] = 5;
}

uint32_t instructions(void)
{
    return (0xFFFFFF - systick[2]) * 5 / 2;
}

__attribute__((used)) static void reset(void)
{
    main();
    finish();
}
