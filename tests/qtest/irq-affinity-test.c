/*
 * QTest: interrupt affinity that follows the vCPU, in a simulated host
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The files of /proc and /sys that are used are made in a directory, the
 * device's routes are written to a test device.  The real ones are the
 * subject of tests/lab/test_irq_affinity.py.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"

#define DEVICE "0000:01:00.0"
#define LIMIT_US (20 * 1000 * 1000)
#define STEP_US 2000

typedef struct Host {
    char *root;
    QTestState *qts;
    unsigned counts[4];     /* of every interrupt, by processor */
} Host;

/*
 * The simulated host: four processors, two of them to a core
 */

static void host_write(Host *h, const char *path, const char *text)
{
    g_autofree char *full = g_strconcat(h->root, path, NULL);
    g_autofree char *dir = g_path_get_dirname(full);
    size_t size = strlen(text);
    int fd;

    g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
    /*
     * In place, as the file may be open, and never empty in between: QEMU may
     * read at any time, and the kernel's files always have their text.
     */
    fd = open(full, O_WRONLY | O_CREAT, 0644);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pwrite(fd, text, size, 0), ==, size);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    g_assert_cmpint(close(fd), ==, 0);
}

static void G_GNUC_PRINTF(3, 4) host_printf(Host *h, const char *text,
                                            const char *fmt, ...)
{
    g_autofree char *path = NULL;
    va_list ap;

    va_start(ap, fmt);
    path = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    host_write(h, path, text);
}

static void host_remove(Host *h, const char *path)
{
    g_autofree char *full = g_strconcat(h->root, path, NULL);

    g_assert_cmpint(g_remove(full), ==, 0);
}

static char *host_read(Host *h, const char *path)
{
    g_autofree char *full = g_strconcat(h->root, path, NULL);
    char *text = NULL;

    g_assert_true(g_file_get_contents(full, &text, NULL, NULL));
    return g_strstrip(text);
}

static void host_new(Host *h)
{
    *h = (Host) { };
    h->root = g_dir_make_tmp("irq-affinity-XXXXXX", NULL);
    g_assert_nonnull(h->root);
    host_write(h, "/sys/devices/system/cpu/possible", "0-3\n");
    host_write(h, "/sys/devices/system/cpu/online", "0-3\n");
    for (int cpu = 0; cpu < 4; cpu++) {
        host_printf(h, cpu < 2 ? "0-1\n" : "2-3\n", "/sys/devices/system/cpu/"
                    "cpu%d/topology/thread_siblings_list", cpu);
    }
}

static void host_count(Host *h, int irq)
{
    g_autofree char *text = g_strdup_printf("%u,%u,%u,%u\n", h->counts[0],
                                            h->counts[1], h->counts[2],
                                            h->counts[3]);

    host_printf(h, text, "/sys/kernel/irq/%d/per_cpu_count", irq);
}

static void host_add_irq(Host *h, int irq, unsigned vector)
{
    g_autofree char *name = g_strdup_printf("vfio-msix[%u](" DEVICE ")\n",
                                            vector);

    host_printf(h, name, "/sys/kernel/irq/%d/actions", irq);
    host_count(h, irq);
    host_printf(h, "0-3\n", "/proc/irq/%d/smp_affinity_list", irq);
    host_printf(h, "msix\n", "/sys/bus/pci/devices/" DEVICE "/msi_irqs/%d",
                irq);
}

static void host_remove_irq(Host *h, int irq)
{
    static const char *const files[] = {
        "/sys/kernel/irq/%d/actions", "/sys/kernel/irq/%d/per_cpu_count",
        "/proc/irq/%d/smp_affinity_list",
    };

    for (int i = 0; i < ARRAY_SIZE(files); i++) {
        g_autofree char *number = g_strdup_printf("%d", irq);
        g_auto(GStrv) parts = g_strsplit(files[i], "%d", 2);
        g_autofree char *path = g_strjoinv(number, parts);

        host_remove(h, path);
    }
    {
        g_autofree char *path = g_strdup_printf("/sys/bus/pci/devices/" DEVICE
                                                "/msi_irqs/%d", irq);

        host_remove(h, path);
    }
}

