/** Where the stories of tests/launchd_live_test.ts take place: a Mac, or the stand-in for launchd with real processes. */

import type { Domain } from "./launchd.ts";

export interface Said {
  readonly code: number;
  /** stdout, then stderr. */
  readonly text: string;
}

/** The person at the keyboard, root, and another user, who owns an instance. */
export type Who = "user" | "root" | "other";

export interface Person {
  readonly name: string;
  readonly uid: number;
}

export interface RunOptions {
  readonly as?: Who;
  readonly umask?: string;
}

/** A build of lima-guard that differs from the one of this checkout. */
export type OtherBuild = "newer" | "mute" | "dead";

export interface Ground extends AsyncDisposable {
  readonly user: Person;
  /** Why there is none. */
  readonly other: Person | { readonly why: string };
  /** The lima-guard that is typed. */
  readonly guard: string;
  /** The user's own, where an agent's lima-guard is put: any user can write to /tmp, so it is refused. */
  readonly home: string;
  readonly agents: string;
  readonly daemons: string;
  /** A folder of root's, for the folder that a daemon's lima-guard gets. */
  readonly library: string;
  /** What the pretended guest needs to end at most: more than launchd's own 5 s. */
  readonly lingerS: number;
  /** How often the longest story is gone through. */
  readonly rounds: number;
  /** A new empty folder of the user's, with a short path: sockets of an instance have at most 104 bytes. */
  makeFolder(): string;
  run(argv: readonly string[], options?: RunOptions): Promise<Said>;
  build(which: OtherBuild): Promise<string>;
  /** How many seconds launchd grants at most; undefined where that is a question. */
  granted(domain: Domain, seconds: number): number | undefined;
}

/** What was learnt, for who reads the run and for its summary, as it comes. */
export function note(text: string): void {
  const summary = Deno.env.get("GITHUB_STEP_SUMMARY");
  if (summary) Deno.writeTextFileSync(summary, `- ${text}\n`, { append: true });
  Deno.stdout.writeSync(new TextEncoder().encode(`\n${text}\n`));
}

const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** Runs a program to its end. Not in the way of whatever else this process does: it may be the launchd. */
export async function runToEnd(argv: readonly string[], options: Deno.CommandOptions = {}): Promise<Said> {
  const [program = "", ...args] = argv;
  const { code, stdout, stderr } = await new Deno.Command(program, { ...options, args, stdin: "null" }).output();
  return { code, text: decode(stdout) + decode(stderr) };
}

/** The same command under another umask. */
export function underUmask(argv: readonly string[], umask: string | undefined): readonly string[] {
  return umask === undefined ? argv : ["/bin/sh", "-c", `umask ${umask}; exec "$@"`, "sh", ...argv];
}
