/*
 * zpipe: posted writes of the peer, posted reads of this side
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The peer's entries are taken in order into the reads, in order.  What an
 * entry says is loaded once, into struct piece, and checked; the bytes
 * themselves can change while they are copied, which harms nobody but the
 * reader of nonsense.
 */

#include <errno.h>
#include <string.h>
#include "zpipe-int.h"

/* The part of an entry that has not been taken. */
struct piece {
    uint8_t type;
    size_t len;
    const uint8_t *from;        /* NULL: by address, or pushed */
    uint64_t addr;
    struct zp_map *map;         /* where @from lies */
};

enum step { GO_ON, STOP, BROKEN };

static const struct zp_write *entry_at(const struct zpipe *zp, uint64_t index)
{
    return &zp->peer.writes[index & (zp->peer.entries - 1)];
}

/* ------------------------------------------------------------- the entry */

static bool in_region(struct zpipe *zp, struct piece *piece, uint32_t region,
                      uint64_t addr, uint32_t len)
{
    struct zp_map *map = region < ZPIPE_REGIONS_MAX ? zp->peer_regions[region]
                                                    : NULL;

    if (!map || addr > map->size || len > map->size - addr) {
        return false;
    }
    piece->map = map;
    piece->from = (const uint8_t *)map->base + addr;
    return true;
}

/* Load and check the entry at zp->rx.cur. */
static bool load_piece(struct zpipe *zp, struct piece *piece)
{
    const struct zp_write *entry = entry_at(zp, zp->rx.cur);
    uint64_t pos = ld_relaxed(&entry->pos);
    uint32_t len = ld_relaxed(&entry->len);
    uint64_t addr, skip;

    *piece = (struct piece) {
        .type = ld_relaxed(&entry->type), .map = zp->peer_map
    };
    skip = zp->rx.taken - pos;
    if (piece->type == ZP_W_END) {
        return !len && !skip;
    }
    if (pos > zp->rx.taken || skip >= len) {
        return false;           /* not the next byte of the stream */
    }
    piece->len = len - skip;
    if (piece->type == ZP_W_INLINE) {
        piece->from = entry->data + skip;
        return len <= ZP_INLINE_MAX;
    }
    addr = ld_relaxed(&entry->addr);
    piece->addr = addr + skip;
    switch (piece->type) {
    case ZP_W_COPY:
        if (len > ZP_COPY_MAX || addr > zp->peer.copy_bytes ||
            len > zp->peer.copy_bytes - addr) {
            return false;
        }
        piece->from = zp->peer.copy + addr + skip;
        return true;
    case ZP_W_REGION:
        if (len > ZP_PIECE_MAX ||
            !in_region(zp, piece, ld_relaxed(&entry->region), addr, len)) {
            return false;
        }
        piece->from += skip;
        return true;
    case ZP_W_CMA:
        return len <= ZP_PIECE_MAX;
    case ZP_W_PUSHED:
        piece->addr = addr;
        return !skip;
    default:
        return false;
    }
}

/* --------------------------------------------------------------- reading */

/* The read at the head is over. */
static void read_done(struct zpipe *zp, ssize_t result)
{
    struct zpipe_req *req = queue_pop(&zp->rx.queue);

    if (zp->rx.unposted == req) {
        zp->rx.unposted = req->p.next;
    } else {
        zp->rx.r_done++;
    }
    req_finish(zp, req, result);
}

static void note_taken(struct zpipe *zp, struct zpipe_req *req, size_t bytes,
                       enum zpipe_mechanism mechanism)
{
    zp->rx.taken += bytes;
    zp->rx.told += bytes;
    zp->stats.rx[mechanism].messages++;
    zp->stats.rx[mechanism].bytes += bytes;
    req->mechanism = mechanism;
    st_relaxed(&zp->own.how[zp->rx.cur & (ZP_ENTRIES_MAX - 1)], mechanism);
}

