/*
 * QTest: ondemand-mem-pci, a window that is filled and mapped on demand
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The test knows what the window must hold (@expect), and compares.
 */

#include "qemu/osdep.h"
#include "elf.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "qemu/userfaultfd.h"
#include "libqtest.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define SLOT 4
#define WINDOW 0xe0000000u
#define GRANULE (4 * KiB)
#define CHUNK (16 * KiB)        /* of 16 chunks in 256 KiB */
#define SIZE (256 * KiB)
#define FILE_SIZE (SIZE - 100)  /* the last granule is not whole */
#define ADDRESS(offset) (WINDOW + (uint32_t)(offset))

/* A policy whose chunks are CHUNK bytes */
#define POLICY "granule=4k,chunks=16"

typedef struct Mem {
    QTestState *qts;
    char *folder;
    char *file;
    uint8_t expect[SIZE];
} Mem;

static uint8_t pattern(uint64_t x)
{
    return (x * 0x9e3779b97f4a7c15ull) >> 56;
}

static void cfg_writel(QTestState *qts, int devfn, int reg, uint32_t value)
{
    qtest_outl(qts, 0xcf8, 0x80000000u | devfn << 8 | reg);
    qtest_outl(qts, 0xcfc, value);
}

/* Give the device on @slot an address and switch its memory on, or off. */
static void set_bar(QTestState *qts, int slot, uint32_t addr)
{
    cfg_writel(qts, slot << 3, PCI_BASE_ADDRESS_0, addr);
    cfg_writel(qts, slot << 3, PCI_BASE_ADDRESS_1, 0);
    cfg_writel(qts, slot << 3, PCI_COMMAND, addr ? PCI_COMMAND_MEMORY : 0);
}

/*
 * The machine
 */

static Mem *mem_new(void)
{
    Mem *m = g_new0(Mem, 1);
    g_autoptr(GError) err = NULL;

    m->folder = g_dir_make_tmp("ondemand-mem-XXXXXX", &err);
    g_assert_no_error(err);
    m->file = g_build_filename(m->folder, "data", NULL);
    for (int i = 0; i < FILE_SIZE; i++) {
        m->expect[i] = pattern(i);
    }
    g_file_set_contents(m->file, (char *)m->expect, FILE_SIZE, &err);
    g_assert_no_error(err);
    return m;
}

static void mem_free(Mem *m)
{
    g_autofree char *socket = g_build_filename(m->folder, "migration", NULL);

    unlink(socket);
    unlink(m->file);
    rmdir(m->folder);
    g_free(m->file);
    g_free(m->folder);
    g_free(m);
}

static QTestState *start_qemu(Mem *m, const char *policy, const char *device,
                              const char *extra)
{
    return qtest_initf("-machine pc -m 64M -object ondemand-policy,id=pol,%s "
                       "-device ondemand-mem-pci,id=mem0,addr=%02x.0,"
                       "policy=pol,%s%s%s %s", policy, SLOT,
                       strstr(device, "memdev=") ? "" : "file=",
                       strstr(device, "memdev=") ? "" : m->file, device,
                       extra ?: "");
}

static Mem *mem_start(const char *policy, const char *device,
                      const char *extra)
{
    Mem *m = mem_new();

    m->qts = start_qemu(m, policy, device, extra);
    set_bar(m->qts, SLOT, WINDOW);
    return m;
}

/* The contents are a memory backend of the file's size, made from it. */
static Mem *memdev_start(const char *policy, const char *device)
{
    Mem *m = mem_new();
    g_autofree char *extra = g_strdup_printf(
        "-object memory-backend-file,id=ram,share=off,mem-path=%s,size=%ld",
        m->file, SIZE);
    g_autofree char *props = g_strdup_printf("memdev=ram%s", device);

    /* whole: a memory backend of a file makes it as long as itself */
    g_assert_cmpint(truncate(m->file, SIZE), ==, 0);
    m->qts = start_qemu(m, policy, props, extra);
    set_bar(m->qts, SLOT, WINDOW);
    return m;
}

static void mem_end(Mem *m)
{
    qtest_quit(m->qts);
    mem_free(m);
}

/*
 * What QEMU says of it
 */

static QDict *query(QTestState *qts)
{
    QDict *reply = qtest_qmp(qts, "{'execute': 'query-ondemand-map'}");
    QDict *info = qobject_to(QDict, qlist_peek(qdict_get_qlist(reply,
                                                               "return")));

    qobject_ref(info);
    qobject_unref(reply);
    g_assert_nonnull(info);
    return info;
}

static uint64_t count_of(QTestState *qts, const char *what)
{
    QDict *info = query(qts);
    uint64_t value = qdict_get_uint(info, what);

    qobject_unref(info);
    return value;
}

/* State of a chunk, with its refusal; checks where it is said to be */
static char *state_of(QTestState *qts, unsigned chunk)
{
    QDict *info = query(qts);
    QList *ranges = qdict_get_qlist(info, "ranges");
    QListEntry *e = QTAILQ_FIRST(&ranges->head);
    QDict *range;
    char *state;

    while (chunk--) {
        e = QTAILQ_NEXT(e, next);
    }
    range = qobject_to(QDict, qlist_entry_obj(e));
    state = g_strdup_printf("%s%s%s", qdict_get_str(range, "state"),
                            qdict_haskey(range, "refusal") ? " " : "",
                            qdict_get_try_str(range, "refusal") ?: "");
    qobject_unref(info);
    return state;
}

static void expect_state(QTestState *qts, unsigned chunk, const char *state)
{
    g_autofree char *found = state_of(qts, chunk);

    g_assert_cmpstr(found, ==, state);
}

/* Fills and commits are made beside, so a state may take a moment. */
static void wait_state(QTestState *qts, unsigned chunk, const char *state)
{
    for (int i = 0; i < 1000; i++) {
        g_autofree char *found = state_of(qts, chunk);

        if (g_str_equal(found, state)) {
            return;
        }
        g_usleep(10 * 1000);
    }
    expect_state(qts, chunk, state);
}

