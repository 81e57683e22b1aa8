/*
 * Posted writes: a device's output waits for a slow reader, the vCPU does not
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_CHAR_CHAR_POST_H
#define HW_CHAR_CHAR_POST_H

#include "chardev/char-fe.h"
#include "hw/resettable.h"
#include "migration/vmstate.h"
#include "qemu/fifo8.h"
#include "system/runstate.h"

/* Bytes that may wait; then the vCPU does, as without posted writes */
#define CHAR_POST_BYTES (64 * 1024)

/**
 * struct CharPost: output of a device that its reader has not taken yet
 * @on: the device's property ``posted-writes``
 * @fifo: what waits; state of the device
 * @emptied: called by the main loop when nothing waits any more, while the VM
 *           runs, or NULL; by the device
 * @bell: that nothing waits any more is to be told
 *
 * It is never called from within char_post_write(): a device may come back with
 * another write.
 *
 * Protected by the BQL.  Zero is a valid state: off.
 */
typedef struct CharPost {
    bool on;
    CharFrontend *fe;
    Fifo8 fifo;
    void (*emptied)(struct CharPost *post);
    QEMUBH *emptied_bh;
    bool bell;
    guint watch;
    /* of an incoming FIFO, not looked at yet */
    uint32_t in_head;
    uint32_t in_num;
    VMChangeStateEntry *vm_state;
} CharPost;

/**
 * char_post_realize: prepare posted writes if they are on
 * @post: its @on is set
 * @fe: where to write; connected
 * @type: the device's type, for errors
 * @errp: set if they cannot be on
 *
 * Returns: true, or false with @errp set.
 */
bool char_post_realize(CharPost *post, CharFrontend *fe, const char *type,
                       Error **errp);

/**
 * char_post_unrealize: drop what waits, of a device that is unplugged
 * @post: on or off
 */
void char_post_unrealize(CharPost *post);

/**
 * char_post_reset: drop what waits, if a snapshot is loaded
 * @post: on or off
 * @type: of the device's reset
 *
 * What waits in the snapshot comes afterwards, and nothing comes if none does.
 */
void char_post_reset(CharPost *post, ResetType type);

/**
 * char_post_is_full: would a write wait?
 * @post: on or off
 * @len: bytes to be written
 *
 * For devices that can tell their guest to come again.  After it was true,
 * @emptied is called.  Always false when @post is off.
 *
 * Returns: true if char_post_write() would wait for what waits already.
 */
bool char_post_is_full(CharPost *post, size_t len);

/**
 * char_post_write: in place of qemu_chr_fe_write_all()
 * @post: on or off
 * @fe: where to write
 * @buf: the bytes
 * @len: how many, at most %CHAR_POST_BYTES
 *
 * The bytes go at once if the reader takes them and none wait.  Else they wait
 * in order, until the main loop finds that the reader has room.  If too many
 * wait, this writes them all first, as long as it takes.
 *
 * Bytes wait while the VM is stopped, and go with its state when it is
 * migrated or saved.  A reset of the machine does not drop them: the device has
 * accepted them.
 *
 * Context: BQL held.
 */
void char_post_write(CharPost *post, CharFrontend *fe, const uint8_t *buf,
                     int len);

/**
 * char_post_needed: is there something to migrate?
 * @post: on or off
 */
bool char_post_needed(CharPost *post);

extern const VMStateDescription vmstate_char_post;

#endif
