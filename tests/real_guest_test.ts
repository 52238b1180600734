/**
 * A real Linux under a real limactl: what was written before a stop is there after the next start, and no file system
 * had to be repaired. Needs what tests/helpers/real_lima.ts says, and LIMA_GUARD_GUEST.
 */

import assert from "node:assert/strict";
import { eventually, isAlive, runGuard, spawnGuard } from "./helpers/mod.ts";
import { pre } from "./helpers/pre.ts";
import { environment, realTest, start, type Started, type World } from "./helpers/real_lima.ts";
import { readDocument } from "./helpers/stop.ts";

const options = { guest: true };
/** A limit, not a time: an emulated guest on a busy machine took 320 s until its host agent said `running`. */
const BOOT_MS = 1_200_000;

/** Runs a command in the guest, and returns what it prints. */
async function inGuest({ home, k3s, guard }: World, script: string): Promise<string> {
  const flags = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=20"];
  const output = await new Deno.Command("ssh", {
    args: ["-F", k3s.path("ssh.config"), ...flags, "lima-k3s", script],
    ...(guard.user ? { uid: guard.user.uid, gid: guard.user.gid } : {}),
    env: { ...home.mark, HOME: home.user, PATH: Deno.env.get("PATH") ?? "" },
    clearEnv: true,
    stdin: "null",
  }).output();
  const [stdout, stderr] = [output.stdout, output.stderr].map((bytes) => new TextDecoder().decode(bytes));
  assert.equal(output.code, 0, `${script}: ${stderr}`);
  return stdout!.trim();
}

async function booted({ k3s }: World): Promise<void> {
  const isUp = () => assert.ok(k3s.read("ha.stdout.log")?.includes('"running":true'), "it has not booted");
  await eventually(isUp, { withinMs: BOOT_MS });
}

async function boot(world: World): Promise<Started> {
  const agent = await start(world);
  assert.equal(agent.status, undefined, agent.status === undefined ? "" : await agent.said);
  await booted(world);
  return agent;
}

/** Writes a file whose sum it returns. It is not synced: a stop that cuts the power loses it. */
function write(world: World, name: string): Promise<string> {
  return inGuest(world, `head -c 4000000 /dev/urandom >${name} && sha256sum <${name}`);
}

function sum(world: World, name: string): Promise<string> {
  return inGuest(world, `sha256sum <${name}`);
}

/** What the ext4 superblock on the instance's disk says: unmounted in an orderly way, or in need of a repair. */
async function fileSystem({ home, k3s }: World): Promise<"clean" | "dirty"> {
  const image = k3s.path(k3s.has("diffdisk") ? "diffdisk" : "disk");
  const copy = `${home.root}/superblock`;
  const args = ["dd", "-O", "raw", "bs=4096", "count=1", `if=${image}`, `of=${copy}`];
  const { success, stderr } = await new Deno.Command("qemu-img", { args }).output();
  assert.ok(success, new TextDecoder().decode(stderr));
  const block = new DataView(Deno.readFileSync(copy).buffer, 1024);
  assert.equal(block.getUint16(0x38, true), 0xef53, "no ext4 file system begins where this disk does");
  const isValid = (block.getUint16(0x3a, true) & 1) === 1;
  const needsRecovery = (block.getUint32(0x60, true) & 4) !== 0;
  return isValid && !needsRecovery ? "clean" : "dirty";
}

realTest("real guest: --stop powers it off, and nothing is lost", async (world) => {
  const { home, guard, k3s } = world;
  let expected: string;
  {
    await using agent = await boot(world);
    expected = await write(world, "data");
    const result = await runGuard(home, ["--stop", "--json", "k3s"], guard);
    const [report] = readDocument(result);
    // On a busy machine the guest has no time to acknowledge, and Lima's own stop follows: orderly too.
    assert.equal(result.status, 0, result.stdout);
    assert.match(String(report!.stage), /^(guest|agent)$/, result.stdout);
    assert.ok(!isAlive(agent.pid) && !isAlive(agent.qemu!));
    assert.deepEqual(k3s.files().filter((file) => /\.(pid|tmp)$/.test(file)), []);
  }
  assert.equal(await fileSystem(world), "clean");
  await using _again = await boot(world);
  assert.equal(await sum(world, "data"), expected);
}, options);

