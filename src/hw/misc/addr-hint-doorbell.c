/*
 * addr-hint-pci: doorbells, which make writes that the vCPU does not wait for
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each doorbell is four bytes of a BAR with an ioeventfd, made at realize.  A
 * hint that asks for one gets a free one; nothing is added to KVM at run time.
 *
 * A doorbell's ioeventfd is one of two.  Its own: QEMU's main loop makes the
 * hint's write.  Or, when the write that the hint stands for has an ioeventfd
 * itself (a virtio queue), that one, duplicated: then QEMU is not in the path.
 * Which it is follows the ioeventfds of the address space, which a memory
 * listener reports.  They cannot be changed from inside its callbacks, so a
 * bottom half does it.  Meanwhile a ring may have gone to an eventfd that
 * nobody listens to any more; when sharing ends and the eventfd is still
 * signalled, the write is made as well.  A ring may be answered twice, never
 * not at all.
 *
 * A duplicate keeps the kernel's eventfd alive however long the other device
 * keeps its own, and it is what KVM's entry is removed with.
 *
 * A ring that is found while the VM is stopped waits until it runs.
 *
 * Everything runs under the BQL, in the main loop or in a vCPU's thread.
 */

#include "qemu/osdep.h"
#include <poll.h>
#include "addr-hint-pci.h"
#include "qapi/error.h"
#include "qemu/log.h"
#include "qemu/main-loop.h"
#include "qemu/target-info.h"
#include "system/runstate.h"
#include "trace.h"

struct AddrHintDoorbell {
    AddrHintPciState *s;
    EventNotifier own;
    EventNotifier shared;       /* in use when @source is not 0 */
    uint64_t source;            /* Eventfd.number of what is shared */
    bool used;
    bool rung;                  /* while the VM was stopped */
    uint32_t index;             /* the hint, when used */
};

/* An ioeventfd of another device */
typedef struct Eventfd {
    uint64_t number;            /* unique, never 0 */
    hwaddr addr;
    uint64_t size;              /* 0: any */
    bool match;
    uint64_t data;
    EventNotifier *e;
} Eventfd;

static unsigned doorbells_in_vm;        /* protected by the BQL */

static unsigned doorbell_number(const AddrHintDoorbell *db)
{
    return db - db->s->doorbells;
}

static EventNotifier *doorbell_notifier(AddrHintDoorbell *db)
{
    return db->source ? &db->shared : &db->own;
}

static void doorbell_eventfd(AddrHintDoorbell *db, bool add)
{
    hwaddr offset = doorbell_number(db) * ADDR_HINT_DOORBELL_STEP;

    if (add) {
        memory_region_add_eventfd(&db->s->doorbell_mr, offset, 0, false, 0,
                                  doorbell_notifier(db));
    } else {
        memory_region_del_eventfd(&db->s->doorbell_mr, offset, 0, false, 0,
                                  doorbell_notifier(db));
    }
}

/*
 * Posted writes
 */

static void doorbell_answer(AddrHintDoorbell *db)
{
    AddrHintPciState *s = db->s;
    unsigned number = doorbell_number(db);
    MemTxResult result;
    uint32_t index;
    uint64_t data;

    if (!db->used) {
        qatomic_inc(&s->window.others.window_refused);
        return;
    }
    if (!runstate_is_running()) {
        db->rung = true;
        return;
    }
    /*
     * The write may remove this very device (by its slot's power, say), which
     * frees doorbells and records: only what is taken now is used afterwards.
     */
    index = db->index;
    data = s->records[index].data;
    object_ref(OBJECT(s));
    result = addr_hint_window_post(&s->window, index, data,
                                   s->records[index].length);
    trace_addr_hint_doorbell_write(DEVICE(s)->id ?: "", number, index, data,
                                   result);
    object_unref(OBJECT(s));
}

static void doorbell_handler(EventNotifier *e)
{
    AddrHintDoorbell *db = container_of(e, AddrHintDoorbell, own);

    if (event_notifier_test_and_clear(e)) {
        doorbell_answer(db);
    }
}

/* A write that did not go to the ioeventfd: of another size, or as it moves */
static void doorbell_mmio_write(void *opaque, hwaddr addr, uint64_t val,
                                unsigned size)
{
    AddrHintPciState *s = opaque;
    unsigned i = addr / ADDR_HINT_DOORBELL_STEP;

    if (addr % ADDR_HINT_DOORBELL_STEP || i >= s->nr_doorbells) {
        qemu_log_mask(LOG_GUEST_ERROR, "%s: no doorbell at 0x%" HWADDR_PRIX
                      "\n", __func__, addr);
        return;
    }
    /* not there: removed while the vCPU waited for the BQL */
    if (s->doorbells) {
        event_notifier_set(doorbell_notifier(&s->doorbells[i]));
    }
}

static uint64_t doorbell_mmio_read(void *opaque, hwaddr addr, unsigned size)
{
    return 0;
}

static const MemoryRegionOps doorbell_ops = {
    .read = doorbell_mmio_read,
    .write = doorbell_mmio_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
};

