/*
 * qemu-irq-affinity-helper: which connection is served next
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Closing the last descriptor of a connection closes all descriptors that were
 * sent through it and not received, and that may wait for as long as the peer
 * likes.  So the acceptor closes only what has none in it, or what is the next
 * server's already.  A connection that is refused and has some is kept; it goes
 * with the acceptor, as a process that exits does not wait for sockets, nor for
 * most files.
 *
 * Files of a FUSE with a writeback cache are waited for even then.  When many
 * acceptors are ending, the next one keeps such connections for as long as it
 * has descriptors: the kernel limits how many a user has under way, so these
 * are not enough to take all processes.
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/eventfd.h>
#include "qemu/atomic.h"
#include "accept.h"

/* Accepted before others are handed over */
#define BATCH 64
/* Pause after a failure that another attempt at once would meet again */
#define REST_MS 100

/*
 * @held: descriptors of connections that were refused
 * @idle: there was no further connection
 * @exhausted: another one could not be accepted
 */
typedef struct State {
    const IRQAcceptor *a;
    IRQQueue queue;
    unsigned held;
    bool idle;
    bool exhausted;
} State;

/*
 * Whose turn it is
 */

typedef struct Count {
    unsigned all;
    unsigned same_user;
    unsigned same_process;
} Count;

static void count_one(Count *c, const struct ucred *a, const struct ucred *b)
{
    c->all++;
    c->same_user += a->uid == b->uid;
    c->same_process += a->pid == b->pid;
}

static Count count_served(const IRQSlot *slots, const struct ucred *peer)
{
    Count c = { };

    for (unsigned i = 0; i < IRQ_SLOTS; i++) {
        if (qatomic_load_acquire(&slots[i].state) == IRQ_SLOT_SERVED) {
            count_one(&c, &slots[i].peer, peer);
        }
    }
    return c;
}

bool irq_too_many(const IRQSlot *slots, const struct ucred *peer)
{
    Count c = count_served(slots, peer);

    return c.all > IRQ_CONNECTIONS_MAX ||
           c.same_user > IRQ_CONNECTIONS_PER_USER_MAX ||
           c.same_process > IRQ_CONNECTIONS_PER_PROCESS_MAX;
}

void irq_queue_init(IRQQueue *q)
{
    QTAILQ_INIT(&q->list);
    q->turn = 0;
}

static void insert(IRQQueue *q, IRQWaiting *w)
{
    IRQWaiting *after;

    QTAILQ_FOREACH_REVERSE(after, &q->list, next) {
        if (after->turn <= w->turn) {
            QTAILQ_INSERT_AFTER(&q->list, after, w, next);
            return;
        }
    }
    QTAILQ_INSERT_HEAD(&q->list, w, next);
}

/*
 * A user's first one has the turn that is being served, each further one a
 * later turn.
 */
bool irq_queue_add(IRQQueue *q, const IRQSlot *slots, int fd,
                   const struct ucred *peer)
{
    Count served = count_served(slots, peer), waiting = { };
    uint64_t turn = q->turn;
    IRQWaiting *w;

    QTAILQ_FOREACH(w, &q->list, next) {
        count_one(&waiting, &w->peer, peer);
        if (w->peer.uid == peer->uid) {
            turn = w->turn + 1;
        }
    }
    if (waiting.all >= IRQ_WAITING_MAX ||
        waiting.same_user >= IRQ_WAITING_PER_USER_MAX ||
        served.all + waiting.all >= IRQ_CONNECTIONS_MAX ||
        served.same_user + waiting.same_user >= IRQ_CONNECTIONS_PER_USER_MAX ||
        served.same_process + waiting.same_process >=
        IRQ_CONNECTIONS_PER_PROCESS_MAX) {
        return false;
    }
    w = g_new0(IRQWaiting, 1);
    w->fd = fd;
    w->peer = *peer;
    w->turn = turn;
    insert(q, w);
    return true;
}

int irq_queue_take(IRQQueue *q)
{
    IRQWaiting *w = QTAILQ_FIRST(&q->list);
    int fd = -1;

    if (w) {
        QTAILQ_REMOVE(&q->list, w, next);
        q->turn = w->turn;
        fd = w->fd;
        g_free(w);
    }
    return fd;
}

/*
 * What is in a connection
 */

typedef enum Found {
    FOUND_NONE,                 /* and the peer will send nothing more */
    FOUND_NONE_YET,
    FOUND_PLAIN,
    FOUND_DESCRIPTORS,
} Found;

/*
 * Look at the first message, which stays there.  The sender's credentials are
 * asked for to tell an empty message from the end; there is no room for
 * descriptors, so none is installed.
 */
