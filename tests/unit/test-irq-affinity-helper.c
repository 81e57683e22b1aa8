/*
 * Unit test: what qemu-irq-affinity-helper grants to whom, and a fuzz of it
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The tree of the host is simulated; /dev/null stands for a VFIO group.  Real
 * groups are the subject of tests/lab/test_irq_affinity.py.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include "tools/irq-affinity/accept.h"
#include "tools/irq-affinity/serve.h"

#define DEVICE "0000:01:00.0"
#define OTHER "0000:02:00.0"
#define SECOND 1000000000LL

typedef struct Fixture {
    char *root;
    IRQServe *s;
    IRQPeer peer;
    int proof;              /* /dev/null: group 7, with DEVICE */
    int far;                /* the peer's end */
    int64_t now;
} Fixture;

static void put(const Fixture *f, const char *text, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

static void put(const Fixture *f, const char *text, const char *fmt, ...)
{
    g_autofree char *path = NULL, *full = NULL, *dir = NULL;
    va_list ap;

    va_start(ap, fmt);
    path = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    full = g_strconcat(f->root, path, NULL);
    dir = g_path_get_dirname(full);
    g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
    g_assert_true(g_file_set_contents(full, text, -1, NULL));
}

static void put_link(const Fixture *f, const char *target, const char *path)
{
    g_autofree char *full = g_strconcat(f->root, path, NULL);
    g_autofree char *dir = g_path_get_dirname(full);

    g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
    unlink(full);
    g_assert_cmpint(symlink(target, full), ==, 0);
}

static char *get_mask(const Fixture *f, int irq)
{
    g_autofree char *path = g_strdup_printf("%s/proc/irq/%d/smp_affinity_list",
                                            f->root, irq);
    char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return g_strstrip(text);
}

static void put_irq(const Fixture *f, int irq, const char *action)
{
    put(f, "0-7\n", "/proc/irq/%d/smp_affinity_list", irq);
    put(f, action, "/sys/kernel/irq/%d/actions", irq);
}

static void set_up(Fixture *f, gconstpointer cpus)
{
    int fds[2];

    *f = (Fixture) { .now = 77 * SECOND };
    f->root = g_dir_make_tmp("irq-helper-XXXXXX", NULL);
    f->proof = open("/dev/null", O_RDWR);
    f->peer.pid = getpid();
    f->peer.pidfd = syscall(SYS_pidfd_open, getpid(), 0);
    g_assert_cmpint(f->peer.pidfd, >=, 0);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), ==, 0);
    f->peer.fd = fds[0];
    f->far = fds[1];
    f->peer.greeted = true;
    f->s = irq_serve_new(f->root, cpus, 5);
    g_assert_nonnull(f->s);
    put_link(f, "../../devices/virtual/vfio/7", "/sys/dev/char/1:3");
    put(f, "", "/sys/devices/virtual/vfio/7/uevent");
    put_link(f, "../../../../class/vfio",
             "/sys/devices/virtual/vfio/7/subsystem");
    put(f, "", "/sys/kernel/iommu_groups/7/devices/" DEVICE);
    put(f, "", "/sys/kernel/iommu_groups/8/devices/" OTHER);
    put_irq(f, 40, "vfio-msix[0](" DEVICE ")\n");
    put_irq(f, 41, "vfio-msi[1](" DEVICE ")\n");
    put_irq(f, 50, "vfio-msix[0](" OTHER ")\n");
    put_irq(f, 51, "eth0\n");
    put(f, "0f\n", "/proc/irq/default_smp_affinity");
    f->peer.uid = 1000;
    put(f, "Name:\tqemu\nUid:\t1000\t1000\t1000\t1000\n"
        "Cpus_allowed:\t0e\nCpus_allowed_list:\t1-3\n"
        "Mems_allowed_list:\t0\n", "/proc/%d/task/%d/status", getpid(),
        getpid());
}

