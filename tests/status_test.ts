/** `--status`: what is read of jobs and journals, what is made of it, and the role itself on real processes. */

import assert from "node:assert/strict";
import {
  howItRuns,
  journalWords,
  judgeJobs,
  lastStop,
  limaWouldSay,
  needsPerson,
  type Observation,
  readJobPlist,
  readJournal,
  readReadiness,
  stopUnderWay,
  VERSION,
} from "../lima_guard.ts";
import type { JobStatus, JournalLine } from "./facts.ts";
import {
  agentOf,
  eventually,
  everyonesEnv,
  type Home,
  IMPOSSIBLE_PID,
  isAlive,
  ordinaryUser,
  runGuard,
  spawnGuard,
  startAgent,
  startBystander,
  tempLimaHome,
} from "./helpers/mod.ts";
import { guardWith } from "./helpers/guard_with.ts";
import { claim, observation, proven } from "./observations.ts";

// ── plists, by pattern ──

const ARRAY = (...args: string[]) =>
  `<plist><dict>\n\t<key>ProgramArguments</key>\n\t<array>${
    args.map((a) => `<string>${a}</string>`).join("\n")
  }</array>`;

for (
  const [name, plist, args, wrapped] of [
    ["Lima's own", ARRAY("/opt/homebrew/bin/limactl", "start", "k3s", "--foreground"), [
      "/opt/homebrew/bin/limactl",
      "start",
      "k3s",
      "--foreground",
    ], false],
    ["guarded", ARRAY("/usr/local/libexec/lima-guard", "--run", "k3s", "--", "limactl", "start", "k3s"), [
      "/usr/local/libexec/lima-guard",
      "--run",
      "k3s",
      "--",
      "limactl",
      "start",
      "k3s",
    ], true],
    ["guarded for another instance", ARRAY("/x/lima-guard", "--run", "k3s-2", "--", "limactl"), [
      "/x/lima-guard",
      "--run",
      "k3s-2",
      "--",
      "limactl",
    ], false],
    [
      "a name with entities",
      ARRAY("/a &amp; b/lima-guard", "&lt;&gt;&quot;&apos;"),
      ["/a & b/lima-guard", "<>\"'"],
      false,
    ],
    [
      "CDATA",
      ARRAY("<![CDATA[/a &amp; <b>/lima-guard]]>", "--run", "<![CDATA[k3s]]>"),
      ["/a &amp; <b>/lima-guard", "--run", "k3s"],
      true,
    ],
    ["in a comment", `<!-- ${ARRAY("/x/lima-guard", "--run", "k3s")} -->${ARRAY("limactl")}`, ["limactl"], false],
    ["none", "<plist><dict/></plist>", [], false],
    ["another program that has the words", ARRAY("/bin/echo", "--run", "k3s"), ["/bin/echo", "--run", "k3s"], false],
  ] as const
) {
  Deno.test(`a job's arguments: ${name}`, () => {
    const job = readJobPlist(plist);
    assert.deepEqual(job.command, args);
    assert.equal(howItRuns(job, "k3s") === "guarded", wrapped);
  });
}

// ── the verdict on the last stop ──

const DIR = "/Users/zoe/.lima/k3s";
const line = (event: string, more: Record<string, unknown> = {}, boot = "B"): JournalLine => ({
  time: "2026-11-22T23:16:54.000Z",
  boot,
  dir: DIR,
  role: "run",
  event,
  ...more,
});
const END = line("end", { requested: true, stage: "guest", seconds: { guest: 6.1, total: 6.14 }, status: 0 });

for (
  const [name, lines, alive, expected] of [
    ["an empty journal", [], false, "none recorded"],
    ["a graceful stop", [line("start"), END], false, "stopped gracefully by the guest in 6.1 s"],
    [
      "while it runs again, the stop before counts",
      [line("start"), END, line("start")],
      true,
      "stopped gracefully by the guest in 6.1 s",
    ],
    [
      "killed",
      [line("start"), line("end", { stage: "killed", seconds: { total: 45.04 } })],
      false,
      "stopped hard (killed) in 45.0 s",
    ],
    [
      "gone before",
      [line("start"), line("end", { stage: "gone before the request", seconds: { total: 0.1 } })],
      false,
      "gone before the request: the VM was no longer there",
    ],
    [
      "the host went down in the middle",
      [line("start", {}, "A"), line("running", {}, "A")],
      false,
      "cut off: no stop was recorded and the host rebooted",
    ],
    [
      "the guard was killed",
      [line("start"), line("running")],
      false,
      "cut off: lima-guard was killed before it could record the end",
    ],
    [
      "the guard was killed, and the next one adopted its VM, which runs",
      [
        line("start"),
        END,
        line("start", { pid: 8 }),
        line("running", { pid: 9 }),
        line("start", { pid: 9, adopted: true }),
      ],
      true,
      "stopped gracefully by the guest in 6.1 s",
    ],
    [
      "the guard was killed, and the next one adopted another VM",
      [line("start"), END, line("start", { pid: 8 }), line("start", { pid: 9, adopted: true })],
      true,
      "cut off: lima-guard was killed before it could record the end",
    ],
    [
      "the host went down, and a VM of the same number was adopted",
      [line("start", { pid: 9 }, "A"), line("start", { pid: 9, adopted: true })],
      true,
      "cut off: no stop was recorded and the host rebooted",
    ],
    [
      "the command ended by itself",
      [line("start"), line("end", { status: 3, ranS: 9 })],
      false,
      "ended by itself with status 3",
    ],
    [
      "a signal ended the command",
      [line("start"), line("end", { status: 137, signal: "SIGKILL" })],
      false,
      "ended by itself with SIGKILL",
    ],
    [
      "Lima cut the guest off",
      [
        line("start"),
        line("end", { stage: "agent", seconds: { total: 0.2 }, cut: "vz: CanRequestStop is not supported" }),
      ],
      false,
      "stopped by the host agent in 0.2 s, which cut the guest off: vz: CanRequestStop is not supported",
    ],
  ] as const
) {
  Deno.test(`the last stop: ${name}`, () => assert.equal(lastStop(lines, "B", alive).lastStop, expected));
}

