/*
 * addr-hint-pci: registers, as the guest sees them
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Only macros: a guest's driver includes this file as well.  The device is
 * described in docs/specs/addr-hint.rst.
 */

#ifndef HW_MISC_ADDR_HINT_REGS_H
#define HW_MISC_ADDR_HINT_REGS_H

#define ADDR_HINT_PCI_VENDOR        0x1234
#define ADDR_HINT_PCI_DEVICE        0x4148

#define ADDR_HINT_BAR_REGISTERS     0
#define ADDR_HINT_BAR_DOORBELLS     1
#define ADDR_HINT_BAR_WINDOW        2

/* Registers, 32 bits each, little endian */
#define ADDR_HINT_REG_MAGIC         0x00    /* RO */
#define ADDR_HINT_REG_VERSION       0x04    /* RO */
#define ADDR_HINT_REG_HINTS         0x08    /* RO: size of the table */
#define ADDR_HINT_REG_DOORBELLS     0x0c    /* RO: size of the pool */
#define ADDR_HINT_REG_ADDR_LO       0x10
#define ADDR_HINT_REG_ADDR_HI       0x14
#define ADDR_HINT_REG_LENGTH        0x18
#define ADDR_HINT_REG_FLAGS         0x1c
#define ADDR_HINT_REG_DATA_LO       0x20
#define ADDR_HINT_REG_DATA_HI       0x24
#define ADDR_HINT_REG_HINT          0x28
#define ADDR_HINT_REG_COMMAND       0x2c    /* WO */
#define ADDR_HINT_REG_STATUS        0x30    /* RO */
#define ADDR_HINT_REG_DOORBELL      0x34    /* RO */
#define ADDR_HINT_REG_END           0x38

#define ADDR_HINT_MAGIC             0x544e4948      /* "HINT" */
#define ADDR_HINT_VERSION           1

/* ADDR_HINT_REG_COMMAND */
#define ADDR_HINT_CMD_REGISTER      1
#define ADDR_HINT_CMD_RELEASE       2
#define ADDR_HINT_CMD_QUERY         3
#define ADDR_HINT_CMD_RELEASE_ALL   4

/* ADDR_HINT_REG_FLAGS */
#define ADDR_HINT_FLAG_POSTED       (1u << 0)

/* ADDR_HINT_REG_STATUS */
#define ADDR_HINT_OK                0
#define ADDR_HINT_BAD_COMMAND       1   /* no such command */
#define ADDR_HINT_BAD_REQUEST       2   /* length, page, flags or data */
#define ADDR_HINT_NO_DEVICE         3   /* nothing is at the address */
#define ADDR_HINT_MEMORY            4   /* RAM or ROM is there */
#define ADDR_HINT_IOMMU             5   /* it is translated by an IOMMU */
#define ADDR_HINT_SPANS             6   /* the range is not one region's */
#define ADDR_HINT_IS_HINT           7   /* an address hint device's own */
#define ADDR_HINT_FULL              8   /* all hints are in use */
#define ADDR_HINT_NO_DOORBELL       9   /* all doorbells are in use */
#define ADDR_HINT_BAD_HINT          10  /* no such hint is in use */
#define ADDR_HINT_STALE             11  /* its device is not there now */
#define ADDR_HINT_STATUS_END        12

#define ADDR_HINT_DOORBELL_NONE     0xffffffffu
#define ADDR_HINT_DOORBELL_STEP     4

#define ADDR_HINT_PAGE_BITS         12
#define ADDR_HINT_PAGE_SIZE         (1u << ADDR_HINT_PAGE_BITS)

#endif
