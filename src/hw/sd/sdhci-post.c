/*
 * Posted writes of an SD host controller: where a transfer goes on
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The card may become ready in somebody's nested event loop, perhaps while the
 * VM is being stopped.  So that event only arms the transfer timer.  It runs on
 * the virtual clock, hence only while the VM does, is in the stream, and a
 * guest's access to a register does not pass it by; all this is upstream's, for
 * ADMA.
 */

#include "qemu/osdep.h"
#include "exec/icount.h"
#include "hw/sd/sd-post.h"
#include "hw/sd/sdhci.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "system/replay.h"
#include "sdhci-internal.h"
#include "trace.h"

bool sdhci_post_realize(SDHCIState *s, Error **errp)
{
    if (!s->post.on) {
        return true;
    }
    if (replay_mode != REPLAY_MODE_NONE || icount_enabled()) {
        error_setg(errp, "Property 'posted-writes' of %s is on, but must be "
                   "off with record/replay and icount",
                   object_get_typename(OBJECT(s)));
        return false;
    }
    sd_post_show();
    return true;
}

bool sdhci_post_data(SDHCIState *s, size_t length, SDHCIPostStage stage)
{
    if (!sdbus_post_data(&s->sdbus, s->fifo_buffer, length)) {
        return false;
    }
    trace_sdhci_post_park(stage, s->blkcnt);
    s->post.stage = stage;
    s->prnsts |= SDHC_DATA_INHIBIT | SDHC_DAT_LINE_ACTIVE | SDHC_DOING_WRITE;
    return true;
}

SDHCIPostStage sdhci_post_take(SDHCIState *s)
{
    SDHCIPostStage stage = s->post.stage;

    if (sdbus_is_busy(&s->sdbus)) {
        return SDHCI_POST_NONE;
    }
    trace_sdhci_post_continue(stage, s->blkcnt);
    s->post.stage = SDHCI_POST_NONE;
    return stage;
}

void sdhci_post_drop(SDHCIState *s)
{
    if (s->post.stage) {
        trace_sdhci_post_drop(s->post.stage);
        s->post.stage = SDHCI_POST_NONE;
        timer_del(s->transfer_timer);
    }
}

void sdhci_post_done(DeviceState *dev)
{
    SDHCIState *s = (SDHCIState *)dev;

    if (s->post.stage) {
        timer_mod(s->transfer_timer, qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL));
    }
}

static bool post_needed(void *opaque)
{
    SDHCIState *s = opaque;

    return s->post.stage;
}

static int post_load(void *opaque, int version_id)
{
    SDHCIState *s = opaque;

    if (s->post.stage > SDHCI_POST_ADMA) {
        return -EINVAL;
    }
    /* no transfer of blocks of nothing gets on, or to its end */
    return s->post.stage && !extract16(s->blksize, 0, 12) ? -EINVAL : 0;
}

const VMStateDescription vmstate_sdhci_post = {
    .name = "sdhci/posted-write",
    .version_id = 1,
    .minimum_version_id = 1,
    .needed = post_needed,
    .post_load = post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT8(post.stage, SDHCIState),
        VMSTATE_BOOL(post.sdma_aligned, SDHCIState),
        VMSTATE_UINT64(post.adma_addr, SDHCIState),
        VMSTATE_UINT16(post.adma_length, SDHCIState),
        VMSTATE_UINT8(post.adma_attr, SDHCIState),
        VMSTATE_UINT8(post.adma_incr, SDHCIState),
        VMSTATE_END_OF_LIST()
    },
};
