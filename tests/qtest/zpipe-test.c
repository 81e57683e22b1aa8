/*
 * QTest: asynchronous pipes behind virtio-serial
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The test is the guest's driver and the peer at once.  Both directions carry
 * a stream whose byte at each position is known, so that a byte which is lost,
 * doubled or moved shows.  HOTPATH_SEED replays a run.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/wait.h>
#include "libqtest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_console.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_pci.h"
#include "zpipe.h"

#define SLOT 4
#define WAIT_US (30 * 1000 * 1000)

/* Elements of each queue: a chain of descriptors and memory of its own. */
enum { QUEUE = 128, CHAIN = 16, ELEMS = QUEUE / CHAIN, ELEM_BYTES = 64 * 1024 };

typedef struct Queue {
    QVirtQueue *vq;
    bool write;                 /* the device writes: host to guest */
    uint16_t avail, used;       /* indices */
    unsigned free;              /* bitmap of elements */
    uint64_t memory;            /* ELEMS * ELEM_BYTES */
    size_t len[ELEMS];
    uint64_t pos;               /* in the stream: next to post, next to check */
    unsigned returned;          /* elements, since the beginning */
} Queue;

typedef struct Guest {
    QTestState *qts;
    QPCIBus *bus;
    QVirtioPCIDevice *dev;
    QGuestAllocator alloc;
    GPtrArray *vqs;             /* those that there were, to be freed */
    Queue cin, cout, in, out;
    unsigned nr;
} Guest;

typedef struct Peer {
    struct zpipe *zp;
    uint64_t got, sent;         /* positions in the streams */
    bool reading, writing;
    struct zpipe_req read, write;
    struct iovec read_iov, write_iov;
    uint8_t in[100 * 1000], out[100 * 1000];
} Peer;

typedef struct Test {
    char *dir, *path;
    Guest guest;
    Peer *peer;
} Test;

static GRand *rnd;

static size_t random_size(size_t max)
{
    return g_rand_int_range(rnd, 0, 4) ? g_rand_int_range(rnd, 1, max + 1)
                                       : g_rand_int_range(rnd, 1, 200);
}

/* The byte at a position of the stream from guest to host, or back. */
static uint8_t stream_byte(uint64_t pos, bool to_guest)
{
    uint64_t x = (pos + to_guest) * 0x9e3779b97f4a7c15ull;

    return (x >> 56) ^ (pos >> 8);
}

static void stream_fill(uint8_t *buf, size_t len, uint64_t pos, bool to_guest)
{
    for (size_t i = 0; i < len; i++) {
        buf[i] = stream_byte(pos + i, to_guest);
    }
}

static void stream_check(const uint8_t *buf, size_t len, uint64_t pos,
                         bool to_guest)
{
    for (size_t i = 0; i < len; i++) {
        if (buf[i] != stream_byte(pos + i, to_guest)) {
            g_error("wrong byte at position %" PRIu64 " %s the guest",
                    pos + i, to_guest ? "to" : "from");
        }
    }
}

/* ------------------------------------------------------------- the guest */

static void queue_init(Guest *g, Queue *q, int index, bool write)
{
    memset(q, 0, sizeof(*q));
    q->vq = qvirtqueue_setup(&g->dev->vdev, &g->alloc, index);
    g_ptr_array_add(g->vqs, container_of(q->vq, QVirtQueuePCI, vq));
    q->write = write;
    q->free = (1u << MIN(ELEMS, q->vq->size / CHAIN)) - 1;
    q->memory = guest_alloc(&g->alloc, ELEMS * ELEM_BYTES);
}

static void put_desc(Guest *g, Queue *q, unsigned i, uint64_t addr,
                     uint32_t len, bool next)
{
    uint64_t desc = q->vq->desc + 16 * i;
    uint16_t flags = (q->write ? VRING_DESC_F_WRITE : 0) |
                     (next ? VRING_DESC_F_NEXT : 0);

    qtest_writeq(g->qts, desc, addr);
    qtest_writel(g->qts, desc + 8, len);
    qtest_writew(g->qts, desc + 12, flags);
    qtest_writew(g->qts, desc + 14, i + 1);
}

/* Make element @e of @len bytes, in @segments descriptors, available. */
static void queue_post(Guest *g, Queue *q, unsigned e, size_t len,
                       unsigned segments)
{
    uint64_t addr = q->memory + e * ELEM_BYTES;
    size_t left = len;

    segments = MAX(1, MIN(segments, MIN(len, CHAIN)));
    for (unsigned i = 0; i < segments; i++) {
        size_t n = i + 1 == segments ? left : len / segments;

        put_desc(g, q, e * CHAIN + i, addr, n, i + 1 < segments);
        addr += n;
        left -= n;
    }
    q->len[e] = len;
    q->free &= ~(1u << e);
    qtest_writew(g->qts, q->vq->avail + 4 + 2 * (q->avail % q->vq->size),
                 e * CHAIN);
    qtest_writew(g->qts, q->vq->avail + 2, ++q->avail);
}

static void queue_kick(Guest *g, Queue *q)
{
    g->dev->vdev.bus->virtqueue_kick(&g->dev->vdev, q->vq);
}

static int queue_take(Guest *g, Queue *q, uint32_t *len)
{
    uint64_t elem = q->vq->used + 4 + 8 * (q->used % q->vq->size);
    int e;

    if (qtest_readw(g->qts, q->vq->used + 2) == q->used) {
        return -1;
    }
    e = qtest_readl(g->qts, elem) / CHAIN;
    *len = qtest_readl(g->qts, elem + 4);
    g_assert_cmpint(e, <, ELEMS);
    g_assert_false(q->free & (1u << e));
    q->free |= 1u << e;
    q->used++;
    q->returned++;
    return e;
}

static void control(Guest *g, uint32_t id, uint16_t event, uint16_t value)
{
    struct virtio_console_control msg = { id, event, value };
    uint32_t len;
    int64_t end = g_get_monotonic_time() + WAIT_US;

    qtest_memwrite(g->qts, g->cout.memory, &msg, sizeof(msg));
    queue_post(g, &g->cout, 0, sizeof(msg), 1);
    queue_kick(g, &g->cout);
    while (queue_take(g, &g->cout, &len) < 0) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
}

static void guest_queues(Guest *g)
{
    QVirtioDevice *d = &g->dev->vdev;
    uint64_t features;
    unsigned first = g->nr ? 2 + 2 * g->nr : 0;

    qvirtio_start_device(d);
    features = qvirtio_get_features(d);
    features &= ~(QVIRTIO_F_BAD_FEATURE | (1ull << VIRTIO_RING_F_EVENT_IDX) |
                  (1ull << VIRTIO_RING_F_INDIRECT_DESC));
    qvirtio_set_features(d, features);
    queue_init(g, &g->cin, 2, true);
    queue_init(g, &g->cout, 3, false);
    queue_init(g, &g->in, first, true);
    queue_init(g, &g->out, first + 1, false);
    qvirtio_set_driver_ok(d);

    control(g, VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY, 1);
    control(g, g->nr, VIRTIO_CONSOLE_PORT_READY, 1);
    control(g, g->nr, VIRTIO_CONSOLE_PORT_OPEN, 1);
}

