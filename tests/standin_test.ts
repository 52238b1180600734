/** The stand-ins behave as Lima was seen to behave: else every test that is built on them proves nothing. */

import assert from "node:assert/strict";
import {
  cutOff,
  deadPid,
  eventually,
  freePort,
  type Home,
  IMPOSSIBLE_PID,
  type Instance,
  isAlive,
  killChild,
  limactl,
  NO_ORDINARY_USER,
  ordinaryUser,
  ps,
  readOnlyDir,
  silentPort,
  sshGuest,
  standin,
  startAgent,
  startBystander,
  startOrphan,
  startQemuOrphan,
  tempLimaHome,
  tinyMount,
  waitForExit,
  whyNoMount,
  whyNoReadOnlyDir,
  whyNoSshd,
  zombie,
} from "./helpers/mod.ts";

// --- limactl start refuses as recorded --------------------------------------------------------------------------------

type SetUp = (instance: Instance, bystander: number) => Disposable | void | Promise<void>;

/** How to make each state that was recorded; the titles are those of the recording. */
const STATES: Record<string, SetUp> = {
  "qemu.pid names a live process of another program, no ha.pid": (i, pid) => void i.pidFile("qemu.pid", pid),
  "ha.pid names a live process of another program, no ha.sock": (i, pid) => void i.pidFile("ha.pid", pid),
  "ha.pid names a live process of another program, ha.sock refuses": (i, pid) => {
    i.pidFile("ha.pid", pid);
    i.staleSocket("ha.sock");
  },
  "ha.pid names a live process of another program, ha.sock accepts and never answers": (i, pid) => {
    i.pidFile("ha.pid", pid);
    return i.silentSocket("ha.sock");
  },
  "qemu.pid names PID 1 (another user's)": (i) => void i.pidFile("qemu.pid", 1),
  "qemu.pid empty": (i) => void i.pidFile("qemu.pid", ""),
  "qemu.pid holds 12x": (i) => void i.pidFile("qemu.pid", "12x"),
  "qemu.pid holds 0": (i) => void i.pidFile("qemu.pid", "0"),
  "qemu.pid holds -1": (i) => void i.pidFile("qemu.pid", "-1"),
  "qemu.pid holds 999999999": (i) => void i.pidFile("qemu.pid", "999999999"),
  "qemu.pid holds 99999999999999999999": (i) => void i.pidFile("qemu.pid", "99999999999999999999"),
  "qemu.pid holds a dead PID with blanks and CRLF": async (i) => void i.pidFile("qemu.pid", ` ${await deadPid()} \r\n`),
  "ssh.config empty": (i) => void i.sshConfig({ text: "" }),
  "LIMA_HOME holds a directory 'bad name'": (i) => Deno.mkdirSync(`${i.home.lima}/bad name`),
  "LIMA_HOME holds a directory without lima.yaml (the start then continues; stopped after 6 s)": (i) =>
    Deno.mkdirSync(`${i.home.lima}/junk`),
  "usernet_user-v2.pid names a live process of another program (network not wanted)": (i, pid) =>
    void i.home.network("user-v2", { pid }),
};

const RECORDING = await Deno.readTextFile(standin("recorded/lima-2.2.0-refusals.txt"));

for (const { title, status, lines } of recordedStates()) {
  const setUp = STATES[title];
  if (title.startsWith("limactl ")) continue; // below: the same state as the first
  Deno.test(`limactl start says what Lima 2.2.0 said when ${title}`, async () => {
    assert.ok(setUp, "a recorded state that is not made here");
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s", { conf: { vmtype: "qemu" } });
    await using bystander = await startBystander(home);
    using _ = (await setUp(k3s, bystander.pid)) ?? { [Symbol.dispose]: () => {} };
    // 124 was `timeout`: the instance had started.
    await using agent = await startAgent(k3s, { until: status === 124 ? "running" : "exit" });
    assertSays(await agent.stderr, lines, home);
    if (status !== 124) assert.equal((await agent.status).code, status);
    bystander.assertAlive();
  });
}

Deno.test("limactl stop refuses a Broken instance, and stop --force kills another program that a PID file names", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { vmtype: "qemu" } });
  await using bystander = await startBystander(home);
  k3s.pidFile("qemu.pid", bystander.pid);
  const recorded = (title: string) => recordedStates().find((state) => state.title === title)!.lines;

  const stop = await limactl(home, ["stop", "k3s"]);
  assert.equal(stop.status, 1);
  assertSays(stop.stderr, recorded("limactl stop"), home);

  home.mayBeSignalled(bystander.pid);
  const force = await limactl(home, ["stop", "--force", "k3s"]);
  assertSays(force.stderr, [`level=info msg="Sending SIGKILL to the qemu driver process ${bystander.pid}"`], home);
  assertSays(force.stderr, ['level=info msg="The host agent process seems already stopped"'], home);
  await waitForExit(bystander.pid);
  assert.equal(k3s.has("qemu.pid"), false);
});

