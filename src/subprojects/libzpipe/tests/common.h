/*
 * Tests of libzpipe: what they share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Most tests have both ends in one process and let each of them run when they
 * say so: what is published, taken or half taken is then known.  No test
 * asserts how long something takes; HANG_MS only ends a test that hangs.
 */

#ifndef ZPIPE_TEST_COMMON_H
#define ZPIPE_TEST_COMMON_H

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "zpipe.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define KiB 1024u
#define MiB (1024u * KiB)
#define INLINE_MAX 112u
#define HANG_MS 10000

/* ------------------------------------------------------------- contents */

/**
 * pat_fill: the contents of a stream
 * @seed: which stream
 * @pos: position of the first byte in it
 *
 * A byte depends on where it is: one that is lost, doubled or moved shows.
 */
void pat_fill(void *buf, size_t len, uint64_t seed, uint64_t pos);

/** pat_find: the first byte that is wrong, or -1 */
ssize_t pat_find(const void *buf, size_t len, uint64_t seed, uint64_t pos);

/** pat_check: fail when one is wrong */
void pat_check(const void *buf, size_t len, uint64_t seed, uint64_t pos);

/* ------------------------------------------------------------- requests */

typedef struct Req {
    struct zpipe_req r;         /* first: zpipe_reap() returns it */
    struct iovec *iov;
    bool done;
    unsigned int seq;           /* of its completion, over all handles */
} Req;

/** req_new: a request of one segment, or @n uneven ones (req_new_sg) */
Req *req_new(void *buf, size_t len);
Req *req_new_sg(void *buf, size_t len, int n);
/** req_new_view: a request for zpipe_read_view(), with no buffer */
Req *req_new_view(void);
void req_free(Req *req);

void submit_write(struct zpipe *zp, Req *req);
void submit_read(struct zpipe *zp, Req *req);
void submit_view(struct zpipe *zp, Req *req);

/* ---------------------------------------------------------------- pairs */

typedef struct Pair {
    struct zpipe *tx;           /* it dialled; most tests write here */
    struct zpipe *rx;           /* it accepted */
    int fds;                    /* descriptors before, to find leaks */
} Pair;

/** config_of: the smallest rings, which wrap most, and what is given */
struct zpipe_config config_of(enum zpipe_mechanism mechanism, uint32_t flags);

/** pair_open: two handles, connected; NULL: config_of(ZPIPE_AUTO, 0) */
void pair_open(Pair *p, const struct zpipe_config *tx,
               const struct zpipe_config *rx);
/** pair_new: two handles, not connected */
void pair_new(Pair *p, const struct zpipe_config *tx,
              const struct zpipe_config *rx);
/** pair_attach: a socket between the two; returns when they are connected */
void pair_attach(Pair *p);
/** pair_close: free both, check that no descriptor is left */
void pair_close(Pair *p);

/** reap_all: until zpipe_reap() returns NULL; returns how many completed */
int reap_all(struct zpipe *zp);
/** pair_step: reap_all() of both */
int pair_step(Pair *p);
/** pair_poll: sleep until zpipe_fd() of one is readable; false: @ms are over */
bool pair_poll(Pair *p, int ms);
/** pair_settle: until neither has anything to do */
void pair_settle(Pair *p);
/**
 * pair_wait: until a request has completed, sleeping in poll()
 *
 * Nobody else is there: when both sleep and it has not completed, a wake-up
 * was lost, and the test fails.
 */
void pair_wait(Pair *p, Req *req);
/** wait_req: the same with one handle, the peer being elsewhere */
void wait_req(struct zpipe *zp, Req *req);
/** wait_gone: until the connection of a handle has ended; returns the code */
int wait_gone(struct zpipe *zp);

/** pass: write and read @len bytes from pattern position @pos, and check */
void pass(Pair *p, size_t len, uint64_t seed, uint64_t pos);

/* ------------------------------------------------------------- the rest */

int fd_count(void);
/**
 * fd_check: as many as that are open
 *
 * In a moment at least: odd descriptors of a peer are closed by a thread.
 */
void fd_check(int expected);
/** memfd_shown: one that can be mapped for writing @mem only, and read */
int memfd_shown(size_t size, void **mem);
/** memfd_new: a memfd of @size bytes with these seals, or -1 */
int memfd_new(size_t size, unsigned int mfd_flags, int seals);
/** map_new: a writable mapping of it */
void *map_new(int fd, size_t size);
/** socket_pair: both ends of a connection as zpipe_dial() would make it */
void socket_pair(int sv[2]);
/** path_new: a path for a socket, in a directory of its own; path_free() */
char *path_new(void);
void path_free(char *path);

/** count_of: sum over all mechanisms */
struct zpipe_count count_of(const struct zpipe_count *counts);
struct zpipe_stats stats_of(const struct zpipe *zp);
struct zpipe_info info_of(const struct zpipe *zp);

/** now_ms: for the limits of loops */
int64_t now_ms(void);

#endif
