/*
 * Tests of libzpipe: a peer that lies
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One lie at a time, told by a raw peer in either role to a handle that has
 * requests under way.  Each must end the connection with -EPROTO, or be without
 * effect where that is documented; never a hang, a crash, a leak.  That the
 * raw peer is heard at all is shown by the tests of the truth.
 */

#include "victim.h"

typedef void (*Tell)(Victim *v);

typedef struct Lie {
    const char *name;
    Tell tell;
    int code;           /* of the end; 0: the connection goes on; ANY: ends */
} Lie;

#define ANY 1
#define EITHER 2        /* may end or go on */

typedef struct Case {
    const Lie *lie;
    bool server;
} Case;

#define store(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)

static struct zp_ctl *ctl(Victim *v)
{
    return v->raw->own.ctl;
}

/* -------------------------------------------------------------- the truth */

static void test_truth_writes(const void *opaque)
{
    Victim v;
    uint8_t *region;
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);
    uint8_t *into;
    int id;

    victim_open(&v, GPOINTER_TO_INT(opaque), 0);
    region = map_new(fd, 64 * KiB);
    g_assert_true(raw_region(v.raw, 5, fd, 0, 64 * KiB, 0));
    victim_run(&v);
    g_assert_cmpint(stats_of(v.zp).peer_regions, ==, 1);
    /* pushed, into the read that is in reach; it has all it wants */
    id = v.raw->peer.reads[0].region;
    g_assert_cmpint(v.raw->peer.reads[0].reach, ==, ZP_R_REGION);
    g_assert_cmpint(v.raw->peer.reads[1].reach, ==, ZP_R_PRIVATE);
    into = map_new(v.raw->region_fd[id], v.raw->region[id].size);
    pat_fill(into + v.raw->peer.reads[0].addr, VICTIM_READ, 1, 0);
    raw_entry(v.raw, 0, ZP_W_PUSHED, 0, 0, VICTIM_READ);
    /* then by the entry, by the ring, from the region */
    raw_entry(v.raw, 1, ZP_W_INLINE, 0, 0, 100);
    pat_fill(v.raw->own.copy + 500, 2000, 1, v.raw->pos);
    raw_entry(v.raw, 2, ZP_W_COPY, 500, 0, 2000);
    pat_fill(region + 8000, 1996, 1, v.raw->pos);
    raw_entry(v.raw, 3, ZP_W_REGION, 8000, 5, 1996);
    raw_publish(v.raw, 4);
    victim_run(&v);
    g_assert_true(v.read[0]->done);
    g_assert_cmpint(v.read[0]->r.result, ==, VICTIM_READ);
    pat_check(v.rbuf, VICTIM_READ, 1, 0);
    g_assert_true(v.read[1]->done);
    pat_check(v.guarded, VICTIM_READ, 1, VICTIM_READ);
    g_assert_cmpint(v.raw->peer.ctl->taken, ==, 2 * VICTIM_READ);
    g_assert_cmpint(v.raw->peer.ctl->cur, ==, 4);
    g_assert_cmpint(v.raw->peer.ctl->rel, ==, 4);
    g_assert_cmpint(v.raw->peer.how[2], ==, ZPIPE_COPY);
    raw_entry(v.raw, 4, ZP_W_END, 0, 0, 0);
    raw_publish(v.raw, 5);
    victim_run(&v);
    g_assert_cmpint(zpipe_try_read(v.zp, v.guarded, 1), ==, 0);
    munmap(region, 64 * KiB);
    munmap(into, v.raw->region[id].size);
    victim_close(&v);
    close(fd);
}

/* The victim's writes, as they are found, and taken. */
static void test_truth_reads(const void *opaque)
{
    uint64_t taken = 0, prod;
    Victim v;

    victim_open(&v, GPOINTER_TO_INT(opaque), 0);
    prod = v.raw->peer.ctl->w_prod;
    g_assert_cmpint(prod, >=, 3);
    for (uint64_t i = 0; i < prod; i++) {
        struct zp_write *w = &v.raw->peer.writes[i];

        g_assert_cmpint(w->pos, ==, taken);
        taken += w->len;
        if (i == 0) {
            /* private memory, and told to use "map": a copy */
            g_assert_cmpint(w->type, ==, ZP_W_COPY);
            pat_check(v.raw->peer.copy + w->addr, VICTIM_INLINE, 3, 0);
        }
        store(&v.raw->own.how[i], ZPIPE_DIRECT);
    }
    g_assert_cmpint(taken, ==, VICTIM_SENT);
    raw_take(v.raw, taken, prod, prod);
    victim_run(&v);
    for (int i = 0; i < 3; i++) {
        g_assert_true(v.write[i]->done);
        g_assert_cmpint(v.write[i]->r.result, >, 0);
    }
    g_assert_cmpint(zpipe_state(v.zp), ==, ZPIPE_CONNECTED);
    victim_close(&v);
}

