/**
 * `--pre` and everything that can go wrong while it works: it is killed at any moment and run again; files and processes
 * change between its look and its step; the clock is stepped. The end is always the same, and no other process is
 * signalled.
 */

import assert from "node:assert/strict";
import { guardWith, ifItStays, meanwhile, type Stay, type Twist } from "./helpers/guard_with.ts";
import {
  type Agent,
  type Conf,
  eventually,
  type Home,
  IMPOSSIBLE_PID,
  type Instance,
  isAlive,
  killChild,
  limactl,
  type Orphan,
  ps,
  readOnlyDir,
  runGuard,
  standin,
  startAgent,
  startOrphan,
  whyNoReadOnlyDir,
} from "./helpers/mod.ts";
import {
  changesNothing,
  JOURNAL,
  leavesAlone,
  LOCK,
  paths,
  pre,
  SIRITTSD,
  starts,
  strew,
  test,
  tree,
} from "./helpers/pre.ts";

/** So many at a time: each is mostly waiting. */
const SIDE_BY_SIDE = 6;

/** Calls `attempt` with 1, 2, 3 … until it says that there is no such point; returns how many there were. */
async function forEveryPoint(attempt: (n: number) => Promise<"there" | "beyond">): Promise<number> {
  let [next, points, beyond] = [1, 0, false];
  const worker = async () => {
    while (!beyond) {
      const n = next++;
      if (await attempt(n) === "beyond") beyond = true;
      else points++;
    }
  };
  await Promise.all(Array.from({ length: SIDE_BY_SIDE }, worker));
  return points;
}

/** All that is in its directory, but the record in the lock. */
function contents(instance: Instance): Record<string, string> {
  return Object.fromEntries(Object.entries(tree(instance.dir)).filter(([path]) => path !== LOCK));
}

// --- killed at every point, and run again -----------------------------------------------------------------------------------

const LEFT_BEHIND = { yaml: "additionalDisks:\n- data\n" };

function leaveBehind(home: Home, k3s: Instance, pid: number): void {
  strew(k3s, pid);
  k3s.pidFile("vz.pid", "");
  k3s.pidFile("lima-driver-x-cli.pid", IMPOSSIBLE_PID);
  k3s.write("boot-session.tmp", "11111111-2222-3333-4444-555555555555\n");
  k3s.staleSocket("ha.sock");
  k3s.sshConfig({ text: "Host lima-k3s\n" });
  home.disk("data", { inUseBy: k3s.dir });
}

test("killed at any point while it clears files, and run again: the same end", async ({ home, k3s, bystander }) => {
  leaveBehind(home, k3s, bystander.pid);
  const log = `${home.root}/log`;
  await pre(k3s, guardWith({ log }));
  const effects = Deno.readTextFileSync(log).trim().split("\n").map((line) => parseInt(line)).at(-1)!;
  const ends = () => paths(home).filter((path) => !path.includes("lima-guard."));
  const pure = ends();
  let n = 0;
  for (let killed = true; killed;) {
    n++;
    leaveBehind(home, k3s, bystander.pid);
    const { signal } = await runGuard(home, ["--pre", "k3s"], guardWith({ dieAt: n }));
    killed = signal === "SIGKILL";
    // Without it Lima 2.3 believes old PID files again; without them it is nothing.
    const marker = k3s.has("boot-session.tmp");
    const pidFiles = k3s.files().filter((file) => file.endsWith(".pid"));
    if (!marker) assert.deepEqual(pidFiles, [], `point ${n}: the boot marker went before these`);

    const again = await pre(k3s);
    assert.equal(again.status, 0, `point ${n}: ${again.stdout}`);
    assert.deepEqual(ends().filter((path) => path !== "k3s/boot-session.tmp"), pure, `point ${n}`);
    if (pidFiles.length > 0) assert.equal(k3s.has("boot-session.tmp"), false, `point ${n}`);
    for (const line of (k3s.read(JOURNAL) ?? "").split("\n").slice(0, -1)) {
      if (line.endsWith("}")) assert.equal(JSON.parse(line).dir, k3s.dir);
    }
    if (n % 10 === 0) await changesNothing(k3s);
  }
  assert.ok(effects > 20 && n === effects + 1, `${n - 1} points of ${effects}: it was not killed at each`);
  await changesNothing(k3s);
  await starts(k3s);
}, LEFT_BEHIND);

