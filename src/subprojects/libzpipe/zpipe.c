/*
 * zpipe: handles and requests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include "zpipe-int.h"

/* Size of struct zpipe_config in the first version. */
#define CONFIG_SIZE_MIN     sizeof(struct zpipe_config)
#define SPIN_NS_DEFAULT     20000
#define SPIN_NS_MAX         (100ull * 1000 * 1000)
/*
 * Rounds without a completion, completions, and bytes copied, before a turn
 * ends although there is more: others in the caller's event loop want to run,
 * too.
 */
#define TURN_ROUNDS         16
#define TURN_REQUESTS       4096
#define TURN_BYTES          (16u << 20)

/* ----------------------------------------------------------------- queues */

void queue_init(struct req_queue *q)
{
    q->head = NULL;
    q->tail = &q->head;
}

void queue_push(struct req_queue *q, struct zpipe_req *req)
{
    req->p.next = NULL;
    *q->tail = req;
    q->tail = &req->p.next;
}

struct zpipe_req *queue_pop(struct req_queue *q)
{
    struct zpipe_req *req = q->head;

    if (req) {
        q->head = req->p.next;
        if (!q->head) {
            q->tail = &q->head;
        }
    }
    return req;
}

bool queue_remove(struct req_queue *q, struct zpipe_req *req)
{
    for (struct zpipe_req **p = &q->head; *p; p = &(*p)->p.next) {
        if (*p == req) {
            *p = req->p.next;
            if (!*p) {
                q->tail = p;
            }
            return true;
        }
    }
    return false;
}

/* ---------------------------------------------------------------- requests */

int req_slice(const struct zpipe_req *req, size_t max, struct iovec *iov,
              int n, size_t *bytes)
{
    size_t skip = req->p.seg_off;
    int seg = req->p.seg, used = 0;

    *bytes = 0;
    for (; used < n && seg < req->iovcnt && *bytes < max; seg++, skip = 0) {
        size_t len = MIN(req->iov[seg].iov_len - skip, max - *bytes);

        if (len) {
            iov[used].iov_base = (uint8_t *)req->iov[seg].iov_base + skip;
            iov[used++].iov_len = len;
            *bytes += len;
        }
    }
    return used;
}

void req_advance(struct zpipe_req *req, size_t bytes)
{
    req->p.seg_off += bytes;
    while (req->p.seg < (uint32_t)req->iovcnt &&
           req->p.seg_off >= req->iov[req->p.seg].iov_len) {
        req->p.seg_off -= req->iov[req->p.seg++].iov_len;
    }
}

void req_seek(struct zpipe_req *req, size_t offset)
{
    req->p.seg = 0;
    req->p.seg_off = 0;
    req_advance(req, offset);
}

void req_finish(struct zpipe *zp, struct zpipe_req *req, ssize_t result)
{
    req->result = result;
    req->p.state = REQ_DONE;
    queue_push(&zp->done, req);
}

static int submit_check(const struct zpipe *zp, const struct zpipe_req *req,
                        bool view, size_t *total)
{
    *total = 0;
    if (req->iovcnt < (view ? 0 : 1) ||
        req->iovcnt > (view ? 1 : ZPIPE_IOV_MAX)) {
        return -EINVAL;
    }
    for (int i = 0; i < req->iovcnt; i++) {
        if (req->iov[i].iov_len > SSIZE_MAX - *total) {
            return -EINVAL;
        }
        *total += req->iov[i].iov_len;
    }
    if (!*total && !view) {
        return -EINVAL;
    }
    if (zp->link == LINK_NONE && zp->epoch &&
        !(zp->cfg.flags & ZPIPE_PERSISTENT)) {
        return -ENOTCONN;
    }
    return 0;
}

static void submit(struct req_queue *q, struct zpipe_req **first_new,
                   struct zpipe_req *req, size_t total, int kind)
{
    memset(&req->p, 0, sizeof(req->p));
    req->p.total = total;
    req->p.kind = kind;
    req->p.state = REQ_QUEUED;
    req->view = NULL;
    req_seek(req, 0);
    queue_push(q, req);
    if (!*first_new) {
        *first_new = req;
    }
}

