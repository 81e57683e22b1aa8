/*
 * A vfio-user server for qtests that speaks the protocol by itself: the DMA
 * engine of vfio-testdev.h, with DMA logging by VFIO_USER_DEVICE_FEATURE, which
 * the libvfio-user that QEMU bundles has not got
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * usage: vfio-user-rawdev SOCKET [MODE]
 *
 *   log        logs and reports (default)
 *   refuse     an error for each report
 *   other      reports on another range than the one asked for
 *   short      reports without a bitmap
 *   long       reports with more than was asked for
 *   mad        every bit is set, also those beyond the range
 *   refuse-map an error for each region that is to be mapped
 *   mute-map   no answer to that
 *   long-map   an answer to that with more than was asked for
 *   end        ends when it is asked for a report
 *   half       ends in the middle of it
 *   half-mute  says nothing any more from the middle of a report on
 *   half-slow  makes a long pause in the middle of one report
 *   slow       makes it before the report
 *   message    writes once more, by a message, before bus mastering is off
 *   fds        sends a file descriptor with a request for each DMA
 *   fds-map    the same before it refuses a map
 *   part-map   ends in the middle of that request
 *   flood      sends no end of requests before it says how a DMA went
 *   ask        the same, which it takes no answer to
 *
 * It writes memory that has no file descriptor by messages, and waits for no
 * answer to them.
 *
 * "MODE:N" behaves so from the Nth report on, or map, counted from 0.
 *
 * It serves one client, and ends with it or with the test.
 */

#include "qemu/osdep.h"
#include <err.h>
#include <linux/vfio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "hw/vfio-user/protocol.h"
#include "standard-headers/linux/pci_regs.h"
#include "vfio-testdev.h"

#define VFIO_USER_DEVICE_FEATURE 16
#define PAGE            4096
#define MAX_BODY        (1 << 20)
#define MAX_REGIONS     64
#define SLOW_S          3
#define FLOOD           (1ull << 30)
#define VERSION_CAPS    "{\"capabilities\":{\"max_msg_fds\":8," \
                        "\"max_data_xfer_size\":1048576," \
                        "\"migration\":{\"pgsize\":4096}}}"

typedef struct Region {
    uint64_t iova, size;
    uint8_t *mem;               /* NULL: no file descriptor */
    unsigned long *dirty;
} Region;

/* What the messages carry after the header. */
typedef struct {
    uint32_t argsz, flags, index, cap_offset;
    uint64_t size, offset;
} RegionInfo;

typedef struct {
    uint32_t argsz, flags;
    uint64_t offset, iova, size;
} MapBody;

typedef struct {
    uint32_t argsz, flags;
    uint64_t iova, length, page_size;
} ReportBody;

static int sock;
static const char *mode = "log", *later;
static unsigned reports, maps, lies_from;
static Region regions[MAX_REGIONS];
static bool logging;
static bool is_report;          /* what is answered now */
static uint32_t regs[PAGE / 4];
static uint8_t config[256];
/* the header is before it when VFIOUserRegionRW is laid over */
static uint8_t message[sizeof(VFIOUserHdr) + MAX_BODY + 8192];
static uint8_t *const body = message + sizeof(VFIOUserHdr);

/* --------------------------------------------------------------- transport */

static bool read_all(void *buf, size_t len, int *fd)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * 8)];
        struct cmsghdr align;
    } control;
    struct iovec iov = { buf, len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
                          .msg_control = &control,
                          .msg_controllen = sizeof(control) };

    while (iov.iov_len) {
        ssize_t got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
        struct cmsghdr *c = got > 0 ? CMSG_FIRSTHDR(&msg) : NULL;

        if (got <= 0) {
            return false;
        }
        if (fd && c && c->cmsg_type == SCM_RIGHTS) {
            memcpy(fd, CMSG_DATA(c), sizeof(*fd));
        }
        iov.iov_base = (char *)iov.iov_base + got;
        iov.iov_len -= got;
        msg.msg_controllen = sizeof(control);
    }
    return true;
}

static void write_all(const void *buf, size_t len)
{
    while (len) {
        ssize_t put = send(sock, buf, len, MSG_NOSIGNAL);

        if (put <= 0) {
            exit(0);
        }
        buf = (const char *)buf + put;
        len -= put;
    }
}

