/**
 * Whatever fails, is killed, or is changed by another program before any effect of a run: the old plist, guard and job
 * are in force, or the new ones, never a mixture; nothing is left over; and no other program's text is lost.
 *
 * There are hundreds of runs, and in each the process itself says what Apple's tools would say (install_tools.ts). What
 * is killed is a process; where only the answer of a call or of the disk matters, root's run needs none.
 */

import assert from "node:assert/strict";
import { type FakeMac, guarded, limactl, type MacSettings, macTest, macWith } from "./install_mac.ts";

type Kind = "daemon" | "agent";
interface Scenario {
  /** Each of these starts a process for every effect of a run: the daemon's install has all, the others what is theirs. */
  readonly trials:
    readonly ("fails" | "killed" | "works, and says it failed" | "disk" | "kill" | "signal" | "change")[];
  readonly kind: Kind;
  readonly role: "install" | "uninstall";
  /** An older guard is in its place, and has an older one beside it. */
  readonly upgrades?: boolean;
  /** It is loaded, and disabled. */
  readonly isDisabled?: boolean;
}
const SCENARIOS: Record<string, Scenario> = {
  "a daemon's install": {
    trials: ["fails", "killed", "works, and says it failed", "disk", "kill", "signal", "change"],
    kind: "daemon",
    role: "install",
    upgrades: true,
  },
  "a disabled daemon's install": { trials: ["kill"], kind: "daemon", role: "install", isDisabled: true },
  "an agent's install": { trials: ["fails"], kind: "agent", role: "install" },
  "a daemon's uninstall": { trials: ["fails", "kill"], kind: "daemon", role: "uninstall" },
};

/** A Mac right before the run that is tried. `run` is that run, with these settings; without `quick` all is a process. */
async function worldOf({ kind, role, upgrades, isDisabled }: Scenario, { quick = true }: { quick?: boolean } = {}) {
  const world = macWith(kind, { quick });
  const { mac, as } = world;
  if (upgrades) {
    mac.putGuard(mac.guard, "\n# the old one\n");
    mac.putGuard(`${mac.guard}.previous`, "\n# the oldest one\n");
  }
  if (role === "uninstall") {
    const first = await mac.run(["--yes", "default"], { settings: { quick: true } });
    assert.equal(first.status, 0, first.stdout);
  }
  if (isDisabled) mac.launchctl(["disable", `${world.domain}/${world.label}`]);
  mac.forget();
  const args = [`--${role}`, "--yes", "--json", "default"];
  const run = (settings: MacSettings = {}) => mac.run(args, { as, settings });
  return { ...world, args, run };
}
type World = Awaited<ReturnType<typeof worldOf>>;

/** What launchd has, in one word: the old job or the new one, running or not. */
function jobIn(world: World): string {
  const job = world.job();
  if (!job) return "none";
  const isWrapped = job.args.includes("--run");
  assert.deepEqual(job.args, isWrapped ? guarded(world.mac, world.guard) : limactl(world.mac));
  return `${isWrapped ? "guarded" : "bare"}${job.pid === undefined ? ", not running" : ""}${
    job.dying ? ", ending" : ""
  }${world.mac.isDisabled(world.domain, world.label) ? ", disabled" : ""}`;
}

/** The end states of a run without any fault: before and after. */
async function bothEnds(scenario: Scenario) {
  const world = await worldOf(scenario);
  await using _ = world.mac;
  const before = { tree: withRoot(world.mac), job: jobIn(world) };
  const run = await world.run({ trace: true });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  // Hundreds of runs follow: what changes no file takes no process.
  assert.deepEqual(world.mac.apart().filter((line) => !line.includes("/codesign --force ")), []);
  const after = { tree: withRoot(world.mac), job: jobIn(world) };
  const lines = world.mac.effects();
  /** The number of the first effect like this. */
  const numberOf = (pattern: RegExp) => lines.findIndex((line) => pattern.test(line)) + 1;
  return { before, after, effects: lines.length, calls: world.mac.log().length, lines, numberOf };
}

function withRoot(mac: FakeMac): string[] {
  return mac.tree().map((row) => row.replaceAll(mac.root, "ROOT"));
}

