/**
 * `--pre` on real files and real processes: each way to look at what can be left behind of an instance, and each way to
 * act, once for real; what `limactl start` says to it before and after; and always another program whose PID stands in
 * the files and which must not notice anything. The numbers of the rows are those of plan_test.ts, which decides all of
 * them. Bad input is in pre_hostile_test.ts, a lima-guard that is killed or outrun in pre_faults_test.ts, each stage of a
 * stop in stop_process_test.ts.
 */

import assert from "node:assert/strict";
import { dirname } from "node:path/posix";
import { eventually } from "./helpers/processes.ts";
import { guardWith } from "./helpers/guard_with.ts";
import {
  type Conf,
  cutOff,
  deadPid,
  exists,
  freePort,
  type Home,
  IMPOSSIBLE_PID,
  type Instance,
  isAlive,
  NO_ORDINARY_USER,
  ordinaryUser,
  type Orphan,
  ps,
  runGuard,
  sshGuest,
  staleSocket,
  startAgent,
  startBystander,
  startOrphan,
  waitForExit,
  whyNoSshd,
  zombie,
} from "./helpers/mod.ts";
import {
  changesNothing,
  difference,
  dryRun,
  everything,
  JOURNAL,
  leavesAlone,
  LOCK,
  paths,
  PID_FILES,
  pre,
  refuses,
  remark,
  type Repair,
  repairs,
  type Report,
  SIRITTSD,
  SOCKETS,
  starts,
  strew,
  test,
  type TestOptions,
  tree,
  USERNET,
  words,
  type World,
} from "./helpers/pre.ts";

const BOOT_ID = Deno.build.os === "linux"
  ? Deno.readTextFileSync("/proc/sys/kernel/random/boot_id")
  : new TextDecoder().decode(new Deno.Command("sysctl", { args: ["-n", "kern.bootsessionuuid"] }).outputSync().stdout);

/** A test of one row; the bystander must have noticed nothing at its end. */
function row(number: number, title: string, body: (world: World) => Promise<void>, options: TestOptions = {}): void {
  test(`row ${number}: ${title}`, body, options);
}

// --- rows 1 and 2: nothing, and the dead --------------------------------------------------------------------------------

row(1, "no PID files", async ({ k3s }) => {
  const { report, stdout, stderr } = await leavesAlone(k3s, { state: "clear", status: 0 });
  assert.deepEqual(report.notes, [], stdout);
  assert.equal(stderr, "");
  assert.equal(k3s.has(JOURNAL), false, "nothing was done, and nothing is to be journalled");
  await starts(k3s);
});

row(2, "ha.pid and vz.pid of a host agent that was killed", async ({ k3s }) => {
  const pid = await cutOff(k3s);
  assert.deepEqual([k3s.pid("ha.pid"), k3s.pid("vz.pid"), k3s.has("ha.sock")], [pid, pid, true]);
  await repairs(k3s, { removes: ["ha.pid", "ha.sock", "vz.pid"], because: [/PID \d+ is dead/] });
  await starts(k3s);
});

row(2, "every kind of PID file, of processes that have ended", async ({ home, k3s }) => {
  const pid = await deadPid();
  for (const file of PID_FILES) k3s.pidFile(file, pid);
  home.network("user-v2", { pid, sockets: true });
  await repairs(k3s, { removes: [...PID_FILES, `../${USERNET}`, ...SOCKETS] });
  await starts(k3s);
});

row(2, "the PID of a zombie, which Lima takes for alive", async ({ home, k3s }) => {
  await using dead = await zombie(home);
  k3s.pidFile("ha.pid", dead.pid);
  k3s.pidFile("qemu.pid", dead.pid);
  k3s.staleSocket("ha.sock");
  await refuses(k3s, "failed to get Info from");
  await repairs(k3s, { removes: ["ha.pid", "ha.sock", "qemu.pid"], because: [/zombie/] });
  assert.ok(exists(dead.pid));
  await starts(k3s);
}, { conf: { vmtype: "qemu" } });

// --- rows 3 to 9: the recycled, and what is no PID ------------------------------------------------------------------------

row(3, "ha.pid and vz.pid recycled, ha.sock refuses", async ({ k3s, bystander }) => {
  k3s.pidFile("ha.pid", bystander.pid);
  k3s.pidFile("vz.pid", bystander.pid);
  k3s.staleSocket("ha.sock");
  await refuses(k3s, /failed to get Info from .*connection refused/);
  await repairs(k3s, { removes: ["ha.pid", "ha.sock", "vz.pid"], because: [SIRITTSD] });
  await starts(k3s);
});

row(3, "ha.pid recycled, and ha.sock takes connections: unknown, both files stay", async ({ k3s, bystander }) => {
  using _listener = k3s.silentSocket("ha.sock");
  k3s.pidFile("ha.pid", bystander.pid);
  await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [/ha\.sock: it takes connections.*lsof/] });
});

