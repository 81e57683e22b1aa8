/*
 * zpipe: closing what a peer has sent
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A peer can send any descriptor.  close() of one can wait: a file of a FUSE
 * daemon that does not answer, a TCP socket that lingers, a UNIX socket with
 * such a one in its queue.  What is no memfd is closed by a thread made for
 * that.  A few may be stuck at a time, over all handles; then no message is
 * received any more until they get on.
 *
 * Descriptors that nobody receives are closed by the kernel, on behalf of who
 * reads past them or closes the socket: so none are left there.  When there
 * are too many of them a thread closes the socket, and so does one where we
 * must not receive (see zpipe-proto.h).
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "zpipe-int.h"

/*
 * What the peer should not have sent, and its rope, which is closed with each
 * connection, and hardly ever has anything that waits: 32 of the one kind, or
 * 128 of the other.
 */
#define CLOSING_MAX 128
enum weight { MEMORY = 0, ROPE = 1, ODD = 4 };
/*
 * Whoever is the last to have a memfd frees its pages: when the peer has gone
 * that is us, and takes a second for some gigabytes.
 */
#define FREED_AT_ONCE (32u << 20)
/* More packets than fit into a socket. */
#define LEFT_MAX 10000

static unsigned closing;

static bool run_in_thread(void *(*run)(void *), void *opaque)
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
    good = !pthread_create(&thread, &attr, run, opaque);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return good;
}

/* The descriptor, and in the lowest bits its weight. */
static void *close_it(void *opaque)
{
    intptr_t what = (intptr_t)opaque;

    close(what >> 3);
    __atomic_sub_fetch(&closing, what & 7, __ATOMIC_RELEASE);
    return NULL;
}

static void close_in_thread(int fd, enum weight weight)
{
    void *what = (void *)((intptr_t)fd << 3 | weight);

    __atomic_add_fetch(&closing, weight, __ATOMIC_RELAXED);
    if (!run_in_thread(close_it, what)) {
        close_it(what);
    }
}

void close_received(int fd)
{
    struct stat st;

    /* the questions do not leave the kernel */
    if (fcntl(fd, F_GET_SEALS) < 0) {
        close_in_thread(fd, ODD);
    } else if (!fstat(fd, &st) && st.st_blocks * 512ull > FREED_AT_ONCE) {
        close_in_thread(fd, MEMORY);
    } else {
        close(fd);
    }
}

void close_rope(int fd)
{
    close_in_thread(fd, ROPE);
}

static void *unmap_it(void *opaque)
{
    struct zp_map *map = opaque;

    munmap(map->base, map->whole);
    free(map);
    return NULL;
}

void unmap_received(struct zp_map *map)
{
    if (map->file <= FREED_AT_ONCE || !run_in_thread(unmap_it, map)) {
        unmap_it(map);
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

enum found { NOTHING, BYTES, DESCRIPTORS };

/*
 * Take one packet, or some bytes.  With @packets, a socket that has
 * SO_PASSCRED, an empty packet is told from the end: it comes with credentials.
 */
static enum found discard(int sock, bool packets)
{
    union received_control control;
    char bytes[512];
    struct iovec iov = { bytes, sizeof(bytes) };
    struct msghdr hdr = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = control.space, .msg_controllen = sizeof(control.space),
    };
    int fds[ZP_FDS_RECEIVED];
    ssize_t ret;
    int n;

    /* a peer that left something unread leaves one error, before its packets */
    for (int errors = 0; ; errors++) {
        ret = recvmsg(sock, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (ret >= 0 || errno != ECONNRESET || errors == 2) {
            break;
        }
    }
    if (ret < 0) {
        return NOTHING;
    }
    n = received_fds(&hdr, fds);
    for (int i = 0; i < n; i++) {
        close_received(fds[i]);
    }
    return n ? DESCRIPTORS :
        ret > 0 || (packets && hdr.msg_controllen) ? BYTES : NOTHING;
}

bool discard_received(int sock, int times)
{
    enum found found = BYTES;

    while (times-- && found == BYTES) {
        found = discard(sock, false);
    }
    return found != DESCRIPTORS;
}

void close_socket(int sock)
{
    int type = SOCK_STREAM, yes = 1;
    socklen_t len = sizeof(type);

    getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &len);
    setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes));
    shutdown(sock, SHUT_RDWR);
    for (int i = 0; i < LEFT_MAX && !closing_too_many() &&
         discard(sock, type != SOCK_STREAM) != NOTHING; i++) {
        /* go on */
    }
    if (closing_too_many()) {
        close_received(sock);
    } else {
        close(sock);
    }
}

bool closing_too_many(void)
{
    return __atomic_load_n(&closing, __ATOMIC_ACQUIRE) >= CLOSING_MAX;
}
