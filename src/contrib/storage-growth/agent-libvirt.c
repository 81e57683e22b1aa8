/*
 * Storage growth: an agent that follows the domains of libvirt daemons
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Calls of libvirt block, for as long as a remote host or a machine does not
 * answer.  So each daemon has a thread that connects to it, and some that do
 * jobs; a machine has one job at a time, so one that hangs does not take all
 * of them.  A job has a connection of its own: replies to calls that share
 * one with a call that hangs come late.  One more thread runs libvirt's event
 * loop.  What they find is handed to the main loop; only that touches SgVm.
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include <libvirt/libvirt.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include "agent.h"
#include "qapi/error.h"
#include "qobject/qjson.h"

#define RETRY_US G_USEC_PER_SEC
#define RETRY_S 1
#define KEEPALIVE_S 5
#define JOB_THREADS 16
#define IDLE_CONNS 2
#define UUID_LEN VIR_UUID_STRING_BUFLEN

typedef struct Host {
    char *uri;
    bool only;                    /* there is no other */
    GThreadPool *jobs;
    GMutex lock;
    GQueue idle;                  /* connections; protected by it */
    int connected;                /* events come; atomic */
    GHashTable *vms;              /* uuid: LibvirtVm; main loop only */
} Host;

typedef struct LibvirtVm {
    SgVm vm;
    Host *host;
    char uuid[UUID_LEN];
    bool asking;                  /* it is asked what is requested */
    bool ask_again;               /* ... and may know more by now */
    unsigned jobs;                /* that are not done */
    GQueue waiting;               /* all of these but the first */
    unsigned timer;               /* of query_again(), or 0 */
} LibvirtVm;

/* Ask a domain, or answer it */
typedef struct Job {
    LibvirtVm *v;
    bool resolve;
    int64_t id, attempt;
    char *result;

    bool failed;                  /* it may be on, but could not be reached */
    bool gone;                    /* it is off */
    QObject *reply;               /* or NULL */
} Job;

/* A domain that is on; for the main loop */
typedef struct Seen {
    Host *host;
    char *name;
    char uuid[UUID_LEN];
} Seen;

/*
 * Main loop
 */

static void push_job(LibvirtVm *v, Job *job)
{
    job->v = v;
    if (v->jobs++) {
        g_queue_push_tail(&v->waiting, job);
    } else {
        g_thread_pool_push(v->host->jobs, job, NULL);
    }
}

static void libvirt_query(SgVm *vm)
{
    LibvirtVm *v = container_of(vm, LibvirtVm, vm);
    Job *job;

    v->ask_again = v->asking;
    if (!v->asking) {
        v->asking = true;
        job = g_new0(Job, 1);
        push_job(v, job);
    }
}

static void libvirt_resolve(SgVm *vm, int64_t id, int64_t attempt,
                            const char *result)
{
    LibvirtVm *v = container_of(vm, LibvirtVm, vm);
    Job *job = g_new0(Job, 1);

    job->resolve = true;
    job->id = id;
    job->attempt = attempt;
    job->result = g_strdup(result);
    push_job(v, job);
}

static gboolean seen_in_main(gpointer opaque)
{
    Seen *seen = opaque;
    Host *host = seen->host;
    LibvirtVm *v = g_hash_table_lookup(host->vms, seen->uuid);

    if (!v) {
        v = g_new0(LibvirtVm, 1);
        v->host = host;
        g_strlcpy(v->uuid, seen->uuid, UUID_LEN);
        v->vm.name = host->only ? g_strdup(seen->name)
                                : g_strdup_printf("%s@%s", seen->name,
                                                  host->uri);
        v->vm.query = libvirt_query;
        v->vm.resolve = libvirt_resolve;
        g_hash_table_insert(host->vms, v->uuid, v);
        sg_agent_add(&v->vm);
    }
    libvirt_query(&v->vm);
    g_free(seen->name);
    g_free(seen);
    return G_SOURCE_REMOVE;
}

