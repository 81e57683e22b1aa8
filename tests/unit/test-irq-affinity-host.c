/*
 * Unit test: the host's interrupts, as irq-affinity reads them
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The host is a directory with five processors; CPU 4 is possible, but not
 * there.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/resource.h>
#include "qapi/error.h"
#include "system/irq-affinity-host.h"

#define DEVICE "0000:01:00.0"
#define IRQ 41
#define MASK "/proc/irq/41/smp_affinity_list"
#define COUNT "/sys/kernel/irq/41/per_cpu_count"
#define ONLINE "/sys/devices/system/cpu/online"

typedef struct Fixture {
    char *root;
    IRQHost *host;
    IRQHostIRQ *irq;
} Fixture;

/* In place: it may be open. */
static void put(const Fixture *f, const char *path, const char *text)
{
    g_autofree char *full = g_strconcat(f->root, path, NULL);
    g_autofree char *dir = g_path_get_dirname(full);
    int fd;

    g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
    fd = open(full, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(write(fd, text, strlen(text)), ==, strlen(text));
    close(fd);
}

static void set_up(Fixture *f, gconstpointer data)
{
    unsigned vector = 77;
    bool unknown = true;

    f->root = g_dir_make_tmp("irq-host-XXXXXX", NULL);
    g_assert_nonnull(f->root);
    put(f, "/sys/devices/system/cpu/possible", "0-4\n");
    put(f, ONLINE, "0-3\n");
    put(f, MASK, "0-2\n");
    put(f, COUNT, "1,2,3,4,0\n");
    put(f, "/sys/kernel/irq/41/actions", "vfio-msix[5](" DEVICE ")\n");
    put(f, "/sys/bus/pci/devices/" DEVICE "/msi_irqs/41", "msix\n");
    f->host = irq_host_new(f->root, IRQ_AFFINITY_LOCALITY_CPU, &error_abort);
    f->irq = irq_host_open(f->host, DEVICE, IRQ, &vector, &unknown,
                           &error_abort);
    g_assert_nonnull(f->irq);
    g_assert_cmpuint(vector, ==, 5);
    g_assert_false(unknown);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", f->root);

    irq_host_close(f->irq);
    irq_host_free(f->host);
    g_assert_cmpint(system(command), ==, 0);
    g_free(f->root);
}

/*
 * Masks
 */

/* How @mask is found when the interrupt was sent to @cpu and @online are */
static IRQMask found(Fixture *f, int cpu, const char *mask, const char *online)
{
    g_assert_cmpint(irq_host_move(f->irq, cpu), ==, 0);
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_KNOWN);
    put(f, MASK, mask);
    put(f, ONLINE, online);
    return irq_host_mask(f->irq);
}

static void test_reset(Fixture *f, gconstpointer data)
{
    /* CPU 3 is offline, is back, and another one has gone since */
    g_assert_cmpint(found(f, 3, "0-2\n", "0-2\n"), ==, IRQ_MASK_RESET);
    g_assert_cmpint(found(f, 3, "0-2\n", "0-3\n"), ==, IRQ_MASK_RESET);
    g_assert_cmpint(found(f, 3, "0-2\n", "0-1,3\n"), ==, IRQ_MASK_RESET);
    g_assert_cmpint(found(f, 3, "0-2\n", "0-1\n"), ==, IRQ_MASK_RESET);
    g_assert_cmpint(found(f, 1, "0,2-3\n", "0-3\n"), ==, IRQ_MASK_RESET);
    /* the only one that is left */
    g_assert_cmpint(found(f, 3, "0\n", "0\n"), ==, IRQ_MASK_RESET);
    /* whether it had been sent there is not known */
    g_assert_cmpint(irq_host_move(f->irq, 0), ==, 0);
    irq_host_maybe_moved(f->irq, 2);
    irq_host_maybe_moved(f->irq, 3);
    put(f, ONLINE, "0-3\n");
    put(f, MASK, "0-1,3\n");
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_RESET);
    put(f, MASK, "0-2\n");
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_RESET);
}