static void tear_down(Fixture *f, gconstpointer data)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", f->root);

    irq_serve_free(f->s);
    close(f->proof);
    close(f->peer.pidfd);
    close(f->peer.fd);
    if (f->far >= 0) {
        close(f->far);
    }
    g_assert_cmpint(system(command), ==, 0);
    g_free(f->root);
}

static IRQHelperRequest request(IRQHelperOp op, unsigned irq, unsigned cpu)
{
    IRQHelperRequest rq = {
        .op = op, .id = 99, .number = irq, .cpu = cpu, .tid = getpid(),
        .device = DEVICE,
    };

    return rq;
}

/* In place of an error: the connection ends; it is to be asked later */
#define HUNG_UP (-1)
#define LATER (-2)

/* Returns: the error of the reply, or one of the above. */
static int ask_value(Fixture *f, const IRQHelperRequest *rq, int fd,
                     unsigned *value)
{
    IRQHelperReply reply;
    int reply_fd = -1;

    switch (irq_serve_request(f->s, &f->peer, rq, sizeof(*rq), fd, &reply,
                              &reply_fd, f->now)) {
    case IRQ_SERVE_END:
        return HUNG_UP;
    case IRQ_SERVE_LATER:
        return LATER;
    case IRQ_SERVE_ANSWER:
        break;
    }
    *value = reply.value;
    g_assert_cmpuint(reply.op, ==, rq->op);
    g_assert_cmpuint(reply.id, ==, rq->id);
    if (reply_fd >= 0) {
        close(reply_fd);
    }
    return reply.error;
}

static int ask_fd(Fixture *f, const IRQHelperRequest *rq, int fd)
{
    unsigned value;

    return ask_value(f, rq, fd, &value);
}

static int ask(Fixture *f, const IRQHelperRequest *rq)
{
    f->now += SECOND;
    return ask_fd(f, rq, f->proof);
}

static void assert_mask(Fixture *f, int irq, const char *expected)
{
    g_autofree char *mask = get_mask(f, irq);

    g_assert_cmpstr(mask, ==, expected);
}

static void test_move(Fixture *f, gconstpointer data)
{
    IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);

    g_assert_cmpint(ask(f, &rq), ==, 0);
    assert_mask(f, 40, "2");
    rq = request(IRQ_HELPER_MOVE, 41, 1);
    g_assert_cmpint(ask(f, &rq), ==, 0);
    assert_mask(f, 41, "1");
}

/* Whose interrupt it is */
static void test_not_own(Fixture *f, gconstpointer data)
{
    static const unsigned others[] = { 50, 51 };
    IRQHelperRequest rq;

    for (int i = 0; i < ARRAY_SIZE(others); i++) {
        rq = request(IRQ_HELPER_MOVE, others[i], 2);
        g_assert_cmpint(ask(f, &rq), ==, EPERM);
        rq.op = IRQ_HELPER_RESTORE;
        g_assert_cmpint(ask(f, &rq), ==, EPERM);
        assert_mask(f, others[i], "0-7");
    }
    /* called by its right name, but not held */
    rq = request(IRQ_HELPER_MOVE, 50, 2);
    strcpy(rq.device, OTHER);
    g_assert_cmpint(ask(f, &rq), ==, EPERM);
    assert_mask(f, 50, "0-7");
    rq = request(IRQ_HELPER_MOVE, 49, 2);
    g_assert_cmpint(ask(f, &rq), ==, ENOENT);
    rq.number = UINT32_MAX;
    g_assert_cmpint(ask(f, &rq), ==, EINVAL);
}

