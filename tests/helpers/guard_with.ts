/**
 * The guard in a twisted world: `main` of lima_guard.ts with the real host, of which single effects are changed as the
 * variable GUARD_WITH says (a Twist in JSON). A test runs guard_twisted.ts in the place of lima_guard.ts: `guardWith(twist)`.
 */

import assert from "node:assert/strict";
import type { GuardOptions } from "./guard.ts";
import { exists } from "./guard_twisted.ts";
import { eventually } from "./processes.ts";

export interface Twist {
  /** How programs behave, by their basename. */
  readonly programs?: Readonly<Record<string, Behaviour>>;
  /** The time limits of programs are divided by this. */
  readonly limitsBy?: number;
  /** Added to the clock on the wall. */
  readonly wallMs?: number;
  /** The time since the machine's start. */
  readonly uptimeMs?: number;
  /** Pauses of a second or more are soon over, and the steady clock jumps by them. */
  readonly hurry?: boolean;
  /** The steady clock is so far ahead once this file is there. */
  readonly ahead?: { readonly file: string; readonly ms: number };
  /** How long it waits for a lock that another process holds. */
  readonly lockMs?: number;
  /** What becomes of every attempt to open a lock, or to take it. */
  readonly locks?: "other" | "unsupported";
  /** This lock cannot be opened for now: until the file that is named like it, with `.open`, is there. */
  readonly lockedOut?: string;
  /** Its own number is written into these files before it begins. */
  readonly ownPidInto?: readonly string[];
  /**
   * Signals reach only these, and processes that name this directory: should lima-guard ever take all processes for
   * its own, it is the test that fails, and not the machine. It ends with OUTSIDER at the first other one.
   */
  readonly hitsOnly?: { readonly under: string; readonly and: readonly number[] };
  /** What it does is noted in this file, a line each: `NUMBER WHAT`, the number being that of the last effect. */
  readonly log?: string;
  /** No connection can be made, for a reason that is its own and not the other side's. */
  readonly connects?: "denied" | "other";
  /** A file is found by its name in other letters too, small or capital, as on a Mac. */
  readonly foldsCase?: boolean;
  /** SIGKILL just before the n-th effect, counted from 1. An append has two: one is in the middle of its line. */
  readonly dieAt?: number;
  /**
   * Stays just before or after what it does, where that matches: makes FILE.here, and continues when there is FILE.go.
   * See `meanwhile`.
   */
  readonly stays?: readonly Stay[];
}

export interface Stay {
  /** A regular expression: `before remove .*vz\\.pid`, `after run /bin/ps`, `before stat …`, `before pause …` */
  readonly at: string;
  /** Which of those that match, counted from 1; the first unless said. */
  readonly nth?: number;
  readonly file: string;
}

/** `from` and `to`: the first and the last of its runs that behave so, counted from 1; the others are real. */
export type Behaviour = { readonly from?: number; readonly to?: number } & (Fault | Answer | Lie);

export interface Fault {
  readonly does: "missing" | "hang" | "be killed";
}

export interface Answer {
  readonly does: "answer";
  readonly stdout?: string;
  readonly stderr?: string;
  readonly code?: number;
}

/** Its real answer with a text replaced; the pattern is a regular expression with the flags `gm`. */
interface Lie {
  readonly does: "lie";
  readonly pattern: string;
  readonly by: string;
}

export { OUTSIDER } from "./guard_twisted.ts";

/** For runGuard and spawnGuard. */
export function guardWith(twist: Twist): Pick<GuardOptions, "script" | "env"> {
  return { script: "tests/helpers/guard_twisted.ts", env: { GUARD_WITH: JSON.stringify(twist) } };
}

/** Does something while the guard stays. It must have come there, or the test proves nothing. */
export async function meanwhile(stay: Stay, action: () => unknown): Promise<void> {
  await eventually(() => assert.ok(exists(`${stay.file}.here`), `the guard has not come to ${stay.at}`));
  await action();
  Deno.writeTextFileSync(`${stay.file}.go`, "");
}

/** The same where it may end without coming there. Returns whether it came. */
export async function ifItStays(stay: Stay, guard: Promise<unknown>, action: () => unknown): Promise<boolean> {
  let ended = false;
  void guard.then(() => ended = true, () => ended = true);
  const came = await eventually(() => {
    const here = exists(`${stay.file}.here`);
    assert.ok(here || ended, `the guard neither ends nor comes to ${stay.at}`);
    return here;
  }, { withinMs: 60_000 });
  if (came) await meanwhile(stay, action);
  return came;
}
