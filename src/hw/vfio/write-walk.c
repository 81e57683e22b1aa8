/*
 * Walker for the rings of e1000e, igb and igb's virtual functions
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Facts on the hardware: 82574 and 82576 datasheets, chapters on receive
 * descriptors and on registers.
 *
 * Guest memory and registers are the guest's: sizes and indices are bounded by
 * what the hardware takes, and addresses go no further than mark().  A guest
 * that edits a descriptor after it was posted, or points the device elsewhere
 * while it receives, harms itself.
 *
 * Not read, ever: registers with a side effect (interrupt cause, statistics,
 * semaphores).
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "write-walk.h"

/* Registers of one queue, from its first one (xDBAL). */
#define QUEUE_BASE_LO   0x00
#define QUEUE_BASE_HI   0x04
#define QUEUE_LEN       0x08
#define QUEUE_SRRCTL    0x0c    /* igb, receive */
#define QUEUE_HEAD      0x10
#define QUEUE_TAIL      0x18
#define QUEUE_CTL       0x28
#define QUEUE_WB_LO     0x38    /* igb, transmit: head write-back */
#define QUEUE_WB_HI     0x3c
#define QUEUE_SIZE      0x40

#define REG_RCTL        0x0100
#define REG_PSRCTL      0x2170
#define REG_RFCTL       0x5008
#define RCTL_SPLIT      0x00000400
#define RCTL_SPLIT_MASK 0x00000c00
#define RCTL_BSEX       0x02000000
#define RCTL_FLXBUF(x)  ((x) >> 27 & 0xf)   /* in KiB; 0: see BSIZE */
#define RFCTL_EXTENDED  0x00008000

#define SRRCTL_TYPE(x)  ((x) >> 25 & 7)

#define LEN_MASK        0x000fff80  /* bytes of descriptors: multiples of 128 */
#define DESC_SIZE       16
#define MAX_ADDRS       4
#define MAX_BUFFER      16384
#define NO_TAIL         UINT32_MAX

typedef struct QueueSet {
    uint32_t rx, tx;            /* first register of queue 0 */
    uint32_t stride;
    unsigned count;
} QueueSet;

typedef struct Model {
    const char *name, *option;
    unsigned queues;
    bool igb;                   /* SRRCTL, advanced descriptors, write-back */
    /* the same registers at one address or more */
    QueueSet sets[2];
    uint16_t devices[12];
} Model;

static const Model models[] = {
    {
        .name = "e1000e", .option = "e1000", .queues = 2,
        .sets = { { 0x2800, 0x3800, 0x100, 2 }, { 0x0110, 0x0420, 0, 1 } },
        .devices = { 0x10d3, 0x10f6 },
    }, {
        .name = "igb", .option = "igb", .queues = 16, .igb = true,
        .sets = { { 0xc000, 0xe000, 0x40, 16 }, { 0x2800, 0x3800, 0x100, 4 } },
        .devices = { 0x10c9, 0x10e6, 0x10e7, 0x10e8, 0x1518, 0x1526, 0x150a,
                     0x150d },
    }, {
        .name = "igbvf", .option = "igb", .queues = 2, .igb = true,
        .sets = { { 0x2800, 0x3800, 0x100, 2 } },
        .devices = { 0x10ca, 0x152d },
    },
};

#define INTEL 0x8086

/* How a descriptor of a receive ring is read. */
typedef struct Layout {
    unsigned desc_size;
    unsigned addrs;
    uint32_t len[MAX_ADDRS];    /* bytes that the device may write at each */
} Layout;

typedef struct Slot {
    uint64_t addr[MAX_ADDRS];   /* 0: none */
    bool done;                  /* marked as finished since it was posted */
} Slot;

typedef struct Ring {
    bool known;                 /* registers were read since it was dropped */
    bool valid;                 /* registers and slots were read */
    bool lost;                  /* not understood: everything may be written */
    uint64_t base;
    uint32_t len;               /* bytes */
    /* receive */
    Layout layout;
    uint32_t entries, tail;
    Slot *slots;
    /* transmit */
    uint64_t head_wb;           /* 0: none */
} Ring;

