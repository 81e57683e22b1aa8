/*
 * Asynchronous pipes as character devices: finding and losing the peer
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * When a connection is lost the handle keeps what the peer had not taken, and
 * a new connection goes on with it.  CHR_EVENT_CLOSED makes virtio-serial
 * throw away what the guest has queued, so it is held back for hold-ms.  After
 * it a new handle is made: the next peer finds the beginning of a stream, not
 * the rest of an old one.
 *
 * A peer that ends its stream has hung up, as with a socket.  One that leaves
 * without that may have left data: the front end is told when it has them, or
 * reads no more of them.
 *
 * An incoming VM starts to look for a peer when it first runs.  Until it has
 * one, the guest is left in the belief that it still has the one it had, and
 * what it writes waits, as with hold-ms: else it would lose what it writes
 * meanwhile.  The source of the migration leaves the path at once, and ends
 * the connection when the peer has read what was copied for it, or after a
 * second.  So for some time it is no error that the path or the peer is busy.
 * A source that goes on after all (it was saved) does as an incoming VM: a port
 * whose handlers are off is not told of that end.
 */

#include "qemu/osdep.h"
#include "chardev/char-fe.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "trace.h"
#include "char-zpipe-internal.h"

/* Clients taken in one turn. */
#define CLIENTS_MAX 8
/* When one cannot be taken: for descriptors to become free. */
#define REST_US (100 * 1000)
/* A client that has not finished the handshake then makes room for another. */
#define HANDSHAKE_US (1000 * 1000)
/* After a migration, for the path and the peer to become free. */
#define PATIENCE_US (10 * 1000 * 1000)
#define PATIENCE_RETRY_US (100 * 1000)
/* Before it, for the peer to read what it has been sent; to look how it is. */
#define DRAIN_US (1000 * 1000)
#define DRAIN_STEP_US (5 * 1000)
/*
 * For a front end to read what a peer left, since it last read some of it, or
 * the VM went on.
 */
#define LEFT_US (1000 * 1000)

static int64_t now_us(void)
{
    return g_get_monotonic_time();
}

static enum zpipe_state state_of(ZpipeChardev *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return zpipe_state(s->zp);
}

static void keep_error(ZpipeChardev *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    g_free(s->error);
    s->error = g_strdup(zpipe_error(s->zp, NULL));
}

static bool patient(ZpipeChardev *s)
{
    return s->patience_us && now_us() < s->patience_us;
}

/* Say once why there is no connection. */
static void report(ZpipeChardev *s, const char *what, const char *why)
{
    Chardev *chr = CHARDEV(s);

    trace_zpipe_chr_trouble(chr->label, what, why);
    if (!s->reported && !patient(s)) {
        warn_report("chardev %s: %s path='%s': %s", chr->label, what, s->path,
                    why);
        s->reported = true;
    }
}

/* ------------------------------------------------------------ connecting */

static void retry_later(ZpipeChardev *s)
{
    if (s->server && s->listener >= 0) {
        s->reconnect_us = 0;        /* the next client will come by itself */
    } else if (patient(s)) {
        s->reconnect_us = now_us() + PATIENCE_RETRY_US;
    } else if (!s->server && s->reconnect_ms) {
        s->reconnect_us = now_us() + s->reconnect_ms * 1000;
    } else {
        s->reconnect_us = 0;
    }
}

static void give_up(ZpipeChardev *s);

static uint64_t connects(const struct zpipe *zp)
{
    struct zpipe_stats stats;

    zpipe_get_stats(zp, &stats);
    return stats.connects;
}

static int attach(ZpipeChardev *s, int sock)
{
    if (s->left_us) {
        give_up(s);
    }

    QEMU_LOCK_GUARD(&s->lock);
    s->connects = connects(s->zp);
    s->attached_us = now_us();
    s->ended = false;
    s->seen = ZPIPE_CONNECTING;
    return zpipe_attach(s->zp, sock, s->server);
}

static int dial(ZpipeChardev *s)
{
    int sock = zpipe_dial(s->path);

    return sock < 0 ? sock : attach(s, sock);
}

static int listen_at_path(ZpipeChardev *s)
{
    struct stat st;
    int listener = zpipe_listen(s->path);

    if (listener < 0) {
        return listener;
    }
    if (stat(s->path, &st) == 0) {
        s->listener_dev = st.st_dev;
        s->listener_ino = st.st_ino;
    }
    s->listener = listener;
    zpipe_chr_watch(s);
    return 0;
}

