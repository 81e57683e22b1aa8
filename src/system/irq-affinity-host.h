/*
 * Interrupt affinity that follows the vCPU: the host's interrupts and CPUs
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Read from /proc/irq, /sys/kernel/irq, /sys/bus/pci/devices and
 * /sys/devices/system/cpu, perhaps below another root, for tests.
 *
 * The number of an interrupt says little: it is freed when the guest disables
 * the device's interrupts, and the next one to ask gets it.  An IRQHostIRQ
 * stands for one incarnation.  It is a file that was opened before the name
 * of the interrupt was checked, so what is read from it and written to it is
 * that interrupt; once it is freed, the file answers EIO.
 *
 * Context: BQL held.
 */

#ifndef SYSTEM_IRQ_AFFINITY_HOST_H
#define SYSTEM_IRQ_AFFINITY_HOST_H

#include "qapi/qapi-types-irq-affinity-props.h"
#include "system/irq-affinity-policy.h"

typedef struct IRQHost IRQHost;
typedef struct IRQHostIRQ IRQHostIRQ;

/**
 * irq_host_new: look at the host
 * @root: directory that stands for the root, NULL: the real one
 * @locality: what irq_host_near() takes for near
 * @errp: set if its processors cannot be told
 *
 * Returns: to be freed with irq_host_free(); NULL: see @errp.
 */
IRQHost *irq_host_new(const char *root, IrqAffinityLocality locality,
                      Error **errp);

/**
 * irq_host_free: end it; all its interrupts were closed; or NULL
 */
void irq_host_free(IRQHost *host);

/**
 * irq_host_cpus: one more than the highest number of a possible processor
 */
unsigned irq_host_cpus(const IRQHost *host);

/**
 * irq_host_near: whether two processors are as near as the locality asks
 */
bool irq_host_near(const IRQHost *host, int a, int b);

/**
 * irq_host_numbers: interrupts that a device may have
 * @host: the host
 * @device: its address there
 * @unknown: set to whether they cannot be told, for want of descriptors or
 *           memory
 * @errp: set if they cannot be told, for that reason or another one
 *
 * Returns: (transfer full): array of int; NULL: see @errp.
 */
GArray *irq_host_numbers(const IRQHost *host, const char *device,
                         bool *unknown, Error **errp);

/**
 * irq_host_open: take hold of an interrupt
 * @host: the host
 * @device: address of the device
 * @irq: its number
 * @vector: set to the number of the vector
 * @unknown: set to whether it cannot be told, for want of descriptors or
 *           memory
 * @errp: set if it cannot be told, for that reason or another one
 *
 * Returns: to be closed with irq_host_close(); NULL if it is not one of the
 * device, or any more, or see @errp.
 */
IRQHostIRQ *irq_host_open(const IRQHost *host, const char *device, int irq,
                          unsigned *vector, bool *unknown, Error **errp);

/**
 * irq_host_close: let it go, as it is; or NULL
 */
void irq_host_close(IRQHostIRQ *irq);

/**
 * irq_host_number: its number
 */
int irq_host_number(const IRQHostIRQ *irq);

/**
 * irq_host_alive: whether it still exists
 */
bool irq_host_alive(const IRQHostIRQ *irq);

/**
 * irq_host_counts: how often each processor took it
 * @irq: the interrupt
 * @counts: irq_host_cpus() numbers, modulo 2^32; those that the host does not
 *          tell stay as they are
 *
 * Returns: false if they cannot be read.
 */
bool irq_host_counts(const IRQHostIRQ *irq, uint32_t *counts);

/**
 * irq_host_mask: who set its affinity
 */
IRQMask irq_host_mask(const IRQHostIRQ *irq);

/**
 * irq_host_move: send it to a processor
 *
 * Returns: 0 or a negative errno.
 */
int irq_host_move(IRQHostIRQ *irq, int cpu);

/**
 * irq_host_moved: somebody sent it to @cpu on our behalf
 */
void irq_host_moved(IRQHostIRQ *irq, int cpu);

/**
 * irq_host_maybe_moved: somebody was to send it to @cpu, and may have
 *
 * Either is then taken for what it was left with; so are several such.
 */
void irq_host_maybe_moved(IRQHostIRQ *irq, int cpu);

/**
 * irq_host_returned: somebody gave it back what it had
 *
 * What it has now is taken for its own affinity.
 */
void irq_host_returned(IRQHostIRQ *irq);

/**
 * irq_host_maybe_returned: somebody was to give it back what it had, and may
 * have
 */
void irq_host_maybe_returned(IRQHostIRQ *irq);

/**
 * irq_host_adopt: somebody gave it @list, before or after what was done to it
 * here since
 *
 * That is its own affinity then, whatever it had when it was opened.
 *
 * Returns: whether it was moved and is not any more.
 */
bool irq_host_adopt(IRQHostIRQ *irq, const char *list);

/**
 * irq_host_was_moved: whether it was moved, and not restored
 */
bool irq_host_was_moved(const IRQHostIRQ *irq);

/**
 * irq_host_original: its own affinity, a list of processors
 */
const char *irq_host_original(const IRQHostIRQ *irq);

/**
 * irq_host_restore: give it back the affinity it had, if it was moved
 *
 * Returns: 0 or a negative errno; 0 as well if it was not moved or if
 * somebody else has changed it since.
 */
int irq_host_restore(IRQHostIRQ *irq);

#endif
