/*
 * zpipe: an asynchronous pipe between two processes
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Two processes on one host that meet at a UNIX socket get a pair of byte
 * streams, one in each direction.  Reads and writes are requests that complete
 * later; they match in either order.  When both are there, one of several
 * mechanisms hands the data over (see enum zpipe_mechanism).  The idea is that
 * of US patent 9,075,795; the protocol is described in docs/interop/zpipe.rst.
 *
 * Shape of a program:
 *
 *     zp = zpipe_new(NULL);
 *     zpipe_connect(zp, path);
 *     zpipe_write(zp, &req);                      any number of requests
 *     for (;;) {
 *         while ((done = zpipe_reap(zp))) {       until it returns NULL
 *             ... done->result ...
 *         }
 *         poll(zpipe_fd(zp), POLLIN);             or zpipe_wait(zp, -1)
 *     }
 *
 * Threads: a handle is used by one thread at a time; the caller serialises.
 * Different handles are independent.  The library installs no signal handler
 * and calls nothing back; it starts no thread, but to close what came from a
 * peer.
 *
 * Errors: functions return a negative errno value, or -1 and errno where that
 * is said.  zpipe_error() has the reason in words.
 *
 * The peer is not trusted.  Its memory is mapped read-only, or was given for
 * writing into; what it says is read once and checked.  A peer that breaks the
 * protocol loses the connection with -EPROTO.
 */

#ifndef ZPIPE_H
#define ZPIPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZPIPE_API __attribute__((visibility("default")))

/** Version of this interface; zpipe_version() has that of the library. */
#define ZPIPE_VERSION_MAJOR 0
#define ZPIPE_VERSION_MINOR 1

/** Largest path of a UNIX socket, in bytes, without the terminating zero. */
#define ZPIPE_PATH_MAX 107

/** Limits of zpipe_config.ring_bytes; it must be a power of two. */
#define ZPIPE_RING_BYTES_MIN (64u << 10)
#define ZPIPE_RING_BYTES_MAX (64u << 20)
#define ZPIPE_RING_BYTES_DEFAULT (1u << 20)

/** Regions that one side can have registered at a time. */
#define ZPIPE_REGIONS_MAX 128

/** Segments of one request, at most. */
#define ZPIPE_IOV_MAX 1024

/**
 * enum zpipe_mechanism: how data are handed over
 * @ZPIPE_AUTO: chosen for each message
 * @ZPIPE_INLINE: in the entry of the ring; for messages of up to 112 bytes
 * @ZPIPE_COPY: copied into the writer's ring memory, and from there into the
 *      reader's buffer
 * @ZPIPE_DIRECT: copied once, from the writer's buffer into the reader's: by
 *      the writer when the read was posted first and its buffer can be reached,
 *      else by the reader when the writer's buffer can be reached
 * @ZPIPE_MAP: not copied: the reader looks at the writer's buffer
 *      (zpipe_read_view()) and gives it back
 * @ZPIPE_DMA: reserved for copy engines; not chosen by this version
 */
enum zpipe_mechanism {
    ZPIPE_AUTO,
    ZPIPE_INLINE,
    ZPIPE_COPY,
    ZPIPE_DIRECT,
    ZPIPE_MAP,
    ZPIPE_DMA,
    ZPIPE_MECHANISMS
};

/**
 * enum zpipe_reason: why a message did not go the way that was asked for, or
 * the best way
 * @ZPIPE_WHY_SIZE: too large for inline, or too small to be worth more
 * @ZPIPE_WHY_NO_REGION: the writer's buffer is in no registered region
 * @ZPIPE_WHY_REFUSED: it is, but the peer could not or would not map the region
 * @ZPIPE_WHY_READER_PRIVATE: the posted read's buffer cannot be reached
 * @ZPIPE_WHY_READER_BEHIND: data on the way, or no read posted: the place in
 *      the reader's buffers is not known
 * @ZPIPE_WHY_CMA_OFF: cross-memory access was not asked for by both sides
 * @ZPIPE_WHY_CMA_DENIED: it was tried and the kernel refused
 * @ZPIPE_WHY_NO_VIEW: the reader wanted a copy, not a view
 * @ZPIPE_WHY_UNTRUSTED: the buffer is in a region that this peer is not given:
 *      it could write it
 */
