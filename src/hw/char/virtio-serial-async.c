/*
 * virtio-serial ports on asynchronous character devices
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Elements are popped, submitted, completed and pushed in the order in which
 * the guest made them available.  So what is not done is always the newest of
 * what was popped, and can be unpopped, newest first.  An element that needs
 * no request (it has no bytes) waits in the list for its turn as well.
 *
 * Requests are taken back by this file (VM stop, reset, unplug) or by the
 * chardev's core (chardev-change, new handlers).  Both look the same from
 * here: when the last request of a queue has completed and some came back
 * without their bytes, these elements are given back to the queue and no more
 * are taken ("stalled") until the port is started again, or has a peer.
 */

#include "qemu/osdep.h"
#include "chardev/char-async.h"
#include "hw/virtio/virtio-serial-async.h"
#include "qemu/iov.h"
#include "qemu/queue.h"
#include "trace.h"

typedef struct AsyncQueue AsyncQueue;

typedef struct AsyncElem {
    CharAsyncReq req;
    AsyncQueue *queue;
    VirtQueueElement *elem;
    struct iovec *iov;          /* what is left of it, if it had begun */
    size_t size;                /* bytes in all */
    size_t base;                /* of these, done by earlier requests */
    bool done;
    QTAILQ_ENTRY(AsyncElem) next;
} AsyncElem;

typedef QTAILQ_HEAD(AsyncElems, AsyncElem) AsyncElems;

struct AsyncQueue {
    VirtIOSerialPort *port;
    bool write;
    bool notify;                /* elements were pushed */
    unsigned count;             /* elements in @elems */
    unsigned pending;           /* of these, with the chardev */
    AsyncElems elems;           /* oldest first */
};

struct VirtIOSerialAsync {
    CharFrontend *chr;
    bool running;               /* the VM runs */
    bool stalled;               /* the chardev does not want requests now */
    bool cutting;               /* do not keep what has begun */
    bool resetting;             /* the driver is on its way out */
    AsyncElems spare;          /* to be used again */
    AsyncQueue out, in;
};

static VirtQueue *queue_vq(AsyncQueue *q)
{
    return q->write ? q->port->ovq : q->port->ivq;
}

/* ------------------------------------------------------------ completion */

static size_t elem_result(const AsyncElem *e)
{
    return e->base + MAX(e->req.result, 0);
}

/* May it go back to the guest?  A read need not be full. */
static bool elem_complete(const AsyncElem *e)
{
    size_t result = elem_result(e);

    return e->queue->write ? result >= e->size : result > 0 || e->size == 0;
}

static void elem_remove(AsyncElem *e)
{
    QTAILQ_REMOVE(&e->queue->elems, e, next);
    QTAILQ_INSERT_HEAD(&e->queue->port->async->spare, e, next);
    e->queue->count--;
    g_free(e->iov);
}

static AsyncElem *elem_alloc(struct VirtIOSerialAsync *a)
{
    AsyncElem *e = QTAILQ_FIRST(&a->spare);

    if (e) {
        QTAILQ_REMOVE(&a->spare, e, next);
    } else {
        e = g_new(AsyncElem, 1);
    }
    return e;
}

static void push_complete(AsyncQueue *q)
{
    AsyncElem *e;

    while ((e = QTAILQ_FIRST(&q->elems)) && e->done && elem_complete(e)) {
        virtqueue_push(queue_vq(q), e->elem, q->write ? 0 : elem_result(e));
        g_free(e->elem);
        elem_remove(e);
        q->notify = true;
    }
}

/* Leave it to the port to go on with: this is what the stream has room for. */
static void keep_begun(VirtIOSerialPort *port, VirtQueueElement *elem,
                       size_t done)
{
    unsigned i = 0;

    while (i < elem->out_num && done >= elem->out_sg[i].iov_len) {
        done -= elem->out_sg[i++].iov_len;
    }
    port->elem = elem;
    port->iov_idx = i;
    port->iov_offset = done;
}