Deno.test("limactl stop --force spares a process that the test has not released", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using bystander = await startBystander(home);
  k3s.pidFile("vz.pid", bystander.pid);
  const { stderr } = await limactl(home, ["stop", "--force", "k3s"]);
  assert.match(stderr, /Lima would have sent SIGKILL to another program/);
  bystander.assertAlive();
});

Deno.test("limactl start of a missing instance would create one: it says so, leaves a mark and nothing else", async () => {
  await using home = await tempLimaHome();
  const { status, stderr } = await limactl(home, ["start", "k3s", "--foreground"]);
  assert.equal(status, 3);
  assert.match(stderr, /Creating an instance `k3s` from template:default \(Not from template:k3s\)/);
  assert.equal(home.wouldHaveCreated(), "k3s");
  assert.deepEqual([...Deno.readDirSync(home.lima)].map((entry) => entry.name), ["_config"]);
});

Deno.test("limactl panics without HOME, whatever LIMA_HOME says", async () => {
  await using home = await tempLimaHome();
  const { status, stderr } = await limactl(home, ["list"], { env: { HOME: "" } });
  assert.equal(status, 2);
  assert.match(stderr, /panic: \$HOME is not defined/);
});

Deno.test("limactl list deletes the PID files of dead processes and keeps those of live ones", async () => {
  await using home = await tempLimaHome();
  const [dead, live] = [home.instance("docker"), home.instance("k3s")];
  await using bystander = await startBystander(home);
  dead.pidFile("vz.pid", IMPOSSIBLE_PID);
  live.pidFile("vz.pid", bystander.pid);
  const { stdout } = await limactl(home, ["list"]);
  assert.match(stdout, /^docker +Stopped +vz /m);
  assert.match(stdout, /^k3s +Broken +vz /m);
  assert.equal(dead.has("vz.pid"), false);
  assert.equal(live.pid("vz.pid"), bystander.pid);
});

Deno.test("limactl --version names itself", async () => {
  await using home = await tempLimaHome();
  assert.equal((await limactl(home, ["--version"])).stdout, "limactl version 2.2.0 (stand-in)\n");
});

// --- the host agent ---------------------------------------------------------------------------------------------------

Deno.test("the host agent has the PID of `limactl start`, and ps shows Lima's command line to the byte", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using agent = await startAgent(k3s);
  const command = `${home.limactl} hostagent --pidfile ${k3s.dir}/ha.pid --socket ${k3s.dir}/ha.sock k3s`;
  assert.equal(psCommand(agent.pid), `${command}\n`);
  assert.equal(k3s.read("ha.pid"), `${agent.pid}\n`);
  assert.equal(k3s.read("vz.pid"), `${agent.pid}\n`);
});

Deno.test("ps shows a LIMA_HOME with blanks and letters beyond ASCII to the byte too", async () => {
  await using home = await tempLimaHome({ name: "zoë's data" });
  const k3s = home.instance("k3s", { conf: { vmtype: "qemu" } });
  await using agent = await startAgent(k3s);
  assert.ok(psCommand(agent.pid).endsWith(`--pidfile ${k3s.dir}/ha.pid --socket ${k3s.dir}/ha.sock k3s\n`));
  assert.ok(psCommand(k3s.pid("qemu.pid")!).endsWith(` -pidfile ${k3s.dir}/qemu.pid\n`));
});

Deno.test("the host agent reports its ssh port, then running, and answers on ha.sock in HTTP 1.0 and 1.1", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using _ = await startAgent(k3s);
  const port = Number(/Port (\d+)/.exec(k3s.read("ssh.config")!)![1]);
  assert.deepEqual(k3s.events(), [{ sshLocalPort: port }, { running: true, sshLocalPort: port }]);
  for (const version of ["1.0", "1.1"]) {
    const answer = await request(k3s.path("ha.sock"), version);
    assert.match(answer, new RegExp(`^HTTP/${version} 200 OK\r\n`));
    assert.deepEqual(JSON.parse(answer.split("\r\n\r\n")[1]!), { sshLocalPort: port });
  }
  const ours = k3s.read("ssh.config");
  k3s.sshConfig({ port });
  assert.equal(ours, k3s.read("ssh.config"), "the helper and the host agent write the same ssh.config");
});

for (const point of ["ha.pid", "ssh.config", "ha.sock", "driver", "event", "running"] as const) {
  Deno.test(`the host agent can die at ${point}, and leaves what a SIGKILL there leaves`, async () => {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s", { conf: { die_at: point } });
    await using agent = await startAgent(k3s, { until: "exit" });
    assert.equal((await agent.status).signal, "SIGKILL");
    const order = ["ha.pid", "ssh.config", "ha.sock", "vz.pid"];
    const there = { "ha.pid": 1, "ssh.config": 2, "ha.sock": 3, "driver": 4, "event": 4, "running": 4 }[point];
    assert.deepEqual(order.map((file) => k3s.has(file)), order.map((_, index) => index < there));
    assert.equal(k3s.events().length, point === "running" ? 2 : point === "event" ? 1 : 0);
  });
}

