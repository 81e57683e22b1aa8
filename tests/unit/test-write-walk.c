/*
 * Walker over synthetic rings: nothing that the device writes is missed
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The test is the guest's driver, the device and the migration.  The device
 * writes into memory without telling; a migration pass copies the pages that
 * the walker has marked.  After the last pass both memories must be equal: a
 * page that was missed differs.  HOTPATH_SEED replays a run, HOTPATH_ROUNDS is
 * the number of migrations of the random tests (1000).
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "hw/vfio/write-walk.h"

#define PAGE        4096u
#define RAM_PAGES   2048u
#define RAM_SIZE    (RAM_PAGES * PAGE)
#define BAR_SIZE    0x20000u
#define MAX_QUEUES  16
#define RING_MAX    128         /* entries */

enum { BASE_LO = 0, BASE_HI = 4, LEN = 8, SRRCTL = 0xc, HEAD = 0x10,
       TAIL = 0x18, CTL = 0x28, WB_LO = 0x38 };
enum { RCTL = 0x100, PSRCTL = 0x2170, RFCTL = 0x5008 };

typedef enum Format {
    LEGACY, EXTENDED, SPLIT4,           /* e1000e */
    ADVANCED, HEADER_SPLIT,             /* igb */
} Format;

typedef struct Queue {
    unsigned nr;
    uint32_t entries, desc_size, head, clean, tail;
    uint64_t base, tx_base, tx_wb;
    uint32_t tx_entries, tx_head;
    uint64_t addr[RING_MAX][4];         /* what the driver posted */
} Queue;

typedef struct Sim {
    uint8_t *ram, *copy;
    unsigned long *dirty;
    uint32_t regs[BAR_SIZE / 4];
    WriteWalk *walk;
    bool igb, vf;
    Format format;
    uint32_t len[4];
    unsigned addrs;
    unsigned queues;
    Queue queue[MAX_QUEUES];
    /* figures */
    unsigned marked, written, all;
    const char *why;
    bool hidden;                        /* registers do not answer */
} Sim;

static GRand *rnd;

static uint32_t pick(uint32_t limit)
{
    return g_rand_int_range(rnd, 0, limit);
}

/* ---------------------------------------------- what the walker reaches by */

static bool sim_read_reg(void *opaque, uint32_t reg, uint32_t *val)
{
    Sim *s = opaque;

    g_assert_cmpint(reg, <, BAR_SIZE);
    /* never one with a side effect */
    g_assert((!s->igb && (reg == RCTL || reg == PSRCTL || reg == RFCTL)) ||
             (reg & ~0x7ffu) == 0x2800 || (reg & ~0x7ffu) == 0x3800 ||
             (reg & ~0x3ffu) == 0xc000 || (reg & ~0x3ffu) == 0xe000);
    /* a virtual function has not got these */
    g_assert(!s->vf || reg < 0x4000);
    *val = s->regs[reg / 4];
    return !s->hidden;
}

static bool sim_decodes(void *opaque)
{
    Sim *s = opaque;

    return !s->hidden;
}

static bool sim_read_mem(void *opaque, uint64_t addr, void *buf, uint32_t len)
{
    Sim *s = opaque;

    if (addr > RAM_SIZE || len > RAM_SIZE - addr) {
        return false;
    }
    memcpy(buf, s->ram + addr, len);
    return true;
}

static void sim_mark(void *opaque, uint64_t addr, uint64_t len,
                     WriteWalkKind kind)
{
    Sim *s = opaque;

    g_assert_cmpint(kind, <, WRITE_WALK_KINDS);
    g_assert_cmpint(len, >, 0);
    g_assert_cmpint(len, <=, 1 << 20);
    if (addr >= RAM_SIZE) {
        return;
    }
    len = MIN(len, RAM_SIZE - addr);
    bitmap_set(s->dirty, addr / PAGE,
               (addr + len - 1) / PAGE - addr / PAGE + 1);
}

static void sim_mark_all(void *opaque, const char *why)
{
    Sim *s = opaque;

    s->all++;
    s->why = why;
    bitmap_set(s->dirty, 0, RAM_PAGES);
}

static const WriteWalkIO sim_io = {
    .read_reg = sim_read_reg,
    .decodes = sim_decodes,
    .read_mem = sim_read_mem,
    .mark = sim_mark,
    .mark_all = sim_mark_all,
};

