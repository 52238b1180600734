/**
 * `--pre` and the real thing: every Broken state that was recorded is made for real, judged by a real `limactl start`,
 * cured by the guard, and judged again.
 */

import assert from "node:assert/strict";
import { deadPid, eventually, type Home, isAlive, ps, runGuard, standin } from "./helpers/mod.ts";
import { difference, paths, pre, remark, repairs } from "./helpers/pre.ts";
import { realTest as test, runLimactl, start, type Started, type World } from "./helpers/real_lima.ts";

// --- the states that were recorded ----------------------------------------------------------------------------------------------------

interface State {
  make(world: World): unknown;
  /** What `--pre` removes; then `limactl start` continues. */
  removes?: string[];
  /** What it says of what it must not repair; then the start says the same as before. */
  blocked?: RegExp;
  note?: RegExp;
  /** Versions of Lima that start beside it all the same, and versions that alone do not. */
  fineIn?: RegExp;
  refusedIn?: RegExp;
}

/** The titles are those of the recording. */
const STATES: Record<string, State> = {
  "qemu.pid names a live process of another program, no ha.pid": {
    make: ({ k3s, bystander }) => k3s.pidFile("qemu.pid", bystander.pid),
    removes: ["qemu.pid"],
  },
  "ha.pid names a live process of another program, no ha.sock": {
    make: ({ k3s, bystander }) => k3s.pidFile("ha.pid", bystander.pid),
    removes: ["ha.pid"],
  },
  "ha.pid names a live process of another program, ha.sock refuses": {
    make({ k3s, bystander }) {
      k3s.pidFile("ha.pid", bystander.pid);
      k3s.staleSocket("ha.sock");
    },
    removes: ["ha.pid", "ha.sock"],
  },
  "ha.pid names a live process of another program, ha.sock accepts and never answers": {
    make({ k3s, bystander }) {
      k3s.pidFile("ha.pid", bystander.pid);
      return k3s.silentSocket("ha.sock");
    },
    // A socket that takes a connection has an owner: who it is could not be found out.
    blocked: /ha\.sock: it takes connections, and no process was found that is proven to own it/,
  },
  "qemu.pid names PID 1 (another user's)": { make: ({ k3s }) => k3s.pidFile("qemu.pid", 1), removes: ["qemu.pid"] },
  "qemu.pid empty": { make: ({ k3s }) => k3s.pidFile("qemu.pid", ""), removes: ["qemu.pid"] },
  "qemu.pid holds 12x": { make: ({ k3s }) => k3s.pidFile("qemu.pid", "12x"), removes: ["qemu.pid"] },
  "qemu.pid holds 0": { make: ({ k3s }) => k3s.pidFile("qemu.pid", "0"), removes: ["qemu.pid"] },
  "qemu.pid holds -1": { make: ({ k3s }) => k3s.pidFile("qemu.pid", "-1"), removes: ["qemu.pid"] },
  "qemu.pid holds 999999999": { make: ({ k3s }) => k3s.pidFile("qemu.pid", "999999999"), removes: ["qemu.pid"] },
  "qemu.pid holds 99999999999999999999": {
    make: ({ k3s }) => k3s.pidFile("qemu.pid", "99999999999999999999"),
    removes: ["qemu.pid"],
  },
  "qemu.pid holds a dead PID with blanks and CRLF": {
    make: async ({ k3s }) => k3s.pidFile("qemu.pid", ` ${await deadPid()} \r\n`),
    removes: ["qemu.pid"],
  },
  "ssh.config empty": {
    make: ({ k3s }) => k3s.sshConfig({ text: "" }),
    removes: ["ssh.config"],
    fineIn: /^1\./,
  },
  "LIMA_HOME holds a directory 'bad name'": {
    make: ({ home }) => Deno.mkdirSync(`${home.lima}/bad name`),
    blocked: /bad name: its name is no instance name/,
  },
  "LIMA_HOME holds a directory without lima.yaml (the start then continues; stopped after 6 s)": {
    make: ({ home }) => Deno.mkdirSync(`${home.lima}/junk`),
    note: /junk: it holds no lima\.yaml/,
    refusedIn: /^2\.1\.|^1\./,
  },
  "usernet_user-v2.pid names a live process of another program (network not wanted)": {
    make: ({ home, bystander }) => home.network("user-v2", { pid: bystander.pid }),
    removes: ["../_networks/user-v2/usernet_user-v2.pid"],
  },
};