realTest("real guest: its host agent is killed: --pre powers the orphan off, and nothing is lost", async (world) => {
  const { k3s, guard, bystander } = world;
  let expected: string;
  {
    await using agent = await boot(world);
    expected = await write(world, "data");
    await agent.kill();
    k3s.pidFile("ha.pid", bystander.pid);
    const { status, report, stdout } = await pre(k3s, guard);
    assert.deepEqual([status, report.state], [0, "orphan"], stdout);
    assert.ok(report.steps.some(({ kind, outcome }) => kind === "guest" && outcome === "done"), stdout);
    assert.ok(!isAlive(agent.qemu!));
  }
  assert.equal(await fileSystem(world), "clean");
  await using _again = await boot(world);
  assert.equal(await sum(world, "data"), expected);
}, options);

realTest(
  "real guest: a unit that ignores SIGTERM for 90 s: switched off in time, with a clean file system",
  async (world) => {
    const { home, guard } = world;
    await using agent = await boot(world);
    const unit = "sudo -n systemd-run -q --unit=deaf -p KillMode=process -p TimeoutStopSec=90";
    await inGuest(world, `${unit} sh -c 'trap "" TERM; while :; do sleep 1; done' && systemctl is-active deaf`);
    await write(world, "data");
    const result = await runGuard(home, ["--stop", "--json", "k3s"], { ...guard, timeoutMs: 90_000 });
    const [report] = readDocument(result);
    assert.deepEqual([result.status, report!.stage], [0, "guest"], result.stdout);
    // Without the deadline that is armed in the guest it would have been killed at 51 s.
    assert.ok(report!.seconds.total! > 30 && report!.seconds.total! < 51, result.stdout);
    assert.ok(!isAlive(agent.pid) && !isAlive(agent.qemu!));
    assert.equal(await fileSystem(world), "clean");
  },
  options,
);

realTest("real guest: what a power cut does, so that the other tests can fail", async (world) => {
  await using agent = await boot(world);
  await write(world, "data");
  await agent.kill();
  Deno.kill(agent.qemu!, "SIGKILL");
  await eventually(() => assert.ok(!isAlive(agent.qemu!)));
  assert.equal(await fileSystem(world), "dirty");
  assert.equal((await pre(world.k3s, world.guard)).status, 0);
}, options);

realTest("real guest: --run through three starts and stops", async (world) => {
  const { home, guard, k3s, real } = world;
  const sums: string[] = [];
  for (let n = 0; n < 3; n++) {
    const command = [real.limactl, "start", "--tty=false", "k3s", "--foreground"];
    const env = environment(real.user, home);
    await using run = spawnGuard(home, ["--run", "k3s", "--", ...command], { ...guard, env });
    await run.waitForLine(/Running after/, { withinMs: BOOT_MS });
    await booted(world);
    for (const [i, expected] of sums.entries()) assert.equal(await sum(world, `data${i}`), expected);
    sums.push(await write(world, `data${n}`));
    run.signal("SIGTERM");
    const { status, stderr } = await run.result({ timeoutMs: 90_000 });
    assert.equal(status, 0, stderr);
    assert.match(stderr, /stopped gracefully by the (guest|host agent)/);
    assert.equal(await fileSystem(world), "clean");
    assert.deepEqual(home.processes().filter((line) => line.includes(k3s.dir)), []);
    assert.deepEqual(k3s.files().filter((file) => /\.(pid|tmp)$/.test(file)), []);
  }
}, options);
