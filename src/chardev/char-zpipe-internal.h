/*
 * Asynchronous pipes as character devices: what the parts share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * char-zpipe.c has the class, options and data; char-zpipe-link.c finds,
 * loses and replaces peers; char-zpipe-info.c tells of it; char-zpipe-vm.c is
 * what only a system emulator has: guest RAM, migration, statistics.
 *
 * Threads: everything runs in the thread of the chardev's GMainContext (for
 * the default one: with the BQL held), except chr_write, which a front end may
 * call anywhere, and yank, which comes from the monitor's thread.
 */

#ifndef CHAR_ZPIPE_INTERNAL_H
#define CHAR_ZPIPE_INTERNAL_H

#include "chardev/char.h"
#include "chardev/char-async.h"
#include "qapi/qapi-types-zpipe.h"
#include "qom/object.h"
#include "char-zpipe-vm.h"
#include "zpipe.h"

#define TYPE_CHARDEV_ZPIPE "chardev-zpipe"
DECLARE_INSTANCE_CHECKER(ZpipeChardev, CHARDEV_ZPIPE, TYPE_CHARDEV_ZPIPE)

typedef struct ZpipeVM ZpipeVM;

/**
 * struct ZpipeTotals: counters of a chardev, or of all
 * @lib: those of the library, over all handles
 * @lost_bytes: bytes that a peer had not taken when it was given up
 * @dropped_bytes: bytes that were not accepted from a front end that cannot
 *       wait, since there was no peer
 * @closed: times that the front end was told that the peer is gone
 * @refused_clients: clients sent away since there was one
 * @cancelled: times that requests were taken back from the peer
 * @yields: times that other sources of the main loop had their turn although
 *       there was more to do, or perhaps was
 * @ram_refused: blocks of guest RAM that could not be shared, or were not
 *       shown to a peer that could have written them
 */
typedef struct ZpipeTotals {
    struct zpipe_stats lib;
    uint64_t lost_bytes;
    uint64_t dropped_bytes;
    uint64_t closed;
    uint64_t refused_clients;
    uint64_t cancelled;
    uint64_t yields;
    uint64_t ram_refused;
} ZpipeTotals;

/* A request that the library has, or has completed. */
typedef struct ZpipeOp {
    struct zpipe_req zr;
    CharAsyncReq *req;
    bool write;
    QSIMPLEQ_ENTRY(ZpipeOp) next;
} ZpipeOp;

typedef QSIMPLEQ_HEAD(ZpipeOps, ZpipeOp) ZpipeOps;

struct ZpipeChardev {
    Chardev parent;

    /* Set by open. */
    char *path;
    bool server, wait, share_ram, trusted_peer;
    int64_t reconnect_ms, hold_ms;
    struct zpipe_config config;
    bool registered_yank;
    ZpipeVM *vm;

    /* Around each call of the library, and for the fields down to @totals. */
    QemuMutex lock;
    struct zpipe *zp;
    ZpipeOps done;                      /* reaped */
    unsigned tx_requests, rx_requests;  /* submitted, not yet reaped */
    bool tx_blocked;                    /* a write found no room */
    bool kicked;                        /* run() is to be called */
    uint64_t tx_accepted;               /* bytes, by this handle */
    size_t refused;                     /* by the last write, for no peer */
    QemuThread refused_by;              /* the thread that wrote it */
    ZpipeTotals totals;                 /* of earlier handles */

    /* The context's thread only. */
    ZpipeOps calling;                   /* callbacks to be called */
    ZpipeOps spare;                     /* to be used again */
    bool client;                        /* somebody wants to connect */
    unsigned cancel_reads, cancel_writes;   /* under way: accept no more */
    GSource *source;
    int listener;
    dev_t listener_dev;                 /* of the socket's file */
    ino_t listener_ino;
    bool started;                       /* false: wait for the VM */
    bool ended;                         /* the peer has ended the stream */
    bool no_room;                       /* the front end took no more */
    bool reported;                      /* why it cannot connect */
    bool withheld;                      /* reported that RAM is not shown */
    enum zpipe_state seen;
    int64_t attached_us;                /* begin of the handshake */
    uint64_t connects;                  /* of the handle, when it began */
    int64_t reconnect_us, hold_us;      /* when; 0: not at all */
    int64_t rest_us;                    /* until then no client is taken */
    int64_t left_us;                    /* for what a peer left to be read */
    uint64_t left_offset;               /* how far that is */
    int64_t drain_us, drain_until_us;   /* before it is stopped */
    int64_t patience_us;                /* for a path that is in use still */
    char *error;                        /* of the last connection */
};

/* char-zpipe.c */

/* Have zpipe_chr_run() called soon, by the context's thread.  Any thread. */
void zpipe_chr_kick(ZpipeChardev *s);
/* Make progress: everything that can be done without waiting. */
void zpipe_chr_run(ZpipeChardev *s);
/* Take what has completed from the library.  Called with s->lock held. */
bool zpipe_chr_reap_locked(ZpipeChardev *s);
/* Take all requests back and run their callbacks. */
void zpipe_chr_cancel_all(ZpipeChardev *s);
/* Use another handle.  The old one has no requests, and is freed. */
void zpipe_chr_replace(ZpipeChardev *s, struct zpipe *zp);
/* Watch the handle's, the listener's descriptor in the present context. */
void zpipe_chr_watch(ZpipeChardev *s);

/* char-zpipe-link.c */

/* Listen or connect.  What can be tried again later is no error. */
bool zpipe_link_start(ZpipeChardev *s, Error **errp);
/* The same after a migration, when nothing is an error: see there. */
void zpipe_link_start_late(ZpipeChardev *s);
/* The VM goes on: what a peer left can be read now. */
void zpipe_link_resume(ZpipeChardev *s);
/* Block until there is a peer. */
bool zpipe_link_wait(ZpipeChardev *s, Error **errp);
/* End the connection until the VM runs again, leave the path to others. */
void zpipe_link_stop(ZpipeChardev *s);
/* Leave the path to others. */
void zpipe_link_close(ZpipeChardev *s);
/* Clients and timers. */
void zpipe_link_tick(ZpipeChardev *s);
/* Did the connection change?  Tells the front end. */
bool zpipe_link_check(ZpipeChardev *s);
/* When to call zpipe_link_tick(), g_get_monotonic_time(); -1: never. */
int64_t zpipe_link_deadline(ZpipeChardev *s);

/* char-zpipe-info.c */

/* The counters, with those of the present handle. */
void zpipe_chr_totals(ZpipeChardev *s, ZpipeTotals *totals);
void zpipe_totals_add(ZpipeTotals *sum, const ZpipeTotals *add);
/* Those of a handle that is no longer used. */
void zpipe_totals_add_handle(ZpipeTotals *sum, struct zpipe *zp);
/* Of all chardevs that there are and were. */
void zpipe_totals_all(ZpipeTotals *totals);
/* The chardev goes away. */
void zpipe_totals_keep(ZpipeChardev *s);

#endif