for (
  const [lines, alive, kind, at] of [
    [[], false, "none", null],
    [[line("start"), END], false, "graceful", END.time],
    [[line("start"), END, line("start")], true, "graceful", END.time],
    [[line("start"), line("end", { stage: "killed" })], false, "killed", END.time],
    [[line("end", { stage: "agent", cut: "vz: CanRequestStop is not supported" })], false, "cut by agent", END.time],
    [[line("start"), line("end", { stage: "unknown" })], false, "unknown", END.time],
    [[line("start")], false, "cut off", null],
    [[line("start"), line("end", { status: 3 })], false, "by itself", END.time],
  ] as const
) {
  Deno.test(`the last stop for a monitor: ${kind}${alive ? ", and it runs again" : ""}`, () => {
    const { lastStop: _, ...fields } = lastStop(lines, "B", alive);
    assert.deepEqual(fields, { lastStopKind: kind, lastStopAt: at });
  });
}

// ── what needs a person ──

const PLACE = { name: "k3s", home: "/Users/zoe/.lima", dir: DIR, owner: 501 };
const JOB: JobStatus = {
  label: "io.lima-vm.daemon.k3s",
  plist: "/Library/LaunchDaemons/io.lima-vm.daemon.k3s.plist",
  wrapped: true,
  loaded: "yes",
  disabled: false,
  exitTimeoutS: 60,
  target: "system/io.lima-vm.daemon.k3s",
  startsAtLoad: true,
};
const { startsAtLoad: _, ...ON_DEMAND } = JOB;
const AGENT = { ...JOB, label: "io.lima-vm.autostart.k3s", target: "gui/501/io.lima-vm.autostart.k3s" };

for (
  const [name, jobs, state, supervised, troubles] of [
    ["no job is a note only", [], "running", false, []],
    ["all as it should be", [JOB], "running", true, []],
    ["not guarded is a note only", [{ ...JOB, wrapped: false, exitTimeoutS: 5 }], "running", false, []],
    ["launchd's time limit is too short", [{ ...JOB, exitTimeoutS: 5 }], "stopped", false, [/launchd gives it 5 s/]],
    ["without a time limit it is long enough", [{ ...JOB, exitTimeoutS: 0 }], "stopped", false, []],
    ["disabled", [{ ...JOB, disabled: true }], "stopped", false, [/disabled/]],
    ["started by hand", [JOB], "running", false, [/without its job.*cut off at the next shutdown/]],
    ["registered twice", [JOB, AGENT], "stopped", false, [/registered twice/]],
    ["two daemons", [JOB, { ...JOB, label: "x.k3s" }], "stopped", false, [
      /2 launchd jobs: io\.lima-vm\.daemon\.k3s, x\.k3s/,
    ]],
    ["a daemon without UserName", [{ ...JOB, runsAsRoot: true }], "stopped", false, [/refuses to run as root/]],
  ] as const
) {
  Deno.test(`jobs: ${name}`, () => {
    const report = judgeJobs({ jobs, unread: [] }, PLACE, { state, supervised });
    assert.equal(report.blockers.length, troubles.length);
    troubles.forEach((pattern, i) => assert.match(report.blockers[i]!.because, pattern));
    for (const remark of report.blockers) assert.ok(remark.hint, "the next command to type");
  });
}

for (
  const [name, job, state, hints] of [
    ["loaded and running by hand", {}, "running", [
      `lima-guard --stop --lima-home /Users/zoe/.lima k3s && sudo launchctl kickstart ${JOB.target}`,
    ]],
    ["not loaded and running by hand", { loaded: "no" }, "running", [
      `lima-guard --stop --lima-home /Users/zoe/.lima k3s && sudo launchctl bootstrap system ${JOB.plist}`,
    ]],
    ["not loaded and stopped", { loaded: "no" }, "stopped", [`sudo launchctl bootstrap system ${JOB.plist}`]],
    ["not loaded and disabled", { loaded: "no", disabled: true }, "stopped", [
      `sudo launchctl enable ${JOB.target} && sudo launchctl bootstrap system ${JOB.plist}`,
    ]],
    [
      "a login agent",
      { loaded: "no", target: "gui/501/x", plist: "/Users/zoe/Library/LaunchAgents/x.plist" },
      "stopped",
      [
        "launchctl bootstrap gui/501 /Users/zoe/Library/LaunchAgents/x.plist",
      ],
    ],
    ["loaded and stopped", {}, "stopped", []],
    [
      "disabled, and no user is logged in",
      { loaded: "no", disabled: true, noLogin: true, target: "gui/501/x" },
      "stopped",
      [
        "launchctl enable gui/501/x",
        undefined,
      ],
    ],
  ] as const
) {
  Deno.test(`jobs: what to type where a job is ${name}`, () => {
    const { blockers, notes } = judgeJobs({ jobs: [{ ...JOB, ...job }], unread: [] }, PLACE, {
      state,
      supervised: false,
    });
    assert.deepEqual([...blockers, ...notes].map((r) => r.hint), hints);
  });
}

for (
  const [name, jobs, hint] of [
    [
      "Lima's own at login beside a daemon",
      [JOB, AGENT],
      /^LIMA_HOME=\/Users\/zoe\/\.lima limactl autostart disable k3s$/,
    ],
    [
      "two that Lima does not know",
      [{ ...JOB, label: "com.me.colima", target: "system/com.me.colima" }, {
        ...AGENT,
        label: "homebrew.mxcl.colima",
        target: "gui/501/homebrew.mxcl.colima",
        plist: "/Users/zoe/Library/LaunchAgents/homebrew.mxcl.colima.plist",
      }],
      /^launchctl bootout gui\/501\/homebrew\.mxcl\.colima; then move its plist away: ls -ld \S+\/homebrew\.mxcl\.colima\.plist$/,
    ],
    [
      "a daemon without UserName",
      [{ ...JOB, runsAsRoot: true }],
      /^sudo launchctl bootout system\/io\.lima-vm\.daemon\.k3s; then name its user as UserName in its plist: ls -ld \S+$/,
    ],
  ] as const
) {
  Deno.test(`jobs: what to type where there is one too many, or one of root's: ${name}`, () => {
    const { blockers } = judgeJobs({ jobs, unread: [] }, PLACE, { state: "stopped", supervised: false });
    assert.match(blockers[0]?.hint ?? "", hint);
  });
}

Deno.test("jobs: one that does not start when it is loaded is started too", () => {
  const { notes } = judgeJobs({ jobs: [{ ...ON_DEMAND, loaded: "no" }], unread: [] }, PLACE, {
    state: "stopped",
    supervised: false,
  });
  const load = `sudo launchctl bootstrap system ${JOB.plist}`;
  assert.deepEqual(notes.map((note) => note.hint), [`${load} && sudo launchctl kickstart ${JOB.target}`]);
});

