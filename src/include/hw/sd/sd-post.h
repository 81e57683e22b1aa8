/*
 * Posted writes of an SD card: the card is busy, the vCPU does not wait
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SD_SD_POST_H
#define HW_SD_SD_POST_H

#include "hw/sd/sd.h"
#include "system/block-backend.h"

/* The most that a card takes as one block */
#define SD_POST_BYTES 512

/**
 * struct SDPost: the write of a card that its image has not taken yet
 * @on: the controller lets the block that it sends now be posted
 * @busy: a write is in flight; the card says so to its controller and guest
 * @forgotten: the card was reset since, so nobody hears of an error
 * @done: called when the write has ended, with its result; by the card
 *
 * Protected by the BQL.  It is no state of the device: a stop of the VM waits
 * for the write as for each write to a disk.
 */
typedef struct SDPost {
    bool on;
    bool busy;
    bool forgotten;
    void (*done)(struct SDPost *post, int ret);
    BlockBackend *blk;
    QEMUIOVector qiov;
    uint8_t data[SD_POST_BYTES];
} SDPost;

/**
 * sd_post_write: begin to write a block
 * @post: on; what is in flight is waited for first
 * @blk: the card's image
 * @offset: where, in bytes
 * @data: what; copied
 * @bytes: how much, at most %SD_POST_BYTES
 *
 * Returns: true if it was begun; @done will be called, and not before this
 * returns.  False if the image is being drained: the caller then waits, as it
 * would without posted writes, because a request that is begun now would be
 * neither in flight nor done.
 */
bool sd_post_write(SDPost *post, BlockBackend *blk, int64_t offset,
                   const void *data, uint32_t bytes);

/* Use sd_post_wait() */
void sd_post_wait_busy(SDPost *post);

/**
 * sd_post_wait: wait for the write in flight, if there is one
 * @post: the card's
 *
 * Before any other access to the image, so that each finds it as the guest has
 * written it.  A guest that heeds "busy" does not come here meanwhile.
 */
static inline void sd_post_wait(SDPost *post)
{
    if (unlikely(post->busy)) {
        sd_post_wait_busy(post);
    }
}

/**
 * sd_post_unrealize: wait for the write in flight of a card that goes
 * @post: the card's
 */
void sd_post_unrealize(SDPost *post);

/**
 * sdbus_post_data: like sdbus_write_data(), but a full block may be posted
 * @bus: the controller's bus
 * @buf: data to write
 * @length: number of bytes
 *
 * Returns: true if the card is busy.  Then the controller behaves as if the
 * last byte was still on its way, and is told the end by
 * SDBusClass.write_done(), from this card on this bus.
 */
bool sdbus_post_data(SDBus *bus, const void *buf, size_t length);

/**
 * sdbus_is_busy: is a posted write in flight?
 * @bus: the controller's bus
 */
bool sdbus_is_busy(SDBus *bus);

/**
 * sdbus_wait: wait for the posted write in flight, if there is one
 * @bus: the controller's bus
 */
void sdbus_wait(SDBus *bus);

/**
 * sdbus_write_done: tell the controller that the card is not busy any more
 * @bus: the card's bus
 *
 * Context: BQL held; perhaps in a nested event loop, so the controller only
 * takes note.
 */
void sdbus_write_done(SDBus *bus);

/**
 * sd_post_show: show the statistics of posted writes of cards
 */
void sd_post_show(void);

#endif
