/*
 * A fake of /dev/vfio, to be preloaded into QEMU by qtests
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU's hw/vfio runs unchanged on top of it, without a kernel that has VFIO
 * and without hardware.  A device is a sparse memory file: its regions and its
 * configuration space are at fixed offsets, so that reads and mmap() need no
 * help, and a write is looked at after it was done.  DMA is a store through the
 * addresses of VFIO_IOMMU_MAP_DMA: as with hardware, QEMU does not notice.
 *
 * The test makes a directory with a link "iommu_group" whose name ends in the
 * number of the group and gives it as "sysfsdev"; the directory's name says
 * which device it is:
 *
 *   dma*    DMA engine of vfio-testdev.h, can be migrated
 *   log*    the same, and it logs its DMA (DMA_LOGGING_*)
 *   nic*    the same engine as an Ethernet card that cannot be migrated
 *   igb*    a virtual function of an 82576 with one receive queue and the
 *           engine, can be migrated
 *   vf*     the same, as it is: it cannot be migrated
 *   i350*   the same with the id of an I350's, can be migrated
 *
 * A name that has "log" in it stands for a device that logs.
 *
 * VFIO_FAKE holds options:
 *
 *   no-cap  hides the type1 IOMMU's dirty tracking
 *   decode  BAR 0 cannot be read while memory decode is off (as with VFIO, but
 *           for virtual functions)
 *   ioport  BAR 2 has two ports, for the address and the data of a register
 *   posted  what a device writes is in memory after the next successful read
 *           of its registers or configuration space
 *   stuck   the device's transactions are pending for ever
 */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/vfio.h>
#include "standard-headers/linux/pci_regs.h"
#include "vfio-testdev.h"

#define MAX_FDS         1024
#define MAX_MAPS        4096
#define MAX_POSTED      (1 << 17)       /* bytes */
#define PAGE            4096ull
#define REGION_SHIFT    24
#define BAR0_SIZE       0x4000
#define IOPORT_SIZE     32
#define CONFIG_SIZE     4096
#define CAP_EXPRESS     0x40

typedef struct Map {
    uint64_t iova, size, vaddr;
} Map;

typedef struct FakeFd {
    enum { FD_NONE, FD_CONTAINER, FD_GROUP, FD_DEVICE } kind;
    bool migratable, logs, ethernet, igb;
    uint32_t state;
    /* pages written since the last report, as addresses */
    bool logging;
    uint64_t *log;
    size_t log_len;
} FakeFd;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FakeFd fds[MAX_FDS];
static Map maps[MAX_MAPS];      /* one address space is enough */
static size_t nr_maps;

typedef struct Posted {
    uint64_t iova;
    uint8_t byte;
} Posted;

static Posted posted[MAX_POSTED];
static size_t nr_posted;

static bool option(const char *name)
{
    const char *all = getenv("VFIO_FAKE");

    return all && strstr(all, name);
}

static FakeFd *fake(int fd)
{
    return fd >= 0 && fd < MAX_FDS && fds[fd].kind ? &fds[fd] : NULL;
}

