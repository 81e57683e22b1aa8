/*
 * hint-poke: reach a device's register by a hint, from a Linux guest's user
 * space
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An example for the reference driver: the BARs of addr-hint-pci are mapped by
 * way of sysfs, the device whose register is wanted is found there, and the
 * register is read or written in the window, or written by a doorbell.
 *
 *   gcc -O2 -I include/hw/misc -o hint-poke contrib/addr-hint/hint-poke.c
 *   hint-poke 0000:00:05.0 0 4           read the register at 4 in BAR 0
 *   hint-poke 0000:00:05.0 0 4 0x1234    write it
 *   hint-poke -p 0000:00:05.0 0 4 7      write it by a doorbell
 *   hint-poke -n 100000 0000:00:05.0 0 4 read it so often; compare the times
 *
 * It needs the right to map PCI resources (root), and no driver may be bound to
 * addr-hint-pci.  It takes the whole device: only one may run at a time.
 */

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "addr-hint-driver.h"

#define SYSFS "/sys/bus/pci/devices/"

/* Where the BARs of addr-hint-pci are mapped */
struct bars {
    uint8_t *regs;
    uint8_t *bells;
    uint8_t *window;
};

struct request {
    const char *device;
    unsigned int bar;
    uint64_t offset;
    bool write;
    uint32_t value;
    bool posted;
    unsigned long count;
};

static void fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("hint-poke: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static uint32_t load(const uint8_t *place)
{
    /* volatile: each access reaches the device, once */
    return *(const volatile uint32_t *)place;
}

static void store(uint8_t *place, uint32_t value)
{
    /* volatile: as above */
    *(volatile uint32_t *)place = value;
}

static uint32_t register_read(void *opaque, unsigned int offset)
{
    struct bars *bars = opaque;

    return load(bars->regs + offset);
}

static void register_write(void *opaque, unsigned int offset, uint32_t value)
{
    struct bars *bars = opaque;

    store(bars->regs + offset, value);
}

static uint64_t number(const char *text, uint64_t limit)
{
    int64_t value;
    char rest;

    /* decimal, or hexadecimal after 0x; a line's end may follow */
    if (sscanf(text, "%" SCNi64 " %c", &value, &rest) != 1 || value < 0 ||
        (uint64_t)value > limit) {
        fail("%.*s is no number of 0 to %" PRIu64,
             (int)strcspn(text, "\n"), text, limit);
    }
    return value;
}

/* Read a file of sysfs that has one number in it. */
static unsigned long read_number(const char *path)
{
    char text[32] = "";
    FILE *file = fopen(path, "r");

    if (!file || !fgets(text, sizeof(text), file)) {
        fail("%s: %s", path, strerror(errno));
    }
    fclose(file);
    return number(text, UINT32_MAX);
}

/* Find the directory of the first addr-hint-pci in sysfs. */
static void find_hint_device(char *found, size_t size)
{
    char path[512];
    glob_t all;

    if (glob(SYSFS "*", 0, NULL, &all)) {
        fail("there is no PCI device");
    }
    for (size_t i = 0; i < all.gl_pathc; i++) {
        snprintf(path, sizeof(path), "%s/vendor", all.gl_pathv[i]);
        if (read_number(path) != ADDR_HINT_PCI_VENDOR) {
            continue;
        }
        snprintf(path, sizeof(path), "%s/device", all.gl_pathv[i]);
        if (read_number(path) == ADDR_HINT_PCI_DEVICE) {
            snprintf(found, size, "%s", all.gl_pathv[i]);
            globfree(&all);
            return;
        }
    }
    fail("there is no addr-hint-pci");
}

/* Let the function decode its memory BARs. */
static void enable(const char *folder)
{
    char path[512];
    int fd;

    snprintf(path, sizeof(path), "%s/enable", folder);
    if (read_number(path)) {
        return;
    }
    fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, "1", 1) != 1) {
        fail("%s: %s", path, strerror(errno));
    }
    close(fd);
}

static uint8_t *map_bar(const char *folder, unsigned int bar)
{
    char path[512];
    struct stat info;
    void *place;
    int fd;

    snprintf(path, sizeof(path), "%s/resource%u", folder, bar);
    fd = open(path, O_RDWR | O_SYNC);
    if (fd < 0 || fstat(fd, &info)) {
        fail("%s: %s", path, strerror(errno));
    }
    place = mmap(NULL, info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                 0);
    if (place == MAP_FAILED) {
        fail("%s: cannot map it: %s", path, strerror(errno));
    }
    /* kept open until the end: BAR 0 carries the lock */
    if (bar == ADDR_HINT_BAR_REGISTERS && flock(fd, LOCK_EX)) {
        fail("%s: %s", path, strerror(errno));
    }
    return place;
}

