/*
 * Walkers: what a network card may write, read from its rings
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A walker knows the registers and descriptors of one family of devices.  It
 * cannot read completed descriptors, because the device overwrites their
 * addresses; so it is told of each write to a ring's registers before the
 * device sees it, and keeps the buffers of every entry of every receive ring.
 *
 * A buffer is marked when its entry is posted again, because a driver does so
 * after the device has written it, and at the last write_walk_sync() if it is
 * in a ring then.  Each write of the device is followed by one of them.  Before
 * the last sync only what the device has finished is marked; so what is not
 * marked yet is a ring's buffers at most.
 *
 * Nothing here knows of VFIO: the device is behind WriteWalkIO.  All functions
 * are called with the BQL held.
 */

#ifndef HW_VFIO_WRITE_WALK_H
#define HW_VFIO_WRITE_WALK_H

#define WRITE_WALK_PAGE     4096    /* granularity of the trap, in bytes */

/** enum WriteWalkKind: what a piece of memory stands for */
typedef enum WriteWalkKind {
    WRITE_WALK_BUFFER,          /* a receive buffer */
    WRITE_WALK_RING,            /* descriptors, written back by the device */
    WRITE_WALK_HEAD,            /* head write-back */
    WRITE_WALK_KINDS
} WriteWalkKind;

/** struct WriteWalkIO: how a walker reaches the device and its memory */
typedef struct WriteWalkIO {
    /*
     * Read a 32-bit register that has no side effect.  False: the device did
     * not answer.
     */
    bool (*read_reg)(void *opaque, uint32_t reg, uint32_t *val);
    /*
     * Can the guest reach the registers, or could it, by a way that does not
     * trap, since the last sync that could read them?  When it cannot, and they
     * do not answer, nobody changes them: they count as they were read last.
     */
    bool (*decodes)(void *opaque);
    /* Read @len bytes at the device's address @addr; false: not all is RAM. */
    bool (*read_mem)(void *opaque, uint64_t addr, void *buf, uint32_t len);
    /* The device has written, or may have, @len bytes at @addr. */
    void (*mark)(void *opaque, uint64_t addr, uint64_t len,
                 WriteWalkKind kind);
    /* The walker cannot say: everything may have been written.  @why: static */
    void (*mark_all)(void *opaque, const char *why);
} WriteWalkIO;

typedef struct WriteWalk WriteWalk;

/**
 * write_walk_supports:
 * @model: "auto", "e1000" or "igb"
 * @vendor: PCI vendor id
 * @device: PCI device id
 *
 * Returns: true if the walker of that name, with "auto" any, knows the device
 */
bool write_walk_supports(const char *model, uint16_t vendor, uint16_t device);

/**
 * write_walk_new: make a walker
 * @vendor: PCI vendor id
 * @device: PCI device id, one that write_walk_supports() knows
 * @io: must live as long as the walker
 * @opaque: for @io
 *
 * Nothing is read yet.  Returns: to be freed with write_walk_free(); NULL if no
 * walker knows the device
 */
WriteWalk *write_walk_new(uint16_t vendor, uint16_t device,
                          const WriteWalkIO *io, void *opaque);
void write_walk_free(WriteWalk *w);

/** write_walk_name: "e1000e", "igb" or "igbvf" */
const char *write_walk_name(const WriteWalk *w);

/**
 * write_walk_traps: does the page of BAR 0 at @offset hold registers that the
 * walker has to be told of?
 * @w: the walker
 * @offset: in bytes, a multiple of WRITE_WALK_PAGE
 */
bool write_walk_traps(const WriteWalk *w, uint32_t offset);

/**
 * write_walk_start: begin
 * @w: the walker
 *
 * To be called when the trap is in place.  Each entry of each ring counts as
 * posted.
 */
void write_walk_start(WriteWalk *w);

/** write_walk_stop: forget the rings */
void write_walk_stop(WriteWalk *w);

/**
 * write_walk_write: the guest writes a register
 * @w: the walker
 * @reg: offset in BAR 0
 * @val: the value
 * @size: of the access in bytes
 *
 * To be called before the device gets the write, for the pages that
 * write_walk_traps() names.
 */
void write_walk_write(WriteWalk *w, uint32_t reg, uint64_t val, unsigned size);

/**
 * write_walk_sync: mark what is in the rings
 * @w: the walker
 * @last: all that is in them; else what the device has finished.  The device
 *        does not write any more.
 */
void write_walk_sync(WriteWalk *w, bool last);

/** write_walk_armed: number of entries that the device may still write to */
uint64_t write_walk_armed(const WriteWalk *w);

#endif
