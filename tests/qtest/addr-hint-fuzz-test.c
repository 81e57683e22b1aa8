/*
 * QTest: addr-hint-pci, used at random
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest that knows the device and means no good: requests for what is there,
 * what is not and what may not be, accesses anywhere in the window, doorbells,
 * BARs that move, resets, devices that are unplugged, the VM stopped and saved.
 * QEMU must survive it, and what the device says of itself must agree with
 * what it answered.
 *
 * HOTPATH_SEED replays a run, HOTPATH_FUZZ_STEPS makes it longer.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "hw/misc/addr-hint-regs.h"
#include "hw/pci/pci_regs.h"
#include "libqos/pci-pc.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define PAGE 4096
#define NR_HINTS 24             /* of a window of 32 pages */
#define NR_DOORBELLS 6
#define BARS_AT 0xe0000000u
#define BAR_STEP 0x1000000u     /* each function has 16 MiB to itself */
#define EJECT_PORT 0xae08

enum { HINT = 4, OTHER_HINT, TESTDEV, RNG, NIC, FIRST_SLOT = HINT,
       LAST_SLOT = NIC };

typedef struct Fuzz {
    QTestState *qts;
    QPCIBus *bus;
    GRand *rand;
    bool used[NR_HINTS];
    bool nic_there;
    unsigned given;
    unsigned refused;
} Fuzz;

static uint32_t pick(Fuzz *f, uint32_t below)
{
    return g_rand_int_range(f->rand, 0, below);
}

static bool chance(Fuzz *f, unsigned percent)
{
    return pick(f, 100) < percent;
}

static uint64_t random64(Fuzz *f)
{
    return (uint64_t)g_rand_int(f->rand) << 32 | g_rand_int(f->rand);
}

static uint64_t bar_addr(unsigned slot, unsigned bar)
{
    return BARS_AT + (slot - FIRST_SLOT) * BAR_STEP + bar * 0x200000;
}

static void config_writel(Fuzz *f, unsigned slot, unsigned reg, uint32_t val)
{
    f->bus->config_writel(f->bus, QPCI_DEVFN(slot, 0), reg, val);
}

