/*
 * Interrupt affinity that follows the vCPU: the host's interrupts and CPUs
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qapi/error.h"
#include "irq-affinity-host.h"
#include "system/irq-affinity-names.h"

struct IRQHost {
    char *root;
    bool simulated;
    unsigned cpus;
    int *place;         /* by processor; the same number: near */
    GArray *possible;   /* int, the order in which per_cpu_count lists them */
};

struct IRQHostIRQ {
    const IRQHost *host;
    int number;
    int affinity_fd;
    int count_fd;
    int write_err;      /* why it is open for reading only */
    bool moved;
    char *original;
    char *expected;     /* what is found if nobody else writes */
    char *maybe;        /* or this, NULL: no */
};

static char *host_path(const IRQHost *host, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

static char *host_path(const IRQHost *host, const char *fmt, ...)
{
    g_autofree char *path = NULL;
    va_list ap;

    va_start(ap, fmt);
    path = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    return g_strconcat(host->root, path, NULL);
}

/*
 * Processors
 */

static GArray *read_list(const char *path)
{
    g_autofree char *text = irq_text_read(path);

    return text ? irq_text_cpus(text) : NULL;
}

static void set_place(IRQHost *host, int cpu, const char *path)
{
    g_autoptr(GArray) siblings = read_list(path);

    if (siblings && siblings->len) {
        host->place[cpu] = g_array_index(siblings, int, 0);
    }
}

/* The cache with the highest number is the last one. */
static void set_llc_place(IRQHost *host, int cpu)
{
    for (int index = 0; ; index++) {
        g_autofree char *path = host_path(host, "/sys/devices/system/cpu/cpu%d"
                                          "/cache/index%d/shared_cpu_list",
                                          cpu, index);

        if (access(path, R_OK)) {
            return;
        }
        set_place(host, cpu, path);
    }
}

static void read_places(IRQHost *host, IrqAffinityLocality locality)
{
    host->place = g_new(int, host->cpus);
    for (int cpu = 0; cpu < (int)host->cpus; cpu++) {
        g_autofree char *core = host_path(host, "/sys/devices/system/cpu/cpu%d"
                                          "/topology/thread_siblings_list",
                                          cpu);

        host->place[cpu] = cpu;
        if (locality == IRQ_AFFINITY_LOCALITY_CORE) {
            set_place(host, cpu, core);
        } else if (locality == IRQ_AFFINITY_LOCALITY_LLC) {
            set_llc_place(host, cpu);
        }
    }
}

IRQHost *irq_host_new(const char *root, IrqAffinityLocality locality,
                      Error **errp)
{
    IRQHost *host = g_new0(IRQHost, 1);
    g_autofree char *path = NULL;

    host->root = g_strdup(root ?: "");
    host->simulated = root != NULL;
    path = host_path(host, "/sys/devices/system/cpu/possible");
    host->possible = read_list(path);
    if (!host->possible || !host->possible->len) {
        error_setg(errp, "The host's processors cannot be read from '%s'",
                   path);
        irq_host_free(host);
        return NULL;
    }
    for (unsigned i = 0; i < host->possible->len; i++) {
        unsigned cpu = g_array_index(host->possible, int, i);

        host->cpus = MAX(host->cpus, cpu + 1);
    }
    read_places(host, locality);
    return host;
}

void irq_host_free(IRQHost *host)
{
    if (!host) {
        return;
    }
    g_clear_pointer(&host->possible, g_array_unref);
    g_free(host->place);
    g_free(host->root);
    g_free(host);
}

unsigned irq_host_cpus(const IRQHost *host)
{
    return host->cpus;
}

bool irq_host_near(const IRQHost *host, int a, int b)
{
    return host->place[a] == host->place[b];
}

/*
 * Interrupts
 */

GArray *irq_host_numbers(const IRQHost *host, const char *device)
{
    g_autofree char *path = host_path(host, "/sys/bus/pci/devices/%s/msi_irqs",
                                      device);
    GArray *numbers = g_array_new(false, false, sizeof(int));
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        int number;

        if (!qemu_strtoi(name, NULL, 10, &number) && number >= 0) {
            g_array_append_val(numbers, number);
        }
    }
    if (dir) {
        g_dir_close(dir);
    }
    return numbers;
}

static bool is_of_device(const IRQHost *host, const char *device, int irq,
                         unsigned *vector)
{
    g_autofree char *path = host_path(host, "/sys/kernel/irq/%d/actions", irq);
    g_autofree char *actions = irq_text_read(path);

    return actions && irq_text_action(actions, device, vector);
}

static bool open_affinity(IRQHostIRQ *irq)
{
    g_autofree char *path = host_path(irq->host,
                                      "/proc/irq/%d/smp_affinity_list",
                                      irq->number);

    irq->affinity_fd = qemu_open_old(path, O_RDWR);
    if (irq->affinity_fd < 0) {
        irq->write_err = errno;
        irq->affinity_fd = qemu_open_old(path, O_RDONLY);
    }
    return irq->affinity_fd >= 0;
}

