/*
 * zpipe: posted writes of this side
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A write is published in pieces, each with an entry in the ring and a slot
 * here.  Pieces come back in order; what the peer has not taken can be
 * withdrawn to the byte.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "zpipe-int.h"

/* A piece that is pushed; bounds how long this side is busy. */
#define PUSH_MAX        (4u << 20)
/* Do not cut smaller pieces than that because copy memory is short. */
#define COPY_WORTH      4096u
/*
 * So much of the copy memory is in use by requests.  Their bytes stay where
 * they are, and more may drive what is copied out of the caches; with less the
 * two sides sleep in turn.
 */
#define COPY_AHEAD      (512u << 10)

/* What became of an attempt to send a piece in some way. */
enum attempt { SENT, IMPOSSIBLE, MUST_WAIT };

/* A write that was accepted by zpipe_try_write() and withdrawn. */
struct kept {
    struct zpipe_req req;
    struct iovec iov;
    uint8_t data[];
};

/* Where in the peer's posted reads the next byte goes. */
struct push_target {
    uint64_t index;
    size_t len, min;
    uint8_t *region;            /* in a region of the peer, or */
    uint64_t addr;              /* in its address space */
};

static struct tx_slot *slot_at(struct zpipe *zp, uint64_t index)
{
    return &zp->tx.slots[index & (zp->own.entries - 1)];
}

static bool ring_full(const struct zpipe *zp)
{
    return zp->tx.prod - zp->tx.rel == zp->own.entries;
}

/* ------------------------------------------------------------ publishing */

static struct zp_write *next_entry(struct zpipe *zp)
{
    return &zp->own.writes[zp->tx.prod & (zp->own.entries - 1)];
}

/* Has the peer nothing to copy?  Then it need not be woken soon. */
static bool at_hand(const struct zp_tx *tx, const struct tx_slot *piece)
{
    return piece->type == ZP_W_PUSHED ||
           (piece->type == ZP_W_REGION && tx->viewed);
}

/* Publish the piece whose place, or bytes, the entry has already. */
static void publish(struct zpipe *zp, const struct tx_slot *piece)
{
    struct zp_tx *tx = &zp->tx;
    struct zp_write *entry = next_entry(zp);
    struct tx_slot *slot = slot_at(zp, tx->prod);
    struct zpipe_req *req = piece->req;

    *slot = *piece;
    slot->pos = tx->pos;
    entry->pos = tx->pos;
    entry->len = piece->len;
    entry->type = piece->type;
    st_release(&zp->own.ctl->w_prod, ++tx->prod);

    tx->pos += piece->len;
    tx->high = MAX(tx->high, tx->pos);
    tx->push_run = tx->push_run && piece->type == ZP_W_PUSHED;
    if (req) {
        req_advance(req, piece->len);
        req->p.sent += piece->len;
        if (req->p.sent == req->p.total) {
            tx->next = req->p.next;
        }
    }
    zp->news |= ZP_WANT_DATA;
    tx->eager += at_hand(tx, piece) ? piece->len / ZP_EAGER_AT_HAND
                                    : piece->len;
    if (tx->eager >= ZP_EAGER_BYTES) {
        kick(zp);
    }
}

static size_t gather(const struct zpipe_req *req, size_t len, uint8_t *to)
{
    struct iovec iov[ZP_SLICE_MAX];
    size_t bytes;
    int n = req_slice(req, len, iov, ZP_SLICE_MAX, &bytes);

    for (int i = 0; i < n; i++) {
        memcpy(to, iov[i].iov_base, iov[i].iov_len);
        to += iov[i].iov_len;
    }
    return bytes;
}

static void send_inline(struct zpipe *zp, struct zpipe_req *req)
{
    size_t bytes = gather(req, ZP_INLINE_MAX, next_entry(zp)->data);

    publish(zp, &(struct tx_slot) {
        .req = req, .len = bytes, .type = ZP_W_INLINE,
        .mechanism = ZPIPE_INLINE });
}

