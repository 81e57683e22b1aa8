/*
 * Tests of the storage controller: its journal, its policies, what it does
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The provider is a number in shared memory.  A controller runs in a process
 * of its own, so that it can end at any moment; this one is its agent.
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "../../contrib/storage-growth/controller.h"
#include "../../contrib/storage-growth/policy.h"
#include "../../contrib/storage-growth/provider.h"

#define LIMIT (INT64_MAX / 4)     /* of sizes, see policy.c */
#define WAIT_MS 60000
#define GROWTHS 3
#define DISK_BYTES (64 * KiB)
#define MANY 400                  /* more than 64 KiB of the journal */
#define CONFIG(more) \
    "{\"policies\": [{\"chunk\": 1048576, \"align\": 512, " \
    "\"max\": 1073741824, " more "}]}"

static char *dir, *path;
static const char *config = CONFIG("\"provider\": \"file\"");

/* Shared with the controllers */
static struct Shared {
    int64_t size;                 /* of the only resource */
    int grown;                    /* so often it became larger */
    int asked;                    /* so often that was asked for */
    int die_before, die_after;    /* at which of these the process ends */
    int sync_errors;              /* so many are still to come */
    int syncs;
    bool too_early;               /* asked before that was on the disk */
} *shared;

/*
 * What is replaced: the clock, and waiting for the disk
 */

static int64_t clock_us;          /* 0: the real one */

gint64 g_get_real_time(void)
{
    struct timeval now;

    gettimeofday(&now, NULL);
    return clock_us ?: now.tv_sec * G_USEC_PER_SEC + now.tv_usec;
}

/*
 * The disk of the journal, for tests in which power fails.  As with ext4 and
 * XFS, what a sync could not write is not dirty any more, though whoever reads
 * the file still finds it.
 */
static struct Disk {
    bool on;
    char text[DISK_BYTES];
    size_t length;
    bool dirty[DISK_BYTES];       /* for the next sync to write */
    size_t written;               /* bytes, by all syncs */
} *disk;                          /* shared with the controllers, too */

static void disk_write(int fd)
{
    for (size_t i = 0; i < DISK_BYTES; i++) {
        if (disk->dirty[i]) {
            g_assert_cmpint(pread(fd, disk->text + i, 1, i), ==, 1);
            disk->length = MAX(disk->length, i + 1);
            disk->written++;
        }
    }
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t at)
{
    struct iovec iov = { (void *)buf, len };

    if (disk->on) {
        g_assert_cmpint(at + len, <=, DISK_BYTES);
        memset(disk->dirty + at, true, len);
    }
    return pwritev(fd, &iov, 1, at);
}

int fdatasync(int fd)
{
    bool fails = shared->sync_errors > 0;

    shared->syncs++;
    if (disk->on) {
        if (!fails) {
            disk_write(fd);
        }
        memset(disk->dirty, false, DISK_BYTES);
    }
    if (fails) {
        shared->sync_errors--;
        errno = EIO;
        return -1;
    }
    return syscall(SYS_fdatasync, fd);
}

/*
 * The provider
 */

typedef struct Job {
    SgProviderDone *done;
    void *opaque;
    uint64_t target;
} Job;

char *sg_provider_resource(const SgPolicy *policy, const char *name)
{
    return g_strdup_printf("test:%s", name);
}

static void grow_to(uint64_t target)
{
    shared->too_early |= shared->sync_errors > 0;
    shared->asked++;
    if (shared->asked == shared->die_before) {
        _exit(0);
    }
    if (target > shared->size) {
        shared->size = target;
        shared->grown++;
    }
    if (shared->asked == shared->die_after) {
        _exit(0);
    }
}

static gboolean provide(gpointer opaque)
{
    g_autofree Job *job = opaque;

    if (job->target) {
        grow_to(job->target);
    }
    job->done(shared->size, NULL, job->opaque);
    return G_SOURCE_REMOVE;
}

void sg_provider_grow(const SgPolicy *policy, const char *resource,
                      const char *vm, const char *key, uint64_t target,
                      SgProviderDone *done, void *opaque)
{
    Job *job = g_new0(Job, 1);

    *job = (Job) { done, opaque, target };
    g_idle_add(provide, job);
}

bool sg_provider_is_same(const SgPolicy *a, const SgPolicy *b)
{
    return true;
}

void sg_provider_size(const SgPolicy *policy, const char *resource,
                      const char *vm, SgProviderDone *done, void *opaque)
{
    sg_provider_grow(policy, resource, NULL, NULL, 0, done, opaque);
}

/*
 * Journals
 */

static uint32_t crc_of(const char *text)
{
    uint32_t crc = ~0u;

    for (; *text; text++) {
        crc ^= (uint8_t)*text;
        for (int i = 0; i < 8; i++) {
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        }
    }
    return ~crc;
}

static GString *read_journal(void)
{
    GString *all = g_string_new(NULL);
    char *text;
    gsize length;

    g_assert_true(g_file_get_contents(path, &text, &length, NULL));
    g_string_append_len(all, text, length);
    g_free(text);
    return all;
}

static void write_journal(const char *text, size_t length)
{
    int fd;

    unlink(path);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(write(fd, text, length), ==, length);
    close(fd);
}

/* An empty journal on a disk of its own */
static void new_disk(void)
{
    unlink(path);
    *disk = (struct Disk) { .on = true };
}

static void power_fails(void)
{
    write_journal(disk->text, disk->length);
    memset(disk->dirty, false, DISK_BYTES);
}