/* All requests are done, those that are left without all their bytes. */
static void give_back(AsyncQueue *q)
{
    struct VirtIOSerialAsync *a = q->port->async;
    AsyncElem *e;

    while ((e = QTAILQ_LAST(&q->elems))) {
        size_t result = elem_result(e);
        bool begun = q->write && result > 0;

        a->stalled = true;
        if (a->cutting && q->write) {
            char_async_counters.lost_bytes += e->size - MIN(result, e->size);
        }
        trace_virtio_serial_async_give_back(q->port->id, q->write, result,
                                            e->size);
        if (begun && !a->cutting) {
            keep_begun(q->port, e->elem, result);
        } else {
            virtqueue_unpop(queue_vq(q), e->elem, 0);
            g_free(e->elem);
        }
        elem_remove(e);
    }
}

static void fill(AsyncQueue *q);

static void batch_end(struct VirtIOSerialAsync *a)
{
    AsyncQueue *queues[] = { &a->out, &a->in };

    for (int i = 0; i < ARRAY_SIZE(queues); i++) {
        AsyncQueue *q = queues[i];

        if (q->notify) {
            q->notify = false;
            virtio_notify(VIRTIO_DEVICE(q->port->vser), queue_vq(q));
        }
        fill(q);
    }
}

static void request_done(void *opaque, CharAsyncReq *req)
{
    AsyncElem *e = opaque;
    AsyncQueue *q = e->queue;
    bool more = req->more;

    e->done = true;
    q->pending--;
    push_complete(q);
    if (!q->pending) {
        give_back(q);
    }
    if (!more) {
        batch_end(q->port->async);
    }
}

/* ---------------------------------------------------------------- submit */

static bool port_open(AsyncQueue *q)
{
    VirtIOSerialPort *port = q->port;
    VirtIODevice *vdev = VIRTIO_DEVICE(port->vser);
    bool guest_tells = virtio_vdev_has_feature(vdev,
                                               VIRTIO_CONSOLE_F_MULTIPORT);

    return port->host_connected && queue_vq(q) && !port->async->resetting &&
        virtio_queue_ready(queue_vq(q)) &&
        (vdev->status & VIRTIO_CONFIG_S_DRIVER_OK) &&
        (q->write || port->guest_connected || !guest_tells);
}

static AsyncElem *elem_new(AsyncQueue *q, VirtQueueElement *elem)
{
    AsyncElem *e = elem_alloc(q->port->async);

    *e = (AsyncElem) {
        .queue = q,
        .elem = elem,
        .req = {
            .iov = q->write ? elem->out_sg : elem->in_sg,
            .iovcnt = q->write ? elem->out_num : elem->in_num,
            .min = 1,
            .cb = request_done,
            .opaque = e,
        },
    };
    e->size = iov_size(e->req.iov, e->req.iovcnt);
    return e;
}

/*
 * The element that was begun before a stop, perhaps by another QEMU: its
 * position is from the stream, and not to be trusted.
 */
static AsyncElem *elem_begun(AsyncQueue *q)
{
    VirtIOSerialPort *port = q->port;
    AsyncElem *e = elem_new(q, port->elem);
    unsigned i = MIN(port->iov_idx, e->elem->out_num);

    port->elem = NULL;
    e->base = iov_size(e->elem->out_sg, i) + port->iov_offset;
    if (port->iov_offset > e->size || e->base >= e->size) {
        e->base = e->size;
        return e;
    }
    e->iov = g_new(struct iovec, e->req.iovcnt);
    e->req.iovcnt = iov_copy(e->iov, e->req.iovcnt, e->elem->out_sg,
                             e->elem->out_num, e->base, e->size - e->base);
    e->req.iov = e->iov;
    return e;
}