/* Descriptors that prove nothing */
static void test_no_proof(Fixture *f, gconstpointer data)
{
    IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);
    g_autofree char *file = g_strconcat(f->root, "/file", NULL);
    int fds[] = {
        -1,
        open("/dev/null", O_RDONLY),
        open("/dev/null", O_WRONLY),
        open("/dev/null", O_PATH),
        open("/dev/zero", O_RDWR),          /* a device, but no group */
        open(file, O_RDWR | O_CREAT, 0600),
        open(f->root, O_RDONLY | O_DIRECTORY),
        socket(AF_UNIX, SOCK_STREAM, 0),
    };

    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        f->now += SECOND;
        g_assert_cmpint(ask_fd(f, &rq, fds[i]), ==, EPERM);
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    /* a group without IOMMU */
    put_link(f, "../../devices/virtual/vfio/noiommu-7", "/sys/dev/char/1:3");
    put(f, "", "/sys/devices/virtual/vfio/noiommu-7/uevent");
    put_link(f, "../../../../class/vfio",
             "/sys/devices/virtual/vfio/noiommu-7/subsystem");
    g_assert_cmpint(ask(f, &rq), ==, EPERM);
    /* another kind of device with the same name */
    put_link(f, "../../devices/virtual/misc/7", "/sys/dev/char/1:3");
    put(f, "", "/sys/devices/virtual/misc/7/uevent");
    put_link(f, "../../../../class/misc",
             "/sys/devices/virtual/misc/7/subsystem");
    g_assert_cmpint(ask(f, &rq), ==, EPERM);
    assert_mask(f, 40, "0-7");
}

/* A device's own file, /dev/vfio/devices/vfioN */
static void test_device_file(Fixture *f, gconstpointer data)
{
    IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);

    put_link(f, "../../devices/pci/" DEVICE "/vfio-dev/vfio0",
             "/sys/dev/char/1:3");
    put(f, "", "/sys/devices/pci/" DEVICE "/vfio-dev/vfio0/uevent");
    put_link(f, "../../../../../class/vfio-dev",
             "/sys/devices/pci/" DEVICE "/vfio-dev/vfio0/subsystem");
    put_link(f, "../../../" DEVICE,
             "/sys/devices/pci/" DEVICE "/vfio-dev/vfio0/device");
    g_assert_cmpint(ask(f, &rq), ==, 0);
    assert_mask(f, 40, "2");
    strcpy(rq.device, OTHER);
    rq.number = 50;
    g_assert_cmpint(ask(f, &rq), ==, EPERM);
}

/* Processors of the thread only, and of the administrator's list */
static void test_cpus(Fixture *f, gconstpointer cpus)
{
    static const struct {
        unsigned cpu;
        int err, limited;       /* without and with the list 2-9 */
    } rows[] = {
        { 0, EPERM, EPERM }, { 1, 0, EPERM }, { 2, 0, 0 }, { 3, 0, 0 },
        { 4, EPERM, EPERM }, { 8191, EPERM, EPERM }, { 8192, ERANGE, ERANGE },
        { INT_MAX, ERANGE, ERANGE }, { UINT32_MAX, ERANGE, ERANGE },
    };

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, rows[i].cpu);

        g_assert_cmpint(ask(f, &rq), ==, cpus ? rows[i].limited
                                              : rows[i].err);
    }
    assert_mask(f, 40, "3");
}

/* A thread of somebody else, and a peer that is gone */
/* A set-uid program is not asked for by who started it. */
static void test_other_user(Fixture *f, gconstpointer data)
{
    static const struct {
        unsigned peer, real, effective, saved;
        int error;
    } cases[] = {
        { 1000, 1000, 1000, 1000, 0 },
        { 1000, 1000, 0, 0, ESRCH },
        { 1000, 1000, 1000, 0, ESRCH },         /* for the moment */
        { 1000, 0, 0, 0, ESRCH },
        { 1000, 1000, 1001, 1001, ESRCH },
        { 0, 1000, 1000, 1000, 0 },             /* root has given it up */
    };
    IRQHelperRequest rq;

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *status = g_strdup_printf(
            "Name:\tqemu\nUid:\t%u\t%u\t%u\t%u\nCpus_allowed_list:\t1-3\n",
            cases[i].real, cases[i].effective, cases[i].saved,
            cases[i].effective);

        put(f, status, "/proc/%d/task/%d/status", getpid(), getpid());
        f->peer.uid = cases[i].peer;
        rq = request(IRQ_HELPER_MOVE, 40, 2);
        g_assert_cmpint(ask(f, &rq), ==, cases[i].error);
        rq = request(IRQ_HELPER_RESTORE, 40, 0);
        strcpy(rq.list, "1-2");
        g_assert_cmpint(ask(f, &rq), ==, cases[i].error);
        rq = request(IRQ_HELPER_WATCH, 0, 0);
        if (cases[i].error) {
            g_assert_cmpint(ask(f, &rq), ==, ESRCH);
        }
    }
    put(f, "Name:\tqemu\nCpus_allowed_list:\t1-3\n", "/proc/%d/task/%d/status",
        getpid(), getpid());
    f->peer.uid = 1000;
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    g_assert_cmpint(ask(f, &rq), ==, ESRCH);
}