/* Records with these texts, to the last, NULL */
static void write_records(const char *first, ...)
{
    g_autoptr(GString) all = g_string_new(NULL);
    va_list ap;

    va_start(ap, first);
    for (const char *text = first; text; text = va_arg(ap, const char *)) {
        g_string_append_printf(all, "%08x %s\n", crc_of(text), text);
    }
    va_end(ap);
    write_journal(all->str, all->len);
}

static SgJournal *open_journal(void)
{
    g_autoptr(GError) error = NULL;
    SgJournal *j = sg_journal_open(path, &error);

    g_assert_no_error(error);
    g_assert_nonnull(j);
    return j;
}

static void open_fails(const char *why)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(sg_journal_open(path, &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, why));
}

static unsigned count_records(void)
{
    SgJournal *j = open_journal();
    unsigned n = sg_journal_all(j)->len;

    sg_journal_close(j);
    return n;
}

static SgGrowth *begin(SgJournal *j, unsigned n, GError **error)
{
    g_autofree char *key = g_strdup_printf("i/%u/1", n);

    return sg_journal_begin(j, key, "vm", "/disk", "test:/disk", n * MiB,
                            (n + 1) * MiB, error);
}

/* A journal with a number of growths */
static void fill_journal(unsigned count)
{
    SgJournal *j;

    unlink(path);
    j = open_journal();
    for (unsigned n = 1; n <= count; n++) {
        SgGrowth *g = begin(j, n, NULL);

        g_assert_nonnull(g);
        g_assert_true(sg_journal_sync(j, NULL));
        g_assert_true(sg_journal_end(j, g, 5, NULL));
    }
    sg_journal_close(j);
}

static void test_reopen(void)
{
    SgJournal *j;
    SgGrowth *g;

    fill_journal(2);
    j = open_journal();
    g_assert_nonnull(begin(j, 3, NULL));
    g_assert_nonnull(sg_journal_deny(j, "i/4/1", "vm", "no \"\n more", NULL));
    sg_journal_close(j);

    j = open_journal();
    g_assert_cmpint(sg_journal_all(j)->len, ==, 4);
    g = sg_journal_find(j, "i/2/1");
    g_assert_cmpstr(g->vm, ==, "vm");
    g_assert_cmpstr(g->path, ==, "/disk");
    g_assert_cmpstr(g->resource, ==, "test:/disk");
    g_assert_cmpuint(g->from, ==, 2 * MiB);
    g_assert_cmpuint(g->target, ==, 3 * MiB);
    g_assert_cmpint(g->provider_us, ==, 5);
    g_assert_true(g->ended);
    g_assert_null(g->denied);
    g = sg_journal_find(j, "i/3/1");
    g_assert_false(g->ended);
    g = sg_journal_find(j, "i/4/1");
    g_assert_true(g->ended);
    g_assert_cmpstr(g->denied, ==, "no \"\n more");
    g_assert_null(sg_journal_find(j, "i/5/1"));
    sg_journal_close(j);
}

/* What is whole is kept, wherever it was cut, and it can be gone on with */
static void test_torn(void)
{
    g_autoptr(GString) whole = NULL;

    fill_journal(2);
    whole = read_journal();
    for (size_t cut = 0; cut <= whole->len; cut++) {
        unsigned records = 0, begun;
        SgJournal *j;

        for (size_t i = 0; i < cut; i++) {
            records += whole->str[i] == '\n';
        }
        begun = (records + 1) / 2;
        write_journal(whole->str, cut);
        j = open_journal();
        g_assert_cmpint(sg_journal_all(j)->len, ==, begun);
        for (unsigned i = 0; i < begun; i++) {
            SgGrowth *g = g_ptr_array_index(sg_journal_all(j), i);

            g_assert_cmpint(g->ended, ==, records >= 2 * (i + 1));
        }
        g_assert_nonnull(begin(j, 9, NULL));
        sg_journal_close(j);
        g_assert_cmpint(count_records(), ==, begun + 1);
    }
}

/* What is behind a record says that it was whole: it is not passed over */
static void test_damaged(void)
{
    g_autoptr(GString) whole = NULL;
    size_t last;

    fill_journal(2);
    whole = read_journal();
    last = whole->len - 1;
    while (whole->str[last - 1] != '\n') {
        last--;
    }
    for (size_t at = 0; at < last - 1; at++) {
        whole->str[at] ^= 1;
        write_journal(whole->str, whole->len);
        open_fails("is damaged");
        whole->str[at] ^= 1;
    }
    for (size_t at = last; at < whole->len; at++) {
        whole->str[at] ^= 1;
        write_journal(whole->str, whole->len);
        g_assert_cmpint(count_records(), ==, 2);
        whole->str[at] ^= 1;
    }
    /* a hole, as of a block that was not written */
    memset(whole->str, 0, 50);
    write_journal(whole->str, whole->len);
    open_fails("is damaged");
}

/* A record that is synced, and two that are not */
static void write_synced_record(void)
{
    SgJournal *j;
    SgGrowth *g;

    unlink(path);
    j = open_journal();
    g = begin(j, 1, NULL);
    g_assert_true(sg_journal_sync(j, NULL));
    g_assert_true(sg_journal_end(j, g, 0, NULL));
    g_assert_nonnull(begin(j, 2, NULL));
    sg_journal_close(j);
}

