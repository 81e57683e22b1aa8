/*
 * Registers of the DMA engines with which the tests play assigned devices
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The same registers are in BAR 0 of the fake VFIO device (vfio-fake.c) and of
 * the vfio-user server (vfio-user-testdev.c).  All are 32 bits wide.
 */

#ifndef TESTS_QTEST_VFIO_TESTDEV_H
#define TESTS_QTEST_VFIO_TESTDEV_H

#define TESTDEV_VENDOR      0x1234
#define TESTDEV_DEVICE      0x0d3a

#define TESTDEV_ADDR_LO     0x00    /* first byte to write */
#define TESTDEV_ADDR_HI     0x04
#define TESTDEV_LEN         0x08    /* number of bytes */
#define TESTDEV_FILL        0x0c    /* the byte; vector for TESTDEV_CMD_IRQ */
#define TESTDEV_CMD         0x10    /* write: do it now */
#define TESTDEV_STATUS      0x14    /* 0, or the negative errno */
#define TESTDEV_COUNT       0x18    /* commands so far */

enum {
    TESTDEV_CMD_DMA = 1,        /* write as hardware does */
    TESTDEV_CMD_MESSAGE = 2,    /* vfio-user: write by VFIO_USER_DMA_WRITE */
    TESTDEV_CMD_READ = 3,       /* vfio-user: sum by VFIO_USER_DMA_READ */
    TESTDEV_CMD_IRQ = 4,        /* trigger an MSI-X vector */
    TESTDEV_CMD_RECEIVE = 5,    /* igb*: receive TESTDEV_LEN packets */
};

/* igb*: receive queue 0, as an 82576 virtual function has it */
#define TESTDEV_RDBAL       0x2800
#define TESTDEV_RDBAH       0x2804
#define TESTDEV_RDLEN       0x2808
#define TESTDEV_SRRCTL      0x280c
#define TESTDEV_RDH         0x2810
#define TESTDEV_RDT         0x2818
#define TESTDEV_PACKET      2048    /* bytes of each packet */
/* in configuration space: receive so many packets */
#define TESTDEV_CFG_RECEIVE 0xf0

/* BAR 2, where there is one */
#define TESTDEV_IOADDR      0x00
#define TESTDEV_IODATA      0x04

#define TESTDEV_VECTORS     4

#endif