static int fake_new(int kind)
{
    int fd = memfd_create("vfio-fake", MFD_CLOEXEC);

    if (fd < 0 || fd >= MAX_FDS) {
        return -1;
    }
    memset(&fds[fd], 0, sizeof(fds[fd]));
    fds[fd].kind = kind;
    return fd;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

/* ------------------------------------------------------------- the device */

static off_t region_offset(int index)
{
    return (off_t)index << REGION_SHIFT;
}

static size_t region_size(int index)
{
    switch (index) {
    case VFIO_PCI_BAR0_REGION_INDEX:
        return BAR0_SIZE;
    case VFIO_PCI_BAR2_REGION_INDEX:
        return option("ioport") ? IOPORT_SIZE : 0;
    case VFIO_PCI_CONFIG_REGION_INDEX:
        return CONFIG_SIZE;
    default:
        return 0;
    }
}

static void put(int fd, int region, int reg, uint32_t val, size_t size)
{
    if (syscall(SYS_pwrite64, fd, &val, size, region_offset(region) + reg)
        != size) {
        abort();
    }
}

static uint32_t get_bar(int fd, off_t reg)
{
    uint32_t val = 0;

    if (syscall(SYS_pread64, fd, &val, 4, reg) != 4) {
        abort();
    }
    return val;
}

static uint32_t get_config(int fd, int reg)
{
    return get_bar(fd, region_offset(VFIO_PCI_CONFIG_REGION_INDEX) + reg);
}

static void config(int fd, int reg, uint32_t val, size_t size)
{
    put(fd, VFIO_PCI_CONFIG_REGION_INDEX, reg, val, size);
}

static int device_new(const char *name)
{
    int fd = fake_new(FD_DEVICE);
    FakeFd *dev = fake(fd);

    if (!dev || ftruncate(fd, region_offset(VFIO_PCI_NUM_REGIONS))) {
        return -1;
    }
    dev->logs = strstr(name, "log");
    dev->ethernet = !strncmp(name, "nic", 3) || !strncmp(name, "vf", 2);
    dev->igb = !strncmp(name, "igb", 3) || !strncmp(name, "vf", 2) ||
               !strncmp(name, "i350", 4);
    dev->migratable = !dev->ethernet;
    dev->state = VFIO_DEVICE_STATE_RUNNING;

    config(fd, PCI_VENDOR_ID, dev->igb ? 0x8086 : TESTDEV_VENDOR, 2);
    config(fd, PCI_DEVICE_ID, !strncmp(name, "i350", 4) ? 0x1520 :
                              dev->igb ? 0x10ca : TESTDEV_DEVICE, 2);
    config(fd, PCI_CLASS_REVISION, (dev->ethernet ? 0x020000 : 0xff0000) << 8,
           4);
    config(fd, PCI_STATUS, PCI_STATUS_CAP_LIST, 2);
    config(fd, PCI_CAPABILITY_LIST, CAP_EXPRESS, 1);
    config(fd, CAP_EXPRESS, PCI_CAP_ID_EXP, 2);
    config(fd, CAP_EXPRESS + PCI_EXP_FLAGS, 2 | PCI_EXP_TYPE_ENDPOINT << 4, 2);
    config(fd, CAP_EXPRESS + PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_FLR, 4);
    if (option("ioport")) {
        config(fd, PCI_BASE_ADDRESS_2, PCI_BASE_ADDRESS_SPACE_IO, 4);
    }
    if (option("stuck")) {
        config(fd, CAP_EXPRESS + PCI_EXP_DEVSTA, PCI_EXP_DEVSTA_TRPND, 2);
    }
    return fd;
}

static void log_page(uint64_t iova)
{
    for (int fd = 0; fd < MAX_FDS; fd++) {
        FakeFd *dev = &fds[fd];

        if (dev->kind == FD_DEVICE && dev->logging) {
            dev->log = realloc(dev->log, (dev->log_len + 1) * 8);
            dev->log[dev->log_len++] = iova & ~(PAGE - 1);
        }
    }
}

static int dma_store(uint64_t iova, uint8_t byte)
{
    for (size_t i = 0; i < nr_maps; i++) {
        if (iova - maps[i].iova < maps[i].size) {
            *(uint8_t *)(uintptr_t)(maps[i].vaddr + iova - maps[i].iova) = byte;
            if (!(iova & (PAGE - 1))) {
                log_page(iova);
            }
            return 0;
        }
    }
    return -EFAULT;
}

static int dma_write(uint64_t iova, uint8_t byte)
{
    if (!option("posted")) {
        return dma_store(iova, byte);
    }
    if (nr_posted == MAX_POSTED) {
        return -ENOSPC;
    }
    posted[nr_posted++] = (Posted) { iova, byte };
    return 0;
}

static void flush_posted(void)
{
    for (size_t i = 0; i < nr_posted; i++) {
        dma_store(posted[i].iova, posted[i].byte);
    }
    nr_posted = 0;
}

static uint64_t dma_read64(uint64_t iova)
{
    for (size_t i = 0; i < nr_maps; i++) {
        if (iova - maps[i].iova < maps[i].size) {
            return *(uint64_t *)(uintptr_t)(maps[i].vaddr + iova -
                                            maps[i].iova);
        }
    }
    return 0;
}

/* Fill the buffers that are posted; the write-back destroys their addresses. */
static int receive(int fd, uint32_t packets)
{
    uint64_t base = get_bar(fd, TESTDEV_RDBAL) |
                    (uint64_t)get_bar(fd, TESTDEV_RDBAH) << 32;
    uint32_t entries = get_bar(fd, TESTDEV_RDLEN) / 16;
    uint32_t head = get_bar(fd, TESTDEV_RDH);
    int ret = 0;

    while (packets-- && head != get_bar(fd, TESTDEV_RDT) && !ret) {
        uint64_t addr = dma_read64(base + 16 * head);

        log_page(addr);
        log_page(base + 16 * head);
        for (uint32_t i = 0; i < TESTDEV_PACKET && !ret; i++) {
            ret = dma_write(addr + i, get_bar(fd, TESTDEV_FILL));
        }
        for (uint32_t i = 0; i < 16 && !ret; i++) {
            ret = dma_write(base + 16 * head + i, 0xdd);
        }
        head = (head + 1) % entries;
    }
    put(fd, 0, TESTDEV_RDH, head, 4);
    return ret;
}

static void device_command(int fd, uint32_t cmd)
{
    uint64_t addr = get_bar(fd, TESTDEV_ADDR_LO) |
                    (uint64_t)get_bar(fd, TESTDEV_ADDR_HI) << 32;
    uint32_t len = get_bar(fd, TESTDEV_LEN);
    int ret = 0;

    if (!(get_config(fd, PCI_COMMAND) & PCI_COMMAND_MASTER)) {
        ret = -EPERM;
    } else if (cmd == TESTDEV_CMD_DMA) {
        log_page(addr);
        for (uint32_t i = 0; i < len && !ret; i++) {
            ret = dma_write(addr + i, get_bar(fd, TESTDEV_FILL));
        }
    } else if (cmd == TESTDEV_CMD_RECEIVE && fds[fd].igb) {
        ret = receive(fd, len);
    } else {
        ret = -ENOSYS;
    }
    put(fd, 0, TESTDEV_STATUS, ret, 4);
    put(fd, 0, TESTDEV_COUNT, get_bar(fd, TESTDEV_COUNT) + 1, 4);
}

static void device_written(int fd, off_t offset)
{
    off_t ports = region_offset(VFIO_PCI_BAR2_REGION_INDEX);

    if (offset == TESTDEV_CMD) {
        device_command(fd, get_bar(fd, TESTDEV_CMD));
    } else if (offset == ports + TESTDEV_IODATA && option("ioport")) {
        put(fd, 0, get_bar(fd, ports + TESTDEV_IOADDR),
            get_bar(fd, ports + TESTDEV_IODATA), 4);
    } else if (offset == region_offset(VFIO_PCI_CONFIG_REGION_INDEX) +
                         TESTDEV_CFG_RECEIVE && fds[fd].igb &&
               (get_config(fd, PCI_COMMAND) & PCI_COMMAND_MASTER)) {
        receive(fd, get_config(fd, TESTDEV_CFG_RECEIVE));
    }
}

/* False: the device does not answer. */
static bool device_read(int fd, off_t offset)
{
    if (offset < BAR0_SIZE && option("decode") &&
        !(get_config(fd, PCI_COMMAND) & PCI_COMMAND_MEMORY)) {
        return false;
    }
    flush_posted();
    return true;
}

/* ------------------------------------------------------ ioctls of a device */

static int log_report(FakeFd *dev,
                      struct vfio_device_feature_dma_logging_report *report)
{
    uint64_t *bitmap = (uint64_t *)(uintptr_t)report->bitmap;
    size_t kept = 0;

    for (size_t i = 0; i < dev->log_len; i++) {
        uint64_t page = dev->log[i] - report->iova;

        if (page < report->length) {
            page /= report->page_size;
            bitmap[page / 64] |= 1ull << page % 64;
        } else {
            dev->log[kept++] = dev->log[i];
        }
    }
    dev->log_len = kept;
    return 0;
}

static int set_state(FakeFd *dev, struct vfio_device_feature_mig_state *state)
{
    dev->state = state->device_state;
    state->data_fd = -1;
    if (dev->state == VFIO_DEVICE_STATE_STOP_COPY ||
        dev->state == VFIO_DEVICE_STATE_RESUMING) {
        state->data_fd = memfd_create("vfio-fake-state", MFD_CLOEXEC);
    }
    return 0;
}

static int device_feature(FakeFd *dev, struct vfio_device_feature *feature)
{
    uint32_t which = feature->flags & VFIO_DEVICE_FEATURE_MASK;
    bool probe = feature->flags & VFIO_DEVICE_FEATURE_PROBE;
    void *data = feature->data;
    struct vfio_device_feature_mig_state *state = data;
    struct vfio_device_feature_migration *mig = data;
    struct vfio_device_feature_mig_data_size *size = data;

    switch (which) {
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        if (!dev->logs) {
            return fail(ENOTTY);
        }
        break;
    default:
        if (!dev->migratable) {
            return fail(ENOTTY);
        }
    }
    if (probe) {
        return 0;
    }
    switch (which) {
    case VFIO_DEVICE_FEATURE_MIGRATION:
        mig->flags = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P;
        return 0;
    case VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        if (feature->flags & VFIO_DEVICE_FEATURE_SET) {
            return set_state(dev, state);
        }
        state->device_state = dev->state;
        return 0;
    case VFIO_DEVICE_FEATURE_MIG_DATA_SIZE:
        size->stop_copy_length = PAGE;
        return 0;
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
        dev->logging = true;
        return 0;
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
        dev->logging = false;
        dev->log_len = 0;
        return 0;
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        return log_report(dev, data);
    default:
        return fail(ENOTTY);
    }
}

static int device_ioctl(FakeFd *dev, unsigned long request, void *arg)
{
    struct vfio_device_info *info = arg;
    struct vfio_region_info *region = arg;
    struct vfio_irq_info *irq = arg;

    switch (request) {
    case VFIO_DEVICE_GET_INFO:
        info->flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
        info->num_regions = VFIO_PCI_NUM_REGIONS;
        info->num_irqs = VFIO_PCI_NUM_IRQS;
        return 0;
    case VFIO_DEVICE_GET_REGION_INFO:
        if (region->index >= VFIO_PCI_NUM_REGIONS) {
            return fail(EINVAL);
        }
        region->offset = region_offset(region->index);
        region->size = region_size(region->index);
        region->flags = region->size ? VFIO_REGION_INFO_FLAG_READ |
                                       VFIO_REGION_INFO_FLAG_WRITE : 0;
        return 0;
    case VFIO_DEVICE_GET_IRQ_INFO:
        if (irq->index > VFIO_PCI_MSIX_IRQ_INDEX) {
            return fail(EINVAL);
        }
        irq->flags = VFIO_IRQ_INFO_EVENTFD;
        irq->count = 0;
        return 0;
    case VFIO_DEVICE_SET_IRQS:
    case VFIO_DEVICE_RESET:
        return 0;
    case VFIO_DEVICE_FEATURE:
        return device_feature(dev, arg);
    default:
        return fail(ENOTTY);
    }
}

/* --------------------------------------------------- ioctls of a container */

static int dma_map(struct vfio_iommu_type1_dma_map *map)
{
    if (nr_maps == MAX_MAPS) {
        return fail(ENOSPC);
    }
    maps[nr_maps++] = (Map) { map->iova, map->size, map->vaddr };
    return 0;
}

static int dma_unmap(struct vfio_iommu_type1_dma_unmap *unmap)
{
    bool all = unmap->flags & VFIO_DMA_UNMAP_FLAG_ALL;
    size_t kept = 0;

    for (size_t i = 0; i < nr_maps; i++) {
        if (!all && maps[i].iova - unmap->iova >= unmap->size) {
            maps[kept++] = maps[i];
        }
    }
    nr_maps = kept;
    return 0;
}

/* As the kernel does: every page that is mapped, for ever. */
static int dirty_bitmap(struct vfio_iommu_type1_dirty_bitmap *dirty)
{
    struct vfio_iommu_type1_dirty_bitmap_get *get = (void *)dirty->data;
    uint64_t *bitmap = (void *)get->bitmap.data;

    if (option("no-cap")) {
        return fail(ENOTTY);
    }
    if (!(dirty->flags & VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP)) {
        return 0;
    }
    for (uint64_t page = 0; page < get->size / get->bitmap.pgsize; page++) {
        bitmap[page / 64] |= 1ull << page % 64;
    }
    return 0;
}

static int iommu_info(struct vfio_iommu_type1_info *info)
{
    struct {
        struct vfio_iommu_type1_info info;
        struct vfio_iommu_type1_info_cap_migration cap;
    } *all = (void *)info;

    info->flags = VFIO_IOMMU_INFO_PGSIZES;
    info->iova_pgsizes = PAGE;
    if (option("no-cap")) {
        return 0;
    }
    if (info->argsz < sizeof(*all)) {
        info->argsz = sizeof(*all);
        return 0;
    }
    info->flags |= VFIO_IOMMU_INFO_CAPS;
    info->cap_offset = sizeof(*info);
    all->cap = (struct vfio_iommu_type1_info_cap_migration) {
        .header.id = VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
        .header.version = 1,
        .pgsize_bitmap = PAGE,
        .max_dirty_bitmap_size = 1 << 30,
    };
    return 0;
}

static int container_ioctl(unsigned long request, void *arg)
{
    switch (request) {
    case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
        return (uintptr_t)arg == VFIO_TYPE1v2_IOMMU ||
               (uintptr_t)arg == VFIO_UNMAP_ALL;
    case VFIO_SET_IOMMU:
        return 0;
    case VFIO_IOMMU_GET_INFO:
        return iommu_info(arg);
    case VFIO_IOMMU_MAP_DMA:
        return dma_map(arg);
    case VFIO_IOMMU_UNMAP_DMA:
        return dma_unmap(arg);
    case VFIO_IOMMU_DIRTY_PAGES:
        return dirty_bitmap(arg);
    default:
        return fail(ENOTTY);
    }
}

static int group_ioctl(unsigned long request, void *arg)
{
    struct vfio_group_status *status = arg;

    switch (request) {
    case VFIO_GROUP_GET_STATUS:
        status->flags = VFIO_GROUP_FLAGS_VIABLE;
        return 0;
    case VFIO_GROUP_SET_CONTAINER:
    case VFIO_GROUP_UNSET_CONTAINER:
        return 0;
    case VFIO_GROUP_GET_DEVICE_FD:
        return device_new(arg);
    default:
        return fail(ENOTTY);
    }
}

/* ------------------------------------------------- what QEMU calls instead */

int ioctl(int fd, unsigned long request, ...)
{
    FakeFd *f;
    va_list ap;
    void *arg;
    int ret;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);

    pthread_mutex_lock(&lock);
    f = fake(fd);
    if (f) {
        ret = f->kind == FD_CONTAINER ? container_ioctl(request, arg) :
              f->kind == FD_GROUP ? group_ioctl(request, arg) :
              device_ioctl(f, request, arg);
    }
    pthread_mutex_unlock(&lock);
    return f ? ret : syscall(SYS_ioctl, fd, request, arg);
}

