/*
 * PCI device with a window of memory that is filled and mapped on demand
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * BAR 0 is the window, see docs/specs/ondemand-mem-pci.rst.  Its contents are
 * those of a file, which is only read, or a memory backend.
 *
 * A file is read with pread(), which says when it cannot be read; a mapping of
 * it would end QEMU with SIGBUS then.  For the same reason the pages of a
 * memory backend are asked for before they are used: a file behind it may be
 * too short, its storage full, or huge pages may have run out.
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "hw/pci/pci_device.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "migration/vmstate.h"
#include "system/hostmem.h"
#include "system/ondemand-region.h"

#define TYPE_ONDEMAND_MEM_PCI "ondemand-mem-pci"
OBJECT_DECLARE_SIMPLE_TYPE(OndemandMemPci, ONDEMAND_MEM_PCI)

/* The file is read in pieces of at most this size */
#define PIECE (64 * KiB)

struct OndemandMemPci {
    PCIDevice parent_obj;

    /* Properties */
    OndemandPolicy *policy;
    HostMemoryBackend *memdev;
    char *file;
    uint64_t size;              /* bytes; 0: all of the file */
    BlockdevOnError rerror;

    /* State */
    OndemandRegion region;
    MemoryRegion bar;
    MemoryRegion ram;           /* with a file */
    int fd;
};

/* The end of the file may lie inside the last granule; zeroes follow. */
static int read_piece(OndemandMemPci *s, uint64_t offset, void *buf,
                      size_t size)
{
    size_t wanted = offset >= s->size ? 0 : MIN(size, s->size - offset);
    size_t done = 0;

    memset(buf + wanted, 0, size - wanted);
    while (done < wanted) {
        ssize_t n = RETRY_ON_EINTR(pread(s->fd, buf + done, wanted - done,
                                         offset + done));

        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            return -EIO;        /* the file has become shorter */
        }
        done += n;
    }
    return 0;
}

static int fill_from_file(void *opaque, uint64_t offset, uint64_t size)
{
    OndemandMemPci *s = opaque;
    g_autofree void *buf = g_malloc(MIN(PIECE, size));

    for (uint64_t end = offset + size; offset < end; offset += PIECE) {
        uint64_t piece = MIN(PIECE, end - offset);
        int ret = read_piece(s, offset, buf, piece);

        if (ret) {
            return ret;
        }
        if (address_space_write(s->region.ram_as, offset,
                                MEMTXATTRS_UNSPECIFIED, buf, piece)) {
            return -EIO;
        }
    }
    return 0;
}

/*
 * Kernels before 5.14 do not know the advice; then there is no check.
 *
 * A page that could be read may yet have no room to be written: one of a hole
 * in a file, whose storage is full, or a private copy of a huge page.
 */
static int populate(void *opaque, uint64_t offset, uint64_t size)
{
#ifdef MADV_POPULATE_READ
    OndemandMemPci *s = opaque;
    MemoryRegion *ram = s->region.backing.ram;
    uint8_t *host = memory_region_get_ram_ptr(ram);
    bool write = !memory_region_is_rom(ram) &&
                 (qemu_ram_is_shared(ram->ram_block) ||
                  qemu_ram_pagesize(ram->ram_block) >
                  qemu_real_host_page_size());
    int ret = RETRY_ON_EINTR(madvise(host + offset, size,
                                     write ? MADV_POPULATE_WRITE
                                           : MADV_POPULATE_READ));

    return ret && errno != EINVAL ? -errno : 0;
#else
    return 0;
#endif
}

static bool check_properties(OndemandMemPci *s, Error **errp)
{
    if (!s->policy) {
        error_setg(errp, "Property 'policy' must name an ondemand-policy");
        return false;
    }
    if (!s->memdev == !s->file) {
        error_setg(errp, "One of the properties 'memdev' and 'file' must be "
                   "set, and not both");
        return false;
    }
    if (s->memdev && s->size) {
        error_setg(errp, "Property 'size' is %" PRIu64 ", but must not be set "
                   "with 'memdev', which has a size", s->size);
        return false;
    }
    if (s->rerror != BLOCKDEV_ON_ERROR_AUTO &&
        s->rerror != BLOCKDEV_ON_ERROR_STOP &&
        s->rerror != BLOCKDEV_ON_ERROR_REPORT) {
        error_setg(errp, "Property 'rerror' is '%s', but must be 'stop' or "
                   "'report'", BlockdevOnError_str(s->rerror));
        return false;
    }
    return true;
}

static bool open_file(OndemandMemPci *s, Error **errp)
{
    struct stat st;
    int64_t length;

    s->fd = qemu_open(s->file, O_RDONLY, errp);
    if (s->fd < 0) {
        error_prepend(errp, "Property 'file': ");
        return false;
    }
    if (fstat(s->fd, &st) || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
        error_setg(errp, "Property 'file': '%s' is neither a regular file nor "
                   "a block device", s->file);
        return false;
    }
    length = lseek(s->fd, 0, SEEK_END);
    if (length <= 0) {
        error_setg(errp, "Property 'file': '%s' is empty, or has no size",
                   s->file);
        return false;
    }
    if (s->size > length) {
        error_setg(errp, "Property 'size' is %" PRIu64 ", but 'file' has only "
                   "%" PRId64 " bytes", s->size, length);
        return false;
    }
    s->size = s->size ?: length;
    return true;
}