for (const { title, status, fatal } of recordedStates()) {
  if (title.startsWith("limactl ")) continue; // the same state as the first
  test(`real limactl: ${title}`, async (world) => {
    const { home, k3s, guard } = world;
    const state = STATES[title];
    assert.ok(state, "a recorded state that is not made here");
    const { version } = world.real;
    const continues = state.fineIn?.test(version) || (status === 124 && !state.refusedIn?.test(version));
    using _before = await make(state, world);
    {
      await using before = await start(world);
      assert.equal(before.status, continues ? undefined : 1);
      if (fatal && !continues) {
        assert.ok(plain(await before.said, home).includes(plain(fatal, home)), `${await before.said}\n${fatal}`);
      }
    }
    // What was started, and then killed, has left other things behind.
    if (continues) assert.equal((await pre(k3s, guard)).status, 0);
    using _after = continues && state.removes ? await make(state, world) : undefined;
    if (state.removes) {
      await cured(state.removes, world);
      await using after = await start(world);
      assert.equal(after.status, undefined, await ended(after));
    } else {
      const { status, report } = await pre(k3s, guard);
      assert.equal(status, state.blocked ? 75 : 0);
      assert.match([...report.blockers, ...report.notes].map(remark).join("\n"), state.blocked ?? state.note!);
      await using after = await start(world);
      assert.equal(after.status, continues ? undefined : 1, await ended(after));
    }
  });
}

/** What root made goes to the user. A socket that a process listens on must be closed. */
async function make(state: State, world: World): Promise<Disposable> {
  const made = await state.make(world);
  if (Deno.uid() === 0) world.home.giveTo(world.real.user);
  const isDisposable = typeof made === "object" && made !== null && Symbol.dispose in made;
  return isDisposable ? made as Disposable : { [Symbol.dispose]: () => {} };
}

/** Just these are removed, and the second run changes nothing; what root made before goes to the user. */
async function cured(removes: string[], { home, k3s, guard }: World): Promise<void> {
  if (k3s.has("lima-guard.lock")) {
    // A second cure in one test: the guard's own files are there already.
    const before = paths(home);
    assert.equal((await pre(k3s, guard)).status, 0);
    assert.deepEqual(
      difference(before, paths(home)),
      removes.map((file) => file.startsWith("../") ? file.slice(3) : `k3s/${file}`).sort(),
    );
  } else await repairs(k3s, { removes }, guard);
}

async function ended(started: Started): Promise<string> {
  return started.status === undefined ? "" : await started.said;
}

/** Words that do not depend on the version's quotes, nor on where LIMA_HOME is. */
function plain(text: string, home: Home): string {
  return text.replaceAll(/\\"|[`"]/g, "'").replaceAll("/home/admin/.lima", home.lima);
}

function recordedStates(): { title: string; status: number; fatal: string | undefined }[] {
  const text = Deno.readTextFileSync(standin("recorded/lima-2.2.0-refusals.txt"));
  return text.split("\n## ").slice(1).map((part) => {
    const [title = "", ...lines] = part.split("\n");
    const status = Number(/^exit status (\d+)$/.exec(lines[0] ?? "")?.[1] ?? Number.NaN);
    return { title, status, fatal: lines.find((line) => line.startsWith("level=fatal")) };
  });
}

// --- genuine processes ----------------------------------------------------------------------------------------------------------------

test("real limactl: a host agent that runs is left alone", async (world) => {
  const { k3s, guard, home } = world;
  await using agent = await start(world);
  const qemu = agent.qemu!;
  const { status, report } = await pre(k3s, guard);
  assert.deepEqual([status, report.state, report.steps], [0, "running", []]);
  const again = await runLimactl(home, "start", "--tty=false", "k3s", "--foreground");
  assert.equal(again.status, 0);
  assert.match(again.stderr, /is already running/);
  assert.ok(isAlive(agent.pid) && isAlive(qemu));
  assert.deepEqual([k3s.pid("ha.pid"), k3s.pid("qemu.pid")], [agent.pid, qemu]);
});

test("real limactl: ha.pid is damaged while its host agent runs", async (world) => {
  const { k3s, guard } = world;
  await using agent = await start(world);
  k3s.pidFile("ha.pid", "");
  const { status, report } = await pre(k3s, guard);
  assert.deepEqual([status, report.state, report.steps], [0, "running", []]);
  assert.ok(isAlive(agent.pid));
});

test("real limactl: the host agent is killed, QEMU lives on: stopped, and started again", async (world) => {
  const { k3s, guard, bystander } = world;
  await using agent = await start(world);
  const qemu = agent.qemu!;
  await agent.kill();
  {
    await using refused = await start(world);
    assert.equal(refused.status, 1);
    assert.match(await refused.said, /qemu driver is running but host agent is not/);
  }
  k3s.pidFile("ha.pid", bystander.pid);
  // There is no operating system that could hear the power button.
  const { status, report, stdout } = await pre(k3s, { ...guard, args: ["--timeout", "8"] });
  assert.deepEqual([status, report.state], [0, "orphan"], stdout);
  assert.equal(isAlive(qemu), false);
  assert.deepEqual(["ha.pid", "ha.sock", "qemu.pid", "qmp.sock"].filter((file) => k3s.has(file)), []);
  await using after = await start(world);
  assert.equal(after.status, undefined, await ended(after));
});