static uint64_t stat_value(QTestState *qts, const char *name)
{
    QDict *reply = qtest_qmp(qts,
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

/* How many ranges of the machine's memory map are RAM of the window? */
static unsigned ranges_in_map(QTestState *qts, const char *ram)
{
    g_autofree char *tree = qtest_hmp(qts, "info mtree -f");
    g_auto(GStrv) lines = g_strsplit(tree, "\n", 0);
    unsigned count = 0;
    bool memory = false;

    for (char **line = lines; *line; line++) {
        if (strstr(*line, "FlatView")) {
            memory = false;
        } else if (strstr(*line, "AS \"memory\"")) {
            memory = true;
        }
        count += memory && strstr(*line, ram) && strstr(*line, ", ram)");
    }
    return count;
}

static void touch(QTestState *qts, uint32_t addr, unsigned times)
{
    while (times--) {
        qtest_readb(qts, addr);
    }
}

/*
 * Contents
 */

static void expect_contents(Mem *m)
{
    g_autofree uint8_t *found = g_malloc(SIZE);

    qtest_memread(m->qts, WINDOW, found, SIZE);
    g_assert_cmpmem(found, SIZE, m->expect, SIZE);
}

static void write_one(Mem *m, uint32_t offset, unsigned size, uint64_t value)
{
    uint8_t *at = m->expect + offset;

    switch (size) {
    case 1:
        qtest_writeb(m->qts, ADDRESS(offset), value);
        break;
    case 2:
        qtest_writew(m->qts, ADDRESS(offset), value);
        break;
    case 4:
        qtest_writel(m->qts, ADDRESS(offset), value);
        break;
    default:
        qtest_writeq(m->qts, ADDRESS(offset), value);
    }
    for (int i = 0; i < size; i++, value >>= 8) {
        at[i] = value;
    }
}

static void read_one(Mem *m, uint32_t offset, unsigned size)
{
    const uint8_t *at = m->expect + offset;

    switch (size) {
    case 1:
        g_assert_cmphex(qtest_readb(m->qts, ADDRESS(offset)), ==, *at);
        break;
    case 2:
        g_assert_cmphex(qtest_readw(m->qts, ADDRESS(offset)), ==,
                        lduw_le_p(at));
        break;
    case 4:
        g_assert_cmphex(qtest_readl(m->qts, ADDRESS(offset)), ==,
                        (uint32_t)ldl_le_p(at));
        break;
    default:
        g_assert_cmphex(qtest_readq(m->qts, ADDRESS(offset)), ==, ldq_le_p(at));
    }
}

/* Each size at each alignment, over the borders of granules and chunks too */
static void check_borders(Mem *m, uint64_t seed)
{
    static const uint32_t places[] = {
        0, GRANULE - 8, CHUNK - 8, 2 * CHUNK - 8, SIZE / 2, SIZE - 24,
    };

    for (int p = 0; p < ARRAY_SIZE(places); p++) {
        for (int align = 0; align < 16; align++) {
            for (unsigned size = 1; size <= 8; size *= 2) {
                uint32_t offset = places[p] + align;

                read_one(m, offset, size);
                write_one(m, offset, size, seed++ * 0x9e3779b97f4a7c15ull);
                read_one(m, offset, size);
            }
        }
    }
}

static void check_random(Mem *m, unsigned rounds)
{
    while (rounds--) {
        unsigned size = 1u << g_test_rand_int_range(0, 4);
        uint32_t offset = g_test_rand_int_range(0, SIZE - size + 1);

        if (g_test_rand_bit()) {
            write_one(m, offset, size, (uint64_t)g_test_rand_int() << 32 |
                                       (uint32_t)g_test_rand_int());
        } else {
            read_one(m, offset, size);
        }
    }
}

static void check_contents(Mem *m, const char *policy)
{
    check_borders(m, 1);
    check_random(m, 4000);
    check_borders(m, 99);
    if (strstr(policy, "1000000")) {
        g_assert_cmpuint(count_of(m->qts, "maps"), ==, 0);
    } else {
        /* what lies around the places that were used most */
        wait_state(m->qts, 0, "mapped");
        wait_state(m->qts, 15, "mapped");
        check_borders(m, 7);
    }
    expect_contents(m);
    mem_end(m);
}

static void test_contents(const void *policy)
{
    check_contents(mem_start(policy, "", NULL), policy);
}

static void test_contents_memdev(const void *policy)
{
    check_contents(memdev_start(policy, ""), policy);
}

/* What a write leaves alone, and what the file holds */
static void test_file_is_not_written(void)
{
    Mem *m = mem_start(POLICY ",threshold=2", "", NULL);
    g_autofree char *now = NULL;
    gsize size;

    for (int i = 0; i < 10; i++) {
        write_one(m, 100, 8, ~0ull);
    }
    wait_state(m->qts, 0, "mapped");
    write_one(m, 200, 8, ~0ull);
    expect_contents(m);
    g_assert_true(g_file_get_contents(m->file, &now, &size, NULL));
    g_assert_cmpuint(size, ==, FILE_SIZE);
    for (int i = 0; i < FILE_SIZE; i++) {
        g_assert_cmphex((uint8_t)now[i], ==, pattern(i));
    }
    mem_end(m);
}

/* A window that ends inside its BAR; beyond there is nothing. */
static void test_end(void)
{
    Mem *m = mem_start(POLICY ",threshold=1000", ",size=13000", NULL);

    g_assert_cmphex(qtest_readb(m->qts, ADDRESS(12999)), ==, pattern(12999));
    g_assert_cmphex(qtest_readb(m->qts, ADDRESS(13000)), ==, 0);
    g_assert_cmphex(qtest_readb(m->qts, ADDRESS(16 * KiB - 1)), ==, 0);
    qtest_writeq(m->qts, ADDRESS(16 * KiB - 8), 0x1122334455667788);
    g_assert_cmphex(qtest_readw(m->qts, ADDRESS(16 * KiB - 2)), ==, 0x1122);
    g_assert_cmphex(count_of(m->qts, "resident"), ==, GRANULE);
    mem_end(m);

    m = mem_start(POLICY ",threshold=1000", ",size=9000", NULL);
    /* of 12 KiB in a BAR of 16: an access over the end is served in part */
    qtest_writel(m->qts, ADDRESS(12 * KiB - 2), 0x11223344);
    g_assert_cmphex(qtest_readw(m->qts, ADDRESS(12 * KiB - 2)), ==, 0x3344);
    qtest_readq(m->qts, ADDRESS(12 * KiB - 1));
    qtest_readq(m->qts, ADDRESS(12 * KiB));
    mem_end(m);
}

/*
 * Counting
 */

static void test_threshold(void)
{
    Mem *m = mem_start(POLICY ",threshold=10", "", NULL);
    uint64_t traps;

    /* the first of a granule brings it in, and is no hit */
    touch(m->qts, WINDOW + CHUNK, 11);
    g_assert_cmpuint(count_of(m->qts, "resident"), ==, GRANULE);
    expect_state(m->qts, 1, "cold");
    touch(m->qts, WINDOW + CHUNK, 1);
    wait_state(m->qts, 1, "mapped");
    expect_state(m->qts, 0, "cold");
    expect_state(m->qts, 2, "cold");
    traps = count_of(m->qts, "traps");
    g_assert_cmpuint(traps, ==, 12);
    touch(m->qts, WINDOW + CHUNK, 1000);
    g_assert_cmpuint(count_of(m->qts, "traps"), ==, traps);
    g_assert_cmpuint(count_of(m->qts, "mapped"), ==, CHUNK);
    g_assert_cmpuint(count_of(m->qts, "resident"), ==, CHUNK);
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-resident-bytes"), ==,
                     CHUNK);
    g_assert_cmpuint(ranges_in_map(m->qts, "ondemand-mem"), ==, 1);
    expect_contents(m);
    mem_end(m);
}

/* What is used once only, however much of it, is not worth a mapping. */
static void test_once(void)
{
    Mem *m = mem_start("granule=4k,chunks=1,threshold=10", "", NULL);

    for (int at = 0; at < SIZE; at += GRANULE) {
        touch(m->qts, ADDRESS(at), 1);
    }
    g_assert_cmpuint(count_of(m->qts, "traps"), ==, SIZE / GRANULE);
    g_assert_cmpuint(count_of(m->qts, "resident"), ==, SIZE);
    expect_state(m->qts, 0, "cold");
    touch(m->qts, ADDRESS(0), 11);
    wait_state(m->qts, 0, "mapped");
    mem_end(m);
}

static void test_at_once(void)
{
    Mem *m = mem_start(POLICY ",threshold=0", "", NULL);

    for (int n = 0; n < 16; n++) {
        wait_state(m->qts, n, "mapped");
    }
    g_assert_cmpuint(count_of(m->qts, "traps"), ==, 0);
    expect_contents(m);
    mem_end(m);
}

static void test_hmp(void)
{
    Mem *m = mem_start(POLICY ",threshold=5", "", NULL);
    g_autofree char *said = NULL;

    touch(m->qts, WINDOW, 7);
    wait_state(m->qts, 0, "mapped");
    said = qtest_hmp(m->qts, "info ondemand-map");
    g_assert_nonnull(strstr(said, "/machine/peripheral/mem0: policy "
                            "/objects/pol, threshold 5"));
    g_assert_nonnull(strstr(said, "traps 7, maps 1, unmaps 0, refused 0, "
                            "forced 0, mapped 16384 bytes, resident 16384 "
                            "bytes"));
    g_assert_nonnull(strstr(said, "0xe0000000-0xe0003fff mapped, hits 6"));
    g_assert_nonnull(strstr(said, "0xe0004000-0xe0007fff cold, hits 0"));
    mem_end(m);
}

/*
 * Forced mappings
 */

/* The IDE controller reads a sector into the window. */
static void ide_read(QTestState *qts, uint32_t addr)
{
    const int ide = 1 << 3 | 1;

    cfg_writel(qts, ide, PCI_BASE_ADDRESS_4, 0xc000);
    cfg_writel(qts, ide, PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MASTER);
    qtest_writel(qts, 0x1000, addr);
    qtest_writel(qts, 0x1004, 0x80000000u | 512);
    qtest_outl(qts, 0xc004, 0x1000);
    qtest_outb(qts, 0xc002, 6);
    qtest_outb(qts, 0xc000, 8);
    qtest_outb(qts, 0x1f6, 0xe0);
    qtest_outb(qts, 0x1f2, 1);
    for (int i = 0; i < 3; i++) {
        qtest_outb(qts, 0x1f3 + i, 0);
    }
    qtest_outb(qts, 0x1f7, 0xc8);
    qtest_outb(qts, 0xc000, 9);
    for (int i = 0; i < 1000 && (qtest_inb(qts, 0xc002) & 1); i++) {
        g_usleep(1000);
    }
    g_assert_cmphex(qtest_inb(qts, 0xc002) & 3, ==, 0);
}

static void test_dma(void)
{
    Mem *m = mem_start(POLICY ",threshold=1000000", "",
                       "-drive if=ide,file.driver=null-co,file.size=1M,"
                       "file.read-zeroes=on,format=raw");

    g_assert_cmphex(qtest_readb(m->qts, ADDRESS(0x4010)), !=, 0);
    for (int turn = 0; turn < 2; turn++) {
        ide_read(m->qts, WINDOW + 0x4000);
        memset(m->expect + 0x4000, 0, 512);
        wait_state(m->qts, 1, "mapped");
        expect_contents(m);
    }
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-forced-dma"), ==, 1);
    g_assert_cmpuint(count_of(m->qts, "maps"), ==, 1);
    mem_end(m);
}

/* Find @addr in a dump; NULL if it is not there. */
static const uint8_t *find_in_dump(const char *dump, gsize length,
                                   uint64_t addr)
{
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)dump;
    const Elf64_Phdr *p = (const Elf64_Phdr *)(dump + header->e_phoff);

    for (int i = 0; i < header->e_phnum; i++, p++) {
        if (p->p_type == PT_LOAD && addr >= p->p_paddr &&
            addr - p->p_paddr < p->p_filesz) {
            g_assert_cmpuint(p->p_offset + p->p_filesz, <=, length);
            return (const uint8_t *)dump + p->p_offset + (addr - p->p_paddr);
        }
    }
    return NULL;
}

