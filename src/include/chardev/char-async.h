/*
 * Asynchronous requests of a character device's front end
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * qemu_chr_fe_write() copies, or has copied, what it returns for; and a back
 * end brings what it has read in a buffer of its own.  A back end with the
 * slots chr_submit_write, chr_submit_read and chr_cancel takes the front end's
 * own buffers instead, and says later that it is done with them.
 *
 * Context: a front end uses these functions in the thread that runs its
 * GMainContext; if that is the default one, with the BQL held.  Callbacks run
 * there as well, without chr_write_lock or a lock of the back end's.  They run
 * in the order of submission, for each direction, and never inside a submit.
 */

#ifndef CHAR_ASYNC_H
#define CHAR_ASYNC_H

#include "chardev/char.h"
#include "qemu/queue.h"

typedef struct CharAsyncReq CharAsyncReq;

/**
 * CharAsyncFunc: a request has completed
 * @opaque: CharAsyncReq.opaque
 * @req: the request, the caller's again; it may be freed or submitted anew
 */
typedef void CharAsyncFunc(void *opaque, CharAsyncReq *req);

/**
 * struct CharAsyncReq: a read or a write
 * @iov: the buffers.  They and the array stay where they are, and a write's
 *       buffers are not changed, until the callback
 * @iovcnt: number of elements of @iov; at least one byte in all
 * @min: a read completes when it has this many bytes; 0 counts as 1
 * @cb: called once for each request that was submitted
 * @opaque: for @cb
 * @result: bytes, or a negative errno value.  A write's is less than what was
 *       asked for if it was cancelled or cut off: the peer has taken so much
 *       of it and not a byte more.  A read's is 0 at the end of the stream
 * @more: while @cb runs: other callbacks follow at once.  A front end
 *       notifies its guest when this is false
 *
 * The caller owns the memory.  What follows @more is the back end's.
 */
struct CharAsyncReq {
    const struct iovec *iov;
    int iovcnt;
    size_t min;
    CharAsyncFunc *cb;
    void *opaque;

    ssize_t result;
    bool more;

    void *backend;
};

/**
 * enum CharAsyncRefusal: why a front end cannot use asynchronous requests
 * @CHAR_ASYNC_OK: it can
 * @CHAR_ASYNC_NO_BACKEND: it has no back end
 * @CHAR_ASYNC_CLASSIC: the back end has not the slots
 * @CHAR_ASYNC_MUX: several front ends share the back end (mux, hub)
 * @CHAR_ASYNC_REPLAY: the VM is recorded or replayed
 * @CHAR_ASYNC_LOGFILE: what is written has to go to a log file, too
 */
typedef enum CharAsyncRefusal {
    CHAR_ASYNC_OK,
    CHAR_ASYNC_NO_BACKEND,
    CHAR_ASYNC_CLASSIC,
    CHAR_ASYNC_MUX,
    CHAR_ASYNC_REPLAY,
    CHAR_ASYNC_LOGFILE,
    CHAR_ASYNC_REFUSALS
} CharAsyncRefusal;

/**
 * struct CharAsyncCounters: what happened to the front ends of this process
 * @refused: answers of qemu_chr_fe_async(), by reason
 * @lost_bytes: bytes of cut off requests that were thrown away, as the front
 *       ends counted them
 * @console_dropped_bytes: bytes that a console did not wait for
 *
 * Written with the BQL held.
 */
typedef struct CharAsyncCounters {
    uint64_t refused[CHAR_ASYNC_REFUSALS];
    uint64_t lost_bytes;
    uint64_t console_dropped_bytes;
} CharAsyncCounters;

extern CharAsyncCounters char_async_counters;

/** char_async_refusal_name: "logfile", for a statistic */
const char *char_async_refusal_name(CharAsyncRefusal refusal);

/**
 * qemu_chr_fe_async: may the front end submit requests?
 *
 * To be asked when the back end is set, or changed, or the handlers are; not
 * for each request.  A refusal is counted.
 *
 * Returns: CHAR_ASYNC_OK, or why not.
 */
CharAsyncRefusal qemu_chr_fe_async(CharFrontend *fe);

/**
 * qemu_chr_fe_submit_write: write, later
 *
 * May be called while no peer is connected: the request waits for one.
 *
 * Returns: 0: @req->cb will be called; or a negative errno value, and it will
 * not: -ENOTSUP (see qemu_chr_fe_async()), -EINVAL (no bytes), -EPIPE.
 */
int qemu_chr_fe_submit_write(CharFrontend *fe, CharAsyncReq *req);

/** qemu_chr_fe_submit_read: the same for a read */
int qemu_chr_fe_submit_read(CharFrontend *fe, CharAsyncReq *req);

/**
 * qemu_chr_fe_submit_flush: tell the peer of what was submitted
 *
 * To be called once after a batch of submits.
 */
void qemu_chr_fe_submit_flush(CharFrontend *fe);

/**
 * qemu_chr_fe_cancel: take a request back
 * @req: one that was submitted and has not completed
 *
 * The callbacks have run when this returns, those of other requests perhaps
 * as well.  A callback must not submit anew what was cancelled.
 */
void qemu_chr_fe_cancel(CharFrontend *fe, CharAsyncReq *req);

/** qemu_chr_fe_cancel_all: take all reads, or all writes, or both back */
void qemu_chr_fe_cancel_all(CharFrontend *fe, bool reads, bool writes);

/**
 * qemu_chr_async_cancel_all: take all requests of a back end's front end back
 *
 * For the code that changes a chardev's front end, handlers or context.
 */
void qemu_chr_async_cancel_all(Chardev *chr);

#endif
