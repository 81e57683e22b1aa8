/*
 * addr-hint-pci: device access by address hint, the device
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guest writes an address, a length and a command, and gets a hint: a page
 * of the window (BAR 2) that stands for the page of the address, and, if it
 * asks, a doorbell (BAR 1).  docs/specs/addr-hint.rst has the registers.
 *
 * Hints are looked up in the address space that the device's own DMA would
 * see.  So whoever is given the device behind an IOMMU (a nested guest, a
 * process) cannot reach by it what the IOMMU keeps from it: an address that an
 * IOMMU translates is refused.
 *
 * The registers, the doorbells and the state of migration are under the BQL.
 * How vCPUs use hints without it is in system/addr-hint-window.c.
 */

#include "qemu/osdep.h"
#include "addr-hint-pci.h"
#include "hw/qdev-properties.h"
#include "hw/resettable.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qemu/bitops.h"
#include "qemu/log.h"
#include "qemu/module.h"

#define REG(s, name) ((s)->regs[ADDR_HINT_REG_##name / 4])

/*
 * Commands
 */

/* The address space is known for sure only when the machine is complete. */
static void find_address_space(AddrHintPciState *s)
{
    if (!s->window.as) {
        s->window.as = pci_device_iommu_address_space(PCI_DEVICE(s));
    }
    addr_hint_doorbells_watch(s);
}

static bool posted_request_is_good(const AddrHintRecord *r)
{
    return is_power_of_2(r->length) && r->length <= 8 &&
           !(r->addr & (r->length - 1)) &&
           (r->length == 8 || !(r->data >> (r->length * BITS_PER_BYTE)));
}

static unsigned request_status(const AddrHintRecord *r)
{
    if (r->flags & ~ADDR_HINT_FLAG_POSTED) {
        return ADDR_HINT_BAD_REQUEST;
    }
    if ((r->flags & ADDR_HINT_FLAG_POSTED) && !posted_request_is_good(r)) {
        return ADDR_HINT_BAD_REQUEST;
    }
    return ADDR_HINT_OK;
}

static unsigned register_hint(AddrHintPciState *s)
{
    AddrHintRecord r = {
        .addr = REG(s, ADDR_LO) | (uint64_t)REG(s, ADDR_HI) << 32,
        .length = REG(s, LENGTH),
        .flags = REG(s, FLAGS),
        .data = REG(s, DATA_LO) | (uint64_t)REG(s, DATA_HI) << 32,
        .doorbell = ADDR_HINT_DOORBELL_NONE,
    };
    unsigned status = request_status(&r);
    unsigned index;

    find_address_space(s);
    if (status == ADDR_HINT_OK && r.flags & ADDR_HINT_FLAG_POSTED) {
        r.doorbell = addr_hint_doorbell_take(s);
        if (r.doorbell == ADDR_HINT_DOORBELL_NONE) {
            status = ADDR_HINT_NO_DOORBELL;
        }
    }
    if (status != ADDR_HINT_OK) {
        s->window.stats.refusals++;
        return status;
    }
    status = addr_hint_window_register(&s->window, r.addr, r.length, &index);
    if (status != ADDR_HINT_OK) {
        return status;
    }
    s->records[index] = r;
    if (r.doorbell != ADDR_HINT_DOORBELL_NONE) {
        addr_hint_doorbell_assign(s, r.doorbell, index);
    }
    REG(s, HINT) = index;
    REG(s, DOORBELL) = r.doorbell;
    return ADDR_HINT_OK;
}

static unsigned release_hint(AddrHintPciState *s, uint32_t index)
{
    if (!addr_hint_window_release(&s->window, index)) {
        return ADDR_HINT_BAD_HINT;
    }
    if (s->records[index].doorbell != ADDR_HINT_DOORBELL_NONE) {
        addr_hint_doorbell_free(s, s->records[index].doorbell);
    }
    return ADDR_HINT_OK;
}

static void release_all(AddrHintPciState *s)
{
    for (uint32_t i = 0; i < s->nr_hints; i++) {
        release_hint(s, i);
    }
}

