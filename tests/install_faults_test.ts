/**
 * One command of a run fails, hangs or is killed: each in turn. Whatever it was, the old job or the new job is loaded
 * and running at the end, the plist is whole and belongs to it, and the report says which.
 */

import assert from "node:assert/strict";
import { FakeMac, type MacSettings } from "./helpers/launchd.ts";

const folder = new URL("testdata/plists/", import.meta.url);
const LIMACTL = ["/opt/homebrew/bin/limactl", "start", "default", "--foreground"];

/** How a call goes wrong: see standin/launchd/Launchd.pm. */
const KINDS = ["5", "after:5", "killed", "hang", "late"];
/** Hung commands only wait, so more of those runs go side by side. */
const sideBySide = (fault: string) => fault === "hang" || fault === "late" ? 8 : 3;

interface Scenario {
  readonly kind: "daemon" | "agent";
  readonly role: "install" | "uninstall";
  readonly faults: readonly string[];
  readonly conf?: string;
  readonly fixture?: string;
}

const SCENARIOS: Record<string, Scenario> = {
  "an agent's install": { kind: "agent", role: "install", faults: KINDS },
  "an agent's uninstall": { kind: "agent", role: "uninstall", faults: ["5", "killed", "late"] },
  "the install of an agent with KeepAlive": {
    kind: "agent",
    role: "install",
    faults: ["5", "late"],
    fixture: "lima-2.3-agent-keep-alive-lima-home",
  },
  "a daemon's install": { kind: "daemon", role: "install", faults: ["5", "killed", "late"] },
};

interface World {
  readonly mac: FakeMac;
  readonly args: string[];
  readonly file: string;
  readonly oldText: string;
  readonly job: () => ReturnType<FakeMac["job"]>;
  readonly isDisabled: () => boolean;
}

/** A Mac right before the run that is tried. */
async function worldOf({ kind, role, conf, fixture }: Scenario, settings: MacSettings = {}): Promise<World> {
  const mac = FakeMac.make(settings);
  const source = Deno.readTextFileSync(new URL(`${fixture ?? `lima-2.2-${kind}`}.plist`, folder));
  const text = source.replaceAll("/Users/zoe", mac.home);
  const file = kind === "daemon" ? mac.daemon("default", text) : mac.agent("default", text);
  const domain = kind === "daemon" ? "system" : "gui/501";
  const label = kind === "daemon" ? "io.lima-vm.daemon.default" : "io.lima-vm.autostart.default";
  await mac.load(domain, file);
  // Where it stands: what is done to put a guard in its place is tried with the agent that has none.
  const place = kind === "daemon"
    ? ["--guard", mac.putGuard(`${mac.root}/system/opt/lima-guard`)]
    : ["--guard-dir", `${mac.home}/libexec`];
  if (role === "uninstall") assert.equal((await mac.run(["--yes", ...place, "default"])).status, 0);
  mac.forget();
  if (conf) mac.conf(conf);
  const args = [`--${role}`, "--yes", "--json", ...role === "install" ? place : [], "default"];
  const oldText = Deno.readTextFileSync(file);
  return {
    mac,
    args,
    file,
    oldText,
    job: () => mac.job(domain, label),
    isDisabled: () => mac.isDisabled(domain, label),
  };
}

/** What must hold at the end of any run. */
function assertWhole(
  world: World,
  role: string,
  newText: (world: World) => string,
  status: number,
  stdout: string,
  words: string,
) {
  const { mac, file, oldText, job } = world;
  const text = Deno.readTextFileSync(file);
  const now = text === oldText ? "old" : text === newText(world) ? "new" : "neither";
  assert.notEqual(now, "neither", `${words}: the plist is neither old nor new:\n${text}`);
  const loaded = job();
  assert.ok(loaded && !loaded.dying, `${words}: no job is loaded\n${stdout}`);
  const isWrapped = loaded.args.includes("--run");
  assert.deepEqual(loaded.args.slice(isWrapped ? 4 : 0), LIMACTL, words);
  const belongsTo = isWrapped === (role === "install") ? "new" : "old";
  assert.equal(now, belongsTo, `${words}: the plist is ${now}, the loaded job ${belongsTo}\n${stdout}`);
  assert.ok(loaded.pid !== undefined, `${words}: the job does not run\n${stdout}`);
  assert.ok(!world.isDisabled(), `${words}: the job is disabled`);
  assert.ok(!mac.exists(`${mac.state}/cut_off`), `${words}: the guest was cut off`);
  const report = JSON.parse(stdout).instances[0];
  assert.equal(report.status, status);
  assert.equal(status === 0, now === "new", `${words}: status ${status} and a ${now} plist\n${stdout}`);
  const good = role === "install" ? ["guarded"] : ["not guarded"];
  const states = now === "new" ? good : ["rolled back", "refused", "unknown"];
  assert.ok(states.includes(report.state), `${words}: ${now}, and it says ${report.state}\n${stdout}`);
  if (status !== 0) assert.ok(report.blockers[0].because.length > 10, `${words}: no reason`);
}

for (const [title, scenario] of Object.entries(SCENARIOS)) {
  for (const fault of scenario.faults) {
    Deno.test(`${title}: whichever command ${spoken(fault)}, the old job or the new one runs`, async () => {
      // A run without any fault tells how many there are, and what the new plist is.
      const plain = await worldOf(scenario);
      await using _ = plain.mac;
      const run = await plain.mac.run(plain.args);
      assert.equal(run.status, 0, run.stdout);
      const calls = plain.mac.log().length;
      assert.ok(calls > 10, `only ${calls} commands`);
      const template = Deno.readTextFileSync(plain.file).replaceAll(plain.mac.root, "ROOT");
      const newText = (world: World) => template.replaceAll("ROOT", world.mac.root);
      const statuses: number[] = [];
      const tryAt = async (n: number) => {
        const world = await worldOf(scenario);
        await using _ = world.mac;
        world.mac.fault(`${n} ${fault}`);
        const { status, stdout, stderr } = await world.mac.run(world.args);
        const words = `call ${n} ${fault} (${world.mac.log()[n - 1]})`;
        assertWhole(world, scenario.role, newText, status, stdout, `${words}\n${stderr}`);
        statuses.push(status);
      };
      let next = 1;
      const worker = async () => {
        while (next <= calls) await tryAt(next++);
      };
      await Promise.all(Array.from({ length: sideBySide(fault) }, worker));
      assert.equal(statuses.length, calls);
      assert.ok(statuses.some((s) => s !== 0), "no fault has ever mattered");
    });
  }
}

function spoken(fault: string): string {
  return {
    5: "fails",
    "after:5": "works and says it failed",
    killed: "is killed",
    hang: "hangs",
    late: "works and hangs",
  }[fault] ?? fault;
}

Deno.test("when the way back fails too, the report says so and names the command", async () => {
  const world = await worldOf(SCENARIOS["an agent's install"]!);
  await using _ = world.mac;
  world.mac.fault(...Array.from({ length: 60 }, (_, i) => `bootstrap:${i + 1} 122`));
  const run = await world.mac.run(world.args);
  const report = run.json();
  assert.deepEqual([run.status, report.state], [1, "broken"]);
  assert.match(report.blockers[0].because, /status 122: the plist has a bad owner or mode/);
  assert.ok(report.blockers[0].hint.endsWith(`launchctl bootstrap gui/501 ${world.file}`));
  assert.equal(Deno.readTextFileSync(world.file), world.oldText);
});
