/*
 * qemu-irq-affinity-helper: move the interrupts of assigned devices for QEMU
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A process of its own serves each connection.  The peer sends descriptors, and
 * whatever is done with one, closing it included, may wait for as long as the
 * peer likes: for a FUSE server, a socket that lingers, a terminal.  That has
 * to hold up nobody else.  Processes and not threads, since a wait for a FUSE
 * server cannot be killed, and would keep the helper from being restarted.
 *
 * The acceptor (accept.c) accepts connections and chooses the next one; the
 * first process makes a process that takes it over, and another acceptor when
 * that has ended.  It has no connection itself, not even one that is refused:
 * whoever closes the last descriptor of a connection closes all that was sent
 * through it as well.  A process that exits does not wait for sockets.
 *
 * A peer that sends what is no message is disconnected.
 */

#include "qemu/osdep.h"
#include <getopt.h>
#include <glib-unix.h>
#include <poll.h>
#include <linux/sockios.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include "qemu/atomic.h"
#include "qemu/cutils.h"
#include "qemu/rcu.h"
#include "qemu/systemd.h"
#include "qemu-version.h"
#include "accept.h"
#include "serve.h"

/*
 * Connections that wait to be accepted.  Accepting is quick; who fills this
 * delays others by as many.
 */
#define BACKLOG 256
/* After a failure that another attempt at once would meet again */
#define REST_NS (100 * 1000 * 1000LL)
/* How long a descriptor of the peer may be waited for, its closing included */
#define DESCRIPTOR_S 30
/* between two looks whether the peer has read its replies */
#define UNREAD_US_MIN 100
/* between two attempts to serve what comes too fast */
#define LATER_US (20 * 1000)
#define DEFAULT_MOVES_PER_S 500
#define MOVES_PER_S_MAX 1000000

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/*
 * @signals: of signalfd()
 * @news: of eventfd(): a slot is no longer STARTING, there is an offer, or the
 *        acceptor ends
 * @more: of eventfd(): the acceptor may offer another connection
 * @handover: where connections are taken from, and sent to
 * @before: mask of signals
 * @acceptor: its slot
 * @starting: the last one, until it has told
 * @not_before_ns: of the next one, or of the next acceptor
 */
typedef struct Helper {
    IRQServe *s;
    int listener;
    int signals;
    int news;
    int more;
    int handover[2];
    sigset_t before;
    IRQShared *shared;
    IRQSlot *acceptor;
    IRQSlot *starting;
    int64_t not_before_ns;
} Helper;

typedef struct Options {
    const char *socket;
    const char *cpus;
    const char *root;
    unsigned moves_per_s;
} Options;

static int64_t monotonic_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void G_GNUC_PRINTF(1, 2) say(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fprintf(stderr, "qemu-irq-affinity-helper: ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
}

/*
 * One connection, in its own process
 */

static int peer_pidfd(int fd, pid_t pid)
{
    int pidfd = -1;
    socklen_t len = sizeof(pidfd);

    if (!getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len)) {
        return pidfd;
    }
#ifdef SYS_pidfd_open
    /* before Linux 6.5: the process could have ended since it connected */
    if (errno == ENOPROTOOPT) {
        return syscall(SYS_pidfd_open, pid, 0);
    }
#endif
    return -1;
}

/* Returns: one descriptor, -1 for none, -2 if there was more than one. */
static int take_fd(struct msghdr *msg)
{
    int fd = -1;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg;
         cmsg = CMSG_NXTHDR(msg, cmsg)) {
        int *fds = (int *)CMSG_DATA(cmsg);
        unsigned count;

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (unsigned i = 0; i < count; i++) {
            if (fd == -1) {
                fd = fds[i];
            } else {
                close(fds[i]);
                if (fd >= 0) {
                    close(fd);
                }
                fd = -2;
            }
        }
    }
    return fd;
}

static bool send_reply(int to, const IRQHelperReply *reply, int fd)
{
    struct iovec iov = { (void *)reply, sizeof(*reply) };
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
    /* a peer that is slow to read waits for itself only */
    return sendmsg(to, &msg, MSG_NOSIGNAL) == sizeof(*reply);
}

static IRQServeResult serve_message(IRQServe *s, IRQPeer *peer,
                                    const void *data, size_t len, int fd,
                                    IRQHelperReply *reply, int *reply_fd)
{
    IRQServeResult result;

    while ((result = irq_serve_request(s, peer, data, len, fd, reply, reply_fd,
                                       monotonic_ns())) == IRQ_SERVE_LATER) {
        g_usleep(LATER_US);
        alarm(DESCRIPTOR_S);
    }
    return result;
}

