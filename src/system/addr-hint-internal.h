/*
 * Device access by address hint: the layout of a reference table
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef ADDR_HINT_INTERNAL_H
#define ADDR_HINT_INTERNAL_H

#include "addr-hint-slot.h"
#include "system/addr-hint.h"

/*
 * 4 ways, 768 entries, 36 KiB per vCPU.  Memory is hashed by page, because a
 * device's registers lie together in one; ports by eight, because a page of
 * ports holds dozens of devices.
 */
#define ADDR_HINT_WAYS 4
#define ADDR_HINT_MEM_SET_BITS 7
#define ADDR_HINT_IO_SET_BITS 6
#define ADDR_HINT_MEM_SETS (1u << ADDR_HINT_MEM_SET_BITS)
#define ADDR_HINT_IO_SETS (1u << ADDR_HINT_IO_SET_BITS)
#define ADDR_HINT_MEM_SHIFT 12
#define ADDR_HINT_IO_SHIFT 3

/**
 * struct AddrHintTarget: what answers a range
 * @mr: the region; valid as long as the set's serial is the view's.  The rules
 *      in its callback table must not change while it is in a view.
 * @delta: what is added to an address to get its offset in @mr, modulo 2^64
 * @sizes: access sizes in bytes, each a bit of the same value, of which an
 *         aligned access is one call of the device's callback; [0] for reads,
 *         [1] for writes
 */
typedef struct AddrHintTarget {
    MemoryRegion *mr;
    hwaddr delta;
    uint8_t sizes[2];
} AddrHintTarget;

/**
 * struct AddrHintSet: the entries that share one hash value
 * @serial: serial of the dispatch that all entries were taken from, 0 if none
 * @base: first address of each range
 * @size: length of each range in bytes, 0 when the entry is empty
 * @target: what answers each range
 * @candidate: base of the range that missed last when the set was full
 * @victim: the way that makes room next
 *
 * Only the thread that owns the table reads or writes a set, so a hit dirties
 * no cache line that another vCPU uses.
 */
typedef struct AddrHintSet {
    uint64_t serial;
    hwaddr base[ADDR_HINT_WAYS];
    hwaddr size[ADDR_HINT_WAYS];
    AddrHintTarget target[ADDR_HINT_WAYS];
    hwaddr candidate;
    unsigned victim;
} QEMU_ALIGNED(64) AddrHintSet;

struct AddrHintTable {
    AddrHintSet mem[ADDR_HINT_MEM_SETS];
    AddrHintSet io[ADDR_HINT_IO_SETS];
    AddrHintCounters counters;
    MemOp target_order;         /* MO_LE or MO_BE */
    bool only_windows;          /* dispatch-hints=off, but there are windows */
};

/* Multiplicative hashing spreads any stride between the devices' BARs. */
#define ADDR_HINT_GOLDEN 0x9e3779b97f4a7c15ULL

static inline unsigned addr_hint_mem_hash(hwaddr addr)
{
    return (addr >> ADDR_HINT_MEM_SHIFT) * ADDR_HINT_GOLDEN
           >> (64 - ADDR_HINT_MEM_SET_BITS);
}

static inline unsigned addr_hint_io_hash(hwaddr addr)
{
    return (addr >> ADDR_HINT_IO_SHIFT) * ADDR_HINT_GOLDEN
           >> (64 - ADDR_HINT_IO_SET_BITS);
}

/**
 * addr_hint_direct_sizes: the sizes that take no rule at the access
 * @ops: callbacks and rules of a region
 * @is_write: for writes, else for reads
 *
 * What memory_region_access_valid(), memory_access_size() and
 * access_with_adjusted_size() would find at each access.  Byte order is not
 * looked at.
 *
 * Returns: the sizes in bytes, each a bit of the same value, of which an
 * aligned access is valid whatever the device's state and is one call of the
 * callback without a shift.
 */
static inline uint8_t addr_hint_direct_sizes(const MemoryRegionOps *ops,
                                             bool is_write)
{
    unsigned impl_min = ops->impl.min_access_size ?: 1;
    unsigned impl_max = ops->impl.max_access_size ?: 4;
    unsigned valid_min = ops->valid.min_access_size;
    unsigned valid_max = ops->valid.max_access_size;
    uint8_t sizes = 0;

    if (ops->valid.accepts ||
        !(is_write ? ops->write || ops->write_with_attrs
                   : ops->read || ops->read_with_attrs)) {
        return 0;
    }
    if (!valid_max) {
        /* "all are valid", but a longer access is split into these */
        valid_min = 1;
        valid_max = 4;
    }
    for (unsigned size = 1; size <= 8; size <<= 1) {
        if (size >= MAX(impl_min, valid_min) &&
            size <= MIN(impl_max, valid_max)) {
            sizes |= size;
        }
    }
    return sizes;
}

/* One thread writes a counter, others may read it at any time. */
static inline void addr_hint_count(unsigned long *counter)
{
    qatomic_set(counter, *counter + 1);
}

/**
 * addr_hint_sizes: the sizes of which an access is one call of the callback
 * @ops: callbacks and rules of a region
 * @is_write: for writes, else for reads
 *
 * Returns: as addr_hint_direct_sizes(); 0 if the byte order is not the host's.
 */
uint8_t addr_hint_sizes(const MemoryRegionOps *ops, bool is_write);

/**
 * addr_hint_fill: remember which region answers a range
 * @table: the table
 * @set: the set that @section's address hashed to; already of @serial
 * @section: the section, of a region that addr_hint_usable() accepts
 *
 * A free way is used at once.  A full set takes a range only when it is also
 * the range that missed there last, so that many ranges which are used in turn
 * seldom replace each other.
 */
void addr_hint_fill(AddrHintTable *table, AddrHintSet *set,
                    const MemoryRegionSection *section);

/**
 * addr_hint_counters_read: read counters that another thread writes
 * @from: the counters
 * @counters: where they are stored; not a snapshot of one moment
 */
void addr_hint_counters_read(const AddrHintCounters *from,
                             AddrHintCounters *counters);

/**
 * addr_hint_answer: find what answers an address in a view
 * @fv: the view
 * @addr: address in it
 * @answer: where it is stored, for use in this RCU read section
 *
 * Called from RCU critical section.
 */
void addr_hint_answer(FlatView *fv, hwaddr addr, AddrHintAnswer *answer);

/**
 * addr_hint_serial: the serial of a view's dispatch
 * @fv: the view
 *
 * Called from RCU critical section.
 */
uint64_t addr_hint_serial(const FlatView *fv);

/**
 * addr_hint_tables_for_windows: give every vCPU a table to find windows in
 *
 * vCPUs that come later get one, too.
 *
 * Context: BQL held; vCPUs may be running.
 */
void addr_hint_tables_for_windows(void);

/* A region with these callbacks is the window that its opaque pointer names. */
extern const MemoryRegionOps addr_hint_window_ops;

#endif
