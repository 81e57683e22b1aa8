/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Smallest payload: can this accelerator run any of ours? */
    .include "entry.inc"
main:
    mov $0x0badcafe, %eax
    say "probe"
    ret
    .include "vector.inc"
