/*
 * HMP: info irq-affinity
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-irq-affinity.h"

static void print_refusals(Monitor *mon, IrqAffinityRefusalCountList *list)
{
    for (; list; list = list->next) {
        monitor_printf(mon, ", refused (%s) %" PRIu64,
                       IrqAffinityRefusal_str(list->value->reason),
                       list->value->count);
    }
    monitor_printf(mon, "\n");
}

static void print_vcpu(Monitor *mon, const IrqAffinityVcpu *vcpu)
{
    monitor_printf(mon, "  vCPU %" PRId64 ": thread %" PRId64 ", ",
                   vcpu->cpu_index, vcpu->thread_id);
    if (vcpu->has_host_cpu) {
        monitor_printf(mon, "on host CPU %" PRId64 ", ", vcpu->host_cpu);
    }
    monitor_printf(mon, "noticed by %s, notices %" PRIu64 "\n",
                   IrqAffinitySource_str(vcpu->source), vcpu->notices);
}

static void print_vector(Monitor *mon, const IrqAffinityVector *v)
{
    monitor_printf(mon, "  %s vector %u", v->device, v->vector);
    if (v->has_irq) {
        monitor_printf(mon, " IRQ %u", v->irq);
    }
    monitor_printf(mon, ": %s", IrqAffinityState_str(v->state));
    if (v->has_vcpu) {
        monitor_printf(mon, ", vCPU %" PRId64, v->vcpu);
    }
    if (v->has_sent_to) {
        monitor_printf(mon, ", sent to host CPU %" PRId64, v->sent_to);
    } else if (v->has_taken_on) {
        monitor_printf(mon, ", taken on host CPU %" PRId64, v->taken_on);
    }
    monitor_printf(mon, ", moves %" PRIu64 ", forwards %" PRIu64, v->moves,
                   v->forwards);
    print_refusals(mon, v->refusals);
}

static void print_object(Monitor *mon, const IrqAffinityInfo *info)
{
    monitor_printf(mon, "%s: policy %s, moves %" PRIu64 ", held %" PRIu64
                   ", over budget %" PRIu64 ", foreign %" PRIu64
                   ", resets %" PRIu64 ", wake-ups %" PRIu64, info->id,
                   IrqAffinityPolicy_str(info->policy), info->moves,
                   info->held, info->over_budget, info->foreign, info->resets,
                   info->wake_ups);
    if (info->has_helper) {
        monitor_printf(mon, ", helper %s",
                       info->helper ? "connected" : "not connected");
    }
    print_refusals(mon, info->refusals);
    for (IrqAffinityVcpuList *i = info->vcpus; i; i = i->next) {
        print_vcpu(mon, i->value);
    }
    for (IrqAffinityVectorList *i = info->vectors; i; i = i->next) {
        print_vector(mon, i->value);
    }
}

void hmp_info_irq_affinity(Monitor *mon, const QDict *qdict)
{
    g_autoptr(IrqAffinityInfoList) list = qmp_query_irq_affinity(&error_abort);

    if (!list) {
        monitor_printf(mon, "There is no irq-affinity object\n");
    }
    for (IrqAffinityInfoList *i = list; i; i = i->next) {
        print_object(mon, i->value);
    }
}
