/*
 * Asynchronous pipes as character devices
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A front end that can submits requests (chardev/char-async.h); they go to the
 * library as they are.  For all others what they write is copied into the
 * ring, and what the peer sent is read when they can take it.
 *
 * One GSource does everything that comes from outside: the library's
 * descriptor, clients, timers.  Its dispatch function, zpipe_chr_run(), goes on
 * until the library has nothing more to do, as zpipe_fd() demands.
 *
 * A completion is put on a list under s->lock and its callback is run after
 * the lock was dropped.  The list is the chardev's, not the caller's: a
 * callback that cancels finds what was reaped before.
 */

#include "qemu/osdep.h"
#include "chardev/char-fe.h"
#include "qapi/error.h"
#include "qapi/qapi-types-char.h"
#include "qapi/util.h"
#include "qemu/bitops.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "qemu/units.h"
#include "qemu/yank.h"
#include "system/runstate.h"
#include "trace.h"
#include "char-zpipe-internal.h"

/* Go on with other sources after so many turns, or bytes copied. */
#define RUN_TURNS 16
#define RUN_BYTES (16 * MiB)

/* Limits of reconnect-ms and hold-ms. */
#define PERIOD_MAX_MS (24 * 60 * 60 * 1000LL)

#define PEER_RAM_DEFAULT (1 * GiB)

/* ------------------------------------------------------------ the source */

typedef struct ZpipeSource {
    GSource parent;
    ZpipeChardev *s;
    gpointer fd, listener;
} ZpipeSource;

/*
 * A front end that had no room tells when it has, or not: upstream's backends
 * look at each turn of the loop, and some front ends count on that.
 */
static gboolean source_prepare(GSource *source, gint *timeout)
{
    ZpipeChardev *s = container_of(source, ZpipeSource, parent)->s;
    Chardev *chr = CHARDEV(s);

    *timeout = -1;
    if (qatomic_read(&s->refused)) {
        /* who keeps it has asked for a watch by now */
        qatomic_set(&s->refused, 0);
    }
    return s->no_room && chr->be_open && qemu_chr_be_can_write(chr) > 0;
}

static gboolean source_check(GSource *source)
{
    ZpipeSource *zs = container_of(source, ZpipeSource, parent);

    return g_source_query_unix_fd(source, zs->fd) ||
        (zs->listener && g_source_query_unix_fd(source, zs->listener));
}

static gboolean source_dispatch(GSource *source, GSourceFunc func,
                                gpointer data)
{
    ZpipeSource *zs = container_of(source, ZpipeSource, parent);

    zs->s->client = zs->listener && g_source_query_unix_fd(source,
                                                           zs->listener);
    zpipe_chr_run(zs->s);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs source_funcs = {
    .prepare = source_prepare,
    .check = source_check,
    .dispatch = source_dispatch,
};

static void unwatch(ZpipeChardev *s)
{
    if (s->source) {
        g_source_destroy(s->source);
        g_source_unref(s->source);
        s->source = NULL;
    }
}

void zpipe_chr_watch(ZpipeChardev *s)
{
    Chardev *chr = CHARDEV(s);
    GSource *source = g_source_new(&source_funcs, sizeof(ZpipeSource));
    ZpipeSource *zs = container_of(source, ZpipeSource, parent);
    g_autofree char *name = g_strdup_printf("chardev-zpipe-%s", chr->label);

    zs->s = s;
    zs->fd = g_source_add_unix_fd(source, zpipe_fd(s->zp), G_IO_IN);
    if (s->listener >= 0 && !s->rest_us) {
        zs->listener = g_source_add_unix_fd(source, s->listener, G_IO_IN);
    }
    g_source_set_name(source, name);
    g_source_set_ready_time(source, 0);

    qemu_mutex_lock(&s->lock);
    unwatch(s);
    s->source = source;
    qemu_mutex_unlock(&s->lock);
    g_source_attach(source, chr->gcontext);
}

/* Called with s->lock held. */
static void kick_locked(ZpipeChardev *s)
{
    s->kicked = true;
    if (s->source) {
        g_source_set_ready_time(s->source, 0);
    }
}

void zpipe_chr_kick(ZpipeChardev *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    kick_locked(s);
}

void zpipe_chr_replace(ZpipeChardev *s, struct zpipe *zp)
{
    struct zpipe *old = s->zp;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        zpipe_totals_add_handle(&s->totals, old);
        unwatch(s);
        s->zp = zp;
        s->seen = ZPIPE_IDLE;
    }
    zpipe_free(old);
    zpipe_chr_watch(s);
}

