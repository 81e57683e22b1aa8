/*
 * zpipe: inside the library
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * zpipe.c    handles, requests, the turn of zpipe_reap()
 * link.c     the socket: handshake, messages, the end of a connection
 * closer.c   closing what a peer has sent
 * arena.c    the shared memory: making, mapping, checking descriptors
 * region.c   memory that one side lets the other reach
 * tx.c       posted writes of this side: choosing, publishing, withdrawing
 * rx.c       posted writes of the peer: taking, viewing; posted reads
 * wait.c     sleeping and waking
 * cma.c      cross-memory access
 * names.c    words
 * sync.c     the calls that wait
 */

#ifndef ZPIPE_INT_H
#define ZPIPE_INT_H

#include <sys/socket.h>
#include "zpipe.h"
#include "zpipe-proto.h"

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* A peer that is busy, or keeps views, for longer loses the connection. */
#define ZP_PATIENCE_NS      (100ull * 1000 * 1000)
/* The same when the connection has ended: it may be dead. */
#define ZP_LAST_PATIENCE_NS (20ull * 1000 * 1000)
/* For so long there is none, after one that was in vain. */
#define ZP_IMPATIENT_NS     (1000ull * 1000 * 1000)
/* Peers are no longer waited for when they post no read. */
#define ZP_READS_NS         (100ull * 1000 * 1000)
#define ZP_MESSAGES_A_TURN  16
/* Segments handled in one step. */
#define ZP_SLICE_MAX        64
/* Bytes copied in one pass: bounds how long this side is busy. */
#define ZP_PASS_BYTES       (8u << 20)
/* Bytes on the way after which a sleeping peer is woken at once. */
#define ZP_EAGER_BYTES      (256u << 10)
/* The same of bytes that the peer need not copy, as a multiple. */
#define ZP_EAGER_AT_HAND    4

#define HANDSHAKE_MS_DEFAULT 5000u
#define DIRECT_MIN_DEFAULT  2048u
#define CMA_MIN_DEFAULT     (32u << 10)

/* Every word of an arena is loaded and stored with these. */
#define ld_relaxed(p)       __atomic_load_n((p), __ATOMIC_RELAXED)
#define ld_acquire(p)       __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define st_relaxed(p, v)    __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define st_release(p, v)    __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define full_barrier()      __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* zpipe_req.p.kind */
enum { KIND_WRITE, KIND_KEPT, KIND_READ, KIND_VIEW };
/* zpipe_req.p.state */
enum { REQ_QUEUED = 1, REQ_DONE, REQ_REAPED };

/* A FIFO of requests. */
struct req_queue {
    struct zpipe_req *head, **tail;
};

/*
 * A mapping of the peer's memory: its arena, or a region.  Views hold
 * references, so it may outlive the connection.
 */
struct zp_map {
    void *base;
    size_t size;
    size_t whole;               /* with the rest of its last page */
    unsigned refs;
    bool writable;
    uint64_t file;              /* bytes that its end may free; own: 0 */
};

/* Pointers into an arena, own or the peer's. */
struct zp_arena {
    struct zp_ctl *ctl;
    struct zp_write *writes;
    struct zp_read *reads;
    uint8_t *how;
    uint8_t *copy;
    uint32_t entries;           /* a power of two */
    uint32_t copy_bytes;
};

enum region_state {
    REGION_UNSENT,
    REGION_WITHHELD,            /* this peer could open it for writing */
    REGION_SENT,
    REGION_GOOD,
    REGION_REFUSED,
};

/* Memory of this side. */
struct zp_own_region {
    bool used, writable;        /* writable: by the peer */
    bool sealed;                /* against writing, by the kernel */
    uid_t owner;                /* of the file; else it may be opened anew */
    enum region_state state;
    int fd;                     /* to be passed */
    uint64_t offset;
    const uint8_t *addr;
    size_t size;
    uint32_t serial;
    bool buffer;                /* of zpipe_buffer_new(): mapped by us */
};