/* Its threads have other numbers here. */
static void test_namespace(Fixture *f, gconstpointer data)
{
    static const struct {
        const char *line;
        int error;
    } cases[] = {
        { "NSpid:\t77\n", 0 }, { "NSpid:\t77\t5\n", ESRCH }, { "", 0 },
    };
    IRQHelperRequest rq = request(IRQ_HELPER_HELLO, IRQ_HELPER_VERSION, 0);

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *status = g_strconcat("Name:\tqemu\n", cases[i].line,
                                              NULL);

        put(f, status, "/proc/%d/task/%d/status", getpid(), getpid());
        g_assert_cmpint(ask(f, &rq), ==, cases[i].error);
        g_assert_true(f->peer.greeted == !cases[i].error);
    }
    f->peer.pid = 0;
    g_assert_cmpint(ask(f, &rq), ==, ESRCH);
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
}

static void test_thread(Fixture *f, gconstpointer data)
{
    IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);

    rq.tid = 1;
    g_assert_cmpint(ask(f, &rq), ==, ESRCH);
    rq.tid = UINT32_MAX;
    g_assert_cmpint(ask(f, &rq), ==, ESRCH);
    rq.op = IRQ_HELPER_WATCH;
    g_assert_cmpint(ask(f, &rq), ==, ESRCH);
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    close(f->peer.pidfd);
    f->peer.pidfd = -1;
    g_assert_cmpint(ask(f, &rq), ==, ESRCH);
    {
        pid_t child = fork();

        if (!child) {
            _exit(0);
        }
        f->peer.pidfd = syscall(SYS_pidfd_open, child, 0);
        waitpid(child, NULL, 0);
    }
    g_assert_cmpint(ask(f, &rq), ==, ESRCH);
    assert_mask(f, 40, "0-7");
}

/*
 * The thread may run on 1-3, the host's default is 0-3: whatever is asked for,
 * it is given what is allowed of it, else of the default, else nothing.
 */
static void test_restore(Fixture *f, gconstpointer cpus)
{
    static const struct {
        const char *list;
        const char *result, *limited;   /* without and with the list 2-9 */
    } rows[] = {
        { "1-3", "1-3", "2-3" }, { "2", "2", "2" }, { "1,3", "1,3", "3" },
        { "0-3", "1-3", "2-3" }, { "0-8191", "1-3", "2-3" },
        { "1", "1", "2-3" }, { "1,1,1,1", "1", "2-3" },
        { "0", "1-3", "2-3" }, { "4", "1-3", "2-3" }, { "", "1-3", "2-3" },
        { "1-3\n7", "1-3", "2-3" }, { "1-", "1-3", "2-3" },
        { "-1", "1-3", "2-3" }, { "3-1", "1-3", "2-3" },
        { "1-99999999", "1-3", "2-3" },
    };

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        const char *result = cpus ? rows[i].limited : rows[i].result;
        IRQHelperRequest rq = request(IRQ_HELPER_RESTORE, 40, 0);
        unsigned value;

        strcpy(rq.list, rows[i].list);
        f->now += SECOND;
        g_assert_cmpint(ask_value(f, &rq, f->proof, &value), ==, 0);
        assert_mask(f, 40, result);
        /* whether it got what it asked for is told */
        g_assert_cmpuint(value, ==, !g_str_equal(result, rows[i].list));
    }
}