/*
 * A descriptor that is under way counts against the sender's user, root, and
 * there is a limit: so one at a time for each connection, or a peer that does
 * not read keeps all others from theirs.
 */
static void wait_until_read(int to)
{
    unsigned pause_us = UNREAD_US_MIN;
    int unread;

    while (!ioctl(to, SIOCOUTQ, &unread) && unread > 0) {
        g_usleep(pause_us);
        pause_us = MIN(pause_us * 2, LATER_US);
    }
}

static bool send_answer(int to, IRQHelperReply *reply, int fd)
{
    if (fd >= 0) {
        wait_until_read(to);
    }
    if (send_reply(to, reply, fd)) {
        return true;
    }
    if (fd >= 0 && (errno == ETOOMANYREFS || errno == ENOBUFS)) {
        reply->error = EAGAIN;
        return send_reply(to, reply, -1);
    }
    return errno == EPIPE || errno == ECONNRESET;
}

/*
 * Who gives its interrupts back asks for all of them, and closes: that it does
 * not take the replies is no reason not to serve what it has asked for.
 *
 * Returns: false: end the connection.
 */
static bool serve_one(IRQServe *s, int from, IRQPeer *peer)
{
    char data[sizeof(IRQHelperRequest) + 1];
    struct iovec iov = { data, sizeof(data) };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    IRQHelperReply reply;
    ssize_t len = recvmsg(from, &msg, MSG_CMSG_CLOEXEC);
    IRQServeResult result = IRQ_SERVE_END;
    int fd, reply_fd = -1;
    bool ok;

    if (len < 0) {
        /* reset is told once, before what the peer sent: read that too */
        return errno == EINTR || errno == ECONNRESET;
    }
    /* or this process, and what it holds, is there for as long as they like */
    alarm(DESCRIPTOR_S);
    fd = take_fd(&msg);
    if (fd != -2 && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        result = serve_message(s, peer, data, len, fd, &reply, &reply_fd);
    }
    alarm(0);
    ok = result == IRQ_SERVE_ANSWER && send_answer(from, &reply, reply_fd);
    if (fd >= 0) {
        alarm(DESCRIPTOR_S);
        close(fd);
        alarm(0);
    }
    if (reply_fd >= 0) {
        close(reply_fd);
    }
    return ok;
}

static void G_NORETURN serve_peer(IRQServe *s, int fd,
                                  const struct ucred *cred, pid_t parent)
{
    IRQPeer peer = {
        .pid = cred->pid, .uid = cred->uid,
        .pidfd = peer_pidfd(fd, cred->pid), .fd = fd,
    };

    while (getppid() == parent && serve_one(s, fd, &peer)) {
        /* the next one */
    }
    _exit(0);
}

/* Returns: a connection that is to be served, or -1. */
static int take_one(const Helper *h, IRQSlot *slot)
{
    int fd = irq_accept_take(h->handover[0]);
    socklen_t len = sizeof(slot->peer);

    if (fd < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &slot->peer, &len)) {
        return -1;
    }
    qatomic_store_release(&slot->state, IRQ_SLOT_SERVED);
    /* the acceptor may have been another one when it counted */
    return irq_too_many(h->shared->slots, &slot->peer) ? -1 : fd;
}

/* @parent: dies with it */
static void begin_child(const Helper *h, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(0);
    }
    sigprocmask(SIG_SETMASK, &h->before, NULL);
    close(h->signals);
}

static void G_NORETURN serve_next(const Helper *h, IRQSlot *slot, pid_t parent)
{
    int fd;

    begin_child(h, parent);
    fd = take_one(h, slot);
    if (fd < 0) {
        /* not close(): see the top of this file */
        qatomic_set(&slot->state, IRQ_SLOT_ENDING);
    }
    if (eventfd_write(h->news, 1) || fd < 0) {
        _exit(0);
    }
    close(h->news);
    close(h->more);
    close(h->handover[0]);
    close(h->handover[1]);
    close(h->listener);
    serve_peer(h->s, fd, &slot->peer, parent);
}

static void G_NORETURN accept_all(const Helper *h, IRQSlot *slot, pid_t parent)
{
    const IRQAcceptor acceptor = {
        .listener = h->listener, .to = h->handover[1], .news = h->news,
        .more = h->more, .shared = h->shared, .slot = slot,
    };

    begin_child(h, parent);
    irq_accept(&acceptor);
    _exit(0);
}

/*
 * All connections
 */

