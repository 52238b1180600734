/**
 * `--stop` when things go wrong around it: the guard is killed at any moment, a PID changes hands before the signal, ps
 * is of no use, the clock is stepped, the disk is full, files vanish. No other process is ever signalled, and what is
 * reported is what was found out.
 */

import assert from "node:assert/strict";
import { type Behaviour, guardWith, meanwhile, type Stay, type Twist } from "./helpers/guard_with.ts";
import {
  type Conf,
  denoFlags,
  eventually,
  type Home,
  type Instance,
  readOnlyDir,
  runGuard,
  silentPort,
  spawnGuard,
  sshGuest,
  startAgent,
  startBystander,
  startOrphan,
  tempLimaHome,
  tinyMount,
  whyNoMount,
  whyNoReadOnlyDir,
  whyNoSshd,
} from "./helpers/mod.ts";
import { project } from "./helpers/paths.ts";
import {
  journal,
  nameInAllPidFiles,
  readDocument,
  sideBySide,
  stagesTaken,
  stale,
  startsAgain,
  stop,
  stopOne,
} from "./helpers/stop.ts";

// --- the guard is killed ---------------------------------------------------------------------------------------------

/** A kind of instance that is stopped over and over again, while the guard dies a little later each time. */
interface Scene {
  readonly what: string;
  readonly begin: (instance: Instance, use: AsyncDisposableStack) => Promise<unknown>;
  /** The instance as it is before each stop. */
  readonly make: (instance: Instance, use: AsyncDisposableStack) => Promise<unknown>;
  /** How the guest may find its file system afterwards. A QEMU whose agent alone was killed is powered off the next time. */
  readonly disk: readonly ("clean" | "dirty")[];
  /** What comes before is the same as in another scene. */
  readonly from?: string;
  /** Of the run that is killed, and of the one after it. */
  readonly budgetS: readonly [number, number];
}

const nothing = () => Promise.resolve();

const SCENES: readonly Scene[] = [
  {
    what: "a guest powers off",
    begin: async (instance, use) => use.use(await sshGuest(instance, "slow:600")),
    make: async (instance, use) => use.use(await startAgent(instance)),
    disk: ["clean"],
    budgetS: [20, 20],
  },
  {
    what: "QMP powers an orphan off",
    begin: nothing,
    make: async (instance, use) => use.use(await startOrphan(instance, "qemu", { guest_off_ms: 300 })),
    disk: ["clean"],
    budgetS: [20, 20],
  },
  {
    what: "a host agent and its QEMU are killed",
    begin: nothing,
    make: async (instance, use) => use.use(await startAgent(instance, { conf: { vmtype: "qemu", stop: "hang" } })),
    disk: ["dirty", "clean"],
    from: "before signal",
    budgetS: [2, 6],
  },
];

/** How many are tried side by side: most of the time is waiting. */
const LANES = 6;

for (const scene of SCENES) {
  Deno.test({
    name: `killed at any moment while ${scene.what}: the next --stop comes to the same end`,
    ignore: whyNoSshd() !== undefined,
    fn: () => dieEverywhere(scene),
  });
}

async function dieEverywhere(scene: Scene): Promise<void> {
  const { points, files } = await undisturbed(scene);
  assert.ok(points.length > 8 && points.every(Number.isInteger), "those are not all stop stages");
  const lane = async () => {
    await using home = await tempLimaHome();
    await using use = new AsyncDisposableStack();
    const k3s = home.instance("k3s");
    await scene.begin(k3s, use);
    for (let dieAt = points.shift(); dieAt !== undefined; dieAt = points.shift()) {
      await dieOnce(scene, k3s, dieAt, files);
    }
  };
  await sideBySide(Array(LANES).keys(), lane);
}

const EFFECT = /^\d+ (before (write|start|run|connect|signal|append|remove)|half)\b/;

/** The moments worth dying at, and the files that are there in the end. */
async function undisturbed(scene: Scene): Promise<{ points: number[]; files: string[] }> {
  await using home = await tempLimaHome();
  await using use = new AsyncDisposableStack();
  const k3s = home.instance("k3s");
  await scene.begin(k3s, use);
  await scene.make(k3s, use);
  const log = `${home.root}/log`;
  const { report } = await stopOne(k3s, { budgetS: scene.budgetS[1], ...guardWith({ log }) });
  assert.equal(report.status, 0);
  const effects = Deno.readTextFileSync(log).split("\n").filter((line) => EFFECT.test(line));
  const first = scene.from === undefined ? 0 : effects.findIndex((line) => line.includes(scene.from!));
  const points = effects.slice(first).map((line) => parseInt(line));
  return { points, files: filesOf(k3s) };
}