Deno.test("jobs: it runs, and whether a lima-guard supervises it is unknown: that is no start by hand", () => {
  const supervised = { why: "Too many open files" };
  const { blockers, notes } = judgeJobs({ jobs: [JOB], unread: [] }, PLACE, { state: "running", supervised });
  const because = "whether lima-guard supervises it is unknown: Too many open files";
  const what = `${DIR}/lima-guard.lock`;
  assert.deepEqual({ blockers, notes }, { blockers: [], notes: [{ what, because, hint: `lsof -- ${what}` }] });
});

for (const locks of ["other", "unsupported"] as const) {
  Deno.test(`no lock can be tried (${locks}): whether a lima-guard supervises it is not known`, async () => {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    await using _agent = await startAgent(k3s);
    const plist = recorded("lima-2.2-agent.guarded").replace("/Users/zoe/.lima", home.lima);
    loginAgent(home, "com.me.k3s", plist.replaceAll("default", "k3s"));
    k3s.write("lima-guard.lock", "");
    const { status, stdout } = await runGuard(home, ["--status", "k3s"], guardWith({ locks }));
    assert.equal(status, 0, stdout);
    assert.match(stdout, /whether lima-guard supervises it is unknown: /);
  });
}

Deno.test({
  name: "a lock that only its owner may read: another user does not know whether a lima-guard supervises it",
  ignore: ordinaryUser() === null,
  fn: async () => {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    const plist = recorded("lima-2.2-agent.guarded").replace("/Users/zoe/.lima", home.lima);
    loginAgent(home, "com.me.k3s", plist.replaceAll("default", "k3s"));
    k3s.write("lima-guard.lock", "");
    await using _agent = await agentOf(k3s, ordinaryUser()!);
    Deno.chmodSync(k3s.path("lima-guard.lock"), 0o600);
    Deno.chmodSync(k3s.path("ha.sock"), 0o777);
    const { DENO_DIR } = everyonesEnv(home);
    const user = ordinaryUser("lgtest2")!;
    const { stdout } = await runGuard(home, ["--status", "k3s"], { user, env: { DENO_DIR } });
    assert.match(stdout, /whether lima-guard supervises it is unknown: /);
    assert.doesNotMatch(stdout, /started by hand/);
  },
});

Deno.test("jobs: where a folder of jobs cannot be read, none is not the word", () => {
  const unread = [{ what: "/Library/LaunchDaemons", because: "denied" }];
  assert.deepEqual(judgeJobs({ jobs: [], unread }, PLACE, { state: "running", supervised: false }).notes, unread);
});

Deno.test("jobs: a login agent without a user at the screen gets words, and no command that must fail", () => {
  const job = { ...JOB, loaded: "unknown" as const, target: "gui/501/x", noLogin: true as const };
  const { blockers, notes } = judgeJobs({ jobs: [job], unread: [] }, PLACE, { state: "running", supervised: false });
  assert.deepEqual(blockers.map((r) => r.hint), ["lima-guard --stop --lima-home /Users/zoe/.lima k3s"]);
  assert.match(notes[0]?.because ?? "", /a headless Mac wants a daemon/);
});

Deno.test("jobs: one without the guard, and one with too little time, lead to the command that repairs them", () => {
  const short = judgeJobs({ jobs: [{ ...JOB, exitTimeoutS: 5 }], unread: [] }, PLACE, {
    state: "stopped",
    supervised: false,
  });
  const bare = judgeJobs({ jobs: [{ ...JOB, wrapped: false }], unread: [] }, PLACE, {
    state: "stopped",
    supervised: false,
  });
  assert.deepEqual(
    [...short.blockers, ...bare.notes].map((r) => r.hint),
    Array(2).fill("lima-guard --install --lima-home /Users/zoe/.lima k3s"),
  );
  const elsewhere = judgeJobs({ jobs: [{ ...JOB, wrapped: false }], unread: [] }, PLACE, {
    state: "stopped",
    supervised: false,
  });
  assert.equal(elsewhere.notes[0]!.hint, "lima-guard --install --lima-home /Users/zoe/.lima k3s");
});

Deno.test("running, stopped, clear and booting need no person, all else does", () => {
  const calm = ["running", "clear", "stopped", "booting"] as const;
  for (const state of calm) assert.equal(needsPerson(state), false, state);
  for (const state of ["hung", "orphan", "stale", "blocked", "unknown", "missing"] as const) {
    assert.equal(needsPerson(state), true, state);
  }
});

// ── what limactl start would say: the recorded refusals of Lima 2.2.0 ──

const claims = (...files: [string, string][]): Partial<Observation> => ({
  stateFiles: files.map(([file, why]) => ({
    path: `${DIR}/${file}`,
    verdict: {
      kind: why.startsWith("PID 7 is dead") ? "dead" : "not ours",
      why,
      ...(why.includes("zombie") ? { reason: "zombie" } : {}),
    },
    stamp: { dev: 1, ino: 1, size: 4, mtimeMs: 0, text: why.startsWith("it is not a PID") ? "" : "789\n" },
    scope: "instance",
    sockets: [],
  })),
});
const OTHER_PROGRAM = 'PID 789 is not ours: it is "sleep", none of Lima\'s programs';