Deno.test("a clean stop of vz: the guest powers off, ha.pid and ha.sock go, vz.pid stays, exit 0", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { guest_off_ms: 50 } });
  await using agent = await startAgent(k3s);
  assert.equal(k3s.guestDisk(), "dirty");
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.deepEqual(k3s.events().at(-1), { exiting: true });
  assert.deepEqual(k3s.files().filter((file) => /\.(pid|sock)$/.test(file)), ["vz.pid"]);
  assert.equal(k3s.guestDisk(), "clean");
});

Deno.test("lima-vm/lima#5087: a stop that cannot be requested cuts the guest off, exit 1", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { stop: "cannot-request-stop" } });
  await using agent = await startAgent(k3s);
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 1);
  assert.equal(k3s.log().at(-1), "vz: CanRequestStop is not supported");
  assert.deepEqual(k3s.files().filter((file) => /\.(pid|sock)$/.test(file)), ["vz.pid"]);
  assert.equal(k3s.guestDisk(), "dirty");
});

Deno.test("a guest that ignores the power button is cut off when vz's time limit ends, exit 1", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { stop: "ignore", vz_stop_limit_ms: 100 } });
  await using agent = await startAgent(k3s);
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 1);
  assert.equal(k3s.log().at(-1), "vz timeout while waiting for stop status");
  assert.equal(k3s.guestDisk(), "dirty");
});

Deno.test("a slow guest takes its time, a second signal is swallowed", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { stop: "slow:300" } });
  await using agent = await startAgent(k3s);
  const begin = performance.now();
  agent.signal("SIGTERM");
  await eventually(() => assert.ok(k3s.log().includes("Received SIGTERM, shutting down the host agent")));
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.ok(performance.now() - begin >= 280);
  assert.equal(k3s.guestDisk(), "clean");
});

Deno.test("an agent that hangs in its own clean-up: only SIGKILL helps, but its guest can power off from within", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { stop: "hang" } });
  await using agent = await startAgent(k3s);
  agent.signal("SIGINT");
  await eventually(() => assert.equal(k3s.log().at(-1), "Shutting down the host agent"));
  assert.ok(k3s.log().includes("Received SIGINT, shutting down the host agent"));
  k3s.write("standin.guest/poweroff", "");
  await eventually(() => assert.equal(k3s.guestDisk(), "clean"));
  assert.ok(agent.isAlive());
  assert.match(await request(k3s.path("ha.sock")), /200 OK/);
});

Deno.test("the vz deadlock: ha.sock answers, vz.pid is there, no event ever comes, SIGTERM does nothing", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { stop: "deadlock" } });
  await using agent = await startAgent(k3s, { until: "driver" });
  agent.signal("SIGTERM");
  assert.match(await request(k3s.path("ha.sock")), /200 OK/);
  assert.match((await limactl(home, ["list"])).stdout, /^k3s +Running /m);
  k3s.write("standin.guest/poweroff", "");
  await eventually(() => assert.equal(k3s.guestDisk(), "clean"));
  assert.equal(k3s.read("ha.stdout.log"), "");
  assert.ok(agent.isAlive());
});

Deno.test("vz reads a SIGTERM of its boot only when the guest's ssh port was found", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { boot_ms: 2000 } });
  await using agent = await startAgent(k3s, { until: "driver" });
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.deepEqual(k3s.events().map((event) => Object.keys(event)[0]), ["sshLocalPort", "exiting"]);
});

Deno.test("vz ends with status 1 when its guest powers itself off", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using agent = await startAgent(k3s);
  k3s.write("standin.guest/poweroff", "");
  assert.equal((await agent.status).code, 1);
  assert.ok(k3s.log().includes('Driver stopped due to error: "vz driver state stopped"'));
  assert.equal(k3s.log().at(-1), "vz: CanRequestStop is not supported");
  assert.equal(k3s.guestDisk(), "clean");
});

Deno.test("the host agent can end by itself: like a failure it cleans up, like a panic (2) it does not", async () => {
  await using home = await tempLimaHome();
  for (const [name, code, left] of [["failure", 7, false], ["panic", 2, true]] as const) {
    const instance = home.instance(name);
    await using agent = await startAgent(instance, { until: "exit", conf: { exit_after_ms: 1, exit_code: code } });
    assert.equal((await agent.status).code, code);
    assert.equal(instance.has("ha.pid"), left);
    assert.equal(instance.has("ha.sock"), left);
  }
});

Deno.test("ha.sock can fail, be late, or be silent", async () => {
  await using home = await tempLimaHome();
  const answers = { error500: /^HTTP\/1.0 500 /, "late:50": /^HTTP\/1.0 200 / };
  for (const [info, expected] of Object.entries(answers)) {
    const instance = home.instance(info.replace(":", "-"));
    await using _ = await startAgent(instance, { conf: { info } });
    assert.match(await request(instance.path("ha.sock")), expected);
  }
  const silent = home.instance("silent");
  await using _ = await startAgent(silent, { conf: { info: "silent" } });
  const { status, stderr } = await limactl(home, ["start", "silent", "--foreground"]);
  assert.equal(status, 1);
  assert.match(stderr, /failed to get Info from .*context deadline exceeded/);
});

