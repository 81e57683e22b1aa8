/*
 * Interrupt affinity that follows the vCPU: connection to the helper
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "system/irq-affinity-proto.h"
#include "irq-affinity-client.h"
#include "trace.h"

#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 30000
#define SILENCE_MS 5000
/* While others connect as well: how often it is tried, and when again */
#define BUSY_TRIES 50
#define BUSY_MS 10

typedef struct Pending {
    IRQHelperRequest rq;
    void *tag;              /* NULL: nobody waits for it */
    char *path, *list;      /* of a RESTORE: its device's, as asked for */
    int proof;              /* of a RESTORE that was not sent yet, else -1 */
    QTAILQ_ENTRY(Pending) next;
} Pending;

typedef QTAILQ_HEAD(, Pending) PendingList;

struct IRQClient {
    char *path;
    const IRQClientOps *ops;
    void *opaque;
    bool started;
    bool greeted;
    bool told;              /* why it does not serve us */
    int fd;
    uint32_t last_id;
    int error;              /* of the last attempt to connect, or 0 */
    unsigned retry_ms;
    unsigned busy;          /* attempts since the last pause */
    unsigned restores;      /* not answered */
    QEMUTimer *timer;       /* next attempt, or the end of patience */
    PendingList pending;    /* sent */
    PendingList unsent;     /* RESTOREs that did not fit */
};

static void disconnect(IRQClient *c);
static void stop_if_done(IRQClient *c);

static int64_t now_ms(void)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
}

static void retry_later(IRQClient *c)
{
    timer_mod(c->timer, now_ms() + c->retry_ms);
    c->retry_ms = MIN(c->retry_ms * 2, RETRY_MAX_MS);
}

/* It has just said something, or been asked for the first time. */
static void arm_patience(IRQClient *c)
{
    if (QTAILQ_EMPTY(&c->pending)) {
        timer_del(c->timer);
    } else {
        timer_mod(c->timer, now_ms() + SILENCE_MS);
    }
}

/*
 * Sending
 */

static int send_request(IRQClient *c, const IRQHelperRequest *rq, int fd)
{
    struct iovec iov = { (void *)rq, sizeof(*rq) };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (fd >= 0) {
        struct cmsghdr *cmsg;

        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    }
    return sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(*rq)
           ? 0 : -errno;
}

static bool is_full(int err)
{
    return err == -EAGAIN || err == -ENOBUFS || err == -ETOOMANYREFS;
}

/* Returns: 0, or a negative errno: @p stays the caller's. */
static int send_pending(IRQClient *c, Pending *p, int fd)
{
    int ret = send_request(c, &p->rq, fd);
    bool first = QTAILQ_EMPTY(&c->pending);

    if (ret) {
        /* a full queue is no reason to break the connection */
        return is_full(ret) ? -EAGAIN : -ENOTCONN;
    }
    QTAILQ_INSERT_TAIL(&c->pending, p, next);
    if (first) {
        arm_patience(c);
    }
    return 0;
}

static Pending *pending_new(IRQClient *c, const IRQHelperRequest *rq,
                            void *tag)
{
    Pending *p = g_new0(Pending, 1);

    p->rq = *rq;
    p->rq.id = ++c->last_id;
    p->tag = tag;
    p->proof = -1;
    return p;
}

static void pending_free(Pending *p)
{
    if (p->proof >= 0) {
        close(p->proof);
    }
    g_free(p->path);
    g_free(p->list);
    g_free(p);
}

/* Returns: -EINPROGRESS, or another negative errno. */
static int submit(IRQClient *c, const IRQHelperRequest *rq, int fd, void *tag)
{
    Pending *p;
    int ret;

    if (!QTAILQ_EMPTY(&c->unsent)) {
        return -EAGAIN;         /* not past these */
    }
    p = pending_new(c, rq, tag);
    ret = send_pending(c, p, fd);
    if (ret) {
        pending_free(p);
        return ret;
    }
    return -EINPROGRESS;
}

/* What did not fit before; how much of it fits now. */
static void send_unsent(IRQClient *c)
{
    Pending *p;

    while ((p = QTAILQ_FIRST(&c->unsent))) {
        QTAILQ_REMOVE(&c->unsent, p, next);
        if (send_pending(c, p, p->proof)) {
            QTAILQ_INSERT_HEAD(&c->unsent, p, next);
            return;
        }
        close(p->proof);
        p->proof = -1;
    }
}

bool irq_client_connected(const IRQClient *c)
{
    return c->greeted;
}

int irq_client_error(const IRQClient *c)
{
    return c->error;
}

int irq_client_move(IRQClient *c, void *tag, int irq, const char *device,
                    int proof, int tid, int cpu)
{
    IRQHelperRequest rq = {
        .op = IRQ_HELPER_MOVE, .number = irq, .cpu = cpu, .tid = tid,
    };

    if (!c->greeted) {
        return -ENOTCONN;
    }
    pstrcpy(rq.device, sizeof(rq.device), device);
    return submit(c, &rq, proof, tag);
}