static void advance_rel(struct zpipe *zp)
{
    struct zp_rx *rx = &zp->rx;

    while (rx->rel != rx->cur &&
           !(rx->nheld && rx->held[rx->rel & (zp->peer.entries - 1)])) {
        rx->rel++;
        zp->news |= ZP_WANT_SPACE;
    }
}

static void entry_done(struct zpipe *zp)
{
    zp->rx.cur++;
    advance_rel(zp);
}

static enum step give_view(struct zpipe *zp, struct zpipe_req *req,
                           const struct piece *piece)
{
    struct zp_rx *rx = &zp->rx;
    enum zpipe_mechanism mechanism =
        piece->type == ZP_W_REGION ? ZPIPE_MAP :
        piece->type == ZP_W_COPY ? ZPIPE_COPY : ZPIPE_INLINE;

    req->view = piece->from;
    req->p.map = piece->map;
    req->p.index = rx->cur;
    req->p.epoch = zp->epoch;
    piece->map->refs++;
    rx->held[rx->cur & (zp->peer.entries - 1)] = 1;
    rx->nheld++;
    note_taken(zp, req, piece->len, mechanism);
    entry_done(zp);
    read_done(zp, piece->len);
    return GO_ON;
}

static void copy_out(struct zpipe_req *req, const uint8_t *from, size_t len)
{
    while (len) {
        struct iovec iov[ZP_SLICE_MAX];
        size_t bytes;
        int n = req_slice(req, len, iov, ZP_SLICE_MAX, &bytes);

        for (int i = 0; i < n; i++) {
            memcpy(iov[i].iov_base, from, iov[i].iov_len);
            from += iov[i].iov_len;
        }
        req_advance(req, bytes);
        len -= bytes;
    }
}

/* Tell the peer that its memory cannot be read after all. */
static void tell_cma_lost(struct zpipe *zp)
{
    struct zp_msg msg = {
        .type = ZP_MSG_ABILITY,
        .ability = { .can = 0, .error = zp->cma_error },
    };

    zp->cma_lost = false;
    link_send(zp, &msg, NULL, 0);
}

static enum step fetch(struct zpipe *zp, struct zpipe_req *req,
                       const struct piece *piece, size_t *bytes)
{
    struct iovec iov[ZP_SLICE_MAX];
    int n, err;

    if (!zp->cma_read) {
        return STOP;            /* the peer will send it in another way */
    }
    n = req_slice(req, *bytes, iov, ZP_SLICE_MAX, bytes);
    err = cma_read(zp, iov, n, piece->addr, *bytes);
    if (err == -EPERM || err == -ESRCH || err == -ENOSYS) {
        zp->cma_read = false;
        zp->cma_error = -err;
        zp->cma_lost = true;
        return STOP;
    }
    if (err) {
        return BROKEN;
    }
    req_advance(req, *bytes);
    return GO_ON;
}

/* The bytes are in the read already, the peer says. */
static enum step take_pushed(struct zpipe *zp, struct zpipe_req *req,
                             const struct piece *piece)
{
    if (zp->rx.unposted == req || req->p.index != piece->addr ||
        !req->p.map || req->p.done || piece->len > req->p.total ||
        piece->len < req->min) {
        return BROKEN;
    }
    req->p.done = piece->len;
    note_taken(zp, req, piece->len, ZPIPE_DIRECT);
    entry_done(zp);
    read_done(zp, piece->len);
    return GO_ON;
}

static enum step take_copy(struct zpipe *zp, struct zpipe_req *req,
                           const struct piece *piece)
{
    size_t bytes = MIN(piece->len, req->p.total - req->p.done);
    enum zpipe_mechanism mechanism =
        piece->type == ZP_W_INLINE ? ZPIPE_INLINE :
        piece->type == ZP_W_COPY ? ZPIPE_COPY : ZPIPE_DIRECT;
    enum step step;

    if (piece->from) {
        copy_out(req, piece->from, bytes);
    } else {
        step = fetch(zp, req, piece, &bytes);
        if (step != GO_ON) {
            return step;
        }
    }
    req->p.done += bytes;
    zp->stats.copied += bytes;
    note_taken(zp, req, bytes, mechanism);
    if (bytes == piece->len) {
        entry_done(zp);
    }
    if (req->p.kind == KIND_VIEW) {
        req->view = req->iov->iov_base;     /* and nothing to give back */
        read_done(zp, req->p.done);
    } else if (req->p.done == req->p.total) {
        read_done(zp, req->p.done);
    }
    return GO_ON;
}

