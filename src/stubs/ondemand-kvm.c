/*
 * Stubs: on-demand mapping where KVM is not, or fetches nothing that traps
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/ondemand-map.h"

void ondemand_map_kvm_start(void)
{
}

bool ondemand_map_emulation_failed(CPUState *cpu)
{
    return false;
}