test("killed at any point while it stops an orphan, and run again: the same end", async ({ home, bystander }) => {
  const points = await forEveryPoint(async (dieAt) => {
    const signal = await dieAndRunAgain(home.instance(`i${dieAt}`), "qemu", { dieAt }, bystander.pid);
    return signal === "SIGKILL" ? "there" : "beyond";
  });
  assert.ok(points > 20, `only ${points} points: the test no longer kills where it should`);
});

for (
  const [what, vmtype, conf] of [["SIGTERM", "krunkit", {}], ["SIGKILL", "qemu", {
    stop: "ignore",
    ignore_term: 1,
  }]] as const
) {
  test(`killed around its ${what} to an orphan, and run again: the same end`, async ({ home, bystander }) => {
    const log = `${home.root}/points`;
    const signal = await dieAndRunAgain(home.instance("undisturbed"), vmtype, { log }, bystander.pid, conf);
    assert.equal(signal, null);
    const lines = Deno.readTextFileSync(log).trim().split("\n");
    const at = Number(lines.find((line) => line.includes(` before signal `) && line.endsWith(what))?.split(" ")[0]);
    assert.ok(at > 1, lines.join("\n"));
    await Promise.all([at - 1, at, at + 1].map(async (dieAt) => {
      const signal = await dieAndRunAgain(home.instance(`i${dieAt}`), vmtype, { dieAt }, bystander.pid, conf);
      assert.equal(signal, "SIGKILL");
    }));
  });
}

/** An orphan; a lima-guard that is killed; another one. Returns how the first one ended. */
async function dieAndRunAgain(
  instance: Instance,
  vmtype: "qemu" | "krunkit",
  twist: Twist,
  bystander: number,
  conf: Conf = {},
): Promise<Deno.Signal | null> {
  const where = `point ${twist.dieAt}`;
  const args = conf.ignore_term ? ["--timeout", "4"] : [];
  await using orphan = await startOrphan(instance, vmtype, conf);
  for (const file of ["vz.pid", "x.drv.pid"]) instance.pidFile(file, bystander);
  const { signal } = await runGuard(instance.home, ["--pre", instance.name, ...args], guardWith(twist));
  const again = await pre(instance, { args });
  assert.equal(again.status, 0, `${where}: ${again.stdout}`);
  await orphan.waitForExit();
  assert.deepEqual(instance.files().filter((file) => /\.pid$|^ha\.sock$/.test(file)), [], where);
  if (!conf.ignore_term) assert.equal(instance.guestDisk(), "clean", `${where}: its guest lost power`);
  const before = contents(instance);
  assert.deepEqual((await pre(instance, { args })).report.steps, [], where);
  assert.deepEqual(contents(instance), before, where);
  return signal;
}

// --- the process behind a PID changes -----------------------------------------------------------------------------------------

/** What ps says of the process in question from a certain reading on; PID stands for its number. */
const CHANGES = {
  "began later": {
    what: "it is another program, which began later",
    pattern: "^( *PID +\\d+ +\\d+ +\\S+ +\\w{3} \\w{3} +\\d+ \\d\\d:\\d\\d:\\d\\d )\\d{4} .*$",
    by: "$19999 /usr/libexec/sirittsd",
  },
  "same second": {
    what: "it is another program, which began in the same second",
    pattern: "^( *PID +\\d+ +\\d+ +\\S+ +\\w{3} \\w{3} +\\d+ \\d\\d:\\d\\d:\\d\\d \\d{4} ).*$",
    by: "$1/usr/libexec/sirittsd",
  },
  "another user's": { what: "it belongs to another user", pattern: "^( *PID +\\d+ +)\\d+", by: "$14242" },
  "unreadable": { what: "its row cannot be read", pattern: "^ *PID .*$", by: "PID" },
  "not listed": { what: "it is not listed", pattern: "^ *PID .*\\n", by: "" },
};

interface Victim {
  readonly what: string;
  start(instance: Instance): Promise<Orphan | Agent>;
  readonly twist: Twist;
  readonly changes: readonly (keyof typeof CHANGES)[];
}

const VICTIMS: Victim[] = [
  {
    what: "an orphan that has to be killed",
    start: (instance) => startOrphan(instance, "qemu", { qmp: "refuse-powerdown", ignore_term: 1 }),
    twist: {},
    changes: ["began later", "another user's", "not listed"],
  },
  {
    what: "a hung host agent that has to be killed",
    start: (instance) => startAgent(instance, { until: "driver", conf: { vmtype: "vz", stop: "deadlock" } }),
    twist: { wallMs: 3_600_000, uptimeMs: 3_600_000 },
    changes: ["same second", "unreadable"],
  },
];