/* Power fails: of what was not synced, any part may be missing */
static void test_power_fails(void)
{
    g_autoptr(GString) whole = NULL;
    size_t first, second;
    SgJournal *j;

    write_synced_record();
    whole = read_journal();
    first = strchr(whole->str, '\n') + 1 - whole->str;
    second = strchr(whole->str + first, '\n') + 1 - whole->str;

    for (size_t at = first; at < second; at++) {
        g_autofree char *text = g_memdup2(whole->str, whole->len);

        memset(text + at, 0, second - at);
        write_journal(text, whole->len);
        j = open_journal();
        g_assert_cmpint(sg_journal_all(j)->len, ==, 1);
        g_assert_false(sg_journal_find(j, "i/1/1")->ended);
        g_assert_nonnull(begin(j, 2, NULL));
        sg_journal_close(j);
        g_assert_cmpint(count_records(), ==, 2);
    }
    /* the first had been synced before the second was written */
    memset(whole->str, 0, first);
    write_journal(whole->str, whole->len);
    open_fails("is damaged");
}

/*
 * A block is lost, with the newline in it: what follows in the same line is
 * proof of what was synced nevertheless
 */
static void test_lost_block(void)
{
    g_autoptr(GString) whole = NULL;
    size_t first, second;

    write_synced_record();
    whole = read_journal();
    first = strchr(whole->str, '\n') + 1 - whole->str;
    second = strchr(whole->str + first, '\n') + 1 - whole->str;

    /* in the line of the record that is lost */
    for (size_t at = 0; at < first; at++) {
        g_autofree char *text = g_memdup2(whole->str, whole->len);

        memset(text + at, 0, first - at);
        write_journal(text, second);
        open_fails("the record at byte 0 is damaged");
    }
    /* in a line behind it */
    for (size_t at = first; at < second; at++) {
        g_autofree char *text = g_memdup2(whole->str, whole->len);

        text[0] ^= 1;
        memset(text + at, 0, second - at);
        write_journal(text, whole->len);
        open_fails("the record at byte 0 is damaged");
    }
}

#define BEGIN(key, from, target) \
    "{\"what\": \"begin\", \"key\": \"" key "\", \"at-us\": 5, " \
    "\"vm\": \"v\", \"path\": \"/p\", \"resource\": \"r\", " \
    "\"from\": " from ", \"target\": " target "}"
#define END(key, at) \
    "{\"what\": \"end\", \"key\": \"" key "\", \"at-us\": " at "}"
#define DENY(key) "{\"what\": \"deny\", \"key\": \"" key "\"}"

/* Records that are whole, and can have come from no controller */
static void test_impossible(void)
{
    static const char *const bad[] = {
        BEGIN("a", "1", "2"),                       /* twice */
        DENY("a"),
        END("b", "7"),                              /* never begun */
        BEGIN("b", "2", "1"),
        BEGIN("b", "-1", "2"),
        BEGIN("b", "1", "9223372036854775808"),
        BEGIN("b", "1", "1e3"),
        BEGIN("b", "1", "true"),
        "{\"what\": \"begin\", \"key\": \"b\"}",
        "{\"what\": \"begin\", \"key\": 5}",
        "{\"what\": \"grow\", \"key\": \"b\"}",
        "{\"key\": \"b\"}", "[]", "5", "", "{", "\"",
    };

    for (int i = 0; i < G_N_ELEMENTS(bad); i++) {
        write_records(BEGIN("a", "1", "2"), bad[i], END("a", "6"), NULL);
        open_fails("is damaged");
        write_records(BEGIN("a", "1", "2"), bad[i], NULL);
        g_assert_cmpint(count_records(), ==, 1);
    }
    /* it has ended once, or not */
    write_records(BEGIN("a", "1", "2"), END("a", "6"), END("a", "7"),
                  BEGIN("b", "1", "2"), NULL);
    open_fails("is damaged");
    /* the largest that there is */
    write_records(BEGIN("i/9223372036854775807/9223372036854775807", "0",
                        "9223372036854775807"), NULL);
    g_assert_cmpint(count_records(), ==, 1);
}

/* Time says nothing about order, nor about what has ended */
static void test_clock(void)
{
    static const int64_t ends[] = { 1, 0, -5, INT64_MIN, INT64_MAX };
    SgJournal *j;

    for (int i = 0; i < G_N_ELEMENTS(ends); i++) {
        unlink(path);
        j = open_journal();
        clock_us = 1000000;
        SgGrowth *g = begin(j, 1, NULL);

        clock_us = ends[i] ?: -1;
        g_assert_true(sg_journal_end(j, g, 0, NULL));
        clock_us = 0;
        sg_journal_close(j);
        j = open_journal();
        g = sg_journal_find(j, "i/1/1");
        g_assert_true(g->ended);
        g_assert_cmpint(g->begin_us, ==, 1000000);
        sg_journal_close(j);
    }
    write_records(BEGIN("a", "1", "2"), END("a", "0"), NULL);
    j = open_journal();
    g_assert_true(sg_journal_find(j, "a")->ended);
    sg_journal_close(j);
}

/* The disk is full after any number of bytes: all or nothing, and no damage */
static void test_full(void)
{
    struct rlimit old, limit;
    bool done = false;

    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &old), ==, 0);
    for (size_t room = 0; !done; room++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GString) before = NULL, after = NULL;
        SgJournal *j;

        fill_journal(1);
        before = read_journal();
        j = open_journal();
        limit = (struct rlimit) { before->len + room, old.rlim_max };
        setrlimit(RLIMIT_FSIZE, &limit);
        done = begin(j, 2, &error);
        setrlimit(RLIMIT_FSIZE, &old);
        if (!done) {
            g_assert_nonnull(error);
            g_assert_null(sg_journal_find(j, "i/2/1"));
            after = read_journal();
            g_assert_true(g_string_equal(before, after));
            g_assert_nonnull(begin(j, 2, NULL));
        }
        sg_journal_close(j);
        g_assert_cmpint(count_records(), ==, 2);
    }
}

