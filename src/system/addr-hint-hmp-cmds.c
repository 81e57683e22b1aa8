/*
 * HMP: info addr-hints
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "system/addr-hint.h"

static void print_table(Monitor *mon, CPUState *cpu)
{
    unsigned long served;
    AddrHintCounters c;

    addr_hint_table_counters(cpu->addr_hints, &c);
    served = c.hits + c.checked;
    monitor_printf(mon, "CPU #%d: hits %lu (%.1f %%), checked %lu, "
                   "misses %lu, refused %lu, fills %lu, evictions %lu, "
                   "renewals %lu\n", cpu->cpu_index, c.hits,
                   served ? 100.0 * c.hits / served : 0.0, c.checked,
                   c.misses, c.refused, c.fills, c.evictions, c.renewals);
}

void hmp_info_addr_hints(Monitor *mon, const QDict *qdict)
{
    bool any = false;
    CPUState *cpu;

    CPU_FOREACH(cpu) {
        if (cpu->addr_hints) {
            print_table(mon, cpu);
            any = true;
        }
    }
    if (!any) {
        monitor_printf(mon, "No vCPU has address hints "
                       "(-machine dispatch-hints=on switches them on)\n");
    }
}