/* -------------------------------------------------------------- registers */

static uint32_t rx_reg(Sim *s, unsigned q, uint32_t field)
{
    return s->igb && !s->vf ? 0xc000 + 0x40 * q + field
                            : 0x2800 + 0x100 * q + field;
}

static uint32_t tx_reg(Sim *s, unsigned q, uint32_t field)
{
    return s->igb && !s->vf ? 0xe000 + 0x40 * q + field
                            : 0x3800 + 0x100 * q + field;
}

/* Another address of the same register, at times. */
static uint32_t alias(Sim *s, uint32_t reg)
{
    bool tx;

    if (pick(2)) {
        return reg;
    }
    if (s->igb && !s->vf) {
        tx = reg >= 0xe000;
        reg -= tx ? 0xe000 : 0xc000;
        return reg / 0x40 < 4 ? (tx ? 0x3800 : 0x2800) + reg / 0x40 * 0x100 +
                                reg % 0x40
                              : reg + (tx ? 0xe000 : 0xc000);
    }
    if (!s->igb && reg >= 0x2800 && reg <= 0x2818) {
        return reg - 0x2800 + 0x110;
    }
    if (!s->igb && reg >= 0x3800 && reg <= 0x3818) {
        return reg - 0x3800 + 0x420;
    }
    return reg;
}

/* The guest writes: a trapped page tells the walker, then the device has it. */
static void guest_write(Sim *s, uint32_t reg, uint32_t val)
{
    uint32_t by = alias(s, reg);

    if (write_walk_traps(s->walk, by & ~(WRITE_WALK_PAGE - 1))) {
        write_walk_write(s->walk, by, val, 4);
    }
    s->regs[reg / 4] = val;
}

/* --------------------------------------------------------------- the device */

static void dev_write(Sim *s, uint64_t addr, uint32_t len)
{
    static uint32_t stamp;

    /* each write leaves its own mark, in each page that it touches */
    stamp++;
    for (uint32_t i = 0; i < len; i++) {
        s->ram[addr + i] = stamp >> 8 * (i % 3);
    }
    s->written += len ? (addr + len - 1) / PAGE - addr / PAGE + 1 : 0;
}

static void dev_receive(Sim *s, Queue *q)
{
    uint32_t tail = s->regs[rx_reg(s, q->nr, TAIL) / 4];
    uint64_t desc = q->base + q->head * q->desc_size;

    if (!q->entries || q->head == tail) {
        return;
    }
    for (unsigned a = 0; a < s->addrs; a++) {
        uint64_t addr = ldq_le_p(s->ram + desc + 8 * a);

        g_assert_cmphex(addr, ==, q->addr[q->head][a]);
        dev_write(s, addr, s->len[a] ? pick(s->len[a]) + 1 : 0);
    }
    /* write-back: the addresses are gone */
    dev_write(s, desc, q->desc_size);
    q->head = (q->head + 1) % q->entries;
    s->regs[rx_reg(s, q->nr, HEAD) / 4] = q->head;
}

static void dev_transmit(Sim *s, Queue *q)
{
    if (q->tx_entries) {
        dev_write(s, q->tx_base + 16 * q->tx_head + 8, 8);
        q->tx_head = (q->tx_head + 1) % q->tx_entries;
        if (q->tx_wb) {
            stl_le_p(s->ram + q->tx_wb, q->tx_head);
            s->written++;
        }
    }
}

/* --------------------------------------------------------------- the driver */

static uint64_t some_memory(uint32_t len, uint32_t align)
{
    return ROUND_UP(RAM_SIZE / 4 + pick(RAM_SIZE * 3 / 4 - len - align),
                    align);
}

/*
 * Rings of the queues are apart from each other and from all buffers, as a
 * driver's are; buffers may share pages and cross them.
 */
static uint64_t ring_memory(unsigned nr, bool tx)
{
    return (nr * 2 + tx) * (RAM_SIZE / 4 / (2 * MAX_QUEUES)) + 128 * pick(16);
}

