/*
 * QTest: which devices may be above a space-guard that lets writes wait, and
 * what becomes of such a write when its device is reset
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A device that does not keep a write that failed writes while the vCPU or the
 * main loop waits.  Nobody could answer the request then, and the write would
 * be lost when the wait is over.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/ahci.h"
#include "libqos/libqos-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "scsi/constants.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_scsi.h"

#define IMAGE_SIZE (4 * 1024 * 1024)
#define HOLD "-blockdev space-guard,node-name=guard,file=data,policy=hold "
#define REFUSED "Property 'policy' of space-guard node 'guard' is 'hold', " \
                "but must be 'stop' below "

static char *path;

static void make_image(void)
{
    int fd = g_file_open_tmp("space-guard-XXXXXX", &path, NULL);

    g_assert_cmpint(ftruncate(fd, IMAGE_SIZE), ==, 0);
    close(fd);
}

/* What QEMU is started with, without the devices */
static char *command(const char *args)
{
    return g_strdup_printf("-m 16 -blockdev file,node-name=data,filename=%s "
                           "%s", path, args);
}

static QTestState *start(const char *args)
{
    g_autofree char *line = command(args);

    return qtest_init(line);
}

static void check_refused(const char *args, const char *who)
{
    g_autofree char *line = command(args);
    g_autofree char *qemu = g_strdup_printf("timeout 60 %s -display none "
                                            "-accel qtest %s",
                                            qtest_qemu_binary(NULL), line);
    g_autofree char *why = g_strconcat(REFUSED, who, NULL);
    g_autofree char *err = NULL;
    g_auto(GStrv) argv = NULL;
    int status;

    g_assert_true(g_shell_parse_argv(qemu, NULL, &argv, NULL));
    g_test_message("%s", qemu);
    g_assert_true(g_spawn_sync(NULL, argv, NULL, G_SPAWN_SEARCH_PATH |
                               G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL,
                               &err, &status, NULL));
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(err, why));
}

static void check_starts(const char *args)
{
    qtest_quit(start(args));
}

/* Returns what is wrong with a command, or NULL */
static char *failure(QTestState *qts, const char *json)
{
    QDict *ret = qtest_qmp(qts, "%p", qobject_from_json(json, &error_abort));
    QDict *error = qdict_get_qdict(ret, "error");
    char *desc = error ? g_strdup(qdict_get_str(error, "desc")) : NULL;

    qobject_unref(ret);
    return desc;
}

static void check_fails(QTestState *qts, const char *json, const char *who)
{
    g_autofree char *desc = failure(qts, json);
    g_autofree char *why = g_strconcat(REFUSED, who, NULL);

    g_assert_nonnull(desc);
    g_assert_nonnull(strstr(desc, why));
}

static void test_refused(void)
{
    check_refused(HOLD "-machine pc,pflash0=guard", "cfi.pflash01");
    check_refused(HOLD "-device sdhci-pci -device sd-card,drive=guard",
                  "sd-card");
    check_refused(HOLD "-device floppy,drive=guard", "floppy");
    check_refused(HOLD "-device nvme,serial=x,drive=guard", "nvme");
    /* behind a format, and behind another filter */
    check_refused(HOLD "-blockdev raw,node-name=raw,file=guard "
                  "-machine pc,pflash0=raw", "cfi.pflash01");
    check_refused(HOLD "-blockdev copy-on-read,node-name=cor,file=guard "
                  "-device sdhci-pci -device sd-card,drive=cor", "sd-card");
    /* its permissions count later */
    check_refused(HOLD "-machine pc,pflash0=guard -incoming defer",
                  "cfi.pflash01");
    check_refused(HOLD "-device sdhci-pci -device sd-card,drive=guard "
                  "-incoming defer", "sd-card");
}