/* ------------------------------------------------- lies as the writer */

static void tell_prod_too_far(Victim *v)
{
    for (int i = 0; i < 33; i++) {
        raw_entry(v->raw, i, ZP_W_INLINE, 0, 0, 1);
    }
    raw_publish(v->raw, RAW_ENTRIES + 1);
}

static void tell_prod_max(Victim *v)
{
    raw_publish(v->raw, UINT64_MAX);
}

static void tell_prod_sign(Victim *v)
{
    raw_publish(v->raw, 1ull << 63);
}

static void tell_prod_backwards(Victim *v)
{
    raw_entry(v->raw, 0, ZP_W_INLINE, 0, 0, 10);
    raw_entry(v->raw, 1, ZP_W_INLINE, 0, 0, 10);
    raw_publish(v->raw, 2);
    victim_run(v);
    raw_publish(v->raw, 1);         /* both have been taken */
}

static void entry(Victim *v, uint8_t type, uint64_t addr, uint32_t region,
                  uint32_t len)
{
    raw_entry(v->raw, 0, type, addr, region, len);
    raw_publish(v->raw, 1);
}

static void tell_type_0(Victim *v)
{
    entry(v, 0, 0, 0, 10);
}

static void tell_type_7(Victim *v)
{
    entry(v, ZP_W_END + 1, 0, 0, 10);
}

static void tell_type_255(Victim *v)
{
    entry(v, 255, 0, 0, 10);
}

static void tell_inline_0(Victim *v)
{
    entry(v, ZP_W_INLINE, 0, 0, 0);
}

static void tell_inline_113(Victim *v)
{
    entry(v, ZP_W_INLINE, 0, 0, ZP_INLINE_MAX + 1);
}

static void tell_inline_max(Victim *v)
{
    entry(v, ZP_W_INLINE, 0, 0, UINT32_MAX);
}

static void tell_copy_0(Victim *v)
{
    entry(v, ZP_W_COPY, 0, 0, 0);
}

static void tell_copy_too_long(Victim *v)
{
    entry(v, ZP_W_COPY, 0, 0, ZP_COPY_MAX + 1);
}

static void tell_copy_beyond(Victim *v)
{
    entry(v, ZP_W_COPY, RAW_COPY - 99, 0, 100);
}

static void tell_copy_end(Victim *v)
{
    entry(v, ZP_W_COPY, RAW_COPY, 0, 1);
}

static void tell_copy_wraps(Victim *v)
{
    entry(v, ZP_W_COPY, UINT64_MAX - 9, 0, 100);
}

static void tell_region_id(Victim *v)
{
    entry(v, ZP_W_REGION, 0, ZPIPE_REGIONS_MAX, 100);
}

static void tell_region_id_max(Victim *v)
{
    entry(v, ZP_W_REGION, 0, UINT32_MAX, 100);
}

static void tell_region_unknown(Victim *v)
{
    entry(v, ZP_W_REGION, 0, 3, 100);
}

static void region_entry(Victim *v, uint64_t addr, uint32_t len)
{
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

    raw_region(v->raw, 3, fd, 0, 64 * KiB, 0);
    close(fd);
    victim_run(v);
    g_assert_cmpint(stats_of(v->zp).peer_regions, ==, 1);
    entry(v, ZP_W_REGION, addr, 3, len);
}

static void tell_region_beyond(Victim *v)
{
    region_entry(v, 64 * KiB - 99, 100);
}

static void tell_region_wraps(Victim *v)
{
    region_entry(v, UINT64_MAX - 9, 100);
}

static void tell_region_0(Victim *v)
{
    region_entry(v, 0, 0);
}

static void tell_region_piece(Victim *v)
{
    region_entry(v, 0, ZP_PIECE_MAX + 1);
}

