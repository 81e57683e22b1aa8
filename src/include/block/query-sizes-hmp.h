/*
 * HMP commands that report allocated sizes
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QUERY_SIZES_HMP_H
#define BLOCK_QUERY_SIZES_HMP_H

#include "monitor/monitor.h"

/**
 * block_sizes_hmp_defer: run an HMP command when the sizes are ready
 * @mon: the monitor, which takes no input until then
 * @qdict: the command's arguments
 * @cmd: the command, which will be called again
 *
 * Returns: false if the command is to go on now.
 */
bool block_sizes_hmp_defer(Monitor *mon, const QDict *qdict,
                           void (*cmd)(Monitor *mon, const QDict *qdict));

#endif