row(4, "only vz.pid, recycled: a clean stop and a reboot", async ({ k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  await refuses(k3s, "vz driver is running but host agent is not");
  await repairs(k3s, { removes: ["vz.pid"], because: [SIRITTSD] });
  await starts(k3s);
});

row(4, "the PIDs of two other programs in every kind of PID file at once", async ({ home, k3s, bystander }) => {
  const app = `${home.root}/Some App.app/Contents/MacOS/Some App`;
  Deno.mkdirSync(dirname(app), { recursive: true });
  Deno.writeTextFileSync(app, "");
  await using other = await startBystander(home, { command: [app, "--quiet"] });
  const removes = strew(k3s, bystander.pid);
  k3s.pidFile("vz.pid", other.pid);
  k3s.staleSocket("ha.sock");
  await refuses(k3s, "failed to get Info from");
  await repairs(k3s, {
    removes: [...removes, "ha.sock"],
    because: [SIRITTSD, new RegExp(`is not ours: it is "${app}",`)],
  });
  await starts(k3s);
  other.assertAlive();
});

row(6, "the PID belongs to another user by now: kill(2) says EPERM", async ({ home, k3s }) => {
  // As root: root's process, and the guard as an ordinary user. Else: any of root's.
  const user = ordinaryUser();
  await using own = user ? await startBystander(home, { command: ["/usr/sbin/rootd"] }) : undefined;
  const pid = own?.pid ?? pidOfRoot();
  const who = user ?? {};
  k3s.pidFile("ha.pid", pid);
  k3s.pidFile("vz.pid", pid);
  k3s.staleSocket("ha.sock");
  if (user) home.giveTo(user);
  await refuses(k3s, /failed to get Info from/, who);
  const removes = ["ha.pid", "ha.sock", "vz.pid"];
  await repairs(k3s, { removes, because: [/PID \d+ is not ours: it belongs to/] }, { user });
  await starts(k3s, who);
  own?.assertAlive();
});

/** The number of some process of root's that is not the first. */
function pidOfRoot(): number {
  const { stdout } = new Deno.Command("ps", { args: ["-A", "-o", "pid=,uid="] }).outputSync();
  const rows = new TextDecoder().decode(stdout).trim().split("\n").map((line) => line.trim().split(/\s+/).map(Number));
  const pid = rows.find(([pid, uid]) => uid === 0 && pid! > 1)?.[0];
  assert.ok(pid, "root has no process here");
  return pid;
}

row(6, "another user's program, seen by root", async ({ home, k3s }) => {
  const user = ordinaryUser()!;
  await using other = await startBystander(home, { command: ["/usr/libexec/otherd"], uid: user.uid, gid: user.gid });
  for (const file of PID_FILES) k3s.pidFile(file, other.pid);
  await repairs(k3s, { removes: PID_FILES, because: [new RegExp(`it belongs to uid ${user.uid}`)] });
  other.assertAlive();
}, { ignore: ordinaryUser() ? false : NO_ORDINARY_USER });

row(7, "PID files are empty, or garbage", async ({ k3s }) => {
  k3s.pidFile("ha.pid", "");
  k3s.pidFile("vz.pid", "12x");
  await refuses(k3s, "strconv.Atoi: parsing");
  await repairs(k3s, { removes: ["ha.pid", "vz.pid"], because: [/not a PID: it is empty/, /not a PID: .*decimal/] });
  await starts(k3s);
});

row(7, "ha.pid is empty, and its host agent is alive: found by its command", async ({ k3s }) => {
  await using agent = await startAgent(k3s);
  k3s.pidFile("ha.pid", "");
  await refuses(k3s, "strconv.Atoi: parsing");
  await leavesAlone(k3s, { state: "running", status: 0 });
  assertUntouched(k3s, agent);
});

row(7, "qemu.pid is garbage, and its QEMU is alive: found by its command", async ({ k3s, bystander }) => {
  await using orphan = await startOrphan(k3s, "qemu");
  k3s.pidFile("qemu.pid", "\0\0\0\0");
  await refuses(k3s, "strconv.Atoi: parsing");
  k3s.pidFile("vz.pid", bystander.pid);
  const { report } = await stops(k3s, orphan, { removes: ["vz.pid"], gone: ["ha.pid", "qemu.pid", "qmp.sock"] });
  assert.match(firstReason({ report }), new RegExp(`^QEMU ${orphan.pid} `));
  assert.equal(k3s.guestDisk(), "clean");
  await starts(k3s);
});

row(7, "rm *.pid was run, and QEMU is alive: its socket gives it away", async ({ k3s }) => {
  await using orphan = await startOrphan(k3s, "qemu");
  k3s.remove("ha.pid");
  k3s.remove("qemu.pid");
  await stops(k3s, orphan, { removes: [] });
  assert.equal(k3s.guestDisk(), "clean");
  await starts(k3s);
});

row(8, "a PID file holds -1, which is all processes to kill(2)", async ({ k3s }) => {
  for (const file of PID_FILES) k3s.pidFile(file, -1);
  await refuses(k3s, "os: process already released");
  await repairs(k3s, { removes: PID_FILES, because: [/not a PID/] });
  await starts(k3s);
});

row(8, "a PID file holds -N, and there is a process group N", async ({ home, k3s }) => {
  await using leader = await startBystander(home, { leadsGroup: true });
  const group = ps(leader.pid)!.pgid;
  assert.equal(group, leader.pid);
  for (const file of PID_FILES) k3s.pidFile(file, -group);
  await refuses(k3s, "failed to connect to");
  await repairs(k3s, { removes: PID_FILES, because: [/not a PID/] });
  await starts(k3s);
  leader.assertAlive();
});

row(9, "the PID files name the guard itself", async ({ k3s }) => {
  k3s.pidFile("ha.pid", IMPOSSIBLE_PID);
  k3s.staleSocket("ha.sock");
  const ownPidInto = [k3s.path("ha.pid"), k3s.path("vz.pid"), k3s.path("x.drv.pid")];
  const { report, status } = await pre(k3s, guardWith({ ownPidInto }));
  assert.equal(status, 0);
  const removed = ["ha.pid", "ha.sock", "vz.pid", "x.drv.pid"];
  assert.deepEqual(report.steps.map((s) => s.what).sort(), removed.map((file) => `remove ${k3s.path(file)}`));
  assert.match(report.steps.map(({ because }) => because).join("\n"), /not ours: it is lima-guard itself/);
  for (const file of removed) assert.equal(k3s.has(file), false);
  await changesNothing(k3s);
  await starts(k3s);
});

// --- rows 10 to 13: a genuine host agent ----------------------------------------------------------------------------------

/** The host agent has received no signal, and is as it was. */
function assertUntouched(k3s: Instance, agent: { pid: number; isAlive(): boolean }): void {
  assert.ok(agent.isAlive(), "the host agent is dead");
  assert.deepEqual(k3s.log().filter((line) => line.startsWith("Received SIG")), []);
}

row(10, "a host agent that has only just begun: no ha.sock, no vz.pid", async ({ k3s }) => {
  await using agent = await startAgent(k3s, { until: "ha.pid", conf: { stay_at: "ha.pid" } });
  await refuses(k3s, /failed to connect to .*ha\.sock/);
  await leavesAlone(k3s, {
    state: "booting",
    status: 75,
    blockers: [new RegExp(`host agent ${agent.pid}: .*--stop --lima-home ${k3s.home.lima} k3s`)],
  });
  assertUntouched(k3s, agent);
});

for (const vmtype of ["vz", "x"]) {
  row(11, `all good, ${vmtype}: nothing is touched, whatever else lies there`, async ({ k3s, bystander }) => {
    await using agent = await startAgent(k3s);
    await leavesAlone(k3s, { state: "running", status: 0 });
    await using again = await startAgent(k3s, { until: "exit" });
    assert.equal((await again.status).code, 0);
    assert.match(await again.stderr, /is already running/);
    strew(k3s, bystander.pid);
    k3s.write("boot-session.tmp", "0d1e2f\n");
    await leavesAlone(k3s, { state: "running", status: 0 });
    assertUntouched(k3s, agent);
  }, { conf: { vmtype } });
}

row(11, "all good, and ha.sock answers with an HTTP error, which is an answer", async ({ k3s }) => {
  await using agent = await startAgent(k3s, { conf: { info: "error500" } });
  await leavesAlone(k3s, { state: "running", status: 0 });
  assertUntouched(k3s, agent);
});

row(12, "a young host agent whose guest is up, and ha.sock is gone", async ({ k3s }) => {
  await using agent = await startAgent(k3s);
  k3s.remove("ha.sock");
  await refuses(k3s, "failed to connect to");
  await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [/does not answer, and its boot is over/] });
  const { status, stdout } = await runGuard(k3s.home, ["--status", "k3s"]);
  assert.equal(status, 1, stdout);
  assertUntouched(k3s, agent);
});