struct WriteWalk {
    const Model *model;
    const WriteWalkIO *io;
    void *opaque;
    bool started;
    Ring *rx, *tx;
    /* a register that the device gets next, and its value */
    uint32_t next_reg, next_val;
};

#define NO_REG UINT32_MAX

static const Model *find_model(const char *option, uint16_t vendor,
                               uint16_t device)
{
    for (size_t i = 0; i < ARRAY_SIZE(models) && vendor == INTEL; i++) {
        for (size_t j = 0; j < ARRAY_SIZE(models[i].devices); j++) {
            if (device && models[i].devices[j] == device &&
                (!strcmp(option, "auto") ||
                 !strcmp(option, models[i].option))) {
                return &models[i];
            }
        }
    }
    return NULL;
}

bool write_walk_supports(const char *model, uint16_t vendor, uint16_t device)
{
    return find_model(model, vendor, device);
}

WriteWalk *write_walk_new(uint16_t vendor, uint16_t device,
                          const WriteWalkIO *io, void *opaque)
{
    const Model *model = find_model("auto", vendor, device);
    WriteWalk *w;

    if (!model) {
        return NULL;
    }
    w = g_new0(WriteWalk, 1);
    w->model = model;
    w->io = io;
    w->opaque = opaque;
    w->next_reg = NO_REG;
    w->rx = g_new0(Ring, model->queues);
    w->tx = g_new0(Ring, model->queues);
    return w;
}

static void ring_drop(Ring *r)
{
    g_free(r->slots);
    memset(r, 0, sizeof(*r));
}

void write_walk_stop(WriteWalk *w)
{
    for (unsigned q = 0; q < w->model->queues; q++) {
        ring_drop(&w->rx[q]);
        ring_drop(&w->tx[q]);
    }
    w->started = false;
}

void write_walk_free(WriteWalk *w)
{
    if (!w) {
        return;
    }
    write_walk_stop(w);
    g_free(w->rx);
    g_free(w->tx);
    g_free(w);
}

const char *write_walk_name(const WriteWalk *w)
{
    return w->model->name;
}

/* -------------------------------------------------------------- registers */

static bool in_page(uint32_t reg, uint32_t stride, unsigned count,
                    uint32_t page)
{
    uint32_t last = reg + stride * (count - 1) + QUEUE_SIZE - 1;

    return reg < page + WRITE_WALK_PAGE && last >= page;
}

bool write_walk_traps(const WriteWalk *w, uint32_t offset)
{
    if (!w->model->igb && offset == ROUND_DOWN(REG_RFCTL, WRITE_WALK_PAGE)) {
        return true;
    }
    for (size_t i = 0; i < ARRAY_SIZE(w->model->sets); i++) {
        const QueueSet *set = &w->model->sets[i];

        if (set->count &&
            (in_page(set->rx, set->stride, set->count, offset) ||
             in_page(set->tx, set->stride, set->count, offset))) {
            return true;
        }
    }
    return false;
}

/* Which queue has the register at @reg, and which of its registers is it? */
static bool decode(uint32_t reg, uint32_t first, const QueueSet *set,
                   unsigned *queue, uint32_t *field)
{
    uint32_t offset = reg - first;

    if (!set->count || reg < first) {
        return false;
    }
    *queue = set->stride ? offset / set->stride : 0;
    *field = set->stride ? offset % set->stride : offset;
    return *queue < set->count && *field < QUEUE_SIZE;
}

/* The register's address; the first set has all queues. */
static uint32_t queue_reg(uint32_t first, const QueueSet *set, unsigned queue,
                          uint32_t field)
{
    return first + queue * set->stride + field;
}

static bool read_reg(WriteWalk *w, uint32_t reg, uint32_t *val)
{
    if (reg == w->next_reg) {
        *val = w->next_val;
        return true;
    }
    return w->io->read_reg(w->opaque, reg, val);
}

static bool rx_reg(WriteWalk *w, unsigned q, uint32_t field, uint32_t *val)
{
    const QueueSet *set = &w->model->sets[0];

    return read_reg(w, queue_reg(set->rx, set, q, field), val);
}