static unsigned query_hint(AddrHintPciState *s, uint32_t index)
{
    AddrHintRecord *r;
    AddrHintInfo info;

    if (!addr_hint_window_info(&s->window, index, &info)) {
        return ADDR_HINT_BAD_HINT;
    }
    r = &s->records[index];
    REG(s, ADDR_LO) = r->addr;
    REG(s, ADDR_HI) = r->addr >> 32;
    REG(s, LENGTH) = r->length;
    REG(s, FLAGS) = r->flags;
    REG(s, DATA_LO) = r->data;
    REG(s, DATA_HI) = r->data >> 32;
    REG(s, DOORBELL) = r->doorbell;
    return info.live ? ADDR_HINT_OK : ADDR_HINT_STALE;
}

static unsigned run_command(AddrHintPciState *s, uint32_t command)
{
    switch (command) {
    case ADDR_HINT_CMD_REGISTER:
        return register_hint(s);
    case ADDR_HINT_CMD_RELEASE:
        return release_hint(s, REG(s, HINT));
    case ADDR_HINT_CMD_QUERY:
        return query_hint(s, REG(s, HINT));
    case ADDR_HINT_CMD_RELEASE_ALL:
        release_all(s);
        return ADDR_HINT_OK;
    default:
        qemu_log_mask(LOG_GUEST_ERROR, "%s: no command %" PRIu32 "\n",
                      __func__, command);
        return ADDR_HINT_BAD_COMMAND;
    }
}

/*
 * Registers
 */

static uint64_t registers_read(void *opaque, hwaddr addr, unsigned size)
{
    AddrHintPciState *s = opaque;

    return addr < ADDR_HINT_REG_END ? s->regs[addr / 4] : 0;
}

static void registers_write(void *opaque, hwaddr addr, uint64_t val,
                            unsigned size)
{
    AddrHintPciState *s = opaque;

    if (!s->records) {
        return;             /* removed while the vCPU waited for the BQL */
    }
    switch (addr) {
    case ADDR_HINT_REG_ADDR_LO ... ADDR_HINT_REG_HINT:
        s->regs[addr / 4] = val;
        break;
    case ADDR_HINT_REG_COMMAND:
        REG(s, STATUS) = run_command(s, val);
        break;
    default:
        qemu_log_mask(LOG_GUEST_ERROR, "%s: register 0x%" HWADDR_PRIX
                      " cannot be written\n", __func__, addr);
        break;
    }
}

static const MemoryRegionOps registers_ops = {
    .read = registers_read,
    .write = registers_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min_access_size = 4, .max_access_size = 4 },
    .impl = { .min_access_size = 4, .max_access_size = 4 },
};

static void clear_registers(AddrHintPciState *s)
{
    memset(s->regs, 0, sizeof(s->regs));
    REG(s, MAGIC) = ADDR_HINT_MAGIC;
    REG(s, VERSION) = ADDR_HINT_VERSION;
    REG(s, HINTS) = s->nr_hints;
    REG(s, DOORBELLS) = s->nr_doorbells;
    REG(s, DOORBELL) = ADDR_HINT_DOORBELL_NONE;
}

/*
 * Migration: addresses travel, not what they lead to.  That is found again when
 * the VM runs and all devices are there.  A hint that is stale at the time of
 * saving stays so: the other side could not tell what it stood for.
 */

static int pre_save(void *opaque)
{
    AddrHintPciState *s = opaque;
    AddrHintInfo info;

    s->nr_saved = 0;
    for (uint32_t i = 0; i < s->nr_hints; i++) {
        AddrHintRecord *r = &s->saved[s->nr_saved];

        if (!s->window.as ||
            !addr_hint_window_info(&s->window, i, &info)) {
            continue;
        }
        *r = s->records[i];
        r->index = i;
        /* nothing more is known of what was loaded and did not run yet */
        r->gone = s->settle ? s->records[i].gone : !info.live;
        r->rung = r->doorbell != ADDR_HINT_DOORBELL_NONE &&
                  addr_hint_doorbell_rung(s, r->doorbell);
        s->nr_saved++;
    }
    return 0;
}

static bool saved_count_is_good(void *opaque, int version_id)
{
    AddrHintPciState *s = opaque;

    return s->nr_saved <= s->nr_hints;
}

