/*
 * Storage growth: what may be grown, by how much, and how
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include "qapi/error.h"
#include "qemu/host-utils.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "policy.h"

#define SIZE_LIMIT (INT64_MAX / 4)
#define CONFIG_MAX_BYTES (1024 * 1024)

static const char *const provider_names[] = {
    "tmpfs", "file", "loop", "lvm", "rbd", "exec"
};

G_STATIC_ASSERT(G_N_ELEMENTS(provider_names) == SG_PROVIDER__MAX);

const char *sg_provider_name(SgProviderType type)
{
    return provider_names[type];
}

/* Numbers; what is not given has the default */
static const struct NumberMember {
    const char *name;
    size_t offset;
    bool is_32;
    uint64_t min, max, def;
} numbers[] = {
    { "chunk", offsetof(SgPolicy, chunk), false, 1, SIZE_LIMIT, 1 << 30 },
    { "percent", offsetof(SgPolicy, percent), false, 0, 1000, 0 },
    { "lead-ms", offsetof(SgPolicy, lead_ms), false, 0, 600000, 0 },
    { "align", offsetof(SgPolicy, align), false, 512, 1 << 30, 1 << 20 },
    { "max", offsetof(SgPolicy, max), false, 1, SIZE_LIMIT, 0 },
    { "timeout-ms", offsetof(SgPolicy, timeout_ms), true, 1, 3600000, 30000 },
    { "attempts", offsetof(SgPolicy, attempts), true, 1, 1000000, 5 },
};

static const struct NumberMember limit_numbers[] = {
    { "connections", offsetof(SgLimits, connections), true, 1, 100000, 1024 },
    { "hello-ms", offsetof(SgLimits, hello_ms), true, 1, 3600000, 10000 },
};

static const char *const other_members[] = {
    "vm", "path", "provider", "resource", "command"
};

static void policy_free(gpointer opaque)
{
    SgPolicy *p = opaque;

    g_free(p->vm);
    g_free(p->path);
    g_free(p->resource);
    g_strfreev(p->command);
    g_free(p);
}

G_GNUC_PRINTF(2, 3)
static bool bad(GError **error, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, format);
    text = g_strdup_vprintf(format, ap);
    va_end(ap);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                "Configuration: %s", text);
    return false;
}

/* Into a member of @p, a SgPolicy or SgLimits */
static bool take_number(void *p, QDict *d, const struct NumberMember *m,
                        GError **error)
{
    QObject *object = qdict_get(d, m->name);
    QNum *num = qobject_to(QNum, object);
    int64_t value = m->def;

    if (object && (!num || !qnum_get_try_int(num, &value) || value < 0 ||
                   value < m->min || value > m->max)) {
        return bad(error, "'%s' must be a number from %" PRIu64 " to %" PRIu64,
                   m->name, m->min, m->max);
    }
    if (!object && !m->def && m->min) {
        return bad(error, "'%s' is missing", m->name);
    }
    if (m->is_32) {
        *(uint32_t *)((char *)p + m->offset) = value;
    } else {
        *(uint64_t *)((char *)p + m->offset) = value;
    }
    return true;
}

static bool take_string(QDict *d, const char *name, const char *def,
                        char **value, GError **error)
{
    const char *text = qdict_get_try_str(d, name);

    if (!text && qdict_haskey(d, name)) {
        return bad(error, "'%s' must be a string", name);
    }
    *value = g_strdup(text ?: def);
    return true;
}