void zpipe_link_close(ZpipeChardev *s)
{
    struct stat st;
    int sock;

    if (s->listener < 0) {
        return;
    }
    /*
     * Another server may have replaced the file, if somebody removed it.  None
     * does while we listen: so look, and remove it, before that ends.
     */
    if (stat(s->path, &st) == 0 && st.st_dev == s->listener_dev &&
        st.st_ino == s->listener_ino) {
        unlink(s->path);
    }
    /* clients that were not taken may have sent what a close() waits for */
    shutdown(s->listener, SHUT_RD);
    while ((sock = zpipe_accept(s->listener)) >= 0) {
        zpipe_refuse(sock, "the server has left this path");
    }
    close(s->listener);
    s->listener = -1;
    s->rest_us = 0;
}

static int open_path(ZpipeChardev *s)
{
    return s->server ? listen_at_path(s) : dial(s);
}

static const char *opening(const ZpipeChardev *s)
{
    return s->server ? "cannot listen on" : "cannot connect to";
}

/* It is open, or is tried again if there is a use in that. */
static void started(ZpipeChardev *s, int ret)
{
    s->started = true;
    if (ret < 0) {
        report(s, opening(s), strerror(-ret));
        retry_later(s);
    }
    zpipe_chr_kick(s);
}

bool zpipe_link_start(ZpipeChardev *s, Error **errp)
{
    int ret = open_path(s);

    if (ret < 0 && (s->server || !s->reconnect_ms)) {
        error_setg_errno(errp, -ret, "chardev %s: %s path='%s'",
                         CHARDEV(s)->label, opening(s), s->path);
        return false;
    }
    started(s, ret);
    return true;
}

static void retry(ZpipeChardev *s)
{
    int ret;

    s->reconnect_us = 0;
    ret = open_path(s);
    if (ret < 0) {
        retry_later(s);
        report(s, opening(s), strerror(-ret));
    }
}

static void take_client(ZpipeChardev *s, int sock)
{
    enum zpipe_state state = state_of(s);

    if (state == ZPIPE_CONNECTED) {
        /* a peer that was restarted: has the old one gone, unnoticed yet? */
        WITH_QEMU_LOCK_GUARD(&s->lock) {
            zpipe_chr_reap_locked(s);
        }
        zpipe_link_check(s);
        state = state_of(s);
    }
    if (state == ZPIPE_CONNECTING &&
        now_us() > s->attached_us + HANDSHAKE_US) {
        WITH_QEMU_LOCK_GUARD(&s->lock) {
            zpipe_detach(s->zp);
        }
        zpipe_link_check(s);
        state = ZPIPE_IDLE;
    }
    if (state != ZPIPE_IDLE) {
        trace_zpipe_chr_refuse(CHARDEV(s)->label);
        WITH_QEMU_LOCK_GUARD(&s->lock) {
            s->totals.refused_clients++;
        }
        zpipe_refuse(sock, "busy: there is another client");
        return;
    }
    attach(s, sock);
}

static void accept_clients(ZpipeChardev *s)
{
    for (int i = 0; i < CLIENTS_MAX && s->listener >= 0; i++) {
        int sock = zpipe_accept(s->listener);

        if (sock == -EAGAIN) {
            return;
        }
        if (sock < 0) {
            /* it waits there still: do not look at it all the time */
            s->rest_us = now_us() + REST_US;
            zpipe_chr_watch(s);
            return;
        }
        take_client(s, sock);
    }
}

/* --------------------------------------------------------------- losing it */

/*
 * A new handle instead of the old one, so that nothing of the old stream is
 * left.  If there is no memory for one, the stream goes on.
 */
static void renew(ZpipeChardev *s)
{
    struct zpipe *zp = zpipe_new_after(&s->config, s->zp);
    struct zpipe_info info;

    if (!zp) {
        warn_report("chardev %s: cannot make a new pipe: %s",
                    CHARDEV(s)->label, strerror(errno));
        return;
    }
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        zpipe_get_info(s->zp, &info);
        if (s->tx_accepted > info.tx_offset) {
            s->totals.lost_bytes += s->tx_accepted - info.tx_offset;
        }
        s->tx_accepted = 0;
    }
    zpipe_chr_replace(s, zp);
    zpipe_vm_new_handle(s);
}

static void begin_anew(ZpipeChardev *s)
{
    zpipe_chr_cancel_all(s);
    renew(s);
}

