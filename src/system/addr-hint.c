/*
 * Device access by address hint: life of the tables, property, statistics
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The path of an access is in addr-hint.c.inc.  A table belongs to one vCPU
 * thread from the vCPU's realize to its unrealize; only its counters are read
 * by others.  It holds nothing that lives longer than the view it was taken
 * from, so there is nothing to do on reset, migration or loadvm.
 */

#include "qemu/osdep.h"
#include "addr-hint-internal.h"
#include "hw/boards.h"
#include "hw/qdev-core.h"
#include "memory-internal.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/target-info.h"
#include "system/hotpath-stats.h"
#include "system/kvm.h"
#include "system/qtest.h"
#include "system/tcg.h"
#include "trace.h"

/*
 * -machine dispatch-hints; written before any vCPU exists, under the BQL.  Not
 * in MachineState, to leave that structure alone: there is one machine.
 */
static bool dispatch_hints;

/* There is, or was, a window; protected by the BQL */
static bool windows_exist;

AddrHintTable *addr_hint_table_new(void)
{
    AddrHintTable *table = qemu_memalign(__alignof__(AddrHintTable),
                                         sizeof(AddrHintTable));

    memset(table, 0, sizeof(*table));
    table->target_order = target_big_endian() ? MO_BE : MO_LE;
    return table;
}

void addr_hint_table_free(AddrHintTable *table)
{
    qemu_vfree(table);
}

bool addr_hint_table_is_full(const AddrHintTable *table)
{
    return !table->only_windows;
}

void addr_hint_table_counters(const AddrHintTable *table,
                              AddrHintCounters *counters)
{
    addr_hint_counters_read(&table->counters, counters);
}

void addr_hint_counters_read(const AddrHintCounters *c,
                             AddrHintCounters *counters)
{
    *counters = (AddrHintCounters) {
        .hits = qatomic_read(&c->hits),
        .checked = qatomic_read(&c->checked),
        .misses = qatomic_read(&c->misses),
        .refused = qatomic_read(&c->refused),
        .fills = qatomic_read(&c->fills),
        .evictions = qatomic_read(&c->evictions),
        .renewals = qatomic_read(&c->renewals),
        .window_hits = qatomic_read(&c->window_hits),
        .window_refills = qatomic_read(&c->window_refills),
        .window_stale = qatomic_read(&c->window_stale),
        .window_refused = qatomic_read(&c->window_refused),
    };
}

/*
 * A callback of the other byte order needs a swap at each access, a window must
 * be gone through.
 */
uint8_t addr_hint_sizes(const MemoryRegionOps *ops, bool is_write)
{
    if (devend_big_endian(ops->endianness) != HOST_BIG_ENDIAN ||
        ops == &addr_hint_window_ops) {
        return 0;
    }
    return addr_hint_direct_sizes(ops, is_write);
}

static int set_find_free(const AddrHintSet *set)
{
    for (int way = 0; way < ADDR_HINT_WAYS; way++) {
        if (!set->size[way]) {
            return way;
        }
    }
    return -1;
}

void addr_hint_fill(AddrHintTable *table, AddrHintSet *set,
                    const MemoryRegionSection *section)
{
    hwaddr base = section->offset_within_address_space;
    MemoryRegion *mr = section->mr;
    int way = set_find_free(set);

    if (way < 0) {
        if (set->candidate != base) {
            set->candidate = base;
            return;
        }
        way = set->victim;
        set->victim = (way + 1) % ADDR_HINT_WAYS;
        addr_hint_count(&table->counters.evictions);
    }
    set->base[way] = base;
    set->size[way] = int128_getlo(section->size);
    set->target[way] = (AddrHintTarget) {
        .mr = mr,
        .delta = section->offset_within_region - base,
        .sizes = {
            addr_hint_sizes(mr->ops, false), addr_hint_sizes(mr->ops, true)
        },
    };
    addr_hint_count(&table->counters.fills);
    if (trace_event_get_state_backends(TRACE_ADDR_HINT_FILL)) {
        trace_addr_hint_fill(current_cpu ? current_cpu->cpu_index : -1, base,
                             set->size[way], memory_region_name(mr),
                             set->target[way].sizes[0],
                             set->target[way].sizes[1], set->serial);
    }
}

static const HotpathStat addr_hint_stats[] = {
    { "addr-hint-hits", STATS_TYPE_CUMULATIVE },
    { "addr-hint-checked", STATS_TYPE_CUMULATIVE },
    { "addr-hint-misses", STATS_TYPE_CUMULATIVE },
    { "addr-hint-refused", STATS_TYPE_CUMULATIVE },
    { "addr-hint-fills", STATS_TYPE_CUMULATIVE },
    { "addr-hint-evictions", STATS_TYPE_CUMULATIVE },
    { "addr-hint-renewals", STATS_TYPE_CUMULATIVE },
};

static bool addr_hint_read_stats(CPUState *cpu, uint64_t *values)
{
    AddrHintCounters c;

    if (!cpu->addr_hints || !addr_hint_table_is_full(cpu->addr_hints)) {
        return false;
    }
    addr_hint_table_counters(cpu->addr_hints, &c);
    values[0] = c.hits;
    values[1] = c.checked;
    values[2] = c.misses;
    values[3] = c.refused;
    values[4] = c.fills;
    values[5] = c.evictions;
    values[6] = c.renewals;
    return true;
}

static const HotpathStatsGroup addr_hint_stats_group = {
    .target = STATS_TARGET_VCPU,
    .stats = addr_hint_stats,
    .count = ARRAY_SIZE(addr_hint_stats),
    .read = addr_hint_read_stats,
};

void addr_hint_cpu_realize(CPUState *cpu)
{
    if (!dispatch_hints && !windows_exist) {
        return;
    }
    cpu->addr_hints = addr_hint_table_new();
    cpu->addr_hints->only_windows = !dispatch_hints;
    if (dispatch_hints) {
        if (!kvm_enabled() && !tcg_enabled() && !qtest_enabled()) {
            warn_report_once("dispatch-hints=on has no effect with this "
                             "accelerator: only KVM and TCG use it");
        }
        hotpath_stats_register(&addr_hint_stats_group);
    }
}

void addr_hint_tables_for_windows(void)
{
    CPUState *cpu;

    windows_exist = true;
    CPU_FOREACH(cpu) {
        if (!cpu->addr_hints) {
            AddrHintTable *table = addr_hint_table_new();

            table->only_windows = true;
            /* its thread may be reading; see addr_hint_rw() */
            qatomic_store_release(&cpu->addr_hints, table);
        }
    }
}

void addr_hint_cpu_unrealize(CPUState *cpu)
{
    addr_hint_table_free(g_steal_pointer(&cpu->addr_hints));
}

static bool machine_get_dispatch_hints(Object *obj, Error **errp)
{
    return dispatch_hints;
}

static void machine_set_dispatch_hints(Object *obj, bool value, Error **errp)
{
    if (phase_check(PHASE_MACHINE_INITIALIZED)) {
        error_setg(errp, "dispatch-hints cannot be changed to '%s' any more: "
                   "the machine's vCPUs exist", value ? "on" : "off");
        return;
    }
    dispatch_hints = value;
}

void addr_hint_machine_class_init(ObjectClass *oc)
{
    object_class_property_add_bool(oc, "dispatch-hints",
                                   machine_get_dispatch_hints,
                                   machine_set_dispatch_hints);
    object_class_property_set_description(oc, "dispatch-hints",
        "Keep a table per vCPU of which device answers which addresses "
        "(on/off, default: off)");
}