static void tell_region_deleted(Victim *v)
{
    struct zp_msg del = { .type = ZP_MSG_REGION_DEL, .region.id = 3 };
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

    raw_region(v->raw, 3, fd, 0, 64 * KiB, 0);
    close(fd);
    raw_send(v->raw, &del, NULL, 0);
    victim_run(v);
    entry(v, ZP_W_REGION, 0, 3, 100);
}

static void tell_cma(Victim *v)
{
    entry(v, ZP_W_CMA, (uintptr_t)v->guarded, 0, 100);
}

static void tell_pos_ahead(Victim *v)
{
    v->raw->pos = 1;
    entry(v, ZP_W_INLINE, 0, 0, 10);
}

static void tell_pos_max(Victim *v)
{
    v->raw->pos = UINT64_MAX;
    entry(v, ZP_W_INLINE, 0, 0, 10);
}

static void tell_pos_again(Victim *v)
{
    raw_entry(v->raw, 0, ZP_W_INLINE, 0, 0, 10);
    raw_publish(v->raw, 1);
    victim_run(v);
    v->raw->pos = 0;
    raw_entry(v->raw, 1, ZP_W_INLINE, 0, 0, 10);
    raw_publish(v->raw, 2);
}

static void tell_push_private(Victim *v)
{
    raw_entry(v->raw, 0, ZP_W_PUSHED, 0, 0, VICTIM_READ);
    raw_entry(v->raw, 1, ZP_W_PUSHED, 1, 0, VICTIM_READ);   /* private */
    raw_publish(v->raw, 2);
}

static void tell_push_beyond(Victim *v)
{
    entry(v, ZP_W_PUSHED, 0, 0, VICTIM_READ + 1);
}

static void tell_push_skips(Victim *v)
{
    entry(v, ZP_W_PUSHED, 1, 0, VICTIM_READ);       /* not the first */
}

static void tell_push_not_posted(Victim *v)
{
    entry(v, ZP_W_PUSHED, 2, 0, VICTIM_READ);
}

static void tell_push_max(Victim *v)
{
    entry(v, ZP_W_PUSHED, UINT64_MAX, 0, VICTIM_READ);
}

static void tell_push_0(Victim *v)
{
    entry(v, ZP_W_PUSHED, 0, 0, 0);
}

/* Private bytes came first: where the pushed ones are is not where it says. */
static void tell_push_twice(Victim *v)
{
    raw_entry(v->raw, 0, ZP_W_INLINE, 0, 0, 100);
    raw_entry(v->raw, 1, ZP_W_PUSHED, 0, 0, VICTIM_READ);
    raw_publish(v->raw, 2);
}

static void tell_push_less(Victim *v)
{
    entry(v, ZP_W_PUSHED, 0, 0, VICTIM_READ - 1);   /* than it wants */
}

static void tell_push_over(Victim *v)
{
    raw_entry(v->raw, 0, ZP_W_PUSHED, 0, 0, VICTIM_READ);
    raw_publish(v->raw, 1);
    victim_run(v);
    g_assert_true(v->read[0]->done);
    raw_entry(v->raw, 1, ZP_W_PUSHED, 0, 0, VICTIM_READ);   /* over */
    raw_publish(v->raw, 2);
}

static void tell_end_with_bytes(Victim *v)
{
    entry(v, ZP_W_END, 0, 0, 5);
}

static void tell_end_twice(Victim *v)
{
    raw_entry(v->raw, 0, ZP_W_END, 0, 0, 0);
    raw_publish(v->raw, 1);
    victim_run(v);
    raw_entry(v->raw, 1, ZP_W_END, 0, 0, 0);
    raw_publish(v->raw, 2);
    /* it looks when it wants something */
    g_assert_cmpint(zpipe_try_read(v->zp, v->guarded, 1), <=, 0);
}

static void tell_data_after_end(Victim *v)
{
    raw_entry(v->raw, 0, ZP_W_END, 0, 0, 0);
    raw_entry(v->raw, 1, ZP_W_INLINE, 0, 0, 10);
    raw_publish(v->raw, 2);
    victim_run(v);
    g_assert_cmpint(zpipe_try_read(v->zp, v->guarded, 1), <=, 0);
}

/* -------------------------------------------------- lies as the reader */

