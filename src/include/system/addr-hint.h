/*
 * Device access by address hint: per-vCPU reference tables
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest access that leaves the accelerator is looked up by address: a
 * most-recently-used section that all vCPUs share, else a radix walk; then the
 * size, alignment and byte order rules of the region are applied.  A reference
 * table keeps, per vCPU, which region answers a range of addresses and which
 * access sizes need none of these rules, so that a later access to the range
 * goes straight to the device (US 9,575,787, "hint" and "reference table").
 *
 * A hint is never trusted.  It holds for one AddressSpaceDispatch, named by
 * a serial number, and for one range; both are compared before it is used,
 * inside the RCU read section that keeps the view, and so the region, alive.
 * No reference is taken and none can leak.
 */

#ifndef SYSTEM_ADDR_HINT_H
#define SYSTEM_ADDR_HINT_H

#include "exec/hwaddr.h"
#include "exec/memattrs.h"
#include "hw/core/cpu.h"
#include "qemu/atomic.h"
#include "system/memory.h"

typedef struct AddrHintTable AddrHintTable;

/**
 * struct AddrHintCounters: what one table did since it was made
 * @hits: accesses that went straight to the device
 * @checked: accesses to a device that took the generic size, alignment and byte
 *           order rules, because the table did not know the device or because
 *           the rules depend on the access
 * @misses: accesses to a device that the table did not know
 * @refused: accesses that no table may answer: to RAM, ROM, an IOMMU,
 *           unassigned memory, or restricted to RAM by their attributes
 * @fills: entries made
 * @evictions: entries that had to make room (part of @fills)
 * @renewals: sets of entries dropped because the memory topology had changed
 * @window_hits: accesses in a window (addr-hint-window.h) that reached the
 *               device that the hint stands for; not part of @hits
 * @window_refills: hints looked up again because the topology had changed
 * @window_stale: accesses by a hint whose device is not there now
 * @window_refused: accesses in a window by no hint, outside a hint's range, or
 *                  that no vCPU made
 *
 * All count accesses or entries and wrap around.  One thread writes them;
 * others read them with qatomic_read().
 */
typedef struct AddrHintCounters {
    unsigned long hits;
    unsigned long checked;
    unsigned long misses;
    unsigned long refused;
    unsigned long fills;
    unsigned long evictions;
    unsigned long renewals;
    unsigned long window_hits;
    unsigned long window_refills;
    unsigned long window_stale;
    unsigned long window_refused;
} AddrHintCounters;

/**
 * addr_hint_table_new: make an empty table
 *
 * Returns: the table; free it with addr_hint_table_free().
 */
AddrHintTable *addr_hint_table_new(void);

/**
 * addr_hint_table_is_full: does a table keep devices, or windows only?
 * @table: the table
 *
 * Returns: true if ``dispatch-hints=on`` made it.
 */
bool addr_hint_table_is_full(const AddrHintTable *table);

/**
 * addr_hint_table_free: free a table that no thread uses any more
 * @table: the table, or NULL
 */
void addr_hint_table_free(AddrHintTable *table);

/**
 * addr_hint_table_counters: read the counters
 * @table: the table
 * @counters: where they are stored; not a snapshot of one moment
 *
 * Context: any thread, while the table exists.
 */
void addr_hint_table_counters(const AddrHintTable *table,
                              AddrHintCounters *counters);

/**
 * addr_hint_table_rw: address_space_rw() by way of a table
 * @table: the table; its owner is the only thread that may pass it
 * @as: address space
 * @addr: address in it
 * @attrs: transaction attributes; they belong to the access, not to the entry
 * @buf: data, in the byte order of the bus
 * @len: length in bytes
 * @is_write: direction
 *
 * The result and all effects are those of address_space_rw().
 *
 * Context: with or without the BQL, as address_space_rw().
 */
MemTxResult addr_hint_table_rw(AddrHintTable *table, AddressSpace *as,
                               hwaddr addr, MemTxAttrs attrs,
                               void *buf, hwaddr len, bool is_write);

