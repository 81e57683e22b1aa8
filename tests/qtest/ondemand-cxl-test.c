/*
 * QTest: CXL memory, mapped on demand
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The test plays the firmware and the driver: it gives bridges and devices
 * their addresses, programs HDM decoders and sends mailbox commands.  The
 * memory is a shared file that the test has mapped as well, so that each
 * access can be compared with what is really there.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define PXB_BUS 52
#define CHUNK (256 * MiB)

/* HDM decoder registers, CXL r3.1 section 8.2.4.20 */
enum { BASE_LO = 0x10, BASE_HI = 0x14, SIZE_LO = 0x18, SIZE_HI = 0x1c,
       CTRL = 0x20, TARGET_LO = 0x24, SKIP_LO = 0x24, DECODER_STEP = 0x20 };
#define COMMIT (1u << 9)
#define WAYS(encoded) ((uint32_t)(encoded) << 4)

/* A component with HDM decoders: a host bridge, a switch, a device */
typedef struct Component {
    uint64_t hdm;
} Component;

typedef struct Cxl {
    QTestState *qts;
    uint64_t window;
    Component hb;
    Component usp;
    Component ep[2];
    uint64_t mailbox[2];
    char *file[2];
    uint8_t *mem[2];        /* what is in the devices */
    size_t size;
} Cxl;

/* What a test wants */
typedef struct Setup {
    const char *policy;     /* properties of the policy object, or NULL */
    const char *device;     /* more properties of the first device */
    const char *extra;      /* more options */
    unsigned ports;         /* root ports, 2 if not set: needs decoders */
    unsigned devices;       /* 1 if not set */
    bool second_has_policy;
    bool behind_switch;     /* the first device */
    bool two_targets;       /* of the window */
    bool dynamic;           /* the first device has dynamic capacity */
    size_t size;            /* of each device, CHUNK if not set */
} Setup;

static void cfg_writel(Cxl *c, int bus, int dev, int reg, uint32_t value)
{
    qtest_outl(c->qts, 0xcf8, 0x80000000u | bus << 16 | dev << 11 | reg);
    qtest_outl(c->qts, 0xcfc, value);
}

static uint32_t cfg_readl(Cxl *c, int bus, int dev, int reg)
{
    qtest_outl(c->qts, 0xcf8, 0x80000000u | bus << 16 | dev << 11 | reg);
    return qtest_inl(c->qts, 0xcfc);
}

/* Where the machine has put the memory region with this name */
static uint64_t find_region(Cxl *c, const char *name)
{
    g_autofree char *tree = qtest_hmp(c->qts, "info mtree");
    g_auto(GStrv) lines = g_strsplit(tree, "\n", 0);

    for (char **line = lines; *line; line++) {
        uint64_t first, last;

        if (strstr(*line, name) &&
            sscanf(*line, " %" PRIx64 "-%" PRIx64, &first, &last) == 2) {
            return first;
        }
    }
    g_error("no region \"%s\" in:\n%s", name, tree);
}

/* Find a component's HDM decoders from its capability headers. */
static Component component_at(Cxl *c, uint64_t registers)
{
    uint64_t cm = registers + 0x1000;
    unsigned count = qtest_readl(c->qts, cm) >> 24;

    for (unsigned i = 1; i <= count; i++) {
        uint32_t header = qtest_readl(c->qts, cm + 4 * i);

        if ((header & 0xffff) == 5) {
            return (Component) { .hdm = cm + (header >> 20) };
        }
    }
    return (Component) { 0 };       /* a host bridge without decoders */
}

static uint64_t mailbox_at(Cxl *c, uint64_t registers)
{
    unsigned count = qtest_readw(c->qts, registers + 4);

    for (unsigned i = 1; i <= count; i++) {
        if (qtest_readw(c->qts, registers + 0x10 * i) == 2) {
            return registers + qtest_readl(c->qts, registers + 0x10 * i + 4);
        }
    }
    g_assert_not_reached();
}

