/*
 * A vfio-user server for qtests: the DMA engine of vfio-testdev.h, on top of
 * libvfio-user
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * usage: vfio-user-testdev SOCKET [OPTION...]
 *
 *   track      tracks what is written (protocol: DIRTY_PAGES)
 *   lose       writes behind the tracker's back, as a faulty server would
 *   mask       MSI-X vectors are masked until the client unmasks them, as those
 *              of QEMU's own server are
 *
 * It serves one client, and ends with it or with the test.
 */

#include "qemu/osdep.h"
#include <err.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <libvfio-user.h>
#include <pci_caps/msix.h>
#include "vfio-testdev.h"

#define BAR_SIZE    4096
#define MAX_SG      8

static vfu_ctx_t *ctx;
static uint32_t regs[BAR_SIZE / 4];
static bool track, lose, mask;
static bool unmasked[TESTDEV_VECTORS];

static uint32_t reg(int offset)
{
    return regs[offset / 4];
}

/* ------------------------------------------------------------------- DMA */

/* Store through the client's memory file, and mark what was stored. */
static int dma_direct(dma_sg_t *sg, int count)
{
    struct iovec iov[MAX_SG];

    if (vfu_sgl_get(ctx, sg, iov, count, 0) < 0) {
        return -errno;
    }
    for (int i = 0; i < count; i++) {
        memset(iov[i].iov_base, reg(TESTDEV_FILL), iov[i].iov_len);
    }
    if (!lose) {
        vfu_sgl_put(ctx, sg, iov, count);
    }
    return 0;
}

static int dma_message(dma_sg_t *sg, uint32_t len, bool write)
{
    g_autofree uint8_t *buf = g_malloc(len);
    uint32_t sum = 0;
    int ret;

    if (write) {
        memset(buf, reg(TESTDEV_FILL), len);
        ret = vfu_sgl_write(ctx, sg, 1, buf);
    } else {
        ret = vfu_sgl_read(ctx, sg, 1, buf);
        for (uint32_t i = 0; !ret && i < len; i++) {
            sum += buf[i];
        }
        regs[TESTDEV_FILL / 4] = sum;
    }
    return ret ? -errno : 0;
}

static int dma(uint32_t cmd)
{
    uint64_t addr = reg(TESTDEV_ADDR_LO) | (uint64_t)reg(TESTDEV_ADDR_HI) << 32;
    uint32_t len = reg(TESTDEV_LEN);
    g_autofree dma_sg_t *sg = g_malloc0(dma_sg_size() * MAX_SG);
    int prot = cmd == TESTDEV_CMD_READ ? PROT_READ : PROT_WRITE;
    int count = vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)addr, len, sg,
                                MAX_SG, prot);

    if (count < 0) {
        return errno ? -errno : -E2BIG;
    }
    return cmd == TESTDEV_CMD_DMA ? dma_direct(sg, count)
                                  : dma_message(sg, len,
                                                cmd == TESTDEV_CMD_MESSAGE);
}

static int trigger(uint32_t vector)
{
    if (vector >= TESTDEV_VECTORS) {
        return -EINVAL;
    }
    if (mask && !unmasked[vector]) {
        return -EAGAIN;
    }
    return vfu_irq_trigger(ctx, vector) < 0 ? -errno : 0;
}

static void irq_state(vfu_ctx_t *c, uint32_t start, uint32_t count, bool masked)
{
    for (uint32_t i = start; i < start + count && i < TESTDEV_VECTORS; i++) {
        unmasked[i] = !masked;
    }
}

static void command(uint32_t cmd)
{
    int ret;

    switch (cmd) {
    case TESTDEV_CMD_DMA:
    case TESTDEV_CMD_MESSAGE:
    case TESTDEV_CMD_READ:
        ret = dma(cmd);
        break;
    case TESTDEV_CMD_IRQ:
        ret = trigger(reg(TESTDEV_FILL));
        break;
    default:
        ret = -ENOSYS;
    }
    regs[TESTDEV_STATUS / 4] = ret;
    regs[TESTDEV_COUNT / 4]++;
}

/* --------------------------------------------------------------- the device */

