/*
 * Storage growth: the journal
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include <sys/file.h>
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "journal.h"

/* More than anybody writes in years; a larger file is no journal */
#define JOURNAL_MAX_BYTES (256 * 1024 * 1024)

/* More than one wants to lose, or to write again after an error */
#define UNSYNCED_BYTES (64 * 1024)

#define LOCK_TRIES 20
#define LOCK_WAIT_US 50000

struct SgJournal {
    int fd;
    off_t length;                 /* of what is valid */
    off_t synced;                 /* of this is known to be on the disk */
    bool dirty;                   /* not all of it may be on the disk */
    bool failed;                  /* ... because of an error */
    GString *unsynced;            /* the last part that may not be */
    GPtrArray *all;
    GHashTable *by_key;
};

static void growth_free(gpointer opaque)
{
    SgGrowth *g = opaque;

    g_free(g->key);
    g_free(g->vm);
    g_free(g->path);
    g_free(g->resource);
    g_free(g->denied);
    g_free(g);
}

static uint32_t crc_of(const char *text)
{
    uint32_t crc = ~0u;

    for (; *text; text++) {
        crc ^= (uint8_t)*text;
        for (int i = 0; i < 8; i++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        }
    }
    return ~crc;
}

static bool fail(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                "Journal: %s: %s", what, g_strerror(errno));
    return false;
}

static bool write_at(SgJournal *j, const char *text, size_t len, off_t at)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = pwrite(j->fd, text + done, len - done, at + done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            errno = n ? errno : ENOSPC;
            return false;
        }
        done += n;
    }
    return true;
}

static bool append(SgJournal *j, QDict *record, GError **error)
{
    g_autofree char *line = NULL;
    GString *json;
    size_t len;

    qdict_put_int(record, "synced", j->synced);
    json = qobject_to_json(QOBJECT(record));
    line = g_strdup_printf("%08x %s\n", crc_of(json->str), json->str);
    len = strlen(line);
    g_string_free(json, true);
    qobject_unref(record);
    if (!write_at(j, line, len, j->length)) {
        int saved = errno;

        /* if that fails, too, the next record overwrites it */
        if (ftruncate(j->fd, j->length) < 0) {
            g_warning("Journal: cannot cut off a torn record");
        }
        errno = saved;
        return fail(error, "a record cannot be written");
    }
    j->length += len;
    j->dirty = true;
    g_string_append_len(j->unsynced, line, len);
    return true;
}

/* One that was removed would be unknown after a restart */
static bool has_name(SgJournal *j, GError **error)
{
    struct stat st;

    if (fstat(j->fd, &st) < 0 || !st.st_nlink) {
        errno = ENOENT;
        return fail(error, "it was removed");
    }
    return true;
}

/*
 * The kernel tells an error once, and may drop what it could not write.  So
 * after one write it again, or the next fdatasync() would succeed for nothing.
 */
bool sg_journal_sync(SgJournal *j, GError **error)
{
    GString *text = j->unsynced;

    if (!j->dirty) {
        return true;
    }
    if (!has_name(j, error)) {
        return false;
    }
    if ((j->failed && !write_at(j, text->str, text->len,
                                j->length - text->len)) ||
        fdatasync(j->fd) < 0) {
        j->failed = true;
        return fail(error, "it cannot be written to the disk");
    }
    j->dirty = j->failed = false;
    j->synced = j->length;
    g_string_truncate(text, 0);
    return true;
}

bool sg_journal_must_sync(SgJournal *j)
{
    return j->failed || j->unsynced->len >= UNSYNCED_BYTES;
}

static SgGrowth *add(SgJournal *j, const char *key, const char *vm,
                     const char *path, const char *resource, uint64_t from,
                     uint64_t target, int64_t begin_us)
{
    SgGrowth *g = g_new0(SgGrowth, 1);

    g->key = g_strdup(key);
    g->vm = g_strdup(vm);
    g->path = g_strdup(path);
    g->resource = g_strdup(resource);
    g->from = from;
    g->target = target;
    g->begin_us = begin_us;
    g_ptr_array_add(j->all, g);
    g_hash_table_insert(j->by_key, g->key, g);
    return g;
}