static void set_bridge(Cxl *c, int bus, int dev, int secondary,
                       int subordinate, uint16_t base, uint16_t limit)
{
    cfg_writel(c, bus, dev, PCI_PRIMARY_BUS,
               bus | secondary << 8 | subordinate << 16);
    cfg_writel(c, bus, dev, PCI_MEMORY_BASE, base | (uint32_t)limit << 16);
    cfg_writel(c, bus, dev, PCI_COMMAND,
               PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static void set_endpoint(Cxl *c, int which, int bus, uint32_t addr)
{
    cfg_writel(c, bus, 0, PCI_BASE_ADDRESS_0, addr);
    cfg_writel(c, bus, 0, PCI_BASE_ADDRESS_2, addr + MiB);
    cfg_writel(c, bus, 0, PCI_COMMAND,
               PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    c->ep[which] = component_at(c, addr);
    c->mailbox[which] = mailbox_at(c, addr + MiB);
}

/* What firmware does after a reset */
static void set_addresses(Cxl *c, const Setup *s)
{
    set_bridge(c, PXB_BUS, 0, 53, 59, 0xe000, 0xe0f0);
    if (s->behind_switch) {
        set_bridge(c, 53, 0, 54, 59, 0xe000, 0xe070);
        set_bridge(c, 54, 0, 55, 55, 0xe000, 0xe070);
        cfg_writel(c, 53, 0, PCI_BASE_ADDRESS_0, 0xe0800000);
        c->usp = component_at(c, 0xe0800000);
        set_endpoint(c, 0, 55, 0xe0000000);
    } else {
        set_endpoint(c, 0, 53, 0xe0000000);
    }
    if (s->devices == 2) {
        set_bridge(c, PXB_BUS, 1, 60, 60, 0xe100, 0xe1f0);
        set_endpoint(c, 1, 60, 0xe1000000);
    }
    c->hb = component_at(c, find_region(c, ": pxb-cxl-host"));
}

static void add_device(Cxl *c, GString *args, const Setup *s, int which,
                       const char *bus)
{
    bool policy = s->policy && (which == 0 || s->second_has_policy);
    int fd = g_file_open_tmp("ondemand-cxl-XXXXXX", &c->file[which], NULL);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, c->size), ==, 0);
    c->mem[which] = mmap(NULL, c->size, PROT_READ | PROT_WRITE, MAP_SHARED,
                         fd, 0);
    g_assert(c->mem[which] != MAP_FAILED);
    close(fd);
    g_string_append_printf(args,
        " -object memory-backend-file,id=mem%d,mem-path=%s,size=%zu,share=on"
        " -device cxl-type3,bus=%s,id=dev%d,%s=mem%d%s%s%s", which,
        c->file[which], c->size, bus, which,
        s->dynamic && !which ? "num-dc-regions=1,volatile-dc-memdev"
                             : "volatile-memdev",
        which, policy ? ",ondemand-policy=pol" : "",
        s->device && !which ? "," : "", s->device && !which ? s->device : "");
}

static Cxl *cxl_start(Setup *s)
{
    Cxl *c = g_new0(Cxl, 1);
    g_autoptr(GString) args = g_string_new(NULL);

    c->size = s->size ?: CHUNK;
    s->devices = s->devices ?: 1;
    s->ports = s->ports ?: 2;
    g_string_append(args, "-machine q35,cxl=on,sata=off -nodefaults -m 128M "
                    "-device pxb-cxl,id=cxl.0,bus=pcie.0,bus_nr=52 "
                    "-device cxl-rp,id=rp0,bus=cxl.0,addr=0.0,chassis=0,"
                    "slot=0,port=0 ");
    if (s->ports == 2) {
        g_string_append(args, "-device cxl-rp,id=rp1,bus=cxl.0,addr=1.0,"
                        "chassis=0,slot=1,port=1 ");
    }
    if (s->two_targets) {
        g_string_append(args, "-device pxb-cxl,id=cxl.1,bus=pcie.0,bus_nr=80 ");
    }
    g_string_append_printf(args, "-M cxl-fmw.0.size=1G,"
                           "cxl-fmw.0.targets.0=cxl.0%s ",
                           s->two_targets ? ",cxl-fmw.0.targets.1=cxl.1" : "");
    if (s->policy) {
        g_string_append_printf(args, "-object ondemand-policy,id=pol%s%s ",
                               *s->policy ? "," : "", s->policy);
    }
    if (s->behind_switch) {
        g_string_append(args, "-device cxl-upstream,bus=rp0,id=us0,addr=0.0 "
                        "-device cxl-downstream,bus=us0,id=ds0,addr=0.0,"
                        "chassis=0,slot=4,port=3 ");
    }
    add_device(c, args, s, 0, s->behind_switch ? "ds0" : "rp0");
    if (s->devices == 2) {
        add_device(c, args, s, 1, "rp1");
    }
    c->qts = qtest_initf("%s %s", args->str, s->extra ?: "");
    c->window = find_region(c, "cxl-fixed-memory-region");
    set_addresses(c, s);
    return c;
}

static void cxl_end(Cxl *c)
{
    qtest_quit(c->qts);
    for (int i = 0; i < 2; i++) {
        if (c->file[i]) {
            munmap(c->mem[i], c->size);
            unlink(c->file[i]);
            g_free(c->file[i]);
        }
    }
    g_free(c);
}

static void set_decoder(Cxl *c, Component *k, int n, int reg, uint32_t value)
{
    qtest_writel(c->qts, k->hdm + n * DECODER_STEP + reg, value);
}

static void set_range(Cxl *c, Component *k, int n, uint64_t base,
                      uint64_t size)
{
    set_decoder(c, k, n, BASE_LO, base);
    set_decoder(c, k, n, BASE_HI, base >> 32);
    set_decoder(c, k, n, SIZE_LO, size);
    set_decoder(c, k, n, SIZE_HI, size >> 32);
}

static void program(Cxl *c, Component *k, int n, uint64_t base, uint64_t size,
                    uint32_t targets)
{
    set_range(c, k, n, base, size);
    set_decoder(c, k, n, TARGET_LO, targets);
    set_decoder(c, k, n, CTRL, COMMIT);
}

/* Make the first device's memory answer at the window's begin. */
static void program_first(Cxl *c)
{
    if (c->hb.hdm) {
        program(c, &c->hb, 0, c->window, c->size, 0);
    }
    if (c->usp.hdm) {
        program(c, &c->usp, 0, c->window, c->size, 3);
    }
    program(c, &c->ep[0], 0, c->window, c->size, 0);
}

/*
 * What QEMU says of it
 */

static QDict *query_device(Cxl *c, int which)
{
    QDict *reply = qtest_qmp(c->qts, "{'execute': 'query-ondemand-map'}");
    g_autofree char *end = g_strdup_printf("/dev%d", which);
    QListEntry *e;
    QDict *found = NULL;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(reply, "return"), e) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(e));

        if (g_str_has_suffix(qdict_get_str(info, "name"), end)) {
            found = qobject_ref(info);
        }
    }
    qobject_unref(reply);
    g_assert_nonnull(found);
    return found;
}