static void post(Sim *s, Queue *q, unsigned count)
{
    for (; count; count--) {
        uint32_t next = (q->tail + 1) % q->entries;
        uint64_t desc = q->base + q->tail * q->desc_size;

        if (next == q->clean && q->clean == q->head) {
            break;                      /* full */
        }
        if (next == q->clean) {
            q->clean = (q->clean + 1) % q->entries;     /* it is done */
        }
        for (unsigned a = 0; a < q->desc_size / 8; a++) {
            q->addr[q->tail][a] = a < s->addrs
                                  ? some_memory(s->len[a] + 1, 2) : 0;
            stq_le_p(s->ram + desc + 8 * a, q->addr[q->tail][a]);
            /* the vCPU's own write is tracked by others */
            sim_mark(s, desc + 8 * a, 8, WRITE_WALK_RING);
        }
        q->tail = next;
    }
    guest_write(s, rx_reg(s, q->nr, TAIL), q->tail);
}

static void stop_queue(Sim *s, Queue *q)
{
    guest_write(s, rx_reg(s, q->nr, CTL), 0);
    q->entries = 0;
}

static void init_queue(Sim *s, Queue *q)
{
    uint32_t bytes = 128 * (1 + pick(RING_MAX * 16 / 128));
    bool first_len = pick(2);

    stop_queue(s, q);
    q->base = ring_memory(q->nr, false);
    q->entries = bytes / q->desc_size;
    q->head = q->tail = q->clean = 0;
    if (first_len) {
        guest_write(s, rx_reg(s, q->nr, LEN), bytes);
    }
    guest_write(s, rx_reg(s, q->nr, BASE_HI), 0);
    guest_write(s, rx_reg(s, q->nr, BASE_LO), q->base);
    guest_write(s, rx_reg(s, q->nr, LEN), bytes);
    guest_write(s, rx_reg(s, q->nr, HEAD), 0);
    guest_write(s, rx_reg(s, q->nr, TAIL), 0);
    guest_write(s, rx_reg(s, q->nr, CTL), 1 << 25);

    q->tx_base = ring_memory(q->nr, true);
    q->tx_entries = 8 * (1 + pick(RING_MAX / 8));
    q->tx_head = 0;
    q->tx_wb = s->igb && pick(2) ? some_memory(4, 4) : 0;
    guest_write(s, tx_reg(s, q->nr, BASE_LO), q->tx_base);
    guest_write(s, tx_reg(s, q->nr, BASE_HI), 0);
    guest_write(s, tx_reg(s, q->nr, LEN), q->tx_entries * 16);
    if (s->igb) {
        guest_write(s, tx_reg(s, q->nr, WB_LO), q->tx_wb | !!q->tx_wb);
    }
    post(s, q, q->entries / 2);
}

/* How large buffers are and how descriptors look, for all queues. */
static void init_format(Sim *s)
{
    static const uint32_t rctl_len[] = { 2048, 1024, 512, 256 };
    unsigned size = pick(4);
    uint32_t header = 1 + pick(15);
    uint32_t flexible = pick(2) ? pick(16) : 0;     /* KiB, instead of size */

    memset(s->len, 0, sizeof(s->len));
    for (unsigned i = 0; i < s->queues; i++) {
        stop_queue(s, &s->queue[i]);
        s->queue[i].desc_size = s->format == SPLIT4 ? 32 : 16;
    }
    if (!s->igb) {
        s->addrs = s->format == SPLIT4 ? 4 : 1;
        guest_write(s, RFCTL, s->format == LEGACY ? 0 : 1 << 15);
        guest_write(s, RCTL, size << 16 | flexible << 27 |
                             (s->format == SPLIT4 ? 0x400 : 0));
        s->len[0] = flexible ? flexible * 1024 : rctl_len[size];
        if (s->format == SPLIT4) {
            guest_write(s, PSRCTL, header | 2 << 8 | 4 << 16 | 1 << 24);
            s->len[0] = header * 128;
            s->len[1] = 2048;
            s->len[2] = 4096;
            s->len[3] = 1024;
        }
        return;
    }
    s->addrs = s->format == HEADER_SPLIT ? 2 : 1;
    s->len[0] = 1024 * (1 + pick(4));
    s->len[1] = s->format == HEADER_SPLIT ? header * 64 : 0;
    for (unsigned i = 0; i < s->queues; i++) {
        guest_write(s, rx_reg(s, i, SRRCTL),
                    s->len[0] / 1024 | (s->format == HEADER_SPLIT
                                        ? header << 8 | 2 << 25 : 1 << 25));
    }
}