static void test_foreign(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(found(f, 3, "1\n", "0-3\n"), ==, IRQ_MASK_FOREIGN);
    g_assert_cmpint(found(f, 3, "0-1\n", "0-3\n"), ==, IRQ_MASK_FOREIGN);
    g_assert_cmpint(found(f, 3, "0-1,3\n", "0-3\n"), ==, IRQ_MASK_FOREIGN);
    /* with CPU 3 among them: it was not offline */
    g_assert_cmpint(found(f, 3, "0-3\n", "0-2\n"), ==, IRQ_MASK_FOREIGN);
    /* the other one of two */
    g_assert_cmpint(found(f, 0, "1\n", "0-1\n"), ==, IRQ_MASK_FOREIGN);
    g_assert_cmpint(found(f, 3, "nonsense\n", "0-3\n"), ==, IRQ_MASK_FOREIGN);
}

/* What was not sent anywhere may be on several, and is not all of them. */
static void test_not_moved(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_KNOWN);
    put(f, MASK, "2-3\n");
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_FOREIGN);
    g_assert_cmpint(irq_host_restore(f->irq), ==, 0);
}

/* All that may have been done is taken for ours. */
static void test_maybe(Fixture *f, gconstpointer data)
{
    static const char *const ours[] = { "0\n", "1\n", "3\n", "0-2\n" };

    g_assert_cmpint(irq_host_move(f->irq, 0), ==, 0);
    irq_host_maybe_moved(f->irq, 1);
    irq_host_maybe_moved(f->irq, 3);
    irq_host_maybe_returned(f->irq);
    for (int i = 0; i < ARRAY_SIZE(ours); i++) {
        put(f, MASK, ours[i]);
        g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_KNOWN);
    }
    put(f, MASK, "2\n");
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_FOREIGN);
    /* a move that is known to be done comes after these, a return may not */
    g_assert_cmpint(irq_host_move(f->irq, 2), ==, 0);
    put(f, MASK, "3\n");
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_FOREIGN);
    put(f, MASK, "0-2\n");
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_KNOWN);
    irq_host_returned(f->irq);
    g_assert_cmpstr(irq_host_original(f->irq), ==, "0-2");
    g_assert_false(irq_host_was_moved(f->irq));
}

/* Somebody else gave it back what it had before it was opened here. */
static void test_adopt(Fixture *f, gconstpointer data)
{
    /* a move is under way, and may come first */
    g_assert_false(irq_host_adopt(f->irq, "1-3"));
    put(f, MASK, "1-3\n");
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_KNOWN);
    g_assert_cmpint(irq_host_move(f->irq, 0), ==, 0);
    g_assert_false(irq_host_adopt(f->irq, "0-3"));
    put(f, MASK, "0-3\n");
    g_assert_true(irq_host_adopt(f->irq, "0-3"));
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_KNOWN);
    put(f, MASK, "0\n");
    g_assert_cmpint(irq_host_restore(f->irq), ==, 0);
    irq_host_returned(f->irq);
    g_assert_cmpstr(irq_host_original(f->irq), ==, "0-3");
}

/*
 * Counts
 */

static void check_counts(Fixture *f, const char *text, const uint32_t *before,
                         const uint32_t *after)
{
    uint32_t counts[5];

    memcpy(counts, before, sizeof(counts));
    put(f, COUNT, text);
    g_assert_true(irq_host_counts(f->irq, counts));
    g_assert_cmpmem(counts, sizeof(counts), after, sizeof(counts));
}

static void test_counts(Fixture *f, gconstpointer data)
{
    static const uint32_t before[] = { 10, 20, 30, 40, 50 };
    uint32_t counts[5];

    g_assert_cmpuint(irq_host_cpus(f->host), ==, ARRAY_SIZE(before));
    check_counts(f, "11,21,31,41,51\n", before,
                 (uint32_t[]) { 11, 21, 31, 41, 51 });
    /* cut within a number, before and after a comma */
    check_counts(f, "11,21,31,41,5", before,
                 (uint32_t[]) { 11, 21, 31, 41, 50 });
    check_counts(f, "11,21,31,4", before,
                 (uint32_t[]) { 11, 21, 31, 40, 50 });
    check_counts(f, "11,21,31", before,
                 (uint32_t[]) { 11, 21, 30, 40, 50 });
    check_counts(f, "11,21,31,", before,
                 (uint32_t[]) { 11, 21, 31, 40, 50 });
    check_counts(f, "1", before, before);
    check_counts(f, "4294967295,0\n", before,
                 (uint32_t[]) { UINT32_MAX, 0, 30, 40, 50 });
    put(f, COUNT, "");
    g_assert_false(irq_host_counts(f->irq, counts));
    put(f, COUNT, "1,x\n");
    g_assert_false(irq_host_counts(f->irq, counts));
}

