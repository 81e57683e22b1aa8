/*
 * Device access by address hint: one entry of a table that vCPUs share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A slot points to an immutable view of its hint, or to nothing.  Any thread
 * reads it inside an RCU read section and without a lock.  Whoever finds that
 * the memory topology has moved on makes a new view and puts it there if
 * nobody was faster; the old one is freed after a grace period.
 */

#ifndef SYSTEM_ADDR_HINT_SLOT_H
#define SYSTEM_ADDR_HINT_SLOT_H

#include "exec/hwaddr.h"
#include "hw/core/cpu.h"
#include "qemu/atomic.h"
#include "qemu/rcu.h"
#include "system/memory.h"

/**
 * struct AddrHintAnswer: what answers an address in one dispatch
 * @serial: serial of the dispatch
 * @mr: the region, of whatever kind
 * @offset: offset in @mr
 * @bytes: bytes from the address on that @mr answers
 * @usable: an I/O region that may be kept
 * @read_sizes: of a usable one, see struct AddrHintTarget
 * @write_sizes: the same for writes
 *
 * Valid inside the RCU read section in which it was found.
 */
typedef struct AddrHintAnswer {
    uint64_t serial;
    MemoryRegion *mr;
    hwaddr offset;
    hwaddr bytes;
    bool usable;
    uint8_t read_sizes;
    uint8_t write_sizes;
} AddrHintAnswer;

/**
 * struct AddrHintView: a hint, and what it led to in one dispatch
 * @serial: serial of the dispatch, 0 if it was not looked up in any
 * @mr: the region that the hint stands for; only to be followed when @live and
 *      @serial is that of a dispatch which is alive
 * @offset: offset in @mr of the first byte of the hint
 * @dev: the device that owned @mr; only to be compared
 * @addr: address of the first byte of the hint
 * @length: bytes of the hint, 1 to 4,096, within one page
 * @first: @addr's offset in its page
 * @live: @mr answered @addr, at @offset, in that dispatch
 * @settled: @mr, @offset and @dev are known; not so after a migration
 * @gone: its device was removed; it never answers again
 * @read_sizes: see struct AddrHintTarget
 * @write_sizes: the same for writes
 *
 * Immutable once it is in a slot.
 */
typedef struct AddrHintView {
    uint64_t serial;
    MemoryRegion *mr;
    hwaddr offset;
    DeviceState *dev;
    hwaddr addr;
    uint16_t length;
    uint16_t first;
    bool live;
    bool settled;
    bool gone;
    uint8_t read_sizes;
    uint8_t write_sizes;
} AddrHintView;

/**
 * addr_hint_slot_view: read a slot
 * @slot: the slot
 *
 * Returns: its view, or NULL when no hint is in it.
 *
 * Called from RCU critical section, which the result must not leave.
 */
static inline const AddrHintView *addr_hint_slot_view(AddrHintView **slot)
{
    return qatomic_rcu_read(slot);
}

/**
 * addr_hint_slot_put: put a hint into a slot, or take it out
 * @slot: the slot
 * @view: what is copied into it, or NULL
 *
 * Context: BQL held; readers may be at work.
 */
void addr_hint_slot_put(AddrHintView **slot, const AddrHintView *view);

/**
 * addr_hint_slot_refresh: look a hint up again
 * @slot: the slot
 * @old: its view, as it was read in this RCU read section
 * @answer: what answers @old->addr now
 * @view: where the new view is stored, for use in this RCU read section
 *
 * The hint is live if the region and the offset are those that it stands for.
 * The slot gets the new view unless another thread has changed it meanwhile.
 *
 * Called from RCU critical section, by any thread.
 */
void addr_hint_slot_refresh(AddrHintView **slot, const AddrHintView *old,
                            const AddrHintAnswer *answer, AddrHintView *view);

/**
 * addr_hint_slot_settle: let a hint stand for what answers its address now
 * @slot: the slot, which is in use
 * @answer: what answers, or NULL to give the hint up for good
 *
 * Context: BQL held, RCU critical section; readers may be at work.
 */
void addr_hint_slot_settle(AddrHintView **slot, const AddrHintAnswer *answer);

/**
 * addr_hint_slot_forget: give a hint up if it stands for a device
 * @slot: the slot
 * @dev: a device that is being removed
 *
 * A later device that happens to get the same region at the same place does not
 * answer in its stead.
 *
 * Returns: true if the hint stood for @dev.
 *
 * Context: BQL held, RCU critical section; readers may be at work.
 */
bool addr_hint_slot_forget(AddrHintView **slot, const DeviceState *dev);

#endif