for (
  const [name, seen, haSock, expected] of [
    ["nothing", {}, "absent", "nothing seen that would keep it"],
    [
      "a QEMU lives that no PID file names",
      { alive: [proven("QEMU", 812, { named: false })] },
      "absent",
      "would start a second VM: it does not find QEMU 812",
    ],
    [
      "a dead PID file cannot be removed",
      { stateFiles: [{ ...claims(["vz.pid", "PID 7 is dead"]).stateFiles![0]!, undeletable: "read-only" }] },
      "absent",
      `may refuse, because of ${DIR}/vz.pid`,
    ],
    [
      "a marker of another boot beside ha.pid",
      { ...claims(["ha.pid", OTHER_PROGRAM]), bootMarker: { dev: 1, ino: 2, size: 3, mtimeMs: 4, text: "x" } },
      "absent",
      "refuses: failed to connect to ha.sock: no such file or directory (Lima 2.2.1 and later start where boot-session.tmp is of another boot)",
    ],
    [
      "qemu.pid names a live process of another program",
      claims(["qemu.pid", OTHER_PROGRAM]),
      "absent",
      "refuses: qemu driver is running but host agent is not",
    ],
    [
      "vz.pid names a live process of another program",
      claims(["vz.pid", OTHER_PROGRAM]),
      "absent",
      "refuses: vz driver is running but host agent is not",
    ],
    [
      "ha.pid names a live process of another program, no ha.sock",
      claims(["ha.pid", OTHER_PROGRAM]),
      "absent",
      "refuses: failed to connect to ha.sock: no such file or directory",
    ],
    [
      "ha.pid names a live process of another program, ha.sock refuses",
      claims(["ha.pid", OTHER_PROGRAM]),
      "there",
      "refuses: failed to get Info from ha.sock",
    ],
    [
      "qemu.pid is empty",
      claims(["qemu.pid", "it is not a PID: it is empty"]),
      "absent",
      "refuses: strconv.Atoi: parsing … (qemu.pid)",
    ],
    [
      "x.drv.pid is empty: no start reads it",
      claims(["x.drv.pid", "it is not a PID: it is empty"]),
      "absent",
      `may refuse, because of ${DIR}/x.drv.pid`,
    ],
    [
      "a *.pid that may be another program's is empty",
      claims(["tunnel.pid", "it is not a PID: it is empty"]),
      "absent",
      `may refuse, because of ${DIR}/tunnel.pid`,
    ],
    [
      "dead PIDs are cleaned up by Lima",
      claims(["ha.pid", "PID 7 is dead: no process has this PID"]),
      "absent",
      "nothing seen that would keep it",
    ],
    [
      "a zombie lives for Lima",
      {
        stateFiles: [
          claim("qemu.pid", { kind: "dead", why: "PID 7 is dead: ended, and not waited for", reason: "zombie" }),
        ],
      },
      "absent",
      "refuses: qemu driver is running but host agent is not",
    ],
    ["no lima.yaml", { missing: "it has no lima.yaml" }, "absent", "creates a NEW VM of this name"],
  ] as const
) {
  Deno.test(`limactl start would say: ${name}`, () => {
    assert.equal(limaWouldSay(observation(seen), haSock), expected);
  });
}

for (
  const [text, expected] of [
    ["1\n", "refuses: vz driver is running but host agent is not"],
    ["0\n", "refuses: os: process not initialized (vz.pid)"],
    ["-1\n", "refuses: os: process already released (vz.pid)"],
    ["seven\n", "refuses: strconv.Atoi: parsing … (vz.pid)"],
  ] as const
) {
  Deno.test(`limactl start would say: vz.pid holds ${JSON.stringify(text)}`, () => {
    const report = claims(["vz.pid", "it is not a PID"]).stateFiles!.map((c) => ({
      ...c,
      stamp: { ...c.stamp, text },
    }));
    assert.equal(limaWouldSay(observation({ stateFiles: report }), "absent"), expected);
  });
}

// ── jobs, by what they run ──

const recorded = (file: string) => Deno.readTextFileSync(new URL(`testdata/plists/${file}`, import.meta.url));
const WAIT = (command: string) => ARRAY("/bin/sh", "-c", `/bin/wait4path /nix/store &amp;&amp; exec ${command}`);

for (
  const [name, plist, instance, expected] of [
    ["Colima's job of Homebrew", recorded("homebrew-colima.plist"), "colima", "bare"],
    ["the same under lima-guard", recorded("homebrew-colima.guarded"), "colima", "guarded"],
    ["the same, another instance", recorded("homebrew-colima.plist"), "colima-work", undefined],
    ["Nix waits for its store", WAIT("/nix/x/bin/colima start work -f --activate=true"), "colima-work", "bare"],
    ["Nix, under lima-guard", WAIT("/x/lima-guard --run k3s -- limactl start k3s"), "k3s", "guarded"],
    ["another shell command", ARRAY("/bin/sh", "-c", "exec limactl start k3s"), "k3s", undefined],
    ["a profile behind a flag", ARRAY("/x/colima", "start", "--cpus", "2", "-p", "work"), "colima-work", "bare"],
    [
      "a hidden flag's value is no profile",
      ARRAY("/x/colima", "start", "--kubernetes-disable", "traefik"),
      "colima",
      "bare",
    ],
    ["letters that stand together", ARRAY("/x/colima", "start", "-fp", "work"), "colima-work", "bare"],
    ["their value in the same word", ARRAY("/x/colima", "start", "-fpwork"), "colima-work", "bare"],
    ["a letter's value behind =", ARRAY("/x/colima", "start", "-fp=work", "-f=true"), "colima-work", "bare"],
    ["a letter's value is no profile", ARRAY("/x/colima", "start", "-fc2", "-t", "vz"), "colima", "bare"],
    ["a flag's value is no profile", ARRAY("/x/colima", "start", "--cpus", "2"), "colima", "bare"],
    ["limactl of one's own label", ARRAY("/x/limactl", "start", "--foreground", "k3s"), "k3s", "bare"],
    ["limactl stop", ARRAY("/x/limactl", "stop", "k3s"), "k3s", undefined],
  ] as const
) {
  Deno.test(`a job by what it runs: ${name}`, () => {
    assert.equal(howItRuns(readJobPlist(plist), instance), expected);
  });
}

Deno.test("the last stop for a monitor is unknown where the boot is, as its words say", () => {
  for (const [lines, boot] of [[[line("start")], ""], [[line("start", { boot: "" })], "B"]] as const) {
    const verdict = lastStop(lines, boot, false);
    assert.equal(verdict.lastStopKind, "unknown");
    assert.match(verdict.lastStop, /^unknown/);
  }
});

Deno.test("a journal line with odd values has words", () => {
  const odd = { toString: null };
  assert.match(journalWords(line("end", { signal: odd, status: odd })), /ended by itself with status/);
});

