/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An interrupt that VMRUN injects is delivered once under TCG
 *
 * The guest (svm-inject/payload.S) is a hypervisor that injects an interrupt
 * with each VMRUN and counts those that its nested guest took.  The test stops
 * and continues the machine meanwhile: so the vCPU is asked to leave its loop
 * at a moment when no interrupt is pending.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/units.h"
#include "svm-inject/layout.h"
#include "svm-inject/payload.h"

#define STOPS           300
#define ROUND_US        1000    /* about */
#define POLL_US         100
#define HANG_POLLS      1000000

static char *bios_create(void)
{
    static const uint8_t jump[] = { 0xea, 0x00, 0x00, 0x00, 0xf0 };
    g_autofree uint8_t *image = g_malloc0(64 * KiB);
    GError *err = NULL;
    char *name;
    int fd;

    QEMU_BUILD_BUG_ON(sizeof(payload) > 64 * KiB - 16);
    memcpy(image, payload, sizeof(payload));
    memcpy(image + 64 * KiB - 16, jump, sizeof(jump));  /* reset vector */

    fd = g_file_open_tmp("svm-inject-XXXXXX", &name, &err);
    g_assert_no_error(err);
    g_assert_cmpint(write(fd, image, 64 * KiB), ==, 64 * KiB);
    close(fd);
    return name;
}

/* Return when the guest has begun @n rounds more; bounded for a hang. */
static void wait_rounds(QTestState *qts, uint32_t n)
{
    uint32_t start = qtest_readl(qts, ROUNDS);
    unsigned polls = 0;

    while (qtest_readl(qts, ROUNDS) - start < n) {
        if (++polls == HANG_POLLS) {
            g_error("the guest hangs in round %u", start);
        }
        g_usleep(POLL_US);
    }
}

static void test_once(gconstpointer thread)
{
    g_autofree char *bios = NULL;
    QTestState *qts;
    uint32_t wrong;

    if (!qtest_has_accel("tcg")) {
        g_test_skip("this QEMU is built without TCG");
        return;
    }
    if (!qtest_has_machine("pc")) {
        g_test_skip("machine pc is not built in");
        return;
    }
    bios = bios_create();
    qts = qtest_initf("-machine pc -accel tcg,thread=%s -m 16 -nodefaults "
                      "-cpu qemu64,+svm -bios %s", (const char *)thread, bios);
    wait_rounds(qts, 1);
    for (unsigned i = 0; i < STOPS; i++) {
        qtest_qmp_assert_success(qts, "{ 'execute': 'stop' }");
        qtest_qmp_assert_success(qts, "{ 'execute': 'cont' }");
        /* Any point of the next round will do. */
        g_usleep(g_test_rand_int_range(0, ROUND_US));
    }
    wait_rounds(qts, 2);
    wrong = qtest_readl(qts, WRONG);
    g_test_message("%u stops, %u rounds: %u not with one interrupt", STOPS,
                   qtest_readl(qts, ROUNDS), wrong);
    g_assert_cmphex(qtest_readl(qts, BAD_EXIT), ==, 0);
    qtest_quit(qts);
    unlink(bios);
    g_assert_cmpuint(wrong, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_data_func("/svm-inject/once/multi", "multi", test_once);
    qtest_add_data_func("/svm-inject/once/single", "single", test_once);
    return g_test_run();
}
