/**
 * What `deno task torture` makes: cases, each wholly decided by a seed and a number. A case is plain data, so that one
 * that has failed can be kept as JSON in tests/corpus.
 */

import { PID_FILES, USERNET } from "../tests/helpers/pid_files.ts";

export interface Case {
  /** Which it was when it was made; for people. */
  readonly seed: number;
  readonly number: number;
  /** What lives of the instance at the beginning. */
  readonly vm: Vm;
  /** What is then laid into its files, whatever lives. */
  readonly puts: readonly Put[];
  readonly steps: readonly Step[];
}

export interface Vm {
  readonly what: "nothing" | "agent" | "orphan" | "cut off";
  /** Keys of standin.conf: see the head of tests/standin/limactl. */
  readonly conf: Readonly<Record<string, string | number>>;
  /** How far an agent's start comes. */
  readonly until: "ha.pid" | "ssh.config" | "ha.sock" | "driver" | "event" | "running";
}

/** Something laid in the place of a file; the path is relative to the instance's directory. */
export interface Put {
  readonly do: "put";
  readonly file: string;
  readonly holds: string;
}

export interface Kill {
  readonly do: "kill";
  readonly who: "agent" | "driver";
}

/** `limactl start` by hand. */
export interface Start {
  readonly do: "start";
}

/** What cannot be known, and what does not answer, is over. */
export interface Calm {
  readonly do: "calm";
}

export interface Run {
  readonly do: "guard";
  readonly role: "pre" | "stop" | "run" | "status";
  readonly budgetS: number;
  readonly dryRun?: boolean;
  /** Added to the clock on the wall. */
  readonly wallMs?: number;
  /** How long the machine has been up. */
  readonly uptimeMs?: number;
  /** Long pauses are soon over: an agent is asked for a minute before it counts as hung. */
  readonly hurry?: boolean;
  /** Something happens while the guard stays at the n-th thing it does, counted from 1. */
  readonly meanwhile?: { readonly nth: number; readonly action: Action };
}

export type Action =
  | Put
  | Kill
  | Start
  | { readonly do: "kill"; readonly who: "guard" }
  | { readonly do: "signal"; readonly signal: "SIGTERM" | "SIGINT" | "SIGHUP" }
  /** Another lima-guard is started beside it. */
  | { readonly do: "another"; readonly role: "pre" | "stop" | "status" };

export type Step = Run | Put | Kill | Start | Calm;

