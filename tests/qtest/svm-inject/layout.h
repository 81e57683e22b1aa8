/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What svm-inject-test and its guest (payload.S) agree on: places in RAM.
 */
#ifndef SVM_INJECT_LAYOUT_H
#define SVM_INJECT_LAYOUT_H

#define ROUNDS            0x3000 /* VMRUNs, each with one injected interrupt */
#define DELIVERED         0x3004 /* interrupts that the nested guest took */
#define WRONG             0x3008 /* rounds that ended with another number */
#define BAD_EXIT          0x300c /* last exit code that was not VMMCALL's */

#define VMCB              0x5000
#define HOST_SAVE         0x6000
#define STACK             0x8000 /* grows down */

#endif