test("real limactl: power is cut, and the numbers are another program's by now", async (world) => {
  const { k3s, home, guard, bystander } = world;
  await using agent = await start(world);
  const qemu = agent.qemu!;
  await agent.kill();
  Deno.kill(qemu, "SIGKILL");
  await eventually(() => assert.ok(!isAlive(qemu)));
  k3s.pidFile("ha.pid", bystander.pid);
  k3s.pidFile("qemu.pid", bystander.pid);
  if (Deno.uid() === 0) home.giveTo(world.real.user);
  {
    await using refused = await start(world);
    assert.match(plain(await refused.said, home), /failed to get Info from .*connection refused/);
  }
  await cured(["ha.pid", "ha.sock", "qemu.pid"], world);
  assert.equal((await pre(k3s, guard)).report.state, "clear");
  await using after = await start(world);
  assert.equal(after.status, undefined, await ended(after));
});

test("real limactl: LIMA_HOME beyond ASCII and with blanks: its processes are recognised", async (world) => {
  const { k3s, guard } = world;
  await using agent = await start(world);
  const { status, report } = await pre(k3s, guard);
  assert.deepEqual([status, report.state, report.steps], [0, "running", []]);
  await agent.kill();
  const orphan = await runGuard(world.home, ["--pre", "--dry-run", "--json", "k3s"], guard);
  assert.equal(orphan.json().instances[0].state, "orphan");
}, { name: "zoë's lima" });

// --- an external driver -------------------------------------------------------------------------------------------------------------

const EXTERNAL = { external: true };
const DRIVER_FILES = ["qemu.drv.pid", "qemu.drv.sock"];

/** The driver that the instance's own PID file names: it lives, and is Lima's. */
function driverOf({ k3s }: World): number {
  const pid = k3s.pid("qemu.drv.pid");
  assert.ok(pid !== undefined && isAlive(pid), k3s.files().join(" "));
  assert.match(ps(pid)?.command ?? "", /lima-driver-qemu --inst-dir /);
  return pid;
}

test("real limactl: an external driver runs with its host agent: left alone, then stopped with it", async (world) => {
  const { home, k3s, guard } = world;
  await using agent = await start(world);
  const driver = driverOf(world);
  const { status, report, stdout } = await pre(k3s, guard);
  assert.deepEqual([status, report.state, report.steps], [0, "running", []], stdout);
  const stopped = await runGuard(home, ["--stop", "--timeout", "12", "--json", "k3s"], guard);
  assert.deepEqual([stopped.status, stopped.json().instances[0].state], [0, "stopped"], stopped.stdout);
  for (const pid of [agent.pid, agent.qemu!, driver]) assert.ok(!isAlive(pid), stopped.stdout);
  assert.deepEqual(k3s.files().filter((file) => /\.(pid|tmp)$/.test(file)), []);
  await using after = await start(world);
  assert.equal(after.status, undefined, await ended(after));
}, EXTERNAL);

test("real limactl: the host agent is killed, its external driver and QEMU live on: both are ended", async (world) => {
  const { k3s, guard, bystander } = world;
  await using agent = await start(world);
  const driver = driverOf(world);
  await agent.kill();
  assert.ok(isAlive(driver) && isAlive(agent.qemu!));
  k3s.pidFile("ha.pid", bystander.pid);
  const { status, report, stdout } = await pre(k3s, { ...guard, args: ["--timeout", "8"] });
  assert.deepEqual([status, report.state], [0, "orphan"], stdout);
  assert.ok(!isAlive(driver) && !isAlive(agent.qemu!), stdout);
  assert.deepEqual([...DRIVER_FILES, "ha.pid", "qemu.pid"].filter((file) => k3s.has(file)), []);
  await using after = await start(world);
  assert.equal(after.status, undefined, await ended(after));
}, EXTERNAL);

test("real limactl: a start that fails leaves its external driver behind: it is ended", async (world) => {
  const { k3s, guard } = world;
  k3s.write("lima.yaml", (k3s.read("lima.yaml") ?? "").replace(/^images:/m, "additionalDisks:\n- gone\nimages:"));
  if (Deno.uid() === 0) world.home.giveTo(world.real.user);
  await using refused = await start(world);
  assert.equal(refused.status, 1, await ended(refused));
  const driver = driverOf(world);
  const found = await pre(k3s, guard);
  assert.ok(!isAlive(driver), found.stdout);
  assert.deepEqual(DRIVER_FILES.filter((file) => k3s.has(file)), []);
  // The disk that is not there is for a person.
  assert.deepEqual([found.status, found.report.state], [75, "orphan"], found.stdout);
  assert.match(found.report.blockers.map(remark).join("\n"), /additional disk gone is not there/);
}, EXTERNAL);
