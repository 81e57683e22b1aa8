/*
 * Device access by address hint: windows, the guest-visible half
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A window is an I/O region with one page per hint.  A hint stands for a range
 * of a page of the guest's address space that belongs to one I/O region; an
 * access at the same offset in the hint's page of the window reaches that
 * region, with the same result and effects as one at its address.  The page is
 * an index: nothing is searched for.
 *
 * A hint names a region and an offset in it, not an address: while something
 * else answers the address, or nothing, an access by the hint is one to
 * nothing.
 *
 * Windows are seen by all vCPUs and owned by a device; see
 * hw/misc/addr-hint-pci.c and docs/specs/addr-hint.rst.
 */

#ifndef SYSTEM_ADDR_HINT_WINDOW_H
#define SYSTEM_ADDR_HINT_WINDOW_H

#include "hw/misc/addr-hint-regs.h"
#include "qemu/queue.h"
#include "system/addr-hint.h"
#include "system/memory.h"

typedef struct AddrHintView AddrHintView;

/**
 * struct AddrHintWindowStats: what a window did
 * @registrations: hints given
 * @refusals: registrations refused
 * @doorbell_writes: writes that QEMU made for doorbells, also by stale hints
 * @doorbells_shared: doorbells that now go to their target's own eventfd
 *
 * Protected by the BQL.
 */
typedef struct AddrHintWindowStats {
    uint64_t registrations;
    uint64_t refusals;
    uint64_t doorbell_writes;
    uint64_t doorbells_shared;
} AddrHintWindowStats;

/**
 * struct AddrHintWindow: a window and its hints
 * @mr: the I/O region that the guest sees
 * @owner: the device
 * @as: where hints are looked up; set once, before the first hint
 * @nr_hints: size of the table
 * @nr_used: hints in use, protected by the BQL
 * @used: bit per hint, protected by the BQL
 * @slots: the hints; see system/addr-hint-slot.h
 * @allow_dma: accesses that no vCPU makes are served as well
 * @others: counts of accesses outside vCPU threads; written atomically
 * @stats: protected by the BQL
 * @next: in the list of all windows, protected by the BQL
 */
typedef struct AddrHintWindow {
    MemoryRegion mr;
    DeviceState *owner;
    AddressSpace *as;
    unsigned nr_hints;
    unsigned nr_used;
    unsigned long *used;
    AddrHintView **slots;
    bool allow_dma;
    AddrHintCounters others;
    AddrHintWindowStats stats;
    QLIST_ENTRY(AddrHintWindow) next;
} AddrHintWindow;

/**
 * struct AddrHintInfo: what a hint is, for migration and the monitor
 * @addr: address of its first byte
 * @length: its length in bytes
 * @live: its region answers there now
 * @region: name of that region, NULL if not live; valid while the BQL is held
 */
typedef struct AddrHintInfo {
    hwaddr addr;
    unsigned length;
    bool live;
    const char *region;
} AddrHintInfo;

/**
 * addr_hint_window_init: make a window without hints
 * @w: the window
 * @owner: the device that it is part of
 * @nr_hints: size of the table
 *
 * Every vCPU gets a reference table, if it has none, to find the window in.
 *
 * Context: BQL held.
 */
void addr_hint_window_init(AddrHintWindow *w, DeviceState *owner,
                           unsigned nr_hints);

/**
 * addr_hint_window_exit: release all hints; the region is in no view any more
 * @w: the window
 *
 * Context: BQL held.
 */
void addr_hint_window_exit(AddrHintWindow *w);

/**
 * addr_hint_window_finalize: free the table
 * @w: the window; no view holds its region, so no thread can be in it
 */
void addr_hint_window_finalize(AddrHintWindow *w);

/**
 * addr_hint_window_register: give a hint
 * @w: the window; @as is set
 * @addr: address of the first byte
 * @length: bytes
 * @index: where the hint is stored
 *
 * Context: BQL held.
 *
 * Returns: ADDR_HINT_OK, or the reason why there is no hint.
 */
unsigned addr_hint_window_register(AddrHintWindow *w, hwaddr addr,
                                   unsigned length, unsigned *index);

/**
 * addr_hint_window_load: put a hint back that was saved
 * @w: the window
 * @index: which hint; free and within the table
 * @addr: address of the first byte
 * @length: bytes, within one page
 * @gone: it never answers again
 *
 * It answers from addr_hint_window_settle() on.
 *
 * Context: BQL held.
 */
void addr_hint_window_load(AddrHintWindow *w, unsigned index, hwaddr addr,
                           unsigned length, bool gone);

/**
 * addr_hint_window_settle: find out what the hints that were loaded stand for
 * @w: the window; all devices have been loaded
 *
 * Context: BQL held.
 */
void addr_hint_window_settle(AddrHintWindow *w);

/**
 * addr_hint_window_release: take a hint back
 * @w: the window
 * @index: any value
 *
 * Context: BQL held.
 *
 * Returns: false if there was no such hint.
 */
bool addr_hint_window_release(AddrHintWindow *w, unsigned index);

/**
 * addr_hint_window_info: tell what a hint is
 * @w: the window
 * @index: any value
 * @info: where it is stored
 *
 * Context: BQL held.
 *
 * Returns: false if there is no such hint.
 */
bool addr_hint_window_info(AddrHintWindow *w, unsigned index,
                           AddrHintInfo *info);

/**
 * addr_hint_window_post: make a write by a hint, from a doorbell
 * @w: the window
 * @index: the hint, in use
 * @val: the value, little endian on the bus
 * @size: 1, 2, 4 or 8 bytes
 *
 * Context: BQL held.
 *
 * Returns: the result of the transaction.
 */
MemTxResult addr_hint_window_post(AddrHintWindow *w, unsigned index,
                                  uint64_t val, unsigned size);

/**
 * addr_hint_window_next: walk over all windows
 * @w: the window before, or NULL
 *
 * Context: BQL held.
 *
 * Returns: the next window, or NULL.
 */
AddrHintWindow *addr_hint_window_next(AddrHintWindow *w);

/**
 * addr_hint_window_others: counts of accesses outside vCPU threads
 * @w: the window
 * @counters: where they are stored
 *
 * Context: any thread, while the window exists.
 */
void addr_hint_window_others(const AddrHintWindow *w,
                             AddrHintCounters *counters);

/**
 * addr_hint_window_access: address_space_rw() of an address in a window
 * @w: the window
 * @offset: offset in it
 * @attrs: transaction attributes
 * @buf: data, in the byte order of the bus
 * @len: length in bytes
 * @is_write: direction
 * @whole: the access is handed to the region as it is, not split into parts
 *         that the region takes
 *
 * Called from RCU critical section, by any thread.
 */
MemTxResult addr_hint_window_access(AddrHintWindow *w, hwaddr offset,
                                    MemTxAttrs attrs, void *buf, hwaddr len,
                                    bool is_write, bool whole);

#endif
