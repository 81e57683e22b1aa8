/*
 * Interrupt affinity that follows the vCPU: the host's interrupts and CPUs
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dirent.h>
#include "qemu/bitmap.h"
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
    int online_fd;      /* open: there may be no descriptor left when asked */
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
    GPtrArray *maybe;   /* or one of these */
    bool maybe_original;    /* or this, for good: it may be done late */
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
    g_autofree char *path = NULL, *online = NULL;

    host->root = g_strdup(root ?: "");
    host->simulated = root != NULL;
    online = host_path(host, "/sys/devices/system/cpu/online");
    host->online_fd = qemu_open_old(online, O_RDONLY);
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
    if (host->online_fd >= 0) {
        qemu_close(host->online_fd);
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

/* That there are no descriptors, or no memory, says nothing of interrupts. */
static bool is_shortage(int err)
{
    return err == EMFILE || err == ENFILE || err == ENOMEM;
}

/* What these files say when the interrupt was freed, or the device is gone */
static bool is_gone(int err)
{
    return err == ENOENT || err == EIO || err == ENODEV;
}

/* Returns: @err. */
static int cannot_read(const char *path, int err, Error **errp)
{
    if (!is_gone(err)) {
        error_setg_errno(errp, err, "'%s' cannot be read", path);
    }
    return err;
}

GArray *irq_host_numbers(const IRQHost *host, const char *device,
                         bool *unknown, Error **errp)
{
    g_autofree char *path = host_path(host, "/sys/bus/pci/devices/%s/msi_irqs",
                                      device);
    DIR *dir = opendir(path);
    int err = dir ? 0 : cannot_read(path, errno, errp);
    GArray *numbers;
    struct dirent *entry;

    *unknown = is_shortage(err);
    if (err && !is_gone(err)) {
        return NULL;
    }
    numbers = g_array_new(false, false, sizeof(int));
    while (dir && (entry = readdir(dir))) {
        int number;

        if (!qemu_strtoi(entry->d_name, NULL, 10, &number) && number >= 0) {
            g_array_append_val(numbers, number);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return numbers;
}

/* Returns: 0 or a positive errno. */
static int check_device(const IRQHost *host, const char *device, int irq,
                        unsigned *vector, Error **errp)
{
    g_autofree char *path = host_path(host, "/sys/kernel/irq/%d/actions", irq);
    g_autofree char *actions = irq_text_read(path);

    if (!actions) {
        return cannot_read(path, errno, errp);
    }
    return irq_text_action(actions, device, vector) ? 0 : ENOENT;
}

static int open_affinity(IRQHostIRQ *irq, Error **errp)
{
    g_autofree char *path = host_path(irq->host,
                                      "/proc/irq/%d/smp_affinity_list",
                                      irq->number);

    irq->affinity_fd = qemu_open_old(path, O_RDWR);
    if (irq->affinity_fd < 0 && !is_shortage(errno)) {
        irq->write_err = errno;
        irq->affinity_fd = qemu_open_old(path, O_RDONLY);
    }
    if (irq->affinity_fd < 0) {
        return cannot_read(path, errno, errp);
    }
    irq->original = irq_text_read_fd(irq->affinity_fd);
    return irq->original ? 0 : cannot_read(path, errno, errp);
}

/* Returns: 0 or a positive errno. */
static int open_files(IRQHostIRQ *irq, const char *device, unsigned *vector,
                      Error **errp)
{
    g_autofree char *counts = host_path(irq->host, "/sys/kernel/irq/%d"
                                        "/per_cpu_count", irq->number);
    int err = open_affinity(irq, errp);

    if (err) {
        return err;
    }
    irq->count_fd = qemu_open_old(counts, O_RDONLY);
    if (irq->count_fd < 0) {
        return cannot_read(counts, errno, errp);
    }
    /* the files are open: only now is it known whose they are */
    err = check_device(irq->host, device, irq->number, vector, errp);
    return err || irq_host_alive(irq) ? err : ENOENT;
}

IRQHostIRQ *irq_host_open(const IRQHost *host, const char *device, int number,
                          unsigned *vector, bool *unknown, Error **errp)
{
    IRQHostIRQ *irq = g_new0(IRQHostIRQ, 1);
    int err;

    irq->host = host;
    irq->number = number;
    irq->affinity_fd = irq->count_fd = -1;
    irq->maybe = g_ptr_array_new_with_free_func(g_free);
    err = open_files(irq, device, vector, errp);
    *unknown = is_shortage(err);
    if (err) {
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
    g_ptr_array_free(irq->maybe, true);
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

    return (mask || is_shortage(errno)) && !simulated_gone(irq);
}

bool irq_host_counts(const IRQHostIRQ *irq, uint32_t *counts)
{
    const GArray *possible = irq->host->possible;
    g_autofree char *text = irq_text_read_whole(irq->count_fd);
    const char *at = text;

    if (!text) {
        return false;
    }
    for (unsigned i = 0; i < possible->len && (!i || *at); i++) {
        unsigned count;

        if (qemu_strtoui(at, &at, 10, &count)) {
            return false;
        }
        /* the kernel cuts the text at a page, within a number as well */
        if (*at != ',' && *at != '\n') {
            break;
        }
        counts[g_array_index(possible, int, i)] = count;
        at++;
    }
    return true;
}

static bool is_left_of(const char *mask, const char *sent_to,
                       const char *online)
{
    g_autofree unsigned long *left = irq_text_set(mask);
    g_autofree unsigned long *gone = irq_text_set(sent_to);
    g_autofree unsigned long *all = irq_text_set(online);

    /* one processor is somebody's choice, also where there are but two */
    if (!left || !gone || !all || bitmap_count_one(left, IRQ_CPUS_MAX) < 2 ||
        bitmap_count_one(gone, IRQ_CPUS_MAX) != 1 ||
        bitmap_intersects(left, gone, IRQ_CPUS_MAX)) {
        return false;
    }
    bitmap_or(left, left, gone, IRQ_CPUS_MAX);
    return !bitmap_andnot(all, all, left, IRQ_CPUS_MAX);
}

/*
 * When a processor goes offline the kernel lets the interrupts that were
 * sent to it go to all that are left.  By now it may be back, or others may
 * have gone as well.
 */
static bool is_reset(const IRQHostIRQ *irq, const char *mask)
{
    g_autofree char *online = irq_text_read_fd(irq->host->online_fd);

    if (!online) {
        return false;
    }
    if (g_str_equal(online, mask) ||
        is_left_of(mask, irq->expected, online)) {
        return true;
    }
    for (unsigned i = 0; i < irq->maybe->len; i++) {
        if (is_left_of(mask, g_ptr_array_index(irq->maybe, i), online)) {
            return true;
        }
    }
    return false;
}

static bool is_known(const IRQHostIRQ *irq, const char *mask)
{
    return g_str_equal(mask, irq->expected) ||
           (irq->maybe_original && g_str_equal(mask, irq->original)) ||
           g_ptr_array_find_with_equal_func(irq->maybe, mask, g_str_equal,
                                            NULL);
}

IRQMask irq_host_mask(const IRQHostIRQ *irq)
{
    g_autofree char *mask = irq_text_read_fd(irq->affinity_fd);

    if (!mask || is_known(irq, mask)) {
        /* if it is gone, the write will tell */
        return IRQ_MASK_KNOWN;
    }
    return is_reset(irq, mask) ? IRQ_MASK_RESET : IRQ_MASK_FOREIGN;
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

static void expect(IRQHostIRQ *irq, char *mask)
{
    g_free(irq->expected);
    irq->expected = mask;
    g_ptr_array_set_size(irq->maybe, 0);
}

void irq_host_moved(IRQHostIRQ *irq, int cpu)
{
    expect(irq, g_strdup_printf("%d", cpu));
    irq->moved = true;
}

void irq_host_maybe_moved(IRQHostIRQ *irq, int cpu)
{
    g_autofree char *mask = g_strdup_printf("%d", cpu);

    if (!is_known(irq, mask)) {
        g_ptr_array_add(irq->maybe, g_steal_pointer(&mask));
    }
    irq->moved = true;
}

void irq_host_returned(IRQHostIRQ *irq)
{
    char *mask = irq_text_read_fd(irq->affinity_fd);

    irq->moved = false;
    if (mask) {
        irq->maybe_original = false;
        g_free(irq->original);
        irq->original = mask;
        expect(irq, g_strdup(mask));
    }
}

void irq_host_maybe_returned(IRQHostIRQ *irq)
{
    irq->maybe_original = true;
}

bool irq_host_adopt(IRQHostIRQ *irq, const char *list)
{
    g_autofree char *mask = irq_text_read_fd(irq->affinity_fd);

    g_free(irq->original);
    irq->original = g_strdup(list);
    irq->maybe_original = true;
    return irq->moved && !g_strcmp0(mask, list);
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
        expect(irq, g_strdup(irq->original));
    }
    return ret;
}