/* When all of it is free begin with what is in the caches, most likely. */
static void copy_rewind(struct zpipe *zp)
{
    if (zp->tx.prod == zp->tx.rel) {
        zp->tx.copy_head = zp->tx.copy_tail = 0;
    }
}

/*
 * How many bytes there are in one piece at the head of the copy memory, if so
 * many may be in use in all.
 */
static size_t copy_room(const struct zpipe *zp, size_t most)
{
    const struct zp_tx *tx = &zp->tx;
    size_t size = zp->own.copy_bytes;
    size_t used = tx->copy_head - tx->copy_tail;
    size_t to_end = size - (tx->copy_head & (size - 1));

    return used < most ? MIN(MIN(most - used, to_end), ZP_COPY_MAX) : 0;
}

/* Publish @bytes that lie at the head of the copy memory. */
static void publish_copied(struct zpipe *zp, struct zpipe_req *req,
                           size_t bytes)
{
    struct zp_tx *tx = &zp->tx;

    next_entry(zp)->addr = tx->copy_head & (zp->own.copy_bytes - 1);
    tx->copy_head += (bytes + ZP_LINE - 1) & ~(size_t)(ZP_LINE - 1);
    publish(zp, &(struct tx_slot) {
        .req = req, .len = bytes, .type = ZP_W_COPY,
        .mechanism = ZPIPE_COPY, .copy_end = tx->copy_head });
}

/*
 * How much of a write to copy: not what follows in a segment that the peer can
 * look at.
 */
static size_t copy_wanted(struct zpipe *zp, const struct zpipe_req *req)
{
    struct iovec iov[ZP_SLICE_MAX];
    enum zpipe_mechanism mechanism = zp->cfg.mechanism;
    size_t least = mechanism == ZPIPE_AUTO ? zp->cfg.direct_min_bytes : 1;
    size_t bytes, wanted = 0;
    int n = req_slice(req, ZP_COPY_MAX, iov, ZP_SLICE_MAX, &bytes);

    if (mechanism == ZPIPE_COPY || mechanism == ZPIPE_INLINE) {
        return bytes;
    }
    for (int i = 0; i < n; i++) {
        int id = i && iov[i].iov_len >= least
                 ? region_find(zp, iov[i].iov_base, iov[i].iov_len) : -1;

        if (id >= 0 && zp->regions[id].state == REGION_GOOD) {
            break;
        }
        wanted += iov[i].iov_len;
    }
    return wanted;
}

static enum attempt send_copy(struct zpipe *zp, struct zpipe_req *req)
{
    size_t left = copy_wanted(zp, req);
    size_t most = MIN(zp->own.copy_bytes, COPY_AHEAD);
    size_t room;
    uint8_t *to;

    copy_rewind(zp);
    room = copy_room(zp, most);
    to = zp->own.copy + (zp->tx.copy_head & (zp->own.copy_bytes - 1));
    if (room < MIN(left, COPY_WORTH) &&
        (!room || zp->tx.copy_head - zp->tx.copy_tail + room == most)) {
        return MUST_WAIT;
    }
    left = gather(req, MIN(left, room), to);
    zp->stats.copied += left;
    publish_copied(zp, req, left);
    return SENT;
}

