/*
 * QTest: posted writes of an SD card behind sdhci
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The slow disk is one of two: blkdebug holds a write until it is told to go
 * on; a throttle by virtual time, which stands still in a qtest, holds it until
 * a drain.  So a test knows that a write is in flight, however fast the host.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "libqos/pci-pc.h"
#include "async-call-util.h"

#define IMAGE_SIZE (1024 * 1024)
#define BLOCK 512
#define SLOT 4
/* In the guest's memory */
#define DATA 0x200000
#define DATA_SIZE (64 * 1024)
#define TABLE 0x300000

#define SYSAD 0x00
#define BLKSIZE 0x04
#define ARGUMENT 0x08
#define TRNMOD 0x0c
#define TRNS_DMA 0x01
#define TRNS_COUNT 0x02
#define TRNS_CMD12 0x04
#define TRNS_READ 0x10
#define TRNS_MULTI 0x20
#define RSPREG 0x10
#define BDATA 0x20
#define PRNSTS 0x24
#define DATA_INHIBIT (1u << 1)
#define DAT_LINE_ACTIVE (1u << 2)
#define DOING_WRITE (1u << 8)
#define SPACE_AVAILABLE (1u << 10)
#define DAT0 (1u << 20)
#define HOSTCTL 0x28
#define ADMA2 0x10
#define POWER (0x0f << 8)
#define CLKCON 0x2c
#define CLOCKS 0x0005
#define RESET_DATA (4u << 24)
#define NORINTSTS 0x30
#define CMDCMP (1u << 0)
#define TRSCMP (1u << 1)
#define DMAINT (1u << 3)
#define WBUFRDY (1u << 4)
#define CARD_INSERTED (1u << 6)
#define CARD_REMOVED (1u << 7)
#define ADMAERR (1u << 25)
#define NORINTSTSEN 0x34
#define ADMASYSADDR 0x58

/* Types of responses; the transfer follows */
#define R1 0x02
#define R2 0x01
#define R1B 0x03
#define WITH_DATA 0x20

#define CARD_ERROR (1u << 19)
#define CARD_READY (1u << 8)
#define CARD_STATE(status) (((status) >> 9) & 0xf)
#define STATE_TRANSFER 4
#define STATE_RECEIVE 6
#define STATE_PROGRAM 7

#define ADMA_VALID 0x01
#define ADMA_END 0x02
#define ADMA_INT 0x04
#define ADMA_NOP 0x00
#define ADMA_TRAN 0x20
#define ADMA_LINK 0x30

#define BLKDEBUG "-blockdev blkdebug,node-name=slow,image=file"
#define THROTTLE "-object throttle-group,id=tg,x-iops-total=1 " \
                 "-blockdev throttle,node-name=slow,throttle-group=tg,file=file"
#define FAST "-blockdev raw,node-name=slow,file=file"

typedef struct Test {
    QTestState *qts;
    QPCIBus *bus;
    QPCIDevice *dev;
    QPCIBar bar;
    char *path;
    uint32_t rca;
    uint8_t *expected;
} Test;

static uint32_t reg(Test *t, int offset)
{
    return qpci_io_readl(t->dev, t->bar, offset);
}

static void set_reg(Test *t, int offset, uint32_t value)
{
    qpci_io_writel(t->dev, t->bar, offset, value);
}

/* Send a command; returns the first word of its response. */
static uint32_t command(Test *t, int cmd, uint32_t argument, uint8_t flags,
                        uint16_t mode)
{
    set_reg(t, ARGUMENT, argument);
    set_reg(t, TRNMOD, mode | flags << 16 | (uint32_t)cmd << 24);
    return reg(t, RSPREG);
}

static uint32_t card_status(Test *t)
{
    return command(t, 13, t->rca, R1, 0);
}

/* Bring controller and card to where blocks can be written. */
static void init_card(Test *t)
{
    set_reg(t, HOSTCTL, POWER);
    set_reg(t, CLKCON, CLOCKS);
    set_reg(t, NORINTSTSEN, 0xffffffff);
    command(t, 0, 0, 0, 0);
    command(t, 8, 0x1aa, R1, 0);
    command(t, 55, 0, R1, 0);
    command(t, 41, 0x40ff8000, R1, 0);
    command(t, 2, 0, R2, 0);
    t->rca = command(t, 3, 0, R1, 0) & 0xffff0000;
    command(t, 7, t->rca, R1B, 0);
    set_reg(t, NORINTSTS, 0xffffffff);
}

static void find_controller(Test *t)
{
    t->bus = qpci_new_pc(t->qts, NULL);
    t->dev = qpci_device_find(t->bus, QPCI_DEVFN(SLOT, 0));
    g_assert_nonnull(t->dev);
    qpci_device_enable(t->dev);
    t->bar = qpci_iomap(t->dev, 0, NULL);
}

static void start_qemu(Test *t, const char *node, const char *property,
                       const char *args)
{
    t->qts = qtest_initf("-machine pc -nodefaults -m 16 "
                         "-blockdev file,node-name=file,filename=%s %s "
                         "-device sdhci-pci,id=ctl,addr=%d,posted-writes=%s "
                         "-device sd-card,id=card,drive=slow %s",
                         t->path, node, SLOT, property, args);
}

static void test_start(Test *t, const char *node, const char *property)
{
    int fd = g_file_open_tmp("sdhci-post-XXXXXX", &t->path, NULL);

    t->expected = g_malloc0(IMAGE_SIZE);
    g_assert_cmpint(ftruncate(fd, IMAGE_SIZE), ==, 0);
    close(fd);
    start_qemu(t, node, property, "");
    find_controller(t);
    init_card(t);
    g_assert_cmpuint(CARD_STATE(card_status(t)), ==, STATE_TRANSFER);
}