int zpipe_write(struct zpipe *zp, struct zpipe_req *req)
{
    size_t total;
    int ret;

    if (zp->tx.shut) {
        return -EPIPE;
    }
    ret = submit_check(zp, req, false, &total);
    if (!ret && zp->link == LINK_DRAIN &&
        !(zp->cfg.flags & ZPIPE_PERSISTENT)) {
        ret = -EPIPE;
    }
    if (!ret) {
        submit(&zp->tx.queue, &zp->tx.next, req, total, KIND_WRITE);
    }
    return ret;
}

static int read_submit(struct zpipe *zp, struct zpipe_req *req, int kind)
{
    size_t total;
    int ret = submit_check(zp, req, kind == KIND_VIEW, &total);

    if (ret == -ENOTCONN && zp->rx.end) {
        ret = 0;                /* it will find the end */
    }
    if (!ret && kind == KIND_READ && req->min > total) {
        ret = -EINVAL;
    }
    if (!ret) {
        submit(&zp->rx.queue, &zp->rx.unposted, req, total, kind);
        if (zp->link == LINK_NONE && zp->rx.end) {
            rx_fail_all(zp, 0);
        }
    }
    return ret;
}

int zpipe_read(struct zpipe *zp, struct zpipe_req *req)
{
    return read_submit(zp, req, KIND_READ);
}

int zpipe_read_view(struct zpipe *zp, struct zpipe_req *req)
{
    req->min = 0;
    return read_submit(zp, req, KIND_VIEW);
}

int zpipe_shutdown(struct zpipe *zp)
{
    zp->tx.shut = true;
    return 0;
}

/* ------------------------------------------------------------------ cancel */

static void cancelled(struct zpipe *zp, struct zpipe_req *req)
{
    req_finish(zp, req, req->p.done ? (ssize_t)req->p.done : -ECANCELED);
}

static void remove_write(struct zpipe *zp, struct zpipe_req *req)
{
    if (zp->tx.next == req) {
        zp->tx.next = req->p.next;
    }
    if (queue_remove(&zp->tx.queue, req)) {
        tx_disclaim(zp);
        cancelled(zp, req);
    }
}

static void remove_read(struct zpipe *zp, struct zpipe_req *req)
{
    if (zp->rx.unposted == req) {
        zp->rx.unposted = req->p.next;
    }
    if (queue_remove(&zp->rx.queue, req)) {
        cancelled(zp, req);
    }
}

/* What completed outside of a turn makes the descriptor readable. */
static void announce(struct zpipe *zp)
{
    if (zp->done.head && !zp->in_turn) {
        wake_self(zp);
    }
}

void zpipe_cancel(struct zpipe *zp, struct zpipe_req *req)
{
    if (req->p.state != REQ_QUEUED) {
        return;
    }
    zp->wait_end = patience_end(zp, ZP_PATIENCE_NS);
    if (req->p.kind == KIND_WRITE) {
        if (req->p.sent != req->p.done) {
            tx_withdraw(zp);
        }
        if (req->p.state == REQ_QUEUED) {
            remove_write(zp, req);
        }
    } else {
        rx_revoke(zp);
        if (req->p.state == REQ_QUEUED) {
            remove_read(zp, req);
        }
    }
    zp->wait_end = 0;
    announce(zp);
}

void zpipe_cancel_all(struct zpipe *zp, bool reads, bool writes)
{
    struct zpipe_req *req, *next;

    zp->wait_end = patience_end(zp, ZP_PATIENCE_NS);
    if (writes) {
        tx_withdraw(zp);
        for (req = zp->tx.queue.head; req; req = next) {
            next = req->p.next;
            if (req->p.kind != KIND_KEPT) {
                remove_write(zp, req);
            }
        }
    }
    if (reads) {
        rx_revoke(zp);
        while (zp->rx.queue.head) {
            remove_read(zp, zp->rx.queue.head);
        }
    }
    zp->wait_end = 0;
    announce(zp);
}