/* What it does in the middle of a report. */
static void pause_report(void)
{
    if (!strcmp(mode, "half")) {
        exit(0);
    }
    while (!strcmp(mode, "half-mute")) {
        pause();
    }
    if (!strcmp(mode, "half-slow")) {
        mode = "log";
        sleep(SLOW_S);
    }
}

static void reply(const VFIOUserHdr *to, int error, size_t len)
{
    VFIOUserHdr hdr = *to;
    size_t part;

    if (to->flags & VFIO_USER_NO_REPLY) {
        return;
    }
    len = error ? 0 : len;
    hdr.flags = VFIO_USER_REPLY | (error ? VFIO_USER_ERROR : 0);
    hdr.error_reply = error;
    hdr.size = sizeof(hdr) + len;
    part = is_report ? len / 2 : len;
    write_all(&hdr, sizeof(hdr));
    write_all(body, part);
    if (is_report) {
        pause_report();
        write_all(body + part, len - part);
    }
}

/* --------------------------------------------------------------------- DMA */

static void map(int fd)
{
    MapBody *m = (MapBody *)body;

    for (int i = 0; i < MAX_REGIONS; i++) {
        Region *r = &regions[i];

        if (r->size) {
            continue;
        }
        *r = (Region) { m->iova, m->size };
        r->dirty = bitmap_new(DIV_ROUND_UP(m->size, PAGE));
        if (fd >= 0) {
            r->mem = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                          m->offset);
            if (r->mem == MAP_FAILED) {
                err(1, "mmap");
            }
            close(fd);
        }
        return;
    }
    errx(1, "too many regions");
}

static void unmap(uint64_t iova)
{
    for (int i = 0; i < MAX_REGIONS; i++) {
        Region *r = &regions[i];

        if (r->size && r->iova == iova) {
            if (r->mem) {
                munmap(r->mem, r->size);
            }
            g_free(r->dirty);
            *r = (Region) { };
        }
    }
}

/* With a request, which takes none. */
static void send_fd(size_t len)
{
    VFIOUserDMARW data = {
        .hdr = {
            .command = VFIO_USER_DMA_WRITE,
            .flags = VFIO_USER_REQUEST,
            .size = sizeof(data),
        },
    };
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { };
    struct iovec iov = { &data, len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
                          .msg_control = &control,
                          .msg_controllen = sizeof(control) };
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(sock));
    memcpy(CMSG_DATA(c), &sock, sizeof(sock));
    if (sendmsg(sock, &msg, MSG_NOSIGNAL) != len) {
        err(1, "sendmsg");
    }
}

static void dma_message(uint64_t addr, uint32_t len, uint8_t fill)
{
    size_t size = sizeof(VFIOUserDMARW) + len;
    g_autofree VFIOUserDMARW *msg = g_malloc0(size);

    msg->hdr.command = VFIO_USER_DMA_WRITE;
    msg->hdr.flags = VFIO_USER_REQUEST | VFIO_USER_NO_REPLY;
    msg->hdr.size = size;
    msg->offset = addr;
    msg->count = len;
    memset(msg->data, fill, len);
    write_all(msg, size);
}

/* More than is to be kept: writes, or reads of more than they take. */
static void flood(void)
{
    uint64_t at = regs[0] | (uint64_t)regs[1] << 32;
    VFIOUserDMARW msg = {
        .hdr = {
            .command = VFIO_USER_DMA_READ,
            .flags = VFIO_USER_REQUEST,
            .size = sizeof(msg),
        },
        .offset = at,
        .count = PAGE,
    };

    for (uint64_t sent = 0; sent < FLOOD; sent += PAGE) {
        if (!strcmp(mode, "flood")) {
            dma_message(at, PAGE, 0x5a);
        } else {
            write_all(&msg, sizeof(msg));
        }
    }
}

static int dma(uint64_t addr, uint32_t len, uint8_t fill)
{
    for (int i = 0; i < MAX_REGIONS; i++) {
        Region *r = &regions[i];
        uint64_t first = (addr - r->iova) / PAGE;
        uint64_t last = (addr - r->iova + len - 1) / PAGE;

        if (addr < r->iova || addr + len > r->iova + r->size) {
            continue;
        }
        if (r->mem) {
            memset(r->mem + (addr - r->iova), fill, len);
            bitmap_set(r->dirty, first, last - first + 1);
        } else {
            dma_message(addr, len, fill);
        }
        return 0;
    }
    return -EFAULT;
}

