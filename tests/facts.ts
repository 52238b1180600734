/**
 * The types of the facts, taken from the functions of lima_guard.ts that take or give them, so that lima_guard.ts
 * exports only what is called.
 * @module
 */

import type {
  Host,
  judge,
  judgeJobs,
  lastStop,
  Observation,
  parseCommandLine,
  planPre,
  readJournal,
  Report,
  transition,
} from "../lima_guard.ts";

export type Instance = Observation["instance"];
export type VerifiedProcess = Observation["alive"][number];
export type ProcessRow = VerifiedProcess["row"];
export type Role = VerifiedProcess["role"];
export type StateFile = Observation["stateFiles"][number];
export type FileStamp = StateFile["stamp"];
export type Verdict = StateFile["verdict"];
export type AgentHealth = NonNullable<Observation["agent"]>;
export type Diagnostic = Observation["notes"][number];
export type SameDirectory = Parameters<typeof judge>[2];

export type Plan = ReturnType<typeof planPre>;
export type Step = Plan["steps"][number];
export type State = Plan["state"];
export type StopEnd = NonNullable<Report["stage"]>;

export type JobStatus = Parameters<typeof judgeJobs>[0]["jobs"][number];
export type JournalLine = ReturnType<typeof readJournal>[number];
export type LastStopKind = ReturnType<typeof lastStop>["lastStopKind"];
export type RunState = Parameters<typeof transition>[0];
export type RunEvent = Parameters<typeof transition>[1];
export type RunAction = ReturnType<typeof transition>[1];

export type Invocation = Extract<ReturnType<typeof parseCommandLine>, { role: unknown }>;
/** What an effect answers that did not succeed. */
export type Failure = Extract<ReturnType<Host["remove"]>, { why: string }>;