Deno.test("jobs: a short time that was asked for is a note, and needs no person", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s");
  const plist = recorded("lima-2.2-agent.guarded").replace("/Users/zoe/.lima", home.lima).replaceAll("default", "k3s");
  const short = plist.replace(/(<key>ExitTimeOut<\/key>\s*<integer>)\d+/, "$130");
  assert.notEqual(short, plist);
  loginAgent(home, "com.me.k3s", short.replace("<string>--run</string>", "<string>--timeout=30</string>$&"));
  const asked = (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0];
  assert.deepEqual([asked.status, asked.blockers, asked.jobs[0].isAskedFor], [0, [], true]);
  assert.match(
    JSON.stringify(asked.notes),
    /launchd gives it 30 s for a stop, of 60 s that a guest may need, as was asked for/,
  );
  // The same behind the shell with which Nix waits for its store.
  const words = [...short.matchAll(/<string>([^<]*)<\/string>/g)].map(([, word]) => word);
  const line = words.slice(words.findIndex((word) => word?.endsWith("/lima-guard"))).join(" ");
  const behind = line.slice(0, line.indexOf(" --foreground")).replace(" --run", " --timeout 30 --run");
  const args = ["/bin/sh", "-c", `/bin/wait4path /nix/store &amp;&amp; exec ${behind}`].map((a) =>
    `<string>${a}</string>`
  );
  const nix = short.replace(/(<key>ProgramArguments<\/key>\s*<array>)[^]*?(<\/array>)/, `$1${args.join("")}$2`);
  Deno.writeTextFileSync(`${home.user}/Library/LaunchAgents/com.me.k3s.plist`, nix);
  const waits = (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0];
  assert.deepEqual([waits.status, waits.jobs[0].wrapped, waits.jobs[0].isAskedFor], [0, true, true], nix);
  Deno.writeTextFileSync(`${home.user}/Library/LaunchAgents/com.me.k3s.plist`, short);
  const { status, blockers } = (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0];
  assert.deepEqual([status, blockers.length], [1, 1], "it was not asked for");
});

Deno.test("while the command of a --run has not brought the VM up, its open line in the journal is no VM that was cut off", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using guard = spawnGuard(home, ["--run", "k3s", "--", "sleep", "60"]);
  await guard.waitForLine(/: started sleep, PID/);
  const kind = async () => (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0].lastStopKind;
  // The line is written a moment after it is said.
  await eventually(() => assert.match(k3s.read("lima-guard.jsonl") ?? "", /"start"/));
  assert.equal(await kind(), "none");
  guard.signal("SIGKILL");
  await guard.status;
  assert.equal(await kind(), "cut off");
});

/** The plist of a login agent of the user whose `~/.lima` this LIMA_HOME is. */
function loginAgent(home: Home, label: string, plist: string): void {
  const folder = `${home.user}/Library/LaunchAgents`;
  Deno.mkdirSync(folder, { recursive: true });
  Deno.symlinkSync(home.lima, `${home.user}/.lima`);
  Deno.writeTextFileSync(`${folder}/${label}.plist`, plist);
}

Deno.test("a job of another label is found, and what its KeepAlive means is a trouble", async () => {
  await using home = await tempLimaHome();
  home.instance("colima");
  // As lima-guard 0.1.0 left it: the KeepAlive of Homebrew's formula, under the wrapper.
  const plist = recorded("homebrew-colima.guarded").replace(/(<key>SuccessfulExit<\/key>\s*)<false\/>/, "$1<true/>");
  assert.notEqual(plist, recorded("homebrew-colima.guarded"));
  loginAgent(home, "homebrew.mxcl.colima", plist);
  const { status, json } = await runGuard(home, ["--status", "--json", "colima"]);
  const [report] = json().instances;
  assert.deepEqual(report.jobs.map((j: JobStatus) => [j.label, j.wrapped, j.exitTimeoutS]), [[
    "homebrew.mxcl.colima",
    true,
    60,
  ]]);
  assert.equal(status, 1);
  assert.match(report.blockers[0].because, /starts it again after a good stop/);
});

Deno.test("a journal that cannot be read makes the last stop unknown, and an absent one makes it none", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  const kind = async () => (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0];
  assert.equal((await kind()).lastStopKind, "none");
  Deno.mkdirSync(k3s.path("lima-guard.jsonl"));
  const report = await kind();
  assert.deepEqual([report.lastStopKind, report.lastStopAt, report.starts], ["unknown", null, null]);
  assert.match(report.lastStop, /^unknown: .*is a directory/);
});

Deno.test("a journal that is a link is not read, so that the last stop is unknown", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  Deno.writeTextFileSync(`${home.root}/elsewhere`, "");
  Deno.symlinkSync(`${home.root}/elsewhere`, k3s.path("lima-guard.jsonl"));
  const [report] = (await runGuard(home, ["--status", "--json", "k3s"])).json().instances;
  assert.equal(report.lastStopKind, "unknown");
  assert.match(report.lastStop, /^unknown: .*is a link/);
});

Deno.test("an empty lima.yaml, and an additional disk that is not there, block a start", async () => {
  await using home = await tempLimaHome();
  home.instance("empty", { wholeYaml: "" });
  home.instance("disk", { yaml: "additionalDisks:\n- name: data\n" });
  for (const [name, because] of [["empty", /it is empty/], ["disk", /additional disk data is not there/]] as const) {
    const { status, json } = await runGuard(home, ["--pre", "--json", name]);
    assert.deepEqual([status, json().instances[0].state], [75, "blocked"], name);
    assert.match(json().instances[0].blockers[0].because, because);
  }
});

// ── the role, on real processes ──

Deno.test("--status tells the truth about four instances and changes nothing", async () => {
  await using home = await tempLimaHome();
  await using bystander = await startBystander(home, { command: ["/usr/libexec/sirittsd"] });
  const [running, stale] = [home.instance("running"), home.instance("stale")];
  home.instance("stopped");
  await using agent = await startAgent(running);
  stale.pidFile("vz.pid", bystander.pid);
  const before = [running.files(), stale.files()];
  const all = await runGuard(home, ["--status", "--json"]);
  assert.equal(all.status, 1, "the stale one needs a person");
  const report = Object.fromEntries(all.json().instances.map((i: { name: string }) => [i.name, i]));
  assert.deepEqual(Object.keys(report), ["running", "stale", "stopped"]);
  assert.deepEqual([report.running.state, report.running.status], ["running", 0]);
  assert.deepEqual([report.stopped.state, report.stopped.status, report.stopped.limactlStart], [
    "stopped",
    0,
    "nothing seen that would keep it",
  ]);
  assert.deepEqual([report.stale.state, report.stale.status], ["stale", 1]);
  assert.equal(report.stale.limactlStart, "refuses: vz driver is running but host agent is not");
  assert.equal(report.stale.evidence[0].holds, String(bystander.pid));
  assert.match(report.stale.steps[0].what, /^remove .*vz\.pid$/);
  assert.equal((await runGuard(home, ["--status", "stopped"])).status, 0);
  assert.equal((await runGuard(home, ["--status", "nope"])).status, 66);
  assert.deepEqual([running.files(), stale.files()], before);
  assert.ok(agent.isAlive());
  bystander.assertAlive();
});