/* The kernel tells an error once, and drops what it could not write */
static void test_sync_fails(void)
{
    g_autoptr(GString) before = NULL, after = NULL;
    g_autoptr(GError) error = NULL;
    SgJournal *j;
    int fd;

    fill_journal(1);
    j = open_journal();
    g_assert_true(sg_journal_sync(j, NULL));
    g_assert_nonnull(begin(j, 2, NULL));
    g_assert_nonnull(begin(j, 3, NULL));
    before = read_journal();
    shared->sync_errors = 1;
    g_assert_false(sg_journal_sync(j, &error));
    g_assert_nonnull(error);
    fd = open(path, O_WRONLY);
    g_assert_cmpint(pwrite(fd, "lost", 4, before->len - 20), ==, 4);
    close(fd);
    g_assert_true(sg_journal_sync(j, NULL));
    after = read_journal();
    g_assert_true(g_string_equal(before, after));

    /* what would be forgotten does not count as written */
    g_assert_nonnull(begin(j, 4, NULL));
    g_clear_error(&error);
    g_assert_cmpint(unlink(path), ==, 0);
    g_assert_false(sg_journal_sync(j, &error));
    g_assert_nonnull(error);
    g_clear_error(&error);
    g_assert_null(begin(j, 5, &error));
    g_assert_nonnull(error);
    g_assert_null(sg_journal_find(j, "i/5/1"));
    sg_journal_close(j);

    /* nothing to do, nothing done */
    fill_journal(1);
    j = open_journal();
    g_assert_true(sg_journal_sync(j, NULL));
    shared->syncs = 0;
    g_assert_true(sg_journal_sync(j, NULL));
    g_assert_cmpint(shared->syncs, ==, 0);
    sg_journal_close(j);
}

/* ... and a process that starts then is not told */
static void test_sync_had_failed(void)
{
    SgJournal *j;
    SgGrowth *g;

    new_disk();
    j = open_journal();
    g = begin(j, 1, NULL);
    g_assert_true(sg_journal_sync(j, NULL));
    g_assert_true(sg_journal_end(j, g, 0, NULL));
    g_assert_nonnull(begin(j, 2, NULL));
    shared->sync_errors = 1;
    g_assert_false(sg_journal_sync(j, NULL));
    sg_journal_close(j);

    /* nothing is trusted while it cannot be written */
    shared->sync_errors = 2;
    open_fails("it cannot be written to the disk");
    g_assert_cmpint(shared->sync_errors, ==, 0);
    /* an error from before is none */
    shared->sync_errors = 1;
    sg_journal_close(open_journal());
    power_fails();
    j = open_journal();
    g_assert_cmpint(sg_journal_all(j)->len, ==, 2);
    g_assert_true(sg_journal_find(j, "i/1/1")->ended);
    g_assert_nonnull(sg_journal_find(j, "i/2/1"));

    /* what had been synced by then is not written again */
    g_assert_nonnull(begin(j, 3, NULL));
    sg_journal_close(j);
    disk->written = 0;
    j = open_journal();
    g_assert_cmpint(disk->written, >, 0);
    g_assert_cmpint(disk->written, <, disk->length / 2);
    sg_journal_close(j);
    disk->on = false;
}

static void test_refused(void)
{
    g_autofree char *other = g_strdup_printf("%s/other", dir);
    SgJournal *j;

    fill_journal(1);
    j = open_journal();
    open_fails("in use");
    sg_journal_close(j);
    g_assert_cmpint(chmod(path, 0620), ==, 0);
    open_fails("others may write");
    g_assert_cmpint(chmod(path, 0602), ==, 0);
    open_fails("others may write");
    g_assert_cmpint(chmod(path, 0600), ==, 0);
    if (geteuid() == 0 && chown(path, 1, -1) == 0) {
        open_fails("another owner");
        g_assert_cmpint(chown(path, 0, -1), ==, 0);
    }
    g_assert_cmpint(link(path, other), ==, 0);
    open_fails("another owner or name");
    g_assert_cmpint(unlink(path), ==, 0);
    g_assert_cmpint(symlink(other, path), ==, 0);
    open_fails(g_strerror(ELOOP));
    unlink(path);
    unlink(other);
    g_assert_cmpint(mkfifo(path, 0600), ==, 0);
    open_fails("it is no file");
    unlink(path);
    g_assert_cmpint(mkdir(path, 0700), ==, 0);
    open_fails(g_strerror(EISDIR));
    rmdir(path);
}

/*
 * Policies
 */

static void policy_fails(const char *member, const char *value)
{
    g_autofree char *text = g_strdup_printf(
        "{\"policies\": [{\"provider\": \"file\", %s\"%s\": %s}]}",
        g_str_equal(member, "max") ? "" : "\"max\": 1000, ", member, value);
    g_autoptr(GError) error = NULL;
    SgLimits limits;

    g_assert_null(sg_policies_parse(text, &limits, &error));
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error->message, member));
}

static void policy_works(const char *member, const char *value)
{
    g_autofree char *text = g_strdup_printf(
        "{\"policies\": [{\"provider\": \"file\", %s\"%s\": %s}]}",
        g_str_equal(member, "max") ? "" : "\"max\": 1000, ", member, value);
    g_autoptr(GError) error = NULL;
    SgLimits limits;
    g_autoptr(GPtrArray) policies = sg_policies_parse(text, &limits, &error);

    g_assert_no_error(error);
    g_assert_nonnull(policies);
}