/** Without sockets that no process serves any more, which do no harm. */
function filesOf(instance: Instance): string[] {
  return instance.files().filter((file) => !file.endsWith(".sock"));
}

/** Host agent, driver, and the ssh of a lima-guard that was killed; the guest's side of ssh is another machine's. */
function ownProcesses({ dir, home }: Instance): string[] {
  return home.processes().filter((line) => line.includes(dir) && !/sshd|guest-shell/.test(line));
}

async function dieOnce(scene: Scene, k3s: Instance, dieAt: number, files: readonly string[]): Promise<void> {
  await using use = new AsyncDisposableStack();
  const bystander = use.use(await startBystander(k3s.home));
  await scene.make(k3s, use);
  nameInAllPidFiles(k3s, bystander.pid);
  const [short, long] = scene.budgetS;
  await runGuard(k3s.home, ["--stop", "k3s", "--timeout", String(short)], guardWith({ dieAt }));
  bystander.assertAlive();
  const again = await stopOne(k3s, { budgetS: long });
  const said = `killed at ${dieAt}: ${again.stdout}${again.stderr}`;
  assert.deepEqual([again.status, again.report.state], [0, "stopped"], said);
  assert.deepEqual(filesOf(k3s), files, said);
  assert.ok(scene.disk.includes(k3s.guestDisk() as "clean"), `${k3s.guestDisk()}: ${said}`);
  await eventually(() => assert.deepEqual(ownProcesses(k3s), [], said));
  bystander.assertAlive();
}

// --- the PID changes hands -------------------------------------------------------------------------------------------

/** Signals that a lima-guard with a log has sent: `PID SIGNAL`. */
function signalsIn(log: string): string[] {
  return Deno.readTextFileSync(log).split("\n").flatMap((line) => /^\d+ before signal (.*)$/.exec(line)?.[1] ?? []);
}

/** What ps says when it is asked for the proof, just before the signal. */
const SECOND_THOUGHTS: Record<string, Behaviour> = {
  "another command": { does: "lie", pattern: " \\S*/limactl hostagent .*$", by: " /usr/libexec/sirittsd" },
  "the host agent of another instance": { does: "lie", pattern: "/k3s/ha\\.pid", by: "/k3s-2/ha.pid" },
  "another owner": { does: "lie", pattern: "^( *\\d+ +\\d+ +)\\d+", by: "$1424242" },
  "no such process": { does: "answer", code: 1 },
  "a row that cannot be read": { does: "lie", pattern: "^.*$", by: "ps: ???" },
  "nothing": { does: "hang" },
  "that it failed": { does: "answer", code: 1, stderr: "ps: cannot allocate memory" },
};

/** An agent whose guest is not asked: then each look costs one ps, and nothing depends on how fast it goes. */
async function withoutSsh(home: Home, conf: Conf = {}) {
  const k3s = home.instance("k3s");
  const agent = await startAgent(k3s, { conf });
  k3s.remove("ssh.config");
  return { k3s, agent, [Symbol.asyncDispose]: () => agent[Symbol.asyncDispose]() };
}

/** How often something was done, in an undisturbed stop, up to the moment that is named. */
async function countBefore(moment: RegExp, what: RegExp): Promise<number> {
  await using home = await tempLimaHome();
  await using world = await withoutSsh(home);
  const log = `${home.root}/log`;
  assert.equal((await stopOne(world.k3s, { budgetS: 20, ...guardWith({ log }) })).report.stage, "agent");
  const lines = Deno.readTextFileSync(log).split("\n");
  const end = lines.findIndex((line) => moment.test(line));
  assert.ok(end >= 0, `it never came to ${moment}`);
  return lines.slice(0, end).filter((line) => what.test(line)).length;
}

/** Which ps it is that brings the proof. */
const proof = () => countBefore(/ before signal /, / before run \/bin\/ps$/);

