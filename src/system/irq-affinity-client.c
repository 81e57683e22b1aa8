/*
 * Interrupt affinity that follows the vCPU: connection to the helper
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "system/irq-affinity-proto.h"
#include "irq-affinity-client.h"
#include "trace.h"

#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 30000
#define SILENCE_MS 5000

typedef struct Pending {
    uint32_t op;
    uint32_t id;
    int cpu;
    void *tag;              /* NULL: nobody waits for it */
    int64_t sent_ms;
    QTAILQ_ENTRY(Pending) next;
} Pending;

struct IRQClient {
    char *path;
    const IRQClientOps *ops;
    void *opaque;
    bool started;
    bool greeted;
    int fd;
    uint32_t last_id;
    unsigned retry_ms;
    QEMUTimer *timer;       /* next attempt, or the end of patience */
    QTAILQ_HEAD(, Pending) pending;
};

static void disconnect(IRQClient *c);

static int64_t now_ms(void)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
}

static void retry_later(IRQClient *c)
{
    timer_mod(c->timer, now_ms() + c->retry_ms);
    c->retry_ms = MIN(c->retry_ms * 2, RETRY_MAX_MS);
}

static void arm_patience(IRQClient *c)
{
    Pending *first = QTAILQ_FIRST(&c->pending);

    if (first) {
        timer_mod(c->timer, first->sent_ms + SILENCE_MS);
    } else {
        timer_del(c->timer);
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

/* Returns: -EINPROGRESS, or another negative errno. */
static int submit(IRQClient *c, IRQHelperRequest *rq, int fd, void *tag)
{
    Pending *p;
    int ret;

    rq->id = ++c->last_id;
    ret = send_request(c, rq, fd);
    if (ret) {
        /* a full queue is no reason to break the connection */
        return ret == -EAGAIN || ret == -ENOBUFS ? -EAGAIN : -ENOTCONN;
    }
    p = g_new0(Pending, 1);
    p->op = rq->op;
    p->id = rq->id;
    p->cpu = rq->cpu;
    p->tag = tag;
    p->sent_ms = now_ms();
    QTAILQ_INSERT_TAIL(&c->pending, p, next);
    arm_patience(c);
    return -EINPROGRESS;
}

bool irq_client_connected(const IRQClient *c)
{
    return c->greeted;
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

void irq_client_restore(IRQClient *c, int irq, const char *device, int proof,
                        int tid, const char *list)
{
    IRQHelperRequest rq = {
        .op = IRQ_HELPER_RESTORE, .number = irq, .tid = tid,
    };

    if (c->greeted) {
        pstrcpy(rq.device, sizeof(rq.device), device);
        /* one that is too long is of no use in part: the default it is */
        if (strlen(list) < sizeof(rq.list)) {
            pstrcpy(rq.list, sizeof(rq.list), list);
        }
        submit(c, &rq, proof, NULL);
    }
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
}

/*
 * Answers
 */

static void finish(IRQClient *c, Pending *p, int err, int fd)
{
    QTAILQ_REMOVE(&c->pending, p, next);
    if (p->tag && p->op == IRQ_HELPER_MOVE) {
        c->ops->moved(c->opaque, p->tag, p->cpu, err);
    } else if (p->tag && p->op == IRQ_HELPER_WATCH) {
        c->ops->watched(c->opaque, p->tag, err ? -1 : fd);
        fd = err ? fd : -1;
    }
    if (fd >= 0) {
        close(fd);
    }
    g_free(p);
}

/* Returns: false: this is no helper. */
static bool take_reply(IRQClient *c, const IRQHelperReply *reply, int fd)
{
    Pending *p = QTAILQ_FIRST(&c->pending);

    if (!p || p->id != reply->id || p->op != reply->op) {
        return false;
    }
    if (p->op == IRQ_HELPER_HELLO) {
        if (reply->error || reply->value != IRQ_HELPER_VERSION) {
            return false;
        }
        c->greeted = true;
        c->retry_ms = RETRY_MIN_MS;
        finish(c, p, 0, fd);
        trace_irq_affinity_helper(c->path, true);
        c->ops->connected(c->opaque);
        return true;
    }
    finish(c, p, reply->error, fd);
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
    if (len != sizeof(reply)) {
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
    } else if (c->fd >= 0) {
        arm_patience(c);
    }
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

static void disconnect(IRQClient *c)
{
    Pending *p;

    close_socket(c);
    while ((p = QTAILQ_FIRST(&c->pending))) {
        finish(c, p, ENOTCONN, -1);
    }
    if (c->started) {
        retry_later(c);
    }
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
        close_socket(c);
        retry_later(c);
        return;
    }
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
        try_connect(c);
    }
}

void irq_client_stop(IRQClient *c)
{
    Pending *p;

    c->started = false;
    close_socket(c);
    timer_del(c->timer);
    while ((p = QTAILQ_FIRST(&c->pending))) {
        p->tag = NULL;
        finish(c, p, ENOTCONN, -1);
    }
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
    return c;
}

void irq_client_free(IRQClient *c)
{
    if (!c) {
        return;
    }
    irq_client_stop(c);
    timer_free(c->timer);
    g_free(c->path);
    g_free(c);
}
