# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn benchmark results into text, plots and one page."""
import html
import json
import shutil
import statistics
import subprocess

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem;
       margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
.scroll { overflow-x: auto; }
th, td { text-align: right; padding: .25rem .6rem;
         border-bottom: 1px solid #8886; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
td.ratio { font-weight: 600; }
.range { opacity: .65; font-size: .85em; }
img { width: 100%; height: auto; background: #fff; }
"""


def spread(values):
    """Return what a table's cell wants to know of some readings."""
    return {'median': statistics.median(values), 'min': min(values),
            'max': max(values), 'runs': len(values)}


def number(value):
    return f'{value:.0f}' if value >= 100 else f'{value:.1f}'


def median_text(row, way):
    """A way that a case does not have is a dash."""
    return number(row['values'][way]['median']) if way in row['values'] else '-'


def ratio_text(row):
    """A ratio to what is not there is a dash."""
    return '-' if row['ratio'] is None else f"{row['ratio']:.2f}"


def as_text(result):
    lines = [f"\n{result['title']}  ({result['machine']})"]
    for table in result['tables']:
        lines += ['', table['title']]
        width = max(len(r['case']) for r in table['rows'])
        lines.append(' '.join([' ' * width]
                              + [f'{w:>10}' for w in table['ways']]
                              + ['     ratio']))
        for row in table['rows']:
            cells = [f'{median_text(row, w):>10}' for w in table['ways']]
            lines.append(' '.join([row['case'].ljust(width)] + cells
                                  + [f'{ratio_text(row):>10}']))
    return '\n'.join(lines) + '\n'


def plot(table, stem, folder):
    """Draw a table as grouped bars; return the file name, or None."""
    if not shutil.which('gnuplot') or not any(r['values']
                                              for r in table['rows']):
        return None
    data = []
    for row in table['rows']:
        values = [str(row['values'][w]['median']) if w in row['values']
                  else '-' for w in table['ways']]
        data.append(' '.join([json.dumps(row['case'])] + values))
    columns = ', '.join(f"$data using {i + 2}:xtic(1) title '{way}'"
                        for i, way in enumerate(table['ways']))
    name = f'{stem}.svg'
    script = '\n'.join(
        [f"set terminal svg size 900,420 dynamic; set output '{name}'",
         'set style data histogram; set style fill solid 0.8 border -1',
         "set datafile missing '-'",
         'set yrange [0:*]; set grid ytics; set xtics rotate by -30',
         'set key outside top horizontal; set rmargin 14',
         f"set ylabel \"{table['rows'][0]['unit']}\"",
         '$data << EOD'] + data + ['EOD', f'plot {columns}', ''])
    subprocess.run(['gnuplot'], input=script, text=True, cwd=folder,
                   check=True)
    return name


def table_html(table):
    head = ''.join(f'<th>{html.escape(w)}</th>' for w in table['ways'])
    rows = []
    for row in table['rows']:
        cells = []
        for way in table['ways']:
            v = row['values'].get(way)
            cells.append(f"<td>{number(v['median'])} <span class=range>"
                         f"{number(v['min'])}–{number(v['max'])}</span></td>"
                         if v else '<td>-</td>')
        rows.append(f"<tr><td>{html.escape(row['case'])}</td>"
                    f"{''.join(cells)}<td class=ratio>{ratio_text(row)}"
                    '</td></tr>')
    return (f"<div class=scroll><table><tr><th>{table['rows'][0]['unit']}"
            f'</th>{head}<th>ratio</th></tr>{"".join(rows)}</table></div>')


def section(result, folder):
    parts = [f"<h2>{html.escape(result['title'])}</h2>",
             f"<p>Read on {html.escape(result['machine'])}, "
             f"{result['date']}.</p>"]
    for i, table in enumerate(result['tables']):
        counts = next(({v['runs'] for v in r['values'].values()}
                       for r in table['rows'] if r['values']), {0})
        runs = ' or '.join(map(str, sorted(counts)))
        parts += [f"<h3>{html.escape(table['title'])}</h3>",
                  f"<p>{html.escape(table['text'])}  Medians of {runs} runs, "
                  'least and greatest beside them.</p>']
        image = plot(table, f"{result['name']}-{i}", folder)
        if image:
            parts.append(f"<img src='{image}' "
                         f"alt='{html.escape(table['title'])}'>")
        parts.append(table_html(table))
    return '\n'.join(parts)


def write_page(folder):
    """Write index.html from all results in the folder."""
    results = [json.loads(p.read_text())
               for p in sorted(folder.glob('*.json'))]
    body = '\n'.join(section(r, folder) for r in results)
    (folder / 'index.html').write_text(
        '<!doctype html><html lang=en><meta charset=utf-8>'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f'<title>qemu-hotpath: measurements</title><style>{STYLE}</style>'
        '<h1>qemu-hotpath: measurements</h1>'
        '<p>Each row compares what a user has without a mechanism with what '
        'the mechanism gives, read in one run, in turn.  The ratio is the '
        'result; the figures belong to the machine they were read on.</p>'
        f'{body}</html>\n')