static void init_all(Sim *s)
{
    init_format(s);
    for (unsigned i = 0; i < s->queues; i++) {
        init_queue(s, &s->queue[i]);
    }
}

/* The device forgets its registers, and does not tell the walker. */
static void reset(Sim *s)
{
    for (unsigned i = 0; i < s->queues; i++) {
        s->queue[i].entries = s->queue[i].tx_entries = 0;
        for (uint32_t field = 0; field < 0x40; field += 4) {
            s->regs[rx_reg(s, i, field) / 4] = 0;
            s->regs[tx_reg(s, i, field) / 4] = 0;
        }
    }
    init_all(s);
}

/* A driver writes registers of rings that receive, as for its filters. */
static void rewrite(Sim *s, Queue *q)
{
    uint32_t reg = pick(2) ? rx_reg(s, q->nr, CTL) :
                   s->igb ? rx_reg(s, q->nr, SRRCTL) : RCTL;

    guest_write(s, reg, s->regs[reg / 4]);
}

static void something(Sim *s)
{
    Queue *q = &s->queue[pick(s->queues)];

    switch (pick(200)) {
    case 0:
        reset(s);
        break;
    case 1:
        init_queue(s, q);
        break;
    case 2:
        init_all(s);
        break;
    case 3 ... 6:
        rewrite(s, q);
        break;
    case 7 ... 60:
        if (q->entries) {
            post(s, q, 1 + pick(q->entries));
        }
        break;
    case 61 ... 80:
        if (q->tx_entries) {
            guest_write(s, tx_reg(s, q->nr, TAIL), pick(q->tx_entries));
        }
        dev_transmit(s, q);
        break;
    default:
        dev_receive(s, q);
        break;
    }
}

/* -------------------------------------------------------------- a migration */

static Sim *sim_new(uint16_t device, Format format)
{
    Sim *s = g_new0(Sim, 1);

    s->ram = g_malloc0(RAM_SIZE);
    s->copy = g_malloc0(RAM_SIZE);
    s->dirty = bitmap_new(RAM_PAGES);
    s->igb = device != 0x10d3;
    s->vf = device == 0x10ca;
    s->format = format;
    s->queues = s->igb && !s->vf ? MAX_QUEUES : 2;
    for (unsigned i = 0; i < s->queues; i++) {
        s->queue[i].nr = i;
    }
    for (uint32_t i = 0; i < RAM_SIZE; i += 512) {
        stl_le_p(s->ram + i, g_rand_int(rnd));
    }
    s->walk = write_walk_new(0x8086, device, &sim_io, s);
    g_assert_nonnull(s->walk);
    return s;
}

static void sim_free(Sim *s)
{
    write_walk_free(s->walk);
    g_free(s->ram);
    g_free(s->copy);
    g_free(s->dirty);
    g_free(s);
}

static void pass(Sim *s)
{
    for (unsigned page = 0; page < RAM_PAGES; page++) {
        if (test_bit(page, s->dirty)) {
            memcpy(s->copy + page * PAGE, s->ram + page * PAGE, PAGE);
            s->marked++;
        }
    }
    bitmap_zero(s->dirty, RAM_PAGES);
}

static unsigned missed(Sim *s)
{
    unsigned count = 0;

    for (unsigned page = 0; page < RAM_PAGES; page++) {
        count += !!memcmp(s->copy + page * PAGE, s->ram + page * PAGE, PAGE);
    }
    return count;
}

static unsigned migrate(Sim *s)
{
    unsigned passes = 2 + pick(6);
    unsigned all;

    write_walk_start(s->walk);
    bitmap_set(s->dirty, 0, RAM_PAGES);
    pass(s);
    s->marked = s->written = 0;
    while (passes--) {
        for (unsigned steps = pick(400); steps; steps--) {
            something(s);
        }
        /* the guest turns decode off now and then, and the device goes on */
        s->hidden = !pick(8);
        for (unsigned steps = s->hidden ? pick(40) : 0; steps; steps--) {
            Queue *q = &s->queue[pick(s->queues)];

            dev_receive(s, q);
            dev_transmit(s, q);
        }
        all = s->all;
        write_walk_sync(s->walk, !passes);
        if (s->hidden) {
            /* a ring that was moved and not read since */
            s->all = all;
            s->hidden = false;
        }
        pass(s);
    }
    write_walk_stop(s->walk);
    return missed(s);
}

