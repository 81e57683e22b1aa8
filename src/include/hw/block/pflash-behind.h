/*
 * Write-behind of a flash chip's image
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_BLOCK_PFLASH_BEHIND_H
#define HW_BLOCK_PFLASH_BEHIND_H

#include "qemu/queue.h"
#include "system/block-backend.h"

/* Bytes that may wait to be written; then the vCPU waits, as without */
#define PFLASH_BEHIND_BYTES (1024 * 1024)

typedef struct PflashWrite PflashWrite;

/**
 * struct PflashBehind: writes that the image has not taken yet
 * @on: the device's property ``write-behind``
 *
 * Protected by the BQL.  Zero is a valid state: off.
 */
typedef struct PflashBehind {
    bool on;
    BlockBackend *blk;
    QSIMPLEQ_HEAD(, PflashWrite) queue;     /* the first is in flight */
    uint64_t waiting_bytes;
} PflashBehind;

/**
 * pflash_behind_realize: prepare write-behind if it is on
 * @behind: its @on is set
 * @blk: the image, or NULL
 * @type: the device's type, for errors
 * @errp: set if it cannot be on
 *
 * Returns: true, or false with @errp set.
 */
bool pflash_behind_realize(PflashBehind *behind, BlockBackend *blk,
                           const char *type, Error **errp);

/**
 * pflash_behind_write: write to the image, later if need be
 * @behind: on
 * @offset: where, in bytes
 * @data: what; copied
 * @bytes: how much
 *
 * The image sees the writes one after another in the order of the calls, as it
 * does without write-behind, so a guest that relies on it finds a consistent
 * flash after a crash of QEMU.  Two that follow each other to the same place
 * may become one.  A drain of the image, as by a stop of the VM, a snapshot or
 * a migration, waits for all of them.
 *
 * Context: BQL held.
 */
void pflash_behind_write(PflashBehind *behind, int64_t offset,
                         const void *data, int64_t bytes);

#endif
