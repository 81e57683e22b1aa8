/*
 * qemu-irq-affinity-helper: what is granted to whom
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "qemu/cutils.h"
#include "system/irq-affinity-names.h"
#include "system/irq-affinity-perf.h"
#include "serve.h"

#define SECOND_NS (1000 * 1000 * 1000LL)

/* Devices whose moves are counted; the counts are dropped when it is more */
#define BUCKETS_MAX 4096

struct IRQServe {
    char *root;
    bool *cpus;             /* IRQ_CPUS_MAX, NULL: all */
    unsigned max_moves_per_s;
    GHashTable *buckets;    /* Bucket, by device */
};

/* Moves of a device in the second that began at @start_ns */
typedef struct Bucket {
    int64_t start_ns;
    unsigned moves;
} Bucket;

static char *serve_path(const IRQServe *s, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

static char *serve_path(const IRQServe *s, const char *fmt, ...)
{
    g_autofree char *path = NULL;
    va_list ap;

    va_start(ap, fmt);
    path = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    return g_strconcat(s->root, path, NULL);
}

IRQServe *irq_serve_new(const char *root, const char *cpus,
                        unsigned max_moves_per_s)
{
    g_autoptr(GArray) list = cpus ? irq_text_cpus(cpus) : NULL;
    IRQServe *s;

    if (cpus && (!list || !list->len)) {
        return NULL;
    }
    s = g_new0(IRQServe, 1);
    s->root = g_strdup(root);
    s->max_moves_per_s = max_moves_per_s;
    s->buckets = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                       g_free);
    if (list) {
        s->cpus = g_new0(bool, IRQ_CPUS_MAX);
        for (unsigned i = 0; i < list->len; i++) {
            s->cpus[g_array_index(list, int, i)] = true;
        }
    }
    return s;
}

void irq_serve_free(IRQServe *s)
{
    g_hash_table_destroy(s->buckets);
    g_free(s->cpus);
    g_free(s->root);
    g_free(s);
}

/*
 * Who asks: the process ID could have passed to another process since
 */

static bool peer_alive(const IRQPeer *peer)
{
    struct pollfd pollfd = { .fd = peer->pidfd, .events = POLLIN };

    return peer->pidfd >= 0 && poll(&pollfd, 1, 0) == 0;
}

/*
 * Where to: the processors on which a thread of the peer may run.  The kernel
 * keeps these within the thread's cpuset.
 */

static GArray *thread_cpus(const IRQServe *s, const IRQPeer *peer, pid_t tid)
{
    g_autofree char *path = serve_path(s, "/proc/%d/task/%d/status",
                                       (int)peer->pid, (int)tid);
    g_autofree char *status = irq_text_read(path);
    const char *list = status ? strstr(status, "\nCpus_allowed_list:") : NULL;
    g_autofree char *line = NULL;

    if (!list) {
        return NULL;
    }
    list = strchr(list, ':') + 1;
    line = g_strndup(list, strcspn(list, "\n"));
    return irq_text_cpus(g_strstrip(line));
}

static bool cpu_allowed(const IRQServe *s, const GArray *allowed, int cpu)
{
    if (cpu < 0 || cpu >= IRQ_CPUS_MAX || (s->cpus && !s->cpus[cpu])) {
        return false;
    }
    for (unsigned i = 0; i < allowed->len; i++) {
        if (g_array_index(allowed, int, i) == cpu) {
            return true;
        }
    }
    return false;
}

static bool list_allowed(const IRQServe *s, const GArray *allowed,
                         const char *text)
{
    g_autoptr(GArray) list = irq_text_cpus(text);

    for (unsigned i = 0; list && i < list->len; i++) {
        if (!cpu_allowed(s, allowed, g_array_index(list, int, i))) {
            return false;
        }
    }
    return list && list->len;
}

/*
 * Which device: proof by possession
 */

/* Name at the end of a link below /sys/dev/char/MAJOR:MINOR, or of itself */
static char *char_device_link(const IRQServe *s, dev_t dev, const char *name)
{
    g_autofree char *path = serve_path(s, "/sys/dev/char/%u:%u%s", major(dev),
                                       minor(dev), name);
    g_autofree char *target = g_file_read_link(path, NULL);

    return target ? g_path_get_basename(target) : NULL;
}