static Found peek(int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    char data;
    struct iovec iov = { &data, sizeof(data) };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    ssize_t len;
    int on = 1, off = 0, err;

    setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
    do {
        /* reset is told once, before what the peer sent */
        len = recvmsg(fd, &msg, MSG_PEEK | MSG_DONTWAIT);
        err = len < 0 ? errno : 0;
    } while (err == EINTR || err == ECONNRESET);
    setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &off, sizeof(off));
    if (err) {
        return err == EAGAIN ? FOUND_NONE_YET : FOUND_DESCRIPTORS;
    }
    if (msg.msg_flags & MSG_CTRUNC) {
        return FOUND_DESCRIPTORS;
    }
    return len || msg.msg_controllen ? FOUND_PLAIN : FOUND_NONE;
}

static void refuse(State *s, int fd)
{
    Found found;
    char data;

    /* that is what the peer notices; nothing more gets in */
    shutdown(fd, SHUT_RDWR);
    while ((found = peek(fd)) == FOUND_PLAIN) {
        if (recv(fd, &data, sizeof(data), MSG_DONTWAIT) < 0) {
            break;
        }
    }
    if (found == FOUND_NONE) {
        close(fd);
    } else {
        s->held++;
    }
}

/*
 * Accepting
 */

static void admit(State *s, int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) ||
        !irq_queue_add(&s->queue, s->a->shared->slots, fd, &peer)) {
        refuse(s, fd);
    }
}

static void accept_some(State *s)
{
    s->idle = s->exhausted = false;
    for (unsigned i = 0; i < BATCH; i++) {
        int fd = accept4(s->a->listener, NULL, NULL, SOCK_CLOEXEC);

        if (fd >= 0) {
            admit(s, fd);
        } else if (errno == EAGAIN) {
            s->idle = true;
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            s->exhausted = true;
            return;
        }
    }
}

/*
 * Handing over
 */

static bool send_connection(int to, int fd)
{
    char data = 0;
    struct iovec iov = { &data, sizeof(data) };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    return sendmsg(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(data);
}

int irq_accept_take(int from)
{
    char data;
    struct iovec iov = { &data, sizeof(data) };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg;
    int fd;

    if (recvmsg(from, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) {
        return -1;
    }
    cmsg = CMSG_FIRSTHDR(&msg);
    if (!cmsg || cmsg->cmsg_len != CMSG_LEN(sizeof(int))) {
        return -1;              /* no descriptor was free: it is closed */
    }
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    return fd;
}

/* A server that has ended must not leave the last descriptor here. */
static void hand_over(State *s, int fd)
{
    uint32_t *offer = &s->a->shared->offer;

    qatomic_set(offer, IRQ_OFFER_SENDING);
    /* seen before the connection is, should this process be killed there */
    smp_mb();
    if (!send_connection(s->a->to, fd)) {
        /* sockets in sockets, as deep as the kernel allows; or a shortage */
        qatomic_set(offer, IRQ_OFFER_NONE);
        refuse(s, fd);
        return;
    }
    close(fd);
    qatomic_store_release(offer, IRQ_OFFER_READY);
    eventfd_write(s->a->news, 1);
}

static void hand_over_next(State *s)
{
    int fd;

    while (qatomic_load_acquire(&s->a->shared->offer) == IRQ_OFFER_NONE &&
           (fd = irq_queue_take(&s->queue)) >= 0) {
        if (peek(fd) == FOUND_NONE) {
            close(fd);          /* gone, and it has asked for nothing */
        } else {
            hand_over(s, fd);
        }
    }
}

/*
 * End
 */

static unsigned ending(const IRQSlot *slots)
{
    unsigned count = 0;

    for (unsigned i = 0; i < IRQ_SLOTS; i++) {
        count += qatomic_read(&slots[i].state) == IRQ_SLOT_ENDING;
    }
    return count;
}

/* Is it time to get rid of what was refused? */
static bool shall_end(const State *s)
{
    return s->held && QTAILQ_EMPTY(&s->queue.list) &&
           (s->exhausted ||
            (s->idle && ending(s->a->shared->slots) < IRQ_ENDING_MAX));
}

void irq_accept(const IRQAcceptor *a)
{
    State s = { .a = a };
    eventfd_t count;

    irq_queue_init(&s.queue);
    while (!shall_end(&s)) {
        struct pollfd fds[] = {
            { .fd = a->more, .events = POLLIN },
            { .fd = s.exhausted ? -1 : a->listener, .events = POLLIN },
        };

        poll(fds, ARRAY_SIZE(fds), s.exhausted ? REST_MS : -1);
        eventfd_read(a->more, &count);
        accept_some(&s);
        hand_over_next(&s);
    }
    qatomic_set(&a->slot->state, IRQ_SLOT_ENDING);
    eventfd_write(a->news, 1);
}