/* With @tired only what costs nothing: bytes that were pushed, the end. */
static enum step take_entry(struct zpipe *zp, bool tired)
{
    struct zpipe_req *req = zp->rx.queue.head;
    struct piece piece;

    if (!load_piece(zp, &piece)) {
        return BROKEN;
    }
    if (piece.type == ZP_W_END) {
        zp->rx.end = true;
        entry_done(zp);
        return STOP;
    }
    if (!req) {
        return STOP;            /* it was the end a moment ago */
    }
    if (piece.type == ZP_W_PUSHED) {
        return take_pushed(zp, req, &piece);
    }
    if (tired) {
        return STOP;
    }
    if (req->p.kind == KIND_VIEW && piece.from) {
        return give_view(zp, req, &piece);
    }
    if (req->p.kind == KIND_VIEW && !req->p.total) {
        read_done(zp, -ENOBUFS);
        return GO_ON;
    }
    return take_copy(zp, req, &piece);
}

/* Reads that have what they asked for, or will get no more. */
static void finish_reads(struct zpipe *zp)
{
    struct zpipe_req *req = zp->rx.queue.head;

    if (req && req->p.done && req->p.done >= req->min) {
        read_done(zp, req->p.done);
    }
    while (zp->rx.end && zp->rx.queue.head) {
        read_done(zp, zp->rx.queue.head->p.done);
    }
}

static void show_progress(struct zpipe *zp)
{
    struct zp_ctl *ctl = zp->own.ctl;
    struct zp_rx *rx = &zp->rx;

    st_relaxed(&ctl->r_done, rx->r_done);
    st_release(&ctl->r_filled, rx->queue.head && rx->queue.head != rx->unposted
                               ? rx->queue.head->p.done : 0);
    st_release(&ctl->taken, rx->taken);
    st_release(&ctl->cur, rx->cur);
    st_release(&ctl->rel, rx->rel);
}

/* Entries there are to take, or -1: the peer's counter is impossible. */
static int64_t available(struct zpipe *zp)
{
    uint64_t prod = ld_acquire(&zp->peer.ctl->w_prod);

    if ((int64_t)(prod - zp->rx.cur) <= 0) {
        return 0;               /* less: it is withdrawing */
    }
    return prod - zp->rx.rel <= zp->peer.entries
           ? (int64_t)(prod - zp->rx.cur) : -1;
}

/* Is the next thing the end?  It is taken although nobody reads. */
static bool at_end(struct zpipe *zp)
{
    return !zp->rx.end && available(zp) &&
           ld_relaxed(&entry_at(zp, zp->rx.cur)->type) == ZP_W_END;
}

static enum step take_entries(struct zpipe *zp)
{
    uint64_t start = zp->stats.copied;
    int64_t n = available(zp);
    enum step step = n < 0 ? BROKEN : GO_ON;

    while (step == GO_ON && n > 0 && !zp->rx.end &&
           (zp->rx.queue.head || at_end(zp))) {
        uint64_t cur = zp->rx.cur;

        step = take_entry(zp, zp->stats.copied - start >= ZP_PASS_BYTES);
        n -= zp->rx.cur - cur;
        if (zp->rx.told >= zp->peer.copy_bytes / 4) {
            show_progress(zp);
            kick(zp);
        }
    }
    return step;
}