static void check_image(Test *t)
{
    g_autofree char *data = NULL;
    size_t len;

    g_assert_true(g_file_get_contents(t->path, &data, &len, NULL));
    g_assert_cmpuint(len, ==, IMAGE_SIZE);
    g_assert_cmpint(memcmp(data, t->expected, len), ==, 0);
}

static void stop_qemu(Test *t)
{
    g_free(t->dev);
    qpci_free_pc(t->bus);
    qtest_quit(t->qts);
}

static void test_free(Test *t)
{
    unlink(t->path);
    g_free(t->path);
    g_free(t->expected);
}

static void test_end(Test *t)
{
    stop_qemu(t);
    check_image(t);
    test_free(t);
}

/* The next write of the image waits for release(). */
static void hold(Test *t)
{
    async_qemu_io(t->qts, "/machine/peripheral/card", "break pwritev A");
}

static void release(Test *t)
{
    async_qemu_io(t->qts, "/machine/peripheral/card", "resume A");
}

static uint64_t posted(Test *t)
{
    return async_stat(t->qts, "async-call-sdcard-parked");
}

static uint64_t waited(Test *t)
{
    return async_stat(t->qts, "async-call-sdcard-refused");
}

/* Wait until the main loop has finished a write, and the transfer with it. */
static void wait_status(Test *t, uint32_t bits)
{
    while (!(reg(t, NORINTSTS) & bits)) {
        g_usleep(100);
    }
}

static void wait_ready(Test *t)
{
    while (!(reg(t, PRNSTS) & DAT0)) {
        g_usleep(100);
    }
}

static void check_busy(Test *t)
{
    uint32_t state = reg(t, PRNSTS);

    g_assert_cmphex(state & (DATA_INHIBIT | DAT_LINE_ACTIVE | DOING_WRITE), ==,
                    DATA_INHIBIT | DAT_LINE_ACTIVE | DOING_WRITE);
    g_assert_cmphex(state & (SPACE_AVAILABLE | DAT0), ==, 0);
    g_assert_cmphex(reg(t, NORINTSTS) & (TRSCMP | WBUFRDY), ==, 0);
}

static void check_idle(Test *t)
{
    uint32_t state = reg(t, PRNSTS);

    g_assert_cmphex(state & (DATA_INHIBIT | DAT_LINE_ACTIVE | DOING_WRITE |
                             SPACE_AVAILABLE | DAT0), ==, DAT0);
}

static void pattern(uint8_t *data, unsigned seed, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        data[i] = ((i + seed) * 0x9e3779b9u) >> 24;
    }
}

/* Fill some blocks of what the image shall be. */
static uint8_t *expect(Test *t, unsigned block, unsigned count, unsigned seed)
{
    uint8_t *data = t->expected + block * BLOCK;

    pattern(data, seed, count * BLOCK);
    return data;
}

static void set_blocks(Test *t, unsigned size, unsigned count)
{
    set_reg(t, BLKSIZE, size | count << 16);
}

/* One block by way of the data port */
static void port_block(Test *t, const uint8_t *data)
{
    for (int i = 0; i < BLOCK; i += 4) {
        set_reg(t, BDATA, ldl_le_p(data + i));
    }
}

static void begin_pio(Test *t, unsigned block, unsigned count)
{
    uint16_t mode = count > 1 ? TRNS_MULTI | TRNS_COUNT : 0;

    set_blocks(t, BLOCK, count);
    command(t, count > 1 ? 25 : 24, block * BLOCK, R1 | WITH_DATA, mode);
    g_assert_cmphex(reg(t, NORINTSTS) & WBUFRDY, ==, WBUFRDY);
    set_reg(t, NORINTSTS, 0xffffffff);
}

/* A block whose write is held, or waits for the throttle */
static void write_one(Test *t, unsigned block, unsigned seed)
{
    begin_pio(t, block, 1);
    port_block(t, expect(t, block, 1, seed));
}

static void begin_sdma(Test *t, unsigned block, unsigned count, uint32_t addr)
{
    uint16_t mode = TRNS_DMA | (count > 1 ? TRNS_MULTI | TRNS_COUNT : 0);

    set_reg(t, HOSTCTL, POWER);
    set_blocks(t, 0, 0);
    set_reg(t, SYSAD, addr);
    set_blocks(t, BLOCK, count);
    command(t, count > 1 ? 25 : 24, block * BLOCK, R1 | WITH_DATA, mode);
}

typedef struct Descriptor {
    uint16_t attributes;
    uint16_t length;
    uint32_t address;
} Descriptor;

static void put_descriptors(Test *t, uint32_t table, const Descriptor *d,
                            unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        qtest_writew(t->qts, table + i * 8, d[i].attributes);
        qtest_writew(t->qts, table + i * 8 + 2, d[i].length);
        qtest_writel(t->qts, table + i * 8 + 4, d[i].address);
    }
}

static void begin_adma(Test *t, unsigned block, unsigned count)
{
    set_reg(t, HOSTCTL, POWER | ADMA2);
    set_blocks(t, BLOCK, count);
    set_reg(t, ADMASYSADDR, TABLE);
    command(t, 25, block * BLOCK, R1 | WITH_DATA,
            TRNS_DMA | TRNS_MULTI | TRNS_COUNT);
}

/* A throttle lets the first write pass; the next waits for a drain. */
static void spend_throttle(Test *t)
{
    write_one(t, 100, 99);
    wait_status(t, TRSCMP);
    set_reg(t, NORINTSTS, 0xffffffff);
}

