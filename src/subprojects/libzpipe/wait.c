/*
 * zpipe: sleeping and waking
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Two places need that of two sides at least one sees the other.  In both, each
 * side stores a word, issues a full barrier and loads the other's word:
 *
 *   busy     touch_begin(): store busy, barrier, load the peer's counter
 *            withdraw:      store the counter, barrier, load the peer's busy
 *   sleep    fall_asleep(): store sleep, barrier, look for news
 *            kick():        store news, barrier, load the peer's sleep
 */

#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include "zpipe-int.h"

/*
 * The peer rings once for each sleep, at most.  So often may we sleep until the
 * bell has to be emptied; it holds some 270 bytes.
 */
#define RUNG_MAX 64

uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

void touch_begin(struct zpipe *zp)
{
    if (!zp->touching) {
        zp->touching = true;
        st_relaxed(&zp->own.ctl->busy, 1);
        full_barrier();
    }
}

void touch_end(struct zpipe *zp)
{
    if (zp->touching) {
        zp->touching = false;
        st_release(&zp->own.ctl->busy, 0);
    }
}

/* What one call waits for in several places is one wait, to its caller. */
uint64_t patience_end(const struct zpipe *zp, uint64_t ns)
{
    uint64_t end = now_ns() + ns;

    return zp->wait_end ? MIN(end, zp->wait_end) : end;
}

/*
 * A peer that connects, pretends to be busy and goes, again and again, would
 * have us wait each time.
 */
uint64_t patience_left(const struct zpipe *zp, uint64_t ns)
{
    uint64_t now = now_ns();

    return now < zp->impatient_end ? now : patience_end(zp, ns);
}

void waited_in_vain(struct zpipe *zp)
{
    uint64_t now = now_ns();

    if (now >= zp->impatient_end) {
        zp->impatient_end = now + ZP_IMPATIENT_NS;
    }
}

bool await_untouched(struct zpipe *zp, uint64_t deadline)
{
    full_barrier();
    for (int i = 0; i < 1000; i++) {
        if (!ld_acquire(&zp->peer.ctl->busy)) {
            return true;
        }
    }
    while (now_ns() < deadline) {
        struct timespec pause = { .tv_nsec = 50000 };

        nanosleep(&pause, NULL);
        if (!ld_acquire(&zp->peer.ctl->busy)) {
            return true;
        }
    }
    waited_in_vain(zp);
    return false;
}

/* When there is no room for another byte the bell is ringing. */
static void pull(int rope)
{
    ssize_t ret;

    do {
        ret = send(rope, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (ret < 0 && errno == EINTR);
}

void kick(struct zpipe *zp)
{
    uint64_t sleep;

    if (!zp->news || zp->link < LINK_UP || zp->rope < 0) {
        zp->news = 0;
        return;
    }
    full_barrier();
    sleep = ld_relaxed(&zp->peer.ctl->sleep);
    if ((sleep & ZP_WANT_MASK & zp->news) && sleep != zp->kicked) {
        zp->kicked = sleep;
        zp->stats.kicks++;
        pull(zp->rope);
    } else {
        zp->stats.kicks_saved++;
    }
    zp->news = 0;
    zp->tx.eager = 0;
    zp->rx.told = 0;
}

static uint32_t wanted(const struct zpipe *zp)
{
    uint32_t want = ZP_WANT_END;

    if (zp->rx.queue.head || zp->rx.want_data) {
        want |= ZP_WANT_DATA;
    }
    if (zp->tx.prod != zp->tx.rel || zp->tx.want_space) {
        want |= ZP_WANT_SPACE;
    }
    if (zp->tx.want_reads) {
        want |= ZP_WANT_READS;
    }
    return want;
}

static bool has_news(struct zpipe *zp)
{
    return rx_has_news(zp) || tx_has_news(zp);
}

bool fall_asleep(struct zpipe *zp)
{
    uint32_t want;

    if (zp->link != LINK_UP) {
        return !(zp->link == LINK_DRAIN && rx_has_news(zp));
    }
    want = wanted(zp);
    if (++zp->rung == RUNG_MAX) {
        zp->rung = 0;
        if (!link_silence(zp)) {
            return false;
        }
    }
    zp->asleep = true;
    zp->sleep_seq += ZP_SLEEP_SEQ;
    st_relaxed(&zp->own.ctl->sleep, zp->sleep_seq | want);
    full_barrier();
    if (has_news(zp)) {
        wake_up(zp);
        return false;
    }
    return true;
}

void wake_up(struct zpipe *zp)
{
    if (zp->asleep) {
        zp->asleep = false;
        if (zp->own.ctl) {
            st_relaxed(&zp->own.ctl->sleep, 0);
        }
    }
}

/* Look at the rings for a while before sleeping. */
static bool spin(struct zpipe *zp, uint64_t ns)
{
    uint64_t end = now_ns() + ns;

    wake_up(zp);
    for (;;) {
        for (int i = 0; i < 64; i++) {
            if (has_news(zp)) {
                zp->stats.spins++;
                return true;
            }
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
        }
        if (now_ns() >= end) {
            return !fall_asleep(zp);
        }
    }
}

int zpipe_wait(struct zpipe *zp, int timeout_ms)
{
    uint64_t spin_ns = zp->cfg.spin_ns;
    int ret;

    if (!settle(zp)) {
        return 1;
    }
    if (timeout_ms >= 0) {
        spin_ns = MIN(spin_ns, timeout_ms * 1000000ull);
    }
    if (spin_ns && zp->link == LINK_UP && spin(zp, spin_ns)) {
        zp->polled = true;
        return 1;
    }
    ret = link_poll(zp, timeout_ms);
    if (ret > 0) {
        zp->stats.wakeups++;
        zp->polled = true;
        ret = 1;
    }
    return ret;
}
