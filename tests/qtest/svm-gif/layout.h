/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What svm-gif-test and its guest (payload.S) agree on: places in RAM.
 */
#ifndef SVM_GIF_LAYOUT_H
#define SVM_GIF_LAYOUT_H

#define ROUNDS            0x3000 /* interrupts that vCPU 0 sent to itself */
#define DELIVERED         0x3004 /* and those that it took */
#define EARLY             0x3008 /* taken between CLGI and STGI */
#define LOST              0x300c /* not taken after STGI */
#define LOADS             0x3010 /* what vCPU 1 did meanwhile */

#define FPU_ENV           0x3080
#define STACK             0x8000 /* grows down; of vCPU 0 */

#endif
