/**
 * What the small launchd says: a recording's own words, filled with the facts of a job. `LIMA_GUARD_RECORDING` is the
 * recording, by its name in tests/standin/recorded or by its path; what it lacks is taken from the one that was made by hand.
 */

import { BY_HAND, type Case, readRecording, recordingOf } from "../mac/cases.ts";

export interface Facts {
  readonly domain: string;
  readonly label: string;
  readonly path: string;
  readonly program: string;
  readonly args: readonly string[];
  readonly environment: Readonly<Record<string, string>>;
  readonly exitTimeoutS: number;
  /** What launchd does with it by itself: `keepalive`, `runatload`. */
  readonly properties: readonly string[];
  readonly throttleS: number;
  readonly runs: number;
  readonly pid: number | undefined;
  readonly userName: string | undefined;
  readonly workingDirectory: string | undefined;
  readonly out: string | undefined;
  readonly err: string | undefined;
  readonly state: "running" | "SIGTERMed" | "SIGKILLed" | "spawn scheduled" | "not running";
  /** The last status; a text for the end by a signal. */
  readonly lastExit: number | string | undefined;
}

/** An answer of launchctl. */
export interface Answer {
  readonly code: number;
  readonly stdout?: string;
  readonly stderr?: string;
}

const read = new Map<string, Case[]>();

/** The cases of a recording; read once for each process of tests. */
function casesOf(name: string): Case[] {
  const known = read.get(name);
  if (known) return known;
  const cases = readRecording(recordingOf(name)).filter(({ skipped, late }) => skipped === undefined && !late);
  read.set(name, cases);
  return cases;
}

const kindOf = (domain: string) => domain === "system" ? "daemon" : "agent";

export class Words {
  readonly #recordings: readonly string[];

  constructor(recording = Deno.env.get("LIMA_GUARD_RECORDING") || BY_HAND) {
    this.#recordings = [...new Set([recording, BY_HAND])];
  }

  /** The case of that name, from the first recording that has it. */
  case(name: string, fits: (one: Case) => boolean = () => true): Case | undefined {
    for (const recording of this.#recordings) {
      const found = casesOf(recording).find((one) => one.name === name && fits(one));
      if (found) return found;
    }
    return undefined;
  }

  /** `launchctl print DOMAIN/LABEL`. */
  print(facts: Facts): string {
    const kind = kindOf(facts.domain);
    const last = facts.lastExit;
    const ended = typeof last === "number" ? `ended-${last}` : last === undefined ? "waits" : "killed";
    const exact: Record<Facts["state"], readonly string[]> = {
      "running": ["running"],
      "SIGTERMed": ["ending.0"],
      "SIGKILLed": [9, 8, 7, 6, 5].map((n) => `deaf.${n}`),
      "spawn scheduled": [1, 2, 3, 4].map((n) => `throttled.${n}`),
      "not running": [ended],
    };
    const fits = (one: Case) => one.status === 0 && one.stdout.includes(`\tstate = ${facts.state}\n`);
    for (const name of exact[facts.state]) {
      const found = this.case(`print.${kind}.${name}`, fits);
      if (found) return fill(found.stdout, facts, name.startsWith("ended-"));
    }
    const other = this.case(`print.${kind}.${facts.pid === undefined ? "waits" : "running"}`);
    if (!other) throw new Error(`no recording has print.${kind}`);
    return fill(other.stdout, facts, false).replace(/^\tstate = .*$/m, `\tstate = ${facts.state}`);
  }

  /** A refusal as it was recorded for this kind of domain, else `own`. */
  refusal(name: string, { domain, label }: { domain: string; label: string }, own: Answer): Answer {
    const [verb, state] = name.split(".");
    const found = this.case(`${verb}.${kindOf(domain)}.${state}`);
    if (!found || found.status === 0) return own;
    const recorded = found.known.get("label");
    const text = recorded === undefined ? found.stderr : found.stderr.replaceAll(recorded, label);
    return { code: found.status, stderr: text };
  }

  /** `launchctl print-disabled DOMAIN`: the labels that were once disabled, and are so still or not. */
  disabled(domain: string, overrides: ReadonlyMap<string, boolean>): string {
    const found = [true, false].map((is) => {
      const seen = this.case(`print-disabled.${kindOf(domain)}.${is ? "one-disabled" : "enabled-again"}`);
      const label = seen?.known.get("label") ?? "";
      return {
        text: seen?.stdout ?? "",
        row: seen?.stdout.split("\n").find((line) => line.includes(`"${label}"`)),
        label,
      };
    });
    const [disabled, enabled] = found;
    if (!disabled?.row) throw new Error(`no recording has print-disabled.${kindOf(domain)}.one-disabled`);
    const rows = [...overrides].flatMap(([label, is]) => {
      const form = is ? disabled : enabled;
      return form?.row === undefined ? [] : [form.row.replace(form.label, label)];
    });
    return disabled.text.split("\n").flatMap((line) => line === disabled.row ? rows : [line]).join("\n");
  }
}

/** A recorded print with the facts of another job. Blocks that are not the job's own stay as they were recorded. */
function fill(text: string, facts: Facts, keepsExit: boolean): string {
  const { environment, lastExit, label } = facts;
  const last = lastExit === undefined ? "(never exited)" : lastExit === 78 ? "78: EX_CONFIG" : String(lastExit);
  const values: Record<string, string | number | undefined> = {
    path: facts.path,
    program: facts.program,
    "working directory": facts.workingDirectory,
    "stdout path": facts.out,
    "stderr path": facts.err,
    domain: facts.domain,
    username: facts.userName,
    "minimum runtime": facts.throttleS,
    "exit timeout": facts.exitTimeoutS,
    properties: facts.properties.join(" | ") || undefined,
    runs: facts.runs,
    pid: facts.pid,
    ...keepsExit ? {} : { "last exit code": last },
  };
  const blocks: Record<string, readonly string[]> = {
    arguments: facts.args,
    environment: [
      ...Object.entries(environment).map(([name, value]) => `${name} => ${value}`),
      `XPC_SERVICE_NAME => ${label}`,
    ],
  };
  const lines = text.split("\n");
  const filled = [`${facts.domain}/${label} = {`];
  for (let at = 1; at < lines.length; at++) {
    const line = lines[at] ?? "";
    const [, key = "", value] = /^\t([a-z ]+) = (.*)$/.exec(line) ?? [];
    if (value === "{" && key in blocks) {
      filled.push(line, ...(blocks[key] ?? []).map((item) => `\t\t${item}`), "\t}");
      at = lines.indexOf("\t}", at);
    } else if (key in values) {
      if (values[key] !== undefined) filled.push(`\t${key} = ${values[key]}`);
    } else filled.push(line);
  }
  return filled.join("\n");
}