/* A position counts when writes are taken back. */
static void tell_taken(Victim *v, uint64_t taken, uint64_t cur, uint64_t rel)
{
    raw_take(v->raw, taken, cur, rel);
    zpipe_cancel_all(v->zp, false, true);
}

static void tell_taken_too_far(Victim *v)
{
    tell_taken(v, VICTIM_SENT + 1, 0, 0);
}

static void tell_taken_max(Victim *v)
{
    tell_taken(v, UINT64_MAX, 0, 0);
}

static void tell_taken_backwards(Victim *v)
{
    raw_take(v->raw, 60, 1, 1);
    victim_run(v);
    tell_taken(v, 10, 1, 1);
}

static void tell_cur_too_far(Victim *v)
{
    raw_take(v->raw, VICTIM_SENT, v->raw->peer.ctl->w_prod + 1, 0);
}

static void tell_cur_max(Victim *v)
{
    raw_take(v->raw, 0, UINT64_MAX, 0);
}

static void tell_rel_beyond_cur(Victim *v)
{
    raw_take(v->raw, VICTIM_INLINE, 1, 2);
}

static void tell_rel_max(Victim *v)
{
    raw_take(v->raw, 0, 0, UINT64_MAX);
}

static void tell_rel_backwards(Victim *v)
{
    raw_take(v->raw, VICTIM_INLINE, 1, 1);
    victim_run(v);
    raw_take(v->raw, VICTIM_INLINE, 1, 0);
}

/* Gives back what it has not taken. */
static void tell_rel_without_taken(Victim *v)
{
    raw_take(v->raw, 0, 2, 2);
}

static void tell_how_garbage(Victim *v)
{
    uint64_t prod = v->raw->peer.ctl->w_prod;

    memset(v->raw->own.how, 0xff, RAW_ENTRIES);
    raw_take(v->raw, VICTIM_SENT, prod, prod);
}

static void read_entry(Victim *v, uint32_t reach, uint64_t addr,
                       uint32_t region, uint64_t len)
{
    uint64_t prod = v->raw->peer.ctl->w_prod;
    uint8_t buf[3000] = { 0 };

    /* all is taken: the next write could go straight into it */
    raw_take(v->raw, VICTIM_SENT, prod, prod);
    victim_run(v);
    raw_post(v->raw, 0, reach, addr, region, len);
    raw_posted(v->raw, 1);
    victim_run(v);
    if (zpipe_state(v->zp) == ZPIPE_CONNECTED) {
        Req *w = req_new(buf, sizeof(buf));

        submit_write(v->zp, w);
        victim_run(v);
        zpipe_cancel(v->zp, &w->r);
        victim_run(v);
        g_assert_true(w->done);
        req_free(w);
    }
}

static void tell_post_unknown(Victim *v)
{
    read_entry(v, ZP_R_REGION, 0, 7, 4096);
}

static void tell_post_id(Victim *v)
{
    read_entry(v, ZP_R_REGION, 0, UINT32_MAX, 4096);
}

static void tell_post_0(Victim *v)
{
    read_entry(v, ZP_R_PRIVATE, 0, 0, 0);
}

static void tell_post_reach(Victim *v)
{
    read_entry(v, 99, 0, 0, 4096);
}

static void tell_post_cma(Victim *v)
{
    read_entry(v, ZP_R_CMA, (uintptr_t)v->guarded, 0, 4096);
}

static void post_region(Victim *v, uint32_t flags, uint64_t addr, uint64_t len)
{
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

    raw_region(v->raw, 3, fd, 0, 64 * KiB, flags);
    close(fd);
    victim_run(v);
    read_entry(v, ZP_R_REGION, addr, 3, len);
}

static void tell_post_read_only(Victim *v)
{
    post_region(v, 0, 0, 4096);
}

static void tell_post_beyond(Victim *v)
{
    post_region(v, ZP_REGION_WRITE, 64 * KiB - 100, 4096);
}

static void tell_post_wraps(Victim *v)
{
    post_region(v, ZP_REGION_WRITE, UINT64_MAX - 100, 4096);
}

static void tell_post_len_max(Victim *v)
{
    post_region(v, ZP_REGION_WRITE, 0, UINT64_MAX);
}

