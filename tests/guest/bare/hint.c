/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest that uses the reference driver: hints for edu's registers, used COUNT
 * times each way, refusals, what is forged and what is stale, and doorbells:
 * one that QEMU answers, and one that leads to the queue of a virtio device.
 */
#include "hint.h"

/* BAR 4 of a virtio-pci device, as QEMU lays it out */
enum {
    DRIVER_FEATURE_SELECT = 0x08, DRIVER_FEATURE = 0x0c, STATUS = 0x14,
    QUEUE_SELECT = 0x16, QUEUE_SIZE = 0x18, QUEUE_ENABLE = 0x1c,
    QUEUE_DESC = 0x20, QUEUE_DRIVER = 0x28, QUEUE_DEVICE = 0x30,
    NOTIFY = 0x3000,
};
/* where the queue and its one buffer are in memory */
#define DESC 0x100000u
#define AVAIL 0x101000u
#define USED 0x102000u
#define BUFFER 0x103000u
#define QUEUE_ENTRIES 8
#define REQUESTS 20

static void use(struct ahint_device *dev)
{
    struct ahint hint = { 0 }, part = { 0 };
    uint32_t wrong = 0;

    say("status", ahint_get(dev, EDU, 4096, &hint));
    say("identity", read32(WINDOW + hint.window));
    ahint_get(dev, EDU + EDU_LIVENESS, 4, &part);
    for (uint32_t i = 0; i < COUNT; i++) {
        write32(WINDOW + hint.window + EDU_LIVENESS, i);
        wrong += read32(EDU + EDU_LIVENESS) != ~i;
        write32(EDU + EDU_LIVENESS, i * 3);
        wrong += read32(WINDOW + part.window) != ~(i * 3);
    }
    say("wrong", wrong);
    /* sizes and alignments, against the address itself */
    wrong = 0;
    for (uint32_t i = 0; i < 16; i++) {
        wrong += read8(WINDOW + hint.window + i) != read8(EDU + i);
        wrong += read16(WINDOW + hint.window + i) != read16(EDU + i);
        wrong += read32(WINDOW + hint.window + i) != read32(EDU + i);
    }
    say("wrong_sizes", wrong);

    say("beside", read32(WINDOW + part.window + 4));
    say("forged", read32(WINDOW + 50 * ADDR_HINT_PAGE_SIZE));
    config_write(5, COMMAND, 0);
    say("stale", read32(WINDOW + hint.window));
    say("stale_status", ahint_check(dev, hint.index));
    config_write(5, COMMAND, MEMORY);
    say("live", read32(WINDOW + hint.window));
    say("live_status", ahint_check(dev, hint.index));
    say("put", ahint_put(dev, hint.index));
    say("after_put", read32(WINDOW + hint.window));
}

/*
 * KVM gathers writes to most registers of e1000 and does not exit for them.  An
 * access by a hint must find them made, and not be overtaken by them.
 */
static void coalesced(struct ahint_device *dev)
{
    struct ahint hint = { 0 };
    uint32_t wrong = 0;
    uintptr_t hinted;

    say("nic", ahint_get(dev, NIC, 4096, &hint));
    hinted = WINDOW + hint.window + NIC_VET;
    for (uint32_t i = 0; i < COUNT; i++) {
        write32(NIC + NIC_VET, i);
        wrong += read32(hinted) != i;
        write32(NIC + NIC_VET, ~i);
        write32(hinted, i + 1);
        wrong += read32(NIC + NIC_VET) != i + 1;
    }
    say("wrong_coalesced", wrong);
    ahint_put(dev, hint.index);
}

/* A device that is called without the big lock, and takes eight bytes */
static void lockless(struct ahint_device *dev)
{
    struct ahint hint = { 0 };
    uint32_t wrong = 0;

    say("hpet", ahint_get(dev, HPET, 1024, &hint));
    say("hpet_id", read32(HPET));
    for (uint32_t i = 0; i < COUNT; i++) {
        wrong += read32(WINDOW + hint.window) != read32(HPET);
        wrong += read32(WINDOW + hint.window + 4) != read32(HPET + 4);
        write32(WINDOW + hint.window + 0x108, i);       /* a comparator */
        wrong += read32(HPET + 0x108) != i;
    }
    say("wrong_lockless", wrong);
    ahint_put(dev, hint.index);
}

static void refusals(struct ahint_device *dev)
{
    struct ahint hint = { 0 };

    say("ram", ahint_get(dev, 0x100000, 4, &hint));
    say("nothing", ahint_get(dev, 0xd0000000, 4, &hint));
    say("own", ahint_get(dev, WINDOW, 4, &hint));
    say("empty", ahint_get(dev, EDU, 0, &hint));
    say("crossing", ahint_get(dev, EDU + 8, 4096, &hint));
    say("bad_put", ahint_put(dev, 0xffffffff));
}

/* QEMU makes the write, some time later. */
static void doorbell(struct ahint_device *dev)
{
    struct ahint hint = { 0 };

    say("posted", ahint_get_posted(dev, EDU + EDU_LIVENESS, 4, 0x1234,
                                   &hint));
    write32(BELLS + hint.doorbell, 1);
    say("rung", wait32(EDU + EDU_LIVENESS, ~0x1234u));
}

static void queue_start(void)
{
    write8(RNG + STATUS, 0);
    write8(RNG + STATUS, 3);
    write32(RNG + DRIVER_FEATURE_SELECT, 1);
    write32(RNG + DRIVER_FEATURE, 1);           /* VIRTIO_F_VERSION_1 */
    write8(RNG + STATUS, 0x0b);
    write16(RNG + QUEUE_SELECT, 0);
    write16(RNG + QUEUE_SIZE, QUEUE_ENTRIES);
    write32(RNG + QUEUE_DESC, DESC);
    write32(RNG + QUEUE_DESC + 4, 0);
    write32(RNG + QUEUE_DRIVER, AVAIL);
    write32(RNG + QUEUE_DRIVER + 4, 0);
    write32(RNG + QUEUE_DEVICE, USED);
    write32(RNG + QUEUE_DEVICE + 4, 0);
    write16(RNG + QUEUE_ENABLE, 1);
    write8(RNG + STATUS, 0x0f);
    /* one buffer, written by the device, asked for again and again */
    write32(DESC, BUFFER);
    write32(DESC + 4, 0);
    write32(DESC + 8, 8);
    write32(DESC + 12, 2);
}

/* The doorbell signals the eventfd that the virtio queue listens to. */
static void shared_doorbell(struct ahint_device *dev)
{
    struct ahint hint = { 0 };
    uint32_t served = 0;

    queue_start();
    say("shared", ahint_get_posted(dev, RNG + NOTIFY, 2, 0, &hint));
    for (uint16_t i = 1; i <= REQUESTS; i++) {
        write16(AVAIL + 4 + 2 * ((i - 1) % QUEUE_ENTRIES), 0);
        __asm__ volatile("" : : : "memory");
        write16(AVAIL + 2, i);
        write32(BELLS + hint.doorbell, 1);
        for (unsigned n = 0; n < 2000000 && read16(USED + 2) != i; n++) {
            __asm__ volatile("pause");
        }
        served += read16(USED + 2) == i;
    }
    say("served", served);
}

PAYLOAD void payload(void)
{
    struct ahint_device dev = { 0 };

    say("open", map_devices(&dev));
    say("hints", dev.hints);
    say("doorbells", dev.doorbells);
    use(&dev);
    coalesced(&dev);
    lockless(&dev);
    refusals(&dev);
    doorbell(&dev);
    shared_doorbell(&dev);
    say("end", 0);
}