Deno.test("ps says something else just before the signal: it is not sent", async () => {
  const from = await proof();
  await sideBySide(Object.entries(SECOND_THOUGHTS), async ([what, how]) => {
    await using home = await tempLimaHome();
    await using world = await withoutSsh(home);
    const log = `${home.root}/log`;
    const programs = { ps: { ...how, from } };
    const { stdout, tookS } = await stopOne(world.k3s, { budgetS: 4, ...guardWith({ log, programs }) });
    const said = `${what}: ${stdout}`;
    assert.ok(Deno.readTextFileSync(log).match(/ before run \/bin\/ps$/gm)!.length >= from, said);
    assert.deepEqual(signalsIn(log), [], said);
    assert.ok(world.agent.isAlive(), said);
    assertInTime(tookS, 4);
  });
});

/** With what Deno needs to start on a machine that is busy. */
function assertInTime(tookS: number, budgetS: number): void {
  assert.ok(tookS < budgetS + 4, `${tookS.toFixed(1)} s of ${budgetS} s`);
}

Deno.test("a single ps that fails costs no stage: it is asked again", async () => {
  const from = await proof();
  const once = {
    ps: { does: "answer", code: 1, stderr: "ps: fork: Resource temporarily unavailable\n", from, to: from },
  };
  await sideBySide(["", "ignore"], async (stop) => {
    await using home = await tempLimaHome();
    await using world = await withoutSsh(home, { stop });
    const log = `${home.root}/log`;
    const programs = once as NonNullable<Twist["programs"]>;
    const { report, status, stdout } = await stopOne(world.k3s, { budgetS: 8, ...guardWith({ log, programs }) });
    assert.deepEqual([report.stage, status], [stop === "" ? "agent" : "killed", 0], stdout);
    const signals = stop === "" ? ["SIGTERM"] : ["SIGTERM", "SIGKILL"];
    assert.deepEqual(signalsIn(log), signals.map((signal) => `${world.agent.pid} ${signal}`), stdout);
    assert.ok(report.seconds.agent! < (stop === "" ? 3 : 5), stdout);
  });
});

Deno.test("the same process with another start time, as after a step of the clock, is looked at again and stopped", async () => {
  await using home = await tempLimaHome();
  await using world = await withoutSsh(home);
  const log = `${home.root}/log`;
  const how: Behaviour = { does: "lie", pattern: " \\d{4} (?= *\\S*/limactl)", by: " 2036 " };
  const programs = { ps: { ...how, from: await proof() } };
  const { report } = await stopOne(world.k3s, { budgetS: 20, ...guardWith({ log, programs }) });
  assert.deepEqual([report.stage, report.status], ["agent", 0]);
  assert.deepEqual(signalsIn(log), [`${world.agent.pid} SIGTERM`]);
});

Deno.test("it ends by itself just before the signal", async () => {
  await using home = await tempLimaHome();
  await using world = await withoutSsh(home);
  const log = `${home.root}/log`;
  const stay: Stay = { at: "before run /bin/ps", nth: await proof(), file: `${home.root}/proof` };
  const stopping = stopOne(world.k3s, { budgetS: 20, ...guardWith({ log, stays: [stay] }) });
  await meanwhile(stay, async () => {
    world.agent.signal("SIGKILL");
    await world.agent.status;
  });
  const { report } = await stopping;
  assert.deepEqual([report.state, report.status], ["stopped", 0]);
  assert.deepEqual(signalsIn(log), []);
  assert.deepEqual(stale(world.k3s), []);
});

const NO_NAMESPACE = whyNoNamespace();

function whyNoNamespace(): string | undefined {
  if (Deno.build.os !== "linux") return "needs Linux's PID namespaces";
  if (Deno.uid() !== 0) return "needs root for a PID namespace";
  try {
    const args = ["-pf", "--mount-proc", "--kill-child", "sh", "-c", "echo 100 >/proc/sys/kernel/ns_last_pid"];
    const { success } = new Deno.Command("unshare", { args, stdout: "null", stderr: "null" }).outputSync();
    return success ? undefined : "no PID namespace can be made, or no PID be chosen in it";
  } catch {
    return "unshare is not installed";
  }
}