/* ------------------------------------------------------------------ a turn */

static void progress(struct zpipe *zp)
{
    tx_collect(zp);
    rx_pass(zp);
    rx_post(zp);
    tx_pump(zp);
    link_drained(zp);
}

static void begin_turn(struct zpipe *zp)
{
    zp->in_turn = true;
    zp->turn_budget = TURN_REQUESTS;
    zp->turn_end = zp->stats.copied + TURN_BYTES;
    wake_up(zp);
    if (!zp->polled) {
        link_poll(zp, 0);
    }
    zp->polled = false;
}

static struct zpipe_req *hand_out(struct zpipe *zp)
{
    struct zpipe_req *req = queue_pop(&zp->done);

    if (req) {
        req->p.state = REQ_REAPED;
        zp->turn_budget--;
    }
    return req;
}

struct zpipe_req *zpipe_reap(struct zpipe *zp)
{
    int rounds = 0;

    if (!zp->in_turn) {
        begin_turn(zp);
    }
    while (zp->turn_budget && rounds++ < TURN_ROUNDS) {
        if (!zp->done.head) {
            if (zp->stats.copied >= zp->turn_end) {
                break;
            }
            progress(zp);
        }
        if (zp->done.head) {
            return hand_out(zp);
        }
        kick(zp);
        if (fall_asleep(zp)) {
            zp->in_turn = false;
            return NULL;
        }
    }
    kick(zp);
    wake_self(zp);
    zp->in_turn = false;
    return NULL;
}

bool settle(struct zpipe *zp)
{
    progress(zp);
    kick(zp);
    return !zp->done.head && fall_asleep(zp);
}

void zpipe_flush(struct zpipe *zp)
{
    if (zp->in_turn) {
        progress(zp);
        kick(zp);
    } else if (!settle(zp)) {
        wake_self(zp);
    }
}

/* ------------------------------------------------------------------ handles */

static uint64_t spin_ns(const struct zpipe_config *cfg)
{
    cpu_set_t cpus;

    if (cfg->no_spin) {
        return 0;
    }
    if (cfg->spin_ns) {
        return cfg->spin_ns;
    }
    return !sched_getaffinity(0, sizeof(cpus), &cpus) && CPU_COUNT(&cpus) > 2
           ? SPIN_NS_DEFAULT : 0;
}

static bool config_good(const struct zpipe_config *cfg)
{
    uint32_t ring = cfg->ring_bytes;

    return !(ring & (ring - 1)) && ring >= ZPIPE_RING_BYTES_MIN &&
           ring <= ZPIPE_RING_BYTES_MAX &&
           (unsigned)cfg->mechanism < ZPIPE_DMA &&
           cfg->spin_ns <= SPIN_NS_MAX &&
           !(cfg->flags & ~(ZPIPE_CMA | ZPIPE_PERSISTENT |
                            ZPIPE_ALLOW_HUGETLB | ZPIPE_READS_PRIVATE |
                            ZPIPE_TRUST_PEER));
}

static int configure(struct zpipe_config *cfg, const struct zpipe_config *user)
{
    *cfg = (struct zpipe_config) { .size = sizeof(*cfg) };
    if (user) {
        if (user->size < CONFIG_SIZE_MIN || user->size > sizeof(*cfg)) {
            return -EINVAL;
        }
        memcpy(cfg, user, user->size);
    }
    if (!cfg->ring_bytes) {
        cfg->ring_bytes = ZPIPE_RING_BYTES_DEFAULT;
    }
    if (!cfg->direct_min_bytes) {
        cfg->direct_min_bytes = DIRECT_MIN_DEFAULT;
    }
    if (!cfg->cma_min_bytes) {
        cfg->cma_min_bytes = CMA_MIN_DEFAULT;
    }
    if (!cfg->handshake_ms) {
        cfg->handshake_ms = HANDSHAKE_MS_DEFAULT;
    }
    if (!config_good(cfg)) {
        return -EINVAL;
    }
    cfg->spin_ns = spin_ns(cfg);
    return 0;
}