static void check_limit(const char *text, const char *why)
{
    g_autofree char *whole = g_strdup_printf("{\"policies\": []%s}", text);
    g_autoptr(GError) error = NULL;
    SgLimits limits = { };
    g_autoptr(GPtrArray) policies = sg_policies_parse(whole, &limits, &error);

    if (why) {
        g_assert_null(policies);
        g_assert_nonnull(strstr(error->message, why));
    } else {
        g_assert_no_error(error);
        g_assert_nonnull(policies);
        g_assert_cmpuint(limits.connections, ==, *text ? 7 : 1024);
        g_assert_cmpuint(limits.hello_ms, ==, *text ? 8 : 10000);
    }
}

static void test_connections(void)
{
    check_limit("", NULL);
    check_limit(", \"connections\": 7, \"hello-ms\": 8", NULL);
    check_limit(", \"connections\": 0", "'connections' must be a number");
    check_limit(", \"connections\": 100001", "from 1 to 100000");
    check_limit(", \"hello-ms\": 0", "'hello-ms' must be a number");
    check_limit(", \"hello-ms\": \"8\"", "from 1 to 3600000");
    check_limit(", \"hello\": 8", "no member 'hello'");
}

static void test_limits(void)
{
    static const struct {
        const char *member, *below, *least, *most, *above;
    } cases[] = {
        { "chunk", "0", "1", "2305843009213693951", "2305843009213693952" },
        { "percent", "-1", "0", "1000", "1001" },
        { "lead-ms", "-1", "0", "600000", "600001" },
        { "align", "511", "512", "1073741824", "1073741825" },
        { "max", "0", "1", "2305843009213693951", "2305843009213693952" },
        { "timeout-ms", "0", "1", "3600000", "3600001" },
        { "attempts", "0", "1", "1000000", "1000001" },
    };
    static const char *const odd[] = {
        "-1", "9223372036854775807", "9223372036854775808",
        "18446744073709551615", "18446744073709551616", "1e30", "1.5", "null",
        "true", "\"5\"", "[5]", "{}",
    };

    for (int i = 0; i < G_N_ELEMENTS(cases); i++) {
        policy_fails(cases[i].member, cases[i].below);
        policy_works(cases[i].member, cases[i].least);
        policy_works(cases[i].member, cases[i].most);
        policy_fails(cases[i].member, cases[i].above);
        for (int k = 0; k < G_N_ELEMENTS(odd); k++) {
            policy_fails(cases[i].member, odd[k]);
        }
    }
}

/* One of what is likely to be at a limit */
static uint64_t pick(uint64_t least, uint64_t most)
{
    uint64_t random = (uint64_t)g_test_rand_int() << 32 |
                      (uint32_t)g_test_rand_int();

    switch (g_test_rand_int_range(0, 6)) {
    case 0:
        return least;
    case 1:
        return most;
    case 2:
        return MIN(least + random % 3, most);
    case 3:
        return MAX(most - random % 3, least);
    case 4:                       /* of any order of magnitude */
        return MIN(MAX(random >> random % 64, least), most);
    default:
        return most - least == UINT64_MAX
                   ? random : least + random % (most - least + 1);
    }
}

/* The same in numbers that cannot overflow */
static void check_target(const SgPolicy *p, int64_t size, uint64_t needed,
                         uint64_t rate)
{
    uint64_t target = 0;
    const char *why = sg_policy_target(p, size, needed, rate, &target);
    unsigned __int128 add = MAX(p->chunk, needed + (__int128)128 * KiB);
    unsigned __int128 lead = (unsigned __int128)rate * p->lead_ms / 1000;
    __int128 wanted;

    if (size <= 0 || size > LIMIT || needed > LIMIT || size >= p->max) {
        g_assert_nonnull(why);
        return;
    }
    lead = MIN(lead, (unsigned __int128)MAX(p->chunk, needed) * 4);
    add = MAX(add, lead);
    add = MAX(add, (unsigned __int128)(size / 100) * p->percent);
    add = MIN(add, LIMIT);
    wanted = (size + (__int128)add + p->align - 1) / p->align * p->align;
    if (wanted > p->max) {
        wanted = p->max / p->align * p->align;
    }
    if (wanted <= size || wanted - size < needed) {
        g_assert_cmpstr(why, ==, "the maximum is reached");
        return;
    }
    g_assert_null(why);
    g_assert_cmpuint(target, ==, (uint64_t)wanted);
    g_assert_cmpuint(target, >, size);
    g_assert_cmpuint(target, <=, p->max);
    g_assert_cmpuint(target - size, >=, needed);
}

static void test_target(void)
{
    for (int i = 0; i < 200000; i++) {
        SgPolicy p = {
            .chunk = pick(1, LIMIT),
            .percent = pick(0, 1000),
            .lead_ms = pick(0, 600000),
            .align = i % 2 ? (uint64_t)512 << g_test_rand_int_range(0, 22)
                           : pick(512, 1 << 30),
            .max = pick(1, LIMIT),
        };

        check_target(&p, (int64_t)pick(0, UINT64_MAX), pick(0, UINT64_MAX),
                     pick(0, LIMIT / 1000000));
        check_target(&p, pick(1, MIN(p.max, LIMIT)), pick(0, p.max),
                     pick(0, LIMIT / 1000000));
        /* any rate: it must not do harm */
        uint64_t target, size = pick(1, LIMIT), needed = pick(0, LIMIT);

        if (!sg_policy_target(&p, size, needed, pick(0, UINT64_MAX),
                              &target)) {
            g_assert_cmpuint(target, >, size);
            g_assert_cmpuint(target, <=, p.max);
            g_assert_cmpuint(target - size, >=, needed);
        }
    }
}

/*
 * Controllers
 */

