/**
 * `deno task manual`: the JSON schema of what `--json` prints, in schema/v1.json, and for --install, --check and
 * --uninstall in schema/install-v1.json. The types of lima_guard.ts hold the fields and enumerations of the first: the
 * type check fails if one is added there and not here. The second is held by what a pretended Mac prints.
 * @module
 */

import type { Report } from "../lima_guard.ts";
import type { JobStatus, LastStopKind, State, StopEnd } from "../tests/facts.ts";

const names = (set: Readonly<Record<string, true>>) => Object.keys(set);

const STATES: Readonly<Record<State, true>> = {
  clear: true,
  running: true,
  booting: true,
  hung: true,
  orphan: true,
  stale: true,
  blocked: true,
  unknown: true,
  missing: true,
  stopped: true,
};
const STAGES: Readonly<Record<StopEnd, true>> = {
  guest: true,
  agent: true,
  driver: true,
  killed: true,
  unknown: true,
  "already stopped": true,
  "gone before the request": true,
};
const KINDS: Readonly<Record<LastStopKind, true>> = {
  none: true,
  graceful: true,
  "cut by agent": true,
  killed: true,
  "cut off": true,
  "by itself": true,
  unknown: true,
};
export const LAST_STOP_KINDS = names(KINDS);

const text = { type: "string" };
const textOrNull = { type: ["string", "null"] };
const count = { type: "number", minimum: 0 };
const list = (items: unknown) => ({ type: "array", items });
const object = (required: readonly string[], properties: Readonly<Record<string, unknown>>) => (
  { type: "object", required, properties }
);

const STATUSES = { enum: [0, 1, 64, 66, 75, 77] };
const REMARK = object(["what", "because"], { what: text, because: text, hint: text, waitsFor: { const: "volume" } });
const STEP = { kind: text, what: text, because: text, outcome: text };
/** `summary` is for people and not printed. */
const REPORT: Readonly<Record<Exclude<keyof Report, "summary">, unknown>> = {
  name: text,
  owner: text,
  home: text,
  state: { enum: names(STATES) },
  status: STATUSES,
  stage: { enum: [...names(STAGES), null] },
  seconds: { type: "object", additionalProperties: count },
  steps: list(object(Object.keys(STEP), STEP)),
  blockers: list(REMARK),
  notes: list(REMARK),
};
const EVIDENCE = { file: text, holds: textOrNull, verdict: text, because: text };
const flag = { type: "boolean" };
const LAUNCHD_JOB: Readonly<Record<keyof JobStatus, unknown>> = {
  label: text,
  plist: text,
  target: text,
  wrapped: flag,
  loaded: { enum: ["yes", "no", "unknown"] },
  disabled: flag,
  exitTimeoutS: count,
  isAskedFor: flag,
  noLogin: flag,
  restartsAfterSuccess: flag,
  runsAsRoot: flag,
  startsAtLoad: flag,
};
const ALWAYS = ["label", "plist", "target", "wrapped", "loaded", "disabled", "exitTimeoutS"];
const STOPPING = {
  pid: { type: "number" },
  role: text,
  since: textOrNull,
  stage: textOrNull,
  until: textOrNull,
};
/** What `--status` adds. */
const STATUS = {
  evidence: list(object(Object.keys(EVIDENCE), EVIDENCE)),
  limactlStart: text,
  jobs: list(object(ALWAYS, LAUNCHD_JOB)),
  supervisor: { type: ["number", "null"] },
  lastStop: text,
  lastStopKind: { enum: LAST_STOP_KINDS },
  lastStopAt: textOrNull,
  lastRepair: textOrNull,
  lastRepairAt: textOrNull,
  ready: { type: ["boolean", "null"] },
  stopping: { ...object(Object.keys(STOPPING), STOPPING), type: ["object", "null"] },
  guardVersion: textOrNull,
  starts: { type: ["number", "null"], minimum: 0 },
  brakeSeconds: { type: ["number", "null"], minimum: 0 },
};

/** Only where there is no instance to report: a refusal, or the text of --help and --version. */
const NO_INSTANCE = { status: STATUSES, error: object(["what", "hint"], { what: text, hint: textOrNull }), text };

export const SCHEMA = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  title: "What lima-guard --json prints for --pre, --stop, --run and --status",
  ...object(["version", "role", "instances"], {
    version: { const: 1 },
    role: { enum: ["pre", "stop", "run", "status", null] },
    ...NO_INSTANCE,
    instances: list(
      object(Object.keys(REPORT).filter((field) => !["owner", "home"].includes(field)), { ...REPORT, ...STATUS }),
    ),
  }),
};

/** The states of a job, as install.ts has them. */
const JOB_STATES = [
  "guarded",
  "guarded, off",
  "not guarded",
  "not asked",
  "not tried",
  "refused",
  "rolled back",
  "broken",
  "unknown",
  "missing",
];
const GUARD = { path: text, version: textOrNull, previous: textOrNull, running: textOrNull };
const JOB = {
  name: text,
  state: { enum: JOB_STATES },
  status: STATUSES,
  changed: { type: "boolean" },
  stage: { type: "null" },
  seconds: { type: "object", additionalProperties: count },
  // A dry run has no outcomes.
  steps: list(object(["kind", "what", "because"], STEP)),
  blockers: list(REMARK),
  notes: list(REMARK),
  changes: list(object(["key"], { key: text })),
  plist: textOrNull,
  guard: { ...object(Object.keys(GUARD), GUARD), type: ["object", "null"] },
};

export const INSTALL_SCHEMA = {
  $schema: SCHEMA.$schema,
  title: "What lima-guard --json prints for --install, --check and --uninstall",
  ...object(["version", "role", "changed", "instances"], {
    version: { const: 1 },
    role: { enum: ["install", "check", "uninstall"] },
    changed: { type: "boolean" },
    ...NO_INSTANCE,
    blockers: list(REMARK),
    instances: list(object(Object.keys(JOB), JOB)),
  }),
};

/** The files of this module, by their place in the repository. */
export function schemaFiles(): Record<string, string> {
  const text = (schema: unknown) => `${JSON.stringify(schema, null, 2)}\n`;
  return { "schema/v1.json": text(SCHEMA), "schema/install-v1.json": text(INSTALL_SCHEMA) };
}