static AsyncElem *elem_next(AsyncQueue *q)
{
    VirtQueueElement *elem;

    if (q->write && q->port->elem) {
        return elem_begun(q);
    }
    elem = virtqueue_pop(queue_vq(q), sizeof(VirtQueueElement));
    return elem ? elem_new(q, elem) : NULL;
}

static void elem_submit(AsyncElem *e)
{
    AsyncQueue *q = e->queue;
    struct VirtIOSerialAsync *a = q->port->async;
    int ret;

    QTAILQ_INSERT_TAIL(&q->elems, e, next);
    q->count++;
    if (e->base >= e->size) {
        e->done = true;
        return;
    }
    ret = q->write ? qemu_chr_fe_submit_write(a->chr, &e->req)
                   : qemu_chr_fe_submit_read(a->chr, &e->req);
    if (ret < 0) {
        /* it waits for those before it, then goes back */
        e->req.result = ret;
        e->done = true;
        a->stalled = true;
    } else {
        q->pending++;
    }
}

static void fill(AsyncQueue *q)
{
    struct VirtIOSerialAsync *a = q->port->async;
    unsigned max, submitted = 0;

    if (!a->running || !q->port->async_active || a->cutting ||
        !port_open(q)) {
        return;
    }
    max = virtio_queue_get_num(VIRTIO_DEVICE(q->port->vser),
                               virtio_get_queue_index(queue_vq(q)));
    while (!a->stalled && q->count < max) {
        AsyncElem *e = elem_next(q);

        if (!e) {
            break;
        }
        elem_submit(e);
        submitted++;
    }
    if (!submitted) {
        return;
    }
    trace_virtio_serial_async_fill(q->port->id, q->write, submitted, q->count);
    push_complete(q);
    if (!q->pending) {
        give_back(q);
    }
    if (q->notify) {
        q->notify = false;
        virtio_notify(VIRTIO_DEVICE(q->port->vser), queue_vq(q));
    }
    qemu_chr_fe_submit_flush(a->chr);
}

/* ------------------------------------------------------------- the port */

bool virtio_serial_async_kick(VirtIOSerialPort *port, VirtQueue *vq)
{
    struct VirtIOSerialAsync *a = port->async;

    if (!port->async_active) {
        return false;
    }
    fill(vq == port->ivq ? &a->in : &a->out);
    return true;
}

void virtio_serial_async_start(VirtIOSerialPort *port)
{
    struct VirtIOSerialAsync *a = port->async;
    CharAsyncRefusal why;

    if (!a) {
        return;
    }
    a->running = VIRTIO_DEVICE(port->vser)->vm_running;
    if (a->running && port->host_connected && a->chr->chr_event &&
        !qemu_chr_fe_backend_open(a->chr)) {
        /* it was closed while the VM was stopped, and nobody listened */
        a->chr->chr_event(a->chr->opaque, CHR_EVENT_CLOSED);
    }
    why = qemu_chr_fe_async(a->chr);
    if (port->async_active && why != CHAR_ASYNC_OK && port->host_connected) {
        /* what was given back has no other kick to wait for */
        qemu_bh_schedule(port->bh);
    }
    port->async_active = why == CHAR_ASYNC_OK;
    trace_virtio_serial_async_start(port->id, char_async_refusal_name(why));
    a->stalled = false;
    fill(&a->out);
    fill(&a->in);
}

void virtio_serial_async_stop(VirtIOSerialPort *port)
{
    struct VirtIOSerialAsync *a = port->async;

    if (a) {
        a->running = false;
        qemu_chr_fe_cancel_all(a->chr, true, true);
        trace_virtio_serial_async_stop(port->id, port->elem ?
                                       port->iov_offset : 0);
    }
}