static void test_dump(const void *what)
{
    const char *policy = POLICY ",threshold=1000000,max-commits-per-s=1";
    bool memdev = g_str_equal(what, "memdev");
    Mem *m = memdev ? memdev_start(policy, "") : mem_start(policy, "", NULL);
    g_autofree char *path = g_build_filename(m->folder, "dump", NULL);
    g_autofree char *protocol = g_strdup_printf("file:%s", path);
    g_autofree char *dump = NULL;
    const uint8_t *at;
    gsize length;

    for (int i = 0; i < CHUNK; i += 512) {
        write_one(m, CHUNK + i, 8, i);
    }
    write_one(m, 5 * CHUNK, 8, 0x1234567812345678);
    g_assert_cmpuint(count_of(m->qts, "maps"), ==, 0);
    qtest_qmp_assert_success(m->qts, "{'execute': 'dump-guest-memory',"
        " 'arguments': {'paging': false, 'protocol': %s}}",
        protocol);
    g_assert_true(g_file_get_contents(path, &dump, &length, NULL));
    for (int n = 1; n <= 5; n += 4) {
        at = find_in_dump(dump, length, ADDRESS(n * CHUNK));
        g_assert_nonnull(at);
        g_assert_cmpmem(at, CHUNK, m->expect + n * CHUNK, CHUNK);
    }
    /* nobody has been there: if it is only in the file, the dump has it not */
    g_assert_cmpint(!find_in_dump(dump, length, ADDRESS(3 * CHUNK)), ==,
                    !memdev);
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-forced-dump"), ==,
                     memdev ? 16 : 2);
    expect_contents(m);
    unlink(path);
    mem_end(m);
}