static uint64_t device_count(Cxl *c, int which, const char *what)
{
    QDict *info = query_device(c, which);
    uint64_t value = qdict_get_uint(info, what);

    qobject_unref(info);
    return value;
}

/* State of the range that starts at @addr, with its refusal; "" if none is */
static char *state_at(Cxl *c, int which, uint64_t addr)
{
    QDict *info = query_device(c, which);
    char *state = g_strdup("");
    QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "ranges"), e) {
        QDict *range = qobject_to(QDict, qlist_entry_obj(e));

        if (qdict_get_uint(range, "address") == addr) {
            g_free(state);
            state = g_strdup_printf("%s%s%s", qdict_get_str(range, "state"),
                                    qdict_haskey(range, "refusal") ? " " : "",
                                    qdict_get_try_str(range, "refusal") ?: "");
        }
    }
    qobject_unref(info);
    return state;
}

static void expect_state(Cxl *c, int which, uint64_t addr, const char *state)
{
    g_autofree char *found = state_at(c, which, addr);

    g_assert_cmpstr(found, ==, state);
}

/* Commits are made by the main loop, so a state may take a moment. */
static void wait_state(Cxl *c, int which, uint64_t addr, const char *state)
{
    for (int i = 0; i < 1000; i++) {
        g_autofree char *found = state_at(c, which, addr);

        if (g_str_equal(found, state)) {
            return;
        }
        g_usleep(10 * 1000);
    }
    expect_state(c, which, addr, state);
}

/* Is @addr RAM in the machine's memory map? */
static bool is_mapped(Cxl *c, uint64_t addr)
{
    g_autofree char *tree = qtest_hmp(c->qts, "info mtree -f");
    g_auto(GStrv) lines = g_strsplit(tree, "\n", 0);

    for (char **line = lines; *line; line++) {
        uint64_t first, last;

        if (sscanf(*line, " %" PRIx64 "-%" PRIx64, &first, &last) == 2 &&
            first <= addr && addr <= last) {
            return strstr(*line, ", ram)") != NULL;
        }
    }
    return false;
}

static bool map_has(Cxl *c, const char *name)
{
    g_autofree char *tree = qtest_hmp(c->qts, "info mtree -f");

    return strstr(tree, name);
}

static uint64_t stat_value(Cxl *c, const char *name)
{
    QDict *reply = qtest_qmp(c->qts,
        "{'execute': 'query-stats', 'arguments': {'target': 'vm',"
        " 'providers': [{'provider': 'hotpath', 'names': [%s]}]}}", name);
    QDict *target = qobject_to(QDict, qlist_peek(qdict_get_qlist(reply,
                                                                 "return")));
    QDict *stat = qobject_to(QDict, qlist_peek(qdict_get_qlist(target,
                                                               "stats")));
    uint64_t value = qdict_get_uint(stat, "value");

    qobject_unref(reply);
    return value;
}

static void touch(Cxl *c, uint64_t addr, unsigned times)
{
    while (times--) {
        qtest_readq(c->qts, addr);
    }
}

/*
 * Contents
 */

static uint8_t pattern(uint64_t x)
{
    return (x * 0x9e3779b97f4a7c15ull) >> 56;
}

/* Each size at each alignment, over a page border too, in both directions */
static void check_contents(Cxl *c, uint64_t seed)
{
    static const uint32_t places[] = { 0, 0x1000 - 16, 0x200000 - 16,
                                       CHUNK - 32 };
    uint8_t buf[64];

    for (int p = 0; p < ARRAY_SIZE(places); p++) {
        for (int align = 0; align < 16; align++) {
            for (int size = 1; size <= 8; size++) {
                uint64_t offset = places[p] + align, addr = c->window + offset;
                uint8_t *mem = c->mem[0] + offset;

                for (int i = 0; i < size; i++) {
                    buf[i] = pattern(seed++);
                }
                qtest_memwrite(c->qts, addr, buf, size);
                g_assert_cmpmem(mem, size, buf, size);
                for (int i = 0; i < size; i++) {
                    mem[i] = pattern(seed++);
                }
                qtest_memread(c->qts, addr, buf, size);
                g_assert_cmpmem(buf, size, mem, size);
            }
            qtest_writeq(c->qts, c->window + places[p] + align, seed);
            g_assert_cmphex(ldq_le_p(c->mem[0] + places[p] + align), ==, seed);
            g_assert_cmphex(qtest_readq(c->qts, c->window + places[p] + align),
                            ==, seed);
        }
    }
}

static void test_contents(const void *policy)
{
    Setup s = { .policy = policy };
    Cxl *c = cxl_start(&s);

    program_first(c);
    for (int round = 0; round < 3; round++) {
        check_contents(c, round);
    }
    if (strstr(policy, "1000000")) {
        expect_state(c, 0, c->window, "cold");
        g_assert_false(is_mapped(c, c->window));
    } else {
        wait_state(c, 0, c->window, "mapped");
        g_assert_true(is_mapped(c, c->window));
        g_assert_true(is_mapped(c, c->window + c->size - 1));
        check_contents(c, 77);
    }
    g_assert_false(is_mapped(c, c->window + c->size));
    cxl_end(c);
}

/* A host bridge with one root port needs no decoder, a switch is one more. */
static void test_paths(const void *data)
{
    Setup s = *(const Setup *)data;
    Cxl *c = cxl_start(&s);

    program_first(c);
    touch(c, c->window, 9);
    wait_state(c, 0, c->window, "mapped");
    check_contents(c, 1);
    cxl_end(c);
}

