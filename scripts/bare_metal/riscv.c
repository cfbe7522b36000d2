/* RISC-V on QEMU's virt: text by the serial port, the counter of retired instructions. */
#include "machine.h"

int main(void);

__asm__(".section .start\n.globl _start\n_start:\nla sp, stack_top\ncall main\ncall finish\n.text\n");

void put(const char *text)
{
    while (*text)
        *(volatile uint8_t *)0x10000000 = (uint8_t)*text++;
}

void finish(void)
{
    *(volatile uint32_t *)0x100000 = 0x5555;
    for (;;)
        ;
}

static uint32_t before;

/* QEMU counts the nanoseconds that instructions take */
static uint32_t retired(void)
{
    uint32_t count;
    __asm__ volatile("csrr %0, minstret" : "=r"(count));
    return count / 16;
}

void restart(void)
{
    before = retired();
}

uint32_t instructions(void)
{
    return retired() - before;
}