/*
 * Limits
 */

static void test_max_mapped(void)
{
    Mem *m = mem_start(POLICY ",threshold=2,max-mapped=40k", "", NULL);

    for (int n = 0; n < 3; n++) {
        touch(m->qts, ADDRESS(n * CHUNK), 4);
        wait_state(m->qts, n, n < 2 ? "mapped" : "refused max-mapped");
    }
    /* nothing is filled that cannot be mapped, but for what was used */
    g_assert_cmpuint(count_of(m->qts, "resident"), ==, 2 * CHUNK + GRANULE);
    for (int i = 0; i < 15; i++) {
        touch(m->qts, ADDRESS(2 * CHUNK), 5);
        g_usleep(100 * 1000);
    }
    g_assert_cmpuint(count_of(m->qts, "mapped"), ==, 2 * CHUNK);
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-refused-max-mapped"),
                     >=, 2);
    check_random(m, 1000);
    g_assert_cmpuint(count_of(m->qts, "mapped"), <=, 40 * KiB);
    expect_contents(m);
    mem_end(m);
}

/* A guest that makes one chunk after the other hot, as fast as it can */
static void test_rate(void)
{
    Mem *m = mem_start(POLICY ",threshold=0,max-commits-per-s=10", "", NULL);
    int64_t start_us = g_get_monotonic_time(), elapsed_us;
    uint64_t commits;

    for (int n = 0; n < 16; n++) {
        touch(m->qts, ADDRESS(n * CHUNK), 2);
        wait_state(m->qts, n, "mapped");
    }
    commits = stat_value(m->qts, "ondemand-map-commits");
    elapsed_us = g_get_monotonic_time() - start_us;
    g_assert_cmpuint(commits, >, 0);
    g_assert_cmpuint(commits, <=, elapsed_us / 100000 + 2);
    mem_end(m);
}

/* Forced mappings, too, are not faster than the limit. */
static void test_forced_rate(void)
{
    Mem *m = mem_start(POLICY ",threshold=1000000,max-commits-per-s=5", "",
                       "-drive if=ide,file.driver=null-co,file.size=1M,"
                       "file.read-zeroes=on,format=raw");
    int64_t start_us = g_get_monotonic_time(), elapsed_us;
    uint64_t commits;

    for (int n = 0; n < 16; n++) {
        ide_read(m->qts, ADDRESS(n * CHUNK));
        memset(m->expect + n * CHUNK, 0, 512);
    }
    commits = stat_value(m->qts, "ondemand-map-commits");
    elapsed_us = g_get_monotonic_time() - start_us;
    g_assert_cmpuint(commits, <=, elapsed_us / 200000 + 2);
    expect_contents(m);
    mem_end(m);
}

/*
 * Chunks that are mapped while the guest has switched the BARs off, which then
 * come into the memory map all at once
 */
static void test_sections(void)
{
    const int devices = 10;
    Mem *m = mem_new();
    g_autoptr(GString) args = g_string_new("-machine pc -m 64M -object "
        "ondemand-policy,id=pol,threshold=0,granule=4k,chunks=256,"
        "max-commits-per-s=1000 ");
    uint64_t chunks, before = 0;

    g_assert_cmpint(truncate(m->file, MiB), ==, 0);
    for (int i = 0; i < devices; i++) {
        g_string_append_printf(args, "-device ondemand-mem-pci,policy=pol,"
                               "addr=%02x.0,file=%s ", SLOT + i, m->file);
    }
    m->qts = qtest_init(args->str);
    while ((chunks = stat_value(m->qts, "ondemand-map-mapped-chunks")) !=
           before || !chunks) {
        before = chunks;
        g_usleep(500 * 1000);
    }
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-refused-sections"), >,
                     0);
    for (int i = 0; i < devices; i++) {
        set_bar(m->qts, SLOT + i, WINDOW + i * MiB);
    }
    g_assert_cmpuint(ranges_in_map(m->qts, "ondemand-mem"), ==, chunks);
    for (int i = 0; i < devices; i++) {
        qtest_memset(m->qts, WINDOW + i * MiB, i + 1, MiB);
    }
    for (int i = 0; i < devices; i++) {
        g_assert_cmphex(qtest_readb(m->qts, WINDOW + i * MiB + 12345), ==,
                        i + 1);
        set_bar(m->qts, SLOT + i, 0);
    }
    g_assert_cmpuint(ranges_in_map(m->qts, "ondemand-mem"), ==, 0);
    mem_end(m);
}

/*
 * The device's life
 */

static void make_hot(Mem *m)
{
    for (int i = 0; i < 30; i++) {
        write_one(m, 100, 8, 0x1122334455667788);
        write_one(m, 7 * CHUNK, 8, i);
    }
    wait_state(m->qts, 0, "mapped");
    wait_state(m->qts, 7, "mapped");
}