/* Publish where the next piece lies in a region. */
static enum attempt send_region(struct zpipe *zp, struct zpipe_req *req,
                                bool any_size, enum zpipe_reason *why)
{
    struct zp_own_region *region;
    struct zp_write *entry;
    struct iovec iov;
    size_t bytes;
    int id;

    req_slice(req, ZP_PIECE_MAX, &iov, 1, &bytes);
    id = region_find(zp, iov.iov_base, bytes);
    if (id < 0) {
        *why = ZPIPE_WHY_NO_REGION;
        return IMPOSSIBLE;
    }
    region = &zp->regions[id];
    if (region->state == REGION_SENT) {
        return MUST_WAIT;       /* the peer will say whether it has it */
    }
    if (region->state != REGION_GOOD) {
        *why = region->state == REGION_WITHHELD ? ZPIPE_WHY_UNTRUSTED
                                                : ZPIPE_WHY_REFUSED;
        return IMPOSSIBLE;
    }
    if (!any_size && bytes < zp->cfg.direct_min_bytes) {
        *why = ZPIPE_WHY_SIZE;
        return IMPOSSIBLE;
    }
    entry = next_entry(zp);
    entry->addr = (uint8_t *)iov.iov_base - region->addr;
    entry->region = id;
    publish(zp, &(struct tx_slot) {
        .req = req, .len = bytes, .type = ZP_W_REGION, .region = id,
        .mechanism = zp->cfg.mechanism == ZPIPE_MAP ? ZPIPE_MAP
                                                    : ZPIPE_DIRECT });
    return SENT;
}

/* Publish the address of the next piece, for the peer to read it there. */
static enum attempt send_address(struct zpipe *zp, struct zpipe_req *req,
                                 bool any_size, enum zpipe_reason *why)
{
    struct iovec iov;
    size_t bytes;

    if (!(zp->cfg.flags & ZPIPE_CMA_EXPOSE_READ)) {
        return IMPOSSIBLE;
    }
    if (!zp->peer_cma_read) {
        *why = ZPIPE_WHY_CMA_DENIED;
        return IMPOSSIBLE;
    }
    req_slice(req, ZP_PIECE_MAX, &iov, 1, &bytes);
    if (!any_size && bytes < zp->cfg.cma_min_bytes) {
        return IMPOSSIBLE;
    }
    next_entry(zp)->addr = (uintptr_t)iov.iov_base;
    publish(zp, &(struct tx_slot) {
        .req = req, .len = bytes, .type = ZP_W_CMA,
        .mechanism = ZPIPE_DIRECT });
    return SENT;
}

/* --------------------------------------------------------------- pushing */

/*
 * Find the posted read that the next byte goes to.  That is known when the peer
 * has taken everything, or when all that it has not was pushed.
 *
 * SENT: @target is good.  MUST_WAIT: there is none yet.  IMPOSSIBLE: there is
 * one, out of reach.
 */
static enum attempt push_look(struct zpipe *zp, struct push_target *target,
                              enum zpipe_reason *why)
{
    struct zp_tx *tx = &zp->tx;
    struct zp_ctl *ctl = zp->peer.ctl;
    struct zp_read *entry;
    struct zp_map *map;
    uint64_t posted, done, next;
    uint32_t region, reach;

    *why = ZPIPE_WHY_READER_BEHIND;
    if (!tx->push_run && ld_acquire(&ctl->taken) != tx->pos) {
        return MUST_WAIT;
    }
    /* in the order in which the peer stores them, reversed */
    posted = ld_acquire(&ctl->r_prod);
    done = ld_acquire(&ctl->r_done);
    /* reads that were taken back empty are over, too */
    next = !tx->push_run || (int64_t)(done - tx->push_next) > 0
           ? done : tx->push_next;
    if (next == done && ld_acquire(&ctl->r_filled)) {
        return IMPOSSIBLE;      /* it waits for the rest of its minimum */
    }
    if ((int64_t)(posted - next) <= 0) {
        return MUST_WAIT;
    }
    entry = &zp->peer.reads[next & (zp->peer.entries - 1)];
    target->index = next;
    target->len = ld_relaxed(&entry->len);
    target->min = ld_relaxed(&entry->min);
    target->addr = ld_relaxed(&entry->addr);
    target->region = NULL;
    region = ld_relaxed(&entry->region);
    reach = ld_relaxed(&entry->reach);
    *why = ZPIPE_WHY_READER_PRIVATE;
    if (!target->len) {
        return IMPOSSIBLE;
    }
    if (reach == ZP_R_CMA) {
        *why = zp->cma_error ? ZPIPE_WHY_CMA_DENIED : ZPIPE_WHY_CMA_OFF;
        return zp->cma_write ? SENT : IMPOSSIBLE;
    }
    if (reach != ZP_R_REGION || region >= ZPIPE_REGIONS_MAX) {
        return IMPOSSIBLE;
    }
    map = zp->peer_regions[region];
    if (!map || !map->writable || target->addr > map->size ||
        target->len > map->size - target->addr) {
        return IMPOSSIBLE;
    }
    target->region = (uint8_t *)map->base + target->addr;
    return SENT;
}