/*
 * QEMU
 */

static QDict *query(Host *h)
{
    QDict *rsp = qtest_qmp(h->qts, "{'execute': 'query-irq-affinity'}");
    QList *list = qdict_get_qlist(rsp, "return");
    QDict *info;

    g_assert_cmpuint(qlist_size(list), ==, 1);
    info = qobject_to(QDict, qobject_ref(qlist_peek(list)));
    qobject_unref(rsp);
    return info;
}

/* Returns: (transfer full): what is told of vector N, or NULL. */
static QDict *query_vector(Host *h, int number)
{
    g_autoptr(QDict) info = query(h);
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "vectors"), e) {
        QDict *v = qobject_to(QDict, qlist_entry_obj(e));

        if (qdict_get_int(v, "vector") == number) {
            return qobject_ref(v);
        }
    }
    return NULL;
}

static void run_vcpu_on(Host *h, int cpu)
{
    QDict *rsp = qtest_qmp(h->qts, "{'execute': 'query-cpus-fast'}");
    const QListEntry *e;
    static unsigned run_ns = 1000;
    g_autofree char *schedstat = g_strdup_printf("%u 0 0\n", ++run_ns);
    /* the name has a blank and a parenthesis; field 39 is the processor */
    g_autofree char *stat = g_strdup_printf("1 (CPU 0) (KVM) S 4 5 6 7 8 9 10 "
        "11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 "
        "34 35 36 37 38 %d 40 41\n", cpu);

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), e) {
        int tid = qdict_get_int(qobject_to(QDict, qlist_entry_obj(e)),
                                "thread-id");

        host_printf(h, stat, "/proc/self/task/%d/stat", tid);
        host_printf(h, schedstat, "/proc/self/task/%d/schedstat", tid);
    }
    qobject_unref(rsp);
}

/* One interrupt of @irq on @cpu, and some time for the vCPU. */
static void step(Host *h, int irq, int cpu, int vcpu_cpu)
{
    if (irq >= 0) {
        h->counts[cpu]++;
        host_count(h, irq);
    }
    run_vcpu_on(h, vcpu_cpu);
    g_usleep(STEP_US);
}

static void qom_set(Host *h, const char *property, const char *value)
{
    qtest_qmp_assert_success(h->qts, "{'execute': 'qom-set', 'arguments': {"
                             "'path': '/machine/peripheral/dev', 'property': "
                             "%s, 'value': %s}}", property, value);
}

static void route(Host *h, const char *value)
{
    qom_set(h, "route", value);
}

static void start(Host *h, const char *object, const char *more)
{
    h->qts = qtest_initf("-machine q35 -nodefaults -object irq-affinity,id=a,"
                         "x-host-root=%s%s -device irq-affinity-testdev,id=dev"
                         ",host=" DEVICE "%s", h->root, object, more);
}

static void stop(Host *h)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", h->root);

    if (h->qts) {
        qtest_quit(h->qts);
    }
    g_assert_cmpint(system(command), ==, 0);
    g_free(h->root);
}

static void wait_state(Host *h, int vector, const char *state)
{
    for (int us = 0; us < LIMIT_US; us += STEP_US) {
        g_autoptr(QDict) v = query_vector(h, vector);

        if (v && g_str_equal(qdict_get_str(v, "state"), state)) {
            return;
        }
        g_usleep(STEP_US);
    }
    g_assert_not_reached();
}

/* Interrupts on @cpu while the vCPU is on @vcpu_cpu, until the mask says so */
static void wait_mask(Host *h, int irq, int cpu, int vcpu_cpu,
                      const char *mask)
{
    g_autofree char *path = g_strdup_printf("/proc/irq/%d/smp_affinity_list",
                                            irq);

    for (int us = 0; us < LIMIT_US; us += STEP_US) {
        g_autofree char *now = host_read(h, path);

        if (g_str_equal(now, mask)) {
            return;
        }
        step(h, irq, cpu, vcpu_cpu);
    }
    g_assert_not_reached();
}