static void guest_init(Guest *g, QTestState *qts, unsigned nr)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(SLOT, 0) };

    g->qts = qts;
    g->nr = nr;
    g->vqs = g_ptr_array_new_with_free_func(g_free);
    pc_alloc_init(&g->alloc, qts, 0);
    g->bus = qpci_new_pc(qts, &g->alloc);
    g->dev = virtio_pci_new(g->bus, &addr);
    g_assert_nonnull(g->dev);
    g_assert_cmpint(g->dev->vdev.device_type, ==, VIRTIO_ID_CONSOLE);
    qvirtio_pci_device_enable(g->dev);
    guest_queues(g);
}

/* Post what there is room for, up to a position of the stream. */
static void guest_post_out(Guest *g, uint64_t end, unsigned segments)
{
    bool any = false;

    for (unsigned e = 0; e < ELEMS && g->out.pos < end; e++) {
        g_autofree uint8_t *buf = NULL;
        size_t len;

        if (!(g->out.free & (1u << e))) {
            continue;
        }
        len = MIN(random_size(ELEM_BYTES), end - g->out.pos);
        buf = g_malloc(len);
        stream_fill(buf, len, g->out.pos, false);
        qtest_bufwrite(g->qts, g->out.memory + e * ELEM_BYTES, buf, len);
        queue_post(g, &g->out, e, len, segments);
        g->out.pos += len;
        any = true;
    }
    if (any) {
        queue_kick(g, &g->out);
    }
}

static void guest_post_in(Guest *g, unsigned segments)
{
    bool any = false;

    for (unsigned e = 0; e < ELEMS; e++) {
        if (g->in.free & (1u << e)) {
            queue_post(g, &g->in, e, random_size(ELEM_BYTES), segments);
            any = true;
        }
    }
    if (any) {
        queue_kick(g, &g->in);
    }
}

/* Take back what the device is done with; check what it has written. */
static void guest_poll(Guest *g)
{
    uint32_t len;
    int e;

    do {
        e = queue_take(g, &g->out, &len);
    } while (e >= 0);
    while ((e = queue_take(g, &g->in, &len)) >= 0) {
        g_autofree uint8_t *buf = g_malloc(len + 1);

        g_assert_cmpint(len, <=, g->in.len[e]);
        qtest_bufread(g->qts, g->in.memory + e * ELEM_BYTES, buf, len);
        stream_check(buf, len, g->in.pos, true);
        g->in.pos += len;
    }
}

static bool guest_out_idle(Guest *g)
{
    return g->out.free == (1u << MIN(ELEMS, g->out.vq->size / CHAIN)) - 1;
}

/* -------------------------------------------------------------- the peer */

static Peer *peer_new(const char *path)
{
    struct zpipe_config config = {
        .size = sizeof(config), .flags = ZPIPE_PERSISTENT
    };
    Peer *p = g_new0(Peer, 1);
    int ret = -ECONNREFUSED;

    p->zp = zpipe_new(&config);
    g_assert_nonnull(p->zp);
    /* the socket is there a moment before anybody listens on it */
    for (int i = 0; i < 500 && ret == -ECONNREFUSED; i++) {
        ret = zpipe_connect(p->zp, path);
        if (ret) {
            g_usleep(10 * 1000);
        }
    }
    g_assert_cmpint(ret, ==, 0);
    return p;
}

static void peer_free(Peer *p)
{
    if (p) {
        zpipe_free(p->zp);
        g_free(p);
    }
}

static void peer_reap(Peer *p)
{
    struct zpipe_req *req;

    while ((req = zpipe_reap(p->zp))) {
        if (req == &p->read) {
            p->reading = false;
            if (req->result > 0) {
                stream_check(p->in, req->result, p->got, false);
                p->got += req->result;
            }
        } else {
            p->writing = false;
            p->sent += MAX(req->result, 0);
        }
    }
}

/* Read at most up to a position. */
static void peer_read(Peer *p, uint64_t end)
{
    if (p->reading || p->got >= end) {
        return;
    }
    p->read_iov.iov_base = p->in;
    p->read_iov.iov_len = MIN(random_size(sizeof(p->in)), end - p->got);
    p->read = (struct zpipe_req) { .iov = &p->read_iov, .iovcnt = 1 };
    g_assert_cmpint(zpipe_read(p->zp, &p->read), ==, 0);
    p->reading = true;
}

static void peer_write(Peer *p, uint64_t end)
{
    if (p->writing || p->sent >= end) {
        return;
    }
    p->write_iov.iov_base = p->out;
    p->write_iov.iov_len = MIN(random_size(sizeof(p->out)), end - p->sent);
    stream_fill(p->out, p->write_iov.iov_len, p->sent, true);
    p->write = (struct zpipe_req) { .iov = &p->write_iov, .iovcnt = 1 };
    g_assert_cmpint(zpipe_write(p->zp, &p->write), ==, 0);
    p->writing = true;
}

/* -------------------------------------------------------------- the test */

#define wait_until(t, condition) do {                                   \
        int64_t until = g_get_monotonic_time() + WAIT_US;               \
        while (!(condition)) {                                          \
            if (g_get_monotonic_time() > until) {                       \
                give_up(t, #condition);                                 \
            }                                                           \
            if ((t)->peer) {                                            \
                peer_reap((t)->peer);                                   \
            }                                                           \
            g_usleep(200);                                              \
        }                                                               \
    } while (0)

static void give_up(Test *t, const char *condition)
{
    char *info = qtest_hmp(t->guest.qts, "info zpipe");

    g_error("no %s: guest out %" PRIu64 " in %" PRIu64 ", peer got %" PRIu64
            " sent %" PRIu64 "\n%s", condition, t->guest.out.pos,
            t->guest.in.pos, t->peer ? t->peer->got : 0,
            t->peer ? t->peer->sent : 0, info);
}

static void test_dir(Test *t)
{
    memset(t, 0, sizeof(*t));
    t->dir = g_dir_make_tmp("zpipe-test-XXXXXX", NULL);
    g_assert_nonnull(t->dir);
    t->path = g_strdup_printf("%s/s", t->dir);
}

static QTestState *start_qemu(Test *t, const char *chardev, const char *port,
                              const char *more)
{
    return qtest_initf("-M pc -nodefaults -m 64 "
                       "-chardev zpipe,id=ch,path=%s,%s "
                       "-device virtio-serial-pci,id=vs,addr=%x.0 "
                       "-device %s,bus=vs.0,chardev=ch,id=port %s",
                       t->path, chardev, SLOT, port, more);
}

static void test_begin(Test *t, const char *chardev, const char *more)
{
    test_dir(t);
    guest_init(&t->guest, start_qemu(t, chardev, "virtserialport,nr=1", more),
               1);
    t->peer = peer_new(t->path);
    wait_until(t, zpipe_state(t->peer->zp) == ZPIPE_CONNECTED);
}

static void test_end(Test *t)
{
    peer_free(t->peer);
    g_ptr_array_free(t->guest.vqs, true);
    alloc_destroy(&t->guest.alloc);
    g_free(t->guest.dev->pdev);
    g_free(t->guest.dev);
    qpci_free_pc(t->guest.bus);
    qtest_quit(t->guest.qts);
    g_unlink(t->path);
    g_assert_cmpint(rmdir(t->dir), ==, 0);
    g_free(t->path);
    g_free(t->dir);
}

