/*
 * Posted output of character device "file": a thread waits for the file
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A write to a regular file never says that it would wait, it waits; with a
 * server that is dead, for ever.  Here it is a thread that does, one of those
 * for host calls that may not return.  It owns what it works on, so that
 * nobody has to wait for it.
 */

#include "qemu/osdep.h"
#include "chardev/char-fe.h"
#include "chardev/char-file-post.h"
#include "qapi/error.h"
#include "qemu/async-call.h"
#include "qemu/event_notifier.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"

#define END_MS 1000

/* Has a reference of its owner, its thread and each watch */
struct CharFilePost {
    unsigned refs;
    int fd;
    EventNotifier room;         /* set: there is */

    QemuMutex lock;
    QemuCond ended;
    /* Protected by lock */
    bool running;               /* there is a thread */
    int error;                  /* of an earlier write */
    unsigned used;
    uint8_t data[CHAR_FILE_POST_BYTES];
};

typedef struct RoomSource {
    GSource parent;
    CharFilePost *p;
    gpointer tag;
} RoomSource;

static CharFilePost *ref_post(CharFilePost *p)
{
    qatomic_inc(&p->refs);
    return p;
}

/* A server that is slow to take what is written is so with this, too. */
static void close_file(void *opaque)
{
    close(GPOINTER_TO_INT(opaque));
}

static void unref_post(CharFilePost *p)
{
    if (qatomic_fetch_dec(&p->refs) > 1) {
        return;
    }
    qemu_cond_destroy(&p->ended);
    qemu_mutex_destroy(&p->lock);
    event_notifier_cleanup(&p->room);
    /* without a thread it stays open: nobody waits here */
    async_pool_submit(close_file, GINT_TO_POINTER(p->fd));
    g_free(p);
}

CharFilePost *char_file_post_new(int fd)
{
    CharFilePost *p;

    fd = qemu_dup(fd);
    if (fd < 0) {
        return NULL;
    }
    p = g_new0(CharFilePost, 1);
    if (event_notifier_init(&p->room, true) < 0) {
        close(fd);
        g_free(p);
        return NULL;
    }
    p->refs = 1;
    p->fd = fd;
    qemu_mutex_init(&p->lock);
    qemu_cond_init(&p->ended);
    return p;
}

CharFilePost *char_file_post_open(int fd, const char *path, Error **errp)
{
    CharFilePost *p;
    struct stat st;

    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "Cannot stat '%s'", path);
        return NULL;
    }
    if (!S_ISREG(st.st_mode)) {
        error_setg(errp, "Option 'posted-writes' of chardev file is on, but "
                   "'%s' is not a regular file", path);
        return NULL;
    }
    p = char_file_post_new(fd);
    if (!p) {
        error_setg_errno(errp, errno, "Cannot post writes to '%s'", path);
    }
    return p;
}

void char_file_post_free(CharFilePost *p)
{
    if (!p) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        while (p->running &&
               qemu_cond_timedwait(&p->ended, &p->lock, END_MS)) {
            /* it ended, or this was woken without reason */
        }
    }
    unref_post(p);
}

/* Returns how much there was; when it was nothing, the thread has ended. */
static unsigned take(CharFilePost *p, uint8_t *data)
{
    unsigned len;

    QEMU_LOCK_GUARD(&p->lock);
    len = p->used;
    memcpy(data, p->data, len);
    p->used = 0;
    event_notifier_set(&p->room);
    if (!len) {
        p->running = false;
        qemu_cond_broadcast(&p->ended);
    }
    return len;
}

static void write_file(void *opaque)
{
    CharFilePost *p = opaque;
    uint8_t data[CHAR_FILE_POST_BYTES];
    unsigned len;

    while ((len = take(p, data))) {
        if (qemu_write_full(p->fd, data, len) < len) {
            int err = errno;

            QEMU_LOCK_GUARD(&p->lock);
            p->error = err;
        }
    }
    unref_post(p);
}

/* Returns how many bytes were taken, or a negative error number. */
static int put(CharFilePost *p, const uint8_t *buf, int len, bool *start)
{
    QEMU_LOCK_GUARD(&p->lock);
    if (p->error) {
        int err = p->error;

        p->error = 0;
        return -err;
    }
    len = MIN(len, CHAR_FILE_POST_BYTES - p->used);
    if (!len) {
        return -EAGAIN;
    }
    memcpy(p->data + p->used, buf, len);
    p->used += len;
    if (p->used == CHAR_FILE_POST_BYTES) {
        event_notifier_test_and_clear(&p->room);
    }
    *start = !p->running;
    p->running = true;
    return len;
}

int char_file_post_write(CharFilePost *p, const uint8_t *buf, int len)
{
    bool start = false;
    int ret = put(p, buf, len, &start);

    if (start) {
        ref_post(p);
        if (!async_pool_submit(write_file, p)) {
            /* no thread: wait, as without this */
            write_file(p);
        }
    }
    if (ret < 0) {
        errno = -ret;
        return -1;
    }
    return ret;
}

static gboolean room_check(GSource *source)
{
    RoomSource *s = (RoomSource *)source;

    return g_source_query_unix_fd(source, s->tag) & G_IO_IN;
}

static gboolean room_dispatch(GSource *source, GSourceFunc callback,
                              gpointer opaque)
{
    return ((FEWatchFunc)callback)(NULL, G_IO_OUT, opaque);
}

static void room_finalize(GSource *source)
{
    unref_post(((RoomSource *)source)->p);
}

static GSourceFuncs room_funcs = {
    .check = room_check,
    .dispatch = room_dispatch,
    .finalize = room_finalize,
};

GSource *char_file_post_watch(CharFilePost *p)
{
    GSource *source = g_source_new(&room_funcs, sizeof(RoomSource));
    RoomSource *s = (RoomSource *)source;

    s->p = ref_post(p);
    s->tag = g_source_add_unix_fd(source, event_notifier_get_fd(&p->room),
                                  G_IO_IN);
    return source;
}
