/*
 * Posted writes of an SD card: the card is busy, the vCPU does not wait
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A card that has got a block holds a data line down until the block is in its
 * flash.  That is the place for a slow disk to be waited for: the controller
 * does not go on with the transfer, and the vCPU does with its work.
 *
 * The card's registers are already those after the write, so only one bit, that
 * it is busy, is different meanwhile.  No stack is set aside: a drain has to
 * wait for the write, which it does for a request of the block layer and does
 * not for a coroutine that waits for one.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "hw/sd/sd-post.h"
#include "system/async-call-vm.h"
#include "sdmmc-internal.h"
#include "trace.h"

/* parked: written later; refused: the vCPU waited */
static AsyncCallSite sdcard_site = { .name = "sdcard" };

static void write_done(void *opaque, int ret)
{
    SDPost *post = opaque;

    trace_sd_post_done(ret, post->forgotten);
    post->busy = false;
    post->done(post, ret);
}

bool sd_post_write(SDPost *post, BlockBackend *blk, int64_t offset,
                   const void *data, uint32_t bytes)
{
    assert(bytes <= SD_POST_BYTES);
    sd_post_wait(post);
    if (blk_in_drain(blk)) {
        sdcard_site.refused++;
        return false;
    }
    trace_sd_post_write(offset, bytes);
    sdcard_site.parked++;
    post->busy = true;
    post->forgotten = false;
    post->blk = blk;
    memcpy(post->data, data, bytes);
    qemu_iovec_init_buf(&post->qiov, post->data, bytes);
    blk_aio_pwritev(blk, offset, &post->qiov, 0, write_done, post);
    return true;
}

void sd_post_wait_busy(SDPost *post)
{
    sdcard_site.refused++;
    trace_sd_post_wait();
    AIO_WAIT_WHILE(blk_get_aio_context(post->blk), post->busy);
}

void sd_post_unrealize(SDPost *post)
{
    if (post->busy) {
        blk_drain(post->blk);
        assert(!post->busy);
    }
}

static SDState *get_card(SDBus *bus)
{
    BusChild *kid = QTAILQ_FIRST(&bus->qbus.children);

    return kid ? SDMMC_COMMON(kid->child) : NULL;
}

bool sdbus_post_data(SDBus *bus, const void *buf, size_t length)
{
    SDState *card = get_card(bus);

    return card && SDMMC_COMMON_GET_CLASS(card)->post_data(card, buf, length);
}

bool sdbus_is_busy(SDBus *bus)
{
    SDState *card = get_card(bus);

    return card && SDMMC_COMMON_GET_CLASS(card)->get_post(card)->busy;
}

void sdbus_wait(SDBus *bus)
{
    SDState *card = get_card(bus);

    if (card) {
        sd_post_wait(SDMMC_COMMON_GET_CLASS(card)->get_post(card));
    }
}

void sdbus_write_done(SDBus *bus)
{
    SDBusClass *sbc = SD_BUS_GET_CLASS(bus);

    if (sbc->write_done) {
        sbc->write_done(bus->qbus.parent);
    }
}

void sd_post_show(void)
{
    async_call_show_site(&sdcard_site);
}