/* ---------------------------------------------------------- asynchronous */

/* Called with s->lock held. */
bool zpipe_chr_reap_locked(ZpipeChardev *s)
{
    struct zpipe_req *zr;
    bool any = false;

    while ((zr = zpipe_reap(s->zp))) {
        ZpipeOp *op = container_of(zr, ZpipeOp, zr);

        if (op->write) {
            s->tx_requests--;
            s->tx_accepted += MAX(zr->result, 0);
        } else {
            s->rx_requests--;
        }
        QSIMPLEQ_INSERT_TAIL(&s->done, op, next);
        any = true;
    }
    return any;
}

static ZpipeOp *take_op(ZpipeOps *ops)
{
    ZpipeOp *op = QSIMPLEQ_FIRST(ops);

    if (op) {
        QSIMPLEQ_REMOVE_HEAD(ops, next);
    }
    return op;
}

static ZpipeOp *take_done(ZpipeChardev *s)
{
    if (QSIMPLEQ_EMPTY(&s->calling)) {
        QEMU_LOCK_GUARD(&s->lock);
        QSIMPLEQ_CONCAT(&s->calling, &s->done);
    }
    return take_op(&s->calling);
}

static void run_callbacks(ZpipeChardev *s)
{
    ZpipeOp *op;

    while ((op = take_done(s))) {
        CharAsyncReq *req = op->req;

        req->result = op->zr.result;
        req->more = !QSIMPLEQ_EMPTY(&s->calling);
        if (!op->write && req->result == 0) {
            s->ended = true;
        }
        QSIMPLEQ_INSERT_HEAD(&s->spare, op, next);
        req->cb(req->opaque, req);
    }
}

static int submit(Chardev *chr, CharAsyncReq *req, bool write)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(chr);
    ZpipeOp *op;
    int ret;

    if (write ? s->cancel_writes : s->cancel_reads) {
        return -ECANCELED;
    }
    op = take_op(&s->spare) ?: g_new(ZpipeOp, 1);
    *op = (ZpipeOp) {
        .zr = { .iov = req->iov, .iovcnt = req->iovcnt, .min = req->min },
        .req = req,
        .write = write,
    };
    req->backend = op;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        ret = write ? zpipe_write(s->zp, &op->zr) : zpipe_read(s->zp, &op->zr);
        if (ret == 0) {
            s->tx_requests += write;
            s->rx_requests += !write;
        }
    }
    if (ret < 0) {
        QSIMPLEQ_INSERT_HEAD(&s->spare, op, next);
    }
    return ret;
}

static int zpipe_chr_submit_write(Chardev *chr, CharAsyncReq *req)
{
    return submit(chr, req, true);
}

static int zpipe_chr_submit_read(Chardev *chr, CharAsyncReq *req)
{
    return submit(chr, req, false);
}

/*
 * What can complete at once is reaped by the source, not in here: the library
 * makes its descriptor readable.
 */
static void zpipe_chr_submit_flush(Chardev *chr)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(chr);

    QEMU_LOCK_GUARD(&s->lock);
    zpipe_flush(s->zp);
}

/*
 * A callback may submit anew, when its request was one that had completed.
 * That would outlive this function, and its callers rely on there being none.
 */
static void cancel_all(ZpipeChardev *s, bool reads, bool writes)
{
    s->cancel_reads += reads;
    s->cancel_writes += writes;
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        if ((reads && s->rx_requests) || (writes && s->tx_requests)) {
            s->totals.cancelled++;
            zpipe_cancel_all(s->zp, reads, writes);
            zpipe_chr_reap_locked(s);
            kick_locked(s);
        }
    }
    run_callbacks(s);
    s->cancel_reads -= reads;
    s->cancel_writes -= writes;
}

void zpipe_chr_cancel_all(ZpipeChardev *s)
{
    cancel_all(s, true, true);
}