/*
 * Tests
 */

static void assert_error(QDict *rsp, const char *text)
{
    const char *desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");

    g_assert_nonnull(desc);
    if (!strstr(desc, text)) {
        g_test_message("expected: %s", text);
        g_assert_cmpstr(desc, ==, text);
    }
    qobject_unref(rsp);
}

static QDict *object_add(QTestState *qts, const char *property,
                         QObject *value)
{
    QDict *args = qdict_new();

    qdict_put_str(args, "qom-type", "irq-affinity");
    qdict_put_str(args, "id", "bad");
    qdict_put_obj(args, property, value);
    return qtest_qmp(qts, "{'execute': 'object-add', 'arguments': %p}", args);
}

static void test_errors(void)
{
    static const struct {
        const char *property;
        int value;
        const char *limits;
    } rows[] = {
        { "forward-threshold", 0, "from 1 to 1000000" },
        { "forward-threshold", 1000001, "from 1 to 1000000" },
        { "forward-window-ms", 0, "from 1 to 10000" },
        { "forward-window-ms", 10001, "from 1 to 10000" },
        { "min-interval-ms", 60001, "from 0 to 60000" },
        { "max-moves-per-s", 0, "from 1 to 10000" },
        { "max-moves-per-s", 10001, "from 1 to 10000" },
        { "sample-interval-ms", 0, "from 1 to 1000" },
        { "sample-interval-ms", 1001, "from 1 to 1000" },
    };
    QTestState *qts = qtest_init("-machine none");

    for (int i = 0; i < ARRAY_SIZE(rows); i++) {
        g_autofree char *expected = g_strdup_printf(
            "Property '%s' of irq-affinity is %d, but must be %s",
            rows[i].property, rows[i].value, rows[i].limits);

        assert_error(object_add(qts, rows[i].property,
                                QOBJECT(qnum_from_int(rows[i].value))),
                     expected);
    }
    assert_error(object_add(qts, "policy", QOBJECT(qstring_from_str("best"))),
                 "best");
    assert_error(object_add(qts, "locality", QOBJECT(qstring_from_str("far"))),
                 "far");
    assert_error(object_add(qts, "x-host-root",
                            QOBJECT(qstring_from_str("/nowhere"))),
                 "cannot be read from '/nowhere/sys/devices/system/cpu/"
                 "possible'");
    qtest_quit(qts);
}

/* Properties are fixed; the object stays as long as a device has it. */
static void test_life(void)
{
    Host h;
    QDict *rsp;

    host_new(&h);
    start(&h, "", ",irq-affinity=a");
    rsp = qtest_qmp(h.qts, "{'execute': 'qom-set', 'arguments': {'path': "
                    "'/objects/a', 'property': 'min-interval-ms', 'value': "
                    "1}}");
    assert_error(rsp, "Property 'min-interval-ms' of irq-affinity cannot be "
                 "changed after creation");
    rsp = qtest_qmp(h.qts, "{'execute': 'object-del', 'arguments': {'id': "
                    "'a'}}");
    assert_error(rsp, "object 'a' is in use, can not be deleted");
    qom_set(&h, "irq-affinity", "");
    qtest_qmp_assert_success(h.qts, "{'execute': 'object-del', 'arguments': "
                             "{'id': 'a'}}");
    rsp = qtest_qmp(h.qts, "{'execute': 'query-irq-affinity'}");
    g_assert_true(qlist_empty(qdict_get_qlist(rsp, "return")));
    qobject_unref(rsp);
    stop(&h);
}

