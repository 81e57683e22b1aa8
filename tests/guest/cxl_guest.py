# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest with CXL memory: its machine, its modules, its region.

    with Guest('cxl', CXL_SCRIPT + 'result sum $(cxlmem $dax sum 1)',
               **cxl_options('threshold=64')) as guest: ...

CXL_SCRIPT ends with the region made and the dax device's name in $dax.
"""
import subprocess
from pathlib import Path

from guest_kernel import load_kernel
from hotpath_paths import GUEST_DIR, SetupError

HERE = Path(__file__).resolve().parent
MIB = 1024 * 1024
SIZE = 256 * MIB
MODULES = ('cxl_acpi', 'cxl_pci', 'cxl_port', 'cxl_mem', 'cxl_pmem',
           'device_dax', 'dax_cxl')

# The kernel refuses to make a region when it cannot flush the caches, which it
# believes of a virtual machine: hide that it is one.
CPU = 'max,-hypervisor'
MACHINE = 'q35,cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G'

CXL_SCRIPT = f'''
for module in /cxl/*.ko; do
    insmod $module || result module_refused $module
done
cd /sys/bus/cxl/devices
n=0
endpoint=
while [ -z "$endpoint" ]; do
    for d in decoder*; do
        [ -e $d/dpa_size ] && endpoint=$d && break
    done
    n=$((n + 1))
    [ $n -lt 100 ] || {{ result no_endpoint "$(ls)"; exit 20; }}
    usleep 100000
done
echo ram >$endpoint/mode
echo {SIZE:#x} >$endpoint/dpa_size
region=$(cat decoder0.0/create_ram_region)
echo $region >decoder0.0/create_ram_region
echo 256 >$region/interleave_granularity
echo 1 >$region/interleave_ways
echo {SIZE:#x} >$region/size
echo $endpoint >$region/target0
echo 1 >$region/commit || exit 21
echo $region >/sys/bus/cxl/drivers/cxl_region/bind
cd /
wait_for /sys/bus/dax/devices/dax0.0 || exit 22
if [ ! -e /sys/bus/dax/devices/dax0.0/driver ]; then
    echo dax0.0 >/sys/bus/dax/drivers/device_dax/new_id
    echo dax0.0 >/sys/bus/dax/drivers/device_dax/bind
fi 2>/dev/null
wait_for /sys/bus/dax/devices/dax0.0/driver || exit 23

# report KEY ARGUMENTS: run cxlmem on the memory, report what it prints
report()
{{
    key=$1
    shift
    said=$(cxlmem $dax "$@") || {{ result failed "$key: $said"; exit 30; }}
    result $key $said
}}
dax=/dev/dax0.0
'''


def guest_program(name):
    """Compile a program of this directory for the guest; return its bytes."""
    source, target = HERE / f'{name}.c', GUEST_DIR / name
    command = ['gcc', '-O2', '-Wall', '-static', '-pthread', '-o',
               f'{target}.new', str(source)]
    if not target.is_file() or \
            target.stat().st_mtime < source.stat().st_mtime:
        done = subprocess.run(command, text=True, stderr=subprocess.PIPE)
        if done.returncode:
            raise SetupError(f'{source.name} does not compile: '
                             f'{done.stderr.strip()[-300:]}')
        Path(f'{target}.new').rename(target)
    return target.read_bytes()


def guest_files():
    """Return {path: bytes} of what the script needs."""
    files = {'bin/cxlmem': guest_program('cxlmem')}
    order = load_kernel().load_order(MODULES)
    for number, (name, data) in enumerate(order):
        files[f'cxl/{number:02}-{name}.ko'] = data
    return files


def bare_options(policy=None):
    """Return the options of run_bare('cxl') (see bare/cxl.S)."""
    device = 'cxl-type3,bus=rp,volatile-memdev=cxlmem,id=cxl-mem0'
    objects = ['-object', f'memory-backend-ram,id=cxlmem,share=on,size={SIZE}']
    if policy is not None:
        objects += ['-object', f'ondemand-policy,id=pol,{policy}']
        device += ',ondemand-policy=pol'
    return {
        'machine': 'q35,cxl=on,cxl-fmw.0.targets.0=cxl.0,cxl-fmw.0.size=1G',
        'devices': ('pxb-cxl,id=cxl.0,bus=pcie.0,bus_nr=52',
                    'cxl-rp,id=rp,bus=cxl.0,addr=0.0,chassis=0,slot=0,port=0',
                    device),
        'args': objects,
        # where a q35 with 64 MiB of RAM has its first window
        'defines': {'WINDOW_LOW': 0x10000000, 'WINDOW_HIGH': 1,
                    'READS': 5000}}


def cxl_options(policy=None, devices=(), args=(), **more):
    """Return the options of a Guest with 256 MiB of CXL memory.

    @policy: properties of an ondemand-policy, or None
    """
    device = 'cxl-type3,bus=rp,volatile-memdev=cxlmem,id=cxl-mem0'
    objects = ['-object', f'memory-backend-ram,id=cxlmem,share=on,size={SIZE}']
    if policy is not None:
        objects += ['-object', ','.join(['ondemand-policy,id=pol']
                                        + ([policy] if policy else []))]
        device += ',ondemand-policy=pol'
    return {
        'machine': MACHINE, 'cpu': CPU, 'mem': '512M,maxmem=8G,slots=4',
        'devices': ('pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1',
                    'cxl-rp,port=0,bus=cxl.1,id=rp,chassis=0,slot=2',
                    device, *devices),
        'args': (*objects, *args), 'files': guest_files(), **more}
