/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes CYLINDERS cylinders of a floppy disk through the controller's data
 * port, as a driver does that has no DMA: it looks at the main status register
 * before each byte.  Reads them back, and reports what was wrong.
 */
#include "bare.h"

#define FDC 0x3f0
#define DOR (FDC + 2)
#define MSR (FDC + 4)
#define FIFO (FDC + 5)

#define RQM 0x80
#define DIO 0x40

#define SECTORS 18
#define BYTES (2 * SECTORS * 512)

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static uint8_t pattern(uint32_t n)
{
    return (n * 0x9e3779b9u) >> 24;
}

static void wait_ready(uint8_t dio)
{
    while ((inb(MSR) & (RQM | DIO)) != (RQM | dio)) {
    }
}

static void put(uint8_t byte)
{
    wait_ready(0);
    outb(FIFO, byte);
}

static uint8_t get(void)
{
    wait_ready(DIO);
    return inb(FIFO);
}

/* Both sides of a cylinder */
static void command(uint8_t code, uint8_t cylinder)
{
    put(code);
    put(0);
    put(cylinder);
    put(0);
    put(1);
    put(2);
    put(SECTORS);
    put(0x1b);
    put(0xff);
}

/* Returns how many of the result bytes say that something went wrong. */
static uint32_t results(void)
{
    uint32_t bad = (get() & 0xc0) != 0;

    bad += get() != 0;
    bad += get() != 0;
    for (int i = 0; i < 4; i++) {
        get();
    }
    return bad;
}

PAYLOAD void payload(void)
{
    uint32_t bad = 0, wrong = 0;

    outb(DOR, 0x14);
    for (uint32_t c = 0; c < CYLINDERS; c++) {
        command(0xc5, c);
        for (uint32_t i = 0; i < BYTES; i++) {
            put(pattern(c * BYTES + i));
        }
        bad += results();
        say("written", c + 1);
    }
    for (uint32_t c = 0; c < CYLINDERS; c++) {
        command(0xe6, c);
        for (uint32_t i = 0; i < BYTES; i++) {
            wrong += get() != pattern(c * BYTES + i);
        }
        bad += results();
    }
    say("bad", bad);
    say("wrong", wrong);
    say("end", 0);
}
