/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The devices of the payloads that ask addr-hint-pci for hints */
#ifndef HINT_H
#define HINT_H

#include "bare.h"
#include "addr-hint-driver.h"

/* slot 4: pci-testdev, 5: edu, 6: addr-hint-pci, 7: virtio-rng-pci, 8: e1000 */
#define TESTDEV 0xe0000000u
#define EDU 0xe1000000u
#define REGS 0xe2000000u
#define BELLS 0xe2001000u
#define WINDOW 0xe3000000u
#define RNG 0xe4000000u         /* BAR 4 */
#define NIC 0xe5000000u
#define HPET 0xfed00000u

#define EDU_ID 0x010000edu
#define EDU_LIVENESS 4          /* reads as the complement of what is written */

#define NIC_VET 0x38            /* reads as it was written; coalesced */

#define COMMAND 0x04
#define MEMORY 2
#define MASTER 4

static inline uint32_t hint_read(void *opaque, unsigned int offset)
{
    return read32(REGS + offset);
}

static inline void hint_write(void *opaque, unsigned int offset,
                              uint32_t value)
{
    write32(REGS + offset, value);
}

/* Map all devices and open the one that gives hints. */
static inline int map_devices(struct ahint_device *dev)
{
    config_write(4, 0x10, TESTDEV);
    config_write(4, COMMAND, MEMORY);
    config_write(5, 0x10, EDU);
    config_write(5, COMMAND, MEMORY);
    config_write(6, 0x10, REGS);
    config_write(6, 0x14, BELLS);
    config_write(6, 0x18, WINDOW);
    config_write(6, COMMAND, MEMORY);
    config_write(7, 0x20, RNG);
    config_write(7, 0x24, 0);
    config_write(7, COMMAND, MEMORY | MASTER);
    config_write(8, 0x10, NIC);
    config_write(8, COMMAND, MEMORY);
    dev->read = hint_read;
    dev->write = hint_write;
    dev->opaque = 0;
    return ahint_open(dev);
}

/*
 * pci-testdev, BAR 0: the write to the register selects a test; test 1 has an
 * ioeventfd for every write to its byte, test 0 has none and counts writes of
 * its own data.
 */
#define TEST_PLAIN 0
#define TEST_EVENTFD 1

static inline uintptr_t testdev_select(uint8_t test)
{
    write8(TESTDEV, test);
    return TESTDEV + read32(TESTDEV + 4);
}

#endif
