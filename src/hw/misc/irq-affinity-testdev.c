/*
 * A device with simulated interrupts, to test irq-affinity without VFIO
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * It has no bus and no registers.  Its interrupts are those that the tree of
 * the object's x-host-root shows for the address "host"; the messages with
 * which they would reach the guest are written to the property "route".
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qapi/error.h"
#include "hw/qdev-core.h"
#include "hw/qdev-properties.h"
#include "system/irq-affinity.h"

#define TYPE_IRQ_AFFINITY_TESTDEV "irq-affinity-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(IRQAffinityTestdev, IRQ_AFFINITY_TESTDEV)

#define VECTORS_MAX 64

typedef struct Message {
    bool set;
    uint64_t addr;
    uint32_t data;
} Message;

struct IRQAffinityTestdev {
    DeviceState parent_obj;

    /* Properties */
    IRQAffinity *affinity;
    char *host;

    /* State, protected by the BQL */
    IRQAffinityClient *client;
    int proof;              /* /dev/null stands for the VFIO group */
    Message messages[VECTORS_MAX];
};

static unsigned testdev_vectors(void *opaque)
{
    return VECTORS_MAX;
}

static bool testdev_message(void *opaque, unsigned vector, uint64_t *addr,
                            uint32_t *data)
{
    const Message *m = &((IRQAffinityTestdev *)opaque)->messages[vector];

    *addr = m->addr;
    *data = m->data;
    return m->set;
}

static int testdev_proof(void *opaque)
{
    return ((IRQAffinityTestdev *)opaque)->proof;
}

static const IRQAffinitySource testdev_source = {
    .vectors = testdev_vectors,
    .message = testdev_message,
    .proof = testdev_proof,
};

static bool testdev_use(IRQAffinityTestdev *s, IRQAffinity *affinity,
                        Error **errp)
{
    IRQAffinityClient *client = NULL;

    if (affinity) {
        client = irq_affinity_attach(affinity, &testdev_source, s, DEVICE(s),
                                     s->host, errp);
        if (!client) {
            return false;
        }
    }
    irq_affinity_detach(s->client, true);
    s->client = client;
    return true;
}

static void check_affinity(const Object *obj, const char *name, Object *value,
                           Error **errp)
{
    IRQAffinityTestdev *s = IRQ_AFFINITY_TESTDEV(obj);

    if (DEVICE(s)->realized) {
        testdev_use(s, (IRQAffinity *)value, errp);
    }
}

/* VECTOR=ADDRESS:DATA, or VECTOR= for none */
static void set_route(Object *obj, const char *value, Error **errp)
{
    IRQAffinityTestdev *s = IRQ_AFFINITY_TESTDEV(obj);
    const char *at = value;
    unsigned vector;
    Message m = { };

    if (qemu_strtoui(at, &at, 10, &vector) || vector >= VECTORS_MAX ||
        *at++ != '=') {
        goto bad;
    }
    if (*at) {
        m.set = true;
        if (qemu_strtou64(at, &at, 0, &m.addr) || *at++ != ':' ||
            qemu_strtoui(at, NULL, 0, &m.data)) {
            goto bad;
        }
    }
    s->messages[vector] = m;
    irq_affinity_changed();
    return;
bad:
    error_setg(errp, "Property 'route' of " TYPE_IRQ_AFFINITY_TESTDEV " is "
               "'%s', but must be VECTOR=ADDRESS:DATA or VECTOR=, with a "
               "vector up to %d", value, VECTORS_MAX - 1);
}

static void testdev_realize(DeviceState *dev, Error **errp)
{
    IRQAffinityTestdev *s = IRQ_AFFINITY_TESTDEV(dev);

    if (!s->host) {
        error_setg(errp, "Property 'host' of " TYPE_IRQ_AFFINITY_TESTDEV
                   " is not set");
        return;
    }
    s->proof = qemu_open_old("/dev/null", O_RDWR);
    if (!testdev_use(s, s->affinity, errp)) {
        qemu_close(s->proof);
    }
}

static void testdev_unrealize(DeviceState *dev)
{
    IRQAffinityTestdev *s = IRQ_AFFINITY_TESTDEV(dev);

    irq_affinity_detach(s->client, false);
    s->client = NULL;
    qemu_close(s->proof);
}

static const Property testdev_properties[] = {
    DEFINE_PROP_STRING("host", IRQAffinityTestdev, host),
};

static void testdev_class_init(ObjectClass *oc, const void *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->realize = testdev_realize;
    dc->unrealize = testdev_unrealize;
    dc->desc = "Simulated interrupts for irq-affinity";
    dc->user_creatable = true;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    device_class_set_props(dc, testdev_properties);
    object_class_property_add_link(oc, "irq-affinity", TYPE_IRQ_AFFINITY,
                                   offsetof(IRQAffinityTestdev, affinity),
                                   check_affinity, OBJ_PROP_LINK_STRONG);
    object_class_property_add_str(oc, "route", NULL, set_route);
}

static const TypeInfo testdev_types[] = {
    {
        .name = TYPE_IRQ_AFFINITY_TESTDEV,
        .parent = TYPE_DEVICE,
        .instance_size = sizeof(IRQAffinityTestdev),
        .class_init = testdev_class_init,
    },
};

DEFINE_TYPES(testdev_types)
