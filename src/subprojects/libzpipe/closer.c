/*
 * zpipe: closing what a peer has sent
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A peer can send any descriptor.  close() of one can wait: a file of a FUSE
 * daemon that does not answer, a TCP socket that lingers, a UNIX socket with
 * such a one in its queue.  What is no memfd, and not used, is closed by a
 * thread made for that.  A few may be stuck at a time, over all handles; then
 * no message is received any more until they get on.
 *
 * Descriptors that nobody receives are closed by the kernel, on behalf of who
 * reads past them or closes the socket: so none are left there.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "zpipe-int.h"

#define CLOSING_MAX 32
/* More packets than fit into a socket. */
#define LEFT_MAX 10000

static unsigned closing;

static bool closes_at_once(int fd)
{
    /* the question does not leave the kernel */
    return fcntl(fd, F_GET_SEALS) >= 0;
}

static void *close_it(void *opaque)
{
    close((int)(intptr_t)opaque);
    __atomic_sub_fetch(&closing, 1, __ATOMIC_RELEASE);
    return NULL;
}

static bool close_in_thread(int fd)
{
    sigset_t all, old;
    pthread_attr_t attr;
    pthread_t thread;
    bool good;

    if (pthread_attr_init(&attr)) {
        return false;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, MAX(PTHREAD_STACK_MIN, 64 << 10));
    /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    __atomic_add_fetch(&closing, 1, __ATOMIC_RELAXED);
    good = !pthread_create(&thread, &attr, close_it, (void *)(intptr_t)fd);
    if (!good) {
        __atomic_sub_fetch(&closing, 1, __ATOMIC_RELAXED);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return good;
}

void close_received(int fd)
{
    if (closes_at_once(fd) || !close_in_thread(fd)) {
        close(fd);
    }
}

int received_fds(struct msghdr *hdr, int *fds)
{
    int n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(hdr); c; c = CMSG_NXTHDR(hdr, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            int more = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

            memcpy(fds + n, CMSG_DATA(c), more * sizeof(int));
            n += more;
        }
    }
    return n;
}

/*
 * Take one packet, or some bytes; false: there was none.  With @packets, a
 * socket that has SO_PASSCRED, an empty packet is told from the end: it comes
 * with credentials.
 */
static bool discard(int sock, bool packets)
{
    union received_control control;
    char bytes[512];
    struct iovec iov = { bytes, sizeof(bytes) };
    struct msghdr hdr = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = control.space, .msg_controllen = sizeof(control.space),
    };
    int fds[ZP_FDS_RECEIVED];
    ssize_t ret = recvmsg(sock, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    int n;

    if (ret < 0) {
        return false;
    }
    n = received_fds(&hdr, fds);
    for (int i = 0; i < n; i++) {
        close_received(fds[i]);
    }
    return ret > 0 || n || (packets && hdr.msg_controllen);
}

void discard_received(int sock, int times)
{
    while (times-- && discard(sock, false)) {
        /* go on */
    }
}

void close_socket(int sock)
{
    int type = SOCK_STREAM, yes = 1;
    socklen_t len = sizeof(type);

    getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &len);
    setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes));
    shutdown(sock, SHUT_RDWR);
    for (int i = 0; i < LEFT_MAX && discard(sock, type != SOCK_STREAM); i++) {
        /* go on */
    }
    close(sock);
}

bool closing_too_many(void)
{
    return __atomic_load_n(&closing, __ATOMIC_ACQUIRE) >= CLOSING_MAX;
}
