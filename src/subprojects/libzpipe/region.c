/*
 * zpipe: memory that one side lets the other reach
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "zpipe-int.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
/* What the kernel says for a user of another user namespace. */
#define UID_UNKNOWN 65534

int region_find(struct zpipe *zp, const void *addr, size_t len)
{
    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        const struct zp_own_region *region = &zp->regions[i];
        size_t offset = (const uint8_t *)addr - region->addr;

        if (region->used && offset < region->size &&
            len <= region->size - offset) {
            return i;
        }
    }
    return -1;
}

/*
 * Could the peer give itself write access to memory that it shall only read?
 * Its descriptor is open for reading; but the owner of the file, and root, may
 * change the mode and open it anew.  Not when the kernel holds a seal against
 * that.  A user who has no number here can be anybody.
 */
static bool could_write(const struct zpipe *zp,
                        const struct zp_own_region *region)
{
    uid_t uid = zp->peer_uid;

    return !region->writable && !region->sealed &&
           !(zp->cfg.flags & ZPIPE_TRUST_PEER) &&
           (uid == 0 || uid == region->owner || uid == geteuid() ||
            uid == UID_UNKNOWN);
}

static void send_add(struct zpipe *zp, int id)
{
    struct zp_own_region *region = &zp->regions[id];
    struct zp_msg msg = {
        .type = ZP_MSG_REGION_ADD,
        .region = {
            .id = id,
            .flags = region->writable ? ZP_REGION_WRITE : 0,
            .offset = region->offset,
            .size = region->size,
            .serial = region->serial,
        },
    };

    if (could_write(zp, region)) {
        region->state = REGION_WITHHELD;
    } else if (zp->sock >= 0) {
        region->state = REGION_SENT;
        link_send(zp, &msg, &region->fd, 1);
    }
}

void region_send_all(struct zpipe *zp)
{
    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        if (zp->regions[i].used) {
            send_add(zp, i);
        }
    }
}

static void drop_peer_region(struct zpipe *zp, int id)
{
    if (zp->peer_regions[id]) {
        zp->peer_bytes -= zp->peer_regions[id]->size;
        zp->stats.peer_regions--;
        map_put(zp->peer_regions[id]);
        zp->peer_regions[id] = NULL;
    }
}

void region_forget_peer(struct zpipe *zp)
{
    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        drop_peer_region(zp, i);
        zp->regions[i].state = REGION_UNSENT;
    }
}

static int adopt(struct zpipe *zp, const struct zp_region *region, int fd)
{
    uint64_t limit = zp->cfg.peer_bytes_max;
    int err;

    if (limit && (region->size > limit ||
                  zp->peer_bytes > limit - region->size)) {
        return -ENOSPC;
    }
    zp->peer_regions[region->id] =
        map_fd(fd, region->offset, region->size,
               region->flags & ZP_REGION_WRITE,
               zp->cfg.flags & ZPIPE_ALLOW_HUGETLB, &err);
    if (!err) {
        zp->peer_bytes += region->size;
        zp->stats.peer_regions++;
    }
    return err;
}

static void peer_adds(struct zpipe *zp, const struct zp_region *region, int fd)
{
    struct zp_msg answer = { .type = ZP_MSG_REGION_ANSWER, .region = *region };
    int err;

    if (zp->peer_regions[region->id]) {
        link_fail(zp, -EPROTO, "the peer added region %u twice", region->id);
        return;
    }
    err = adopt(zp, region, fd);
    zp->stats.refused_regions += err != 0;
    answer.region.error = -err;
    link_send(zp, &answer, NULL, 0);
}

static void peer_answers(struct zpipe *zp, const struct zp_region *answer)
{
    struct zp_own_region *region = &zp->regions[answer->id];

    /* an answer about a region that is gone comes too late, that is all */
    if (region->used && region->state == REGION_SENT &&
        region->serial == answer->serial) {
        region->state = answer->error ? REGION_REFUSED : REGION_GOOD;
    }
}

void region_message(struct zpipe *zp, const struct zp_msg *msg, int fd)
{
    const struct zp_region *region = &msg->region;

    if (region->id >= ZPIPE_REGIONS_MAX) {
        link_fail(zp, -EPROTO, "the peer named region %u of %d", region->id,
                  ZPIPE_REGIONS_MAX);
        return;
    }
    switch (msg->type) {
    case ZP_MSG_REGION_ADD:
        peer_adds(zp, region, fd);
        break;
    case ZP_MSG_REGION_ANSWER:
        peer_answers(zp, region);
        break;
    default:
        drop_peer_region(zp, region->id);
        break;
    }
}