/* Returns false if it is no record */
static bool take_record(SgJournal *j, QDict *d)
{
    const char *what = qdict_get_try_str(d, "what");
    const char *key = qdict_get_try_str(d, "key");
    int64_t at_us = qdict_get_try_int(d, "at-us", 0);
    SgGrowth *g = key ? sg_journal_find(j, key) : NULL;

    if (!what || !key) {
        return false;
    }
    if (g_str_equal(what, "begin") && !g) {
        const char *vm = qdict_get_try_str(d, "vm");
        const char *path = qdict_get_try_str(d, "path");
        const char *resource = qdict_get_try_str(d, "resource");
        int64_t from = qdict_get_try_int(d, "from", -1);
        int64_t target = qdict_get_try_int(d, "target", -1);

        if (!vm || !path || !resource || from < 0 || target < from) {
            return false;
        }
        add(j, key, vm, path, resource, from, target, at_us);
        return true;
    }
    if (g_str_equal(what, "end") && g && !g->ended) {
        g->end_us = at_us;
        g->provider_us = qdict_get_try_int(d, "provider-us", 0);
        g->ended = true;
        return true;
    }
    if (g_str_equal(what, "deny") && !g) {
        g = add(j, key, qdict_get_try_str(d, "vm") ?: "", "", "", 0, 0, at_us);
        g->end_us = at_us;
        g->ended = true;
        g->denied = g_strdup(qdict_get_try_str(d, "reason") ?: "");
        return true;
    }
    return false;
}

/* Returns what a line has, or NULL if it is damaged */
static QDict *parse_line(const char *line)
{
    unsigned int crc;
    const char *end;
    QObject *object;
    QDict *dict;

    if (qemu_strtoui(line, &end, 16, &crc) < 0 || end != line + 8 ||
        *end != ' ' || crc != crc_of(end + 1)) {
        return NULL;
    }
    object = qobject_from_json(end + 1, NULL);
    dict = qobject_to(QDict, object);
    if (!dict) {
        qobject_unref(object);
    }
    return dict;
}

static bool take_line(SgJournal *j, const char *line)
{
    QDict *dict = parse_line(line);
    bool ok = dict && take_record(j, dict);

    if (ok) {
        int64_t synced = qdict_get_try_int(dict, "synced", 0);

        j->synced = MAX(j->synced, MIN(synced, j->length));
    }
    qobject_unref(dict);
    return ok;
}

/*
 * @text is behind a record that cannot be read, or behind the last NUL of its
 * line.  When power fails, any part of what was not synced may be missing; but
 * a record that was written after a sync is proof of what was before that.  A
 * block that is lost reads as NULs, and its newlines with it: then the line
 * ends with the record that follows.
 */
static bool proves_damage(SgJournal *j, char *text, const char *end)
{
    char *next;

    for (; (next = memchr(text, '\n', end - text)); text = next + 1) {
        char *nul = memrchr(text, 0, next - text);
        QDict *dict;
        bool proof;

        *next = 0;
        dict = parse_line(nul ? nul + 1 : text);
        proof = dict && qdict_get_try_int(dict, "synced",
                                          INT64_MAX) > j->length;
        qobject_unref(dict);
        if (proof) {
            return true;
        }
    }
    return false;
}

/* What others can write says nothing about what was done */
static bool check_file(int fd, struct stat *st, GError **error)
{
    if (fstat(fd, st) < 0) {
        return fail(error, "fstat");
    }
    if (!S_ISREG(st->st_mode) || st->st_size > JOURNAL_MAX_BYTES) {
        errno = EFBIG;
        return fail(error, "it is no file, or too large");
    }
    if (st->st_uid != geteuid() || st->st_mode & (S_IWGRP | S_IWOTH) ||
        st->st_nlink != 1) {
        errno = EPERM;
        return fail(error, "it has another owner or name, or others may "
                    "write to it");
    }
    return true;
}

static bool load(SgJournal *j, GError **error)
{
    struct stat st;
    g_autofree char *text = NULL;
    char *line, *end, *nul;
    off_t done = 0;

    if (!check_file(j->fd, &st, error)) {
        return false;
    }
    text = g_malloc0(st.st_size + 1);
    while (done < st.st_size) {
        ssize_t n = pread(j->fd, text + done, st.st_size - done, done);

        if (n <= 0) {
            return fail(error, "it cannot be read");
        }
        done += n;
    }
    for (line = text; (end = memchr(line, '\n', text + done - line));
         line = end + 1) {
        bool ok;

        *end = 0;
        ok = strlen(line) == end - line && take_line(j, line);
        *end = '\n';
        if (!ok) {
            break;
        }
        j->length = end + 1 - text;
    }
    if (end) {
        nul = memrchr(line, 0, end - line);
        if (proves_damage(j, nul ? nul + 1 : end + 1, text + done)) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                        "Journal: the record at byte %jd is damaged",
                        (intmax_t)j->length);
            return false;
        }
    }
    if (ftruncate(j->fd, j->length) < 0) {
        return fail(error, "a torn record cannot be cut off");
    }
    g_string_append_len(j->unsynced, text + j->synced, j->length - j->synced);
    j->dirty = j->failed = st.st_size > 0;
    return true;
}

