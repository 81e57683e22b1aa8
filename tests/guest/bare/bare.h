/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a payload in C uses: ports, PCI configuration, memory, output. */
#ifndef BARE_H
#define BARE_H

#include <stdbool.h>
#include <stdint.h>

#define PAYLOAD __attribute__((section(".text.payload")))

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Configuration registers of a device on bus 0 */
static inline void config_write(unsigned slot, unsigned reg, uint32_t value)
{
    outl(0xcf8, 0x80000000u | slot << 11 | reg);
    outl(0xcfc, value);
}

static inline uint32_t config_read(unsigned slot, unsigned reg)
{
    outl(0xcf8, 0x80000000u | slot << 11 | reg);
    return inl(0xcfc);
}

static inline uint32_t read32(uintptr_t addr)
{
    return *(volatile uint32_t *)addr;
}

static inline void write32(uintptr_t addr, uint32_t value)
{
    *(volatile uint32_t *)addr = value;
}

static inline uint16_t read16(uintptr_t addr)
{
    return *(volatile uint16_t *)addr;
}

static inline void write16(uintptr_t addr, uint16_t value)
{
    *(volatile uint16_t *)addr = value;
}

static inline uint8_t read8(uintptr_t addr)
{
    return *(volatile uint8_t *)addr;
}

static inline void write8(uintptr_t addr, uint8_t value)
{
    *(volatile uint8_t *)addr = value;
}

/* Write the line "KEY HEX" to the debug console. */
static inline void say(const char *key, uint32_t value)
{
    while (*key) {
        outb(0xe9, *key++);
    }
    outb(0xe9, ' ');
    for (int shift = 28; shift >= 0; shift -= 4) {
        outb(0xe9, "0123456789abcdef"[value >> shift & 15]);
    }
    outb(0xe9, '\n');
}

/* Wait until a register has a value; return the value it has. */
static inline uint32_t wait32(uintptr_t addr, uint32_t value)
{
    for (unsigned i = 0; i < 2000000 && read32(addr) != value; i++) {
        __asm__ volatile("pause");
    }
    return read32(addr);
}

#endif