static void zpipe_chr_cancel(Chardev *chr, CharAsyncReq *req, bool reads,
                             bool writes)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(chr);

    if (!req) {
        cancel_all(s, reads, writes);
        return;
    }
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        ZpipeOp *op = req->backend;

        s->totals.cancelled++;
        zpipe_cancel(s->zp, &op->zr);
        zpipe_chr_reap_locked(s);
        kick_locked(s);
    }
    run_callbacks(s);
}

/* --------------------------------------------------------------- classic */

/* Called with s->lock held. */
static ssize_t try_write_locked(ZpipeChardev *s, const uint8_t *buf, size_t len)
{
    size_t done = 0;
    ssize_t ret = 0;

    while (done < len) {
        ret = zpipe_try_write(s->zp, buf + done, len - done);
        if (ret <= 0) {
            break;
        }
        done += ret;
    }
    s->tx_accepted += done;
    return done ? done : ret;
}

/*
 * Who writes so does not wait, most of them: bytes are dropped.  One that does
 * asks for a watch next.  Called with s->lock held.
 */
static int no_peer_locked(ZpipeChardev *s, size_t len)
{
    qatomic_set(&s->refused, len);
    qemu_thread_get_self(&s->refused_by);
    s->totals.dropped_bytes += len;
    errno = EIO;
    return -1;
}

/*
 * Called with chr_write_lock held, by any thread.  The caller may come again
 * and again until there is room, and hold the BQL meanwhile: so look whether
 * the peer is still there, which otherwise the source does.
 */
static int zpipe_chr_write(Chardev *chr, const uint8_t *buf, int len)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(chr);
    ssize_t ret;

    QEMU_LOCK_GUARD(&s->lock);
    qatomic_set(&s->refused, 0);
    if (!chr->be_open) {
        return no_peer_locked(s, len);
    }
    ret = try_write_locked(s, buf, len);
    if (ret == -EAGAIN) {
        if (zpipe_chr_reap_locked(s)) {
            kick_locked(s);
        }
        ret = try_write_locked(s, buf, len);
    }
    if (ret < len) {
        qatomic_set(&s->tx_blocked, true);
    }
    zpipe_flush(s->zp);
    if (ret == -EAGAIN && zpipe_state(s->zp) == ZPIPE_CONNECTED) {
        errno = EAGAIN;
        return -1;
    }
    if (ret < 0) {
        kick_locked(s);
        return no_peer_locked(s, len);
    }
    return ret;
}

static ssize_t try_read(ZpipeChardev *s, uint8_t *buf, size_t len)
{
    QEMU_LOCK_GUARD(&s->lock);
    return s->rx_requests ? -EAGAIN : zpipe_try_read(s->zp, buf, len);
}

static bool receive(ZpipeChardev *s)
{
    Chardev *chr = CHARDEV(s);
    QEMU_UNINITIALIZED uint8_t buf[CHR_READ_BUF_LEN];
    bool any = false;

    s->no_room = false;
    for (int turn = 0; turn < RUN_TURNS && chr->be_open; turn++) {
        int room = qemu_chr_be_can_write(chr);
        ssize_t len;

        if (room <= 0) {
            s->no_room = true;
            break;
        }
        len = try_read(s, buf, MIN(room, sizeof(buf)));
        if (len < 0) {
            break;
        }
        if (len == 0) {
            s->ended = true;
            break;
        }
        qemu_chr_be_write(chr, buf, len);
        any = true;
    }
    return any;
}

/* Called again and again until it has something. */
static int zpipe_chr_sync_read(Chardev *chr, const uint8_t *buf, int len)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(chr);
    ssize_t ret = try_read(s, (uint8_t *)buf, len);

    if (ret == -EAGAIN) {
        QEMU_LOCK_GUARD(&s->lock);
        zpipe_chr_reap_locked(s);
        ret = zpipe_state(s->zp) == ZPIPE_CONNECTED ? ret : 0;
        kick_locked(s);
    }
    if (ret < 0) {
        errno = -ret;
        return -1;
    }
    return ret;
}

static void zpipe_chr_accept_input(Chardev *chr)
{
    zpipe_chr_kick(CHARDEV_ZPIPE(chr));
}