Deno.test("a connection that is held to ha.sock ends when the agent is killed", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using agent = await startAgent(k3s);
  using held = await Deno.connect({ transport: "unix", path: k3s.path("ha.sock") });
  // An answer proves that the connection was accepted: one that was not is reset instead.
  await held.write(new TextEncoder().encode("GET /v1/info HTTP/1.1\r\nHost: lima-hostagent\r\n\r\n"));
  await held.read(new Uint8Array(4096));
  agent.signal("SIGKILL");
  assert.equal(await held.read(new Uint8Array(1)), null);
});

Deno.test("a running instance is not started again, and that is no error", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using _ = await startAgent(k3s);
  const { status, stderr } = await limactl(home, ["start", "k3s", "--foreground"]);
  assert.equal(status, 0);
  assert.match(stderr, /The instance `k3s` is already running/);
  assert.equal(k3s.starts().length, 1);
});

Deno.test("a booting instance is Broken to limactl", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { stay_at: "ha.sock" } });
  await using _ = await startAgent(k3s, { until: "ha.sock" });
  const { status, stderr } = await limactl(home, ["start", "k3s", "--foreground"]);
  assert.equal(status, 1);
  assert.match(stderr, /host agent is running but driver is not/);
});

Deno.test("a grandchild outlives the agent, in its process group", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { grandchild: 1 } });
  await using agent = await startAgent(k3s);
  const group = ps(agent.pid)!.pgid;
  agent.signal("SIGTERM");
  await agent.status;
  // It takes its name in ps a moment after it was started.
  const line = await eventually(() => {
    const [first] = home.processes();
    assert.equal(first?.replace(/^\d+ /, ""), `ssh: ${k3s.dir}/ssh.sock [mux]`);
    return first;
  });
  assert.equal(ps(Number(line!.split(" ")[0]))!.pgid, group);
});

Deno.test("every start is recorded with its environment", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using agent = await startAgent(k3s, { env: { XPC_SERVICE_NAME: "io.lima-vm.daemon.k3s" } });
  const [start] = k3s.starts();
  assert.equal(start!.pid, agent.pid);
  assert.equal(start!.env.XPC_SERVICE_NAME, "io.lima-vm.daemon.k3s");
  assert.deepEqual(Object.keys(start!.env).filter((key) => key.startsWith("STANDIN_")), ["STANDIN_HOME"]);
});

Deno.test("limactl stop is graceful and waits", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { guest_off_ms: 100 } });
  await using agent = await startAgent(k3s);
  const { status, stderr } = await limactl(home, ["stop", "k3s"]);
  assert.equal(status, 0, stderr);
  assert.equal((await agent.status).code, 0);
  assert.equal(k3s.guestDisk(), "clean");
  assert.equal(k3s.has("vz.pid"), false, "the look at the instance deletes the PID file of the dead");
});

// --- disks and networks -----------------------------------------------------------------------------------------------

Deno.test("an additional disk is locked while the instance runs; a kill leaves the lock, and the next start takes it", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { yaml: 'additionalDisks:\n- data\n- name: "more"\n' });
  const disks = [home.disk("data"), home.disk("more")];
  const holders = () => disks.map((disk) => disk.inUseBy());
  await cutOff(k3s);
  assert.deepEqual(holders(), [k3s.dir, k3s.dir]);
  await using agent = await startAgent(k3s);
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.deepEqual(holders(), [undefined, undefined]);
});

Deno.test("a disk that another instance holds stops the start", async () => {
  await using home = await tempLimaHome();
  const disk = home.disk("data", { inUseBy: `${home.lima}/docker` });
  const k3s = home.instance("k3s", { yaml: "additionalDisks:\n- data\n" });
  await using agent = await startAgent(k3s, { until: "exit" });
  assert.equal((await agent.status).code, 1);
  assert.equal(k3s.log().at(-1), "failed to attach disk `data`: in use by instance `docker`");
  assert.equal(disk.inUseBy(), `${home.lima}/docker`);
});

Deno.test("krunkit does not even take its own lock again", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { vmtype: "krunkit" }, yaml: "additionalDisks:\n- data\n" });
  home.disk("data", { inUseBy: k3s.dir });
  await using _ = await startAgent(k3s, { until: "exit" });
  assert.equal(k3s.log().at(-1), "failed to run attach disk `data`, in use by instance `k3s`");
});

Deno.test("usernet looks as Lima's, has its own process group, outlives the agent, and is stopped when unwanted", async () => {
  await using home = await tempLimaHome();
  const [k3s, docker] = [home.instance("k3s", { conf: { usernet: 1 } }), home.instance("docker")];
  await using agent = await startAgent(k3s);
  const dir = `${home.lima}/_networks/user-v2`;
  const pid = Number(Deno.readTextFileSync(`${dir}/usernet_user-v2.pid`));
  assert.equal(
    psCommand(pid),
    `${home.limactl} usernet -p ${dir}/usernet_user-v2.pid -e ${dir}/user-v2_ep.sock --listen-qemu ` +
      `${dir}/user-v2_qemu.sock --listen ${dir}/user-v2_fd.sock --subnet 192.168.104.0/24\n`,
  );
  assert.equal(ps(pid)!.pgid, pid);
  agent.signal("SIGTERM");
  await agent.status;
  assert.ok(isAlive(pid));
  await using _ = await startAgent(docker);
  assert.equal(isAlive(pid), false);
});