/* Reset takes the BAR away, and leaves the contents. */
static void test_reset(void)
{
    Mem *m = mem_start(POLICY ",threshold=4", "", NULL);

    make_hot(m);
    qtest_system_reset(m->qts);
    g_assert_cmpuint(ranges_in_map(m->qts, "ondemand-mem"), ==, 0);
    set_bar(m->qts, SLOT, WINDOW);
    g_assert_cmpuint(ranges_in_map(m->qts, "ondemand-mem"), ==, 2);
    check_random(m, 1000);
    expect_contents(m);
    mem_end(m);
}

static void unplug(Mem *m)
{
    qtest_qmp_assert_success(m->qts, "{'execute': 'device_del',"
                             " 'arguments': {'id': 'mem0'}}");
    qtest_outl(m->qts, 0xae10, 0);          /* bus, then eject the slot */
    qtest_outl(m->qts, 0xae08, 1u << SLOT);
    qtest_qmp_eventwait(m->qts, "DEVICE_DELETED");
}

static void test_unplug(const void *props)
{
    bool memdev = strstr(props, "memdev");
    Mem *m = memdev ? memdev_start(POLICY ",threshold=4", "")
                    : mem_start(POLICY ",threshold=4", "", NULL);
    QDict *reply;

    make_hot(m);
    /* and one whose fill may be under way */
    touch(m->qts, ADDRESS(9 * CHUNK), 6);
    unplug(m);
    g_assert_cmpuint(ranges_in_map(m->qts, "ondemand-mem"), ==, 0);
    qtest_readq(m->qts, WINDOW);
    reply = qtest_qmp(m->qts, "{'execute': 'query-ondemand-map'}");
    g_assert_true(qlist_empty(qdict_get_qlist(reply, "return")));
    qobject_unref(reply);
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-mapped-bytes"), ==, 0);
    /* it can come back, and begins anew */
    if (memdev) {
        qtest_qmp_assert_success(m->qts, "{'execute': 'device_add',"
            " 'arguments': {'driver': 'ondemand-mem-pci', 'id': 'mem0',"
            " 'addr': '4.0', 'policy': 'pol', 'memdev': 'ram'}}");
    } else {
        qtest_qmp_assert_success(m->qts, "{'execute': 'device_add',"
            " 'arguments': {'driver': 'ondemand-mem-pci', 'id': 'mem0',"
            " 'addr': '4.0', 'policy': 'pol', 'file': %s}}", m->file);
        for (int i = 0; i < FILE_SIZE; i++) {
            m->expect[i] = pattern(i);
        }
    }
    set_bar(m->qts, SLOT, WINDOW);
    g_assert_cmpuint(count_of(m->qts, "resident"), ==, 0);
    check_random(m, 1000);
    expect_contents(m);
    unplug(m);
    qtest_qmp_assert_success(m->qts, "{'execute': 'object-del',"
                             " 'arguments': {'id': 'pol'}}");
    mem_end(m);
}

/*
 * A backing that fails
 */

static void expect_error_event(QTestState *qts, const char *action,
                               uint64_t offset, const char *reason)
{
    QDict *event = qtest_qmp_eventwait_ref(qts, "ONDEMAND_MAP_ERROR");
    QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "name"), ==,
                    "/machine/peripheral/mem0");
    g_assert_cmpstr(qdict_get_str(data, "action"), ==, action);
    g_assert_cmpuint(qdict_get_uint(data, "offset"), ==, offset);
    g_assert_cmpstr(qdict_get_str(data, "reason"), ==, reason);
    qobject_unref(event);
}

static void expect_status(QTestState *qts, const char *status)
{
    QDict *reply = qtest_qmp(qts, "{'execute': 'query-status'}");

    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(reply, "return"), "status"),
                    ==, status);
    qobject_unref(reply);
}

/* The guest hammers what cannot be read; what can goes on. */
static void hammer(Mem *m, uint32_t offset)
{
    for (int i = 0; i < 3000; i++) {
        g_assert_cmphex(qtest_readl(m->qts, ADDRESS(offset + 4 * i % GRANULE)),
                        ==, 0xffffffff);
        qtest_writeb(m->qts, ADDRESS(offset), i);
    }
    touch(m->qts, ADDRESS(CHUNK), 10);
    wait_state(m->qts, 1, "mapped");
    wait_state(m->qts, offset / CHUNK, "refused backing");
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-refused-backing"), >, 0);
    expect_status(m->qts, "running");
}

static void restore_file(Mem *m)
{
    int fd = open(m->file, O_WRONLY);

    g_assert_cmpint(fd, >=, 0);
    for (int i = 0; i < FILE_SIZE; i++) {
        uint8_t byte = pattern(i);

        g_assert_cmpint(pwrite(fd, &byte, 1, i), ==, 1);
    }
    close(fd);
}

static void test_truncated(void)
{
    Mem *m = mem_start(POLICY ",threshold=4", ",rerror=report", NULL);

    write_one(m, 8 * CHUNK, 8, 0x55);
    g_assert_cmpint(truncate(m->file, 4 * CHUNK), ==, 0);
    qtest_readq(m->qts, ADDRESS(8 * CHUNK + 3 * GRANULE));
    expect_error_event(m->qts, "report", 8 * CHUNK + 3 * GRANULE,
                       "Input/output error");
    hammer(m, 8 * CHUNK + 2 * GRANULE);
    read_one(m, 8 * CHUNK, 8);          /* is in RAM */
    /* when the file is whole again, so is the window */
    restore_file(m);
    expect_contents(m);
    g_usleep(1100 * 1000);
    touch(m->qts, ADDRESS(8 * CHUNK), 20);
    wait_state(m->qts, 8, "mapped");
    expect_contents(m);
    mem_end(m);
}

