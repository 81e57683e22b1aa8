/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What tcg-dispatch-test and its guest (payload.S) agree on.
 */
#ifndef TCG_DISPATCH_LAYOUT_H
#define TCG_DISPATCH_LAYOUT_H

/* Guest RAM */
#define GO                0x3000
#define COUNTERS          0x4000 /* of vCPU 0 */
#define COUNTERS_STRIDE   0x1000 /* between vCPUs */
#define ROUNDS            0x0
#define WRONG_READS       0x4
#define WRONG_WRITES      0x8

/* Devices; the BAR that comes and goes has to be below those in use. */
#define TOGGLED           0xe0000000
#define EDU               0xe1000000 /* of vCPU 0 */
#define EDU_STRIDE        0x100000   /* between vCPUs */
#define EDU_LIVENESS      0x4
#define EDU_ID            0x010000ed
#define APIC              0xfee00000

#endif