/* What the entry of a published write stands for. */
struct tx_slot {
    struct zpipe_req *req;      /* NULL: zpipe_try_write(), or the end */
    uint64_t pos;
    uint64_t copy_end;          /* copy memory used up to here, 0: none */
    uint32_t len;
    uint8_t type;               /* enum zp_write_type */
    uint8_t mechanism;          /* as far as the writer knows */
    int16_t region;
};

/*
 * The stream that this side writes.  Positions count bytes since the stream
 * began; indices of entries begin anew with each connection.
 */
struct zp_tx {
    struct req_queue queue;     /* incomplete writes, in order */
    struct zpipe_req *next;     /* the first with bytes to publish */
    struct tx_slot *slots;
    uint64_t prod, rel;         /* entries published, given back */
    uint64_t pos;               /* of the next byte to publish */
    uint64_t acked;             /* the peer has taken all before */
    uint64_t high;              /* was ever published in this session */
    uint64_t copy_head, copy_tail;
    uint64_t eager;             /* bytes published since the last kick */
    bool viewed;                /* the peer looks at what it is shown */
    bool push_run;              /* all that is on the way was pushed */
    uint64_t push_next;         /* then: the posted read for the next byte */
    bool shut, end_sent;
    bool want_space;            /* zpipe_try_write() found no room */
    bool want_reads;            /* waits for a posted read */
    bool more;                  /* tx_pump() has ended early */
    uint64_t reads_by;          /* not after that time; 0: for ever, or not */
    bool no_reads;              /* the peer did not post one in time */
};

/* The stream that the peer writes. */
struct zp_rx {
    struct req_queue queue;     /* incomplete reads, in order */
    struct zpipe_req *unposted; /* the first that is not published */
    uint64_t cur, rel;          /* entries taken, given back */
    uint64_t taken;             /* position in the stream */
    uint64_t r_prod, r_done;    /* reads posted, over */
    uint64_t told;              /* bytes taken since the last kick */
    uint8_t *held;              /* entries that are being viewed */
    unsigned nheld;
    bool end;                   /* the peer has shut down */
    bool demand;                /* a posted read stands for try_read */
    bool want_data;             /* zpipe_try_read() found nothing */
};

enum link_state { LINK_NONE, LINK_HELLO, LINK_READY, LINK_UP, LINK_DRAIN };

struct zpipe {
    struct zpipe_config cfg;
    enum link_state link;
    bool server;
    uint32_t epoch;             /* number of the connection */

    /* descriptors; -1 when there is none */
    int epfd, sock, timer;
    int bell;                   /* a byte that comes wakes us; ours alone */
    int bell_rope;              /* its other end, until the hello is sent */
    int rope;                   /* of the peer's bell: only to be sent to */
    unsigned rung;              /* sleeps since the bell was emptied */
    int peer_pidfd;
    int peer_pid;
    uid_t peer_uid;
    uint64_t wait_end;          /* of all waits of this call; 0: not limited */
    uint64_t impatient_end;     /* a peer was waited for in vain */

    int broken;                 /* bytes were lost: it cannot go on */
    int error;                  /* why the connection ended, negative errno */
    char error_text[ZP_TEXT_MAX + 64];

    struct zp_map *own_map;
    struct zp_map *peer_map;
    int arena_fd;               /* for the hello */
    struct zp_arena own, peer;
    bool touching;              /* own.ctl->busy is set */

    struct zp_tx tx;
    struct zp_rx rx;
    struct req_queue done;
    bool in_turn;               /* zpipe_reap() has not returned NULL yet */
    unsigned turn_budget;
    uint64_t turn_end;          /* stats.copied at which a turn ends */
    bool polled;                /* the descriptors have been looked at */
    bool waking;                /* wake_self() was called, nobody looked yet */

    uint32_t news;              /* ZP_WANT_*: what the peer was not told */
    uint64_t handshake_end;     /* by now_ns() */

    uint64_t sleep_seq;
    uint64_t kicked;            /* the peer's sleep that was kicked */
    bool asleep;