static void test_allowed(void)
{
    check_starts(HOLD "-device virtio-blk-pci,drive=guard");
    check_starts(HOLD "-device virtio-scsi-pci -device scsi-hd,drive=guard");
    check_starts(HOLD "-device ide-hd,drive=guard");
    check_starts(HOLD "-device piix3-usb-uhci -device usb-storage,drive=guard");
    check_starts(HOLD "-device ide-hd,drive=guard -incoming defer");
    /* what does not wait, and what does not write */
    check_starts("-blockdev space-guard,node-name=guard,file=data "
                 "-machine pc,pflash0=guard");
    check_starts("-blockdev space-guard,node-name=guard,file=data "
                 "-device sdhci-pci -device sd-card,drive=guard");
    check_starts("-blockdev space-guard,node-name=guard,file=data,policy=hold,"
                 "read-only=on,auto-read-only=on -machine pc,pflash0=guard");
}

static const char reopen[] =
    "{'execute': 'blockdev-reopen', 'arguments': {'options': [{"
    "'driver': 'raw', 'node-name': 'raw', 'file': 'guard'}]}}";
static const char insert[] =
    "{'execute': 'blockdev-insert-medium', 'arguments': {"
    "'id': 'floppy', 'node-name': 'guard'}}";

/* The device is there first */
static void test_guard_comes_later(void)
{
    QTestState *qts;
    char *desc;

    qts = start(HOLD "-blockdev raw,node-name=raw,file=data "
                "-machine pc,pflash0=raw");
    check_fails(qts, reopen, "cfi.pflash01");
    /* and nothing has changed: the chip is written to as before */
    qtest_writeb(qts, 0x100000000ull - IMAGE_SIZE, 0x40);
    qtest_writeb(qts, 0x100000000ull - IMAGE_SIZE, 0);
    qtest_quit(qts);

    qts = start(HOLD "-blockdev raw,node-name=raw,file=data "
                "-device ide-hd,drive=raw");
    desc = failure(qts, reopen);
    g_assert_null(desc);
    qtest_quit(qts);

    qts = start(HOLD "-device floppy,id=floppy");
    check_fails(qts, insert, "floppy");
    qtest_quit(qts);
}

/*
 * The same while a migration is incoming, and not when it has come: the source
 * has stopped by then.
 */
static void test_incoming(void)
{
    QTestState *qts;
    char *desc;

    qts = start(HOLD "-blockdev raw,node-name=raw,file=data "
                "-machine pc,pflash0=raw -incoming defer");
    check_fails(qts, reopen, "cfi.pflash01");
    qtest_quit(qts);

    qts = start(HOLD "-device floppy,id=floppy -incoming defer");
    check_fails(qts, insert, "floppy");
    qtest_quit(qts);

    /* what keeps a write, and what only reads */
    qts = start(HOLD "-blockdev raw,node-name=raw,file=data "
                "-device ide-hd,drive=raw -incoming defer");
    desc = failure(qts, reopen);
    g_assert_null(desc);
    qtest_quit(qts);

    qts = start(HOLD "-blockdev raw,node-name=raw,file=data,read-only=on "
                "-machine pc,pflash0=raw -incoming defer");
    desc = failure(qts, "{'execute': 'blockdev-reopen', 'arguments': "
                   "{'options': [{'driver': 'raw', 'node-name': 'raw', "
                   "'read-only': true, 'file': 'guard'}]}}");
    g_assert_null(desc);
    qtest_quit(qts);
}

/*
 * The guard is there first.  The NVMe controller does not free what it has
 * when its disk is refused, whatever the reason: AddressSanitizer's report of
 * that is not wanted here.
 */