Deno.test("the last repair: its time for a monitor, and none before it", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  const status = async () => (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0];
  assert.equal((await status()).lastRepairAt, null);
  k3s.pidFile("vz.pid", IMPOSSIBLE_PID);
  const began = Date.now();
  assert.equal((await runGuard(home, ["--pre", "k3s"])).status, 0);
  const { lastRepairAt: at, lastRepair } = await status();
  assert.match(at, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  // For a person it is shown to the minute.
  assert.match(lastRepair, /^\d{4}-\d\d-\d\d \d\d:\d\d: stale$/);
  assert.ok(Date.parse(at) >= began - 1000 && Date.parse(at) <= Date.now(), at);
});

Deno.test("--status says who supervises, and how the agent was stopped that outlived its guard", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using guard = spawnGuard(home, ["--run", "k3s", "--", home.limactl, "start", "k3s", "--foreground"]);
  await guard.waitForLine(/Running after/);
  const during = (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0];
  assert.deepEqual([during.state, during.supervisor, during.lastStop], ["running", guard.pid, "none recorded"]);
  const agentPid = k3s.pid("ha.pid")!;
  guard.signal("SIGKILL");
  await guard.result();
  assert.equal((await runGuard(home, ["--stop", "--timeout", "8", "k3s"])).status, 0);
  const after = (await runGuard(home, ["--status", "--json", "k3s"])).json().instances[0];
  assert.deepEqual([after.state, after.supervisor], ["stopped", null]);
  assert.match(after.lastStop, /^stopped (gracefully by the host agent|by the host agent)/);
  assert.equal(isAlive(agentPid), false);
});

Deno.test({
  name: "--status may be asked by another user, and makes no file",
  ignore: ordinaryUser() === null,
  fn: async () => {
    await using home = await tempLimaHome();
    const user = ordinaryUser()!;
    const k3s = home.instance("k3s");
    home.giveTo(user);
    const before = k3s.files();
    const { status, stderr, json } = await runGuard(home, ["--status", "--json", "k3s"]);
    assert.deepEqual([status, json().instances[0].state, stderr], [0, "stopped", ""]);
    assert.deepEqual(k3s.files(), before);
  },
});

Deno.test({
  name: "--status of a stale file says what its owner can do, also to another user",
  ignore: ordinaryUser() === null,
  fn: async () => {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    k3s.pidFile("vz.pid", IMPOSSIBLE_PID);
    home.giveTo(ordinaryUser()!);
    const { DENO_DIR } = everyonesEnv(home);
    for (const user of [ordinaryUser()!, ordinaryUser("lgtest2")!]) {
      const { json } = await runGuard(home, ["--status", "--json", "k3s"], { user, env: { DENO_DIR } });
      const { state, blockers } = json().instances[0];
      assert.deepEqual([state, blockers], ["stale", []], user.name);
    }
  },
});

// ── ready, failed, a stop under way ──

const EVENTS = (...status: string[]) => status.map((s) => `{"time":"2026-11-22T23:24:00Z","status":{${s}}}\n`).join("");
const LOGGED = (...msgs: string[]) =>
  msgs.map((msg) => `${JSON.stringify({ level: "info", msg, time: "2026-11-22T23:23:44Z" })}\n`).join("");
const NO_LOG =
  "This log file is not used because `limactl start` was launched in the terminal with the `--foreground` option.";
const WAITING = "Waiting for the essential requirement 1 of 2: `ssh`";

for (
  const [name, events, log, expected] of [
    ["nothing to read", "", "", { ready: null, errors: [] }],
    ["a start at a terminal writes none", NO_LOG, NO_LOG, { ready: null, errors: [] }],
    ["running", EVENTS(`"sshLocalPort":60022`, `"running":true`), "", { ready: true, errors: [] }],
    ["it waits", EVENTS(`"sshLocalPort":60022`), LOGGED("booting", WAITING), {
      ready: false,
      errors: [],
      waits: "`ssh`, requirement 1 of 2, since 2026-11-22T23:23:44Z",
    }],
    [
      "between two requirements it waits for none",
      EVENTS(`"sshLocalPort":60022`),
      LOGGED(WAITING, "The essential requirement 1 of 2 is satisfied"),
      { ready: false, errors: [] },
    ],
    [
      "degraded",
      EVENTS(`"running":true,"degraded":true,"errors":["guest agent is dead","no DNS"]`),
      "",
      { ready: true, errors: ["guest agent is dead", "no DNS"] },
    ],
    [
      "degraded, and well again",
      EVENTS(`"running":true,"degraded":true,"errors":["x"]`, `"running":true`),
      "",
      { ready: true, errors: [] },
    ],
  ] as const
) {
  Deno.test(`ready by the host agent's own logs: ${name}`, () =>
    assert.deepEqual(readReadiness(events, log), expected));
}

const HOLDER = { pid: 77, started: "", dir: DIR, role: "stop", phase: "stopping" };
const BEGAN = line("stop", { budgetS: 60 });
const SINCE = { pid: 77, role: "stop", since: "2026-11-22T23:16:54.000Z", until: "2026-11-22T23:17:54.000Z" };
for (
  const [name, holder, lines, stages, expected] of [
    ["none holds the lock", undefined, [BEGAN], ["agent"], null],
    ["a supervisor holds it", { ...HOLDER, role: "run", phase: "supervising" }, [BEGAN], ["agent"], null],
    ["just begun", HOLDER, [line("start"), END], [], { pid: 77, role: "stop", since: null, stage: null, until: null }],
    ["in its first stage", HOLDER, [END, BEGAN], ["guest", "agent", "kill"], { ...SINCE, stage: "guest" }],
    [
      "after two stages, and no driver to stop",
      HOLDER,
      [BEGAN, line("stage", { stage: "guest" }), line("stage", { stage: "agent" })],
      ["guest", "agent", "kill"],
      { ...SINCE, stage: "kill" },
    ],
    [
      "nothing lives any more",
      HOLDER,
      [BEGAN, line("stage", { stage: "guest" })],
      [],
      { ...SINCE, stage: "clean up" },
    ],
  ] as const
) {
  Deno.test(`a stop under way: ${name}`, () => assert.deepEqual(stopUnderWay(holder, lines, stages), expected));
}