typedef struct Case {
    const char *name;
    uint16_t device;
    Format format;
} Case;

static void test_random(gconstpointer opaque)
{
    const Case *c = opaque;
    const char *given = g_getenv("HOTPATH_ROUNDS");
    unsigned rounds = given ? atoi(given) : 1000 / 6 + 1;
    unsigned lost = 0, marked = 0, written = 0, all = 0;

    for (unsigned i = 0; i < rounds; i++) {
        Sim *s = sim_new(c->device, c->format);

        init_all(s);
        for (unsigned steps = pick(300); steps; steps--) {
            something(s);
        }
        lost += migrate(s);
        marked += s->marked;
        written += s->written;
        all += s->all;
        sim_free(s);
    }
    g_test_message("%s: %u migrations, pages missed %u, marked %u for %u "
                   "writes, all %u times", c->name, rounds, lost, marked,
                   written, all);
    g_assert_cmpint(lost, ==, 0);
    g_assert_cmpint(all, ==, 0);
}

/* -------------------------------------------------------- single functions */

static void test_models(void)
{
    g_assert_true(write_walk_supports("auto", 0x8086, 0x10d3));
    g_assert_true(write_walk_supports("e1000", 0x8086, 0x10d3));
    g_assert_false(write_walk_supports("igb", 0x8086, 0x10d3));
    g_assert_true(write_walk_supports("igb", 0x8086, 0x10ca));
    g_assert_false(write_walk_supports("auto", 0x1af4, 0x10d3));
    g_assert_false(write_walk_supports("auto", 0x8086, 0));
    g_assert_false(write_walk_supports("none", 0x8086, 0x10d3));
    g_assert_null(write_walk_new(0x8086, 0x1234, &sim_io, NULL));
    /* 82580, I350 and its virtual function: not tried, so not known */
    g_assert_false(write_walk_supports("auto", 0x8086, 0x150e));
    g_assert_false(write_walk_supports("igb", 0x8086, 0x1521));
    g_assert_false(write_walk_supports("igb", 0x8086, 0x1520));
    g_assert_null(write_walk_new(0x8086, 0x1520, &sim_io, NULL));
}

static void test_traps(void)
{
    WriteWalk *igb = write_walk_new(0x8086, 0x10c9, &sim_io, NULL);
    WriteWalk *vf = write_walk_new(0x8086, 0x10ca, &sim_io, NULL);
    WriteWalk *e1000e = write_walk_new(0x8086, 0x10d3, &sim_io, NULL);

    g_assert_false(write_walk_traps(igb, 0x0000));
    g_assert_true(write_walk_traps(igb, 0x2000));
    g_assert_true(write_walk_traps(igb, 0x3000));
    g_assert_true(write_walk_traps(igb, 0xc000));
    g_assert_true(write_walk_traps(igb, 0xe000));
    g_assert_false(write_walk_traps(igb, 0xd000));
    g_assert_false(write_walk_traps(vf, 0x0000));
    g_assert_true(write_walk_traps(vf, 0x2000));
    g_assert_false(write_walk_traps(vf, 0xc000));
    g_assert_true(write_walk_traps(e1000e, 0x0000));
    g_assert_false(write_walk_traps(e1000e, 0x1000));
    g_assert_true(write_walk_traps(e1000e, 0x5000));
    g_assert_false(write_walk_traps(igb, 0x5000));
    g_assert_cmpstr(write_walk_name(vf), ==, "igbvf");
    write_walk_free(igb);
    write_walk_free(vf);
    write_walk_free(e1000e);
}

/* One page of posted buffers, and no more than these and the rings. */
static void test_exact(void)
{
    Sim *s = sim_new(0x10ca, ADVANCED);
    unsigned marked;

    init_all(s);
    write_walk_start(s->walk);
    bitmap_zero(s->dirty, RAM_PAGES);
    write_walk_sync(s->walk, true);
    marked = bitmap_count_one(s->dirty, RAM_PAGES);
    for (unsigned q = 0; q < s->queues; q++) {
        for (unsigned i = 0; i < s->queue[q].tail; i++) {
            uint64_t addr = s->queue[q].addr[i][0];

            g_assert_true(test_bit(addr / PAGE, s->dirty));
            g_assert_true(test_bit((addr + s->len[0] - 1) / PAGE, s->dirty));
        }
    }
    /* at most 5 KiB a buffer, unposted entries hold junk beyond RAM */
    g_assert_cmpint(marked, <, 2 * 2 * RING_MAX * 2 + 16);
    g_assert_cmpint(s->all, ==, 0);
    sim_free(s);
}