/** Numbers from 0 to 1, the same ones for the same seed and number (mulberry32). */
export function random(seed: number, number: number): () => number {
  let state = (Math.imul(seed, 0x9E3779B1) ^ Math.imul(number + 1, 0x85EBCA6B)) >>> 0;
  return () => {
    state = (state + 0x6D2B79F5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const USERNET_PID = `../${USERNET}`;

/** A host agent believes this one while it stops, so it must be cleared before: twice, to be picked more often. */
const BELIEVED: readonly string[] = ["x.drv.pid", "x.drv.pid"];

/** What may stand in a PID file. The bystander's number comes first and often: it must survive all of it. */
const PIDS = [
  ...Array(9).fill("the bystander"),
  ...Array(4).fill("the riddle"),
  ...["the neighbour", "dead", "dead", "impossible", "nothing", "blanks", "half a number"],
  ...[
    "0",
    "1",
    "-1",
    "the bystander's group",
    "2**32",
    "2**32 + the bystander",
    "two numbers",
    "zeros",
    "gone",
    "gone",
  ],
  ...["a link to the bystander's", "a dangling link", "a FIFO", "a directory", "a cold socket"],
];
const SOCKETS = ["gone", "a cold socket", "a cold socket", "a silent socket", "a file"];

/** What speaks against a start and a removal by itself. */
const WITNESSES: readonly (readonly Put[])[] = [
  [{ do: "put", file: "ha.sock", holds: "a silent socket" }],
  [{ do: "put", file: "qmp.sock", holds: "a silent socket" }],
  [
    { do: "put", file: "../_disks/data/in_use_by", holds: "a link to it" },
    { do: "put", file: "../_disks/data/datadisk", holds: "held open" },
  ],
];

/** Other files, and what may stand in them. */
const OTHERS: Readonly<Record<string, readonly string[]>> = {
  "ha.sock": SOCKETS,
  "qmp.sock": SOCKETS,
  "lima-guard.lock": ["held", "held as the bystander", "the bystander as --run", "garbage", "nothing", "a directory"],
  "lima-guard.jsonl": [
    "garbage",
    "a torn line",
    "bad ends",
    "a start without end",
    "a clone's lines",
    "a FIFO",
    "zeros",
  ],
  "ssh.config": ["gone", "cut", "the neighbour's", "garbage"],
  "boot-session.tmp": ["garbage", "nothing", "a directory"],
  "../_disks/data/in_use_by": ["a link to it", "a link to it", "a link to the neighbour", "a dangling link"],
  "../_disks/data/datadisk": ["held open"],
  "ha.stdout.log": ["gone", "nothing", "garbage"],
  "lima.yaml": ["gone"],
};

const HOUR = 3_600_000;
const CLOCKS = [0, 0, 0, 6_000, -6_000, HOUR, -HOUR, 24 * HOUR, -24 * HOUR, 87_660 * HOUR, -87_660 * HOUR];

/** Makes the n-th case of a seed. */
export function makeCase(seed: number, number: number): Case {
  const next = random(seed, number);
  const below = (n: number) => Math.floor(next() * n);
  const chance = (p: number) => next() < p;
  const pick = <T>(items: readonly T[]): T => items[below(items.length)]!;

  const pidPut = (): Put => {
    const file = pick([...PID_FILES, ...BELIEVED, USERNET_PID]);
    const holds = pick(PIDS);
    // Open: tests/corpus/riddle_that_lima_signals.json.
    return { do: "put", file, holds: BELIEVED.includes(file) && holds === "the riddle" ? "the bystander" : holds };
  };
  const otherPut = (): Put => {
    // An instance without lima.yaml is refused by every role: one kind of case, not half of them.
    const file = pick(Object.keys(OTHERS).filter((name) => name !== "lima.yaml" || chance(0.2)));
    return { do: "put", file, holds: pick(OTHERS[file]!) };
  };
  const anyPut = () => chance(0.6) ? pidPut() : otherPut();
  const kill = (): Kill => ({ do: "kill", who: pick(["agent", "driver"]) });

  const makeVm = (): Vm => {
    const what = pick(["nothing", "agent", "agent", "agent", "orphan", "orphan", "cut off"] as const);
    const vmtype = pick(what === "orphan" ? ["qemu", "qemu", "krunkit", "x"] : ["vz", "vz", "qemu", "krunkit", "x"]);
    const stop = pick([
      "clean",
      "clean",
      "slow:300",
      "ignore",
      "hang",
      ...vmtype === "vz" ? ["cannot-request-stop"] : [],
    ]);
    const info = pick(["ok", "ok", "ok", "error500", "late:300"]);
    const qmp = pick(["ok", "ok", "silent", "refuse-powerdown"]);
    const until = what === "agent" && chance(0.3)
      ? pick(["ha.pid", "ssh.config", "ha.sock", "driver", "event"] as const)
      : "running";
    return {
      what,
      conf: {
        vmtype,
        stop,
        ...info === "ok" ? {} : { info },
        ...vmtype === "qemu" && qmp !== "ok" ? { qmp } : {},
        ...chance(0.2) ? { ignore_term: 1 } : {},
        ...chance(0.2) ? { grandchild: 1 } : {},
        ...chance(0.2) ? { usernet: 1 } : {},
        ...until === "running" ? {} : { stay_at: until },
      },
      until,
    };
  };

  const vm = makeVm();
  /** What is written right before Lima reads it no other program can take back: then a bystander, which it spares. */
  const latePut = (): Put => {
    const made = anyPut();
    return BELIEVED.includes(made.file) && made.holds === "the neighbour" ? { ...made, holds: "the bystander" } : made;
  };
  const action = (): Action =>
    pick<() => Action>([
      latePut,
      kill,
      () => ({ do: "kill", who: "guard" }),
      () => ({ do: "kill", who: "guard" }),
      () => ({ do: "signal", signal: pick(["SIGTERM", "SIGINT", "SIGHUP"]) }),
      () => ({ do: "start" }),
      () => ({ do: "another", role: pick(["pre", "stop", "status"]) }),
    ])();
  const guard = (role = pick<Run["role"]>(["pre", "pre", "stop", "stop", "run", "status"])): Run => {
    const wallMs = pick(CLOCKS);
    return {
      do: "guard",
      role,
      budgetS: pick([2, 3, 4]),
      ...role !== "status" && chance(0.15) ? { dryRun: true } : {},
      ...role === "pre" && vm.what === "agent" ? { hurry: true } : {},
      ...wallMs === 0 ? {} : { wallMs },
      ...chance(0.2) ? { uptimeMs: pick([1_000, 30_000, 10 * HOUR, 10_000 * HOUR]) } : {},
      // Most of what it does comes early; the later moments of a long stop are worth as much.
      ...chance(0.6) ? { meanwhile: { nth: 1 + below(pick([20, 80, 200])), action: action() } } : {},
    };
  };
  const step = (): Step => chance(0.7) ? guard() : pick<() => Step>([anyPut, anyPut, kill, () => ({ do: "start" })])();
  const many = <T>(most: number, make: () => T): T[] => Array.from({ length: below(most + 1) }, make);

  return {
    seed,
    number,
    vm,
    puts: many(6, anyPut),
    // However it went: in the end it is stopped, cleared and started.
    steps: [
      guard(),
      ...many(3, step),
      { do: "calm" },
      // Nothing but this one witness is then unknown.
      ...chance(0.3) ? [...pick(WITNESSES), guard(), { do: "calm" as const }] : [],
      { do: "guard", role: "stop", budgetS: 3 },
      { do: "guard", role: "pre", budgetS: 3, hurry: true },
      { do: "start" },
    ],
  };
}

/** A case for people, a line each. */
export function describeCase({ vm, puts, steps }: Case): string[] {
  const conf = Object.entries(vm.conf).map(([key, value]) => `${key}=${value}`).join(" ");
  return [`${vm.what}, ${conf}, up to ${vm.until}`, ...puts.map(describeStep), ...steps.map(describeStep)];
}

export function describeStep(step: Step | Action): string {
  switch (step.do) {
    case "put":
      return `${step.file}: ${step.holds}`;
    case "kill":
      return `SIGKILL to the ${step.who}`;
    case "start":
      return "limactl start";
    case "calm":
      return "the riddle ends, and silent sockets close";
    case "signal":
      return `${step.signal} to the guard`;
    case "another":
      return `--${step.role} beside it`;
    case "guard": {
      const { role, budgetS, dryRun, wallMs, uptimeMs, meanwhile } = step;
      const words = [
        `--${role} --timeout ${budgetS}`,
        ...dryRun ? ["--dry-run"] : [],
        ...wallMs === undefined ? [] : [`clock ${wallMs / 1000} s`],
        ...uptimeMs === undefined ? [] : [`up for ${uptimeMs / 1000} s`],
        ...meanwhile ? [`at ${meanwhile.nth}: ${describeStep(meanwhile.action)}`] : [],
      ];
      return words.join(", ");
    }
  }
}