/* ------------------------------------------------------------ for the user */

static int add(struct zpipe *zp, struct zp_own_region *new)
{
    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        if (!zp->regions[i].used) {
            new->used = true;
            new->state = REGION_UNSENT;
            new->serial = ++zp->region_serial;
            zp->regions[i] = *new;
            zp->stats.regions++;
            if (zp->link == LINK_UP) {
                send_add(zp, i);
            }
            return i;
        }
    }
    return -ENOSPC;
}

unsigned regions_withheld(const struct zpipe *zp)
{
    unsigned n = 0;

    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        n += zp->regions[i].used && zp->regions[i].state == REGION_WITHHELD;
    }
    return n;
}

/*
 * A descriptor that can only read.  Opening a memfd anew asks for its mode,
 * which lets everybody write: take that away, or the peer would open it again.
 */
static int open_read_only(int fd)
{
    char path[32];
    struct stat st;
    int ret;

    if (fstat(fd, &st) < 0 || fchmod(fd, st.st_mode & 0400) < 0) {
        return -EACCES;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ret = open(path, O_RDONLY | O_CLOEXEC);
    return ret < 0 ? -EACCES : ret;
}

int zpipe_region_add(struct zpipe *zp, int fd, off_t offset, const void *addr,
                     size_t size)
{
    struct zp_own_region region = {
        .offset = offset, .addr = addr, .size = size
    };
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;
    int ret;

    if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
        return -EPERM;
    }
    if (!size || offset < 0 || offset % ZP_PAGE || fstat(fd, &st) < 0 ||
        offset > st.st_size || size > (uint64_t)(st.st_size - offset)) {
        return -EINVAL;
    }
    region.owner = st.st_uid;
    region.sealed = seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);
    region.fd = open_read_only(fd);
    if (region.fd < 0) {
        return region.fd;
    }
    ret = add(zp, &region);
    if (ret < 0) {
        close(region.fd);
    }
    return ret;
}

void zpipe_region_del(struct zpipe *zp, int id)
{
    struct zp_own_region *region;
    struct zp_msg msg = { .type = ZP_MSG_REGION_DEL };

    if (id < 0 || id >= ZPIPE_REGIONS_MAX || !zp->regions[id].used) {
        return;
    }
    region = &zp->regions[id];
    if (tx_shows_region(zp, id)) {
        zp->wait_end = patience_end(zp, ZP_PATIENCE_NS);
        tx_withdraw(zp);
        zp->wait_end = 0;
    }
    if (zp->link == LINK_UP && region->state >= REGION_SENT) {
        msg.region.id = id;
        link_send(zp, &msg, NULL, 0);
    }
    close(region->fd);
    *region = (struct zp_own_region) { .used = false };
    zp->stats.regions--;
}

void *zpipe_buffer_new(struct zpipe *zp, size_t size)
{
    struct zp_own_region region = { .writable = true, .buffer = true };
    void *base;
    int ret;

    if (!size || size > SIZE_MAX / 2) {
        errno = EINVAL;
        return NULL;
    }
    size = (size + ZP_PAGE - 1) & ~(size_t)(ZP_PAGE - 1);
    region.fd = sealed_memfd("zpipe-buffer", size);
    if (region.fd < 0) {
        errno = -region.fd;
        return NULL;
    }
    base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd, 0);
    if (base == MAP_FAILED) {
        ret = errno;
        close(region.fd);
        errno = ret;
        return NULL;
    }
    region.addr = base;
    region.size = size;
    ret = add(zp, &region);
    if (ret < 0) {
        munmap(base, size);
        close(region.fd);
        errno = -ret;
        return NULL;
    }
    return base;
}

void zpipe_buffer_free(struct zpipe *zp, void *buffer)
{
    for (int i = 0; buffer && i < ZPIPE_REGIONS_MAX; i++) {
        struct zp_own_region *region = &zp->regions[i];
        size_t size = region->size;

        if (region->used && region->buffer && region->addr == buffer) {
            zpipe_region_del(zp, i);
            munmap(buffer, size);
            return;
        }
    }
}