static bool take_command(SgPolicy *p, QDict *d, GError **error)
{
    QList *list = qobject_to(QList, qdict_get(d, "command"));
    g_autoptr(GPtrArray) words = g_ptr_array_new_with_free_func(g_free);
    const QListEntry *entry;

    if (!list || qlist_empty(list)) {
        return bad(error, "'command' must be a list of strings");
    }
    QLIST_FOREACH_ENTRY(list, entry) {
        QString *word = qobject_to(QString, qlist_entry_obj(entry));

        if (!word) {
            return bad(error, "'command' must be a list of strings");
        }
        g_ptr_array_add(words, g_strdup(qstring_get_str(word)));
    }
    if (!g_path_is_absolute(g_ptr_array_index(words, 0))) {
        return bad(error, "'command' is '%s', but must be an absolute path",
                   (char *)g_ptr_array_index(words, 0));
    }
    g_ptr_array_add(words, NULL);
    p->command = (char **)g_ptr_array_free(g_steal_pointer(&words), false);
    return true;
}

static bool check_members(QDict *d, GError **error)
{
    for (const QDictEntry *e = qdict_first(d); e; e = qdict_next(d, e)) {
        const char *name = qdict_entry_key(e);
        bool known = false;

        for (int i = 0; i < G_N_ELEMENTS(numbers); i++) {
            known |= g_str_equal(name, numbers[i].name);
        }
        for (int i = 0; i < G_N_ELEMENTS(other_members); i++) {
            known |= g_str_equal(name, other_members[i]);
        }
        if (!known) {
            return bad(error, "a policy has no member '%s'", name);
        }
    }
    return true;
}

static bool take_policy(SgPolicy *p, QDict *d, GError **error)
{
    const char *provider = qdict_get_try_str(d, "provider");

    if (!check_members(d, error) ||
        !take_string(d, "vm", "*", &p->vm, error) ||
        !take_string(d, "path", "*", &p->path, error) ||
        !take_string(d, "resource", NULL, &p->resource, error)) {
        return false;
    }
    for (int i = 0; i < G_N_ELEMENTS(numbers); i++) {
        if (!take_number(p, d, &numbers[i], error)) {
            return false;
        }
    }
    p->provider = SG_PROVIDER__MAX;
    for (int i = 0; provider && i < SG_PROVIDER__MAX; i++) {
        if (g_str_equal(provider, provider_names[i])) {
            p->provider = i;
        }
    }
    if (p->provider == SG_PROVIDER__MAX) {
        return bad(error, "'provider' is '%s', but must be tmpfs, file, "
                   "loop, lvm, rbd or exec", provider ?: "(nothing)");
    }
    if (p->provider == SG_PROVIDER_RBD && !p->resource) {
        return bad(error, "'resource' is missing: POOL/IMAGE");
    }
    return p->provider != SG_PROVIDER_EXEC || take_command(p, d, error);
}

static bool take_limits(SgLimits *limits, QDict *d, GError **error)
{
    for (int i = 0; i < G_N_ELEMENTS(limit_numbers); i++) {
        if (!take_number(limits, d, &limit_numbers[i], error)) {
            return false;
        }
    }
    for (const QDictEntry *e = qdict_first(d); e; e = qdict_next(d, e)) {
        const char *name = qdict_entry_key(e);
        bool known = g_str_equal(name, "policies");

        for (int i = 0; i < G_N_ELEMENTS(limit_numbers); i++) {
            known |= g_str_equal(name, limit_numbers[i].name);
        }
        if (!known) {
            return bad(error, "it has no member '%s'", name);
        }
    }
    return true;
}

GPtrArray *sg_policies_parse(const char *text, SgLimits *limits,
                             GError **error)
{
    g_autoptr(GPtrArray) policies = g_ptr_array_new_with_free_func(policy_free);
    Error *err = NULL;
    QObject *object = qobject_from_json(text, &err);
    QDict *config = qobject_to(QDict, object);
    QList *list = config ? qobject_to(QList, qdict_get(config, "policies"))
                         : NULL;
    const QListEntry *entry;
    bool ok = list;

    if (!ok) {
        bad(error, "%s", err ? error_get_pretty(err)
                             : "it must be {\"policies\": [...]}");
    } else {
        ok = take_limits(limits, config, error);
    }
    if (ok) {
        QLIST_FOREACH_ENTRY(list, entry) {
            QDict *d = qobject_to(QDict, qlist_entry_obj(entry));
            SgPolicy *p = g_new0(SgPolicy, 1);

            g_ptr_array_add(policies, p);
            ok = d ? take_policy(p, d, error)
                   : bad(error, "a policy must be an object");
            if (!ok) {
                break;
            }
        }
    }
    error_free(err);
    qobject_unref(object);
    return ok ? g_steal_pointer(&policies) : NULL;
}