static bool tx_reg(WriteWalk *w, unsigned q, uint32_t field, uint32_t *val)
{
    const QueueSet *set = &w->model->sets[0];

    return read_reg(w, queue_reg(set->tx, set, q, field), val);
}

/* e1000e, one buffer.  With packet split half set up, PSRCTL may count. */
static uint32_t rctl_buffer(uint32_t rctl, uint32_t psrctl)
{
    static const uint16_t sizes[2][4] = {
        { 2048, 1024, 512, 256 },
        { MAX_BUFFER, 16384, 8192, 4096 },      /* the first is reserved */
    };
    uint32_t len = sizes[!!(rctl & RCTL_BSEX)][rctl >> 16 & 3];

    if (RCTL_FLXBUF(rctl)) {
        len = RCTL_FLXBUF(rctl) * 1024;
    }
    if (rctl & RCTL_SPLIT_MASK) {
        len = MAX(len, (psrctl & 0x7f) * 128);
    }
    return len;
}

/* igb: the packet's address comes first, then the header's. */
static bool layout_igb(WriteWalk *w, unsigned q, Layout *l)
{
    uint32_t srrctl;

    if (!rx_reg(w, q, QUEUE_SRRCTL, &srrctl)) {
        return false;
    }
    l->desc_size = DESC_SIZE;
    /*
     * 0: as RCTL says, which does not trap, and which a virtual function cannot
     * see; so it may be anything
     */
    l->len[0] = (srrctl & 0x7f) * 1024 ?: MAX_BUFFER;
    /* 0 and 1 have one buffer; the others split or replicate the header */
    l->addrs = SRRCTL_TYPE(srrctl) < 2 ? 1 : 2;
    l->len[1] = (srrctl >> 8 & 0x3f) * 64;
    return true;
}

static bool layout_e1000e(WriteWalk *w, Layout *l)
{
    uint32_t rctl, rfctl, psrctl;

    if (!read_reg(w, REG_RCTL, &rctl) || !read_reg(w, REG_RFCTL, &rfctl) ||
        !read_reg(w, REG_PSRCTL, &psrctl)) {
        return false;
    }
    if ((rfctl & RFCTL_EXTENDED) && (rctl & RCTL_SPLIT_MASK) == RCTL_SPLIT) {
        l->desc_size = 2 * DESC_SIZE;
        l->addrs = 4;
        l->len[0] = (psrctl & 0x7f) * 128;
        for (unsigned i = 1; i < 4; i++) {
            l->len[i] = (psrctl >> 8 * i & 0x3f) * 1024;
        }
    } else {
        /* legacy and extended descriptors begin with the address */
        l->desc_size = DESC_SIZE;
        l->addrs = 1;
        l->len[0] = rctl_buffer(rctl, psrctl);
    }
    return true;
}

static bool read_layout(WriteWalk *w, unsigned q, Layout *l)
{
    memset(l, 0, sizeof(*l));
    return w->model->igb ? layout_igb(w, q, l) : layout_e1000e(w, l);
}

static bool read_base(WriteWalk *w, unsigned q,
                      bool (*reg)(WriteWalk *, unsigned, uint32_t, uint32_t *),
                      uint64_t *base, uint32_t *len)
{
    uint32_t lo, hi, bytes;

    if (!reg(w, q, QUEUE_BASE_LO, &lo) || !reg(w, q, QUEUE_BASE_HI, &hi) ||
        !reg(w, q, QUEUE_LEN, &bytes)) {
        return false;
    }
    *base = ((uint64_t)hi << 32 | lo) & ~0xfull;
    *len = bytes & LEN_MASK;
    return true;
}

/* ------------------------------------------------------------ receive rings */

static void give_up(WriteWalk *w, Ring *r, const char *why)
{
    r->lost = true;
    w->io->mark_all(w->opaque, why);
}

static void mark_slot(WriteWalk *w, Ring *r, uint32_t i)
{
    for (unsigned a = 0; a < r->layout.addrs; a++) {
        if (r->slots[i].addr[a] && r->layout.len[a]) {
            w->io->mark(w->opaque, r->slots[i].addr[a], r->layout.len[a],
                        WRITE_WALK_BUFFER);
        }
    }
}