Deno.test("an agent whose guest is not ready is running, and --status says what it waits for", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using _agent = await startAgent(k3s);
  k3s.write("ha.stdout.log", EVENTS(`"sshLocalPort":60022`));
  k3s.write("ha.stderr.log", LOGGED(WAITING));
  const { status, stdout } = await runGuard(home, ["--status", "k3s"]);
  assert.equal(status, 0);
  assert.match(stdout, /k3s: running: .*not ready: it waits for `ssh`, requirement 1 of 2, since 2026-/);
  k3s.write("ha.stdout.log", EVENTS(`"running":true,"degraded":true,"errors":["no DNS"]`));
  const degraded = await runGuard(home, ["--status", "--json", "k3s"]);
  const [report] = degraded.json().instances;
  assert.deepEqual([degraded.status, report.state, report.ready], [1, "running", true]);
  assert.match(report.blockers[0].because, /degraded: no DNS$/);
});

Deno.test("the fatal line of a start that failed is shown where nothing lives", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  const fatal = `${JSON.stringify({ level: "fatal", msg: "disk `d` in use by instance `b`" })}\n`;
  // Children of the host agent share the file.
  for (const more of ["", "Connection to 127.0.0.1 closed by remote host.\n"]) {
    k3s.write("ha.stderr.log", fatal + more);
    const { status, stdout } = await runGuard(home, ["--status", "k3s"]);
    assert.equal(status, 0);
    assert.match(stdout, /last words: disk `d` in use by instance `b`/);
  }
});

Deno.test("a usernet that lives hides neither the power cut of an instance nor why its last start failed", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  const file = `${home.lima}/_networks/user-v2/usernet_user-v2.pid`;
  await using usernet = await startBystander(home, { command: ["limactl", "usernet", "-p", file] });
  home.network("user-v2", { pid: usernet.pid });
  k3s.write("ha.stderr.log", `${JSON.stringify({ level: "fatal", msg: "no such image" })}\n`);
  k3s.write(
    "lima-guard.jsonl",
    [END, line("start")].map((l) => `${JSON.stringify({ ...l, dir: k3s.dir })}\n`).join(""),
  );
  const { stdout } = await runGuard(home, ["--status", "k3s"]);
  assert.match(stdout, /usernet_user-v2\.pid .*: PID \d+ is this instance's usernet/);
  assert.match(stdout, /cut off: no stop was recorded/);
  assert.match(stdout, /last words: no such image/);
});

Deno.test("an agent that answers and has lost its driver says that the driver has died", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using _agent = await startAgent(k3s);
  Deno.removeSync(k3s.path("vz.pid"));
  k3s.pidFile("qemu.pid", 999_999);
  const { stdout } = await runGuard(home, ["--status", "k3s"]);
  assert.equal(stdout.match(/answers, its driver has died/g)?.length, 1, stdout);
});

Deno.test("--status shows a stop under way, the supervisor's version, and with -v the journal in words", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { stop: "never" } });
  await using guard = spawnGuard(home, ["--run", "k3s", "--", home.limactl, "start", "k3s", "--foreground"]);
  await guard.waitForLine(/Running after/);
  const shown = async (...more: string[]) => await runGuard(home, ["--status", ...more, "k3s"]);
  assert.equal((await shown("--json")).json().instances[0].guardVersion, VERSION);
  Deno.kill(k3s.pid("ha.pid")!, "SIGSTOP");
  guard.signal("SIGTERM");
  await guard.waitForLine(/stage agent/);
  const [report] = (await shown("--json")).json().instances;
  assert.deepEqual([report.stopping.pid, report.stopping.role, report.stopping.stage], [guard.pid, "run", "agent"]);
  assert.ok(Date.parse(report.stopping.since) < Date.parse(report.stopping.until));
  const { stdout } = await shown("-v");
  assert.match(
    stdout,
    new RegExp(`lima-guard --run, PID ${guard.pid}, is stopping it since \\d+:\\d+:\\d+, stage agent`),
  );
  assert.match(
    stdout,
    /^ {2}\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}--run: stop began, time limit 60 s, alive: host agent \d+$/m,
  );
  assert.equal("recent" in report, false);
  Deno.kill(k3s.pid("ha.pid")!, "SIGCONT");
});

Deno.test("--status --wait: until the instance runs, and 75 where it does not in time", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  const late = await runGuard(home, ["--status", "--wait", "1", "k3s"]);
  assert.equal(late.status, 75, late.stdout);
  assert.match(late.stdout, /k3s +stopped/);
  await using waiting = spawnGuard(home, ["--status", "--wait", "60", "k3s"]);
  await using _agent = await startAgent(k3s);
  const { status, stdout } = await waiting.result();
  assert.equal(status, 0, stdout);
  assert.match(stdout, /k3s +running/);
  const missing = await runGuard(home, ["--status", "--wait", "60", "nope"]);
  assert.equal(missing.status, 66, missing.stdout);
});

Deno.test("a guest whose host agent has written more than is read is not booting", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using _agent = await startAgent(k3s);
  const event = `${
    JSON.stringify({ time: "2026-11-27T00:00:00Z", status: { portForward: { type: "forwarding" } } })
  }\n`;
  Deno.writeTextFileSync(k3s.path("ha.stdout.log"), event.repeat(Math.ceil(1_100_000 / event.length)), {
    append: true,
  });
  const { json } = await runGuard(home, ["--status", "--json", "k3s"]);
  assert.equal(json().instances[0].ready, true);
});

// ── plists in other spellings ──

const DICT = (...keys: string[]) => `<plist version="1.0"><dict>${keys.join("")}</dict></plist>`;
const ARGS = (...args: string[]) =>
  `<key>ProgramArguments</key><array>${args.map((a) => `<string>${a}</string>`).join("")}</array>`;
const GUARDED = ARGS("/x/lima-guard", "--run", "k3s", "--", "limactl", "start", "k3s", "--foreground");
const VARIABLES = `<key>EnvironmentVariables</key><dict>${ARGS("no")}<key>ExitTimeOut</key><integer>7</integer></dict>`;