static bool group_has(const IRQServe *s, const char *group, const char *device)
{
    g_autofree char *path = NULL;

    /* not a group without IOMMU, "noiommu-N" */
    if (!g_ascii_isdigit(*group) || strspn(group, "0123456789") !=
        strlen(group)) {
        return false;
    }
    path = serve_path(s, "/sys/kernel/iommu_groups/%s/devices/%s", group,
                      device);
    return access(path, F_OK) == 0;
}

/* A PCI address, and nothing that leads elsewhere in a path */
static bool is_device_name(const char *device)
{
    size_t len = strlen(device);

    return len && strspn(device, "0123456789abcdef:.") == len &&
           !strstr(device, "..");
}

static bool holds_device(const IRQServe *s, int fd, const char *device)
{
    g_autofree char *subsystem = NULL, *name = NULL;
    struct stat st;
    int flags = fd < 0 ? -1 : fcntl(fd, F_GETFL);

    if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || flags & O_PATH ||
        fstat(fd, &st) || !S_ISCHR(st.st_mode)) {
        return false;
    }
    subsystem = char_device_link(s, st.st_rdev, "/subsystem");
    if (!g_strcmp0(subsystem, "vfio")) {
        name = char_device_link(s, st.st_rdev, "");
        return name && group_has(s, name, device);
    }
    if (!g_strcmp0(subsystem, "vfio-dev")) {
        name = char_device_link(s, st.st_rdev, "/device");
        return !g_strcmp0(name, device);
    }
    return false;
}

/*
 * How often
 */

static bool within_limit(IRQServe *s, const char *device, int64_t now_ns)
{
    Bucket *b = g_hash_table_lookup(s->buckets, device);

    if (!b) {
        if (g_hash_table_size(s->buckets) >= BUCKETS_MAX) {
            g_hash_table_remove_all(s->buckets);
        }
        b = g_new0(Bucket, 1);
        b->start_ns = now_ns;
        g_hash_table_insert(s->buckets, g_strdup(device), b);
    }
    if (now_ns - b->start_ns >= SECOND_NS) {
        b->start_ns = now_ns;
        b->moves = 0;
    }
    return b->moves++ < s->max_moves_per_s;
}

/*
 * Requests
 */

/* Open, then check the name, then write: see irq-affinity-host.h */
static int write_affinity(const IRQServe *s, const IRQHelperRequest *rq,
                          const char *list)
{
    g_autofree char *path = serve_path(s, "/proc/irq/%u/smp_affinity_list",
                                       rq->number);
    g_autofree char *name = serve_path(s, "/sys/kernel/irq/%u/actions",
                                       rq->number);
    g_autofree char *actions = NULL;
    unsigned vector;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int ret;

    if (fd < 0) {
        return -errno;
    }
    actions = irq_text_read(name);
    if (!actions) {
        ret = -EIO;
    } else if (!irq_text_action(actions, rq->device, &vector)) {
        ret = -EPERM;
    } else if (*s->root && ftruncate(fd, 0)) {
        ret = -errno;
    } else {
        ret = irq_text_write(fd, list);
    }
    close(fd);
    return ret;
}

/* The mask of default_smp_affinity as a list: words of 32 bits, last first */
static char *default_list(const IRQServe *s)
{
    g_autofree char *path = serve_path(s, "/proc/irq/default_smp_affinity");
    g_autofree char *text = irq_text_read(path);
    g_auto(GStrv) words = text ? g_strsplit(text, ",", -1) : NULL;
    unsigned count = words ? g_strv_length(words) : 0;
    GString *list = g_string_new("");

    for (unsigned i = 0; i < count; i++) {
        unsigned word;

        if (qemu_strtoui(words[count - 1 - i], NULL, 16, &word)) {
            break;
        }
        for (unsigned bit = 0; bit < 32; bit++) {
            if (word & 1u << bit) {
                g_string_append_printf(list, "%s%u", list->len ? "," : "",
                                       i * 32 + bit);
            }
        }
    }
    return g_string_free(list, false);
}

