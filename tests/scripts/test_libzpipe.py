# SPDX-License-Identifier: GPL-2.0-or-later
"""libzpipe as its users find it: installed, by pkg-config, as documented."""
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / 'src' / 'subprojects' / 'libzpipe'
PAGE = ROOT / 'docs' / 'zpipe.rst'


def meson():
    """QEMU's own, else one that is installed."""
    built = ROOT / 'build' / 'out' / 'pyvenv' / 'bin' / 'meson'
    return str(built) if built.exists() else shutil.which('meson')


def need(program):
    if not program or not shutil.which(program):
        raise unittest.SkipTest(f'there is no {program or "meson"} here')


def setUpModule():  # pylint: disable=invalid-name
    """Install the library and the command in a directory of their own."""
    for program in meson(), 'ninja', 'cc', 'pkg-config':
        need(program)
    tmp = Path(tempfile.mkdtemp(prefix='libzpipe-'))
    unittest.addModuleCleanup(shutil.rmtree, tmp)
    Installed.prefix = tmp / 'prefix'
    call(meson(), 'setup', '-Dtests=disabled', '--prefix', tmp / 'prefix',
         '--libdir', 'lib', tmp / 'out', SOURCE)
    call(meson(), 'install', '-C', tmp / 'out')


def call(*command, **options):
    """Run a command that must succeed; return what it prints."""
    done = subprocess.run([str(x) for x in command], text=True,
                          stdout=subprocess.PIPE, timeout=300,
                          stderr=subprocess.STDOUT, check=False, **options)
    if done.returncode:
        raise AssertionError(f'{command}: {done.stdout}')
    return done.stdout


