/*
 * vfio-user: the server says which memory it has written
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VFIO_USER_TRACKING_H
#define HW_VFIO_USER_TRACKING_H

#include "hw/vfio-user/proxy.h"
#include "hw/vfio/write-track.h"

typedef struct VFIOUserTracking VFIOUserTracking;

/**
 * vfio_user_tracking_new: track what a server writes
 * @vbasedev: connected, not yet attached
 * @errp: set when the server offers no tracking
 *
 * Asks for DMA logging (VFIO_USER_DEVICE_FEATURE) first, then for
 * VFIO_USER_DIRTY_PAGES, which the library that QEMU bundles has.
 *
 * Returns: to be freed with vfio_user_tracking_free(); NULL on error
 */
VFIOUserTracking *vfio_user_tracking_new(VFIODevice *vbasedev, Error **errp);
void vfio_user_tracking_free(VFIOUserTracking *vut);

/** vfio_user_tracking_tracker: the tracker of the server's writes */
WriteTracker *vfio_user_tracking_tracker(VFIOUserTracking *vut);

/**
 * vfio_user_tracking_map: a region was mapped
 * @vut: may be NULL
 * @iova: in the server's address space
 * @size: in bytes
 * @vaddr: where it is in QEMU
 * @direct: the server has a file descriptor for it and may write to it.  It
 *          accesses others by messages, and QEMU does the writes.
 */
void vfio_user_tracking_map(VFIOUserTracking *vut, hwaddr iova, uint64_t size,
                            void *vaddr, bool direct);

/**
 * vfio_user_tracking_unmap: a region is about to be unmapped
 * @vut: may be NULL
 * @iova: in the server's address space
 * @size: in bytes
 * @all: all regions, whatever @iova and @size say
 *
 * What was written into it is marked dirty.
 *
 * Returns: true if the region was unmapped with that, false if it still is to
 * be
 */
bool vfio_user_tracking_unmap(VFIOUserTracking *vut, hwaddr iova,
                              uint64_t size, bool all);

#endif