static uint64_t stat_of(QTestState *qts, const char *name)
{
    QDict *response = qtest_qmp(qts, "{'execute': 'query-stats', 'arguments':"
                                "{'target': 'vm', 'providers':"
                                "[{'provider': 'hotpath', 'names': [%s]}]}}",
                                name);
    QList *results = qdict_get_qlist(response, "return");
    QList *stats;
    QDict *stat;
    uint64_t value;

    g_assert_cmpint(qlist_size(results), ==, 1);
    stats = qdict_get_qlist(qobject_to(QDict, qlist_peek(results)), "stats");
    stat = qobject_to(QDict, qlist_peek(stats));
    value = qdict_get_int(stat, "value");
    qobject_unref(response);
    return value;
}

/* Both streams, up to positions. */
static void transfer(Test *t, uint64_t out, uint64_t in, unsigned segments)
{
    Guest *g = &t->guest;
    int64_t end = g_get_monotonic_time() + WAIT_US;

    while (t->peer->got < out || g->in.pos < in || !guest_out_idle(g)) {
        if (g_get_monotonic_time() > end) {
            give_up(t, "transfer");
        }
        guest_post_out(g, out, segments);
        guest_post_in(g, segments);
        guest_poll(g);
        peer_read(t->peer, out);
        peer_write(t->peer, in);
        peer_reap(t->peer);
    }
    g_assert_cmpint(t->peer->got, ==, out);
    g_assert_cmpint(g->in.pos, ==, in);
}

static void test_both_ways(const void *data)
{
    const char *options = data;
    Test t;

    test_begin(&t, options, "");
    transfer(&t, 1000 * 1000, 1000 * 1000, 1);
    transfer(&t, 2000 * 1000, 2000 * 1000, CHAIN);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-lost-bytes"), ==, 0);
    test_end(&t);
}

/* A backing store that the peer can look at, and nobody else can write. */
#define SHARED_RAM "-object memory-backend-memfd,id=mem,size=64M,share=on," \
                   "seal-write=on -machine memory-backend=mem"
/* One that the peer, which has QEMU's user, could open for writing. */
#define UNSEALED_RAM "-object memory-backend-memfd,id=mem,size=64M,share=on " \
                     "-machine memory-backend=mem"

/* The guest's own memory is what the peer sees. */
static void test_view(void)
{
    struct zpipe_req view = { };
    Test t;

    test_begin(&t, "server=on,wait=off,share-ram=on,mechanism=map",
               SHARED_RAM);
    guest_post_out(&t.guest, 32 * 1024, 1);
    while (t.peer->got < 32 * 1024) {
        view = (struct zpipe_req) { };
        g_assert_cmpint(zpipe_read_view(t.peer->zp, &view), ==, 0);
        wait_until(&t, (zpipe_reap(t.peer->zp), view.result > 0));
        stream_check(view.view, view.result, t.peer->got, false);
        t.peer->got += view.result;
        zpipe_view_done(t.peer->zp, &view);
        guest_post_out(&t.guest, 32 * 1024, 1);
        guest_poll(&t.guest);
    }
    wait_until(&t, (guest_poll(&t.guest), guest_out_idle(&t.guest)));
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-tx-map-bytes"), >, 0);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-shared-ram-blocks"), >, 0);
    test_end(&t);
}

/* The memfd of QEMU's, opened by one who has all rights. */
static int open_ram(QTestState *qts)
{
    g_autofree char *fds = g_strdup_printf("/proc/%d/fd", qtest_pid(qts));
    g_autoptr(GDir) dir = g_dir_open(fds, 0, NULL);
    const char *name;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(fds, name, NULL);
        g_autofree char *file = g_file_read_link(path, NULL);

        if (file && strstr(file, "memfd:memory-backend-memfd")) {
            g_assert_cmpint(chmod(path, 0600), ==, 0);
            return open(path, O_RDWR);
        }
    }
    return -1;
}

static void test_sealed_ram(void)
{
    void *p;
    Test t;
    int fd;

    test_begin(&t, "server=on,wait=off,share-ram=on", SHARED_RAM);
    fd = open_ram(t.guest.qts);
    g_assert_cmpint(fd, >=, 0);
    p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    g_assert_true(p == MAP_FAILED);
    g_assert_cmpint(errno, ==, EPERM);
    g_assert_cmpint(pwrite(fd, "x", 1, 0), <, 0);
    g_assert_cmpint(ftruncate(fd, 0), <, 0);
    close(fd);
    /* the guest's writes are QEMU's, and it goes on */
    transfer(&t, 300 * 1000, 300 * 1000, 3);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-shared-ram-blocks"), >, 0);
    test_end(&t);
}

/* This process has QEMU's user: it gets the bytes, but not the memory. */
static void test_withheld(const void *data)
{
    bool trusted = data;
    Test t;

    test_begin(&t, trusted ? "server=on,wait=off,mechanism=map,share-ram=on,"
                             "trusted-peer=on"
                           : "server=on,wait=off,mechanism=map,share-ram=on",
               UNSEALED_RAM);
    transfer(&t, 300 * 1000, 300 * 1000, 3);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-shared-ram-blocks") > 0, ==,
                    trusted);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-share-ram-refused") > 0, ==,
                    !trusted);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-fallback-peer-untrusted") > 0,
                    ==, !trusted);
    test_end(&t);
}

/* RAM that comes and goes is shown and taken away. */
static void test_ram_plug(void)
{
    uint64_t blocks;
    Test t;

    test_begin(&t, "server=on,wait=off,share-ram=on,mechanism=map",
               SHARED_RAM " -m 64M,slots=2,maxmem=1G");
    blocks = stat_of(t.guest.qts, "zpipe-shared-ram-blocks");
    transfer(&t, 100 * 1000, 100 * 1000, 3);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'object-add',"
        "'arguments': {'qom-type': 'memory-backend-memfd', 'id': 'more',"
        "'size': 134217728, 'share': true, 'seal-write': true}}");
    qtest_qmp_device_add(t.guest.qts, "pc-dimm", "dimm", "{'memdev': 'more'}");
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-shared-ram-blocks"), ==,
                    blocks + 1);
    transfer(&t, 200 * 1000, 200 * 1000, 3);
    /* the guest ejects it: docs/specs/acpi_mem_hotplug.rst */
    qtest_qmp_device_del_send(t.guest.qts, "dimm");
    qtest_outl(t.guest.qts, 0xa00, 0);
    qtest_outb(t.guest.qts, 0xa14, 1 << 3);
    qtest_qmp_eventwait(t.guest.qts, "DEVICE_DELETED");
    /* the memory stays until its object goes */
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'object-del',"
                             "'arguments': {'id': 'more'}}");
    wait_until(&t, stat_of(t.guest.qts, "zpipe-shared-ram-blocks") == blocks);
    transfer(&t, 300 * 1000, 300 * 1000, 3);
    test_end(&t);
}