static int fake_open(const char *path, int flags, mode_t mode)
{
    int fd;

    if (strncmp(path, "/dev/vfio/", 10)) {
        return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    }
    pthread_mutex_lock(&lock);
    fd = fake_new(!strcmp(path + 10, "vfio") ? FD_CONTAINER : FD_GROUP);
    pthread_mutex_unlock(&lock);
    return fd;
}

/* what fortified code calls; no header declares them */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    va_list ap;

    if (flags & (O_CREAT | O_TMPFILE)) {
        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    return fake_open(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    va_list ap;

    if (flags & (O_CREAT | O_TMPFILE)) {
        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    return fake_open(path, flags, mode);
}

int __open_2(const char *path, int flags)
{
    return fake_open(path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
    return fake_open(path, flags, 0);
}

int close(int fd)
{
    FakeFd *f;

    pthread_mutex_lock(&lock);
    f = fake(fd);
    if (f) {
        if (f->kind == FD_CONTAINER) {
            nr_maps = 0;
        }
        free(f->log);
        memset(f, 0, sizeof(*f));
    }
    pthread_mutex_unlock(&lock);
    return syscall(SYS_close, fd);
}

static ssize_t fake_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    ssize_t ret = syscall(SYS_pwrite64, fd, buf, len, offset);
    FakeFd *f;

    pthread_mutex_lock(&lock);
    f = fake(fd);
    if (f && f->kind == FD_DEVICE && ret > 0) {
        device_written(fd, offset);
    }
    pthread_mutex_unlock(&lock);
    return ret;
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    return fake_pwrite(fd, buf, len, offset);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t offset)
{
    return fake_pwrite(fd, buf, len, offset);
}

static ssize_t fake_pread(int fd, void *buf, size_t len, off_t offset)
{
    bool answers = true;
    FakeFd *f;

    pthread_mutex_lock(&lock);
    f = fake(fd);
    if (f && f->kind == FD_DEVICE) {
        answers = device_read(fd, offset);
    }
    pthread_mutex_unlock(&lock);
    return answers ? syscall(SYS_pread64, fd, buf, len, offset) : fail(EIO);
}

ssize_t pread(int fd, void *buf, size_t len, off_t offset)
{
    return fake_pread(fd, buf, len, offset);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t offset)
{
    return fake_pread(fd, buf, len, offset);
}