/*
 * Counting
 */

static void test_threshold(void)
{
    Setup s = { .policy = "threshold=10" };
    Cxl *c = cxl_start(&s);

    program_first(c);
    touch(c, c->window, 5);
    touch(c, c->window + CHUNK - 8, 5);
    expect_state(c, 0, c->window, "cold");
    g_assert_false(is_mapped(c, c->window));
    qtest_writeb(c->qts, c->window + 5, 1);
    wait_state(c, 0, c->window, "mapped");
    g_assert_cmpuint(device_count(c, 0, "traps"), ==, 11);
    g_assert_cmpuint(device_count(c, 0, "mapped"), ==, CHUNK);

    /* what is mapped counts no more */
    touch(c, c->window, 20);
    g_assert_cmpuint(device_count(c, 0, "traps"), ==, 11);
    g_assert_cmpuint(stat_value(c, "ondemand-map-traps"), ==, 11);
    g_assert_cmpuint(stat_value(c, "ondemand-map-maps"), ==, 1);
    g_assert_cmpuint(stat_value(c, "ondemand-map-commits"), ==, 1);
    g_assert_cmpuint(stat_value(c, "ondemand-map-mapped-bytes"), ==, CHUNK);
    g_assert_cmpuint(stat_value(c, "ondemand-map-mapped-chunks"), ==, 1);
    g_assert_cmpuint(stat_value(c, "ondemand-map-commit-max-ns"), >, 0);
    cxl_end(c);
}

static void test_off(void)
{
    Setup s = { 0 };
    Cxl *c = cxl_start(&s);
    g_autofree char *said = NULL;
    QDict *reply;

    program_first(c);
    touch(c, c->window, 500);
    check_contents(c, 3);
    g_assert_false(is_mapped(c, c->window));
    reply = qtest_qmp(c->qts, "{'execute': 'query-ondemand-map'}");
    g_assert_true(qlist_empty(qdict_get_qlist(reply, "return")));
    qobject_unref(reply);
    said = qtest_hmp(c->qts, "info ondemand-map");
    g_assert_nonnull(strstr(said, "No device uses"));
    cxl_end(c);
}

static void test_hmp(void)
{
    Setup s = { .policy = "threshold=0" };
    Cxl *c = cxl_start(&s);
    g_autofree char *said = NULL;

    program_first(c);
    wait_state(c, 0, c->window, "mapped");
    said = qtest_hmp(c->qts, "info ondemand-map");
    g_assert_nonnull(strstr(said, "/dev0: policy /objects/pol, threshold 0"));
    g_assert_nonnull(strstr(said, " mapped, hits 0"));
    cxl_end(c);
}

/*
 * Nothing stays mapped that does not belong there
 */

/* After each way to take the memory away it must be gone, whole and at once. */
static void expect_gone(Cxl *c)
{
    g_assert_false(is_mapped(c, c->window));
    g_assert_false(is_mapped(c, c->window + c->size - 1));
    memset(c->mem[0], 0x5a, 64);
    qtest_writeq(c->qts, c->window, 0);
    g_assert_cmphex(c->mem[0][0], ==, 0x5a);
    g_assert_cmphex(qtest_readq(c->qts, c->window), !=, 0x5a5a5a5a5a5a5a5aull);
}

static Cxl *start_mapped(Setup *s)
{
    Cxl *c = cxl_start(s);

    program_first(c);
    touch(c, c->window, 9);
    wait_state(c, 0, c->window, "mapped");
    return c;
}

static void expect_back(Cxl *c)
{
    touch(c, c->window, 9);
    wait_state(c, 0, c->window, "mapped");
    check_contents(c, 9);
}

static void test_uncommit(const void *data)
{
    Setup s = { .policy = "threshold=4", .behind_switch = true };
    Cxl *c = start_mapped(&s);
    Component *k = g_str_equal(data, "endpoint") ? &c->ep[0] :
                   g_str_equal(data, "switch") ? &c->usp : &c->hb;

    set_decoder(c, k, 0, CTRL, 0);
    expect_gone(c);
    expect_state(c, 0, c->window, "");
    g_assert_cmpuint(device_count(c, 0, "unmaps"), ==, 1);
    g_assert_cmpuint(device_count(c, 0, "mapped"), ==, 0);
    set_decoder(c, k, 0, CTRL, COMMIT);
    expect_back(c);
    cxl_end(c);
}

/* The trapping path does not care about locks, so neither may the mapping. */
static void test_rewrite(void)
{
    Setup s = { .policy = "threshold=4" };
    Cxl *c = start_mapped(&s);
    uint64_t other = c->window + CHUNK;

    set_range(c, &c->ep[0], 0, other, CHUNK);
    expect_gone(c);
    set_range(c, &c->hb, 0, other, CHUNK);
    touch(c, other, 9);
    wait_state(c, 0, other, "mapped");
    memset(c->mem[0], 0x77, 8);
    g_assert_cmphex(qtest_readq(c->qts, other), ==, 0x7777777777777777ull);
    g_assert_false(is_mapped(c, c->window));

    /* another target of the host bridge: nothing is there */
    set_decoder(c, &c->hb, 0, TARGET_LO, 7);
    g_assert_false(is_mapped(c, other));
    cxl_end(c);
}

static void test_reset(void)
{
    Setup s = { .policy = "threshold=4" };
    Cxl *c = start_mapped(&s);

    qtest_system_reset(c->qts);
    expect_gone(c);
    set_addresses(c, &s);
    program_first(c);
    expect_back(c);
    cxl_end(c);
}

