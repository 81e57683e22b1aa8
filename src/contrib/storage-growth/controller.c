/*
 * Storage growth: the controller
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A request has a key: instance, id and attempt.  What was done for a key is
 * in the journal, so a request that comes again, because an agent or this
 * process was killed, is answered and not served twice.
 *
 * One growth at a time per resource.  Many may wait for the same one: the disks
 * of a full pool, or a disk that two machines have seen, as when one of them is
 * migrated.  Who had asked before a growth ended, and finds what it needs in
 * that, gets no other one.
 *
 * A provider that fails, hangs or lies is asked again for the same size, with a
 * growing pause; never for more.  While that lasts the request has no answer:
 * the virtual machine waits, and qemu-storage-ctl list shows why.
 */

#include "qemu/osdep.h"
#include "conn.h"
#include "controller.h"
#include "provider.h"
#include "qobject/qlist.h"

#define RETRY_MIN_MS 200
#define RETRY_MAX_MS 30000
#define TASKS_MAX 100000
#define TASKS_OF_VM_MAX 256       /* a guard of a machine has one */
#define WORD_MAX_BYTES 4096
#define LIST_MAX 10000
#define AGE_MAX_MS (24 * 60 * 60 * 1000)
#define TASK_BY_HAND INT64_MAX    /* whatever others ask for */
#define TELL_US (10 * G_USEC_PER_SEC)
#define LIST_PART 16              /* so many fit into a line in any case */

/*
 * Answers to a machine that are written down although nothing grows: one that
 * asks all the time must not fill the journal.  To decide again after a restart
 * does no harm.
 */
#define NOTES_MAX 1000

typedef struct Task {
    SgController *c;
    char *key;
    char *vm;
    char *path;
    char *resource;
    const SgPolicy *policy;       /* NULL: the configuration has none (more) */
    char *instance;
    int64_t id, attempt;
    uint64_t needed, rate;
    GPtrArray *askers;            /* SgConns that get the answer */
    SgGrowth *growth;             /* when it has begun */
    bool durable;                 /* ... and that is on the disk */
    bool paused;
    int64_t asked_us;             /* when the provider was asked */
    int64_t provider_us;          /* how long it took until now */
    unsigned tries;
    unsigned timer;
    char *error;                  /* why it is not done yet */
    int64_t since_us;
    int64_t raised_us;            /* monotonic; TASK_BY_HAND */
} Task;

/* A growth that has ended */
typedef struct Grown {
    int64_t ended_us;             /* monotonic */
    uint64_t from, target;
    uint64_t spare;               /* what nobody asked for */
    char *path;                   /* of who did */
    const SgPolicy *policy;
} Grown;

/* An agent or a qemu-storage-ctl, or somebody who has not said yet */
typedef struct Peer {
    SgController *c;
    SgConn *conn;
    unsigned timer;               /* runs as long as it is silent */
    GList silent;                 /* ... and in the queue of those */
} Peer;

struct SgController {
    GPtrArray *policies;
    SgLimits limits;
    SgJournal *journal;
    GHashTable *tasks;            /* key: Task */
    GHashTable *busy;             /* resource: GQueue of Task, the first runs */
    GHashTable *grown;            /* resource: the last Grown */
    GHashTable *served;           /* INSTANCE/ID: number of growths */
    GQueue begun;                 /* Tasks that wait for the journal */
    unsigned sync;                /* source of journal_sync() */
    GHashTable *paused;           /* names of VMs */
    GHashTable *notes;            /* name of a VM: number, up to NOTES_MAX */
    GHashTable *open;             /* name of a VM: number of its Tasks */
    GHashTable *peers;            /* of Peer */
    GQueue silent;                /* Peers, in the order of their coming */
    unsigned dropped;             /* connections, since that was told */
    int64_t told_us;
};

static void task_start(Task *t);
static void task_decide(Task *t);

static void task_free(Task *t)
{
    if (t->timer) {
        g_source_remove(t->timer);
    }
    g_ptr_array_unref(t->askers);
    g_free(t->key);
    g_free(t->vm);
    g_free(t->path);
    g_free(t->resource);
    g_free(t->instance);
    g_free(t->error);
    g_free(t);
}

