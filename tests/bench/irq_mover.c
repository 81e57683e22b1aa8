/*
 * Move a vCPU's thread about and count where interrupts are taken
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * irq_mover PID TID CPUS PERIOD_MS SECONDS IRQ...
 *
 * With a period of 0 the thread is left to the scheduler, and looked at every
 * 10 ms.  Prints, all but the first stay: interrupts, those taken where the
 * thread was, rescheduling IPIs, stays, and the median time from a move to
 * the first interrupt taken there, in microseconds (0: there was none).
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CPUS_MAX 64
#define STAYS_MAX 10000
#define LOOK_US 1000
#define LOOK_LIMIT_US 100000    /* then sleep: looking costs IPIs as well */

static int cpus, irqs;
static char **irq;

static int64_t now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static void counts(uint64_t *sum)
{
    memset(sum, 0, CPUS_MAX * sizeof(*sum));
    for (int i = 0; i < irqs; i++) {
        char path[64];
        FILE *file;

        snprintf(path, sizeof(path), "/sys/kernel/irq/%s/per_cpu_count",
                 irq[i]);
        file = fopen(path, "r");
        for (int cpu = 0; file && cpu < cpus; cpu++) {
            unsigned n = 0;

            if (fscanf(file, "%u,", &n) == 1) {
                sum[cpu] += n;
            }
        }
        if (file) {
            fclose(file);
        }
    }
}

static uint64_t rescheduled(void)
{
    FILE *file = fopen("/proc/interrupts", "r");
    char line[4096];
    uint64_t sum = 0;

    while (file && fgets(line, sizeof(line), file)) {
        char *at = strstr(line, "RES:");

        for (at = at ? at + 4 : NULL; at; ) {
            char *end;
            unsigned long n = strtoul(at, &end, 10);

            at = end == at ? NULL : end;
            sum += at ? n : 0;
        }
    }
    if (file) {
        fclose(file);
    }
    return sum;
}

static int where(const char *pid, const char *tid)
{
    char path[64], text[1024] = "", *at;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%s/task/%s/stat", pid, tid);
    file = fopen(path, "r");
    if (!file || !fgets(text, sizeof(text), file)) {
        exit(2);
    }
    fclose(file);
    at = strrchr(text, ')');
    for (int field = 3; at && field <= 39; field++) {
        at = strchr(at + 1, ' ');
    }
    return at ? atoi(at) : -1;
}

static int compare(const void *a, const void *b)
{
    return *(const int *)a < *(const int *)b ? -1 : 1;
}

int main(int argc, char **argv)
{
    uint64_t before[CPUS_MAX], after[CPUS_MAX], local = 0, total = 0, res = 0;
    int64_t period_us, end_us;
    static int times[STAYS_MAX];
    int stays = 0, met = 0, cpu;

    if (argc < 7) {
        return 1;
    }
    cpus = atoi(argv[3]);
    period_us = atoi(argv[4]) * 1000LL;
    end_us = now_us() + atoi(argv[5]) * 1000000LL;
    irq = argv + 6;
    irqs = argc - 6;
    while (now_us() < end_us && stays < STAYS_MAX) {
        int64_t start_us = now_us();
        int reached = 0;

        if (period_us) {
            cpu_set_t set;

            cpu = stays % cpus;
            CPU_ZERO(&set);
            CPU_SET(cpu, &set);
            counts(before);
            start_us = now_us();
            sched_setaffinity(atoi(argv[2]), sizeof(set), &set);
            for (int64_t t = 0; !reached && t < LOOK_LIMIT_US &&
                 t < period_us; t = now_us() - start_us) {
                counts(after);
                if (after[cpu] > before[cpu]) {
                    reached = now_us() - start_us;
                }
                usleep(LOOK_US);
            }
            while (now_us() - start_us < period_us) {
                usleep(period_us - (now_us() - start_us));
            }
        } else {
            cpu = where(argv[1], argv[2]);
            counts(before);
            usleep(10000);
        }
        counts(after);
        if (stays++ == 0) {
            res = rescheduled();
            continue;
        }
        for (int i = 0; i < cpus; i++) {
            total += after[i] - before[i];
        }
        local += after[cpu] - before[cpu];
        if (reached) {
            times[met++] = reached;
        }
    }
    res = rescheduled() - res;
    qsort(times, met, sizeof(*times), compare);
    printf("%llu %llu %llu %d %d\n", (unsigned long long)total,
           (unsigned long long)local, (unsigned long long)res, stays - 1,
           met ? times[met / 2] : 0);
    return 0;
}
