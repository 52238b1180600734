/** Figures of whole processes, and the table that is made of them. */

export type Unit = "ms" | "s" | "MiB" | "calls";

/** A figure to be taken again and again. */
export interface Row {
  readonly unit: Unit;
  /** One figure; throws where the program fails. What is no part of it is done before its clock starts. */
  measure(): number | Promise<number>;
  /** The peak memory of one more run, in KiB; undefined where it cannot be found out. */
  peak?(): number | undefined;
}

/** By their names; a text is the reason why the row cannot be had here. */
export type Rows = Readonly<Record<string, Row | string>>;

export interface Figures {
  readonly name: string;
  readonly unit?: Unit;
  readonly values: readonly number[];
  /** Why there are no values, or no more of them: `skipped: …`, `failed: …`. */
  readonly trouble?: string | undefined;
  readonly median?: number;
  readonly min?: number;
  /** The median of its ratios to the first row, each taken in the same round. */
  readonly ratio?: number;
  readonly peakKiB?: number;
}

/** What is run, and what must be true before and after it. */
export interface Program {
  readonly command: readonly [string, ...string[]];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  /** Who runs it, where this program is root's. */
  readonly user?: { readonly uid: number; readonly gid: number } | undefined;
  /** Outside the clock, before every run. */
  prepare?(): void;
  /** Outside the clock, after every run: throws where the program has not done its work. */
  check?(): void;
}

/** Caches are warm and lazily made files exist after these rounds. */
const WARM_UP = 2;
/** A group of slow programs ends early. */
const GROUP_LIMIT_MS = 10_000;
const RUNS_AT_LEAST = 3;
const PEAK_RUNS = 3;

/** Wall time of a whole process, from before its birth to its end. */
export function programRow(program: Program): Row {
  return { unit: "ms", measure: () => timed(program).ms, peak: () => PEAK_TOOL && peakOf(timed(program, PEAK_TOOL)) };
}

/** Runs it to its end. */
export function timed(
  { command: [path, ...args], env, cwd, user, prepare, check }: Program,
  under: readonly string[] = [],
): { ms: number; stderr: string } {
  prepare?.();
  const [first = "", ...rest] = [...under, path, ...args];
  const options = { args: rest, env, cwd, clearEnv: true, stdin: "null", stdout: "null", ...user } as const;
  const started = performance.now();
  const ended = new Deno.Command(first, options).outputSync();
  const ms = performance.now() - started;
  const stderr = new TextDecoder().decode(ended.stderr);
  if (ended.code !== 0) throw new Error(`${path} ${args.join(" ")}: status ${ended.code}: ${stderr}`);
  check?.();
  return { ms, stderr };
}

/** GNU's and BSD's speak differently. Both ask the system (wait4), which counts children of the program as well. */
const PEAK_TOOL = findPeakTool();
export const PEAK_BY = PEAK_TOOL?.join(" ");

function findPeakTool(): string[] | undefined {
  const tool = ["/usr/bin/time", Deno.build.os === "darwin" ? "-l" : "-v"];
  try {
    return peakOf(timed({ command: ["true"], env: {}, cwd: "/" }, tool)) === undefined ? undefined : tool;
  } catch {
    return undefined; // many Linux systems have none
  }
}

function peakOf({ stderr }: { stderr: string }): number | undefined {
  const gnu = /Maximum resident set size \(kbytes\): (\d+)/.exec(stderr)?.[1];
  const bsd = /(\d+)\s+maximum resident set size/.exec(stderr)?.[1];
  return gnu ? Number(gnu) : bsd ? Number(bsd) / 1024 : undefined;
}

interface Series {
  readonly name: string;
  readonly row: Row | string;
  readonly values: number[];
  failed?: string;
}

/** All rows once, then all again, and so on: what disturbs the machine for a while disturbs them alike. */
export async function measure(
  rows: Rows,
  { runs, warmUp = WARM_UP, limitMs = GROUP_LIMIT_MS }: { runs: number; warmUp?: number; limitMs?: number },
  beforeRound: (round: number) => Promise<void>,
): Promise<Figures[]> {
  const series = Object.entries(rows).map(([name, row]): Series => ({ name, row, values: [] }));
  const started = performance.now();
  const isLate = () => performance.now() - started > limitMs;
  for (let round = -warmUp; round < runs && !(round >= RUNS_AT_LEAST && isLate()); round++) {
    if (round < 0 && performance.now() - started > limitMs / 10) round = 0;
    await beforeRound(round);
    for (const one of series) {
      if (typeof one.row === "string" || one.failed !== undefined) continue;
      try {
        const value = await one.row.measure();
        if (round >= 0) one.values.push(value);
      } catch (error) {
        one.failed = error instanceof Error ? error.message : String(error);
      }
    }
  }
  await beforeRound(runs);
  return series.map((one) => figuresOf(one, series[0]!, isLate() ? 1 : PEAK_RUNS));
}

function figuresOf({ name, row, values, failed }: Series, base: Series, peakRuns: number): Figures {
  if (typeof row === "string") return { name, values, trouble: `skipped: ${row}` };
  const { unit } = row;
  if (failed !== undefined) return { name, unit, values, trouble: `failed: ${failed.trim().split("\n")[0]}` };
  const peaks = Array.from({ length: peakRuns }, () => row.peak?.()).filter((peak) => peak !== undefined);
  const figures = { name, unit, values, median: median(values), min: Math.min(...values) };
  const peakKiB = Math.max(0, ...peaks);
  const hasPartners = base.failed === undefined && base.values.length === values.length;
  return hasPartners
    ? { ...figures, peakKiB, ratio: median(values.map((value, i) => value / base.values[i]!)) }
    : { ...figures, peakKiB };
}

/** A figure that was really measured, if need be the larger one of two. */
function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

// --- the table ---------------------------------------------------------------------------------------------------------

const DIGITS = { ms: 1, s: 2, MiB: 1, calls: 0 } as const;
export const HEAD = ["", "median", "least", "ratio", "peak memory"];

/** A line of the table. The first row of a group is that to which the ratios of the others are. */
export function cells({ name, unit = "ms", trouble, median, min, ratio, peakKiB }: Figures): string[] {
  if (trouble !== undefined) return [name, trouble, "", "", ""];
  const said = (value = NaN) => `${value.toFixed(DIGITS[unit])} ${unit}`;
  const ratioText = ratio === undefined ? "" : ratio === 1 ? "1" : ratio.toFixed(2);
  return [name, said(median), said(min), ratioText, peakKiB ? `${Math.round(peakKiB / 1024)} MiB` : ""];
}