/* An accelerator that runs all vCPUs in one thread */
static void test_one_thread(void)
{
    Host h;
    QDict *rsp;

    if (!qtest_has_accel("tcg")) {
        g_test_skip("no TCG");
        return;
    }
    host_new(&h);
    start(&h, "", " -accel tcg,thread=single -smp 2");
    rsp = qtest_qmp(h.qts, "{'execute': 'qom-set', 'arguments': {'path': "
                    "'/machine/peripheral/dev', 'property': 'irq-affinity', "
                    "'value': 'a'}}");
    assert_error(rsp, "Property 'irq-affinity' needs a thread for each vCPU");
    rsp = qtest_qmp(h.qts, "{'execute': 'qom-get', 'arguments': {'path': "
                    "'/machine/peripheral/dev', 'property': 'irq-affinity'}}");
    g_assert_cmpstr(qdict_get_str(rsp, "return"), ==, "");
    qobject_unref(rsp);
    stop(&h);
}

static void test_states(void)
{
    Host h;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    host_add_irq(&h, 42, 1);
    /* another device's, and what is no vector */
    host_write(&h, "/sys/kernel/irq/43/actions", "vfio-msix[2](0000:01:00.1)");
    host_write(&h, "/sys/bus/pci/devices/" DEVICE "/msi_irqs/43", "");
    host_write(&h, "/sys/bus/pci/devices/" DEVICE "/msi_irqs/nonsense", "");
    start(&h, "", ",irq-affinity=a -smp 2");
    wait_state(&h, 0, "no-route");
    wait_state(&h, 1, "no-route");
    g_assert_null(query_vector(&h, 2));
    route(&h, "0=0xfee00000:0x41");
    /* vCPU 0, but its thread's files cannot be opened yet */
    wait_state(&h, 0, "no-vcpu");
    run_vcpu_on(&h, 1);
    wait_state(&h, 0, "idle-or-posted");
    route(&h, "1=0xfee0f000:0x41");
    wait_state(&h, 1, "no-vcpu");
    route(&h, "1=0xfeeff000:0x41");
    wait_state(&h, 1, "several-vcpus");
    route(&h, "1=");
    wait_state(&h, 1, "no-route");
    stop(&h);
}

/* That the vCPU has moved is seen by the next sample, or was already. */
static void wait_notice(Host *h)
{
    for (int us = 0; us < LIMIT_US; us += STEP_US) {
        g_autoptr(QDict) info = query(h);
        QDict *v = qobject_to(QDict,
                              qlist_peek(qdict_get_qlist(info, "vcpus")));

        g_assert_cmpstr(qdict_get_str(v, "source"), ==, "sample");
        if (qdict_get_int(v, "notices") >= 1) {
            return;
        }
        g_usleep(STEP_US);
    }
    g_assert_not_reached();
}

static void test_follow(const void *policy)
{
    Host h;
    g_autofree char *object = g_strdup_printf(
        ",policy=%s,forward-threshold=2,forward-window-ms=20,"
        "sample-interval-ms=1", (const char *)policy);
    g_autofree char *hmp = NULL;
    QDict *info, *v;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    start(&h, object, "");
    run_vcpu_on(&h, 0);
    route(&h, "0=0xfee00000:0x41");
    qom_set(&h, "irq-affinity", "a");
    wait_state(&h, 0, "idle-or-posted");
    wait_mask(&h, 41, 1, 0, "0");       /* taken on 1, the vCPU is on 0 */
    wait_state(&h, 0, "following");
    wait_mask(&h, 41, 0, 3, "3");       /* the vCPU moves to 3 */
    v = query_vector(&h, 0);
    g_assert_cmpint(qdict_get_int(v, "irq"), ==, 41);
    g_assert_cmpint(qdict_get_int(v, "vcpu"), ==, 0);
    g_assert_cmpint(qdict_get_int(v, "vcpu-host-cpu"), ==, 3);
    g_assert_cmpint(qdict_get_int(v, "sent-to"), ==, 3);
    g_assert_cmpint(qdict_get_int(v, "moves"), >=, 2);
    g_assert_cmpstr(qdict_get_str(v, "host"), ==, DEVICE);
    qobject_unref(v);
    info = query(&h);
    g_assert_cmpstr(qdict_get_str(info, "policy"), ==, policy);
    g_assert_cmpint(qdict_get_int(info, "moves"), >=, 2);
    g_assert_cmpint(qdict_get_int(info, "wake-ups"), >, 0);
    qobject_unref(info);
    wait_notice(&h);
    hmp = qtest_hmp(h.qts, "info irq-affinity");
    g_assert_nonnull(strstr(hmp, "IRQ 41: following, vCPU 0, sent to host CPU "
                            "3"));

    /* taken off, it goes where it went before */
    qom_set(&h, "irq-affinity", "");
    {
        g_autofree char *mask = host_read(&h,
                                          "/proc/irq/41/smp_affinity_list");

        g_assert_cmpstr(mask, ==, "0-3");
    }
    info = query(&h);
    g_assert_true(qlist_empty(qdict_get_qlist(info, "vectors")));
    g_assert_true(qlist_empty(qdict_get_qlist(info, "vcpus")));
    qobject_unref(info);
    stop(&h);
}