static void send_answer(SgConn *conn, const char *vm, const char *instance,
                        int64_t id, int64_t attempt, const char *denied)
{
    QDict *d = qdict_new();

    qdict_put_str(d, "type", "answer");
    qdict_put_str(d, "vm", vm);
    qdict_put_str(d, "instance", instance);
    qdict_put_int(d, "id", id);
    qdict_put_int(d, "attempt", attempt);
    qdict_put_str(d, "result", denied ? "denied" : "grown");
    if (denied) {
        qdict_put_str(d, "reason", denied);
    }
    sg_conn_send(conn, d);
}

static void task_answer(Task *t, const char *denied)
{
    for (unsigned i = 0; i < t->askers->len; i++) {
        send_answer(g_ptr_array_index(t->askers, i), t->vm, t->instance, t->id,
                    t->attempt, denied);
    }
}

static unsigned count_of(GHashTable *counts, const char *vm)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(counts, vm));
}

static void set_count(GHashTable *counts, const char *vm, unsigned n)
{
    if (n) {
        g_hash_table_insert(counts, g_strdup(vm), GUINT_TO_POINTER(n));
    } else {
        g_hash_table_remove(counts, vm);
    }
}

/*
 * How often a request was served is in the journal: its own count of attempts
 * rises, too, when the user of the machine lets it go on without storage.
 */
static char *request_of_key(const char *key)
{
    return g_strndup(key, strrchr(key, '/') - key);
}

static void count_served(SgController *c, const SgGrowth *g)
{
    g_autofree char *request = strchr(g->key, '/') ? request_of_key(g->key)
                                                   : NULL;

    /* what others had asked for was not for this one in vain */
    if (request && g->from != g->target) {
        set_count(c->served, request, count_of(c->served, request) + 1);
    }
}

static bool is_served_often(const Task *t)
{
    g_autofree char *request = request_of_key(t->key);

    return count_of(t->c->served, request) >= t->policy->attempts;
}

static void grown_free(gpointer opaque)
{
    Grown *g = opaque;

    g_free(g->path);
    g_free(g);
}

static void note_grown(Task *t)
{
    uint64_t by = t->growth->target - t->growth->from;
    uint64_t wanted = t->raised_us == TASK_BY_HAND ? 0 : t->needed;
    Grown *g;

    if (!by) {
        return;
    }
    g = g_new0(Grown, 1);
    g->ended_us = g_get_monotonic_time();
    g->from = t->growth->from;
    g->target = t->growth->target;
    g->path = g_strdup(t->growth->path);
    g->policy = t->policy;
    /* after a crash it is not known what was wanted */
    g->spare = t->path ? by - MIN(by, wanted) : 0;
    g_hash_table_replace(t->c->grown, g_strdup(t->resource), g);
}

/*
 * Whether a growth that ended after the request was raised has what it needs.
 * Two that need it for the same disk need the same.
 */
static bool was_grown(Task *t, uint64_t size)
{
    Grown *g = g_hash_table_lookup(t->c->grown, t->resource);

    if (!g || g->ended_us <= t->raised_us || size < g->target ||
        !sg_provider_is_same(g->policy, t->policy)) {
        return false;
    }
    if (g_str_equal(g->path, t->path)) {
        return t->needed <= g->target - g->from;
    }
    if (t->needed > g->spare) {
        return false;
    }
    g->spare -= t->needed;
    return true;
}

/* What has begun is finished all the same */
static bool is_paused(const Task *t)
{
    return !t->growth && g_hash_table_contains(t->c->paused, t->vm);
}

/* Start the first of a resource that is not paused; those wait elsewhere */
static void start_first(SgController *c, const char *name)
{
    g_autofree char *resource = g_strdup(name);
    GQueue *queue = g_hash_table_lookup(c->busy, resource);
    Task *t;

    while ((t = g_queue_peek_head(queue)) && is_paused(t)) {
        g_queue_pop_head(queue);
        t->paused = true;
        g_clear_pointer(&t->resource, g_free);
    }
    if (t) {
        task_start(t);
    } else {
        g_hash_table_remove(c->busy, resource);
    }
}

/* Let the next one have the resource */
static void task_end(Task *t)
{
    SgController *c = t->c;
    GQueue *queue = t->resource ? g_hash_table_lookup(c->busy, t->resource)
                                : NULL;

    g_hash_table_remove(c->tasks, t->key);
    set_count(c->open, t->vm, count_of(c->open, t->vm) - 1);
    if (queue) {
        bool first = g_queue_peek_head(queue) == t;

        g_queue_remove(queue, t);
        if (first) {
            start_first(c, t->resource);
        }
    }
    task_free(t);
}