/* Neither the list nor the default has a processor that is allowed. */
static void test_restore_nowhere(Fixture *f, gconstpointer data)
{
    static const char *const defaults[] = { "f0", "1,00000001", "", "x" };

    for (int i = 0; i < ARRAY_SIZE(defaults); i++) {
        IRQHelperRequest rq = request(IRQ_HELPER_RESTORE, 40, 0);

        put(f, defaults[i], "/proc/irq/default_smp_affinity");
        g_assert_cmpint(ask(f, &rq), ==, EPERM);
        strcpy(rq.list, "0,4-7");
        g_assert_cmpint(ask(f, &rq), ==, EPERM);
        assert_mask(f, 40, "0-7");
    }
    /* many words: CPU 2 is in the last one */
    put(f, "00000001,00000000,00000005\n", "/proc/irq/default_smp_affinity");
    {
        IRQHelperRequest rq = request(IRQ_HELPER_RESTORE, 40, 0);

        g_assert_cmpint(ask(f, &rq), ==, 0);
        assert_mask(f, 40, "2");
    }
}

/* As many as moves, but by itself; what comes too fast is not refused. */
static void test_restore_limit(Fixture *f, gconstpointer data)
{
    IRQHelperRequest move = request(IRQ_HELPER_MOVE, 40, 2);
    IRQHelperRequest restore = request(IRQ_HELPER_RESTORE, 40, 0);

    for (int i = 0; i < 5; i++) {
        g_assert_cmpint(ask_fd(f, &move, f->proof), ==, 0);
    }
    g_assert_cmpint(ask_fd(f, &move, f->proof), ==, EAGAIN);
    strcpy(restore.list, "1-3");
    for (int i = 0; i < 5; i++) {
        g_assert_cmpint(ask_fd(f, &restore, f->proof), ==, 0);
        assert_mask(f, 40, "1-3");
    }
    put_irq(f, 40, "vfio-msix[0](" DEVICE ")\n");
    g_assert_cmpint(ask_fd(f, &restore, f->proof), ==, LATER);
    assert_mask(f, 40, "0-7");
    /* without the right it is refused at once */
    g_assert_cmpint(ask_fd(f, &restore, -1), ==, EPERM);
    f->now += SECOND;
    g_assert_cmpint(ask_fd(f, &restore, f->proof), ==, 0);
    assert_mask(f, 40, "1-3");
}

/*
 * Its own limit, for each device, however many connections ask: each is served
 * by a process of its own.
 */
static void test_limit(Fixture *f, gconstpointer data)
{
    IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);

    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        int status;

        if (!child) {
            _exit(ask_fd(f, &rq, f->proof) != 0);
        }
        g_assert_cmpint(waitpid(child, &status, 0), ==, child);
        g_assert_cmpint(status, ==, 0);
    }
    g_assert_cmpint(ask_fd(f, &rq, f->proof), ==, EAGAIN);
    /* another device has its own */
    put(f, "", "/sys/kernel/iommu_groups/7/devices/0000:01:00.1");
    put_irq(f, 60, "vfio-msix[0](0000:01:00.1)\n");
    {
        IRQHelperRequest other = request(IRQ_HELPER_MOVE, 60, 2);

        strcpy(other.device, "0000:01:00.1");
        g_assert_cmpint(ask_fd(f, &other, f->proof), ==, 0);
    }
    g_assert_cmpint(ask_fd(f, &rq, f->proof), ==, EAGAIN);
    f->now += SECOND - 1;
    g_assert_cmpint(ask_fd(f, &rq, f->proof), ==, EAGAIN);
    f->now++;
    g_assert_cmpint(ask_fd(f, &rq, f->proof), ==, 0);
}

