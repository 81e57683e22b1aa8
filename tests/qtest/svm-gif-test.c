/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A vCPU's flags are not changed by another one's FPU instructions under TCG
 *
 * The guest (svm-gif/payload.S) clears and sets the global interrupt flag on
 * vCPU 0 over and over, and tells from an interrupt that is pending whether the
 * flag is what it was made.  vCPU 1 loads its FPU's environment meanwhile.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/units.h"
#include "svm-gif/layout.h"
#include "svm-gif/payload.h"

#define ENOUGH          200000
#define POLL_US         1000
#define HANG_POLLS      100000

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

    fd = g_file_open_tmp("svm-gif-XXXXXX", &name, &err);
    g_assert_no_error(err);
    g_assert_cmpint(write(fd, image, 64 * KiB), ==, 64 * KiB);
    close(fd);
    return name;
}

/* Return when vCPU 0 has made enough rounds; bounded for a hang. */
static void wait_rounds(QTestState *qts)
{
    uint32_t last = 0;
    unsigned polls = 0;

    while (last < ENOUGH) {
        uint32_t rounds = qtest_readl(qts, ROUNDS);

        polls = rounds == last ? polls + 1 : 0;
        if (polls == HANG_POLLS) {
            g_error("the guest hangs in round %u", rounds);
        }
        last = rounds;
        g_usleep(POLL_US);
    }
}

static void test_fpu(void)
{
    g_autofree char *bios = NULL;
    QTestState *qts;
    uint32_t early, lost;

    if (!qtest_has_accel("tcg")) {
        g_test_skip("this QEMU is built without TCG");
        return;
    }
    if (!qtest_has_machine("pc")) {
        g_test_skip("machine pc is not built in");
        return;
    }
    bios = bios_create();
    qts = qtest_initf("-machine pc -accel tcg,thread=multi -smp 2 -m 16"
                      " -nodefaults -cpu qemu64,+svm -bios %s", bios);
    wait_rounds(qts);
    early = qtest_readl(qts, EARLY);
    lost = qtest_readl(qts, LOST);
    g_test_message("%u rounds, %u loads: %u interrupts early, %u late",
                   qtest_readl(qts, ROUNDS), qtest_readl(qts, LOADS), early,
                   lost);
    g_assert_cmpuint(qtest_readl(qts, LOADS), >, 0);
    qtest_quit(qts);
    unlink(bios);
    g_assert_cmpuint(early, ==, 0);
    g_assert_cmpuint(lost, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/svm-gif/fpu", test_fpu);
    return g_test_run();
}