static void test_off(void)
{
    Test t;

    test_start(&t, BLKDEBUG, "off");
    write_one(&t, 3, 1);
    g_assert_cmphex(reg(&t, NORINTSTS) & TRSCMP, ==, TRSCMP);
    check_idle(&t);
    check_image(&t);
    test_end(&t);
}

/* Without posted writes the last word of the block would hang. */
static void test_pio(void)
{
    uint32_t status;
    Test t;

    test_start(&t, BLKDEBUG, "on");
    hold(&t);
    write_one(&t, 3, 1);
    check_busy(&t);
    status = card_status(&t);
    g_assert_cmpuint(CARD_STATE(status), ==, STATE_PROGRAM);
    g_assert_cmphex(status & CARD_READY, ==, 0);
    check_busy(&t);
    g_assert_cmpuint(posted(&t), ==, 1);
    release(&t);
    wait_status(&t, TRSCMP);
    check_idle(&t);
    check_image(&t);
    status = card_status(&t);
    g_assert_cmpuint(CARD_STATE(status), ==, STATE_TRANSFER);
    g_assert_cmphex(status & (CARD_READY | CARD_ERROR), ==, CARD_READY);
    g_assert_cmpuint(waited(&t), ==, 0);
    test_end(&t);
}

/* The guest is asked for each block only when the one before is written. */
static void test_pio_order(void)
{
    const unsigned count = 4;
    g_autofree uint8_t *none = g_malloc0(BLOCK);
    uint8_t *data;
    Test t;

    test_start(&t, BLKDEBUG, "on");
    begin_pio(&t, 10, count);
    data = expect(&t, 10, count, 5);
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *image = NULL;

        hold(&t);
        port_block(&t, data + i * BLOCK);
        check_busy(&t);
        /* the controller has no room: this is not the next block */
        set_reg(&t, BDATA, 0xdeadbeef);
        g_assert_true(g_file_get_contents(t.path, &image, NULL, NULL));
        g_assert_cmpint(memcmp(image + (10 + i) * BLOCK, none, BLOCK), ==, 0);
        release(&t);
        wait_status(&t, i + 1 < count ? WBUFRDY : TRSCMP);
        set_reg(&t, NORINTSTS, 0xffffffff);
    }
    check_idle(&t);
    check_image(&t);
    command(&t, 12, 0, R1B, 0);
    g_assert_cmpuint(CARD_STATE(card_status(&t)), ==, STATE_TRANSFER);
    g_assert_cmpuint(posted(&t), ==, count);
    g_assert_cmpuint(waited(&t), ==, 0);
    test_end(&t);
}

static void test_sdma(void)
{
    Test t;

    test_start(&t, BLKDEBUG, "on");
    qtest_memwrite(t.qts, DATA + 0x100, expect(&t, 20, 1, 7), BLOCK);
    hold(&t);
    begin_sdma(&t, 20, 1, DATA + 0x100);
    check_busy(&t);
    release(&t);
    wait_status(&t, TRSCMP);
    g_assert_cmphex(reg(&t, NORINTSTS) & DMAINT, ==, DMAINT);
    check_idle(&t);
    set_reg(&t, NORINTSTS, 0xffffffff);

    qtest_memwrite(t.qts, DATA + 0x100, expect(&t, 30, 6, 8), 6 * BLOCK);
    hold(&t);
    begin_sdma(&t, 30, 6, DATA + 0x100);
    check_busy(&t);
    g_assert_cmpuint(reg(&t, BLKSIZE) >> 16, ==, 5);
    release(&t);
    wait_status(&t, TRSCMP);
    g_assert_cmpuint(reg(&t, BLKSIZE) >> 16, ==, 0);
    check_idle(&t);
    g_assert_cmpuint(posted(&t), ==, 7);
    test_end(&t);
}

/* It stops where the buffer's boundary is, as without, and not before. */
static void test_sdma_boundary(void)
{
    Test t;

    test_start(&t, BLKDEBUG, "on");
    qtest_memwrite(t.qts, DATA, expect(&t, 40, 8, 9), 8 * BLOCK);
    hold(&t);
    begin_sdma(&t, 40, 12, DATA);
    check_busy(&t);
    release(&t);
    wait_status(&t, DMAINT);
    wait_ready(&t);
    g_assert_cmpuint(reg(&t, BLKSIZE) >> 16, ==, 4);
    g_assert_cmphex(reg(&t, SYSAD), ==, DATA + 4096);
    g_assert_cmphex(reg(&t, NORINTSTS) & TRSCMP, ==, 0);
    g_assert_cmpuint(posted(&t), ==, 8);
    test_end(&t);
}

/* Four blocks in pieces that end in the middle of blocks, and not */
static const Descriptor pieces[] = {
    { ADMA_VALID | ADMA_TRAN, 0x304, DATA },
    { ADMA_VALID | ADMA_NOP, 0, 0 },
    { ADMA_VALID | ADMA_TRAN, 0x0fc, DATA + 0x304 },
    { ADMA_VALID | ADMA_LINK, 0, TABLE + 0x100 },
};
static const Descriptor more_pieces[] = {
    { ADMA_VALID | ADMA_TRAN | ADMA_END, 0x400, DATA + 0x400 },
};

static void put_pieces(Test *t, unsigned block)
{
    qtest_memwrite(t->qts, DATA, expect(t, block, 4, block), 4 * BLOCK);
    put_descriptors(t, TABLE, pieces, ARRAY_SIZE(pieces));
    put_descriptors(t, TABLE + 0x100, more_pieces, ARRAY_SIZE(more_pieces));
}