Deno.test({
  name: `the PID changes hands just before the signal: who has it now is not signalled${skipped(NO_NAMESPACE)}`,
  ignore: NO_NAMESPACE !== undefined,
  async fn() {
    const pairs = ["another program", "another host agent"].flatMap((who) =>
      (["SIGTERM", "SIGKILL"] as const).map((signal) => [who, signal] as const)
    );
    await sideBySide(pairs, async ([who, signal]) => {
      const script = `${project}/tests/helpers/recycled_pid.ts`;
      const { success, stdout, stderr } = await new Deno.Command("unshare", {
        args: [
          ...["-pf", "--mount-proc", "--kill-child", "--"],
          ...[Deno.execPath(), "run", "-A", ...denoFlags(), script, who, signal],
        ],
        stdin: "null",
      }).output();
      const text = new TextDecoder();
      const said = `${who}, ${signal}: ${text.decode(stdout)}${text.decode(stderr)}`;
      assert.ok(success, said);
      const { pid, signals, sent, isAlive, status } = JSON.parse(text.decode(stdout));
      assert.ok(isAlive, said);
      assert.deepEqual(signals, [], said);
      // The one that had it before was asked to stop before it was to be killed.
      assert.deepEqual(sent, signal === "SIGTERM" ? [] : [`${pid} SIGTERM`], said);
      assert.equal(status, 0, said);
    });
  },
});

// --- ps is of no use -------------------------------------------------------------------------------------------------

const USELESS: Record<string, Behaviour> = {
  "hangs": { does: "hang" },
  "is missing": { does: "missing" },
  "is killed": { does: "be killed" },
  "fails": { does: "answer", code: 1, stderr: "ps: cannot allocate memory\n" },
  "says nothing": { does: "answer" },
  "says that there is no such process": { does: "answer", code: 1 },
  "prints something else": { does: "answer", stdout: "PID TTY TIME CMD\n" },
  "prints a table of others": { does: "answer", stdout: "1 0 0 Ss Mon Jan  1 00:00:00 2024 /sbin/init\n" },
  "cuts its rows short": { does: "lie", pattern: "^(.{20}).*$", by: "$1" },
};

/** The journal of a lima-guard that saw it running in this boot. */
function wasRunning(instance: Instance): void {
  const boot = Deno.readTextFileSync("/proc/sys/kernel/random/boot_id").trim();
  const line = { time: new Date().toISOString(), boot, dir: instance.dir, role: "run", event: "running", seconds: 1 };
  instance.write("lima-guard.jsonl", `${JSON.stringify(line)}\n`);
}

for (const [what, how] of Object.entries(USELESS)) {
  Deno.test({
    name: `ps ${what}: nothing is signalled, the guest is not asked, nothing is removed, and that is no stop`,
    ignore: Deno.build.os !== "linux",
    async fn() {
      await using home = await tempLimaHome();
      await using bystander = await startBystander(home);
      const k3s = home.instance("k3s");
      const lines = k3s.path("standin.guest/said");
      await using agent = await startAgent(k3s);
      // An ssh that notes the word that it is given.
      Deno.writeTextFileSync(`${home.bin}/ssh`, `#!/bin/sh\nread -r word && echo "$word" >'${lines}'\n`, {
        mode: 0o755,
      });
      k3s.pidFile("qemu.pid", bystander.pid);
      wasRunning(k3s);
      const before = k3s.read("lima-guard.jsonl");
      const log = `${home.root}/log`;
      const { status, report, tookS } = await stopOne(k3s, {
        budgetS: 4,
        ...guardWith({ log, programs: { ps: how } }),
      });
      assert.deepEqual([status, report.state], [75, "unknown"]);
      assert.notDeepEqual(report.blockers, []);
      assert.equal(report.stage, null, "no stage has ended anything");
      assert.deepEqual(report.steps, []);
      assert.deepEqual(signalsIn(log), []);
      assert.ok(agent.isAlive());
      bystander.assertAlive();
      assert.equal(k3s.read("standin.guest/said"), undefined);
      assert.equal(k3s.pid("qemu.pid"), bystander.pid);
      assert.equal(k3s.read("lima-guard.jsonl"), before, "the journal tells of a stop");
      assertInTime(tookS, 4);
    },
  });
}