static ssize_t access_regs(vfu_ctx_t *c, char *buf, size_t len, loff_t offset,
                           bool write)
{
    if (offset < 0 || offset + len > BAR_SIZE) {
        errno = EINVAL;
        return -1;
    }
    if (!write) {
        memcpy(buf, (char *)regs + offset, len);
        return len;
    }
    memcpy((char *)regs + offset, buf, len);
    if (offset == TESTDEV_CMD) {
        command(reg(TESTDEV_CMD));
    }
    return len;
}

static ssize_t access_msix(vfu_ctx_t *c, char *buf, size_t len, loff_t offset,
                           bool write)
{
    if (!write) {
        memset(buf, 0, len);
    }
    return len;
}

static void dma_register(vfu_ctx_t *c, vfu_dma_info_t *info)
{
}

static void dma_unregister(vfu_ctx_t *c, vfu_dma_info_t *info)
{
}

/* The library tracks for a device that can be migrated only; it has no state */
static int migr_state(vfu_ctx_t *c, vfu_migr_state_t state)
{
    return 0;
}

static uint64_t migr_pending(vfu_ctx_t *c)
{
    return 0;
}

static int migr_prepare(vfu_ctx_t *c, uint64_t *offset, uint64_t *size)
{
    *offset = 0;
    if (size) {
        *size = 0;
    }
    return 0;
}

static ssize_t migr_rw(vfu_ctx_t *c, void *buf, uint64_t size, uint64_t offset)
{
    return size;
}

static int migr_written(vfu_ctx_t *c, uint64_t count)
{
    return 0;
}

static void setup_migration(void)
{
    static const vfu_migration_callbacks_t callbacks = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = migr_state,
        .get_pending_bytes = migr_pending,
        .prepare_data = migr_prepare,
        .read_data = migr_rw,
        .write_data = migr_rw,
        .data_written = migr_written,
    };
    size_t size = vfu_get_migr_register_area_size();

    if (vfu_setup_region(ctx, VFU_PCI_DEV_MIGR_REGION_IDX, size + BAR_SIZE,
                         NULL, VFU_REGION_FLAG_RW, NULL, 0, -1, 0) < 0 ||
        vfu_setup_device_migration_callbacks(ctx, &callbacks, size) < 0) {
        err(1, "migration");
    }
}

static void setup_pci(void)
{
    struct msixcap msix = {
        .hdr.id = 0x11, .mxc.ts = TESTDEV_VECTORS - 1,
        .mtab.tbir = 1, .mpba.pbir = 1, .mpba.pbao = 0x800 >> 3,
    };
    int flags = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;

    if (vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, 0, 0) < 0) {
        err(1, "PCI");
    }
    vfu_pci_set_id(ctx, TESTDEV_VENDOR, TESTDEV_DEVICE, 0, 0);
    if (vfu_pci_add_capability(ctx, 0, 0, &msix) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE,
                         access_regs, flags, NULL, 0, -1, 0) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR1_REGION_IDX, BAR_SIZE,
                         access_msix, flags, NULL, 0, -1, 0) < 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, TESTDEV_VECTORS) < 0) {
        err(1, "device");
    }
    if (mask) {
        vfu_setup_irq_state_callback(ctx, VFU_DEV_MSIX_IRQ, irq_state);
    }
}

int main(int argc, char **argv)
{
    int ret;

    if (argc < 2) {
        errx(1, "usage: %s SOCKET [track] [lose] [mask]", argv[0]);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 2; i < argc; i++) {
        track |= !strcmp(argv[i], "track");
        lose |= !strcmp(argv[i], "lose");
        mask |= !strcmp(argv[i], "mask");
    }
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, NULL, VFU_DEV_TYPE_PCI);
    if (!ctx) {
        err(1, "%s", argv[1]);
    }
    setup_pci();
    if (track) {
        setup_migration();
    }
    if (vfu_setup_device_dma(ctx, dma_register, dma_unregister) < 0 ||
        vfu_realize_ctx(ctx) < 0 || vfu_attach_ctx(ctx) < 0) {
        err(1, "%s", argv[1]);
    }
    do {
        ret = vfu_run_ctx(ctx);
    } while (ret >= 0 || errno == EINTR || errno == EAGAIN);
    vfu_destroy_ctx(ctx);
    return 0;
}