typedef struct Controller {
    pid_t pid;
    int fd;
    GString *in;
} Controller;

static void ignore_log(const char *domain, GLogLevelFlags level,
                       const char *message, gpointer opaque)
{
}

static G_NORETURN void be_controller(int fd)
{
    g_autoptr(GError) error = NULL;
    SgLimits limits;
    GPtrArray *policies = sg_policies_parse(config, &limits, &error);
    SgJournal *j = sg_journal_open(path, &error);
    GSocket *sock = g_socket_new_from_fd(fd, NULL);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    g_log_set_default_handler(ignore_log, NULL);
    if (policies && j && sock) {
        sg_controller_serve(
            sg_controller_new(policies, &limits, j),
            G_IO_STREAM(g_socket_connection_factory_create_connection(sock)));
        g_main_loop_run(g_main_loop_new(NULL, false));
    }
    fprintf(stderr, "%s\n", error ? error->message : "no socket");
    _exit(1);
}

static Controller start(void)
{
    Controller c = { .in = g_string_new(NULL) };
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    c.pid = fork();
    g_assert_cmpint(c.pid, >=, 0);
    if (!c.pid) {
        close(fds[1]);
        be_controller(fds[0]);
    }
    close(fds[0]);
    c.fd = fds[1];
    return c;
}

static void end(Controller *c)
{
    kill(c->pid, SIGKILL);
    g_assert_cmpint(waitpid(c->pid, NULL, 0), ==, c->pid);
    close(c->fd);
    g_string_free(c->in, true);
}

static void say(Controller *c, const char *text)
{
    size_t len = strlen(text);

    /* it may have ended */
    g_assert_cmpint(signal(SIGPIPE, SIG_IGN) == SIG_ERR, ==, 0);
    if (write(c->fd, text, len) != len) {
        g_assert_cmpint(errno, ==, EPIPE);
    }
}

/* The next line, or NULL when it has ended */
static QDict *hear(Controller *c)
{
    struct pollfd p = { .fd = c->fd, .events = POLLIN };
    g_autofree char *line = NULL;
    char *newline;
    char part[4096];

    while (!(newline = memchr(c->in->str, '\n', c->in->len))) {
        ssize_t n;

        g_assert_cmpint(poll(&p, 1, WAIT_MS), ==, 1);
        n = read(c->fd, part, sizeof(part));
        if (n <= 0) {
            return NULL;
        }
        g_string_append_len(c->in, part, n);
    }
    line = g_strndup(c->in->str, newline - c->in->str);
    g_string_erase(c->in, 0, newline + 1 - c->in->str);
    return qobject_to(QDict, qobject_from_json(line, NULL));
}

static char *request(const char *name, int64_t id, int64_t attempt)
{
    return g_strdup_printf("{\"type\": \"request\", \"vm\": \"vm\", "
                           "\"instance\": \"i\", \"path\": \"%s\", "
                           "\"id\": %" PRId64 ", \"attempt\": %" PRId64 ", "
                           "\"needed\": 512}\n", name, id, attempt);
}

/* Ask; returns whether there was an answer "grown" */
static bool ask(Controller *c, int64_t id)
{
    g_autofree char *text = request("/disk", id, 1);
    QDict *d;
    bool grown;

    say(c, text);
    d = hear(c);
    if (!d) {
        return false;
    }
    g_assert_cmpstr(qdict_get_str(d, "type"), ==, "answer");
    g_assert_cmpint(qdict_get_int(d, "id"), ==, id);
    grown = g_str_equal(qdict_get_str(d, "result"), "grown");
    qobject_unref(d);
    return grown;
}

/* Wait until this many records are in the journal; return all of it */
static GString *wait_records(unsigned count)
{
    gint64 limit = g_get_monotonic_time() + WAIT_MS * 1000LL;

    for (;;) {
        GString *all = read_journal();
        unsigned n = 0;

        for (size_t i = 0; i < all->len; i++) {
            n += all->str[i] == '\n';
        }
        if (n >= count) {
            g_assert_cmpint(n, ==, count);
            return all;
        }
        g_string_free(all, true);
        g_assert_cmpint(g_get_monotonic_time(), <, limit);
        g_usleep(1000);
    }
}

static void reset_storage(int64_t size)
{
    *shared = (struct Shared) { .size = size };
}

/* Each growth is there once, has ended, and leads where the next begins */
static void end_and_check(Controller *c)
{
    g_autoptr(GString) all = wait_records(2 * GROWTHS);
    GPtrArray *growths;
    uint64_t size = MiB;
    SgJournal *j;

    end(c);
    j = open_journal();
    growths = sg_journal_all(j);
    g_assert_cmpint(growths->len, ==, GROWTHS);
    for (unsigned i = 0; i < GROWTHS; i++) {
        SgGrowth *g = g_ptr_array_index(growths, i);

        g_assert_true(g->ended);
        g_assert_cmpuint(g->from, ==, size);
        g_assert_cmpuint(g->target, ==, size + MiB);
        size = g->target;
    }
    g_assert_cmpuint(shared->size, ==, size);
    sg_journal_close(j);
}

/* What an agent does: all is asked for again, whatever was answered */
static void ask_all(Controller *c)
{
    for (int id = 1; id <= GROWTHS; id++) {
        g_assert_true(ask(c, id));
    }
}

/*
 * It ends with any number of records on the disk, and a part of the next one;
 * what had begun then was done, or was not.
 */
