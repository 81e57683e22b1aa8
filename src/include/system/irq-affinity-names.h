/*
 * Interrupt affinity that follows the vCPU: texts of the host's files
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_IRQ_AFFINITY_NAMES_H
#define SYSTEM_IRQ_AFFINITY_NAMES_H

/* More than any kernel has (CONFIG_NR_CPUS) */
#define IRQ_CPUS_MAX 8192

/* The files of /proc and /sys that are read have at most a page */
#define IRQ_TEXT_MAX 65536

/**
 * irq_text_read_whole: read a small file from its beginning, as it is
 * @fd: the file
 *
 * Returns: (transfer full): its text; NULL: errno is set.
 */
char *irq_text_read_whole(int fd);

/**
 * irq_text_read_fd: read a small file from its beginning
 * @fd: the file
 *
 * Returns: (transfer full): its text without blanks at the ends; NULL: errno
 * is set.
 */
char *irq_text_read_fd(int fd);

/**
 * irq_text_read: read a small file
 * @path: of the file
 *
 * Returns: as irq_text_read_fd().
 */
char *irq_text_read(const char *path);

/**
 * irq_text_cpus: take a list of processors apart
 * @text: as "0-3,8"
 *
 * Returns: (transfer full): array of int; NULL if it is no list.
 */
GArray *irq_text_cpus(const char *text);

/**
 * irq_text_set: take a list of processors apart
 * @text: as "0-3,8"
 *
 * Returns: (transfer full): a bitmap of IRQ_CPUS_MAX; NULL if it is no list.
 */
unsigned long *irq_text_set(const char *text);

/**
 * irq_text_action: take the name of a VFIO interrupt apart
 * @actions: content of /sys/kernel/irq/N/actions
 * @device: the host's PCI address of the device
 * @vector: set to the number of the MSI or MSI-X vector
 *
 * Returns: whether it is one of @device.
 */
bool irq_text_action(const char *actions, const char *device,
                     unsigned *vector);

/**
 * irq_text_write: replace what a file of /proc holds
 * @fd: the file
 * @text: the new content
 *
 * Returns: 0 or a negative errno.
 */
int irq_text_write(int fd, const char *text);

#endif
