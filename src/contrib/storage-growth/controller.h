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

typedef struct SgController SgController;

/**
 * sg_controller_new: make a controller, and finish what had begun
 * @policies: what sg_policies_load() returned; taken over
 * @journal: what sg_journal_open() returned; taken over
 */
SgController *sg_controller_new(GPtrArray *policies, SgJournal *journal);

/* Serve an agent or a qemu-storage-ctl; takes over the reference */
void sg_controller_serve(SgController *c, GIOStream *stream);

#endif