static IRQSlot *slot_of(const Helper *h, pid_t pid)
{
    for (unsigned i = 0; i < IRQ_SLOTS; i++) {
        if (h->shared->slots[i].pid == pid) {
            return &h->shared->slots[i];
        }
    }
    return NULL;
}

/* Returns: the slot of a new process, NULL: not now. */
static IRQSlot *start_one(Helper *h, uint32_t state,
                          void (*run)(const Helper *, IRQSlot *, pid_t))
{
    static bool told;
    IRQSlot *slot = slot_of(h, 0);
    pid_t self = getpid(), pid;

    if (!slot) {
        return NULL;            /* until one ends */
    }
    slot->state = state;
    pid = fork();
    if (!pid) {
        run(h, slot, self);
    }
    if (pid > 0) {
        slot->pid = pid;
        return slot;
    }
    if (!told) {
        told = true;
        say("cannot serve a connection: fork: %s", strerror(errno));
    }
    slot->state = IRQ_SLOT_FREE;
    h->not_before_ns = monotonic_ns() + REST_NS;
    return NULL;
}

/*
 * Has the last one taken its connection, or ended?  Until then the acceptor
 * offers no other.
 */
static void look_at_starting(Helper *h)
{
    struct pollfd pollfd = { .fd = h->handover[0], .events = POLLIN };

    if (!h->starting ||
        qatomic_read(&h->starting->state) == IRQ_SLOT_STARTING) {
        return;
    }
    h->starting = NULL;
    if (poll(&pollfd, 1, 0) > 0) {
        return;                 /* it did not get there: another one does */
    }
    qatomic_store_release(&h->shared->offer, IRQ_OFFER_NONE);
    eventfd_write(h->more, 1);
}

/* The one that it was sending has arrived, or has not. */
static void acceptor_gone(Helper *h)
{
    struct pollfd pollfd = { .fd = h->handover[0], .events = POLLIN };

    if (h->shared->offer == IRQ_OFFER_SENDING) {
        h->shared->offer = poll(&pollfd, 1, 0) > 0 ? IRQ_OFFER_READY
                                                   : IRQ_OFFER_NONE;
    }
    h->acceptor = NULL;
}

static void reap(Helper *h)
{
    pid_t pid;

    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
        IRQSlot *slot = slot_of(h, pid);

        if (!slot) {
            continue;
        }
        if (slot == h->acceptor) {
            acceptor_gone(h);
            if (slot->state == IRQ_SLOT_ACCEPTING) {
                /* it was killed: not again at once */
                h->not_before_ns = monotonic_ns() + REST_NS;
            }
        }
        slot->pid = 0;
        qatomic_set(&slot->state, IRQ_SLOT_FREE);
    }
    look_at_starting(h);
    if (h->acceptor &&
        qatomic_read(&h->acceptor->state) != IRQ_SLOT_ACCEPTING) {
        acceptor_gone(h);
    }
}

static void start_some(Helper *h)
{
    if (!h->acceptor) {
        h->acceptor = start_one(h, IRQ_SLOT_ACCEPTING, accept_all);
    }
    if (!h->starting &&
        qatomic_load_acquire(&h->shared->offer) == IRQ_OFFER_READY) {
        h->starting = start_one(h, IRQ_SLOT_STARTING, serve_next);
    }
}

/* Returns: false: to stop. */
static bool read_signals(int fd)
{
    struct signalfd_siginfo info;
    bool go_on = true;

    while (read(fd, &info, sizeof(info)) == sizeof(info)) {
        go_on &= info.ssi_signo == SIGCHLD;
    }
    return go_on;
}

static void serve(Helper *h)
{
    eventfd_t count;

    while (read_signals(h->signals)) {
        struct pollfd fds[] = {
            { .fd = h->signals, .events = POLLIN },
            { .fd = h->news, .events = POLLIN },
        };
        int64_t rest_ns;

        eventfd_read(h->news, &count);
        reap(h);
        if (monotonic_ns() >= h->not_before_ns) {
            start_some(h);
        }
        rest_ns = h->not_before_ns - monotonic_ns();
        poll(fds, ARRAY_SIZE(fds),
             rest_ns > 0 ? rest_ns / (1000 * 1000) + 1 : -1);
    }
}

/*
 * What waits to be accepted, or to be taken, is closed with the last descriptor
 * of these sockets: not by this process.
 */
static void leave_sockets(const Helper *h)
{
    pid_t self = getpid(), pid = fork();

    if (pid > 0) {
        close(h->listener);
        close(h->handover[0]);
        close(h->handover[1]);
    } else if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (getppid() == self) {
            pause();
        }
        _exit(0);
    }
}