static void test_adma(void)
{
    Test t;

    test_start(&t, BLKDEBUG, "on");
    put_pieces(&t, 50);
    hold(&t);
    begin_adma(&t, 50, 4);
    check_busy(&t);
    g_assert_cmpuint(reg(&t, BLKSIZE) >> 16, ==, 3);
    release(&t);
    wait_status(&t, TRSCMP);
    g_assert_cmphex(reg(&t, NORINTSTS) & ADMAERR, ==, 0);
    check_idle(&t);
    g_assert_cmpuint(posted(&t), ==, 4);
    g_assert_cmpuint(waited(&t), ==, 0);
    test_end(&t);
}

/* The controller's block is two of the card's. */
static void test_large_block(void)
{
    uint8_t *data;
    Test t;

    test_start(&t, FAST ",size=1048576", "on,capareg=0x057934b4");
    data = expect(&t, 60, 4, 11);
    set_blocks(&t, 2 * BLOCK, 2);
    command(&t, 25, 60 * BLOCK, R1 | WITH_DATA, TRNS_MULTI | TRNS_COUNT);
    for (int i = 0; i < 2; i++) {
        port_block(&t, data + i * 2 * BLOCK);
        port_block(&t, data + (i * 2 + 1) * BLOCK);
        wait_ready(&t);
    }
    wait_status(&t, TRSCMP);
    check_idle(&t);
    g_assert_cmpuint(posted(&t), ==, 4);
    g_assert_cmpuint(waited(&t), ==, 2);
    test_end(&t);
}

/* One access that ends a block and begins the next */
static void test_small_block(void)
{
    uint8_t *data;
    Test t;

    test_start(&t, FAST, "on");
    data = expect(&t, 70, 3, 12);
    set_blocks(&t, 2, 3 * BLOCK / 2);
    command(&t, 25, 70 * BLOCK, R1 | WITH_DATA, TRNS_MULTI | TRNS_COUNT);
    for (int i = 0; i < 3 * BLOCK; i += 4) {
        set_reg(&t, BDATA, ldl_le_p(data + i));
        wait_ready(&t);
    }
    wait_status(&t, TRSCMP);
    check_idle(&t);
    test_end(&t);
}

/* Gap requests while the card is busy: nothing is written twice. */
static void test_gap(void)
{
    uint8_t *data;
    Test t;

    test_start(&t, BLKDEBUG, "on");
    begin_pio(&t, 80, 2);
    data = expect(&t, 80, 2, 13);
    hold(&t);
    port_block(&t, data);
    qpci_io_writeb(t.dev, t.bar, HOSTCTL + 2, 1);
    qpci_io_writeb(t.dev, t.bar, HOSTCTL + 2, 2);
    check_busy(&t);
    release(&t);
    wait_status(&t, WBUFRDY);
    port_block(&t, data + BLOCK);
    wait_status(&t, TRSCMP);
    g_assert_cmpuint(posted(&t), ==, 2);
    test_end(&t);
}

/* A guest that is in a hurry reads what it wrote; it has to wait. */
static void test_read_behind(void)
{
    uint8_t *data;
    Test t;

    test_start(&t, FAST, "on");
    for (unsigned i = 0; i < 20; i++) {
        write_one(&t, i, i);
        data = t.expected + i * BLOCK;
        set_reg(&t, CLKCON, CLOCKS | RESET_DATA);
        set_blocks(&t, BLOCK, 1);
        command(&t, 17, i * BLOCK, R1 | WITH_DATA, TRNS_READ);
        for (int j = 0; j < BLOCK; j += 4) {
            g_assert_cmphex(reg(&t, BDATA), ==,
                            (uint32_t)ldl_le_p(data + j));
        }
        set_reg(&t, NORINTSTS, 0xffffffff);
    }
    test_end(&t);
}

/* The transfer is given up; the block is not, and the next is the next. */
static void test_reset_data(void)
{
    Test t;

    test_start(&t, BLKDEBUG, "on");
    hold(&t);
    write_one(&t, 3, 1);
    set_reg(&t, CLKCON, CLOCKS | RESET_DATA);
    g_assert_cmphex(reg(&t, PRNSTS) & (DATA_INHIBIT | DAT0), ==, 0);
    g_assert_cmpuint(CARD_STATE(card_status(&t)), ==, STATE_PROGRAM);
    release(&t);
    wait_ready(&t);
    g_assert_cmphex(reg(&t, NORINTSTS) & TRSCMP, ==, 0);
    check_image(&t);
    write_one(&t, 4, 2);
    wait_status(&t, TRSCMP);
    test_end(&t);
}

static void test_reset(void)
{
    Test t;

    test_start(&t, BLKDEBUG, "on");
    hold(&t);
    write_one(&t, 3, 1);
    qtest_qmp_assert_success(t.qts, "{'execute': 'system_reset'}");
    qtest_qmp_eventwait(t.qts, "RESET");
    g_free(t.dev);
    qpci_free_pc(t.bus);
    find_controller(&t);
    g_assert_cmphex(reg(&t, PRNSTS) & DATA_INHIBIT, ==, 0);
    /* the card is busy with what was written before the reset */
    g_assert_cmphex(reg(&t, PRNSTS) & DAT0, ==, 0);
    init_card(&t);
    g_assert_cmpuint(CARD_STATE(card_status(&t)), ==, STATE_PROGRAM);
    release(&t);
    wait_ready(&t);
    g_assert_cmphex(reg(&t, NORINTSTS) & TRSCMP, ==, 0);
    check_image(&t);
    write_one(&t, 4, 2);
    wait_status(&t, TRSCMP);
    test_end(&t);
}