static bool push_bytes(struct zpipe *zp, const struct zpipe_req *req,
                       const struct push_target *target, size_t *bytes)
{
    struct iovec iov[ZP_SLICE_MAX];
    int n, err;

    if (target->region) {
        *bytes = gather(req, *bytes, target->region);
        return true;
    }
    n = req_slice(req, *bytes, iov, ZP_SLICE_MAX, bytes);
    err = cma_write(zp, iov, n, target->addr, *bytes);
    if (err) {
        zp->cma_error = -err;
        zp->cma_write = false;
    }
    return !err;
}

/* The read was posted first: copy into its buffer. */
static enum attempt send_push(struct zpipe *zp, struct zpipe_req *req,
                              enum zpipe_reason *why)
{
    size_t bytes = MIN(req->p.total - req->p.sent, PUSH_MAX);
    struct push_target target;
    enum attempt found;

    touch_begin(zp);
    found = push_look(zp, &target, why);
    if (found != MUST_WAIT) {
        zp->tx.reads_by = 0;
        zp->tx.no_reads = false;
    }
    if (found != SENT) {
        return found;
    }
    bytes = MIN(bytes, target.len);
    if (bytes < target.min) {
        *why = ZPIPE_WHY_SIZE;
        return IMPOSSIBLE;
    }
    if (!push_bytes(zp, req, &target, &bytes)) {
        *why = ZPIPE_WHY_CMA_DENIED;
        return IMPOSSIBLE;
    }
    if (bytes < target.min) {
        /* too many segments: what was written there does no harm */
        *why = ZPIPE_WHY_SIZE;
        return IMPOSSIBLE;
    }
    zp->tx.push_run = true;
    zp->tx.push_next = target.index + 1;
    zp->stats.copied += bytes;
    next_entry(zp)->addr = target.index;
    publish(zp, &(struct tx_slot) {
        .req = req, .len = bytes, .type = ZP_W_PUSHED,
        .mechanism = ZPIPE_DIRECT });
    return SENT;
}

/* -------------------------------------------------------------- choosing */

/*
 * There is no posted read: wait for one?  When the reader is busy with what was
 * pushed it will come back with its next buffer: that is worth waiting for, and
 * bounds what is on the way.  Otherwise only if nothing but direct will do, and
 * not for ever: a reader need not post its reads.
 */
static bool wait_for_read(struct zpipe *zp, bool forced)
{
    struct zp_tx *tx = &zp->tx;
    uint64_t now;

    if (tx->prod != tx->rel) {
        return forced || tx->push_run;
    }
    if (!forced || tx->no_reads) {
        return false;
    }
    now = now_ns();
    if (!tx->reads_by) {
        tx->reads_by = now + ZP_READS_NS;
        wake_self_later(zp, ZP_READS_NS);
    } else if (now >= tx->reads_by) {
        tx->reads_by = 0;
        tx->no_reads = true;
    }
    return !tx->no_reads;
}

/*
 * A piece by the one copy, or none: pushed if a read was posted first, else
 * shown.
 */
static enum attempt send_best(struct zpipe *zp, struct zpipe_req *req,
                              enum zpipe_reason *why)
{
    enum zpipe_mechanism mechanism = zp->cfg.mechanism;
    bool forced = mechanism != ZPIPE_AUTO;
    enum attempt pushed = IMPOSSIBLE, shown;
    enum zpipe_reason why_push = ZPIPE_WHY_SIZE, why_shown = ZPIPE_WHY_SIZE;

