/*
 * Storage growth: providers of storage
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Programs run beside the main loop.  One that takes too long is killed with
 * all that it has started, in a process group of its own.  It is waited for
 * even then: what cannot be killed now must not run twice.  Not all run at a
 * time that an agent can ask for.
 * What is done without a program are a few system calls on local files.  They
 * may take as long as their disks do, so they have threads; not GLib's own for
 * tasks, because strangers can keep those with TLS handshakes.
 *
 * Without a "resource" in the policy, names come from a virtual machine.  What
 * is opened then is what counts: its own name, without symbolic links, has to
 * match the policy, too, and it is used by its descriptor from there on.
 */

#include "qemu/osdep.h"
#include <gio/gio.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "provider.h"

#define OUTPUT_MAX_BYTES (64 * 1024)
#define THREADS_MAX 16
#define PROGRAMS_MAX 32           /* more wait; as in the manual */
#define POOL_MAX 8                /* of these for one pool; there as well */

/* <linux/mount.h> and <sys/mount.h> exclude each other */
#define PICK_CLOEXEC 0x1
#define PICK_EMPTY_PATH 0x8
#define CONFIG_SET_STRING 1
#define CONFIG_RECONFIGURE 7

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
    char *pool;                   /* of a program; see program_pool() */
    GSubprocess *process;
    GCancellable *cancel;         /* of reading what it prints */
    unsigned timer;
    bool timed_out;
} Job;

static void program_start(Job *job);

/*
 * Programs that run, or are being waited for, and those that are to.  Those of
 * one pool, which may be dead, must not keep all the others waiting.
 */
static GQueue programs = G_QUEUE_INIT;
static GQueue programs_next = G_QUEUE_INIT;

/* What is dead at the same time: a volume group, an RBD pool, a program */
static char *program_pool(const Job *job)
{
    return job->policy->provider == SG_PROVIDER_EXEC
               ? g_strjoinv("\n", job->policy->command)
               : g_path_get_dirname(job->resource);
}

static bool may_start(const Job *job)
{
    unsigned n = 0;

    for (GList *el = programs.head; el; el = el->next) {
        n += g_str_equal(((Job *)el->data)->pool, job->pool);
    }
    return programs.length < PROGRAMS_MAX && n < POOL_MAX;
}

static void programs_enter(Job *job)
{
    job->pool = program_pool(job);
    if (may_start(job)) {
        g_queue_push_tail(&programs, job);
        program_start(job);
    } else {
        g_queue_push_tail(&programs_next, job);
    }
}

static void programs_leave(Job *job)
{
    GList *el = programs_next.head;

    if (!g_queue_remove(&programs, job)) {
        return;
    }
    while (el && !may_start(el->data)) {
        el = el->next;
    }
    /* one that leaves makes way for one */
    if (el) {
        g_queue_unlink(&programs_next, el);
        g_queue_push_tail_link(&programs, el);
        program_start(el->data);
    }
}

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

bool sg_provider_is_same(const SgPolicy *a, const SgPolicy *b)
{
    /* programs may go to hosts that each have a thing of that name */
    return a->provider == b->provider &&
           (!a->command || g_strv_equal((const char *const *)a->command,
                                        (const char *const *)b->command));
}