static void test_truncated_stop(void)
{
    Mem *m = mem_start(POLICY ",threshold=4", "", NULL);

    g_assert_cmpint(truncate(m->file, 4 * CHUNK), ==, 0);
    g_assert_cmphex(qtest_readq(m->qts, ADDRESS(8 * CHUNK)), ==, ~0ull);
    expect_error_event(m->qts, "stop", 8 * CHUNK, "Input/output error");
    qtest_qmp_eventwait(m->qts, "STOP");
    expect_status(m->qts, "io-error");
    restore_file(m);
    qtest_qmp_assert_success(m->qts, "{'execute': 'cont'}");
    expect_status(m->qts, "running");
    expect_contents(m);
    check_random(m, 1000);
    expect_contents(m);
    mem_end(m);
}

/* A file behind a memory backend has become shorter: no SIGBUS. */
static void test_memdev_truncated(void)
{
    Mem *m = memdev_start(POLICY ",threshold=4", ",rerror=report");

    read_one(m, 0, 8);
    g_assert_cmpint(truncate(m->file, 4 * CHUNK), ==, 0);
    g_assert_cmphex(qtest_readq(m->qts, ADDRESS(8 * CHUNK)), ==, ~0ull);
    expect_error_event(m->qts, "report", 8 * CHUNK, "Bad address");
    hammer(m, 8 * CHUNK);
    read_one(m, 0, 8);
    mem_end(m);
}

static bool hugetlb_is_exhausted(void)
{
    g_autofree char *text = NULL;

    return g_file_get_contents("/sys/kernel/mm/hugepages/hugepages-2048kB/"
                               "free_hugepages", &text, NULL, NULL) &&
           !atoi(text);
}

static void test_hugetlb_exhausted(void)
{
    Mem *m;

    if (!hugetlb_is_exhausted()) {
        g_test_skip("the host has no huge pages of 2 MiB, or free ones");
        return;
    }
    m = mem_new();
    m->qts = start_qemu(m, "granule=2M,chunks=2,threshold=2",
                        "memdev=ram,rerror=report",
                        "-object memory-backend-memfd,id=ram,size=4M,"
                        "hugetlb=on,hugetlbsize=2M,reserve=off");
    set_bar(m->qts, SLOT, WINDOW);
    for (int i = 0; i < 1000; i++) {
        g_assert_cmphex(qtest_readl(m->qts, ADDRESS(i * 4)), ==, 0xffffffff);
    }
    expect_error_event(m->qts, "report", 0, "Bad address");
    wait_state(m->qts, 0, "refused backing");
    expect_status(m->qts, "running");
    mem_end(m);
}

/*
 * Migration
 */

static void migrate_speed(QTestState *qts, uint64_t bytes_per_s)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-parameters',"
                             " 'arguments': {'max-bandwidth': %" PRIu64 "}}",
                             bytes_per_s);
}

static char *migration_status(QTestState *qts)
{
    QDict *reply = qtest_qmp(qts, "{'execute': 'query-migrate'}");
    char *status = g_strdup(qdict_get_try_str(qdict_get_qdict(reply, "return"),
                                              "status") ?: "none");

    qobject_unref(reply);
    return status;
}

static void wait_migration(QTestState *qts, const char *wanted)
{
    for (int i = 0; i < 3000; i++) {
        g_autofree char *status = migration_status(qts);

        if (g_str_equal(status, wanted)) {
            return;
        }
        if (g_str_equal(status, "failed")) {
            g_error("migration failed, instead of \"%s\"", wanted);
        }
        g_usleep(10 * 1000);
    }
    g_error("no migration status \"%s\"", wanted);
}

static QTestState *start_destination(Mem *m, const char *policy,
                                     const char *device)
{
    return start_qemu(m, policy, device, "-incoming defer");
}

static void begin_migration(Mem *m, QTestState *to)
{
    g_autofree char *uri = g_strdup_printf("unix:%s/migration", m->folder);

    qtest_qmp_assert_success(to, "{'execute': 'migrate-incoming',"
        " 'arguments': {'uri': %s, 'exit-on-error': false}}", uri);
    qtest_qmp_assert_success(m->qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", uri);
}

static void set_capability(QTestState *qts, const char *name)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-capabilities',"
        " 'arguments': {'capabilities': [{'capability': %s,"
        " 'state': true}]}}", name);
}

/* Move to @to, with accesses of all kinds while it goes on. */
static void move_to(Mem *m, QTestState *to, bool postcopy)
{
    uint64_t maps = count_of(m->qts, "maps");
    uint64_t resident = count_of(m->qts, "resident");

    qtest_memset(m->qts, MiB, 0x5a, 16 * MiB);      /* something to send */
    if (postcopy) {
        set_capability(m->qts, "postcopy-ram");
        set_capability(to, "postcopy-ram");
    }
    migrate_speed(m->qts, 3 * MiB);
    begin_migration(m, to);
    wait_migration(m->qts, "active");
    /* what was hot, what has been filled, and what is new */
    check_random(m, 3000);
    write_one(m, 12 * CHUNK + 5, 4, 0xdeadbeef);
    g_assert_cmpuint(count_of(m->qts, "maps"), ==, maps);
    if (resident < SIZE) {
        g_assert_cmpuint(count_of(m->qts, "resident"), >, resident);
    }
    if (postcopy) {
        qtest_qmp_assert_success(m->qts,
                                 "{'execute': 'migrate-start-postcopy'}");
        qtest_qmp_eventwait(to, "RESUME");
    } else {
        migrate_speed(m->qts, GiB);
    }
    if (!postcopy) {
        wait_migration(m->qts, "completed");
        qtest_qmp_eventwait(to, "RESUME");
        resident = count_of(m->qts, "resident");
        qtest_quit(m->qts);
        m->qts = to;
        g_assert_cmpuint(count_of(m->qts, "resident"), ==, resident);
    }
}

static void test_migration(const void *data)
{
    const char *policy = data;
    Mem *m = mem_start(policy, "", NULL);

    /* half mapped: some of the chunks, and more of the granules */
    check_borders(m, 5);
    for (int turn = 0; turn < 2; turn++) {
        make_hot(m);
        move_to(m, start_destination(m, policy, ""), false);
        check_random(m, 500);
        expect_contents(m);
    }
    make_hot(m);
    check_borders(m, 6);
    expect_contents(m);
    mem_end(m);
}

