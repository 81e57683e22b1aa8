/*
 * Storage growth: providers of storage
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Programs run beside the main loop.  One that takes too long is killed with
 * all that it has started, in a process group of its own.  It is waited for
 * even then: what cannot be killed now must not run twice.
 * What is done without a program are a few system calls on local files.
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "provider.h"

#define OUTPUT_MAX_BYTES (64 * 1024)

typedef struct Job {
    const SgPolicy *policy;
    char *resource;
    const char *name;             /* in @resource, without the provider */
    char *vm;
    char *key;
    uint64_t target;              /* 0: tell the size */
    SgProviderDone *done;
    void *opaque;

    int64_t size;
    char *error;
    GSubprocess *process;
    GCancellable *cancel;         /* of reading what it prints */
    unsigned timer;
    bool timed_out;
} Job;

char *sg_provider_resource(const SgPolicy *p, const char *path)
{
    g_autofree char *name = NULL;

    if (p->resource) {
        name = g_strdup(p->resource);
    } else if (p->provider == SG_PROVIDER_TMPFS) {
        name = g_path_get_dirname(path);
    } else {
        name = g_strdup(path);
    }
    return g_strdup_printf("%s:%s", sg_provider_name(p->provider), name);
}

static void job_free(Job *job)
{
    g_clear_object(&job->process);
    g_clear_object(&job->cancel);
    g_free(job->resource);
    g_free(job->vm);
    g_free(job->key);
    g_free(job->error);
    g_free(job);
}

static gboolean job_finish(gpointer opaque)
{
    Job *job = opaque;

    job->done(job->error ? -1 : job->size, job->error, job->opaque);
    job_free(job);
    return G_SOURCE_REMOVE;
}

static void job_set_error(Job *job, const char *what, const char *why)
{
    g_free(job->error);
    job->error = g_strdup_printf("%s: %s: %s", job->resource, what, why);
}

/*
 * Programs
 */

static int64_t size_from_output(Job *job, const char *out)
{
    QObject *object;
    QDict *dict;
    int64_t size = -1;
    char *end;

    if (job->policy->provider == SG_PROVIDER_LVM) {
        size = g_ascii_strtoll(out, &end, 10);
        return end == out || *g_strchug(end) ? -1 : size;
    }
    object = qobject_from_json(out, NULL);
    dict = qobject_to(QDict, object);
    if (dict) {
        size = qdict_get_try_int(dict, "size", -1);
    }
    qobject_unref(object);
    return size;
}

static void program_ended(GObject *source, GAsyncResult *result,
                          gpointer opaque)
{
    Job *job = opaque;
    g_autoptr(GError) error = NULL;
    g_autofree char *out = NULL, *err = NULL;

    g_subprocess_communicate_utf8_finish(job->process, result, &out, &err,
                                         &error);
    if (job->timer) {
        g_source_remove(job->timer);
    }
    if (job->timed_out) {
        job_set_error(job, "program", "it took too long and was killed");
    } else if (error) {
        job_set_error(job, "program", error->message);
    } else if (!g_subprocess_get_if_exited(job->process) ||
               g_subprocess_get_exit_status(job->process)) {
        g_strstrip(err);
        job_set_error(job, "program failed", *err ? err : "no message");
    } else if (!job->target || job->policy->provider == SG_PROVIDER_EXEC) {
        job->size = strlen(out) > OUTPUT_MAX_BYTES
                        ? -1 : size_from_output(job, out);
        if (job->size < 0) {
            job_set_error(job, "program", "it told no size");
        }
    } else {
        /* done; see what came of it */
        sg_provider_size(job->policy, job->resource, job->done, job->opaque);
        job_free(job);
        return;
    }
    job_finish(job);
}

/*
 * It has ended, but a process that it left behind, in a group of its own, may
 * still hold the pipes
 */
static void late_program_ended(GObject *source, GAsyncResult *result,
                               gpointer opaque)
{
    g_autoptr(GCancellable) cancel = opaque;

    g_subprocess_wait_finish(G_SUBPROCESS(source), result, NULL);
    g_cancellable_cancel(cancel);
}

static gboolean program_late(gpointer opaque)
{
    Job *job = opaque;
    const char *pid = g_subprocess_get_identifier(job->process);

    job->timer = 0;
    job->timed_out = true;
    if (pid) {
        kill(-(pid_t)g_ascii_strtoll(pid, NULL, 10), SIGKILL);
    }
    g_subprocess_wait_async(job->process, NULL, late_program_ended,
                            g_object_ref(job->cancel));
    return G_SOURCE_REMOVE;
}

/* In the child */
static void lead_group(gpointer opaque)
{
    setpgid(0, 0);
}

static void run_program(Job *job, const char *const *argv, const char *input)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GSubprocessLauncher) launcher =
        g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_STDIN_PIPE |
                                  G_SUBPROCESS_FLAGS_STDOUT_PIPE |
                                  G_SUBPROCESS_FLAGS_STDERR_PIPE);

    g_subprocess_launcher_set_child_setup(launcher, lead_group, NULL, NULL);
    job->process = g_subprocess_launcher_spawnv(launcher, argv, &error);
    if (!job->process) {
        job_set_error(job, argv[0], error->message);
        g_idle_add(job_finish, job);
        return;
    }
    job->timer = g_timeout_add(job->policy->timeout_ms, program_late, job);
    job->cancel = g_cancellable_new();
    g_subprocess_communicate_utf8_async(job->process, input, job->cancel,
                                        program_ended, job);
}