/* Called with s->lock held. */
static bool reap_and_unblock_locked(ZpipeChardev *s)
{
    bool any = zpipe_chr_reap_locked(s);
    struct zpipe_info info;

    /* to be noticed although nobody reads, as a socket's hang-up is */
    zpipe_get_info(s->zp, &info);
    if (zpipe_state(s->zp) != ZPIPE_CONNECTING) {
        /* else it is what the last peer said */
        s->ended = s->ended || info.ended;
    }
    /* without a peer there is no room: a watch that fires would fire again */
    if (zpipe_state(s->zp) == ZPIPE_CONNECTED) {
        qatomic_set(&s->tx_blocked, false);
    }
    return any;
}

static void set_deadline(ZpipeChardev *s, bool again)
{
    int64_t deadline = zpipe_link_deadline(s);

    QEMU_LOCK_GUARD(&s->lock);
    if (s->source) {
        g_source_set_ready_time(s->source,
                                again || s->kicked ? 0 : deadline);
    }
}

static uint64_t bytes_copied(ZpipeChardev *s)
{
    struct zpipe_stats stats;

    QEMU_LOCK_GUARD(&s->lock);
    zpipe_get_stats(s->zp, &stats);
    return stats.copied;
}

void zpipe_chr_run(ZpipeChardev *s)
{
    uint64_t start = bytes_copied(s);
    bool again = true, yield = false;

    object_ref(OBJECT(s));
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        s->kicked = false;
    }
    zpipe_link_tick(s);
    for (int turn = 0; again && !yield; turn++) {
        again = receive(s);
        WITH_QEMU_LOCK_GUARD(&s->lock) {
            again |= reap_and_unblock_locked(s);
        }
        run_callbacks(s);
        again |= zpipe_link_check(s);
        yield = bytes_copied(s) - start >= RUN_BYTES ||
            (again && turn + 1 == RUN_TURNS);
    }
    set_deadline(s, again);
    if (yield) {
        QEMU_LOCK_GUARD(&s->lock);
        s->totals.yields++;
    }
    object_unref(OBJECT(s));
}

/* ------------------------------------------------------------ writability */

typedef struct ZpipeWatch {
    GSource parent;
    ZpipeChardev *s;
    GIOCondition cond;
} ZpipeWatch;

static GIOCondition watch_ready(GSource *source)
{
    ZpipeWatch *w = container_of(source, ZpipeWatch, parent);
    bool open = CHARDEV(w->s)->be_open;

    if (!open) {
        return w->cond & G_IO_HUP;
    }
    return qatomic_read(&w->s->tx_blocked) ? 0 : w->cond & G_IO_OUT;
}

static gboolean watch_prepare(GSource *source, gint *timeout)
{
    *timeout = -1;
    return watch_ready(source) != 0;
}

static gboolean watch_check(GSource *source)
{
    return watch_ready(source) != 0;
}

static gboolean watch_dispatch(GSource *source, GSourceFunc callback,
                               gpointer opaque)
{
    FEWatchFunc func = (FEWatchFunc)callback;

    return func(NULL, watch_ready(source), opaque);
}

static void watch_finalize(GSource *source)
{
    ZpipeWatch *w = container_of(source, ZpipeWatch, parent);

    object_unref(OBJECT(w->s));
}

static GSourceFuncs watch_funcs = {
    .prepare = watch_prepare,
    .check = watch_check,
    .dispatch = watch_dispatch,
    .finalize = watch_finalize,
};

static GSource *zpipe_chr_add_watch(Chardev *chr, GIOCondition cond)
{
    GSource *source = g_source_new(&watch_funcs, sizeof(ZpipeWatch));
    ZpipeWatch *w = container_of(source, ZpipeWatch, parent);

    w->s = CHARDEV_ZPIPE(object_ref(OBJECT(chr)));
    w->cond = cond;
    WITH_QEMU_LOCK_GUARD(&w->s->lock) {
        /*
         * It has kept what was refused, and comes again.  But not if that was
         * another front end of a mux, or it waits for nothing but the end.
         */
        if (w->s->refused && (cond & G_IO_OUT) &&
            qemu_thread_is_self(&w->s->refused_by)) {
            w->s->totals.dropped_bytes -= w->s->refused;
            qatomic_set(&w->s->refused, 0);
        }
    }
    return source;
}

