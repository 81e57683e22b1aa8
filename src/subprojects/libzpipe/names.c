/*
 * zpipe: words
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include <errno.h>
#include <string.h>
#include "zpipe-int.h"

#define STR_(x) #x
#define STR(x) STR_(x)

static const char *const mechanisms[ZPIPE_MECHANISMS] = {
    [ZPIPE_AUTO] = "auto",
    [ZPIPE_INLINE] = "inline",
    [ZPIPE_COPY] = "copy",
    [ZPIPE_DIRECT] = "direct",
    [ZPIPE_MAP] = "map",
    [ZPIPE_DMA] = "dma",
};

static const char *const reasons[ZPIPE_REASONS] = {
    [ZPIPE_WHY_SIZE] = "size",
    [ZPIPE_WHY_NO_REGION] = "no-region",
    [ZPIPE_WHY_REFUSED] = "region-refused",
    [ZPIPE_WHY_READER_PRIVATE] = "reader-private",
    [ZPIPE_WHY_READER_BEHIND] = "reader-behind",
    [ZPIPE_WHY_CMA_OFF] = "cma-off",
    [ZPIPE_WHY_CMA_DENIED] = "cma-denied",
    [ZPIPE_WHY_NO_VIEW] = "no-view",
    [ZPIPE_WHY_UNTRUSTED] = "peer-untrusted",
};

const char *zpipe_version(void)
{
    return STR(ZPIPE_VERSION_MAJOR) "." STR(ZPIPE_VERSION_MINOR) ".0";
}

const char *zpipe_mechanism_name(enum zpipe_mechanism mechanism)
{
    return (unsigned)mechanism < ZPIPE_MECHANISMS ? mechanisms[mechanism]
                                                  : "unknown";
}

const char *zpipe_reason_name(enum zpipe_reason reason)
{
    return (unsigned)reason < ZPIPE_REASONS ? reasons[reason] : "unknown";
}

int zpipe_mechanism_parse(const char *name)
{
    for (int i = 0; i < ZPIPE_MECHANISMS; i++) {
        if (!strcmp(name, mechanisms[i])) {
            return i;
        }
    }
    return -EINVAL;
}