/* The guest physical address of a register, as sysfs tells it */
static uint64_t bar_address(const char *folder, unsigned int bar,
                            uint64_t offset)
{
    uint64_t start = 0, end = 0;
    char path[512], line[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/resource", folder);
    file = fopen(path, "r");
    if (!file) {
        fail("%s: %s", path, strerror(errno));
    }
    for (unsigned int i = 0; i <= bar; i++) {
        start = end = 0;
        if (!fgets(line, sizeof(line), file) ||
            sscanf(line, "%" SCNx64 " %" SCNx64, &start, &end) != 2) {
            fail("%s: it has no BAR %u", folder, bar);
        }
    }
    fclose(file);
    if (!start || offset + 4 < offset || offset + 4 > end - start + 1) {
        fail("%s: BAR %u has no register at 0x%" PRIx64, folder, bar, offset);
    }
    return start + offset;
}

static const char *status_text(uint32_t status)
{
    static const char *const texts[ADDR_HINT_STATUS_END] = {
        [ADDR_HINT_BAD_COMMAND] = "no such command",
        [ADDR_HINT_BAD_REQUEST] = "the request makes no sense",
        [ADDR_HINT_NO_DEVICE] = "no device is there",
        [ADDR_HINT_MEMORY] = "it is memory",
        [ADDR_HINT_IOMMU] = "it is behind an IOMMU",
        [ADDR_HINT_SPANS] = "it belongs to more than one region",
        [ADDR_HINT_IS_HINT] = "it belongs to a device that gives hints",
        [ADDR_HINT_FULL] = "all hints are in use",
        [ADDR_HINT_NO_DOORBELL] = "all doorbells are in use",
        [ADDR_HINT_BAD_HINT] = "no such hint",
        [ADDR_HINT_STALE] = "the device has gone",
    };

    return status < ADDR_HINT_STATUS_END && texts[status] ? texts[status]
                                                          : "unknown status";
}

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* Read a register so often; return the time of one read in ns. */
static double time_reads(const uint8_t *place, unsigned long count)
{
    double start = seconds();

    for (unsigned long i = 0; i < count; i++) {
        load(place);
    }
    return (seconds() - start) * 1e9 / count;
}

static void compare(const struct request *r, const char *folder,
                    const uint8_t *hinted)
{
    const uint8_t *plain = map_bar(folder, r->bar) + r->offset;
    double plain_ns = time_reads(plain, r->count);
    double hinted_ns = time_reads(hinted, r->count);

    printf("%lu reads each: %.0f ns at the address, %.0f ns by the hint\n",
           r->count, plain_ns, hinted_ns);
}

static void poke(const struct request *r, struct ahint_device *dev,
                 struct bars *bars)
{
    uint8_t *place;
    char folder[128];
    struct ahint hint = { 0 };
    uint32_t status;
    uint64_t address;

    snprintf(folder, sizeof(folder), SYSFS "%.64s", r->device);
    address = bar_address(folder, r->bar, r->offset);
    enable(folder);
    status = r->posted ? ahint_get_posted(dev, address, 4, r->value, &hint)
                       : ahint_get(dev, address, 4, &hint);
    if (status != ADDR_HINT_OK) {
        fail("no hint for 0x%" PRIx64 ": %s (status %" PRIu32 ")", address,
             status_text(status), status);
    }
    place = bars->window + hint.window;
    if (r->posted) {
        store(bars->bells + hint.doorbell, 1);
        /* it is answered some time later, and not after the hint is put */
        usleep(100 * 1000);
    } else if (r->count) {
        compare(r, folder, place);
    } else if (r->write) {
        store(place, r->value);
    } else {
        printf("0x%08" PRIx32 "\n", load(place));
    }
    ahint_put(dev, hint.index);
}

static void usage(void)
{
    fputs("usage: hint-poke [-n COUNT | -p] DEVICE BAR OFFSET [VALUE]\n"
          "DEVICE as in " SYSFS "; -p: write VALUE by a doorbell; -n: read\n"
          "COUNT times at the address and by the hint, and print the times\n",
          stderr);
    exit(2);
}

static struct request parse(int argc, char **argv)
{
    struct request r = { 0 };
    int option;

    while ((option = getopt(argc, argv, "n:p")) != -1) {
        if (option == 'n') {
            r.count = number(optarg, UINT32_MAX);
        } else if (option == 'p') {
            r.posted = true;
        } else {
            usage();
        }
    }
    argc -= optind;
    argv += optind;
    if (argc < 3 || argc > 4 || strchr(argv[0], '/')) {
        usage();
    }
    r.device = argv[0];
    r.bar = number(argv[1], 5);
    r.offset = number(argv[2], INT64_MAX);
    r.write = argc == 4;
    r.value = r.write ? number(argv[3], UINT32_MAX) : 0;
    if ((r.posted && (!r.write || r.count)) || (r.write && r.count) ||
        r.offset & 3) {
        usage();
    }
    return r;
}

int main(int argc, char **argv)
{
    struct request r = parse(argc, argv);
    char folder[256];
    struct bars bars;
    struct ahint_device dev = {
        .read = register_read,
        .write = register_write,
        .opaque = &bars,
    };

    find_hint_device(folder, sizeof(folder));
    enable(folder);
    bars.regs = map_bar(folder, ADDR_HINT_BAR_REGISTERS);
    bars.bells = map_bar(folder, ADDR_HINT_BAR_DOORBELLS);
    bars.window = map_bar(folder, ADDR_HINT_BAR_WINDOW);
    if (ahint_open(&dev)) {
        fail("%s: no addr-hint-pci that this program knows", folder);
    }
    poke(&r, &dev, &bars);
    return 0;
}