static void set_slot(Ring *r, uint32_t i, const uint8_t *desc)
{
    r->slots[i].done = false;
    for (unsigned a = 0; a < r->layout.addrs; a++) {
        /* bit 0 is a flag where there are several addresses */
        r->slots[i].addr[a] = ldq_le_p(desc + 8 * a) &
                              (r->layout.addrs > 1 ? ~1ull : ~0ull);
    }
}

static bool read_slot(WriteWalk *w, Ring *r, uint32_t i)
{
    uint8_t desc[2 * DESC_SIZE];
    uint64_t at = r->base + (uint64_t)i * r->layout.desc_size;

    if (!w->io->read_mem(w->opaque, at, desc, r->layout.desc_size)) {
        return false;
    }
    set_slot(r, i, desc);
    return true;
}

static bool read_all_slots(WriteWalk *w, Ring *r)
{
    g_autofree uint8_t *descs = g_try_malloc(r->len);

    if (!descs || !w->io->read_mem(w->opaque, r->base, descs, r->len)) {
        return false;
    }
    for (uint32_t i = 0; i < r->entries; i++) {
        set_slot(r, i, descs + i * r->layout.desc_size);
    }
    return true;
}

/* Everything that the ring as it is known may have got. */
static void mark_rx(WriteWalk *w, Ring *r)
{
    if (!r->valid) {
        return;
    }
    w->io->mark(w->opaque, r->base, r->len, WRITE_WALK_RING);
    for (uint32_t i = 0; i < r->entries; i++) {
        mark_slot(w, r, i);
    }
}

/* Read the ring's registers, and each of its entries as if it were posted. */
static void load_rx(WriteWalk *w, unsigned q)
{
    Ring *r = &w->rx[q];

    ring_drop(r);
    if (!read_base(w, q, rx_reg, &r->base, &r->len) ||
        !read_layout(w, q, &r->layout) ||
        !rx_reg(w, q, QUEUE_TAIL, &r->tail)) {
        give_up(w, r, "registers cannot be read");
        return;
    }
    r->known = true;
    r->entries = r->len / r->layout.desc_size;
    if (!r->entries) {
        return;
    }
    r->slots = g_try_new0(Slot, r->entries);
    if (!r->slots) {
        give_up(w, r, "out of memory");
        return;
    }
    r->valid = true;
    if (r->tail >= r->entries) {
        r->tail = NO_TAIL;              /* from before the ring was set up */
    }
    if (!read_all_slots(w, r)) {
        give_up(w, r, "ring outside of memory");
    }
}

/* The driver posts the entries from the old tail to the new one. */
static void rx_tail(WriteWalk *w, unsigned q, uint32_t tail)
{
    Ring *r = &w->rx[q];

    if (!r->lost && (!r->valid || r->tail == NO_TAIL)) {
        mark_rx(w, r);
        load_rx(w, q);
        r->tail = tail;
    }
    if (!r->valid || r->lost) {
        return;
    }
    if (tail >= r->entries) {
        give_up(w, r, "tail outside of the ring");
        return;
    }
    for (uint32_t i = r->tail; i != tail; i = (i + 1) % r->entries) {
        mark_slot(w, r, i);
        if (!read_slot(w, r, i)) {
            give_up(w, r, "ring outside of memory");
            return;
        }
    }
    r->tail = tail;
}

static bool same_layout(const Layout *a, const Layout *b)
{
    return !memcmp(a, b, sizeof(*a));
}

/*
 * What the device has finished since the last time, and the driver has not
 * posted again.  Where the head stands is believed only for this: an entry that
 * is left out here is marked when it is posted, or at the end.
 */
static void mark_done(WriteWalk *w, unsigned q)
{
    Ring *r = &w->rx[q];
    uint32_t head, count;

    if (!rx_reg(w, q, QUEUE_HEAD, &head) || head >= r->entries ||
        r->tail == NO_TAIL) {
        mark_rx(w, r);
        return;
    }
    w->io->mark(w->opaque, r->base, r->len, WRITE_WALK_RING);
    /* none is the device's if head and tail are the same */
    count = head > r->tail ? head - r->tail : head + r->entries - r->tail;
    for (uint32_t i = r->tail; count; count--, i = (i + 1) % r->entries) {
        if (!r->slots[i].done) {
            r->slots[i].done = true;
            mark_slot(w, r, i);
        }
    }
}