enum zpipe_reason {
    ZPIPE_WHY_SIZE,
    ZPIPE_WHY_NO_REGION,
    ZPIPE_WHY_REFUSED,
    ZPIPE_WHY_READER_PRIVATE,
    ZPIPE_WHY_READER_BEHIND,
    ZPIPE_WHY_CMA_OFF,
    ZPIPE_WHY_CMA_DENIED,
    ZPIPE_WHY_NO_VIEW,
    ZPIPE_WHY_UNTRUSTED,
    ZPIPE_REASONS
};

/** What a handle is doing. */
enum zpipe_state {
    ZPIPE_IDLE,         /**< no connection yet, or it was lost or detached */
    ZPIPE_CONNECTING,   /**< the handshake is under way */
    ZPIPE_CONNECTED,
};

/* zpipe_config.flags */
/**
 * Use process_vm_readv() and process_vm_writev() on the peer where it lets
 * us: its memory is read and written, ours is not shown to it.  A peer can
 * make such a copy wait (userfaultfd, FUSE): for a trusted one only.
 */
#define ZPIPE_CMA_USE           (1u << 0)
/** Let the peer know the addresses of write buffers, to read them itself. */
#define ZPIPE_CMA_EXPOSE_READ   (1u << 1)
/** Let the peer know the addresses of read buffers, to write them itself. */
#define ZPIPE_CMA_EXPOSE_WRITE  (1u << 2)
/** All three: between programs of one user that trust each other. */
#define ZPIPE_CMA (ZPIPE_CMA_USE | ZPIPE_CMA_EXPOSE_READ | \
                   ZPIPE_CMA_EXPOSE_WRITE)
/**
 * Keep requests when the connection is lost, for zpipe_attach() with a new
 * one; without it they complete with the error.
 */
#define ZPIPE_PERSISTENT        (1u << 3)
/**
 * Accept the peer's regions of huge pages.  Reading one whose pages are not
 * there raises SIGBUS when the pool is empty: only for a trusted peer.
 */
#define ZPIPE_ALLOW_HUGETLB     (1u << 4)
/**
 * Do not post buffers for the peer to write into: no read of this handle can
 * be reached, whatever memory it lies in.
 */
#define ZPIPE_READS_PRIVATE     (1u << 5)
/**
 * Show regions also to a peer that could give itself write access to them; see
 * zpipe_region_add().
 */
#define ZPIPE_TRUST_PEER        (1u << 6)

/**
 * struct zpipe_config: settings of a handle
 * @size: sizeof(struct zpipe_config) of the caller
 * @flags: ZPIPE_CMA_USE and so on
 * @ring_bytes: memory for copies of this side's writes, in bytes; 0: default
 * @mechanism: for this side's writes.  One that cannot be used for a message
 *      is replaced by one that can, and counted under its reason.
 *      ZPIPE_DIRECT waits up to 100 ms for a read to be posted first
 * @direct_min_bytes: smallest message that ZPIPE_AUTO sends directly when the
 *      reader waits; 0: default
 * @cma_min_bytes: the same for cross-memory access; 0: default
 * @spin_ns: how long zpipe_wait() looks at the rings before it sleeps.  0:
 *      default, which is not at all where fewer than three CPUs may be used
 * @no_spin: never do so
 * @peer_bytes_max: refuse regions of the peer beyond this sum, in bytes; 0: no
 *      limit.  Touching pages of the peer's may charge them to this process
 * @handshake_ms: a connection ends with -ETIMEDOUT when its handshake takes
 *      longer, in milliseconds; 0: default, 5 seconds
 */
struct zpipe_config {
    uint32_t size;
    uint32_t flags;
    uint32_t ring_bytes;
    enum zpipe_mechanism mechanism;
    uint32_t direct_min_bytes;
    uint32_t cma_min_bytes;
    uint64_t spin_ns;
    bool no_spin;
    uint64_t peer_bytes_max;
    uint32_t handshake_ms;
};