static void test_device_comes_later(void)
{
    g_autofree char *old = g_strdup(g_getenv("ASAN_OPTIONS"));
    g_autofree char *new = g_strconcat(old ? old : "", ":detect_leaks=0", NULL);
    QTestState *qts;
    char *desc;

    g_setenv("ASAN_OPTIONS", new, true);
    qts = start(HOLD);
    check_fails(qts, "{'execute': 'device_add', 'arguments': {"
                "'driver': 'nvme', 'serial': 'x', 'drive': 'guard'}}", "nvme");
    qtest_quit(qts);
    g_setenv("ASAN_OPTIONS", old ? old : "", true);

    qts = start(HOLD);
    desc = failure(qts, "{'execute': 'device_add', 'arguments': {"
                   "'driver': 'virtio-blk-pci', 'drive': 'guard'}}");
    g_assert_null(desc);
    qtest_quit(qts);
}

/*
 * A device that is reset while a write waits.  The storage has room, but says
 * that it has none.
 */

#define FULL "-blockdev blkdebug,node-name=full,image=data," \
             "inject-error.0.event=pwritev,inject-error.0.errno=28 " \
             "-blockdev space-guard,node-name=guard,file=full,policy=hold," \
             "max-hold-ms=25000 "
#define SLOT 4

typedef struct Machine {
    QTestState *qts;
    QGuestAllocator alloc;
    QPCIBus *pci;
    QVirtioPCIDevice *dev;
    QVirtQueue *vq[3];
    unsigned n_queues;
} Machine;

static void machine_begin(Machine *m)
{
    QVirtioDevice *vdev = &m->dev->vdev;

    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                         ~(QVIRTIO_F_BAD_FEATURE |
                           1ull << VIRTIO_RING_F_INDIRECT_DESC |
                           1ull << VIRTIO_RING_F_EVENT_IDX));
    for (unsigned i = 0; i < m->n_queues; i++) {
        m->vq[i] = qvirtqueue_setup(vdev, &m->alloc, i);
    }
    qvirtio_set_driver_ok(vdev);
}

static void machine_reset(Machine *m)
{
    qvirtio_reset(&m->dev->vdev);
    for (unsigned i = 0; i < m->n_queues; i++) {
        qvirtqueue_cleanup(m->dev->vdev.bus, m->vq[i], &m->alloc);
    }
}

static void machine_start(Machine *m, unsigned n_queues, const char *args)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(SLOT, 0) };

    m->n_queues = n_queues;
    m->qts = start(args);
    pc_alloc_init(&m->alloc, m->qts, ALLOC_NO_FLAGS);
    m->pci = qpci_new_pc(m->qts, &m->alloc);
    m->dev = virtio_pci_new(m->pci, &addr);
    qvirtio_pci_device_enable(m->dev);
    machine_begin(m);
}

static void machine_end(Machine *m)
{
    machine_reset(m);
    qvirtio_pci_destructor(&m->dev->obj);
    g_free(m->dev);
    qpci_free_pc(m->pci);
    alloc_destroy(&m->alloc);
    qtest_quit(m->qts);
}

/* Returns the address of the response */
static uint64_t queue(Machine *m, unsigned n, const void *req, size_t req_len,
                      size_t data_len, size_t resp_len)
{
    uint64_t addr = guest_alloc(&m->alloc, req_len + data_len + resp_len);
    uint32_t head;

    qtest_memwrite(m->qts, addr, req, req_len);
    qtest_memset(m->qts, addr + req_len, 0x5a, data_len + resp_len);
    head = qvirtqueue_add(m->qts, m->vq[n], addr, req_len, false, true);
    if (data_len) {
        qvirtqueue_add(m->qts, m->vq[n], addr + req_len, data_len, false, true);
    }
    qvirtqueue_add(m->qts, m->vq[n], addr + req_len + data_len, resp_len, true,
                   false);
    qvirtqueue_kick(m->qts, &m->dev->vdev, m->vq[n], head);
    return addr + req_len + data_len;
}

static void blk_write(Machine *m)
{
    struct virtio_blk_outhdr req = { .type = cpu_to_le32(VIRTIO_BLK_T_OUT) };

    queue(m, 0, &req, sizeof(req), 512, 1);
}

#define LUN { 1, 0, 0x40, 0 }

