/** Throw-away launchd jobs and commands on a real Mac, for the questions. */

import { eventually } from "../helpers/processes.ts";

export interface Said {
  readonly code: number;
  /** stdout and stderr, trimmed. */
  readonly text: string;
}

const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** Runs a program for 60 s at most. */
export async function say(
  argv: readonly string[],
  env: Record<string, string> = {},
  limitMs = 60_000,
): Promise<Said> {
  const [program = "", ...args] = argv;
  const signal = AbortSignal.timeout(limitMs);
  try {
    const { code, stdout, stderr } = await new Deno.Command(program, { args, env, stdin: "null", signal }).output();
    return { code, text: (decode(stdout) + decode(stderr)).trim() };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return { code: 127, text: `there is no ${program}` };
  }
}

/** In one line, and not too long a one. */
export const line = (text: string) => text.replaceAll(/\s+/g, " ").trim().slice(0, 300);

export type Value = string | number | boolean | readonly Value[] | { readonly [key: string]: Value };

function xml(value: Value): string {
  const escape = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  if (typeof value === "string") return `<string>${escape(value)}</string>`;
  if (typeof value === "number") return `<integer>${value}</integer>`;
  if (typeof value === "boolean") return `<${value}/>`;
  if (Array.isArray(value)) return `<array>${value.map(xml).join("")}</array>`;
  const keys = Object.entries(value).map(([key, v]) => `<key>${escape(key)}</key>${xml(v)}`);
  return `<dict>${keys.join("")}</dict>`;
}

export function plistText(keys: { readonly [key: string]: Value }): string {
  return `<?xml version="1.0" encoding="UTF-8"?>\n<plist version="1.0">${xml(keys)}</plist>\n`;
}

/** Where a job is: of this user's session at the screen, or of the system, which needs sudo without a password. */
export type Domain = "agent" | "daemon";

/** What the label of every question's job begins with. */
const QUESTION = "org.lima-guard.question.";

/** The labels of questions in the text of `launchctl list`: a run that was cut short leaves its jobs. */
export function leftIn(list: string): string[] {
  return list.split("\n").map((row) => row.split("\t").at(-1) ?? "").filter((label) => label.startsWith(QUESTION));
}

/** Removes the jobs that an earlier run has left. */
export async function sweepQuestions(domains: readonly Domain[]): Promise<void> {
  for (const domain of domains) {
    const sudo = domain === "daemon" ? ["sudo", "-n"] : [];
    const target = domain === "daemon" ? "system" : `gui/${Deno.uid()}`;
    for (const label of leftIn((await say([...sudo, "launchctl", "list"])).text)) {
      await say([...sudo, "launchctl", "bootout", `${target}/${label}`]);
    }
  }
}

/** A job that is gone, with its file, when the test ends. */
export class Job implements AsyncDisposable {
  readonly target: string;
  readonly #sudo: readonly string[];
  private constructor(readonly label: string, readonly file: string, domain: Domain) {
    this.target = `${domain === "agent" ? `gui/${Deno.uid()}` : "system"}/${label}`;
    this.#sudo = domain === "agent" ? [] : ["sudo", "-n"];
  }

  /** Writes the plist and bootstraps it. The file lies in `folder`: launchd does not read it at the next boot. */
  static async load(folder: string, domain: Domain, keys: { readonly [key: string]: Value }): Promise<Job> {
    const label = `${QUESTION}${Deno.pid}.${Math.random().toString(36).slice(2, 8)}`;
    const job = new Job(label, `${folder}/${label}.plist`, domain);
    await Deno.writeTextFile(job.file, plistText({ Label: label, RunAtLoad: true, ...keys }));
    if (domain === "daemon") await say(["sudo", "-n", "chown", "root:wheel", job.file]);
    const { code, text } = await job.launchctl("bootstrap", job.target.replace(`/${label}`, ""), job.file);
    if (code === 0) return job;
    await job[Symbol.asyncDispose]();
    throw new Error(`bootstrap: ${code}: ${line(text)}`);
  }

  launchctl(...args: string[]): Promise<Said> {
    return say([...this.#sudo, "launchctl", ...args]);
  }

  /** What `launchctl print` has for a name: the first line with one tab. */
  async value(name: string): Promise<string | undefined> {
    const { text } = await say(["launchctl", "print", this.target]);
    return new RegExp(`^\\t${name} = (.*)$`, "m").exec(text)?.[1];
  }

  pid(): Promise<number> {
    return eventually(async () => {
      const pid = Number(await this.value("pid"));
      if (!(pid > 0)) throw new Error(`${this.label} has no process`);
      return pid;
    }, { withinMs: 15_000 });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.launchctl("bootout", this.target);
    await say([...this.#sudo, "rm", "-f", this.file]);
  }
}

/** Waits for a file to hold what is looked for, and returns its text. */
export function textOf(path: string, pattern: RegExp = /\S/, withinMs = 15_000): Promise<string> {
  return eventually(async () => {
    const text = await Deno.readTextFile(path);
    if (!pattern.test(text)) throw new Error(`${path} has no ${pattern}: ${line(text)}`);
    return text;
  }, { withinMs });
}
