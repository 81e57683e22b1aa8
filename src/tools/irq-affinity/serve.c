/*
 * qemu-irq-affinity-helper: what is granted to whom
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "qemu/atomic.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "system/irq-affinity-names.h"
#include "system/irq-affinity-perf.h"
#include "serve.h"

#define SECOND_NS (1000 * 1000 * 1000LL)

/* Devices that are counted one by one */
#define BUCKETS 4096
/* More than any limit; the other bits are for the second */
#define COUNT_BITS 20

/* What is limited, each by itself: neither shall starve the other */
typedef enum Limit {
    LIMIT_MOVES,
    LIMIT_RESTORES,
    LIMIT__MAX,
} Limit;

/*
 * What was done to a device in a second.  Shared by all processes.
 * @device: hash of its name, 0: free
 * @used: lowest bits of the second, then how often
 */
typedef struct Bucket {
    uint32_t device;
    uint32_t used[LIMIT__MAX];
} Bucket;

struct IRQServe {
    char *root;
    unsigned long *cpus;    /* IRQ_CPUS_MAX bits */
    unsigned max_per_s;
    Bucket *buckets;        /* BUCKETS */
};

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

/*
 * Sets of processors
 */

/* Returns: (transfer full): as the kernel writes it: "0-3,8" */
static char *list_of(const unsigned long *set)
{
    GString *list = g_string_new("");
    unsigned long first = find_first_bit(set, IRQ_CPUS_MAX);

    while (first < IRQ_CPUS_MAX) {
        unsigned long end = find_next_zero_bit(set, IRQ_CPUS_MAX, first);

        g_string_append_printf(list, "%s%lu", list->len ? "," : "", first);
        if (end > first + 1) {
            g_string_append_printf(list, "-%lu", end - 1);
        }
        first = find_next_bit(set, IRQ_CPUS_MAX, end);
    }
    return g_string_free(list, false);
}

/* The mask of default_smp_affinity: words of 32 bits, the last one first */
static unsigned long *default_set(const IRQServe *s)
{
    g_autofree char *path = serve_path(s, "/proc/irq/default_smp_affinity");
    g_autofree char *text = irq_text_read(path);
    g_auto(GStrv) words = text ? g_strsplit(text, ",", -1) : NULL;
    unsigned count = words ? g_strv_length(words) : 0;
    unsigned long *set = bitmap_new(IRQ_CPUS_MAX);

    for (unsigned i = 0; i < MIN(count, IRQ_CPUS_MAX / 32); i++) {
        unsigned word;

        if (qemu_strtoui(words[count - 1 - i], NULL, 16, &word)) {
            break;
        }
        for (unsigned bit = 0; bit < 32; bit++) {
            if (word & 1u << bit) {
                set_bit(i * 32 + bit, set);
            }
        }
    }
    return set;
}

/*
 * Begin and end
 */

IRQServe *irq_serve_new(const char *root, const char *cpus,
                        unsigned max_moves_per_s)
{
    g_autofree unsigned long *set = cpus ? irq_text_set(cpus) : NULL;
    IRQServe *s;

    if (cpus && (!set || bitmap_empty(set, IRQ_CPUS_MAX))) {
        return NULL;
    }
    if (!set) {
        set = bitmap_new(IRQ_CPUS_MAX);
        bitmap_fill(set, IRQ_CPUS_MAX);
    }
    s = g_new0(IRQServe, 1);
    s->root = g_strdup(root);
    s->cpus = g_steal_pointer(&set);
    s->max_per_s = max_moves_per_s;
    s->buckets = mmap(NULL, BUCKETS * sizeof(Bucket), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s->buckets == MAP_FAILED) {
        abort();                /* as GLib does without memory */
    }
    return s;
}

