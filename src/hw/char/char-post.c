/*
 * Posted writes: a device's output waits for a slow reader, the vCPU does not
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The first attempt is an ordinary write that does not block, so a reader that
 * keeps up costs nothing.  What it leaves is put into a FIFO, and a watch of
 * the main loop takes it from there.  No stack is set aside: the FIFO is the
 * state of the device, so neither a stop, nor a migration, nor the end has to
 * wait for the reader.
 */

#include "qemu/osdep.h"
#include "exec/icount.h"
#include "hw/char/char-post.h"
#include "qapi/error.h"
#include "system/async-call-vm.h"
#include "system/replay.h"
#include "trace.h"

/* What is given up with an error, at most */
#define LOST_BYTES 512

/* inlined: written at once; parked: waited; refused: the vCPU waited */
static AsyncCallSite post_site = { .name = "chardev" };

/* Nothing waits any more */
static void ring_bell(CharPost *post)
{
    trace_char_post_empty();
    if (post->emptied) {
        post->bell = true;
        qemu_bh_schedule(post->emptied_bh);
    }
}

/* What it calls writes guest memory, so not while the VM is stopped. */
static void answer_bell(void *opaque)
{
    CharPost *post = opaque;

    if (post->bell && runstate_is_running()) {
        post->bell = false;
        post->emptied(post);
    }
}

static void block_until_written(CharPost *post, CharFrontend *fe,
                                const uint8_t *buf, int len)
{
    bool waited = !fifo8_is_empty(&post->fifo);

    while (!fifo8_is_empty(&post->fifo)) {
        uint32_t waiting;
        const uint8_t *data = fifo8_pop_bufptr(&post->fifo,
                                               fifo8_num_used(&post->fifo),
                                               &waiting);

        qemu_chr_fe_write_all(fe, data, waiting);
    }
    qemu_chr_fe_write_all(fe, buf, len);
    if (post->watch) {
        /* nothing waits; and the reader may have gone, with its descriptor */
        g_source_remove(post->watch);
        post->watch = 0;
    }
    if (waited) {
        ring_bell(post);
    }
}

/* Returns false if the reader has no room now. */
static bool write_some(CharPost *post)
{
    uint32_t len;
    const uint8_t *data = fifo8_peek_bufptr(&post->fifo,
                                            fifo8_num_used(&post->fifo), &len);
    int ret = qemu_chr_fe_write(post->fe, data, len);

    if (ret > 0) {
        fifo8_drop(&post->fifo, ret);
        return true;
    }
    if (ret == 0 || errno == EAGAIN) {
        return false;
    }
    /* qemu_chr_fe_write_all() gives a piece up then, too; a disk may be full */
    len = MIN(len, LOST_BYTES);
    trace_char_post_lost(len, errno);
    fifo8_drop(&post->fifo, len);
    return true;
}

/* Returns false if the reader has no room for all of it now. */
static bool write_what_waits(CharPost *post)
{
    while (!fifo8_is_empty(&post->fifo)) {
        if (!write_some(post)) {
            return false;
        }
    }
    ring_bell(post);
    return true;
}

static void start_watch(CharPost *post);

static gboolean reader_has_room(void *do_not_use, GIOCondition cond,
                                void *opaque)
{
    CharPost *post = opaque;

    post->watch = 0;
    if (!write_what_waits(post)) {
        /* of a hub, another reader than the one that had no room before */
        start_watch(post);
    }
    return G_SOURCE_REMOVE;
}

static bool add_watch(CharPost *post)
{
    post->watch = qemu_chr_fe_add_watch(post->fe, G_IO_OUT | G_IO_HUP,
                                        reader_has_room, post);
    return post->watch;
}

/* Have the main loop write what waits, if the VM runs. */
static void start_watch(CharPost *post)
{
    if (post->watch || fifo8_is_empty(&post->fifo) || !runstate_is_running()) {
        return;
    }
    /*
     * A hub knows which reader to watch only when its last write met one that
     * had no room for anything: not after one that had for a part, nor where
     * this output was loaded.
     */
    if (!add_watch(post) && !write_what_waits(post) && !add_watch(post)) {
        /* nothing tells when this backend has room */
        block_until_written(post, post->fe, NULL, 0);
    }
}