/* A stop waits for the write, as for each to a disk; then it all goes on. */
static void test_stop(void)
{
    uint8_t *data;
    Test t;

    test_start(&t, THROTTLE, "on");
    spend_throttle(&t);
    begin_pio(&t, 5, 2);
    data = expect(&t, 5, 2, 3);
    port_block(&t, data);
    check_busy(&t);
    qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
    /* somebody looks */
    g_assert_cmphex(reg(&t, PRNSTS) & (SPACE_AVAILABLE | DATA_INHIBIT), ==,
                    DATA_INHIBIT);
    g_assert_cmphex(reg(&t, NORINTSTS) & WBUFRDY, ==, 0);
    qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
    wait_status(&t, WBUFRDY);
    port_block(&t, data + BLOCK);
    qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
    check_image(&t);
    qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
    wait_status(&t, TRSCMP);
    check_idle(&t);
    g_assert_cmpuint(posted(&t), ==, 3);
    test_end(&t);
}

static void test_quit(void)
{
    Test t;

    test_start(&t, THROTTLE, "on");
    spend_throttle(&t);
    write_one(&t, 5, 3);
    check_busy(&t);
    test_end(&t);
}

static void test_unplug(void)
{
    Test t;

    test_start(&t, THROTTLE, "on");
    spend_throttle(&t);
    write_one(&t, 5, 3);
    check_busy(&t);
    qpci_unplug_acpi_device_test(t.qts, "ctl", SLOT);
    check_image(&t);
    test_end(&t);
}

static void eject(Test *t)
{
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-remove-medium',"
                             " 'arguments': {'id': 'card'}}");
}

static void insert(Test *t, const char *node)
{
    qtest_qmp_assert_success(t->qts, "{'execute': 'blockdev-insert-medium',"
                             " 'arguments': {'id': 'card',"
                             " 'node-name': %s}}", node);
}

/* The medium goes while the controller waits for it. */
static void test_eject(void)
{
    Test t;

    test_start(&t, THROTTLE, "on");
    spend_throttle(&t);
    write_one(&t, 5, 3);
    check_busy(&t);
    eject(&t);
    g_assert_cmphex(reg(&t, PRNSTS) & DATA_INHIBIT, ==, 0);
    g_assert_cmphex(reg(&t, NORINTSTS) & TRSCMP, ==, 0);
    insert(&t, "file");
    init_card(&t);
    write_one(&t, 6, 4);
    wait_status(&t, TRSCMP);
    test_end(&t);
}

/*
 * A transfer that was dropped does not go on.  What would have it go on is
 * the main loop, or any access to a register.
 */
static void check_dropped(Test *t, unsigned blocks_left)
{
    for (int i = 0; i < 3; i++) {
        /* a bottom half, and the timers, have had their turn after this */
        qtest_qmp_assert_success(t->qts, "{'execute': 'query-status'}");
        g_assert_cmphex(reg(t, NORINTSTS) & (TRSCMP | WBUFRDY | DMAINT), ==, 0);
    }
    g_assert_cmphex(reg(t, PRNSTS) & (DATA_INHIBIT | DAT_LINE_ACTIVE |
                                      DOING_WRITE | SPACE_AVAILABLE), ==, 0);
    g_assert_cmpuint(reg(t, BLKSIZE) >> 16, ==, blocks_left);
}

/* Four blocks from 50 on, of which the first is on its way */
static void begin_four(Test *t, int way)
{
    put_pieces(t, 50);
    switch (way) {
    case 0:
        begin_pio(t, 50, 4);
        port_block(t, t->expected + 50 * BLOCK);
        break;
    case 1:
        begin_sdma(t, 50, 4, DATA);
        break;
    case 2:
        begin_adma(t, 50, 4);
        break;
    }
    check_busy(t);
    /* the others will not be written */
    memset(t->expected + 51 * BLOCK, 0, 3 * BLOCK);
}

/*
 * The medium is exchanged while a transfer waits for it: the transfer is
 * dropped, with neither an interrupt of its end nor data for the new medium.
 */
static void do_exchange(int way, bool noticed)
{
    unsigned left;
    Test t;

    test_start(&t, THROTTLE, "on");
    spend_throttle(&t);
    begin_four(&t, way);
    left = reg(&t, BLKSIZE) >> 16;
    eject(&t);
    check_dropped(&t, left);
    check_image(&t);
    g_assert_cmphex(reg(&t, NORINTSTS) & CARD_REMOVED, ==, CARD_REMOVED);
    if (noticed) {
        set_reg(&t, NORINTSTS, CARD_REMOVED);
    }
    insert(&t, "file");
    check_dropped(&t, left);
    g_assert_cmphex(reg(&t, NORINTSTS) & CARD_INSERTED, ==,
                    noticed ? CARD_INSERTED : 0);
    init_card(&t);
    check_dropped(&t, left);
    write_one(&t, 6, 4);
    wait_status(&t, TRSCMP);
    check_image(&t);
    g_assert_cmpuint(posted(&t), ==, 3);
    test_end(&t);
}

static void test_exchange(void)
{
    for (int way = 0; way < 3; way++) {
        do_exchange(way, false);
        do_exchange(way, true);
    }
}

/*
 * A guest that has not seen the removal yet is told of the insertion later.
 * This one is quicker than that.
 */