/* Values that no driver writes: all memory is marked, nothing crashes. */
static void test_hostile(void)
{
    static const uint32_t lens[] = { 0, 16, 127, 128, 0xfff80, 0xffffffff };
    unsigned all = 0;

    for (unsigned i = 0; i < 600; i++) {
        static const uint16_t devices[] = { 0x10d3, 0x10c9, 0x10ca };
        Sim *s = sim_new(devices[i % 3], i % 3 ? ADVANCED : EXTENDED);

        init_all(s);
        write_walk_start(s->walk);
        for (unsigned n = pick(12); n; n--) {
            unsigned q = pick(s->queues);

            switch (pick(6)) {
            case 0:
                guest_write(s, rx_reg(s, q, LEN), lens[pick(6)]);
                break;
            case 1:
                guest_write(s, rx_reg(s, q, BASE_LO), g_rand_int(rnd));
                break;
            case 2:
                guest_write(s, rx_reg(s, q, BASE_HI), g_rand_int(rnd));
                break;
            case 3:
                guest_write(s, rx_reg(s, q, TAIL),
                            pick(2) ? g_rand_int(rnd) : pick(300));
                break;
            case 4:
                write_walk_write(s->walk, rx_reg(s, q, pick(0x40)),
                                 g_rand_int(rnd), 1 << pick(4));
                break;
            default:
                write_walk_sync(s->walk, false);
            }
        }
        write_walk_sync(s->walk, false);
        all += s->all;
        sim_free(s);
    }
    g_assert_cmpint(all, >, 100);
}

/* What is not understood marks all until the ring is set up anew. */
static void test_recovers(void)
{
    Sim *s = sim_new(0x10ca, ADVANCED);

    init_all(s);
    write_walk_start(s->walk);
    guest_write(s, rx_reg(s, 0, TAIL), 5000);
    g_assert_cmpint(s->all, >, 0);
    g_assert_cmpstr(s->why, ==, "tail outside of the ring");
    s->all = 0;
    write_walk_sync(s->walk, false);
    g_assert_cmpint(s->all, >, 0);
    init_queue(s, &s->queue[0]);
    write_walk_sync(s->walk, false);
    s->all = 0;
    write_walk_sync(s->walk, false);
    g_assert_cmpint(s->all, ==, 0);
    sim_free(s);
}

/* A tail that is written in a way that does not trap. */
static void test_unseen(void)
{
    Sim *s = sim_new(0x10d3, EXTENDED);

    init_all(s);
    write_walk_start(s->walk);
    write_walk_sync(s->walk, false);
    g_assert_cmpint(s->all, ==, 0);
    s->regs[rx_reg(s, 0, TAIL) / 4] = (s->queue[0].tail + 1) %
                                      s->queue[0].entries;
    write_walk_sync(s->walk, false);
    g_assert_cmpint(s->all, ==, 1);
    g_assert_cmpstr(s->why, ==, "the tail moved unseen");
    write_walk_sync(s->walk, false);
    g_assert_cmpint(s->all, ==, 1);
    sim_free(s);
}

/* Registers that do not answer: the rings are as they were. */
static void test_hidden(void)
{
    static const uint16_t devices[] = { 0x10d3, 0x10c9, 0x10ca };

    for (unsigned i = 0; i < ARRAY_SIZE(devices); i++) {
        Sim *s = sim_new(devices[i], i ? ADVANCED : EXTENDED);

        init_all(s);
        write_walk_start(s->walk);
        bitmap_set(s->dirty, 0, RAM_PAGES);
        pass(s);
        s->hidden = true;
        for (unsigned n = 0; n < 3; n++) {
            for (unsigned q = 0; q < s->queues; q++) {
                dev_receive(s, &s->queue[q]);
            }
            write_walk_sync(s->walk, n == 2);
            pass(s);
            g_assert_cmpint(missed(s), ==, 0);
        }
        g_assert_cmpint(s->all, ==, 0);
        s->hidden = false;
        write_walk_sync(s->walk, false);
        g_assert_cmpint(s->all, ==, 0);
        sim_free(s);
    }
}