for (const { what, start, twist, changes } of VICTIMS) {
  for (const change of changes) {
    const { pattern, by } = CHANGES[change];
    test(`${what}, but from any reading of ps on ${CHANGES[change].what}: no signal after it`, async ({ home }) => {
      let most = 0;
      const points = await forEveryPoint(async (from) => {
        const instance = home.instance(`i${from}`);
        await using victim = await start(instance);
        const log = `${home.root}/points-${from}`;
        const lie = { does: "lie", from, pattern: pattern.replace("PID", `${victim.pid}`), by } as const;
        const options = guardWith({ ...twist, log, programs: { ps: lie } });
        await runGuard(home, ["--pre", instance.name, "--timeout", "1"], options);
        const seen = Deno.readTextFileSync(log).trim().split("\n").map((line) => line.replace(/^\d+ /, ""));
        const readings = seen.flatMap((point, i) => point === "before run /bin/ps" ? [i] : []);
        const late = readings[from - 1] === undefined ? [] : seen.slice(readings[from - 1]);
        assert.deepEqual(late.filter((point) => point.startsWith("before signal")), [], `reading ${from}`);
        most = Math.max(most, seen.filter((point) => point.startsWith("before signal")).length);
        return readings.length >= from ? "there" : "beyond";
      });
      assert.ok(points >= 4, `only ${points} readings of ps`);
      assert.ok(most >= 1, "there was no signal at all: the test proves nothing");
    });
  }
}

test("an orphan becomes another program under its very PID, just before any reading of ps: no signal", async ({ home }) => {
  let replaced = 0;
  const points = await forEveryPoint(async (nth) => {
    const instance = home.instance(`i${nth}`);
    await using one = await turncoat(home, `qemu-system-x86_64 -name lima-i${nth} -pidfile ${instance.dir}/qemu.pid`);
    instance.pidFile("qemu.pid", one.pid);
    const stay = { at: "before run /bin/ps", nth, file: `${home.root}/stay-${nth}` };
    const guard = runGuard(home, ["--pre", instance.name, "--timeout", "1"], guardWith({ stays: [stay] }));
    // By its own end at the latest, SIGTERM has ended it as what it was.
    const came = await ifItStays(stay, guard, async () => {
      if (await one.turn()) replaced++;
    });
    await guard;
    if (one.hasTurned()) {
      assert.ok(isAlive(one.pid), `reading ${nth}: it is dead`);
      assert.equal(ps(one.pid)?.command, "/usr/libexec/sirittsd");
      assert.deepEqual(one.signals(), [], `reading ${nth}`);
    }
    return came ? "there" : "beyond";
  });
  assert.ok(points >= 3 && replaced >= 3, `${points} readings, ${replaced} times replaced`);
});

