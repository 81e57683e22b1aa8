/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What tcg-code-write-test and its guest (payload.S) agree on: places in RAM.
 */
#ifndef TCG_CODE_WRITE_LAYOUT_H
#define TCG_CODE_WRITE_LAYOUT_H

#define MODE              0x3000 /* how vCPU 0 writes; 0: not yet */
#define MODE_STORE        1
#define MODE_ATOMIC       2
#define WRITTEN           0x4000 /* number of the last change of the code */
#define SEEN              0x5000 /* the one that vCPU 1 has called */
#define OLD               0x6000 /* calls that ran code from before it */

#define STACK             0x8000 /* of vCPU 1, grows down */
#define FUNCTION          0x9000 /* alone on its page */

#endif