static int open_descriptors(struct zpipe *zp)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = WATCH_TIMER };

    zp->epfd = epoll_create1(EPOLL_CLOEXEC);
    if (zp->epfd < 0) {
        return -errno;
    }
    zp->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (zp->timer < 0 ||
        epoll_ctl(zp->epfd, EPOLL_CTL_ADD, zp->timer, &event) < 0) {
        return -errno;
    }
    return 0;
}

struct zpipe *zpipe_new(const struct zpipe_config *config)
{
    struct zpipe *zp = calloc(1, sizeof(*zp));
    int ret;

    if (!zp) {
        return NULL;
    }
    zp->epfd = zp->sock = zp->timer = -1;
    zp->bell = zp->bell_rope = zp->rope = -1;
    zp->peer_pidfd = zp->arena_fd = -1;
    queue_init(&zp->tx.queue);
    queue_init(&zp->rx.queue);
    queue_init(&zp->done);
    ret = configure(&zp->cfg, config);
    if (!ret) {
        zp->tx.slots = calloc(ZP_ENTRIES_MAX, sizeof(*zp->tx.slots));
        zp->rx.held = calloc(ZP_ENTRIES_MAX, 1);
        ret = zp->tx.slots && zp->rx.held ? open_descriptors(zp) : -ENOMEM;
    }
    if (ret) {
        zpipe_free(zp);
        errno = -ret;
        return NULL;
    }
    return zp;
}

struct zpipe *zpipe_new_after(const struct zpipe_config *config,
                              const struct zpipe *old)
{
    struct zpipe *zp = zpipe_new(config);

    if (zp) {
        zp->impatient_end = old->impatient_end;
    }
    return zp;
}

static void free_kept(struct zpipe *zp)
{
    struct zpipe_req *req;

    while ((req = queue_pop(&zp->tx.queue))) {
        if (req->p.kind == KIND_KEPT) {
            free(req);
        }
    }
}

static void close_descriptor(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

void zpipe_free(struct zpipe *zp)
{
    if (!zp) {
        return;
    }
    link_leave(zp);
    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        struct zp_own_region *region = &zp->regions[i];

        if (region->used) {
            close(region->fd);
            if (region->buffer) {
                munmap((void *)region->addr, region->size);
            }
        }
    }
    free_kept(zp);
    cma_close(zp);
    if (zp->sock >= 0) {
        close_socket(zp->sock);
    }
    close_descriptor(zp->timer);
    close_descriptor(zp->epfd);
    free(zp->tx.slots);
    free(zp->rx.held);
    free(zp);
}

enum zpipe_state zpipe_state(const struct zpipe *zp)
{
    switch (zp->link) {
    case LINK_UP:
        return ZPIPE_CONNECTED;
    case LINK_HELLO:
    case LINK_READY:
        return ZPIPE_CONNECTING;
    default:
        return ZPIPE_IDLE;
    }
}

const char *zpipe_error(const struct zpipe *zp, int *code)
{
    if (code) {
        *code = zp->error;
    }
    return zp->error_text;
}

int zpipe_fd(const struct zpipe *zp)
{
    return zp->epfd;
}

void zpipe_get_info(const struct zpipe *zp, struct zpipe_info *info)
{
    *info = (struct zpipe_info) {
        .peer_pid = zp->peer_pid,
        .peer_uid = zp->peer_uid,
        .version = ZP_VERSION,
        .ring_bytes = zp->cfg.ring_bytes,
        .peer_ring_bytes = zp->peer.ctl ? zp->peer.copy_bytes : 0,
        .cma_read = zp->cma_read,
        .cma_write = zp->cma_write,
        .peer_cma_read = zp->peer_cma_read,
        .cma_error = zp->cma_error,
        .resumed = zp->resumed,
        .withheld_regions = regions_withheld(zp),
        .draining = zp->link == LINK_DRAIN,
        .ended = zp->rx.end,
        .tx_offset = zp->tx.acked,
        .rx_offset = zp->rx.taken,
    };
}

void zpipe_get_stats(const struct zpipe *zp, struct zpipe_stats *stats)
{
    *stats = zp->stats;
}