static gboolean task_again(gpointer opaque)
{
    Task *t = opaque;

    t->timer = 0;
    if (t->resource) {
        start_first(t->c, t->resource);
    } else {
        task_decide(t);           /* it is to be denied */
    }
    return G_SOURCE_REMOVE;
}

static void task_failed(Task *t, const char *why)
{
    int64_t delay_ms = RETRY_MIN_MS;

    g_free(t->error);
    t->error = g_strndup(why, WORD_MAX_BYTES);
    for (unsigned i = 0; i < t->tries && delay_ms < RETRY_MAX_MS; i++) {
        delay_ms *= 2;
    }
    t->tries++;
    g_message("%s: %s; again in %" PRId64 " ms", t->key, why,
              MIN(delay_ms, RETRY_MAX_MS));
    t->timer = g_timeout_add(MIN(delay_ms, RETRY_MAX_MS), task_again, t);
}

static bool may_note(const Task *t)
{
    return count_of(t->c->notes, t->vm) < NOTES_MAX;
}

static void noted(const Task *t)
{
    set_count(t->c->notes, t->vm, count_of(t->c->notes, t->vm) + 1);
}

static void task_deny(Task *t, const char *why)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *reason = g_strdup(why);

    if (may_note(t)) {
        if (!sg_journal_deny(t->c->journal, t->key, t->vm, reason, &error)) {
            task_failed(t, error->message);
            return;
        }
        noted(t);
    }
    g_message("%s: denied: %s", t->key, reason);
    task_answer(t, reason);
    task_end(t);
}

static void task_done(Task *t)
{
    g_autoptr(GError) error = NULL;

    /*
     * The machine need not wait for the disk with the journal: if this is
     * killed now, it will be done again, to the same size.
     */
    task_answer(t, NULL);
    if (!sg_journal_end(t->c->journal, t->growth, t->provider_us, &error)) {
        g_warning("%s", error->message);
    }
    count_served(t->c, t->growth);
    note_grown(t);
    if (t->growth->from == t->growth->target) {
        g_message("%s: %s had grown by what others asked for", t->key,
                  t->resource);
    } else {
        g_message("%s: %s has grown from %" PRIu64 " to %" PRIu64, t->key,
                  t->resource, t->growth->from, t->growth->target);
    }
    task_end(t);
}

static void provider_answered(Task *t)
{
    t->provider_us += g_get_monotonic_time() - t->asked_us;
}

static void grow_done(int64_t size, const char *error, void *opaque)
{
    Task *t = opaque;

    provider_answered(t);
    if (size < 0) {
        task_failed(t, error);
    } else if (size < t->growth->target) {
        g_autofree char *why = g_strdup_printf(
            "the provider says that it is done, but the size is %" PRId64
            " and not %" PRIu64, size, t->growth->target);

        task_failed(t, why);
    } else {
        task_done(t);
    }
}

static void task_grow(Task *t)
{
    t->asked_us = g_get_monotonic_time();
    sg_provider_grow(t->policy, t->resource, t->vm, t->key, t->growth->target,
                     grow_done, t);
}

/* When nothing else is to be done: what has begun by then shares the wait */
static gboolean journal_sync(gpointer opaque)
{
    SgController *c = opaque;
    g_autoptr(GError) error = NULL;
    bool ok = sg_journal_sync(c->journal, &error);
    Task *t;

    c->sync = 0;
    while ((t = g_queue_pop_head(&c->begun))) {
        t->durable = ok;
        if (ok) {
            task_grow(t);
        } else {
            task_failed(t, error->message);
        }
    }
    return G_SOURCE_REMOVE;
}

