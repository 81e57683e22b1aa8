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
 * struct WriteTrackQuiesce: bus mastering of a device whose VM has stopped for
 * the last look at dirty pages
 */
typedef struct WriteTrackQuiesce {
    VFIOPCIDevice *vdev;
    WriteTracker *tracker;
    VMChangeStateEntry *handler;
    bool cleared;
} WriteTrackQuiesce;

/**
 * write_track_quiesce_init: have bus mastering cleared while the VM is stopped
 * to finish a migration in which @tracker is active, and given back when the VM
 * runs again
 */
void write_track_quiesce_init(WriteTrackQuiesce *q, VFIOPCIDevice *vdev,
                              WriteTracker *tracker);
void write_track_quiesce_exit(WriteTrackQuiesce *q);

#endif
