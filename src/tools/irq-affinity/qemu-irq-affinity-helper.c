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
 * The first process accepts connections, no more; it never has a descriptor of
 * a peer.  A peer that sends what is no message is disconnected.
 */

#include "qemu/osdep.h"
#include <getopt.h>
#include <glib-unix.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include "qemu/cutils.h"
#include "qemu/systemd.h"
#include "qemu-version.h"
#include "serve.h"

/* a connection counts until its process has ended, however long that takes */
#define CONNECTIONS_MAX 400
#define CONNECTIONS_PER_USER_MAX 200
#define CONNECTIONS_PER_PROCESS_MAX 16
/* between two attempts to serve what comes too fast */
#define LATER_US (20 * 1000)
#define DEFAULT_MOVES_PER_S 500
#define MOVES_PER_S_MAX 1000000

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* The process that serves a connection, and whose it is */
typedef struct Server {
    pid_t pid;
    struct ucred peer;
} Server;

typedef struct Options {
    const char *socket;
    const char *cpus;
    const char *root;
    unsigned moves_per_s;
} Options;

static volatile sig_atomic_t stop;

static void on_stop(int number)
{
    stop = 1;
}

/* Only ends ppoll(). */
static void on_child(int number)
{
}

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
    pidfd = syscall(SYS_pidfd_open, pid, 0);
#endif
    return pidfd;
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
    }
    return result;
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
    int fd, reply_fd = -1;
    bool ok;

    if (len < 0) {
        /* reset is told once, before what the peer sent: read that too */
        return errno == EINTR || errno == ECONNRESET;
    }
    fd = take_fd(&msg);
    ok = fd != -2 && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) &&
         serve_message(s, peer, data, len, fd, &reply,
                       &reply_fd) == IRQ_SERVE_ANSWER &&
         (send_reply(from, &reply, reply_fd) ||
          errno == EPIPE || errno == ECONNRESET);
    if (fd >= 0) {
        close(fd);
    }
    if (reply_fd >= 0) {
        close(reply_fd);
    }
    return ok;
}

/* @parent: dies with it; @mask: the signals that are blocked */
static void G_NORETURN serve_peer(IRQServe *s, int fd, pid_t pid,
                                  pid_t parent, const sigset_t *mask)
{
    IRQPeer peer = { .pid = pid, .pidfd = peer_pidfd(fd, pid) };

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    while (getppid() == parent && serve_one(s, fd, &peer)) {
        /* the next one */
    }
    _exit(0);
}

/*
 * All connections
 */

static bool too_many(const GArray *servers, const struct ucred *peer)
{
    unsigned same_user = 0, same_process = 0;

    for (unsigned i = 0; i < servers->len; i++) {
        const Server *server = &g_array_index(servers, Server, i);

        same_user += server->peer.uid == peer->uid;
        same_process += server->peer.pid == peer->pid;
    }
    return servers->len >= CONNECTIONS_MAX ||
           same_user >= CONNECTIONS_PER_USER_MAX ||
           same_process >= CONNECTIONS_PER_PROCESS_MAX;
}

static void accept_one(IRQServe *s, int listener, GArray *servers,
                       const sigset_t *mask)
{
    static bool told;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    Server server = { };
    socklen_t len = sizeof(server.peer);
    pid_t self = getpid();

    if (fd < 0) {
        return;
    }
    if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server.peer, &len) &&
        !too_many(servers, &server.peer)) {
        server.pid = fork();
        if (!server.pid) {
            close(listener);
            serve_peer(s, fd, server.peer.pid, self, mask);
        }
        if (server.pid > 0) {
            g_array_append_val(servers, server);
        } else if (!told) {
            told = true;
            say("cannot serve a connection: fork: %s", strerror(errno));
        }
    }
    close(fd);
}

static void reap(GArray *servers)
{
    pid_t pid;

    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
        for (unsigned i = 0; i < servers->len; i++) {
            if (g_array_index(servers, Server, i).pid == pid) {
                g_array_remove_index_fast(servers, i);
                break;
            }
        }
    }
}

/* @mask: signals that are let through while there is nothing to do */
static void serve(IRQServe *s, int listener, const sigset_t *mask)
{
    g_autoptr(GArray) servers = g_array_new(false, false, sizeof(Server));

    while (!stop) {
        struct pollfd pollfd = { .fd = listener, .events = POLLIN };
        bool ready = ppoll(&pollfd, 1, NULL, mask) > 0;

        /* before another is let in: they make room */
        reap(servers);
        if (ready) {
            accept_one(s, listener, servers, mask);
        }
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
        listen(fd, 64)) {
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

int main(int argc, char **argv)
{
    Options o = {
        .socket = IRQ_HELPER_SOCKET,
        .root = "",
        .moves_per_s = DEFAULT_MOVES_PER_S,
    };
    struct sigaction stopped = { .sa_handler = on_stop };
    struct sigaction ended = { .sa_handler = on_child };
    sigset_t block, before;
    int status = parse(argc, argv, &o);
    bool activated;
    IRQServe *s;
    int listener;

    if (status >= 0) {
        return status;
    }
    s = irq_serve_new(o.root, o.cpus, o.moves_per_s);
    if (!s) {
        say("--cpus is '%s', but must be a list of processors as 0-3,8",
            o.cpus);
        return 1;
    }
    sigemptyset(&block);
    sigaddset(&block, SIGTERM);
    sigaddset(&block, SIGINT);
    sigaddset(&block, SIGCHLD);
    sigprocmask(SIG_BLOCK, &block, &before);
    sigaction(SIGTERM, &stopped, NULL);
    sigaction(SIGINT, &stopped, NULL);
    sigaction(SIGCHLD, &ended, NULL);
    activated = check_socket_activation() == 1;
    listener = activated ? FIRST_SOCKET_ACTIVATION_FD : listen_at(o.socket);
    if (listener >= 0) {
        g_unix_set_fd_nonblocking(listener, true, NULL);
        serve(s, listener, &before);
        close(listener);
        if (!activated) {
            unlink(o.socket);
        }
    }
    irq_serve_free(s);
    return listener < 0;
}
