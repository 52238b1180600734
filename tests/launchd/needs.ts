/** What this folder takes from the helpers of all tests. */

export {
  eventually,
  type Guard,
  type GuardOptions,
  type GuardResult,
  type Home,
  type Instance,
  isAlive,
  spawnGuard,
} from "../helpers/mod.ts";

/** A line of the journal. */
export interface JournalEntry {
  readonly time: string;
  readonly event: string;
  readonly role: string;
  readonly dir: string;
  // deno-lint-ignore no-explicit-any
  readonly [more: string]: any;
}