static void test_late_insertion(void)
{
    Test t;

    test_start(&t, BLKDEBUG, "on");
    eject(&t);
    insert(&t, "slow");
    init_card(&t);
    hold(&t);
    write_one(&t, 5, 3);
    check_busy(&t);
    qtest_clock_step(t.qts, 2 * NANOSECONDS_PER_SECOND);
    g_assert_cmphex(reg(&t, NORINTSTS) & CARD_INSERTED, ==, CARD_INSERTED);
    g_assert_cmphex(reg(&t, PRNSTS) & DATA_INHIBIT, ==, 0);
    release(&t);
    wait_ready(&t);
    check_dropped(&t, 1);
    check_image(&t);
    write_one(&t, 6, 4);
    wait_status(&t, TRSCMP);
    test_end(&t);
}

#define FAILING "-blockdev driver=blkdebug,node-name=slow,image=file," \
                "inject-error.0.event=pwritev,inject-error.0.errno=5"

static void check_error(const char *property, uint32_t error)
{
    Test t;

    test_start(&t, FAILING, property);
    begin_pio(&t, 5, 1);
    port_block(&t, t.expected);
    wait_status(&t, TRSCMP);
    g_assert_cmphex(card_status(&t) & CARD_ERROR, ==, error);
    /* it is told once */
    g_assert_cmphex(card_status(&t) & CARD_ERROR, ==, 0);
    test_end(&t);
}

static void test_error(void)
{
    check_error("off", 0);
    check_error("on", CARD_ERROR);
}

typedef struct Saved {
    Test source;
    Test t;
    char *path;
} Saved;

/* Save @s->source, where a write is in flight, and load it elsewhere. */
static void save_and_load(Saved *s)
{
    int fd = g_file_open_tmp("sdhci-post-XXXXXX", &s->path, NULL);

    close(fd);
    check_busy(&s->source);
    async_save(s->source.qts, s->path);
    stop_qemu(&s->source);
    s->t = s->source;
    start_qemu(&s->t, FAST, "on", "-incoming defer");
    g_assert_true(async_load(s->t.qts, s->path));
    qtest_qmp_assert_success(s->t.qts, "{'execute': 'cont'}");
    s->t.bus = qpci_new_pc(s->t.qts, NULL);
    s->t.dev = qpci_device_find(s->t.bus, QPCI_DEVFN(SLOT, 0));
    unlink(s->path);
    g_free(s->path);
}

static void source_start(Saved *s)
{
    test_start(&s->source, THROTTLE, "on");
    spend_throttle(&s->source);
}

static void saved_end(Saved *s, unsigned more_posted)
{
    wait_status(&s->t, TRSCMP);
    check_idle(&s->t);
    g_assert_cmphex(reg(&s->t, NORINTSTS) & ADMAERR, ==, 0);
    g_assert_cmpuint(posted(&s->t), ==, more_posted);
    test_end(&s->t);
}

static void test_migrate_pio(void)
{
    Saved s;
    uint8_t *data;

    source_start(&s);
    begin_pio(&s.source, 5, 2);
    data = expect(&s.source, 5, 2, 3);
    port_block(&s.source, data);
    save_and_load(&s);
    wait_status(&s.t, WBUFRDY);
    port_block(&s.t, data + BLOCK);
    saved_end(&s, 1);
}

static void test_migrate_last(void)
{
    Saved s;

    source_start(&s);
    write_one(&s.source, 5, 3);
    save_and_load(&s);
    saved_end(&s, 0);
}

static void test_migrate_sdma(void)
{
    Saved s;

    source_start(&s);
    qtest_memwrite(s.source.qts, DATA + BLOCK, expect(&s.source, 9, 5, 3),
                   5 * BLOCK);
    begin_sdma(&s.source, 9, 5, DATA + BLOCK);
    save_and_load(&s);
    saved_end(&s, 4);
}

static void test_migrate_sdma_single(void)
{
    Saved s;

    source_start(&s);
    qtest_memwrite(s.source.qts, DATA, expect(&s.source, 9, 1, 3), BLOCK);
    begin_sdma(&s.source, 9, 1, DATA);
    save_and_load(&s);
    saved_end(&s, 0);
}

static void test_migrate_adma(void)
{
    Saved s;

    source_start(&s);
    put_pieces(&s.source, 50);
    begin_adma(&s.source, 50, 4);
    save_and_load(&s);
    saved_end(&s, 3);
}

/* Nothing of it is in the stream when nothing waits. */
static void test_migrate_idle(void)
{
    static const char section[] = "sdhci/posted-write";
    static const char pci[] = "sdhci-pci";
    g_autofree char *path = NULL;
    g_autofree char *data = NULL;
    size_t len;
    Test t;

    close(g_file_open_tmp("sdhci-post-XXXXXX", &path, NULL));
    for (int on = 0; on < 2; on++) {
        test_start(&t, FAST, on ? "on" : "off");
        write_one(&t, 5, 3);
        wait_status(&t, TRSCMP);
        async_save(t.qts, path);
        stop_qemu(&t);
        g_assert_true(g_file_get_contents(path, &data, &len, NULL));
        g_assert_null(memmem(data, len, section, strlen(section)));
        g_assert(!memmem(data, len - 4096, pci, strlen(pci)) == !on);
        start_qemu(&t, FAST, on ? "on" : "off", "-incoming defer");
        g_assert_true(async_load(t.qts, path));
        qtest_quit(t.qts);
        check_image(&t);
        test_free(&t);
        g_free(g_steal_pointer(&data));
    }
    unlink(path);
}

#define QCOW "-blockdev qcow2,node-name=qcow,file=file " \
             "-object throttle-group,id=tg,x-iops-total=1 " \
             "-blockdev throttle,node-name=slow,throttle-group=tg,file=qcow"