/* Maps are frozen while a migration runs, and go on when it is cancelled. */
static void test_migration_cancelled(void)
{
    const char *policy = POLICY ",threshold=20";
    Mem *m = mem_start(policy, "", NULL);
    QTestState *to = start_destination(m, policy, "");

    make_hot(m);
    qtest_memset(m->qts, MiB, 0x5a, 16 * MiB);
    migrate_speed(m->qts, MiB);
    begin_migration(m, to);
    wait_migration(m->qts, "active");
    touch(m->qts, ADDRESS(2 * CHUNK), 30);
    wait_state(m->qts, 2, "refused migration");
    g_assert_cmpuint(stat_value(m->qts, "ondemand-map-refused-migration"), >,
                     0);
    qtest_qmp_assert_success(m->qts, "{'execute': 'migrate_cancel'}");
    wait_migration(m->qts, "cancelled");
    qtest_quit(to);
    g_usleep(1100 * 1000);
    touch(m->qts, ADDRESS(2 * CHUNK), 30);
    wait_state(m->qts, 2, "mapped");
    expect_contents(m);
    mem_end(m);
}

/* Each granule of a file of this size says which one it is */
#define BIG_SIZE (256 * MiB)

static void write_big_file(const char *name)
{
    int fd = open(name, O_WRONLY | O_TRUNC);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, BIG_SIZE), ==, 0);
    for (uint64_t at = 0; at < BIG_SIZE; at += GRANULE) {
        uint64_t value = cpu_to_le64(at + 1);

        g_assert_cmpint(pwrite(fd, &value, 8, at), ==, 8);
    }
    close(fd);
}

/* A chunk is being filled from before a migration until after its end. */
static void test_migration_filling(void)
{
    const char *policy = "granule=4k,chunks=1,threshold=2";
    Mem *m = mem_new();
    QTestState *to;

    write_big_file(m->file);
    m->qts = start_qemu(m, policy, "", NULL);
    set_bar(m->qts, SLOT, WINDOW);
    to = start_destination(m, policy, "");
    migrate_speed(m->qts, 10 * GiB);
    touch(m->qts, ADDRESS(0), 4);
    begin_migration(m, to);
    wait_migration(m->qts, "completed");
    qtest_qmp_eventwait(to, "RESUME");
    qtest_quit(m->qts);
    m->qts = to;
    for (uint64_t at = 0; at < BIG_SIZE; at += GRANULE) {
        g_assert_cmphex(qtest_readq(to, ADDRESS(at)), ==, at + 1);
    }
    mem_end(m);
}

