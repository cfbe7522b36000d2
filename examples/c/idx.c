/*
 * Reads images from a file of the format that MNIST comes in, and prints what a network says of each.
 *
 *     cc -O3 -march=native examples/c/idx.c -o idx -lm
 *     ./idx t10k-images-idx3-ubyte
 *
 * network.c beside this file is LeNet-5 with 2,880 weights, written by
 *
 *     pyro-compress export docs/results/records/mnist-lenet-5-caffe-rate2-seed0.pcn --raw -o network.c
 */
#include <stdio.h>

#include "network.c"

#define BATCH 256

/* A number of four bytes, the highest first. */
static unsigned long number(const unsigned char *bytes)
{
    return (unsigned long)bytes[0] << 24 | (unsigned long)bytes[1] << 16 | (unsigned long)bytes[2] << 8 | bytes[3];
}

/* Whether the file holds images of bytes, as large as the network takes them. */
static int fits(const unsigned char *head)
{
    return number(head) == 0x803 && number(head + 8) * number(head + 12) == NETWORK_INPUTS;
}

static void print(const float *output)
{
    size_t best = 0;
    for (size_t i = 1; i < NETWORK_OUTPUTS; i++)
        best = output[i] > output[best] ? i : best;
    puts(network_classes[best]);
}

int main(int count, char **arguments)
{
    static network_value images[BATCH * NETWORK_INPUTS];
    static float outputs[BATCH * NETWORK_OUTPUTS], workspace[NETWORK_WORKSPACE];
    unsigned char head[16];
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
    if (file == NULL || fread(head, 1, 16, file) != 16 || !fits(head)) {
        fprintf(stderr, "usage: idx FILE, which holds images of %d bytes in MNIST's format\n", NETWORK_INPUTS);
        return 2;
    }
    for (size_t n; (n = fread(images, NETWORK_INPUTS, BATCH, file)) > 0;) {
        network_run(images, n, outputs, workspace);
        for (size_t i = 0; i < n; i++)
            print(outputs + i * NETWORK_OUTPUTS);
    }
    fclose(file);
    return 0;
}