Deno.test("a recycled PID in usernet's file: wanted, it is taken as running, and the machine does not start", async () => {
  await using home = await tempLimaHome();
  await using bystander = await startBystander(home);
  home.network("user-v2", { pid: bystander.pid, sockets: true });
  const k3s = home.instance("k3s", { conf: { usernet: 1 } });
  await using _ = await startAgent(k3s, { until: "exit" });
  assert.equal(
    k3s.log().at(-1),
    `dial unix ${home.lima}/_networks/user-v2/user-v2_fd.sock: connect: connection refused`,
  );
  bystander.assertAlive();
});

// --- the drivers that are processes of their own ----------------------------------------------------------------------

Deno.test("QEMU looks as Lima starts it, and removes its files after a clean stop", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { vmtype: "qemu", ssh_port: freePort(), guest_off_ms: 50 } });
  await using agent = await startAgent(k3s);
  const pid = k3s.pid("qemu.pid")!;
  const command = psCommand(pid);
  assert.ok(command.startsWith(`${home.bin}/qemu-system-x86_64 -m 1024 `), command);
  assert.ok(command.endsWith(` -qmp chardev:char-qmp -name lima-k3s -pidfile ${k3s.dir}/qemu.pid\n`), command);
  assert.match(command, / -netdev user,id=net0,\S*hostfwd=tcp:127\.0\.0\.1:\d+-:22 /);
  assert.equal(ps(pid)!.pgid, pid);
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 0);
  assert.deepEqual(k3s.files().filter((file) => /\.(pid|sock)$/.test(file)), []);
  assert.equal(k3s.guestDisk(), "clean");
});

Deno.test("QEMU outlives its killed agent, speaks QMP to one client at a time, and says POWERDOWN before it answers", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  await using orphan = await startQemuOrphan(k3s);
  for (const file of ["ha.pid", "ha.sock", "qemu.pid", "qmp.sock"]) assert.ok(k3s.has(file), file);

  using first = await qmp(k3s);
  assert.match(await first.line(), /^\{"QMP": .*\}\r$/);
  using second = await qmp(k3s);
  first.send({ execute: "qmp_capabilities" });
  assert.equal(await first.line(), '{"return": {}}\r');
  first.send({ execute: "system_powerdown" });
  assert.match(await first.line(), /"event": "POWERDOWN"\}\r$/);
  assert.equal(await first.line(), '{"return": {}}\r');
  await orphan.waitForExit();
  assert.equal(await second.line(), "", "the second client was never greeted");
  assert.equal(k3s.guestDisk(), "clean");
  assert.deepEqual(k3s.files().filter((file) => /\.(pid|sock)$/.test(file)), ["ha.pid", "ha.sock"]);
});

Deno.test("QEMU can refuse the power button, and be silent on QMP", async () => {
  await using home = await tempLimaHome();
  const refusing = home.instance("refusing");
  await using _refusing = await startQemuOrphan(refusing, { qmp: "refuse-powerdown" });
  using client = await qmp(refusing);
  await client.line();
  client.send({ execute: "system_powerdown" });
  assert.match(await client.line(), /^\{"error"/);

  // Lima kills a QEMU that does not greet it; the five seconds it waits first are its own.
  const silent = home.instance("silent", { conf: { vmtype: "qemu", qmp: "silent" } });
  await using agent = await startAgent(silent);
  agent.signal("SIGTERM");
  assert.equal((await agent.status).code, 1);
  assert.equal(silent.has("qemu.pid"), false);
  assert.equal(silent.guestDisk(), "dirty");
});

Deno.test("SIGTERM quits QEMU at once, which cuts its guest off; it can be set to ignore it", async () => {
  await using home = await tempLimaHome();
  const quick = home.instance("quick");
  await using orphan = await startQemuOrphan(quick, { guest_off_ms: 60_000 });
  Deno.kill(orphan.pid, "SIGTERM");
  await orphan.waitForExit();
  assert.equal(quick.guestDisk(), "dirty");
  assert.equal(quick.has("qemu.pid"), false);

  const stubborn = home.instance("stubborn");
  await using other = await startQemuOrphan(stubborn, { ignore_term: 1 });
  Deno.kill(other.pid, "SIGTERM");
  using client = await qmp(stubborn);
  assert.match(await client.line(), /QMP/, "it still serves");
});

Deno.test("a QEMU agent ends with status 0 when its guest powers off, however", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s", { conf: { vmtype: "qemu" } });
  await using agent = await startAgent(k3s);
  k3s.write("standin.guest/poweroff", "");
  assert.equal((await agent.status).code, 0);
  assert.equal(k3s.guestDisk(), "clean");
});