static void expect_error(QDict *response, const char *word)
{
    QDict *error = qdict_get_qdict(response, "error");

    g_assert_nonnull(error);
    g_test_message("%s", qdict_get_str(error, "desc"));
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), word));
    qobject_unref(response);
}

/* Memory that can be discarded is not shown, in either order. */
static void test_virtio_mem(void)
{
    const char *ram = SHARED_RAM " -m 64M,slots=2,maxmem=1G "
        "-object memory-backend-ram,id=vm0,size=128M";
    QTestState *qts;
    Test t;

    test_begin(&t, "server=on,wait=off,share-ram=on", ram);
    expect_error(qtest_qmp(t.guest.qts, "{'execute': 'device_add',"
                           "'arguments': {'driver': 'virtio-mem-pci',"
                           "'id': 'm', 'memdev': 'vm0'}}"), "iscard");
    transfer(&t, 100 * 1000, 100 * 1000, 3);
    test_end(&t);

    qts = qtest_initf("-M pc -nodefaults %s "
                      "-device virtio-mem-pci,id=m,memdev=vm0", ram);
    expect_error(qtest_qmp(qts, "{'execute': 'chardev-add', 'arguments':"
                           "{'id': 'x', 'backend': {'type': 'zpipe', 'data':"
                           "{'path': '/nonexistent/x', 'share-ram': true}}}}"),
                 "virtio-mem");
    qtest_quit(qts);
}

static void test_bad_memory(void)
{
    QTestState *qts = qtest_init("-M pc -nodefaults -m 64");

    expect_error(qtest_qmp(qts, "{'execute': 'object-add', 'arguments':"
                           "{'qom-type': 'memory-backend-memfd', 'id': 'm',"
                           "'size': 4096, 'seal': false,"
                           "'seal-write': true}}"), "seal-write=on needs");
    expect_error(qtest_qmp(qts, "{'execute': 'chardev-add', 'arguments':"
                           "{'id': 'x', 'backend': {'type': 'zpipe', 'data':"
                           "{'path': '/nonexistent/x',"
                           "'trusted-peer': true}}}}"), "trusted-peer=on");
    qtest_quit(qts);
}

/* A reset guest has its buffers back, whatever the peer looks at. */
static void test_reset(const void *data)
{
    const char *options = data;
    struct zpipe_req view = { };
    uint64_t cancelled;
    Test t;

    test_begin(&t, options, SHARED_RAM);
    guest_post_in(&t.guest, 2);
    guest_post_out(&t.guest, 300 * 1000, CHAIN);
    g_assert_cmpint(zpipe_read_view(t.peer->zp, &view), ==, 0);
    for (int i = 0; i < 200 && !view.result; i++) {
        zpipe_reap(t.peer->zp);
        g_usleep(1000);
    }
    cancelled = stat_of(t.guest.qts, "zpipe-cancelled");
    qvirtio_reset(&t.guest.dev->vdev);
    /* once: nothing was handed out anew while the device was told */
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-cancelled"), ==,
                    cancelled + 1);
    g_assert_cmpint(qvirtio_get_features(&t.guest.dev->vdev), !=, 0);
    if (view.result > 0 && view.view) {
        zpipe_view_done(t.peer->zp, &view);
    }

    /* a fresh driver, and a fresh peer */
    peer_free(t.peer);
    guest_queues(&t.guest);
    t.peer = peer_new(t.path);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    transfer(&t, 300 * 1000, 300 * 1000, 3);
    test_end(&t);
}

static uint64_t requests(Test *t)
{
    QDict *response = qtest_qmp(t->guest.qts, "{'execute': 'query-zpipe'}");
    QDict *info = qobject_to(QDict,
                             qlist_peek(qdict_get_qlist(response, "return")));
    uint64_t n = qdict_get_int(info, "tx-requests") +
        qdict_get_int(info, "rx-requests");

    qobject_unref(response);
    return n;
}

/* The guest resets one queue, and sets it up anew. */
static void test_queue_reset(void)
{
    QVirtioPCIDevice *dev;
    uint64_t config;
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    dev = t.guest.dev;
    config = dev->common_cfg_offset;
    guest_post_in(&t.guest, 2);
    wait_until(&t, requests(&t) == ELEMS);
    guest_post_out(&t.guest, 300 * 1000, CHAIN);
    wait_until(&t, requests(&t) > ELEMS);
    qpci_io_writew(dev->pdev, dev->bar,
                   config + offsetof(struct virtio_pci_common_cfg,
                                     queue_select), t.guest.out.vq->index);
    qpci_io_writew(dev->pdev, dev->bar,
                   config + offsetof(struct virtio_pci_modern_common_cfg,
                                     queue_reset), 1);
    /* the other queue's are where they were */
    g_assert_cmpint(requests(&t), ==, ELEMS);
    peer_write(t.peer, 100);
    wait_until(&t, (guest_poll(&t.guest), t.guest.in.pos > 0));

    queue_init(&t.guest, &t.guest.out, t.guest.out.vq->index, false);
    transfer(&t, 300 * 1000, 300 * 1000, 3);
    test_end(&t);
}

/* Stop and go on, in the middle of both streams. */
static void test_stop(const void *data)
{
    const char *options = data;
    Test t;

    test_begin(&t, options, SHARED_RAM);
    for (int i = 1; i <= 10; i++) {
        uint64_t out = i * 70 * 1000, in = i * 50 * 1000;
        uint64_t got;

        guest_post_in(&t.guest, 3);
        guest_post_out(&t.guest, out, CHAIN);
        peer_write(t.peer, in);
        peer_read(t.peer, out - 30 * 1000);
        for (int k = 0; k < 20; k++) {
            peer_reap(t.peer);
            g_usleep(200);
        }
        qtest_qmp_assert_success(t.guest.qts, "{'execute': 'stop'}");
        peer_reap(t.peer);
        /* nothing of the guest's is with the peer now */
        got = t.peer->got;
        peer_read(t.peer, out);
        for (int k = 0; k < 20; k++) {
            peer_reap(t.peer);
            g_usleep(200);
        }
        g_assert_cmpint(t.peer->got, ==, got);
        qtest_qmp_assert_success(t.guest.qts, "{'execute': 'cont'}");
        transfer(&t, out, in, 5);
    }
    test_end(&t);
}

typedef struct MigrationCase {
    const char *from, *to, *name, *mode;
} MigrationCase;

