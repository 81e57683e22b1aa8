/*
 * Tests of libzpipe: a peer that can say anything
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Speaks the protocol by its letter (zpipe-proto.h), with nothing of the
 * library: what it says is what the test tells it to say.
 */

#ifndef ZPIPE_TEST_RAWPEER_H
#define ZPIPE_TEST_RAWPEER_H

#include "common.h"
#include "zpipe-proto.h"

#define RAW_ENTRIES 32u
#define RAW_COPY (64 * KiB)
#define RAW_FDS_MAX 16

/* A side's arena, as one of the two sees it. */
typedef struct RawArena {
    uint8_t *base;
    size_t size;
    struct zp_ctl *ctl;
    struct zp_write *writes;
    struct zp_read *reads;
    uint8_t *how;
    uint8_t *copy;
    uint32_t entries, copy_bytes;
} RawArena;

typedef struct RawPeer {
    int sock;
    bool server;
    /* what the hello says; a test changes it before raw_hello() */
    struct zp_hello hello;
    int hello_fds[RAW_FDS_MAX];     /* arena, rope; then what is too much */
    int hello_nfds;
    uint32_t can;                   /* what raw_connect() says that it can */

    int arena_fd;
    int ear, rope;                  /* of our bell, and what the library gets */
    int bell;                       /* the library's: what it gave us */
    RawArena own;                   /* written by us */
    RawArena peer;                  /* read only */
    int peer_arena_fd;
    struct zp_hello peer_hello;
    bool peer_ready;
    /* regions of the library's side */
    struct zp_region region[ZPIPE_REGIONS_MAX];
    int region_fd[ZPIPE_REGIONS_MAX];
    bool mute;                      /* do not answer what is announced */
    uint64_t pos;                   /* of the next byte that is written */
} RawPeer;

/** raw_new: a peer on @sock, which it then owns */
RawPeer *raw_new(int sock, bool server);
void raw_free(RawPeer *raw);

/** raw_arena_size: of an arena of that shape, in bytes */
size_t raw_arena_size(uint32_t entries, uint32_t copy_bytes);
/** raw_arena_fd: a memfd for one, sealed with @seals */
int raw_arena_fd(uint32_t entries, uint32_t copy_bytes, int seals);

/** raw_send: a packet of any length with descriptors; false: not sent */
bool raw_send_bytes(RawPeer *raw, const void *buf, size_t len, const int *fds,
                    int nfds);
bool raw_send(RawPeer *raw, const struct zp_msg *msg, const int *fds,
              int nfds);
bool raw_send_type(RawPeer *raw, uint32_t type);
bool raw_hello(RawPeer *raw);
/** raw_region: announce [@offset, @offset + @size) of @fd as region @id */
bool raw_region(RawPeer *raw, uint32_t id, int fd, uint64_t offset,
                uint64_t size, uint32_t flags);

/**
 * raw_turn: take the messages that are there
 *
 * Maps the arena of a hello, keeps regions and their descriptors; false: the
 * library has hung up.  @last, if given, is the last message.
 */
bool raw_turn(RawPeer *raw, struct zp_msg *last);

/** raw_connect: the whole handshake, with a handle in the same process */
void raw_connect(RawPeer *raw, struct zpipe *zp);

/**
 * raw_entry: fill in posted write @index
 *
 * Not published: raw_publish() is that.
 */
struct zp_write *raw_entry(RawPeer *raw, uint64_t index, uint8_t type,
                           uint64_t addr, uint32_t region, uint32_t len);
/** raw_publish: so many posted writes are there; wakes the library */
void raw_publish(RawPeer *raw, uint64_t prod);
/** raw_post: fill in posted read @index; raw_posted() publishes */
struct zp_read *raw_post(RawPeer *raw, uint64_t index, uint32_t reach,
                         uint64_t addr, uint32_t region, uint64_t len);
void raw_posted(RawPeer *raw, uint64_t prod);
/** raw_take: claim to have taken and given back */
void raw_take(RawPeer *raw, uint64_t taken, uint64_t cur, uint64_t rel);
void raw_kick(RawPeer *raw);

#endif