static gboolean query_again(gpointer opaque)
{
    LibvirtVm *v = opaque;

    v->timer = 0;
    libvirt_query(&v->vm);
    return G_SOURCE_REMOVE;
}

/* A domain that is off is forgotten; an event makes it known again */
static void forget(LibvirtVm *v)
{
    g_message("%s: is off", v->vm.name);
    sg_agent_remove(&v->vm);
    g_hash_table_remove(v->host->vms, v->uuid);
    g_free(v->vm.name);
    g_free(v);
}

static gboolean job_done(gpointer opaque)
{
    Job *job = opaque;
    LibvirtVm *v = job->v;
    SgVm *vm = &v->vm;
    QDict *reply = qobject_to(QDict, job->reply);
    QObject *ret = reply ? qdict_get(reply, "return") : NULL;
    QDict *answer = qobject_to(QDict, ret);

    v->jobs--;
    if (v->jobs) {
        g_thread_pool_push(v->host->jobs, g_queue_pop_head(&v->waiting), NULL);
    }
    if (job->resolve) {
        sg_agent_outcome(vm, job->id, job->attempt,
                         answer ? qdict_get_try_str(answer, "outcome") ?: "?"
                                : "error");
    } else {
        v->asking = false;
        if (qobject_to(QList, ret)) {
            sg_agent_requests(vm, qobject_to(QList, ret));
        }
        if (v->ask_again) {
            libvirt_query(vm);
        }
    }
    if (job->failed && !v->timer) {
        /* what it has requested, and what was not answered, is found then */
        v->timer = g_timeout_add_seconds(RETRY_S, query_again, v);
    }
    if (job->gone && !v->jobs && !v->timer) {
        forget(v);
    }
    qobject_unref(job->reply);
    g_free(job->result);
    g_free(job);
    return G_SOURCE_REMOVE;
}

/*
 * Jobs
 */

static char *command_of(const Job *job)
{
    if (!job->resolve) {
        return g_strdup("{\"execute\": \"query-block-space-requests\"}");
    }
    return g_strdup_printf("{\"execute\": \"block-space-resolve\", "
                           "\"arguments\": {\"id\": %" PRId64 ", "
                           "\"result\": \"%s\"}}", job->id,
                           g_str_equal(job->result, "grown") ? "grown"
                                                             : "denied");
}

static virConnectPtr open_conn(const char *uri)
{
    virConnectPtr conn = virConnectOpen(uri);

    if (conn) {
        virConnectSetKeepAlive(conn, KEEPALIVE_S, 3);
    }
    return conn;
}

static virConnectPtr take_conn(Host *host)
{
    virConnectPtr conn;

    do {
        g_mutex_lock(&host->lock);
        conn = g_queue_pop_head(&host->idle);
        g_mutex_unlock(&host->lock);
        if (conn && virConnectIsAlive(conn) == 1) {
            return conn;
        }
        if (conn) {
            virConnectClose(conn);
        }
    } while (conn);
    return open_conn(host->uri);
}

static void give_conn(Host *host, virConnectPtr conn)
{
    g_mutex_lock(&host->lock);
    if (host->idle.length < IDLE_CONNS) {
        g_queue_push_head(&host->idle, conn);
        conn = NULL;
    }
    g_mutex_unlock(&host->lock);
    if (conn) {
        virConnectClose(conn);
    }
}

/*
 * A QEMU without the command, a domain that is off, and a daemon that is down
 * are no trouble: all domains are asked when it is there again.
 */
static void do_job(gpointer data, gpointer opaque)
{
    Job *job = data;
    Host *host = opaque;
    virConnectPtr conn = take_conn(host);
    virDomainPtr domain =
        conn ? virDomainLookupByUUIDString(conn, job->v->uuid) : NULL;
    g_autofree char *command = command_of(job);
    char *text = NULL;

    if (domain) {
        if (virDomainQemuMonitorCommand(domain, command, &text, 0) == 0) {
            job->reply = qobject_from_json(text, NULL);
        } else {
            int active = virDomainIsActive(domain);

            job->failed = active != 0;
            job->gone = active == 0;
        }
        free(text);
        virDomainFree(domain);
    } else if (conn) {
        job->gone = virGetLastErrorCode() == VIR_ERR_NO_DOMAIN;
        job->failed = !job->gone;
    }
    if (conn) {
        give_conn(host, conn);
    } else {
        job->failed = g_atomic_int_get(&host->connected);
    }
    g_idle_add(job_done, job);
}

