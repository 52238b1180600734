/**
 * What the guard decides: facts in, a plan out, the whole plan compared. The rows of `--pre` are numbered as in the
 * table of what can be left behind of an instance; rows 31 and 32 (a second launchd job, a missing HOME) are not
 * decided here. `laws_test.ts` holds every combination against what must never happen.
 */

import assert from "node:assert/strict";
import fc from "fast-check";
import {
  buttonEndMs,
  describeStep,
  describeStop,
  isOwnPort,
  type Observation,
  planPre,
  planStop,
  quote,
  stageLimits,
  worst,
} from "../lima_guard.ts";
import type { Diagnostic, Plan, StateFile, Step, StopEnd } from "./facts.ts";
import {
  at,
  claim,
  dead,
  DIR,
  HOME,
  notOurs,
  observation,
  ours,
  proven,
  recycled,
  row,
  signs,
  stale,
  STAMP,
  unknown,
} from "./observations.ts";

/** A removal: only while the file looks as it did. */
const remove = (file: string, because: string): Step => (
  { kind: "remove", what: `remove ${at(file)}`, because, path: at(file), stamp: STAMP }
);
const drops = (...claims: StateFile[]): Step[] =>
  claims.flatMap((c) => {
    const file = (path: string) => path.replace(`${DIR}/`, "").replace(`${HOME}/`, "");
    const name = c.path.replace(/.*\//, "");
    // Sockets first: a lima-guard that dies after them leaves the file that leads to them.
    return [
      ...c.sockets.map(({ path }) => remove(file(path), `it belongs to ${name}`)),
      remove(file(c.path), c.verdict.why),
    ];
  });

/** A plan with nothing in it but what is said. */
function plan(state: Plan["state"], because: string, more: Partial<Plan> = {}): Plan {
  return { state, because, status: 0, steps: [], blockers: [], notes: [], ...more };
}

const CLEAR = plan("clear", "nothing claims to be running");
const MARKER_GOES = remove("boot-session.tmp", "it goes with the last PID file, as in Lima ≥ 2.2.1");

function pre(name: string, seen: Partial<Observation>, expected: Plan): void {
  Deno.test(name, () => assert.deepEqual(planPre(observation(seen)), expected));
}

/** An instance in which some files claim something without proof: they go, in this order, and that is all. */
function healed(name: string, claims: StateFile[], more: Partial<Observation> = {}, lastSteps: Step[] = []): void {
  const steps = [...drops(...claims), ...lastSteps];
  pre(name, { stateFiles: claims, ...more }, plan("stale", claims[0]?.verdict.why ?? "", { steps }));
}

// ── --pre, row by row ──

const HA_SOCK = { sockets: ["ha.sock"] };
const sockets = (network: string) => ({
  sockets: ["fd", "qemu", "ep"].map((kind) => `_networks/${network}/${network}_${kind}.sock`),
});
const USERNET = "_networks/user-v2/usernet_user-v2.pid";
const garbage = (why: string) => notOurs(`it is not a PID: ${why}`);
const EMPTY = garbage("it is empty");

pre("row 1: no PID files", {}, CLEAR);

healed("row 2: ha.pid and vz.pid, PID dead", [claim("ha.pid", dead(789), HA_SOCK), claim("vz.pid", dead(789))]);
healed(
  "row 2: the same with Lima 2.3's boot marker",
  [claim("ha.pid", dead(789), HA_SOCK), claim("vz.pid", dead(789))],
  { bootMarker: STAMP },
  [MARKER_GOES],
);
healed("row 3: both recycled, ha.sock refuses", [
  claim("ha.pid", recycled(789), HA_SOCK),
  claim("vz.pid", recycled(789)),
]);
healed("row 4: only vz.pid, recycled (a clean stop, then a reboot)", [claim("vz.pid", recycled(789))]);
healed("row 5: only ha.pid, recycled, no ha.sock", [claim("ha.pid", recycled(789))]);
healed("row 6: the PID belongs to root", [claim("vz.pid", notOurs("PID 789 is not ours: it belongs to uid 0"))]);

for (
  const [text, why] of [
    ["empty", "it is empty"],
    ["garbage", "it holds something else than one decimal number"],
    ["too long", "it is too long"],
  ] as const
) {
  healed(`row 7: a PID file is ${text}`, [claim("vz.pid", garbage(why))]);
}
healed("row 7: a FIFO in the place of a PID file", [claim("ha.pid", notOurs("it is a FIFO, not a PID file"), HA_SOCK)]);

const booting = (pid: number, because: string): Plan =>
  plan("booting", because, {
    status: 75,
    blockers: [{
      what: `host agent ${pid}`,
      because,
      hint: "it is left alone; to end it: lima-guard --stop --lima-home /Users/zoe/.lima k3s",
    }],
  });
/** The stop stages of `--pre`: 60 s unless an option says otherwise. */
const guest = (because: string): Step => (
  { kind: "guest", what: "ask the guest over ssh to power off, until 21 s", because }
);
const agentStep = (pid: number): Step => ({
  kind: "agent",
  what: `SIGTERM to host agent ${pid}, until 51 s`,
  because: "Lima's own graceful stop follows",
});
const driverStep = (who: string, how = "SIGTERM"): Step => ({
  kind: "driver",
  what: `${how} to ${who}, until 51 s`,
  because: "only where no host agent is left to do it",
});
const POWERDOWN = "QMP system_powerdown, then SIGTERM";
const killStep = (who: string): Step => (
  { kind: "kill", what: `SIGKILL to ${who}, until 54 s`, because: "only what is still alive then" }
);

{
  const stray = proven("host agent", 811, { named: false });
  const claims = [claim("ha.pid", EMPTY, HA_SOCK), claim("vz.pid", EMPTY)];
  pre(
    "row 7: PID files are empty, and a host agent lives that none of them names",
    { stateFiles: claims, alive: [stray], agent: signs({ answers: false, ageS: 30, silentS: 3, wasRunning: false }) },
    booting(811, "host agent 811 is alive and does not answer yet"),
  );
  const because = "QEMU 812 runs without a host agent";
  const steps = [
    guest(because),
    driverStep("QEMU 812", POWERDOWN),
    killStep("QEMU 812"),
    ...drops(claim("qemu.pid", EMPTY)),
  ];
  pre(
    "row 7: qemu.pid is empty, and a QEMU lives that no file names",
    { stateFiles: [claim("qemu.pid", EMPTY)], alive: [proven("QEMU", 812, { named: false })] },
    plan("orphan", because, { steps }),
  );
}

for (
  const [text, why] of [["0", "0 is never a Lima process"], ["-1", "it holds something else than one decimal number"]]
) {
  healed(`row 8: a PID file holds ${text}`, [claim("vz.pid", garbage(why ?? ""))]);
}
healed("row 9: a PID file names the guard itself", [
  claim("ha.pid", notOurs("PID 4711 is not ours: it is lima-guard itself"), HA_SOCK),
]);

const AGENT = proven("host agent", 811);
const HA_OURS = claim("ha.pid", ours("host agent", 811), HA_SOCK);
const VZ_OURS = claim("vz.pid", ours("host agent", 811));
const ANSWERS_ALONE = "host agent 811 answers, its driver is not up";
const DRIVER_DIED = "host agent 811 answers, its driver has died";
const SILENT = "host agent 811 is alive and does not answer yet";
const young = signs({ ageS: 30 });
const NO_EVENT = { neverReported: true, wasRunning: false };

pre(
  "row 10: a host agent, and no vz.pid yet",
  { stateFiles: [HA_OURS], alive: [AGENT], agent: young },
  booting(811, ANSWERS_ALONE),
);
pre(
  "row 10: a host agent, and neither ha.sock nor vz.pid yet",
  { stateFiles: [HA_OURS], alive: [AGENT], agent: signs({ answers: false, ageS: 2, ...NO_EVENT }) },
  booting(811, SILENT),
);
pre(
  "row 10: a host agent beside the vz.pid of a run before",
  { stateFiles: [HA_OURS, claim("vz.pid", dead(700))], alive: [AGENT], agent: young },
  booting(811, DRIVER_DIED),
);
pre(
  "row 10: a host agent that answers a day later, and its VM has ended",
  { stateFiles: [HA_OURS, claim("qemu.pid", dead(700))], alive: [AGENT], agent: signs() },
  booting(811, DRIVER_DIED),
);
for (const file of ["x.drv.pid", "lima-driver-x-ha.pid"]) {
  pre(
    `row 10: a host agent whose external driver (${file}) has not started the VM yet`,
    {
      stateFiles: [HA_OURS, claim(file, ours("external driver", 813))],
      alive: [AGENT, proven("external driver", 813)],
      agent: young,
    },
    booting(811, ANSWERS_ALONE),
  );
}

const RUNNING = plan("running", "host agent 811 answers and its driver is alive");
pre("row 11: all good, vz", { stateFiles: [HA_OURS, VZ_OURS], alive: [AGENT], agent: signs() }, RUNNING);
pre(
  "row 11: all good, QEMU",
  {
    stateFiles: [HA_OURS, claim("qemu.pid", ours("QEMU", 812))],
    alive: [AGENT, proven("QEMU", 812)],
    agent: signs({ ageS: 100 }),
  },
  RUNNING,
);
pre(
  "row 11: all good, an external driver that writes the driver's PID file itself",
  {
    stateFiles: [HA_OURS, claim("new.pid", ours("external driver", 813))],
    alive: [AGENT, proven("external driver", 813)],
    agent: signs(),
  },
  RUNNING,
);
{
  // Lima signals whatever this one names at the next stop; but a running instance is not the moment.
  const claims = [
    HA_OURS,
    VZ_OURS,
    claim("x.drv.pid", recycled(700)),
    claim(USERNET, recycled(701), sockets("user-v2")),
  ];
  const note = { what: `${HOME}/old`, because: "it holds no lima.yaml" };
  pre(
    "row 11: a running instance is left alone, whatever else lies there",
    { stateFiles: claims, alive: [AGENT], agent: signs(), bootMarker: STAMP, notes: [note] },
    { ...RUNNING, notes: [note] },
  );
}

// Booting may take a vz agent 12 minutes in which it is deaf; beyond 15 it must have been silent for a minute.
{
  const halted = { ...AGENT, row: { ...AGENT.row, stat: "T" } };
  const because = "host agent 811 is stopped by a signal (ps: T)";
  pre(
    "a host agent that a signal stopped, and that does not answer: unknown, and how to let it run",
    { stateFiles: [HA_OURS, VZ_OURS], alive: [halted], agent: signs({ answers: false, ageS: 30, silentS: 3 }) },
    plan("unknown", because, {
      status: 75,
      blockers: [{ what: "host agent 811", because, hint: "kill -CONT 811" }],
    }),
  );
}

{
  const seen = { stateFiles: [HA_OURS, VZ_OURS], alive: [AGENT] };
  const because = "host agent 811 does not answer, and its boot is over";
  const stop = "lima-guard --stop --lima-home /Users/zoe/.lima k3s";
  const hint = `it is left alone; to end it: ${stop}`;
  const over = plan("unknown", because, { status: 75, blockers: [{ what: "host agent 811", because, hint }] });
  for (
    const [what, agent, expected] of [
      ["is silent, but young", { ageS: 899, silentS: 600, wasRunning: false }, booting(811, SILENT)],
      ["is silent and young, and its guest was up already", { ageS: 30, silentS: 3 }, over],
      ["is old, and silent for less than a minute", { ageS: 901, silentS: 59, wasRunning: false }, over],
    ] as const
  ) {
    pre(`row 12: a host agent that ${what}`, { ...seen, agent: signs({ answers: false, ...agent }) }, expected);
  }
}
for (
  const [name, agent, because, claims] of [
    [
      "row 12: a host agent that is old, and silent for a minute",
      { answers: false, ageS: 15 * 60, silentS: 60 },
      "host agent 811 is 15 min old and silent for 60 s",
      [HA_OURS, VZ_OURS],
    ],
    [
      "row 12: the same, and ha.sock is gone",
      { answers: false, ageS: 3 * 3600, silentS: 61.7 },
      "host agent 811 is 180 min old and silent for 61 s",
      [claim("ha.pid", ours("host agent", 811)), VZ_OURS],
    ],
    [
      "row 13: deadlocked: it answers, and has never written an event",
      { ageS: 16 * 60 + 59, ...NO_EVENT },
      "host agent 811 is 16 min old and has not written one event",
      [HA_OURS, VZ_OURS],
    ],
    [
      "row 13: deadlocked, and its VM is gone",
      { ageS: 20 * 60, ...NO_EVENT },
      "host agent 811 is 20 min old and has not written one event",
      [HA_OURS],
    ],
  ] as const
) {
  pre(
    name,
    { stateFiles: claims, alive: [AGENT], agent: signs(agent) },
    plan("hung", because, { steps: [guest(because), agentStep(811), killStep("host agent 811")] }),
  );
}
{
  const because = "host agent 811 is 60 min old and silent for 60 s";
  const drv = claim("x.drv.pid", recycled(789));
  pre(
    "row 12: a hung host agent and its QEMU, and an external driver's PID that is recycled",
    {
      stateFiles: [HA_OURS, claim("qemu.pid", ours("QEMU", 812)), drv],
      alive: [AGENT, proven("QEMU", 812)],
      agent: signs({ answers: false, ageS: 3600, silentS: 60 }),
      bootMarker: STAMP,
    },
    plan("hung", because, {
      steps: [
        ...drops(drv),
        guest(because),
        agentStep(811),
        driverStep("QEMU 812", POWERDOWN),
        killStep("host agent 811 and QEMU 812"),
      ],
    }),
  );
}
pre(
  "row 13: a young host agent without an event is not hung",
  { stateFiles: [HA_OURS, VZ_OURS], alive: [AGENT], agent: signs({ ageS: 899, ...NO_EVENT }) },
  RUNNING,
);

for (
  const [name, role, pid, how, claims] of [
    ["row 14: QEMU without a host agent", "QEMU", 812, POWERDOWN, [
      claim("ha.pid", dead(811), HA_SOCK),
      claim("qemu.pid", ours("QEMU", 812)),
    ]],
    ["row 14: krunkit without a host agent", "krunkit", 814, "SIGTERM", [
      claim("krunkit.pid", ours("krunkit", 814)),
    ]],
    ["row 15: QEMU in an instance that is vz by now", "QEMU", 812, POWERDOWN, [
      claim("qemu.pid", ours("QEMU", 812)),
      claim("vz.pid", recycled(789)),
    ]],
    ["row 24: an external driver without a host agent", "external driver", 813, "SIGTERM", [
      claim("ha.pid", recycled(789)),
      claim("x.drv.pid", ours("external driver", 813)),
    ]],
  ] as const
) {
  const who = `${role} ${pid}`;
  const because = `${who} runs without a host agent`;
  const void_ = claims.filter((c) => c.verdict.kind !== "ours");
  const steps = [guest(because), driverStep(who, how), killStep(who), ...drops(...void_)];
  pre(name, { stateFiles: claims, alive: [proven(role, pid)], bootMarker: STAMP }, plan("orphan", because, { steps }));
}
{
  const because = "QEMU 812 and external driver 813 run without a host agent";
  pre(
    "row 14: QEMU and its external driver without a host agent",
    {
      stateFiles: [claim("qemu.pid", ours("QEMU", 812)), claim("x.drv.pid", ours("external driver", 813))],
      alive: [proven("QEMU", 812), proven("external driver", 813)],
    },
    plan("orphan", because, {
      steps: [
        guest(because),
        driverStep("QEMU 812 and external driver 813", POWERDOWN),
        killStep("QEMU 812 and external driver 813"),
      ],
    }),
  );
}

Deno.test("--pre has the budget of --timeout for an orphan", () => {
  const seen = observation({ stateFiles: [claim("qemu.pid", ours("QEMU", 812))], alive: [proven("QEMU", 812)] });
  assert.deepEqual(planPre(seen, 30).steps.map(({ kind, what }) => [kind, what.match(/until \d+ s$/)?.[0]]), [
    ["guest", "until 7 s"],
    ["driver", "until 21 s"],
    ["kill", "until 24 s"],
  ]);
});

const LOCK = "_disks/data/in_use_by";
const OWN_LOCK = stale("it says this instance, of which nothing is alive");
healed("row 16: in_use_by points to this instance, nothing of it is alive", [claim(LOCK, OWN_LOCK)]);
healed("row 16: the same beside dead PID files", [
  claim("ha.pid", dead(789), HA_SOCK),
  claim("vz.pid", dead(789)),
  claim(LOCK, OWN_LOCK),
]);
pre(
  "row 16: in_use_by points to this instance, and it runs",
  { stateFiles: [HA_OURS, VZ_OURS, claim(LOCK, OWN_LOCK)], alive: [AGENT], agent: signs() },
  RUNNING,
);
const IN_USE: Diagnostic = {
  what: at(LOCK),
  because: `disk data is in use by ${HOME}/docker`,
  hint: "limactl stop docker, or take the disk out of lima.yaml",
};
pre(
  "row 17: in_use_by points to another instance",
  { startBlockers: [IN_USE] },
  plan("blocked", IN_USE.because, { status: 75, blockers: [IN_USE] }),
);
healed("row 17: in_use_by points to a directory that is gone", [
  claim(LOCK, stale(`it says ${HOME}/docker, which is gone`)),
]);
{
  const vz = claim("vz.pid", recycled(789));
  const lock = claim(LOCK, stale(`it says ${HOME}/docker, which is gone`));
  const held = {
    what: `${HOME}/_disks/data/datadisk`,
    because: "PID 905 (x) has it open for writing",
    hint: "ps -ww -p 905",
  };
  pre(
    "row 17: the same, and the disk is in use, or that is unknown: nothing is removed",
    { stateFiles: [vz, lock], held: [held], bootMarker: STAMP },
    plan("blocked", held.because, { status: 75, blockers: [held] }),
  );
}
healed("row 18: in_use_by points to this instance by another path, on two disks", [
  claim(LOCK, OWN_LOCK),
  claim("_disks/logs/in_use_by", OWN_LOCK),
]);

healed("row 19: usernet's PID is recycled, the network is wanted", [
  claim("_networks/mine/usernet_mine.pid", recycled(789), sockets("mine")),
]);
healed("row 20: the PID of usernet user-v2 is recycled, the network is not wanted", [
  claim(USERNET, recycled(789), sockets("user-v2")),
]);
healed("row 21: usernet's PID file is empty", [claim(USERNET, EMPTY, sockets("user-v2"))]);
pre(
  "row 21: usernet lives",
  { stateFiles: [claim(USERNET, ours("usernet", 815), sockets("user-v2"))], alive: [proven("usernet", 815)] },
  CLEAR,
);
{
  const why = "PID 815 is unknown: ps gave no answer: no end within 5000 ms";
  const ha = claim("ha.pid", dead(789), HA_SOCK);
  const blocker = {
    what: at(USERNET),
    because: why,
    hint: "ps -ww -p 789; if it is a process of this VM: kill 789",
  };
  pre(
    "row 21: what usernet's PID is cannot be found out: only that network is left alone",
    { stateFiles: [ha, claim(USERNET, unknown(why), sockets("user-v2"))], bootMarker: STAMP },
    plan("blocked", why, { status: 75, steps: [...drops(ha), MARKER_GOES], blockers: [blocker] }),
  );
}
{
  const note = {
    what: at("_networks/user-v2/user-v2_ep.sock"),
    because: "a usernet answers that no PID file names; Lima starts another beside it",
  };
  pre("row 22: a usernet lives that no PID file names", { notes: [note] }, { ...CLEAR, notes: [note] });
}
{
  const file = "/private/var/run/lima/shared_socket_vmnet.pid";
  const blocker: Diagnostic = {
    what: file,
    because: 'PID 789 is "/usr/libexec/sirittsd", not socket_vmnet',
    hint: `sudo rm ${file}`,
    status: 77,
  };
  pre(
    "row 23: socket_vmnet's PID is recycled, and the file is root's",
    { startBlockers: [blocker] },
    plan("blocked", blocker.because, { status: 77, blockers: [blocker] }),
  );
}
for (const file of ["x.drv.pid", "lima-driver-x-cli.pid"]) {
  healed(`row 24: ${file} is recycled`, [claim(file, recycled(789))]);
}

pre(
  "row 25: lima.yaml is missing, whatever else is there",
  {
    missing: "no such instance: it has no lima.yaml",
    stateFiles: [claim("vz.pid", recycled(789))],
    unknowns: [{ what: "x", because: "y" }],
    notes: [{ what: "z", because: "w" }],
  },
  plan("missing", "no such instance: it has no lima.yaml", {
    status: 66,
    blockers: [{
      what: DIR,
      because: "no such instance: it has no lima.yaml",
      hint: "limactl start would silently create a new VM of this name",
    }],
    notes: [{ what: "z", because: "w" }],
  }),
);

{
  const note = {
    what: `${HOME}/old`,
    because: "it holds no lima.yaml; Lima up to 2.1 refuses to start any instance beside it",
    hint: `move it out of ${HOME}`,
  };
  pre("row 26: LIMA_HOME holds a directory without lima.yaml", { notes: [note] }, { ...CLEAR, notes: [note] });
}
{
  const blocker = {
    what: `${HOME}/bad name`,
    because: "its name is no instance name, and `limactl start` refuses to work beside it",
    hint: `move it out of ${HOME}, or let its name begin with a dot`,
  };
  const vz = claim("vz.pid", dead(789));
  pre(
    "row 27: LIMA_HOME holds a directory with an invalid name; the rest is repaired all the same",
    { stateFiles: [vz], startBlockers: [blocker] },
    plan("blocked", blocker.because, { status: 75, steps: drops(vz), blockers: [blocker] }),
  );
}
{
  const fixed = "its directory belongs to uid 0 and has mode 0755";
  const ha = claim("ha.pid", dead(789), { ...HA_SOCK, undeletable: fixed });
  const vz = claim("vz.pid", recycled(789));
  const because = `it is stale (${ha.verdict.why}) and cannot be removed: ${fixed}`;
  pre(
    "row 28: a PID file cannot be removed; the boot marker stays with it",
    { stateFiles: [ha, vz], bootMarker: STAMP },
    plan("blocked", because, {
      status: 77,
      steps: drops(vz),
      blockers: [{ what: at("ha.pid"), because, hint: `ls -ld ${DIR} ${DIR}/ha.pid`, status: 77 }],
    }),
  );
}
const CUT = stale("it is cut short: no port in it, and Lima refuses to read it");
healed("row 29: ssh.config is cut short", [claim("ssh.config", CUT)]);
healed("row 29: ssh.config is cut short, and a boot marker lies there alone", [claim("ssh.config", CUT)], {
  bootMarker: STAMP,
});
{
  const blocker = {
    what: "port 60022",
    because: "ssh.localPort of lima.yaml, and a process listens there already",
    hint: "lsof -nP -iTCP:60022 -sTCP:LISTEN",
  };
  pre(
    "row 30: the fixed ssh port is taken",
    { startBlockers: [blocker] },
    plan("blocked", blocker.because, { status: 75, blockers: [blocker] }),
  );
}
healed("row 33: PID files and the boot marker of an earlier boot", [claim("vz.pid", recycled(789))], {
  bootMarker: STAMP,
}, [
  MARKER_GOES,
]);
pre("row 33: a boot marker without a PID file is left alone", { bootMarker: STAMP }, CLEAR);
// A socket alone is no fact that anything is decided by; with it, but without a PID file, there is nothing else.
pre("row 34: cold sockets without PID files", { stateFiles: [], alive: [] }, CLEAR);

// ── unknown permits nothing ──

const UNREADABLE = unknown("it cannot be read: Permission denied (os error 13)");
const DOUBT: Diagnostic = {
  what: at("vz.pid"),
  because: UNREADABLE.why,
  hint: "ps -ww -p 789; if it is a process of this VM: kill 789",
};
const PS_FAILED: Diagnostic = { what: "all processes", because: "ps gave no answer", hint: "run this again" };
const UNKNOWN = "nothing is touched while this is unknown";
pre(
  "unknown: one PID file cannot be read: the others stay, and so does a lock",
  {
    stateFiles: [claim("ha.pid", dead(789), HA_SOCK), claim("vz.pid", UNREADABLE), claim(LOCK, OWN_LOCK)],
    bootMarker: STAMP,
  },
  plan("unknown", UNKNOWN, { status: 75, blockers: [DOUBT] }),
);
pre(
  "unknown: ps gave no answer",
  { stateFiles: [claim("vz.pid", EMPTY)], unknowns: [PS_FAILED] },
  plan("unknown", UNKNOWN, { status: 75, blockers: [PS_FAILED] }),
);
pre(
  "unknown: an orphan, and something else that cannot be found out",
  { stateFiles: [claim("qemu.pid", ours("QEMU", 812)), claim("vz.pid", UNREADABLE)], alive: [proven("QEMU", 812)] },
  plan("unknown", UNKNOWN, { status: 75, blockers: [DOUBT] }),
);
pre(
  "unknown: a hung host agent, and something else that cannot be found out",
  {
    stateFiles: [HA_OURS],
    alive: [AGENT],
    agent: signs({ answers: false, ageS: 3600, silentS: 60 }),
    unknowns: [PS_FAILED],
  },
  plan("unknown", UNKNOWN, { status: 75, blockers: [PS_FAILED] }),
);
pre(
  "unknown: a running instance runs all the same",
  { stateFiles: [HA_OURS, VZ_OURS], alive: [AGENT], agent: signs(), unknowns: [PS_FAILED] },
  RUNNING,
);
pre(
  "unknown: a path with a blank is quoted in what to type",
  {
    stateFiles: [{
      ...claim("vz.pid", UNREADABLE),
      path: "/Volumes/My VMs/k3s/vz.pid",
      stamp: { ...STAMP, text: undefined },
    }],
  },
  plan("unknown", UNKNOWN, {
    status: 75,
    blockers: [{
      what: "/Volumes/My VMs/k3s/vz.pid",
      because: UNREADABLE.why,
      hint: "ls -ld '/Volumes/My VMs/k3s/vz.pid'; if this VM does not run: move it out of the folder",
    }],
  }),
);

// ── --stop ──

function stop(name: string, seen: Partial<Observation>, expected: Plan, budgetS = 60): void {
  Deno.test(`--stop: ${name}`, () => assert.deepEqual(planStop(observation(seen), budgetS), expected));
}

const NOTHING_ALIVE = "no process of it is alive";
stop("nothing is alive, nothing is left", {}, plan("stopped", NOTHING_ALIVE));
{
  const claims = [claim("ha.pid", dead(811), HA_SOCK), claim("vz.pid", dead(811))];
  const steps = [...drops(...claims), MARKER_GOES];
  stop(
    "nothing is alive, the next boot must start clean",
    { stateFiles: claims, bootMarker: STAMP },
    plan("stopped", NOTHING_ALIVE, { steps }),
  );
}
{
  const because = "host agent 811 is alive";
  const steps = [guest(because), agentStep(811), killStep("host agent 811")];
  const seen = { claims: [HA_OURS, VZ_OURS], alive: [AGENT], agent: signs() };
  stop("a running vz instance", seen, plan("running", because, { steps }));
  const claims = [HA_OURS, VZ_OURS, claim("x.drv.pid", recycled(789)), claim(USERNET, EMPTY, sockets("user-v2"))];
  const [driver, ...files] = drops(...claims.slice(2));
  stop(
    "a running instance with stale files beside it",
    { ...seen, stateFiles: claims },
    plan("running", because, {
      steps: [driver!, ...steps, ...files],
    }),
  );
  // A booting agent is stopped as well: that was asked for.
  stop("a booting instance", { ...seen, agent: young, stateFiles: [HA_OURS] }, plan("running", because, { steps }));
}
{
  const because = "host agent 811 and QEMU 812 are alive";
  const [agent, driver, kill] = ["host agent 811", "QEMU 812", "host agent 811 and QEMU 812"];
  stop(
    "a running QEMU instance in 30 s",
    {
      stateFiles: [HA_OURS, claim("qemu.pid", ours("QEMU", 812))],
      alive: [AGENT, proven("QEMU", 812)],
      agent: signs(),
    },
    plan("running", because, {
      steps: [
        { kind: "guest", what: "ask the guest over ssh to power off, until 7 s", because },
        { kind: "agent", what: `SIGTERM to ${agent}, until 21 s`, because: "Lima's own graceful stop follows" },
        {
          kind: "driver",
          what: `${POWERDOWN} to ${driver}, until 21 s`,
          because: "only where no host agent is left to do it",
        },
        { kind: "kill", what: `SIGKILL to ${kill}, until 24 s`, because: "only what is still alive then" },
      ],
    }),
    30,
  );
}
{
  const because = "krunkit 814 is alive";
  stop(
    "an orphan; usernet serves others too and stays",
    {
      alive: [proven("krunkit", 814), proven("usernet", 815)],
      stateFiles: [claim("krunkit.pid", ours("krunkit", 814))],
    },
    plan("orphan", because, { steps: [guest(because), driverStep("krunkit 814"), killStep("krunkit 814")] }),
  );
}
stop(
  "only usernet is alive",
  { alive: [proven("usernet", 815)], stateFiles: [claim(USERNET, ours("usernet", 815))] },
  plan("stopped", NOTHING_ALIVE),
);
stop(
  "what is unknown is not touched",
  { stateFiles: [claim("ha.pid", dead(789), HA_SOCK), claim("vz.pid", UNREADABLE)], bootMarker: STAMP },
  plan("unknown", UNKNOWN, { status: 75, blockers: [DOUBT] }),
);
{
  const because = "host agent 811 is alive";
  stop(
    "what is proven is stopped beside what is unknown, of which no file goes but one that Lima would signal by",
    {
      stateFiles: [HA_OURS, claim("vz.pid", UNREADABLE), claim("x.drv.pid", dead(700))],
      alive: [AGENT],
      agent: signs(),
      bootMarker: STAMP,
    },
    plan("running", because, {
      status: 75,
      steps: [
        ...drops(claim("x.drv.pid", dead(700))),
        guest(because),
        agentStep(811),
        killStep("host agent 811"),
      ],
      blockers: [DOUBT],
    }),
  );
}
stop(
  "what would only make a start fail does not concern a stop",
  { startBlockers: [IN_USE] },
  plan("stopped", NOTHING_ALIVE),
);
Deno.test("--stop: an instance that is not there is reported as by --pre", () => {
  const seen = observation({ missing: "no such instance: it has no lima.yaml" });
  assert.deepEqual(planStop(seen, 60), planPre(seen));
  assert.equal(planStop(seen, 60).status, 66);
});

// ── the stop stages ──

for (
  const [budget, guest, grace, kill, cleanUp] of [
    // A T too short for grace still leaves kill and clean up their time.
    [60, 21, 51, 54, 57],
    [3600, 120, 3591, 3594, 3597],
    [90, 51, 81, 84, 87],
    [45, 12, 36, 39, 42],
    [30, 7, 21, 24, 27],
    [18, 3, 9, 12, 15],
    [6, 1, 3, 4, 5],
    [1, 1 / 6, 1 / 2, 2 / 3, 5 / 6],
  ] as const
) {
  Deno.test(`stageLimits() of ${budget} s`, () => {
    const limits = stageLimits(budget);
    for (
      const [stage, expected] of [
        ["guest", guest],
        ["agent", grace],
        ["driver", grace],
        ["kill", kill],
        ["clean up", cleanUp],
      ] as const
    ) {
      assert.ok(Math.abs(limits[stage] - expected) < 1e-9, `${stage} ends at ${limits[stage]}, not at ${expected}`);
    }
    assert.equal(Object.keys(limits).length, 5);
  });
}

Deno.test("buttonEndMs() leaves a QEMU a fifth of the time to end, and never more than 3 s", () => {
  assert.equal(buttonEndMs(5_000, 51_000), 48_000);
  assert.equal(buttonEndMs(1_000, 6_000), 5_000);
  assert.equal(buttonEndMs(6_000, 6_000), 6_000);
});

Deno.test("stageLimits() leaves every stage time, and some reserve, whatever the budget", () => {
  fc.assert(
    fc.property(fc.double({ min: 0.1, max: 3600, noNaN: true }), (budget) => {
      const { guest, agent, driver, kill, "clean up": cleanUp } = stageLimits(budget);
      assert.equal(agent, driver);
      // A sixth of a short budget, 3 s of a long one: for kill, for clean up, and in reserve.
      const share = Math.min(3, budget / 6) * 0.999;
      const gaps = [kill - agent, cleanUp - kill, budget - cleanUp];
      assert.ok(gaps.every((gap) => gap >= share), `${gaps} of ${budget}`);
      assert.ok(guest > 0 && guest < agent, `${guest} and ${agent} of ${budget}`);
      assert.ok(agent >= budget / 2 - 1e-9, "half of it and more is for grace");
    }),
    { numRuns: 1000 },
  );
});

for (
  const [name, alive, kinds] of [
    ["a host agent", [AGENT], "guest agent kill"],
    ["a host agent and its QEMU", [AGENT, proven("QEMU", 812)], "guest agent driver kill"],
    ["an orphan", [proven("QEMU", 812)], "guest driver kill"],
  ] as const
) {
  Deno.test(`the stages of a stop of ${name}: ${kinds}`, () => {
    assert.equal(planStop(observation({ alive }), 60).steps.map((s) => s.kind).join(" "), kinds);
  });
}

// ── whether the port in ssh.config is the instance's own ──

/** ssh.config is written after ha.pid, at each start; both times are the file system's, of a second on some. */
const WRITTEN = { port: 60022, mtimeMs: 10_500, haPidMtimeMs: 10_000 };
const forwarding = (
  options: string,
) => [proven("QEMU", 812, { row: row(`qemu-system-x86_64 ${options}`, { pid: 812 }) })];
const HOSTFWD = "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:60022-:22 -device virtio-net-pci";
for (
  const [name, isOwn, alive, file] of [
    ["the host agent wrote it", true, [AGENT], WRITTEN],
    ["as old as ha.pid", true, [AGENT], { ...WRITTEN, mtimeMs: 10_000 }],
    ["older than ha.pid: another run's", false, [AGENT], { ...WRITTEN, mtimeMs: 9_999 }],
    ["no ha.pid to compare with", false, [AGENT], { ...WRITTEN, haPidMtimeMs: undefined }],
    ["no port", false, [AGENT], { ...WRITTEN, port: undefined }],
    ["nothing is alive", false, [], WRITTEN],
    ["only usernet is alive", false, [proven("usernet", 815)], WRITTEN],
    ["an orphaned krunkit says nothing about ports", false, [proven("krunkit", 814)], WRITTEN],
    ["an orphaned QEMU forwards it", true, forwarding(HOSTFWD), { ...WRITTEN, haPidMtimeMs: undefined }],
    ["an orphaned QEMU forwards another", false, forwarding(HOSTFWD), { ...WRITTEN, port: 60023 }],
    ["QEMU forwards another, whatever the times say", false, [AGENT, ...forwarding(HOSTFWD)], {
      ...WRITTEN,
      port: 60023,
    }],
    ["QEMU forwards a longer number", false, forwarding(HOSTFWD), { ...WRITTEN, port: 6002 }],
    ["QEMU forwards several", true, forwarding("-netdev user,hostfwd=tcp::8080-:80,hostfwd=tcp::60022-:22"), WRITTEN],
    ["QEMU forwards none, the host agent does", true, [AGENT, ...forwarding("-m 4096")], WRITTEN],
    ["an orphaned QEMU forwards none", false, forwarding("-m 4096"), WRITTEN],
  ] as const
) {
  Deno.test(`isOwnPort() ${isOwn ? "yes" : "no"}: ${name}`, () => {
    assert.equal(isOwnPort(observation({ alive }), file), isOwn);
  });
}

// ── words ──

for (
  const [end, seconds, words] of [
    ["guest", 6.14, "stopped gracefully by the guest in 6.1 s"],
    ["agent", 12, "stopped gracefully by the host agent in 12.0 s"],
    ["driver", 0.05, "stopped gracefully by the driver in 0.1 s"],
    ["killed", 45.5, "stopped hard (killed) in 45.5 s"],
    ["already stopped", 0.1, "already stopped"],
    ["gone before the request", 0.1, "gone before the request: the VM was no longer there"],
  ] as [StopEnd, number, string][]
) {
  Deno.test(`describeStop(): ${words}`, () => assert.equal(describeStop(end, seconds), words));
}

Deno.test("describeStep() prints what and why, and what came of it", () => {
  const kill: Step = { kind: "kill", what: "SIGKILL to QEMU 812", because: "it is alive" };
  assert.equal(describeStep(kill), "SIGKILL to QEMU 812 (it is alive)");
  assert.equal(describeStep({ ...kill, outcome: { kind: "done" } }), "SIGKILL to QEMU 812 (it is alive): done");
  assert.equal(
    describeStep({ kind: "remove", what: "remove /x", because: "y", outcome: { kind: "failed", why: "z" } }),
    "remove /x (y): failed: z",
  );
});

for (
  const [statuses, expected] of [
    [[], 0],
    [[0, 0], 0],
    [[0, 75], 75],
    [[75, 66], 66],
    [[66, 77], 77],
    [[77, 1], 1],
    [[0, 75, 66, 77, 1], 1],
  ] as const
) {
  Deno.test(`worst() of ${statuses.join(", ") || "nothing"} is ${expected}`, () => {
    assert.equal(worst(statuses), expected);
    assert.equal(worst([...statuses].reverse()), expected);
  });
}

for (
  const [text, quoted] of [
    ["/Users/zoe/.lima/k3s/ha.pid", "/Users/zoe/.lima/k3s/ha.pid"],
    ["/Volumes/My VMs", "'/Volumes/My VMs'"],
    ["O'Brien", "'O'\\''Brien'"],
    ["$(reboot)", "'$(reboot)'"],
    ["a;b", "'a;b'"],
    ["a\nb", "'a\nb'"],
    ["~/x", "'~/x'"],
    ["zoë", "'zoë'"],
    ["", "''"],
  ] as const
) {
  Deno.test(`quote() of ${JSON.stringify(text)}`, () => assert.equal(quote(text), quoted));
}