function assertOneEnd(world: World, ends: Awaited<ReturnType<typeof bothEnds>>, words: string): "old" | "new" {
  const tree = withRoot(world.mac);
  const job = jobIn(world);
  const isOld = JSON.stringify(tree) === JSON.stringify(ends.before.tree);
  const isNew = JSON.stringify(tree) === JSON.stringify(ends.after.tree);
  if (!isOld && !isNew) assert.deepEqual(tree, ends.before.tree, `${words}: neither the old files nor the new ones`);
  assert.equal(job, isNew ? ends.after.job : ends.before.job, words);
  assert.ok(!world.mac.exists(`${world.mac.state}/cut_off`), `${words}: the guest was cut off`);
  return isNew ? "new" : "old";
}

async function inTurn(count: number, attempt: (n: number) => Promise<void>): Promise<void> {
  let next = 1;
  const worker = async () => {
    while (next <= count) await attempt(next++);
  };
  await Promise.all([worker(), worker(), worker()]);
}

for (const [title, scenario] of Object.entries(SCENARIOS)) {
  const test = (trial: Scenario["trials"][number], words: string, fn: () => Promise<void>) => {
    if (scenario.trials.includes(trial)) macTest(`${title}: ${words}`, fn);
  };
  for (
    const [trial, fault] of [["fails", "5"], ["killed", "killed"], ["works, and says it failed", "after:5"]] as const
  ) {
    test(
      trial,
      `whichever command ${trial}, one of the two ends is in force`,
      async () => {
        const ends = await bothEnds(scenario);
        assert.ok(ends.calls > 10);
        const seen = new Set<string>();
        await inTurn(ends.calls, async (n) => {
          const world = await worldOf(scenario);
          await using _ = world.mac;
          world.mac.fault(`${n} ${fault}`);
          const run = await world.run();
          const words = `call ${n} ${fault} (${world.mac.log()[n - 1]})\n${run.stdout}\n${run.stderr}`;
          const end = assertOneEnd(world, ends, words);
          // Where the account is not found out no job is looked for: 75, and no report of one.
          const state = run.status === 75 && !run.json() ? "unknown" : run.json().state;
          assert.equal(run.status === 0, end === "new", words);
          assert.equal(JSON.parse(run.stdout).changed, end === "new", words);
          if (end === "old") assert.ok(["rolled back", "refused", "unknown"].includes(state), words);
          seen.add(end);
        });
        assert.ok(seen.has("old"), "no fault has ever mattered");
      },
    );
  }

  test(
    "disk",
    `the disk is full at any file: the old files and the old job, and nothing is left lying about`,
    async () => {
      const ends = await bothEnds(scenario);
      await inTurn(ends.effects, async (n) => {
        const world = await worldOf(scenario);
        await using _ = world.mac;
        const run = await world.run({ failAt: n });
        const end = assertOneEnd(world, ends, `effect ${n}\n${run.stdout}\n${run.stderr}`);
        assert.equal(run.status === 0, end === "new", run.stdout);
      });
    },
  );

  test("kill", `killed before any effect, the next run finishes it, and loads the job that was loaded`, async () => {
    const ends = await bothEnds(scenario);
    await inTurn(ends.effects, async (n) => {
      const world = await worldOf(scenario);
      await using _ = world.mac;
      const { mac, args, as } = world;
      const child = mac.start(args, { as, settings: { freezeAt: n } });
      const reader = child.stderr.getReader();
      for (let text = ""; !text.includes("frozen");) {
        const { value, done } = await reader.read();
        assert.ok(!done, text);
        text += new TextDecoder().decode(value);
      }
      child.kill("SIGKILL");
      await Promise.all([child.status, reader.cancel(), child.stdout.cancel()]);
      assert.ok(mac.exists(world.file), `effect ${n}: there is no plist`);
      const again = await world.run();
      const words = `effect ${n}\n${again.stdout}\n${again.stderr}`;
      assert.equal(again.status, 0, words);
      assert.equal(jobIn(world), ends.after.job, words);
      const rows = (tree: string[]) => tree.filter((row) => !/\.previous |before-lima-guard /.test(row));
      assert.deepEqual(rows(withRoot(mac)), rows(ends.after.tree), words);
      assert.ok(!mac.exists(`${mac.state}/cut_off`), words);
    });
  });

  test(
    "signal",
    `a signal to the whole process group before any command: one of the two ends is in force`,
    async () => {
      const ends = await bothEnds(scenario);
      const first = ends.numberOf(/ link /);
      const bootstrap = ends.numberOf(/ run \S+launchctl,bootstrap,/);
      // Of the commands that only look the last one is enough.
      const all = ends.lines.flatMap((line, i) => / run /.test(line) ? [i + 1] : []);
      const commands = all.slice(all.findLastIndex((n) => n < first));
      await inTurn(commands.length, async (i) => {
        const world = await worldOf(scenario);
        await using _ = world.mac;
        const { mac, args, as } = world;
        const [signal, hookAt] = [["INT", "TERM", "HUP"][i % 3]!, commands[i - 1]!];
        // The shell is in the group too.
        const settings = { hookAt, hook: `trap '' ${signal}; kill -${signal} 0` };
        const { success, stdout, stderr } = await mac.start(args, { as, settings, by: "setsid" }).output();
        const text = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("\n");
        const words = `${signal} before effect ${hookAt} (${ends.lines[hookAt - 1]})\n${text}`;
        const end = assertOneEnd(world, ends, words);
        assert.ok(!success || end === "new", words);
        // Before the first step a signal ends it; how many looks there are at the end is not known.
        if (hookAt <= bootstrap) assert.deepEqual([end, /"rolled back"/.test(text)], ["old", hookAt > first], words);
        else assert.ok(end === "new" || /"rolled back"/.test(text), words);
      });
    },
  );

  test("change", `another program writes or removes the plist before any effect: its text is never lost`, async () => {
    const ends = await bothEnds(scenario);
    const { effects, numberOf } = ends;
    // The job's file is read before launchd is asked about it, and compared right before it gets its second name.
    const [read, compared] = [numberOf(/ run \S+launchctl,print,/), numberOf(/ link \S+\.plist$/)];
    const isPlist = (row: string) => row.startsWith("/system/Library/LaunchDaemons/") && row.includes(".plist 0:0 ");
    const withoutPlist = { ...ends.before, tree: ends.before.tree.filter((row) => !isPlist(row)) };
    assert.ok(read > 0 && compared > read && withoutPlist.tree.length === ends.before.tree.length - 1);
    for (const how of ["write", "remove"]) {
      await inTurn(effects, async (n) => {
        const world = await worldOf(scenario);
        await using _ = world.mac;
        const { mac, file, text, as } = world;
        const newer = `${mac.root}/newer`;
        if (how === "write") mac.write(newer, text.replace("Background", "Standard"), as);
        const hook = how === "write" ? `cp -p ${newer} ${file}.x && mv ${file}.x ${file}` : `rm ${file}`;
        const run = await world.run({ hookAt: n, hook, limits: { bootstrapMs: 1500 } });
        const words = `${how} before effect ${n}\n${run.stdout}\n${run.stderr}`;
        if (how === "remove") {
          if (n < compared) assert.ok(n > read ? run.status === 75 : run.status > 0, words);
          if (n <= compared) assertOneEnd(world, { ...ends, before: withoutPlist }, words);
          // The rename has no wait behind the comparison: what is removed in between comes back.
          if (n !== compared + 1) assert.ok(!mac.exists(file), words);
          assert.notEqual(run.json().state, "broken", words);
          return;
        }
        const isKept = [file, `${file}.before-lima-guard`].some((path) =>
          mac.exists(path) && Deno.readTextFileSync(path).includes("Standard")
        );
        assert.ok(isKept, words);
        assert.notEqual(run.json().state, "broken", words);
        assert.notEqual(jobIn(world), "none", words);
      });
    }
  });
}

// The trials above are worth what the answers within the process are worth.
const FAULTS = ["", "print-disabled:1 5", "bootstrap:1 killed", "bootout:1 after:5"];
for (const [title, scenario] of Object.entries(SCENARIOS)) {
  macTest(`${title}: with processes for everything it is the same, to the last call`, async () => {
    for (const fault of scenario.upgrades ? FAULTS : FAULTS.slice(0, 2)) {
      const seen = await Promise.all([true, false].map(async (quick) => {
        const world = await worldOf(scenario, { quick });
        await using _ = world.mac;
        world.mac.fault(fault);
        const { status, stdout, stderr } = await world.run({ trace: true });
        const { mac } = world;
        const lines = [...mac.log(), "effects", ...mac.effects(), "report", stdout, stderr, ...mac.tree()];
        const same = lines.map((line) =>
          line.replaceAll(mac.root, "ROOT").replaceAll(/\b[0-9a-f]{8}\b|"total": [\d.]+/g, "")
        );
        return { status, job: jobIn(world), uids: mac.guardUids(), same };
      }));
      assert.deepEqual(seen[0], seen[1], fault);
    }
  });
}