/* Who has hung up moves nothing any more, but gives back. */
static void test_hung_up(Fixture *f, gconstpointer data)
{
    IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);

    /* that it sends no more is not that it has gone */
    g_assert_cmpint(shutdown(f->far, SHUT_WR), ==, 0);
    g_assert_cmpint(ask(f, &rq), ==, 0);
    assert_mask(f, 40, "2");
    close(f->far);
    f->far = -1;
    rq.cpu = 3;
    /* nor does it count against who comes after it */
    for (int i = 0; i < 10; i++) {
        g_assert_cmpint(ask_fd(f, &rq, f->proof), ==, ENOTCONN);
    }
    assert_mask(f, 40, "2");
    rq = request(IRQ_HELPER_RESTORE, 40, 0);
    strcpy(rq.list, "1-3");
    g_assert_cmpint(ask_fd(f, &rq, f->proof), ==, 0);
    assert_mask(f, 40, "1-3");
}

/* Names that lead elsewhere in a path */
static void test_names(Fixture *f, gconstpointer data)
{
    static const char *const names[] = {
        "", ".", "..", "../" DEVICE, DEVICE "/..", "/", "0000:01:00.0 ",
        "0000:01:00.0)", "[", "0000:01:00",
    };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);
        int err;

        memset(rq.device, 0, sizeof(rq.device));
        strcpy(rq.device, names[i]);
        err = ask(f, &rq);
        g_assert_true(err == EINVAL || err == EPERM);
    }
    assert_mask(f, 40, "0-7");
}

/* What is no message ends the connection. */
static void test_protocol(Fixture *f, gconstpointer data)
{
    IRQHelperRequest rq = request(IRQ_HELPER_MOVE, 40, 2);
    IRQHelperReply reply;
    int reply_fd;

    for (size_t len = 0; len < sizeof(rq); len++) {
        g_assert_cmpint(irq_serve_request(f->s, &f->peer, &rq, len, f->proof,
                                          &reply, &reply_fd, f->now), ==,
                        IRQ_SERVE_END);
    }
    rq.op = 0;
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
    rq.op = IRQ_HELPER_WATCH + 1;
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    rq.reserved = 1;
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    memset(rq.device, '0', sizeof(rq.device));
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
    rq = request(IRQ_HELPER_RESTORE, 40, 2);
    memset(rq.list, '1', sizeof(rq.list));
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
    /* HELLO comes first, and with the right version */
    f->peer.greeted = false;
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
    rq = request(IRQ_HELPER_HELLO, IRQ_HELPER_VERSION + 1, 0);
    g_assert_cmpint(ask(f, &rq), ==, EPROTONOSUPPORT);
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    g_assert_cmpint(ask(f, &rq), ==, HUNG_UP);
    rq = request(IRQ_HELPER_HELLO, IRQ_HELPER_VERSION, 0);
    g_assert_cmpint(ask(f, &rq), ==, 0);
    rq = request(IRQ_HELPER_MOVE, 40, 2);
    g_assert_cmpint(ask(f, &rq), ==, 0);
}

static void test_bad_list(void)
{
    g_assert_null(irq_serve_new("", "", 1));
    g_assert_null(irq_serve_new("", "all", 1));
    g_assert_null(irq_serve_new("", "1-", 1));
    g_assert_null(irq_serve_new("", "8192", 1));
}

/*
 * Requests that are almost right, with random changes: whatever is granted,
 * interrupts of others stay, and no processor is used that is not allowed.
 */