/* Get what the contents live in; NULL on failure. */
static MemoryRegion *get_ram(OndemandMemPci *s, Error **errp)
{
    if (s->file) {
        if (!open_file(s, errp) ||
            !memory_region_init_ram(&s->ram, OBJECT(s), "ondemand-mem",
                                    ROUND_UP(s->size, s->policy->granule),
                                    errp)) {
            return NULL;
        }
        return &s->ram;
    }
    if (host_memory_backend_is_mapped(s->memdev)) {
        error_setg(errp, "Property 'memdev': the backend '%s' is in use",
                   object_get_canonical_path_component(OBJECT(s->memdev)));
        return NULL;
    }
    return host_memory_backend_get_memory(s->memdev);
}

static void close_file(OndemandMemPci *s)
{
    if (s->fd >= 0) {
        qemu_close(s->fd);
        s->fd = -1;
    }
}

static void ondemand_mem_pci_realize(PCIDevice *dev, Error **errp)
{
    ERRP_GUARD();
    OndemandMemPci *s = ONDEMAND_MEM_PCI(dev);
    OndemandBacking backing = {
        .fill = s->file ? fill_from_file : populate,
        .opaque = s,
        .outside = s->file,
        .stop_on_error = s->rerror != BLOCKDEV_ON_ERROR_REPORT,
    };

    if (!check_properties(s, errp)) {
        return;
    }
    backing.ram = get_ram(s, errp);
    if (!backing.ram || !ondemand_region_realize(&s->region, DEVICE(dev),
                                                 s->policy, &backing, errp)) {
        close_file(s);
        return;
    }
    if (s->memdev) {
        host_memory_backend_set_mapped(s->memdev, true);
        vmstate_register_ram(backing.ram, DEVICE(dev));
    }
    memory_region_init(&s->bar, OBJECT(dev), "ondemand-mem-bar",
                       pow2ceil(s->region.size));
    memory_region_add_subregion(&s->bar, 0, &s->region.io);
    pci_register_bar(dev, 0, PCI_BASE_ADDRESS_SPACE_MEMORY |
                     PCI_BASE_ADDRESS_MEM_TYPE_64 |
                     PCI_BASE_ADDRESS_MEM_PREFETCH, &s->bar);
}

static void ondemand_mem_pci_exit(PCIDevice *dev)
{
    OndemandMemPci *s = ONDEMAND_MEM_PCI(dev);

    ondemand_region_unrealize(&s->region);
    memory_region_del_subregion(&s->bar, &s->region.io);
    if (s->memdev) {
        vmstate_unregister_ram(s->region.backing.ram, DEVICE(dev));
        host_memory_backend_set_mapped(s->memdev, false);
    }
}

static void ondemand_mem_pci_init(Object *obj)
{
    OndemandMemPci *s = ONDEMAND_MEM_PCI(obj);

    s->fd = -1;
    object_initialize_child(obj, "region", &s->region, TYPE_ONDEMAND_REGION);
}

/* The file is not closed before: a vCPU may be reading without the BQL. */
static void ondemand_mem_pci_finalize(Object *obj)
{
    close_file(ONDEMAND_MEM_PCI(obj));
}

static const Property ondemand_mem_pci_properties[] = {
    DEFINE_PROP_LINK("policy", OndemandMemPci, policy, TYPE_ONDEMAND_POLICY,
                     OndemandPolicy *),
    DEFINE_PROP_LINK("memdev", OndemandMemPci, memdev, TYPE_MEMORY_BACKEND,
                     HostMemoryBackend *),
    DEFINE_PROP_STRING("file", OndemandMemPci, file),
    DEFINE_PROP_SIZE("size", OndemandMemPci, size, 0),
    DEFINE_PROP_BLOCKDEV_ON_ERROR("rerror", OndemandMemPci, rerror,
                                  BLOCKDEV_ON_ERROR_AUTO),
};

static const VMStateDescription vmstate_ondemand_mem_pci = {
    .name = TYPE_ONDEMAND_MEM_PCI,
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_PCI_DEVICE(parent_obj, OndemandMemPci),
        VMSTATE_END_OF_LIST()
    },
};

static void ondemand_mem_pci_class_init(ObjectClass *oc, const void *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);
    PCIDeviceClass *pc = PCI_DEVICE_CLASS(oc);

    pc->realize = ondemand_mem_pci_realize;
    pc->exit = ondemand_mem_pci_exit;
    pc->vendor_id = PCI_VENDOR_ID_QEMU;
    pc->device_id = 0x11ea;
    pc->class_id = PCI_CLASS_MEMORY_OTHER;
    dc->vmsd = &vmstate_ondemand_mem_pci;
    dc->desc = "Window of memory that is filled and mapped on demand";
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    device_class_set_props(dc, ondemand_mem_pci_properties);
}

static const TypeInfo ondemand_mem_pci_types[] = {
    {
        .name = TYPE_ONDEMAND_MEM_PCI,
        .parent = TYPE_PCI_DEVICE,
        .instance_size = sizeof(OndemandMemPci),
        .instance_init = ondemand_mem_pci_init,
        .instance_finalize = ondemand_mem_pci_finalize,
        .class_init = ondemand_mem_pci_class_init,
        .interfaces = (const InterfaceInfo[]) {
            { INTERFACE_CONVENTIONAL_PCI_DEVICE },
            { },
        },
    },
};

DEFINE_TYPES(ondemand_mem_pci_types)