/*
 * The base frees neither the buffers of its data object exchange nor the
 * timer of background commands when a CXL device is unplugged
 * (hw/mem/cxl_type3.c, ct3_exit).  What the unplug is about needs no sanitizer
 * to show.
 */
static Cxl *start_mapped_without_leak_check(Setup *s)
{
    g_autofree char *before = g_strdup(g_getenv("ASAN_OPTIONS"));
    g_autofree char *now = g_strdup_printf("%s:detect_leaks=0", before ?: "");
    Cxl *c;

    g_setenv("ASAN_OPTIONS", now, true);
    c = start_mapped(s);
    if (before) {
        g_setenv("ASAN_OPTIONS", before, true);
    } else {
        g_unsetenv("ASAN_OPTIONS");
    }
    return c;
}

static void test_unplug(void)
{
    Setup s = { .policy = "threshold=4" };
    Cxl *c = start_mapped_without_leak_check(&s);
    int cap = cfg_readl(c, PXB_BUS, 0, PCI_CAPABILITY_LIST) & 0xff;
    QDict *reply;

    while ((cfg_readl(c, PXB_BUS, 0, cap) & 0xff) != PCI_CAP_ID_EXP) {
        cap = cfg_readl(c, PXB_BUS, 0, cap) >> 8 & 0xff;
        g_assert_cmpint(cap, !=, 0);
    }
    qtest_qmp_assert_success(c->qts, "{'execute': 'device_del',"
                             " 'arguments': {'id': 'dev0'}}");
    /* what the driver of the root port does then: indicator and power off */
    cfg_writel(c, PXB_BUS, 0, cap + PCI_EXP_SLTCTL,
               PCI_EXP_SLTCTL_PWR_IND_OFF | PCI_EXP_SLTCTL_PCC);
    qtest_qmp_eventwait(c->qts, "DEVICE_DELETED");
    g_assert_false(is_mapped(c, c->window));
    qtest_readq(c->qts, c->window);
    reply = qtest_qmp(c->qts, "{'execute': 'query-ondemand-map'}");
    g_assert_true(qlist_empty(qdict_get_qlist(reply, "return")));
    qobject_unref(reply);
    /* the counts of the region that is gone remain; the policy is free */
    g_assert_cmpuint(stat_value(c, "ondemand-map-maps"), ==, 1);
    g_assert_cmpuint(stat_value(c, "ondemand-map-mapped-bytes"), ==, 0);
    qtest_qmp_assert_success(c->qts, "{'execute': 'object-del',"
                             " 'arguments': {'id': 'pol'}}");
    cxl_end(c);
}

/* Send a mailbox command; return its error number. */
static unsigned mailbox_command(Cxl *c, int which, uint16_t opcode,
                                const void *data, size_t size)
{
    uint64_t mb = c->mailbox[which];

    if (size) {
        qtest_memwrite(c->qts, mb + 0x20, data, size);
    }
    qtest_writeq(c->qts, mb + 8, opcode | (uint64_t)size << 16);
    qtest_writel(c->qts, mb + 4, 1);
    g_assert_cmpuint(qtest_readl(c->qts, mb + 4) & 1, ==, 0);
    return qtest_readq(c->qts, mb + 0x10) >> 32 & 0xffff;
}

static void test_sanitize(void)
{
    Setup s = { .policy = "threshold=4" };
    Cxl *c = start_mapped(&s);

    g_assert_cmpuint(mailbox_command(c, 0, 0x4400, NULL, 0), ==, 1);
    expect_gone(c);
    /* the media is disabled: random values, and nothing counts */
    g_assert_cmphex(qtest_readq(c->qts, c->window), !=,
                    qtest_readq(c->qts, c->window));
    expect_state(c, 0, c->window, "");
    g_assert_cmphex(c->mem[0][0], ==, 0x5a);
    qtest_clock_step(c->qts, 10 * NANOSECONDS_PER_SECOND);
    g_assert_cmphex(c->mem[0][0], ==, 0);
    g_assert_cmphex(qtest_readq(c->qts, c->window), ==, 0);
    expect_back(c);
    cxl_end(c);
}

/* Only what the host has accepted may be mapped. */
static void test_dynamic_capacity(void)
{
    Setup s = { .policy = "threshold=4", .dynamic = true };
    Cxl *c = cxl_start(&s);
    uint64_t taken = c->window + 32 * MiB;
    struct {
        uint32_t count;
        uint8_t flags, reserved[3];
        uint64_t start, length, reserved2;
    } QEMU_PACKED extent = {
        .count = cpu_to_le32(1), .start = cpu_to_le64(32 * MiB),
        .length = cpu_to_le64(64 * MiB),
    };

    program_first(c);
    touch(c, taken, 20);
    expect_state(c, 0, taken, "");
    qtest_qmp_assert_success(c->qts,
        "{'execute': 'cxl-add-dynamic-capacity', 'arguments': {"
        " 'path': '/machine/peripheral/dev0', 'host-id': 0,"
        " 'selection-policy': 'prescriptive', 'region': 0,"
        " 'extents': [{'offset': 33554432, 'len': 67108864}]}}");
    expect_state(c, 0, taken, "");
    g_assert_cmpuint(mailbox_command(c, 0, 0x4802, &extent, sizeof(extent)),
                     ==, 0);
    expect_state(c, 0, taken, "cold");
    touch(c, taken, 9);
    wait_state(c, 0, taken, "mapped");
    g_assert_false(is_mapped(c, taken - 1));
    g_assert_true(is_mapped(c, taken));
    g_assert_true(is_mapped(c, taken + 64 * MiB - 1));
    g_assert_false(is_mapped(c, taken + 64 * MiB));
    memset(c->mem[0] + 32 * MiB, 0x33, 8);
    g_assert_cmphex(qtest_readq(c->qts, taken), ==, 0x3333333333333333ull);

    g_assert_cmpuint(mailbox_command(c, 0, 0x4803, &extent, sizeof(extent)),
                     ==, 0);
    g_assert_false(is_mapped(c, taken));
    expect_state(c, 0, taken, "");
    cxl_end(c);
}