class Installed(unittest.TestCase):
    """What the tests of the library and of the command need."""

    prefix = None

    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp(prefix='libzpipe-'))
        self.addCleanup(shutil.rmtree, self.tmp)
        self.zpipe = self.prefix / 'bin' / 'zpipe'
        self.path = self.tmp / 'pipe'
        self.env = dict(
            os.environ, LD_LIBRARY_PATH=str(self.prefix / 'lib'),
            PKG_CONFIG_PATH=str(self.prefix / 'lib' / 'pkgconfig'))

    def start(self, *command, **options):
        options = {'stdout': subprocess.PIPE, 'stdin': subprocess.DEVNULL,
                   **options}
        process = subprocess.Popen([str(x) for x in command], env=self.env,
                                   preexec_fn=heed_interrupts,
                                   **options)
        for stream in process.stdin, process.stdout, process.stderr:
            if stream:
                self.addCleanup(stream.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def run_zpipe(self, *args, **options):
        """Run the command to its end, whatever that is."""
        options = {'stdout': subprocess.PIPE, 'stdin': subprocess.DEVNULL,
                   **options}
        return subprocess.run([str(x) for x in (self.zpipe, *args)],
                              stderr=subprocess.PIPE, text=True, timeout=120,
                              check=False, **options)

    def listening(self, path):
        """Wait until somebody listens at @path."""
        for _ in range(500):
            with open('/proc/net/unix', encoding='ascii') as table:
                # state: 01 is a socket that listens
                if any(line.split()[-1] == str(path) and
                       line.split()[3] == '00010000' for line in table):
                    return
            time.sleep(0.02)
        self.fail(f'nobody listens at {path}')


class Library(Installed):
    """The library as a program's author finds it."""

    def documented_program(self):
        """The program that the page shows, line by line."""
        text = PAGE.read_text(encoding='utf-8')
        found = re.search(r'^\.\. literalinclude:: (\S+hello\.c)$', text,
                          re.M)
        self.assertTrue(found, 'the page shows no program')
        return (PAGE.parent / found.group(1)).resolve()

    def test_program_of_the_page(self):
        source = self.documented_program()
        lines = source.read_text(encoding='utf-8').splitlines()
        self.assertLessEqual(len(lines), 30)
        self.assertEqual([x for x in lines if 'zpipe-' in x], [],
                         'it uses a header that is not public')
        flags = call('pkg-config', '--cflags', '--libs', 'libzpipe',
                     env=self.env).split()
        program, path = self.tmp / 'hello', self.tmp / 'socket'
        # out of the source's directory: nothing but what is installed
        copy = self.tmp / 'program.c'
        shutil.copy(source, copy)
        call('cc', '-Wall', '-Wextra', '-Werror', '-o', program, copy,
             *flags, env=self.env)
        server = self.start(program, path)
        self.listening(path)
        call(program, path, env=self.env)
        self.assertEqual(server.communicate(timeout=20)[0], b'hello\n')
        self.assertEqual(server.returncode, 0)


def heed_interrupts():
    """A shell's background job ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command(Installed):
    """The zpipe command."""

    def listener(self, *options, **more):
        """A listening command."""
        process = self.start(self.zpipe, 'listen', *options, self.path, **more)
        self.listening(self.path)
        return process

    def other_server(self, path=None):
        """A socket at the path, in the place of the one that is there."""
        path = path or self.path
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(server.close)
        server.settimeout(60)
        server.bind(str(path))
        server.listen(4)
        return server

    def accept(self, server):
        client = server.accept()[0]
        self.addCleanup(client.close)
        return client

    def lost_to(self, *options):
        """
        A client that has lost its peer, and the server that it now tries:
        one that says nothing.
        """
        peer = self.listener('-r')
        client = self.start(self.zpipe, 'connect', *options, self.path,
                            stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        client.stdin.write(b'x')
        client.stdin.flush()
        self.assertEqual(peer.stdout.read(1), b'x')
        server = self.other_server()
        peer.kill()
        self.accept(server)
        return client, server

    def test_file(self):
        original, copy = self.tmp / 'original', self.tmp / 'copy'
        original.write_bytes(os.urandom(3 << 20) + b'end')
        with open(copy, 'wb') as output:
            server = self.listener(stdout=output)
            with open(original, 'rb') as data:
                call(self.zpipe, 'connect', self.path, stdin=data)
            self.assertEqual(server.wait(20), 0)
        self.assertTrue(copy.read_bytes() == original.read_bytes())

    def test_closed_standard_descriptors(self):
        """Messages do not get into the protocol's own descriptors."""
        output = self.tmp / 'output'
        server = self.start('sh', '-c', 'exec "$0" listen -v -r "$1" '
                            '>"$2" <&- 2>&-', self.zpipe, self.path, output)
        self.listening(self.path)
        subprocess.run(['sh', '-c', 'echo hello | exec "$0" connect -v -s '
                        '"$1" >&- 2>&-', self.zpipe, self.path], check=True,
                       timeout=60)
        self.assertEqual(server.wait(20), 0)
        self.assertEqual(output.read_bytes(), b'hello\n')

    def wait_until(self, condition, what):
        for _ in range(3000):
            if condition():
                return
            time.sleep(0.02)
        self.fail(f'never seen: {what}')

    def test_signal_under_traffic(self):
        """An output that is always ready, and always has something to do."""
        try:
            # a device that takes all, and takes its time
            slow = os.open('/dev/urandom', os.O_WRONLY)
        except OSError as err:
            self.skipTest(f'/dev/urandom: {err.strerror}')
        self.addCleanup(os.close, slow)
        for number in signal.SIGTERM, signal.SIGINT:
            with self.subTest(number.name):
                self.signal_under_traffic(slow, number)

    def signal_under_traffic(self, slow, number):
        server = self.listener('-r', '--view', stdout=slow)
        megabytes = self.tmp / 'megabytes'
        with open(megabytes, 'wb') as output:
            source = self.start(self.zpipe, 'bench', 'source', 'map',
                                self.path, '1M', '1M', stdout=output,
                                stderr=subprocess.DEVNULL)
        self.wait_until(megabytes.read_bytes, 'traffic')
        self.stop(server)
        before = megabytes.read_bytes().count(b'\n')
        server.send_signal(number)
        server.send_signal(signal.SIGCONT)
        self.assertEqual(server.wait(60), -number)
        self.assertFalse(self.path.exists())
        source.wait(60)
        # what is under way, and no more
        self.assertLess(megabytes.read_bytes().count(b'\n') - before, 64)

    def test_time_for_a_handshake(self):
        """Longer than the library's own, and shorter; at first, and again."""
        text = 'the peer did not finish the handshake within {} ms'
        silent = self.tmp / 'silent'
        self.other_server(silent)
        done = self.run_zpipe('info', '--timeout=100', silent)
        self.assertEqual(done.returncode, 1)
        self.assertIn(text.format(100), done.stderr)
        begin = time.monotonic()
        info = self.start(self.zpipe, 'info', '--timeout=6000', silent,
                          stderr=subprocess.PIPE)
        again, _ = self.lost_to('--reconnect=1', '--timeout=6000')
        for process in info, again:
            self.assertIn(text.format(6000),
                          process.stderr.readline().decode())
            self.assertGreaterEqual(time.monotonic() - begin, 6)
        self.assertEqual(info.wait(60), 1)
        self.assertIsNone(again.poll())

    def test_pause_between_attempts(self):
        """A client that is sent away does not come back at once."""
        server = self.other_server()
        client = self.start(self.zpipe, 'connect', '--reconnect=3600000',
                            self.path, stderr=subprocess.PIPE)
        self.accept(server).close()
        self.assertIn(b'peer', client.stderr.readline())
        server.settimeout(1)
        with self.assertRaises(TimeoutError):
            server.accept()
        self.assertIsNone(client.poll())

    def test_sent_away_at_the_start(self):
        server = self.other_server()
        client = self.start(self.zpipe, 'connect', '-s', '--reconnect=1',
                            self.path, stdin=subprocess.PIPE,
                            stderr=subprocess.PIPE)
        for _ in range(3):
            self.accept(server).close()
        server.close()
        self.path.unlink()
        peer = self.listener('-r')
        client.stdin.write(b'all')
        client.stdin.close()
        self.assertEqual(client.wait(60), 0)
        self.assertEqual(peer.stdout.read(), b'all')
        said = client.stderr.read().splitlines()
        self.assertEqual(len(said), len(set(said)), said)

    def test_numbers_of_options(self):
        for option, limit in (('--reconnect=0', '1 to 2147483647'),
                              ('--timeout=0', '1 to 2147483647'),
                              ('--timeout=2147483648', '1 to 2147483647'),
                              ('--ring-size=3M', '64K to 64M')):
            with self.subTest(option):
                done = self.run_zpipe('connect', option, '/nonexistent/x')
                self.assertEqual(done.returncode, 2)
                self.assertIn(option + ': must be', done.stderr)
                self.assertIn(limit, done.stderr)

    def test_output_that_fails(self):
        self.listener('--keep', '-r')
        commands = (('--version',), ('--help',), ('bench', '--help'),
                    ('info', self.path), ('info', '--json', self.path))
        for command in commands:
            with self.subTest(command), open('/dev/full', 'wb') as full:
                done = self.run_zpipe(*command, stdout=full)
                self.assertEqual(done.returncode, 1)
                self.assertEqual(done.stderr, 'zpipe: standard output: '
                                 'No space left on device\n')
        reader, writer = os.pipe()
        os.close(reader)
        done = self.run_zpipe('info', self.path, stdout=writer)
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr),
                         (1, 'zpipe: standard output: Broken pipe\n'))

    def test_output_of_bench_that_fails(self):
        for command in (('--tests=pingpong', '--ways=pipe', '--rounds=1',
                         '--json'),
                        ('--tests=pingpong', '--ways=pipe', '--rounds=1')):
            with self.subTest(command), open('/dev/full', 'wb') as full:
                done = self.run_zpipe('bench', *command, stdout=full)
                self.assertEqual((done.returncode, done.stderr), (
                    1, 'zpipe: standard output: No space left on device\n'))

    def test_both_sides_of_bench_report(self):
        """The reader leaves first: that must not kill the writer, which has
        yet to say what it has used."""
        for way in ('pipe', 'socket', 'copy', 'push', 'map'):
            with self.subTest(way=way):
                done = self.run_zpipe('bench', '--json', '--repeats=1',
                                      '--tests=throughput', '--sets=hot',
                                      '--sizes=4K', '--ms=5', f'--ways={way}')
                self.assertEqual((done.returncode, done.stderr), (0, ''))

    def test_limits_of_bench(self):
        path = '/nonexistent/x'
        for words, text in (
                (('map', path, '0', '1'), 'EVERY=0: must be 1 to'),
                (('map', path, '1025G', '1'), '1 to 1099511627776'),
                (('map', path, '17179869183G', '2'), '1 to 1099511627776'),
                (('map', path, '1', '0'), 'COUNT=0: must be 1 to'),
                (('map', path, '1', '2M'), '1 to 1048576'),
                (('mapped', path, '1', '1'), 'no way "mapped"'),
                (('socket', 'x' * 108, '1', '1'), '1 to 107 bytes'),
                (('map', 'x' * 108, '1', '1'), '1 to 107 bytes')):
            for side in 'sink', 'source':
                with self.subTest((side, *words)):
                    done = self.run_zpipe('bench', side, *words)
                    self.assertEqual(done.returncode, 2)
                    self.assertIn(text, done.stderr)
        for option in '--sizes=33M', '--repeats=100', '--ms=0', '--rounds=1M':
            with self.subTest(option):
                done = self.run_zpipe('bench', option)
                self.assertEqual(done.returncode, 2)
                self.assertIn('1 to ', done.stderr)

    def test_socket_of_another(self):
        """The file at the path is removed only if it is still ours."""
        for other in False, True:
            with self.subTest(other=other):
                server = self.listener('-r')
                if other:
                    self.other_server()
                server.terminate()
                self.assertEqual(server.wait(20), -signal.SIGTERM)
                self.assertEqual(self.path.exists(), other)

    def test_statistics(self):
        """-q has no word on what -v says; each client has its own figures."""
        errors = self.tmp / 'errors'
        with open(errors, 'wb') as output:
            server = self.listener('--keep', '-r', '-v', '-q', stderr=output)
        for data in b'first', b'2nd':
            client = self.start(self.zpipe, 'connect', '-s', '-v', '-q',
                                self.path, stdin=subprocess.PIPE,
                                stderr=subprocess.PIPE)
            said = client.communicate(data, timeout=60)[1].decode()
            self.assertIn(f'sent={len(data)} received=0\n', said)
            self.assertEqual(server.stdout.read(len(data)), data)
        server.terminate()
        server.wait(20)
        self.assertEqual(re.findall(r'received=(\d+)', errors.read_text()),
                         ['5', '3', '0'][:2])
        quiet = self.run_zpipe('connect', '-q', self.tmp / 'nothing')
        self.assertEqual((quiet.returncode, quiet.stderr), (1, ''))

    def joined(self, listen, connect, **streams):
        """Two that are connected: a byte has gone from each to the other."""
        pipes = {'stdin': subprocess.PIPE, 'stderr': subprocess.PIPE}
        server = self.listener(*listen, **pipes, **streams)
        client = self.start(self.zpipe, 'connect', *connect, self.path,
                            **pipes)
        for one, other in (server, client), (client, server):
            one.stdin.write(b'x')
            one.stdin.flush()
            self.assertEqual(other.stdout.read(1), b'x')
        return server, client

    def test_killed_when_idle(self):
        for i in range(2):
            with self.subTest(killed=('listen', 'connect')[i]):
                sides = self.joined((), ())
                sides[i].kill()
                sides[i].wait()
                left = sides[1 - i]
                self.assertEqual(left.wait(60), 1)
                said = left.stderr.read().decode().splitlines()
                self.assertEqual(len(said), 1, said)
                self.assertIn('the peer has gone', said[0])
                self.path.unlink(missing_ok=True)

    def test_killed_under_traffic(self):
        """Whoever is killed, in whatever step: the other one ends."""
        for mechanism in 'copy', 'direct', 'map':
            for killed in 'source', 'sink':
                with self.subTest(mechanism=mechanism, killed=killed):
                    self.killed_under_traffic(mechanism, killed)

    def killed_under_traffic(self, mechanism, killed):
        with open('/dev/null', 'wb') as nothing:
            sink = self.listener('-r', '--view', stdout=nothing,
                                 stderr=subprocess.PIPE)
        source = self.start(self.zpipe, 'bench', 'source', mechanism,
                            self.path, '1M', '1M', stderr=subprocess.PIPE)
        source.stdout.readline()
        victim, left = ((source, sink) if killed == 'source' else
                        (sink, source))
        victim.kill()
        victim.wait()
        if left is source:
            source.stdout.read()
        self.assertEqual(left.wait(60), 1)
        self.assertIn(b'the peer', left.stderr.read())
        self.path.unlink(missing_ok=True)

    def test_killed_clients_of_one_who_keeps(self):
        """Killed in whatever state, they cost nothing but their data."""
        server = self.listener('--keep', '-r', stderr=subprocess.DEVNULL)
        for i in range(30):
            client = self.start(self.zpipe, 'connect', '-s', self.path,
                                stdin=subprocess.PIPE,
                                stderr=subprocess.DEVNULL)
            time.sleep(i % 10 * 0.001)
            client.kill()
            client.wait()
        # these leave by themselves, as soon as there is a connection
        hurried = [self.start(self.zpipe, 'info', self.path,
                              stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) for _ in range(30)]
        for client in hurried:
            client.wait(60)
        # after all of them: some may wait to be accepted still
        call(self.zpipe, 'connect', '-s', '--reconnect=10', '--timeout=60000',
             self.path, stdin=subprocess.DEVNULL)
        call(self.zpipe, 'info', self.path)
        self.assertIsNone(server.poll())
        descriptors = os.listdir(f'/proc/{server.pid}/fd')
        # stdin, stdout, stderr, the listener and a handle's
        self.assertLess(len(descriptors), 40)

    def test_full(self):
        """A peer that is stopped: bounded memory, and a signal ends it."""
        big = self.tmp / 'big'
        with open(big, 'wb') as data:
            data.truncate(256 << 20)
        server = self.listener('-r', stderr=subprocess.DEVNULL)
        with open(big, 'rb') as data:
            client = self.start(self.zpipe, 'connect', '-s', self.path,
                                stdin=data)
        self.assertTrue(server.stdout.read(1))
        server.send_signal(signal.SIGSTOP)
        taken = Path(f'/proc/{client.pid}/fdinfo/0')

        def position():
            return int(taken.read_text(encoding='ascii').split()[1])

        def stands():
            before = position()
            time.sleep(0.2)
            return position() == before

        self.wait_until(stands, 'a sender that waits')
        # the reader has a buffer in its hands, and some that are full
        self.assertLess(position(), 16 << 20)
        client.terminate()
        self.assertEqual(client.wait(60), -signal.SIGTERM)
        server.send_signal(signal.SIGCONT)
        server.stdout.read()
        self.assertEqual(server.wait(60), 1)

    def test_second_client(self):
        server, client = self.joined((), ())
        second = self.run_zpipe('connect', self.path)
        self.assertEqual(second.returncode, 1)
        self.assertIn('the peer says: another client is connected',
                      second.stderr)
        for side in server, client:
            side.stdin.close()
        for side in server, client:
            self.assertEqual(side.wait(60), 0)
            self.assertEqual(side.stdout.read() + side.stderr.read(), b'')

    def stop(self, process):
        state = Path(f'/proc/{process.pid}/stat')
        process.send_signal(signal.SIGSTOP)
        self.wait_until(lambda: ') T ' in state.read_text(), 'a stop')

    def test_client_after_client(self):
        """The next one is not sent away since the last one has just left."""
        server = self.listener('--keep', '-r', stderr=subprocess.DEVNULL)
        client = self.start(self.zpipe, 'connect', self.path,
                            stdin=subprocess.PIPE)
        client.stdin.write(b'first')
        client.stdin.flush()
        self.assertEqual(server.stdout.read(5), b'first')
        # both pieces of news are there at once
        self.stop(server)
        client.kill()
        client.wait()
        following = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(following.close)
        following.settimeout(60)
        following.connect(str(self.path))
        following.shutdown(socket.SHUT_WR)
        server.send_signal(signal.SIGCONT)
        # accepted, and gone; one that is sent away has a message to read
        self.assertEqual(following.recv(4096), b'')
        call(self.zpipe, 'connect', '-s', self.path, stdin=subprocess.DEVNULL)

    def test_many_clients_at_once(self):
        """One is taken; the others hear why not, and none hangs."""
        server = self.listener('-r')
        clients = [self.start(self.zpipe, 'connect', '-s', self.path,
                              stdin=subprocess.PIPE, stderr=subprocess.PIPE)
                   for _ in range(8)]
        said = [client.communicate(b'%d' % i, timeout=60)[1]
                for i, client in enumerate(clients)]
        took = [i for i, client in enumerate(clients) if not client.returncode]
        self.assertEqual(server.wait(60), 0)
        self.assertEqual(len(took), 1)
        self.assertEqual(server.stdout.read(), b'%d' % took[0])
        for i, client in enumerate(clients):
            self.assertEqual(bool(said[i]), bool(client.returncode), said[i])

    def test_paths(self):
        """Too long, another kind of file, a socket that was left."""
        lengthy = self.tmp / ('x' * 108)
        plain = self.tmp / 'plain'
        plain.write_bytes(b'keep')
        for verb, path, text in (
                ('listen', lengthy, '1 to 107 bytes'),
                ('connect', lengthy, '1 to 107 bytes'),
                ('info', lengthy, '1 to 107 bytes'),
                ('listen', plain, 'or it is no socket'),
                ('connect', plain, 'nobody listens'),
                ('connect', self.tmp / 'none', 'start the side that listens'),
                ('listen', self.tmp / 'no' / 'x', 'No such file')):
            with self.subTest(verb=verb, path=path.name):
                done = self.run_zpipe(verb, path)
                self.assertIn(done.returncode, (1, 2))
                self.assertIn(text, done.stderr)
        self.assertEqual(plain.read_bytes(), b'keep')
        old = self.listener('-r')
        old.kill()
        old.wait()
        done = self.run_zpipe('connect', self.path)
        self.assertIn('left-over', done.stderr)
        # it is replaced; one where somebody listens is not
        server = self.start(self.zpipe, 'listen', '-r', self.path)
        self.listening(self.path)
        done = self.run_zpipe('listen', self.path)
        self.assertIn('somebody listens there', done.stderr)
        call(self.zpipe, 'connect', '-s', self.path, stdin=subprocess.DEVNULL)
        self.assertEqual(server.wait(60), 0)

    def test_permissions(self):
        if os.geteuid() or not shutil.which('setpriv'):
            self.skipTest('becoming another user needs root and setpriv')
        self.listener('-r')
        os.chmod(self.path, 0o600)
        for folder, words in ((0o755, ('connect', self.path)),
                              (0o755, ('listen', self.tmp / 'other')),
                              (0o700, ('connect', self.path))):
            os.chmod(self.tmp, folder)
            for parent in self.zpipe.parents:
                if parent == Path('/tmp'):
                    break
                os.chmod(parent, 0o755)
            with self.subTest(words, folder=oct(folder)):
                done = subprocess.run(
                    ['setpriv', '--reuid=65534', '--regid=65534',
                     '--clear-groups', *map(str, (self.zpipe, *words))],
                    stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                    text=True, timeout=60, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn('see the permissions', done.stderr)

    def test_manual(self):
        """The page has every option that the command has."""
        text = (SOURCE / 'man' / 'zpipe.1').read_text(encoding='utf-8')
        text = text.replace('\\-', '-')
        options = re.findall(r'--[a-z][a-z-]+', call(self.zpipe, '--help'))
        self.assertIn('--reconnect', options)
        for option in {*options, '--version'}:
            self.assertIn(option, text)

    def test_options(self):
        """What does nothing is no option."""
        done = self.run_zpipe('connect', '--spin=5', '/nonexistent/x')
        self.assertEqual(done.returncode, 2)
        self.assertIn('spin', done.stderr)


if __name__ == '__main__':
    unittest.main()