static void test_fuzz(Fixture *f, gconstpointer data)
{
    unsigned rounds = g_test_slow() ? 2000000 : 50000;
    unsigned granted = 0;

    for (unsigned i = 0; i < rounds; i++) {
        IRQHelperRequest rq = request(g_test_rand_int_range(0, 6),
                                      g_test_rand_int_range(38, 54),
                                      g_test_rand_int_range(0, 6));
        unsigned changes = g_test_rand_int_range(0, 4);
        bool proof = g_test_rand_int_range(0, 4);
        int err;

        if (rq.op == IRQ_HELPER_WATCH) {
            rq.tid = 0;         /* no real events in a fuzz */
        }
        strcpy(rq.list, i & 1 ? "1-2" : "0");
        for (unsigned j = 0; j < changes; j++) {
            /* not the operation, or the thread, of WATCH */
            unsigned at = g_test_rand_int_range(rq.op == IRQ_HELPER_WATCH
                                                ? 24 : 4, sizeof(rq));

            ((uint8_t *)&rq)[at] = g_test_rand_int();
        }
        if (i % 64 == 0) {
            f->peer.greeted = true;
            f->now += SECOND;
        }
        err = ask_fd(f, &rq, proof ? f->proof : -1);
        granted += !err && (rq.op == IRQ_HELPER_MOVE ||
                            rq.op == IRQ_HELPER_RESTORE);
        if (!err && rq.op == IRQ_HELPER_MOVE) {
            g_assert_true(proof && (rq.number == 40 || rq.number == 41));
            g_assert_true(rq.cpu >= 1 && rq.cpu <= 3);
        }
        if (!err && rq.op == IRQ_HELPER_RESTORE) {
            g_autofree char *mask = get_mask(f, rq.number);

            g_assert_true(proof && (rq.number == 40 || rq.number == 41));
            g_assert_cmpuint(strspn(mask, "123,-"), ==, strlen(mask));
        }
        if (i % 64 == 0) {
            assert_mask(f, 50, "0-7");
            assert_mask(f, 51, "0-7");
        }
    }
    g_assert_cmpuint(granted, >, rounds / 1000);
}

/*
 * Whose connection is next.  The descriptors are numbers only: a hundred times
 * the user, and how many it had before.
 */

static bool add(IRQQueue *q, const IRQSlot *slots, unsigned uid, unsigned n)
{
    const struct ucred peer = { .uid = uid, .pid = 1000 * uid + n / 8 };

    return irq_queue_add(q, slots, 100 * uid + n, &peer);
}

static void assert_empty(IRQQueue *q)
{
    g_assert_cmpint(irq_queue_take(q), ==, -1);
}

static void test_turns(void)
{
    g_autofree IRQSlot *slots = g_new0(IRQSlot, IRQ_SLOTS);
    IRQQueue q;

    irq_queue_init(&q);
    assert_empty(&q);
    for (unsigned i = 0; i < IRQ_WAITING_PER_USER_MAX; i++) {
        g_assert_true(add(&q, slots, 1, i));
    }
    g_assert_false(add(&q, slots, 1, 99));
    g_assert_cmpint(irq_queue_take(&q), ==, 100);
    g_assert_cmpint(irq_queue_take(&q), ==, 101);
    /* who comes later, with few, is served before all that wait longer */
    g_assert_true(add(&q, slots, 2, 0));
    g_assert_true(add(&q, slots, 2, 1));
    g_assert_true(add(&q, slots, 3, 0));
    g_assert_cmpint(irq_queue_take(&q), ==, 200);
    g_assert_cmpint(irq_queue_take(&q), ==, 300);
    /* and they take turns */
    g_assert_cmpint(irq_queue_take(&q), ==, 102);
    g_assert_cmpint(irq_queue_take(&q), ==, 201);
    for (unsigned i = 3; i < IRQ_WAITING_PER_USER_MAX; i++) {
        g_assert_cmpint(irq_queue_take(&q), ==, 100 + i);
    }
    assert_empty(&q);
}

