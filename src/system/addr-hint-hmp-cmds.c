/*
 * HMP: info addr-hints
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-core.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "system/addr-hint.h"
#include "system/addr-hint-window.h"

#define MAX_HINTS_SHOWN 64

static void print_counters(Monitor *mon, const AddrHintCounters *c)
{
    monitor_printf(mon, "window hits %lu, refills %lu, stale %lu, "
                   "refused %lu\n", c->window_hits, c->window_refills,
                   c->window_stale, c->window_refused);
}

static void print_table(Monitor *mon, CPUState *cpu)
{
    AddrHintCounters c;

    addr_hint_table_counters(cpu->addr_hints, &c);
    if (addr_hint_table_is_full(cpu->addr_hints)) {
        unsigned long served = c.hits + c.checked;

        monitor_printf(mon, "CPU #%d: hits %lu (%.1f %%), checked %lu, "
                       "misses %lu, refused %lu, fills %lu, evictions %lu, "
                       "renewals %lu\n", cpu->cpu_index, c.hits,
                       served ? 100.0 * c.hits / served : 0.0, c.checked,
                       c.misses, c.refused, c.fills, c.evictions, c.renewals);
    }
    if (addr_hint_window_next(NULL)) {
        monitor_printf(mon, "CPU #%d: ", cpu->cpu_index);
        print_counters(mon, &c);
    }
}

static void print_hints(Monitor *mon, AddrHintWindow *w)
{
    unsigned shown = 0;

    for (unsigned i = 0; i < w->nr_hints && shown < MAX_HINTS_SHOWN; i++) {
        AddrHintInfo info;

        if (addr_hint_window_info(w, i, &info)) {
            monitor_printf(mon, "  hint %u: 0x%" HWADDR_PRIX " + %u: %s\n", i,
                           info.addr, info.length,
                           info.live ? info.region : "stale");
            shown++;
        }
    }
    if (shown < w->nr_used) {
        monitor_printf(mon, "  and %u more\n", w->nr_used - shown);
    }
}

static void print_window(Monitor *mon, AddrHintWindow *w)
{
    AddrHintCounters c;

    monitor_printf(mon, "%s '%s': %u of %u hints in use, given %" PRIu64
                   ", refused %" PRIu64 "; doorbell writes %" PRIu64
                   ", doorbells shared %" PRIu64 "\n",
                   object_get_typename(OBJECT(w->owner)),
                   w->owner->id ?: "", w->nr_used, w->nr_hints,
                   w->stats.registrations, w->stats.refusals,
                   w->stats.doorbell_writes, w->stats.doorbells_shared);
    addr_hint_window_others(w, &c);
    monitor_printf(mon, "  other than vCPUs: ");
    print_counters(mon, &c);
    print_hints(mon, w);
}

void hmp_info_addr_hints(Monitor *mon, const QDict *qdict)
{
    bool any = false;
    AddrHintWindow *w;
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        if (cpu->addr_hints) {
            print_table(mon, cpu);
            any |= addr_hint_table_is_full(cpu->addr_hints);
        }
    }
    if (!any) {
        monitor_printf(mon, "No vCPU has address hints "
                       "(-machine dispatch-hints=on switches them on)\n");
    }
    for (w = addr_hint_window_next(NULL); w; w = addr_hint_window_next(w)) {
        print_window(mon, w);
    }
}
