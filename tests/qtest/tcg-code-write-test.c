/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A vCPU runs the code that another one has written, under TCG
 *
 * The guest (tcg-code-write/payload.S) changes a function over and over on one
 * vCPU, while another one calls it all the time and counts how often it ran
 * code from before a change that it has been told of.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/units.h"
#include "tcg-code-write/layout.h"
#include "tcg-code-write/payload.h"

#define POLL_US         1000
#define HANG_POLLS      100000

typedef struct Case {
    const char *path;
    const char *thread;
    unsigned mode;
    unsigned changes;           /* one thread takes 100 ms for each */
} Case;

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

    fd = g_file_open_tmp("tcg-code-write-XXXXXX", &name, &err);
    g_assert_no_error(err);
    g_assert_cmpint(write(fd, image, 64 * KiB), ==, 64 * KiB);
    close(fd);
    return name;
}

/* Return when the guest has made @n changes; bounded for a hang. */
static void wait_seen(QTestState *qts, uint32_t n)
{
    uint32_t last = 0;
    unsigned polls = 0;

    while (last < n) {
        uint32_t seen = qtest_readl(qts, SEEN);

        polls = seen == last ? polls + 1 : 0;
        if (polls == HANG_POLLS) {
            g_error("the guest hangs after change %u", seen);
        }
        last = seen;
        g_usleep(POLL_US);
    }
}

static void test_write(gconstpointer data)
{
    const Case *c = data;
    g_autofree char *bios = NULL;
    QTestState *qts;
    uint32_t old;

    if (!qtest_has_accel("tcg")) {
        g_test_skip("this QEMU is built without TCG");
        return;
    }
    if (!qtest_has_machine("pc")) {
        g_test_skip("machine pc is not built in");
        return;
    }
    bios = bios_create();
    qts = qtest_initf("-machine pc -accel tcg,thread=%s -smp 2 -m 16 "
                      "-nodefaults -cpu qemu64 -bios %s", c->thread, bios);
    qtest_writel(qts, MODE, c->mode);
    wait_seen(qts, c->changes);
    old = qtest_readl(qts, OLD);
    g_test_message("%u changes, after %u of them old code ran",
                   qtest_readl(qts, SEEN), old);
    qtest_quit(qts);
    unlink(bios);
    g_assert_cmpuint(old, ==, 0);
}

int main(int argc, char **argv)
{
    static const Case cases[] = {
        { "/tcg-code-write/store/multi", "multi", MODE_STORE, 1000 },
        { "/tcg-code-write/store/single", "single", MODE_STORE, 20 },
        { "/tcg-code-write/atomic/multi", "multi", MODE_ATOMIC, 1000 },
        { "/tcg-code-write/atomic/single", "single", MODE_ATOMIC, 20 },
    };

    g_test_init(&argc, &argv, NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        qtest_add_data_func(cases[i].path, &cases[i], test_write);
    }
    return g_test_run();
}