struct zpipe;

/**
 * struct zpipe_req: a read or a write
 * @iov: the buffers; they and the array belong to the library until the
 *      request was reaped.  A view has none
 * @iovcnt: number of elements, 1 to ZPIPE_IOV_MAX (0 for a view)
 * @min: a read completes when it has this many bytes; 0 counts as 1
 * @user: not touched
 * @result: bytes read or written, or a negative errno value.  0: a read found
 *      the end of the stream.  A write that was cancelled or cut off has the
 *      number of bytes that the peer took, if any, else the error
 * @mechanism: how its last bytes went
 * @view: of a view: where the data are, read-only, until zpipe_view_done()
 *
 * The caller owns the memory; the library keeps it from a successful submit to
 * the zpipe_reap() that returns it (a view: to zpipe_view_done()).
 */
struct zpipe_req {
    const struct iovec *iov;
    int iovcnt;
    size_t min;
    void *user;

    ssize_t result;
    enum zpipe_mechanism mechanism;
    const void *view;

    /* private to the library */
    struct {
        struct zpipe_req *next;
        void *map;
        size_t total, sent, done, seg_off;
        uint64_t index;
        uint32_t seg, epoch;
        uint8_t kind, state;
    } p;
};

/** A counter for each mechanism. */
struct zpipe_count {
    uint64_t messages, bytes;
};

/**
 * struct zpipe_stats: counters of a handle since zpipe_new()
 * @tx: what this side wrote, by the mechanism taken.  A message is counted in
 *      the pieces in which it went, when the peer has them
 * @rx: what this side read
 * @fallback: pieces by the reason for which they did not go a better way
 * @kicks: times that this side woke the peer
 * @kicks_saved: times that it needed not, since the peer was awake
 * @wakeups: times that zpipe_wait() slept and was woken
 * @spins: times that zpipe_wait() found work while it was looking
 * @connects: completed handshakes
 * @resumed: of these, those that went on with an old session
 * @regions, @peer_regions: registered now, by this side and by the peer
 * @refused_regions: regions of the peer that were refused
 * @cma_errors: times that the kernel refused cross-memory access
 * @copied: bytes that this side has copied, in whatever direction
 */
struct zpipe_stats {
    struct zpipe_count tx[ZPIPE_MECHANISMS], rx[ZPIPE_MECHANISMS];
    uint64_t fallback[ZPIPE_REASONS];
    uint64_t kicks, kicks_saved, wakeups, spins;
    uint64_t connects, resumed;
    uint64_t regions, peer_regions, refused_regions;
    uint64_t cma_errors;
    uint64_t copied;
};

/**
 * struct zpipe_info: what was negotiated
 * @peer_pid: by the kernel's word, 0 if it is in another namespace
 * @peer_uid: the same; 65534 if it is in another user namespace
 * @version: of the protocol
 * @ring_bytes, @peer_ring_bytes: memory for copies, each side's
 * @cma_read, @cma_write: this side can read, write the peer's memory (proven)
 * @peer_cma_read: the peer has proven that it can read this side's
 * @cma_error: errno of the proof that failed, 0 if none did
 * @resumed: the session is an old one
 * @withheld_regions: regions of this side that the peer is not given since it
 *      could write them
 * @draining: the connection has ended, and what the peer had sent before is
 *      still to be read
 * @ended: the peer has shut down and this side has taken all before that
 * @tx_offset, @rx_offset: bytes that the peer has taken, that this side has
 *      taken, since the stream began
 */
struct zpipe_info {
    int peer_pid;
    uid_t peer_uid;
    uint32_t version;
    uint32_t ring_bytes, peer_ring_bytes;
    bool cma_read, cma_write, peer_cma_read;
    int cma_error;
    bool resumed, ended, draining;
    unsigned withheld_regions;
    uint64_t tx_offset, rx_offset;
};

/** Version of the library, as text. */
ZPIPE_API const char *zpipe_version(void);