/*
 * Hosts
 */

static void tell_seen(Host *host, virDomainPtr domain)
{
    Seen *seen = g_new0(Seen, 1);

    if (virDomainGetUUIDString(domain, seen->uuid) < 0) {
        g_free(seen);
        return;
    }
    seen->host = host;
    seen->name = g_strdup(virDomainGetName(domain));
    g_idle_add(seen_in_main, seen);
}

/* libvirt's event loop */
static void event(virConnectPtr conn, virDomainPtr domain, const char *name,
                  long long seconds, unsigned int micros, const char *details,
                  void *opaque)
{
    tell_seen(opaque, domain);
}

/*
 * A domain that is on may have requests from its life on another host; one that
 * is off, or that was never on, is forgotten when it is asked
 */
static int lifecycle(virConnectPtr conn, virDomainPtr domain, int what,
                     int detail, void *opaque)
{
    if (what == VIR_DOMAIN_EVENT_STARTED || what == VIR_DOMAIN_EVENT_STOPPED) {
        tell_seen(opaque, domain);
    }
    return 0;
}

static virConnectPtr host_connect(Host *host)
{
    virConnectPtr conn = open_conn(host->uri);
    virDomainPtr *domains = NULL;
    int count;

    if (!conn) {
        return NULL;
    }
    if (virConnectDomainQemuMonitorEventRegister(
            conn, NULL, "BLOCK_SPACE_REQUEST", event, host, NULL, 0) < 0 ||
        virConnectDomainEventRegisterAny(
            conn, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            VIR_DOMAIN_EVENT_CALLBACK(lifecycle), host, NULL) < 0) {
        virConnectClose(conn);
        return NULL;
    }
    g_atomic_int_set(&host->connected, 1);
    /* events are on: nothing is missed between them and the questions */
    count = virConnectListAllDomains(conn, &domains,
                                     VIR_CONNECT_LIST_DOMAINS_ACTIVE);
    for (int i = 0; i < count; i++) {
        tell_seen(host, domains[i]);
        virDomainFree(domains[i]);
    }
    free(domains);
    g_message("%s: connected", host->uri);
    return conn;
}

static gpointer host_thread(gpointer opaque)
{
    Host *host = opaque;

    for (;;) {
        virConnectPtr conn = host_connect(host);

        while (conn && virConnectIsAlive(conn) == 1) {
            g_usleep(RETRY_US);
        }
        if (conn) {
            g_message("%s: connection lost", host->uri);
            g_atomic_int_set(&host->connected, 0);
            virConnectClose(conn);
        }
        g_usleep(RETRY_US);
    }
    return NULL;
}

static gpointer event_thread(gpointer opaque)
{
    for (;;) {
        if (virEventRunDefaultImpl() < 0) {
            g_usleep(RETRY_US);
        }
    }
    return NULL;
}

/* Each failure is handled where it is seen */
static void quiet(void *opaque, virErrorPtr error)
{
}

bool sg_libvirt_follow(char **uris, GError **error)
{
    virSetErrorFunc(NULL, quiet);
    if (virInitialize() < 0 || virEventRegisterDefaultImpl() < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
                    "libvirt cannot be initialized");
        return false;
    }
    g_thread_unref(g_thread_new("events", event_thread, NULL));
    for (int i = 0; uris[i]; i++) {
        Host *host = g_new0(Host, 1);

        host->uri = uris[i];
        host->only = !uris[1];
        host->jobs = g_thread_pool_new(do_job, host, JOB_THREADS, false, NULL);
        g_mutex_init(&host->lock);
        host->vms = g_hash_table_new(g_str_hash, g_str_equal);
        g_thread_unref(g_thread_new("host", host_thread, host));
    }
    return true;
}