    uint64_t session[2];
    bool resumed;
    bool session_known;
    uint8_t cookie[16];
    uint8_t peer_cookie[16];
    uint64_t peer_cookie_addr;
    bool cma_read, cma_write, peer_cma_read;
    int cma_error;
    bool cma_lost;              /* the peer is to be told */

    struct zp_own_region regions[ZPIPE_REGIONS_MAX];
    uint32_t region_serial;
    struct zp_map *peer_regions[ZPIPE_REGIONS_MAX];
    uint64_t peer_bytes;

    struct zpipe_stats stats;
};

/* ------------------------------------------------------------- requests */

void queue_init(struct req_queue *q);
void queue_push(struct req_queue *q, struct zpipe_req *req);
struct zpipe_req *queue_pop(struct req_queue *q);
bool queue_remove(struct req_queue *q, struct zpipe_req *req);

/* Move a request that was taken off its queue to those to be reaped. */
void req_finish(struct zpipe *zp, struct zpipe_req *req, ssize_t result);

/* Set where in @iov byte @offset lies. */
void req_seek(struct zpipe_req *req, size_t offset);

/* ----------------------------------------------------------------- link */

/* epoll_event.data.u32 */
enum { WATCH_SOCK = 1, WATCH_BELL, WATCH_TIMER };

