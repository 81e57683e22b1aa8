/*
 * zpipe: the shared memory
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "zpipe-int.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

static size_t copy_offset(uint32_t entries)
{
    size_t size = ZP_PAGE + (size_t)entries *
                  (sizeof(struct zp_write) + sizeof(struct zp_read)) +
                  ZP_ENTRIES_MAX;

    return (size + ZP_PAGE - 1) & ~(size_t)(ZP_PAGE - 1);
}

static void lay_out(struct zp_arena *arena, void *base, uint32_t entries,
                    uint32_t copy_bytes)
{
    uint8_t *p = base;

    arena->entries = entries;
    arena->copy_bytes = copy_bytes;
    arena->ctl = base;
    p += ZP_PAGE;
    arena->writes = (void *)p;
    p += (size_t)entries * sizeof(struct zp_write);
    arena->reads = (void *)p;
    p += (size_t)entries * sizeof(struct zp_read);
    arena->how = p;
    arena->copy = (uint8_t *)base + copy_offset(entries);
}

int sealed_memfd(const char *name, size_t size)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd, ret;

    fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) {
        fd = memfd_create(name, flags);     /* before Linux 6.3 */
    }
    if (fd < 0) {
        return -errno;
    }
    if (ftruncate(fd, size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    return fd;
}

/* @page: of the file; a part of a huge page cannot be unmapped. */
static struct zp_map *map_new(void *base, size_t size, size_t page,
                              bool writable)
{
    struct zp_map *map = calloc(1, sizeof(*map));
    size_t whole = (size + page - 1) / page * page;

    if (!map) {
        munmap(base, whole);
        return NULL;
    }
    *map = (struct zp_map) { base, size, whole, 1, writable };
    return map;
}

void map_put(struct zp_map *map)
{
    if (map && !--map->refs) {
        unmap_received(map);
    }
}

/* Our arena; sealed, after it was mapped, against other writable mappings. */
int arena_create(struct zpipe *zp)
{
    uint32_t copy_bytes = zp->cfg.ring_bytes;
    uint32_t entries = MIN(MAX(copy_bytes / 2048, ZP_ENTRIES_MIN),
                           ZP_ENTRIES_MAX);
    size_t size = copy_offset(entries) + copy_bytes;
    void *base;
    int fd, ret;

    fd = sealed_memfd("zpipe-arena", size);
    if (fd < 0) {
        return fd;
    }
    base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        ret = -errno;
        close(fd);
        return ret;
    }
    zp->own_map = map_new(base, size, ZP_PAGE, true);
    if (!zp->own_map) {
        close(fd);
        return -ENOMEM;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0) {
        ret = -errno;
        close(fd);
        map_put(zp->own_map);
        zp->own_map = NULL;
        return ret;
    }
    lay_out(&zp->own, base, entries, copy_bytes);
    zp->arena_fd = fd;
    return 0;
}

/*
 * Is it memory that can be touched without a SIGBUS?  Stores its page size, and
 * the file's.
 */
static int check_fd(int fd, uint64_t end, bool allow_hugetlb, size_t *page,
                    uint64_t *size)
{
    struct statfs fs;
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);

    /* no other kind of file knows seals */
    if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
        return -EPERM;
    }
    if (fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0) {
        return -errno;
    }
    if (fs.f_type == HUGETLBFS_MAGIC ? !allow_hugetlb
                                     : fs.f_type != TMPFS_MAGIC) {
        return -EPERM;
    }
    if (!S_ISREG(st.st_mode) || st.st_size < 0 ||
        end > (uint64_t)st.st_size) {
        return -EINVAL;
    }
    *page = fs.f_type == HUGETLBFS_MAGIC ? fs.f_bsize : ZP_PAGE;
    *size = st.st_size;
    return 0;
}

struct zp_map *map_fd(int fd, uint64_t offset, uint64_t size, bool writable,
                      bool allow_hugetlb, int *err)
{
    struct zp_map *map;
    uint64_t file;
    size_t page;
    void *base;

    if (!size || size > SIZE_MAX / 2 || offset > INT64_MAX / 2 ||
        offset % ZP_PAGE) {
        *err = -EINVAL;
        return NULL;
    }
    *err = check_fd(fd, offset + size, allow_hugetlb, &page, &file);
    if (*err) {
        return NULL;
    }
    base = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0),
                MAP_SHARED, fd, offset);
    if (base == MAP_FAILED) {
        *err = -errno;
        return NULL;
    }
    map = map_new(base, size, page, writable);
    if (!map) {
        *err = -ENOMEM;
        return NULL;
    }
    map->file = file;
    return map;
}

static bool power_of_two(uint32_t n)
{
    return n && !(n & (n - 1));
}

/* Map the peer's arena, as its hello describes it. */
int arena_adopt(struct zpipe *zp, int fd, const struct zp_hello *hello)
{
    uint32_t entries = hello->entries, copy_bytes = hello->copy_bytes;
    int err;

    if (!power_of_two(entries) || entries < ZP_ENTRIES_MIN ||
        entries > ZP_ENTRIES_MAX || !power_of_two(copy_bytes) ||
        copy_bytes < ZPIPE_RING_BYTES_MIN ||
        copy_bytes > ZPIPE_RING_BYTES_MAX) {
        return -EPROTO;
    }
    zp->peer_map = map_fd(fd, 0, copy_offset(entries) + copy_bytes, false,
                          false, &err);
    if (zp->peer_map) {
        lay_out(&zp->peer, zp->peer_map->base, entries, copy_bytes);
    }
    return err;
}
