/*
 * addr-hint-pci: device access by address hint, the device
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_ADDR_HINT_PCI_H
#define HW_MISC_ADDR_HINT_PCI_H

#include "hw/pci/pci_device.h"
#include "qemu/event_notifier.h"
#include "qom/object.h"
#include "system/addr-hint-window.h"
#include "system/memory.h"
#include "system/runstate.h"

#define TYPE_ADDR_HINT_PCI "addr-hint-pci"
OBJECT_DECLARE_SIMPLE_TYPE(AddrHintPciState, ADDR_HINT_PCI)

#define ADDR_HINT_MAX_HINTS 16384
/*
 * The kernel has room for 1,000 devices on an I/O bus, and QEMU aborts when it
 * cannot add an ioeventfd.  The pools of all devices together take half.
 */
#define ADDR_HINT_MAX_DOORBELLS 256
#define ADDR_HINT_MAX_DOORBELLS_VM 512

typedef struct AddrHintDoorbell AddrHintDoorbell;

/**
 * struct AddrHintRecord: a hint as the guest asked for it
 * @index: which hint; only in the migration stream
 * @addr: address of its first byte
 * @length: bytes
 * @flags: ADDR_HINT_FLAG_*
 * @data: what a posted write writes
 * @doorbell: its doorbell, or ADDR_HINT_DOORBELL_NONE
 * @rung: the doorbell was rung and not yet answered; only in the stream
 * @gone: it never answers again; only in the stream
 */
typedef struct AddrHintRecord {
    uint32_t index;
    uint64_t addr;
    uint32_t length;
    uint32_t flags;
    uint64_t data;
    uint32_t doorbell;
    bool rung;
    bool gone;
} AddrHintRecord;

struct AddrHintPciState {
    PCIDevice parent_obj;

    /* Properties */
    uint32_t nr_hints;
    uint32_t nr_doorbells;
    bool allow_dma;

    /* All of it is protected by the BQL; the window has rules of its own. */
    MemoryRegion registers;
    MemoryRegion doorbell_mr;
    AddrHintWindow window;
    uint32_t regs[ADDR_HINT_REG_END / 4];
    AddrHintRecord *records;            /* nr_hints */
    AddrHintDoorbell *doorbells;        /* nr_doorbells */
    GArray *eventfds;                   /* of the others, see the .c */
    uint64_t last_eventfd;
    MemoryListener listener;
    QEMUBH *share_bh;
    VMChangeStateEntry *vm_state;
    bool settle;                        /* hints were loaded */

    /* migration */
    uint32_t nr_saved;
    AddrHintRecord *saved;              /* nr_hints */
};

/**
 * addr_hint_doorbells_realize: make the pool
 * @s: the device
 * @errp: says which limit was met
 *
 * Returns: true if it is there; else nothing is left behind.
 */
bool addr_hint_doorbells_realize(AddrHintPciState *s, Error **errp);

/**
 * addr_hint_doorbells_unrealize: take the pool apart
 * @s: the device, all of whose doorbells are free
 */
void addr_hint_doorbells_unrealize(AddrHintPciState *s);

/**
 * addr_hint_doorbells_watch: begin to follow the eventfds of other devices
 * @s: the device; its window's address space is known
 *
 * More calls are harmless.
 */
void addr_hint_doorbells_watch(AddrHintPciState *s);

/**
 * addr_hint_doorbell_take: find a free doorbell
 * @s: the device
 *
 * Returns: its number, or ADDR_HINT_DOORBELL_NONE.
 */
uint32_t addr_hint_doorbell_take(AddrHintPciState *s);

/**
 * addr_hint_doorbell_assign: let a free doorbell stand for a hint
 * @s: the device
 * @doorbell: which doorbell
 * @index: the hint, whose record is filled in
 */
void addr_hint_doorbell_assign(AddrHintPciState *s, uint32_t doorbell,
                               uint32_t index);

/**
 * addr_hint_doorbell_free: take a doorbell back
 * @s: the device
 * @doorbell: which doorbell; rings not yet answered are lost
 */
void addr_hint_doorbell_free(AddrHintPciState *s, uint32_t doorbell);

/**
 * addr_hint_doorbell_is_free: does a doorbell stand for no hint?
 * @s: the device
 * @doorbell: any value
 *
 * Returns: true if it exists and is free.
 */
bool addr_hint_doorbell_is_free(AddrHintPciState *s, uint32_t doorbell);

/**
 * addr_hint_doorbell_rung: was it rung while the VM was stopped?
 * @s: the device
 * @doorbell: which doorbell
 */
bool addr_hint_doorbell_rung(AddrHintPciState *s, uint32_t doorbell);

/**
 * addr_hint_doorbell_ring_later: ring it when the VM runs
 * @s: the device
 * @doorbell: which doorbell
 */
void addr_hint_doorbell_ring_later(AddrHintPciState *s, uint32_t doorbell);

/**
 * addr_hint_doorbells_run: the VM runs: answer what was rung before
 * @s: the device
 */
void addr_hint_doorbells_run(AddrHintPciState *s);

#endif