/*
 * They have not answered from the start, so all memory was marked; and what was
 * written until the driver set the ring up anew is marked as well.
 */
static void test_hidden_lost(void)
{
    Sim *s = sim_new(0x10ca, ADVANCED);

    init_all(s);
    s->hidden = true;
    write_walk_start(s->walk);
    write_walk_sync(s->walk, false);
    g_assert_cmpint(s->all, >, 0);
    g_assert_cmpstr(s->why, ==, "registers cannot be read");
    pass(s);
    for (unsigned q = 0; q < s->queues; q++) {
        dev_receive(s, &s->queue[q]);
    }
    s->hidden = false;
    for (unsigned q = 0; q < s->queues; q++) {
        init_queue(s, &s->queue[q]);
    }
    write_walk_sync(s->walk, true);
    pass(s);
    g_assert_cmpint(missed(s), ==, 0);
    s->all = 0;
    write_walk_sync(s->walk, false);
    g_assert_cmpint(s->all, ==, 0);
    sim_free(s);
}

/*
 * A register outside of the rings' pages changes how descriptors are read or
 * how much is written; all is received and posted anew before anyone looks.
 */
static void test_other_registers(void)
{
    static const struct {
        uint16_t device;
        Format format;
        uint32_t reg, before, after;
    } cases[] = {
        { 0x10d3, SPLIT4, RFCTL, 0, 1 << 15 },
        /* the size of buffers where SRRCTL names none */
        { 0x10c9, ADVANCED, RCTL, 3 << 16, 1 << 25 | 1 << 16 },
        /* the same as before, as when a driver changes its filters */
        { 0x10d3, EXTENDED, RCTL, 1 << 16, 1 << 16 },
        { 0x10ca, ADVANCED, 0x2800 + CTL, 1 << 25, 1 << 25 },
        { 0x10ca, ADVANCED, 0x2800 + SRRCTL, 2 | 1 << 25, 2 | 1 << 25 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        Sim *s = sim_new(cases[i].device, cases[i].format);
        Queue *q = &s->queue[0];

        init_format(s);
        if (s->igb) {
            s->len[0] = s->vf ? 2048 : 16384;
            guest_write(s, rx_reg(s, 0, SRRCTL), s->len[0] / 1024 % 16 |
                                                 1 << 25);
        } else if (s->format == EXTENDED) {
            s->len[0] = 1024;
        }
        s->regs[cases[i].reg / 4] = cases[i].before;
        init_queue(s, q);
        write_walk_start(s->walk);
        bitmap_set(s->dirty, 0, RAM_PAGES);
        pass(s);
        guest_write(s, cases[i].reg, cases[i].after);
        for (unsigned n = 0; n < 3; n++) {
            while (q->head != q->tail) {
                dev_receive(s, q);
            }
            post(s, q, q->entries);
        }
        write_walk_sync(s->walk, true);
        pass(s);
        g_assert_cmpint(missed(s), ==, 0);
        sim_free(s);
    }
}

/*
 * For the benchmark: what a sync of an igb's virtual function costs, the last
 * one and others, and what the last one marks, with all entries posted.
 */
static void perf_sync(Sim *s, const char *name, bool last)
{
    const unsigned rounds = 2000;
    int64_t start_us = g_get_monotonic_time();

    for (unsigned i = 0; i < rounds; i++) {
        write_walk_sync(s->walk, last);
    }
    g_test_message("perf %s-ns-per-1000 %.0f", name,
                   1e6 * (g_get_monotonic_time() - start_us) / rounds /
                   write_walk_armed(s->walk));
}

static void test_perf(void)
{
    Sim *s = sim_new(0x10ca, ADVANCED);
    unsigned pages;

    init_all(s);
    for (unsigned q = 0; q < s->queues; q++) {
        post(s, &s->queue[q], s->queue[q].entries);
    }
    write_walk_start(s->walk);
    perf_sync(s, "sync", false);
    perf_sync(s, "last", true);
    bitmap_zero(s->dirty, RAM_PAGES);
    write_walk_sync(s->walk, true);
    pages = bitmap_count_one(s->dirty, RAM_PAGES);
    g_test_message("perf pages-per-1000 %.0f",
                   1e3 * pages / write_walk_armed(s->walk));
    sim_free(s);
}

/* The longest that an access of a guest takes: the largest rings, live. */
static void test_perf_largest(void)
{
    const unsigned rounds = 50;
    Sim *s = sim_new(0x10d3, LEGACY);
    int64_t start_us;

    init_all(s);
    for (unsigned q = 0; q < s->queues; q++) {
        guest_write(s, rx_reg(s, q, BASE_LO), 0);
        guest_write(s, rx_reg(s, q, LEN), 0xfff80);
    }
    guest_write(s, RCTL, 1 << 25 | 1 << 16);
    write_walk_start(s->walk);
    start_us = g_get_monotonic_time();
    for (unsigned i = 0; i < rounds; i++) {
        guest_write(s, RCTL, s->regs[RCTL / 4]);
    }
    g_test_message("perf rewrite-us %.0f",
                   1.0 * (g_get_monotonic_time() - start_us) / rounds);
    sim_free(s);
}

/* Before the last sync: what was received, and the rings. */
static void test_precise(void)
{
    Sim *s = sim_new(0x10ca, ADVANCED);
    unsigned marked, rings = 0;

    init_all(s);
    for (unsigned q = 0; q < s->queues; q++) {
        post(s, &s->queue[q], s->queue[q].entries);
        rings += 2 + s->queue[q].entries * 16 / PAGE +
                 s->queue[q].tx_entries * 16 / PAGE + 3;
    }
    write_walk_start(s->walk);
    bitmap_zero(s->dirty, RAM_PAGES);
    write_walk_sync(s->walk, false);
    g_assert_cmpint(bitmap_count_one(s->dirty, RAM_PAGES), <=,
                    rings + 3 * s->queues);
    bitmap_zero(s->dirty, RAM_PAGES);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t addr = s->queue[0].addr[s->queue[0].head][0];

        dev_receive(s, &s->queue[0]);
        write_walk_sync(s->walk, false);
        g_assert_true(test_bit(addr / PAGE, s->dirty));
    }
    marked = bitmap_count_one(s->dirty, RAM_PAGES);
    g_assert_cmpint(marked, <=, rings + 3 * (s->queues + 4));
    g_assert_cmpint(s->all, ==, 0);
    sim_free(s);
}