    if (mechanism != ZPIPE_MAP) {
        pushed = send_push(zp, req, &why_push);
        if (pushed == SENT) {
            return SENT;
        }
    }
    shown = send_region(zp, req, forced, &why_shown);
    if (shown != IMPOSSIBLE) {
        return shown;
    }
    if (mechanism != ZPIPE_MAP &&
        send_address(zp, req, forced, &why_shown) == SENT) {
        return SENT;
    }
    if (pushed == MUST_WAIT && wait_for_read(zp, forced)) {
        zp->tx.want_reads = true;
        return MUST_WAIT;
    }
    *why = why_shown == ZPIPE_WHY_NO_REGION && mechanism != ZPIPE_MAP
           ? why_push : why_shown;
    return IMPOSSIBLE;
}

/* Publish one piece of a write.  False: it has to wait. */
static bool send_piece(struct zpipe *zp, struct zpipe_req *req)
{
    enum zpipe_mechanism mechanism = zp->cfg.mechanism;
    size_t left = req->p.total - req->p.sent;
    enum zpipe_reason why = ZPIPE_WHY_SIZE;
    bool fallback = false;
    enum attempt ret;

    if (left <= ZP_INLINE_MAX &&
        (mechanism == ZPIPE_INLINE || mechanism == ZPIPE_AUTO)) {
        send_inline(zp, req);
        return true;
    }
    if (mechanism == ZPIPE_INLINE) {
        fallback = true;
    } else if (mechanism != ZPIPE_COPY &&
               (mechanism != ZPIPE_AUTO || left >= zp->cfg.direct_min_bytes)) {
        ret = send_best(zp, req, &why);
        if (ret != IMPOSSIBLE) {
            return ret == SENT;
        }
        fallback = true;
    }
    if (send_copy(zp, req) != SENT) {
        return false;
    }
    if (fallback) {
        zp->stats.fallback[why]++;
    }
    return true;
}

static void send_end(struct zpipe *zp)
{
    publish(zp, &(struct tx_slot) { .type = ZP_W_END });
    zp->news |= ZP_WANT_END;
    zp->tx.end_sent = true;
}

void tx_pump(struct zpipe *zp)
{
    struct zp_tx *tx = &zp->tx;
    uint64_t start = zp->stats.copied;

    tx->want_reads = tx->more = false;
    if (zp->link != LINK_UP) {
        return;
    }
    while (!tx->more && tx->next && !ring_full(zp) &&
           send_piece(zp, tx->next)) {
        /* requests may be of any size: let others run, too */
        tx->more = zp->stats.copied - start >= ZP_PASS_BYTES;
    }
    if (tx->shut && !tx->end_sent && !tx->next && !ring_full(zp)) {
        send_end(zp);
    }
    touch_end(zp);
}

/* ------------------------------------------------------------ collecting */

static void count_piece(struct zpipe *zp, const struct tx_slot *slot,
                        uint64_t index, size_t bytes)
{
    enum zpipe_mechanism mechanism = slot->mechanism;

    if (!bytes) {
        return;
    }
    if (slot->type == ZP_W_REGION) {
        uint8_t how = ld_relaxed(&zp->peer.how[index & (ZP_ENTRIES_MAX - 1)]);

        if (mechanism == ZPIPE_MAP && how != ZPIPE_MAP) {
            zp->stats.fallback[ZPIPE_WHY_NO_VIEW]++;
        }
        zp->tx.viewed = how == ZPIPE_MAP;
        mechanism = how == ZPIPE_MAP ? ZPIPE_MAP : ZPIPE_DIRECT;
    }
    zp->stats.tx[mechanism].messages++;
    zp->stats.tx[mechanism].bytes += bytes;
    if (slot->req) {
        slot->req->mechanism = mechanism;
    }
}