/* Writable by its word, but the file cannot be. */
static void tell_post_sealed(Victim *v)
{
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING,
                       F_SEAL_SHRINK | F_SEAL_WRITE);

    raw_region(v->raw, 3, fd, 0, 64 * KiB, ZP_REGION_WRITE);
    close(fd);
    victim_run(v);
    read_entry(v, ZP_R_REGION, 0, 3, 4096);
}

static void tell_r_prod_too_far(Victim *v)
{
    raw_posted(v->raw, RAW_ENTRIES + 1);
    read_entry(v, ZP_R_PRIVATE, 0, 0, 10);
    raw_posted(v->raw, RAW_ENTRIES + 1);
}

/* Told while the writer waits for a posted read that it could push into. */
static void waiting_writer(Victim *v)
{
    uint64_t prod = v->raw->peer.ctl->w_prod;

    raw_take(v->raw, VICTIM_SENT, prod, prod);
    victim_run(v);
    submit_write(v->zp, v->write[1]);
}

static void tell_r_prod_max(Victim *v)
{
    waiting_writer(v);
    raw_posted(v->raw, UINT64_MAX);
}

static void tell_r_done_ahead(Victim *v)
{
    waiting_writer(v);
    store(&ctl(v)->r_done, 1);
    raw_posted(v->raw, 0);
}

static void tell_r_done_max(Victim *v)
{
    waiting_writer(v);
    store(&ctl(v)->r_done, UINT64_MAX);
    raw_posted(v->raw, 0);
}

static void tell_r_filled(Victim *v)
{
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

    raw_region(v->raw, 3, fd, 0, 64 * KiB, ZP_REGION_WRITE);
    close(fd);
    victim_run(v);
    waiting_writer(v);
    raw_post(v->raw, 0, ZP_R_REGION, 0, 3, 4096);
    store(&ctl(v)->r_filled, 4097);
    raw_posted(v->raw, 1);
}

static void tell_r_filled_max(Victim *v)
{
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

    raw_region(v->raw, 3, fd, 0, 64 * KiB, ZP_REGION_WRITE);
    close(fd);
    victim_run(v);
    waiting_writer(v);
    raw_post(v->raw, 0, ZP_R_REGION, 0, 3, 4096);
    store(&ctl(v)->r_filled, UINT64_MAX);
    raw_posted(v->raw, 1);
}

static void tell_sleep_garbage(Victim *v)
{
    for (int i = 0; i < 1000; i++) {
        store(&ctl(v)->sleep, g_random_int() * 0x100000001ull);
        victim_run(v);
    }
}

/* ------------------------------------------------- lies on the socket */

static void send_bytes(Victim *v, size_t len)
{
    uint8_t buf[4096] = { 0 };

    memcpy(buf, &(struct zp_msg) { .magic = ZP_MAGIC,
                                   .type = ZP_MSG_REGION_DEL },
           sizeof(struct zp_msg));
    g_assert_true(raw_send_bytes(v->raw, buf, len, NULL, 0));
}

static void tell_short(Victim *v)
{
    send_bytes(v, 8);
}

static void tell_one_byte(Victim *v)
{
    send_bytes(v, 1);
}

static void tell_long(Victim *v)
{
    send_bytes(v, sizeof(struct zp_msg) + 8);
}

static void tell_huge(Victim *v)
{
    send_bytes(v, 4096);
}

static void tell_empty(Victim *v)
{
    send_bytes(v, 0);
}

static void tell_magic(Victim *v)
{
    raw_send(v->raw, &(struct zp_msg) { .magic = 1,
                                        .type = ZP_MSG_ABILITY }, NULL, 0);
}

static void tell_unknown(Victim *v)
{
    raw_send_type(v->raw, 99);
}

static void tell_hello_again(Victim *v)
{
    raw_hello(v->raw);
}

static void tell_ready_again(Victim *v)
{
    raw_send_type(v->raw, ZP_MSG_READY);
}

static void tell_bye(Victim *v)
{
    struct zp_msg msg = { .type = ZP_MSG_BYE };

    memset(msg.text, 'x', sizeof(msg.text));        /* with no zero */
    raw_send(v->raw, &msg, NULL, 0);
}

static void tell_refuse(Victim *v)
{
    struct zp_msg msg = { .type = ZP_MSG_REFUSE };

    memset(msg.text, '%', sizeof(msg.text));
    raw_send(v->raw, &msg, NULL, 0);
}

static void tell_close(Victim *v)
{
    shutdown(v->raw->sock, SHUT_RDWR);
}