static void sync_rx(WriteWalk *w, unsigned q, bool last)
{
    Ring *r = &w->rx[q];
    Layout layout;
    uint64_t base;
    uint32_t len, tail;

    if (r->lost) {
        /* all counts as written up to now; try again for what comes */
        w->io->mark_all(w->opaque, "a ring is not understood");
        load_rx(w, q);
    } else if (!r->valid) {
        load_rx(w, q);
    }
    if (r->lost) {
        return;
    }
    /* a reset, or registers that are not trapped, may have changed these */
    if (!read_base(w, q, rx_reg, &base, &len) ||
        !read_layout(w, q, &layout) || !rx_reg(w, q, QUEUE_TAIL, &tail)) {
        mark_rx(w, r);
        give_up(w, r, "registers cannot be read");
    } else if (r->valid ? base != r->base || len != r->len ||
                          !same_layout(&layout, &r->layout) : len) {
        mark_rx(w, r);
        load_rx(w, q);
        mark_rx(w, r);
    } else if (r->valid && r->tail != NO_TAIL && r->tail != tail) {
        /* e1000e's window in I/O ports, say */
        w->io->mark_all(w->opaque, "the tail moved unseen");
        load_rx(w, q);
    } else if (r->valid && !last) {
        mark_done(w, q);
    } else {
        mark_rx(w, r);
    }
}

/* ----------------------------------------------------------- transmit rings */

/* The device writes the status into descriptors, igb also the head. */
static void mark_tx(WriteWalk *w, Ring *r)
{
    if (r->valid) {
        w->io->mark(w->opaque, r->base, r->len, WRITE_WALK_RING);
    }
    if (r->head_wb) {
        w->io->mark(w->opaque, r->head_wb, 4, WRITE_WALK_HEAD);
    }
}

static void load_tx(WriteWalk *w, unsigned q)
{
    Ring *r = &w->tx[q];
    uint32_t lo = 0, hi = 0;

    ring_drop(r);
    if (!read_base(w, q, tx_reg, &r->base, &r->len) ||
        (w->model->igb && (!tx_reg(w, q, QUEUE_WB_LO, &lo) ||
                           !tx_reg(w, q, QUEUE_WB_HI, &hi)))) {
        give_up(w, r, "registers cannot be read");
        return;
    }
    r->known = true;
    r->valid = r->len;
    r->head_wb = lo & 1 ? (uint64_t)hi << 32 | (lo & ~3u) : 0;
}

static void mark_if_lost(WriteWalk *w, Ring *r)
{
    if (r->lost) {
        w->io->mark_all(w->opaque, "a ring is not understood");
    }
}

static void sync_tx(WriteWalk *w, unsigned q)
{
    mark_if_lost(w, &w->tx[q]);
    /* what it was, in case a reset changed it, and what it is */
    mark_tx(w, &w->tx[q]);
    load_tx(w, q);
    mark_tx(w, &w->tx[q]);
}

/* ------------------------------------------------------------ the interface */

void write_walk_start(WriteWalk *w)
{
    write_walk_stop(w);
    w->started = true;
    for (unsigned q = 0; q < w->model->queues; q++) {
        load_rx(w, q);
        load_tx(w, q);
    }
}

/*
 * A ring is about to be elsewhere: what it had so far counts, also if it was
 * set up after the last look.  The device does not receive meanwhile.
 */
static void rx_moves(WriteWalk *w, unsigned q)
{
    if (!w->rx[q].valid && !w->rx[q].lost) {
        load_rx(w, q);
    }
    mark_if_lost(w, &w->rx[q]);
    mark_rx(w, &w->rx[q]);
    ring_drop(&w->rx[q]);
}

/*
 * A register is about to be written that does not end what the ring does (a
 * driver changes filters in RCTL at any time), but may change how the device
 * uses it: read it anew, as the device will.
 *
 * What it had is marked after that.  Thus an entry that the device finishes
 * meanwhile is either marked then, or still in the ring as it was read.
 */