static void give_up(ZpipeChardev *s)
{
    Chardev *chr = CHARDEV(s);

    s->hold_us = s->left_us = 0;
    s->ended = false;
    if (!chr->be_open) {
        return;
    }
    trace_zpipe_chr_closed(chr->label);
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        s->totals.closed++;
    }
    qemu_chr_be_event(chr, CHR_EVENT_CLOSED);
    begin_anew(s);
}

/*
 * Is there more to read from a peer that has gone?  Gives it up when there is
 * not; returns false then.
 */
static bool left_over(ZpipeChardev *s)
{
    struct zpipe_info info;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        zpipe_get_info(s->zp, &info);
    }
    if (!info.draining) {
        give_up(s);
        return false;
    }
    if (!s->left_us || info.rx_offset != s->left_offset) {
        s->left_offset = info.rx_offset;
        s->left_us = now_us() + LEFT_US;
    }
    return true;
}

static void lost(ZpipeChardev *s)
{
    keep_error(s);
    trace_zpipe_chr_lost(CHARDEV(s)->label, s->error);
    if (s->hold_ms && !s->ended) {
        s->hold_us = now_us() + s->hold_ms * 1000;
    } else {
        left_over(s);
    }
    retry_later(s);
}

static void not_connected(ZpipeChardev *s)
{
    keep_error(s);
    if (!s->server) {
        report(s, "cannot connect to", s->error);
    } else {
        trace_zpipe_chr_trouble(CHARDEV(s)->label, "no handshake", s->error);
    }
    retry_later(s);
}

/* RAM that is not shown: all goes, but not as share-ram=on promised. */
static void check_withheld(ZpipeChardev *s)
{
    struct zpipe_info info;

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        zpipe_get_info(s->zp, &info);
        s->totals.ram_refused += info.withheld_regions;
    }
    if (info.withheld_regions && !s->withheld) {
        warn_report("chardev %s: guest RAM is not shared with this peer: its "
                    "user (%u) could write it; set seal-write=on of "
                    "memory-backend-memfd, or trusted-peer=on",
                    CHARDEV(s)->label, info.peer_uid);
        s->withheld = true;
    }
}

static void connected(ZpipeChardev *s)
{
    Chardev *chr = CHARDEV(s);

    trace_zpipe_chr_connected(chr->label);
    check_withheld(s);
    s->hold_us = s->reconnect_us = s->patience_us = 0;
    s->reported = false;
    if (!chr->be_open) {
        qemu_chr_be_event(chr, CHR_EVENT_OPENED);
    }
}

/* Between two looks: it may have left something, as one that was seen. */
static bool came_and_went(ZpipeChardev *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    return connects(s->zp) != s->connects;
}

bool zpipe_link_check(ZpipeChardev *s)
{
    enum zpipe_state was = s->seen;

    if (s->ended) {
        WITH_QEMU_LOCK_GUARD(&s->lock) {
            zpipe_detach(s->zp);
        }
    }
    s->seen = state_of(s);
    if (s->seen == was) {
        return s->left_us && !left_over(s);
    }
    if (s->seen == ZPIPE_CONNECTED) {
        connected(s);
    } else if (was == ZPIPE_CONNECTED) {
        lost(s);
    } else if (s->seen == ZPIPE_IDLE && came_and_went(s)) {
        connected(s);
        lost(s);
    } else if (s->seen == ZPIPE_IDLE) {
        not_connected(s);
    }
    return true;
}

/* Has the peer taken all that was copied into the ring? */
static bool is_drained(ZpipeChardev *s)
{
    struct zpipe_info info;

    QEMU_LOCK_GUARD(&s->lock);
    zpipe_get_info(s->zp, &info);
    return info.tx_offset >= s->tx_accepted ||
        zpipe_state(s->zp) != ZPIPE_CONNECTED;
}

static void stop_now(ZpipeChardev *s)
{
    Chardev *chr = CHARDEV(s);

    s->drain_us = s->reconnect_us = 0;
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        zpipe_detach(s->zp);
    }
    s->seen = ZPIPE_IDLE;
    if (chr->be_open && chr->fe && !chr->fe->chr_event) {
        /* a guest that goes on here finds what it would find there */
        s->hold_us = s->left_us = 0;
        s->ended = false;
        begin_anew(s);
    } else {
        give_up(s);
    }
}

static void drain(ZpipeChardev *s)
{
    if (is_drained(s) || now_us() > s->drain_until_us) {
        stop_now(s);
    } else {
        s->drain_us = now_us() + DRAIN_STEP_US;
    }
}

