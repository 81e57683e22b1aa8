/*
 * zpipe: what the two processes share
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Messages on the socket, and the layout of an arena.  The protocol is
 * docs/interop/zpipe.rst; this is its letter.
 *
 * Each side has one arena, a sealed memfd that only it can write: the peer is
 * given a descriptor of it, and the memfd is sealed against further writable
 * mappings.  So a word of shared memory has one writer, a
 * reader loads it once and checks it, and no side can spoil the other's state.
 *
 * Rings count without bound: an index is a 64-bit number, its place in the
 * ring is index % entries.
 */

#ifndef ZPIPE_PROTO_H
#define ZPIPE_PROTO_H

#include <stdint.h>

#define ZP_MAGIC        0x6570697au     /* "zipe", in the order of the host */
#define ZP_VERSION      2u
#define ZP_PAGE         4096u
#define ZP_LINE         64u

/* A posted write of up to this many bytes goes in its entry. */
#define ZP_INLINE_MAX   112u
/* A piece in the copy memory; small enough for both sides to work at once. */
#define ZP_COPY_MAX     (64u << 10)
/* A piece of any other kind. */
#define ZP_PIECE_MAX    (1u << 20)

#define ZP_ENTRIES_MIN  32u
#define ZP_ENTRIES_MAX  8192u

/* ------------------------------------------------------------ the socket */

/*
 * SOCK_SEQPACKET: a message is one packet, descriptors come with it.
 *
 * Each side has a bell, a pair of stream sockets: it keeps one end, and the
 * peer gets the other one, the rope; one byte that is sent there wakes it.
 * Not an eventfd: that is shared with its flags, and a peer that clears
 * O_NONBLOCK and fills the counter stops whoever writes it.  A send can be told
 * not to wait.  A receive cannot, of a socket that somebody else has as well:
 * he can be in the middle of one, into memory that is not there (userfaultfd,
 * FUSE), and the kernel lets others wait for that.  So nobody receives from a
 * rope.  Not the socket of the messages: those want to be read, the bell's
 * bytes can be left there for a while.
 */
enum zp_msg_type {
    ZP_MSG_HELLO = 1,   /* both; descriptors: arena, rope */
    ZP_MSG_READY,       /* both, after the other's hello was accepted */
    ZP_MSG_REFUSE,      /* instead of hello or ready; then the end */
    ZP_MSG_ABILITY,     /* cross-memory access has ceased to work */
    ZP_MSG_REGION_ADD,  /* descriptor: the memfd */
    ZP_MSG_REGION_ANSWER,
    ZP_MSG_REGION_DEL,
    ZP_MSG_BYE,         /* the end is meant; text: why */
};

#define ZP_TEXT_MAX     160u
/* A stream ends there, some centuries from now. */
#define ZP_POS_MAX      INT64_MAX

/* zp_hello.offers: what the sender of the hello lets its peer do */
#define ZP_OFFER_CMA_READ   (1u << 0)   /* read its write buffers */
#define ZP_OFFER_CMA_WRITE  (1u << 1)   /* write its read buffers */

struct zp_hello {
    uint32_t version;
    uint32_t offers;
    /* server: its own; client: the one to go on with, or zeros */
    uint64_t session[2];
    uint64_t tx_offset;     /* first byte that this side can still send */
    uint64_t rx_offset;     /* bytes taken from the peer in @session */
    uint32_t entries;       /* of each ring; a power of two */
    uint32_t copy_bytes;    /* a power of two */
    uint64_t cookie_addr;   /* where process_vm_readv() finds @cookie */
    uint8_t cookie[16];
};

/* zp_ability.can */
#define ZP_CAN_CMA_READ     (1u << 0)   /* can read the other's memory */

struct zp_ability {
    uint32_t can;
    uint32_t error;         /* errno of what was refused, or 0 */
};

/* zp_region.flags */
#define ZP_REGION_WRITE     (1u << 0)   /* the peer may write it */