/*
 * Sharing
 */

static bool is_signalled(const EventNotifier *e)
{
    struct pollfd fd = {
        .fd = event_notifier_get_fd(e),
        .events = POLLIN,
    };

    return RETRY_ON_EINTR(poll(&fd, 1, 0)) == 1;
}

static void doorbell_unshare(AddrHintDoorbell *db)
{
    if (!db->source) {
        return;
    }
    doorbell_eventfd(db, false);
    db->source = 0;
    doorbell_eventfd(db, true);
    if (is_signalled(&db->shared)) {
        event_notifier_set(&db->own);
    }
    event_notifier_cleanup(&db->shared);
    db->s->window.stats.doorbells_shared--;
    trace_addr_hint_doorbell_unshare(DEVICE(db->s)->id ?: "",
                                     doorbell_number(db));
}

static void doorbell_share(AddrHintDoorbell *db, const Eventfd *fd)
{
    int copy = qemu_dup(event_notifier_get_fd(fd->e));

    if (copy < 0) {
        return;                 /* then QEMU makes the writes */
    }
    event_notifier_init_fd(&db->shared, copy);
    /* KVM takes one entry for an address: out first, in a commit of its own */
    doorbell_eventfd(db, false);
    db->source = fd->number;
    doorbell_eventfd(db, true);
    db->s->window.stats.doorbells_shared++;
    trace_addr_hint_doorbell_share(DEVICE(db->s)->id ?: "",
                                   doorbell_number(db), fd->addr);
}

/* The ioeventfd that a hint's write would go to, or NULL */
static const Eventfd *eventfd_for(AddrHintPciState *s, const AddrHintRecord *r)
{
    if (target_big_endian()) {
        return NULL;            /* @data of an ioeventfd is in target order */
    }
    for (guint i = 0; i < s->eventfds->len; i++) {
        const Eventfd *fd = &g_array_index(s->eventfds, Eventfd, i);

        if (fd->addr == r->addr && (!fd->size || fd->size == r->length) &&
            (!fd->match || fd->data == r->data)) {
            return fd;
        }
    }
    return NULL;
}

static void doorbell_update(AddrHintDoorbell *db)
{
    AddrHintPciState *s = db->s;
    const Eventfd *fd = NULL;
    AddrHintInfo info;

    if (db->used && addr_hint_window_info(&s->window, db->index, &info) &&
        info.live) {
        fd = eventfd_for(s, &s->records[db->index]);
    }
    if (db->source != (fd ? fd->number : 0)) {
        doorbell_unshare(db);
        if (fd) {
            doorbell_share(db, fd);
        }
    }
}

static void share_bh(void *opaque)
{
    AddrHintPciState *s = opaque;

    for (unsigned i = 0; i < s->nr_doorbells; i++) {
        doorbell_update(&s->doorbells[i]);
    }
}

static void listener_eventfd_add(MemoryListener *listener,
                                 MemoryRegionSection *section,
                                 bool match_data, uint64_t data,
                                 EventNotifier *e)
{
    AddrHintPciState *s = container_of(listener, AddrHintPciState, listener);
    Eventfd fd = {
        .number = ++s->last_eventfd,
        .addr = section->offset_within_address_space,
        .size = int128_get64(section->size),
        .match = match_data,
        .data = data,
        .e = e,
    };

    g_array_append_val(s->eventfds, fd);
    qemu_bh_schedule(s->share_bh);
}

static void listener_eventfd_del(MemoryListener *listener,
                                 MemoryRegionSection *section,
                                 bool match_data, uint64_t data,
                                 EventNotifier *e)
{
    AddrHintPciState *s = container_of(listener, AddrHintPciState, listener);

    for (guint i = 0; i < s->eventfds->len; i++) {
        Eventfd *fd = &g_array_index(s->eventfds, Eventfd, i);

        if (fd->addr == section->offset_within_address_space &&
            fd->size == int128_get64(section->size) &&
            fd->match == match_data && fd->data == data && fd->e == e) {
            g_array_remove_index_fast(s->eventfds, i);
            break;
        }
    }
    qemu_bh_schedule(s->share_bh);
}

void addr_hint_doorbells_watch(AddrHintPciState *s)
{
    if (!s->nr_doorbells || s->listener.address_space) {
        return;
    }
    s->listener = (MemoryListener) {
        .name = "addr-hint-doorbells",
        .eventfd_add = listener_eventfd_add,
        .eventfd_del = listener_eventfd_del,
        /* others know an ioeventfd before it is shared */
        .priority = MEMORY_LISTENER_PRIORITY_MIN,
    };
    memory_listener_register(&s->listener, s->window.as);
    /*
     * Without KVM this listener is the first that wants them, and they are not
     * known yet; a change makes the core look.
     */
    doorbell_eventfd(&s->doorbells[0], false);
    doorbell_eventfd(&s->doorbells[0], true);
}

/*
 * The pool
 */

