/*
 * On-demand mapping: instructions that KVM cannot emulate
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * KVM emulates an access that traps, but it cannot fetch the instruction itself
 * from such memory.  By default it then injects #UD, and reports an internal
 * error only for kernel mode; with KVM_CAP_EXIT_ON_EMULATION_FAILURE it always
 * reports and injects nothing, so the instruction can be tried again.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "cpu.h"
#include "exec/target_page.h"
#include "system/hw_accel.h"
#include "system/kvm.h"
#include "system/memory.h"
#include "system/ondemand-map.h"
#include "linux/kvm.h"

/* of an instruction, at most */
#define INSN_BYTES 15

/* How long a vCPU sleeps before it tries again; it holds no lock meanwhile */
#define WAIT_US 1000

/*
 * How often an instruction that fails in mapped memory is tried again.  It may
 * have failed just before another vCPU had it mapped.
 */
#define MAX_RETRIES 3

static bool started;

void ondemand_map_kvm_start(void)
{
    if (kvm_enabled() &&
        kvm_check_extension(kvm_state, KVM_CAP_EXIT_ON_EMULATION_FAILURE)) {
        started = !kvm_vm_enable_cap(kvm_state,
                                     KVM_CAP_EXIT_ON_EMULATION_FAILURE, 0, 1);
    }
}

/* Returns: the OndemandState of where @pc points to, or -1 */
static int state_of_code(CPUState *cs, vaddr pc)
{
    MemTxAttrs attrs;
    hwaddr page = cpu_get_phys_page_attrs_debug(cs, pc & TARGET_PAGE_MASK,
                                                &attrs);
    hwaddr xlat, len = 1;
    MemoryRegion *mr;

    if (page == -1) {
        return -1;
    }
    RCU_READ_LOCK_GUARD();
    mr = address_space_translate(cs->as, page + (pc & ~TARGET_PAGE_MASK),
                                 &xlat, &len, false, attrs);
    if (memory_region_is_ram(mr)) {
        return ONDEMAND_STATE_MAPPED;
    }
    return ondemand_map_force_state(mr, xlat, ONDEMAND_FORCE_FETCH);
}

/*
 * Returns: the OndemandState of the page with the instruction's end, where that
 * may be another one than that of its start, which is mapped; else mapped
 */
static int state_of_code_end(CPUState *cs, vaddr pc)
{
    vaddr end = pc + INSN_BYTES - 1;
    int state = ONDEMAND_STATE_MAPPED;

    if ((pc ^ end) & TARGET_PAGE_MASK) {
        state = state_of_code(cs, end & TARGET_PAGE_MASK);
    }
    /* no such page, or a device's: the instruction will end before it */
    return state == -1 ? ONDEMAND_STATE_MAPPED : state;
}

/* Returns: true if an instruction that failed in RAM should be tried again */
static bool may_retry(vaddr pc)
{
    static __thread vaddr last_pc;
    static __thread unsigned retries;

    if (pc != last_pc) {
        last_pc = pc;
        retries = 0;
    }
    return retries++ < MAX_RETRIES;
}

/* What KVM does without the capability */
static bool inject_ud(CPUState *cs)
{
    CPUX86State *env = &X86_CPU(cs)->env;
    bool user = (env->cr[0] & CR0_PE_MASK) &&
                ((env->eflags & VM_MASK) ||
                 (env->segs[R_CS].selector & 3) == 3);

    if (!user && !(env->hflags & HF_GUEST_MASK)) {
        return false;
    }
    env->exception_nr = EXCP06_ILLOP;
    env->exception_injected = 1;
    env->has_error_code = 0;
    return true;
}

bool ondemand_map_emulation_failed(CPUState *cs)
{
    CPUX86State *env = &X86_CPU(cs)->env;
    bool go_on = true;
    vaddr pc;
    int state;

    if (!started) {
        return false;
    }
    bql_lock();
    cpu_synchronize_state(cs);
    pc = env->segs[R_CS].base + env->eip;
    state = state_of_code(cs, pc);
    if (state == ONDEMAND_STATE_MAPPED) {
        state = state_of_code_end(cs, pc);
    }
    if (state != ONDEMAND_STATE_QUEUED &&
        !(state == ONDEMAND_STATE_MAPPED && may_retry(pc))) {
        go_on = inject_ud(cs);
    }
    bql_unlock();
    if (state == ONDEMAND_STATE_QUEUED) {
        g_usleep(WAIT_US);
    }
    return go_on;
}