IRQHostIRQ *irq_host_open(const IRQHost *host, const char *device, int number,
                          unsigned *vector)
{
    IRQHostIRQ *irq = g_new0(IRQHostIRQ, 1);
    g_autofree char *counts = host_path(host, "/sys/kernel/irq/%d"
                                        "/per_cpu_count", number);

    irq->host = host;
    irq->number = number;
    irq->affinity_fd = irq->count_fd = -1;
    if (!open_affinity(irq)) {
        irq_host_close(irq);
        return NULL;
    }
    irq->count_fd = qemu_open_old(counts, O_RDONLY);
    irq->original = irq_text_read_fd(irq->affinity_fd);
    /* the files are open: only now is it known whose they are */
    if (irq->count_fd < 0 || !irq->original ||
        !is_of_device(host, device, number, vector) || !irq_host_alive(irq)) {
        irq_host_close(irq);
        return NULL;
    }
    irq->expected = g_strdup(irq->original);
    return irq;
}

void irq_host_close(IRQHostIRQ *irq)
{
    if (!irq) {
        return;
    }
    if (irq->affinity_fd >= 0) {
        qemu_close(irq->affinity_fd);
    }
    if (irq->count_fd >= 0) {
        qemu_close(irq->count_fd);
    }
    g_free(irq->original);
    g_free(irq->expected);
    g_free(irq->maybe);
    g_free(irq);
}

int irq_host_number(const IRQHostIRQ *irq)
{
    return irq->number;
}

/* A simulated file that was deleted stands for an interrupt that was freed. */
static bool simulated_gone(const IRQHostIRQ *irq)
{
    struct stat st;

    return irq->host->simulated && !fstat(irq->affinity_fd, &st) &&
           !st.st_nlink;
}

bool irq_host_alive(const IRQHostIRQ *irq)
{
    g_autofree char *mask = irq_text_read_fd(irq->affinity_fd);

    return mask && !simulated_gone(irq);
}

bool irq_host_counts(const IRQHostIRQ *irq, uint32_t *counts)
{
    const GArray *possible = irq->host->possible;
    g_autofree char *text = irq_text_read_fd(irq->count_fd);
    const char *at = text;

    if (!text) {
        return false;
    }
    /* the kernel cuts the text at a page: what is missing does not count */
    memset(counts, 0, irq->host->cpus * sizeof(*counts));
    for (unsigned i = 0; i < possible->len && (!i || *at); i++) {
        if (qemu_strtoui(at, &at, 10, &counts[g_array_index(possible, int,
                                                            i)])) {
            return false;
        }
        at += *at == ',';
    }
    return true;
}

/*
 * When a processor goes offline the kernel lets the interrupts that were
 * sent to it go to all that are left.
 */
static bool is_online_mask(const IRQHost *host, const char *mask)
{
    g_autofree char *path = host_path(host, "/sys/devices/system/cpu/online");
    g_autofree char *online = irq_text_read(path);

    return online && g_str_equal(online, mask);
}

IRQMask irq_host_mask(const IRQHostIRQ *irq)
{
    g_autofree char *mask = irq_text_read_fd(irq->affinity_fd);

    if (!mask || g_str_equal(mask, irq->expected) ||
        !g_strcmp0(mask, irq->maybe)) {
        /* if it is gone, the write will tell */
        return IRQ_MASK_KNOWN;
    }
    return is_online_mask(irq->host, mask) ? IRQ_MASK_RESET
                                           : IRQ_MASK_FOREIGN;
}

static int write_mask(IRQHostIRQ *irq, const char *mask)
{
    if (irq->write_err) {
        return -irq->write_err;
    }
    if (simulated_gone(irq)) {
        return -EIO;
    }
    if (irq->host->simulated && ftruncate(irq->affinity_fd, 0)) {
        return -errno;
    }
    return irq_text_write(irq->affinity_fd, mask);
}

void irq_host_moved(IRQHostIRQ *irq, int cpu)
{
    g_free(irq->expected);
    irq->expected = g_strdup_printf("%d", cpu);
    g_clear_pointer(&irq->maybe, g_free);
    irq->moved = true;
}

void irq_host_maybe_moved(IRQHostIRQ *irq, int cpu)
{
    g_free(irq->maybe);
    irq->maybe = g_strdup_printf("%d", cpu);
    irq->moved = true;
}

void irq_host_returned(IRQHostIRQ *irq)
{
    char *mask = irq_text_read_fd(irq->affinity_fd);

    irq->moved = false;
    g_clear_pointer(&irq->maybe, g_free);
    if (mask) {
        g_free(irq->original);
        g_free(irq->expected);
        irq->original = mask;
        irq->expected = g_strdup(mask);
    }
}

void irq_host_maybe_returned(IRQHostIRQ *irq)
{
    g_free(irq->maybe);
    irq->maybe = g_strdup(irq->original);
}

bool irq_host_was_moved(const IRQHostIRQ *irq)
{
    return irq->moved;
}

const char *irq_host_original(const IRQHostIRQ *irq)
{
    return irq->original;
}

int irq_host_move(IRQHostIRQ *irq, int cpu)
{
    g_autofree char *mask = g_strdup_printf("%d", cpu);
    int ret = write_mask(irq, mask);

    if (!ret) {
        irq_host_moved(irq, cpu);
    }
    return ret;
}

int irq_host_restore(IRQHostIRQ *irq)
{
    int ret;

    if (!irq->moved || irq_host_mask(irq) == IRQ_MASK_FOREIGN) {
        return 0;
    }
    ret = write_mask(irq, irq->original);
    if (!ret) {
        irq->moved = false;
        g_free(irq->expected);
        irq->expected = g_strdup(irq->original);
        g_clear_pointer(&irq->maybe, g_free);
    }
    return ret;
}