static void size_known(int64_t size, const char *error, void *opaque)
{
    Task *t = opaque;
    g_autoptr(GError) err = NULL;
    uint64_t target;
    const char *why;

    provider_answered(t);
    if (is_paused(t)) {
        start_first(t->c, t->resource);
        return;
    }
    if (size < 0) {
        task_failed(t, error);
        return;
    }
    if (!t->growth) {
        bool was = was_grown(t, size);

        if (was && !may_note(t)) {
            task_answer(t, NULL);
            task_end(t);
            return;
        }
        target = size;
        /* one by nothing is written down, too: the request has its answer */
        why = was ? NULL : sg_policy_target(t->policy, size, t->needed,
                                            t->rate, &target);
        if (why) {
            task_deny(t, why);
            return;
        }
        t->growth = sg_journal_begin(t->c->journal, t->key, t->vm, t->path,
                                     t->resource, size, target, &err);
        if (!t->growth) {
            task_failed(t, err->message);
            return;
        }
        if (was) {
            noted(t);
        }
    }
    if (size >= t->growth->target) {
        task_done(t);             /* it was done before a crash */
        return;
    }
    if (t->durable || (sg_policy_is_volatile(t->policy) &&
                       !sg_journal_must_sync(t->c->journal))) {
        task_grow(t);
        return;
    }
    g_queue_push_tail(&t->c->begun, t);
    if (!t->c->sync) {
        /* not behind all that peers send */
        t->c->sync = g_idle_add_full(G_PRIORITY_DEFAULT, journal_sync, t->c,
                                     NULL);
    }
}

/* The task is the first of its resource */
static void task_start(Task *t)
{
    if (!t->policy) {
        task_failed(t, "no policy of the configuration matches any more");
        return;
    }
    t->asked_us = g_get_monotonic_time();
    sg_provider_size(t->policy, t->resource, t->vm, size_known, t);
}

static void task_enqueue(Task *t)
{
    GQueue *queue = g_hash_table_lookup(t->c->busy, t->resource);

    if (!queue) {
        queue = g_queue_new();
        g_hash_table_insert(t->c->busy, g_strdup(t->resource), queue);
    }
    g_queue_push_tail(queue, t);
    if (g_queue_peek_head(queue) == t) {
        task_start(t);
    }
}

static Task *task_new(SgController *c, const char *key, const char *vm)
{
    Task *t = g_new0(Task, 1);

    t->c = c;
    t->key = g_strdup(key);
    t->vm = g_strdup(vm);
    t->askers = g_ptr_array_new();
    t->since_us = g_get_monotonic_time();
    g_hash_table_insert(c->tasks, t->key, t);
    set_count(c->open, vm, count_of(c->open, vm) + 1);
    return t;
}

/*
 * Patterns match any character.  So what leads elsewhere by its parts must not
 * pass for something below a directory.
 */
static bool is_plain(const char *path)
{
    g_auto(GStrv) parts = NULL;

    if (path[0] != '/' || !path[1]) {
        return false;
    }
    parts = g_strsplit(path + 1, "/", -1);
    for (char **part = parts; *part; part++) {
        if (!**part || g_str_equal(*part, ".") || g_str_equal(*part, "..")) {
            return false;
        }
    }
    return true;
}

/* Decide about a new request, or one that was paused */
static void task_decide(Task *t)
{
    SgController *c = t->c;

    t->paused = g_hash_table_contains(c->paused, t->vm);
    if (t->paused) {
        return;
    }
    t->policy = sg_policy_find(c->policies, t->vm, t->path);
    if (!t->policy) {
        task_deny(t, "no policy matches");
    } else if (is_served_often(t)) {
        task_deny(t, "it was grown often enough without effect");
    } else if (!t->policy->resource && !is_plain(t->path)) {
        task_deny(t, "the path must be absolute, without '.' and '..'");
    } else {
        t->resource = sg_provider_resource(t->policy, t->path);
        task_enqueue(t);
    }
}

/*
 * What peers say
 */

/* What peers say is logged: it must not look like lines of the log */
static const char *get_word(QDict *d, const char *name)
{
    const char *text = qdict_get_try_str(d, name);

    if (!text || strlen(text) > WORD_MAX_BYTES) {
        return NULL;
    }
    for (const char *p = text; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            return NULL;
        }
    }
    return text;
}

static void send_error(SgConn *conn, const char *why)
{
    QDict *d = qdict_new();

    qdict_put_str(d, "type", "error");
    qdict_put_str(d, "reason", why);
    sg_conn_send(conn, d);
}

/* One machine must not take the place of all others */
static bool too_many(SgController *c, const char *vm)
{
    return g_hash_table_size(c->tasks) >= TASKS_MAX ||
           count_of(c->open, vm) >= TASKS_OF_VM_MAX;
}