/* Returns: 0 and @allowed (transfer full), or a negative errno. */
static int check_right(IRQServe *s, const IRQPeer *peer,
                       const IRQHelperRequest *rq, int fd, int64_t now_ns,
                       GArray **allowed)
{
    if (rq->number > INT_MAX || !is_device_name(rq->device)) {
        return -EINVAL;
    }
    if (!holds_device(s, fd, rq->device)) {
        return -EPERM;
    }
    *allowed = thread_cpus(s, peer, rq->tid);
    if (!*allowed || !peer_alive(peer)) {
        return -ESRCH;
    }
    return within_limit(s, rq->device, now_ns) ? 0 : -EAGAIN;
}

static int serve_move(IRQServe *s, const IRQPeer *peer,
                      const IRQHelperRequest *rq, int fd, int64_t now_ns)
{
    g_autoptr(GArray) allowed = NULL;
    g_autofree char *list = NULL;
    int err = check_right(s, peer, rq, fd, now_ns, &allowed);

    if (err) {
        return err;
    }
    if (rq->cpu >= IRQ_CPUS_MAX) {
        return -ERANGE;
    }
    if (!cpu_allowed(s, allowed, rq->cpu)) {
        return -EPERM;
    }
    list = g_strdup_printf("%u", rq->cpu);
    return write_affinity(s, rq, list);
}

static int serve_restore(IRQServe *s, const IRQPeer *peer,
                         const IRQHelperRequest *rq, int fd, int64_t now_ns)
{
    g_autoptr(GArray) allowed = NULL;
    g_autofree char *list = NULL;
    int err = check_right(s, peer, rq, fd, now_ns, &allowed);

    if (err) {
        return err;
    }
    list = list_allowed(s, allowed, rq->list) ? g_strdup(rq->list)
                                              : default_list(s);
    return *list ? write_affinity(s, rq, list) : -EIO;
}

static int serve_watch(const IRQServe *s, IRQPeer *peer,
                       const IRQHelperRequest *rq, int *reply_fd)
{
    g_autoptr(GArray) allowed = thread_cpus(s, peer, rq->tid);
    int fd;

    if (peer->watches >= IRQ_SERVE_WATCHES_MAX) {
        return -ENOSPC;
    }
    if (!allowed || (int)rq->tid <= 0) {
        return -ESRCH;
    }
    fd = irq_perf_open(rq->tid);
    if (fd < 0) {
        return -errno;
    }
    /* the thread's number may have become another's: is it still the peer's? */
    g_clear_pointer(&allowed, g_array_unref);
    allowed = thread_cpus(s, peer, rq->tid);
    if (!allowed || !peer_alive(peer)) {
        close(fd);
        return -ESRCH;
    }
    peer->watches++;
    *reply_fd = fd;
    return 0;
}

bool irq_serve_request(IRQServe *s, IRQPeer *peer, const void *msg, size_t len,
                       int fd, IRQHelperReply *reply, int *reply_fd,
                       int64_t now_ns)
{
    IRQHelperRequest rq;

    *reply_fd = -1;
    if (len != sizeof(rq)) {
        return false;
    }
    memcpy(&rq, msg, sizeof(rq));
    if (rq.reserved || !memchr(rq.device, 0, sizeof(rq.device)) ||
        !memchr(rq.list, 0, sizeof(rq.list))) {
        return false;
    }
    *reply = (IRQHelperReply) { .op = rq.op, .id = rq.id };
    if (rq.op == IRQ_HELPER_HELLO) {
        peer->greeted = rq.number == IRQ_HELPER_VERSION;
        reply->value = IRQ_HELPER_VERSION;
        reply->error = peer->greeted ? 0 : EPROTONOSUPPORT;
        return true;
    }
    if (!peer->greeted) {
        return false;
    }
    switch (rq.op) {
    case IRQ_HELPER_MOVE:
        reply->error = -serve_move(s, peer, &rq, fd, now_ns);
        return true;
    case IRQ_HELPER_RESTORE:
        reply->error = -serve_restore(s, peer, &rq, fd, now_ns);
        return true;
    case IRQ_HELPER_WATCH:
        reply->error = -serve_watch(s, peer, &rq, reply_fd);
        return true;
    default:
        return false;
    }
}
