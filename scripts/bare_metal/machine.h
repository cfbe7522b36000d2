/* What a program without an operating system has: where its text goes, a counter, and an end. */
#include <stdint.h>

void put(const char *text);
void restart(void);
uint32_t instructions(void); /* since the restart, up to 40 million of them, under `-icount shift=4` */
void finish(void);