void rx_pass(struct zpipe *zp)
{
    enum step step;

    if (!link_readable(zp)) {
        return;
    }
    if (zp->rx.want_data && available(zp)) {
        /* once: the user may not want to look any more */
        zp->rx.want_data = false;
        wake_self(zp);
    }
    if (!zp->rx.queue.head && !at_end(zp)) {
        return;
    }
    if (zp->rx.end || !available(zp)) {
        finish_reads(zp);
        show_progress(zp);
        return;
    }
    touch_begin(zp);
    step = take_entries(zp);
    finish_reads(zp);
    show_progress(zp);
    touch_end(zp);
    if (step == BROKEN) {
        link_fail(zp, -EPROTO, "the peer's entry %llu makes no sense",
                  (unsigned long long)zp->rx.cur);
    } else if (zp->cma_lost) {
        tell_cma_lost(zp);
    }
}

bool rx_more(struct zpipe *zp)
{
    /* waiting for the peer to send a piece in another way is no news */
    return available(zp) && !zp->rx.end &&
           (zp->cma_read ||
            ld_relaxed(&entry_at(zp, zp->rx.cur)->type) != ZP_W_CMA);
}

bool rx_has_news(struct zpipe *zp)
{
    struct zp_rx *rx = &zp->rx;

    if (!link_readable(zp)) {
        return false;
    }
    if (!rx->queue.head && !rx->want_data) {
        return at_end(zp);
    }
    return (rx->end && rx->queue.head) || rx_more(zp);
}

/* --------------------------------------------------------------- posting */

/*
 * Describe a read's buffer.  A read that the peer can reach has p.map set, to
 * anything but NULL: take_pushed() wants to know.  Returns false while the peer
 * has not said whether it has mapped the region.
 */
static bool describe(struct zpipe *zp, struct zpipe_req *req,
                     struct zp_read *entry)
{
    const struct iovec *iov = req->iov;
    int id;

    entry->reach = ZP_R_PRIVATE;
    entry->len = req->p.total;
    entry->min = MAX(req->min, 1);
    req->p.map = NULL;
    if (req->p.kind != KIND_READ || req->iovcnt != 1 ||
        (zp->cfg.flags & ZPIPE_READS_PRIVATE)) {
        return true;
    }
    id = region_find(zp, iov->iov_base, iov->iov_len);
    if (id >= 0 && zp->regions[id].state == REGION_SENT) {
        return false;
    }
    if (id >= 0 && zp->regions[id].writable &&
        zp->regions[id].state == REGION_GOOD) {
        entry->reach = ZP_R_REGION;
        entry->region = id;
        entry->addr = (uint8_t *)iov->iov_base - zp->regions[id].addr;
        req->p.map = zp->own_map;
    } else if (zp->cfg.flags & ZPIPE_CMA_EXPOSE_WRITE) {
        entry->reach = ZP_R_CMA;
        entry->addr = (uintptr_t)iov->iov_base;
        req->p.map = zp->own_map;
    }
    return true;
}

static struct zp_read *next_read(struct zpipe *zp)
{
    return &zp->own.reads[zp->rx.r_prod & (zp->own.entries - 1)];
}

/* A posted read that says that zpipe_try_read() is waiting. */
static void post_demand(struct zpipe *zp)
{
    struct zp_rx *rx = &zp->rx;

    if (zp->link == LINK_UP && !rx->demand && !rx->queue.head) {
        rx->demand = true;
        *next_read(zp) = (struct zp_read) { .reach = ZP_R_PRIVATE };
        st_release(&zp->own.ctl->r_prod, ++rx->r_prod);
        zp->news |= ZP_WANT_READS;
    }
}

static void retire_demand(struct zpipe *zp)
{
    if (zp->rx.demand && zp->own.ctl) {
        zp->rx.demand = false;
        st_release(&zp->own.ctl->r_done, ++zp->rx.r_done);
    }
}

void rx_post(struct zpipe *zp)
{
    struct zp_rx *rx = &zp->rx;

    if (zp->link != LINK_UP || !rx->unposted) {
        return;
    }
    retire_demand(zp);
    while (rx->unposted && rx->r_prod - rx->r_done < zp->own.entries) {
        struct zpipe_req *req = rx->unposted;

        if (!describe(zp, req, next_read(zp))) {
            return;
        }
        req->p.index = rx->r_prod;
        rx->unposted = req->p.next;
        if (req == rx->queue.head) {
            st_release(&zp->own.ctl->r_filled, req->p.done);
        }
        st_release(&zp->own.ctl->r_prod, ++rx->r_prod);
        zp->news |= ZP_WANT_READS;
    }
}

