/*
 * virtio-serial ports on asynchronous character devices
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A virtserialport whose chardev takes asynchronous requests (see
 * chardev/char-async.h) hands it the guest's own buffers: those that the guest
 * has filled as writes, those that it has left empty as reads.  An element
 * goes back to the guest when the peer is done with it.
 *
 * A virtconsole never waits for a peer (Linux's hvc driver spins until its
 * buffer comes back), so it does not use this.
 *
 * Context: BQL held.  All functions do nothing for a port that was not
 * realized with virtio_serial_async_realize().
 */

#ifndef VIRTIO_SERIAL_ASYNC_H
#define VIRTIO_SERIAL_ASYNC_H

#include "chardev/char-fe.h"
#include "hw/virtio/virtio-serial.h"

/**
 * virtio_serial_async_realize: let a port use asynchronous requests
 * @port: not a console
 * @chr: the port's; it may change its back end
 */
void virtio_serial_async_realize(VirtIOSerialPort *port, CharFrontend *chr);

/** virtio_serial_async_unrealize: the port goes; nothing is in flight */
void virtio_serial_async_unrealize(VirtIOSerialPort *port);

/**
 * virtio_serial_async_start: the VM runs, or the chardev has changed
 *
 * Looks anew whether the chardev takes requests, and says so in
 * VirtIOSerialPort.async_active: then they take the place of have_data and
 * virtio_serial_write().
 */
void virtio_serial_async_start(VirtIOSerialPort *port);

/**
 * virtio_serial_async_stop: the VM stops
 *
 * Takes back what the peer does not have.  Elements that it has got whole are
 * the guest's, those that it has not begun with are in the queue again, and
 * one of which it has got a part is VirtIOSerialPort.elem: what is migrated
 * looks as if the port had written as it always did.
 */
void virtio_serial_async_stop(VirtIOSerialPort *port);

/**
 * virtio_serial_async_kick: hand elements of a queue to the chardev
 *
 * Returns: false if the chardev takes no requests.
 */
bool virtio_serial_async_kick(VirtIOSerialPort *port, VirtQueue *vq);

/**
 * virtio_serial_async_cut: the guest's buffers are to be back at once
 *
 * For reset, unplug, and a chardev that is closed.  What the peer has not got
 * is counted as lost and left in the queue for the caller to throw away.
 */
void virtio_serial_async_cut(VirtIOSerialPort *port);

/** virtio_serial_async_opened: there is a peer */
void virtio_serial_async_opened(VirtIOSerialPort *port);

/** virtio_serial_async_set_guest_connected: a closed port reads nothing */
void virtio_serial_async_set_guest_connected(VirtIOSerialPort *port,
                                             bool connected);

/** virtio_serial_async_set_status: the device is going to have that status */
void virtio_serial_async_set_status(VirtIOSerial *vser, uint8_t status);

/**
 * virtio_serial_async_queue_reset: the guest resets one queue
 *
 * The other goes on.
 */
void virtio_serial_async_queue_reset(VirtIODevice *vdev, uint32_t index);

/**
 * virtio_serial_async_dropped: a console has dropped @len bytes
 * @chr: counted if it could take requests
 */
void virtio_serial_async_dropped(CharFrontend *chr, size_t len);

#endif
