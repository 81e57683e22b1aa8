/*
 * Interrupt affinity that follows the vCPU: texts of the host's files
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "system/irq-affinity-names.h"

char *irq_text_read_whole(int fd)
{
    char *text = g_malloc(IRQ_TEXT_MAX + 1);
    ssize_t len;

    do {
        len = pread(fd, text, IRQ_TEXT_MAX, 0);
    } while (len < 0 && errno == EINTR);
    if (len < 0) {
        int err = errno;

        g_free(text);
        errno = err;
        return NULL;
    }
    text[len] = 0;
    return text;
}

char *irq_text_read_fd(int fd)
{
    g_autofree char *text = irq_text_read_whole(fd);

    return text ? g_strdup(g_strstrip(text)) : NULL;
}

char *irq_text_read(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *text;
    int err;

    if (fd < 0) {
        return NULL;
    }
    text = irq_text_read_fd(fd);
    err = errno;
    close(fd);
    errno = err;
    return text;
}

GArray *irq_text_cpus(const char *text)
{
    g_autoptr(GArray) list = g_array_new(false, false, sizeof(int));

    while (*text) {
        unsigned first, last;

        if (!g_ascii_isdigit(*text) || qemu_strtoui(text, &text, 10, &first)) {
            return NULL;
        }
        last = first;
        if (*text == '-' && (!g_ascii_isdigit(text[1]) ||
                             qemu_strtoui(text + 1, &text, 10, &last))) {
            return NULL;
        }
        if (last < first || last >= IRQ_CPUS_MAX || (*text && *text != ',') ||
            list->len > IRQ_CPUS_MAX) {
            return NULL;
        }
        for (int i = first; i <= (int)last; i++) {
            g_array_append_val(list, i);
        }
        text += *text == ',';
    }
    return g_steal_pointer(&list);
}

unsigned long *irq_text_set(const char *text)
{
    g_autoptr(GArray) list = irq_text_cpus(text);
    unsigned long *set;

    if (!list) {
        return NULL;
    }
    set = bitmap_new(IRQ_CPUS_MAX);
    for (unsigned i = 0; i < list->len; i++) {
        set_bit(g_array_index(list, int, i), set);
    }
    return set;
}

bool irq_text_action(const char *actions, const char *device,
                     unsigned *vector)
{
    const char *end;

    if (!strstart(actions, "vfio-msix[", &actions) &&
        !strstart(actions, "vfio-msi[", &actions)) {
        return false;
    }
    return g_ascii_isdigit(*actions) &&
           !qemu_strtoui(actions, &end, 10, vector) &&
           strstart(end, "](", &end) && strstart(end, device, &end) &&
           g_str_equal(end, ")");
}

int irq_text_write(int fd, const char *text)
{
    ssize_t ret;

    /* no pwrite(): files of /proc that are made with seq_file refuse it */
    if (lseek(fd, 0, SEEK_SET) < 0) {
        return -errno;
    }
    do {
        ret = write(fd, text, strlen(text));
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}