static void wait_for_status(QTestState *qts, const char *wanted)
{
    int64_t end = g_get_monotonic_time() + WAIT_US;

    for (;;) {
        QDict *info = qtest_qmp_assert_success_ref(qts,
            "{'execute': 'query-migrate'}");
        const char *status = qdict_get_try_str(info, "status");
        bool done = g_str_equal(status ?: "", wanted);

        g_assert_cmpstr(status, !=, "failed");
        qobject_unref(info);
        if (done) {
            return;
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(2000);
    }
}

static void wait_for_completed(QTestState *qts)
{
    wait_for_status(qts, "completed");
}

/* Another QEMU goes on where the first one was, with another peer. */
static void test_migration(const void *data)
{
    const MigrationCase *c = data;
    g_autofree char *more = NULL, *uri = NULL, *log = NULL;
    QTestState *from, *to;
    uint64_t got, sent;
    Test t;

    test_dir(&t);
    uri = g_strdup_printf("unix:%s/migrate", t.dir);
    more = g_strdup_printf("-incoming %s " SHARED_RAM, uri);
    from = start_qemu(&t, c->from, "virtserialport,nr=1", SHARED_RAM);
    guest_init(&t.guest, from, 1);
    t.peer = peer_new(t.path);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    to = start_qemu(&t, c->to, "virtserialport,nr=1", more);

    transfer(&t, 100 * 1000, 100 * 1000, 4);
    guest_post_in(&t.guest, 3);
    guest_post_out(&t.guest, 600 * 1000, CHAIN);
    peer_read(t.peer, 150 * 1000);
    wait_until(&t, !t.peer->reading);
    if (c->mode) {
        qtest_qmp_assert_success(from, "{'execute': 'migrate-set-parameters',"
                                 "'arguments': {'mode': %s}}", c->mode);
    }
    qtest_qmp_assert_success(from, "{'execute': 'migrate', 'arguments':"
                             "{'uri': %s}}", uri);
    wait_for_completed(from);
    qtest_qmp_eventwait(to, "RESUME");
    /* what the first one has copied for the peer is there to be read */
    wait_until(&t, (peer_read(t.peer, 600 * 1000),
                    zpipe_state(t.peer->zp) == ZPIPE_IDLE));

    /* the guest, and what the driver knows, have moved */
    got = t.peer->got;
    sent = t.peer->sent;
    peer_free(t.peer);
    t.guest.qts = t.guest.bus->qts = to;
    t.peer = NULL;
    wait_until(&t, g_file_test(t.path, G_FILE_TEST_EXISTS));
    t.peer = peer_new(t.path);
    t.peer->got = got;
    t.peer->sent = sent;
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    transfer(&t, 700 * 1000, 200 * 1000, 3);
    g_assert_cmpint(stat_of(to, "zpipe-lost-bytes"), ==, 0);
    qtest_quit(from);

    log = g_strdup_printf("%s/log", t.dir);
    g_unlink(log);
    g_free(log);
    log = g_strdup_printf("%s/migrate", t.dir);
    g_unlink(log);
    test_end(&t);
}

/* It was saved, and goes on: what the guest has queued is still there. */
static void test_saved(void)
{
    g_autofree char *uri = NULL, *state = NULL;
    uint64_t got, sent;
    Test t;

    test_begin(&t, "server=on,wait=off", SHARED_RAM);
    state = g_strdup_printf("%s/state", t.dir);
    uri = g_strdup_printf("file:%s", state);
    transfer(&t, 100 * 1000, 100 * 1000, 4);
    guest_post_out(&t.guest, 600 * 1000, CHAIN);
    peer_read(t.peer, 150 * 1000);
    wait_until(&t, !t.peer->reading);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'migrate',"
                             "'arguments': {'uri': %s}}", uri);
    wait_for_completed(t.guest.qts);
    wait_until(&t, (peer_read(t.peer, 600 * 1000),
                    zpipe_state(t.peer->zp) == ZPIPE_IDLE));
    got = t.peer->got;
    sent = t.peer->sent;
    g_assert_cmpint(got, <, 600 * 1000);
    peer_free(t.peer);
    t.peer = NULL;
    g_assert_false(g_file_test(t.path, G_FILE_TEST_EXISTS));

    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'cont'}");
    wait_until(&t, g_file_test(t.path, G_FILE_TEST_EXISTS));
    t.peer = peer_new(t.path);
    t.peer->got = got;
    t.peer->sent = sent;
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    transfer(&t, 700 * 1000, 200 * 1000, 3);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-lost-bytes"), ==, 0);
    g_unlink(state);
    test_end(&t);
}

#define CPR_TRANSFER "{'execute': 'migrate', 'arguments': {'channels': [" \
    "{'channel-type': 'main', 'addr': {'transport': 'socket'," \
    " 'type': 'unix', 'path': '/nonexistent/m'}}, {'channel-type': 'cpr'," \
    " 'addr': {'transport': 'socket', 'type': 'unix'," \
    " 'path': '/nonexistent/c'}}]}}"

static void set_mode(QTestState *qts, const char *mode)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-parameters',"
                             "'arguments': {'mode': %s}}", mode);
}

/* The kinds of CPR in which a chardev would have to go over are refused. */
static void test_cpr(void)
{
    g_autofree char *other = NULL;
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    /* the newest blocker is the one that is told; RAM may have one, too */
    other = g_strdup_printf("%s/other", t.dir);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'chardev-add',"
        "'arguments': {'id': 'x', 'backend': {'type': 'zpipe', 'data':"
        "{'path': %s, 'server': true}}}}", other);
    set_mode(t.guest.qts, "cpr-transfer");
    expect_error(qtest_qmp(t.guest.qts, CPR_TRANSFER), "zpipe");
    set_mode(t.guest.qts, "normal");
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'chardev-remove',"
                             "'arguments': {'id': 'x'}}");
    transfer(&t, 100 * 1000, 100 * 1000, 3);
    test_end(&t);
}

static void pause_before_end(QTestState *qts, bool on)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-capabilities',"
        "'arguments': {'capabilities': [{'capability':"
        "'pause-before-switchover', 'state': %i}]}}", on);
}

/* Another one is added while a migration runs; it counts after that. */
static void test_add_meanwhile(void)
{
    const char *add = "{'execute': 'chardev-add', 'arguments': {'id': %s,"
        "'backend': {'type': 'zpipe', 'data': {'path': %s, 'server': true}}}}";
    g_autofree char *x = NULL, *y = NULL, *z = NULL;
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    x = g_strdup_printf("%s/x", t.dir);
    y = g_strdup_printf("%s/y", t.dir);
    z = g_strdup_printf("%s/z", t.dir);
    qtest_qmp_assert_success(t.guest.qts, "{'execute':"
        "'migrate-set-parameters', 'arguments': {'max-bandwidth': 4096}}");
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'migrate',"
        "'arguments': {'uri': 'exec:cat >/dev/null'}}");
    qtest_qmp_assert_success(t.guest.qts, add, "x", x);
    qtest_qmp_assert_success(t.guest.qts, add, "y", y);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'chardev-remove',"
                             "'arguments': {'id': 'y'}}");
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'migrate_cancel'}");
    wait_for_status(t.guest.qts, "cancelled");
    set_mode(t.guest.qts, "cpr-transfer");
    expect_error(qtest_qmp(t.guest.qts, CPR_TRANSFER), "chardev x: a zpipe");
    set_mode(t.guest.qts, "normal");
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'chardev-remove',"
                             "'arguments': {'id': 'x'}}");
    transfer(&t, 100 * 1000, 100 * 1000, 3);

    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'migrate',"
        "'arguments': {'uri': 'exec:cat >/dev/null'}}");
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'chardev-change',"
        "'arguments': {'id': 'ch', 'backend': {'type': 'zpipe', 'data':"
        "{'path': %s, 'server': true}}}}", y);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'migrate_cancel'}");
    wait_for_status(t.guest.qts, "cancelled");

    /*
     * The mode may change then: it picks who hears of the migration's end.  In
     * another mode QEMU does not survive that it completes, which can be soon;
     * and it forgets its bitmaps, which the next migration would lose.
     */
    pause_before_end(t.guest.qts, true);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'migrate',"
        "'arguments': {'uri': 'exec:cat >/dev/null'}}");
    qtest_qmp_assert_success(t.guest.qts, add, "x", x);
    set_mode(t.guest.qts, "cpr-transfer");
    expect_error(qtest_qmp(t.guest.qts, add, "z", z),
                 "disallowing migration blocker");
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'migrate_cancel'}");
    wait_for_status(t.guest.qts, "cancelled");
    expect_error(qtest_qmp(t.guest.qts, CPR_TRANSFER), "chardev x: a zpipe");
    set_mode(t.guest.qts, "normal");
    pause_before_end(t.guest.qts, false);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'chardev-remove',"
                             "'arguments': {'id': 'x'}}");
    test_end(&t);
}