static void tell_ability(Victim *v)
{
    struct zp_msg msg = { .type = ZP_MSG_ABILITY,
                          .ability = { UINT32_MAX, UINT32_MAX } };

    raw_send(v->raw, &msg, NULL, 0);
}

static void tell_answer(Victim *v)
{
    struct zp_msg msg = { .type = ZP_MSG_REGION_ANSWER, .region.id = 100 };

    raw_send(v->raw, &msg, NULL, 0);
}

static void tell_answer_id(Victim *v)
{
    struct zp_msg msg = { .type = ZP_MSG_REGION_ANSWER,
                          .region.id = ZPIPE_REGIONS_MAX };

    raw_send(v->raw, &msg, NULL, 0);
}

static void tell_del_unknown(Victim *v)
{
    struct zp_msg msg = { .type = ZP_MSG_REGION_DEL, .region.id = 100 };

    raw_send(v->raw, &msg, NULL, 0);
}

static void tell_del_id(Victim *v)
{
    struct zp_msg msg = { .type = ZP_MSG_REGION_DEL,
                          .region.id = UINT32_MAX };

    raw_send(v->raw, &msg, NULL, 0);
}

static void send_with_fds(Victim *v, uint32_t type, int nfds)
{
    struct zp_msg msg = { .type = type };
    int fds[253];

    for (int i = 0; i < nfds; i++) {
        fds[i] = v->raw->arena_fd;
    }
    msg.region.size = 4096;
    g_assert_true(raw_send(v->raw, &msg, fds, nfds));
}

static void tell_region_no_fd(Victim *v)
{
    send_with_fds(v, ZP_MSG_REGION_ADD, 0);
}

static void tell_region_2_fds(Victim *v)
{
    send_with_fds(v, ZP_MSG_REGION_ADD, 2);
}

static void tell_region_253_fds(Victim *v)
{
    send_with_fds(v, ZP_MSG_REGION_ADD, 253);
}

static void tell_del_with_fd(Victim *v)
{
    send_with_fds(v, ZP_MSG_REGION_DEL, 1);
}

static void add_region(Victim *v, uint32_t id, uint64_t offset, uint64_t size)
{
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);

    g_assert_true(raw_region(v->raw, id, fd, offset, size, 0));
    close(fd);
}

static void tell_add_id(Victim *v)
{
    add_region(v, ZPIPE_REGIONS_MAX, 0, 4096);
}

static void tell_add_id_max(Victim *v)
{
    add_region(v, UINT32_MAX, 0, 4096);
}

static void tell_add_twice(Victim *v)
{
    add_region(v, 3, 0, 4096);
    add_region(v, 3, 0, 4096);
}

/* What is not fit is refused, and the connection goes on. */
static void tell_add_unfit(Victim *v)
{
    uint64_t refused = stats_of(v->zp).refused_regions;
    char name[] = "/tmp/zpipe-test-XXXXXX";
    int n = 0, fd, pipefd[2];

    add_region(v, 20 + n++, 1, 4096);
    add_region(v, 20 + n++, 0, 0);
    add_region(v, 20 + n++, 0, 64 * KiB + 1);
    add_region(v, 20 + n++, 0, UINT64_MAX);
    add_region(v, 20 + n++, UINT64_MAX - 4095, 4096);
    add_region(v, 20 + n++, 64 * KiB, 4096);
    add_region(v, 20 + n++, 1ull << 62, 1ull << 62);
    fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, 0);
    raw_region(v->raw, 20 + n++, fd, 0, 4096, 0);
    close(fd);
    fd = mkstemp(name);
    unlink(name);
    g_assert_cmpint(ftruncate(fd, 64 * KiB), ==, 0);
    raw_region(v->raw, 20 + n++, fd, 0, 4096, 0);
    close(fd);
    g_assert_cmpint(pipe(pipefd), ==, 0);
    raw_region(v->raw, 20 + n++, pipefd[0], 0, 4096, 0);
    raw_region(v->raw, 20 + n++, pipefd[1], 0, 4096, 0);
    close(pipefd[0]);
    close(pipefd[1]);
    raw_region(v->raw, 20 + n++, v->raw->sock, 0, 4096, 0);
    raw_region(v->raw, 20 + n++, v->raw->bell, 0, 4096, 0);
    fd = open("/", O_PATH);
    raw_region(v->raw, 20 + n++, fd, 0, 4096, 0);
    close(fd);
    fd = memfd_new(2 * MiB, MFD_ALLOW_SEALING | MFD_HUGETLB, F_SEAL_SHRINK);
    if (fd >= 0) {
        raw_region(v->raw, 20 + n++, fd, 0, 2 * MiB, 0);
        close(fd);
    }
    victim_run(v);
    g_assert_cmpint(stats_of(v->zp).peer_regions, ==, 0);
    g_assert_cmpint(stats_of(v->zp).refused_regions, ==, refused + n);
}