static bool load_record(AddrHintPciState *s, const AddrHintRecord *r)
{
    AddrHintInfo info;
    bool posted = r->flags & ADDR_HINT_FLAG_POSTED;

    if (r->index >= s->nr_hints || request_status(r) != ADDR_HINT_OK ||
        !r->length || r->length > ADDR_HINT_PAGE_SIZE -
                      (r->addr & (ADDR_HINT_PAGE_SIZE - 1)) ||
        addr_hint_window_info(&s->window, r->index, &info) ||
        (posted ? !addr_hint_doorbell_is_free(s, r->doorbell)
                : r->doorbell != ADDR_HINT_DOORBELL_NONE)) {
        return false;
    }
    addr_hint_window_load(&s->window, r->index, r->addr, r->length, r->gone);
    s->records[r->index] = *r;
    if (posted) {
        addr_hint_doorbell_assign(s, r->doorbell, r->index);
        if (r->rung) {
            addr_hint_doorbell_ring_later(s, r->doorbell);
        }
    }
    return true;
}

static bool post_load(void *opaque, int version_id, Error **errp)
{
    AddrHintPciState *s = opaque;

    release_all(s);
    find_address_space(s);
    for (uint32_t i = 0; i < s->nr_saved; i++) {
        const AddrHintRecord *r = &s->saved[i];

        if (!load_record(s, r)) {
            error_setg(errp, "addr-hint-pci: hint %" PRIu32 " in the stream "
                       "(0x%" PRIx64 ", %" PRIu32 " bytes, flags 0x%" PRIx32
                       ", doorbell %" PRIu32 ") is invalid", r->index, r->addr,
                       r->length, r->flags, r->doorbell);
            release_all(s);
            return false;
        }
    }
    REG(s, MAGIC) = ADDR_HINT_MAGIC;
    REG(s, VERSION) = ADDR_HINT_VERSION;
    REG(s, HINTS) = s->nr_hints;
    REG(s, DOORBELLS) = s->nr_doorbells;
    s->settle = true;
    return true;
}

static const VMStateDescription vmstate_record = {
    .name = "addr-hint-pci/hint",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(index, AddrHintRecord),
        VMSTATE_UINT64(addr, AddrHintRecord),
        VMSTATE_UINT32(length, AddrHintRecord),
        VMSTATE_UINT32(flags, AddrHintRecord),
        VMSTATE_UINT64(data, AddrHintRecord),
        VMSTATE_UINT32(doorbell, AddrHintRecord),
        VMSTATE_BOOL(rung, AddrHintRecord),
        VMSTATE_BOOL(gone, AddrHintRecord),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_addr_hint_pci = {
    .name = TYPE_ADDR_HINT_PCI,
    .version_id = 1,
    .minimum_version_id = 1,
    .pre_save = pre_save,
    .post_load_errp = post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_PCI_DEVICE(parent_obj, AddrHintPciState),
        VMSTATE_UINT32_EQUAL(nr_hints, AddrHintPciState,
                             "the property 'hints' must be the same"),
        VMSTATE_UINT32_EQUAL(nr_doorbells, AddrHintPciState,
                             "the property 'doorbells' must be the same"),
        VMSTATE_UINT32_ARRAY(regs, AddrHintPciState, ADDR_HINT_REG_END / 4),
        VMSTATE_UINT32(nr_saved, AddrHintPciState),
        VMSTATE_VALIDATE("more hints than the table has", saved_count_is_good),
        VMSTATE_STRUCT_VARRAY_POINTER_UINT32(saved, AddrHintPciState, nr_saved,
                                             vmstate_record, AddrHintRecord),
        VMSTATE_END_OF_LIST()
    },
};

static void vm_state_changed(void *opaque, bool running, RunState state)
{
    AddrHintPciState *s = opaque;

    if (running) {
        if (s->settle) {
            addr_hint_window_settle(&s->window);
            s->settle = false;
        }
        addr_hint_doorbells_run(s);
    }
}

/*
 * Life
 */

static void addr_hint_pci_reset_hold(Object *obj, ResetType type)
{
    AddrHintPciState *s = ADDR_HINT_PCI(obj);

    release_all(s);
    clear_registers(s);
    s->settle = false;
}

