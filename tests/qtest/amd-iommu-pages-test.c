/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * DMA through the pages that the tables of amd-iommu can describe
 *
 * A device's DMA goes through a page of each kind: 4 KiB, what is a leaf of a
 * level of its own (2 MiB and 1 GiB), and series of equal entries (next level
 * 7).  Addresses lie where a page that is taken for a smaller one would give
 * another address.
 *
 * Source: AMD I/O Virtualization Technology (IOMMU) Specification, 48882,
 * sections 2.2.2 (device table entry), 2.2.3 (page tables), 2.4.2 (command).
 */
#include "qemu/osdep.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/pci-pc.h"

#define IOMMU_BASE      0xfed80000
#define   DEVTAB_BASE   0x0
#define   CMD_BASE      0x8
#define   CONTROL       0x18
#define     CONTROL_EN  (1 << 0)
#define     CONTROL_CMD (1 << 12)
#define   CMD_TAIL      0x2008

/* where things are in the guest's memory */
#define DEVTAB          0x1000000
#define DEVTAB_4K       512
#define COMMANDS        0x1400000
#define COMMANDS_256    (8ULL << 56)
#define LEVEL3          0x1500000
#define LEVEL2          0x1501000
#define LEVEL1          0x1502000

#define EDU_DEVFN       QPCI_DEVFN(4, 0)
#define EDU_DMA_SRC     0x80
#define EDU_DMA_DST     0x88
#define EDU_DMA_COUNT   0x90
#define EDU_DMA_CMD     0x98
#define   EDU_DMA_RUN   1
#define   EDU_DMA_OUT   2
#define EDU_DMA_BUFFER  0x40000
#define EDU_DMA_MS      100

#define PTE_RW          ((3ULL << 61) | 1)
#define DTE_TV          2
#define SERIES          7

typedef struct PageCase {
    const char *name;
    uint64_t iova;      /* of the page */
    uint64_t base;      /* its physical address */
    uint64_t offset;    /* of the access, with each bit that counts */
} PageCase;

static const PageCase cases[] = {
    { "4k",     0x5000,     0x2005000, 0x100 },
    { "16k",    0x8000,     0x2008000, 0x2100 },
    { "2m",     2 * MiB,    0x2400000, 0x123100 },
    { "4m",     4 * MiB,    0x2800000, 0x323100 },
    { "1g",     1 * GiB,    0x0,       0x3123100 },
};

static uint64_t entry(uint64_t address, int next_level)
{
    return PTE_RW | ((uint64_t)next_level << 9) | address;
}

/* One of the entries of a series of @size bytes. */
static uint64_t series(uint64_t address, uint64_t size)
{
    return entry(address | ((size / 2 - 1) & ~0xfffULL), SERIES);
}

static void write_tables(QTestState *qts)
{
    int i;

    qtest_writeq(qts, LEVEL3, entry(LEVEL2, 2));
    qtest_writeq(qts, LEVEL3 + 8, entry(0, 0));
    qtest_writeq(qts, LEVEL2, entry(LEVEL1, 1));
    qtest_writeq(qts, LEVEL2 + 8, entry(0x2400000, 0));
    for (i = 2; i < 4; i++) {
        qtest_writeq(qts, LEVEL2 + 8 * i, series(0x2800000, 4 * MiB));
    }
    qtest_writeq(qts, LEVEL1 + 8 * 5, entry(0x2005000, 0));
    for (i = 8; i < 12; i++) {
        qtest_writeq(qts, LEVEL1 + 8 * i, series(0x2008000, 16 * KiB));
    }
}

static void start_iommu(QTestState *qts)
{
    write_tables(qts);
    qtest_writeq(qts, DEVTAB + 32 * EDU_DEVFN, entry(LEVEL3, 3) | DTE_TV);
    qtest_writeq(qts, DEVTAB + 32 * EDU_DEVFN + 8, 1);  /* domain */
    /* INVALIDATE_DEVTAB_ENTRY */
    qtest_writeq(qts, COMMANDS, (2ULL << 60) | EDU_DEVFN);
    qtest_writeq(qts, COMMANDS + 8, 0);

    qtest_writeq(qts, IOMMU_BASE + DEVTAB_BASE, DEVTAB | (DEVTAB_4K - 1));
    qtest_writeq(qts, IOMMU_BASE + CMD_BASE, COMMANDS | COMMANDS_256);
    qtest_writeq(qts, IOMMU_BASE + CONTROL, CONTROL_EN | CONTROL_CMD);
    qtest_writeq(qts, IOMMU_BASE + CMD_TAIL, 16);
}

static void dma(QPCIDevice *edu, QPCIBar bar, uint64_t src, uint64_t dst,
                uint32_t command)
{
    qpci_io_writeq(edu, bar, EDU_DMA_SRC, src);
    qpci_io_writeq(edu, bar, EDU_DMA_DST, dst);
    qpci_io_writeq(edu, bar, EDU_DMA_COUNT, 8);
    qpci_io_writeq(edu, bar, EDU_DMA_CMD, command | EDU_DMA_RUN);
    qtest_clock_step(edu->bus->qts, EDU_DMA_MS * 1000000LL);
    g_assert_false(qpci_io_readq(edu, bar, EDU_DMA_CMD) & EDU_DMA_RUN);
}

static void test_page(const void *opaque)
{
    const PageCase *page = opaque;
    const uint64_t value = 0x0123456789abcdefULL;
    uint64_t iova = page->iova + page->offset;
    uint64_t physical = page->base + page->offset;
    QTestState *qts = qtest_init("-M q35 -m 128M "
                                 "-device amd-iommu,dma-remap=on "
                                 "-device edu,addr=4,dma_mask=0xffffffff");
    QPCIBus *bus = qpci_new_pc(qts, NULL);
    QPCIDevice *edu = qpci_device_find(bus, EDU_DEVFN);
    QPCIBar bar;

    g_assert_nonnull(edu);
    qpci_device_enable(edu);
    bar = qpci_iomap(edu, 0, NULL);
    start_iommu(qts);

    qtest_writeq(qts, physical, value);
    dma(edu, bar, iova, EDU_DMA_BUFFER, 0);
    dma(edu, bar, EDU_DMA_BUFFER, iova + 8, EDU_DMA_OUT);
    g_assert_cmphex(qtest_readq(qts, physical + 8), ==, value);

    g_free(edu);
    qpci_free_pc(bus);
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *path = g_strdup_printf("/amd-iommu/page/%s",
                                                cases[i].name);

        qtest_add_data_func(path, &cases[i], test_page);
    }
    return g_test_run();
}