/** Name of a mechanism ("copy"), of a reason ("cma-denied"). */
ZPIPE_API const char *zpipe_mechanism_name(enum zpipe_mechanism mechanism);
ZPIPE_API const char *zpipe_reason_name(enum zpipe_reason reason);

/** The mechanism of that name, or -EINVAL. */
ZPIPE_API int zpipe_mechanism_parse(const char *name);

/**
 * zpipe_new: make a handle
 * @config: settings, copied; NULL for the defaults
 *
 * Returns: the handle, to be freed with zpipe_free(); NULL and errno: EINVAL
 * (a setting is out of range), ENOMEM, EMFILE ...
 */
ZPIPE_API struct zpipe *zpipe_new(const struct zpipe_config *config);

/**
 * zpipe_new_after: make a handle that takes the place of another
 * @old: with no connection; it still has to be freed
 *
 * The same peers will come: that one was waited for in vain, less than a second
 * ago, is remembered (see zpipe_detach()).  Nothing else is.
 */
ZPIPE_API struct zpipe *zpipe_new_after(const struct zpipe_config *config,
                                        const struct zpipe *old);

/**
 * zpipe_free: end the connection and free the handle
 *
 * Requests are forgotten, not completed; views become invalid; buffers of
 * zpipe_buffer_new() are unmapped.  Use zpipe_shutdown() and reap the writes
 * first if the peer shall have everything.
 */
ZPIPE_API void zpipe_free(struct zpipe *zp);

/**
 * zpipe_listen: make a listening socket
 * @path: at most ZPIPE_PATH_MAX bytes; a socket that nobody listens on is
 *      replaced, another file is not
 *
 * Returns: a descriptor, non-blocking, close-on-exec; or a negative errno
 * value: ENAMETOOLONG, EADDRINUSE (somebody listens, or it is no socket), EBUSY
 * (the directory stays locked by somebody else) ...
 */
ZPIPE_API int zpipe_listen(const char *path);

/**
 * zpipe_accept: take a client from a listening socket
 *
 * Returns: a descriptor for zpipe_attach(), or a negative errno value (EAGAIN)
 */
ZPIPE_API int zpipe_accept(int listener);

/**
 * zpipe_dial: connect to a listening socket, without a handle
 *
 * Returns: a descriptor for zpipe_attach(), or a negative errno value.
 */
ZPIPE_API int zpipe_dial(const char *path);

/**
 * zpipe_refuse: send a client away
 * @sock: from zpipe_accept(); closed
 * @why: what its zpipe_error() will say
 */
ZPIPE_API void zpipe_refuse(int sock, const char *why);

/**
 * zpipe_attach: begin the handshake on a connected socket
 * @sock: SOCK_SEQPACKET; the library closes it, also when this fails
 * @server: whether this side accepted it
 *
 * The handshake goes on in zpipe_reap(); zpipe_state() tells.  A handle with
 * ZPIPE_PERSISTENT may be attached again after a connection was lost: a peer
 * that knows the session goes on where it was, nothing is lost or doubled;
 * for another peer the stream goes on with the first byte that was not taken.
 *
 * Returns: 0, or a negative errno value: EISCONN, EPROTOTYPE (a socket of
 * another kind), ECONNRESET or ECONNREFUSED (the peer has gone already) ...
 */
ZPIPE_API int zpipe_attach(struct zpipe *zp, int sock, bool server);

/** zpipe_connect: zpipe_dial() and zpipe_attach(). */
ZPIPE_API int zpipe_connect(struct zpipe *zp, const char *path);

/**
 * zpipe_detach: end the connection, keep the handle
 *
 * Requests are kept (ZPIPE_PERSISTENT) or complete with -ECONNABORTED.
 *
 * A peer in the middle of copying is waited for, up to 100 ms.  Here, and when
 * the peer goes, only if none was waited for in vain in the second before.
 */
ZPIPE_API void zpipe_detach(struct zpipe *zp);

ZPIPE_API enum zpipe_state zpipe_state(const struct zpipe *zp);

/**
 * zpipe_error: why the connection ended, in words
 * @code: where to store the negative errno value, 0 if there is none; or NULL
 *
 * Returns: a text that is valid until the next call on this handle; "" if the
 * handle was never disconnected.
 */