/*
 * Start
 */

static int listen_at(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        say("the path of the socket is longer than %zu bytes: %s",
            sizeof(addr.sun_path) - 1, path);
        return -1;
    }
    pstrcpy(addr.sun_path, sizeof(addr.sun_path), path);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(path);
    /* who may connect is the administrator's to widen */
    umask(0177);
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
        listen(fd, BACKLOG)) {
        say("cannot listen at %s: %s", path, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

static void usage(FILE *to)
{
    fprintf(to,
"Usage: qemu-irq-affinity-helper [OPTION]...\n"
"Move the interrupts of assigned devices to where QEMU's vCPUs run.\n"
"\n"
"  -k, --socket=PATH            listen here (default: %s)\n"
"  -c, --cpus=LIST              processors to which interrupts may be sent,\n"
"                               as 0-3,8 (default: all)\n"
"  -m, --max-moves-per-s=N      for each device (default: %d)\n"
"      --x-root=DIR             directory in the place of the root, for "
"tests\n"
"  -h, --help                   show this text\n"
"  -V, --version                show the version\n",
            IRQ_HELPER_SOCKET, DEFAULT_MOVES_PER_S);
}

/* Returns: -1: go on, else the exit status. */
static int parse(int argc, char **argv, Options *o)
{
    static const struct option options[] = {
        { "socket", required_argument, NULL, 'k' },
        { "cpus", required_argument, NULL, 'c' },
        { "max-moves-per-s", required_argument, NULL, 'm' },
        { "x-root", required_argument, NULL, 'r' },
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },
        { }
    };
    int c;

    while ((c = getopt_long(argc, argv, "k:c:m:hV", options, NULL)) >= 0) {
        switch (c) {
        case 'k':
            o->socket = optarg;
            break;
        case 'c':
            o->cpus = optarg;
            break;
        case 'm':
            if (qemu_strtoui(optarg, NULL, 10, &o->moves_per_s) ||
                !o->moves_per_s || o->moves_per_s > MOVES_PER_S_MAX) {
                say("--max-moves-per-s is '%s', but must be from 1 to %d",
                    optarg, MOVES_PER_S_MAX);
                return 1;
            }
            break;
        case 'r':
            o->root = optarg;
            break;
        case 'h':
            usage(stdout);
            return 0;
        case 'V':
            printf("qemu-irq-affinity-helper version " QEMU_FULL_VERSION "\n");
            return 0;
        default:
            usage(stderr);
            return 1;
        }
    }
    if (optind < argc) {
        say("unexpected argument '%s'", argv[optind]);
        return 1;
    }
    return -1;
}

/* Returns: whether all that is needed was there. */
static bool prepare(Helper *h)
{
    sigset_t block;

    sigemptyset(&block);
    sigaddset(&block, SIGTERM);
    sigaddset(&block, SIGINT);
    sigaddset(&block, SIGCHLD);
    sigprocmask(SIG_BLOCK, &block, &h->before);
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    signal(SIGALRM, SIG_DFL);
    /* it would start a thread in each process that is made */
    rcu_disable_atfork();
    h->signals = signalfd(-1, &block, SFD_CLOEXEC | SFD_NONBLOCK);
    h->news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    h->more = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    h->shared = mmap(NULL, sizeof(IRQShared), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (h->signals < 0 || h->news < 0 || h->more < 0 ||
        h->shared == MAP_FAILED ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, h->handover)) {
        say("cannot start: %s", strerror(errno));
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    Options o = {
        .socket = IRQ_HELPER_SOCKET,
        .root = "",
        .moves_per_s = DEFAULT_MOVES_PER_S,
    };
    Helper h = { .listener = -1 };
    int status = parse(argc, argv, &o);
    bool activated;

    if (status >= 0) {
        return status;
    }
    h.s = irq_serve_new(o.root, o.cpus, o.moves_per_s);
    if (!h.s) {
        say("--cpus is '%s', but must be a list of processors as 0-3,8",
            o.cpus);
        return 1;
    }
    if (!prepare(&h)) {
        return 1;
    }
    activated = check_socket_activation() == 1;
    h.listener = activated ? FIRST_SOCKET_ACTIVATION_FD : listen_at(o.socket);
    if (h.listener < 0) {
        return 1;
    }
    g_unix_set_fd_nonblocking(h.listener, true, NULL);
    serve(&h);
    if (!activated) {
        unlink(o.socket);
    }
    leave_sockets(&h);
    irq_serve_free(h.s);
    return 0;
}