Deno.test({
  name: "ps hangs from the second time on: a guest that was asked still ends the stop",
  ignore: whyNoSshd() !== undefined,
  async fn() {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    await using _guest = await sshGuest(k3s, "slow:700");
    await using _agent = await startAgent(k3s);
    const log = `${home.root}/log`;
    const { report } = await stopOne(k3s, {
      budgetS: 8,
      ...guardWith({ log, programs: { ps: { from: 2, does: "hang" } } }),
    });
    assert.deepEqual([report.stage, report.status], ["guest", 0]);
    assert.deepEqual(signalsIn(log), []);
    assert.equal(k3s.guestDisk(), "clean");
    assert.deepEqual(stale(k3s), []);
  },
});

Deno.test("ps hangs from the second time on: a stop that did not succeed says so, in time", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using agent = await startAgent(k3s);
  const log = `${home.root}/log`;
  const programs: Twist["programs"] = { ps: { from: 2, does: "hang" } };
  const { status, report, tookS } = await stopOne(k3s, { budgetS: 4, ...guardWith({ log, programs }) });
  assert.notEqual(status, 0);
  assert.notEqual(report.state, "stopped");
  assertInTime(tookS, 4);
  assert.deepEqual(signalsIn(log), []);
  assert.ok(agent.isAlive());
  assert.equal(k3s.pid("ha.pid"), agent.pid);
});

Deno.test("a signal that comes between two stages skips the next one: it is not lost", async () => {
  await using home = await tempLimaHome();
  await using _world = await withoutSsh(home, { stop: "hang" });
  // The look after the guest stage; without ssh no other comes before it but the first.
  const stay: Stay = { at: "before run /bin/ps", nth: 2, file: `${home.root}/stay` };
  const programs: Twist["programs"] = { ps: { from: 2, to: 2, does: "hang" } };
  const args = ["--stop", "--json", "--timeout", "40", "k3s"];
  await using guard = spawnGuard(home, args, guardWith({ stays: [stay], programs }));
  await meanwhile(stay, () => {});
  await eventually(() => assert.ok(home.processes().some((line) => line.includes("sleep 1000")), "ps does not hang"));
  guard.signal("SIGINT");
  const [report] = readDocument(await guard.result());
  assert.deepEqual(stagesTaken(report!).map(([kind]) => kind), ["guest", "agent", "kill"]);
  assert.match(stagesTaken(report!)[1]![1]!, /^skipped by a signal/);
  assert.equal(report!.stage, "killed");
});

// --- the clock is stepped --------------------------------------------------------------------------------------------

const TEN_YEARS_MS = 10 * 365 * 24 * 3600 * 1000;

for (const [when, wallMs] of [["ahead", TEN_YEARS_MS], ["back", -TEN_YEARS_MS]] as const) {
  Deno.test({
    name: `a clock that is ten years ${when} changes nothing about a stop`,
    ignore: whyNoSshd() !== undefined,
    async fn() {
      await using home = await tempLimaHome();
      const [asked, bare] = [home.instance("asked"), home.instance("bare")];
      await using _guest = await sshGuest(asked);
      await using _asked = await startAgent(asked);
      await using _bare = await startAgent(bare);
      const result = await stop(home, ["asked", "bare"], { budgetS: 20, ...guardWith({ wallMs }) });
      assert.deepEqual(result.report.map(({ stage, status }) => [stage, status]), [["guest", 0], ["agent", 0]]);
      for (const instance of [asked, bare]) assert.deepEqual(stale(instance), []);
    },
  });

  Deno.test(`a journal that was written ten years ${when} is not taken for this stop`, async () => {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    await using agent = await startAgent(k3s);
    assert.equal((await stopOne(k3s, { budgetS: 20, ...guardWith({ wallMs }) })).report.stage, "agent");
    await agent.status;
    assert.equal((await stopOne(k3s, { budgetS: 20 })).report.stage, "already stopped");
  });

  Deno.test(`the clock is set ten years ${when} while a second administrator waits: it is the same stop`, async () => {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s", { conf: { stop: "slow:1500" } });
    await using _ = await startAgent(k3s);
    // What the first one writes in the end has the new time.
    await using first = spawnGuard(home, ["--stop", "--json", "k3s"], guardWith({ wallMs }));
    await first.waitForLine(/stage agent/);
    const second = await stopOne(k3s, { budgetS: 20 });
    assert.equal(readDocument(await first.result())[0]!.stage, "agent");
    assert.deepEqual([second.report.stage, second.status], ["agent", 0]);
  });
}