/* ------------------------------------------------------- opening, closing */

static void zpipe_chr_update_read_handler(Chardev *chr)
{
    zpipe_chr_watch(CHARDEV_ZPIPE(chr));
}

static int zpipe_chr_wait_connected(Chardev *chr, Error **errp)
{
    return zpipe_link_wait(CHARDEV_ZPIPE(chr), errp) ? 0 : -1;
}

static void zpipe_chr_disconnect(Chardev *chr)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(chr);

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        zpipe_detach(s->zp);
        kick_locked(s);
    }
    s->ended = true;
}

/* Called by any thread. */
static void zpipe_chr_yank(void *opaque)
{
    ZpipeChardev *s = opaque;

    QEMU_LOCK_GUARD(&s->lock);
    zpipe_detach(s->zp);
    kick_locked(s);
}

static bool check_period(const char *name, bool has, int64_t ms, Error **errp)
{
    if (has && (ms < 0 || ms > PERIOD_MAX_MS)) {
        error_setg(errp, "zpipe: %s=%" PRId64 " is out of range, it must be "
                   "from 0 to %lld", name, ms, PERIOD_MAX_MS);
        return false;
    }
    return true;
}

static bool check_client(const ChardevZpipe *opts, Error **errp)
{
    if (opts->has_wait) {
        error_setg(errp, "zpipe: wait=%s is only for server=on",
                   opts->wait ? "on" : "off");
        return false;
    }
    if (opts->has_hold_ms && opts->hold_ms && !opts->reconnect_ms) {
        error_setg(errp, "zpipe: hold-ms=%" PRId64 " needs reconnect-ms or "
                   "server=on", opts->hold_ms);
        return false;
    }
    return true;
}

static bool check_sizes(const ChardevZpipe *opts, Error **errp)
{
    if (opts->has_ring_size &&
        (!is_power_of_2(opts->ring_size) ||
         opts->ring_size < ZPIPE_RING_BYTES_MIN ||
         opts->ring_size > ZPIPE_RING_BYTES_MAX)) {
        error_setg(errp, "zpipe: ring-size=%" PRIu64 " must be a power of two "
                   "from %u to %u bytes", opts->ring_size,
                   ZPIPE_RING_BYTES_MIN, ZPIPE_RING_BYTES_MAX);
        return false;
    }
    return true;
}

static bool check_options(const ChardevZpipe *opts, Error **errp)
{
    bool server = opts->has_server && opts->server;
    size_t len = strlen(opts->path);

    if (len == 0 || len > ZPIPE_PATH_MAX) {
        error_setg(errp, "zpipe: path is %zu bytes long, it must be from 1 to "
                   "%d", len, ZPIPE_PATH_MAX);
        return false;
    }
    if (!check_period("reconnect-ms", opts->has_reconnect_ms,
                      opts->reconnect_ms, errp) ||
        !check_period("hold-ms", opts->has_hold_ms, opts->hold_ms, errp)) {
        return false;
    }
    if (server && opts->has_reconnect_ms) {
        error_setg(errp, "zpipe: reconnect-ms=%" PRId64 " is only for "
                   "server=off", opts->reconnect_ms);
        return false;
    }
    if (!server && !check_client(opts, errp)) {
        return false;
    }
    if (opts->has_trusted_peer && opts->trusted_peer &&
        !(opts->has_share_ram && opts->share_ram)) {
        error_setg(errp, "zpipe: trusted-peer=on is only for share-ram=on");
        return false;
    }
    return check_sizes(opts, errp);
}

