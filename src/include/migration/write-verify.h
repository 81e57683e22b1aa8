/*
 * Proof mode of write tracking: did each write of a device arrive?
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_WRITE_VERIFY_H
#define MIGRATION_WRITE_VERIFY_H

/**
 * write_verify_set: a device has write-tracking-verify=on, or it goes
 * @counted: of the device; false at first
 * @on: count the device; no change is harmless
 *
 * While there is such a device, a migration (or snapshot) carries a hash of
 * each page of RAM, taken when RAM was sent, and loading it fails where memory
 * differs.  On the way, each look at the dirty pages also looks for pages that
 * changed without being dirty, and warns of them.
 *
 * RAM that is not migrated, and RAM of which parts may be discarded
 * (virtio-mem), is not looked at.
 *
 * Context: BQL held.
 */
void write_verify_set(bool *counted, bool on);

/**
 * write_verify_look: the dirty bits were fetched, and no page was sent since
 * @last: the VM is stopped for the end of the migration or snapshot
 *
 * Does nothing unless a device is counted.
 *
 * Context: BQL held; released for a time if the VM runs.
 */
void write_verify_look(bool last);

#endif