for (const vmtype of ["krunkit", "x"] as const) {
  Deno.test(`${vmtype}: looks right, is stopped by its agent, and outlives a killed one`, async () => {
    await using home = await tempLimaHome();
    const stopped = home.instance("stopped", { conf: { vmtype } });
    await using agent = await startAgent(stopped);
    const command = psCommand(stopped.pid(`${vmtype}.pid`)!);
    const shape = vmtype === "krunkit"
      ? `${home.bin}/krunkit .* --device virtio-blk,path=${stopped.dir}/disk,format=raw .*`
      : `${home.bin}/lima-driver-x --inst-dir ${stopped.dir}`;
    assert.match(command, new RegExp(`^${shape}\n$`));
    agent.signal("SIGTERM");
    assert.equal((await agent.status).code, 0);
    assert.equal(stopped.guestDisk(), "clean");

    const killed = home.instance("killed");
    await using orphan = await startOrphan(killed, vmtype);
    assert.ok(orphan.isAlive());
    assert.equal(killed.pid(`${vmtype}.pid`), orphan.pid);
    if (vmtype === "x") assert.equal(killed.read("x.drv.pid"), String(orphan.pid));
  });
}

// --- the guest --------------------------------------------------------------------------------------------------------

const noSshd = whyNoSshd();
/** What lima-guard would ask, in one line. */
const POWER_OFF =
  "sudo -n sh -c 'sync; if command -v systemctl >/dev/null; then systemctl poweroff; else /sbin/shutdown -h now; fi'";

function guestTest(name: string, body: (home: Home, k3s: Instance) => Promise<void>): void {
  Deno.test({
    name: noSshd ? `${name} (skipped: ${noSshd})` : name,
    ignore: noSshd !== undefined,
    async fn() {
      await using home = await tempLimaHome();
      await body(home, home.instance("k3s"));
    },
  });
}

guestTest("the guest powers off over ssh, and its machine and agent with it", async (_home, k3s) => {
  await using guest = await sshGuest(k3s);
  await using agent = await startAgent(k3s);
  assert.equal((await ssh(k3s, POWER_OFF)).status, 0);
  assert.equal((await agent.status).code, 1);
  assert.equal(k3s.guestDisk(), "clean");
  assert.deepEqual(guest.log().slice(2), ["sync", "systemctl poweroff"]);
  assert.equal((await ssh(k3s, "true")).status, 255, "a machine that is off has no ssh");
});

guestTest(
  "a guest without systemctl is shut down by an absolute path, which leads to a stand-in",
  async (_home, k3s) => {
    await using guest = await sshGuest(k3s, "no-systemctl");
    await using agent = await startAgent(k3s);
    assert.equal((await ssh(k3s, POWER_OFF)).status, 0);
    await agent.status;
    assert.equal(k3s.guestDisk(), "clean");
    assert.equal(guest.log().at(-1), "shutdown -h now");
  },
);

guestTest("only root finds poweroff, and only root may", async (_home, k3s) => {
  await using _guest = await sshGuest(k3s);
  assert.equal((await ssh(k3s, "command -v poweroff")).status, 127);
  assert.equal((await ssh(k3s, "sudo -n sh -c 'command -v poweroff'")).status, 0);
  assert.match((await ssh(k3s, "systemctl poweroff")).stderr, /Interactive authentication required/);
  assert.equal((await ssh(k3s, "id -u")).stdout, "1000\n");
  assert.equal((await ssh(k3s, "sudo -n id -u")).stdout, "0\n");
});

guestTest("guests that do not power off: no sudo, refusing, ignoring, lying", async (_home, k3s) => {
  await using guest = await sshGuest(k3s);
  await using agent = await startAgent(k3s);
  const expected = { "no-sudo": 1, refuse: 1, ignore: 0, lying: 0 } as const;
  for (const [mode, status] of Object.entries(expected) as [keyof typeof expected, number][]) {
    guest.mode(mode);
    assert.equal((await ssh(k3s, POWER_OFF)).status, status, mode);
    assert.equal(k3s.has("standin.guest/poweroff"), false, mode);
  }
  assert.ok(agent.isAlive());
  assert.equal(k3s.guestDisk(), "dirty");
});

guestTest("a slow guest", async (_home, k3s) => {
  await using _guest = await sshGuest(k3s, "slow:300");
  await using agent = await startAgent(k3s);
  const begin = performance.now();
  assert.equal((await ssh(k3s, POWER_OFF)).status, 0);
  await agent.status;
  assert.ok(performance.now() - begin >= 280);
  assert.equal(k3s.guestDisk(), "clean");
});

guestTest(
  "a session that waits for a word powers off when the word comes, and ends when the machine is cut off",
  async (_home, k3s) => {
    await using _guest = await sshGuest(k3s);
    const line = "sudo -n sh -c 'echo ready; read -r word && systemctl poweroff'";
    {
      await using agent = await startAgent(k3s);
      await using session = openSession(k3s, line);
      await session.ready();
      await session.write("now\n");
      await agent.status;
      assert.equal(k3s.guestDisk(), "clean");
    }
    await using agent = await startAgent(k3s);
    await using session = openSession(k3s, line);
    await session.ready();
    agent.signal("SIGKILL");
    assert.equal((await session.status).code, 255);
    assert.equal(k3s.guestDisk(), "dirty");
  },
);

