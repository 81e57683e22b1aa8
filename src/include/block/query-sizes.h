/*
 * Allocated sizes for query-block, without waiting for a server under the BQL
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QUERY_SIZES_H
#define BLOCK_QUERY_SIZES_H

#include "block/block.h"
#include "qemu/async-call.h"

/* Most that may be asked for, in milliseconds: an hour */
#define BLOCK_SIZES_MAX_DEADLINE_MS (3600 * 1000)

/* Monitor commands that wait for sizes, and the fstat() calls they wait for */
extern AsyncCallSite block_sizes_query_site;
extern AsyncCallSite block_sizes_fstat_site;

/**
 * block_sizes_set_deadline: switch the mechanism on or off
 * @deadline_ms: how long a query waits for the sizes at most; 0: off
 *
 * Context: BQL held.
 */
void block_sizes_set_deadline(uint32_t deadline_ms);

/**
 * block_sizes_deadline: what block_sizes_set_deadline() was given
 */
uint32_t block_sizes_deadline(void);

/**
 * block_sizes_left_out: how many sizes were not reported, because the file's
 * server had not answered in time or the node was new
 *
 * Context: BQL held.
 */
uint64_t block_sizes_left_out(void);

/**
 * block_sizes_co_begin: have the sizes ready for a command that asks for them
 * @req: the QMP request, as it came
 *
 * If the command is one of those that report the files' sizes, ask for all of
 * them, wait until they are known or the deadline is over, and keep them until
 * block_sizes_co_end().
 *
 * Context: the QMP dispatcher, which may or may not be in a coroutine; out of
 * band nothing is done.
 *
 * Returns: whether block_sizes_co_end() has to be called.
 */
bool coroutine_mixed_fn block_sizes_co_begin(QObject *req);

/**
 * block_sizes_co_end: the command has run
 * @begun: what block_sizes_co_begin() returned
 */
void block_sizes_co_end(bool begun);

/**
 * typedef BlockSizesFunc: something that runs when the sizes are ready
 * @opaque: as given to block_sizes_when_ready()
 */
typedef void BlockSizesFunc(void *opaque);

/**
 * block_sizes_when_ready: the same for a caller that is not in a coroutine
 * @func: runs later from a bottom half of the main loop
 * @opaque: for @func
 *
 * Context: main thread, BQL held.
 *
 * Returns: false if there is nothing to wait for, because the mechanism is off
 * or the sizes are ready now; @func does not run then.
 */
bool block_sizes_when_ready(BlockSizesFunc *func, void *opaque);

/**
 * block_sizes_lookup: a node's allocated size, while a command reports sizes
 * @bs: the node
 * @size: where to store the size in bytes, or -errno if it is not known
 *
 * Context: any thread.
 *
 * Returns: false if the caller has to ask the file itself.
 */
bool block_sizes_lookup(BlockDriverState *bs, int64_t *size);

/**
 * block_sizes_asking: is a thread asking for a node's size?
 * @bs: the node
 *
 * The thread has a duplicate of the file's descriptor, so locks on it outlive
 * the descriptor: who closes that has to take them off first.
 *
 * Context: main thread, BQL held.
 */
bool block_sizes_asking(BlockDriverState *bs);

/**
 * block_sizes_forget: a node's file is about to be closed
 * @bs: the node
 *
 * Context: main thread.
 */
void block_sizes_forget(BlockDriverState *bs);

/**
 * raw_get_fd: the descriptor of a node whose size is what fstat() says
 * @bs: any node
 *
 * Context: main thread.
 *
 * Returns: the descriptor, which stays the node's, or -1.
 */
int raw_get_fd(BlockDriverState *bs);

#endif