/* More than one agent may follow a machine: the answer is for all of them */
static void add_asker(Task *t, SgConn *conn)
{
    if (!g_ptr_array_find(t->askers, conn, NULL)) {
        g_ptr_array_add(t->askers, conn);
    }
}

static void handle_request(SgController *c, SgConn *conn, QDict *d)
{
    const char *vm = get_word(d, "vm");
    const char *path = get_word(d, "path");
    const char *instance = get_word(d, "instance");
    int64_t id = qdict_get_try_int(d, "id", 0);
    int64_t attempt = qdict_get_try_int(d, "attempt", 0);
    int64_t needed = qdict_get_try_int(d, "needed", -1);
    int64_t rate = qdict_get_try_int(d, "rate", 0);
    int64_t age_ms = qdict_get_try_int(d, "age-ms", 0);
    g_autofree char *key = NULL;
    SgGrowth *growth;
    Task *t;

    if (!vm || !path || !instance || strchr(instance, '/') || id <= 0 ||
        attempt <= 0 || needed < 0) {
        send_error(conn, "a request must have vm, path, instance, id, attempt "
                   "and needed");
        return;
    }
    key = g_strdup_printf("%s/%" PRId64 "/%" PRId64, instance, id, attempt);
    t = g_hash_table_lookup(c->tasks, key);
    if (t) {
        add_asker(t, conn);
        if (!t->instance) {
            /* begun before a crash: now it is known whom to answer */
            t->instance = g_strdup(instance);
            t->id = id;
            t->attempt = attempt;
        }
        return;
    }
    growth = sg_journal_find(c->journal, key);
    if (growth) {
        send_answer(conn, vm, instance, id, attempt, growth->denied);
        return;
    }
    if (too_many(c, vm)) {
        send_error(conn, "too many requests");
        return;
    }
    t = task_new(c, key, vm);
    t->path = g_strdup(path);
    t->instance = g_strdup(instance);
    t->id = id;
    t->attempt = attempt;
    t->needed = needed;
    t->rate = MAX(rate, 0);
    /* less than that: it was rounded */
    t->raised_us = t->since_us - (CLAMP(age_ms, 1, AGE_MAX_MS) - 1) * 1000;
    add_asker(t, conn);
    task_decide(t);
}

static QDict *task_info(Task *t)
{
    QDict *d = qdict_new();

    qdict_put_str(d, "key", t->key);
    qdict_put_str(d, "vm", t->vm);
    qdict_put_str(d, "resource", t->resource ?: t->path ?: "");
    qdict_put_str(d, "state", t->paused ? "paused" : t->growth ? "growing"
                                                               : "waiting");
    qdict_put_int(d, "tries", t->tries);
    qdict_put_int(d, "age-ms", (g_get_monotonic_time() - t->since_us) / 1000);
    if (t->growth) {
        qdict_put_int(d, "from", t->growth->from);
        qdict_put_int(d, "target", t->growth->target);
    }
    if (t->error) {
        qdict_put_str(d, "error", t->error);
    }
    return d;
}

static QDict *growth_info(const SgGrowth *g)
{
    QDict *d = qdict_new();

    qdict_put_str(d, "key", g->key);
    qdict_put_str(d, "vm", g->vm);
    qdict_put_str(d, "resource", g->resource);
    qdict_put_int(d, "from", g->from);
    qdict_put_int(d, "target", g->target);
    qdict_put_int(d, "begin-us", g->begin_us);
    qdict_put_int(d, "end-us", g->end_us);
    qdict_put_int(d, "provider-us", g->provider_us);
    if (g->denied) {
        qdict_put_str(d, "denied", g->denied);
    }
    return d;
}

/* A list is sent in parts; all but the last say that there is more */
static void reply_part(SgConn *conn, QList *list, bool more)
{
    QDict *d = qdict_new();

    qdict_put_str(d, "type", "reply");
    if (list) {
        qdict_put(d, "list", list);
    }
    if (more) {
        qdict_put_bool(d, "more", true);
    }
    sg_conn_send(conn, d);
}

static void reply(SgConn *conn)
{
    reply_part(conn, NULL, false);
}

static QList *reply_add(SgConn *conn, QList *list, QDict *info)
{
    qlist_append(list, info);
    if (qlist_size(list) < LIST_PART) {
        return list;
    }
    reply_part(conn, list, true);
    return qlist_new();
}