/*
 * Shortage
 */

static void test_shortage(Fixture *f, gconstpointer data)
{
    struct rlimit limit, none;
    unsigned vector;
    bool unknown, untold;
    Error *err;
    GArray *numbers, *counted;
    IRQHostIRQ *irq;
    int lowest = dup(0);

    g_assert_cmpint(lowest, >=, 0);
    close(lowest);
    g_assert_cmpint(getrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    none = limit;
    for (int left = 0; left < 4; left++) {
        none.rlim_cur = lowest + left;
        g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &none), ==, 0);
        unknown = false;
        err = NULL;
        irq = irq_host_open(f->host, DEVICE, IRQ, &vector, &unknown, &err);
        numbers = irq_host_numbers(f->host, DEVICE, &untold, NULL);
        g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);
        g_assert_cmpint(!irq, ==, left < 3);    /* two, and one meanwhile */
        g_assert_cmpint(unknown, ==, left < 3);
        g_assert_cmpint(!err, ==, !unknown);
        g_assert_cmpint(!numbers, ==, !left);
        g_assert_cmpint(untold, ==, !left);
        error_free(err);
        irq_host_close(irq);
        g_clear_pointer(&numbers, g_array_unref);
    }
    g_assert_cmpint(found(f, 3, "0-2\n", "0-2\n"), ==, IRQ_MASK_RESET);
    none.rlim_cur = lowest;
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &none), ==, 0);
    /* what is open already is of use */
    g_assert_true(irq_host_alive(f->irq));
    g_assert_cmpint(irq_host_mask(f->irq), ==, IRQ_MASK_RESET);
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);

    /* none at all, and one that is another's: these are known */
    counted = irq_host_numbers(f->host, "0000:09:00.0", &unknown,
                               &error_abort);
    g_assert_nonnull(counted);
    g_assert_cmpuint(counted->len, ==, 0);
    g_array_unref(counted);
    put(f, "/sys/kernel/irq/41/actions", "eth0\n");
    g_assert_null(irq_host_open(f->host, DEVICE, IRQ, &vector, &unknown,
                                &error_abort));
    g_assert_false(unknown);
    g_assert_null(irq_host_open(f->host, DEVICE, IRQ + 1, &vector, &unknown,
                                &error_abort));
    g_assert_false(unknown);
}

/*
 * Confined
 */

/* What is there and cannot be read is no interrupt that was freed. */
static void test_unreadable(Fixture *f, gconstpointer data)
{
    static const char *const files[] = {
        COUNT, MASK, "/sys/kernel/irq/41/actions",
        "/sys/bus/pci/devices/" DEVICE "/msi_irqs",
    };
    unsigned vector;
    bool unknown;

    for (int i = 0; i < ARRAY_SIZE(files); i++) {
        g_autofree char *path = g_strconcat(f->root, files[i], NULL);
        g_autofree char *aside = g_strconcat(path, ".aside", NULL);
        Error *err = NULL;

        g_assert_cmpint(rename(path, aside), ==, 0);
        /* a link to itself: not even root can open it */
        g_assert_cmpint(symlink(path, path), ==, 0);
        if (i < 3) {
            g_assert_null(irq_host_open(f->host, DEVICE, IRQ, &vector,
                                        &unknown, &err));
        } else {
            g_assert_null(irq_host_numbers(f->host, DEVICE, &unknown, &err));
        }
        g_assert_false(unknown);
        g_assert_nonnull(strstr(error_get_pretty(err), path));
        error_free(err);
        g_assert_cmpint(unlink(path), ==, 0);
        g_assert_cmpint(rename(aside, path), ==, 0);
    }
}

static void add(const char *path, void (*test)(Fixture *, gconstpointer))
{
    g_test_add(path, Fixture, NULL, set_up, test, tear_down);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add("/irq-affinity-host/reset", test_reset);
    add("/irq-affinity-host/foreign", test_foreign);
    add("/irq-affinity-host/not-moved", test_not_moved);
    add("/irq-affinity-host/maybe", test_maybe);
    add("/irq-affinity-host/adopt", test_adopt);
    add("/irq-affinity-host/counts", test_counts);
    add("/irq-affinity-host/shortage", test_shortage);
    add("/irq-affinity-host/unreadable", test_unreadable);
    return g_test_run();
}