static void run_exec(Job *job)
{
    QDict *d = qdict_new();
    GString *json;

    qdict_put_str(d, "op", job->target ? "grow" : "size");
    qdict_put_str(d, "resource", job->name);
    if (job->target) {
        qdict_put_str(d, "vm", job->vm);
        qdict_put_str(d, "key", job->key);
        qdict_put_int(d, "target", job->target);
    }
    json = qobject_to_json(QOBJECT(d));
    g_string_append_c(json, '\n');
    run_program(job, (const char *const *)job->policy->command, json->str);
    g_string_free(json, true);
    qobject_unref(d);
}

static void run_lvm(Job *job)
{
    g_autofree char *size = g_strdup_printf("%" PRIu64 "b", job->target);
    const char *tell[] = {
        "lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size",
        "--", job->name, NULL
    };
    const char *grow[] = { "lvextend", "-L", size, "--", job->name, NULL };

    run_program(job, job->target ? grow : tell, NULL);
}

static void run_rbd(Job *job)
{
    g_autofree char *size = g_strdup_printf("%" PRIu64 "B", job->target);
    const char *tell[] = { "rbd", "info", "--format", "json", job->name, NULL };
    const char *grow[] = {
        "rbd", "resize", "--no-progress", "--size", size, job->name, NULL
    };

    run_program(job, job->target ? grow : tell, NULL);
}

static void run_tmpfs(Job *job)
{
    g_autofree char *size = g_strdup_printf("remount,size=%" PRIu64,
                                            job->target);
    const char *grow[] = { "mount", "-o", size, "--", job->name, NULL };

    run_program(job, grow, NULL);
}

/*
 * System calls
 */

static void tell_filesystem(Job *job)
{
    struct statvfs st;

    if (statvfs(job->name, &st) < 0) {
        job_set_error(job, "statvfs", g_strerror(errno));
    } else {
        job->size = MIN((double)st.f_blocks * st.f_frsize, INT64_MAX / 2);
    }
    g_idle_add(job_finish, job);
}

static void do_file(Job *job)
{
    int fd = open(job->name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        job_set_error(job, "it cannot be opened", g_strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        job_set_error(job, "it cannot be grown", "it is no file");
    } else if (job->target > st.st_size &&
               (ftruncate(fd, job->target) < 0 || fsync(fd) < 0)) {
        job_set_error(job, "it cannot be grown", g_strerror(errno));
    } else {
        job->size = MAX((uint64_t)st.st_size, job->target);
    }
    if (fd >= 0) {
        close(fd);
    }
    g_idle_add(job_finish, job);
}

static char *loop_backing_file(const char *device, GError **error)
{
    g_autofree char *base = g_path_get_basename(device);
    g_autofree char *path =
        g_strdup_printf("/sys/block/%s/loop/backing_file", base);
    char *text;

    if (!g_file_get_contents(path, &text, NULL, error)) {
        return NULL;
    }
    return g_strchomp(text);
}

static bool loop_grow_file(Job *job)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *backing = loop_backing_file(job->name, &error);
    struct stat st;
    bool ok = false;
    int fd;

    if (!backing) {
        job_set_error(job, "it has no file", error->message);
        return false;
    }
    fd = open(backing, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        job_set_error(job, backing, g_strerror(errno));
    } else if (S_ISREG(st.st_mode) && st.st_size < job->target &&
               (ftruncate(fd, job->target) < 0 || fsync(fd) < 0)) {
        job_set_error(job, backing, g_strerror(errno));
    } else {
        ok = true;
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static void do_loop(Job *job)
{
    int fd = open(job->name, O_RDONLY | O_CLOEXEC);
    uint64_t size;

    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0) {
        job_set_error(job, "it cannot be opened", g_strerror(errno));
    } else if (size < job->target && loop_grow_file(job) &&
               (ioctl(fd, LOOP_SET_CAPACITY) < 0 ||
                ioctl(fd, BLKGETSIZE64, &size) < 0)) {
        job_set_error(job, "it cannot be grown", g_strerror(errno));
    } else {
        job->size = MIN(size, (uint64_t)INT64_MAX);
    }
    if (fd >= 0) {
        close(fd);
    }
    g_idle_add(job_finish, job);
}

static void job_start(Job *job)
{
    job->name = strchr(job->resource, ':') + 1;
    switch (job->policy->provider) {
    case SG_PROVIDER_TMPFS:
        if (job->target) {
            run_tmpfs(job);
        } else {
            tell_filesystem(job);
        }
        break;
    case SG_PROVIDER_FILE:
        do_file(job);
        break;
    case SG_PROVIDER_LOOP:
        do_loop(job);
        break;
    case SG_PROVIDER_LVM:
        run_lvm(job);
        break;
    case SG_PROVIDER_RBD:
        run_rbd(job);
        break;
    default:
        run_exec(job);
        break;
    }
}

void sg_provider_size(const SgPolicy *policy, const char *resource,
                      SgProviderDone *done, void *opaque)
{
    Job *job = g_new0(Job, 1);

    job->policy = policy;
    job->resource = g_strdup(resource);
    job->done = done;
    job->opaque = opaque;
    job_start(job);
}

void sg_provider_grow(const SgPolicy *policy, const char *resource,
                      const char *vm, const char *key, uint64_t target,
                      SgProviderDone *done, void *opaque)
{
    Job *job = g_new0(Job, 1);

    job->policy = policy;
    job->resource = g_strdup(resource);
    job->vm = g_strdup(vm);
    job->key = g_strdup(key);
    job->target = target;
    job->done = done;
    job->opaque = opaque;
    job_start(job);
}