row(12, "a young host agent whose guest is up, and ha.sock accepts and never answers", async ({ k3s }) => {
  await using agent = await startAgent(k3s, { conf: { info: "silent" } });
  await leavesAlone(
    k3s,
    { state: "unknown", status: 75, blockers: [/does not answer, and its boot is over/] },
    guardWith({ hurry: true }),
  );
  assertUntouched(k3s, agent);
});

const HOURS = 3_600_000;

row(12, "a host agent that is old and does not answer for a minute: hung", async ({ k3s, bystander }) => {
  await using agent = await startAgent(k3s, { conf: { info: "silent" } });
  await refuses(k3s, "context deadline exceeded");
  const removes = strew(k3s, bystander.pid);
  const old = guardWith({ wallMs: 2 * HOURS, uptimeMs: 5 * HOURS, hurry: true });
  const done = await stops(
    k3s,
    agent,
    { state: "hung", removes: [...removes, "vz.pid"], gone: ["ha.pid", "ha.sock"] },
    old,
  );
  assert.match(firstReason(done.planned), /host agent \d+ is 1[12]\d min old and silent for 6\d s/);
  assert.deepEqual(outcomes(done, "agent"), ["done"], "SIGTERM was enough");
  assert.deepEqual(outcomes(done, "kill"), []);
  assert.equal((await agent.status).code, 0);
  assert.equal(k3s.guestDisk(), "clean");
  k3s.conf({ info: "" });
  await starts(k3s);
});

row(12, "a host agent that is old and cannot be asked, for a reason of lima-guard's own: not hung", async ({ k3s }) => {
  await using agent = await startAgent(k3s);
  const old = guardWith({ wallMs: 2 * HOURS, uptimeMs: 5 * HOURS, hurry: true, connects: "other" });
  await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [/is alive and cannot be asked/] }, old);
  assertUntouched(k3s, agent);
});

row(12, "a host agent that is old by the wall clock alone is young", async ({ k3s }) => {
  await using agent = await startAgent(k3s, { conf: { info: "silent" } });
  const stepped = guardWith({ wallMs: 20 * 365 * 24 * HOURS, uptimeMs: 10 * 60_000, hurry: true });
  await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [/does not answer/] }, stepped);
  assertUntouched(k3s, agent);
});

row(
  13,
  "deadlocked: ha.sock answers, Lima says already running, and there is not one event",
  async ({ k3s, bystander }) => {
    await using agent = await startAgent(k3s, { until: "driver", conf: { stop: "deadlock" } });
    await using again = await startAgent(k3s, { until: "exit" });
    assert.match(await again.stderr, /is already running/);
    await leavesAlone(k3s, { state: "running", status: 0 });
    const removes = strew(k3s, bystander.pid);
    const old = { ...guardWith({ wallMs: HOURS, uptimeMs: HOURS }), args: ["--timeout", "2"] };
    const done = await stops(k3s, agent, { state: "hung", removes: [...removes, "ha.pid", "ha.sock", "vz.pid"] }, old);
    assert.match(firstReason(done.planned), /min old and has not written one event/);
    assert.deepEqual(outcomes(done, "agent"), ["no end in time"]);
    assert.deepEqual(outcomes(done, "kill"), ["done"]);
    assert.equal((await agent.status).signal, "SIGKILL");
    k3s.conf({ stop: "" });
    await starts(k3s);
  },
);

// --- rows 14 and 15: a genuine driver without a host agent ------------------------------------------------------------------

/**
 * The stop stages on a process that is alive: a dry run, the real run, and another one. The real run may need fewer
 * steps than the dry run names, but not other ones. `removes` are lima-guard's removals, `gone` what others take away
 * with them.
 */
async function stops(
  k3s: Instance,
  who: { pid: number },
  { removes, gone = [], state = "orphan" }: Pick<Repair, "removes" | "state"> & { gone?: readonly string[] },
  options: Parameters<typeof pre>[1] = {},
) {
  const before = paths(k3s.home);
  const planned = await dryRun(k3s, options);
  assert.ok(isAlive(who.pid), "the dry run has ended it");
  const done = await pre(k3s, options);
  assert.equal(done.status, 0, `${done.stdout}${done.stderr}`);
  assert.equal(planned.status, done.status);
  assert.deepEqual([planned.report.state, done.report.state], [state, state], done.stdout);
  await waitForExit(who.pid);
  // What they leave behind is judged when they have ended; and some of it they take away themselves.
  const [removals, plannedRemovals] = [done, planned].map(({ report }) =>
    report.steps.filter((s) => s.kind === "remove")
  );
  const stagesTaken = (report: Report) =>
    report.steps.filter((step) => step.kind !== "remove").map((step) => step.what);
  assert.deepEqual(
    difference(stagesTaken(done.report), stagesTaken(planned.report)),
    [],
    "the dry run names other steps",
  );
  const path = (file: string) => file.startsWith("../") ? file.slice(3) : `k3s/${file}`;
  const file = (path: string) => `remove ${k3s.home.lima}/${path}`;
  assert.deepEqual(removals!.map((s) => s.what).sort(), removes.map((f) => file(path(f))).sort());
  const notDone = difference(plannedRemovals!.map(words), removals!.map(words));
  assert.deepEqual(notDone.filter((w) => !gone.some((f) => w.includes(`${file(path(f))} `))), []);
  assert.ok(removals!.every((step) => step.outcome === "done"), done.stdout);
  const left = paths(k3s.home);
  for (const file of [...removes, ...gone]) assert.ok(!left.includes(path(file)), `${file} is still there`);
  assert.deepEqual(difference(left, before).filter((p) => !/lima-guard\.|standin\./.test(p)), []);
  assert.match(k3s.read(JOURNAL) ?? "", /"event":"end".*\n.*"event":"pre".*\n$/);
  await changesNothing(k3s, options);
  return { ...done, planned };
}