int irq_client_restore(IRQClient *c, void *tag, const IRQRestore *what,
                       int proof, int tid)
{
    IRQHelperRequest rq = {
        .op = IRQ_HELPER_RESTORE, .number = what->irq, .tid = tid,
    };
    Pending *p;
    int ret;

    if (!c->greeted) {
        return -ENOTCONN;
    }
    pstrcpy(rq.device, sizeof(rq.device), what->device);
    /* one that is too long is of no use in part: the default it is */
    if (strlen(what->list) < sizeof(rq.list)) {
        pstrcpy(rq.list, sizeof(rq.list), what->list);
    }
    p = pending_new(c, &rq, tag);
    p->path = g_strdup(what->path);
    p->list = g_strdup(what->list);
    ret = QTAILQ_EMPTY(&c->unsent) ? send_pending(c, p, proof) : -EAGAIN;
    if (ret == -EAGAIN && !QTAILQ_EMPTY(&c->pending)) {
        /* an answer makes room; the device may be gone by then */
        p->proof = qemu_dup(proof);
        if (p->proof >= 0) {
            QTAILQ_INSERT_TAIL(&c->unsent, p, next);
            ret = 0;
        }
    }
    if (ret) {
        pending_free(p);
        return ret;
    }
    c->restores++;
    return -EINPROGRESS;
}

void irq_client_watch(IRQClient *c, void *tag, int tid)
{
    IRQHelperRequest rq = { .op = IRQ_HELPER_WATCH, .tid = tid };

    if (c->greeted) {
        submit(c, &rq, -1, tag);
    }
}

void irq_client_forget(IRQClient *c, void *tag)
{
    Pending *p;

    QTAILQ_FOREACH(p, &c->pending, next) {
        if (p->tag == tag) {
            p->tag = NULL;
        }
    }
    QTAILQ_FOREACH(p, &c->unsent, next) {
        if (p->tag == tag) {
            p->tag = NULL;
        }
    }
}

/*
 * Answers
 */

/* @p is in no list any more */
static void finish(IRQClient *c, Pending *p, int err, bool other, int fd)
{
    switch (p->rq.op) {
    case IRQ_HELPER_MOVE:
        if (p->tag) {
            c->ops->moved(c->opaque, p->tag, p->rq.cpu, err);
        }
        break;
    case IRQ_HELPER_WATCH:
        if (p->tag) {
            c->ops->watched(c->opaque, p->tag, err ? -1 : fd);
            fd = err ? fd : -1;
        }
        break;
    case IRQ_HELPER_RESTORE: {
        IRQRestore what = {
            .irq = p->rq.number, .device = p->rq.device, .path = p->path,
            .list = p->list, .other = other,
        };

        c->restores--;
        c->ops->restored(c->opaque, p->tag, &what, err);
        break;
    }
    }
    if (fd >= 0) {
        close(fd);
    }
    pending_free(p);
}

/* Once: it is asked again, at intervals. */
static void tell_refused(IRQClient *c, int err)
{
    if (!c->told) {
        c->told = true;
        warn_report("irq-affinity: the helper at '%s' does not serve this "
                    "process: %s", c->path,
                    err == ESRCH ? "it runs in another PID namespace"
                                 : strerror(err));
    }
}

/* Returns: false: this is no helper, or not ours. */
static bool take_reply(IRQClient *c, const IRQHelperReply *reply, int fd)
{
    Pending *p = QTAILQ_FIRST(&c->pending);
    bool hello;

    if (!p || p->rq.id != reply->id || p->rq.op != reply->op) {
        return false;
    }
    hello = p->rq.op == IRQ_HELPER_HELLO;
    if (hello && reply->error) {
        tell_refused(c, reply->error);
        return false;
    }
    if (hello && reply->value != IRQ_HELPER_VERSION) {
        return false;
    }
    QTAILQ_REMOVE(&c->pending, p, next);
    finish(c, p, reply->error, reply->value, fd);
    if (hello) {
        c->greeted = true;
        c->retry_ms = RETRY_MIN_MS;
        trace_irq_affinity_helper(c->path, true);
        c->ops->connected(c->opaque);
    }
    return true;
}

static int received_fd(struct msghdr *msg)
{
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);
    int fd;

    if (!cmsg || cmsg->cmsg_level != SOL_SOCKET ||
        cmsg->cmsg_type != SCM_RIGHTS ||
        cmsg->cmsg_len != CMSG_LEN(sizeof(int))) {
        return -1;
    }
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    return fd;
}

