/** `deno task bench`: its table as text, and as that of docs/benchmarks.md, between two marks. */

import { cells, type Figures, HEAD } from "./measure.ts";

/** What `deno task bench` writes. */
export interface Results {
  readonly date: string;
  readonly machine: string;
  readonly guard: string;
  readonly deno: string;
  readonly limactl: string;
  readonly groups: readonly { readonly title: string; readonly rows: readonly Figures[] }[];
}

/** The table in Markdown. */
export function readmeTable({ date, machine, guard, deno, limactl, groups }: Results): string {
  const rule = HEAD.map((head) => head === "" ? "---" : "---:");
  const lines = [HEAD, rule, ...groups.flatMap(({ rows }) => rows.map(cells))].map((row) => `| ${row.join(" | ")} |`);
  const real = limactl.startsWith("no ") ? "" : `; limactl ${limactl}`;
  const about = `${date.slice(0, 10)}, ${machine}; lima-guard ${guard} from source, deno ${deno}${real}`;
  return `${lines.join("\n")}\n\nMeasured ${about}.`;
}

const WIDTHS = [54, 11, 11, 8, 13];

/** A group for the terminal, with its title. */
export function textTable(title: string, figures: readonly Figures[]): string {
  return [[title, ...HEAD.slice(1)], ...figures.map(cells)].map(([first = "", ...rest]) => {
    const isText = rest.slice(1).join("") === "";
    const aligned = rest.map((cell, i) => isText ? ` ${cell}` : cell.padStart(WIDTHS[i + 1]!));
    return `${first.replaceAll("`", "").padEnd(WIDTHS[0]!)}${aligned.join("")}`.trimEnd() + "\n";
  }).join("");
}

const [BEGIN, END] = ["<!-- written by deno task bench --readme -->", "<!-- end of what bench wrote -->"];

/** The text with a new table between its marks. Throws where they are not there: nothing else may be overwritten. */
export function withTable(text: string, table: string): string {
  const [begin, end] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error(`no ${BEGIN} … ${END} in it`);
  return `${text.slice(0, begin + BEGIN.length)}\n\n${table}\n\n${text.slice(end)}`;
}