/* End the connection because of @err (negative errno); @text says why. */
void link_fail(struct zpipe *zp, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* As many descriptors as the kernel lets come with one packet. */
#define ZP_FDS_RECEIVED 253

union received_control {
    struct cmsghdr align;
    /* and credentials */
    char space[CMSG_SPACE(ZP_FDS_RECEIVED * sizeof(int)) +
               CMSG_SPACE(3 * sizeof(int))];
};

/* Close a descriptor that came from a peer, without waiting. */
void close_received(int fd);
/* Close a socket that only we receive from, whatever is in its queue. */
void close_socket(int sock);
/* Close one that the peer has as well. */
void close_rope(int fd);
/* Unmap and free; may be done by a thread, some time later. */
void unmap_received(struct zp_map *map);
/*
 * Take so many pieces of a stream, and throw them away.  False, and no more of
 * them, if one came with descriptors.
 */
bool discard_received(int sock, int times);
/* The descriptors that came with a packet; returns their number. */
int received_fds(struct msghdr *hdr, int *fds);
/* No more of them can be taken, for the time being. */
bool closing_too_many(void);
/* Look at the descriptors that are ready. */
int link_poll(struct zpipe *zp, int timeout_ms);
/* Empty the bell.  False: the connection was lost. */
bool link_silence(struct zpipe *zp);
bool link_send(struct zpipe *zp, struct zp_msg *msg, const int *fds, int nfds);
/* The peer's memory can be looked at: connected, or what it left behind. */
static inline bool link_readable(const struct zpipe *zp)
{
    return zp->link >= LINK_UP;
}
/* A connection that has ended: drop what is left of it when nothing is. */
void link_drained(struct zpipe *zp);
void link_drop_peer(struct zpipe *zp);
/* The handle is freed; what was copied stays for the peer to read. */
void link_leave(struct zpipe *zp);

/* ---------------------------------------------------------------- arena */

int arena_create(struct zpipe *zp);
int arena_adopt(struct zpipe *zp, int fd, const struct zp_hello *hello);
struct zp_map *map_fd(int fd, uint64_t offset, uint64_t size, bool writable,
                      bool allow_hugetlb, int *err);
void map_put(struct zp_map *map);
/* A memfd of @size bytes that cannot shrink or grow, or a negative errno. */
int sealed_memfd(const char *name, size_t size);

/* --------------------------------------------------------------- region */

void region_message(struct zpipe *zp, const struct zp_msg *msg, int fd);
void region_send_all(struct zpipe *zp);
void region_forget_peer(struct zpipe *zp);
/* How many there are that this peer is not given. */
unsigned regions_withheld(const struct zpipe *zp);
/* Index of the region that has [@addr, @addr + @len), -1: none. */
int region_find(struct zpipe *zp, const void *addr, size_t len);

/* ------------------------------------------------------------------- tx */

/* Publish what can be. */
void tx_pump(struct zpipe *zp);
/* Look what the peer has given back. */
void tx_collect(struct zpipe *zp);
/* Take back what the peer has not taken.  False: the connection was lost. */
bool tx_withdraw(struct zpipe *zp);
/*
 * The same with a connection that has ended.  The peer is waited for not after
 * @deadline, if it has writes or, @reads, may be writing into reads.
 */
void tx_salvage(struct zpipe *zp, bool reads, uint64_t deadline);
/*
 * Take back what it reads by address: true if, as long as it is busy, it may
 * be doing so.  What it has in its own mappings stays.
 */
bool tx_conceal(struct zpipe *zp);
/* Writes were given back to the user: no peer can claim them any more. */
void tx_disclaim(struct zpipe *zp);
/* Begin with a new connection; the peer has all before @pos. */
void tx_start(struct zpipe *zp, uint64_t pos);
/* All queued writes end with @err. */
void tx_fail_all(struct zpipe *zp, int err);
bool tx_has_news(struct zpipe *zp);
bool tx_shows_region(struct zpipe *zp, int region);

/* ------------------------------------------------------------------- rx */

/* Take what is there and wanted. */
void rx_pass(struct zpipe *zp);
/* Publish the reads that are not. */
void rx_post(struct zpipe *zp);
/* Take back all published reads.  False: the connection was lost. */
bool rx_revoke(struct zpipe *zp);
/*
 * The same with a connection that ends: true if the peer, as long as it is
 * busy, may be writing into one.
 */
bool rx_conceal(struct zpipe *zp);
void rx_start(struct zpipe *zp, uint64_t pos);
void rx_fail_all(struct zpipe *zp, int err);
bool rx_has_news(struct zpipe *zp);
/* The peer has left something that can be read. */
bool rx_more(struct zpipe *zp);

/* ----------------------------------------------------------------- wait */

/* This side is going to touch memory of the peer, or has. */
void touch_begin(struct zpipe *zp);
void touch_end(struct zpipe *zp);
/* Wait until the peer does not touch ours.  False: it took too long. */
bool await_untouched(struct zpipe *zp, uint64_t deadline);
/* The time after which the peer is not waited for, from now on @ns at most. */
uint64_t patience_end(const struct zpipe *zp, uint64_t ns);
/* The same where the peer says when there is something to wait for. */
uint64_t patience_left(const struct zpipe *zp, uint64_t ns);
/* The time was over, and the peer had not done what it was waited for. */
void waited_in_vain(struct zpipe *zp);
/* Wake the peer when it sleeps and wants to know. */
void kick(struct zpipe *zp);
/* Do what can be done; false: there is more, or something to be reaped. */
bool settle(struct zpipe *zp);
/* Tell the peer that we sleep; false: there is something to do. */
bool fall_asleep(struct zpipe *zp);
void wake_up(struct zpipe *zp);
/* Make zpipe_fd() readable, now or after some time. */
void wake_self(struct zpipe *zp);
void wake_self_later(struct zpipe *zp, uint64_t ns);
uint64_t now_ns(void);

/* ------------------------------------------------------------------ cma */

void cma_prove(struct zpipe *zp, const struct zp_hello *hello);
/* Copy @len bytes; 0 or a negative errno. */
int cma_read(struct zpipe *zp, const struct iovec *local, int n,
             uint64_t remote, size_t len);
int cma_write(struct zpipe *zp, const struct iovec *local, int n,
              uint64_t remote, size_t len);
void cma_close(struct zpipe *zp);

/*
 * A part of a request's buffers: up to @max bytes from its present place, in
 * up to @n elements.  Returns the number of elements, stores the bytes.
 */
int req_slice(const struct zpipe_req *req, size_t max, struct iovec *iov,
              int n, size_t *bytes);
void req_advance(struct zpipe_req *req, size_t bytes);

#endif