ZPIPE_API const char *zpipe_error(const struct zpipe *zp, int *code);

ZPIPE_API void zpipe_get_info(const struct zpipe *zp, struct zpipe_info *info);
ZPIPE_API void zpipe_get_stats(const struct zpipe *zp,
                               struct zpipe_stats *stats);

/**
 * zpipe_fd: a descriptor to poll for input
 *
 * It is readable when zpipe_reap() has something to do.  It is good for the
 * life of the handle.  Wait on it only after zpipe_reap() has returned NULL and
 * nothing was submitted since, or zpipe_flush() was called.
 */
ZPIPE_API int zpipe_fd(const struct zpipe *zp);

/**
 * zpipe_reap: make progress, return a request that has completed
 *
 * Never blocks.  NULL says that nothing more can be done: the peer has been
 * told of everything, and zpipe_fd() will say when to call again.  Requests
 * complete in the order in which they were submitted, in each direction.
 */
ZPIPE_API struct zpipe_req *zpipe_reap(struct zpipe *zp);

/**
 * zpipe_flush: tell the peer of what was submitted
 *
 * One system call, or none when the peer is awake.  zpipe_reap() does it
 * before it returns NULL; call it after submitting from outside such a loop.
 */
ZPIPE_API void zpipe_flush(struct zpipe *zp);

/**
 * zpipe_wait: sleep until zpipe_reap() has something to do
 * @timeout_ms: at most so long; -1: no limit
 *
 * Returns: 1, 0 when the time is over, or a negative errno value (EINTR).
 */
ZPIPE_API int zpipe_wait(struct zpipe *zp, int timeout_ms);

/**
 * zpipe_write: submit a write
 *
 * Completes with the number of bytes when the peer has all of them and will
 * not look at the buffers again.  Submitted without a connection it waits for
 * one.
 *
 * Returns: 0: it will be reaped; or a negative errno value and it will not:
 * EINVAL (no bytes, too many segments), EPIPE (after zpipe_shutdown(), or the
 * peer reads no more), ENOTCONN (the connection was lost and the handle is not
 * persistent).
 */
ZPIPE_API int zpipe_write(struct zpipe *zp, struct zpipe_req *req);

/**
 * zpipe_read: submit a read
 *
 * Completes with at least @min bytes (or what there is before the end of the
 * stream), or 0 at the end.  A buffer in memory of zpipe_buffer_new(), or with
 * cross-memory access any buffer, can be filled by the peer itself if @iovcnt
 * is 1.
 *
 * Returns: as zpipe_write().
 */
ZPIPE_API int zpipe_read(struct zpipe *zp, struct zpipe_req *req);

/**
 * zpipe_read_view: submit a read that is not copied
 * @req: with an iov of one element the data are copied there when there is
 *      nothing to look at (they were reached by cross-memory access), and @view
 *      is that buffer; without one such data fail the request with -ENOBUFS and
 *      stay
 *
 * Completes with @view and @result: the next piece of the stream, as the
 * writer cut it.  The peer may change the bytes while they are looked at: copy
 * before checking.  @min does not count.
 */
ZPIPE_API int zpipe_read_view(struct zpipe *zp, struct zpipe_req *req);

/**
 * zpipe_view_done: give a view back
 *
 * The writer's request completes after that.  In any order; a view whose
 * connection has ended must be given back as well.
 */
ZPIPE_API void zpipe_view_done(struct zpipe *zp, struct zpipe_req *req);

/**
 * zpipe_cancel: take a request back
 *
 * The request is complete when this returns, and zpipe_reap() will return it:
 * with the bytes that were handed over before, if any, else -ECANCELED.  The
 * stream goes on with the next byte: nothing is taken twice or left out.
 * A peer in the middle of copying is waited for, up to 100 ms; then it loses
 * the connection.  Harmless when the request has completed.
 */
ZPIPE_API void zpipe_cancel(struct zpipe *zp, struct zpipe_req *req);

/** zpipe_cancel_all: all reads, or all writes, or both, at once. */
ZPIPE_API void zpipe_cancel_all(struct zpipe *zp, bool reads, bool writes);

