/*
 * Tests of libzpipe: a handle with a raw peer
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The handle has requests of every kind under way.  Its memory is filled with
 * what must not change, with pages around it that cannot be touched.
 */

#ifndef ZPIPE_TEST_VICTIM_H
#define ZPIPE_TEST_VICTIM_H

#include "rawpeer.h"

#define VICTIM_READ 4096u           /* of each posted read */
#define VICTIM_INLINE 50u           /* its writes, in order */
#define VICTIM_COPY 5000u
#define VICTIM_REGION 20000u
#define VICTIM_SENT (VICTIM_INLINE + VICTIM_COPY + VICTIM_REGION)

typedef struct Victim {
    struct zpipe *zp;
    RawPeer *raw;
    int fds;
    uint8_t *guarded;               /* private memory for reads */
    uint8_t *wbuf, *rbuf;           /* of zpipe_buffer_new() */
    uint8_t *small;
    Req *read[2];                   /* posted 0: in reach; 1: private */
    Req *write[3];
} Victim;

/** victim_new: not attached; the raw peer is made, and has said nothing */
void victim_new(Victim *v, bool raw_is_server, uint32_t flags);
/** victim_open: connected, with the requests under way */
void victim_open(Victim *v, bool raw_is_server, uint32_t flags);
/** victim_run: let both do what they can, until neither has anything to do */
void victim_run(Victim *v);
/** victim_gone: wait for the end of the connection, returns its code */
int victim_gone(Victim *v);
/**
 * victim_close: detach; each request must have completed
 *
 * Its private memory must be as it was, or hold what was written to it.
 */
void victim_close(Victim *v);

/** guarded_new: @size bytes that end at a page that cannot be touched */
uint8_t *guarded_new(size_t size);
void guarded_free(uint8_t *mem, size_t size);

#endif
