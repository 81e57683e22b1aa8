/*
 * Storage growth: an agent that follows the domains of libvirt daemons
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Calls of libvirt block, for as long as a remote host does not answer.  So
 * each daemon has a thread, which takes jobs from a queue; one more thread runs
 * libvirt's event loop.  What they find is handed to the main loop; only that
 * touches SgVm.
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
#define KEEPALIVE_S 5
#define UUID_LEN VIR_UUID_STRING_BUFLEN

typedef struct Host {
    char *uri;
    bool only;                    /* there is no other */
    GAsyncQueue *jobs;
    virConnectPtr conn;           /* its thread only */
    GHashTable *vms;              /* uuid: LibvirtVm; main loop only */
} Host;

typedef struct LibvirtVm {
    SgVm vm;
    Host *host;
    char uuid[UUID_LEN];
} LibvirtVm;

/* Ask a domain, or answer it; for a host's thread */
typedef struct Job {
    char uuid[UUID_LEN];
    bool resolve;
    int64_t id, attempt;
    char *result;
} Job;

/* What was found; for the main loop */
typedef struct Found {
    Host *host;
    char *name;                   /* of the domain */
    char uuid[UUID_LEN];
    Job *job;
    QObject *reply;               /* or NULL */
} Found;

static void job_free(Job *job)
{
    g_free(job->result);
    g_free(job);
}

static void push_query(Host *host, const char *uuid)
{
    Job *job = g_new0(Job, 1);

    g_strlcpy(job->uuid, uuid, UUID_LEN);
    g_async_queue_push(host->jobs, job);
}

/*
 * Main loop
 */

static void libvirt_query(SgVm *vm)
{
    LibvirtVm *v = container_of(vm, LibvirtVm, vm);

    push_query(v->host, v->uuid);
}

static void libvirt_resolve(SgVm *vm, int64_t id, int64_t attempt,
                            const char *result)
{
    LibvirtVm *v = container_of(vm, LibvirtVm, vm);
    Job *job = g_new0(Job, 1);

    g_strlcpy(job->uuid, v->uuid, UUID_LEN);
    job->resolve = true;
    job->id = id;
    job->attempt = attempt;
    job->result = g_strdup(result);
    g_async_queue_push(v->host->jobs, job);
}

static LibvirtVm *vm_of(Host *host, const char *uuid, const char *name)
{
    LibvirtVm *v = g_hash_table_lookup(host->vms, uuid);

    if (!v) {
        v = g_new0(LibvirtVm, 1);
        v->host = host;
        g_strlcpy(v->uuid, uuid, UUID_LEN);
        v->vm.name = host->only ? g_strdup(name)
                                : g_strdup_printf("%s@%s", name, host->uri);
        v->vm.query = libvirt_query;
        v->vm.resolve = libvirt_resolve;
        g_hash_table_insert(host->vms, v->uuid, v);
        sg_agent_add(&v->vm);
    }
    return v;
}

static gboolean found_in_main(gpointer opaque)
{
    Found *found = opaque;
    LibvirtVm *v = vm_of(found->host, found->uuid, found->name);
    QDict *reply = qobject_to(QDict, found->reply);
    QObject *ret = reply ? qdict_get(reply, "return") : NULL;
    QDict *answer = qobject_to(QDict, ret);

    if (found->job->resolve) {
        sg_agent_outcome(&v->vm, found->job->id, found->job->attempt,
                         answer ? qdict_get_try_str(answer, "outcome") ?: "?"
                                : "error");
    } else if (qobject_to(QList, ret)) {
        sg_agent_requests(&v->vm, qobject_to(QList, ret));
    }
    job_free(found->job);
    qobject_unref(found->reply);
    g_free(found->name);
    g_free(found);
    return G_SOURCE_REMOVE;
}

/*
 * A host's thread
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

static void do_job(Host *host, Job *job)
{
    virDomainPtr domain = virDomainLookupByUUIDString(host->conn, job->uuid);
    g_autofree char *command = command_of(job);
    Found *found;
    char *text = NULL;

    /* a QEMU without the command, and a domain that is off, are no trouble */
    if (!domain || virDomainQemuMonitorCommand(domain, command, &text, 0) < 0) {
        job_free(job);
    } else {
        found = g_new0(Found, 1);
        found->host = host;
        found->name = g_strdup(virDomainGetName(domain));
        g_strlcpy(found->uuid, job->uuid, UUID_LEN);
        found->job = job;
        found->reply = qobject_from_json(text, NULL);
        g_idle_add(found_in_main, found);
    }
    free(text);
    if (domain) {
        virDomainFree(domain);
    }
}

/* libvirt's event loop */
static void event(virConnectPtr conn, virDomainPtr domain, const char *name,
                  long long seconds, unsigned int micros, const char *details,
                  void *opaque)
{
    char uuid[UUID_LEN];

    if (virDomainGetUUIDString(domain, uuid) == 0) {
        push_query(opaque, uuid);
    }
}

static bool host_connect(Host *host)
{
    virDomainPtr *domains = NULL;
    int count;

    host->conn = virConnectOpen(host->uri);
    if (!host->conn) {
        return false;
    }
    virConnectSetKeepAlive(host->conn, KEEPALIVE_S, 3);
    if (virConnectDomainQemuMonitorEventRegister(
            host->conn, NULL, "BLOCK_SPACE_REQUEST", event, host, NULL,
            0) < 0) {
        virConnectClose(host->conn);
        return false;
    }
    /* events are on: nothing is missed between them and the questions */
    count = virConnectListAllDomains(host->conn, &domains,
                                     VIR_CONNECT_LIST_DOMAINS_ACTIVE);
    for (int i = 0; i < count; i++) {
        char uuid[UUID_LEN];

        if (virDomainGetUUIDString(domains[i], uuid) == 0) {
            push_query(host, uuid);
        }
        virDomainFree(domains[i]);
    }
    free(domains);
    g_message("%s: connected", host->uri);
    return true;
}

static gpointer host_thread(gpointer opaque)
{
    Host *host = opaque;

    for (;;) {
        if (!host_connect(host)) {
            g_usleep(RETRY_US);
            continue;
        }
        while (virConnectIsAlive(host->conn) == 1) {
            Job *job = g_async_queue_timeout_pop(host->jobs, RETRY_US);

            if (job) {
                do_job(host, job);
            }
        }
        g_message("%s: connection lost", host->uri);
        virConnectClose(host->conn);
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
        host->jobs = g_async_queue_new();
        host->vms = g_hash_table_new(g_str_hash, g_str_equal);
        g_thread_unref(g_thread_new("host", host_thread, host));
    }
    return true;
}
