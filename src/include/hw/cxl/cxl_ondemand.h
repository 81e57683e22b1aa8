/*
 * CXL memory, mapped on demand
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Accesses to a CXL fixed memory window trap, because each may have to be
 * decoded to another device.  Where all decoders on the way are one-way, the
 * addresses of a decoder belong to one device, and are as good as RAM.  A
 * cxl-type3 device with the property ``ondemand-policy`` has such ranges of
 * its memory mapped when the accesses to them exceed the policy's threshold.
 */

#ifndef HW_CXL_CXL_ONDEMAND_H
#define HW_CXL_CXL_ONDEMAND_H

#include "hw/cxl/cxl.h"
#include "system/ondemand-policy.h"

/**
 * cxl_ondemand_update: bring the mappings in line with the decoders
 *
 * Works out again which addresses reach which memory, and unmaps what is not
 * right any more.  To be called after everything that can change how a window
 * is decoded or whether a device answers.  Calling it too often costs time
 * only; without a device with a policy it does nothing.
 *
 * Context: BQL held.
 */
void cxl_ondemand_update(void);

/**
 * cxl_ondemand_wiped: the device answers again after its contents were wiped
 * @ct3d: the device
 *
 * Context: BQL held.
 */
void cxl_ondemand_wiped(CXLType3Dev *ct3d);

/**
 * cxl_ondemand_access: count an access that trapped
 * @ct3d: the device, whose @ondemand is not NULL
 * @hpa: the guest physical address
 *
 * Context: BQL held.
 */
void cxl_ondemand_access(CXLType3Dev *ct3d, hwaddr hpa);

/**
 * cxl_ondemand_class_init: let the property ``ondemand-policy`` take effect
 * @oc: TYPE_CXL_TYPE3, after its realize and exit are set; they are wrapped
 */
void cxl_ondemand_class_init(ObjectClass *oc);

/*
 * How the trapping path decodes an access; used as it is, so that a mapping
 * leads to the same place.
 */

/* hw/cxl/cxl-host.c: the device behind a window; @addr counts from its base */
PCIDevice *cxl_cfmws_find_device(CXLFixedWindow *fw, hwaddr addr);

/* hw/mem/cxl_type3.c: the address in the device; false if none decodes */
bool cxl_ondemand_dpa(CXLType3Dev *ct3d, hwaddr hpa, uint64_t *dpa);

#endif
