/**
 * `deno task bench --readme`: the table of docs/benchmarks.md, made of the figures of bench-results.json, between two marks.
 * @module
 */

import type { Figures } from "./measure.ts";

/** What `deno task bench` writes. */
export interface Results {
  readonly date: string;
  readonly machine: string;
  readonly guard: string;
  readonly deno: string;
  readonly limactl: string;
  readonly groups: readonly { readonly title: string; readonly rows: readonly Figures[] }[];
}

/** A line of the table: what it is for a reader, and where it is found. A title may be a pattern: minutes differ. */
interface Line {
  readonly words: string;
  readonly group: RegExp;
  readonly row: RegExp;
}

const LINES: readonly Line[] = [
  { words: "bare `deno run` of an empty file", group: /^one instance$/, row: /^bare deno run/ },
  { words: "`--version`: loading lima-guard", group: /^one instance$/, row: /^--version/ },
  { words: "`--pre`, nothing to do", group: /^one instance$/, row: /^--pre, clean$/ },
  { words: "`--pre`, nothing to do, bundled as in the binary", group: /^one instance$/, row: /^--pre, clean, bundled/ },
  { words: "`--pre`, another program's PID in `vz.pid`", group: /^one instance$/, row: /^--pre, one repair/ },
  { words: "`--status`", group: /^one instance$/, row: /^--status/ },
  { words: "`limactl list`", group: /^one instance$/, row: /^limactl list/ },
  { words: "`--pre`, nothing to do, beside 999 instances", group: /^1000 instances/, row: /^--pre of one, clean/ },
  { words: "`--stop --all --dry-run`, 1000 instances", group: /^1000 instances/, row: /^--stop --all/ },
  { words: "`limactl list`, 1000 instances", group: /^1000 instances/, row: /^limactl list/ },
  { words: "repair, 30 000 more processes", group: /^30000 more processes/, row: /^--pre, one repair/ },
  { words: "SIGTERM to the end: host agent alone", group: /SIGTERM, a session/, row: /alone/ },
  { words: "SIGTERM to the end: `--run` over it", group: /SIGTERM, a session/, row: /over the host agent/ },
  { words: "idle `deno`: memory of its own", group: /rest: private memory$/, row: /^deno run of a program/ },
  {
    words: "idle `--run`: memory of its own",
    group: /rest: private memory$/,
    row: /^--run, with a session with the guest$/,
  },
  { words: "idle `--run`: the same, bundled as in the binary", group: /rest: private memory$/, row: /bundled$/ },
  { words: "idle `deno`: system calls in MINUTES", group: /system calls$/, row: /^deno run of a program/ },
  { words: "idle `--run`: system calls in MINUTES", group: /system calls$/, row: /^--run, with a session/ },
  { words: "50 instances: SIGTERM to the last end", group: /last end$/, row: /^50 / },
];

/** The table in Markdown, of what was measured: a reader has no use for what could not be. */
export function readmeTable(results: Results): string {
  const lines = LINES.flatMap(({ words, group, row }) => {
    const found = results.groups.find(({ title }) => group.test(title));
    const figures = found?.rows.find(({ name }) => row.test(name));
    const minutes = Number(/in (\S+) idle minutes/.exec(found?.title ?? "")?.[1]);
    const time = minutes === 1 ? "a minute" : `${minutes} minutes`;
    return figures?.median === undefined ? [] : [[words.replace("MINUTES", time), ...cells(figures, figures.median)]];
  });
  const all = [["", "median", "ratio", "peak memory"], ["---", "---:", "---:", "---:"], ...lines];
  const about = `${results.date.slice(0, 10)}, ${results.machine}; lima-guard ${results.guard} from source, deno ` +
    results.deno + (results.limactl.startsWith("limactl version") ? `; ${results.limactl}` : "");
  return `${all.map((cells) => `| ${cells.join(" | ")} |`).join("\n")}\n\nMeasured ${about}.`;
}

const DIGITS = { ms: 1, s: 2, MiB: 1, "": 0 } as const;

/** The ratio is that to the first row of its group, round by round; the first row has none. */
function cells({ unit, peakKiB, ratio = 1 }: Figures, median: number): [string, string, string] {
  const value = `${median.toFixed(DIGITS[unit])} ${unit}`.trim();
  return [value, ratio === 1 ? "" : ratio.toFixed(2), peakKiB ? `${Math.round(peakKiB / 1024)} MiB` : ""];
}

const [BEGIN, END] = ["<!-- written by deno task bench --readme -->", "<!-- end of what bench wrote -->"];

/** The text with a new table between its marks. Throws where they are not there: nothing else may be overwritten. */
export function withTable(text: string, table: string): string {
  const [begin, end] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error(`no ${BEGIN} … ${END} in it`);
  return `${text.slice(0, begin + BEGIN.length)}\n\n${table}\n\n${text.slice(end)}`;
}