/*
 * What was read may be in the page cache only.  If the last process was told
 * that it cannot be written, then the kernel takes it for written, fdatasync()
 * succeeds, and it is gone with the page.  So write again what is not known to
 * have been synced.  The first error may be an old one, which nobody was told.
 */
static bool sync_loaded(SgJournal *j, GError **error)
{
    return sg_journal_sync(j, NULL) || sg_journal_sync(j, error);
}

static bool sync_directory(const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ret = fd < 0 ? -1 : fsync(fd);

    if (fd >= 0) {
        close(fd);
    }
    return ret < 0 ? fail(error, dir) : true;
}

/*
 * When the last process was killed, a child that was about to become a
 * provider's program may have the lock for a moment longer.
 */
static bool lock_file(int fd)
{
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
            return true;
        }
        if (errno != EWOULDBLOCK) {
            break;
        }
        g_usleep(LOCK_WAIT_US);
    }
    return false;
}

SgJournal *sg_journal_open(const char *path, GError **error)
{
    SgJournal *j = g_new0(SgJournal, 1);

    j->all = g_ptr_array_new_with_free_func(growth_free);
    j->by_key = g_hash_table_new(g_str_hash, g_str_equal);
    j->unsynced = g_string_new(NULL);
    /* O_NONBLOCK: or a FIFO would be waited for */
    j->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
                 0600);
    if (j->fd < 0) {
        fail(error, path);
    } else if (!lock_file(j->fd)) {
        fail(error, "it is in use");
    } else if (load(j, error) && sync_directory(path, error) &&
               sync_loaded(j, error)) {
        return j;
    }
    sg_journal_close(j);
    return NULL;
}

void sg_journal_close(SgJournal *j)
{
    if (j->fd >= 0) {
        close(j->fd);
    }
    g_string_free(j->unsynced, true);
    g_hash_table_unref(j->by_key);
    g_ptr_array_unref(j->all);
    g_free(j);
}

SgGrowth *sg_journal_find(SgJournal *j, const char *key)
{
    return g_hash_table_lookup(j->by_key, key);
}

GPtrArray *sg_journal_all(SgJournal *j)
{
    return j->all;
}

static QDict *record_new(const char *what, const char *key, int64_t at_us)
{
    QDict *d = qdict_new();

    qdict_put_str(d, "what", what);
    qdict_put_str(d, "key", key);
    qdict_put_int(d, "at-us", at_us);
    return d;
}

SgGrowth *sg_journal_begin(SgJournal *j, const char *key, const char *vm,
                           const char *path, const char *resource,
                           uint64_t from, uint64_t target, GError **error)
{
    int64_t now_us = g_get_real_time();
    QDict *d;

    if (!has_name(j, error)) {
        return NULL;
    }
    d = record_new("begin", key, now_us);
    qdict_put_str(d, "vm", vm);
    qdict_put_str(d, "path", path);
    qdict_put_str(d, "resource", resource);
    qdict_put_int(d, "from", from);
    qdict_put_int(d, "target", target);
    if (!append(j, d, error)) {
        return NULL;
    }
    return add(j, key, vm, path, resource, from, target, now_us);
}

bool sg_journal_end(SgJournal *j, SgGrowth *g, int64_t provider_us,
                    GError **error)
{
    QDict *d;

    g->end_us = g_get_real_time();
    g->provider_us = provider_us;
    g->ended = true;
    d = record_new("end", g->key, g->end_us);
    qdict_put_int(d, "provider-us", provider_us);
    return append(j, d, error);
}

SgGrowth *sg_journal_deny(SgJournal *j, const char *key, const char *vm,
                          const char *reason, GError **error)
{
    int64_t now_us = g_get_real_time();
    QDict *d = record_new("deny", key, now_us);
    SgGrowth *g;

    qdict_put_str(d, "vm", vm);
    qdict_put_str(d, "reason", reason);
    if (!append(j, d, error)) {
        return NULL;
    }
    g = add(j, key, vm, "", "", 0, 0, now_us);
    g->end_us = now_us;
    g->ended = true;
    g->denied = g_strdup(reason);
    return g;
}