static void job_free(Job *job)
{
    programs_leave(job);
    g_clear_object(&job->process);
    g_clear_object(&job->cancel);
    g_free(job->resource);
    g_free(job->pool);
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
        sg_provider_size(job->policy, job->resource, job->vm, job->done,
                         job->opaque);
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

/* A file, because a pipe would break if the program does not read it */
static int input_file(const char *input)
{
    size_t len = strlen(input);
    int fd = memfd_create("input", MFD_CLOEXEC);
    int saved;

    if (fd >= 0 && (qemu_write_full(fd, input, len) != len ||
                    lseek(fd, 0, SEEK_SET) < 0)) {
        saved = errno;
        close(fd);
        errno = saved;
        fd = -1;
    }
    return fd;
}

/* @input is what it reads, or NULL */
static void run_program(Job *job, const char *const *argv, const char *input)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GSubprocessLauncher) launcher =
        g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_STDOUT_PIPE |
                                  G_SUBPROCESS_FLAGS_STDERR_PIPE);

    if (input) {
        int fd = input_file(input);

        if (fd < 0) {
            job_set_error(job, argv[0], g_strerror(errno));
            g_idle_add_full(G_PRIORITY_HIGH, job_finish, job, NULL);
            return;
        }
        g_subprocess_launcher_take_stdin_fd(launcher, fd);
    }
    g_subprocess_launcher_set_child_setup(launcher, lead_group, NULL, NULL);
    job->process = g_subprocess_launcher_spawnv(launcher, argv, &error);
    if (!job->process) {
        job_set_error(job, argv[0], error->message);
        g_idle_add_full(G_PRIORITY_HIGH, job_finish, job, NULL);
        return;
    }
    job->timer = g_timeout_add(job->policy->timeout_ms, program_late, job);
    job->cancel = g_cancellable_new();
    g_subprocess_communicate_utf8_async(job->process, NULL, job->cancel,
                                        program_ended, job);
}