const FAKETIME = libFaketime();

function libFaketime(): string | undefined {
  for (const dir of ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]) {
    const lib = `${dir}/faketime/libfaketimeMT.so.1`;
    try {
      if (Deno.statSync(lib).isFile) return lib;
    } catch {
      // The next one.
    }
  }
  return undefined;
}

Deno.test({
  name: `the clock jumps by years, there and back, in the middle of a stop${
    skipped(FAKETIME ? undefined : "libfaketime is not installed")
  }`,
  ignore: FAKETIME === undefined,
  async fn() {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s", { conf: { stop: "slow:500" } });
    using silent = silentPort();
    await using _ = await startAgent(k3s, { conf: { ssh_port: silent.port } });
    const clock = `${home.root}/clock`;
    const set = (text: string) => {
      Deno.writeTextFileSync(`${clock}.new`, `${text}\n`);
      Deno.renameSync(`${clock}.new`, clock);
    };
    set("+0");
    await using guard = spawnGuard(home, ["--stop", "--json", "--timeout", "15", "k3s"], {
      env: {
        LD_PRELOAD: FAKETIME!,
        FAKETIME_TIMESTAMP_FILE: clock,
        FAKETIME_NO_CACHE: "1",
        FAKETIME_DONT_FAKE_MONOTONIC: "1",
      },
    });
    await guard.waitForLine(/stage guest/);
    set("+10y");
    await guard.waitForLine(/stage agent/);
    set("-10y");
    const result = await guard.result();
    const [report] = readDocument(result);
    assert.deepEqual([report!.stage, result.status], ["agent", 0], result.stderr);
    assert.deepEqual(stagesTaken(report!).map(([kind]) => kind), ["guest", "agent"]);
    assert.ok(report!.seconds.guest! >= 1.2 && report!.seconds.total! < 9, "the stages went by the clock on the wall");
    const years = journal(k3s).map(({ time }) => Number(time.slice(0, 4)));
    assert.ok(new Set(years).size > 1, `the clock did not jump: ${years}`);
    assert.deepEqual(stale(k3s), []);
  },
});

// --- the disk --------------------------------------------------------------------------------------------------------

Deno.test({
  name: `a full disk does not keep it from stopping${skipped(whyNoMount())}`,
  ignore: whyNoMount() !== undefined,
  async fn() {
    await using home = await tempLimaHome();
    using tiny = tinyMount(home.lima);
    const k3s = home.instance("k3s", { conf: { guest_disk: `${home.root}/guest-disk` } });
    await using agent = await startAgent(k3s);
    const filler = tiny.fill();
    const { status, report, stderr } = await stopOne(k3s, { budgetS: 20 });
    assert.deepEqual([report.stage, status], ["agent", 0], stderr);
    assert.match(stderr, /no journal: .*(No space left|ENOSPC)/);
    await agent.status;
    assert.deepEqual(stale(k3s), []);
    assert.equal(Deno.readTextFileSync(`${home.root}/guest-disk`), "clean\n");
    Deno.removeSync(filler);
    await startsAgain(k3s);
  },
});

Deno.test({
  name: `a directory that became read-only does not keep it from stopping, and what stays is report${
    skipped(whyNoReadOnlyDir())
  }`,
  ignore: whyNoReadOnlyDir() !== undefined,
  async fn() {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s", { conf: { guest_disk: `${home.root}/guest-disk` } });
    await using agent = await startAgent(k3s);
    {
      using _ = readOnlyDir(k3s.dir);
      const { status, report, stderr } = await stopOne(k3s, { budgetS: 20 });
      assert.deepEqual([report.stage, report.state], ["agent", "stopped"], stderr);
      assert.match(stderr, /no journal: /);
      await agent.status;
      assert.equal(Deno.readTextFileSync(`${home.root}/guest-disk`), "clean\n");
      assert.equal(status, 77);
      assert.ok(report.blockers.some(({ what }) => what === k3s.path("vz.pid")), JSON.stringify(report.blockers));
    }
    assert.ok(k3s.has("vz.pid"));
    const again = await stopOne(k3s, { budgetS: 20 });
    assert.deepEqual([again.status, again.report.stage], [0, "already stopped"]);
    assert.deepEqual(stale(k3s), []);
  },
});

