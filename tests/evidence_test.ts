/**
 * What a look has found stays found until the same witness has looked again and not found it: a socket that answers, a
 * process that holds a disk, a lock that another process has. Real processes, real lsof, real locks.
 */

import assert from "node:assert/strict";
import { guardWith } from "./helpers/guard_with.ts";
import {
  eventually,
  exists,
  type Home,
  IMPOSSIBLE_PID,
  type Instance,
  isAlive,
  killChild,
  runGuard,
  spawnGuard,
  startAgent,
  startBystander,
} from "./helpers/mod.ts";
import { leavesAlone, LOCK, pre, remark, repairs, test } from "./helpers/pre.ts";

const LSOF = ["/usr/sbin/lsof", "/usr/bin/lsof"].find((path) => {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
});
const NO_LSOF = LSOF ? undefined : "lsof is not installed";
const ONE_DISK = { yaml: "additionalDisks:\n- data\n", ignore: NO_LSOF };

interface Listener extends AsyncDisposable {
  readonly pid: number;
}

/** A process that looks in ps like `command` and answers `GET /v1/info` on a unix socket. */
async function listener(home: Home, socket: string, command: string[]): Promise<Listener> {
  const script =
    `use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; $0 = shift; my $s = IO::Socket::UNIX->new(Local => shift, Listen => 9) or die $!;
    while (my $c = $s->accept) { my $l = <$c>; print $c "HTTP/1.0 200 OK\\r\\n\\r\\n{}"; close $c }`;
  const child = new Deno.Command("/usr/bin/perl", {
    args: ["-e", script, command.join(" "), socket],
    env: home.mark,
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  await eventually(() => assert.ok(exists(child.pid) && Deno.lstatSync(socket).isSocket));
  return {
    pid: child.pid,
    async [Symbol.asyncDispose]() {
      killChild(child);
      await child.status;
    },
  };
}

const file = (path: string) => {
  const { dev, ino } = Deno.lstatSync(path);
  return `${dev} ${ino}`;
};

/** `--stop` and `--status` of an instance of which a socket answers and nothing can be proven. */
async function staysUnknown(k3s: Instance, blocker: RegExp): Promise<void> {
  await leavesAlone(k3s, { state: "unknown", status: 75, blockers: [blocker] });
  const stop = await runGuard(k3s.home, ["--stop", "k3s", "--json"]);
  const [stopped] = stop.json().instances;
  assert.deepEqual([stop.status, stopped.state, stopped.steps], [75, "unknown", []], stop.stdout);
  assert.ok(stopped.blockers.some((b: never) => blocker.test(remark(b))), stop.stdout);
  const status = await runGuard(k3s.home, ["--status", "k3s", "--json"]);
  const [seen] = status.json().instances;
  assert.deepEqual([status.status, seen.state], [1, "unknown"], status.stdout);
  assert.notEqual(seen.limactlStart, "starts");
}

for (
  const [what, prepare] of [
    ["no PID file", () => {}],
    ["ha.pid of a dead process", (k3s: Instance) => void k3s.pidFile("ha.pid", IMPOSSIBLE_PID)],
  ] as const
) {
  test(`${what}, and another program answers on ha.sock: unknown, and the socket stays`, async ({ home, k3s }) => {
    prepare(k3s);
    await using other = await listener(home, k3s.path("ha.sock"), ["/usr/bin/python3", "-m", "http.server"]);
    const before = file(k3s.path("ha.sock"));
    await staysUnknown(k3s, /ha\.sock: it takes connections.*\(lsof /);
    assert.equal(file(k3s.path("ha.sock")), before);
    assert.ok(isAlive(other.pid));
  });

  test(`${what}, and a renamed host agent answers on ha.sock: it is this instance's`, async ({ home, k3s }) => {
    prepare(k3s);
    const command = ["/opt/x/limactl-2.1", "hostagent", "--pidfile", k3s.path("ha.pid"), "--socket"];
    await using agent = await listener(home, k3s.path("ha.sock"), [...command, k3s.path("ha.sock"), "k3s"]);
    const { report, status } = await pre(k3s);
    assert.deepEqual([status, report.state, report.steps], [75, "booting", []], JSON.stringify(report));
    const stop = await runGuard(home, ["--stop", "k3s", "--json", "--timeout", "10"]);
    assert.equal(stop.status, 0, stop.stdout);
    assert.equal(isAlive(agent.pid), false);
  });
}

test("the processes that name the instance's files are named beside a socket that answers", async ({ home, k3s }) => {
  await using _other = await listener(home, k3s.path("ha.sock"), ["/usr/bin/python3", "-m", "http.server"]);
  await using reader = await startBystander(home, { command: ["tail", "-f", k3s.path("ha.stdout.log")] });
  await staysUnknown(k3s, new RegExp(`PID ${reader.pid} \\(tail\\).*ps -ww -p ${reader.pid}`));
});

for (const socket of ["qmp.sock", "x.drv.sock"]) {
  test(`${socket} answers, and nothing is proven: unknown`, async ({ home, k3s }) => {
    await using _other = await listener(home, k3s.path(socket), ["/usr/libexec/other"]);
    await staysUnknown(k3s, new RegExp(`${socket}: it takes connections`));
  });
}

test("an external driver without a PID file is found by its socket, and ended", async ({ home, k3s }) => {
  const command = ["/opt/homebrew/libexec/lima/lima-driver-krunkit", "--inst-dir", k3s.dir];
  await using driver = await listener(home, k3s.path("krunkit.drv.sock"), command);
  const { status, stdout } = await runGuard(home, ["--stop", "k3s", "--json", "--timeout", "6"]);
  assert.equal(status, 0, stdout);
  assert.equal(isAlive(driver.pid), false);
});

test("usernet's socket answers beside a PID file that is another program's: that network stays", async ({ home, k3s, bystander }) => {
  const network = home.network("user-v2", { pid: bystander.pid });
  await using _usernet = await listener(home, `${network.dir}/user-v2_ep.sock`, ["/usr/libexec/other"]);
  await leavesAlone(k3s, { state: "blocked", status: 75, blockers: [/usernet_user-v2\.pid: .*takes connections/] });
});

test(
  "a process holds an additional disk: nothing is removed, as often as it is run; then it is repaired",
  async ({ home, k3s }) => {
    const data = home.disk("data", { inUseBy: k3s.dir });
    k3s.pidFile("ha.pid", IMPOSSIBLE_PID);
    k3s.write("boot-session.tmp", "11111111-2222-3333-4444-555555555555\n");
    {
      using _holder = Deno.openSync(`${data.dir}/datadisk`, { write: true });
      using _second = Deno.openSync(`${data.dir}/datadisk`, { write: true });
      const blockers = [new RegExp(`datadisk: PID ${Deno.pid} .*has it open for writing.*kill ${Deno.pid}`)];
      for (let run = 0; run < 2; run++) {
        await leavesAlone(k3s, { state: "blocked", status: 75, blockers }, guardWith({ hurry: true }));
      }
      const stop = await runGuard(home, ["--stop", "k3s", "--json"], guardWith({ hurry: true }));
      const [stopped] = stop.json().instances;
      assert.deepEqual([stop.status, stopped.steps], [75, []], stop.stdout);
      assert.equal(data.inUseBy(), k3s.dir);
    }
    k3s.remove(LOCK);
    const removes = ["../_disks/data/in_use_by", "boot-session.tmp", "ha.pid"];
    await repairs(k3s, { removes });
  },
  ONE_DISK,
);

test("the holder closes the disk while it is waited for: it is repaired in one run", async ({ home, k3s }) => {
  const data = home.disk("data", { inUseBy: k3s.dir });
  k3s.pidFile("ha.pid", IMPOSSIBLE_PID);
  const holder = Deno.openSync(`${data.dir}/datadisk`, { write: true });
  await using guard = spawnGuard(home, ["--pre", "k3s", "--json"]);
  await eventually(() => assert.equal(k3s.has(LOCK), true));
  holder.close();
  const { status, stdout } = await guard.result();
  assert.equal(status, 0, stdout);
  assert.equal(data.inUseBy(), undefined);
}, ONE_DISK);

test("a LIMA_HOME beyond ASCII, no locale: the holder is found all the same", async ({ home, k3s }) => {
  const data = home.disk("data", { inUseBy: `${home.lima}/gone` });
  using _holder = Deno.openSync(`${data.dir}/datadisk`, { write: true });
  const unset = { LANG: "", LC_ALL: "", LC_CTYPE: "" };
  const { script, env } = guardWith({ hurry: true });
  const blockers = [new RegExp(`datadisk: PID ${Deno.pid}`)];
  await leavesAlone(k3s, { state: "blocked", status: 75, blockers }, {
    ...script ? { script } : {},
    env: { ...env, ...unset },
  });
  assert.equal(data.inUseBy(), `${home.lima}/gone`);
}, { ...ONE_DISK, name: "Zürich" });

test("the lock's file cannot be opened: try again, and nothing is done", async ({ k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  const { status, report } = await pre(k3s, guardWith({ locks: "other" }));
  assert.deepEqual([status, report.state, report.steps], [75, "unknown", []]);
  assert.match(remark(report.blockers[0]!), /lima-guard\.lock: it cannot be locked: Too many open files.*--pre/);
  assert.equal(k3s.pid("vz.pid"), bystander.pid);
});

test("this file system has no locks: a warning, and it continues", async ({ k3s, bystander }) => {
  k3s.pidFile("vz.pid", bystander.pid);
  const { status, stderr } = await pre(k3s, guardWith({ locks: "unsupported" }));
  assert.equal(status, 0);
  assert.match(stderr, /continues without a lock/);
});

test("waiting for a lock for twenty turns: no descriptor, no thread and no line more", async ({ home, k3s }) => {
  const held = Deno.openSync(k3s.path(LOCK), { write: true, create: true });
  assert.ok(held.tryLockSync(true));
  await using run = spawnGuard(home, ["--run", "k3s", "--", "sleep", "60"], {
    ...guardWith({ lockMs: 20 }),
    env: { ...guardWith({ lockMs: 20 }).env, XPC_SERVICE_NAME: "io.lima-vm.daemon.k3s" },
  });
  await run.waitForLine(/waits up to/);
  const count = (what: string) => [...Deno.readDirSync(`/proc/${run.pid}/${what}`)].length;
  const turns = () => Number(/syscr: (\d+)/.exec(Deno.readTextFileSync(`/proc/${run.pid}/io`))?.[1]);
  const [files, threads, reads] = [count("fd"), count("task"), turns()];
  // Each turn reads the record: that many reads are at least twenty turns.
  await eventually(() => assert.ok(turns() > reads + 40), { withinMs: 30_000 });
  assert.ok(count("fd") <= files + 2, `${files} descriptors became ${count("fd")}`);
  assert.ok(count("task") <= threads + 4, `${threads} threads became ${count("task")}`);
  held.close();
  run.signal("SIGTERM");
  const { stderr } = await run.result();
  assert.equal(stderr.match(/waits up to/g)?.length, 1, stderr);
}, { ignore: Deno.build.os === "linux" ? undefined : "no /proc" });

test("networks.yaml cannot be read: a note, and the start is not refused", async ({ home, k3s }) => {
  Deno.mkdirSync(`${home.lima}/_config/networks.yaml`, { recursive: true });
  const { report } = await leavesAlone(k3s, { state: "clear", status: 0 });
  assert.match(report.notes.map(remark).join("\n"), /networks\.yaml: whether its networks are in order is unknown/);
});

test("a script that names socket_vmnet has the PID of socket_vmnet: a note, since it may run it", async ({ home, k3s }) => {
  const run = `${home.root}/run`;
  Deno.mkdirSync(run);
  await using wrapper = await startBystander(home, { command: ["/bin/sh", "/opt/bin/start-socket_vmnet.sh"] });
  Deno.writeTextFileSync(`${run}/shared_socket_vmnet.pid`, `${wrapper.pid}\n`);
  Deno.writeTextFileSync(`${home.lima}/_config/networks.yaml`, `paths:\n  varRun: ${run}\n`);
  const { report } = await leavesAlone(k3s, { state: "clear", status: 0 });
  assert.match(report.notes.map(remark).join("\n"), /shared_socket_vmnet\.pid: PID \d+ is .*, not socket_vmnet/);
  wrapper.assertAlive();
});

/** What `--stop` may say at most of what it found last: its state, its status and its blockers agree. */
function agrees({ state, status, blockers }: { state: string; status: number; blockers: readonly unknown[] }): void {
  if (state === "running") assert.equal(status, 1);
  else if (state === "unknown") assert.ok(status === 75 && blockers.length > 0, `${status}`);
  else assert.deepEqual([state, status, blockers], ["stopped", 0, []]);
}

for (const nth of [1, 2, 3, 4, 5, 6]) {
  test(`a host agent is stopped, and from its look number ${nth} on ps hangs: the state is not better than that`, async (world) => {
    await using agent = await startAgent(world.k3s);
    const hangs = { programs: { ps: { does: "hang", from: nth } as const }, limitsBy: 10 };
    const done = await runGuard(world.home, ["--stop", "k3s", "--json", "--timeout", "4"], guardWith(hangs));
    const [report] = done.json().instances;
    assert.equal(report.status, done.status);
    agrees(report);
    void agent;
  });
}
