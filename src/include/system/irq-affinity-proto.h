/*
 * Protocol between QEMU and qemu-irq-affinity-helper
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Described in docs/interop/irq-affinity-helper.rst.  One message of a
 * SOCK_SEQPACKET socket is one request or one reply.  Both sides run on one
 * host, so numbers are in its byte order.
 */

#ifndef SYSTEM_IRQ_AFFINITY_PROTO_H
#define SYSTEM_IRQ_AFFINITY_PROTO_H

#define IRQ_HELPER_VERSION 1
#define IRQ_HELPER_SOCKET "/run/qemu-irq-affinity-helper.sock"

#define IRQ_HELPER_DEVICE_MAX 24
#define IRQ_HELPER_LIST_MAX 208

/**
 * enum IRQHelperOp: what is asked for
 * @IRQ_HELPER_HELLO: first message; @number is the version
 * @IRQ_HELPER_MOVE: send interrupt @number of @device to processor @cpu, on
 *                   which the thread @tid of the sender may run.  With a
 *                   descriptor of @device's VFIO group or of the device.
 * @IRQ_HELPER_RESTORE: give interrupt @number of @device what is allowed of
 *                      @list, else of the host's default.  With @tid and a
 *                      descriptor as before.
 * @IRQ_HELPER_WATCH: open the event that tells of moves of the thread @tid of
 *                    the sender; its descriptor comes with the reply
 */
typedef enum IRQHelperOp {
    IRQ_HELPER_HELLO = 1,
    IRQ_HELPER_MOVE = 2,
    IRQ_HELPER_RESTORE = 3,
    IRQ_HELPER_WATCH = 4,
} IRQHelperOp;

/**
 * struct IRQHelperRequest: 256 bytes
 * @op: an IRQHelperOp
 * @id: comes back with the reply
 * @number: of the interrupt, or the version
 * @cpu: host processor
 * @tid: thread
 * @reserved: 0
 * @device: PCI address, ends with a NUL byte
 * @list: of processors, ends with a NUL byte
 */
typedef struct IRQHelperRequest {
    uint32_t op;
    uint32_t id;
    uint32_t number;
    uint32_t cpu;
    uint32_t tid;
    uint32_t reserved;
    char device[IRQ_HELPER_DEVICE_MAX];
    char list[IRQ_HELPER_LIST_MAX];
} IRQHelperRequest;

QEMU_BUILD_BUG_ON(sizeof(IRQHelperRequest) != 256);

/**
 * struct IRQHelperReply: 16 bytes
 * @op: of the request
 * @id: of the request
 * @error: 0 or an errno
 * @value: version of the helper, to HELLO; 1 to RESTORE if it was another
 *         list; else 0
 */
typedef struct IRQHelperReply {
    uint32_t op;
    uint32_t id;
    uint32_t error;
    uint32_t value;
} IRQHelperReply;

#endif