static void take_options(ZpipeChardev *s, const ChardevZpipe *opts)
{
    struct zpipe_config *config = &s->config;

    s->path = g_strdup(opts->path);
    s->server = opts->has_server && opts->server;
    s->wait = opts->has_wait && opts->wait;
    s->share_ram = opts->has_share_ram && opts->share_ram;
    s->trusted_peer = opts->has_trusted_peer && opts->trusted_peer;
    s->reconnect_ms = opts->has_reconnect_ms ? opts->reconnect_ms : 0;
    s->hold_ms = opts->has_hold_ms ? opts->hold_ms : 3 * s->reconnect_ms;

    config->size = sizeof(*config);
    config->flags = ZPIPE_PERSISTENT | ZPIPE_READS_PRIVATE;
    if (s->trusted_peer) {
        config->flags |= ZPIPE_TRUST_PEER;
    }
    if (opts->has_cma && opts->cma) {
        config->flags |= ZPIPE_CMA_USE;
        if (s->share_ram) {
            config->flags |= ZPIPE_CMA_EXPOSE_READ;
        }
    }
    config->ring_bytes = opts->has_ring_size ? opts->ring_size : 0;
    /* the library takes 0 for no limit */
    config->peer_bytes_max = opts->has_peer_ram ? MAX(opts->peer_ram, 1)
                                                : PEER_RAM_DEFAULT;
    config->mechanism = !opts->has_mechanism ? ZPIPE_AUTO :
        zpipe_mechanism_parse(ZpipeMechanism_str(opts->mechanism));
}

static bool register_yank(ZpipeChardev *s, Error **errp)
{
    Chardev *chr = CHARDEV(s);

    /* chardev-change: the instance may be there already */
    if (!chr->handover_yank_instance &&
        !yank_register_instance(CHARDEV_YANK_INSTANCE(chr->label), errp)) {
        return false;
    }
    s->registered_yank = true;
    yank_register_function(CHARDEV_YANK_INSTANCE(chr->label),
                           zpipe_chr_yank, s);
    return true;
}

static void unregister_yank(ZpipeChardev *s)
{
    Chardev *chr = CHARDEV(s);

    if (!s->registered_yank) {
        return;
    }
    yank_unregister_function(CHARDEV_YANK_INSTANCE(chr->label),
                             zpipe_chr_yank, s);
    if (!chr->handover_yank_instance) {
        yank_unregister_instance(CHARDEV_YANK_INSTANCE(chr->label));
    }
}

static void zpipe_chr_open(Chardev *chr, ChardevBackend *backend,
                           bool *be_opened, Error **errp)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(chr);
    ChardevZpipe *opts = backend->u.zpipe.data;

    *be_opened = false;
    if (!check_options(opts, errp)) {
        return;
    }
    take_options(s, opts);
    chr->filename = g_strdup_printf("zpipe:%s%s", s->path,
                                    s->server ? ",server=on" : "");

    s->zp = zpipe_new(&s->config);
    if (!s->zp) {
        error_setg_errno(errp, errno, "zpipe: cannot make a pipe");
        return;
    }
    if (!register_yank(s, errp) || !zpipe_vm_attach(s, s->share_ram, errp)) {
        return;
    }
    qemu_chr_set_feature(chr, QEMU_CHAR_FEATURE_RECONNECTABLE);
    zpipe_chr_watch(s);

    if (runstate_check(RUN_STATE_INMIGRATE)) {
        /* the guest has a peer, as it knows; see zpipe_link_start_late() */
        *be_opened = true;
        return;
    }
    if (!zpipe_link_start(s, errp)) {
        return;
    }
    if (s->wait) {
        info_report("QEMU waiting for connection on: %s", chr->filename);
        zpipe_link_wait(s, errp);
    }
}

static void zpipe_chr_init(Object *obj)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(obj);

    qemu_mutex_init(&s->lock);
    QSIMPLEQ_INIT(&s->done);
    QSIMPLEQ_INIT(&s->calling);
    QSIMPLEQ_INIT(&s->spare);
    s->listener = -1;
    /*
     * The VM's state and migrations change the link, too, and do so in the main
     * loop, so everything does: a monitor's thread must not.
     */
    clear_bit(QEMU_CHAR_FEATURE_GCONTEXT, CHARDEV(s)->features);
}

static void zpipe_chr_finalize(Object *obj)
{
    ZpipeChardev *s = CHARDEV_ZPIPE(obj);
    ZpipeOp *op;

    if (s->zp) {
        zpipe_chr_cancel_all(s);
        unwatch(s);
        zpipe_vm_detach(s);
        unregister_yank(s);
        zpipe_link_close(s);
        zpipe_totals_keep(s);
        zpipe_free(s->zp);
    }
    while ((op = take_op(&s->spare))) {
        g_free(op);
    }
    g_free(s->error);
    g_free(s->path);
    qemu_mutex_destroy(&s->lock);
}

