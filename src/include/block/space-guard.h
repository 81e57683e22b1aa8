/*
 * Growth of storage: what the rest of QEMU calls
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_SPACE_GUARD_H
#define BLOCK_SPACE_GUARD_H

#include "block/block.h"
#include "system/block-backend.h"

/**
 * space_guard_drained_begin: give back the writes that a drain waits for
 * @bs: a node that is being drained; its quiesce_counter is already raised
 *
 * Writes that a space-guard below @bs holds fail with ENOSPC, and so do those
 * that jobs which work on @bs have made elsewhere.  None is held as long as
 * @bs is drained: a drain never waits for storage.
 *
 * Context: main thread, graph lock held for reading.
 */
void GRAPH_RDLOCK space_guard_drained_begin(BlockDriverState *bs);

/**
 * space_guard_cancel_below: give back the writes that are cancelled
 * @bs: a node whose requests in flight are cancelled, as those of a job are
 *
 * Context: main thread, graph lock held for reading.
 */
void GRAPH_RDLOCK space_guard_cancel_below(BlockDriverState *bs);

/**
 * space_guard_cancel_begin: give back what a cancelled write may wait for
 * @blk: all its writes are cancelled; NULL: look for what blk_has_cancelled()
 *
 * A device that is reset waits until what it cancels has ended.  Nobody can
 * answer a request meanwhile, so none is held below @blk, and for jobs that
 * work there, until space_guard_cancel_end().
 *
 * Context: main thread.
 */
void space_guard_cancel_begin(BlockBackend *blk);

/**
 * space_guard_cancel_end: what was cancelled has ended
 *
 * Context: main thread.
 */
void space_guard_cancel_end(void);

/* Whether there is a guard below; main thread */
bool space_guard_below(BlockBackend *blk);

/* ... that may hold writes, since the VM runs */
bool space_guard_holds_below(BlockBackend *blk);

/**
 * space_guard_check_backend: refuse what a space-guard cannot work with
 * @blk: what a device is about to use, with its error policies set
 * @errp: set when this returns false
 *
 * With werror=report or werror=ignore, a guest would see or lose a write that
 * a drain gives back.  A raw disk on a device of fixed size never runs out of
 * space at all; the write past its end is an error of the guest.
 *
 * Returns: false when @blk has a space-guard that must not be there.
 *
 * Context: main thread.
 */
bool space_guard_check_backend(BlockBackend *blk, Error **errp);

/**
 * space_guard_check_writer: refuse who loses what a space-guard holds
 * @blk: what a device is about to write to
 * @errp: set when this returns false
 *
 * A write may wait only for a device that keeps it when it fails after all,
 * one with the property "werror".  Others write while the vCPU or the main
 * loop waits, which then cannot take the answer.
 *
 * It is for a device whose permissions do not count yet, as the migration is
 * incoming.  Else the guard sees it, and whatever comes above it later.
 *
 * Returns: false when a guard below @blk that writes go through has
 * policy=hold, and its device does not keep them.
 *
 * Context: main thread.
 */
bool space_guard_check_writer(BlockBackend *blk, Error **errp);

/**
 * space_vm_user_stop: somebody has stopped the VM
 *
 * From now on it is not resumed automatically, whatever had stopped it before.
 * The run state cannot tell: a "stop" does not change it while the VM is
 * stopped by an I/O error.
 *
 * Context: BQL held.
 */
void space_vm_user_stop(void);

/**
 * space_vm_user_cont: somebody resumes the VM
 *
 * Context: BQL held.
 */
void space_vm_user_cont(void);

#endif
