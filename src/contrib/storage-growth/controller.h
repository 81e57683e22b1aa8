/*
 * Storage growth: the controller
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef STORAGE_GROWTH_CONTROLLER_H
#define STORAGE_GROWTH_CONTROLLER_H

#include <gio/gio.h>
#include "journal.h"
#include "policy.h"

typedef struct SgController SgController;

/**
 * sg_controller_new: make a controller, and finish what had begun
 * @policies, @limits: what sg_policies_load() returned; the first is taken over
 * @journal: what sg_journal_open() returned; taken over
 */
SgController *sg_controller_new(GPtrArray *policies, const SgLimits *limits,
                                SgJournal *journal);

/**
 * sg_controller_serve: serve an agent or a qemu-storage-ctl
 * @stream: the reference is taken over
 *
 * If there are too many, the one that has been silent for the longest time
 * since it came has to go, or this one if all have said something.
 */
void sg_controller_serve(SgController *c, GIOStream *stream);

/* How many it may serve at a time */
unsigned sg_controller_connections(SgController *c);

#endif