static bool parse_mechanism(QemuOpts *opts, ChardevZpipe *zpipe, Error **errp)
{
    const char *name = qemu_opt_get(opts, "mechanism");
    int value;

    if (!name) {
        return true;
    }
    value = qapi_enum_parse(&ZpipeMechanism_lookup, name, -1, NULL);
    if (value < 0) {
        error_setg(errp, "zpipe: mechanism=%s is unknown, it must be auto, "
                   "inline, copy, direct or map", name);
        return false;
    }
    zpipe->has_mechanism = true;
    zpipe->mechanism = value;
    return true;
}

static void zpipe_chr_parse(QemuOpts *opts, ChardevBackend *backend,
                            Error **errp)
{
    const char *path = qemu_opt_get(opts, "path");
    ChardevZpipe *zpipe;

    if (!path) {
        error_setg(errp, "zpipe: path is missing");
        return;
    }
    backend->type = CHARDEV_BACKEND_KIND_ZPIPE;
    zpipe = backend->u.zpipe.data = g_new0(ChardevZpipe, 1);
    qemu_chr_parse_common(opts, qapi_ChardevZpipe_base(zpipe));
    if (!parse_mechanism(opts, zpipe, errp)) {
        return;
    }

    zpipe->path = g_strdup(path);
    zpipe->has_server = true;
    zpipe->server = qemu_opt_get_bool(opts, "server", false);
    /* as for sockets: the default is not that of QMP */
    zpipe->has_wait = qemu_opt_find(opts, "wait") || zpipe->server;
    zpipe->wait = qemu_opt_get_bool(opts, "wait", true);
    zpipe->has_reconnect_ms = qemu_opt_find(opts, "reconnect-ms");
    zpipe->reconnect_ms = qemu_opt_get_number(opts, "reconnect-ms", 0);
    zpipe->has_hold_ms = qemu_opt_find(opts, "hold-ms");
    zpipe->hold_ms = qemu_opt_get_number(opts, "hold-ms", 0);
    zpipe->has_ring_size = qemu_opt_find(opts, "ring-size");
    zpipe->ring_size = qemu_opt_get_size(opts, "ring-size", 0);
    zpipe->has_share_ram = true;
    zpipe->share_ram = qemu_opt_get_bool(opts, "share-ram", false);
    zpipe->has_trusted_peer = true;
    zpipe->trusted_peer = qemu_opt_get_bool(opts, "trusted-peer", false);
    zpipe->has_cma = true;
    zpipe->cma = qemu_opt_get_bool(opts, "cma", false);
    zpipe->has_peer_ram = qemu_opt_find(opts, "peer-ram");
    zpipe->peer_ram = qemu_opt_get_size(opts, "peer-ram", 0);
}

static void zpipe_chr_class_init(ObjectClass *oc, const void *data)
{
    ChardevClass *cc = CHARDEV_CLASS(oc);

    cc->supports_yank = true;
    cc->parse = zpipe_chr_parse;
    cc->open = zpipe_chr_open;
    cc->chr_wait_connected = zpipe_chr_wait_connected;
    cc->chr_disconnect = zpipe_chr_disconnect;
    cc->chr_update_read_handler = zpipe_chr_update_read_handler;
    cc->chr_write = zpipe_chr_write;
    cc->chr_sync_read = zpipe_chr_sync_read;
    cc->chr_add_watch = zpipe_chr_add_watch;
    cc->chr_accept_input = zpipe_chr_accept_input;
    cc->chr_submit_write = zpipe_chr_submit_write;
    cc->chr_submit_read = zpipe_chr_submit_read;
    cc->chr_submit_flush = zpipe_chr_submit_flush;
    cc->chr_cancel = zpipe_chr_cancel;
}

static const TypeInfo zpipe_chr_types[] = {
    {
        .name = TYPE_CHARDEV_ZPIPE,
        .parent = TYPE_CHARDEV,
        .instance_size = sizeof(ZpipeChardev),
        .instance_init = zpipe_chr_init,
        .instance_finalize = zpipe_chr_finalize,
        .class_init = zpipe_chr_class_init,
    },
};

DEFINE_TYPES(zpipe_chr_types)