static void scsi_write(Machine *m)
{
    struct virtio_scsi_cmd_req req = {
        .lun = LUN,
        .cdb = { WRITE_10, [8] = 1 },
    };

    queue(m, 2, &req, sizeof(req), 512, sizeof(struct virtio_scsi_cmd_resp));
}

/* Clear the unit attention */
static void scsi_ready(Machine *m)
{
    struct virtio_scsi_cmd_req req = { .lun = LUN };
    uint64_t addr = queue(m, 2, &req, sizeof(req), 0,
                          sizeof(struct virtio_scsi_cmd_resp)) +
                    offsetof(struct virtio_scsi_cmd_resp, response);

    while (qtest_readb(m->qts, addr) == 0x5a) {
        g_usleep(1000);
    }
}

static void scsi_reset_lun(Machine *m)
{
    struct virtio_scsi_ctrl_tmf_req req = {
        .subtype = cpu_to_le32(VIRTIO_SCSI_T_TMF_LOGICAL_UNIT_RESET),
        .lun = LUN,
    };
    uint64_t addr = queue(m, 0, &req, sizeof(req), 0,
                          sizeof(struct virtio_scsi_ctrl_tmf_resp));

    while (qtest_readb(m->qts, addr) == 0x5a) {
        g_usleep(1000);
    }
    g_assert_cmpint(qtest_readb(m->qts, addr), ==, VIRTIO_SCSI_S_OK);
}

static void wait_held(QTestState *qts, int64_t held, bool stopped)
{
    for (;;) {
        QDict *ret = qtest_qmp(qts,
                               "{'execute': 'query-block-space-requests'}");
        QObject *first = qlist_peek(qdict_get_qlist(ret, "return"));
        QDict *request = first ? qobject_to(QDict, first) : NULL;
        bool ok = request && qdict_get_int(request, "held") == held;

        if (ok) {
            g_assert_cmpint(qdict_get_bool(request, "stopped"), ==, stopped);
        }
        qobject_unref(ret);
        if (ok) {
            return;
        }
        g_usleep(1000);
    }
}

static void check_runs(QTestState *qts)
{
    QDict *ret;

    /* a request to stop is taken before the main loop takes this */
    for (int i = 0; i < 10; i++) {
        ret = qtest_qmp(qts, "{'execute': 'query-status'}");
        g_assert_cmpstr(qdict_get_str(qdict_get_qdict(ret, "return"),
                                      "status"), ==, "running");
        qobject_unref(ret);
    }
}

static void check_reset(unsigned n_queues, void (*write)(Machine *m),
                        void (*ready)(Machine *m),
                        void (*reset)(Machine *m), const char *device)
{
    Machine m = { };

    machine_start(&m, n_queues, device);
    /* nobody wants the first one any more; the second one may wait, too */
    for (int i = 0; i < 2; i++) {
        if (ready) {
            ready(&m);
        }
        write(&m);
        wait_held(m.qts, 1, false);
        if (reset) {
            reset(&m);
        } else {
            machine_reset(&m);
            machine_begin(&m);
        }
        wait_held(m.qts, 0, false);
        check_runs(m.qts);
    }
    machine_end(&m);
}

#define IOTHREAD "-object iothread,id=thread "

static void test_reset(void)
{
    check_reset(1, blk_write, NULL, NULL,
                FULL "-device virtio-blk-pci,drive=guard,addr=4");
    check_reset(1, blk_write, NULL, NULL, FULL
                "-device virtio-blk-pci,drive=guard,addr=4,ioeventfd=off");
    check_reset(1, blk_write, NULL, NULL, FULL IOTHREAD
                "-device virtio-blk-pci,drive=guard,addr=4,iothread=thread");
}