static void vm_state_changed(void *opaque, bool running, RunState state)
{
    CharPost *post = opaque;

    if (running) {
        start_watch(post);
        if (post->bell) {
            qemu_bh_schedule(post->emptied_bh);
        }
    } else if (post->watch) {
        g_source_remove(post->watch);
        post->watch = 0;
    }
}

bool char_post_realize(CharPost *post, CharFrontend *fe, const char *type,
                       Error **errp)
{
    if (!post->on) {
        return true;
    }
    if (replay_mode != REPLAY_MODE_NONE || icount_enabled()) {
        error_setg(errp, "Property 'posted-writes' of %s is on, but must be "
                   "off with record/replay and icount", type);
        return false;
    }
    post->fe = fe;
    fifo8_create(&post->fifo, CHAR_POST_BYTES);
    post->emptied_bh = qemu_bh_new(answer_bell, post);
    post->vm_state = qemu_add_vm_change_state_handler(vm_state_changed, post);
    async_call_show_site(&post_site);
    return true;
}

void char_post_unrealize(CharPost *post)
{
    if (!post->vm_state) {
        return;
    }
    if (post->watch) {
        g_source_remove(post->watch);
        post->watch = 0;
    }
    qemu_del_vm_change_state_handler(post->vm_state);
    post->vm_state = NULL;
    qemu_bh_delete(post->emptied_bh);
    post->emptied_bh = NULL;
    fifo8_destroy(&post->fifo);
}

void char_post_reset(CharPost *post, ResetType type)
{
    if (post->on && type == RESET_TYPE_SNAPSHOT_LOAD) {
        fifo8_reset(&post->fifo);
        post->bell = false;
    }
}

bool char_post_is_full(CharPost *post, size_t len)
{
    /* more than ever has room is written as it would be without us */
    return post->on && !fifo8_is_empty(&post->fifo) &&
           len > fifo8_num_free(&post->fifo);
}

/* Returns how many bytes went, or all if they are lost as they would be. */
static int write_now(CharPost *post, const uint8_t *buf, int len)
{
    int ret;

    if (!fifo8_is_empty(&post->fifo)) {
        return 0;
    }
    ret = qemu_chr_fe_write(post->fe, buf, len);
    return ret >= 0 ? ret : errno == EAGAIN ? 0 : len;
}

void char_post_write(CharPost *post, CharFrontend *fe, const uint8_t *buf,
                     int len)
{
    int done;

    if (likely(!post->on)) {
        qemu_chr_fe_write_all(fe, buf, len);
        return;
    }
    done = write_now(post, buf, len);
    if (done == len) {
        post_site.inlined++;
        return;
    }
    if (fifo8_num_free(&post->fifo) < len - done) {
        post_site.refused++;
        trace_char_post_full(fifo8_num_used(&post->fifo));
        block_until_written(post, fe, buf + done, len - done);
        return;
    }
    post_site.parked++;
    fifo8_push_all(&post->fifo, buf + done, len - done);
    start_watch(post);
}

bool char_post_needed(CharPost *post)
{
    return post->on && !fifo8_is_empty(&post->fifo);
}

static int pre_save(void *opaque)
{
    CharPost *post = opaque;

    post->in_head = post->fifo.head;
    post->in_num = post->fifo.num;
    return 0;
}

/*
 * The stream is not trusted: Fifo8 would use these as they come, also those of
 * a stream that ends too soon.
 */
static int post_load(void *opaque, int version_id)
{
    CharPost *post = opaque;

    if (post->in_head >= CHAR_POST_BYTES || post->in_num > CHAR_POST_BYTES) {
        return -EINVAL;
    }
    post->fifo.head = post->in_head;
    post->fifo.num = post->in_num;
    return 0;
}

static bool pre_load(void *opaque, Error **errp)
{
    CharPost *post = opaque;

    if (!post->on) {
        error_setg(errp, "Output waits in the incoming device, whose property "
                   "'posted-writes' must be on here, too");
        return false;
    }
    fifo8_reset(&post->fifo);
    return true;
}

const VMStateDescription vmstate_char_post = {
    .name = "char-post",
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_load_errp = pre_load,
    .pre_save = pre_save,
    .post_load = post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(in_head, CharPost),
        VMSTATE_UINT32(in_num, CharPost),
        VMSTATE_BUFFER_POINTER_UNSAFE(fifo.data, CharPost, 0, CHAR_POST_BYTES),
        VMSTATE_END_OF_LIST()
    },
};