static void readable(void *opaque)
{
    IRQClient *c = opaque;
    IRQHelperReply reply;
    struct iovec iov = { &reply, sizeof(reply) };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control,
        /* room for one descriptor: the kernel closes more */
        .msg_controllen = CMSG_LEN(sizeof(int)),
    };
    ssize_t len = recvmsg(c->fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    int fd;

    if (len < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    fd = len < 0 ? -1 : received_fd(&msg);
    if (len != sizeof(reply) || msg.msg_flags & MSG_TRUNC) {
        if (fd >= 0) {
            close(fd);
        }
        disconnect(c);
        return;
    }
    if (!take_reply(c, &reply, fd)) {
        if (fd >= 0) {
            close(fd);
        }
        disconnect(c);
        return;
    }
    if (c->fd >= 0) {
        send_unsent(c);
        arm_patience(c);
    }
    stop_if_done(c);
}

/*
 * Connection
 */

static void close_socket(IRQClient *c)
{
    if (c->fd >= 0) {
        qemu_set_fd_handler(c->fd, NULL, NULL, NULL);
        close(c->fd);
        c->fd = -1;
    }
    if (c->greeted) {
        c->greeted = false;
        trace_irq_affinity_helper(c->path, false);
    }
}

/* What is under way will not be answered. */
static void fail_all(IRQClient *c, PendingList *list)
{
    Pending *p;

    while ((p = QTAILQ_FIRST(list))) {
        QTAILQ_REMOVE(list, p, next);
        finish(c, p, ENOTCONN, false, -1);
    }
}

static void disconnect(IRQClient *c)
{
    close_socket(c);
    timer_del(c->timer);
    fail_all(c, &c->pending);
    fail_all(c, &c->unsent);
    if (c->started) {
        retry_later(c);
    }
}

/* Nobody needs it any more, and all is given back. */
static void stop_if_done(IRQClient *c)
{
    if (!c->started && !c->restores) {
        disconnect(c);
    }
}

/*
 * The helper does not wait for anything of its peers: it will have room again.
 * When it has none for longer, it is as if it were not there.
 */
static void try_again(IRQClient *c, int err)
{
    close_socket(c);
    c->error = err;
    if (err == EAGAIN && c->busy < BUSY_TRIES) {
        c->busy++;
        trace_irq_affinity_helper_busy(c->path, c->busy);
        timer_mod(c->timer, now_ms() + BUSY_MS);
        return;
    }
    c->busy = 0;
    retry_later(c);
}

static void try_connect(IRQClient *c)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    IRQHelperRequest rq = {
        .op = IRQ_HELPER_HELLO, .number = IRQ_HELPER_VERSION,
    };

    pstrcpy(addr.sun_path, sizeof(addr.sun_path), c->path);
    c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* a full backlog is an error as well, it does not wait */
    if (c->fd < 0 ||
        connect(c->fd, (struct sockaddr *)&addr, sizeof(addr))) {
        try_again(c, errno);
        return;
    }
    c->busy = c->error = 0;
    qemu_set_fd_handler(c->fd, readable, NULL, c);
    if (submit(c, &rq, -1, NULL) != -EINPROGRESS) {
        disconnect(c);
    }
}

static void timer_cb(void *opaque)
{
    IRQClient *c = opaque;

    if (c->fd < 0) {
        try_connect(c);
    } else {
        disconnect(c);      /* it is silent */
    }
}

void irq_client_start(IRQClient *c)
{
    if (!c->started) {
        c->started = true;
        c->retry_ms = RETRY_MIN_MS;
        if (c->fd < 0) {
            try_connect(c);
        }
    }
}

void irq_client_stop(IRQClient *c)
{
    c->started = false;
    stop_if_done(c);
}

IRQClient *irq_client_new(const char *path, const IRQClientOps *ops,
                          void *opaque)
{
    IRQClient *c = g_new0(IRQClient, 1);

    c->path = g_strdup(path);
    c->ops = ops;
    c->opaque = opaque;
    c->fd = -1;
    c->timer = timer_new_ms(QEMU_CLOCK_REALTIME, timer_cb, c);
    QTAILQ_INIT(&c->pending);
    QTAILQ_INIT(&c->unsent);
    return c;
}

static unsigned free_all(PendingList *list)
{
    unsigned count = 0;
    Pending *p;

    while ((p = QTAILQ_FIRST(list))) {
        QTAILQ_REMOVE(list, p, next);
        pending_free(p);
        count++;
    }
    return count;
}

unsigned irq_client_free(IRQClient *c)
{
    unsigned lost;

    if (!c) {
        return 0;
    }
    if (c->fd >= 0) {
        send_unsent(c);
    }
    /* what was sent is served, though it cannot be answered */
    close_socket(c);
    timer_free(c->timer);
    free_all(&c->pending);
    lost = free_all(&c->unsent);
    g_free(c->path);
    g_free(c);
    return lost;
}
