/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes and reads a register of edu COUNT times: by a hint if there is a device
 * that gives one, else at its address.  What it reports is the same.
 */
#include "hint.h"

PAYLOAD void payload(void)
{
    struct ahint_device dev = { 0 };
    struct ahint hint = { 0 };
    uintptr_t place = EDU;
    uint32_t sum = 0;

    if (!map_devices(&dev) && !ahint_get(&dev, EDU, 4096, &hint)) {
        place = WINDOW + hint.window;
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        write32(place + EDU_LIVENESS, i);
        sum = (sum << 5 | sum >> 27) + read32(place + EDU_LIVENESS);
    }
    say("identity", read32(place));
    say("rounds", COUNT);
    say("sum", sum);
    say("end", 0);
}
