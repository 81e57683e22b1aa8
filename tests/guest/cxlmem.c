/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs in a Linux guest: uses the memory behind a dax device, or in a BAR.
 *
 *   cxlmem DEVICE fill SEED MIB       write a pattern, print its checksum
 *   cxlmem DEVICE sum MIB             print the checksum of what is there
 *   cxlmem DEVICE threads N ROUNDS    N writers at once, and atomics
 *   cxlmem DEVICE bandwidth BYTES     8 bytes at a time: MB/s written, read
 *   cxlmem DEVICE against OTHER ROUNDS
 *                                     the same of both in turn, the best of
 *                                     ROUNDS: MB/s written, read, and of OTHER
 *   cxlmem DEVICE run INSTRUCTIONS    code that lies there: ns per instruction
 *   cxlmem DEVICE zipf MIB READS      reads of pages, the first ones most
 *                                     often: how many different ones, checksum
 *   cxlmem DEVICE scatter MIB READS   the same with the pages shuffled
 *   cxlmem DEVICE touch MIB PIECES    the same word of each piece, 100 times:
 *                                     sum, seconds
 *
 * DEVICE may be a file (such as a BAR's resource0), or "ram" for anonymous
 * memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MIB (1024 * 1024ul)
#define MAX_THREADS 16

static void die(const char *what)
{
    fprintf(stderr, "cxlmem: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *map_memory(const char *path, size_t size, int prot)
{
    void *mem;
    int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;

    if (strcmp(path, "ram")) {
        fd = open(path, O_RDWR);
        if (fd < 0) {
            die(path);
        }
        flags = MAP_SHARED;
    }
    /* a dax device is mapped in units of 2 MiB */
    size = (size + 2 * MIB - 1) & ~(2 * MIB - 1);
    mem = mmap(NULL, size, prot, flags, fd, 0);
    if (mem == MAP_FAILED) {
        die("mmap");
    }
    return mem;
}

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15ull;
    return x ^ x >> 29;
}

/* FNV-1a over the words that are looked at */
static uint64_t checksum(const volatile uint64_t *mem, size_t words,
                         size_t step)
{
    uint64_t sum = 0xcbf29ce484222325ull;

    for (size_t i = 0; i < words; i += step) {
        sum = (sum ^ mem[i]) * 0x100000001b3ull;
    }
    return sum;
}

/* What traps is slow, so look at one word in 509 bytes or so: all pages. */
#define STEP 63

static void fill(volatile uint64_t *mem, size_t words, uint64_t seed)
{
    for (size_t i = 0; i < words; i += STEP) {
        mem[i] = mix(seed + i);
    }
}

/*
 * Threads: each has a byte, a word and so on of each line for itself, and all
 * add to counters that they share.
 */

struct thread {
    pthread_t id;
    unsigned number;
    unsigned rounds;
    unsigned errors;
    uint8_t *mem;
};

#define LINE 256
#define LINES 64

static void *writer(void *opaque)
{
    struct thread *t = opaque;
    volatile uint32_t *counter32 = (void *)(t->mem + 2 * MIB - 64);
    volatile uint64_t *counter64 = (void *)(t->mem + 2 * MIB - 32);

    for (unsigned r = 0; r < t->rounds; r++) {
        for (unsigned l = 0; l < LINES; l++) {
            uint8_t *line = t->mem + l * LINE;
            volatile uint8_t *b = line + t->number;
            /* these are not aligned, and some are on two pages */
            volatile uint64_t *q = (void *)(line + 20 + 13 * t->number);
            uint64_t want = mix(r * LINES + l + t->number);

            *b = r + t->number;
            *(volatile uint32_t *)q = want;
            ((volatile uint32_t *)q)[1] = want >> 32;
            if (*b != (uint8_t)(r + t->number) || *q != want) {
                t->errors++;
            }
        }
        __atomic_fetch_add(counter32, 1, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(counter64, 3, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static int run_threads(uint8_t *mem, unsigned count, unsigned rounds)
{
    struct thread threads[MAX_THREADS] = { 0 };
    volatile uint32_t *counter32 = (void *)(mem + 2 * MIB - 64);
    volatile uint64_t *counter64 = (void *)(mem + 2 * MIB - 32);
    unsigned errors = 0;

    if (count > MAX_THREADS) {
        return 2;
    }
    *counter32 = 0;
    *counter64 = 0;
    for (unsigned i = 0; i < count; i++) {
        threads[i].number = i;
        threads[i].rounds = rounds;
        threads[i].mem = mem;
        pthread_create(&threads[i].id, NULL, writer, &threads[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        pthread_join(threads[i].id, NULL);
        errors += threads[i].errors;
    }
    printf("errors %u count %u of %u, %llu of %llu\n", errors, *counter32,
           count * rounds, (unsigned long long)*counter64,
           3ull * count * rounds);
    return errors || *counter32 != count * rounds ||
           *counter64 != 3ull * count * rounds;
}

static void bandwidth(volatile uint64_t *mem, size_t bytes)
{
    size_t words = bytes / 8, mask = 2 * MIB / 8 - 1;
    double start = now_s(), write_s, read_s;
    uint64_t sum = 0;

    for (size_t i = 0; i < words; i++) {
        mem[i & mask] = i;
    }
    write_s = now_s() - start;
    start = now_s();
    for (size_t i = 0; i < words; i++) {
        sum += mem[i & mask];
    }
    read_s = now_s() - start;
    printf("%.3f %.3f %llu\n", bytes / write_s / 1e6, bytes / read_s / 1e6,
           (unsigned long long)sum);
}

/* What disturbs makes a pass slower, never faster. */
static void pass(volatile uint64_t *mem, double best[2])
{
    double start = now_s(), middle, end;
    uint64_t sum = 0;

    for (size_t i = 0; i < 2 * MIB / 8; i++) {
        mem[i] = i;
    }
    middle = now_s();
    for (size_t i = 0; i < 2 * MIB / 8; i++) {
        sum += mem[i];
    }
    end = now_s();
    if (sum != (2 * MIB / 8) * (2 * MIB / 8 - 1) / 2) {
        fprintf(stderr, "cxlmem: wrong contents\n");
        exit(1);
    }
    if (middle - start < best[0]) {
        best[0] = middle - start;
    }
    if (end - middle < best[1]) {
        best[1] = end - middle;
    }
}

static void against(void *mem, void *other, unsigned long rounds)
{
    double mine[2] = { 1e9, 1e9 }, others[2] = { 1e9, 1e9 };

    while (rounds--) {
        pass(mem, mine);
        pass(other, others);
    }
    for (int i = 0; i < 2; i++) {
        printf("%.3f ", 2 * MIB / mine[i] / 1e6);
    }
    for (int i = 0; i < 2; i++) {
        printf("%.3f%s", 2 * MIB / others[i] / 1e6, i ? "\n" : " ");
    }
}

/*
 * Page number k of N is read with a probability of 1/(k + 1); or the one that a
 * shuffle, always the same, has put in its place.
 */
static void zipf(volatile uint8_t *mem, size_t pages, unsigned long reads,
                 int shuffle)
{
    double *upto = malloc(pages * sizeof(*upto)), total = 0;
    uint32_t *place = malloc(pages * sizeof(*place));
    uint8_t *seen = calloc(pages, 1);
    uint64_t random = 1, sum = 0;
    size_t different = 0;

    if (!upto || !place || !seen) {
        die("malloc");
    }
    for (size_t i = 0; i < pages; i++) {
        size_t j = shuffle ? (random = mix(random + i)) % (i + 1) : i;

        upto[i] = total += 1.0 / (i + 1);
        place[i] = place[j];
        place[j] = i;
    }
    while (reads--) {
        double wanted = ((random = mix(random + reads)) >> 11) /
                        (double)(1ull << 53) * total;
        size_t low = 0, high = pages - 1;

        while (low < high) {
            size_t middle = (low + high) / 2;

            if (upto[middle] < wanted) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        different += !seen[low];
        seen[low] = 1;
        sum = sum * 31 + mem[place[low] * 4096ul];
    }
    printf("%zu %016llx\n", different, (unsigned long long)sum);
}

static void touch(volatile uint64_t *mem, size_t bytes, unsigned long pieces)
{
    double start = now_s();
    uint64_t sum = 0;

    for (unsigned long p = 0; p < pieces; p++) {
        for (int i = 0; i < 100; i++) {
            sum += mem[bytes / pieces / 8 * p];
        }
    }
    printf("%llu %.6f\n", (unsigned long long)sum, now_s() - start);
}

static void run_code(uint8_t *mem, unsigned long instructions)
{
    static const uint8_t code[] = {
        0x89, 0xf9,                 /* mov %edi, %ecx */
        0x31, 0xc0,                 /* xor %eax, %eax */
        0x83, 0xc0, 0x03,           /* 1: add $3, %eax */
        0xff, 0xc9,                 /* dec %ecx */
        0x75, 0xf9,                 /* jnz 1b */
        0xc3,                       /* ret */
    };
    uint32_t (*function)(uint32_t) = (void *)mem;
    uint32_t rounds = instructions / 3, result;
    double start;

    memcpy(mem, code, sizeof(code));
    start = now_s();
    result = function(rounds);
    printf("%.3f %s\n", (now_s() - start) * 1e9 / (rounds * 3.0),
           result == rounds * 3 ? "right" : "wrong");
}

int main(int argc, char **argv)
{
    const char *what = argc > 3 ? argv[2] : "";
    unsigned long n = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
    unsigned long m = argc > 4 ? strtoul(argv[4], NULL, 0) : 0;
    uint8_t *mem;

    if (!strcmp(what, "fill")) {
        mem = map_memory(argv[1], m * MIB, PROT_READ | PROT_WRITE);
        fill((uint64_t *)mem, m * MIB / 8, n);
        printf("%016llx\n", (unsigned long long)
               checksum((uint64_t *)mem, m * MIB / 8, STEP));
    } else if (!strcmp(what, "sum")) {
        mem = map_memory(argv[1], n * MIB, PROT_READ);
        printf("%016llx\n", (unsigned long long)
               checksum((uint64_t *)mem, n * MIB / 8, STEP));
    } else if (!strcmp(what, "threads")) {
        mem = map_memory(argv[1], 2 * MIB, PROT_READ | PROT_WRITE);
        return run_threads(mem, n, m);
    } else if (!strcmp(what, "bandwidth")) {
        mem = map_memory(argv[1], 2 * MIB, PROT_READ | PROT_WRITE);
        bandwidth((uint64_t *)mem, n);
    } else if (!strcmp(what, "against") && m) {
        mem = map_memory(argv[1], 2 * MIB, PROT_READ | PROT_WRITE);
        against(mem, map_memory(argv[3], 2 * MIB, PROT_READ | PROT_WRITE), m);
    } else if (!strcmp(what, "zipf") || !strcmp(what, "scatter")) {
        mem = map_memory(argv[1], n * MIB, PROT_READ);
        zipf(mem, n * MIB / 4096, m, what[0] == 's');
    } else if (!strcmp(what, "touch")) {
        mem = map_memory(argv[1], n * MIB, PROT_READ);
        touch((uint64_t *)mem, n * MIB, m);
    } else if (!strcmp(what, "run")) {
        mem = map_memory(argv[1], 2 * MIB, PROT_READ | PROT_WRITE | PROT_EXEC);
        run_code(mem, n);
    } else {
        fprintf(stderr, "cxlmem: see the source for what it can do\n");
        return 2;
    }
    return 0;
}