static size_t report(int *error)
{
    ReportBody *b = (ReportBody *)body;
    size_t bytes = DIV_ROUND_UP(DIV_ROUND_UP(b->length, PAGE), 64) * 8;

    if (later && reports++ == lies_from) {
        mode = later;
    }
    *error = !strcmp(mode, "refuse") || !logging ? EIO : ENOENT;
    for (int i = 0; i < MAX_REGIONS; i++) {
        Region *r = &regions[i];

        if (*error == EIO || r->iova != b->iova || r->size != b->length) {
            continue;
        }
        *error = 0;
        memcpy(body + sizeof(*b), r->dirty, bytes);
        bitmap_zero(r->dirty, DIV_ROUND_UP(r->size, PAGE));
        if (!strcmp(mode, "mad")) {
            memset(body + sizeof(*b), 0xff, bytes);
        } else if (!strcmp(mode, "other")) {
            b->iova += PAGE;
        } else if (!strcmp(mode, "short")) {
            bytes = 0;
        } else if (!strcmp(mode, "long")) {
            bytes += 4096;
        } else if (!strcmp(mode, "end")) {
            exit(0);
        } else if (!strcmp(mode, "slow")) {
            mode = "log";
            sleep(SLOW_S);
        }
        return sizeof(*b) + bytes;
    }
    return 0;
}

static size_t feature(size_t len, int *error)
{
    ReportBody *b = (ReportBody *)body;
    uint32_t which = b->flags & VFIO_DEVICE_FEATURE_MASK;

    if (which < VFIO_DEVICE_FEATURE_DMA_LOGGING_START ||
        which > VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT) {
        *error = ENOTTY;
    } else if (!(b->flags & VFIO_DEVICE_FEATURE_PROBE)) {
        if (which == VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT) {
            return report(error);
        }
        logging = which == VFIO_DEVICE_FEATURE_DMA_LOGGING_START;
        for (int i = 0; i < MAX_REGIONS; i++) {
            if (regions[i].size) {
                bitmap_zero(regions[i].dirty,
                            DIV_ROUND_UP(regions[i].size, PAGE));
            }
        }
    }
    return len;
}

/* -------------------------------------------------------------- the device */

static void access_region(VFIOUserHdr *hdr)
{
    VFIOUserRegionRW *rw = (VFIOUserRegionRW *)(body - sizeof(*hdr));
    bool write = hdr->command == VFIO_USER_REGION_WRITE;
    uint8_t *at = rw->region == VFIO_PCI_CONFIG_REGION_INDEX
                  ? config : (uint8_t *)regs;
    size_t size = at == config ? sizeof(config) : sizeof(regs);

    if (rw->offset > size || rw->count > size - rw->offset) {
        reply(hdr, EINVAL, 0);
        return;
    }
    if (!write && at != config && rw->offset == TESTDEV_STATUS &&
        (!strcmp(mode, "flood") || !strcmp(mode, "ask"))) {
        flood();
    }
    if (!write) {
        memcpy(rw->data, at + rw->offset, rw->count);
        reply(hdr, 0, sizeof(*rw) - sizeof(*hdr) + rw->count);
        while (!strcmp(mode, "ask") && at != config &&
               rw->offset == TESTDEV_STATUS) {
            pause();
        }
        return;
    }
    if (!strcmp(mode, "message") && at == config && rw->offset == PCI_COMMAND &&
        (config[PCI_COMMAND] & ~rw->data[0] & PCI_COMMAND_MASTER)) {
        dma(regs[0] | (uint64_t)regs[1] << 32, regs[TESTDEV_LEN / 4],
            regs[TESTDEV_FILL / 4] + 1);
    }
    memcpy(at + rw->offset, rw->data, rw->count);
    if (at != config && rw->offset == TESTDEV_CMD) {
        if (!strcmp(mode, "fds")) {
            send_fd(sizeof(VFIOUserDMARW));
        }
        regs[TESTDEV_STATUS / 4] =
            dma(regs[0] | (uint64_t)regs[1] << 32, regs[TESTDEV_LEN / 4],
                regs[TESTDEV_FILL / 4]);
    }
    reply(hdr, 0, sizeof(*rw) - sizeof(*hdr));
}

static void region_info(VFIOUserHdr *hdr)
{
    RegionInfo *info = (RegionInfo *)body;

    info->argsz = sizeof(*info);
    info->cap_offset = info->offset = 0;
    info->size = info->index == 0 ? PAGE :
                 info->index == VFIO_PCI_CONFIG_REGION_INDEX ? 256 : 0;
    info->flags = info->size ? VFIO_REGION_INFO_FLAG_READ |
                               VFIO_REGION_INFO_FLAG_WRITE : 0;
    reply(hdr, 0, sizeof(*info));
}

