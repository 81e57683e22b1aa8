/*
 * Device access by address hint: calling a device that was found
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Included by physmem.c, for addresses, and by addr-hint-window.c.  What
 * windows do is not in physmem.c, because more code there makes the compiler
 * inline less of the plain path.
 */

#ifndef SYSTEM_ADDR_HINT_DIRECT_H
#define SYSTEM_ADDR_HINT_DIRECT_H

#include "hw/qdev-core.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"
#include "qemu/main-loop.h"
#include "system/addr-hint-window.h"
#include "system/memory.h"
#include "trace.h"

/**
 * struct AddrHintFound: the region that answers an access
 * @mr: the region
 * @offset: offset in @mr of the access
 * @sizes: see struct AddrHintTarget; 0: the generic rules must be applied
 */
typedef struct AddrHintFound {
    MemoryRegion *mr;
    hwaddr offset;
    uint8_t sizes;
} AddrHintFound;

/**
 * addr_hint_rw_generic: make an access by the generic rules
 * @fv: the view that the region was found in
 * @addr: address of the access
 * @found: the region; not by a pointer, so that the path of a hit, which does
 *         not come here, can keep it in registers
 * @attrs: transaction attributes
 * @buf: data, in the byte order of the bus
 * @len: length in bytes
 * @is_write: direction
 *
 * Called from RCU critical section.
 */
MemTxResult addr_hint_rw_generic(FlatView *fv, hwaddr addr,
                                 AddrHintFound found, MemTxAttrs attrs,
                                 void *buf, hwaddr len, bool is_write);

/**
 * addr_hint_window_rw: make an access in a window
 * @table: where a vCPU counts, or NULL
 * @w: the window
 * @offset: offset in it
 * @attrs: transaction attributes
 * @buf: data, in the byte order of the bus
 * @len: length in bytes
 * @is_write: direction
 * @whole: see addr_hint_window_access()
 *
 * Called from RCU critical section.
 */
MemTxResult addr_hint_window_rw(AddrHintTable *table, AddrHintWindow *w,
                                hwaddr offset, MemTxAttrs attrs,
                                void *buf, hwaddr len, bool is_write,
                                bool whole);

/* May the device's callback be called with nothing but the guard around? */
static inline bool addr_hint_direct(const AddrHintFound *found, hwaddr len,
                                    bool is_write)
{
    return (found->sizes & len) && is_power_of_2(len) &&
           !(found->offset & (len - 1)) &&
           likely(is_write
                  ? !trace_event_get_state_backends(
                        TRACE_MEMORY_REGION_OPS_WRITE)
                  : !trace_event_get_state_backends(
                        TRACE_MEMORY_REGION_OPS_READ));
}

/*
 * Enter the guard that access_with_adjusted_size() would enter.
 *
 * Returns: false if the device is in use already; *@guard is NULL if
 * the region has no guard.
 */
static inline bool addr_hint_guard_enter(MemoryRegion *mr,
                                         MemReentrancyGuard **guard)
{
    *guard = NULL;
    if (mr->dev && !mr->disable_reentrancy_guard && !mr->readonly) {
        if (unlikely(mr->dev->mem_reentrancy_guard.engaged_in_io)) {
            return false;
        }
        *guard = &mr->dev->mem_reentrancy_guard;
        (*guard)->engaged_in_io = true;
    }
    return true;
}

static inline void addr_hint_guard_leave(MemReentrancyGuard *guard)
{
    if (guard) {
        guard->engaged_in_io = false;
    }
}

/* The caller has prepared the access, and found it to be a direct one. */
static inline MemTxResult addr_hint_read(const AddrHintFound *found,
                                         uint64_t *val, unsigned size,
                                         MemTxAttrs attrs)
{
    MemoryRegion *mr = found->mr;
    MemReentrancyGuard *guard;
    MemTxResult result = MEMTX_OK;

    if (unlikely(!addr_hint_guard_enter(mr, &guard))) {
        return memory_region_dispatch_read(mr, found->offset, val,
                                           size_memop(size), attrs);
    }
    if (mr->ops->read) {
        *val = mr->ops->read(mr->opaque, found->offset, size);
    } else {
        *val = 0;
        result = mr->ops->read_with_attrs(mr->opaque, found->offset, val,
                                          size, attrs);
    }
    addr_hint_guard_leave(guard);
    return result;
}

/*
 * The same for a write; @val has no bits above @size.  Eventfds come and go
 * under the BQL without a new view, so they are looked for now, not earlier.
 */
static inline MemTxResult addr_hint_write(const AddrHintFound *found,
                                          uint64_t val, unsigned size,
                                          MemTxAttrs attrs)
{
    MemoryRegion *mr = found->mr;
    MemReentrancyGuard *guard;
    MemTxResult result = MEMTX_OK;

    if (unlikely(mr->ioeventfd_nb) ||
        unlikely(!addr_hint_guard_enter(mr, &guard))) {
        return memory_region_dispatch_write(mr, found->offset, val,
                                            size_memop(size), attrs);
    }
    if (mr->ops->write) {
        mr->ops->write(mr->opaque, found->offset, val, size);
    } else {
        result = mr->ops->write_with_attrs(mr->opaque, found->offset, val,
                                           size, attrs);
    }
    addr_hint_guard_leave(guard);
    return result;
}

static inline MemTxResult addr_hint_rw_direct(const AddrHintFound *found,
                                              MemTxAttrs attrs, void *buf,
                                              unsigned size, bool is_write)
{
    bool release_lock = prepare_mmio_access(found->mr);
    MemTxResult result;
    uint64_t val;

    if (is_write) {
        result = addr_hint_write(found, ldn_he_p(buf, size), size, attrs);
    } else {
        result = addr_hint_read(found, &val, size, attrs);
        stn_he_p(buf, size, val);
    }
    if (release_lock) {
        bql_unlock();
    }
    return result;
}

#endif