guestTest(
  "a guest that has not booted lets ssh in and says nothing; a silent port does not even do that",
  async (_home, k3s) => {
    await using guest = await sshGuest(k3s, "hang-before-ready");
    await using session = openSession(k3s, "echo ready");
    await eventually(() => assert.deepEqual(guest.log(), ["ssh: echo ready"]));
    assert.equal(session.printed(), "");

    using silent = silentPort();
    k3s.sshConfig({ port: silent.port });
    const { status, stderr } = await ssh(k3s, "true", { seconds: 1 });
    assert.equal(status, 255);
    assert.match(stderr, /timed out/);
  },
);

guestTest("a guest whose sshd has ended refuses the connection", async (_home, k3s) => {
  const guest = await sshGuest(k3s);
  await guest.stop();
  const { status, stderr } = await ssh(k3s, "true");
  assert.equal(status, 255);
  assert.match(stderr, /Connection refused/);
});

guestTest("nothing reaches this machine's own commands", async (home, k3s) => {
  await using guest = await sshGuest(k3s);
  const canary = `${home.root}/canary`;
  // Reads only, so that a hole in the wall would do no harm.
  const attempts = [
    "cat /etc/hostname",
    "./../../../../../usr/bin/id",
    "nowhere=; $nowhere/usr/bin/id",
    "$(printf '\\57usr\\57bin\\57id')",
    "PATH=/usr/bin:$PATH id",
    "/opt/x/poweroff",
    "sudo -n /etc/init.d/x",
    `: >${canary}`,
  ];
  for (const attempt of attempts) assert.equal((await ssh(k3s, attempt)).status, 126, attempt);
  assert.equal(guest.log().filter((line) => line.startsWith("refused:")).length, attempts.length);
  assert.equal((await ssh(k3s, "ls")).status, 127);
  assert.equal((await ssh(k3s, "/usr/bin/ls")).status, 127);
  assert.equal((await ssh(k3s, "echo $PATH")).stdout, `${k3s.dir}/standin.guest/bin\n`);
  const { stdout } = await ssh(k3s, "set");
  assert.doesNotMatch(stdout, /^SSH_|^STANDIN_HOME=/m, "the environment is empty");
  if (Deno.uid() === 0) {
    // The file shows as which user the commands ran.
    await ssh(k3s, "echo mine >whose");
    assert.notEqual(Deno.statSync(k3s.path("standin.guest/whose")).uid, 0);
  }
});

// --- the helpers ------------------------------------------------------------------------------------------------------

Deno.test("a bystander shows its wanted command, and remembers every signal", async () => {
  await using home = await tempLimaHome();
  const command = ["limactl", "hostagent", "--pidfile", `${home.lima}/k3s/ha.pid`];
  await using bystander = await startBystander(home, { command });
  assert.equal(psCommand(bystander.pid), `${command.join(" ")}\n`);
  bystander.assertAlive();
  Deno.kill(bystander.pid, "SIGTERM");
  Deno.kill(bystander.pid, "SIGUSR1");
  await eventually(() => assert.deepEqual(bystander.signals().sort(), ["SIGTERM", "SIGUSR1"]));
  assert.throws(() => bystander.assertAlive(), /was signalled/);
  await bystander.end();
  assert.equal(isAlive(bystander.pid), false);
});

Deno.test("a zombie exists and is not alive", async () => {
  await using home = await tempLimaHome();
  await using dead = await zombie(home);
  assert.match(ps(dead.pid)!.stat, /^Z/);
  assert.equal(isAlive(dead.pid), false);
});

Deno.test("the end of a home ends everything in it, and nothing else", async () => {
  await using other = await tempLimaHome();
  await using bystander = await startBystander(other);
  let pids: number[];
  {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s", { conf: { usernet: 1, grandchild: 1 } });
    await using _ = await startQemuOrphan(k3s);
    // The grandchild has just been started, and takes a moment to show its name.
    pids = await eventually(() => {
      const found = home.processes().map((line) => Number(line.split(" ")[0]));
      assert.equal(found.length, 3, home.processes().join("\n"));
      return found;
    });
  }
  assert.deepEqual(pids.filter(isAlive), []);
  bystander.assertAlive();
});

const user = ordinaryUser();
Deno.test({
  name: user ? "an ordinary user runs the stand-ins as himself" : `an ordinary user (skipped: ${NO_ORDINARY_USER})`,
  ignore: user === null,
  async fn() {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    home.giveTo(user!);
    await using agent = await startAgent(k3s, user!);
    assert.equal(ps(agent.pid)!.uid, user!.uid);
    await using bystander = await startBystander(home, user!);
    assert.equal(ps(bystander.pid)!.uid, user!.uid);
    const { stdout } = await user!.runAs("/usr/bin/id", ["-un"]);
    assert.equal(new TextDecoder().decode(stdout), `${user!.name}\n`);
  },
});