static void write_done(struct zpipe *zp, ssize_t result)
{
    struct zpipe_req *req = queue_pop(&zp->tx.queue);

    if (zp->tx.next == req) {
        zp->tx.next = req->p.next;
    }
    if (req->p.kind == KIND_KEPT) {
        free(req);
    } else {
        req_finish(zp, req, result);
    }
}

/* The peer has @bytes of the piece. */
static void piece_taken(struct zpipe *zp, struct tx_slot *slot, uint64_t index,
                        size_t bytes)
{
    struct zpipe_req *req = slot->req;

    count_piece(zp, slot, index, bytes);
    zp->tx.acked = slot->pos + bytes;
    if (req) {
        req->p.done += bytes;
        if (req->p.done == req->p.total) {
            write_done(zp, req->p.total);
        }
    }
}

static void release_up_to(struct zpipe *zp, uint64_t rel)
{
    struct zp_tx *tx = &zp->tx;

    for (; tx->rel != rel; tx->rel++) {
        struct tx_slot *slot = slot_at(zp, tx->rel);

        if (slot->copy_end) {
            tx->copy_tail = slot->copy_end;
        }
        piece_taken(zp, slot, tx->rel, slot->len);
    }
}

void tx_collect(struct zpipe *zp)
{
    struct zp_tx *tx = &zp->tx;
    uint64_t rel;

    if (zp->link != LINK_UP) {
        return;
    }
    rel = ld_acquire(&zp->peer.ctl->rel);
    if (rel - tx->rel > tx->prod - tx->rel) {
        link_fail(zp, -EPROTO, "the peer gave back entry %llu of %llu to %llu",
                  (unsigned long long)rel, (unsigned long long)tx->rel,
                  (unsigned long long)tx->prod);
        return;
    }
    release_up_to(zp, rel);
    if (tx->want_space && !tx->queue.head && !ring_full(zp) &&
        copy_room(zp, zp->own.copy_bytes)) {
        tx->want_space = false;
        wake_self(zp);
    }
}

bool tx_has_news(struct zpipe *zp)
{
    struct zp_tx *tx = &zp->tx;
    struct push_target target;
    enum zpipe_reason why;

    if (zp->link != LINK_UP) {
        return false;
    }
    return tx->more || ld_acquire(&zp->peer.ctl->rel) != tx->rel ||
           (tx->want_reads && push_look(zp, &target, &why) != MUST_WAIT);
}

/* ----------------------------------------------------------- withdrawing */

static void queue_front(struct zp_tx *tx, struct zpipe_req *req)
{
    req->p.next = tx->queue.head;
    tx->queue.head = req;
    if (!req->p.next) {
        tx->queue.tail = &req->p.next;
    }
}

/*
 * Bytes of zpipe_try_write() that were not taken, from entry @from on, which
 * has lost its first @skip, become a write in front of all others.
 */
static bool keep_written(struct zpipe *zp, uint64_t from, size_t skip)
{
    struct zp_tx *tx = &zp->tx;
    size_t total = 0, fill = 0;
    struct kept *kept;
    uint64_t i;

    for (i = from; i != tx->prod && !slot_at(zp, i)->req; i++) {
        total += slot_at(zp, i)->len;
    }
    total -= MIN(skip, total);
    if (!total) {
        return true;
    }
    kept = calloc(1, sizeof(*kept) + total);
    if (!kept) {
        return false;
    }
    for (i = from; fill < total; i++) {
        struct tx_slot *slot = slot_at(zp, i);
        struct zp_write *entry = &zp->own.writes[i & (zp->own.entries - 1)];

        memcpy(kept->data + fill, zp->own.copy + entry->addr + skip,
               slot->len - skip);
        fill += slot->len - skip;
        skip = 0;
    }
    kept->iov = (struct iovec) { kept->data, total };
    kept->req.iov = &kept->iov;
    kept->req.iovcnt = 1;
    kept->req.p.kind = KIND_KEPT;
    kept->req.p.total = total;
    kept->req.p.state = REQ_QUEUED;
    queue_front(tx, &kept->req);
    return true;
}