/* It was begun before the last stop.  Nothing was popped after it. */
static void cut_begun(VirtIOSerialPort *port)
{
    VirtQueueElement *elem = port->elem;
    size_t size = iov_size(elem->out_sg, elem->out_num);
    size_t done = iov_size(elem->out_sg, MIN(port->iov_idx, elem->out_num)) +
        port->iov_offset;

    char_async_counters.lost_bytes += size - MIN(done, size);
    virtqueue_unpop(port->ovq, elem, 0);
    g_free(elem);
    port->elem = NULL;
}

static void cut(VirtIOSerialPort *port, bool reads, bool writes)
{
    struct VirtIOSerialAsync *a = port->async;

    if (port->async_active && writes && port->elem) {
        cut_begun(port);
    }
    if (!a || !((reads && a->in.count) || (writes && a->out.count))) {
        return;
    }
    a->cutting = true;
    qemu_chr_fe_cancel_all(a->chr, reads, writes);
    a->cutting = false;
    trace_virtio_serial_async_cut(port->id);
    a->stalled = false;
}

void virtio_serial_async_cut(VirtIOSerialPort *port)
{
    cut(port, true, true);
}

/*
 * The device's status changes only after it has been told, and the driver's
 * buffers are given back before: nothing may be popped in between.
 */
void virtio_serial_async_set_status(VirtIOSerial *vser, uint8_t status)
{
    VirtIOSerialPort *port;

    QTAILQ_FOREACH(port, &vser->ports, next) {
        if (port->async) {
            port->async->resetting = !(status & VIRTIO_CONFIG_S_DRIVER_OK);
        }
    }
}

void virtio_serial_async_opened(VirtIOSerialPort *port)
{
    struct VirtIOSerialAsync *a = port->async;

    if (a) {
        a->stalled = false;
        fill(&a->out);
        fill(&a->in);
    }
}

void virtio_serial_async_set_guest_connected(VirtIOSerialPort *port,
                                             bool connected)
{
    struct VirtIOSerialAsync *a = port->async;

    if (!a) {
        return;
    }
    if (!connected && a->in.count) {
        qemu_chr_fe_cancel_all(a->chr, true, false);
        a->stalled = false;
        fill(&a->out);
    } else {
        fill(&a->in);
    }
}

void virtio_serial_async_queue_reset(VirtIODevice *vdev, uint32_t index)
{
    VirtIOSerial *vser = VIRTIO_SERIAL(vdev);
    VirtQueue *vq = virtio_get_queue(vdev, index);
    VirtIOSerialPort *port;

    QTAILQ_FOREACH(port, &vser->ports, next) {
        if (port->async && port->ovq == vq) {
            cut(port, false, true);
            fill(&port->async->in);
        } else if (port->async && port->ivq == vq) {
            cut(port, true, false);
            fill(&port->async->out);
        }
    }
}

void virtio_serial_async_dropped(CharFrontend *chr, size_t len)
{
    if (chr->chr && CHARDEV_GET_CLASS(chr->chr)->chr_submit_write) {
        char_async_counters.console_dropped_bytes += len;
    }
}

static void queue_init(AsyncQueue *q, VirtIOSerialPort *port, bool write)
{
    q->port = port;
    q->write = write;
    QTAILQ_INIT(&q->elems);
}

void virtio_serial_async_realize(VirtIOSerialPort *port, CharFrontend *chr)
{
    struct VirtIOSerialAsync *a = g_new0(struct VirtIOSerialAsync, 1);

    a->chr = chr;
    QTAILQ_INIT(&a->spare);
    queue_init(&a->out, port, true);
    queue_init(&a->in, port, false);
    port->async = a;
    virtio_serial_async_start(port);
}

void virtio_serial_async_unrealize(VirtIOSerialPort *port)
{
    struct VirtIOSerialAsync *a = port->async;
    AsyncElem *e;

    while (a && (e = QTAILQ_FIRST(&a->spare))) {
        QTAILQ_REMOVE(&a->spare, e, next);
        g_free(e);
    }
    g_free(a);
    port->async = NULL;
    port->async_active = false;
}