static void rx_changes(WriteWalk *w, unsigned q, uint32_t reg, uint32_t val)
{
    Ring old = w->rx[q];

    memset(&w->rx[q], 0, sizeof(w->rx[q]));
    w->next_reg = reg;
    w->next_val = val;
    load_rx(w, q);
    w->next_reg = NO_REG;
    mark_if_lost(w, &old);
    mark_rx(w, &old);
    ring_drop(&old);
}

static void all_rx_change(WriteWalk *w, uint32_t reg, uint32_t val)
{
    for (unsigned q = 0; q < w->model->queues; q++) {
        rx_changes(w, q, reg, val);
    }
}

static void write_rx(WriteWalk *w, unsigned q, uint32_t field, uint32_t val)
{
    const QueueSet *set = &w->model->sets[0];

    switch (field) {
    case QUEUE_TAIL:
        rx_tail(w, q, val);
        break;
    case QUEUE_BASE_LO:
    case QUEUE_BASE_HI:
    case QUEUE_LEN:
        rx_moves(w, q);
        break;
    case QUEUE_SRRCTL:
    case QUEUE_HEAD:
    case QUEUE_CTL:
        rx_changes(w, q, queue_reg(set->rx, set, q, field), val);
        break;
    }
}

static void write_tx(WriteWalk *w, unsigned q, uint32_t field)
{
    switch (field) {
    case QUEUE_BASE_LO:
    case QUEUE_BASE_HI:
    case QUEUE_LEN:
    case QUEUE_WB_LO:
    case QUEUE_WB_HI:
        sync_tx(w, q);
        ring_drop(&w->tx[q]);
        break;
    default:
        if (!w->tx[q].valid) {
            /* from now on it is written to; a reset may come before the sync */
            load_tx(w, q);
        }
    }
}

void write_walk_write(WriteWalk *w, uint32_t reg, uint64_t val, unsigned size)
{
    unsigned q;
    uint32_t field;

    if (!w->started) {
        return;
    }
    if (size != 4 || reg % 4) {
        /* the hardware takes 32 bits; what it makes of this is its secret */
        for (q = 0; q < w->model->queues; q++) {
            w->rx[q].lost = true;
        }
        w->io->mark_all(w->opaque, "odd access to a register");
        return;
    }
    if (!w->model->igb &&
        (reg == REG_RCTL || reg == REG_PSRCTL || reg == REG_RFCTL)) {
        all_rx_change(w, reg, val);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(w->model->sets); i++) {
        const QueueSet *set = &w->model->sets[i];

        if (decode(reg, set->rx, set, &q, &field)) {
            write_rx(w, q, field, val);
            return;
        }
        if (decode(reg, set->tx, set, &q, &field)) {
            write_tx(w, q, field);
            return;
        }
    }
}

/*
 * The guest has turned the decoding of accesses off, and the device goes on
 * with the rings that it had.  Every tail write up to then was seen, so what it
 * may write is what is known of them; how far it got is not.
 */
static bool is_hidden(WriteWalk *w)
{
    uint32_t val;

    return !w->io->decodes(w->opaque) && !rx_reg(w, 0, QUEUE_BASE_LO, &val);
}

static void sync_hidden(WriteWalk *w, Ring *r,
                        void (*mark)(WriteWalk *w, Ring *r))
{
    if (r->lost || !r->known) {
        w->io->mark_all(w->opaque, "registers cannot be read");
    } else {
        mark(w, r);
    }
}

void write_walk_sync(WriteWalk *w, bool last)
{
    bool hidden = w->started && is_hidden(w);

    for (unsigned q = 0; w->started && q < w->model->queues; q++) {
        if (hidden) {
            sync_hidden(w, &w->rx[q], mark_rx);
            sync_hidden(w, &w->tx[q], mark_tx);
        } else {
            sync_rx(w, q, last);
            sync_tx(w, q);
        }
    }
}

uint64_t write_walk_armed(const WriteWalk *w)
{
    uint64_t armed = 0;

    for (unsigned q = 0; q < w->model->queues; q++) {
        armed += w->rx[q].entries;
    }
    return armed;
}