/*
 * Interleaving and overlaps
 */

static void test_interleaved(const void *data)
{
    Setup s = { .policy = "threshold=0", .devices = 2,
                .second_has_policy = true };
    Cxl *c = cxl_start(&s);

    program(c, &c->hb, 0, c->window, 2 * CHUNK, 0x0100);
    for (int i = 0; i < 2; i++) {
        set_range(c, &c->ep[i], 0, c->window, 2 * CHUNK);
        set_decoder(c, &c->ep[i], 0, CTRL, COMMIT | WAYS(1));
    }
    set_decoder(c, &c->hb, 0, CTRL, COMMIT | WAYS(1));
    for (int i = 0; i < 2; i++) {
        expect_state(c, i, c->window, "interleaved");
    }
    touch(c, c->window, 20);
    expect_state(c, 0, c->window, "interleaved");
    g_assert_false(is_mapped(c, c->window));
    memset(c->mem[0], 0x11, 256);
    memset(c->mem[1], 0x22, 256);
    g_assert_cmphex(qtest_readb(c->qts, c->window + 255), ==, 0x11);
    g_assert_cmphex(qtest_readb(c->qts, c->window + 256), ==, 0x22);
    cxl_end(c);
}

static void test_two_targets(void)
{
    Setup s = { .policy = "threshold=0", .two_targets = true };
    Cxl *c = cxl_start(&s);

    program_first(c);
    expect_state(c, 0, c->window, "interleaved");
    g_assert_false(is_mapped(c, c->window));
    cxl_end(c);
}

/* A reserved number of ways in a decoder that is passed over */
static void test_reserved_ways(void)
{
    Setup s = { .policy = "threshold=0" };
    Cxl *c = cxl_start(&s);

    program_first(c);
    set_range(c, &c->ep[0], 0, c->window + CHUNK, CHUNK);
    set_decoder(c, &c->ep[0], 0, CTRL, COMMIT | WAYS(7));
    program(c, &c->ep[0], 1, c->window, CHUNK, 0);
    qtest_readq(c->qts, c->window);
    expect_state(c, 0, c->window, "");
    cxl_end(c);
}

/* Both devices' memory, one after the other */
static void program_both(Cxl *c)
{
    for (int i = 0; i < 2; i++) {
        uint64_t base = c->window + i * c->size;

        program(c, &c->hb, i, base, c->size, i);
        program(c, &c->ep[i], 0, base, c->size, 0);
    }
}

/*
 * Random decoders in all components: wherever RAM is mapped, it must be what
 * the trapping path finds.  A twin without policy says what that is.
 */
static void test_random(void)
{
    const char *seed_text = g_getenv("HOTPATH_SEED");
    unsigned seed = g_random_int();
    g_autoptr(GRand) rand = NULL;
    Setup s = { .policy = "threshold=0,max-commits-per-s=1000", .devices = 2,
                .second_has_policy = true, .size = 2 * CHUNK };
    Setup plain = s;
    Cxl *c, *twin;
    unsigned mapped = 0;

    if (seed_text) {
        g_assert_cmpint(qemu_strtoui(seed_text, NULL, 0, &seed), ==, 0);
    }
    g_test_message("HOTPATH_SEED=%u", seed);
    rand = g_rand_new_with_seed(seed);
    plain.policy = NULL;
    c = cxl_start(&s);
    twin = cxl_start(&plain);
    for (int i = 0; i < 2; i++) {
        for (size_t at = 0; at < c->size; at += MiB) {
            stq_le_p(c->mem[i] + at, (uint64_t)i << 32 | at);
            stq_le_p(twin->mem[i] + at, (uint64_t)i << 32 | at);
        }
    }
    for (int round = 0; round < 400; round++) {
        static const int regs[] = { BASE_LO, BASE_LO, SIZE_LO, SIZE_HI, CTRL,
                                    CTRL, TARGET_LO, BASE_HI };
        int which = g_rand_int_range(rand, 0, 3);
        int n = g_rand_int_range(rand, 0, 3);
        int reg = regs[g_rand_int_range(rand, 0, ARRAY_SIZE(regs))];
        uint32_t value = 0;

        if (round % 20 == 0) {      /* begin again with what can be mapped */
            program_both(c);
            program_both(twin);
            g_usleep(5000);
            mapped += stat_value(c, "ondemand-map-mapped-chunks") > 0;
        }
        switch (reg) {
        case BASE_LO:
            value = c->window + g_rand_int_range(rand, 0, 5) * CHUNK;
            break;
        case SIZE_LO:
            value = g_rand_int_range(rand, 0, 4) * CHUNK;
            break;
        case BASE_HI:
            value = (c->window >> 32) + (g_rand_int_range(rand, 0, 8) == 0);
            break;
        case TARGET_LO:
            /* for an endpoint this is the skip */
            value = which < 2 ? g_rand_int_range(rand, 0, 2) * CHUNK
                              : g_rand_int_range(rand, 0, 2);
            break;
        case CTRL:
            value = g_rand_int_range(rand, 0, 4) ? COMMIT : 0;
            value |= g_rand_int_range(rand, 0, 8) ? 0 : WAYS(1);
            break;
        }
        set_decoder(c, which < 2 ? &c->ep[which] : &c->hb, n, reg, value);
        set_decoder(twin, which < 2 ? &twin->ep[which] : &twin->hb, n, reg,
                    value);
        for (int k = 0; k < 16; k++) {
            uint64_t at = g_rand_int_range(rand, 0, 1024) * (uint64_t)MiB;

            g_assert_cmphex(qtest_readq(c->qts, c->window + at), ==,
                            qtest_readq(twin->qts, twin->window + at));
        }
        if (round % 4 == 0) {
            g_usleep(2000);         /* time to map */
        }
    }
    g_assert_cmpuint(mapped, >, 0);
    cxl_end(twin);
    cxl_end(c);
}