static void handle(VFIOUserHdr *hdr, size_t len, int fd)
{
    struct vfio_device_info *info = (struct vfio_device_info *)body;
    struct vfio_irq_info *irq = (struct vfio_irq_info *)body;
    int error = 0;

    switch (hdr->command) {
    case VFIO_USER_VERSION:
        memset(body, 0, 4);
        memcpy(body + 4, VERSION_CAPS, sizeof(VERSION_CAPS));
        reply(hdr, 0, 4 + sizeof(VERSION_CAPS));
        break;
    case VFIO_USER_DMA_MAP:
        if (strstr(later ?: mode, "-map") && maps++ >= lies_from) {
            if (!strcmp(later ?: mode, "fds-map")) {
                send_fd(sizeof(VFIOUserDMARW));
            } else if (!strcmp(later ?: mode, "part-map")) {
                send_fd(sizeof(VFIOUserDMARW) - 1);
                /* that it be read by itself */
                usleep(100 * 1000);
                exit(0);
            }
            if (!strcmp(later ?: mode, "long-map")) {
                reply(hdr, 0, PAGE);
            } else if (strcmp(later ?: mode, "mute-map")) {
                reply(hdr, EACCES, 0);
            }
            break;
        }
        map(fd);
        reply(hdr, 0, 0);
        break;
    case VFIO_USER_DMA_UNMAP:
        unmap(*(uint64_t *)(body + 8));
        reply(hdr, 0, len);
        break;
    case VFIO_USER_DEVICE_GET_INFO:
        info->flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
        info->num_regions = VFIO_PCI_NUM_REGIONS;
        info->num_irqs = VFIO_PCI_NUM_IRQS;
        reply(hdr, 0, len);
        break;
    case VFIO_USER_DEVICE_GET_REGION_INFO:
        region_info(hdr);
        break;
    case VFIO_USER_DEVICE_GET_IRQ_INFO:
        irq->flags = irq->count = 0;
        reply(hdr, 0, sizeof(VFIOUserIRQInfo) - sizeof(*hdr));
        break;
    case VFIO_USER_REGION_READ:
    case VFIO_USER_REGION_WRITE:
        access_region(hdr);
        break;
    case VFIO_USER_DEVICE_SET_IRQS:
    case VFIO_USER_DEVICE_RESET:
        reply(hdr, 0, len);
        break;
    case VFIO_USER_DEVICE_FEATURE:
        /* the flags are where those of the information are */
        is_report = info->flags == (VFIO_DEVICE_FEATURE_GET |
                                    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT);
        len = feature(len, &error);
        reply(hdr, error, len);
        is_report = false;
        break;
    default:
        reply(hdr, ENOTSUP, 0);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    VFIOUserHdr hdr;

    if (argc < 2 || strlen(argv[1]) >= sizeof(addr.sun_path)) {
        errx(1, "usage: %s SOCKET [MODE]", argv[0]);
    }
    mode = argc > 2 ? argv[2] : mode;
    if (strchr(mode, ':')) {
        later = mode;
        lies_from = atoi(strchr(mode, ':') + 1);
        *strchr(mode, ':') = 0;
        mode = "log";
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    stw_le_p(config + PCI_VENDOR_ID, TESTDEV_VENDOR);
    stw_le_p(config + PCI_DEVICE_ID, TESTDEV_DEVICE);
    stw_le_p(config + PCI_CLASS_DEVICE, 0xff00);

    strcpy(addr.sun_path, argv[1]);
    if (bind(server, (struct sockaddr *)&addr, sizeof(addr)) ||
        listen(server, 1)) {
        err(1, "%s", argv[1]);
    }
    sock = accept(server, NULL, NULL);
    while (sock >= 0) {
        int fd = -1;

        if (!read_all(&hdr, sizeof(hdr), &fd) || hdr.size < sizeof(hdr) ||
            hdr.size - sizeof(hdr) > MAX_BODY ||
            !read_all(body, hdr.size - sizeof(hdr), NULL)) {
            break;
        }
        if ((hdr.flags & VFIO_USER_TYPE) == VFIO_USER_REPLY) {
            continue;
        }
        handle(&hdr, hdr.size - sizeof(hdr), fd);
    }
    return 0;
}