static bool check_properties(AddrHintPciState *s, Error **errp)
{
    if (!s->nr_hints || s->nr_hints > ADDR_HINT_MAX_HINTS) {
        error_setg(errp, "property 'hints' is %" PRIu32 ", it must be 1 to %d",
                   s->nr_hints, ADDR_HINT_MAX_HINTS);
        return false;
    }
    return true;
}

static void addr_hint_pci_realize(PCIDevice *pdev, Error **errp)
{
    AddrHintPciState *s = ADDR_HINT_PCI(pdev);

    if (!check_properties(s, errp) || !addr_hint_doorbells_realize(s, errp)) {
        return;
    }
    s->records = g_new0(AddrHintRecord, s->nr_hints);
    s->saved = g_new0(AddrHintRecord, s->nr_hints);
    memory_region_init_io(&s->registers, OBJECT(s), &registers_ops, s,
                          "addr-hint-registers", ADDR_HINT_PAGE_SIZE);
    addr_hint_window_init(&s->window, DEVICE(s), s->nr_hints);
    s->window.allow_dma = s->allow_dma;
    clear_registers(s);
    pci_register_bar(pdev, ADDR_HINT_BAR_REGISTERS,
                     PCI_BASE_ADDRESS_SPACE_MEMORY, &s->registers);
    pci_register_bar(pdev, ADDR_HINT_BAR_DOORBELLS,
                     PCI_BASE_ADDRESS_SPACE_MEMORY, &s->doorbell_mr);
    pci_register_bar(pdev, ADDR_HINT_BAR_WINDOW,
                     PCI_BASE_ADDRESS_SPACE_MEMORY, &s->window.mr);
    s->vm_state = qdev_add_vm_change_state_handler(DEVICE(s), vm_state_changed,
                                                   NULL, s);
}

static void addr_hint_pci_exit(PCIDevice *pdev)
{
    AddrHintPciState *s = ADDR_HINT_PCI(pdev);

    qemu_del_vm_change_state_handler(s->vm_state);
    release_all(s);
    addr_hint_window_exit(&s->window);
    addr_hint_doorbells_unrealize(s);
    g_clear_pointer(&s->records, g_free);
    g_clear_pointer(&s->saved, g_free);
}

static void addr_hint_pci_finalize(Object *obj)
{
    addr_hint_window_finalize(&ADDR_HINT_PCI(obj)->window);
}

static const Property addr_hint_pci_properties[] = {
    DEFINE_PROP_UINT32("hints", AddrHintPciState, nr_hints, 1024),
    DEFINE_PROP_UINT32("doorbells", AddrHintPciState, nr_doorbells, 32),
    DEFINE_PROP_BOOL("allow-dma", AddrHintPciState, allow_dma, false),
};

static void addr_hint_pci_class_init(ObjectClass *klass, const void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *k = PCI_DEVICE_CLASS(klass);
    ResettableClass *rc = RESETTABLE_CLASS(klass);

    k->realize = addr_hint_pci_realize;
    k->exit = addr_hint_pci_exit;
    k->vendor_id = ADDR_HINT_PCI_VENDOR;
    k->device_id = ADDR_HINT_PCI_DEVICE;
    k->class_id = PCI_CLASS_OTHERS;
    rc->phases.hold = addr_hint_pci_reset_hold;
    dc->vmsd = &vmstate_addr_hint_pci;
    dc->desc = "Gives hints by which a guest reaches devices without a search";
    device_class_set_props(dc, addr_hint_pci_properties);
    object_class_property_set_description(klass, "hints",
        "Size of the table of hints (1 to 16384)");
    object_class_property_set_description(klass, "doorbells",
        "Size of the pool of doorbells (0 to 256, all "
        "devices together 512)");
    object_class_property_set_description(klass, "allow-dma",
        "Serve accesses in the window that no vCPU makes");
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
}

static const TypeInfo addr_hint_pci_types[] = {
    {
        .name = TYPE_ADDR_HINT_PCI,
        .parent = TYPE_PCI_DEVICE,
        .instance_size = sizeof(AddrHintPciState),
        .instance_finalize = addr_hint_pci_finalize,
        .class_init = addr_hint_pci_class_init,
        .interfaces = (const InterfaceInfo[]) {
            { INTERFACE_CONVENTIONAL_PCI_DEVICE },
            { },
        },
    },
};

DEFINE_TYPES(addr_hint_pci_types)