static bool userfaultfd_works(void)
{
    int fd = uffd_open(O_CLOEXEC);

    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

/* The destination fills granules while their RAM is not there yet. */
static void test_postcopy(void)
{
    const char *policy = POLICY ",threshold=20";
    QTestState *from, *to;
    Mem *m;

    if (!userfaultfd_works()) {
        g_test_skip("userfaultfd cannot be used here");
        return;
    }
    m = mem_start(policy, "", NULL);
    check_borders(m, 5);
    make_hot(m);
    from = m->qts;
    to = start_destination(m, policy, "");
    move_to(m, to, true);
    m->qts = to;
    check_random(m, 2000);
    expect_contents(m);
    migrate_speed(from, GiB);
    wait_migration(from, "completed");
    wait_migration(to, "completed");
    qtest_quit(from);
    expect_contents(m);
    make_hot(m);
    expect_contents(m);
    mem_end(m);
}

/* Returns: why the destination did not take it */
static char *refused_by(Mem *m, QTestState *to)
{
    QDict *reply, *info;
    char *why = NULL;

    make_hot(m);
    begin_migration(m, to);
    for (int i = 0; i < 1000 && !why; i++) {
        g_usleep(10 * 1000);
        reply = qtest_qmp(to, "{'execute': 'query-migrate'}");
        info = qdict_get_qdict(reply, "return");
        if (g_strcmp0(qdict_get_try_str(info, "status"), "failed") == 0) {
            why = g_strdup(qdict_get_try_str(info, "error-desc"));
        }
        qobject_unref(reply);
    }
    g_assert_nonnull(why);
    /* the source goes on */
    for (int i = 0; i < 1000; i++) {
        g_autofree char *status = migration_status(m->qts);

        if (g_str_equal(status, "failed")) {
            break;
        }
        g_usleep(10 * 1000);
    }
    check_random(m, 500);
    expect_contents(m);
    qtest_quit(to);
    return why;
}

static void test_refused(void)
{
    Mem *m = mem_start(POLICY ",threshold=2", "", NULL);
    g_autofree char *absent = NULL, *granule = NULL, *size = NULL;

    absent = refused_by(m, qtest_init("-machine pc -m 64M -incoming defer"));
    g_assert_nonnull(strstr(absent, "ondemand"));
    granule = refused_by(m, start_destination(m, "granule=8k,chunks=16", ""));
    g_assert_nonnull(strstr(granule, "0000:00:04.0/ondemand-region-early"));
    mem_end(m);
}

/*
 * Bad input
 */

static void expect_refusal(QTestState *qts, const char *text,
                           const char *command)
{
    QDict *reply = qtest_qmp(qts, command, NULL);
    QDict *error = qdict_get_qdict(reply, "error");

    g_assert_nonnull(error);
    if (!strstr(qdict_get_str(error, "desc"), text)) {
        g_error("\"%s\" is not in \"%s\"", text, qdict_get_str(error, "desc"));
    }
    qobject_unref(reply);
}

#define DEVICE(props) "{'execute': 'device_add', 'arguments': {" \
    "'driver': 'ondemand-mem-pci', 'addr': '9.0', " props "}}"
#define OBJECT(props) "{'execute': 'object-add', 'arguments': {" \
    "'qom-type': 'ondemand-policy', 'id': 'bad', " props "}}"

static void test_bad_input(void)
{
    Mem *m = mem_start(POLICY, "",
        "-object memory-backend-ram,id=odd,size=20k "
        "-object memory-backend-ram,id=good,size=64k "
        "-object ondemand-policy,id=large,granule=64k");
    QTestState *qts = m->qts;

    expect_refusal(qts, "'granule' of ondemand-policy is 12288, but must be a "
                   "power of two", OBJECT("'granule': 12288"));
    expect_refusal(qts, "'granule' of ondemand-policy is 2048, but must be "
                   "from 4096 to 1073741824", OBJECT("'granule': 2048"));
    expect_refusal(qts, "'policy' must name an ondemand-policy",
                   DEVICE("'memdev': 'good'"));
    expect_refusal(qts, "not found", DEVICE("'policy': 'nobody'"));
    expect_refusal(qts, "One of the properties 'memdev' and 'file' must be "
                   "set", DEVICE("'policy': 'pol'"));
    expect_refusal(qts, "One of the properties 'memdev' and 'file' must be "
                   "set, and not both",
                   DEVICE("'policy': 'pol', 'memdev': 'good', 'file': 'x'"));
    expect_refusal(qts, "'file': Could not open '/nowhere'",
                   DEVICE("'policy': 'pol', 'file': '/nowhere'"));
    expect_refusal(qts, "'file': '/dev/null' is neither a regular file nor a "
                   "block device", DEVICE("'policy': 'pol', 'file': "
                                          "'/dev/null'"));
    expect_refusal(qts, "'file': '/' is neither a regular file nor a block "
                   "device", DEVICE("'policy': 'pol', 'file': '/'"));
    expect_refusal(qts, "The window's size is 20480 bytes, but must be a "
                   "multiple of the policy's 'granule', 65536",
                   DEVICE("'policy': 'large', 'memdev': 'odd'"));
    expect_refusal(qts, "'size' is 4096, but must not be set with 'memdev'",
                   DEVICE("'policy': 'pol', 'memdev': 'good', 'size': 4096"));
    expect_refusal(qts, "'rerror' is 'ignore', but must be 'stop' or 'report'",
                   DEVICE("'policy': 'pol', 'memdev': 'good',"
                          " 'rerror': 'ignore'"));
    expect_refusal(qts, "'granule'", "{'execute': 'qom-set', 'arguments': {"
                   "'path': '/objects/pol', 'property': 'granule',"
                   " 'value': 8192}}");
    /* what failed has left nothing behind */
    qtest_qmp_assert_success(qts, DEVICE("'policy': 'pol', 'memdev': 'good'"));
    expect_refusal(qts, "the backend 'good' is in use",
                   "{'execute': 'device_add', 'arguments': {"
                   "'driver': 'ondemand-mem-pci', 'addr': 'a.0',"
                   " 'policy': 'pol', 'memdev': 'good'}}");
    mem_end(m);
}

/* A file shorter than the property says */
static void test_short_file(void)
{
    Mem *m = mem_start(POLICY, "", NULL);
    g_autofree char *command = g_strdup_printf(
        DEVICE("'policy': 'pol', 'size': 1048576, 'file': '%s'"), m->file);

    expect_refusal(m->qts, "'size' is 1048576, but 'file' has only 262044 "
                   "bytes", command);
    mem_end(m);
}

/* A skip outside of a test would not be seen. */
static void test_absent(void)
{
    g_test_skip("no device ondemand-mem-pci in this build");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!qtest_has_device("ondemand-mem-pci")) {
        qtest_add_func("ondemand-mem/absent", test_absent);
        return g_test_run();
    }
    qtest_add_data_func("ondemand-mem/contents/cold",
                        POLICY ",threshold=1000000", test_contents);
    qtest_add_data_func("ondemand-mem/contents/mapped",
                        POLICY ",threshold=0", test_contents);
    qtest_add_data_func("ondemand-mem/contents/switch",
                        POLICY ",threshold=100", test_contents);
    qtest_add_data_func("ondemand-mem/contents/auto",
                        POLICY ",threshold=auto", test_contents);
    qtest_add_data_func("ondemand-mem/contents-memdev/cold",
                        POLICY ",threshold=1000000", test_contents_memdev);
    qtest_add_data_func("ondemand-mem/contents-memdev/switch",
                        POLICY ",threshold=100", test_contents_memdev);
    qtest_add_func("ondemand-mem/file-is-not-written",
                   test_file_is_not_written);
    qtest_add_func("ondemand-mem/end", test_end);
    qtest_add_func("ondemand-mem/threshold", test_threshold);
    qtest_add_func("ondemand-mem/once", test_once);
    qtest_add_func("ondemand-mem/at-once", test_at_once);
    qtest_add_func("ondemand-mem/hmp", test_hmp);
    qtest_add_func("ondemand-mem/force/dma", test_dma);
    qtest_add_data_func("ondemand-mem/force/dump", "file", test_dump);
    qtest_add_data_func("ondemand-mem/force/dump-memdev", "memdev", test_dump);
    qtest_add_func("ondemand-mem/limit/max-mapped", test_max_mapped);
    qtest_add_func("ondemand-mem/limit/rate", test_rate);
    qtest_add_func("ondemand-mem/limit/forced-rate", test_forced_rate);
    qtest_add_func("ondemand-mem/limit/sections", test_sections);
    qtest_add_func("ondemand-mem/reset", test_reset);
    qtest_add_data_func("ondemand-mem/unplug/file", "file", test_unplug);
    qtest_add_data_func("ondemand-mem/unplug/memdev", "memdev", test_unplug);
    qtest_add_func("ondemand-mem/error/truncated", test_truncated);
    qtest_add_func("ondemand-mem/error/stop", test_truncated_stop);
    qtest_add_func("ondemand-mem/error/memdev-truncated",
                   test_memdev_truncated);
    qtest_add_func("ondemand-mem/error/hugetlb", test_hugetlb_exhausted);
    qtest_add_data_func("ondemand-mem/migration/switch",
                        POLICY ",threshold=20", test_migration);
    qtest_add_data_func("ondemand-mem/migration/at-once",
                        POLICY ",threshold=0,max-mapped=128k",
                        test_migration);
    qtest_add_func("ondemand-mem/migration/cancelled",
                   test_migration_cancelled);
    qtest_add_func("ondemand-mem/migration/filling", test_migration_filling);
    qtest_add_func("ondemand-mem/migration/postcopy", test_postcopy);
    qtest_add_func("ondemand-mem/migration/refused", test_refused);
    qtest_add_func("ondemand-mem/bad-input", test_bad_input);
    qtest_add_func("ondemand-mem/short-file", test_short_file);
    return g_test_run();
}
