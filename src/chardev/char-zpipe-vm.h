/*
 * Asynchronous pipes as character devices: the VM around them
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In char-zpipe-vm.c for system emulators, in stubs/zpipe-vm.c for the rest,
 * which does not know the library.
 */

#ifndef CHAR_ZPIPE_VM_H
#define CHAR_ZPIPE_VM_H

typedef struct ZpipeChardev ZpipeChardev;

/* Follow the VM's state, and share its RAM if that is asked for. */
bool zpipe_vm_attach(ZpipeChardev *s, bool share_ram, Error **errp);
void zpipe_vm_detach(ZpipeChardev *s);
/* There is a new handle: register the RAM with it. */
void zpipe_vm_new_handle(ZpipeChardev *s);
/* There is a VM, and it does not run. */
bool zpipe_vm_is_stopped(void);

#endif