// --- files vanish ----------------------------------------------------------------------------------------------------

/** What is gone at which moment; and the stage that ends it all the same. */
const VANISHING: readonly {
  readonly file: string;
  readonly at: string;
  readonly conf?: Conf;
  readonly stage: string;
}[] = [
  { file: "ha.pid", at: "before stat .*/ha\\.pid$", stage: "agent" },
  { file: "ha.pid", at: "before read .*/ha\\.pid$", stage: "agent" },
  { file: "vz.pid", at: "before read .*/vz\\.pid$", stage: "agent" },
  { file: "ssh.config", at: "before stat .*/ssh\\.config$", stage: "agent" },
  { file: "ssh.config", at: "before read .*/ssh\\.config$", stage: "agent" },
  { file: "ssh.config", at: "after start ssh", stage: "agent" },
  { file: "ha.sock", at: "before connect", stage: "agent" },
  { file: "ha.stderr.log", at: "before signal .* SIGTERM", stage: "agent" },
  { file: "lima-guard.lock", at: "after tryLock", stage: "agent" },
  { file: "lima-guard.jsonl", at: "before remove", stage: "agent" },
  { file: "vz.pid", at: "before remove .*/vz\\.pid", stage: "agent" },
  { file: "qmp.sock", at: "before stat .*/qmp\\.sock", conf: { vmtype: "qemu" }, stage: "agent" },
  { file: "qemu.pid", at: "before read .*/qemu\\.pid", conf: { vmtype: "qemu" }, stage: "agent" },
];

for (const { file, at, conf = {}, stage } of VANISHING) {
  Deno.test(`${file} vanishes ${at.replaceAll(/[\\$]|\.\*\/?/g, "")}`, async () => {
    await using home = await tempLimaHome();
    await using bystander = await startBystander(home);
    const k3s = home.instance("k3s");
    await using agent = await startAgent(k3s, { conf });
    k3s.pidFile("x.pid", bystander.pid);
    const stay: Stay = { at, file: `${home.root}/stay` };
    const stopping = stopOne(k3s, { budgetS: 20, ...guardWith({ stays: [stay] }) });
    await meanwhile(stay, () => k3s.has(file) && k3s.remove(file));
    const { report, status } = await stopping;
    assert.deepEqual([report.stage, report.state, status], [stage, "stopped", 0]);
    assert.ok(!agent.isAlive());
    assert.deepEqual(stale(k3s), []);
    assert.equal(k3s.guestDisk(), "clean");
    bystander.assertAlive();
  });
}

Deno.test("a PID file vanishes between the judgement and the look before its removal", async () => {
  await using home = await tempLimaHome();
  await using world = await withoutSsh(home);
  const look = / before stat .*\/vz\.pid$/;
  const nth = await countBefore(/ before remove .*\/vz\.pid$/, look);
  const stay: Stay = { at: "before stat .*/vz\\.pid$", nth, file: `${home.root}/stay` };
  const stopping = stopOne(world.k3s, { budgetS: 20, ...guardWith({ stays: [stay] }) });
  await meanwhile(stay, () => world.k3s.remove("vz.pid"));
  const { report } = await stopping;
  assert.deepEqual([report.stage, report.status], ["agent", 0]);
  assert.deepEqual(report.steps.filter(({ kind }) => kind === "remove").map(({ outcome }) => outcome), [
    "already gone",
  ]);
});

Deno.test("the whole directory vanishes: its host agent is stopped all the same", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { guest_disk: `${home.root}/guest-disk` } });
  await using agent = await startAgent(k3s);
  const stay: Stay = { at: "before signal .* SIGTERM", file: `${home.root}/stay` };
  const stopping = stopOne(k3s, { budgetS: 6, ...guardWith({ stays: [stay] }) });
  await meanwhile(stay, () => Deno.removeSync(k3s.dir, { recursive: true }));
  const { report } = await stopping;
  assert.ok(!agent.isAlive());
  assert.ok(report.seconds.total! < 6);
  assert.ok(
    !report.blockers.some(({ because }) => because.includes("lima-guard failed")),
    JSON.stringify(report.blockers),
  );
});

function skipped(why: string | undefined): string {
  return why === undefined ? "" : ` (skipped: ${why})`;
}