for (
  const [what, plist, expected] of [
    ["the same keys in a dictionary within", DICT(VARIABLES, GUARDED), true],
    ["the name in numeric entities", DICT(GUARDED.replaceAll("k3s", "&#107;&#x33;s")), true],
    ["blanks in the tags", DICT(GUARDED.replaceAll("string>", "string >").replaceAll("array>", "array\n>")), true],
    [
      "Program beside another first argument",
      DICT("<key>Program</key><string>/x/lima-guard</string>", ARGS("guard", "--run", "k3s", "--", "/x/y")),
      true,
    ],
    ["lima-guard under another name", DICT(GUARDED.replace("/x/lima-guard", "/x/lg")), true],
    [
      "lima-guard from source",
      DICT(
        GUARDED.replace(
          "<string>/x/lima-guard",
          "<string>/x/deno</string><string>run</string><string>-A</string><string>/x/lima_guard.ts",
        ),
      ),
      true,
    ],
    [
      "another program with that option, which runs no Lima",
      DICT(ARGS("/x/lg", "--run", "k3s", "--", "/bin/sh")),
      false,
    ],
  ] as const
) {
  Deno.test(`a job in another spelling: ${what}`, () => {
    const job = readJobPlist(plist);
    assert.equal(howItRuns(job, "k3s") !== undefined, expected, plist);
    assert.equal(job.exitTimeoutS, 5);
  });
}

Deno.test("KeepAlive's SuccessfulExit is read behind a dictionary within it", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s");
  const paths = "<key>PathState</key><dict><key>/x</key><true/></dict>";
  const keepAlive = `<key>KeepAlive</key><dict>${paths}<key>SuccessfulExit</key><true/></dict>`;
  const label = "<key>Label</key><string>k3s.guarded</string>";
  loginAgent(home, "k3s", DICT(VARIABLES, keepAlive, label, GUARDED));
  const { stdout } = await runGuard(home, ["--status", "k3s"]);
  assert.match(stdout, /job k3s\.guarded: guarded/);
  assert.match(stdout, /its KeepAlive \{SuccessfulExit: true\} starts it again after a good stop/);
});

for (
  const [what, keys, startsAtLoad] of [
    ["KeepAlive", ["<key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>"], true],
    ["RunAtLoad", ["<key>RunAtLoad</key><true/>"], true],
    [
      "the same keys in a dictionary within",
      ["<key>LaunchEvents</key><dict><key>KeepAlive</key><true/></dict>"],
      undefined,
    ],
    ["KeepAlive that is false", ["<key>KeepAlive</key><false/><key>Other</key><dict/>"], undefined],
  ] as const
) {
  Deno.test(`whether a job starts as soon as it is loaded: ${what}`, async () => {
    await using home = await tempLimaHome();
    home.instance("k3s");
    loginAgent(home, "k3s", DICT(...keys, "<key>Label</key><string>x</string>", GUARDED));
    const { json } = await runGuard(home, ["--status", "--json", "k3s"]);
    assert.equal(json().instances[0].jobs[0].startsAtLoad, startsAtLoad);
  });
}

Deno.test("a binary plist that names the instance: whether it is its job is unknown", async () => {
  await using home = await tempLimaHome();
  home.instance("k3s");
  const agents = `${home.user}/Library/LaunchAgents`;
  Deno.mkdirSync(agents, { recursive: true });
  Deno.writeTextFileSync(`${agents}/other.plist`, "bplist00\xd4\x01Z/bin/other");
  Deno.writeTextFileSync(`${agents}/k3s.plist`, "bplist00\xd4\x01_\x10\x0f/x/lima-guardU--runSk3sR--");
  const { stdout } = await runGuard(home, ["--status", "k3s"]);
  assert.match(stdout, /k3s\.plist: whether it is a launchd job .* binary plist \(hint: plutil -p \S+k3s\.plist\)/);
  assert.doesNotMatch(stdout, /no launchd job found|other\.plist/);
  assert.match(stdout, /^k3s +stopped +unknown/m);
  const gone = await runGuard(home, ["--status", "gone"]);
  assert.match(gone.stdout, /^gone +missing +unknown/m, "its job was not looked for");
});

for (
  const [what, args, isUnknown] of [
    ["caffeinate", ["/usr/bin/caffeinate", "-s", "/x/limactl", "start", "k3s", "--foreground"], true],
    ["a shell", ["/bin/zsh", "-lc", "sleep 5; exec limactl start 'k3s' --foreground"], true],
    ["a shell, and another instance", ["/bin/zsh", "-lc", "exec limactl start k3s-2"], false],
    ["a shell, and no start", ["/bin/zsh", "-lc", "exec limactl shell k3s uptime"], false],
    ["limactl itself, and another instance", ["/x/limactl", "start", "k3s-2"], false],
  ] as const
) {
  Deno.test(`a job whose command is started by ${what}: ${isUnknown ? "unknown" : "none"}`, async () => {
    await using home = await tempLimaHome();
    home.instance("k3s");
    loginAgent(home, "com.me.vm", DICT("<key>Label</key><string>com.me.vm</string>", ARGS(...args)));
    const { stdout } = await runGuard(home, ["--status", "k3s"]);
    assert.match(stdout, isUnknown ? /^k3s +stopped +unknown/m : /^k3s +stopped +none/m);
    const unsure = /com\.me\.vm\.plist: whether it .* is unknown: \S+ starts its command \(hint: plutil -p \S+\)/;
    assert.equal(unsure.test(stdout), isUnknown, stdout);
  });
}

for (
  const [what, line, kind, words] of [
    ["a stage of another version", { event: "end", stage: "lunar" }, "unknown", /unknown: stage lunar/],
    ["a stop with a budget beyond all dates", { event: "stop", budgetS: 1e300 }, "none", /stop began/],
    ["an event that is called as all objects have it", { event: "toString" }, "none", /: toString$/],
  ] as const
) {
  Deno.test(`a line of the journal that is odd: ${what}`, () => {
    const time = "2026-01-01T00:00:00Z";
    const lines = readJournal(JSON.stringify({ time, boot: "b", dir: "/d", role: "stop", ...line }), "/d");
    assert.equal(lastStop(lines, "b", false).lastStopKind, kind);
    assert.match(journalWords(lines[0]!), words);
    const holder = { pid: 5, started: "", dir: "/d", role: "stop", phase: "stopping" };
    assert.equal(stopUnderWay(holder, lines, ["guest"])?.until, null);
  });
}
