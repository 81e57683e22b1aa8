/*
 * Device access by address hint: one entry of a table that vCPUs share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Writers: the holder of the BQL (put, settle, forget), and every reader that
 * finds a view of an older dispatch (refresh).  So all of them exchange the
 * pointer atomically; a refresh that loses drops its view, the others try
 * again.  A view that was replaced is freed after a grace period: its address
 * cannot come back while somebody still compares with it.
 */

#include "qemu/osdep.h"
#include "qemu/tsan.h"
#include "addr-hint-slot.h"

/* What a slot points to; the view is what readers see of it */
typedef struct Holder {
    struct rcu_head rcu;
    AddrHintView view;
} Holder;

static void holder_free(Holder *holder)
{
    /* TSan does not know grace periods; the test's readers do the other half */
    QEMU_TSAN_ANNOTATE_HAPPENS_AFTER(&rcu_gp_ctr);
    g_free(holder);
}

static void slot_replaced(AddrHintView *old)
{
    if (old) {
        call_rcu(container_of(old, Holder, view), holder_free, rcu);
    }
}

static AddrHintView *view_copy(const AddrHintView *view)
{
    Holder *holder = g_new(Holder, 1);

    holder->view = *view;
    return &holder->view;
}

void addr_hint_slot_put(AddrHintView **slot, const AddrHintView *view)
{
    AddrHintView *new = view ? view_copy(view) : NULL;

    slot_replaced(qatomic_xchg(slot, new));
}

static bool slot_replace(AddrHintView **slot, const AddrHintView *old,
                         const AddrHintView *view)
{
    AddrHintView *new = view_copy(view);

    /* full barrier; pairs with qatomic_rcu_read() in addr_hint_slot_view() */
    if (qatomic_cmpxchg(slot, (AddrHintView *)old, new) != old) {
        g_free(container_of(new, Holder, view)); /* nobody has seen it */
        return false;
    }
    slot_replaced((AddrHintView *)old);
    return true;
}

static void view_update(AddrHintView *view, const AddrHintAnswer *answer)
{
    view->serial = answer->serial;
    view->live = view->settled && !view->gone && answer->usable &&
                 answer->mr == view->mr && answer->offset == view->offset &&
                 answer->bytes >= view->length;
    view->read_sizes = view->live ? answer->read_sizes : 0;
    view->write_sizes = view->live ? answer->write_sizes : 0;
}

void addr_hint_slot_refresh(AddrHintView **slot, const AddrHintView *old,
                            const AddrHintAnswer *answer, AddrHintView *view)
{
    *view = *old;
    view_update(view, answer);
    slot_replace(slot, old, view);
}

void addr_hint_slot_settle(AddrHintView **slot, const AddrHintAnswer *answer)
{
    const AddrHintView *old;
    AddrHintView view;

    do {
        old = addr_hint_slot_view(slot);
        view = *old;
        view.settled = true;
        if (answer) {
            view.mr = answer->mr;
            view.offset = answer->offset;
            view.dev = answer->mr->dev;
            view_update(&view, answer);
        } else {
            view.gone = true;
            view.live = false;
        }
    } while (!slot_replace(slot, old, &view));
}

bool addr_hint_slot_forget(AddrHintView **slot, const DeviceState *dev)
{
    const AddrHintView *old;
    AddrHintView view;

    do {
        old = addr_hint_slot_view(slot);
        if (!old || !old->settled || old->gone || old->dev != dev) {
            return false;
        }
        view = *old;
        view.gone = true;
        view.live = false;
    } while (!slot_replace(slot, old, &view));
    return true;
}