/* It names programs that are run: nobody else may say which */
static bool check_file(int fd, const char *path, GError **error)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        st.st_size > CONFIG_MAX_BYTES) {
        return bad(error, "%s is no file, or larger than %d bytes", path,
                   CONFIG_MAX_BYTES);
    }
    if ((st.st_uid && st.st_uid != geteuid()) ||
        st.st_mode & (S_IWGRP | S_IWOTH)) {
        return bad(error, "%s must belong to root or to this user, and nobody "
                   "else may be able to write to it", path);
    }
    return true;
}

static char *read_file(const char *path, GError **error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    g_autofree char *text = g_malloc0(CONFIG_MAX_BYTES + 1);
    ssize_t n, length = 0;

    if (fd < 0) {
        bad(error, "%s: %s", path, g_strerror(errno));
        return NULL;
    }
    if (!check_file(fd, path, error)) {
        close(fd);
        return NULL;
    }
    while ((n = read(fd, text + length, CONFIG_MAX_BYTES - length)) > 0) {
        length += n;
    }
    close(fd);
    if (n < 0 || strlen(text) != length) {
        bad(error, "%s is no text, or cannot be read", path);
        return NULL;
    }
    return g_steal_pointer(&text);
}

GPtrArray *sg_policies_load(const char *path, SgLimits *limits,
                            GError **error)
{
    g_autofree char *text = read_file(path, error);

    return text ? sg_policies_parse(text, limits, error) : NULL;
}

bool sg_policy_matches(const SgPolicy *p, const char *vm, const char *path)
{
    return g_pattern_match_simple(p->vm, vm) &&
           g_pattern_match_simple(p->path, path);
}

bool sg_policy_is_volatile(const SgPolicy *p)
{
    return !p->resource && p->provider == SG_PROVIDER_TMPFS;
}

const SgPolicy *sg_policy_find(GPtrArray *policies, const char *vm,
                               const char *path)
{
    for (unsigned i = 0; i < policies->len; i++) {
        const SgPolicy *p = g_ptr_array_index(policies, i);

        if (sg_policy_matches(p, vm, path)) {
            return p;
        }
    }
    return NULL;
}

const char *sg_policy_target(const SgPolicy *p, int64_t size, uint64_t needed,
                             uint64_t rate, uint64_t *target)
{
    uint64_t add, lead, want;

    /* never grow what was not measured */
    if (size <= 0 || size > SIZE_LIMIT) {
        return "the size is not plausible";
    }
    if (needed > SIZE_LIMIT) {
        return "the need is not plausible";
    }
    if (size >= p->max) {
        return "the maximum is reached";
    }
    /* a rate is a guess by the asker: it must not take all there is at once */
    lead = rate > SIZE_LIMIT / 1000000 ? SIZE_LIMIT
                                       : rate * p->lead_ms / 1000;
    lead = MIN(lead, MAX(p->chunk, needed) * 4);
    add = (uint64_t)size / 100;
    add = add > SIZE_LIMIT / MAX(p->percent, 1) ? SIZE_LIMIT
                                                : add * p->percent;
    add = MAX(p->chunk, add);
    add = MAX(add, lead);
    /* what a file system needs beside the data, see SPACE_SLACK_BYTES */
    add = MAX(add, needed + 128 * 1024);
    add = MIN(add, SIZE_LIMIT);
    want = QEMU_ALIGN_UP(size + add, p->align);
    if (want > p->max) {
        want = p->max / p->align * p->align;
        if (want <= size || want - size < needed) {
            return "the maximum is reached";
        }
    }
    *target = want;
    return NULL;
}