/**
 * zpipe_shutdown: no more writes; the peer's reads find the end
 *
 * After the writes that were submitted.  Returns 0 or a negative errno value.
 */
ZPIPE_API int zpipe_shutdown(struct zpipe *zp);

/**
 * zpipe_try_write: write what there is room for, now
 *
 * Copies into the ring memory and returns; for callers that cannot leave the
 * buffer to the library.  With ZPIPE_PERSISTENT what was written survives a
 * lost connection.
 *
 * Returns: bytes, or -EAGAIN (no room, or requests are queued before it),
 * -EPIPE, -ENOTCONN.  After -EAGAIN call zpipe_flush(); zpipe_fd() becomes
 * readable when there is room; reap, then try again.
 */
ZPIPE_API ssize_t zpipe_try_write(struct zpipe *zp, const void *buf,
                                  size_t len);

/**
 * zpipe_try_read: read what is there, now
 *
 * Returns: bytes, 0 at the end of the stream, -EAGAIN (nothing is there, or
 * reads are queued), -ENOTCONN.  After -EAGAIN as for zpipe_try_write().
 */
ZPIPE_API ssize_t zpipe_try_read(struct zpipe *zp, void *buf, size_t len);

/**
 * zpipe_write_all, zpipe_read_full: the same, waiting
 *
 * For simple programs: do not use while requests are under way.
 *
 * Returns: 0 or a negative errno value; bytes read (less than @len only at the
 * end of the stream) or a negative errno value.
 */
ZPIPE_API int zpipe_write_all(struct zpipe *zp, const void *buf, size_t len);
ZPIPE_API ssize_t zpipe_read_full(struct zpipe *zp, void *buf, size_t len);

/**
 * zpipe_wait_connected: finish the handshake
 * @timeout_ms: at most so long, 0: do what can be done now; -1: no limit of
 *      its own; zpipe_config.handshake_ms holds in either case
 *
 * Returns: 0, -ETIMEDOUT, or why the connection ended.
 */
ZPIPE_API int zpipe_wait_connected(struct zpipe *zp, int timeout_ms);

/**
 * zpipe_buffer_new: memory that the peer can reach
 * @size: in bytes, rounded up to pages
 *
 * Reads into it can be filled by the peer, writes from it can be looked at.
 * The peer can write to it at any time.
 *
 * Returns: memory, freed with zpipe_buffer_free() or zpipe_free(); NULL and
 * errno (ENOSPC: ZPIPE_REGIONS_MAX).
 */
ZPIPE_API void *zpipe_buffer_new(struct zpipe *zp, size_t size);
ZPIPE_API void zpipe_buffer_free(struct zpipe *zp, void *buffer);

/**
 * zpipe_region_add: let the peer look at memory
 * @fd: a memfd that is sealed against shrinking; only read access is given:
 *      the descriptor is opened anew, and its file is made unwritable for
 *      others.  Not kept
 * @offset: in the file, in bytes, a multiple of the page size
 * @addr: where this process has it mapped
 * @size: in bytes
 *
 * A peer that is the owner of the file, has this process's user, or is root,
 * could open the file for writing all the same.  It is not given the region
 * (messages go another way, and zpipe_info.withheld_regions counts), unless the
 * memfd is sealed with F_SEAL_FUTURE_WRITE or F_SEAL_WRITE: then nobody can; or
 * the handle has ZPIPE_TRUST_PEER.
 *
 * Returns: a number for zpipe_region_del(), or a negative errno value: EPERM
 * (it is not such a file), EACCES (it cannot be opened read-only), ENOSPC.
 */
ZPIPE_API int zpipe_region_add(struct zpipe *zp, int fd, off_t offset,
                               const void *addr, size_t size);

/**
 * zpipe_region_del: take it back
 *
 * Writes that have been shown to the peer from there are withdrawn and sent
 * another way.  The peer keeps what it has mapped until it hears of it.
 */
ZPIPE_API void zpipe_region_del(struct zpipe *zp, int region);

#ifdef __cplusplus
}
#endif

#endif