/* It has no requests left, and can be removed. */
static void chardev_is_free(Test *t)
{
    g_assert_cmpint(requests(t), ==, 0);
    qtest_qmp_assert_success(t->guest.qts, "{'execute': 'chardev-remove',"
                             "'arguments': {'id': 'ch'}}");
    wait_until(t, zpipe_state(t->peer->zp) == ZPIPE_IDLE);
}

static void test_unplug_port(void)
{
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    guest_post_in(&t.guest, 2);
    guest_post_out(&t.guest, 300 * 1000, CHAIN);
    qtest_qmp_device_del(t.guest.qts, "port");
    chardev_is_free(&t);
    test_end(&t);
}

static void test_unplug_device(void)
{
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    guest_post_in(&t.guest, 2);
    guest_post_out(&t.guest, 300 * 1000, CHAIN);
    qpci_unplug_acpi_device_test(t.guest.qts, "vs", SLOT);
    chardev_is_free(&t);
    test_end(&t);
}

/* A peer that is killed takes what it had; the guest gets all buffers back. */
static void test_killed(void)
{
    Peer *waiting;
    pid_t pid;
    int status;
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    peer_free(t.peer);
    t.peer = NULL;
    g_usleep(200 * 1000);
    pid = fork();
    if (pid == 0) {
        Peer *p = peer_new(t.path);

        for (;;) {
            peer_read(p, UINT64_MAX);
            peer_reap(p);
            zpipe_wait(p->zp, 100);
        }
    }
    wait_until(&t, stat_of(t.guest.qts, "zpipe-connects") >= 2);
    for (int i = 0; i < 20; i++) {
        guest_post_out(&t.guest, 100 * 1000 * 1000, CHAIN);
        guest_post_in(&t.guest, 1);
        guest_poll(&t.guest);
    }
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    wait_until(&t, stat_of(t.guest.qts, "zpipe-closed") >= 2);
    wait_until(&t, (guest_poll(&t.guest), guest_out_idle(&t.guest)));

    /* another one begins where the guest is now */
    waiting = peer_new(t.path);
    waiting->got = t.guest.out.pos;
    waiting->sent = t.guest.in.pos;
    t.peer = waiting;
    wait_until(&t, zpipe_state(waiting->zp) == ZPIPE_CONNECTED);
    transfer(&t, t.guest.out.pos + 200 * 1000, t.guest.in.pos + 100 * 1000, 2);
    test_end(&t);
}

/*
 * A peer writes and leaves without a word while the VM is stopped.  The guest
 * can read that when it goes on, however late: it was not the guest that did
 * not read.  After hold-ms, too.
 */
static void test_left_while_stopped(const void *data)
{
    uint8_t buf[5000];
    Test t;

    test_begin(&t, data, "");
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'stop'}");
    stream_fill(buf, sizeof(buf), 0, true);
    g_assert_cmpint(zpipe_try_write(t.peer->zp, buf, sizeof(buf)), ==,
                    sizeof(buf));
    zpipe_flush(t.peer->zp);
    peer_free(t.peer);
    t.peer = NULL;
    /* longer than QEMU waits for a guest that does not read */
    g_usleep(2500 * 1000);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-closed"), ==, 0);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'cont'}");
    wait_until(&t, (guest_post_in(&t.guest, 3), guest_poll(&t.guest),
                    t.guest.in.pos == sizeof(buf)));
    wait_until(&t, stat_of(t.guest.qts, "zpipe-closed") == 1);
    test_end(&t);
}

/*
 * A peer leaves while the VM is stopped.  The guest has what it was writing
 * back when it goes on, as if it had run; and the next peer is a new one.
 */
static void test_gone_while_stopped(const void *data)
{
    uint64_t got;
    Test t;

    test_begin(&t, data, "");
    guest_post_out(&t.guest, 200 * 1000, CHAIN);
    peer_read(t.peer, 120 * 1000);
    wait_until(&t, !t.peer->reading);
    got = t.peer->got;
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'stop'}");
    peer_free(t.peer);
    t.peer = NULL;
    wait_until(&t, stat_of(t.guest.qts, "zpipe-closed") == 1);
    qtest_qmp_assert_success(t.guest.qts, "{'execute': 'cont'}");
    wait_until(&t, (guest_poll(&t.guest), guest_out_idle(&t.guest)));
    guest_post_out(&t.guest, 300 * 1000, CHAIN);
    wait_until(&t, (guest_poll(&t.guest), guest_out_idle(&t.guest)));
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-closed"), ==, 1);
    g_assert_cmpuint(got, <, t.guest.out.pos);

    t.peer = peer_new(t.path);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    t.peer->got = t.guest.out.pos;
    transfer(&t, t.guest.out.pos + 100 * 1000, 100 * 1000, 2);
    test_end(&t);
}

/*
 * Another chardev takes over in the middle.  It has no peer at that time, so
 * the guest is told that the port is closed, and has all buffers back.
 */
static void test_change(void)
{
    g_autofree char *other = NULL;
    uint64_t got, sent;
    int listener;
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    other = g_strdup_printf("%s/other", t.dir);
    transfer(&t, 100 * 1000, 100 * 1000, 4);
    guest_post_in(&t.guest, 3);
    guest_post_out(&t.guest, 200 * 1000, CHAIN);
    peer_read(t.peer, 120 * 1000);
    wait_until(&t, !t.peer->reading);
    listener = zpipe_listen(other);
    g_assert_cmpint(listener, >=, 0);
    qtest_qmp_assert_success(t.guest.qts,
        "{'execute': 'chardev-change', 'arguments': {'id': 'ch', 'backend':"
        "{'type': 'zpipe', 'data': {'path': %s}}}}", other);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_IDLE);
    got = t.peer->got;
    sent = t.peer->sent;
    peer_free(t.peer);
    t.peer = g_new0(Peer, 1);
    t.peer->zp = zpipe_new(NULL);
    g_assert_cmpint(zpipe_attach(t.peer->zp, zpipe_accept(listener), true),
                    ==, 0);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    wait_until(&t, (guest_poll(&t.guest), guest_out_idle(&t.guest)));
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-lost-bytes"), ==,
                    t.guest.out.pos - got);
    t.peer->got = t.guest.out.pos;
    t.peer->sent = sent;
    transfer(&t, t.guest.out.pos + 200 * 1000, sent + 100 * 1000, 2);
    close(listener);
    g_unlink(other);
    test_end(&t);
}