/*
 * The peer's position is final: @taken.  What lies before it is done, the rest
 * goes back to the queue.
 */
static bool take_back(struct zpipe *zp, uint64_t taken)
{
    struct zp_tx *tx = &zp->tx;
    bool kept = true;
    size_t part = 0;
    uint64_t i;

    for (i = tx->rel; i != tx->prod; i++) {
        struct tx_slot *slot = slot_at(zp, i);

        if (slot->type == ZP_W_END || slot->pos + slot->len > taken) {
            break;
        }
        piece_taken(zp, slot, i, slot->len);
    }
    if (i != tx->prod && slot_at(zp, i)->pos < taken) {
        part = taken - slot_at(zp, i)->pos;
        piece_taken(zp, slot_at(zp, i), i, part);
    }
    kept = keep_written(zp, i, part);
    for (struct zpipe_req *req = tx->queue.head; req; req = req->p.next) {
        req->p.sent = req->p.done;
        req_seek(req, req->p.done);
    }
    tx->next = tx->queue.head;
    tx->prod = tx->rel;
    tx->pos = tx->acked;
    tx->copy_head = tx->copy_tail = 0;
    tx->end_sent = false;
    tx->push_run = false;
    return kept;
}

/* Is what the peer has taken wholly, and views, given back? */
static bool all_given_back(struct zpipe *zp, uint64_t taken)
{
    struct tx_slot *slot = slot_at(zp, zp->tx.rel);

    return zp->tx.rel == zp->tx.prod || slot->type == ZP_W_END ||
           slot->pos + slot->len > taken;
}

static bool position_possible(struct zpipe *zp, uint64_t taken)
{
    return taken - zp->tx.acked <= zp->tx.pos - zp->tx.acked;
}

bool tx_withdraw(struct zpipe *zp)
{
    struct zp_tx *tx = &zp->tx;
    uint64_t deadline, taken;

    if (zp->link != LINK_UP || tx->prod == tx->rel) {
        return zp->link == LINK_UP;
    }
    st_relaxed(&zp->own.ctl->w_prod, tx->rel);
    deadline = patience_end(zp, ZP_PATIENCE_NS);
    if (!await_untouched(zp, deadline)) {
        link_fail(zp, -ETIMEDOUT, "the peer did not stop reading in 100 ms");
        return false;
    }
    for (;;) {
        tx_collect(zp);
        if (zp->link != LINK_UP) {
            return false;
        }
        taken = ld_acquire(&zp->peer.ctl->taken);
        if (!position_possible(zp, taken)) {
            link_fail(zp, -EPROTO, "the peer's position is impossible");
            return false;
        }
        if (all_given_back(zp, taken)) {
            break;
        }
        if (now_ns() >= deadline) {
            waited_in_vain(zp);
            link_fail(zp, -ETIMEDOUT,
                      "the peer did not give back its views in 100 ms");
            return false;
        }
        /* it may wait for a kick; views come back when it gets to run */
        zp->news |= ZP_WANT_DATA;
        kick(zp);
        nanosleep(&(struct timespec) { .tv_nsec = 50000 }, NULL);
    }
    if (!take_back(zp, taken)) {
        link_fail(zp, -ENOMEM, "no memory for what was withdrawn");
        return false;
    }
    tx->high = tx->acked;
    st_release(&zp->own.ctl->w_prod, tx->prod);
    return true;
}

bool tx_conceal(struct zpipe *zp)
{
    uint64_t i;

    for (i = zp->tx.rel; i != zp->tx.prod; i++) {
        if (slot_at(zp, i)->type == ZP_W_CMA) {
            st_relaxed(&zp->own.ctl->w_prod, i);
            return true;
        }
    }
    return false;
}

