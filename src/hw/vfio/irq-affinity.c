/*
 * Interrupt affinity that follows the vCPU: interrupts of vfio-pci devices
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The message of a vector is taken from the KVM route that is stored for it:
 * the remapping of a virtual IOMMU and the extended destination ID have been
 * dealt with there.  A vector without a route goes through QEMU, INTx has no
 * vector: neither is followed.
 */

#include "qemu/osdep.h"
#include <sys/sysmacros.h>
#include "qapi/error.h"
#include "system/kvm.h"
#include "hw/vfio/pci.h"
#include "hw/vfio/irq-affinity.h"
#include "hw/vfio/vfio-container-legacy.h"
#ifdef CONFIG_KVM
#include "system/kvm_int.h"
#endif

static unsigned vfio_vectors(void *opaque)
{
    VFIOPCIDevice *vdev = opaque;

    return vdev->msi_vectors ? vdev->nr_vectors : 0;
}

#ifdef CONFIG_KVM
/* By GSI: one more than the index of its route */
static GArray *route_index;     /* unsigned */

static const struct kvm_irq_routing *kvm_routes(void)
{
    return kvm_enabled() ? kvm_state->irq_routes : NULL;
}
#endif

static void vfio_begin(void *opaque)
{
#ifdef CONFIG_KVM
    const struct kvm_irq_routing *routes = kvm_routes();

    if (!route_index) {
        route_index = g_array_new(false, true, sizeof(unsigned));
    }
    g_array_set_size(route_index, 0);
    for (unsigned i = 0; routes && i < routes->nr; i++) {
        const struct kvm_irq_routing_entry *e = &routes->entries[i];

        if (e->type != KVM_IRQ_ROUTING_MSI) {
            continue;
        }
        if (e->gsi >= route_index->len) {
            g_array_set_size(route_index, e->gsi + 1);
        }
        g_array_index(route_index, unsigned, e->gsi) = i + 1;
    }
#endif
}

static bool route_message(unsigned gsi, uint64_t *addr, uint32_t *data)
{
#ifdef CONFIG_KVM
    const struct kvm_irq_routing *routes = kvm_routes();
    unsigned index = gsi < route_index->len
                     ? g_array_index(route_index, unsigned, gsi) : 0;
    const struct kvm_irq_routing_entry *e;

    if (!routes || !index) {
        return false;
    }
    e = &routes->entries[index - 1];
    *addr = (uint64_t)e->u.msi.address_hi << 32 | e->u.msi.address_lo;
    *data = e->u.msi.data;
    return true;
#else
    return false;
#endif
}

static bool vfio_message(void *opaque, unsigned vector, uint64_t *addr,
                         uint32_t *data)
{
    VFIOPCIDevice *vdev = opaque;

    if (!vdev->msi_vectors || vector >= vdev->nr_vectors ||
        !vdev->msi_vectors[vector].use || vdev->msi_vectors[vector].virq < 0) {
        return false;
    }
    return route_message(vdev->msi_vectors[vector].virq, addr, data);
}

static int vfio_proof(void *opaque)
{
    const VFIODevice *vbasedev = &((VFIOPCIDevice *)opaque)->vbasedev;

    return vbasedev->group ? vbasedev->group->fd : vbasedev->fd;
}

static const IRQAffinitySource vfio_source = {
    .begin = vfio_begin,
    .vectors = vfio_vectors,
    .message = vfio_message,
    .proof = vfio_proof,
};

/* Returns: (transfer full): its name in /sys/bus/pci/devices; NULL: @errp */
static char *host_address(const VFIODevice *vbasedev, Error **errp)
{
    g_autofree char *path = NULL;
    struct stat st;

    if (vbasedev->sysfsdev) {
        path = realpath(vbasedev->sysfsdev, NULL);
    } else if (!fstat(vbasedev->fd, &st)) {
        /* somebody else opened /dev/vfio/devices/vfioN */
        g_autofree char *device = g_strdup_printf("/sys/dev/char/%u:%u/device",
                                                  major(st.st_rdev),
                                                  minor(st.st_rdev));

        path = realpath(device, NULL);
    }
    if (!path) {
        error_setg_errno(errp, errno, "Property 'irq-affinity' cannot be used: "
                         "the host's address of '%s' cannot be told",
                         vbasedev->name);
        return NULL;
    }
    return g_path_get_basename(path);
}

static bool vfio_use(VFIOPCIDevice *vdev, IRQAffinity *affinity, Error **errp)
{
    g_autofree char *host = NULL;
    IRQAffinityClient *client = NULL;

    if (affinity && vdev->vbasedev.mdev) {
        error_setg(errp, "Property 'irq-affinity' cannot be used with a "
                   "mediated device: it has no interrupts of its own");
        return false;
    }
    if (affinity) {
        host = host_address(&vdev->vbasedev, errp);
        if (!host) {
            return false;
        }
        client = irq_affinity_attach(affinity, &vfio_source, vdev,
                                     DEVICE(vdev), host, errp);
        if (!client) {
            return false;
        }
    }
    irq_affinity_detach(vdev->irq_affinity_client, true);
    vdev->irq_affinity_client = client;
    return true;
}

/* Another object, or none, for a device that is in use */
static void check_affinity(const Object *obj, const char *name, Object *value,
                           Error **errp)
{
    VFIOPCIDevice *vdev = VFIO_PCI_DEVICE(obj);

    if (DEVICE(vdev)->realized) {
        vfio_use(vdev, (IRQAffinity *)value, errp);
    }
}

bool vfio_irq_affinity_realize(VFIOPCIDevice *vdev, Error **errp)
{
    return vfio_use(vdev, vdev->irq_affinity, errp);
}

void vfio_irq_affinity_exit(VFIOPCIDevice *vdev)
{
    irq_affinity_detach(vdev->irq_affinity_client, false);
    vdev->irq_affinity_client = NULL;
}

void vfio_irq_affinity_class_init(ObjectClass *oc)
{
    object_class_property_add_link(oc, "irq-affinity", TYPE_IRQ_AFFINITY,
                                   offsetof(VFIOPCIDevice, irq_affinity),
                                   check_affinity, OBJ_PROP_LINK_STRONG);
    object_class_property_set_description(oc, "irq-affinity",
        "irq-affinity object that sends the host's interrupts of this device "
        "to where their vCPU runs; may be changed, or set to none, at any "
        "time");
}
