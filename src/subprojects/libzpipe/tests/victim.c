/*
 * Tests of libzpipe: a handle with a raw peer
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include "victim.h"

static size_t guarded_pages(size_t size)
{
    return (size + 4095) / 4096 * 4096;
}

uint8_t *guarded_new(size_t size)
{
    size_t pages = guarded_pages(size);
    uint8_t *p = mmap(NULL, pages + 8192, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    g_assert_true(p != MAP_FAILED);
    g_assert_cmpint(mprotect(p + 4096, pages, PROT_READ | PROT_WRITE), ==, 0);
    return p + 4096 + pages - size;
}

void guarded_free(uint8_t *mem, size_t size)
{
    size_t pages = guarded_pages(size);

    munmap(mem + size - pages - 4096, pages + 8192);
}

void victim_new(Victim *v, bool raw_is_server, uint32_t flags)
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, flags);
    int sv[2];

    memset(v, 0, sizeof(*v));
    v->fds = fd_count();
    config.mechanism = ZPIPE_MAP;
    v->zp = zpipe_new(&config);
    g_assert_nonnull(v->zp);
    socket_pair(sv);
    v->raw = raw_new(sv[1], raw_is_server);
    g_assert_cmpint(zpipe_attach(v->zp, sv[0], !raw_is_server), ==, 0);
}

static void victim_requests(Victim *v)
{
    v->guarded = guarded_new(VICTIM_READ);
    v->small = g_malloc(VICTIM_COPY);
    v->wbuf = zpipe_buffer_new(v->zp, VICTIM_REGION);
    v->rbuf = zpipe_buffer_new(v->zp, VICTIM_READ);
    g_assert_true(v->wbuf && v->rbuf);
    victim_run(v);
    memset(v->guarded, 0x77, VICTIM_READ);
    pat_fill(v->small, VICTIM_COPY, 3, 0);
    pat_fill(v->wbuf, VICTIM_REGION, 4, 0);
    v->read[0] = req_new(v->rbuf, VICTIM_READ);
    v->read[1] = req_new(v->guarded, VICTIM_READ);
    v->write[0] = req_new(v->small, VICTIM_INLINE);
    v->write[1] = req_new(v->small, VICTIM_COPY);
    v->write[2] = req_new(v->wbuf, VICTIM_REGION);
    for (int i = 0; i < 2; i++) {
        /* they stay: a lie is told to reads that wait */
        v->read[i]->r.min = VICTIM_READ;
        submit_read(v->zp, v->read[i]);
    }
    for (int i = 0; i < 3; i++) {
        submit_write(v->zp, v->write[i]);
    }
}

void victim_open(Victim *v, bool raw_is_server, uint32_t flags)
{
    victim_new(v, raw_is_server, flags);
    raw_connect(v->raw, v->zp);
    victim_requests(v);
    victim_run(v);
}

void victim_run(Victim *v)
{
    struct pollfd pfd = { .fd = zpipe_fd(v->zp), .events = POLLIN };
    int turns = 0;

    do {
        reap_all(v->zp);
        raw_turn(v->raw, NULL);
        g_assert_cmpint(turns++, <, 100000);
    } while (poll(&pfd, 1, 0) > 0);
}

int victim_gone(Victim *v)
{
    return wait_gone(v->zp);
}

void victim_close(Victim *v)
{
    zpipe_detach(v->zp);
    reap_all(v->zp);
    for (int i = 0; i < 2; i++) {
        g_assert_true(!v->read[i] || v->read[i]->done);
    }
    for (int i = 0; i < 3; i++) {
        g_assert_true(!v->write[i] || v->write[i]->done);
    }
    if (v->guarded) {
        /* what was written was not touched */
        pat_check(v->small, VICTIM_COPY, 3, 0);
    }
    zpipe_free(v->zp);
    raw_free(v->raw);
    for (int i = 0; i < 2 && v->read[i]; i++) {
        req_free(v->read[i]);
    }
    for (int i = 0; i < 3 && v->write[i]; i++) {
        req_free(v->write[i]);
    }
    if (v->guarded) {
        guarded_free(v->guarded, VICTIM_READ);
    }
    g_free(v->small);
    if (v->fds >= 0) {
        fd_check(v->fds);
    }
}