void tx_salvage(struct zpipe *zp, bool reads, uint64_t deadline)
{
    uint64_t rel, taken;
    bool final = true;

    if (!zp->peer.ctl) {
        return;
    }
    st_relaxed(&zp->own.ctl->w_prod, zp->tx.rel);
    if (reads || zp->tx.prod != zp->tx.rel) {
        final = await_untouched(zp, deadline);
    }
    rel = ld_acquire(&zp->peer.ctl->rel);
    if (rel - zp->tx.rel <= zp->tx.prod - zp->tx.rel) {
        release_up_to(zp, rel);
    }
    taken = ld_acquire(&zp->peer.ctl->taken);
    /* a peer that lies loses what it lied about: it is sent once more */
    if (!take_back(zp, position_possible(zp, taken) ? taken : zp->tx.acked)) {
        zp->broken = -ENOMEM;
    }
    /*
     * What it takes from now on is not taken, and a claim to it is a gap.  But
     * one that is in the middle of a copy, and slow, finishes that.
     */
    if (final) {
        zp->tx.high = zp->tx.acked;
    }
}

void tx_disclaim(struct zpipe *zp)
{
    if (zp->link != LINK_UP) {
        zp->tx.high = zp->tx.acked;
    }
}

bool tx_shows_region(struct zpipe *zp, int region)
{
    for (uint64_t i = zp->tx.rel; i != zp->tx.prod; i++) {
        struct tx_slot *slot = slot_at(zp, i);

        if (slot->type == ZP_W_REGION && slot->region == region) {
            return true;
        }
    }
    return false;
}

/* The peer says that it has all bytes before @pos. */
static void acknowledge(struct zpipe *zp, uint64_t pos)
{
    struct zp_tx *tx = &zp->tx;

    while (tx->acked != pos && tx->queue.head) {
        struct zpipe_req *req = tx->queue.head;
        size_t bytes = MIN(pos - tx->acked, req->p.total - req->p.done);

        tx->acked += bytes;
        req->p.done += bytes;
        if (req->p.done == req->p.total) {
            write_done(zp, req->p.total);
        } else {
            req->p.sent = req->p.done;
            req_seek(req, req->p.done);
        }
    }
    tx->acked = pos;
}

void tx_start(struct zpipe *zp, uint64_t pos)
{
    struct zp_tx *tx = &zp->tx;

    acknowledge(zp, pos);
    tx->next = tx->queue.head;
    tx->prod = tx->rel = 0;
    tx->pos = tx->high = pos;
    tx->copy_head = tx->copy_tail = 0;
    tx->eager = 0;
    tx->push_run = tx->viewed = false;
    tx->end_sent = false;
    tx->reads_by = 0;
    tx->no_reads = false;
}

void tx_fail_all(struct zpipe *zp, int err)
{
    while (zp->tx.queue.head) {
        size_t done = zp->tx.queue.head->p.done;

        write_done(zp, done ? (ssize_t)done : err);
    }
    zp->tx.next = NULL;
}

ssize_t zpipe_try_write(struct zpipe *zp, const void *buf, size_t len)
{
    const uint8_t *from = buf;
    size_t left = len;

    if (zp->tx.shut) {
        return -EPIPE;
    }
    if (zp->link != LINK_UP) {
        return zp->link == LINK_HELLO || zp->link == LINK_READY ? -EAGAIN
                                                                : -ENOTCONN;
    }
    tx_collect(zp);
    if (zp->link != LINK_UP) {
        return -ENOTCONN;
    }
    copy_rewind(zp);
    while (left && !zp->tx.queue.head && !ring_full(zp)) {
        size_t bytes = MIN(left, copy_room(zp, zp->own.copy_bytes));

        if (!bytes) {
            break;
        }
        memcpy(zp->own.copy + (zp->tx.copy_head & (zp->own.copy_bytes - 1)),
               from, bytes);
        zp->stats.copied += bytes;
        publish_copied(zp, NULL, bytes);
        from += bytes;
        left -= bytes;
    }
    zp->tx.want_space = left;
    if (left == len) {
        return len ? -EAGAIN : 0;
    }
    return len - left;
}