/**
 * addr_hint_table_ld: address_space_ldub(), lduw() or ldl() by way of a table
 * @table: the table; its owner is the only thread that may pass it
 * @as: address space
 * @addr: address in it
 * @attrs: transaction attributes
 * @size: 1, 2 or 4 bytes
 * @result: where the result of the transaction is stored, or NULL
 *
 * Returns: what the device read, in target byte order.
 */
uint32_t addr_hint_table_ld(AddrHintTable *table, AddressSpace *as,
                            hwaddr addr, MemTxAttrs attrs, unsigned size,
                            MemTxResult *result);

/**
 * addr_hint_table_st: address_space_stb(), stw() or stl() by way of a table
 * @table: the table; its owner is the only thread that may pass it
 * @as: address space
 * @addr: address in it
 * @val: the value; bits above @size are ignored
 * @attrs: transaction attributes
 * @size: 1, 2 or 4 bytes
 * @result: where the result of the transaction is stored, or NULL
 */
void addr_hint_table_st(AddrHintTable *table, AddressSpace *as,
                        hwaddr addr, uint32_t val, MemTxAttrs attrs,
                        unsigned size, MemTxResult *result);

/**
 * addr_hint_rw: address_space_rw() for an access of a vCPU
 * @cpu: the vCPU whose thread is calling
 *
 * With ``-machine dispatch-hints=off`` this costs one load and one branch more
 * than address_space_rw().  The other parameters are that function's.
 */
static inline MemTxResult addr_hint_rw(CPUState *cpu, AddressSpace *as,
                                       hwaddr addr, MemTxAttrs attrs,
                                       void *buf, hwaddr len, bool is_write)
{
    /* pairs with qatomic_store_release() in addr_hint_tables_for_windows() */
    AddrHintTable *table = qatomic_read(&cpu->addr_hints);

    if (likely(!table)) {
        return address_space_rw(as, addr, attrs, buf, len, is_write);
    }
    return addr_hint_table_rw(table, as, addr, attrs, buf, len, is_write);
}

/* addr_hint_ldub, lduw, ldl, stb, stw, stl: the same for one value */
#define ADDR_HINT_LDST(suffix_ld, suffix_st, bytes)                         \
static inline uint32_t addr_hint_##suffix_ld(CPUState *cpu,                 \
                                             AddressSpace *as, hwaddr addr, \
                                             MemTxAttrs attrs)              \
{                                                                           \
    AddrHintTable *table = qatomic_read(&cpu->addr_hints);                  \
                                                                            \
    if (likely(!table)) {                                                   \
        return address_space_##suffix_ld(as, addr, attrs, NULL);            \
    }                                                                       \
    return addr_hint_table_ld(table, as, addr, attrs, bytes, NULL);         \
}                                                                           \
                                                                            \
static inline void addr_hint_##suffix_st(CPUState *cpu, AddressSpace *as,   \
                                         hwaddr addr, uint32_t val,         \
                                         MemTxAttrs attrs)                  \
{                                                                           \
    AddrHintTable *table = qatomic_read(&cpu->addr_hints);                  \
                                                                            \
    if (likely(!table)) {                                                   \
        address_space_##suffix_st(as, addr, val, attrs, NULL);              \
        return;                                                             \
    }                                                                       \
    addr_hint_table_st(table, as, addr, val, attrs, bytes, NULL);           \
}

ADDR_HINT_LDST(ldub, stb, 1)
ADDR_HINT_LDST(lduw, stw, 2)
ADDR_HINT_LDST(ldl, stl, 4)

#undef ADDR_HINT_LDST

/**
 * addr_hint_machine_class_init: give machines the property ``dispatch-hints``
 * @oc: TYPE_MACHINE
 */
void addr_hint_machine_class_init(ObjectClass *oc);

/**
 * addr_hint_cpu_realize: give a vCPU its table, if the machine wants tables or
 *                        has a window
 * @cpu: the vCPU, before its thread runs
 *
 * Context: BQL held.
 */
void addr_hint_cpu_realize(CPUState *cpu);

/**
 * addr_hint_cpu_unrealize: take the table away again
 * @cpu: the vCPU, after its thread has ended
 *
 * Context: BQL held.
 */
void addr_hint_cpu_unrealize(CPUState *cpu);

#endif