int main(int argc, char **argv)
{
    static const Case cases[] = {
        { "/write-walk/random/e1000e-legacy", 0x10d3, LEGACY },
        { "/write-walk/random/e1000e-extended", 0x10d3, EXTENDED },
        { "/write-walk/random/e1000e-split", 0x10d3, SPLIT4 },
        { "/write-walk/random/igb", 0x10c9, ADVANCED },
        { "/write-walk/random/igb-split", 0x10c9, HEADER_SPLIT },
        { "/write-walk/random/igbvf", 0x10ca, ADVANCED },
    };
    const char *given = g_getenv("HOTPATH_SEED");
    unsigned seed = g_random_int();

    g_test_init(&argc, &argv, NULL);
    if (given) {
        g_assert_cmpint(qemu_strtoui(given, NULL, 0, &seed), ==, 0);
    }
    g_test_message("HOTPATH_SEED=%u", seed);
    rnd = g_rand_new_with_seed(seed);

    g_test_add_func("/write-walk/models", test_models);
    g_test_add_func("/write-walk/traps", test_traps);
    g_test_add_func("/write-walk/exact", test_exact);
    g_test_add_func("/write-walk/precise", test_precise);
    g_test_add_func("/write-walk/hostile", test_hostile);
    g_test_add_func("/write-walk/recovers", test_recovers);
    g_test_add_func("/write-walk/unseen", test_unseen);
    g_test_add_func("/write-walk/hidden", test_hidden);
    g_test_add_func("/write-walk/hidden-lost", test_hidden_lost);
    g_test_add_func("/write-walk/other-registers", test_other_registers);
    if (g_test_perf()) {
        g_test_add_func("/write-walk/perf", test_perf);
        g_test_add_func("/write-walk/perf-largest", test_perf_largest);
    }
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        g_test_add_data_func(cases[i].name, &cases[i], test_random);
    }
    return g_test_run();
}
