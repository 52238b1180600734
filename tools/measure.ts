/** Figures of whole processes, and what is made of them. */

/** A figure to be taken again and again. */
export interface Row {
  /** Empty for what is only counted. */
  readonly unit: "ms" | "s" | "MiB" | "";
  /** Why it cannot be measured here. */
  readonly skipped?: string;
  /** One figure; throws where the program fails. What is no part of it is done before its clock starts. */
  measure(): number | Promise<number>;
  /** The peak memory of one more run, in KiB; undefined where it cannot be found out. */
  peak?(): number | undefined;
}

export interface Figures {
  readonly name: string;
  readonly unit: Row["unit"];
  readonly skipped?: string;
  readonly failed?: string;
  readonly runs: number;
  readonly median?: number;
  readonly min?: number;
  readonly p90?: number;
  /** The median of its ratios to the first row, each taken in the same round. */
  readonly ratio?: number;
  readonly peakKiB?: number;
  readonly values: readonly number[];
}

/** What is run, and what must be true before and after it. */
export interface Program {
  readonly command: readonly [string, ...string[]];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  /** Outside the clock, before every run. */
  prepare?(): void;
  /** Outside the clock, after every run: throws where the program has not done its work. */
  check?(): void;
}

/** Caches are warm and lazily made files exist after these rounds. */
const WARM_UP = 2;
/** Forty runs of something that takes seconds would take too long: then a group ends early. */
const GROUP_LIMIT_MS = 12_000;
const RUNS_AT_LEAST = 3;
const PEAK_RUNS = 3;
/** Less than a millisecond is not shown, nor a part of a call. */
const DIGITS = { ms: 1, s: 3, MiB: 1, "": 0 } as const;

/** Wall time of a whole process, from before its birth to its end. */
export function programRow(program: Program): Row {
  const run = (command: Program["command"]) => {
    const [path, ...args] = command;
    program.prepare?.();
    const { env, cwd } = program;
    const started = performance.now();
    const ended = new Deno.Command(path, { args, env, cwd, clearEnv: true, stdin: "null", stdout: "null" })
      .outputSync();
    const ms = performance.now() - started;
    if (ended.code !== 0) {
      throw new Error(`${command.join(" ")}: status ${ended.code}: ${new TextDecoder().decode(ended.stderr)}`);
    }
    program.check?.();
    return { ms, stderr: new TextDecoder().decode(ended.stderr) };
  };
  return {
    unit: "ms",
    measure: () => run(program.command).ms,
    peak: () => PEAK_TOOL && peakOf(run([...PEAK_TOOL, ...program.command]).stderr),
  };
}

export function skippedRow(why: string): Row {
  return { unit: "ms", skipped: why, measure: () => NaN };
}

/** GNU's and BSD's speak differently. Both ask the system (wait4), which counts children of the program as well. */
const PEAK_TOOL = findPeakTool();
export const PEAK_BY = PEAK_TOOL?.join(" ");

function findPeakTool(): [string, ...string[]] | undefined {
  const tool: [string, ...string[]] = ["/usr/bin/time", Deno.build.os === "darwin" ? "-l" : "-v"];
  try {
    const { stderr } = new Deno.Command(tool[0], { args: [...tool.slice(1), "true"], stdin: "null" }).outputSync();
    return peakOf(new TextDecoder().decode(stderr)) === undefined ? undefined : tool;
  } catch {
    return undefined; // many Linux systems have none
  }
}

function peakOf(stderr: string): number | undefined {
  const gnu = /Maximum resident set size \(kbytes\): (\d+)/.exec(stderr)?.[1];
  const bsd = /(\d+)\s+maximum resident set size/.exec(stderr)?.[1];
  return gnu ? Number(gnu) : bsd ? Number(bsd) / 1024 : undefined;
}

/** All rows once, then all again, and so on: what disturbs the machine for a while disturbs them alike. */
export async function measure(
  rows: Readonly<Record<string, Row>>,
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
      if (one.row.skipped !== undefined || one.failed !== undefined) continue;
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

interface Series {
  readonly name: string;
  readonly row: Row;
  readonly values: number[];
  failed?: string;
}

function figuresOf({ name, row, values, failed }: Series, base: Series, peakRuns: number): Figures {
  const { unit, skipped } = row;
  if (skipped !== undefined) return { name, unit, skipped, runs: 0, values };
  if (failed !== undefined) return { name, unit, failed, runs: values.length, values };
  const peaks = Array.from({ length: peakRuns }, () => row.peak?.()).filter((peak) => peak !== undefined);
  const ratio = quantile(values.map((value, i) => value / base.values[i]!), 0.5);
  const isComparable = base.values.length >= values.length && base.row.unit === unit && Number.isFinite(ratio);
  return {
    name,
    unit,
    runs: values.length,
    median: quantile(values, 0.5),
    min: Math.min(...values),
    p90: quantile(values, 0.9),
    ...isComparable ? { ratio } : {},
    ...peaks.length > 0 ? { peakKiB: Math.max(...peaks) } : {},
    values,
  };
}

/** The nearest figure that was really measured. */
function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? NaN;
}

/** A group of figures as aligned text. */
export function table(title: string, figures: readonly Figures[]): string {
  const lines = figures.map((f) => {
    if (f.skipped !== undefined) return [f.name, `skipped: ${f.skipped}`];
    if (f.failed !== undefined) return [f.name, `failed: ${f.failed.trim().split("\n")[0]}`];
    const [median, min, p90] = [f.median, f.min, f.p90].map((value) =>
      `${value?.toFixed(DIGITS[f.unit])} ${f.unit}`.trim()
    );
    return [
      f.name,
      String(f.runs),
      median,
      min,
      p90,
      f.ratio?.toFixed(2) ?? "",
      f.peakKiB ? `${Math.round(f.peakKiB / 1024)} MiB` : "",
    ];
  });
  return [[title, "runs", "median", "min", "p90", "ratio", "peak"], ...lines].map(line).join("");
}

const WIDTHS = [45, 5, 11, 11, 11, 8, 9];

function line(cells: readonly (string | undefined)[]): string {
  const [first = "", ...rest] = cells;
  const isText = rest.length === 1;
  const aligned = rest.map((cell = "", i) => isText ? `  ${cell}` : cell.padStart(WIDTHS[i + 1]!));
  return `${first.padEnd(WIDTHS[0]!)}${aligned.join("")}`.trimEnd() + "\n";
}