function outcomes({ report }: Awaited<ReturnType<typeof pre>>, kind: string): string[] {
  return report.steps.filter((step) => step.kind === kind).map((step) => step.outcome);
}

/** Why the stages are taken. */
function firstReason({ report }: { report: Report }): string {
  return report.steps.find((step) => step.kind !== "remove")?.because ?? "it is not";
}

interface OrphanCase {
  readonly title: string;
  readonly vmtype: "qemu" | "krunkit" | "x";
  readonly conf?: Conf;
  readonly ssh?: boolean;
  readonly args?: string[];
  /** The stage that ends it, and how its guest's file system is left. */
  readonly by: "guest" | "driver" | "kill";
  readonly outcome?: string;
  readonly disk: "clean" | "dirty";
  /** lima-guard's own removals besides those of the bystander's files; the driver takes away its own files itself. */
  readonly removes: readonly string[];
}

const ORPHANS: OrphanCase[] = [
  {
    title: "QEMU, by its power button",
    vmtype: "qemu",
    by: "driver",
    disk: "clean",
    removes: ["ha.pid", "ha.sock"],
  },
  {
    title: "QEMU whose guest listens: by ssh",
    vmtype: "qemu",
    ssh: true,
    by: "guest",
    disk: "clean",
    removes: ["ha.pid", "ha.sock"],
  },
  {
    title: "QEMU whose guest ignores the button, and that ignores SIGTERM: by SIGKILL",
    vmtype: "qemu",
    conf: { stop: "ignore", ignore_term: 1 },
    args: ["--timeout", "4"],
    by: "kill",
    disk: "dirty",
    removes: ["ha.pid", "ha.sock", "qemu.pid"],
  },
  {
    title: "krunkit, by SIGTERM",
    vmtype: "krunkit",
    by: "driver",
    disk: "clean",
    removes: ["ha.pid", "ha.sock", "krunkit.pid"],
  },
  {
    title: "an external driver, by SIGTERM",
    vmtype: "x",
    by: "driver",
    disk: "clean",
    removes: ["ha.pid", "ha.sock"],
  },
];

for (const each of ORPHANS) {
  const { title, vmtype, conf = {}, ssh = false, args = [], by, outcome = "done", disk, removes } = each;
  row(14, `${title}; other programs' PIDs beside it`, async ({ home, k3s, bystander }) => {
    await using guest = ssh ? await sshGuest(k3s) : undefined;
    await using orphan = await startOrphan(k3s, vmtype, conf);
    await refuses(k3s, `${vmtype} driver is running but host agent is not`);
    k3s.pidFile("ha.pid", bystander.pid); // limactl has just deleted that of the dead agent
    const own = [`${vmtype}.pid`, `${vmtype}.drv.pid`, "ha.pid"];
    const strewn = strew(k3s, bystander.pid).filter((file) => !own.includes(file));
    const done = await stops(k3s, orphan, { removes: [...removes, ...strewn], gone: own }, { args });
    assert.equal(done.report.steps.filter((s) => s.kind !== "remove").at(-1)?.kind, by, done.stdout);
    assert.deepEqual(outcomes(done, by), [outcome], done.stdout);
    if (guest) assert.ok(guest.log().some((line) => /poweroff/.test(line)), guest.log().join("\n"));
    assert.equal(k3s.guestDisk(), disk);
    const living = () => home.processes().filter((line) => line.includes(`${k3s.dir}/`) && !line.includes("sshd"));
    await eventually(() => assert.deepEqual(living(), []));
    k3s.conf({ qmp: "", ignore_term: "", stop: "" });
    await starts(k3s);
  }, { ignore: ssh ? whyNoSshd() : false });
}

row(15, "QEMU of an instance that is vz by now: Lima would open its disk a second time", async ({ k3s, bystander }) => {
  await using orphan: Orphan = await startOrphan(k3s, "qemu");
  k3s.conf({ vmtype: "vz" });
  k3s.write("lima.yaml", (k3s.read("lima.yaml") ?? "").replace("qemu", "vz"));
  k3s.pidFile("ha.pid", bystander.pid);
  k3s.pidFile("vz.pid", bystander.pid);
  await stops(k3s, orphan, { removes: ["ha.pid", "ha.sock", "vz.pid"], gone: ["qemu.pid"] });
  assert.equal(k3s.guestDisk(), "clean");
  await starts(k3s);
});

// --- rows 16 to 18: disk locks --------------------------------------------------------------------------------------------

const ONE_DISK = "additionalDisks:\n- name: data\n";

row(16, "in_use_by says this instance, and nothing of it is alive", async ({ home, k3s }) => {
  home.disk("data", { inUseBy: k3s.dir });
  await refuses(k3s, /failed to run attach disk .data., in use by instance .k3s./);
  await repairs(k3s, {
    removes: ["../_disks/data/in_use_by"],
    because: [/says this instance, of which nothing is alive/],
  });
  await starts(k3s);
}, { conf: { vmtype: "krunkit" }, yaml: ONE_DISK });

row(17, "in_use_by says another instance: named, not touched", async ({ home, k3s }) => {
  const docker = home.instance("docker");
  const data = home.disk("data", { inUseBy: docker.dir });
  await refuses(k3s, /failed to attach disk .data.: in use by instance .docker./);
  await leavesAlone(k3s, {
    state: "blocked",
    status: 75,
    blockers: [new RegExp(`_disks/data/in_use_by: disk data is in use by ${docker.dir} \\(lima-guard --stop .*docker`)],
  });
  assert.equal(data.inUseBy(), docker.dir);
  await refuses(k3s, "in use by instance");
}, { yaml: ONE_DISK });