static void test_restart(void)
{
    g_autoptr(GString) whole = NULL;
    Controller c;

    unlink(path);
    reset_storage(MiB);
    c = start();
    ask_all(&c);
    end_and_check(&c);
    g_assert_cmpint(shared->grown, ==, GROWTHS);
    whole = read_journal();

    for (size_t cut = 0, records = 0; cut <= whole->len; cut++) {
        bool boundary = !cut || whole->str[cut - 1] == '\n';
        unsigned begun, ended;

        records += cut && boundary;
        begun = (records + 1) / 2;
        ended = records / 2;
        /* at records, in their checksums, at the end of their text */
        if (!boundary && whole->str[cut] != '\n' &&
            whole->str[cut - 1] != ' ') {
            continue;
        }
        for (unsigned done = ended; done <= begun; done++) {
            write_journal(whole->str, cut);
            reset_storage(MiB + done * MiB);
            c = start();
            ask_all(&c);
            end_and_check(&c);
            g_assert_cmpint(shared->grown, ==, GROWTHS - done);
        }
    }
}

/* It ends right before, or right after, storage has grown */
static void test_dies(void)
{
    for (int at = 1; at <= GROWTHS; at++) {
        for (int after = 0; after < 2; after++) {
            Controller c;

            unlink(path);
            reset_storage(MiB);
            *(after ? &shared->die_after : &shared->die_before) = at;
            c = start();
            for (int id = 1; id < at; id++) {
                g_assert_true(ask(&c, id));
            }
            g_assert_false(ask(&c, at));
            end(&c);
            g_assert_cmpint(shared->asked, ==, at);
            c = start();
            ask_all(&c);
            end_and_check(&c);
            g_assert_cmpint(shared->grown, ==, GROWTHS);
        }
    }
}

/* Nothing grows that is not on the disk, and it goes on by itself */
static void test_no_sync(void)
{
    Controller c;

    unlink(path);
    reset_storage(MiB);
    shared->sync_errors = 2;
    c = start();
    ask_all(&c);
    end_and_check(&c);
    g_assert_false(shared->too_early);
    g_assert_cmpint(shared->grown, ==, GROWTHS);
}

/*
 * The disk fails, the controller is killed, and the disk works again: what was
 * not written must not be taken for written, or power that fails makes storage
 * grow twice
 */
static void test_no_sync_restart(void)
{
    gint64 limit = g_get_monotonic_time() + WAIT_MS * 1000LL;
    g_autofree char *text = request("/disk", 1, 1);
    Controller c;

    new_disk();
    reset_storage(MiB);
    shared->sync_errors = INT_MAX;
    c = start();
    say(&c, text);
    while (qatomic_read(&shared->sync_errors) == INT_MAX) {
        g_assert_cmpint(g_get_monotonic_time(), <, limit);
        g_usleep(1000);
    }
    end(&c);
    g_assert_cmpint(shared->asked, ==, 0);
    shared->sync_errors = 0;
    c = start();
    g_assert_true(ask(&c, 1));
    end(&c);
    g_assert_cmpint(shared->grown, ==, 1);
    power_fails();
    c = start();
    g_assert_true(ask(&c, 1));
    end(&c);
    g_assert_cmpint(shared->grown, ==, 1);
    disk->on = false;
}

/*
 * What is in the journal may be lost when its disk fails: until it works again
 * nothing grows, not even what need not be on the disk
 */
static void test_no_sync_volatile(void)
{
    const char *old = config;
    g_autofree char *durable = request("/durable", 1, 1);
    gint64 limit = g_get_monotonic_time() + WAIT_MS * 1000LL;
    Controller c;
    QDict *d;

    unlink(path);
    reset_storage(MiB);
    shared->sync_errors = 3;
    config = "{\"policies\": ["
             "{\"path\": \"/durable\", \"provider\": \"file\", "
             "\"chunk\": 1048576, \"max\": 1073741824}, "
             "{\"provider\": \"tmpfs\", "
             "\"chunk\": 1048576, \"max\": 1073741824}]}";
    c = start();
    say(&c, durable);
    while (qatomic_read(&shared->sync_errors) == 3) {
        g_assert_cmpint(g_get_monotonic_time(), <, limit);
        g_usleep(1000);
    }
    say(&c, "{\"type\": \"list\"}\n");
    d = hear(&c);                 /* the error has been seen */
    qobject_unref(d);
    for (int id = 2; id <= 3; id++) {
        g_autofree char *text = request("/volatile", id, 1);

        say(&c, text);
    }
    for (int i = 0; i < 3; i++) {
        d = hear(&c);
        g_assert_nonnull(d);
        g_assert_cmpstr(qdict_get_str(d, "result"), ==, "grown");
        qobject_unref(d);
    }
    end(&c);
    g_assert_false(shared->too_early);
    g_assert_cmpint(shared->sync_errors, ==, 0);
    /* both disks are the same number, see above; the third finds it grown */
    g_assert_cmpint(shared->grown, >=, 1);
    config = old;
}

/* What goes with the power need not be on the disk, but from time to time */
static void test_volatile(void)
{
    static const struct {
        const char *config;
        int least, most;
    } cases[] = {
        { CONFIG("\"provider\": \"tmpfs\""), 1, 4 },
        { CONFIG("\"provider\": \"tmpfs\", \"resource\": \"/other\""),
          MANY, MANY },
        /* its file keeps its size */
        { CONFIG("\"provider\": \"loop\""), MANY, MANY },
        { CONFIG("\"provider\": \"lvm\""), MANY, MANY },
        { CONFIG("\"provider\": \"file\""), MANY, MANY },
        { CONFIG("\"provider\": \"exec\", \"command\": [\"/p\"]"), MANY, MANY },
    };
    const char *old = config;

    for (int i = 0; i < G_N_ELEMENTS(cases); i++) {
        Controller c;

        unlink(path);
        reset_storage(MiB);
        config = cases[i].config;
        c = start();
        for (int id = 1; id <= MANY; id++) {
            g_assert_true(ask(&c, id));
        }
        end(&c);
        g_assert_cmpint(shared->grown, ==, MANY);
        g_assert_cmpint(shared->syncs, >=, cases[i].least);
        g_assert_cmpint(shared->syncs, <=, cases[i].most);
        /* killed, it has forgotten nothing */
        c = start();
        g_assert_true(ask(&c, MANY));
        end(&c);
        g_assert_cmpint(shared->grown, ==, MANY);
    }
    config = old;
}

