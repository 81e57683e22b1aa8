/*
 * Tests of libzpipe: a peer that can say anything
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include "rawpeer.h"

#define store(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)

static size_t copy_offset(uint32_t entries)
{
    size_t size = ZP_PAGE + (size_t)entries * (sizeof(struct zp_write) +
                                               sizeof(struct zp_read)) +
                  ZP_ENTRIES_MAX;

    return (size + ZP_PAGE - 1) / ZP_PAGE * ZP_PAGE;
}

size_t raw_arena_size(uint32_t entries, uint32_t copy_bytes)
{
    return copy_offset(entries) + copy_bytes;
}

int raw_arena_fd(uint32_t entries, uint32_t copy_bytes, int seals)
{
    return memfd_new(raw_arena_size(entries, copy_bytes), MFD_ALLOW_SEALING,
                     seals);
}

static void lay_out(RawArena *a, void *base, uint32_t entries,
                    uint32_t copy_bytes)
{
    a->base = base;
    a->size = raw_arena_size(entries, copy_bytes);
    a->entries = entries;
    a->copy_bytes = copy_bytes;
    a->ctl = base;
    a->writes = (void *)(a->base + ZP_PAGE);
    a->reads = (void *)(a->writes + entries);
    a->how = (void *)(a->reads + entries);
    a->copy = a->base + copy_offset(entries);
}

RawPeer *raw_new(int sock, bool server)
{
    RawPeer *raw = g_new0(RawPeer, 1);
    int ends[2];

    raw->sock = sock;
    raw->server = server;
    raw->arena_fd = raw_arena_fd(RAW_ENTRIES, RAW_COPY, 0);
    lay_out(&raw->own, map_new(raw->arena_fd,
                               raw_arena_size(RAW_ENTRIES, RAW_COPY)),
            RAW_ENTRIES, RAW_COPY);
    g_assert_cmpint(fcntl(raw->arena_fd, F_ADD_SEALS,
                          F_SEAL_SHRINK | F_SEAL_GROW), ==, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends),
                    ==, 0);
    raw->ear = ends[0];
    raw->rope = ends[1];
    raw->bell = -1;
    raw->peer_arena_fd = -1;
    memset(raw->region_fd, -1, sizeof(raw->region_fd));
    raw->hello = (struct zp_hello) {
        .version = ZP_VERSION,
        .session = { server ? 0x1234 : 0, server ? 0x5678 : 0 },
        .entries = RAW_ENTRIES,
        .copy_bytes = RAW_COPY,
    };
    raw->hello_fds[0] = raw->arena_fd;
    raw->hello_fds[1] = raw->rope;
    raw->hello_nfds = 2;
    return raw;
}

static void close_if(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

void raw_free(RawPeer *raw)
{
    close_if(raw->sock);
    close_if(raw->arena_fd);
    close_if(raw->ear);
    close_if(raw->rope);
    close_if(raw->bell);
    close_if(raw->peer_arena_fd);
    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        close_if(raw->region_fd[i]);
    }
    munmap(raw->own.base, raw->own.size);
    if (raw->peer.base) {
        munmap(raw->peer.base, raw->peer.size);
    }
    g_free(raw);
}

/* ------------------------------------------------------------ the socket */

bool raw_send_bytes(RawPeer *raw, const void *buf, size_t len, const int *fds,
                    int nfds)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(sizeof(int) * 253)];
    } u;
    struct iovec iov = { (void *)buf, len };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (nfds > 0) {
        struct cmsghdr *c;

        memset(&u, 0, sizeof(u));
        mh.msg_control = u.buf;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
        c = CMSG_FIRSTHDR(&mh);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
    }
    return sendmsg(raw->sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

bool raw_send(RawPeer *raw, const struct zp_msg *msg, const int *fds, int nfds)
{
    struct zp_msg m = *msg;

    if (!m.magic) {
        m.magic = ZP_MAGIC;
    }
    return raw_send_bytes(raw, &m, sizeof(m), fds, nfds);
}

bool raw_send_type(RawPeer *raw, uint32_t type)
{
    return raw_send(raw, &(struct zp_msg) { .type = type }, NULL, 0);
}

bool raw_hello(RawPeer *raw)
{
    return raw_send(raw, &(struct zp_msg) { .type = ZP_MSG_HELLO,
                                            .hello = raw->hello },
                    raw->hello_fds, raw->hello_nfds);
}

bool raw_region(RawPeer *raw, uint32_t id, int fd, uint64_t offset,
                uint64_t size, uint32_t flags)
{
    struct zp_msg msg = {
        .type = ZP_MSG_REGION_ADD,
        .region = {
            .id = id, .flags = flags, .offset = offset, .size = size,
        },
    };

    return raw_send(raw, &msg, &fd, fd >= 0);
}

static int received_fds(struct msghdr *mh, int *fds)
{
    int n = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(c), n * sizeof(int));
        }
    }
    return n;
}