/* The same vector gets another number; the old one is somebody else's. */
static void test_number(void)
{
    Host h;
    g_autofree char *other = NULL;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    start(&h, ",sample-interval-ms=1,forward-window-ms=20", "");
    run_vcpu_on(&h, 0);
    route(&h, "0=0xfee00000:0x41");
    qom_set(&h, "irq-affinity", "a");
    wait_mask(&h, 41, 1, 0, "0");
    host_remove_irq(&h, 41);
    host_add_irq(&h, 47, 0);
    host_write(&h, "/proc/irq/41/smp_affinity_list", "1-2\n");
    host_write(&h, "/sys/kernel/irq/41/actions", "eth0");
    for (int i = 0; i < 100; i++) {     /* before QEMU is told */
        step(&h, 47, 0, 2 + (i / 10) % 2);
    }
    route(&h, "0=0xfee00000:0x42");
    wait_mask(&h, 47, 1, 2, "2");
    other = host_read(&h, "/proc/irq/41/smp_affinity_list");
    g_assert_cmpstr(other, ==, "1-2");
    stop(&h);
}

/* Somebody else moves it: left alone, also when the policy is taken off. */
static void test_foreign(void)
{
    Host h;
    g_autofree char *mask = NULL;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    start(&h, ",sample-interval-ms=1,forward-window-ms=20", "");
    run_vcpu_on(&h, 0);
    route(&h, "0=0xfee00000:0x41");
    qom_set(&h, "irq-affinity", "a");
    wait_mask(&h, 41, 1, 0, "0");
    host_write(&h, "/proc/irq/41/smp_affinity_list", "1\n");
    for (int i = 0; i < 100; i++) {
        step(&h, 41, 1, 3);
    }
    wait_state(&h, 0, "stood-down");
    qom_set(&h, "irq-affinity", "");
    mask = host_read(&h, "/proc/irq/41/smp_affinity_list");
    g_assert_cmpstr(mask, ==, "1");
    stop(&h);
}

/*
 * Its processor goes offline and is back before it is looked at: the mask is
 * the host's.
 */
static void test_reset(void)
{
    Host h;
    QDict *info;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    start(&h, ",sample-interval-ms=1,forward-window-ms=20", "");
    run_vcpu_on(&h, 3);
    route(&h, "0=0xfee00000:0x41");
    qom_set(&h, "irq-affinity", "a");
    wait_mask(&h, 41, 1, 3, "3");
    host_write(&h, "/proc/irq/41/smp_affinity_list", "0-2\n");
    wait_mask(&h, 41, 1, 0, "0");
    info = query(&h);
    g_assert_cmpint(qdict_get_int(info, "resets"), ==, 1);
    g_assert_cmpint(qdict_get_int(info, "foreign"), ==, 0);
    qobject_unref(info);
    /* with two processors, the other one is somebody's choice */
    host_write(&h, "/sys/devices/system/cpu/online", "0-1\n");
    host_write(&h, "/proc/irq/41/smp_affinity_list", "1\n");
    for (int i = 0; i < 100; i++) {
        step(&h, 41, 1, 3);
    }
    wait_state(&h, 0, "stood-down");
    stop(&h);
}

