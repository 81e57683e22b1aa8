/*
 * Helpers of the tests of write tracking: a VM with a device that writes its
 * memory, migrated by way of a file
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VFIO_TRACKING_UTIL_H
#define TESTS_QTEST_VFIO_TRACKING_UTIL_H

#include "libqtest.h"
#include "libqos/pci.h"
#include "vfio-testdev.h"

#define VM_RAM_MIB      64
/* Where devices write: behind what firmware, BARs and ACPI use. */
#define VM_DMA_START    (1 * 1024 * 1024)
#define VM_DMA_END      (VM_RAM_MIB * 1024 * 1024)
#define VM_PAGE         4096

typedef struct TrackedVM {
    QTestState *qts;
    QPCIBus *bus;
    QPCIDevice *dev;            /* with the registers of vfio-testdev.h */
    QPCIBar bar;
} TrackedVM;

/* Seed from HOTPATH_SEED or the clock, printed. */
void tracked_init_random(void);
uint32_t tracked_random(uint32_t limit);

/*
 * Start a q35 with its RAM in a shared memory file.  @devfn finds the DMA
 * engine, 0 is for a VM without one.
 */
void tracked_vm_start(TrackedVM *vm, int devfn, const char *args);
/* The same with memory that no server can map. */
void tracked_vm_start_private(TrackedVM *vm, int devfn, const char *args);
void tracked_vm_stop(TrackedVM *vm);

/* Run a command of the DMA engine; returns its status. */
int tracked_vm_command(TrackedVM *vm, uint32_t cmd, uint64_t addr,
                       uint32_t len, uint32_t fill);
/* Let the engine write random bytes at random places. */
void tracked_vm_scribble(TrackedVM *vm, uint32_t cmd, unsigned writes);
/* Give RAM contents, so that there is something to migrate. */
void tracked_vm_fill(TrackedVM *vm);

/* Switch a capability on; where the host lacks it, skip the test and say so. */
bool tracked_vm_capability_or_skip(TrackedVM *vm, const char *capability);
/* Begin to migrate to @path, slowly, with a stop before the switchover. */
void tracked_vm_migrate(TrackedVM *vm, const char *path);
void tracked_vm_migrate_to(TrackedVM *vm, const char *uri);
/* Wait for a status; "failed" and "completed" end the wait with an error. */
void tracked_vm_wait(TrackedVM *vm, const char *status);
/* Is no migration under way, cleaning up included? */
bool tracked_vm_is_idle(TrackedVM *vm);
void tracked_vm_wait_idle(TrackedVM *vm);
/* Wait until each page was sent once. */
void tracked_vm_wait_first_pass(TrackedVM *vm);
/* Let it converge, and wait for the stop before the switchover. */
void tracked_vm_wait_switchover(TrackedVM *vm);
/* Go on after the stop before the switchover, and wait for the end. */
void tracked_vm_finish(TrackedVM *vm);
/* The error of a migration that failed; must be freed with g_free(). */
char *tracked_vm_wait_failed(TrackedVM *vm);

/*
 * The same for one that may be at any stage, or waits before the switchover:
 * whatever it still needs is given.
 */
char *tracked_vm_push_to_failure(TrackedVM *vm);
/* The same, but it may as well complete, NULL then, or be cancelled. */
char *tracked_vm_push(TrackedVM *vm, bool *completed);
/* One step of it, after tracked_vm_hurry(); true when it has ended. */
bool tracked_vm_push_once(TrackedVM *vm, bool *completed, char **why);
/* Let it converge as soon as it can. */
void tracked_vm_hurry(TrackedVM *vm);

/* HOTPATH_LONG=1 */
bool tracked_is_long(void);
/* Rounds of a fault loop: @few, or HOTPATH_ROUNDS (300) if it is long. */
unsigned tracked_fault_rounds(unsigned few);

/*
 * Give the VM a disk that snapshots can be saved to, in @dir; to be called
 * once.  tracked_vm_stop() does not remove its file.
 */
void tracked_vm_add_snapshot_disk(TrackedVM *vm, const char *dir);
/*
 * Save or load ("snapshot-save", "snapshot-load") a snapshot; returns the
 * error, to be freed with g_free(), or NULL.
 */
char *tracked_vm_snapshot(TrackedVM *vm, const char *command, const char *tag);
/* Save the DMA area to @dir, to be compared with later. */
char *tracked_vm_ram(TrackedVM *vm, const char *dir);

/* How many pages of the DMA area differ between the two VMs? */
unsigned tracked_vm_differences(TrackedVM *a, TrackedVM *b, const char *dir);

#endif
