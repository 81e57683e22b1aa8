/*
 * addr-hint-pci: reference driver for guests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Freestanding C: it needs the register file and nothing else, calls no library
 * and allocates nothing.  The user finds the PCI function, maps its BARs and
 * says how registers are reached; tests/qtest/addr-hint-pci-test.c does.
 *
 * A device takes one command at a time: a guest with several processors must
 * hold a lock around each call.  The use of a hint needs none.
 */

#ifndef ADDR_HINT_DRIVER_H
#define ADDR_HINT_DRIVER_H

#include <stdint.h>
#ifndef HW_MISC_ADDR_HINT_REGS_H
#include "addr-hint-regs.h"
#endif

/**
 * struct ahint_device: an addr-hint-pci function
 * @read: read a 32-bit register of BAR 0, in the byte order of the processor
 * @write: write one
 * @opaque: handed to both
 * @hints: size of the table
 * @doorbells: size of the pool
 *
 * The user fills in the first three, ahint_open() the rest.
 */
struct ahint_device {
    uint32_t (*read)(void *opaque, unsigned int offset);
    void (*write)(void *opaque, unsigned int offset, uint32_t value);
    void *opaque;
    uint32_t hints;
    uint32_t doorbells;
};

/**
 * struct ahint: a hint
 * @index: its number, for ahint_put() and ahint_check()
 * @window: offset in BAR 2 that stands for the first byte of the range
 * @doorbell: offset in BAR 1 of its doorbell; meaningless without one
 */
struct ahint {
    uint32_t index;
    uint32_t window;
    uint32_t doorbell;
};

/**
 * ahint_open: find out what the device has
 * @dev: the device
 *
 * Returns: 0, or -1 if it is none that this driver knows.
 */
static inline int ahint_open(struct ahint_device *dev)
{
    if (dev->read(dev->opaque, ADDR_HINT_REG_MAGIC) != ADDR_HINT_MAGIC ||
        dev->read(dev->opaque, ADDR_HINT_REG_VERSION) != ADDR_HINT_VERSION) {
        return -1;
    }
    dev->hints = dev->read(dev->opaque, ADDR_HINT_REG_HINTS);
    dev->doorbells = dev->read(dev->opaque, ADDR_HINT_REG_DOORBELLS);
    return 0;
}

static inline uint32_t ahint_command(struct ahint_device *dev,
                                     uint32_t command)
{
    dev->write(dev->opaque, ADDR_HINT_REG_COMMAND, command);
    return dev->read(dev->opaque, ADDR_HINT_REG_STATUS);
}

static inline uint32_t ahint_request(struct ahint_device *dev, uint64_t addr,
                                     uint32_t length, uint32_t flags,
                                     uint64_t data, struct ahint *hint)
{
    uint32_t status;

    dev->write(dev->opaque, ADDR_HINT_REG_ADDR_LO, (uint32_t)addr);
    dev->write(dev->opaque, ADDR_HINT_REG_ADDR_HI, (uint32_t)(addr >> 32));
    dev->write(dev->opaque, ADDR_HINT_REG_LENGTH, length);
    dev->write(dev->opaque, ADDR_HINT_REG_FLAGS, flags);
    dev->write(dev->opaque, ADDR_HINT_REG_DATA_LO, (uint32_t)data);
    dev->write(dev->opaque, ADDR_HINT_REG_DATA_HI, (uint32_t)(data >> 32));
    status = ahint_command(dev, ADDR_HINT_CMD_REGISTER);
    if (status == ADDR_HINT_OK) {
        hint->index = dev->read(dev->opaque, ADDR_HINT_REG_HINT);
        hint->window = (hint->index << ADDR_HINT_PAGE_BITS) |
                       ((uint32_t)addr & (ADDR_HINT_PAGE_SIZE - 1));
        hint->doorbell = dev->read(dev->opaque, ADDR_HINT_REG_DOORBELL) *
                         ADDR_HINT_DOORBELL_STEP;
    }
    return status;
}

/**
 * ahint_get: ask for a hint
 * @dev: the device
 * @addr: guest physical address of the first register
 * @length: bytes; the range must not cross a page
 * @hint: where the hint is stored
 *
 * Accesses in BAR 2 at @hint->window and up to @length after it then are
 * accesses at @addr.
 *
 * Returns: ADDR_HINT_OK, or why there is none.
 */
static inline uint32_t ahint_get(struct ahint_device *dev, uint64_t addr,
                                 uint32_t length, struct ahint *hint)
{
    return ahint_request(dev, addr, length, 0, 0, hint);
}

/**
 * ahint_get_posted: ask for a hint with a doorbell
 * @dev: the device
 * @addr: guest physical address of the register, aligned to @length
 * @length: 1, 2, 4 or 8 bytes
 * @data: what is written there
 * @hint: where the hint is stored
 *
 * A 32-bit write of any value to BAR 1 at @hint->doorbell then makes the write
 * of @data, some time later; several rings may make it once.
 *
 * Returns: ADDR_HINT_OK, or why there is none.
 */
static inline uint32_t ahint_get_posted(struct ahint_device *dev,
                                        uint64_t addr, uint32_t length,
                                        uint64_t data, struct ahint *hint)
{
    return ahint_request(dev, addr, length, ADDR_HINT_FLAG_POSTED, data, hint);
}

/**
 * ahint_put: give a hint back
 * @dev: the device
 * @index: its number
 *
 * Returns: ADDR_HINT_OK, or ADDR_HINT_BAD_HINT.
 */
static inline uint32_t ahint_put(struct ahint_device *dev, uint32_t index)
{
    dev->write(dev->opaque, ADDR_HINT_REG_HINT, index);
    return ahint_command(dev, ADDR_HINT_CMD_RELEASE);
}

/**
 * ahint_check: does the device that a hint stands for answer now?
 * @dev: the device
 * @index: its number
 *
 * Returns: ADDR_HINT_OK, ADDR_HINT_STALE or ADDR_HINT_BAD_HINT.
 */
static inline uint32_t ahint_check(struct ahint_device *dev, uint32_t index)
{
    dev->write(dev->opaque, ADDR_HINT_REG_HINT, index);
    return ahint_command(dev, ADDR_HINT_CMD_QUERY);
}

/**
 * ahint_put_all: give all hints back, also those of an earlier driver
 * @dev: the device
 */
static inline void ahint_put_all(struct ahint_device *dev)
{
    ahint_command(dev, ADDR_HINT_CMD_RELEASE_ALL);
}

#endif