/* ------------------------------------------------------- running a lie */

static void check_end(Victim *v, int code)
{
    int got;

    switch (code) {
    case 0:
        victim_run(v);
        g_assert_cmpint(zpipe_state(v->zp), ==, ZPIPE_CONNECTED);
        return;
    case EITHER:
        victim_run(v);
        return;
    case ANY:
        g_assert_cmpint(victim_gone(v), <, 0);
        break;
    default:
        got = victim_gone(v);
        if (got != code) {
            g_error("ended with %d ('%s')", got, zpipe_error(v->zp, NULL));
        }
    }
    /* all that was under way is over */
    reap_all(v->zp);
    for (int i = 0; i < 2; i++) {
        g_assert_true(v->read[i]->done);
    }
    for (int i = 0; i < 3; i++) {
        g_assert_true(v->write[i]->done);
    }
}

static void test_lie(const void *opaque)
{
    const Case *c = opaque;
    Victim v;

    victim_open(&v, c->server, 0);
    c->lie->tell(&v);
    check_end(&v, c->lie->code);
    victim_close(&v);
}

static const Lie lies[] = {
    { "write/prod-too-far", tell_prod_too_far, -EPROTO },
    { "write/prod-max", tell_prod_max, EITHER },
    { "write/prod-sign", tell_prod_sign, EITHER },
    { "write/prod-backwards", tell_prod_backwards, EITHER },
    { "write/type-0", tell_type_0, -EPROTO },
    { "write/type-7", tell_type_7, -EPROTO },
    { "write/type-255", tell_type_255, -EPROTO },
    { "write/inline-0", tell_inline_0, -EPROTO },
    { "write/inline-113", tell_inline_113, -EPROTO },
    { "write/inline-max", tell_inline_max, -EPROTO },
    { "write/copy-0", tell_copy_0, -EPROTO },
    { "write/copy-too-long", tell_copy_too_long, -EPROTO },
    { "write/copy-beyond", tell_copy_beyond, -EPROTO },
    { "write/copy-end", tell_copy_end, -EPROTO },
    { "write/copy-wraps", tell_copy_wraps, -EPROTO },
    { "write/region-id", tell_region_id, -EPROTO },
    { "write/region-id-max", tell_region_id_max, -EPROTO },
    { "write/region-unknown", tell_region_unknown, -EPROTO },
    { "write/region-beyond", tell_region_beyond, -EPROTO },
    { "write/region-wraps", tell_region_wraps, -EPROTO },
    { "write/region-0", tell_region_0, -EPROTO },
    { "write/region-piece", tell_region_piece, -EPROTO },
    { "write/region-deleted", tell_region_deleted, -EPROTO },
    { "write/cma", tell_cma, EITHER },
    { "write/pos-ahead", tell_pos_ahead, -EPROTO },
    { "write/pos-max", tell_pos_max, -EPROTO },
    { "write/pos-again", tell_pos_again, -EPROTO },
    { "write/push-private", tell_push_private, -EPROTO },
    { "write/push-beyond", tell_push_beyond, -EPROTO },
    { "write/push-skips", tell_push_skips, -EPROTO },
    { "write/push-not-posted", tell_push_not_posted, -EPROTO },
    { "write/push-max", tell_push_max, -EPROTO },
    { "write/push-0", tell_push_0, -EPROTO },
    { "write/push-twice", tell_push_twice, -EPROTO },
    { "write/push-less", tell_push_less, -EPROTO },
    { "write/push-over", tell_push_over, -EPROTO },
    { "write/end-with-bytes", tell_end_with_bytes, -EPROTO },
    { "write/end-twice", tell_end_twice, EITHER },
    { "write/data-after-end", tell_data_after_end, EITHER },
    { "read/taken-too-far", tell_taken_too_far, -EPROTO },
    { "read/taken-max", tell_taken_max, -EPROTO },
    { "read/taken-backwards", tell_taken_backwards, -EPROTO },
    { "read/cur-too-far", tell_cur_too_far, EITHER },
    { "read/cur-max", tell_cur_max, EITHER },
    { "read/rel-beyond-cur", tell_rel_beyond_cur, EITHER },
    { "read/rel-max", tell_rel_max, -EPROTO },
    { "read/rel-backwards", tell_rel_backwards, -EPROTO },
    { "read/rel-without-taken", tell_rel_without_taken, EITHER },
    { "read/how-garbage", tell_how_garbage, EITHER },
    { "read/post-unknown", tell_post_unknown, EITHER },
    { "read/post-id", tell_post_id, EITHER },
    { "read/post-0", tell_post_0, EITHER },
    { "read/post-reach", tell_post_reach, EITHER },
    { "read/post-cma", tell_post_cma, EITHER },
    { "read/post-read-only", tell_post_read_only, 0 },
    { "read/post-sealed", tell_post_sealed, EITHER },
    { "read/post-beyond", tell_post_beyond, EITHER },
    { "read/post-wraps", tell_post_wraps, EITHER },
    { "read/post-len-max", tell_post_len_max, EITHER },
    { "read/r-prod-too-far", tell_r_prod_too_far, EITHER },
    { "read/r-prod-max", tell_r_prod_max, EITHER },
    { "read/r-done-ahead", tell_r_done_ahead, EITHER },
    { "read/r-done-max", tell_r_done_max, EITHER },
    { "read/r-filled", tell_r_filled, EITHER },
    { "read/r-filled-max", tell_r_filled_max, EITHER },
    { "read/sleep-garbage", tell_sleep_garbage, 0 },
    { "socket/short", tell_short, -EPROTO },
    { "socket/one-byte", tell_one_byte, -EPROTO },
    { "socket/long", tell_long, -EPROTO },
    { "socket/huge", tell_huge, -EPROTO },
    { "socket/empty", tell_empty, ANY },
    { "socket/magic", tell_magic, -EPROTO },
    { "socket/unknown", tell_unknown, -EPROTO },
    { "socket/hello-again", tell_hello_again, -EPROTO },
    { "socket/ready-again", tell_ready_again, -EPROTO },
    { "socket/bye", tell_bye, ANY },
    { "socket/refuse", tell_refuse, ANY },
    { "socket/close", tell_close, ANY },
    { "socket/ability", tell_ability, EITHER },
    { "socket/answer", tell_answer, EITHER },
    { "socket/answer-id", tell_answer_id, -EPROTO },
    { "socket/del-unknown", tell_del_unknown, EITHER },
    { "socket/del-id", tell_del_id, -EPROTO },
    { "socket/region-no-fd", tell_region_no_fd, -EPROTO },
    { "socket/region-2-fds", tell_region_2_fds, -EPROTO },
    { "socket/region-253-fds", tell_region_253_fds, -EPROTO },
    { "socket/del-with-fd", tell_del_with_fd, -EPROTO },
    { "socket/add-id", tell_add_id, -EPROTO },
    { "socket/add-id-max", tell_add_id_max, -EPROTO },
    { "socket/add-twice", tell_add_twice, -EPROTO },
    { "socket/add-unfit", tell_add_unfit, 0 },
};

static void add_lie(const Lie *lie, bool server)
{
    Case c = { lie, server };
    g_autofree char *path = g_strdup_printf("/hostile/%s/%s",
                                            server ? "server" : "client",
                                            lie->name);

    g_test_add_data_func_full(path, g_memdup2(&c, sizeof(c)), test_lie,
                              g_free);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (int server = 0; server < 2; server++) {
        const char *role = server ? "server" : "client";
        g_autofree char *w = g_strdup_printf("/hostile/%s/truth/write", role);
        g_autofree char *r = g_strdup_printf("/hostile/%s/truth/read", role);

        g_test_add_data_func(w, GINT_TO_POINTER(server), test_truth_writes);
        g_test_add_data_func(r, GINT_TO_POINTER(server), test_truth_reads);
        for (size_t i = 0; i < G_N_ELEMENTS(lies); i++) {
            add_lie(&lies[i], server);
        }
    }
    return g_test_run();
}
