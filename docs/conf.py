# SPDX-License-Identifier: GPL-2.0-or-later
project = 'qemu-hotpath'
copyright = '2026, qemu-hotpath'
author = 'qemu-hotpath'
extensions = []
master_doc = 'index'
html_theme = 'alabaster'
html_theme_options = {'description': 'A series on QEMU 10.2.2',
                      'fixed_sidebar': True}
html_show_sourcelink = False
exclude_patterns = ['libvirt']