/*
 * Limits
 */

static void test_chunks(void)
{
    Setup s = { .policy = "threshold=2,chunks=1", .size = 2 * CHUNK };
    Cxl *c = cxl_start(&s);
    uint64_t second = c->window + CHUNK;

    program(c, &c->hb, 0, c->window, 2 * CHUNK, 0);
    program(c, &c->ep[0], 0, c->window, CHUNK, 0);
    program(c, &c->ep[0], 1, second, CHUNK, 0);
    touch(c, c->window, 5);
    wait_state(c, 0, c->window, "mapped");
    touch(c, second, 5);
    wait_state(c, 0, second, "refused chunks");
    g_assert_cmpuint(stat_value(c, "ondemand-map-refused-chunks"), ==, 1);
    g_assert_false(is_mapped(c, second));
    memset(c->mem[0] + CHUNK, 0x44, 8);
    g_assert_cmphex(qtest_readq(c->qts, second), ==, 0x4444444444444444ull);

    /* when there is room again, and it is still in use, it is mapped */
    set_decoder(c, &c->ep[0], 1, CTRL, 0);
    set_decoder(c, &c->ep[0], 0, CTRL, 0);
    set_range(c, &c->ep[0], 0, second, CHUNK);
    set_decoder(c, &c->ep[0], 0, CTRL, COMMIT);
    touch(c, second, 5);
    wait_state(c, 0, second, "mapped");
    cxl_end(c);
}

static void test_max_mapped(void)
{
    Setup s = { .policy = "threshold=2,max-mapped=256M", .devices = 2,
                .second_has_policy = true };
    Cxl *c = cxl_start(&s);
    uint64_t second = c->window + CHUNK;

    program_first(c);
    program(c, &c->hb, 1, second, CHUNK, 1);
    program(c, &c->ep[1], 0, second, CHUNK, 0);
    touch(c, second, 5);
    wait_state(c, 1, second, "mapped");
    touch(c, c->window, 5);
    wait_state(c, 0, c->window, "refused max-mapped");
    g_assert_cmpuint(stat_value(c, "ondemand-map-mapped-bytes"), ==, CHUNK);

    /* tried again, on access, when a second has passed */
    set_decoder(c, &c->ep[1], 0, CTRL, 0);
    for (int i = 0; i < 30; i++) {
        touch(c, c->window, 5);
        g_usleep(100 * 1000);
    }
    wait_state(c, 0, c->window, "mapped");
    cxl_end(c);
}

/* A memory map that is nearly full, made so by dispatch-testdev */
static void test_sections(void)
{
    Setup s = { .policy = "threshold=2",
                .extra = "-device dispatch-testdev,bus=pcie.0,addr=04.0" };
    Cxl *c = cxl_start(&s);

    program_first(c);
    cfg_writel(c, 0, 4, PCI_BASE_ADDRESS_0, 0xd0000000);
    cfg_writel(c, 0, 4, PCI_BASE_ADDRESS_1, 0xd2000000);
    cfg_writel(c, 0, 4, PCI_BASE_ADDRESS_2, 0xc000);
    cfg_writel(c, 0, 4, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_IO);
    qtest_writel(c->qts, 0xd0000008, 2000000000);   /* accesses */
    qtest_writel(c->qts, 0xd0000010, 3000);         /* regions */
    qtest_writel(c->qts, 0xd0000018, 2);            /* measure */
    while (!map_has(c, "bench")) {
        g_usleep(10 * 1000);
    }
    touch(c, c->window, 5);
    wait_state(c, 0, c->window, "refused sections");
    g_assert_cmpuint(stat_value(c, "ondemand-map-refused-sections"), >, 0);
    check_contents(c, 5);
    cxl_end(c);
}

/* A guest that switches a decoder on and off as fast as it can */
static void test_rate(void)
{
    Setup s = { .policy = "threshold=0,max-commits-per-s=10" };
    Cxl *c = cxl_start(&s);
    int64_t start_us = g_get_monotonic_time(), elapsed_us;
    uint64_t commits;

    program_first(c);
    do {
        set_decoder(c, &c->ep[0], 0, CTRL, 0);
        set_decoder(c, &c->ep[0], 0, CTRL, COMMIT);
        touch(c, c->window, 2);
        elapsed_us = g_get_monotonic_time() - start_us;
    } while (elapsed_us < 1500 * 1000);
    commits = stat_value(c, "ondemand-map-commits");
    elapsed_us = g_get_monotonic_time() - start_us;
    g_assert_cmpuint(commits, >, 0);
    g_assert_cmpuint(commits, <=, elapsed_us / 100000 + 1);
    cxl_end(c);
}

/*
 * Refusals before the VM starts, and of what cannot be
 */