static void handle_list(SgController *c, SgConn *conn, QDict *d)
{
    QList *list = qlist_new();
    GHashTableIter iter;
    gpointer task;

    g_hash_table_iter_init(&iter, c->tasks);
    for (int i = 0; i < LIST_MAX &&
         g_hash_table_iter_next(&iter, NULL, &task); i++) {
        list = reply_add(conn, list, task_info(task));
    }
    reply_part(conn, list, false);
}

static void handle_history(SgController *c, SgConn *conn, QDict *d)
{
    GPtrArray *all = sg_journal_all(c->journal);
    int64_t limit = qdict_get_try_int(d, "limit", 100);
    unsigned n = limit < 0 ? 0 : MIN(limit, LIST_MAX);
    QList *list = qlist_new();

    for (unsigned i = all->len > n ? all->len - n : 0; i < all->len; i++) {
        list = reply_add(conn, list, growth_info(g_ptr_array_index(all, i)));
    }
    reply_part(conn, list, false);
}

static void handle_pause(SgController *c, SgConn *conn, QDict *d)
{
    const char *vm = get_word(d, "vm");

    if (!vm) {
        send_error(conn, "vm is missing");
        return;
    }
    g_hash_table_add(c->paused, g_strdup(vm));
    reply(conn);
}

static void handle_continue(SgController *c, SgConn *conn, QDict *d)
{
    const char *vm = get_word(d, "vm");
    g_autoptr(GList) tasks = g_hash_table_get_values(c->tasks);

    if (!vm || !g_hash_table_remove(c->paused, vm)) {
        send_error(conn, "this vm is not paused");
        return;
    }
    for (GList *l = tasks; l; l = l->next) {
        Task *t = l->data;

        if (t->paused && g_str_equal(t->vm, vm)) {
            task_decide(t);
        }
    }
    reply(conn);
}

/* By hand: by the policy, with a key of its own */
static void handle_grow(SgController *c, SgConn *conn, QDict *d)
{
    const char *vm = get_word(d, "vm");
    const char *path = get_word(d, "path");
    int64_t bytes = qdict_get_try_int(d, "bytes", 0);
    g_autofree char *uuid = g_uuid_string_random();
    g_autofree char *key = g_strdup_printf("by-hand-%s/1/1", uuid);
    Task *t;

    if (!vm || !path || bytes < 0) {
        send_error(conn, "vm or path is missing, or bytes is negative");
        return;
    }
    if (too_many(c, vm)) {
        send_error(conn, "too many requests");
        return;
    }
    t = task_new(c, key, vm);
    t->path = g_strdup(path);
    t->instance = g_strdup_printf("by-hand-%s", uuid);
    t->id = 1;
    t->attempt = 1;
    t->needed = bytes;
    t->raised_us = TASK_BY_HAND;
    add_asker(t, conn);
    task_decide(t);
}

/* It is there, and has nothing to ask for */
static void handle_hello(SgController *c, SgConn *conn, QDict *d)
{
}

static void handle_outcome(SgController *c, SgConn *conn, QDict *d)
{
    g_message("%s: request %" PRId64 ", attempt %" PRId64 ": %s",
              get_word(d, "vm") ?: "?", qdict_get_try_int(d, "id", 0),
              qdict_get_try_int(d, "attempt", 0),
              get_word(d, "outcome") ?: "?");
}

static const struct Handler {
    const char *type;
    void (*handle)(SgController *c, SgConn *conn, QDict *d);
} handlers[] = {
    { "hello", handle_hello },
    { "request", handle_request },
    { "outcome", handle_outcome },
    { "list", handle_list },
    { "history", handle_history },
    { "pause", handle_pause },
    { "continue", handle_continue },
    { "grow", handle_grow },
};

/* Strangers must not fill the log, either */
static void tell_dropped(SgController *c, const char *why)
{
    int64_t now_us = g_get_monotonic_time();

    c->dropped++;
    if (!c->told_us || now_us - c->told_us >= TELL_US) {
        g_message("%u connections without a message were closed; the last: %s",
                  c->dropped, why);
        c->dropped = 0;
        c->told_us = now_us;
    }
}