/* What begins at the same time waits for the disk once */
static void test_one_sync(void)
{
    g_autoptr(GString) all = g_string_new(NULL);
    Controller c;

    unlink(path);
    reset_storage(MiB);
    for (int id = 1; id <= 10; id++) {
        g_autofree char *name = g_strdup_printf("/disk%d", id);
        g_autofree char *text = request(name, id, 1);

        g_string_append(all, text);
    }
    c = start();
    say(&c, all->str);
    for (int i = 0; i < 10; i++) {
        QDict *d = hear(&c);

        g_assert_cmpstr(qdict_get_str(d, "result"), ==, "grown");
        qobject_unref(d);
    }
    end(&c);
    g_assert_cmpint(shared->syncs, <, 5);
}

static void denied(Controller *c, const char *name, int64_t id,
                   int64_t attempt, const char *why)
{
    g_autofree char *text = request(name, id, attempt);
    QDict *d;

    say(c, text);
    d = hear(c);
    g_assert_cmpstr(qdict_get_str(d, "result"), ==, "denied");
    g_assert_nonnull(strstr(qdict_get_str(d, "reason"), why));
    qobject_unref(d);
}

/* Numbers at their limits are numbers; paths that lead elsewhere are refused */
static void test_odd_requests(void)
{
    static const char *const paths[] = {
        "/a/../b", "/a/..", "/../a", "/a/./b", "/a//b", "/", "a", "", "../a",
        "/a/",
    };
    g_autofree char *last = request("/disk", 1, INT64_MAX);
    Controller c;
    QDict *d;

    unlink(path);
    reset_storage(MiB);
    c = start();
    g_assert_true(ask(&c, INT64_MAX));
    g_assert_true(ask(&c, INT64_MAX - 1));
    g_assert_true(ask(&c, INT64_MAX));
    say(&c, last);
    d = hear(&c);
    g_assert_cmpstr(qdict_get_str(d, "result"), ==, "grown");
    qobject_unref(d);
    for (int i = 0; i < G_N_ELEMENTS(paths); i++) {
        denied(&c, paths[i], 10 + i, 1, "the path must be absolute");
    }
    g_assert_true(ask(&c, INT64_MAX));
    end(&c);
    g_assert_cmpint(shared->grown, ==, 3);

    /* and after a restart as well */
    c = start();
    g_assert_true(ask(&c, INT64_MAX));
    g_assert_true(ask(&c, INT64_MAX - 1));
    end(&c);
    g_assert_cmpint(shared->grown, ==, 3);
}

static void *share(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    g_assert_true(p != MAP_FAILED);
    return p;
}

int main(int argc, char **argv)
{
    int ret;

    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    shared = share(sizeof(*shared));
    disk = share(sizeof(*disk));
    g_test_init(&argc, &argv, NULL);
    /* in memory, if there is such a place: it is synced very often */
    dir = g_mkdtemp(g_strdup("/dev/shm/hotsg-XXXXXX"))
        ?: g_dir_make_tmp("hotsg-XXXXXX", NULL);
    g_assert_nonnull(dir);
    path = g_build_filename(dir, "journal", NULL);
    g_test_add_func("/storage-growth/journal/reopen", test_reopen);
    g_test_add_func("/storage-growth/journal/torn", test_torn);
    g_test_add_func("/storage-growth/journal/damaged", test_damaged);
    g_test_add_func("/storage-growth/journal/power-fails", test_power_fails);
    g_test_add_func("/storage-growth/journal/lost-block", test_lost_block);
    g_test_add_func("/storage-growth/journal/impossible", test_impossible);
    g_test_add_func("/storage-growth/journal/clock", test_clock);
    g_test_add_func("/storage-growth/journal/full", test_full);
    g_test_add_func("/storage-growth/journal/sync-fails", test_sync_fails);
    g_test_add_func("/storage-growth/journal/sync-had-failed",
                    test_sync_had_failed);
    g_test_add_func("/storage-growth/journal/refused", test_refused);
    g_test_add_func("/storage-growth/policy/limits", test_limits);
    g_test_add_func("/storage-growth/policy/connections", test_connections);
    g_test_add_func("/storage-growth/policy/target", test_target);
    g_test_add_func("/storage-growth/controller/restart", test_restart);
    g_test_add_func("/storage-growth/controller/dies", test_dies);
    g_test_add_func("/storage-growth/controller/no-sync", test_no_sync);
    g_test_add_func("/storage-growth/controller/no-sync-restart",
                    test_no_sync_restart);
    g_test_add_func("/storage-growth/controller/no-sync-volatile",
                    test_no_sync_volatile);
    g_test_add_func("/storage-growth/controller/one-sync", test_one_sync);
    g_test_add_func("/storage-growth/controller/volatile", test_volatile);
    g_test_add_func("/storage-growth/controller/odd-requests",
                    test_odd_requests);
    ret = g_test_run();
    unlink(path);
    rmdir(dir);
    return ret;
}