/** A process that looks like one thing, and on demand becomes a bystander: same PID, same start time. */
async function turncoat(home: Home, command: string) {
  const dir = Deno.makeTempDirSync({ dir: home.root, prefix: "turncoat-" });
  const [go, log] = [`${dir}/go`, `${dir}/log`];
  Deno.writeTextFileSync(
    `${dir}/wait`,
    'while [ ! -e "$1" ]; do sleep 0.01; done\nexec "$2" "$3" /usr/libexec/sirittsd\n',
  );
  const child = new Deno.Command("bash", {
    args: ["-c", 'exec -a "$0" bash "$@"', command, `${dir}/wait`, go, standin("bystander"), log],
    env: home.mark,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  let hasEnded = false;
  void child.status.then(() => hasEnded = true);
  await eventually(() => assert.ok(ps(child.pid)?.command.startsWith(command)));
  const lines = () => {
    try {
      return Deno.readTextFileSync(log).split("\n").filter((line) => line !== "");
    } catch {
      return [];
    }
  };
  return {
    pid: child.pid,
    signals: () => lines().filter((line) => line.startsWith("SIG")),
    hasTurned: () => lines().includes(`ready ${child.pid}`),
    /** `false`: a signal that was on its way has ended it before. */
    async turn(): Promise<boolean> {
      Deno.writeTextFileSync(go, "");
      const hasTurned = () => lines().includes(`ready ${child.pid}`);
      await eventually(() => assert.ok(hasEnded || hasTurned()));
      return hasTurned();
    },
    async [Symbol.asyncDispose]() {
      killChild(child);
      await child.status;
    },
  };
}

// --- files change between the look and the step ---------------------------------------------------------------------------------

/** Everything is judged, and the first step will be on this file: one look at it more than in a dry run. */
async function judged(k3s: Instance, file: string): Promise<Stay> {
  const log = `${k3s.home.root}/looks`;
  const look = `before stat ${k3s.path(file)}`;
  await pre(k3s, { ...guardWith({ log }), args: ["--dry-run"] });
  const looks = Deno.readTextFileSync(log).split("\n").filter((line) => line.endsWith(` ${look}`)).length;
  assert.ok(looks > 0);
  Deno.removeSync(log);
  return { at: `^${look}$`, nth: looks + 1, file: `${k3s.home.root}/stay-${file}` };
}

test("an administrator repairs it by hand and starts it while lima-guard works: nothing of the new run is touched", async ({ home, k3s, bystander }) => {
  const stale = ["ha.pid", "vz.pid", "ha.sock", "x.drv.pid"];
  for (const file of ["ha.pid", "vz.pid", "x.drv.pid"]) k3s.pidFile(file, bystander.pid);
  k3s.staleSocket("ha.sock");
  const stay = await judged(k3s, "ha.sock");
  const running = pre(k3s, guardWith({ stays: [stay] }));
  let agent: Agent | undefined;
  await meanwhile(stay, async () => {
    for (const file of stale) k3s.remove(file);
    agent = await startAgent(k3s);
  });
  await using _agent = agent!;
  const { status, report, stdout } = await running;
  assert.ok(report.steps.every(({ outcome }) => outcome === "already gone" || outcome.startsWith("skipped")), stdout);
  assert.equal(status, 0, stdout);
  assert.deepEqual([k3s.pid("ha.pid"), k3s.pid("vz.pid")], [agent!.pid, agent!.pid]);
  assert.ok(k3s.has("ha.sock"), "the host agent's socket is gone");
  assert.equal((await limactl(home, ["list"])).stdout.match(/k3s +(\w+)/)?.[1], "Running");
});

const REWRITINGS: Record<string, (k3s: Instance, pid: number) => void> = {
  "is written again, with the same size and date": (k3s, pid) => {
    const { mtime } = Deno.statSync(k3s.path("vz.pid"));
    Deno.writeTextFileSync(k3s.path("vz.pid"), `${pid}\n`);
    Deno.utimeSync(k3s.path("vz.pid"), mtime!, mtime!);
  },
  "is replaced by a rename": (k3s, pid) => {
    k3s.pidFile("vz.pid.new", pid);
    Deno.renameSync(k3s.path("vz.pid.new"), k3s.path("vz.pid"));
  },
};

for (const [what, rewrite] of Object.entries(REWRITINGS)) {
  test(`a recycled vz.pid ${what} between judging and removing: it stays`, async ({ home, k3s, bystander }) => {
    await using agent = await startAgent(k3s, { conf: { stay_at: "ha.sock" }, until: "ha.sock" });
    await using other = await startAgent(home.instance("docker"));
    // Not this instance's, and so nothing that would be reported as running; the number has as many digits.
    k3s.remove("ha.pid");
    k3s.remove("ha.sock");
    assert.equal(`${other.pid}`.length, `${agent.pid}`.length);
    k3s.pidFile("vz.pid", other.pid);
    const stay = await judged(k3s, "vz.pid");
    const running = pre(k3s, guardWith({ stays: [stay] }));
    await meanwhile(stay, () => rewrite(k3s, agent.pid));
    const { status, report, stdout } = await running;
    assert.deepEqual(report.steps.map(({ outcome }) => outcome), ["skipped: the file changed"], stdout);
    assert.equal(status, 75, "it is booting");
    assert.equal(k3s.pid("vz.pid"), agent.pid);
    assert.ok(agent.isAlive());
    bystander.assertAlive();
  });
}

test("a PID file becomes a directory, a link, a FIFO between judging and removing", async ({ home, k3s, bystander }) => {
  const outside = `${home.root}/outside`;
  Deno.writeTextFileSync(outside, `${bystander.pid}\n`);
  const things: [(path: string) => void, number][] = [
    [(path) => Deno.mkdirSync(path), 75],
    [(path) => Deno.symlinkSync(outside, path), 0],
    [(path) => assert.ok(new Deno.Command("mkfifo", { args: [path] }).outputSync().success), 0],
  ];
  for (const [i, [make, expected]] of things.entries()) {
    k3s.pidFile("vz.pid", bystander.pid);
    const stay = { ...await judged(k3s, "vz.pid"), file: `${home.root}/stay-${i}` };
    const running = pre(k3s, { ...guardWith({ stays: [stay] }), timeoutMs: 20_000 });
    await meanwhile(stay, () => {
      k3s.remove("vz.pid");
      make(k3s.path("vz.pid"));
    });
    const { status, report, stdout } = await running;
    assert.equal(status, expected, stdout);
    assert.match(report.steps[0]!.outcome, /^skipped/);
    assert.equal(k3s.has("vz.pid"), expected !== 0);
    if (expected !== 0) k3s.remove("vz.pid");
  }
  assert.equal(Deno.readTextFileSync(outside), `${bystander.pid}\n`);
});

test("everything vanishes between judging and removing: limactl list was called", async ({ k3s, bystander }) => {
  const removes = strew(k3s, bystander.pid);
  const stay = await judged(k3s, "ha.pid");
  const running = pre(k3s, guardWith({ stays: [stay] }));
  await meanwhile(stay, () => {
    for (const file of removes) k3s.remove(file);
  });
  const { status, report, stdout } = await running;
  assert.equal(status, 0, stdout);
  assert.deepEqual([...new Set(report.steps.map(({ outcome }) => outcome))], ["already gone"]);
  await changesNothing(k3s);
});

test("the whole instance vanishes between judging and removing: its volume is gone", async ({ home, k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  const stay = await judged(k3s, "vz.pid");
  const running = pre(k3s, guardWith({ stays: [stay] }));
  await meanwhile(stay, () => Deno.renameSync(k3s.dir, `${home.root}/k3s`));
  const { status, report } = await running;
  assert.deepEqual([status, report.steps.map(({ outcome }) => outcome)], [66, ["already gone"]]);
  assert.equal(Number(Deno.readTextFileSync(`${home.root}/k3s/vz.pid`)), bystander.pid);
  assert.deepEqual(paths(home).filter((path) => path.startsWith("k3s")), []);
});

test("the disk becomes read-only between judging and removing: a step failed", async ({ k3s, bystander }) => {
  k3s.pidFile("ha.pid", bystander.pid);
  k3s.pidFile("vz.pid", bystander.pid);
  const stay = await judged(k3s, "ha.pid");
  const running = pre(k3s, guardWith({ stays: [stay] }));
  const disposables = new DisposableStack();
  await meanwhile(stay, () => void disposables.use(readOnlyDir(k3s.dir)));
  const { status, report, stderr } = await running;
  disposables.dispose();
  assert.equal(status, 1, stderr);
  assert.ok(report.steps.length > 0 && report.steps.every(({ outcome }) => outcome.startsWith("failed: ")));
  assert.deepEqual([k3s.pid("ha.pid"), k3s.pid("vz.pid")], [bystander.pid, bystander.pid]);
  assert.equal((await pre(k3s)).status, 0);
  assert.deepEqual([k3s.has("ha.pid"), k3s.has("vz.pid")], [false, false]);
}, { ignore: whyNoReadOnlyDir() });

test(
  "a disk's lock passes to another instance between judging and removing: it stays",
  async ({ home, k3s, bystander }) => {
    const docker = home.instance("docker");
    const data = home.disk("data", { inUseBy: k3s.dir });
    k3s.pidFile("vz.pid", bystander.pid);
    const stay = { at: "before remove .*/vz\\.pid", file: `${home.root}/stay` };
    const running = pre(k3s, guardWith({ stays: [stay] }));
    await meanwhile(stay, () => {
      Deno.removeSync(data.lock);
      Deno.symlinkSync(docker.dir, data.lock);
    });
    const { status } = await running;
    assert.equal(status, 75);
    assert.equal(data.inUseBy(), docker.dir);
  },
  LEFT_BEHIND,
);

// --- the clock ------------------------------------------------------------------------------------------------------------------

const YEARS = 365 * 24 * 3_600_000;

for (const [which, wallMs] of [["20 years ahead", 20 * YEARS], ["20 years behind", -20 * YEARS]] as const) {
  test(`the clock on the wall is ${which}: what is stale goes, what lives stays`, async ({ home, k3s, bystander }) => {
    const wrong = guardWith({ wallMs });
    k3s.staleSocket("ha.sock");
    const removes = strew(k3s, bystander.pid);
    const done = await pre(k3s, wrong);
    assert.deepEqual([done.status, done.report.steps.length], [0, removes.length + 1]);
    await changesNothing(k3s, wrong);

    const instances = [
      { instance: k3s, conf: {}, until: "running", state: "running", status: 0 },
      {
        instance: home.instance("booting"),
        conf: { stay_at: "ha.sock" },
        until: "ha.sock",
        state: "booting",
        status: 75,
      },
    ] as const;
    for (const { instance, conf, until, state, status } of instances) {
      await using agent = await startAgent(instance, { conf, until });
      // The host agent writes this line a moment after the socket is there.
      await eventually(() => assert.match(instance.read("ha.stderr.log") ?? "", /socket created/));
      // On macOS a start time is a date. The machine has been on for a minute, whatever the clock says.
      await leavesAlone(
        instance,
        { state, status, blockers: status === 0 ? [] : [/host agent/] },
        guardWith({ wallMs, uptimeMs: 60_000 }),
      );
      assert.ok(agent.isAlive());
    }
    await using orphan = await startOrphan(home.instance("orphan"), "qemu");
    assert.equal((await runGuard(home, ["--pre", "orphan"], wrong)).status, 0);
    await orphan.waitForExit();
  });
}

test("the clock is stepped back while the machine is long up: a young host agent is not hung", async ({ k3s }) => {
  await using agent = await startAgent(k3s, { until: "driver", conf: { stop: "deadlock" } }); // no event yet
  const options = guardWith({ wallMs: -YEARS, uptimeMs: YEARS });
  await leavesAlone(k3s, { state: "running", status: 0 }, options);
  assert.ok(agent.isAlive());
});

test("the clock is stepped at any reading of ps, and start times with it: an orphan is stopped all the same", async ({ home }) => {
  const points = await forEveryPoint(async (from) => {
    const instance = home.instance(`i${from}`);
    await using orphan = await startOrphan(instance, "krunkit");
    const log = `${home.root}/points-${from}`;
    const lie = { does: "lie", from, pattern: "(\\d\\d:\\d\\d:\\d\\d) \\d{4} ", by: "$1 1970 " } as const;
    const options = guardWith({ log, programs: { ps: lie } });
    const { status, stdout } = await runGuard(home, ["--pre", instance.name], options);
    assert.equal(status, 0, `reading ${from}: ${stdout}`);
    await orphan.waitForExit();
    assert.deepEqual(instance.files().filter((file) => file.endsWith(".pid")), [], `reading ${from}`);
    assert.equal(instance.guestDisk(), "clean", `reading ${from}`);
    return Deno.readTextFileSync(log).split("before run /bin/ps").length > from ? "there" : "beyond";
  });
  assert.ok(points >= 4, `only ${points} readings of ps`);
});

const LIBFAKETIME = ["x86_64-linux-gnu", "aarch64-linux-gnu"].map((arch) =>
  `/usr/lib/${arch}/faketime/libfaketimeMT.so.1`
)
  .find((path) => {
    try {
      return Deno.statSync(path).isFile;
    } catch {
      return false;
    }
  });

for (const offset of ["+3650d", "-3650d"]) {
  test(`the whole guard and its ps live ${offset} from now`, async ({ k3s, bystander }) => {
    const env = { LD_PRELOAD: LIBFAKETIME!, FAKETIME: offset, FAKETIME_DONT_FAKE_MONOTONIC: "1" };
    {
      await using agent = await startAgent(k3s);
      await leavesAlone(k3s, { state: "running", status: 0 }, { env });
      assert.ok(agent.isAlive());
      agent.signal("SIGTERM");
      await agent.status;
    }
    k3s.pidFile("vz.pid", bystander.pid);
    const { status, report } = await pre(k3s, { env });
    assert.equal(status, 0);
    assert.match(report.steps[0]!.because, SIRITTSD);
    const [line] = (k3s.read(JOURNAL) ?? "").split("\n");
    const years = (Date.parse(JSON.parse(line!).time) - Date.now()) / YEARS;
    assert.ok(Math.abs(Math.abs(years) - 10) < 0.1, "the clock was not faked");
  }, { ignore: LIBFAKETIME ? false : "needs libfaketime" });
}