/* Nobody reads; the guest gets each buffer back at once all the same. */
static void test_console(void)
{
    Test t;

    test_dir(&t);
    guest_init(&t.guest, start_qemu(&t, "server=on,wait=off,ring-size=64k",
                                    "virtconsole,nr=0", ""), 0);
    t.peer = peer_new(t.path);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    for (int i = 1; i <= 40; i++) {
        guest_post_out(&t.guest, i * 50 * 1000, 2);
        wait_until(&t, (guest_poll(&t.guest), guest_out_idle(&t.guest)));
    }
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-console-dropped-bytes"), >, 0);
    test_end(&t);
}

/* With a log file, or behind a mux, the port works as on a socket. */
static void test_logfile(void)
{
    g_autofree char *log = NULL, *options = NULL;
    struct stat st;
    Test t;

    test_dir(&t);
    log = g_strdup_printf("%s/log", t.dir);
    options = g_strdup_printf("server=on,wait=off,logfile=%s", log);
    guest_init(&t.guest, start_qemu(&t, options, "virtserialport,nr=1", ""),
               1);
    t.peer = peer_new(t.path);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    transfer(&t, 300 * 1000, 300 * 1000, 3);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-async-refused-logfile"), >, 0);
    g_assert_cmpint(stat(log, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, 300 * 1000);
    g_unlink(log);
    test_end(&t);
}

static void test_mux(void)
{
    Test t;

    test_begin(&t, "server=on,wait=off,mux=on", "");
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-async-refused-mux"), >, 0);
    /* its sizes are random: the queue may not hold all of it */
    wait_until(&t, (guest_post_out(&t.guest, 100 * 1000, 3),
                    peer_read(t.peer, 100 * 1000), guest_poll(&t.guest),
                    t.peer->got == 100 * 1000));
    test_end(&t);
}

/* The peer goes and comes within hold-ms: the guest does not notice. */
static void test_reconnect(void)
{
    Test t;

    test_begin(&t, "server=on,wait=off,hold-ms=20000", "");
    for (int i = 1; i <= 8; i++) {
        guest_post_in(&t.guest, 3);
        guest_post_out(&t.guest, i * 100 * 1000, CHAIN);
        peer_read(t.peer, UINT64_MAX);
        peer_write(t.peer, UINT64_MAX);
        for (int k = 0; k < 10; k++) {
            peer_reap(t.peer);
            g_usleep(200);
        }
        zpipe_detach(t.peer->zp);
        peer_reap(t.peer);
        guest_poll(&t.guest);
        wait_until(&t, zpipe_connect(t.peer->zp, t.path) == 0);
        wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    }
    /* what was posted is in flight still: end both streams */
    wait_until(&t, (peer_read(t.peer, UINT64_MAX), guest_post_in(&t.guest, 3),
                    guest_poll(&t.guest),
                    guest_out_idle(&t.guest) && !t.peer->writing));
    wait_until(&t, (guest_poll(&t.guest), t.guest.in.pos == t.peer->sent));
    g_assert_cmpint(t.peer->got, ==, t.guest.out.pos);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-closed"), ==, 0);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-reconnects"), >=, 1);
    test_end(&t);
}

/*
 * All is there when the guest posts its buffers, and they can hold all of it.
 * So it is for QEMU to end a turn, and that by bytes: a pass may exceed the
 * limit, but not by more than the limit.
 */
static void test_yield(void)
{
    enum { PIECES = 512, PIECE = MiB, BUFFER = 8 * MiB };
    const uint64_t total = (uint64_t)PIECES * PIECE;
    g_autofree struct iovec *iov = g_new(struct iovec, PIECES);
    struct zpipe_req req = { .iov = iov, .iovcnt = PIECES };
    uint64_t got = 0, memory, yields, copied;
    int64_t end = g_get_monotonic_time() + 4 * WAIT_US;
    Queue *q;
    void *data;
    Test t;

    test_begin(&t, "server=on,wait=off", "");
    q = &t.guest.in;
    /* the first use of it tells that QEMU has mapped it */
    data = zpipe_buffer_new(t.peer->zp, PIECE);
    g_assert_nonnull(data);
    wait_until(&t, stat_of(t.guest.qts, "zpipe-peer-regions") == 1);
    peer_reap(t.peer);

    for (int i = 0; i < PIECES; i++) {
        iov[i] = (struct iovec) { data, PIECE };
    }
    g_assert_cmpint(zpipe_write(t.peer->zp, &req), ==, 0);
    g_assert_null(zpipe_reap(t.peer->zp));

    memory = guest_alloc(&t.guest.alloc, BUFFER);
    yields = stat_of(t.guest.qts, "zpipe-yields");
    copied = stat_of(t.guest.qts, "zpipe-copied-bytes");
    for (int i = 0; i < q->vq->size; i++) {
        put_desc(&t.guest, q, i, memory, BUFFER, false);
        qtest_writew(t.guest.qts, q->vq->avail + 4 + 2 * i, i);
    }
    qtest_writew(t.guest.qts, q->vq->avail + 2, q->vq->size);
    queue_kick(&t.guest, q);
    while (got < total) {
        uint64_t elem = q->vq->used + 4 + 8 * q->used;

        g_assert_cmpint(g_get_monotonic_time(), <, end);
        if (qtest_readw(t.guest.qts, q->vq->used + 2) != q->used) {
            got += qtest_readl(t.guest.qts, elem + 4);
            q->used++;
        }
    }
    g_assert_cmpint(got, ==, total);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-copied-bytes") - copied, ==,
                    total);
    g_assert_cmpint(stat_of(t.guest.qts, "zpipe-yields") - yields, >=,
                    total / (64 * MiB));
    g_assert_true(zpipe_reap(t.peer->zp) == &req);
    test_end(&t);
}

/* Pages that are not there yet cannot be shown to a peer. */
static void test_postcopy(void)
{
    QDict *response, *error;
    QTestState *qts;
    Test t;

    test_dir(&t);
    qts = start_qemu(&t, "server=on,wait=off,share-ram=on",
                     "virtserialport,nr=1", "-incoming defer " SHARED_RAM);
    response = qtest_qmp(qts, "{'execute': 'migrate-set-capabilities',"
                         "'arguments': {'capabilities': [{'capability':"
                         "'postcopy-ram', 'state': true}]}}");
    error = qdict_get_qdict(response, "error");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), "share-ram=on"));
    qobject_unref(response);
    qtest_quit(qts);
    g_assert_cmpint(rmdir(t.dir), ==, 0);
    g_free(t.path);
    g_free(t.dir);
}

#define ALLOW_POSTCOPY \
    "{'execute': 'migrate-set-capabilities', 'arguments': {'capabilities':" \
    " [{'capability': 'postcopy-ram', 'state': true}]}}"

/*
 * A migration that may become postcopy, and does not: pages may be missing up
 * to its end, and are not after it.
 */