row(17, "another instance's disk that this one does not use is none of its business", async ({ home, k3s }) => {
  home.disk("data", { inUseBy: home.instance("docker").dir });
  home.disk("old", { inUseBy: `${home.lima}/gone` });
  await leavesAlone(k3s, { state: "clear", status: 0 });
  await starts(k3s);
});

row(17, "in_use_by says a directory that is gone", async ({ home, k3s }) => {
  home.disk("data", { inUseBy: `${home.lima}/docker` });
  await refuses(k3s, /in use by instance .docker./);
  await repairs(k3s, { removes: ["../_disks/data/in_use_by"], because: [/docker, which is gone/] });
  await starts(k3s);
}, { yaml: ONE_DISK, ignore: whyNoLsof() });

row(17, "the same, and a process has the disk open for writing: named, not touched", async ({ home, k3s }) => {
  const data = home.disk("data", { inUseBy: `${home.lima}/docker` });
  using _holder = Deno.openSync(`${data.dir}/datadisk`, { write: true });
  const blockers = [new RegExp(`datadisk: PID ${Deno.pid} .*has it open for writing.*kill ${Deno.pid}`)];
  await leavesAlone(k3s, { state: "blocked", status: 75, blockers }, guardWith({ hurry: true }));
  assert.equal(data.inUseBy(), `${home.lima}/docker`);
}, { yaml: ONE_DISK, ignore: whyNoLsof() });

row(18, "in_use_by says this instance by another path", async ({ home, k3s }) => {
  Deno.symlinkSync(home.lima, `${home.root}/other`);
  home.disk("data", { inUseBy: `${home.root}/other/k3s` });
  await refuses(k3s, /in use by instance .k3s./);
  await repairs(k3s, { removes: ["../_disks/data/in_use_by"], because: [/says this instance/] });
  await starts(k3s);
}, { yaml: ONE_DISK, ignore: whyNoLsof() });

function whyNoLsof(): string | undefined {
  const there = ["/usr/sbin/lsof", "/usr/bin/lsof"].some((path) => {
    try {
      return Deno.statSync(path).isFile;
    } catch {
      return false;
    }
  });
  return there ? undefined : "lsof is not installed";
}

// --- rows 19 to 24: networks and external drivers ---------------------------------------------------------------------------

row(19, "usernet's PID is recycled, and the network is wanted", async ({ home, k3s, bystander }) => {
  home.network("user-v2", { pid: bystander.pid, sockets: true });
  await refuses(k3s, /dial unix .*user-v2_fd\.sock: connect: connection refused/);
  await repairs(k3s, { removes: [`../${USERNET}`, ...SOCKETS], because: [SIRITTSD] });
  await starts(k3s);
}, { conf: { usernet: 1 } });