struct zp_region {
    uint32_t id;            /* below ZPIPE_REGIONS_MAX */
    uint32_t flags;
    uint64_t offset;        /* in the file, a multiple of the page size */
    uint64_t size;
    uint32_t error;         /* ANSWER: errno why not, or 0 */
    uint32_t serial;        /* ANSWER: that of the ADD */
};

struct zp_msg {
    uint32_t magic;
    uint32_t type;
    union {
        struct zp_hello hello;
        struct zp_ability ability;
        struct zp_region region;
        char text[ZP_TEXT_MAX];     /* ends with a zero */
    };
};

/* ------------------------------------------------------------- the arena */

/* Each group of words has a cache line of its own. */
struct zp_ctl {
    /* As the writer of a stream. */
    /* posted writes published; it goes back when they are withdrawn */
    uint64_t w_prod;
    uint64_t pad0[7];

    /* As the reader of a stream: how far it is with the peer's. */
    uint64_t taken;         /* bytes, a position in the stream */
    uint64_t cur;           /* posted writes wholly taken */
    /* posted writes given back; behind cur by those that are being viewed */
    uint64_t rel;
    uint64_t pad1[5];

    uint64_t r_prod;        /* posted reads published; goes back, too */
    uint64_t r_done;        /* posted reads that are over */
    uint64_t r_filled;      /* bytes that posted read r_done has already */
    uint64_t pad2[5];

    /* Not 0 while this side touches memory of the peer. */
    uint64_t busy;
    uint64_t pad3[7];

    /*
     * What it wants to be woken for, in the low bits, with a number that grows
     * by ZP_SLEEP_SEQ with each sleep; 0: awake.
     */
    uint64_t sleep;
    uint64_t pad4[7];
};

#define ZP_WANT_DATA    (1u << 0)   /* a posted write */
#define ZP_WANT_SPACE   (1u << 1)   /* progress of taken, rel */
#define ZP_WANT_READS   (1u << 2)   /* a posted read */
#define ZP_WANT_END     (1u << 3)   /* the end of the stream */
#define ZP_WANT_MASK    0xffu
#define ZP_SLEEP_SEQ    0x100u

enum zp_write_type {
    ZP_W_INLINE = 1,        /* @data */
    ZP_W_COPY,              /* @addr: offset in the copy memory */
    ZP_W_REGION,            /* @addr: offset in the writer's region @region */
    ZP_W_CMA,               /* @addr: in the writer's address space */
    ZP_W_PUSHED,            /* the bytes are in posted read @addr already */
    ZP_W_END,               /* no more bytes will come; @len is 0 */
};

struct zp_write {
    uint64_t pos;           /* of its first byte in the stream */
    uint32_t len;
    uint8_t type;
    uint8_t pad[3];
    union {
        struct {
            uint64_t addr;
            uint32_t region;
        };
        uint8_t data[ZP_INLINE_MAX];
    };
};

enum zp_read_reach {
    ZP_R_PRIVATE = 1,       /* the writer cannot reach the buffer */
    ZP_R_REGION,            /* @addr: offset in the reader's region @region */
    ZP_R_CMA,               /* @addr: in the reader's address space */
};

struct zp_read {
    uint64_t addr;
    uint64_t len;
    uint64_t min;
    uint32_t region;
    uint32_t reach;
};

/*
 * An arena: struct zp_ctl in the first page; then entries * struct zp_write;
 * entries * struct zp_read; ZP_ENTRIES_MAX bytes, in which its owner, as the
 * reader of the peer's stream, notes by which mechanism (enum zpipe_mechanism)
 * it took the peer's posted write of that place; from the next page on the copy
 * memory.
 */
_Static_assert(sizeof(struct zp_ctl) == 5 * ZP_LINE, "zp_ctl");
_Static_assert(sizeof(struct zp_write) == 2 * ZP_LINE, "zp_write");
_Static_assert(sizeof(struct zp_read) == 32, "zp_read");

#endif