bool addr_hint_doorbell_is_free(AddrHintPciState *s, uint32_t doorbell)
{
    return doorbell < s->nr_doorbells && !s->doorbells[doorbell].used;
}

uint32_t addr_hint_doorbell_take(AddrHintPciState *s)
{
    for (unsigned i = 0; i < s->nr_doorbells; i++) {
        if (!s->doorbells[i].used) {
            return i;
        }
    }
    return ADDR_HINT_DOORBELL_NONE;
}

void addr_hint_doorbell_assign(AddrHintPciState *s, uint32_t doorbell,
                               uint32_t index)
{
    AddrHintDoorbell *db = &s->doorbells[doorbell];

    event_notifier_test_and_clear(&db->own);    /* of nobody */
    db->used = true;
    db->index = index;
    doorbell_update(db);
}

void addr_hint_doorbell_free(AddrHintPciState *s, uint32_t doorbell)
{
    AddrHintDoorbell *db = &s->doorbells[doorbell];

    doorbell_unshare(db);
    db->used = false;
    db->rung = false;
    event_notifier_test_and_clear(&db->own);
}

bool addr_hint_doorbell_rung(AddrHintPciState *s, uint32_t doorbell)
{
    AddrHintDoorbell *db = &s->doorbells[doorbell];

    if (event_notifier_test_and_clear(&db->own)) {
        db->rung = true;
    }
    /*
     * The other device stops with the VM and has answered what it saw.  What is
     * still there would not travel, so the write is made on the other side.
     */
    return db->rung || (db->source && is_signalled(&db->shared));
}

void addr_hint_doorbell_ring_later(AddrHintPciState *s, uint32_t doorbell)
{
    s->doorbells[doorbell].rung = true;
}

void addr_hint_doorbells_run(AddrHintPciState *s)
{
    for (unsigned i = 0; i < s->nr_doorbells; i++) {
        AddrHintDoorbell *db = &s->doorbells[i];

        if (db->rung) {
            db->rung = false;
            event_notifier_set(&db->own);
        }
        doorbell_update(db);
    }
}

static void drop_notifiers(AddrHintPciState *s, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        event_notifier_set_handler(&s->doorbells[i].own, NULL);
        event_notifier_cleanup(&s->doorbells[i].own);
    }
    g_clear_pointer(&s->doorbells, g_free);
}

static bool make_notifiers(AddrHintPciState *s, Error **errp)
{
    s->doorbells = g_new0(AddrHintDoorbell, s->nr_doorbells);
    for (unsigned i = 0; i < s->nr_doorbells; i++) {
        AddrHintDoorbell *db = &s->doorbells[i];
        int ret = event_notifier_init(&db->own, 0);

        db->s = s;
        if (ret < 0) {
            error_setg_errno(errp, -ret, "cannot make the eventfd of doorbell "
                             "%u of %" PRIu32, i, s->nr_doorbells);
            drop_notifiers(s, i);
            return false;
        }
        event_notifier_set_handler(&db->own, doorbell_handler);
    }
    return true;
}

bool addr_hint_doorbells_realize(AddrHintPciState *s, Error **errp)
{
    if (s->nr_doorbells > ADDR_HINT_MAX_DOORBELLS) {
        error_setg(errp, "property 'doorbells' is %" PRIu32 ", a device has "
                   "at most %d", s->nr_doorbells, ADDR_HINT_MAX_DOORBELLS);
        return false;
    }
    if (doorbells_in_vm + s->nr_doorbells > ADDR_HINT_MAX_DOORBELLS_VM) {
        error_setg(errp, "property 'doorbells' is %" PRIu32 ", other devices "
                   "of this VM have %u, all together may have %d",
                   s->nr_doorbells, doorbells_in_vm,
                   ADDR_HINT_MAX_DOORBELLS_VM);
        return false;
    }
    if (!make_notifiers(s, errp)) {
        return false;
    }
    doorbells_in_vm += s->nr_doorbells;
    s->eventfds = g_array_new(false, false, sizeof(Eventfd));
    s->share_bh = qemu_bh_new_guarded(share_bh, s,
                                      &DEVICE(s)->mem_reentrancy_guard);
    memory_region_init_io(&s->doorbell_mr, OBJECT(s), &doorbell_ops, s,
                          "addr-hint-doorbells", ADDR_HINT_PAGE_SIZE);
    memory_region_transaction_begin();
    for (unsigned i = 0; i < s->nr_doorbells; i++) {
        doorbell_eventfd(&s->doorbells[i], true);
    }
    memory_region_transaction_commit();
    return true;
}

void addr_hint_doorbells_unrealize(AddrHintPciState *s)
{
    memory_listener_unregister(&s->listener);
    memory_region_transaction_begin();
    for (unsigned i = 0; i < s->nr_doorbells; i++) {
        doorbell_eventfd(&s->doorbells[i], false);
    }
    memory_region_transaction_commit();
    qemu_bh_delete(s->share_bh);
    g_array_free(s->eventfds, true);
    doorbells_in_vm -= s->nr_doorbells;
    drop_notifiers(s, s->nr_doorbells);
}