static void test_reset_scsi(void)
{
    static const char disk[] =
        FULL "-device virtio-scsi-pci,addr=4 "
        "-device scsi-hd,drive=guard";
    static const char disk_of_vcpu[] =
        FULL "-device virtio-scsi-pci,addr=4,ioeventfd=off "
        "-device scsi-hd,drive=guard";
    static const char disk_of_thread[] =
        FULL IOTHREAD "-device virtio-scsi-pci,addr=4,iothread=thread "
        "-device scsi-hd,drive=guard";

    check_reset(3, scsi_write, scsi_ready, NULL, disk);
    check_reset(3, scsi_write, scsi_ready, NULL, disk_of_vcpu);
    check_reset(3, scsi_write, scsi_ready, NULL, disk_of_thread);
    check_reset(3, scsi_write, scsi_ready, scsi_reset_lun, disk);
    check_reset(3, scsi_write, scsi_ready, scsi_reset_lun, disk_of_thread);
}

/* The guest is not asked: its write may wait */
static void check_unplug(const char *device)
{
    Machine m = { };

    machine_start(&m, 3, device);
    scsi_ready(&m);
    scsi_write(&m);
    wait_held(m.qts, 1, false);
    qtest_qmp_device_del(m.qts, "disk");
    wait_held(m.qts, 0, false);
    check_runs(m.qts);
    machine_end(&m);
}

static void test_unplug_scsi(void)
{
    check_unplug(FULL "-device virtio-scsi-pci,addr=4 "
                 "-device scsi-hd,drive=guard,id=disk");
    check_unplug(FULL IOTHREAD
                 "-device virtio-scsi-pci,addr=4,iothread=thread "
                 "-device scsi-hd,drive=guard,id=disk");
}

/* All commands of a queue are cancelled, one after the other */
static void test_reset_ahci(void)
{
    g_autofree char *line = command(FULL "-device ide-hd,drive=guard,"
                                    "werror=stop");
    AHCIQState ahci = { .parent = qtest_pc_boot("-M q35 %s", line) };
    QTestState *qts = ahci.parent->qts;
    AHCICommand *cmd[3];
    uint64_t buffer;
    uint8_t port;

    ahci.dev = get_ahci_device(qts, &ahci.fingerprint);
    ahci_pci_enable(&ahci);
    ahci_hba_enable(&ahci);
    port = ahci_port_select(&ahci);
    ahci_port_clear(&ahci, port);
    buffer = ahci_alloc(&ahci, 4096);
    for (int i = 0; i < ARRAY_SIZE(cmd); i++) {
        cmd[i] = ahci_command_create(WRITE_FPDMA_QUEUED);
        ahci_command_adjust(cmd[i], 8 * i, buffer, 4096, 0);
        ahci_command_commit(&ahci, cmd[i], port);
        ahci_command_issue_async(&ahci, cmd[i]);
    }
    wait_held(qts, ARRAY_SIZE(cmd), false);
    ahci_set(&ahci, AHCI_GHC, AHCI_GHC_HR);
    wait_held(qts, 0, false);
    check_runs(qts);

    for (int i = 0; i < ARRAY_SIZE(cmd); i++) {
        ahci_command_free(cmd[i]);
    }
    ahci_free(&ahci, buffer);
    ahci_clean_mem(&ahci);
    free_ahci_device(ahci.dev);
    qtest_shutdown(ahci.parent);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    make_image();
    qtest_add_func("/space-guard/refused", test_refused);
    qtest_add_func("/space-guard/allowed", test_allowed);
    qtest_add_func("/space-guard/guard-comes-later", test_guard_comes_later);
    qtest_add_func("/space-guard/device-comes-later", test_device_comes_later);
    qtest_add_func("/space-guard/incoming", test_incoming);
    qtest_add_func("/space-guard/reset", test_reset);
    qtest_add_func("/space-guard/reset-scsi", test_reset_scsi);
    qtest_add_func("/space-guard/unplug-scsi", test_unplug_scsi);
    qtest_add_func("/space-guard/reset-ahci", test_reset_ahci);
    ret = g_test_run();
    unlink(path);
    g_free(path);
    return ret;
}
