/*
 * Write tracking of assigned PCI devices by a walker
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VFIO_WRITE_TRACK_PCI_H
#define HW_VFIO_WRITE_TRACK_PCI_H

#include "hw/vfio/pci.h"
#include "write-track.h"

/** write_track_pci_class_init: add the property "write-tracking" */
void write_track_pci_class_init(ObjectClass *klass);

/**
 * write_track_pci_realize: act on the property "write-tracking"
 * @vdev: its BARs are registered
 * @errp: set when the property asks for what is not possible
 *
 * Returns: false on error
 */
bool write_track_pci_realize(VFIOPCIDevice *vdev, Error **errp);

/**
 * write_track_pci_exit: the device goes
 *
 * Harmless when there is no tracker.  To be called before the BARs go.
 */
void write_track_pci_exit(VFIOPCIDevice *vdev);

/**
 * write_track_pci_command: the guest has written the command register
 * @vdev: the device; harmless when it has no walker
 */
void write_track_pci_command(VFIOPCIDevice *vdev);

/**
 * struct WriteTrackQuiesce: bus mastering of a device whose VM has stopped for
 * the last look at dirty pages
 *
 * Private, but for the owner to embed, with zeros in it, and for @settle.
 * Protected by the BQL.
 */
typedef struct WriteTrackQuiesce {
    VFIOPCIDevice *vdev;
    WriteTracker *tracker;
    VMChangeStateEntry *handler;
    NotifierWithReturn precopy, migration;
    /* Do what the quiet device has left to be done; may be NULL */
    void (*settle)(VFIOPCIDevice *vdev);
    bool always;                /* whether or not it is tracked now */
    bool cleared;               /* by us, not by the guest */
    bool drained;               /* nothing was under way after that */
    bool failed;                /* to be that; it is not waited for again */
} WriteTrackQuiesce;

/**
 * write_track_quiesce_init: have bus mastering cleared while the VM is stopped
 * to finish a migration or to be saved, and given back when the VM runs again
 * @q: embedded in the owner's state
 * @vdev: the device; nothing is done if its state is migrated, as VFIO stops it
 * @tracker: its tracker.  A walker's device is concerned only while it is
 *           tracked.
 *
 * Where bus mastering cannot be cleared, or transactions do not end, the
 * migration or snapshot fails.
 */
void write_track_quiesce_init(WriteTrackQuiesce *q, VFIOPCIDevice *vdev,
                              WriteTracker *tracker);

/** write_track_quiesce_exit: the device goes; harmless without an init */
void write_track_quiesce_exit(WriteTrackQuiesce *q);

#endif