/* How often the host has refused vector 0 */
static int refusals(Host *h)
{
    g_autoptr(QDict) v = query_vector(h, 0);
    QDict *first;

    if (!v) {
        return 0;
    }
    first = qobject_to(QDict, qlist_peek(qdict_get_qlist(v, "refusals")));
    return first ? qdict_get_int(first, "count") : 0;
}

/* The host says no: counted, told once a second at most, and VM goes on. */
static void test_refused(void)
{
    Host h;
    g_autofree char *path = NULL;
    QDict *event, *data, *v;
    gint64 begin;
    int count;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    host_remove(&h, "/proc/irq/41/smp_affinity_list");
    path = g_strconcat(h.root, "/proc/irq/41/smp_affinity_list", NULL);
    /* a file that cannot be written anew, not even by root */
    g_assert_cmpint(symlink("/dev/full", path), ==, 0);
    start(&h, ",sample-interval-ms=1,forward-window-ms=20", "");
    run_vcpu_on(&h, 0);
    route(&h, "0=0xfee00000:0x41");
    qom_set(&h, "irq-affinity", "a");
    begin = g_get_monotonic_time();
    while (refusals(&h) < 2 && g_get_monotonic_time() - begin < LIMIT_US) {
        step(&h, 41, 1, 0);
    }
    for (int i = 0; i < 100; i++) {
        step(&h, 41, 1, 0);
    }
    event = qtest_qmp_eventwait_ref(h.qts, "IRQ_AFFINITY_REFUSED");
    data = qdict_get_qdict(event, "data");
    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "a");
    g_assert_cmpstr(qdict_get_str(data, "device"), ==,
                    "/machine/peripheral/dev");
    g_assert_cmpint(qdict_get_int(data, "irq"), ==, 41);
    g_assert_cmpint(qdict_get_int(data, "host-cpu"), ==, 0);
    g_assert_cmpstr(qdict_get_str(data, "reason"), ==, "invalid");
    qobject_unref(event);
    v = query_vector(&h, 0);
    g_assert_cmpstr(qdict_get_str(v, "last-refusal"), ==, "invalid");
    g_assert_cmpint(qdict_get_int(v, "moves"), ==, 0);
    qobject_unref(v);
    /* 0.1, 0.2, 0.4 and then 1 s apart, not one for each interrupt */
    count = refusals(&h);
    g_assert_cmpint(count, >=, 2);
    g_assert_cmpint(count, <=, 5 + (g_get_monotonic_time() - begin) /
                    G_USEC_PER_SEC);
    stop(&h);
}

/* On the other hardware thread of the core it is near enough. */
static void test_locality(void)
{
    Host h;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    start(&h, ",locality=core,sample-interval-ms=1,forward-window-ms=20", "");
    run_vcpu_on(&h, 1);
    route(&h, "0=0xfee00000:0x41");
    qom_set(&h, "irq-affinity", "a");
    for (int i = 0; i < 100; i++) {
        step(&h, 41, 0, 1);
    }
    wait_state(&h, 0, "following");
    {
        g_autofree char *mask = host_read(&h,
                                          "/proc/irq/41/smp_affinity_list");

        g_assert_cmpstr(mask, ==, "0-3");
    }
    wait_mask(&h, 41, 0, 2, "2");
    stop(&h);
}

static void test_stats(void)
{
    static const char *const names[] = {
        "irq-affinity-notices", "irq-affinity-moves", "irq-affinity-forwards",
        "irq-affinity-refusals", "irq-affinity-wake-ups",
    };
    Host h;
    QDict *rsp;
    GString *json;

    host_new(&h);
    start(&h, "", ",irq-affinity=a");
    rsp = qtest_qmp(h.qts, "{'execute': 'query-stats', 'arguments': {"
                    "'target': 'vm', 'providers': [{'provider': 'hotpath'}]}}");
    json = qobject_to_json(QOBJECT(rsp));
    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_assert_nonnull(strstr(json->str, names[i]));
    }
    g_string_free(json, true);
    qobject_unref(rsp);
    stop(&h);
}

