# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/fuzz with a fuzzer that is a shell script; what fuzz-seeds writes."""
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / 'scripts'
GOOD = """#!/bin/sh
echo "$@" >> {tmp}/calls
echo '#9 NEW    cov: 77 ft: 9 corp: 3/4b'
echo 'stat::number_of_executed_units: 1234'
"""
BAD = """#!/bin/sh
for word; do case $word in -artifact_prefix=*)
    echo input > "${{word#-artifact_prefix=}}crash-0123" ;; esac; done
echo '==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x1'
echo 'SUMMARY: AddressSanitizer: heap-use-after-free'
exit 77
"""


class Fuzz(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        (self.tmp / 'scripts').mkdir()
        for name in 'fuzz', 'fuzz-seeds':
            shutil.copy(SCRIPTS / name, self.tmp / 'scripts')
        self.out = self.tmp / 'build' / 'out-fuzz'
        self.out.mkdir(parents=True)

    def program(self, text):
        path = self.out / 'qemu-fuzz-x86_64'
        path.write_text(text.format(tmp=self.tmp))
        path.chmod(0o755)

    def fuzz(self, *args):
        return subprocess.run(
            [self.tmp / 'scripts' / 'fuzz', *map(str, args)], text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)

    def test_all_entries(self):
        self.program(GOOD)
        done = self.fuzz('--seed', 42, 7)
        self.assertEqual(done.returncode, 0, done.stdout)
        calls = (self.tmp / 'calls').read_text().splitlines()
        self.assertEqual([call.split()[0] for call in calls], [
            f'--fuzz-target=generic-fuzz-{name}' for name in (
                'addr-hint-pci', 'ondemand-mem-pci', 'virtio-serial-zpipe')])
        for call in calls:
            self.assertIn('-seed=42 -max_total_time=7 ', call)
        self.assertIn('ondemand-mem-pci for 7 seconds, seed 42', done.stdout)
        self.assertIn('no error in 1234 inputs, coverage 77', done.stdout)

    def test_new_seed(self):
        self.program(GOOD)
        seeds = {self.fuzz(1, 'x').stdout.split('seed ')[1].split()[0]
                 for _ in range(5)}
        self.assertGreater(len(seeds), 1)

    def test_crash(self):
        """The input is kept and named, the other entries run, it fails."""
        self.program(BAD)
        done = self.fuzz(1, 'one', 'two')
        self.assertEqual(done.returncode, 1)
        for name in 'one', 'two':
            self.assertIn(f'{name}: FAILED with status 77', done.stdout)
            kept = self.tmp / 'build' / 'fuzz' / name / 'crash-0123'
            self.assertTrue(kept.exists())
            self.assertIn(f'generic-fuzz-{name} {kept}\n', done.stdout)
        self.assertIn('heap-use-after-free', done.stdout)

    def test_old_input_is_not_named(self):
        self.program(BAD)
        self.fuzz(1, 'one')
        self.program('#!/bin/sh\nexit 3\n')
        done = self.fuzz(1, 'one')
        self.assertIn('FAILED with status 3', done.stdout)
        self.assertNotIn('crash-0123', done.stdout)

    def test_what_did_not_fuzz_has_failed(self):
        """An entry that does not exist: the fuzzer lists them, status 0."""
        self.program('#!/bin/sh\necho Usage\n')
        done = self.fuzz(1, 'none')
        self.assertEqual(done.returncode, 1)
        self.assertIn('FAILED', done.stdout)

    def test_wrong_arguments(self):
        self.program(GOOD)
        for args, said in (((), "SECONDS is ''"), (('0',), "SECONDS is '0'"),
                           (('x',), "SECONDS is 'x'"),
                           (('--seed', 'a', '1'), "seed 'a'"),
                           (('--seed',), '--seed'), (('--x',), '--x')):
            done = self.fuzz(*args)
            self.assertEqual(done.returncode, 2, done.stdout)
            self.assertIn(said, done.stdout)
        self.assertFalse((self.tmp / 'calls').exists())

    def test_not_built(self):
        done = self.fuzz(1)
        self.assertEqual(done.returncode, 2)
        self.assertIn('run scripts/build fuzz', done.stdout)

    def test_inputs_to_start_from(self):
        for entry, least in (('addr-hint-pci', 1), ('other', 0)):
            folder = self.tmp / entry
            subprocess.run([SCRIPTS / 'fuzz-seeds', entry, folder],
                           check=True)
            inputs = list(folder.iterdir())
            self.assertGreaterEqual(len(inputs), least)
            for path in inputs:
                # what the fuzzer makes of longer ones is cut off
                self.assertLess(path.stat().st_size, 4096)
        self.assertEqual(list((self.tmp / 'other').iterdir()), [])


if __name__ == '__main__':
    unittest.main()
