/*
 * Interrupt affinity that follows the vCPU: where a thread runs
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/mman.h>
#include "qemu/atomic.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "system/irq-affinity-perf.h"
#include "irq-affinity-watch.h"

/* Field of "stat" with the processor, and the first one after the name */
#define STAT_PROCESSOR 39
#define STAT_AFTER_NAME 3

struct IRQWatch {
    int stat_fd;
    int schedstat_fd;
    int perf_fd;
    void *ring;             /* a page for control, a page of records */
    bool simulated;
    IRQWatchFunc *func;
    void *opaque;
};

typedef struct MigrationRecord {
    struct perf_event_header header;
    uint32_t cpu;           /* PERF_SAMPLE_CPU */
    uint32_t res;
} MigrationRecord;

static int open_file(const char *root, int tid, const char *name)
{
    g_autofree char *path = g_strdup_printf("%s/proc/self/task/%d/%s",
                                            root ?: "", tid, name);

    return qemu_open_old(path, O_RDONLY);
}

static ssize_t read_text(int fd, char *text, size_t size)
{
    ssize_t len = fd < 0 ? -1 : pread(fd, text, size - 1, 0);

    text[MAX(len, 0)] = 0;
    return len;
}

int irq_watch_parse_stat(const char *stat)
{
    const char *at = strrchr(stat, ')');
    int cpu;

    for (int field = STAT_AFTER_NAME; at && field <= STAT_PROCESSOR; field++) {
        at = strchr(at + 1, ' ');
    }
    return at && !qemu_strtoi(at + 1, &at, 10, &cpu) && cpu >= 0 ? cpu : -1;
}

int irq_watch_cpu(const IRQWatch *w)
{
    char text[1024];

    return read_text(w->stat_fd, text, sizeof(text)) > 0
           ? irq_watch_parse_stat(text) : -1;
}

bool irq_watch_run_ns(const IRQWatch *w, uint64_t *run_ns)
{
    char text[128];
    const char *end;

    return read_text(w->schedstat_fd, text, sizeof(text)) > 0 &&
           !qemu_strtou64(text, &end, 10, run_ns);
}

/*
 * The event
 */

static size_t page_size(void)
{
    return qemu_real_host_page_size();
}

static void copy_out(const IRQWatch *w, uint64_t at, void *to, size_t size)
{
    const uint8_t *data = (const uint8_t *)w->ring + page_size();

    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)to)[i] = data[(at + i) % page_size()];
    }
}

static void drop_event(IRQWatch *w)
{
    qemu_set_fd_handler(w->perf_fd, NULL, NULL, NULL);
    munmap(w->ring, 2 * page_size());
    close(w->perf_fd);
    w->perf_fd = -1;
}

/* Has its thread?  The event is readable for ever then. */
static bool has_ended(const IRQWatch *w)
{
    struct pollfd event = { .fd = w->perf_fd, .events = POLLIN };

    return poll(&event, 1, 0) > 0 && event.revents & (POLLHUP | POLLERR);
}

/*
 * Only the last record matters.  A full ring loses records, not the next.  Who
 * opened the event may have its pages as well, and change them at any time: no
 * more is read than there is.
 */
static bool take_records(IRQWatch *w, int *cpu)
{
    struct perf_event_mmap_page *control = w->ring;
    uint64_t head = qatomic_load_acquire(&control->data_head);
    uint64_t tail = qatomic_read(&control->data_tail);
    bool found = head != tail;

    if (head - tail > page_size()) {
        tail = head;
    }
    while (head - tail >= sizeof(struct perf_event_header)) {
        struct perf_event_header header;
        MigrationRecord record;

        copy_out(w, tail, &header, sizeof(header));
        if (header.size < sizeof(header) || header.size > head - tail) {
            tail = head;
            break;
        }
        if (header.type == PERF_RECORD_SAMPLE &&
            header.size >= sizeof(record)) {
            copy_out(w, tail, &record, sizeof(record));
            *cpu = record.cpu;
        } else if (header.type == PERF_RECORD_LOST) {
            *cpu = irq_watch_cpu(w);
        }
        tail += header.size;
    }
    /* pairs with the kernel's reading of data_tail before it overwrites */
    qatomic_store_release(&control->data_tail, tail);
    return found;
}

static void perf_read(void *opaque)
{
    IRQWatch *w = opaque;
    int cpu = -1;

    if (!take_records(w, &cpu)) {
        if (has_ended(w)) {
            drop_event(w);
            w->func(w->opaque, irq_watch_cpu(w));
            return;
        }
        /* what came before that asked does not make it readable again */
        take_records(w, &cpu);
    }
    if (cpu >= 0) {
        w->func(w->opaque, cpu);
    }
}

/*
 * Not a file that somebody else passes for one: it may end under the mapping,
 * and whoever reads there then as well.
 */
static bool is_event(int fd)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *name = g_file_read_link(path, NULL);

    return !g_strcmp0(name, "anon_inode:[perf_event]");
}

bool irq_watch_use_perf(IRQWatch *w, int fd)
{
    void *ring;

    if (fd < 0 || w->simulated || w->perf_fd >= 0 || !is_event(fd)) {
        if (fd >= 0) {
            close(fd);
        }
        return false;
    }
    ring = mmap(NULL, 2 * page_size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                0);
    if (ring == MAP_FAILED) {
        close(fd);
        return false;
    }
    w->ring = ring;
    w->perf_fd = fd;
    qemu_set_fd_handler(fd, perf_read, NULL, w);
    return true;
}

void irq_watch_pause(IRQWatch *w, bool pause)
{
    struct perf_event_mmap_page *control = w->ring;

    if (w->perf_fd < 0) {
        return;
    }
    if (!pause) {
        /* the last of these need not be the last move: the ring may be full */
        qatomic_store_release(&control->data_tail,
                              qatomic_load_acquire(&control->data_head));
    }
    qemu_set_fd_handler(w->perf_fd, pause ? NULL : perf_read, NULL, w);
}

IRQWatch *irq_watch_new(const char *root, int tid, bool own_perf,
                        IRQWatchFunc *func, void *opaque)
{
    IRQWatch *w = g_new0(IRQWatch, 1);

    w->simulated = root != NULL;
    w->func = func;
    w->opaque = opaque;
    w->perf_fd = -1;
    w->stat_fd = open_file(root, tid, "stat");
    w->schedstat_fd = open_file(root, tid, "schedstat");
    if (own_perf && !w->simulated) {
        irq_watch_use_perf(w, irq_perf_open(tid));
    }
    return w;
}

void irq_watch_free(IRQWatch *w)
{
    if (!w) {
        return;
    }
    if (w->perf_fd >= 0) {
        drop_event(w);
    }
    if (w->stat_fd >= 0) {
        qemu_close(w->stat_fd);
    }
    if (w->schedstat_fd >= 0) {
        qemu_close(w->schedstat_fd);
    }
    g_free(w);
}

IrqAffinitySource irq_watch_source(const IRQWatch *w)
{
    if (w->perf_fd >= 0) {
        return IRQ_AFFINITY_SOURCE_PERF;
    }
    return w->stat_fd >= 0 ? IRQ_AFFINITY_SOURCE_SAMPLE
                           : IRQ_AFFINITY_SOURCE_NONE;
}