row(19, "usernet's PID file names the usernet of another network", async ({ home, k3s }) => {
  const dir = `${home.lima}/_networks/b`;
  const command = ["limactl", "usernet", "-p", `${dir}/usernet_b.pid`, "-e", `${dir}/b_ep.sock`];
  await using other = await startBystander(home, { command });
  home.network("a", { pid: other.pid, sockets: true });
  const b = home.network("b", { pid: other.pid });
  const removes = ["usernet_a.pid", "a_ep.sock", "a_fd.sock", "a_qemu.sock"].map((file) => `../_networks/a/${file}`);
  await repairs(k3s, { removes, because: [/is this instance's usernet, which usernet_a\.pid never names/] });
  assert.equal(Number(Deno.readTextFileSync(b.pidFile)), other.pid);
  other.assertAlive();
});

row(20, "the same of a network with another name, and without sockets", async ({ home, k3s, bystander }) => {
  home.network("mine", { pid: bystander.pid });
  await repairs(k3s, { removes: ["../_networks/mine/usernet_mine.pid"], because: [SIRITTSD] });
  await starts(k3s);
});

row(21, "usernet lives, and is left alone", async ({ home, k3s }) => {
  await cutOff(k3s);
  const network = home.network();
  const usernet = Number(Deno.readTextFileSync(network.pidFile));
  assert.ok(isAlive(usernet));
  await repairs(k3s, { removes: ["ha.pid", "ha.sock", "vz.pid"] });
  assert.ok(isAlive(usernet));
  assert.equal(Number(Deno.readTextFileSync(network.pidFile)), usernet);
  await starts(k3s);
}, { conf: { usernet: 1 } });

row(22, "a usernet lives that no PID file names: a note, and it lives on", async ({ home, k3s }) => {
  await cutOff(k3s);
  const network = home.network();
  const usernet = Number(Deno.readTextFileSync(network.pidFile));
  Deno.removeSync(network.pidFile);
  const done = await repairs(k3s, { removes: ["ha.pid", "ha.sock", "vz.pid"] });
  assert.match(done.report.notes.map(remark).join("\n"), /user-v2_ep\.sock: a usernet answers that no PID file names/);
  assert.ok(isAlive(usernet));
  await starts(k3s);
  assert.ok(isAlive(usernet));
}, { conf: { usernet: 1 } });

row(22, "several networks of which each has one: one note", async ({ home, k3s }) => {
  const sockets = ["a", "b"].map((name) => `${home.network(name).dir}/${name}_ep.sock`);
  using _a = Deno.listen({ transport: "unix", path: sockets[0]! });
  using _b = Deno.listen({ transport: "unix", path: sockets[1]! });
  const { report } = await leavesAlone(k3s, { state: "clear", status: 0 });
  assert.equal(report.notes.length, 1);
  assert.match(
    remark(report.notes[0]!),
    /a_ep\.sock: a usernet answers .*\(2 of them\) \(lsof .*a_ep\.sock .*b_ep\.sock\)$/,
  );
});

row(
  23,
  "socket_vmnet's PID is recycled: only root can repair it, and the command is printed",
  async ({ home, k3s, bystander }) => {
    const run = `${home.root}/run lima`;
    const file = `${run}/shared_socket_vmnet.pid`;
    Deno.mkdirSync(run);
    Deno.writeTextFileSync(file, `${bystander.pid}\n`);
    Deno.writeTextFileSync(
      `${home.lima}/_config/networks.yaml`,
      `paths:\n  varRun: "${run}"\nnetworks:\n  shared: {}\n`,
    );
    const hint = `sudo rm '${file}'`;
    const { report } = await leavesAlone(k3s, { state: "blocked", status: 77, blockers: [/not socket_vmnet/] });
    assert.equal(report.blockers[0]!.hint, hint);

    await using vmnet = await startBystander(home, {
      command: [
        "/opt/socket_vmnet/bin/socket_vmnet",
        `--pidfile=${file}`,
        "--vmnet-mode=shared",
        `${run}/socket_vmnet.shared`,
      ],
    });
    await using apart = await startBystander(home, {
      command: ["/opt/socket_vmnet/bin/socket_vmnet", "--vmnet-mode", "shared", "--pidfile", file],
    });
    for (const pid of [vmnet.pid, apart.pid, await deadPid()]) {
      Deno.writeTextFileSync(file, `${pid}\n`);
      const { report } = await leavesAlone(k3s, { state: "clear", status: 0 });
      assert.deepEqual(report.notes, []);
    }
    vmnet.assertAlive();
    apart.assertAlive();
  },
);

row(24, "x.drv.pid is recycled: Lima would signal that PID at the next stop", async ({ k3s, bystander }) => {
  k3s.pidFile("x.drv.pid", `${bystander.pid}`); // external drivers' files have no line end
  await repairs(k3s, { removes: ["x.drv.pid"], because: [SIRITTSD] });
  await using agent = await startAgent(k3s);
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.doesNotMatch(k3s.read("ha.stderr.log") ?? "", /Lima would have sent/);
});

row(
  24,
  "x.drv.pid is recycled beside a hung host agent: gone before Lima is asked to stop",
  async ({ k3s, bystander }) => {
    await using agent = await startAgent(k3s, { conf: { info: "silent" } });
    k3s.pidFile("x.drv.pid", `${bystander.pid}`);
    const old = guardWith({ wallMs: 2 * HOURS, uptimeMs: 5 * HOURS, hurry: true });
    const { status, report } = await pre(k3s, old);
    await agent.status;
    assert.deepEqual([status, report.state], [0, "hung"]);
    // The stand-in spares it, and says so; Lima does not.
    assert.doesNotMatch(k3s.read("ha.stderr.log") ?? "", /Lima would have sent SIGTERM to another program/);
    assert.equal(k3s.has("x.drv.pid"), false);
  },
);

// --- rows 25 to 28: what is not there, not Lima's, not lima-guard's to repair --------------------------------------------

async function refusesMissing(home: Home, name: string, options: Parameters<typeof runGuard>[2] = {}): Promise<void> {
  const before = paths(home);
  for (const args of [["--dry-run"], []]) {
    const result = await runGuard(home, ["--pre", name, "--json", ...args], options);
    const [report] = result.json().instances;
    assert.deepEqual([result.status, report.status, report.state], [66, 66, "missing"], result.stdout);
    assert.deepEqual(report.steps, []);
    assert.equal(report.blockers.length, 1);
  }
  assert.deepEqual(difference(paths(home), before).filter((path) => path !== `${name}/${LOCK}`), []);
  assert.deepEqual(difference(before, paths(home)), []);
}

row(25, "there is no such directory", async ({ home }) => {
  await refusesMissing(home, "docker");
});

row(25, "lima.yaml is a link to what is not mounted, or a directory", async ({ home, k3s }) => {
  k3s.remove("lima.yaml");
  Deno.symlinkSync("/Volumes/nothing/lima.yaml", k3s.path("lima.yaml"));
  await refusesMissing(home, "k3s");
  k3s.remove("lima.yaml");
  Deno.mkdirSync(k3s.path("lima.yaml"));
  await refusesMissing(home, "k3s");
});

row(25, "lima.yaml cannot be read", async ({ home, k3s }) => {
  const user = ordinaryUser();
  if (user) home.giveTo(user);
  Deno.chmodSync(k3s.path("lima.yaml"), 0o000);
  for (const args of [["--dry-run"], []]) {
    const result = await runGuard(home, ["--pre", "k3s", "--json", ...args], { user });
    const [report] = result.json().instances;
    assert.deepEqual([result.status, report.state, report.steps], [77, "blocked", []], result.stdout);
    assert.match(remark(report.blockers[0]), /lima\.yaml cannot be read: .*ls -l/);
  }
}, { ignore: Deno.uid() === 0 && !ordinaryUser() ? NO_ORDINARY_USER : false });

row(
  25,
  "nothing is made in a directory that is no instance: a volume may be mounted over it",
  async ({ home, k3s }) => {
    k3s.remove("lima.yaml");
    const before = everything(home);
    assert.equal((await runGuard(home, ["--pre", "k3s"])).status, 66);
    assert.deepEqual(everything(home), before);
  },
);

row(26, "LIMA_HOME holds a directory without lima.yaml: a word about it, and it stays", async ({ home, k3s }) => {
  Deno.mkdirSync(`${home.lima}/old`);
  const { report } = await leavesAlone(k3s, { state: "clear", status: 0 });
  assert.equal(report.notes.length, 1);
  assert.match(remark(report.notes[0]!), new RegExp(`${home.lima}/old: it holds no lima\\.yaml`));
  await starts(k3s);
});

row(
  27,
  "LIMA_HOME holds a directory with an invalid name; the rest is repaired all the same",
  async ({ home, k3s, bystander }) => {
    Deno.mkdirSync(`${home.lima}/bad name`);
    await refuses(k3s, "instance name `bad name` is not a valid identifier");
    k3s.pidFile("vz.pid", bystander.pid);
    const done = await repairs(k3s, { state: "blocked", status: 75, removes: ["vz.pid"] });
    assert.equal(done.report.blockers.length, 1);
    assert.match(remark(done.report.blockers[0]!), /bad name: its name is no instance name.*\(move it out/);
    await refuses(k3s, "instance name `bad name` is not a valid identifier");
  },
);

row(
  27,
  "LIMA_HOME is the top of a volume: its instances are to be moved, and lost+found is not",
  async ({ home, k3s }) => {
    Deno.mkdirSync(`${home.lima}/lost+found`);
    const { report } = await leavesAlone(k3s, {
      state: "blocked",
      status: 75,
      blockers: [/lost\+found: its name is no/],
    });
    assert.match(report.blockers[0]!.hint!, /move the instances into a folder of it/);
  },
);

row(27, "files, and directories that Lima does not look at, do no harm", async ({ home, k3s }) => {
  for (const name of ["_bad name", ".bad name"]) Deno.mkdirSync(`${home.lima}/${name}`);
  Deno.writeTextFileSync(`${home.lima}/a file`, "");
  Deno.symlinkSync(home.root, `${home.lima}/a link`);
  const { report } = await leavesAlone(k3s, { state: "clear", status: 0 });
  assert.deepEqual(report.notes, []);
  await starts(k3s);
});

row(28, "the PID files cannot be removed: named, with where to look", async ({ home, k3s, bystander }) => {
  const user = ordinaryUser();
  k3s.pidFile("ha.pid", IMPOSSIBLE_PID);
  k3s.pidFile("vz.pid", bystander.pid);
  k3s.write("boot-session.tmp", "0d1e2f\n");
  if (user) home.giveTo(user);
  Deno.chmodSync(k3s.dir, 0o555);
  const before = tree(home.lima);
  const { report } = await leavesAlone(
    k3s,
    {
      state: "blocked",
      status: 77,
      blockers: [/ha\.pid: it is stale \(.*dead.*cannot be removed/, /vz\.pid: it is stale/],
    },
    { user },
  );
  assert.equal(report.blockers[0]!.hint, `chmod u+rwx ${k3s.dir}`);
  assert.deepEqual(tree(home.lima), before);
  Deno.chmodSync(k3s.dir, 0o755);
  await repairs(k3s, { removes: ["boot-session.tmp", "ha.pid", "vz.pid"] }, { user });
  await starts(k3s, user ?? {});
}, { ignore: Deno.uid() === 0 && !ordinaryUser() ? NO_ORDINARY_USER : false });

// --- rows 29 to 34 ----------------------------------------------------------------------------------------------------------

row(29, "ssh.config is cut short", async ({ k3s }) => {
  k3s.sshConfig({ text: 'Host lima-k3s\n  IdentityFile "/Users/zoe/.lima/_config/user"\n  Hostname 127.0.0.1\n  Po' });
  await refuses(k3s, "failed to extract SSH local port from");
  await repairs(k3s, { removes: ["ssh.config"], because: [/cut short/] });
  await starts(k3s);
});

{
  const port = freePort();
  row(30, "the fixed ssh port is taken", async ({ k3s }) => {
    {
      using _listener = Deno.listen({ hostname: "127.0.0.1", port });
      await leavesAlone(k3s, { state: "blocked", status: 75, blockers: [new RegExp(`port ${port}: .*lsof`)] });
    }
    await leavesAlone(k3s, { state: "clear", status: 0 });
    await starts(k3s);
  }, { yaml: `ssh:\n  localPort: ${port}\n` });
}

row(31, "a LaunchAgent of it is registered too: that is not for --pre to touch", async ({ home, k3s, bystander }) => {
  const plist = `${home.user}/Library/LaunchAgents/io.lima-vm.autostart.k3s.plist`;
  Deno.mkdirSync(plist.replace(/\/[^/]*$/, ""), { recursive: true });
  Deno.writeTextFileSync(plist, "<plist/>");
  k3s.pidFile("vz.pid", bystander.pid);
  await repairs(k3s, { removes: ["vz.pid"] }, { env: { XPC_SERVICE_NAME: "io.lima-vm.daemon.k3s" } });
  assert.equal(Deno.readTextFileSync(plist), "<plist/>");
});

row(32, "HOME is not set", async ({ k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  await repairs(k3s, { removes: ["vz.pid"] }, { env: { HOME: "" } });
});

row(33, "boot-session.tmp alone, of another boot, is removed", async ({ k3s }) => {
  k3s.write("boot-session.tmp", "11111111-2222-3333-4444-555555555555\n");
  await repairs(k3s, { removes: ["boot-session.tmp"], because: [/of another boot/] });
  await starts(k3s);
});

row(33, "boot-session.tmp alone, of this boot, is left alone", async ({ k3s }) => {
  k3s.write("boot-session.tmp", BOOT_ID);
  await leavesAlone(k3s, { state: "clear", status: 0 });
  await starts(k3s);
});

row(34, "cold sockets without PID files", async ({ home, k3s }) => {
  for (const file of ["ha.sock", "ssh.sock", "ga.sock", "default_ep.sock", "default_fd.sock", "qmp.sock"]) {
    k3s.staleSocket(file);
  }
  for (const kind of ["ep", "fd", "qemu"]) {
    staleSocket(`${home.network().dir}/user-v2_${kind}.sock`);
  }
  await leavesAlone(k3s, { state: "clear", status: 0 });
  await starts(k3s);
});

// --- what people read -------------------------------------------------------------------------------------------------------

/** What was done stands in the plan in the very same words, with its outcome behind it. */
function assertSameWords(planned: { stdout: string; status: number }, done: { stderr: string; status: number }): void {
  assert.equal(planned.status, done.status);
  const plan = planned.stdout.split("\n").flatMap((line) => /^ {2}would (.*)$/.exec(line)?.slice(1) ?? []);
  const actions = done.stderr.split("\n").flatMap((line) =>
    /^[-\dT:.]+Z lima-guard: (?:\w+: )?pre k3s: (.*\)): /.exec(line)?.slice(1) ?? []
  );
  assert.notEqual(actions.length, 0, done.stderr);
  for (const action of actions) assert.ok(plan.includes(action), `not in the dry run: ${action}\n${planned.stdout}`);
}

row(4, "the dry run says of stale files what the real run says while it acts", async ({ home, k3s, bystander }) => {
  strew(k3s, bystander.pid);
  const planned = await runGuard(home, ["--pre", "--dry-run", "k3s"]);
  const done = await runGuard(home, ["--pre", "k3s"]);
  assertSameWords(planned, done);
  assert.match(planned.stdout, /^k3s: stale: PID \d+ is not ours/);
  assert.match(done.stdout, /^k3s: stale: PID \d+ is not ours.*: removed 11 stale files, ready to start\n$/);
  assert.equal(planned.stderr, "", "a dry run has nothing to log");
});

// --- children -----------------------------------------------------------------------------------------------------------------

/** The programs that the guard has started, of strace's own telling; and whether it has forked at all. */
async function traced(home: Home, args: string[]): Promise<{ programs: string[]; forks: number; status: number }> {
  const trace = `${home.root}/trace`;
  const { status } = await runGuard(home, args, {
    script: "tests/helpers/guard_traced.ts",
    env: { GUARD_TRACE: trace },
  });
  const calls = Deno.readTextFileSync(trace).split("\n");
  const programs = calls.flatMap((call) => /execve\("([^"]*)"(?!.* = -1 )/.exec(call)?.slice(1) ?? []);
  assert.equal(programs[0], Deno.execPath(), "strace has not seen the guard's own beginning");
  // A thread is a clone with CLONE_THREAD.
  const forks = calls.filter((call) => /\b(clone3?|v?fork)\(/.test(call) && !call.includes("CLONE_THREAD")).length;
  return { programs: programs.slice(1), forks, status };
}

function whyNoStrace(): string | undefined {
  try {
    const { success } = new Deno.Command("strace", { args: ["-o", "/dev/null", "true"], stderr: "null" }).outputSync();
    return success ? undefined : "strace may not trace here";
  } catch {
    return "strace is not installed";
  }
}

test(
  "a clean instance costs no child process; a recycled PID costs one ps, and ps alone",
  async ({ home, k3s, bystander }) => {
    k3s.staleSocket("ha.sock");
    k3s.sshConfig();
    const docker = home.instance("docker");
    await cutOff(docker);
    assert.deepEqual(await traced(home, ["--pre", "k3s"]), { programs: [], forks: 0, status: 0 });
    assert.deepEqual(await traced(home, ["--pre", "docker"]), { programs: [], forks: 0, status: 0 });
    assert.equal(docker.has("vz.pid"), false);
    k3s.pidFile("vz.pid", bystander.pid);
    home.network("user-v2", { pid: bystander.pid });
    const { programs, forks } = await traced(home, ["--pre", "k3s"]);
    assert.deepEqual([programs, forks], [["/bin/ps"], 1]);
  },
  { ignore: whyNoStrace() },
);

// --- the command line, on several instances -----------------------------------------------------------------------------------

test("several instances: all are treated, the worst status is returned, a name twice is a name once", async ({ home, k3s, bystander }) => {
  const docker = home.instance("docker");
  for (const instance of [k3s, docker]) instance.pidFile("vz.pid", bystander.pid);
  const cured = await runGuard(home, ["--pre", "--json", "docker", "k3s", "docker"]);
  assert.equal(cured.status, 0);
  assert.deepEqual(report(cured), [["docker", "stale", 0], ["k3s", "stale", 0]]);
  for (const instance of [k3s, docker]) assert.equal(instance.has("vz.pid"), false);

  // 1, 77, 66, 75, 0: what stands first wins.
  Deno.mkdirSync(k3s.path("vz.pid"));
  docker.pidFile("vz.pid", bystander.pid);
  const unknown = await runGuard(home, ["--pre", "--json", "docker", "k3s"]);
  assert.equal(unknown.status, 75);
  assert.deepEqual(report(unknown), [["docker", "stale", 0], ["k3s", "unknown", 75]]);
  const missing = await runGuard(home, ["--pre", "--json", "gone", "k3s", "docker"]);
  assert.equal(missing.status, 66);
  assert.deepEqual(report(missing), [["gone", "missing", 66], ["k3s", "unknown", 75], ["docker", "clear", 0]]);
});

function report(result: { json(): { instances: Report[] } }): [string, string, number][] {
  return result.json().instances.map(({ name, state, status }) => [name, state, status]);
}

test("the JSON document: its fields, and nothing else on stdout", async ({ home, k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  const { stdout } = await runGuard(home, ["--pre", "k3s", "--json", "-v"]);
  const { version, role, instances, ...rest } = JSON.parse(stdout);
  assert.deepEqual([version, role, instances.length, rest], [1, "pre", 1, {}]);
  const [{ notes: _, ...fields }] = instances;
  assert.deepEqual(fields, {
    name: "k3s",
    state: "stale",
    status: 0,
    stage: null,
    seconds: {},
    steps: [{
      kind: "remove",
      what: `remove ${k3s.path("vz.pid")}`,
      because: `PID ${bystander.pid} is not ours: it is "/usr/libexec/sirittsd", none of Lima's programs`,
      outcome: "done",
    }],
    blockers: [],
  });
});

test("LIMA_HOME: the option, else the variable, else ~/.lima; links resolved", async ({ home, k3s }) => {
  await using agent = await startAgent(k3s); // its command names the real path
  Deno.symlinkSync(home.lima, `${home.root}/link`);
  Deno.symlinkSync(`${home.root}/link`, `${home.user}/.lima`);
  const ways: [string[], Record<string, string>][] = [
    [["--lima-home", home.lima], { LIMA_HOME: "/nonexistent" }],
    [[`--lima-home=${home.root}/link/`], { LIMA_HOME: "" }],
    [["--lima-home", "lima"], { LIMA_HOME: "", HOME: "" }],
    [[], { LIMA_HOME: `${home.root}/link` }],
    [[], { LIMA_HOME: "" }],
  ];
  for (const [args, env] of ways) {
    const { status, stdout, stderr } = await runGuard(home, ["--pre", "k3s", ...args], { env, cwd: home.root });
    assert.deepEqual([status, stderr], [0, ""]);
    assert.match(stdout, new RegExp(`^k3s: running: host agent ${agent.pid} `), `${args}`);
  }
});

test("an instance directory that is a link to another volume", async ({ home, k3s, bystander }) => {
  Deno.mkdirSync(`${home.root}/volume`);
  Deno.renameSync(k3s.dir, `${home.root}/volume/k3s`);
  Deno.symlinkSync(`${home.root}/volume/k3s`, k3s.dir);
  {
    await using agent = await startAgent(k3s);
    await leavesAlone(k3s, { state: "running", status: 0 });
    assertUntouched(k3s, agent);
  }
  k3s.pidFile("ha.pid", bystander.pid);
  const { status, report } = await pre(k3s);
  assert.deepEqual([status, report.state], [0, "stale"]);
  assert.deepEqual(["ha.pid", "ha.sock", "vz.pid"].filter((file) => k3s.has(file)), []);
  assert.ok(Deno.lstatSync(k3s.dir).isSymlink);
  await starts(k3s);
});
