/*
 * Posted writes of an SD host controller: where a transfer goes on
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_SD_SDHCI_POST_H
#define HW_SD_SDHCI_POST_H

/* Values are part of the migration stream */
typedef enum SDHCIPostStage {
    SDHCI_POST_NONE = 0,
    SDHCI_POST_PIO = 1,
    SDHCI_POST_SDMA_SINGLE = 2,
    SDHCI_POST_SDMA_MULTI = 3,
    SDHCI_POST_ADMA = 4,
} SDHCIPostStage;

/**
 * struct SDHCIPost: a transfer that waits for a busy card
 * @on: the controller's property ``posted-writes``
 * @stage: where the transfer goes on, an SDHCIPostStage; then the transfer
 *         timer is armed when the card is no longer busy
 * @sdma_aligned: %SDHCI_POST_SDMA_MULTI: it stops at the next boundary
 * @adma_addr: %SDHCI_POST_ADMA: rest of the descriptor, guest address
 * @adma_length: its length in bytes, which may be 0
 * @adma_attr: the descriptor's attributes
 * @adma_incr: the descriptor's size in bytes
 *
 * Protected by the BQL.  Zero is a valid state: off.
 */
typedef struct SDHCIPost {
    bool on;
    uint8_t stage;
    bool sdma_aligned;
    uint64_t adma_addr;
    uint16_t adma_length;
    uint8_t adma_attr;
    uint8_t adma_incr;
} SDHCIPost;

typedef struct SDHCIState SDHCIState;

/**
 * sdhci_post_realize: prepare posted writes if they are on
 * @s: the controller
 * @errp: set if they cannot be on
 *
 * Returns: true, or false with @errp set.
 */
bool sdhci_post_realize(SDHCIState *s, Error **errp);

/**
 * sdhci_post_data: send the buffer to the card; posted writes are on
 * @s: the controller
 * @length: how much of the buffer
 * @stage: where the transfer is to go on if the card is busy then
 *
 * Returns: true if it is.  The caller returns, and leaves nothing undone but
 * what @stage stands for.
 */
bool sdhci_post_data(SDHCIState *s, size_t length, SDHCIPostStage stage);

/**
 * sdhci_post_take: may a transfer that has waited go on?
 * @s: the controller, with a stage
 *
 * Returns: the stage, once, or %SDHCI_POST_NONE if the card is busy.
 */
SDHCIPostStage sdhci_post_take(SDHCIState *s);

/**
 * sdhci_post_drop: forget the transfer that waits, if there is one
 * @s: the controller, which is reset or whose card has gone
 *
 * The block that the card has got is written all the same.
 */
void sdhci_post_drop(SDHCIState *s);

/**
 * sdhci_post_done: the card is not busy any more
 * @dev: the controller
 */
void sdhci_post_done(DeviceState *dev);

/**
 * sdhci_post_pci_realize: have a PCI device's configuration migrated
 * @s: the controller; nothing happens if its posted writes are off
 */
void sdhci_post_pci_realize(SDHCIState *s);

/**
 * sdhci_post_pci_exit: undo sdhci_post_pci_realize()
 * @s: the controller
 */
void sdhci_post_pci_exit(SDHCIState *s);

extern const VMStateDescription vmstate_sdhci_post;

#endif