/* A snapshot of a transfer that goes on after it, and again when loaded */
static void test_snapshot(void)
{
    g_autofree char *raw = NULL;
    Test t;

    test_start(&t, FAST, "off");
    stop_qemu(&t);
    raw = t.path;
    t.path = g_strdup_printf("%s.qcow2", raw);
    if (!async_convert(raw, "raw", t.path, "qcow2")) {
        unlink(raw);
        test_free(&t);
        return;
    }
    start_qemu(&t, QCOW, "on", "");
    find_controller(&t);
    init_card(&t);
    put_pieces(&t, 50);
    begin_adma(&t, 50, 4);
    check_busy(&t);
    g_assert_true(async_snapshot(t.qts, "snapshot-save"));
    check_busy(&t);
    g_assert_true(async_snapshot(t.qts, "snapshot-load"));
    for (int i = 0; i < 4; i++) {
        /* a stop drains, and lets one more block pass */
        qtest_qmp_assert_success(t.qts, "{'execute': 'stop'}");
        qtest_qmp_assert_success(t.qts, "{'execute': 'cont'}");
        reg(&t, PRNSTS);
    }
    wait_status(&t, TRSCMP);
    check_idle(&t);
    g_assert_cmphex(reg(&t, NORINTSTS) & ADMAERR, ==, 0);
    stop_qemu(&t);
    g_assert_true(async_convert(t.path, "qcow2", raw, "raw"));
    unlink(t.path);
    g_free(t.path);
    t.path = g_strdup(raw);
    check_image(&t);
    test_free(&t);
}

/* A stage that does not exist */
static void test_migrate_hostile(void)
{
    static const char section[] = "\x12sdhci/posted-write";
    g_autofree char *path = NULL;
    g_autofree char *data = NULL;
    size_t len;
    uint8_t *at;
    Test t;

    close(g_file_open_tmp("sdhci-post-XXXXXX", &path, NULL));
    test_start(&t, THROTTLE, "on");
    spend_throttle(&t);
    write_one(&t, 5, 3);
    async_save(t.qts, path);
    stop_qemu(&t);
    g_assert_true(g_file_get_contents(path, &data, &len, NULL));
    at = memmem(data, len, section, strlen(section));
    g_assert_nonnull(at);
    at += strlen(section) + 4;          /* version */
    g_assert_cmpuint(*at, ==, 1);
    *at = 5;
    g_assert_true(g_file_set_contents(path, data, len, NULL));
    start_qemu(&t, FAST, "on", "-incoming defer");
    g_assert_false(async_load(t.qts, path));
    qtest_quit(t.qts);
    unlink(path);
    test_free(&t);
}

static void test_icount_refused(void)
{
    g_autofree char *command = g_strdup_printf(
        "%s -machine pc -nodefaults -display none -S -accel tcg "
        "-icount shift=1 -device sdhci-pci,posted-writes=on",
        qtest_qemu_binary(NULL));

    async_check_refused(command, "Property 'posted-writes' of sdhci-pci is on, "
                        "but must be off with record/replay and icount");
}

/* Let all that is under way come to its end; @rounds of descriptors. */
static void settle(Test *t, int rounds)
{
    while (rounds) {
        if (reg(t, PRNSTS) & DAT0) {
            rounds--;
        } else {
            g_usleep(50);
        }
    }
}

/* A transfer of which both machines shall make the same */
typedef struct Transfer {
    int way;                    /* 0: PIO, 1: SDMA, 2: ADMA */
    unsigned block;
    unsigned count;
    unsigned size;
    unsigned boundary;
    uint16_t mode;
    uint32_t addr;
    unsigned descriptors;
    Descriptor table[12];
    int accesses;
    unsigned access_size;
} Transfer;

static void random_transfer(Transfer *x)
{
    static const unsigned sizes[] = { 512, 512, 512, 256, 64, 4, 511 };

    *x = (Transfer) {
        .way = g_test_rand_int_range(0, 3),
        .block = g_test_rand_int_range(0, 1500),
        .count = g_test_rand_int_range(1, 8),
        .size = sizes[g_test_rand_int_range(0, ARRAY_SIZE(sizes))],
        .boundary = g_test_rand_int_range(0, 2),
        .addr = DATA + 4 * g_test_rand_int_range(0, 2048),
        .descriptors = g_test_rand_int_range(1, 12),
    };
    if (g_test_rand_bit()) {
        x->addr = DATA + 4096 * g_test_rand_int_range(0, 4);
    }
    x->mode = x->way ? TRNS_DMA : 0;
    if (g_test_rand_int_range(0, 4)) {
        x->mode |= TRNS_MULTI | TRNS_COUNT;
    }
    if (g_test_rand_bit()) {
        x->mode |= TRNS_CMD12;
    }
    x->access_size = 1 << g_test_rand_int_range(0, 3);
    x->accesses = x->count * x->size / x->access_size +
                  g_test_rand_int_range(-2, 3);
    for (unsigned i = 0; i < x->descriptors; i++) {
        bool last = i + 1 == x->descriptors;

        x->table[i] = (Descriptor) {
            .attributes = ADMA_VALID |
                          (g_test_rand_int_range(0, 5) ? ADMA_TRAN : ADMA_NOP) |
                          (g_test_rand_int_range(0, 5) ? 0 : ADMA_INT) |
                          (last ? ADMA_END : 0),
            .length = g_test_rand_int_range(1, 3000),
            .address = DATA + 4 * g_test_rand_int_range(0, 4096),
        };
        if (g_test_rand_bit()) {
            x->table[i].length = ROUND_UP(x->table[i].length, 256);
        }
    }
}