static void take_hello(RawPeer *raw, const struct zp_msg *msg, const int *fds,
                       int nfds)
{
    size_t size = raw_arena_size(msg->hello.entries, msg->hello.copy_bytes);
    void *base;

    g_assert_cmpint(nfds, ==, 2);
    g_assert_cmpint(raw->peer_arena_fd, ==, -1);
    raw->peer_hello = msg->hello;
    raw->peer_arena_fd = fds[0];
    raw->bell = fds[1];
    base = mmap(NULL, size, PROT_READ, MAP_SHARED, fds[0], 0);
    g_assert_true(base != MAP_FAILED);
    lay_out(&raw->peer, base, msg->hello.entries, msg->hello.copy_bytes);
}

static void take_message(RawPeer *raw, const struct zp_msg *msg,
                         const int *fds, int nfds)
{
    uint32_t id = msg->region.id;

    switch (msg->type) {
    case ZP_MSG_HELLO:
        take_hello(raw, msg, fds, nfds);
        return;
    case ZP_MSG_READY:
        raw->peer_ready = true;
        break;
    case ZP_MSG_REGION_ADD:
        g_assert_cmpint(nfds, ==, 1);
        g_assert_cmpint(id, <, ZPIPE_REGIONS_MAX);
        close_if(raw->region_fd[id]);
        raw->region[id] = msg->region;
        raw->region_fd[id] = fds[0];
        if (!raw->mute) {
            struct zp_msg answer = { .type = ZP_MSG_REGION_ANSWER,
                                     .region = msg->region };

            raw_send(raw, &answer, NULL, 0);
        }
        return;
    }
    g_assert_cmpint(nfds, ==, 0);
}

bool raw_turn(RawPeer *raw, struct zp_msg *last)
{
    for (;;) {
        union {
            struct cmsghdr align;
            char buf[CMSG_SPACE(sizeof(int) * RAW_FDS_MAX)];
        } u;
        struct zp_msg msg;
        struct iovec iov = { &msg, sizeof(msg) };
        struct msghdr mh = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = u.buf, .msg_controllen = sizeof(u.buf),
        };
        int fds[RAW_FDS_MAX];
        ssize_t n = recvmsg(raw->sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        if (n <= 0) {
            return n < 0 && errno == EAGAIN;
        }
        g_assert_cmpint(n, ==, sizeof(msg));
        g_assert_cmphex(msg.magic, ==, ZP_MAGIC);
        take_message(raw, &msg, fds, received_fds(&mh, fds));
        if (last) {
            *last = msg;
        }
    }
}

void raw_connect(RawPeer *raw, struct zpipe *zp)
{
    int64_t end = now_ms() + HANG_MS;
    bool sent = false;

    g_assert_true(raw_hello(raw));
    while (!raw->peer_ready || !sent || zpipe_state(zp) != ZPIPE_CONNECTED) {
        reap_all(zp);
        if (!raw_turn(raw, NULL)) {
            g_error("raw handshake: '%s'", zpipe_error(zp, NULL));
        }
        if (raw->peer.base && !sent) {
            struct zp_msg ready = { .type = ZP_MSG_READY,
                                    .ability.can = raw->can };

            sent = raw_send(raw, &ready, NULL, 0);
        }
        g_assert_cmpint(now_ms(), <, end);
    }
}

/* ------------------------------------------------------------- the rings */

struct zp_write *raw_entry(RawPeer *raw, uint64_t index, uint8_t type,
                           uint64_t addr, uint32_t region, uint32_t len)
{
    struct zp_write *w = &raw->own.writes[index % raw->own.entries];

    memset(w, 0, sizeof(*w));
    w->pos = raw->pos;
    w->len = len;
    w->type = type;
    if (type == ZP_W_INLINE) {
        pat_fill(w->data, MIN(len, ZP_INLINE_MAX), 1, raw->pos);
    } else {
        w->addr = addr;
        w->region = region;
    }
    raw->pos += len;
    return w;
}

void raw_kick(RawPeer *raw)
{
    send(raw->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void raw_publish(RawPeer *raw, uint64_t prod)
{
    store(&raw->own.ctl->w_prod, prod);
    raw_kick(raw);
}

struct zp_read *raw_post(RawPeer *raw, uint64_t index, uint32_t reach,
                         uint64_t addr, uint32_t region, uint64_t len)
{
    struct zp_read *r = &raw->own.reads[index % raw->own.entries];

    *r = (struct zp_read) {
        .addr = addr, .len = len, .min = 1, .region = region, .reach = reach,
    };
    return r;
}

void raw_posted(RawPeer *raw, uint64_t prod)
{
    store(&raw->own.ctl->r_prod, prod);
    raw_kick(raw);
}

void raw_take(RawPeer *raw, uint64_t taken, uint64_t cur, uint64_t rel)
{
    store(&raw->own.ctl->taken, taken);
    store(&raw->own.ctl->cur, cur);
    store(&raw->own.ctl->rel, rel);
    raw_kick(raw);
}