static void map_slot(Fuzz *f, unsigned slot)
{
    for (unsigned bar = 0; bar < 6; bar++) {
        /* the second half of one with 64 bits is 0 */
        config_writel(f, slot, PCI_BASE_ADDRESS_0 + 4 * bar,
                      slot == RNG && bar == 5 ? 0 : bar_addr(slot, bar));
    }
    f->bus->config_writew(f->bus, QPCI_DEVFN(slot, 0), PCI_COMMAND,
                          PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static uint32_t reg_read(Fuzz *f, unsigned offset)
{
    return qtest_readl(f->qts, bar_addr(HINT, ADDR_HINT_BAR_REGISTERS) +
                       offset);
}

static void reg_write(Fuzz *f, unsigned offset, uint32_t value)
{
    qtest_writel(f->qts, bar_addr(HINT, ADDR_HINT_BAR_REGISTERS) + offset,
                 value);
}

/*
 * Requests
 */

static uint64_t random_place(Fuzz *f)
{
    static const uint64_t places[] = {
        0, 0x9fff8, 0xa0000, 0xc0000, 0x100000,         /* RAM, ROM, a hole */
        0xfec00000, 0xfed00000, 0xfee00000,             /* the chip set */
        0xfffffff8, 0x100000000, INT64_MAX, UINT64_MAX - 3,
    };
    uint64_t place;

    if (chance(f, 5)) {
        return random64(f);
    }
    if (chance(f, 60)) {        /* one that may have a hint */
        place = bar_addr(TESTDEV + pick(f, 3), 0);
        place = place == bar_addr(RNG, 0) ? bar_addr(RNG, 4) : place;
    } else if (chance(f, 70)) {
        place = bar_addr(FIRST_SLOT + pick(f, LAST_SLOT - FIRST_SLOT + 1),
                         pick(f, 5));
    } else {
        place = places[pick(f, ARRAY_SIZE(places))];
    }
    if (chance(f, 40)) {
        place += pick(f, 4) * PAGE;
    }
    return place + (chance(f, 50) ? pick(f, 64) * 4 : pick(f, 16) - 8);
}

static uint32_t random_length(Fuzz *f)
{
    static const uint32_t lengths[] = {
        0, 1, 2, 3, 4, 4, 4, 8, 8, 16, 64, PAGE - 1, PAGE, PAGE, PAGE + 1,
        INT32_MAX, UINT32_MAX,
    };

    return lengths[pick(f, ARRAY_SIZE(lengths))];
}

static void random_parameters(Fuzz *f)
{
    uint64_t place = random_place(f);
    uint64_t data = chance(f, 70) ? pick(f, 256) : random64(f);

    reg_write(f, ADDR_HINT_REG_ADDR_LO, place);
    reg_write(f, ADDR_HINT_REG_ADDR_HI, place >> 32);
    reg_write(f, ADDR_HINT_REG_LENGTH, random_length(f));
    reg_write(f, ADDR_HINT_REG_FLAGS, chance(f, 90) ? pick(f, 2)
                                                    : g_rand_int(f->rand));
    reg_write(f, ADDR_HINT_REG_DATA_LO, data);
    reg_write(f, ADDR_HINT_REG_DATA_HI, data >> 32);
}

static unsigned count_used(Fuzz *f)
{
    unsigned count = 0;

    for (unsigned i = 0; i < NR_HINTS; i++) {
        count += f->used[i];
    }
    return count;
}

/* Make a command and hold its outcome against what must be so. */
static void command(Fuzz *f, uint32_t command)
{
    uint32_t before = reg_read(f, ADDR_HINT_REG_HINT), status, hint;
    bool in_use = before < NR_HINTS && f->used[before];

    reg_write(f, ADDR_HINT_REG_COMMAND, command);
    status = reg_read(f, ADDR_HINT_REG_STATUS);
    hint = reg_read(f, ADDR_HINT_REG_HINT);
    g_assert_cmpuint(status, <, ADDR_HINT_STATUS_END);
    switch (command) {
    case ADDR_HINT_CMD_REGISTER:
        if (status == ADDR_HINT_OK) {
            g_assert_cmpuint(hint, <, NR_HINTS);
            g_assert_false(f->used[hint]);
            f->used[hint] = true;
            f->given++;
        } else {
            g_assert_cmpuint(hint, ==, before);
            g_assert_true(status != ADDR_HINT_FULL ||
                          count_used(f) == NR_HINTS);
            f->refused++;
        }
        break;
    case ADDR_HINT_CMD_RELEASE:
        g_assert_cmpuint(status, ==, in_use ? ADDR_HINT_OK
                                            : ADDR_HINT_BAD_HINT);
        if (in_use) {
            f->used[before] = false;
        }
        break;
    case ADDR_HINT_CMD_QUERY:
        g_assert_cmpint(status == ADDR_HINT_BAD_HINT, ==, !in_use);
        break;
    case ADDR_HINT_CMD_RELEASE_ALL:
        g_assert_cmpuint(status, ==, ADDR_HINT_OK);
        memset(f->used, 0, sizeof(f->used));
        break;
    default:
        g_assert_cmpuint(status, ==, ADDR_HINT_BAD_COMMAND);
        break;
    }
}

static void step_request(Fuzz *f)
{
    random_parameters(f);
    command(f, ADDR_HINT_CMD_REGISTER);
}

static void step_other_command(Fuzz *f)
{
    reg_write(f, ADDR_HINT_REG_HINT, chance(f, 90) ? pick(f, NR_HINTS + 2)
                                                   : g_rand_int(f->rand));
    command(f, chance(f, 60) ? ADDR_HINT_CMD_RELEASE
               : chance(f, 80) ? ADDR_HINT_CMD_QUERY
               : chance(f, 30) ? ADDR_HINT_CMD_RELEASE_ALL
               : MAX(g_rand_int(f->rand), ADDR_HINT_CMD_RELEASE_ALL + 1));
}

/*
 * Accesses
 */

static void access_any(Fuzz *f, uint64_t addr)
{
    uint64_t value = chance(f, 50) ? pick(f, 256) : random64(f);

    switch (pick(f, 8)) {
    case 0:
        qtest_readb(f->qts, addr);
        break;
    case 1:
        qtest_readw(f->qts, addr);
        break;
    case 2:
        qtest_readl(f->qts, addr);
        break;
    case 3:
        qtest_readq(f->qts, addr);
        break;
    case 4:
        qtest_writeb(f->qts, addr, value);
        break;
    case 5:
        qtest_writew(f->qts, addr, value);
        break;
    case 6:
        qtest_writel(f->qts, addr, value);
        break;
    default:
        qtest_writeq(f->qts, addr, value);
        break;
    }
}

static void step_window(Fuzz *f)
{
    uint64_t offset = pick(f, 33) * PAGE +
                      (chance(f, 50) ? pick(f, 64) * 4 : pick(f, PAGE));

    access_any(f, bar_addr(HINT, ADDR_HINT_BAR_WINDOW) + offset -
                  (chance(f, 5) ? 4 : 0));
}

static void step_block(Fuzz *f)
{
    uint8_t data[256];

    for (int i = 0; i < ARRAY_SIZE(data); i++) {
        data[i] = pick(f, 256);
    }
    qtest_memwrite(f->qts, bar_addr(HINT, ADDR_HINT_BAR_WINDOW) +
                           pick(f, 32 * PAGE), data, 1 + pick(f, 255));
}

static void step_doorbell(Fuzz *f)
{
    access_any(f, bar_addr(HINT, ADDR_HINT_BAR_DOORBELLS) +
                  (chance(f, 80) ? pick(f, NR_DOORBELLS + 2) * 4
                                 : pick(f, PAGE)));
}

/* Anything in the registers but COMMAND, which command() must know of */
static void step_registers(Fuzz *f)
{
    unsigned offset = chance(f, 80) ? pick(f, 16) * 4 : pick(f, PAGE);

    if (offset + 8 <= ADDR_HINT_REG_COMMAND ||
        offset >= ADDR_HINT_REG_COMMAND + 4) {
        access_any(f, bar_addr(HINT, ADDR_HINT_BAR_REGISTERS) + offset);
    }
}

static void step_target(Fuzz *f)
{
    access_any(f, bar_addr(TESTDEV + pick(f, 3), pick(f, 5)) + pick(f, PAGE));
}

/*
 * What the guest does to the machine
 */

/*
 * A page where BARs may go: over one another, over memory, over the window if
 * they are not the device's own, but not over the registers and the doorbells,
 * or the accesses that the test knows of would reach others.
 */
static uint32_t random_page(Fuzz *f, bool over_window)
{
    uint32_t page = random_place(f) & ~0xfff;
    uint32_t window = bar_addr(HINT, ADDR_HINT_BAR_WINDOW);

    if (page - BARS_AT >= BAR_STEP) {
        return page;
    }
    return over_window ? window + pick(f, 32) * PAGE : 0xd0000000;
}

static void step_topology(Fuzz *f)
{
    unsigned slot = OTHER_HINT + pick(f, LAST_SLOT - OTHER_HINT + 1);
    unsigned bar = pick(f, 5);

    if (chance(f, 50)) {
        map_slot(f, slot);
    } else if (chance(f, 50)) {
        f->bus->config_writew(f->bus, QPCI_DEVFN(slot, 0), PCI_COMMAND,
                              pick(f, 8));
    } else {
        config_writel(f, slot, PCI_BASE_ADDRESS_0 + 4 * bar,
                      random_page(f, true));
    }
}

/* The hint device's own BARs go away and come back. */
static void step_own_topology(Fuzz *f)
{
    unsigned bar = pick(f, 3);

    config_writel(f, HINT, PCI_BASE_ADDRESS_0 + 4 * bar,
                  random_page(f, false));
    step_window(f);
    step_doorbell(f);
    map_slot(f, HINT);
}

static void step_reset(Fuzz *f)
{
    qtest_system_reset(f->qts);
    memset(f->used, 0, sizeof(f->used));
    for (unsigned slot = FIRST_SLOT; slot <= LAST_SLOT; slot++) {
        map_slot(f, slot);
    }
}

static void step_stop(Fuzz *f)
{
    qtest_qmp_assert_success(f->qts, "{ 'execute': 'stop' }");
    step_doorbell(f);
    step_request(f);
    step_doorbell(f);
    qtest_qmp_assert_success(f->qts, "{ 'execute': 'cont' }");
}

static void step_unplug(Fuzz *f)
{
    if (f->nic_there) {
        qtest_qmp_device_del_send(f->qts, "nic");
        qtest_outl(f->qts, EJECT_PORT, 1u << NIC);
        qtest_qmp_eventwait(f->qts, "DEVICE_DELETED");
    } else {
        qtest_qmp_device_add(f->qts, "e1000", "nic",
                             "{ 'addr': '08.0', 'romfile': '' }");
        map_slot(f, NIC);
    }
    f->nic_there = !f->nic_there;
}

/* Everything that the device tells of itself */
static void check(Fuzz *f)
{
    QDict *response = qtest_qmp(f->qts, "{ 'execute': 'query-stats', "
        "'arguments': { 'target': 'vm', "
        "'providers': [ { 'provider': 'hotpath', "
        "                 'names': [ 'addr-hint-registered' ] } ] } }");
    QList *results = qdict_get_qlist(response, "return");
    QDict *result = qobject_to(QDict, qlist_peek(results));
    QDict *stat = qobject_to(QDict,
                             qlist_peek(qdict_get_qlist(result, "stats")));
    g_autofree char *info = qtest_hmp(f->qts, "info addr-hints");

    g_assert_cmpuint(qdict_get_int(stat, "value"), ==, count_used(f));
    g_assert_nonnull(strstr(info, "hints in use"));
    g_assert_cmphex(reg_read(f, ADDR_HINT_REG_MAGIC), ==, ADDR_HINT_MAGIC);
    g_assert_cmpuint(reg_read(f, ADDR_HINT_REG_HINTS), ==, NR_HINTS);
    qobject_unref(response);
}

static const struct {
    void (*step)(Fuzz *f);
    unsigned weight;
} steps[] = {
    { step_request, 240 }, { step_other_command, 120 }, { step_window, 350 },
    { step_block, 20 }, { step_doorbell, 80 }, { step_registers, 50 },
    { step_target, 60 }, { step_topology, 30 }, { step_own_topology, 8 },
    { step_unplug, 6 }, { step_stop, 4 }, { step_reset, 2 }, { check, 10 },
};

static void random_step(Fuzz *f)
{
    unsigned sum = 0, n;

    for (int i = 0; i < ARRAY_SIZE(steps); i++) {
        sum += steps[i].weight;
    }
    n = pick(f, sum);
    for (int i = 0; i < ARRAY_SIZE(steps); i++) {
        if (n < steps[i].weight) {
            steps[i].step(f);
            return;
        }
        n -= steps[i].weight;
    }
}

static uint32_t from_environment(const char *name, uint32_t otherwise)
{
    const char *given = g_getenv(name);

    if (given) {
        g_assert_cmpint(qemu_strtoui(given, NULL, 0, &otherwise), ==, 0);
    }
    return otherwise;
}

static void test_fuzz(const void *options)
{
    uint32_t seed = from_environment("HOTPATH_SEED", g_random_int());
    uint32_t count = from_environment("HOTPATH_FUZZ_STEPS", 6000);
    Fuzz f = {
        .qts = qtest_initf("-machine pc -nodefaults -m 32M "
                           "-device addr-hint-pci,addr=04.0,hints=%u,"
                           "doorbells=%u%s "
                           "-device addr-hint-pci,addr=05.0,hints=4 "
                           "-device pci-testdev,addr=06.0 "
                           "-device virtio-rng-pci,addr=07.0,"
                           "disable-legacy=on "
                           "-device e1000,id=nic,addr=08.0,romfile=",
                           NR_HINTS, NR_DOORBELLS, (const char *)options),
        .rand = g_rand_new_with_seed(seed),
        .nic_there = true,
    };

    g_test_message("seed %u, %u steps (HOTPATH_SEED=%u HOTPATH_FUZZ_STEPS=%u "
                   "replays it)", seed, count, seed, count);
    f.bus = qpci_new_pc(f.qts, NULL);
    for (unsigned slot = FIRST_SLOT; slot <= LAST_SLOT; slot++) {
        map_slot(&f, slot);
    }
    for (uint32_t i = 0; i < count; i++) {
        random_step(&f);
    }
    check(&f);
    g_test_message("%u hints given, %u refused", f.given, f.refused);
    g_assert_cmpuint(f.given, >, 0);
    g_assert_cmpuint(f.refused, >, 0);
    g_rand_free(f.rand);
    qpci_free_pc(f.bus);
    qtest_quit(f.qts);
}

static void test_none(void)
{
    g_test_skip("machine pc or one of the devices is not built in");
}

int main(int argc, char **argv)
{
    static const char *const needed[] = {
        "addr-hint-pci", "pci-testdev", "virtio-rng-pci", "e1000",
    };
    bool all = qtest_has_machine("pc");

    g_test_init(&argc, &argv, NULL);
    for (int i = 0; all && i < ARRAY_SIZE(needed); i++) {
        all = qtest_has_device(needed[i]);
    }
    if (!all) {
        qtest_add_func("/addr-hint-fuzz/none", test_none);
        return g_test_run();
    }
    qtest_add_data_func("/addr-hint-fuzz/plain", "", test_fuzz);
    qtest_add_data_func("/addr-hint-fuzz/allow-dma", ",allow-dma=on",
                        test_fuzz);
    return g_test_run();
}
