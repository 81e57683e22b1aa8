/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reaches a register in each of several ways, COUNT times each and all that
 * ROUNDS times, and tells when it goes from one to the next.  For measurements
 * and for counting exits.
 */
#include "hint.h"

static inline uint32_t loop_write(uintptr_t addr)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        write32(addr, i);
    }
    return 0;
}

static inline uint32_t loop_write8(uintptr_t addr)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        write8(addr, i);
    }
    return 0;
}

static inline uint32_t loop_read(uintptr_t addr)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < COUNT; i++) {
        sum += read32(addr);
    }
    return sum;
}

static inline uint32_t loop_only(void)
{
    for (uint32_t i = 0; i < COUNT; i++) {
        __asm__ volatile("" : : : "memory");
    }
    return 0;
}

PAYLOAD void payload(void)
{
    struct ahint_device dev = { 0 };
    struct ahint edu = { 0 }, own = { 0 }, shared = { 0 };
    uintptr_t eventfd;
    uint32_t status;

    status = map_devices(&dev);
    eventfd = testdev_select(TEST_EVENTFD);
    status |= ahint_get(&dev, EDU, 4096, &edu);
    status |= ahint_get_posted(&dev, EDU + EDU_LIVENESS, 4, 0x1234, &own);
    status |= ahint_get_posted(&dev, eventfd, 1, 0, &shared);
    say("status", status);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        say("round", round);
        loop_only();
        say("nothing", round);
        loop_write(EDU + EDU_LIVENESS);
        say("write", round);
        loop_write(WINDOW + edu.window + EDU_LIVENESS);
        say("write_window", round);
        loop_write(BELLS + own.doorbell);
        say("doorbell", round);
        loop_write(BELLS + shared.doorbell);
        say("doorbell_shared", round);
        loop_write8(eventfd);
        say("eventfd", round);
        loop_read(EDU);
        say("read", round);
        loop_read(WINDOW + edu.window);
        say("read_window", round);
    }
    say("end", 0);
}