/* With nothing attached no timer runs. */
static void test_idle(void)
{
    Host h;
    QDict *info;

    host_new(&h);
    start(&h, ",sample-interval-ms=1", "");
    g_usleep(300 * 1000);
    info = query(&h);
    g_assert_cmpint(qdict_get_int(info, "wake-ups"), ==, 0);
    qobject_unref(info);
    stop(&h);
}

static void plug_vcpu(Host *h)
{
    qtest_qmp_assert_success(h->qts, "{'execute': 'device_add', 'arguments': {"
                             "'driver': 'qemu64-x86_64-cpu', 'id': 'cpu1', "
                             "'socket-id': 1, 'core-id': 0, 'thread-id': 0}}");
}

/* The guest's part of it is ours: registers of the ICH9's ACPI. */
static void unplug_vcpu(Host *h)
{
    qtest_outl(h->qts, 0xcd8, 0);       /* not the old way */
    qtest_qmp_assert_success(h->qts, "{'execute': 'device_del', 'arguments': {"
                             "'id': 'cpu1'}}");
    qtest_outl(h->qts, 0xcd8, 1);       /* selector */
    qtest_outb(h->qts, 0xcdc, 8);       /* eject */
    qtest_qmp_eventwait(h->qts, "DEVICE_DELETED");
}

/* A vCPU that goes leaves its interrupts as they were before it was followed */
static void test_vcpu_goes(void)
{
    Host h;
    QDict *info;

    host_new(&h);
    host_add_irq(&h, 41, 0);
    start(&h, ",sample-interval-ms=1,forward-window-ms=20",
          " -smp 1,sockets=2,maxcpus=2");
    plug_vcpu(&h);
    run_vcpu_on(&h, 2);
    route(&h, "0=0xfee01000:0x41");
    qom_set(&h, "irq-affinity", "a");
    for (int i = 0; i < 3; i++) {
        wait_mask(&h, 41, 1, 2, "2");
        unplug_vcpu(&h);
        wait_state(&h, 0, "no-vcpu");
        wait_mask(&h, 41, 1, 2, "0-3");
        info = query(&h);
        g_assert_true(qlist_empty(qdict_get_qlist(info, "vcpus")));
        g_assert_cmpint(qdict_get_int(info, "foreign"), ==, 0);
        qobject_unref(info);
        plug_vcpu(&h);
        /* by now the files of its thread are there */
        run_vcpu_on(&h, 2);
        qom_set(&h, "irq-affinity", "");
        qom_set(&h, "irq-affinity", "a");
    }
    wait_mask(&h, 41, 1, 2, "2");
    stop(&h);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/irq-affinity/errors", test_errors);
    qtest_add_func("/irq-affinity/life", test_life);
    qtest_add_func("/irq-affinity/one-thread", test_one_thread);
    qtest_add_func("/irq-affinity/states", test_states);
    qtest_add_data_func("/irq-affinity/follow/optimistic", "optimistic",
                        test_follow);
    qtest_add_data_func("/irq-affinity/follow/pessimistic", "pessimistic",
                        test_follow);
    qtest_add_data_func("/irq-affinity/follow/both", "both", test_follow);
    qtest_add_func("/irq-affinity/number", test_number);
    qtest_add_func("/irq-affinity/foreign", test_foreign);
    qtest_add_func("/irq-affinity/reset", test_reset);
    qtest_add_func("/irq-affinity/refused", test_refused);
    qtest_add_func("/irq-affinity/locality", test_locality);
    qtest_add_func("/irq-affinity/stats", test_stats);
    qtest_add_func("/irq-affinity/idle", test_idle);
    qtest_add_func("/irq-affinity/vcpu-goes", test_vcpu_goes);
    return g_test_run();
}