/* One that always has as many as it may, against one that asks at times */
static void test_turns_flood(void)
{
    g_autofree IRQSlot *slots = g_new0(IRQSlot, IRQ_SLOTS);
    IRQQueue q;

    irq_queue_init(&q);
    for (unsigned i = 0; i < 1000; i++) {
        unsigned before = 0;

        while (add(&q, slots, 1, g_test_rand_int_range(0, 99))) {
            /* the next one */
        }
        for (int n = g_test_rand_int_range(0, 40); n > 0; n--) {
            irq_queue_take(&q);
        }
        g_assert_true(add(&q, slots, 2, 0));
        while (irq_queue_take(&q) != 200) {
            before++;
        }
        g_assert_cmpuint(before, <=, 1);
    }
    while (irq_queue_take(&q) >= 0) {
        /* the next one */
    }
}

static unsigned add_all(IRQQueue *q, const IRQSlot *slots, unsigned uid)
{
    unsigned count = 0;

    while (add(q, slots, uid, count)) {
        count++;
    }
    return count;
}

static void serve_some(IRQSlot *slots, unsigned at, unsigned count,
                       unsigned uid, pid_t pid)
{
    for (unsigned i = at; i < at + count; i++) {
        slots[i] = (IRQSlot) {
            .state = IRQ_SLOT_SERVED, .peer = { .uid = uid, .pid = pid },
        };
    }
}

static void take_all(IRQQueue *q)
{
    while (irq_queue_take(q) >= 0) {
        /* the next one */
    }
}

/* Those that are served count as well. */
static void test_turns_bounds(void)
{
    g_autofree IRQSlot *slots = g_new0(IRQSlot, IRQ_SLOTS);
    unsigned count = 0;
    IRQQueue q;

    irq_queue_init(&q);
    serve_some(slots, 0, IRQ_CONNECTIONS_PER_USER_MAX - 3, 1, 77);
    g_assert_cmpuint(add_all(&q, slots, 1), ==, 3);
    g_assert_cmpuint(add_all(&q, slots, 2), ==, IRQ_WAITING_PER_USER_MAX);
    take_all(&q);

    memset(slots, 0, IRQ_SLOTS * sizeof(*slots));
    serve_some(slots, 5, IRQ_CONNECTIONS_PER_PROCESS_MAX - 2, 3, 3000);
    g_assert_cmpuint(add_all(&q, slots, 3), ==, 2);
    take_all(&q);

    memset(slots, 0, IRQ_SLOTS * sizeof(*slots));
    serve_some(slots, 0, 100, 50, 50);
    for (unsigned uid = 1; uid < 50; uid++) {
        count += add_all(&q, slots, uid);
    }
    g_assert_cmpuint(count, ==, IRQ_CONNECTIONS_MAX - 100);
    take_all(&q);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, func, cpus) \
    g_test_add("/irq-affinity/helper/" name, Fixture, cpus, set_up, func, \
               tear_down)
    ADD("move", test_move, NULL);
    ADD("not-own", test_not_own, NULL);
    ADD("no-proof", test_no_proof, NULL);
    ADD("device-file", test_device_file, NULL);
    ADD("cpus", test_cpus, NULL);
    ADD("cpus-list", test_cpus, "2-9");
    ADD("thread", test_thread, NULL);
    ADD("other-user", test_other_user, NULL);
    ADD("namespace", test_namespace, NULL);
    ADD("restore", test_restore, NULL);
    ADD("restore-list", test_restore, "2-9");
    ADD("restore-nowhere", test_restore_nowhere, NULL);
    ADD("restore-limit", test_restore_limit, NULL);
    ADD("limit", test_limit, NULL);
    ADD("hung-up", test_hung_up, NULL);
    ADD("names", test_names, NULL);
    ADD("protocol", test_protocol, NULL);
    ADD("fuzz", test_fuzz, NULL);
#undef ADD
    g_test_add_func("/irq-affinity/helper/bad-list", test_bad_list);
    g_test_add_func("/irq-affinity/helper/turns", test_turns);
    g_test_add_func("/irq-affinity/helper/turns-flood", test_turns_flood);
    g_test_add_func("/irq-affinity/helper/turns-bounds", test_turns_bounds);
    return g_test_run();
}