bool rx_revoke(struct zpipe *zp)
{
    struct zp_rx *rx = &zp->rx;

    if (zp->link != LINK_UP) {
        rx_pass(zp);            /* what it pushed before it left counts, too */
        return false;
    }
    retire_demand(zp);
    if (rx->r_prod == rx->r_done) {
        return true;
    }
    /* a peer that can reach none is busy with something else */
    if (rx_conceal(zp) &&
        !await_untouched(zp, patience_end(zp, ZP_PATIENCE_NS))) {
        link_fail(zp, -ETIMEDOUT, "the peer did not stop writing in 100 ms");
        return false;
    }
    /* what was pushed before that counts, and is the first to be taken */
    rx_pass(zp);
    if (zp->link != LINK_UP) {
        return false;
    }
    rx->r_prod = rx->r_done;
    st_release(&zp->own.ctl->r_prod, rx->r_prod);
    rx->unposted = rx->queue.head;
    return true;
}

bool rx_conceal(struct zpipe *zp)
{
    struct zp_rx *rx = &zp->rx;
    struct zpipe_req *req;

    st_relaxed(&zp->own.ctl->r_prod, rx->r_done);
    for (req = rx->queue.head; req != rx->unposted; req = req->p.next) {
        if (req->p.map) {
            return true;
        }
    }
    return false;
}

void rx_start(struct zpipe *zp, uint64_t pos)
{
    struct zp_rx *rx = &zp->rx;

    rx->cur = rx->rel = 0;
    rx->taken = pos;
    rx->r_prod = rx->r_done = 0;
    rx->told = 0;
    rx->nheld = 0;
    memset(rx->held, 0, ZP_ENTRIES_MAX);
    rx->end = false;
    rx->demand = false;
    rx->unposted = rx->queue.head;
    show_progress(zp);
}

void rx_fail_all(struct zpipe *zp, int err)
{
    while (zp->rx.queue.head) {
        size_t done = zp->rx.queue.head->p.done;

        read_done(zp, done ? (ssize_t)done : err);
    }
}

/* ---------------------------------------------------------- for the user */

ssize_t zpipe_try_read(struct zpipe *zp, void *buf, size_t len)
{
    struct iovec iov = { buf, len };
    struct zpipe_req req = { .iov = &iov, .iovcnt = 1, .min = 1 };

    if (!len || zp->rx.queue.head) {
        return len ? -EAGAIN : 0;
    }
    if (!link_readable(zp)) {
        return zp->link != LINK_NONE ? -EAGAIN : zp->rx.end ? 0 : -ENOTCONN;
    }
    req.p.kind = KIND_READ;
    req.p.total = len;
    req.p.state = REQ_QUEUED;
    queue_push(&zp->rx.queue, &req);
    zp->rx.unposted = &req;
    rx_pass(zp);
    if (req.p.state == REQ_DONE) {
        queue_remove(&zp->done, &req);
        retire_demand(zp);
        return req.result;
    }
    queue_remove(&zp->rx.queue, &req);
    zp->rx.unposted = NULL;
    if (zp->link == LINK_NONE) {
        return -ENOTCONN;
    }
    zp->rx.want_data = true;
    post_demand(zp);
    return -EAGAIN;
}

void zpipe_view_done(struct zpipe *zp, struct zpipe_req *req)
{
    struct zp_rx *rx = &zp->rx;

    if (!req->view) {
        return;
    }
    if (req->p.epoch == zp->epoch && zp->peer_map) {
        rx->held[req->p.index & (zp->peer.entries - 1)] = 0;
        rx->nheld--;
        advance_rel(zp);
        st_release(&zp->own.ctl->rel, rx->rel);
    }
    map_put(req->p.map);
    req->p.map = NULL;
    req->view = NULL;
}