const noMount = whyNoMount();
Deno.test({
  name: `a full disk${noMount ? ` (skipped: ${noMount})` : ""}`,
  ignore: noMount !== undefined,
  async fn() {
    await using home = await tempLimaHome();
    const dir = `${home.root}/small`;
    Deno.mkdirSync(dir);
    using disk = tinyMount(dir);
    disk.fill();
    assert.throws(() => Deno.writeTextFileSync(`${dir}/more`, "x".repeat(4096)), { code: "ENOSPC" });
  },
});

const noReadOnly = whyNoReadOnlyDir();
Deno.test({
  name: `a read-only directory${noReadOnly ? ` (skipped: ${noReadOnly})` : ""}`,
  ignore: noReadOnly !== undefined,
  async fn() {
    await using home = await tempLimaHome();
    const k3s = home.instance("k3s");
    {
      using _ = readOnlyDir(k3s.dir);
      assert.throws(() => Deno.writeTextFileSync(k3s.path("x"), ""));
    }
    Deno.writeTextFileSync(k3s.path("x"), "");
  },
});

// --- small tools of these tests ---------------------------------------------------------------------------------------

function recordedStates(): { title: string; status: number; lines: string[] }[] {
  return RECORDING.split(/^## /m).slice(1).map((text) => {
    const [title, ...rest] = text.split("\n");
    return {
      title: title!,
      status: Number(/^exit status (\d+)$/m.exec(text)?.[1] ?? 0),
      lines: rest.filter((line) => line.startsWith("level=")),
    };
  });
}

/** Every expected line, in this order; the home of the recording stands for the home of the test. */
function assertSays(stderr: string, lines: string[], home: Home): void {
  const said = stderr.split("\n").map((line) =>
    line.replace(/^time="[^"]*" /, "").replaceAll(home.lima, "/home/admin/.lima")
  );
  let from = 0;
  for (const line of lines) {
    const at = said.indexOf(line.replaceAll(home.lima, "/home/admin/.lima"), from);
    assert.ok(at >= 0, `not said: ${line}\nbut:\n${stderr}`);
    from = at + 1;
  }
}

/** The very bytes that ps prints. */
function psCommand(pid: number): string {
  const { stdout } = new Deno.Command("ps", {
    args: ["-ww", "-o", "command=", "-p", String(pid)],
    env: { LC_ALL: Deno.build.os === "darwin" ? "UTF-8" : "C.UTF-8" },
  }).outputSync();
  return new TextDecoder().decode(stdout);
}

async function request(path: string, version = "1.0"): Promise<string> {
  using connection = await Deno.connect({ transport: "unix", path });
  const bytes = new TextEncoder().encode(`GET /v1/info HTTP/${version}\r\nHost: lima-hostagent\r\n\r\n`);
  await connection.write(bytes);
  const buffer = new Uint8Array(4096);
  return new TextDecoder().decode(buffer.subarray(0, await connection.read(buffer) ?? 0));
}

async function qmp(instance: Instance) {
  const connection = await Deno.connect({ transport: "unix", path: instance.path("qmp.sock") });
  let text = "";
  return {
    send: (command: unknown) => void connection.write(new TextEncoder().encode(JSON.stringify(command) + "\n")),
    async line(): Promise<string> {
      const buffer = new Uint8Array(4096);
      while (!text.includes("\n")) {
        // A client that was never accepted sees a reset where others see the end.
        const count = await connection.read(buffer).catch(() => null);
        if (count === null) return text;
        text += new TextDecoder().decode(buffer.subarray(0, count));
      }
      const line = text.slice(0, text.indexOf("\n"));
      text = text.slice(line.length + 1);
      return line;
    },
    [Symbol.dispose]: () => connection.close(),
  };
}

function sshCommand(instance: Instance, text: string, stdin: "null" | "piped", seconds = 10): Deno.Command {
  const options = ["ControlMaster=no", "ControlPath=none", `ConnectTimeout=${seconds}`].flatMap((
    option,
  ) => ["-o", option]);
  return new Deno.Command("ssh", {
    args: ["-F", instance.path("ssh.config"), ...options, "lima-k3s", text],
    env: instance.home.mark,
    stdin,
    stdout: "piped",
    stderr: "piped",
  });
}

async function ssh(
  instance: Instance,
  text: string,
  { seconds }: { seconds?: number } = {},
): Promise<{ status: number; stdout: string; stderr: string }> {
  const output = await sshCommand(instance, text, "null", seconds).output();
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { status: output.code, stdout: decode(output.stdout), stderr: decode(output.stderr) };
}

/** An ssh session that stays open. */
function openSession(instance: Instance, text: string) {
  const child = sshCommand(instance, text, "piped").spawn();
  let printed = "";
  const reading = (async () => {
    for await (const part of child.stdout.pipeThrough(new TextDecoderStream())) printed += part;
  })();
  const errors = new Response(child.stderr).text();
  const writer = child.stdin.getWriter();
  return {
    status: child.status,
    printed: () => printed,
    ready: () => eventually(() => assert.match(printed, /^ready$/m)),
    write: (text: string) => writer.write(new TextEncoder().encode(text)),
    async [Symbol.asyncDispose]() {
      killChild(child);
      await child.status;
      await writer.close().catch(() => {});
      await Promise.all([reading, errors]);
    },
  };
}
