# SPDX-License-Identifier: GPL-2.0-or-later
"""Two libvirt hosts, one agent: storage grows over the remote transport.

One host is reached through TLS, the other through a program that carries the
connection, as ssh would.  Both have a domain with the same name and UUID.
"""
import shutil
import socket
import subprocess
import time
import unittest

from libvirtd import Domain, Libvirtd
from storage_daemons import Daemons, daemon_binary
from storage_vm import MIB, Loop, make_image, need_root
from test_storage_domain import need_libvirt_agent
from test_storage_growth import (GUEST_MIB, SCRIPT, START, policy,
                                 wanted_sum)

WAIT_S = 240

# connects its input and output to a socket, as "ssh HOST nc -U" does
CARRIER = '''#!/usr/bin/env python3
import os, select, socket
sock = socket.socket(socket.AF_UNIX)
sock.connect(%r)
ways = {0: lambda data: sock.sendall(data),
        sock.fileno(): lambda data: os.write(1, data)}
while True:
    for fd in select.select(list(ways), [], [])[0]:
        data = os.read(fd, 65536)
        if not data:
            raise SystemExit
        while data:
            data = data[ways[fd](data) or len(data):]
'''


def make_certificates(folder):
    """Write what libvirt looks for in a pkipath, for both sides."""
    def openssl(*words):
        done = subprocess.run(['openssl', *map(str, words)], timeout=60,
                              stdout=subprocess.PIPE, cwd=folder, text=True,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            raise AssertionError(f'openssl: {done.stdout}')

    openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', 9,
            '-keyout', 'cakey.pem', '-out', 'cacert.pem', '-subj', '/CN=ca')
    for name in ('server', 'client'):
        (folder / 'ext').write_text('subjectAltName=IP:127.0.0.1\n'
                                    'keyUsage=digitalSignature,'
                                    'keyEncipherment\n'
                                    f'extendedKeyUsage={name}Auth\n')
        openssl('req', '-newkey', 'rsa:2048', '-nodes', '-keyout',
                f'{name}key.pem', '-out', f'{name}.csr', '-subj',
                f'/CN={name}')
        openssl('x509', '-req', '-in', f'{name}.csr', '-CA', 'cacert.pem',
                '-CAkey', 'cakey.pem', '-CAcreateserial', '-days', 9, '-out',
                f'{name}cert.pem', '-extfile', 'ext')


class StorageHosts(unittest.TestCase):

    def setUp(self):
        need_root()
        need_libvirt_agent()
        if not shutil.which('openssl'):
            self.skipTest('openssl not found')
        self.daemons = Daemons([])
        self.addCleanup(self.daemons.close)

    def host(self, *args, **options):
        host = Libvirtd(*args, **options)
        self.addCleanup(host.close)
        return host

    def tls_host(self):
        """A host, and its URI."""
        pki = self.daemons.dir / 'pki'
        pki.mkdir(mode=0o700)
        make_certificates(pki)
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        host = self.host('libvirtd-tls', listen=f'''listen_tls = 1
listen_addr = "127.0.0.1"
tls_port = "{port}"
auth_tls = "none"
key_file = "{pki}/serverkey.pem"
cert_file = "{pki}/servercert.pem"
ca_file = "{pki}/cacert.pem"
''')
        return host, f'qemu+tls://127.0.0.1:{port}/system?pkipath={pki}'

    def carried_host(self):
        """A host, and its URI."""
        host = self.host()
        program = self.daemons.dir / 'carrier'
        program.write_text(CARRIER % f'{host.dir}/run/libvirt-sock')
        program.chmod(0o755)
        return host, f'qemu+ext://other/system?command={program}'

    def domain(self, host, label, storage, held):
        def edit(text):
            text = text.replace("disk type='file'", "disk type='block'")
            text = text.replace("source file='@DISK@'", "source dev='@DISK@'")
            return text.replace('@DISK@', str(storage.path)).replace(
                '@POLICY@', 'hold' if held else 'stop')
        domain = Domain(host, 'storage-growth', SCRIPT, edit=edit,
                        label=label)
        self.addCleanup(domain.remove)
        domain.define()
        return domain

    def wait_growths(self, vm, count):
        end = time.monotonic() + WAIT_S
        while sum(g['vm'] == vm for g in self.growths()) < count:
            self.assertLess(time.monotonic(), end, self.growths())
            time.sleep(0.1)

    def growths(self):
        return (self.daemons.growths() if self.daemons.journal.exists()
                else [])

    def test_two_hosts(self):
        """Both are served; one whose libvirtd dies when it is back."""
        hosts = [self.tls_host(), self.carried_host()]
        storages, domains = [], []
        for number, (host, _) in enumerate(hosts):
            storage = Loop(START)
            self.addCleanup(storage.close)
            make_image(storage)
            storages.append(storage)
            domains.append(self.domain(host, f'storage-host{number}', storage,
                                       number))
        names = [f'{domain.name}@{uri}'
                 for domain, (_, uri) in zip(domains, hosts)]
        # a machine is told from its namesake
        self.daemons.configure([
            {**policy(storage, chunk=MIB), 'vm': name.replace('?', '*')}
            for storage, name in zip(storages, names)])
        self.daemons.start_controller()
        self.daemons.agent = self.daemons._start(
            daemon_binary('qemu-storage-agent'), '-L', hosts[0][1], '-L',
            hosts[1][1], '-C', f'unix:{self.daemons.socket}')
        for domain in domains:
            domain.start()
        self.wait_growths(names[0], 3)
        hosts[0][0].kill()
        self.wait_growths(names[1], 6)
        hosts[0][0].run()
        for domain in domains:
            results = domain.wait(lambda r: 'sum' in r or 'DONE' in r, 'sum',
                                  WAIT_S)
            self.assertIn('sum', results)
            self.assertEqual(results['sum'].split()[0], wanted_sum())
        growths = self.growths()
        self.assertEqual(len({g['key'] for g in growths}), len(growths))
        for name, storage in zip(names, storages):
            mine = [g for g in growths if g['vm'] == name]
            self.assertGreater(len(mine), GUEST_MIB // 2)
            self.assertEqual({g['path'] for g in mine}, {str(storage.path)})
        print(f'{len(growths)} growths')


if __name__ == '__main__':
    unittest.main()