static void peer_spoke(Peer *p)
{
    if (p->timer) {
        g_source_remove(p->timer);
        p->timer = 0;
        g_queue_unlink(&p->c->silent, &p->silent);
    }
}

static void peer_free(Peer *p)
{
    SgController *c = p->c;
    GHashTableIter iter;
    gpointer task;

    peer_spoke(p);
    g_hash_table_remove(c->peers, p);
    g_hash_table_iter_init(&iter, c->tasks);
    while (g_hash_table_iter_next(&iter, NULL, &task)) {
        g_ptr_array_remove(((Task *)task)->askers, p->conn);
    }
    g_free(p);
}

static void peer_drop(Peer *p, const char *why)
{
    SgController *c = p->c;

    sg_conn_abort(p->conn);
    peer_free(p);
    tell_dropped(c, why);
}

static gboolean peer_is_late(gpointer opaque)
{
    peer_drop(opaque, "it took too long");
    return G_SOURCE_REMOVE;
}

static void conn_object(SgConn *conn, QDict *d, void *opaque)
{
    Peer *p = opaque;
    const char *type = qdict_get_try_str(d, "type");

    peer_spoke(p);
    for (int i = 0; type && i < G_N_ELEMENTS(handlers); i++) {
        if (g_str_equal(type, handlers[i].type)) {
            handlers[i].handle(p->c, conn, d);
            return;
        }
    }
    send_error(conn, "unknown type");
}

static void conn_closed(SgConn *conn, const char *why, void *opaque)
{
    Peer *p = opaque;

    if (p->timer) {
        tell_dropped(p->c, why);
    } else {
        g_message("a peer has gone: %s", why);
    }
    peer_free(p);
}

static const SgConnOps conn_ops = {
    .object = conn_object,
    .closed = conn_closed,
};

void sg_controller_serve(SgController *c, GIOStream *stream)
{
    Peer *p;

    if (g_hash_table_size(c->peers) >= c->limits.connections) {
        p = g_queue_peek_head(&c->silent);
        if (!p) {
            g_object_unref(stream);
            tell_dropped(c, "there are too many");
            return;
        }
        peer_drop(p, "there are too many");
    }
    p = g_new0(Peer, 1);
    p->c = c;
    p->timer = g_timeout_add(c->limits.hello_ms, peer_is_late, p);
    p->silent.data = p;
    g_queue_push_tail_link(&c->silent, &p->silent);
    p->conn = sg_conn_new(stream, &conn_ops, p);
    g_hash_table_add(c->peers, p);
}

unsigned sg_controller_connections(SgController *c)
{
    return c->limits.connections;
}

/* The policy that a growth had begun by, if the configuration still has it */
static const SgPolicy *policy_of_growth(SgController *c, const SgGrowth *g)
{
    for (unsigned i = 0; i < c->policies->len; i++) {
        const SgPolicy *p = g_ptr_array_index(c->policies, i);
        g_autofree char *resource = sg_provider_resource(p, g->path);

        if (sg_policy_matches(p, g->vm, g->path) &&
            g_str_equal(resource, g->resource)) {
            return p;
        }
    }
    return NULL;
}

static void queue_free(gpointer queue)
{
    g_queue_free(queue);
}

SgController *sg_controller_new(GPtrArray *policies, const SgLimits *limits,
                                SgJournal *journal)
{
    SgController *c = g_new0(SgController, 1);
    GPtrArray *all = sg_journal_all(journal);

    c->policies = policies;
    c->limits = *limits;
    c->journal = journal;
    g_queue_init(&c->begun);
    g_queue_init(&c->silent);
    c->tasks = g_hash_table_new(g_str_hash, g_str_equal);
    c->busy = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                    queue_free);
    c->paused = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    c->notes = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    c->open = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    c->grown = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                     grown_free);
    c->served = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    c->peers = g_hash_table_new(NULL, NULL);
    for (unsigned i = 0; i < all->len; i++) {
        SgGrowth *g = g_ptr_array_index(all, i);

        if (g->ended && !g->denied) {
            count_served(c, g);
        } else if (!g->ended) {
            Task *t = task_new(c, g->key, g->vm);

            g_message("%s: had begun, is finished now", g->key);
            t->growth = g;
            t->resource = g_strdup(g->resource);
            t->policy = policy_of_growth(c, g);
            task_enqueue(t);
        }
    }
    return c;
}
