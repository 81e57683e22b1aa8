/*
 * Second stacks of a virtual machine: properties and statistics
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_ASYNC_CALL_VM_H
#define SYSTEM_ASYNC_CALL_VM_H

#include "qemu/async-call.h"
#include "qom/object.h"

/**
 * async_call_machine_class_init: give machines the property
 * ``query-block-deadline-ms``
 * @oc: the class
 */
void async_call_machine_class_init(ObjectClass *oc);

/**
 * async_call_show_site: have a call site's counters in query-stats
 * @site: static data; naming it twice is harmless
 *
 * The first use also lets parked calls be given up when the VM shuts down.
 *
 * Context: BQL held.
 */
void async_call_show_site(AsyncCallSite *site);

/**
 * typedef AsyncCallInfo: prints one line for HMP info async-calls
 * @mon: the monitor
 */
typedef void AsyncCallInfo(Monitor *mon);

/**
 * async_call_show_info: have a mechanism's line in HMP info async-calls
 * @info: prints it; naming it twice is harmless
 *
 * Context: BQL held.
 */
void async_call_show_info(AsyncCallInfo *info);

#endif