void irq_serve_free(IRQServe *s)
{
    munmap(s->buckets, BUCKETS * sizeof(Bucket));
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
 * Who has hung up may be served already by way of another connection, which
 * knows better where to.
 */
static bool peer_hung_up(const IRQPeer *peer)
{
    struct pollfd pollfd = { .fd = peer->fd };

    return poll(&pollfd, 1, 0) > 0;
}

/* Returns: (transfer full): of a thread of the peer, NULL: it has none such. */
static char *thread_status(const IRQServe *s, const IRQPeer *peer, pid_t tid)
{
    g_autofree char *path = serve_path(s, "/proc/%d/task/%d/status",
                                       (int)peer->pid, (int)tid);

    return irq_text_read(path);
}

/* Returns: (transfer full): of the line of @status, or NULL */
static char *field(const char *status, const char *name)
{
    g_autofree char *start = g_strdup_printf("\n%s:", name);
    const char *line = strstr(status, start);
    char *value;

    if (!line) {
        return NULL;
    }
    line += strlen(start);
    value = g_strndup(line, strcspn(line, "\n"));
    return g_strstrip(value);
}

/*
 * The process may have executed a set-uid program since it connected, and the
 * connection may be another process's now: that is not to ask for it.  Root may
 * have become who it likes, and could ask for anything.
 */
static bool same_user(const IRQPeer *peer, const char *status)
{
    g_autofree char *uids = field(status, "Uid");
    unsigned real, effective, saved;

    return !peer->uid ||
           (uids && sscanf(uids, "%u %u %u", &real, &effective, &saved) == 3 &&
            effective == peer->uid && saved == peer->uid);
}

/* Are its numbers of threads those that are known here? */
static bool same_namespace(const IRQServe *s, const IRQPeer *peer)
{
    g_autofree char *status = thread_status(s, peer, peer->pid);
    g_autofree char *numbers = status ? field(status, "NSpid") : NULL;

    /* a number for each namespace, from this one inwards */
    return peer->pid && !(numbers && strpbrk(numbers, " \t"));
}

/*
 * Where to: the processors on which a thread of the peer may run, if the
 * administrator allows them as well.  The kernel keeps the thread's within its
 * cpuset.
 *
 * Returns: (transfer full): a set; NULL: that is no thread of the peer, or is
 * another user's now.
 */
static unsigned long *allowed_set(const IRQServe *s, const IRQPeer *peer,
                                  pid_t tid)
{
    g_autofree char *status = thread_status(s, peer, tid);
    g_autofree char *list = status ? field(status, "Cpus_allowed_list") : NULL;
    unsigned long *set;

    if (!list || !same_user(peer, status)) {
        return NULL;
    }
    set = irq_text_set(list);
    if (set) {
        bitmap_and(set, set, s->cpus, IRQ_CPUS_MAX);
    }
    return set;
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

/* When all are taken, devices share one: only those that are held get here. */
static Bucket *bucket_of(const IRQServe *s, const char *device)
{
    uint32_t hash = g_str_hash(device) ?: 1;
    Bucket *b = NULL;

    for (unsigned i = 0; i < BUCKETS; i++) {
        uint32_t found;

        b = &s->buckets[(hash + i) % BUCKETS];
        found = qatomic_cmpxchg(&b->device, 0, hash);
        if (!found || found == hash) {
            break;
        }
    }
    return b;
}

static bool within_limit(const IRQServe *s, const char *device, Limit limit,
                         int64_t now_ns)
{
    uint32_t *used = &bucket_of(s, device)->used[limit];
    uint32_t second = (uint32_t)(now_ns / SECOND_NS) << COUNT_BITS;
    uint32_t before, count, found = qatomic_read(used);

    do {
        before = found;
        count = (before ^ second) >> COUNT_BITS
                ? 0 : extract32(before, 0, COUNT_BITS);
        if (count >= s->max_per_s) {
            return false;
        }
        found = qatomic_cmpxchg(used, before, second | (count + 1));
    } while (found != before);
    return true;
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
    } else if (*s->root && ftruncate(fd, 0) && errno != EINVAL) {
        ret = -errno;
    } else {
        ret = irq_text_write(fd, list);
    }
    close(fd);
    return ret;
}

/* Returns: 0 and @allowed (transfer full), or a negative errno. */
static int check_right(const IRQServe *s, const IRQPeer *peer,
                       const IRQHelperRequest *rq, int fd,
                       unsigned long **allowed)
{
    if (rq->number > INT_MAX || !is_device_name(rq->device)) {
        return -EINVAL;
    }
    if (!holds_device(s, fd, rq->device)) {
        return -EPERM;
    }
    *allowed = allowed_set(s, peer, rq->tid);
    return *allowed && peer_alive(peer) ? 0 : -ESRCH;
}

static int serve_move(const IRQServe *s, const IRQPeer *peer,
                      const IRQHelperRequest *rq, int fd, int64_t now_ns)
{
    g_autofree unsigned long *allowed = NULL;
    g_autofree char *list = NULL;
    int err = check_right(s, peer, rq, fd, &allowed);

    if (err) {
        return err;
    }
    if (peer_hung_up(peer)) {
        return -ENOTCONN;
    }
    if (!within_limit(s, rq->device, LIMIT_MOVES, now_ns)) {
        return -EAGAIN;
    }
    if (rq->cpu >= IRQ_CPUS_MAX) {
        return -ERANGE;
    }
    if (!test_bit(rq->cpu, allowed)) {
        return -EPERM;
    }
    list = g_strdup_printf("%u", rq->cpu);
    return write_affinity(s, rq, list);
}

/* What is allowed of the list, else of the default: nobody gets more here. */
static char *list_to_restore(const IRQServe *s, const char *wanted,
                             const unsigned long *allowed)
{
    g_autofree unsigned long *set = irq_text_set(wanted);

    if (!set || !bitmap_and(set, set, allowed, IRQ_CPUS_MAX)) {
        g_free(set);
        set = default_set(s);
        bitmap_and(set, set, allowed, IRQ_CPUS_MAX);
    }
    return list_of(set);
}

/* Its value is 1 if the list is not the one that was asked for. */
static IRQServeResult serve_restore(const IRQServe *s, const IRQPeer *peer,
                                    const IRQHelperRequest *rq, int fd,
                                    int64_t now_ns, IRQHelperReply *reply)
{
    g_autofree unsigned long *allowed = NULL;
    g_autofree char *list = NULL;
    int err = check_right(s, peer, rq, fd, &allowed);

    if (!err && !within_limit(s, rq->device, LIMIT_RESTORES, now_ns)) {
        return IRQ_SERVE_LATER;
    }
    if (!err) {
        list = list_to_restore(s, rq->list, allowed);
        err = *list ? write_affinity(s, rq, list) : -EPERM;
    }
    reply->error = -err;
    reply->value = !err && !g_str_equal(list, rq->list);
    return IRQ_SERVE_ANSWER;
}

static int serve_watch(const IRQServe *s, IRQPeer *peer,
                       const IRQHelperRequest *rq, int *reply_fd)
{
    g_autofree unsigned long *before = allowed_set(s, peer, rq->tid);
    g_autofree unsigned long *after = NULL;
    int fd;

    if (peer->watches >= IRQ_SERVE_WATCHES_MAX) {
        return -ENOSPC;
    }
    if (!before || (int)rq->tid <= 0) {
        return -ESRCH;
    }
    fd = irq_perf_open(rq->tid);
    if (fd < 0) {
        return -errno;
    }
    /* the thread's number may have become another's: is it still the peer's? */
    after = allowed_set(s, peer, rq->tid);
    if (!after || !peer_alive(peer)) {
        close(fd);
        return -ESRCH;
    }
    peer->watches++;
    *reply_fd = fd;
    return 0;
}

IRQServeResult irq_serve_request(IRQServe *s, IRQPeer *peer, const void *msg,
                                 size_t len, int fd, IRQHelperReply *reply,
                                 int *reply_fd, int64_t now_ns)
{
    IRQHelperRequest rq;

    *reply_fd = -1;
    if (len != sizeof(rq)) {
        return IRQ_SERVE_END;
    }
    memcpy(&rq, msg, sizeof(rq));
    if (rq.reserved || !memchr(rq.device, 0, sizeof(rq.device)) ||
        !memchr(rq.list, 0, sizeof(rq.list))) {
        return IRQ_SERVE_END;
    }
    *reply = (IRQHelperReply) { .op = rq.op, .id = rq.id };
    if (rq.op == IRQ_HELPER_HELLO) {
        peer->greeted = rq.number == IRQ_HELPER_VERSION;
        reply->value = IRQ_HELPER_VERSION;
        reply->error = peer->greeted ? 0 : EPROTONOSUPPORT;
        if (peer->greeted && !same_namespace(s, peer)) {
            peer->greeted = false;
            reply->error = ESRCH;
        }
        return IRQ_SERVE_ANSWER;
    }
    if (!peer->greeted) {
        return IRQ_SERVE_END;
    }
    switch (rq.op) {
    case IRQ_HELPER_MOVE:
        reply->error = -serve_move(s, peer, &rq, fd, now_ns);
        return IRQ_SERVE_ANSWER;
    case IRQ_HELPER_RESTORE:
        return serve_restore(s, peer, &rq, fd, now_ns, reply);
    case IRQ_HELPER_WATCH:
        reply->error = -serve_watch(s, peer, &rq, reply_fd);
        return IRQ_SERVE_ANSWER;
    default:
        return IRQ_SERVE_END;
    }
}