static void test_postcopy_announced(void)
{
    const char *add = "{'execute': 'chardev-add', 'arguments': {'id': 'x',"
        "'backend': {'type': 'zpipe', 'data': {'path': %s, 'server': true,"
        "'share-ram': true}}}}";
    g_autofree char *uri = NULL, *more = NULL, *socket = NULL;
    QTestState *from, *to;
    QDict *response;
    Test t;

    test_dir(&t);
    socket = g_strdup_printf("%s/migrate", t.dir);
    uri = g_strdup_printf("unix:%s", socket);
    more = g_strdup_printf("-incoming %s " UNSEALED_RAM, uri);
    from = start_qemu(&t, "server=on,wait=off", "virtserialport,nr=1",
                      UNSEALED_RAM);
    to = start_qemu(&t, "server=on,wait=off", "virtserialport,nr=1", more);
    response = qtest_qmp(to, ALLOW_POSTCOPY);
    if (qdict_haskey(response, "error")) {
        g_test_skip("this host has no postcopy (userfaultfd)");
        goto out;
    }
    qtest_qmp_assert_success(from, ALLOW_POSTCOPY);
    qtest_qmp_assert_success(from, "{'execute': 'migrate-set-parameters',"
                             "'arguments': {'max-bandwidth': 4096}}");
    /* one of the first pages, which come after the announcement */
    qtest_writeb(from, 0x8000, 0x77);
    qtest_qmp_assert_success(from, "{'execute': 'migrate', 'arguments':"
                             "{'uri': %s}}", uri);
    t.guest.qts = from;
    wait_until(&t, qtest_readb(to, 0x8000) == 0x77);
    expect_error(qtest_qmp(to, add, t.path), "postcopy migration");
    qtest_qmp_assert_success(from, "{'execute': 'migrate-set-parameters',"
                             "'arguments': {'max-bandwidth': 1000000000}}");
    wait_for_completed(from);
    qtest_qmp_eventwait(to, "RESUME");
    g_free(t.path);
    t.path = g_strdup_printf("%s/x", t.dir);
    qtest_qmp_assert_success(to, add, t.path);
    t.peer = peer_new(t.path);
    wait_until(&t, zpipe_state(t.peer->zp) == ZPIPE_CONNECTED);
    peer_free(t.peer);
out:
    qobject_unref(response);
    qtest_quit(from);
    qtest_quit(to);
    g_unlink(socket);
    g_assert_cmpint(rmdir(t.dir), ==, 0);
    g_free(t.path);
    g_free(t.dir);
}

static void test_bad_options(void)
{
    QTestState *qts = qtest_init("-M pc -nodefaults -m 64");
    QDict *response = qtest_qmp(qts,
        "{'execute': 'chardev-add', 'arguments': {'id': 'x', 'backend':"
        "{'type': 'zpipe', 'data': {'path': '/nonexistent/x',"
        " 'ring-size': 5}}}}");
    QDict *error = qdict_get_qdict(response, "error");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), "ring-size=5"));
    qobject_unref(response);
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    static const MigrationCase cases[] = {
        { "server=on,wait=off", "server=on,wait=off", "async-to-async" },
        { "server=on,wait=off,share-ram=on",
          "server=on,wait=off,share-ram=on", "shared-ram" },
        /* with a log file the port works as it always did */
        { "server=on,wait=off", "server=on,wait=off,logfile=/dev/null",
          "async-to-classic" },
        { "server=on,wait=off,logfile=/dev/null", "server=on,wait=off",
          "classic-to-async" },
        { "server=on,wait=off", "server=on,wait=off", "cpr-reboot",
          "cpr-reboot" },
    };
    const char *given = g_getenv("HOTPATH_SEED");
    unsigned seed = g_random_int();

    g_test_init(&argc, &argv, NULL);
    if (given) {
        g_assert_cmpint(qemu_strtoui(given, NULL, 0, &seed), ==, 0);
    }
    g_test_message("HOTPATH_SEED=%u", seed);
    rnd = g_rand_new_with_seed(seed);

    qtest_add_data_func("/zpipe/both-ways/auto", "server=on,wait=off",
                        test_both_ways);
    qtest_add_data_func("/zpipe/both-ways/copy",
                        "server=on,wait=off,mechanism=copy,ring-size=64k",
                        test_both_ways);
    qtest_add_data_func("/zpipe/both-ways/cma", "server=on,wait=off,cma=on",
                        test_both_ways);
    qtest_add_data_func("/zpipe/both-ways/no-ram-to-share",
                        "server=on,wait=off,share-ram=on", test_both_ways);
    qtest_add_func("/zpipe/view", test_view);
    qtest_add_data_func("/zpipe/reset/private", "server=on,wait=off",
                        test_reset);
    qtest_add_data_func("/zpipe/reset/view",
                        "server=on,wait=off,share-ram=on,mechanism=map",
                        test_reset);
    qtest_add_func("/zpipe/reset/queue", test_queue_reset);
    qtest_add_func("/zpipe/ram/sealed", test_sealed_ram);
    qtest_add_data_func("/zpipe/ram/withheld", NULL, test_withheld);
    qtest_add_data_func("/zpipe/ram/trusted", "yes", test_withheld);
    qtest_add_func("/zpipe/ram/plug", test_ram_plug);
    qtest_add_func("/zpipe/ram/virtio-mem", test_virtio_mem);
    qtest_add_func("/zpipe/ram/bad", test_bad_memory);
    qtest_add_func("/zpipe/cpr", test_cpr);
    qtest_add_func("/zpipe/add-meanwhile", test_add_meanwhile);
    qtest_add_data_func("/zpipe/stop/private", "server=on,wait=off",
                        test_stop);
    qtest_add_data_func("/zpipe/stop/shared",
                        "server=on,wait=off,share-ram=on", test_stop);
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *name = g_strdup_printf("/zpipe/migration/%s",
                                                cases[i].name);

        qtest_add_data_func(name, &cases[i], test_migration);
    }
    qtest_add_func("/zpipe/saved", test_saved);
    qtest_add_func("/zpipe/unplug/port", test_unplug_port);
    qtest_add_func("/zpipe/unplug/device", test_unplug_device);
    qtest_add_func("/zpipe/killed", test_killed);
    qtest_add_data_func("/zpipe/left-while-stopped", "server=on,wait=off",
                        test_left_while_stopped);
    qtest_add_data_func("/zpipe/left-while-stopped/held",
                        "server=on,wait=off,hold-ms=500",
                        test_left_while_stopped);
    qtest_add_data_func("/zpipe/gone-while-stopped", "server=on,wait=off",
                        test_gone_while_stopped);
    qtest_add_data_func("/zpipe/gone-while-stopped/logfile",
                        "server=on,wait=off,logfile=/dev/null",
                        test_gone_while_stopped);
    qtest_add_func("/zpipe/change", test_change);
    qtest_add_func("/zpipe/console", test_console);
    qtest_add_func("/zpipe/logfile", test_logfile);
    qtest_add_func("/zpipe/mux", test_mux);
    qtest_add_func("/zpipe/reconnect", test_reconnect);
    qtest_add_func("/zpipe/yield", test_yield);
    qtest_add_func("/zpipe/postcopy", test_postcopy);
    qtest_add_func("/zpipe/postcopy-announced", test_postcopy_announced);
    qtest_add_func("/zpipe/bad-options", test_bad_options);
    return g_test_run();
}