static void do_transfer(Test *t, const Transfer *x)
{
    put_descriptors(t, TABLE, x->table, x->descriptors);
    set_reg(t, HOSTCTL, POWER | (x->way == 2 ? ADMA2 : 0));
    set_blocks(t, 0, 0);
    set_reg(t, SYSAD, x->addr);
    set_reg(t, ADMASYSADDR, TABLE);
    set_blocks(t, x->size | x->boundary << 12, x->count);
    command(t, x->mode & TRNS_MULTI ? 25 : 24, x->block * BLOCK,
            R1 | WITH_DATA, x->mode);
    settle(t, 8);
    for (int i = 0; !x->way && i < x->accesses; i++) {
        int port = BDATA + (i * x->access_size & 3);
        uint32_t value = (i + x->block) * 0x9e3779b9u;

        switch (x->access_size) {
        case 1:
            qpci_io_writeb(t->dev, t->bar, port, value >> 24);
            break;
        case 2:
            qpci_io_writew(t->dev, t->bar, port, value >> 16);
            break;
        case 4:
            set_reg(t, port, value);
            break;
        }
        settle(t, 1);
    }
    settle(t, 8);
}

/* End a transfer that is incomplete, the way a driver does. */
static void clean_up(Test *t)
{
    set_reg(t, CLKCON, CLOCKS | RESET_DATA);
    command(t, 12, 0, R1, 0);
    set_reg(t, NORINTSTS, 0xffffffff);
    /* a block that was begun */
    if (CARD_STATE(card_status(t)) != STATE_TRANSFER) {
        init_card(t);
    }
}

static void check_same(Test *off, Test *on, int offset)
{
    g_assert_cmphex(reg(on, offset), ==, reg(off, offset));
}

/* Random transfers: registers, responses and images are those without. */
static void test_same(void)
{
    const int rounds = g_test_slow() ? 2000 : 150;
    g_autofree char *image = NULL;
    g_autofree uint8_t *ram = g_malloc(DATA_SIZE);
    Transfer x;
    Test off, on;
    size_t len;

    test_start(&off, FAST, "off");
    test_start(&on, FAST, "on");
    pattern(ram, 77, DATA_SIZE);
    qtest_memwrite(off.qts, DATA, ram, DATA_SIZE);
    qtest_memwrite(on.qts, DATA, ram, DATA_SIZE);
    for (int i = 0; i < rounds; i++) {
        random_transfer(&x);
        do_transfer(&off, &x);
        do_transfer(&on, &x);
        for (int r = SYSAD; r <= NORINTSTSEN; r += 4) {
            if (r != BDATA) {
                check_same(&off, &on, r);
            }
        }
        check_same(&off, &on, 0x54);
        check_same(&off, &on, ADMASYSADDR);
        g_assert_cmphex(card_status(&on), ==, card_status(&off));
        clean_up(&off);
        clean_up(&on);
    }
    g_assert_cmpuint(posted(&on), >, rounds / 2);
    g_test_message("%d transfers, %" PRIu64 " blocks posted", rounds,
                   posted(&on));
    stop_qemu(&off);
    stop_qemu(&on);
    g_assert_true(g_file_get_contents(off.path, &image, &len, NULL));
    memcpy(on.expected, image, IMAGE_SIZE);
    check_image(&on);
    test_free(&off);
    test_free(&on);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/sdhci-post/off", test_off);
    qtest_add_func("/sdhci-post/pio", test_pio);
    qtest_add_func("/sdhci-post/pio-order", test_pio_order);
    qtest_add_func("/sdhci-post/sdma", test_sdma);
    qtest_add_func("/sdhci-post/sdma-boundary", test_sdma_boundary);
    qtest_add_func("/sdhci-post/adma", test_adma);
    qtest_add_func("/sdhci-post/large-block", test_large_block);
    qtest_add_func("/sdhci-post/small-block", test_small_block);
    qtest_add_func("/sdhci-post/gap", test_gap);
    qtest_add_func("/sdhci-post/same", test_same);
    qtest_add_func("/sdhci-post/read-behind", test_read_behind);
    qtest_add_func("/sdhci-post/reset-data", test_reset_data);
    qtest_add_func("/sdhci-post/reset", test_reset);
    qtest_add_func("/sdhci-post/stop", test_stop);
    qtest_add_func("/sdhci-post/quit", test_quit);
    qtest_add_func("/sdhci-post/unplug", test_unplug);
    qtest_add_func("/sdhci-post/eject", test_eject);
    qtest_add_func("/sdhci-post/exchange", test_exchange);
    qtest_add_func("/sdhci-post/late-insertion", test_late_insertion);
    qtest_add_func("/sdhci-post/error", test_error);
    qtest_add_func("/sdhci-post/migrate/pio", test_migrate_pio);
    qtest_add_func("/sdhci-post/migrate/last", test_migrate_last);
    qtest_add_func("/sdhci-post/migrate/sdma", test_migrate_sdma);
    qtest_add_func("/sdhci-post/migrate/sdma-single", test_migrate_sdma_single);
    qtest_add_func("/sdhci-post/migrate/adma", test_migrate_adma);
    qtest_add_func("/sdhci-post/migrate/idle", test_migrate_idle);
    qtest_add_func("/sdhci-post/snapshot", test_snapshot);
    qtest_add_func("/sdhci-post/migrate/hostile", test_migrate_hostile);
    qtest_add_func("/sdhci-post/icount-refused", test_icount_refused);
    return g_test_run();
}