static void expect_error(Cxl *c, const char *text, const char *props)
{
    g_autofree char *command = g_strdup_printf(
        "{'execute': 'object-add', 'arguments': {'qom-type': "
        "'ondemand-policy', 'id': 'bad', %s}}", props);
    QDict *reply = qtest_qmp(c->qts, command, NULL);
    QDict *error = qdict_get_qdict(reply, "error");

    g_assert_nonnull(error);
    if (!strstr(qdict_get_str(error, "desc"), text)) {
        g_error("\"%s\" is not in \"%s\"", text, qdict_get_str(error, "desc"));
    }
    qobject_unref(reply);
}

static void test_bad_policy(void)
{
    Setup s = { .policy = "threshold=auto" };
    Cxl *c = cxl_start(&s);
    QDict *reply;

    expect_error(c, "'threshold' of ondemand-policy is 'never', but must be",
                 "'threshold': 'never'");
    expect_error(c, "'threshold' of ondemand-policy is '-1', but must be",
                 "'threshold': '-1'");
    expect_error(c, "'threshold' of ondemand-policy is '1000000001'",
                 "'threshold': '1000000001'");
    expect_error(c, "'chunks' of ondemand-policy is 0, but must be from 1",
                 "'chunks': 0");
    expect_error(c, "'chunks' of ondemand-policy is 257, but must be from 1 "
                 "to 256", "'chunks': 257");
    expect_error(c, "'max-mapped' of ondemand-policy is 0, but must be",
                 "'max-mapped': 0");
    expect_error(c, "'max-commits-per-s' of ondemand-policy is 0",
                 "'max-commits-per-s': 0");
    reply = qtest_qmp(c->qts, "{'execute': 'qom-set', 'arguments': {"
                      " 'path': '/objects/pol', 'property': 'threshold',"
                      " 'value': '5'}}");
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(reply, "error"),
                                          "desc"), "cannot be changed"));
    qobject_unref(reply);
    reply = qtest_qmp(c->qts, "{'execute': 'object-del', 'arguments': {"
                      " 'id': 'pol'}}");
    g_assert_true(qdict_haskey(reply, "error"));
    qobject_unref(reply);
    cxl_end(c);
}

static void test_migration_blocked(void)
{
    Setup s = { .policy = "" };
    Cxl *c = cxl_start(&s);
    QDict *reply = qtest_qmp(c->qts, "{'execute': 'migrate', 'arguments': {"
                             " 'uri': 'file:/dev/null'}}");
    QDict *error = qdict_get_qdict(reply, "error");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), "ondemand-policy"));
    qobject_unref(reply);
    cxl_end(c);
}

/* A skip outside of a test would not be seen. */
static void test_absent(void)
{
    g_test_skip("no device cxl-type3 in this build");
}

int main(int argc, char **argv)
{
    static const Setup one_port = { .policy = "threshold=4", .ports = 1 };
    static const Setup behind_switch = { .policy = "threshold=4",
                                         .behind_switch = true };

    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_device("cxl-type3")) {
        qtest_add_func("ondemand-cxl/absent", test_absent);
        return g_test_run();
    }
    qtest_add_func("ondemand-cxl/off", test_off);
    qtest_add_data_func("ondemand-cxl/contents/cold", "threshold=1000000",
                        test_contents);
    qtest_add_data_func("ondemand-cxl/contents/mapped", "threshold=0",
                        test_contents);
    qtest_add_data_func("ondemand-cxl/contents/switch", "threshold=400",
                        test_contents);
    qtest_add_data_func("ondemand-cxl/contents/auto", "threshold=auto",
                        test_contents);
    qtest_add_data_func("ondemand-cxl/path/one-port", &one_port, test_paths);
    qtest_add_data_func("ondemand-cxl/path/switch", &behind_switch,
                        test_paths);
    qtest_add_func("ondemand-cxl/threshold", test_threshold);
    qtest_add_func("ondemand-cxl/hmp", test_hmp);
    qtest_add_data_func("ondemand-cxl/uncommit/endpoint", "endpoint",
                        test_uncommit);
    qtest_add_data_func("ondemand-cxl/uncommit/switch", "switch",
                        test_uncommit);
    qtest_add_data_func("ondemand-cxl/uncommit/host-bridge", "host bridge",
                        test_uncommit);
    qtest_add_func("ondemand-cxl/rewrite", test_rewrite);
    qtest_add_func("ondemand-cxl/reset", test_reset);
    qtest_add_func("ondemand-cxl/unplug", test_unplug);
    qtest_add_func("ondemand-cxl/sanitize", test_sanitize);
    qtest_add_func("ondemand-cxl/dynamic-capacity", test_dynamic_capacity);
    qtest_add_data_func("ondemand-cxl/interleaved", NULL, test_interleaved);
    qtest_add_func("ondemand-cxl/two-targets", test_two_targets);
    qtest_add_func("ondemand-cxl/reserved-ways", test_reserved_ways);
    qtest_add_func("ondemand-cxl/random", test_random);
    qtest_add_func("ondemand-cxl/limit/chunks", test_chunks);
    qtest_add_func("ondemand-cxl/limit/max-mapped", test_max_mapped);
    qtest_add_func("ondemand-cxl/limit/sections", test_sections);
    qtest_add_func("ondemand-cxl/limit/rate", test_rate);
    qtest_add_func("ondemand-cxl/bad-policy", test_bad_policy);
    qtest_add_func("ondemand-cxl/migration-blocked", test_migration_blocked);
    return g_test_run();
}