static void run_exec(Job *job)
{
    QDict *d = qdict_new();
    GString *json;

    qdict_put_str(d, "op", job->target ? "grow" : "size");
    qdict_put_str(d, "resource", job->name);
    qdict_put_str(d, "vm", job->vm);
    if (job->target) {
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

/*
 * System calls
 */

/* Whether the policy covers what was opened, see the head of this file */
static bool is_covered(Job *job, int fd)
{
    const SgPolicy *p = job->policy;
    g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *real = NULL;

    if (p->resource) {
        return true;
    }
    real = g_file_read_link(link, NULL);
    return real && (p->provider == SG_PROVIDER_TMPFS
                        ? g_str_equal(real, job->name)
                        : g_pattern_match_simple(p->path, real));
}

/*
 * Returns a descriptor, or -1 with an error set.  O_NONBLOCK: there may be a
 * FIFO of that name.
 */
static int open_name(Job *job, int flags)
{
    int fd = open(job->name, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0) {
        job_set_error(job, "it cannot be opened", g_strerror(errno));
    } else if (!is_covered(job, fd)) {
        job_set_error(job, "it cannot be grown", "it leads to something that "
                      "the policy does not cover");
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Changes nothing but the size; mount(8) sets other options, too */
static bool tmpfs_grow(int fd, uint64_t target)
{
    g_autofree char *size = g_strdup_printf("%" PRIu64, target);
    int picked = syscall(SYS_fspick, fd, "", PICK_CLOEXEC | PICK_EMPTY_PATH);
    bool ok;
    int saved;

    if (picked < 0) {
        return false;
    }
    ok = syscall(SYS_fsconfig, picked, CONFIG_SET_STRING, "size", size,
                 0) == 0 &&
         syscall(SYS_fsconfig, picked, CONFIG_RECONFIGURE, NULL, NULL, 0) == 0;
    saved = errno;
    close(picked);
    errno = saved;
    return ok;
}

static void do_tmpfs(Job *job)
{
    int fd = open_name(job, O_PATH | O_DIRECTORY);
    struct statfs st;

    if (fd >= 0) {
        if (fstatfs(fd, &st) < 0) {
            job_set_error(job, "statfs", g_strerror(errno));
        } else if (st.f_type != TMPFS_MAGIC) {
            job_set_error(job, "it cannot be grown", "it is no tmpfs");
        } else if (job->target > (uint64_t)st.f_blocks * st.f_bsize &&
                   (!tmpfs_grow(fd, job->target) || fstatfs(fd, &st) < 0)) {
            job_set_error(job, "it cannot be grown", g_strerror(errno));
        } else {
            job->size = MIN((uint64_t)st.f_blocks * st.f_bsize, INT64_MAX);
        }
        close(fd);
    }
}

static void do_file(Job *job)
{
    int fd = open_name(job, O_RDWR | O_NOFOLLOW);
    struct stat st;

    if (fd < 0) {
        return;
    }
    if (fstat(fd, &st) < 0) {
        job_set_error(job, "it cannot be opened", g_strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        job_set_error(job, "it cannot be grown", "it is no file");
    } else if (job->target > st.st_size &&
               (ftruncate(fd, job->target) < 0 || fsync(fd) < 0)) {
        job_set_error(job, "it cannot be grown", g_strerror(errno));
    } else {
        job->size = MAX((uint64_t)st.st_size, job->target);
    }
    close(fd);
}

/* The name that the kernel has for the file behind a loop device */
static char *loop_backing_file(int device, GError **error)
{
    g_autofree char *path = NULL;
    struct stat st;
    char *text;

    if (fstat(device, &st) < 0) {
        return NULL;
    }
    path = g_strdup_printf("/sys/dev/block/%u:%u/loop/backing_file",
                           major(st.st_rdev), minor(st.st_rdev));
    if (!g_file_get_contents(path, &text, NULL, error)) {
        return NULL;
    }
    return g_strchomp(text);
}

/* Whether it is this file: another may have its name by now */
static bool loop_is_behind(int device, const struct stat *st)
{
    struct loop_info64 info;

    return ioctl(device, LOOP_GET_STATUS64, &info) == 0 &&
           info.lo_inode == st->st_ino && info.lo_device == st->st_dev;
}

/* The size is not synced: a flush of the device takes it along with data */
static bool loop_grow_file(Job *job, int device)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *backing = loop_backing_file(device, &error);
    struct stat st;
    bool ok = false;
    int fd;

    if (!backing) {
        job_set_error(job, "it has no file",
                      error ? error->message : "it is no device");
        return false;
    }
    fd = open(backing, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0) {
        job_set_error(job, backing, g_strerror(errno));
    } else if (!loop_is_behind(device, &st)) {
        job_set_error(job, backing, "it is not the file of this device");
    } else if (S_ISREG(st.st_mode) && st.st_size < job->target &&
               ftruncate(fd, job->target) < 0) {
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
    int fd = open_name(job, O_RDONLY);
    uint64_t size;

    if (fd >= 0) {
        if (ioctl(fd, BLKGETSIZE64, &size) < 0) {
            job_set_error(job, "it cannot be opened", g_strerror(errno));
        } else if (size < job->target && loop_grow_file(job, fd) &&
                   (ioctl(fd, LOOP_SET_CAPACITY) < 0 ||
                    ioctl(fd, BLKGETSIZE64, &size) < 0)) {
            job_set_error(job, "it cannot be grown", g_strerror(errno));
        } else {
            job->size = MIN(size, (uint64_t)INT64_MAX);
        }
        close(fd);
    }
}

/* In a thread, which has the job to itself */
static void do_job(gpointer data, gpointer opaque)
{
    Job *job = data;

    switch (job->policy->provider) {
    case SG_PROVIDER_TMPFS:
        do_tmpfs(job);
        break;
    case SG_PROVIDER_FILE:
        do_file(job);
        break;
    default:
        do_loop(job);
        break;
    }
    g_idle_add_full(G_PRIORITY_HIGH, job_finish, job, NULL);
}

static void start_thread(Job *job)
{
    static GThreadPool *threads;

    if (!threads) {
        threads = g_thread_pool_new(do_job, NULL, THREADS_MAX, false, NULL);
    }
    g_thread_pool_push(threads, job, NULL);
}

static void program_start(Job *job)
{
    switch (job->policy->provider) {
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

static void job_start(Job *job)
{
    job->name = strchr(job->resource, ':') + 1;
    switch (job->policy->provider) {
    case SG_PROVIDER_TMPFS:
    case SG_PROVIDER_FILE:
    case SG_PROVIDER_LOOP:
        start_thread(job);
        break;
    default:
        programs_enter(job);
        break;
    }
}

void sg_provider_size(const SgPolicy *policy, const char *resource,
                      const char *vm, SgProviderDone *done, void *opaque)
{
    Job *job = g_new0(Job, 1);

    job->policy = policy;
    job->resource = g_strdup(resource);
    job->vm = g_strdup(vm);
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