void zpipe_link_stop(ZpipeChardev *s)
{
    if (!s->started) {
        return;
    }
    trace_zpipe_chr_stop(CHARDEV(s)->label);
    s->started = false;
    zpipe_link_close(s);
    zpipe_chr_watch(s);
    s->drain_until_us = now_us() + DRAIN_US;
    drain(s);
}

void zpipe_link_start_late(ZpipeChardev *s)
{
    int ret;

    if (s->drain_us) {
        stop_now(s);
    }
    ret = open_path(s);
    /* not before: that may have taken its time */
    s->patience_us = now_us() + MAX(PATIENCE_US, s->hold_ms * 1000);
    if (CHARDEV(s)->be_open) {
        s->hold_us = s->patience_us;
    }
    started(s, ret);
}

void zpipe_link_resume(ZpipeChardev *s)
{
    if (s->left_us) {
        s->left_us = now_us() + LEFT_US;
    }
}

/* --------------------------------------------------------------- timers */

static bool is_due(int64_t when)
{
    return when && now_us() >= when;
}

void zpipe_link_tick(ZpipeChardev *s)
{
    zpipe_link_check(s);
    if (is_due(s->drain_us)) {
        drain(s);
    }
    if (!s->started) {
        return;
    }
    if (s->client) {
        accept_clients(s);
    }
    if (is_due(s->rest_us)) {
        s->rest_us = 0;
        zpipe_chr_watch(s);
    }
    if (is_due(s->reconnect_us) &&
        (s->server ? s->listener < 0 : state_of(s) == ZPIPE_IDLE)) {
        retry(s);
    }
    if (is_due(s->hold_us)) {
        if (state_of(s) == ZPIPE_IDLE) {
            s->hold_us = 0;
            left_over(s);
        } else {
            /* somebody is there: see what becomes of it */
            s->hold_us = now_us() + HANDSHAKE_US;
        }
    }
    if (is_due(s->left_us)) {
        if (zpipe_vm_is_stopped()) {
            s->left_us = now_us() + LEFT_US;    /* nobody can read it */
        } else {
            give_up(s);
        }
    }
}

int64_t zpipe_link_deadline(ZpipeChardev *s)
{
    int64_t times[] = { s->reconnect_us, s->hold_us, s->left_us, s->rest_us };
    int64_t first = -1;

    if (s->drain_us) {
        return s->drain_us;
    }
    for (int i = 0; i < ARRAY_SIZE(times) && s->started; i++) {
        if (times[i] && (first < 0 || times[i] < first)) {
            first = times[i];
        }
    }
    return first;
}

/* ------------------------------------------------------------ waiting */

static void wait_for_client(ZpipeChardev *s)
{
    GPollFD fd = { .fd = s->listener, .events = G_IO_IN };

    g_poll(&fd, 1, -1);
    accept_clients(s);
    if (s->rest_us > now_us()) {
        g_usleep(REST_US);
    }
}

/* One attempt.  Returns false if there is no use in another. */
static bool attempt(ZpipeChardev *s, Error **errp)
{
    int ret;

    if (state_of(s) == ZPIPE_IDLE) {
        if (s->server) {
            wait_for_client(s);
        } else {
            ret = dial(s);
            if (ret < 0 && !s->reconnect_ms) {
                error_setg_errno(errp, -ret, "chardev %s: cannot connect to "
                                 "path='%s'", CHARDEV(s)->label, s->path);
                return false;
            }
            if (ret < 0) {
                g_usleep(s->reconnect_ms * 1000);
                return true;
            }
        }
    }

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        ret = zpipe_wait_connected(s->zp, HANDSHAKE_US / 1000);
        if (ret == -ETIMEDOUT) {
            zpipe_detach(s->zp);
        }
        if (ret < 0 && !s->server && !s->reconnect_ms) {
            error_setg(errp, "chardev %s: cannot connect to path='%s': %s",
                       CHARDEV(s)->label, s->path, zpipe_error(s->zp, NULL));
        }
    }
    if (ret < 0 && !s->server && s->reconnect_ms) {
        g_usleep(s->reconnect_ms * 1000);
    }
    return ret == 0 || s->server || s->reconnect_ms;
}

bool zpipe_link_wait(ZpipeChardev *s, Error **errp)
{
    if (!s->started) {
        error_setg(errp, "chardev %s: is opened when the VM first runs",
                   CHARDEV(s)->label);
        return false;
    }
    while (state_of(s) != ZPIPE_CONNECTED) {
        if (!attempt(s, errp)) {
            return false;
        }
    }
    zpipe_link_check(s);
    return true;
}
